"""Entry point of ``python -m wpadamw.bench.report [--check]``."""

import sys

from .documents import main

if __name__ == "__main__":
    sys.exit(main())
