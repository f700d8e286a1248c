"""Entry point of ``python -m bench.gpu FOLDER``."""

import sys

from .run import main

if __name__ == "__main__":
    sys.exit(main())
