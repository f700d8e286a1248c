"""Which of the programs are here: `make test` has the small ones, `make clients` all."""

from __future__ import annotations

import os

LARGE = ("deepspeed", "diffusers", "peft", "timm", "trl")
HAS_LARGE = bool(os.environ.get("WPADAMW_CLIENTS"))
