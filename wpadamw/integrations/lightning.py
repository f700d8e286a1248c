"""A callback for Lightning's Trainer, from ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.optim import Optimizer

from wpadamw import attach
from wpadamw.optimizer import WeightPrediction


def _base() -> Any:
    """A class that is a Callback for the trainers of both packages, of those that are installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [name for name in names if find_spec(name.partition(".")[0])] or names
    return type("Callback", tuple(import_module(name).Callback for name in found), {})


_Callback: Any = _base()


class WeightPredictionCallback(_Callback):
    """Training steps see predicted weights; whatever evaluates, saves or averages true ones.

    Attaches every optimizer with weight prediction to the LightningModule while ``fit`` runs.
    Parameters hold predicted weights from `on_train_batch_start` on, true weights where an epoch
    ends, in validation, in ``state_dict()`` and after ``fit``, also after an exception.

    Lightning's ``WeightAveraging`` and ``StochasticWeightAveraging`` average true weights, and
    what they put in the place of the weights is evaluated and saved as it is. The callback puts
    itself first in the trainer's list, wherever it stood.

    Example:
        >>> trainer = Trainer(callbacks=[WeightPredictionCallback()])
        >>> trainer.fit(module)  # configure_optimizers returns a wpadamw.WPAdamW
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizers: list[WeightPrediction] = []
        self._attachments = ExitStack()
        self._validation = ExitStack()
        self._replacements = ExitStack()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts this callback first: others move weights in the hooks in which it restores them."""
        trainer.callbacks = [self, *(other for other in trainer.callbacks if other is not self)]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches the optimizers."""
        self._optimizers = _predicting(trainer.optimizers)
        for optimizer in self._optimizers:
            self._attachments.callback(attach(pl_module, optimizer).remove)
        self._attachments.callback(self._restore)
        for other in trainer.callbacks if self._optimizers else ():
            if hasattr(other, "transfer_weights"):
                self._replace(other, "transfer_weights", self._transfer_weights)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Goes to predicted weights, for steps that read the parameters without a call."""
        for optimizer in self._optimizers:
            optimizer.predict()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Goes to true weights: here they are read, to average them for example."""
        self._restore()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stays at true weights, whatever the module's mode and whatever others write."""
        self._restore()
        for optimizer in self._optimizers:
            self._validation.enter_context(optimizer.true_weights())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Lets training steps predict again."""
        self._validation.close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leaves the module with true weights."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leaves the module with true weights."""
        self._release()
        self._replacements.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves no trace in other objects."""
        self._release()
        self._replacements.close()

    def _restore(self) -> None:
        for optimizer in self._optimizers:
            optimizer.restore()

    def _release(self) -> None:
        self._validation.close()
        self._attachments.close()
        self._optimizers = []

    def _transfer_weights(self, average: nn.Module, pl_module: Any) -> None:
        """The same for StochasticWeightAveraging, but the optimizer keeps its true weights.

        It may come before the end: an epoch without updates follows, for the statistics of batch
        norms at the average.
        """
        self._release()
        for source, param in zip(average.parameters(), pl_module.parameters(), strict=True):
            param.data.copy_(source.data)  # leaves no trace, as it does in WeightAveraging
        # The trainer calls it all the same, in the last batch of such an epoch.
        self._replace(pl_module, "optimizer_step", _call_closure)

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(owner, name, function)
        self._replacements.callback(delattr, owner, name)


def _call_closure(epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> None:
    """In the place of LightningModule.optimizer_step, without an update."""
    closure()


def _predicting(optimizers: Iterable[Optimizer]) -> list[WeightPrediction]:
    """Those with weight prediction, without Lightning's wrappers."""
    plain = (getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers)
    return [optimizer for optimizer in plain if isinstance(optimizer, WeightPrediction)]
