"""Entry point of ``python -m wpadamw``."""

from __future__ import annotations

import sys

from wpadamw.cli import main

if __name__ == "__main__":
    sys.exit(main())
