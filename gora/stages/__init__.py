"""The stages of a run. Each is one function of the recipe and of what the stage before wrote."""
