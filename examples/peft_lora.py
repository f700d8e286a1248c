"""Weight prediction for an adapter of peft: train it, save it, merge it.

Only the adapter's weights are in the optimizer, so only these are predicted. What is saved and
what is merged are the true ones.
"""

from __future__ import annotations

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import wpadamw
from wpadamw.integrations.transformers import WeightPredictionCallback


def counting(num_sequences: int) -> list[dict[str, torch.Tensor]]:
    """Sequences that count upwards from a random start."""
    starts = torch.randint(0, 16, (num_sequences, 1), generator=torch.Generator().manual_seed(0))
    rows = (starts + torch.arange(16)) % 32
    return [{"input_ids": row, "labels": row} for row in rows]


def small_model() -> LlamaForCausalLM:
    """A language model of random weights."""
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def main() -> None:
    """Trains an adapter, saves it and merges it into the model."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    lora = LoraConfig(r=8, target_modules="all-linear", modules_to_save=["lm_head"])
    model = get_peft_model(small_model(), lora)
    data = counting(128)
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=16,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data,
        eval_dataset=data[:64],
        optimizer_cls_and_kwargs=(wpadamw.WPAdamW, {"lr": 1e-2}),
        callbacks=[WeightPredictionCallback()],
    )
    trainer.train()
    print(f"loss {trainer.evaluate()['eval_loss']:.3f}")
    model.save_pretrained(f"{folder}/adapter")  # the true weights
    merged = model.merge_and_unload()  # of the true weights
    merged.save_pretrained(f"{folder}/merged")
    print(f"saved in {folder}/adapter, merged in {folder}/merged")


if __name__ == "__main__":
    main()
