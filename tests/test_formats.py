"""What small formats promise: parts of weights, codes of blocks, noise, and where it all leads."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_same_bits, needs_cpp
from torch import nn

from wpadamw import WPAdamW
from wpadamw.formats import (
    BFLOAT16,
    BLOCK_NUMEL,
    INT8,
    UINT8,
    join,
    noise,
    num_blocks,
    numbers,
    split,
)

BLOCKS = {"int8": INT8, "uint8": UINT8}
each_form = pytest.mark.parametrize("form", BLOCKS.values(), ids=BLOCKS)


def float_of(bits):
    return torch.as_tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def bits_of(values):
    return values.view(torch.int32)


# Weights in two parts.


HIGHS = torch.arange(2**16).short().view(torch.bfloat16)
RESTS = torch.cat([torch.arange(-(2**15), 2**15, 223), torch.tensor([-1, 0, 1, 2**15 - 1])]).short()


def test_parts_of_every_upper_half_join_to_the_same_bits():
    bits = (HIGHS.view(torch.int16).int()[:, None] << 16) | (RESTS.int() & 0xFFFF)
    values = bits.view(torch.float32)
    assert_same_bits("joined", join(*split(values)), values)


def test_the_upper_half_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**20,), generator=generator)
    values = float_of(bits)
    high, rest = split(values)
    is_tie = rest == -(2**15)
    assert_same_bits("high", high[~is_tie], values[~is_tie].bfloat16())
    tie = torch.tensor([1.0 + 2.0**-8, -1.0 - 2.0**-8, 1.0 + 3 * 2.0**-8])
    assert torch.equal(split(tie)[0].float(), torch.tensor([1, -1, 1]) * (tie.abs() + 2.0**-8))


def test_no_number_becomes_one_nan():
    payloads = float_of(torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0xFF800001, 0xFFC12345]))
    high, rest = split(payloads)
    assert torch.equal(high.view(torch.int16), torch.full((5,), 0x7FC0, dtype=torch.int16))
    assert not rest.any()


def test_infinity_and_the_largest_numbers():
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([torch.inf, -torch.inf, largest, -largest])
    assert_same_bits("joined", join(*split(values)), values)


def test_below_a_zero_from_outside_there_is_nothing():
    zeros = torch.tensor([0.0, -0.0], dtype=torch.bfloat16).repeat_interleave(len(RESTS))
    joined = join(zeros, RESTS.repeat(2))
    assert (joined.abs() < 2.0**-126).all()
    assert torch.equal(joined.signbit(), zeros.signbit())
    assert not joined[(RESTS.repeat(2) <= 0)].any()


# Codes.


def all_codes(form):
    """Blocks that have every code between them, the largest in each."""
    codes = torch.arange(-form.most if form is INT8 else 0, form.most + 1)
    room = BLOCK_NUMEL - 1
    codes = nn.functional.pad(codes, (0, -len(codes) % room)).view(-1, room)
    largest = torch.full((len(codes), 1), form.most)
    return torch.cat([codes, largest], 1).flatten().to(form.dtype)


MANTISSAS = (0, 1, 0x123456, 0x400000, 0x555555, 0x7FFFFE, 0x7FFFFF)


def scales_of(exponents):
    pairs = itertools.product(exponents, MANTISSAS)
    return float_of(torch.tensor([e << 23 | m for e, m in pairs if e or m]))


def blocks_of(form, scales):
    """Every code with every scale, and the numbers."""
    codes = all_codes(form).repeat(len(scales))
    scales = scales.repeat_interleave(num_blocks(len(all_codes(form))))
    return codes, scales, form.load([codes, scales], torch.float32)


@each_form
def test_codes_encode_to_themselves(form):
    """From 2^-87 on: where the least number is no subnormal one."""
    codes, scales, values = blocks_of(form, scales_of(range(40, 255)))
    found, found_scales = form.store(values)
    assert torch.equal(found, codes)
    assert_same_bits("scales", found_scales, scales)


@each_form
def test_numbers_below_that_stay_within_the_least_subnormal_one(form):
    codes, scales, values = blocks_of(form, scales_of(range(40)))
    stored = form.store(values)
    assert_same_bits("scales", stored[1], scales)
    assert (form.load(stored, torch.float32) - values).abs().max() <= 2.0**-149
    assert (stored[0][codes == form.most] == form.most).all()


@each_form
def test_the_largest_number_of_a_block_is_exact(form):
    generator = torch.Generator().manual_seed(0)
    values = float_of(torch.randint(1, 0x7F800000, (2**12, BLOCK_NUMEL), generator=generator))
    shares = None if form is INT8 else noise(values.numel(), torch.tensor(1.0)).view_as(values)
    codes, scales = form.store(values, shares)
    largest = values.amax(1)
    assert_same_bits("scales", scales, largest)
    found = form.load([codes, scales], torch.float32)
    assert_same_bits("largest", found.amax(1), largest)


def test_codes_are_the_nearest_in_their_root():
    values = torch.randn(2**12, generator=torch.Generator().manual_seed(0))
    scales = values.view(-1, BLOCK_NUMEL).abs().amax(1).repeat_interleave(BLOCK_NUMEL)
    for form, given, power in ((INT8, values, 2), (UINT8, values.abs(), 4)):
        found = form.load(form.store(given), torch.float32)
        root, want = ((x.abs() / scales) ** (1 / power) * form.most for x in (found, given))
        far = (root - want).abs()
        if form is UINT8:
            far = far[want > 1]
        assert far.max() <= 0.501
        assert torch.equal(found.sign(), given.sign() * (found != 0))


@each_form
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_block_with_no_number_is_none(form, bad):
    values = torch.full((3, BLOCK_NUMEL), 0.5)
    values[1, 7] = bad
    stored = form.store(values.flatten())
    found = form.load(stored, torch.float32).view(3, -1)
    assert not found[1].isfinite().any()
    assert torch.equal(found[::2], values[::2])
    assert equal_or_nan(stored[1][1], torch.tensor(bad).abs())


def equal_or_nan(a, b):
    return bool(a == b or (a.isnan() and b.isnan()))


@each_form
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_are_zeros(form, zero):
    codes, scales = form.store(torch.full((130,), zero))
    assert not codes.any()
    assert torch.equal(scales, torch.zeros(3))
    assert not form.load([codes, scales], torch.float32).any()


@each_form
def test_one_large_number_among_tiny_ones(form):
    values = torch.full((BLOCK_NUMEL,), 1e-30)
    values[5] = 1e30
    codes, _ = form.store(values)
    others = codes[torch.arange(BLOCK_NUMEL) != 5]
    assert codes[5] == form.most
    # What is divided by is never zero; a moment may be.
    assert torch.equal(others, torch.full_like(others, 0 if form is INT8 else 1))


@each_form
@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 130])
def test_the_last_block_may_lack_elements(form, numel):
    values = torch.linspace(0.1, 1, 130)[:numel]
    codes, scales = form.store(values)
    assert (len(codes), len(scales)) == (numel, num_blocks(numel))
    whole, _ = form.store(torch.cat([values, torch.zeros(-numel % BLOCK_NUMEL)]))
    assert torch.equal(codes, whole[:numel])
    assert torch.equal(numbers([codes, scales]), form.load([codes, scales], torch.float32))


# Noise.


SPREAD = 2**16 / 12**0.5


def noise_of(numel, counts):
    return torch.stack([noise(numel, torch.tensor(float(c))) for c in counts]).double()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs()


def test_noise_is_even():
    found = noise_of(2**18, [1, 2, 1000, 2**24])
    assert (found.min(), found.max()) == (0, 2**16 - 1)
    assert torch.equal(found, found.floor())
    assert (found.mean(1) - 32767.5).abs().max() < 4 * SPREAD / 2**9
    torch.testing.assert_close(found.std(1), torch.full((4,), SPREAD).double(), rtol=5e-3, atol=0)
    bits = found.long()[..., None] >> torch.arange(16) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 4 * 0.5 / 2**10


@pytest.mark.parametrize("distance", [1, 2, 3, 63, 64, 512, 2048])
def test_neighbours_have_nothing_to_do_with_each_other(distance):
    found = noise_of(2**16, [1, 2, 3])
    assert correlation(found[:, distance:], found[:, :-distance]) < 4 / (3 * 2**16) ** 0.5


@pytest.mark.parametrize("distance", [1, 2, 10, 1000])
def test_successive_updates_have_nothing_to_do_with_each_other(distance):
    found = noise_of(64, range(1, 4097 + distance))
    assert correlation(found[distance:], found[:-distance]) < 4 / (64 * 4096) ** 0.5
    assert (found.mean(0) - 32767.5).abs().max() < 4.5 * SPREAD / len(found) ** 0.5


ALL_NOISE = torch.arange(2**16)


@pytest.mark.parametrize("value", [3.14159, 1.0 + 2.0**-9, 1e-30, 1e-38, 5e-40, 2.0**-149, 3e38])
def test_noisy_rounding_is_right_on_average(value):
    values = torch.full((2**16,), value)
    (rounded,) = BFLOAT16.store(values, ALL_NOISE)
    assert len(rounded.unique()) == 2
    # The sum of neighbours in bfloat16 is exact in float64.
    assert rounded.double().mean() == values[0].double()


def test_noise_moves_no_bfloat16_number():
    values = HIGHS.float()
    for share in (0, 1, 2**15, 2**16 - 1):
        (found,) = BFLOAT16.store(values, torch.full((2**16,), share))
        assert_same_bits("rounded", found, HIGHS)
    assert_same_bits("nearest", BFLOAT16.store(values)[0], HIGHS)


def test_noisy_codes_are_right_on_average():
    """In their root, but for those below 1, which are no zeros."""
    values = torch.rand(BLOCK_NUMEL, generator=torch.Generator().manual_seed(0)) ** 4
    values[0] = 1.0
    shares = ALL_NOISE[::16].repeat_interleave(BLOCK_NUMEL)
    codes, _ = UINT8.store(values.repeat(2**12), shares)
    want = values.double() ** 0.25 * 255
    far = codes.view(-1, BLOCK_NUMEL).double().mean(0) - want
    assert far[want > 1].abs().max() < 5e-4


def test_noise_moves_hardly_a_code():
    """None but with the last thousandth of the shares."""
    codes, _, values = blocks_of(UINT8, torch.tensor([0.37, 1e-8]))
    for share in (0, 1, 2**15, 65470):
        assert torch.equal(UINT8.store(values, torch.full(values.shape, share))[0], codes)


# Where it leads to.


STEPS = 20_000
BETAS = (0.9, 0.999)


def gradients(drift, dtype):
    """Noise around means, of sizes within one order of magnitude."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** (torch.rand(BLOCK_NUMEL, generator=generator) - 2)
    mean = torch.randn(BLOCK_NUMEL, generator=generator) * drift
    noisy = torch.randn(STEPS, BLOCK_NUMEL, generator=generator)
    return ((noisy + mean) * sizes).to(dtype)


