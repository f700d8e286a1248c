"""Weight prediction under transformers.Trainer: one optimizer, one callback.

The Trainer evaluates and saves true weights, brings back the best model, and resumes bit for bit.
"""

from __future__ import annotations

import tempfile

import torch
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
    """Trains, evaluates and saves."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    args = TrainingArguments(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        weight_decay=0.1,  # goes to the optimizer; learning_rate does not
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    data = counting(128)
    trainer = Trainer(
        small_model(),
        args,
        train_dataset=data,
        eval_dataset=data[:64],
        optimizer_cls_and_kwargs=(wpadamw.WPAdamW, {"lr": 3e-3}),
        callbacks=[WeightPredictionCallback()],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]  # at the true weights
    trainer.save_model(f"{folder}/best")  # the true weights
    print(f"loss {loss:.3f}, saved in {folder}/best")


if __name__ == "__main__":
    main()
