"""Weight prediction for trl.SFTTrainer: the same two arguments as for transformers.Trainer."""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

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
    """Trains, evaluates and saves."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    texts = [" ".join((WORDS[2:] * 2)[i : i + 10]) for i in range(14)]
    data = Dataset.from_dict({"text": texts * 8})
    trainer = SFTTrainer(
        small_model(),
        SFTConfig(
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
        optimizer_cls_and_kwargs=(wpadamw.WPAdamW, {"lr": 3e-3}),
        callbacks=[WeightPredictionCallback()],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]  # at the true weights
    trainer.save_model(f"{folder}/tuned")  # the true weights
    print(f"loss {loss:.3f}, saved in {folder}/tuned")


if __name__ == "__main__":
    main()
