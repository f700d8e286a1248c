"""What the tests of Hugging Face's libraries share: a small model, Trainers, what they leave."""

from __future__ import annotations

import gc

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import wpadamw
from wpadamw.integrations.transformers import WeightPredictionCallback

TOKENS = torch.randint(0, 16, (12, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]
EVALUATING = {"eval_strategy": "steps", "eval_steps": 3}


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect():
    """The Trainer collects garbage in each training: not all that has been imported, too."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def language_model(seed=0, dtype=torch.float32, **options):
    set_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=16, max_position_embeddings=16, **sizes, **heads, **options)
    return LlamaForCausalLM(config).to(dtype)


class Watch(TrainerCallback):
    """Notes which weights each forward sees, and that what is saved is true."""

    def __init__(self, check=None):
        self.check = check or check_saved
        self.training, self.evaluation, self.batches, self.num_saved = [], [], [], 0

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.optimizer = optimizer
        self.hook = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model, args, kwargs):
        seen = self.training if model.training else self.evaluation
        if self.optimizer.state:
            seen.append(holds_true(model, self.optimizer))
        if model.training:
            self.batches.append(kwargs)

    def on_save(self, args, state, control, model, optimizer, **kwargs):
        self.check(f"{args.output_dir}/checkpoint-{state.global_step}", model, optimizer)
        self.num_saved += 1

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()


def holds_true(model, optimizer):
    return all(
        torch.equal(param, optimizer.state[param]["weight"].to(param.dtype))
        for param in model.parameters()
        if param in optimizer.state
    )


def check_saved(folder, model, optimizer):
    saved = load_file(f"{folder}/model.safetensors")
    for name, param in model.named_parameters():
        weight = optimizer.state[param]["weight"]
        assert torch.equal(saved[name], weight.to(param.dtype)), name


WAY = {"optimizer_cls_and_kwargs": (wpadamw.WPAdamW, {"lr": 0.02})}


def trainer_of(folder, model=None, callbacks=(), way=WAY, is_attached=True, **options):
    own = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 100, "use_cpu": True}
    args = {"per_device_train_batch_size": 2, **own, **quiet, **options}
    return Trainer(
        language_model() if model is None and "model_init" not in way else model,
        TrainingArguments(str(folder), **args),
        train_dataset=DATA,
        eval_dataset=DATA[:4],
        callbacks=[*([WeightPredictionCallback()] if is_attached else []), *callbacks],
        **way,
    )


def held(model):
    return [param.detach().clone() for param in model.parameters()]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def optimizer_of(trainer):
    return trainer.optimizer.optimizer


def outcome(trainer):
    """Weights and all of the optimizer's state, as lists of tensors."""
    states = optimizer_of(trainer).state_dict()["state"].values()
    kept = [torch.as_tensor(value) for state in states for _, value in sorted(state.items())]
    return held(trainer.model), kept


def same(a, b):
    return all(map(equal, outcome(a), outcome(b)))


class Stop(TrainerCallback):
    """Raises an error at some moment of a step, once."""

    def __init__(self, step, error, event="on_step_end"):
        self.step, self.error = step, error
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.error is not None:
            error, self.error = self.error, None
            raise error
