"""The command `lowerbound-train` as a script: ``python scripts/train.py model=vae data=digits``."""

import sys

from lowerbound.cli import main

if __name__ == "__main__":
    sys.exit(main())
