"""The Trainer of Hugging Face transformers: what it evaluates, saves, loads back and resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from hugging_face import (
    DATA,
    EVALUATING,
    TOKENS,
    WAY,
    Stop,
    Watch,
    check_saved,
    equal,
    held,
    holds_true,
    language_model,
    nothing_to_collect,  # noqa: F401
    optimizer_of,
    same,
    trainer_of,
)
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

import wpadamw

# The argument's name in present releases, and in older ones.
NAMES = ("activation_checkpointing", "gradient_checkpointing")
RECOMPUTING = next(name for name in NAMES if hasattr(TrainingArguments, name))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "save_steps": 1},
        {"bf16": True},
        {RECOMPUTING: True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor")  # Dynamo asks for all
def test_forwards_train_at_predicted_and_evaluate_at_true_weights(tmp_path, options):
    watch = Watch()
    trainer = trainer_of(tmp_path, callbacks=[watch], **EVALUATING, **options)
    trainer.train()
    assert watch.training and not any(watch.training)
    assert watch.evaluation and all(watch.evaluation)
    assert watch.num_saved >= 3
    assert holds_true(trainer.model, optimizer_of(trainer))


def test_training_equals_a_loop_by_hand(tmp_path):
    watch, model = Watch(), language_model()
    trainer = trainer_of(tmp_path, model, callbacks=[watch], save_strategy="no", weight_decay=0.1)
    trainer.train()
    twin = language_model().train()
    names = trainer.get_decay_parameter_names(twin)
    decayed = [param for name, param in twin.named_parameters() if name in names]
    others = [param for name, param in twin.named_parameters() if name not in names]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    opt = wpadamw.WPAdamW(groups, lr=0.02)
    schedule = get_linear_schedule_with_warmup(opt, 0, len(watch.batches))
    for batch in watch.batches:
        opt.train()
        twin(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        opt.step()
        schedule.step()
        opt.zero_grad()
    opt.eval()
    assert len(watch.batches) == 12
    assert equal(held(model), held(twin))


def test_evaluating_and_saving_change_no_bit_of_the_training(tmp_path):
    plain = trainer_of(tmp_path / "plain", save_strategy="no")
    busy = trainer_of(tmp_path / "busy", **EVALUATING, eval_on_start=True, save_steps=1)
    for trainer in (plain, busy):
        trainer.train()
    assert same(plain, busy)


MOMENTS = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_save"]


@pytest.mark.parametrize("event", MOMENTS)
def test_after_an_interrupt_model_and_checkpoints_are_true_and_training_resumes(tmp_path, event):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    interrupted = trainer_of(tmp_path / "other", callbacks=[Stop(6, KeyboardInterrupt(), event)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    opt = optimizer_of(interrupted)
    interrupted.save_model(str(tmp_path / "saved"))
    check_saved(tmp_path / "saved", interrupted.model, opt)
    interrupted.evaluate()
    assert holds_true(interrupted.model, opt)
    for trainer in (trainer_of(tmp_path / "other", language_model(seed=1)), interrupted):
        trainer.train(resume_from_checkpoint=True)
        assert same(trainer, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"save_steps": 5},
        {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 2},
        {"save_steps": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 4},
        {"save_strategy": "epoch"},
        {"save_steps": 5, "bf16": True},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resumed_training_ends_with_the_same_bits(tmp_path, options, dtype):
    whole = trainer_of(tmp_path, language_model(dtype=dtype), **options)
    whole.train()
    first = min(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for seed in (1, 2):
        resumed = trainer_of(tmp_path / "other", language_model(seed, dtype), **options)
        resumed.train(resume_from_checkpoint=str(first))
        assert same(resumed, whole)


def test_resuming_twice_ends_with_the_same_bits(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    for step in (3, 7):
        trainer = trainer_of(tmp_path / "other", callbacks=[Stop(step, RuntimeError("power cut"))])
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.train(resume_from_checkpoint=step > 3)
    trainer = trainer_of(tmp_path / "other")
    trainer.train(resume_from_checkpoint=True)
    assert same(trainer, whole)


def test_checkpoint_without_the_optimizer_continues_from_true_weights(tmp_path):
    trainer = trainer_of(tmp_path, save_only_model=True, max_steps=4)
    trainer.train()
    watch = Watch()
    resumed = trainer_of(tmp_path, language_model(1), [watch], save_only_model=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not any(watch.training)
    assert holds_true(resumed.model, optimizer_of(resumed))
    check_saved(tmp_path / "checkpoint-12", resumed.model, optimizer_of(resumed))


def test_weights_that_a_trained_optimizer_does_not_know_are_taken_with_a_warning(tmp_path):
    watch = Watch()
    trainer = trainer_of(tmp_path, callbacks=[watch], save_only_model=True)
    trainer.train()
    watch.training.clear()
    with pytest.warns(UserWarning, match="written to from outside"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(watch.training) == 8
    assert not any(watch.training[1:])
    assert holds_true(trainer.model, optimizer_of(trainer))


BEST = {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "loss"}
PLANS = {
    "epoch": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "steps": {"eval_strategy": "steps", "eval_steps": 2},
    "within an epoch": {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 9},
    "best": {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"},
    "early stop": {"eval_strategy": "steps", "eval_steps": 2},
    "one checkpoint": {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1},
    "halt": {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4},
}


class Halt(TrainerCallback):
    """Ends the training after an update that nobody evaluates."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_best_model_stays_and_training_goes_on_from_it(tmp_path, plan, dtype):
    watch = Watch()
    early = {"early stop": [EarlyStoppingCallback(2)], "halt": [Halt()]}.get(plan, [])
    trainer = trainer_of(
        tmp_path, language_model(dtype=dtype), [watch, *early], **BEST, **PLANS[plan]
    )
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    parameters = dict(trainer.model.named_parameters())
    assert trainer.state.best_global_step < trainer.state.global_step
    assert optimizer_of(trainer).weights_are == "true"
    losses = [trainer.evaluate()["eval_loss"]]
    trainer.predict(DATA[:4])
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved/model.safetensors")
    for name, param in parameters.items():
        assert torch.equal(param, best[name])
        assert torch.equal(saved[name], best[name])
    losses.append(trainer.state.best_metric)
    assert losses[0] == losses[1]
    copy.deepcopy(optimizer_of(trainer)).state_dict()
    watch.training.clear()
    trainer.train()
    assert watch.training and not any(watch.training)


