"""The gradient pass of a recipe, and the plan that comes of it."""
