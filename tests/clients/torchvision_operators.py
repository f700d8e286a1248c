"""Lets torchvision be imported beside a torch for CPUs.

Its wheels on PyPI need a torch with CUDA. Without one its operators are missing, and its import
fails where it registers shapes for two of them; all else that timm and diffusers use is Python.
"""

from __future__ import annotations

import torch


def declare():
    """Declares the two operators if torchvision cannot be imported without them."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")


LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
