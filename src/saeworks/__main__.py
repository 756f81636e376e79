"""``python -m saeworks``: the command, also under ``torchrun -m``."""

import sys

from saeworks.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
