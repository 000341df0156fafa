"""What a model can do: tasks that ask it, and how its answers are scored."""