def test_best_model_that_is_the_last_one_keeps_its_master_weights(tmp_path):
    plain = trainer_of(tmp_path, language_model(dtype=torch.bfloat16), **EVALUATING)
    options = {**EVALUATING, **BEST, "greater_is_better": False, "save_steps": 3}
    best = trainer_of(tmp_path, language_model(dtype=torch.bfloat16), **options)
    for trainer in (plain, best):
        trainer.train()
    assert best.state.best_global_step == best.state.global_step
    assert same(plain, best)


def test_training_twice_goes_on(tmp_path):
    watch = Watch()
    trainer = trainer_of(tmp_path, callbacks=[watch])
    trainer.train()
    middle = held(trainer.model)
    trainer.train()
    assert not any(watch.training)
    assert not equal(held(trainer.model), middle)
    assert holds_true(trainer.model, optimizer_of(trainer))


def test_trained_model_is_detached_and_holds_true_weights(tmp_path):
    model = language_model()
    trainer = trainer_of(tmp_path, model, save_strategy="no")
    trainer.train()
    assert type(model) is LlamaForCausalLM
    assert equal(held(copy.deepcopy(model)), held(model))
    model.train()
    model(**{key: value[None] for key, value in DATA[0].items()})
    assert holds_true(model, optimizer_of(trainer))


def test_optimizer_made_by_the_user_trains_the_same(tmp_path):
    model = language_model()
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    given = trainer_of(tmp_path, model, way={"optimizers": (opt, None)}, save_strategy="no")
    made = trainer_of(tmp_path, save_strategy="no")
    for trainer in (given, made):
        trainer.train()
    assert equal(held(given.model), held(made.model))


def test_model_made_anew_for_each_training_is_followed(tmp_path):
    watch = Watch()
    way = {**WAY, "model_init": lambda: language_model()}
    trainer = trainer_of(tmp_path, callbacks=[watch], way=way)
    models = []
    for _ in range(2):
        trainer.train()
        models.append(trainer.model)
        assert holds_true(trainer.model, optimizer_of(trainer))
    assert models[0] is not models[1]
    assert not any(watch.training)


def have_room_for_three(model, args, kwargs):
    if model.training and len(kwargs["input_ids"]) > 3:
        raise RuntimeError("CUDA out of memory.")


def test_smaller_batches_after_too_large_ones_are_followed_too(tmp_path):
    watch, model = Watch(), language_model()
    model.register_forward_pre_hook(have_room_for_three, with_kwargs=True)
    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    trainer = trainer_of(tmp_path, model, [watch], **options)
    trainer.train()
    assert len(watch.batches[-1]["input_ids"]) == 3
    assert watch.training and not any(watch.training)
    assert holds_true(model, optimizer_of(trainer))


def test_tied_weights_stay_tied(tmp_path):
    trainer = trainer_of(tmp_path, language_model(tie_word_embeddings=True))
    trainer.train()
    check_saved(tmp_path / "checkpoint-12", trainer.model, optimizer_of(trainer))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.config.architectures == ["LlamaForCausalLM"]


def test_predictions_are_of_true_weights(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="no", callbacks=[Stop(5, RuntimeError("halt"))])
    with pytest.raises(RuntimeError, match="halt"):
        trainer.train()
    assert not holds_true(trainer.model, optimizer_of(trainer))
    predicted = torch.from_numpy(trainer.predict(DATA[:4]).predictions)
    twin = language_model().eval()
    weights = (optimizer_of(trainer).state[p]["weight"] for p in trainer.model.parameters())
    for param, weight in zip(twin.parameters(), weights, strict=True):
        param.data = weight.clone()
    with torch.no_grad():
        assert torch.equal(twin(input_ids=TOKENS[:4]).logits, predicted)


class Average(TrainerCallback):
    """Averages what the parameters hold after each step."""

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        assert holds_true(model, optimizer)


def test_literal_form_holds_true_weights_for_callbacks_that_average(tmp_path):
    watch, model = Watch(), language_model()
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.02, predict_in_step=False)
    trainer = trainer_of(tmp_path, model, [watch, Average()], way={"optimizers": (opt, None)})
    trainer.train()
    assert watch.training and not any(watch.training)


def test_other_optimizers_are_refused(tmp_path):
    model = language_model()
    opt = torch.optim.AdamW(model.parameters())
    trainer = trainer_of(tmp_path, model, way={"optimizers": (opt, None)})
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's"):
        trainer.train()


def test_training_without_the_callback_warns_and_names_it(tmp_path):
    trainer = trainer_of(tmp_path, is_attached=False)
    with pytest.warns(UserWarning, match="callbacks=.wpadamw.integrations.transformers.WeightPred"):
        trainer.train()
