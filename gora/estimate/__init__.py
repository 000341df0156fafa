"""What a run will take before it is started: memory on each device by part, as functions of shapes and settings."""
