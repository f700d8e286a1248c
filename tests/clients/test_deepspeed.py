"""DeepSpeed keeps weights of its own: with prediction it is refused, without it is served."""

from __future__ import annotations

import copy
import os

os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported

import deepspeed
import pytest
import torch
from processes import free_port
from torch import nn

import wpadamw

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*barrier:UserWarning"
)
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**own, "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        deepspeed.init_distributed("gloo")
        yield
        torch.distributed.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def config(stage, dtype):
    return {
        "train_micro_batch_size_per_gpu": 4,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def engine_of(model, optimizer, stage, dtype=torch.float32):
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage, dtype))[0]


def train(engine, steps, dtype=torch.float32):
    for k in steps:
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(k)).to(dtype)
        engine.backward(engine(inputs).float().square().mean())
        engine.step()


@DTYPES
@STAGES
def test_prediction_is_refused_at_the_first_step_at_the_latest(stage, dtype):
    model = network()
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.1)
    with pytest.raises(
        RuntimeError, match=r"DeepSpeed's .* weights of its own .*prediction_steps=0"
    ):
        train(engine_of(model, opt, stage, dtype), [0], dtype)


def test_prediction_is_refused_in_the_bf16_engine_without_shards():
    model = network()
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"DeepSpeed's .* weights of its own"):
        train(engine_of(model, opt, 0, torch.bfloat16), [0], torch.bfloat16)


@STAGES
def test_without_prediction_it_is_the_optimizer_alone(stage):
    plain, model = network(), network()
    options = {"lr": 0.1, "prediction_steps": 0}
    opt = wpadamw.WPAdamW(plain.parameters(), **options)
    for k in range(4):
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(k))
        opt.zero_grad()
        plain(inputs).square().mean().backward()
        opt.step()
    engine = engine_of(model, wpadamw.WPAdamW(model.parameters(), **options), stage)
    train(engine, range(4))
    params = list(model.parameters())
    with deepspeed.zero.GatheredParameters(params, enabled=stage == 3):
        assert all(map(torch.equal, plain.parameters(), params))


@DTYPES
@pytest.mark.parametrize("stage", [1, 2])
def test_without_prediction_a_checkpoint_leads_to_the_same_bits(stage, dtype, tmp_path):
    models = [network(), network()]
    engines = []
    for model in models:
        opt = wpadamw.WPAdamW(model.parameters(), lr=0.1, prediction_steps=0)
        engines.append(engine_of(model, opt, stage, dtype))
    train(engines[0], range(3), dtype)
    engines[0].save_checkpoint(str(tmp_path))
    saved = copy.deepcopy(models[0].state_dict())
    engines[1].load_checkpoint(str(tmp_path))
    assert all(map(torch.equal, saved.values(), models[1].state_dict().values()))
    for engine in engines:
        train(engine, range(3, 6), dtype)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_without_shards_and_masters_prediction_works():
    model = network()
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.1)
    wpadamw.attach(model, opt)
    train(engine_of(model, opt, 0), range(3))
    assert not torch.equal(model[0].weight, opt.state[model[0].weight]["weight"])
    model.eval()
    assert torch.equal(model[0].weight, opt.state[model[0].weight]["weight"])
