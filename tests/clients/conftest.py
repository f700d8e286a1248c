"""Tests with real training programs. What is not installed by `make test` is left out there."""

from __future__ import annotations

import os

from programs import HAS_LARGE, LARGE
from torchvision_operators import declare

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
declare()

collect_ignore = [] if HAS_LARGE else [f"test_{name}.py" for name in LARGE]
