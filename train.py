"""Entry point of a checkout: the command line, with the application's callbacks beside it."""

import sys

from kd_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
