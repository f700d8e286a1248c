"""The table through which kernels on a device reach the tensors of a bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.interface import BucketTensors, DeviceRows, Rows
from wpadamw._backends.rows import flatten
from wpadamw._backends.upload import Upload
from wpadamw.scalars import Scalars

# Elements of one block: kChunkNumel of csrc/cuda/launch.h.
CHUNK_NUMEL = 2048


def chunk_table(bucket: BucketTensors) -> Tensor:
    """One row per chunk, int64 on the host: struct Chunk of ``csrc/cuda/launch.h``.

    Columns: address of its first parameter, offset of its state in the flat buffers, its begin in
    its tensor (both in elements), and the tensor's index plus 2^32 times its number of elements.
    """
    numels = torch.tensor([param.numel() for param in bucket.params], dtype=torch.int64)
    num_chunks = (numels + CHUNK_NUMEL - 1) // CHUNK_NUMEL  # none for an empty tensor
    index = torch.repeat_interleave(num_chunks)
    first = torch.cumsum(num_chunks, 0) - num_chunks
    begin = (torch.arange(len(index)) - first[index]) * CHUNK_NUMEL
    addresses = torch.tensor([param.data_ptr() for param in bucket.params], dtype=torch.int64)
    numel = (numels[index] - begin).clamp(max=CHUNK_NUMEL)
    return torch.stack(
        [
            addresses[index] + begin * bucket.params[0].element_size(),
            torch.tensor(bucket.offsets, dtype=torch.int64)[index] + begin,
            begin,
            index + (numel << 32),
        ],
        dim=1,
    )


class DeviceTable:
    """The chunks of a bucket and, refilled when they change, its gradients and scalars."""

    def __init__(self, bucket: BucketTensors) -> None:
        device, self.num_params = bucket.params[0].device, len(bucket.params)
        self.chunks = chunk_table(bucket).to(device)
        self.num_chunks = len(self.chunks)
        self.grads = Upload(self.num_params, torch.int64, device)
        # At most a row of its own, and a last row, for each parameter.
        self.scalars = Upload(2 * self.num_params * len(Scalars._fields), torch.float64, device)
        self.index = Upload(2 * self.num_params, torch.int32, device)

    def rows(self, rows: Rows, last: Rows) -> DeviceRows:
        """Rows of the host, in device memory."""
        numbers, last_index = flatten(rows, last, self.num_params)
        index = list(rows.index or [0] * self.num_params)
        index += last_index or [-1] * self.num_params
        scalars = self.scalars.fill(numbers).view(-1, len(Scalars._fields))
        if rows.grad_factor is not None:
            scalars[:, 0] = rows.grad_factor
            self.scalars.forget()
        return DeviceRows(scalars, self.index.fill(index).view(2, -1))
