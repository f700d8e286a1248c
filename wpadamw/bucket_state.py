"""A bucket's parameters and their state in flat buffers, and whether all is where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from wpadamw import flat_state, layout
from wpadamw._backends.interface import Backend
from wpadamw.checks import why_no_memory
from wpadamw.compat import clear_autocast_cache
from wpadamw.copies import Copies
from wpadamw.device_ledger import DeviceLedger
from wpadamw.flat_state import StateDict, all_same, holds
from wpadamw.gradients import GradientReader
from wpadamw.ledger import Ledger
from wpadamw.records import most_looks, no_rows
from wpadamw.rules.rule import Rule
from wpadamw.rules.stored import formats_of
from wpadamw.tensors import Versions, versions
from wpadamw.watch import Watch


class BucketState:
    """Parameters that share device, dtype and rule, with their optimizer state.

    Args:
        params: parameters, none of them twice.
        rule: the update rule.
        has_backup: keep the true weights in the state.
        backend: whose kernels to use.
        states: per parameter the state so far, {} at its first gradient. Its tensors are copied
            into the flat buffers and replaced by views of them.
        counts_on_device: keep counts, records and scalars there, so that the host never waits for
            them and CUDA graphs can capture a step.
        num_looks: of how many shares of updates new predictions consist; older ones, on record in
            the states, may have more.
        copies: where predictions go instead of to the parameters, which stay true then.
        master: where bfloat16 parameters have their float32 weights: in a backup ("float32"), half
            of them in the state ("split"), or nowhere ("none").
    """

    def __init__(
        self,
        params: list[Tensor],
        rule: Rule,
        has_backup: bool,
        backend: Backend,
        states: list[StateDict],
        counts_on_device: bool = False,
        num_looks: int = 1,
        copies: Copies | None = None,
        master: str = "float32",
    ) -> None:
        self.params, self.rule, self.has_backup, self.states = params, rule, has_backup, states
        for i, param in enumerate(params):
            if (reason := why_no_memory(param)) is not None:
                raise RuntimeError(f"params[{i}] {reason}")
        self.dtype = params[0].dtype  # they may be cast later
        self.real_dtype = layout.REAL_DTYPE[self.dtype]
        self.watch = Watch(params)
        self.staged: dict[int, Tensor] = {}
        dense = [self._dense(i, local) for i, local in enumerate(self.watch.locals)]
        num_looks = max(num_looks, most_looks(rule, states))
        is_half = self.dtype == torch.bfloat16
        for i, state in enumerate(states):
            if "remainder" in state and not (is_half or has_backup):
                raise RuntimeError(
                    f"params[{i}] must be bfloat16 as its state is, got {self.dtype}"
                )
        self.tensors = flat_state.allocate(
            dense, rule, has_backup, self.real_dtype, num_looks, is_half and master == "split"
        )
        self.tensors.has_noisy_params = is_half and master == "none"
        self.copies = copies
        if copies is not None:
            self.tensors.weight = dense
            self.tensors.params = list(map(copies.of, params, dense))
        # Whether true weights are computed from predicted ones.
        self.recovers = self.tensors.weight is None
        self.gradients = GradientReader(params, dense)
        self.backend, self.kernels = backend, backend.Kernels(self.tensors)
        self.counts_on_device = counts_on_device
        self.ledger: Ledger | DeviceLedger = Ledger(rule, states, num_looks)
        if counts_on_device:
            self.ledger = DeviceLedger(self.ledger, dense[0].device, self.kernels)
        tensors = self.tensors
        flats = [*tensors.state_flat, *tensors.scales_flat, tensors.rest_flat, tensors.weight_flat]
        # Parameters whose state came without what begins as their true weights. It does when these
        # are certain: a model may be loaded after its optimizer.
        self.lacking = [i for i, s in enumerate(states) if s and flat_state.lacks(s, rule)]
        views = [flat_state.views_of(i, param, self.tensors) for i, param in enumerate(params)]
        flat_state.check_shapes(views, states, rule)
        self.state_versions: Versions | None = None
        # From which parameters got what they hold, and a model that is loaded later has it.
        self.came = None
        if not copies:
            self.came = flat_state.as_it_came(states, self.tensors, master != "float32")
        self.to_begin = self.lacking if self.came is None else list(range(len(params)))
        if self.brings_weights():
            self.take_weights(range(len(params)))
        self.state_values = flat_state.absorb(views, states, self.tensors, self.ledger)
        # Whose versions tell of writes: those to a DTensor do not raise that of its shard.
        self.flats = [flat for flat in flats if flat is not None]
        self.flats += filter(layout.is_dtensor, self.state_values)
        self.ledger.refresh()  # what absorb has shown of it is no write of somebody else's
        # Of the state that parameters got what they hold from; None: of another one.
        self.state_versions = versions(self.flats)

    def _dense(self, i: int, local: Tensor) -> Tensor:
        """The memory that kernels read and write for parameter i."""
        real = layout.as_real(local.detach())
        # Files have blocks of codes in this order alone.
        is_in_order = real.is_contiguous() or not any(f.most for f in formats_of(self.rule))
        if layout.is_dense(real) and layout.is_aligned(real) and is_in_order:
            return real
        # A view with gaps, or at an odd address: kernels work on a copy of it.
        self.staged[i] = real.clone(memory_format=torch.contiguous_format)
        return self.staged[i]

    # Is everything still where it was?

    def is_intact(self) -> bool:
        """Whether parameters and state tensors are where they were at construction."""
        return self.watch.is_in_place() and self.has_own_states()

    def has_own_states(self) -> bool:
        """Whether the state tensors are those of construction."""
        return holds(self.states, self.state_values)

    def has_states_of(self, state: Mapping[Tensor, StateDict]) -> bool:
        """Whether these are the parameters' state dicts."""
        return all_same(map(state.get, self.params), self.states)

    def written_outside(self) -> list[int]:
        """Indices of parameters that others wrote to since the last own write."""
        return self.watch.written(without_trace=not self.has_backup)

    def is_plain(self) -> bool:
        """Whether kernels work on the very memory of parameters that nobody shares."""
        watch = self.watch
        are_own = watch.are_whole and not (watch.are_sharded or self.staged)
        return are_own and not self.params[0].is_complex()

    def can_recreate(self) -> bool:
        """Whether the state is that from which parameters got what they hold."""
        return self.state_versions is not None and self.state_versions.are_of(self.flats)

    def begin(self) -> None:
        """Has what states came without begin as the true weights, which are known now."""
        for i in self.lacking if self.to_begin else ():
            flat_state.begin(i, self.tensors)
        if self.to_begin and self.state_versions is not None:
            self.state_versions = versions(self.flats)
        self.to_begin, self.came = [], None

    # States that came with other numbers than are stored of them.

    def brings_weights(self) -> bool:
        """Whether states came with true weights, which are kept nowhere else."""
        return self.came is not None and self.came.weight is not None and self.recovers

    def is_way_back(self) -> bool:
        """Whether true weights are computed back by the state as it came."""
        return self.came is not None and self.recovers and not self.brings_weights()

    def take_weights(self, indices: Iterable[int]) -> None:
        """Gives parameters the true weights that came."""
        assert self.came is not None
        chosen = set(indices)
        for i in chosen:
            flat_state.take_weight(i, self.tensors, self.came)
        if chosen:
            self.finish_write([i in chosen for i in range(len(self.params))])

    def saved_beside(self) -> list[int]:
        """Which parameters hold what those do that were saved beside the states that came."""
        assert self.came is not None
        self.stage()
        held = self.tensors.params
        expected = dataclasses.replace(self.came, params=list(map(torch.empty_like, held)))
        kernels = self.backend.Kernels(expected)
        kernels.restore(no_rows(self.rule, expected.num_looks))
        found = self._holding(expected.params)
        kernels.predict(self.ledger.prediction_rows())
        return sorted({*found, *self._holding(expected.params)})

    def _holding(self, expected: list[Tensor]) -> list[int]:
        pairs = enumerate(zip(self.tensors.params, expected, strict=True))
        return [i for i, (held, other) in pairs if torch.equal(held, other)]

    # Around own writes.

    def stage(self) -> None:
        """Brings the dense copies of parameters with gaps up to date."""
        for i, staged in self.staged.items():
            staged.copy_(layout.as_real(self.watch.locals[i].detach()))

    def finish_write(self, where: list[bool] | None = None) -> None:
        """To be called after writes to parameters (None: all): for autograd, and as own writes."""
        for i, staged in self.staged.items():
            layout.as_real(self.watch.locals[i].detach()).copy_(staged)
        clear_autocast_cache()
        if self.state_versions is not None:
            self.state_versions = versions(self.flats)
        self.watch.note_write(where, self.kernels.raise_versions)
