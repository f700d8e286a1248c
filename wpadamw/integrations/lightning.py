"""A callback for Lightning's Trainer, from ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from wpadamw import attach
from wpadamw.optimizer import WeightPrediction


def _base() -> Any:
    """A class that is a Callback for the trainers of both packages, of those that are installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [name for name in names if find_spec(name.partition(".")[0])] or names
    return type("Callback", tuple(import_module(name).Callback for name in found), {})


_Callback = _base()


class WeightPredictionCallback(_Callback):  # type: ignore[misc]
    """Training steps see predicted weights; whatever evaluates, saves or averages true ones.

    Attaches every optimizer with weight prediction to the LightningModule while ``fit`` runs.
    Parameters hold predicted weights from `on_train_batch_start` on, true weights in all other
    hooks of epochs and of validation, in ``state_dict()`` and after ``fit``, also after an exception.

    Averages are of true weights: those of Lightning's ``WeightAveraging`` and
    ``StochasticWeightAveraging``, and of every ``AveragedModel`` that another callback made in its
    ``setup``. The callback puts itself first in the trainer's list, so its place there is free.

    Example:
        >>> trainer = Trainer(callbacks=[WeightPredictionCallback()])
        >>> trainer.fit(module)  # configure_optimizers returns a wpadamw.WPAdamW
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizers: list[WeightPrediction] = []
        self._fit = ExitStack()  # what is undone when training ends
        self._validation = ExitStack()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts this callback first: others move weights in the hooks in which it restores them."""
        trainer.callbacks = [self, *(other for other in trainer.callbacks if other is not self)]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches the optimizers."""
        self._optimizers = _predicting(trainer.optimizers)
        for optimizer in self._optimizers:
            self._fit.callback(attach(pl_module, optimizer).remove)
        if self._optimizers:
            self._follow_averages(trainer.callbacks)
        self._fit.callback(self._restore)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Goes to true weights: callbacks average them here."""
        self._restore()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Goes to predicted weights, for steps that call no attached module but its ``forward``."""
        for optimizer in self._optimizers:
            optimizer.predict()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Goes to true weights: callbacks average them here."""
        self._restore()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stays at true weights, whatever the module's mode and whatever others write."""
        self._restore()
        self._validation.enter_context(self._true_weights())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Lets training steps predict again."""
        self._validation.close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leaves the module with true weights."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leaves the module with true weights."""
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detaches the module also where nothing was trained."""
        self._release()

    def _restore(self) -> None:
        for optimizer in self._optimizers:
            optimizer.restore()

    @contextmanager
    def _true_weights(self) -> Iterator[None]:
        with ExitStack() as stack:
            for optimizer in self._optimizers:
                stack.enter_context(optimizer.true_weights())
            yield

    def _release(self) -> None:
        self._validation.close()
        self._fit.close()
        self._optimizers = []

    def _follow_averages(self, callbacks: Iterable[Any]) -> None:
        """Has averages made from true weights, and weights replaced by them for good."""
        for callback in callbacks:
            for value in vars(callback).values():
                if isinstance(value, AveragedModel):
                    update = self._true_weights()(value.update_parameters)
                    self._replace(value, "update_parameters", update)
            # StochasticWeightAveraging replaces the weights after the last update, and may then
            # run training steps without updates for the statistics of batch norms.
            if transfer := getattr(callback, "transfer_weights", None):
                self._replace(callback, "transfer_weights", self._released(transfer))

    def _released(self, transfer: Callable[..., None]) -> Callable[..., None]:
        def after_release(*args: Any) -> None:
            self._release()
            transfer(*args)

        return after_release

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(owner, name, function)
        self._fit.callback(delattr, owner, name)


def _predicting(optimizers: Iterable[Optimizer]) -> list[WeightPrediction]:
    """Those with weight prediction, without Lightning's wrappers."""
    plain = (getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers)
    return [optimizer for optimizer in plain if isinstance(optimizer, WeightPrediction)]
