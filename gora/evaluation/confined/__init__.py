"""What runs a program in a process of its own: started by `gora.evaluation.sandbox` with `python -I`, standard library
only."""