def trained(grads, **options):
    """The true weights and the moments after all steps, each with a prediction."""
    start = torch.randn(BLOCK_NUMEL, generator=torch.Generator().manual_seed(1))
    param = nn.Parameter(start.to(grads.dtype))
    opt = WPAdamW([param], weight_decay=0.1, betas=BETAS, backend="cpp", **options)
    for grad in grads.unbind():
        param.grad = grad
        opt.step()
    weights = []
    opt.set_true_weights(lambda _, weight: weights.append(weight.clone()))
    state = opt.state[param]
    names = ("exp_avg", "exp_avg_sq")
    return weights[0], *[numbers([state[n], state.get(f"{n}_scale")]).double() for n in names]


each_drift = pytest.mark.parametrize("drift", [0.0, 0.3], ids=["noise", "drift"])


@needs_cpp
@each_drift
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_weights_that_are_computed_back_stay_where_they_belong(moments, drift):
    """Within 2e-6 of the largest, a third of it measured: some ulp, after 20,000 times."""
    grads = gradients(drift, torch.bfloat16)
    got, *state = trained(grads, moments=moments, master="split", backup=False)
    want, *expected = trained(grads, moments=moments)
    for a, b in zip(state, expected, strict=True):
        assert_same_bits("moments", a, b)
    assert (got - want).abs().max() < 2e-6 * want.abs().max()


@needs_cpp
@each_drift
@pytest.mark.parametrize(
    "moments, far, of_squares, on_average",
    [("float32", 1e-6, 5e-5, 5e-5), ("bfloat16", 0.015, 0.25, 0.04), ("int8", 0.05, 0.9, 0.15)],
)
def test_moments_stay_near_those_in_float64(moments, drift, far, of_squares, on_average):
    """Bounds are twice what was measured: of means, by their root of squares; of squares."""
    grads = gradients(drift, torch.float32)
    _, mean, square = trained(grads, moments=moments)
    want, squares = torch.zeros(2, BLOCK_NUMEL, dtype=torch.float64)
    for grad in grads.double().unbind():
        want = want + (grad - want) * (1 - BETAS[0])
        squares = squares * BETAS[1] + grad * grad * (1 - BETAS[1])
    assert ((mean - want).abs() / squares.sqrt()).max() < far
    error = square / squares - 1
    assert error.abs().max() < of_squares
    assert error.mean().abs() < on_average
