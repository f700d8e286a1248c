"""What is refused while micro-batches are in flight.

The stages of a pipeline have made different numbers of updates then. What a stage's weights and
states hold is of one moment with the others' only after a flush.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import nn
from torch.utils.hooks import RemovableHandle

from wpadamw.optimizer import WeightPrediction

IN_FLIGHT = (
    "{what} while micro-batches are in flight, when stages have made different numbers of "
    "updates: call the schedule's flush() before, on all ranks"
)
FAILED = (
    "{what} after a step of the pipeline has failed, when stages have made different numbers of "
    "updates: load the last checkpoint, then build stage and schedule anew"
)
_LOADING = "load_state_dict()"


class InFlight:
    """Whether micro-batches are in flight: nobody but the stage uses its weights then.

    Args:
        module: the stage's module.
        optimizer: its optimizer.
    """

    def __init__(self, module: nn.Module, optimizer: WeightPrediction) -> None:
        self.module, self.optimizer = module, optimizer
        self.reason: str | None = None
        self.is_working = False
        self.handles: list[RemovableHandle] = []

    def begin(self) -> None:
        """Refuses from now on."""
        if self.reason is None:
            self.reason = IN_FLIGHT
            self.handles = [*self._watch_optimizer(), *self._watch_module()]

    def fail(self) -> None:
        """Refuses until the optimizer's state is loaded."""
        self.begin()
        self.reason = FAILED

    def end(self) -> None:
        """Refuses no longer."""
        self.reason = None
        while self.handles:
            self.handles.pop().remove()

    @contextmanager
    def working(self) -> Iterator[None]:
        """For what stage and schedule do. If it fails, the others have made other updates."""
        was_working, self.is_working = self.is_working, True
        try:
            yield
        except BaseException:
            self.fail()
            raise
        finally:
            self.is_working = was_working

    def check(self, what: str) -> None:
        """Raises RuntimeError, saying what is refused and why."""
        may_load = self.reason is FAILED and what is _LOADING
        if self.reason is not None and not self.is_working and not may_load:
            raise RuntimeError(self.reason.format(what=what))

    def _watch_optimizer(self) -> Iterator[RemovableHandle]:
        opt = self.optimizer
        yield opt.register_mode_pre_hook(lambda _, mode: self.check(f"going to {mode} weights"))
        yield opt.register_state_dict_pre_hook(lambda _: self.check("state_dict()"))
        yield opt.register_load_state_dict_pre_hook(lambda *_: self._load())

    def _watch_module(self) -> Iterator[RemovableHandle]:
        parts: list[Any] = list(self.module.modules())  # torch's methods have no types
        for part in parts:
            yield part.register_state_dict_pre_hook(_Refusal(self, "state_dict()"))
            yield part.register_load_state_dict_pre_hook(_Refusal(self, _LOADING))

    def _load(self) -> None:
        self.check(_LOADING)
        self.end()


class _Refusal:
    """A hook of a module, which is copied and pickled with it."""

    def __init__(self, in_flight: InFlight, what: str) -> None:
        self.in_flight, self.what = in_flight, what

    def __call__(self, *_: Any) -> None:
        self.in_flight.check(self.what)

    def __deepcopy__(self, _: Any) -> NoReturn:
        self._refuse_copies()

    def __reduce__(self) -> NoReturn:
        self._refuse_copies()

    def _refuse_copies(self) -> NoReturn:
        reason = self.in_flight.reason or IN_FLIGHT
        raise RuntimeError(reason.format(what="a copy of the module"))
