"""The table through which kernels on a device reach the tensors of a bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.interface import BucketTensors, Rows
from wpadamw._backends.upload import Upload
from wpadamw.rules.summing import CHUNK_NUMEL


def chunk_table(bucket: BucketTensors) -> Tensor:
    """One row per chunk, int64 on the host: struct Chunk of ``csrc/cuda/launch.h``.

    Columns: addresses of its first parameter and true weight (0: they are not apart), offset of its
    state in the flat buffers, its begin in its tensor (both in elements), and the tensor's index
    plus 2^32 times its number of elements.
    """
    numels = torch.tensor([param.numel() for param in bucket.params], dtype=torch.int64)
    num_chunks = (numels + CHUNK_NUMEL - 1) // CHUNK_NUMEL  # none for an empty tensor
    index = torch.repeat_interleave(num_chunks)
    first = torch.cumsum(num_chunks, 0) - num_chunks
    begin = (torch.arange(len(index)) - first[index]) * CHUNK_NUMEL
    numel = (numels[index] - begin).clamp(max=CHUNK_NUMEL)
    return torch.stack(
        [
            _addresses(bucket.params, index, begin),
            _addresses(bucket.weight, index, begin) if bucket.weight else torch.zeros_like(index),
            torch.tensor(bucket.offsets, dtype=torch.int64)[index] + begin,
            begin,
            index + (numel << 32),
        ],
        dim=1,
    )


def _addresses(tensors: list[Tensor], index: Tensor, begin: Tensor) -> Tensor:
    first = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    return first[index] + begin * tensors[0].element_size()


class DeviceTable:
    """The chunks of a bucket and, refilled when they change, its gradients and scalars."""

    def __init__(self, bucket: BucketTensors) -> None:
        device, self.num_params = bucket.params[0].device, len(bucket.params)
        self.chunks = chunk_table(bucket).to(device)
        self.num_chunks = len(self.chunks)
        self.grads = Upload(self.num_params, torch.int64, device)
        # At most a row of its own, and a row of what it holds, for each parameter.
        self.width = bucket.rule.row_width(bucket.num_looks)
        self.scalars = Upload(2 * self.num_params * self.width, torch.float64, device)
        self.index = Upload(2 * self.num_params, torch.int32, device)
        self.factor = Upload(1, torch.float64, device)

    def rows(self, rows: Rows) -> Rows:
        """Rows in device memory, with an index."""
        if rows.index is not None and rows.index.device == self.chunks.device:
            return rows
        table = self.scalars.fill_from(rows.scalars)
        if rows.index is None:
            held = 1 if len(rows.scalars) > 1 else -1
            index = self.index.fill([0] * self.num_params + [held] * self.num_params)
        else:
            index = self.index.fill_from(rows.index)
        num_rows = 2 * self.num_params
        return Rows(table.view(num_rows, self.width), index.view(2, self.num_params))

    def factor_of(self, factor: float | Tensor) -> Tensor:
        """A factor of gradients, in device memory."""
        if isinstance(factor, Tensor):
            return factor.reshape(1).double()
        return self.factor.fill([factor])
