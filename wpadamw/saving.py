"""What leaves an optimizer and comes back: state dicts, copies, pickles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from wpadamw import checkpoint
from wpadamw.accelerated import answer_through_accelerate
from wpadamw.checks import plain_numbers
from wpadamw.clients import Clients
from wpadamw.compat import disable_dynamo, forget_gathered, outside_inference_mode
from wpadamw.copies import Keeping
from wpadamw.serving import Plans
from wpadamw.upkeep import Upkeep


class Saving(Upkeep):
    """State dicts that carry the true weights, and loading in any order."""

    def __getstate__(self) -> dict[str, Any]:
        self._clients.check_no_averages("copying an optimizer")
        self._put_in_order()
        state = {param: dict(entry) for param, entry in self.state.items()}
        own = {"state": defaultdict(dict, state), "_backend": self._backend, "_amp": self._amp}
        own["_keeping"] = self._keeping.emptied()
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = Plans()
        self._clients = self.__dict__.get("_clients") or Clients()
        self._keeping = self.__dict__.get("_keeping") or Keeping()
        if self._amp:
            self._step_supports_amp_scaling = True
        for group in self.param_groups:
            for key, value in {**self.defaults, "weights_are": "true"}.items():
                group.setdefault(key, value)

    @disable_dynamo
    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state as plain tensors and numbers, loadable with ``weights_only=True``.

        As in torch its tensors are the optimizer's own: save or copy them before the next step. The
        parameters of attached models go to their true weights, as by the model's ``state_dict``:
        files that are written together are of one mode, whichever comes first.
        """
        has_backup = self._keeping.copies is None and all(g["backup"] for g in self.param_groups)
        if not has_backup:
            self._clients.check_no_averages("state_dict() of true weights without a backup")
        self._put_in_order()
        self._clients.check_saving(self.param_groups)
        answer_through_accelerate()  # which asks for it when it prepares an optimizer
        if self._clients.followers and not self._clients.under_way:
            self._return_to(["true"] * len(self.param_groups))
        saved = super().state_dict()
        saved["param_groups"] = list(map(plain_numbers, saved["param_groups"]))
        for own, group in zip(self.param_groups, saved["param_groups"], strict=True):
            group["rule"] = self._rule(group).name
            if self._plan(own).copies is not None:
                group["backup"] = None  # there is none: whoever loads this has an option of its own
        return saved

    @disable_dynamo
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or of the original one (``torch.optim``'s).

        The file carries the true weights. The model may be loaded before or after it, in whatever
        mode the two were saved: its weights are compared with those of the file. Parameters that
        hold neither these nor the prediction from them receive the true weights of the file now;
        other weights that come later are trusted, with a warning.

        With ``backup=False`` there is nothing to compare with, and the mode in the file counts.

        Raises:
            ValueError: for a file that does not fit. Weights and state are as before.
        """
        self._clients.check_no_averages("load_state_dict()")
        self._load(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    @outside_inference_mode
    def _load(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            if (replaced := pre_hook(self, state_dict)) is not None:
                state_dict = replaced
        if self._keeping.copies is not None:
            state_dict = checkpoint.for_copies(state_dict)
        groups, state = checkpoint.read(
            state_dict, self.param_groups, self.defaults, self.original, self._rules
        )
        self._replace(defaultdict(dict, state), groups)
        if self._keeping.copies is not None:
            self._keeping.copies.seen.clear()
            forget_gathered()
        self._modes()
