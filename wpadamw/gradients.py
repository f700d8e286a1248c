"""The gradients of a bucket's parameters: read anew in every step, and made to fit.

A gradient may change in all respects and stay the same object, so nothing about it is remembered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Gradients
from wpadamw.tensors import layouts

SPARSE_GRADIENT = "Adam does not support sparse gradients, please consider SparseAdam instead"


class GradientReader:
    """Reads the gradients of parameters.

    Args:
        params: the parameters.
        dense: the dense real tensors behind them, which kernels work on.
    """

    def __init__(self, params: list[Tensor], dense: list[Tensor]) -> None:
        self.params, self.dense = params, dense
        self.layouts = layouts(dense)
        self.dtype = dense[0].dtype
        self.are_complex = params[0].is_complex()
        self.are_sharded = any(map(layout.is_dtensor, params))

    def quick_look(self) -> list[Gradients] | None:
        """The same as `read` where no gradient must be looked at more closely; else None."""
        if self.are_sharded or self.are_complex:
            return None
        grads = self.layouts.grads_of(self.params)
        found = self.layouts.addresses_of(grads)
        return None if found is None else self._of(grads, *found)

    def read(self) -> list[Gradients]:
        """The gradients of this moment, one entry per dtype; empty if there is none.

        Raises:
            RuntimeError: for a gradient that does not fit its parameter.
        """
        grads = self.layouts.grads_of(self.params)
        if self.are_sharded:
            grads = [None if grad is None else layout.local(grad) for grad in grads]
        found = None if self.are_complex else self.layouts.addresses_of(grads)
        if found is None:
            return self._fitted(grads)
        return self._of(grads, *found)

    def _of(
        self,
        grads: list[Tensor | None],
        addresses: list[int],
        has_grad: list[bool] | None,
        is_float32: bool,
    ) -> list[Gradients]:
        if has_grad is not None and not any(has_grad):
            return []
        return [Gradients(torch.float32 if is_float32 else self.dtype, grads, addresses, has_grad)]

    @torch.no_grad()
    def _fitted(self, grads: list[Tensor | None]) -> list[Gradients]:
        fitted = [self._fit(i, grad) for i, grad in enumerate(grads)]
        dtypes = dict.fromkeys(grad.dtype for grad in fitted if grad is not None)
        return [_of_dtype(dtype, fitted) for dtype in dtypes]

    def _fit(self, i: int, grad: Tensor | None) -> Tensor | None:
        """The gradient of parameter i in the parameter's memory order, as real numbers."""
        if grad is None:
            return None
        if grad.layout != torch.strided or grad.is_nested:
            raise RuntimeError(SPARSE_GRADIENT)
        local, dense = layout.local(grad), self.dense[i]
        if not layout.has_memory(local):
            raise RuntimeError(f"the gradient of params[{i}] must have memory, got a freed storage")
        grad = layout.as_real(local)
        self._check_fits(i, grad)
        if grad.dtype not in (dense.dtype, torch.float32):
            grad = grad.to(layout.REAL_DTYPE[dense.dtype])
        if not (layout.same_strides(grad, dense) and layout.is_aligned(grad)):
            grad = torch.empty_like(dense, dtype=grad.dtype).copy_(grad)
        return grad

    def _check_fits(self, i: int, grad: Tensor) -> None:
        dense = self.dense[i]
        if grad.shape != dense.shape or grad.device != dense.device:
            raise RuntimeError(
                f"the gradient of params[{i}] must have shape {tuple(dense.shape)} and device "
                f"{dense.device} like the parameter, got {tuple(grad.shape)} and {grad.device}"
            )


def _of_dtype(dtype: torch.dtype, grads: list[Tensor | None]) -> Gradients:
    chosen = [grad if grad is not None and grad.dtype == dtype else None for grad in grads]
    addresses = [0 if grad is None else grad.data_ptr() for grad in chosen]
    has_grad = [grad is not None for grad in chosen]
    return Gradients(dtype, chosen, addresses, None if all(has_grad) else has_grad)
