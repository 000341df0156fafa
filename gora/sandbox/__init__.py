"""Running programs that a model wrote, behind walls."""
