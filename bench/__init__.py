"""The evaluation: what takes part, what a step costs, whether prediction helps, what is reported.

It uses the package as everybody may, and imports its own modules relative to itself: so it runs as
``wpadamw.bench`` where it is installed, and as ``bench`` in a checkout that is not built yet.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
