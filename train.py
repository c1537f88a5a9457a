"""Entry point of a checkout: the application's callbacks, then the command line."""

import sys

import callbacks  # noqa: F401  (its class names become usable in configurations)
from kd_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
