"""How a parameter, a gradient or a state tensor lies in memory.

Kernels walk memory from the first to the last element. This module finds the dense real tensor
behind a parameter: the local shard of a DTensor, the pairs of a complex tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The state of a parameter, and the mathematics, have this dtype.
REAL_DTYPE = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


# No memory lies below.
_LEAST_ADDRESS = 2**20


def host_must_not_wait(device: torch.device) -> bool:
    """Whether a device works while the host goes on, so that reading a tensor there would wait."""
    return device.type != "cpu"


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without importing torch.distributed."""
    return type(tensor) is not torch.nn.Parameter and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The shard of a DTensor that this process holds; any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def own_shard(param: Tensor) -> Tensor:
    """The very tensor in a DTensor, of which `local` may make a view; any other tensor itself."""
    return param._local_tensor if is_dtensor(param) else param  # type: ignore[attr-defined]


def sharded_like(param: Tensor, shard: Tensor) -> Tensor:
    """A DTensor with the placements of a parameter that is one; for others the shard itself."""
    if not is_dtensor(param):
        return shard
    return type(param).from_local(  # type: ignore[attr-defined,no-any-return]
        shard,
        param.device_mesh,  # type: ignore[attr-defined]
        param.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


def sum_of_shards(params: Sequence[Tensor], sums: Tensor) -> Tensor:
    """Sums over whole tensors, from those over their shards here: columns, one per parameter.

    Every process that holds a shard has to call it.
    """
    kinds: dict[Any, list[int]] = {}
    for i, param in enumerate(params):
        if is_dtensor(param):
            kinds.setdefault((param.device_mesh, param.placements), []).append(i)  # type: ignore[attr-defined]
    if not kinds:
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    whole = sums.clone()
    for (mesh, placements), columns in kinds.items():
        parts = [Replicate() if p.is_replicate() else Partial() for p in placements]
        of_shards = DTensor.from_local(sums[:, columns], mesh, parts)
        whole[:, columns] = of_shards.full_tensor()
    return whole


def whole(param: Tensor, shard: Tensor) -> Tensor:
    """What lies over the processes like a DTensor, gathered; for other parameters the shard."""
    if not is_dtensor(param):
        return shard
    return sharded_like(param, shard).full_tensor()  # type: ignore[attr-defined,no-any-return]


def shard_of(param: Tensor, whole: Tensor) -> Tensor:
    """This process' part of what all processes hold, where they share a DTensor; else all of it."""
    if not is_dtensor(param):
        return whole
    mesh = param.device_mesh  # type: ignore[attr-defined]
    everywhere = type(param).from_local(whole, mesh, run_check=False)  # type: ignore[attr-defined]
    return local(everywhere.redistribute(placements=param.placements))  # type: ignore[attr-defined]


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals; any other tensor itself, without lazy negation."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.resolve_neg()


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each address once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected and tensor.numel() > 0:
            return False
        expected *= size
    return True


def has_memory(tensor: Tensor) -> bool:
    """Whether the elements lie anywhere; a freed storage leaves an offset from address 0."""
    return tensor.numel() == 0 or tensor.data_ptr() >= _LEAST_ADDRESS


def is_aligned(tensor: Tensor) -> bool:
    """Whether the elements lie at multiples of their size."""
    return tensor.data_ptr() % tensor.element_size() == 0


def overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share an address (expanded tensors)."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def view_like(flat: Tensor, offset: int, tensor: Tensor) -> Tensor:
    """A view of a flat buffer with the shape and strides of a dense real tensor."""
    place = flat.storage_offset() + offset
    return with_own_storage(flat.as_strided(tensor.shape, tensor.stride(), place))


def with_own_storage(view: Tensor) -> Tensor:
    """Gives a dense view a storage that is its stretch of memory alone.

    Savers write whole storages, or refuse tensors that begin inside of one. The version counter
    remains that of the tensor below.
    """
    begin, size = view.storage_offset(), view.element_size()
    stretch = view.untyped_storage()[begin * size : (begin + view.numel()) * size]
    return view.set_(stretch, 0, view.shape, view.stride())


def lies_like(a: Tensor, b: Tensor) -> bool:
    """Whether a tensor is a dense one of the same shape and memory order as another."""
    return a.shape == b.shape and is_dense(a) and has_memory(a) and same_strides(a, b)


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory in the same order."""
    return a.stride() == b.stride() or all(
        p == q or size == 1 for p, q, size in zip(a.stride(), b.stride(), a.shape, strict=True)
    )
