"""`python -m s2dlib` is the command `s2d`, where no script of that name is installed."""

import sys

from s2dlib.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
