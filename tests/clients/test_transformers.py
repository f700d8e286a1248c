"""The Trainer of Hugging Face transformers: evaluating, saving, best model, resuming, interrupts."""

from __future__ import annotations

import copy
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

import wpadamw
from wpadamw.integrations.transformers import WeightPredictionCallback

TOKENS = torch.randint(0, 16, (12, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


def language_model(seed=0, dtype=torch.float32, **options):
    set_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=16, max_position_embeddings=16, **sizes, **heads, **options)
    return LlamaForCausalLM(config).to(dtype)


class Watch(TrainerCallback):
    """Notes which weights each forward sees, and that what is saved is true."""

    def __init__(self):
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
        check_saved(f"{args.output_dir}/checkpoint-{state.global_step}", model, optimizer)
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


def trainer_of(folder, model=None, callbacks=(), optimizers=None, **options):
    own = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 100, "use_cpu": True}
    args = {"per_device_train_batch_size": 2, **own, **quiet, **options}
    way = {"optimizer_cls_and_kwargs": (wpadamw.WPAdamW, {"lr": 0.02})}
    return Trainer(
        language_model() if model is None and "model_init" not in args else model,
        TrainingArguments(str(folder), **args),
        train_dataset=DATA,
        eval_dataset=DATA[:4],
        callbacks=[WeightPredictionCallback(), *callbacks],
        **(way if optimizers is None else {"optimizers": optimizers}),
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


EVALUATING = {"eval_strategy": "steps", "eval_steps": 3}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "save_steps": 1},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_forwards_train_at_predicted_and_evaluate_at_true_weights(tmp_path, options):
    watch = Watch()
    trainer = trainer_of(tmp_path, callbacks=[watch], **EVALUATING, **options)
    trainer.train()
    assert watch.training and not any(watch.training)
    assert watch.evaluation and all(watch.evaluation)
    assert watch.num_saved >= 3
    assert holds_true(trainer.model, optimizer_of(trainer))
