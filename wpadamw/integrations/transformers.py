"""Weight prediction under the Trainer of Hugging Face transformers, and those built on it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wpadamw import attach


class WeightPredictionCallback(TrainerCallback):
    """Attaches the Trainer's model to its optimizer for as long as it trains.

    Training forwards then see predicted weights; what the Trainer evaluates, saves and leaves
    behind are true weights. After an exception the model stays attached, so that saving and
    evaluating are right; training again, or resuming, attaches it anew.

    Raises:
        TypeError: when training begins, if the optimizer is not one of wpadamw's.

    Example:
        >>> trainer = Trainer(
        ...     model,
        ...     args,
        ...     train_dataset=data,
        ...     optimizer_cls_and_kwargs=(wpadamw.WPAdamW, {"lr": 3e-4}),
        ...     callbacks=[WeightPredictionCallback()],
        ... )
        >>> trainer.train()
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches the model."""
        self._attachment = attach(kwargs["model"], kwargs["optimizer"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes to true weights, before the best ones may be loaded in their place.

        The Trainer loads them after the last epoch, which ``max_steps`` may have cut short, and
        before `on_train_end`.
        """
        kwargs["optimizer"].eval()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detaches the model, which holds true weights: the last ones or the best ones."""
        if args.load_best_model_at_end:
            _adopt(kwargs["optimizer"])
        self._attachment.remove()


@torch.no_grad()
def _adopt(optimizer: torch.optim.Optimizer) -> None:
    """Takes what the parameters hold for their true weights."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            weight = optimizer.state.get(param, {}).get("weight")
            # A master weight has more bits than a parameter that is still equal to it.
            if weight is not None and not torch.equal(weight.to(param.dtype), param):
                weight.copy_(param)
