"""Which weights parameters hold, the ways between them, and the mode of new groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from wpadamw.checks import (
    Group,
    Mode,
    check_arguments,
    check_dtype,
    check_known,
    check_recoverable,
    check_unique,
    plain_numbers,
)
from wpadamw.compat import disable_dynamo
from wpadamw.saving import Saving


class Modes(Saving):
    """True and predicted weights under the names that users and training frameworks call."""

    @property
    def weights_are(self) -> Mode:
        """What the parameters hold: ``"true"`` or ``"predicted"`` weights."""
        return "predicted" if "predicted" in self._modes() else "true"

    @disable_dynamo
    def predict(self) -> None:
        """Go to the predicted weights: where the optimizer expects to be after its next step.

        Idempotent, and free when the parameters hold them already. Parameters without a completed
        update keep their true weights. After `restore` the same bits come back.
        """
        self._return_to(["predicted"] * len(self.param_groups))

    @disable_dynamo
    def restore(self) -> None:
        """Go to the true weights: what AdamW would hold. To evaluate, save and average.

        Idempotent, free when the parameters hold them already, and exact (with ``backup=False``
        to a few ulp).
        """
        self._return_to(["true"] * len(self.param_groups))

    @disable_dynamo
    def train(self) -> None:
        """The same as `predict`, under the name that training frameworks call."""
        self.predict()

    @disable_dynamo
    def eval(self) -> None:
        """The same as `restore`, under the name that training frameworks call."""
        self.restore()

    @disable_dynamo
    @contextmanager
    def true_weights(self) -> Iterator[None]:
        """Run the body with true weights; the former state comes back, also after an error."""
        modes = self._modes()
        self.restore()
        try:
            yield
        finally:
            self._return_to(modes)

    # Groups.

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group; it starts in the optimizer's present mode.

        Raises:
            ValueError: for hyper-parameters out of range and duplicate parameters.
            TypeError: for parameters of a dtype that is not supported.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # raises
        mode = self.weights_are if self.param_groups else "true"
        group = plain_numbers({"weights_are": mode, **param_group})
        if not isinstance(group["params"], (Tensor, set, dict)):
            group["params"] = list(group["params"])
            check_unique(group["params"])
        check_known(group, self.defaults, type(self).__name__)
        super().add_param_group(group)
        try:
            for param in self.param_groups[-1]["params"]:
                check_dtype(param)
            check_arguments(self.param_groups[-1], self.original)
            check_recoverable(self.param_groups[-1], self._rule(self.param_groups[-1]))
        except BaseException:
            self.param_groups.pop()
            raise
