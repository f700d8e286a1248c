"""Adapters of peft under the Trainer: what is trained, saved, merged, and left alone."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import peft
import pytest
import torch
from hugging_face import (
    EVALUATING,
    Stop,
    Watch,
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
from transformers import TrainerCallback, set_seed

import wpadamw

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")


def adapted_model(seed=0, base=None, **options):
    base = language_model() if base is None else base
    set_seed(seed)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], **options}
    return peft.get_peft_model(base, peft.LoraConfig(**options))


def check_adapter(folder, model, optimizer, adapter="default"):
    """Compares a file with the true weights of an adapter that is being trained."""
    saved = load_file(f"{folder}/adapter_model.safetensors")
    trained = {name: param for name, param in model.named_parameters() if f".{adapter}" in name}
    assert len(trained) == len(saved)
    for name, param in trained.items():
        key = name.replace(".modules_to_save", "").replace(f".{adapter}", "")
        key = key.removesuffix(".weight") if key.endswith("magnitude_vector.weight") else key
        assert torch.equal(saved[key], optimizer.state[param]["weight"]), name


KINDS = {
    "lora": {},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_trains_at_predicted_weights_and_is_saved_and_resumed_true(tmp_path, kind):
    watch = Watch(check_adapter)
    whole = trainer_of(tmp_path, adapted_model(**KINDS[kind]), [watch], **EVALUATING)
    whole.train()
    assert watch.training and not any(watch.training)
    assert watch.evaluation and all(watch.evaluation)
    assert watch.num_saved == 6
    resumed = trainer_of(tmp_path / "other", adapted_model(1, **KINDS[kind]), **EVALUATING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(resumed, whole)


def test_interrupted_training_resumes_in_the_same_process(tmp_path):
    whole = trainer_of(tmp_path / "whole", adapted_model())
    whole.train()
    trainer = trainer_of(tmp_path / "other", adapted_model(), [Stop(7, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    check_adapter(tmp_path / "saved", trainer.model, optimizer_of(trainer))
    trainer.train(resume_from_checkpoint=True)
    assert same(trainer, whole)


def merged(folder):
    """What others get who load an adapter from a file and merge it."""
    return peft.PeftModel.from_pretrained(language_model(), folder).merge_and_unload()


def test_merged_model_has_true_weights_after_training(tmp_path):
    trainer = trainer_of(tmp_path, adapted_model())
    trainer.train()
    model = trainer.model.merge_and_unload()
    assert equal(held(model), held(merged(tmp_path / "checkpoint-12")))
    assert not equal(held(model), held(language_model()))


def test_merged_model_has_true_weights_after_an_interrupt(tmp_path):
    trainer = trainer_of(tmp_path, adapted_model(), [Stop(6, RuntimeError("halt"))])
    with pytest.raises(RuntimeError, match="halt"):
        trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.model.train()
    trainer.model(**trainer.data_collator([trainer.train_dataset[0]]))
    assert not holds_true(trainer.model, optimizer_of(trainer))
    trainer.model.eval()
    assert equal(held(trainer.model.merge_and_unload()), held(merged(tmp_path / "saved")))


class Between(TrainerCallback):
    """Saves and merges after an update, when the parameters hold predicted weights."""

    def __init__(self, folder):
        self.folder = folder

    def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        if state.global_step == 6:
            assert not holds_true(model, optimizer)
            twin = copy.deepcopy(model)
            model.save_pretrained(self.folder)
            check_adapter(self.folder, model, optimizer)
            assert equal(held(twin.merge_and_unload()), held(merged(self.folder)))
            model.eval()
            model.merge_adapter()
            base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
            assert torch.equal(base, merged(self.folder).model.layers[0].self_attn.q_proj.weight)
            model.unmerge_adapter()
            model.train()


def test_adapter_is_saved_and_merged_true_in_the_middle(tmp_path):
    watch = Watch(check_adapter)
    model = adapted_model()
    trainer = trainer_of(tmp_path / "run", model, [Between(tmp_path / "saved"), watch])
    trainer.train()
    assert (tmp_path / "saved").exists()
    assert not any(watch.training)


def test_best_adapter_stays_and_training_goes_on_from_it(tmp_path):
    best = {"load_best_model_at_end": True, "greater_is_better": True, **EVALUATING}
    options = {**best, "metric_for_best_model": "loss", "save_steps": 3}
    watch = Watch(check_adapter)
    trainer = trainer_of(tmp_path, adapted_model(), [watch], **options)
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric
    trainer.save_model(str(tmp_path / "saved"))
    files = [tmp_path / "saved", trainer.state.best_model_checkpoint]
    first, second = (load_file(f"{folder}/adapter_model.safetensors") for folder in files)
    assert first.keys() == second.keys()
    assert equal(list(first.values()), [second[name] for name in first])
    trainer.train()
    assert not any(watch.training)


def test_second_adapter_is_trained_and_the_first_stays_true(tmp_path):
    model = adapted_model()
    trainer = trainer_of(tmp_path / "first", model)
    trainer.train()
    first = {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj", "o_proj"]))
    model.set_adapter("second")
    watch = Watch(lambda folder, *rest: check_adapter(f"{folder}/second", *rest, adapter="second"))
    second = trainer_of(tmp_path / "second", model, [watch])
    second.train()
    assert watch.num_saved and not any(watch.training)
    assert all(torch.equal(model.get_parameter(name), first[name]) for name in first)


class AddAdapter(TrainerCallback):
    """Adds an adapter to the model, and its parameters to the optimizer."""

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        if state.global_step == 4:
            model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["o_proj"]))
            model.base_model.set_adapter(["default", "second"])
            new = [param for name, param in model.named_parameters() if ".second." in name]
            optimizer.add_param_group({"params": new, "lr": 0.02})


def test_adapter_that_is_added_in_the_middle_follows(tmp_path):
    model = adapted_model()
    opt = wpadamw.WPAdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    watch, options = Watch(), {"lr_scheduler_type": "constant", "save_strategy": "no"}
    way = {"optimizers": (opt, torch.optim.lr_scheduler.ConstantLR(opt, 1.0))}
    trainer = trainer_of(tmp_path, model, [AddAdapter(), watch], way=way, **options)
    trainer.train()
    assert not any(watch.training)
    assert len(opt.param_groups) == 2
    assert len(opt.state) == sum(".default." in n or ".second." in n for n, _ in names(model))
    assert holds_true(model, opt)


def names(model):
    return list(model.named_parameters())


@contextmanager
def other_adapter(model):
    model.set_adapter("ref")
    yield
    model.set_adapter("default")


REFERENCES = {
    "base": lambda model: model.disable_adapter(),
    "adapter": other_adapter,
}


def trained_beside(reference):
    """An adapter that was trained with a forward of its reference in each step."""
    model = adapted_model(init_lora_weights=False)
    model.add_adapter("ref", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("default")
    opt = wpadamw.WPAdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    wpadamw.attach(model, opt)
    tokens = torch.arange(8)[None]
    model.train()
    for _ in range(4):
        loss = model(input_ids=tokens, labels=tokens).loss
        if reference is not None:
            with torch.no_grad(), reference(model):
                model(input_ids=tokens)
        loss.backward()
        opt.step()
        opt.zero_grad()
    return held(model.eval())


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_forward_of_a_reference_before_the_backward_pass_changes_nothing(kind):
    assert equal(trained_beside(REFERENCES[kind]), trained_beside(None))
