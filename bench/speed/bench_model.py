"""One step over the parameters of models."""

from __future__ import annotations

import pytest

from wpadamw.bench.registry import FOREACH
from wpadamw.bench.speed.entry import entrants_on
from wpadamw.bench.speed.shapes import DTYPES, Shape

WHAT = {"fp32": "float32 parameters", "bf16": "bfloat16 parameters, float32 master weights"}


def _over_model(race, scale, device, model, part, name):
    shape = Shape(scale.models[model], DTYPES[part], device)
    title = f"{model}, {len(shape.sizes)} tensors, {shape.total:,} {WHAT[part]}, new gradients"
    those = entrants_on(device, part)
    # A CPU's memory has room for four of GPT-2.
    wanted = [each for each in those if device.type == "cuda" or each.name != FOREACH]
    race(name, title, wanted, shape, scale.model_rounds, has_new_gradients=True)


@pytest.mark.parametrize("part", DTYPES)
def bench_gpt2(race, scale, device, part):
    _over_model(race, scale, device, "GPT-2", part, f"model_{part}")


def bench_vit(race, scale, device):
    _over_model(race, scale, device, "ViT-B/16", "fp32", "vit_fp32")


def bench_llama(race, scale, device):
    _over_model(race, scale, device, "Llama 3.2 1B", "bf16", "llama_bf16")
