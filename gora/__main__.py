"""`python -m gora` is the `gora` command."""

from gora.cli import main

if __name__ == "__main__":
    main()
