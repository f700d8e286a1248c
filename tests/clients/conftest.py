"""Real programs. `make test` has the small ones; `make clients` has all, and sets WPADAMW_CLIENTS."""

from __future__ import annotations

import os

from torchvision_operators import declare

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
declare()

LARGE = ("deepspeed", "diffusers", "peft", "timm", "trl")
HAS_LARGE = bool(os.environ.get("WPADAMW_CLIENTS"))
collect_ignore = [] if HAS_LARGE else [f"test_{name}.py" for name in LARGE]
