"""The entry point of `tpcal` and of `python -m tpcal`.

It imports nothing but what Python has loaded by itself, so that Ctrl-C ends the program with one
line also while the command line is still being loaded.
"""

import os
import sys


def main() -> None:
    """Runs the command line; an interruption before it has begun ends with exit code 130."""
    try:
        from tpcal.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("tpcal: Interrupted.\n")
        sys.stderr.flush()
        os._exit(130)  # threads that are still starting would print tracebacks of their own


if __name__ == "__main__":
    main()
