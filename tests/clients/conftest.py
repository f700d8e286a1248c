"""Real programs. `make clients` installs all and sets WPADAMW_CLIENTS; tests have the small ones."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

LARGE = ("deepspeed", "diffusers", "peft", "timm", "trl")
collect_ignore = [] if os.environ.get("WPADAMW_CLIENTS") else [f"test_{name}.py" for name in LARGE]
