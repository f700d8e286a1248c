"""One step over the parameters of models."""

from __future__ import annotations

import pytest
import torch
from contestants import bf16_kinds, fp32_kinds
from names import FOREACH
from shapes import Shape


def _over_model(race, scale, device, model, dtype, name):
    shape = Shape(scale.models[model], dtype, device)
    is_bf16 = dtype is torch.bfloat16
    what = "bfloat16 parameters, float32 master weights" if is_bf16 else "float32 parameters"
    title = f"{model}, {len(shape.sizes)} tensors, {shape.total:,} {what}, new gradients"
    kinds = (bf16_kinds if is_bf16 else fp32_kinds)(device)
    # A CPU's memory has room for four of GPT-2.
    wanted = [kind for kind in kinds if device.type == "cuda" or kind.name != FOREACH]
    race(name, title, wanted, shape, scale.model_rounds, has_new_gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_gpt2(race, scale, device, dtype):
    name = f"model_{'bf16' if dtype is torch.bfloat16 else 'fp32'}"
    _over_model(race, scale, device, "GPT-2", dtype, name)


def bench_vit(race, scale, device):
    _over_model(race, scale, device, "ViT-B/16", torch.float32, "vit_fp32")


def bench_llama(race, scale, device):
    _over_model(race, scale, device, "Llama 3.2 1B", torch.bfloat16, "llama_bf16")
