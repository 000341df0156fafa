"""What runs a program in a process of its own: started by `gora.sandbox.run` with `python -I`, standard library
only."""
