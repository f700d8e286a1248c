"""The trainers of trl: fine-tuning, and preferences against a reference model."""

from __future__ import annotations

import copy

import datasets
import peft
import pytest
import trl
from hugging_face import (
    EVALUATING,
    WAY,
    Stop,
    Watch,
    equal,
    held,
    holds_true,
    language_model,
    nothing_to_collect,  # noqa: F401
    optimizer_of,
    same,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import wpadamw
from wpadamw.integrations.transformers import WeightPredictionCallback

# What trl and peft still call.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

WORDS = ["<pad>", "<eos>", *"abcdefghijklmn"]
TEXTS = [" ".join(WORDS[2 + (i * k) % 14] for k in range(6)) for i in range(1, 13)]
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def arguments(kind, folder, **options):
    own = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "max_length": 16}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 100, "use_cpu": True}
    sizes = {"per_device_train_batch_size": 2, "bf16": False}
    return kind(str(folder), **{**own, **quiet, **sizes, **EVALUATING, **options})


def fine_tuning(folder, seed=0, callbacks=(), lora=None, **options):
    data = datasets.Dataset.from_dict({"text": TEXTS})
    return trl.SFTTrainer(
        language_model(seed),
        arguments(trl.SFTConfig, folder, **options),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer(),
        peft_config=lora,
        callbacks=[WeightPredictionCallback(), *callbacks],
        **WAY,
    )


def do_not_check(*args):
    pass


@pytest.mark.parametrize(
    "options",
    [{}, {"bf16": True, "packing": True}, {"lora": peft.LoraConfig(**LORA)}],
    ids=["plain", "bf16-packing", "lora"],
)
def test_fine_tuning_follows_and_resumes_with_the_same_bits(tmp_path, options):
    watch = Watch(do_not_check if "lora" in options else None)
    trainer = fine_tuning(tmp_path, callbacks=[watch], **options)
    trainer.train()
    assert watch.training and not any(watch.training)
    assert watch.evaluation and all(watch.evaluation)
    assert holds_true(trainer.model, optimizer_of(trainer))
    resumed = fine_tuning(tmp_path / "other", 0 if "lora" in options else 1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(resumed, trainer)


def preferences(folder, model, callbacks=(), lora=None, reference=None, predicts=True, **options):
    answers = [f" {text}" for text in TEXTS]
    kinds = {"chosen": answers[1:] + answers[:1], "rejected": answers[2:] + answers[:2]}
    columns = {"prompt": TEXTS, **kinds}
    data = datasets.Dataset.from_dict(columns)
    trainer = trl.DPOTrainer(
        model,
        reference,
        arguments(trl.DPOConfig, folder, **options),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer(),
        peft_config=lora,
        callbacks=[WeightPredictionCallback(), *callbacks],
    )
    trainer.optimizer_cls_and_kwargs = (
        wpadamw.WPAdamW,
        {"lr": 0.02, "predict_in_step": predicts},
    )
    return trainer


def from_file(folder, seed=0):
    """A model that knows where it came from: there the trainer finds its reference."""
    language_model(seed).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def test_preferences_follow_and_resume_against_the_initial_weights(tmp_path):
    watch = Watch()
    trainer = preferences(tmp_path / "run", from_file(tmp_path / "base"), [watch])
    trainer.train()
    assert watch.training and not any(watch.training)
    assert watch.evaluation and all(watch.evaluation)
    assert equal(held(trainer.ref_model), held(language_model()))
    resumed = preferences(tmp_path / "other", from_file(tmp_path / "base"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert same(resumed, trainer)


def adapted_model():
    model = language_model()
    set_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA, init_lora_weights=False))


def part(model, adapter):
    return [p.detach().clone() for name, p in model.named_parameters() if f".{adapter}." in name]


def test_new_adapter_is_compared_with_the_model_without_it(tmp_path):
    runs = []
    for reference in (None, language_model()):
        set_seed(2)
        options = {"lora": peft.LoraConfig(**LORA), "reference": reference}
        watch = Watch(do_not_check)
        trainer = preferences(tmp_path / "run", language_model(), [watch], **options)
        trainer.train()
        assert watch.training and not any(watch.training)
        runs.append(trainer)
    assert same(*runs)


def test_adapter_that_is_trained_on_is_compared_with_its_initial_weights(tmp_path):
    model, watch = adapted_model(), Watch(do_not_check)
    first = part(model, "default")
    trainer = preferences(tmp_path / "run", model, [watch])
    trainer.train()
    assert watch.training and not any(watch.training)
    assert equal(part(model, "ref"), first)
    assert not equal(part(model, "default"), first)
    resumed = preferences(tmp_path / "other", adapted_model())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert same(resumed, trainer)


def test_copy_of_a_model_in_training_is_a_reference_of_true_weights(tmp_path):
    tuned = fine_tuning(tmp_path / "tuned", callbacks=[Stop(3, RuntimeError("halt"))])
    with pytest.raises(RuntimeError, match="halt"):
        tuned.train()
    assert optimizer_of(tuned).weights_are == "predicted"
    reference = copy.deepcopy(tuned.model)
    opt = optimizer_of(tuned)
    true = [opt.state[param]["weight"] for param in tuned.model.parameters()]
    assert equal(held(reference), true)
    trainer = preferences(tmp_path / "run", tuned.model, reference=reference)
    trainer.train()
    assert equal(held(reference), true)


@pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
def test_reference_that_is_kept_close_gets_true_weights(tmp_path, in_step):
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    model, watch = from_file(tmp_path / "base"), Watch()
    trainer = preferences(tmp_path / "run", model, [watch], predicts=in_step, **sync)
    trainer.train()
    assert not any(watch.training)
    assert equal(held(trainer.ref_model), held(model))


def test_bema_averages_true_weights_of_the_literal_form(tmp_path):
    # A decay of 1: it keeps the last weights alone, and no part of their way.
    bema = trl.BEMACallback(update_freq=1, ema_power=0.0, bias_power=400.0)
    trainer = preferences(tmp_path / "run", from_file(tmp_path / "base"), [bema], predicts=False)
    trainer.train()
    assert equal(held(bema.running_model), held(trainer.model))
