"""Buckets of random numbers, below the optimizers, and what is done to them."""

from __future__ import annotations

import rule_table
import torch
from helpers import wide
from rules.blend import Blend

from wpadamw import flat_state
from wpadamw._backends.interface import BucketTensors, Gradients, Operation, Rows
from wpadamw.rules.averaged import NAME as AVERAGE
from wpadamw.rules.averaged import Averaged, averaged
from wpadamw.rules.rule import Settings
from wpadamw.rules.squares import Squares
from wpadamw.rules.stored import formats_of, stored

TABLE = rule_table.RULES | rule_table.OF_MATRICES
CASES = {case.rule.name: case for case in TABLE.values()}
HYPER = {
    **{name: case.hyper(lr=0.01) for name, case in CASES.items()},
    "blend": (0.02, 0.9),
    "squares": (),
}
RULES = {name: case.rule() for name, case in CASES.items()}
RULES |= {"blend": Blend(), "squares": Squares()}
AVERAGED = {name: averaged(RULES[name]) for name in ("adamw", "blend")}
UPDATING = [*(rule for rule in RULES.values() if rule.state_names), *AVERAGED.values()]
SUMMING = [rule for rule in RULES.values() if rule.num_terms]
COUNTS = (1, 2, 50)
# How far predictions go, by the number of looks.
SHARES = {1: (1.5,), 3: (0.0, 1.0, 0.5)}

# Around a chunk, and several of them with a rest.
NUMELS = (3, 2048, 0, 2049, 5000, 64)
# More chunks than are added at once.
SUMMED = (*NUMELS, 40 * 2048 + 5)
WITHOUT_GRAD = 3
FACTOR = -0.3


def label(rule):
    """For the names of tests."""
    return f"{rule.name}-averages" if isinstance(rule, Averaged) else rule.name


def hyper_of(rule):
    ema = (0.3,) if AVERAGE in rule.state_names else ()
    return rule.Hyper(*HYPER[rule.name], *ema)


def random_bucket(rule, dtype, has_backup, numels=NUMELS, num_looks=1):
    """Every bucket of the same arguments is the same."""
    generator = torch.Generator().manual_seed(1)
    offsets = [0]
    for numel in numels:
        offsets.append(offsets[-1] + -(-numel // 64) * 64)
    real = torch.promote_types(dtype, torch.float32)

    def flat():
        return wide((offsets[-1],), real, generator)

    def views(buffer):
        pairs = zip(offsets, numels, strict=False)
        return [buffer[offset : offset + numel] for offset, numel in pairs]

    state_flat = [flat().abs() for _ in rule.state_names]
    weight_flat = flat() if has_backup else None
    return BucketTensors(
        rule=rule,
        params=[wide((numel,), real, generator).to(dtype) for numel in numels],
        offsets=offsets[:-1],
        weight_flat=weight_flat,
        state_flat=state_flat,
        weight=None if weight_flat is None else views(weight_flat),
        state=[views(buffer) for buffer in state_flat],
        num_looks=num_looks,
    )


def small_bucket(rule, dtype, master, moments, numels=NUMELS, num_looks=1):
    """The same in small formats; ``master``: where the true weights are kept.

    That is a "backup", a "rest" of bfloat16 parameters, or nothing more than they are ("none").
    """
    rule, generator = stored(rule, moments), torch.Generator().manual_seed(1)
    params = [wide((numel,), torch.float32, generator).to(dtype) for numel in numels]
    kept = {"has_backup": master == "backup", "has_rest": master == "rest"}
    bucket = flat_state.allocate(params, rule, dtype=torch.float32, num_looks=num_looks, **kept)
    for weight in bucket.weight or []:
        weight.copy_(wide(weight.shape, torch.float32, generator))
    if bucket.rest_flat is not None:
        shape = bucket.rest_flat.shape
        bucket.rest_flat.copy_(torch.randint(-(2**15), 2**15, shape, generator=generator))
    for kind, form in enumerate(formats_of(rule)):
        for i, param in enumerate(params):
            values = wide(param.shape, torch.float32, generator).abs()
            for memory, new in zip(bucket.stored(kind, i), form.store(values), strict=True):
                memory.copy_(new)
    return bucket


def random_gradients(dtype, numels=NUMELS):
    generator = torch.Generator().manual_seed(2)
    tensors = [wide((numel,), dtype, generator) for numel in numels]
    tensors[WITHOUT_GRAD] = None
    has_grad = [tensor is not None for tensor in tensors]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    return Gradients(dtype, tensors, addresses, has_grad)


def rows_of(rule, index, num_looks=1):
    settings = Settings(hyper_of(rule), SHARES[num_looks])
    rows = [rule.row(settings, count, num_looks) for count in COUNTS]
    table = [[number for row in pair for number in row] for pair in rows]
    index = torch.tensor(index, dtype=torch.int32)
    return Rows(torch.tensor(table, dtype=torch.float64), index)


def run(kernels, operation, grads, rows):
    if operation is Operation.predict:
        kernels.predict(rows)
    elif operation is Operation.restore:
        kernels.restore(rows)
    else:
        kernels.step(grads, rows, FACTOR, operation is Operation.step_and_predict)


def tensors_of(bucket):
    """All that an operation may write, and what lies between in flat buffers."""
    apart = bucket.weight or [] if bucket.weight_flat is None else [bucket.weight_flat]
    flats = [*bucket.state_flat, *bucket.scales_flat, bucket.rest_flat]
    return [*bucket.params, *apart, *(flat for flat in flats if flat is not None)]
