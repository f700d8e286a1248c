"""Who uses an optimizer: models that it follows, and programs that call it.

What a program does with weights cannot be seen from an optimizer. So the first step looks who
calls it: some programs keep weights of their own, which a prediction would get into, and others
save without a word what the parameters hold.
"""

from __future__ import annotations

import operator
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from wpadamw.checks import Group, Mode
from wpadamw.compat import warn_caller

REFUSED = (
    "{name} keeps weights of its own beside the optimizer's parameters: predicted weights would be "
    "evaluated, saved or averaged. Use {instead}"
)
UNATTACHED = (
    "{name} evaluates and saves what the parameters hold, and these hold predicted weights between "
    "steps: pass callbacks=[{callback}()] to the Trainer, or call wpadamw.attach(model, optimizer)"
)
SAVED_PREDICTED = (
    "state_dict() of an optimizer whose parameters hold predicted weights, as a model saved beside "
    "it does: call wpadamw.attach(model, optimizer) once, or optimizer.eval() before saving"
)
TRAINED_IN_EVAL = (
    "step() with gradients that were computed in eval mode, where an attached model holds its true "
    "weights: that is training without prediction. Call model.train() before the forward pass"
)

_GLOBALS = operator.attrgetter("f_globals")
_WITHOUT = "prediction_steps=0, which is the same optimizer without prediction"


class _Wrapper(NamedTuple):
    """A program that keeps weights of its own."""

    name: str
    instead: str
    is_right_without: bool = True  # with prediction_steps=0


class _Trainer(NamedTuple):
    """A program whose user does not see the training loop."""

    name: str
    callback: str


_SHARDED = f"torch.distributed.fsdp.fully_shard, or {_WITHOUT}"
_NO_LOOKAHEAD = "the optimizer without Lookahead"
_WRAPPERS = {
    "deepspeed.runtime.zero": _Wrapper("DeepSpeed's ZeRO", _SHARDED),
    "deepspeed.runtime.bf16_optimizer": _Wrapper("DeepSpeed's BF16_Optimizer", _SHARDED),
    "deepspeed.runtime.fp16": _Wrapper("DeepSpeed's low-precision optimizer", _SHARDED),
    "fairscale.optim": _Wrapper("fairscale", _SHARDED),
    "megatron.core.optimizer": _Wrapper("Megatron's optimizer", _WITHOUT),
    "pytorch_optimizer.optimizer.lookahead": _Wrapper("Lookahead", _NO_LOOKAHEAD, False),
    "timm.optim.lookahead": _Wrapper("Lookahead", _NO_LOOKAHEAD, False),
    "torch_optimizer.lookahead": _Wrapper("Lookahead", _NO_LOOKAHEAD, False),
    "torch.distributed.optim.zero_redundancy_optimizer": _Wrapper(
        "ZeroRedundancyOptimizer", _SHARDED
    ),
}
_OF_LIGHTNING = _Trainer(
    "Lightning's Trainer", "wpadamw.integrations.lightning.WeightPredictionCallback"
)
_TRAINERS = {
    "lightning.pytorch": _OF_LIGHTNING,
    "pytorch_lightning": _OF_LIGHTNING,
    "transformers.trainer": _Trainer(
        "transformers.Trainer", "wpadamw.integrations.transformers.WeightPredictionCallback"
    ),
}


# Modules that read parameters to average them.
_AVERAGERS = {
    "ema_pytorch.ema_pytorch",
    "lightning.pytorch.callbacks.stochastic_weight_avg",
    "pytorch_lightning.callbacks.stochastic_weight_avg",
    "timm.utils.model_ema",
    "torch.optim.swa_utils",
    "trl.trainer.callbacks",
}


class Clients:
    """Who uses an optimizer. Unlike its plans this outlives a load; never saved."""

    def __init__(self) -> None:
        self.followers: weakref.WeakSet[Any] = weakref.WeakSet()  # what attached models follow
        # The followers whose forwards are under way. (Not a number: threads may meet.)
        self.under_way: list[Any] = []
        self.is_held_true = False  # inside true_weights()
        self.shows_averages = False  # inside averaged_weights()
        self.has_shown_true = True  # whether parameters held true weights since the last update
        self.gradients_of: set[bool] = set()  # forwards in training mode, or not
        self.needs_look = True  # before an update
        self.released: Any = None  # by whom gradients are released in backward passes
        self.mode_hooks: OrderedDict[int, Callable[[Any, Mode], None]] = OrderedDict()
        self._callers: set[str] | None = None  # modules in whose frames the first step was called
        self._said: set[str] = set()

    def show_averages(self) -> None:
        """Before parameters hold averages: nothing may change them until they hold true weights."""
        self.shows_averages = self.needs_look = True

    def check_no_averages(self, what: str) -> None:
        """Raises RuntimeError while parameters hold averages."""
        if self.shows_averages:
            raise RuntimeError(f"{what} inside averaged_weights(): parameters hold averages there")

    def announce(self, optimizer: Any, mode: Mode) -> None:
        """Before a user has parameters go to a mode."""
        self.check_no_averages(f"going to {mode} weights")
        for hook in list(self.mode_hooks.values()):
            hook(optimizer, mode)

    def look(self, groups: Sequence[Group]) -> None:
        """Before an update: refuses programs that would get predictions into their own weights.

        Raises:
            RuntimeError: for such a program. Weights and state are as before.
        """
        self.check_no_averages("step()")
        if self._callers is None:
            self._callers = _calling_modules()
        predicts, wrapper = _predict(groups), next(_known(_WRAPPERS, self._callers), None)
        if wrapper and (predicts or not wrapper.is_right_without):
            raise RuntimeError(REFUSED.format(name=wrapper.name, instead=wrapper.instead))
        if predicts and not self.followers:
            for trainer in _known(_TRAINERS, self._callers):
                self._say(UNATTACHED.format(name=trainer.name, callback=trainer.callback))
        if predicts and self.gradients_of == {False}:
            self._say(TRAINED_IN_EVAL)
        self.needs_look = wrapper is not None

    def note_gradients(self, in_training: bool) -> None:
        """After a backward pass of an attached model's forward in training mode, or in another."""
        self.gradients_of.add(in_training)
        self.needs_look = self.needs_look or not in_training

    def note_update(self) -> None:
        """To be called with every update of the weights."""
        self.has_shown_true = False
        self.gradients_of.clear()

    def check_saving(self, groups: Sequence[Group]) -> None:
        """Warns where nobody has asked for true weights, and a model is likely being saved."""
        is_told = self.has_shown_true or self.followers
        is_true = all(group["weights_are"] == "true" for group in groups)
        if not (is_told or is_true) and _predict(groups):
            self._say(SAVED_PREDICTED)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warn_caller(text)


def is_averager(frame: FrameType | None) -> bool:
    """Whether code averages weights, itself or through `torch.nn.Module`."""
    while frame is not None and frame.f_globals.get("__name__") == nn.Module.__module__:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _AVERAGERS


def _predict(groups: Sequence[Group]) -> bool:
    return any(group["prediction_steps"] != 0 for group in groups)


def _known(table: dict[str, Any], modules: Iterable[str]) -> Iterator[Any]:
    """The entries under which modules fall."""
    for prefix, entry in table.items():
        if any(f"{module}.".startswith(f"{prefix}.") for module in modules):
            yield entry


def _calling_modules() -> set[str]:
    frames = map(operator.itemgetter(0), traceback.walk_stack(None))
    names = map(operator.methodcaller("get", "__name__"), map(_GLOBALS, frames))
    return set(map(str, names))
