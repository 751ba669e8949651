"""`python -m studyloom`: the command `studyloom`."""

import sys

from studyloom.cli import main

if __name__ == "__main__":
    sys.exit(main())
