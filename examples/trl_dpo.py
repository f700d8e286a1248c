"""Weight prediction for trl.DPOTrainer, whose reference keeps the initial, true weights.

DPOTrainer has no argument for the class of an optimizer: it is set before training begins.
"""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import wpadamw
from wpadamw.integrations.transformers import WeightPredictionCallback

WORDS = ["<pad>", "<eos>", *"abcdefghijklmn"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of sixteen words."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def small_model() -> LlamaForCausalLM:
    """A language model of random weights."""
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def main() -> None:
    """Trains an adapter to prefer the alphabet, evaluates and saves."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    letters = WORDS[2:] * 2
    pairs = {
        "prompt": [" ".join(letters[i : i + 3]) for i in range(14)],
        "chosen": [" " + " ".join(letters[i + 3 : i + 9]) for i in range(14)],
        "rejected": [" " + " ".join(reversed(letters[i + 3 : i + 9])) for i in range(14)],
    }
    data = Dataset.from_dict({key: texts * 4 for key, texts in pairs.items()})
    trainer = DPOTrainer(
        small_model(),
        args=DPOConfig(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=8,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data,
        eval_dataset=data.select(range(14)),
        processing_class=word_tokenizer(),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        callbacks=[WeightPredictionCallback()],
    )
    trainer.optimizer_cls_and_kwargs = (wpadamw.WPAdamW, {"lr": 1e-2})
    trainer.train()
    metrics = trainer.evaluate()  # at the true weights
    trainer.save_model(f"{folder}/adapter")  # the true weights
    print(f"loss {metrics['eval_loss']:.3f}, saved in {folder}/adapter")


if __name__ == "__main__":
    main()
