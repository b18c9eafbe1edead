"""`python -m tpcal` is the command line."""

from tpcal.cli import main

if __name__ == "__main__":
    main()
