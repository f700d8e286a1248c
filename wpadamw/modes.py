"""Which weights parameters hold, the ways between them, and the mode of new groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from wpadamw import layout
from wpadamw.checks import (
    Group,
    Mode,
    check_arguments,
    check_in_step,
    check_kind,
    check_known,
    check_recoverable,
    drop_implied,
    plain_numbers,
    unique,
)
from wpadamw.compat import disable_dynamo, outside_inference_mode
from wpadamw.saving import Saving


class Modes(Saving):
    """True and predicted weights under the names that users and training frameworks call."""

    @property
    def weights_are(self) -> Mode:
        """What the parameters hold: ``"true"`` or ``"predicted"`` weights."""
        return "predicted" if "predicted" in self._modes() else "true"

    @disable_dynamo
    def predict(self, *, look: bool = True) -> None:
        """Go to the predicted weights: where the optimizer expects to be after its next step.

        Idempotent, and free when the parameters hold them already. Parameters without a completed
        update keep their true weights. After `restore` the same bits come back.

        With ``compute_dtype`` the parameters stay true, and the copies are computed anew.

        Args:
            look: see `restore`.
        """
        self._clients.announce(self, "predicted")
        if self._keeping.copies is not None:
            self._renew_copies(anew=True)
            return
        self._return_to(["predicted"] * len(self.param_groups), look)

    @disable_dynamo
    def restore(self, *, look: bool = True) -> None:
        """Go to the true weights: what AdamW would hold. To evaluate, save and average.

        Idempotent, free when the parameters hold them already, and exact (with ``backup=False``
        to a few ulp).

        Args:
            look: compare what the parameters hold with what the optimizer wrote, and keep weights
                that came without a trace, through ``.data``. That reads all of them, and waits for
                the device. A program that alone writes to its parameters can do without.
        """
        self._clients.announce(self, "true")
        self._return_to(["true"] * len(self.param_groups), look)

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
        """Run the body with true weights; the former state comes back, also after an error.

        Attached models do not predict inside. As a decorator it has a function run like that, one
        that reads the parameters to average them for example:

            >>> ema.update = opt.true_weights()(ema.update)
        """
        modes, clients = self._modes(), self._clients
        was_held, clients.is_held_true = clients.is_held_true, True
        try:
            self.restore()
            yield
        finally:
            clients.is_held_true = was_held
            self._return_to(modes)

    def register_mode_pre_hook(self, hook: Callable[[Modes, Mode], None]) -> RemovableHandle:
        """Have a function called before `predict` and `restore`, by whatever name.

        For programs that know when weights must not be looked at: an error of theirs leaves all as
        it is.

        Args:
            hook: called with the optimizer, and with ``"predicted"`` or ``"true"``.

        Returns:
            A handle: its ``remove()`` takes the function out again.
        """
        hooks = self._clients.mode_hooks
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    @disable_dynamo
    @outside_inference_mode
    def compute_copy(self, param: Tensor) -> Tensor:
        """The copy of a parameter that holds its predicted weights, with ``compute_dtype``.

        For programs that compute with a low-precision copy of float32 weights: each `step` writes
        it, at 2 bytes per parameter in bfloat16. It remains the same tensor from step to step. Who
        keeps it calls `predict`, or this again, after writes to parameters or state that were not
        the optimizer's, loading for one. Before the first update it holds the true weights.

        Args:
            param: a parameter of the optimizer.

        Returns:
            A tensor of the parameter's shape and of ``compute_dtype``, without a gradient; for a
            DTensor a DTensor.

        Raises:
            RuntimeError: if the optimizer keeps no copies.
            ValueError: for a parameter of another optimizer.

        Example:
            >>> opt = wpadamw.WPAdamW(model.parameters(), compute_dtype=torch.bfloat16)
            >>> weights = {n: opt.compute_copy(p) for n, p in model.named_parameters()}
            >>> torch.func.functional_call(model, weights, x)
        """
        copies = self._keeping.copies
        if copies is None:
            raise RuntimeError("compute_copy needs compute_dtype, got an optimizer without it")
        if not any(param is own for own in self._params()):
            raise ValueError("param must be one of the optimizer's parameters, got another")
        copy = copies.of(param, layout.local(param).detach())
        self._renew_copies()
        if param not in self.state:
            copies.show_true([param])
        return layout.sharded_like(param, copy)

    # Groups.

    @disable_dynamo
    def reset_time(self, group: Group | int | None = None) -> None:
        """Let bias corrections begin anew: Adam-Rel (Ellis et al. 2024, arXiv 2412.17113).

        For objectives that change at once, as in reinforcement learning. Step counts return to 0,
        moments stay. What parameters hold stays, too, and so does the way back from it; without an
        update since then there is nothing to predict from.

        Args:
            group: one of `param_groups`, or its position there; None: all of them.

        Raises:
            ValueError: for a group that is none of the optimizer's.
            RuntimeError: for a rule without bias corrections. Nothing has changed.
        """
        chosen = self._chosen(group)
        for each in chosen:
            rules = self._rules(each)
            if not any(rule.has_time for rule in rules):
                raise RuntimeError(
                    f"reset_time needs bias corrections, got rule {rules.main.name!r}"
                )
        self._put_in_order()
        for each in chosen:
            for bucket in self._plan(each).buckets:
                bucket.ledger.reset_time()

    def _chosen(self, group: Group | int | None) -> list[Group]:
        groups = self.param_groups
        if group is None:
            return groups
        if type(group) is int and group in range(-len(groups), len(groups)):
            return [groups[group]]
        found = [own for own in groups if own is group]
        if not found:
            raise ValueError(f"group must be one of param_groups or its index, got {group!r:.200}")
        return found

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
            group["params"] = unique(list(group["params"]))
        drop_implied(group, self.defaults, self.original)
        check_known(group, self.defaults, type(self).__name__)
        super().add_param_group(group)
        try:
            check_arguments(self.param_groups[-1], self.original)
            rules = self._rules(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                check_kind(param, rules.of(param))
                if self._keeping.copies is not None:
                    self._keeping.copies.kind_of(param)
            if self._keeping.copies is not None:
                check_in_step(self.param_groups[-1])
            check_recoverable(self.param_groups[-1], rules)
        except BaseException:
            self.param_groups.pop()
            raise
        for follower in list(self._clients.followers):
            follower.follow_parts(anew=True)  # they may hold the new parameters
