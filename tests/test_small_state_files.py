"""Files of states in small formats: in each order, from each format to each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_same_training
from models import HYPER, equal, held, optimizer, snapshot, through_file
from small_states import BACKUP, SPLIT, WAYS, network, set_grads, started, steps, true
from torch import nn

from wpadamw import WPAdamW, WPMuon
from wpadamw.formats import OF_MOMENTS, split

pytestmark = pytest.mark.filterwarnings("ignore:state_dict\\(\\) of an optimizer")

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_mode = pytest.mark.parametrize("mode", ["true", "predicted"])
each_order = pytest.mark.parametrize("order", ["model-first", "optimizer-first", "saved-between"])
no_warning = pytest.mark.filterwarnings("error:Parameters were written")


def saved(net, opt, mode):
    """Files of a network and its optimizer, which are left in a mode."""
    opt.eval() if mode == "true" else opt.train()
    return through_file(net.state_dict()), through_file(opt.state_dict())


def loaded(files, dtype, order, options):
    """Another network and its optimizer, which have trained before."""
    net = network(dtype, seed=1)
    opt = optimizer(net, **options)
    steps(opt, [11])
    model, state = files
    if order == "model-first":
        net.load_state_dict(model)
    opt.load_state_dict(state)
    if order == "saved-between":
        opt.state_dict()
    if order != "model-first":
        net.load_state_dict(model)
    return net, opt


@no_warning
@each_way
@each_mode
@each_order
def test_training_goes_on_with_the_same_bits(way, mode, order):
    net, opt = started(way, ema=0.2)
    files = saved(net, opt, mode)
    _, other = loaded(files, way.dtype, order, {**way.options, "ema": 0.2})
    for seed in (5, 6):
        steps(opt, [seed])
        steps(other, [seed])
        assert_same_training(other, opt)


@each_way
def test_states_have_the_small_formats(way):
    _, opt = started(way)
    state = opt.state_dict()["state"][0]
    for name, form in zip(
        ("exp_avg", "exp_avg_sq"), OF_MOMENTS[way.options["moments"]], strict=True
    ):
        assert state[name].dtype == (form.dtype or torch.float32)
        assert (f"{name}_scale" in state) == bool(form.most)
    assert ("remainder" in state) == (way.options.get("master") == "split")
    assert ("weight" in state) == way.options.get("backup", True)


@each_way
def test_bytes_per_parameter(way):
    param = nn.Parameter(torch.zeros(64 * 100, dtype=way.dtype))
    opt = WPAdamW([param], **way.options)
    steps(opt, [0])
    sizes = {n: v.nbytes for n, v in opt.state[param].items() if n not in ("step", "prediction")}
    moments = {"float32": 8.0, "bfloat16": 4.0, "int8": 2.0 + 2 * 4 / 64}[way.options["moments"]]
    weights = 4.0 if way.options.get("backup", True) else 0.0
    weights += 2.0 if way.options.get("master") == "split" else 0.0
    assert sum(sizes.values()) / param.numel() == moments + weights


# From one format to another.


def conversions():
    """Pairs of ways of one dtype, from backups and without."""
    for (a, first), (b, second) in itertools.permutations(WAYS.items(), 2):
        if first.dtype == second.dtype and not (is_split(first) and not is_split(second)):
            yield pytest.param(first, second, id=f"{a}-to-{b}")


def is_split(way):
    return way.options.get("master") == "split"


@no_warning
@each_mode
@pytest.mark.parametrize("order", ["model-first", "saved-between"])
@pytest.mark.parametrize("first, second", list(conversions()))
def test_weights_survive_a_change_of_format(first, second, mode, order):
    net, opt = started(first)
    files = saved(net, opt, mode)
    want = true(opt)
    _, other = loaded(files, first.dtype, order, second.options)
    other.eval()
    for got, expected in zip(true(other), want, strict=True):
        if first.options.get("backup", True) and order == "model-first":
            assert equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
    for group in other.param_groups:
        assert group["moments"] == second.options["moments"]
        assert group["master"] == second.options.get("master", "float32")


@pytest.mark.parametrize("after", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("before", ["float32", "bfloat16", "int8"])
def test_moments_are_decoded_and_rounded_to_the_nearest(before, after):
    net = network()
    opt = optimizer(net, moments=before)
    steps(opt, range(3))
    files = saved(net, opt, "true")
    _, other = loaded(files, torch.float32, "model-first", {"moments": after})
    whole = optimizer(network(), moments="float32")
    whole.load_state_dict(files[1])
    for param, expected in zip(other.state, whole.state.values(), strict=True):
        for name, form in zip(("exp_avg", "exp_avg_sq"), OF_MOMENTS[after], strict=True):
            stored = form.store(expected[name])
            assert equal(other.state[param][name], stored[0])
            if form.most:
                assert equal(other.state[param][f"{name}_scale"], stored[1])


@each_way
def test_files_of_torch_load(way):
    net = network(way.dtype)
    theirs = torch.optim.AdamW(net.parameters(), **HYPER)
    for seed in range(3):
        set_grads(net.parameters(), seed)
        theirs.step()
    opt = WPAdamW(network(way.dtype, 1).parameters(), **HYPER, **way.options)
    with torch.no_grad():
        for param, value in zip(opt.param_groups[0]["params"], net.parameters(), strict=True):
            param.copy_(value)
    opt.load_state_dict(through_file(theirs.state_dict()))
    assert equal(held(opt.param_groups[0]["params"]), held(net))
    assert all(opt.param_groups[0][name] == value for name, value in way.options.items())
    steps(opt, [3])
    assert all(state["step"] == 4 for state in opt.state.values())
    assert opt.weights_are == "predicted"


def test_true_weights_of_a_backup_are_split():
    """Parameters of a model that was not loaded have them at once, wherever they lie."""
    gaps = lambda: nn.Parameter(torch.ones(9, 20, dtype=torch.bfloat16)[:, ::2])  # noqa: E731
    opt, other = WPAdamW([gaps()]), WPAdamW([gaps()], **SPLIT)
    steps(opt, range(3))
    other.load_state_dict(through_file(opt.state_dict()))
    (param,), (state,) = other.param_groups[0]["params"], opt.state.values()
    high, rest = split(state["weight"])
    assert equal(param.detach(), high)
    assert equal(other.state[param]["remainder"], rest)
    assert other.weights_are == "true"


@each_mode
@pytest.mark.parametrize("options", [BACKUP, SPLIT], ids=["backup", "split"])
def test_mixed_groups(options, mode):
    """Narrow parameters are split, wide ones are whole."""

    def training(**options):
        params = [nn.Parameter(torch.ones(70, dtype=d)) for d in (torch.bfloat16, torch.float32)]
        return params, WPAdamW(params, lr=0.01, **options)

    _, opt = training(**options)
    steps(opt, range(3))
    if mode == "true":
        opt.eval()
    params, other = training(**SPLIT)
    steps(other, [7])
    with torch.no_grad():
        for param, theirs in zip(params, opt.state, strict=True):
            param.copy_(theirs)
    other.load_state_dict(through_file(opt.state_dict()))
    for got, want in zip(true(other), true(opt), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-7)


def test_weights_that_are_no_ones_are_trusted():
    """A model that was loaded last and is another one keeps its weights."""
    _, opt = started(WAYS["bfloat16-int8"])
    net = network(torch.bfloat16, seed=1)
    other = optimizer(net, **SPLIT)
    other.load_state_dict(through_file(opt.state_dict()))
    newer = network(torch.bfloat16, seed=2)
    net.load_state_dict(newer.state_dict())
    other.eval()
    assert equal(held(net), held(newer))


# Files that do not fit.


CODES, SQUARES = torch.zeros(130, dtype=torch.int8), torch.zeros(130, dtype=torch.uint8)
INT8, BF16 = WAYS["float32-int8"], WAYS["float32-bfloat16"]
SPLIT_INT8 = WAYS["split-int8"]
BAD = {
    "code-of-another-kind": (INT8, "exp_avg", {"exp_avg": SQUARES}),
    "signed-square": (INT8, "exp_avg_sq", {"exp_avg_sq": CODES}),
    "wide-code": (INT8, "exp_avg", {"exp_avg": CODES.short()}),
    "short-code": (INT8, "exp_avg", {"exp_avg": CODES[1:]}),
    "sparse-code": (INT8, "exp_avg", {"exp_avg": CODES.to_sparse()}),
    "meta-code": (INT8, "exp_avg", {"exp_avg": CODES.to("meta")}),
    "no-scale": (INT8, "exp_avg_scale", {"exp_avg_scale": None}),
    "no-scale-of-squares": (INT8, "exp_avg_sq_scale", {"exp_avg_sq_scale": None}),
    "short-scale": (INT8, "exp_avg_scale", {"exp_avg_scale": torch.zeros(2)}),
    "scale-of-another-shape": (INT8, "exp_avg_scale", {"exp_avg_scale": torch.zeros(3, 1)}),
    "double-scale": (INT8, "exp_avg_scale", {"exp_avg_scale": torch.zeros(3).double()}),
    "number-as-scale": (INT8, "exp_avg_scale", {"exp_avg_scale": 1.0}),
    "weight-in-codes": (INT8, "weight", {"weight": CODES}),
    "average-in-codes": (INT8, "average", {"average": CODES}),
    "scale-of-weight": (INT8, "weight_scale", {"weight_scale": torch.zeros(3)}),
    "codes-without-scales": (BF16, "exp_avg_scale", {"exp_avg": CODES}),
    "no-remainder": (SPLIT_INT8, "remainder", {"remainder": None}),
    "wide-remainder": (SPLIT_INT8, "remainder", {"remainder": torch.zeros(130).int()}),
    "short-remainder": (SPLIT_INT8, "remainder", {"remainder": torch.zeros(64).short()}),
    "text-as-remainder": (SPLIT_INT8, "remainder", {"remainder": "half"}),
}


def of_one_parameter(way, **options):
    param = nn.Parameter(torch.linspace(-1, 1, 130).to(way.dtype))
    opt = WPAdamW([param], lr=0.01, **way.options, **options)
    steps(opt, range(2))
    return opt


@pytest.mark.parametrize("way, name, entries", BAD.values(), ids=BAD)
def test_entries_that_do_not_fit_are_refused_by_name(way, name, entries):
    opt = of_one_parameter(way, ema=0.2)
    file = through_file(opt.state_dict())
    state = {**file["state"][0], **entries}
    file["state"][0] = {key: value for key, value in state.items() if value is not None}
    before = snapshot(opt)
    with pytest.raises(ValueError, match=rf"'{name}'"):
        opt.load_state_dict(file)
    assert equal(snapshot(opt), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_codes_are_refused():
    opt = of_one_parameter(INT8)
    file = opt.state_dict()
    file["state"][0] = {**file["state"][0], "exp_avg": torch.nested.nested_tensor([CODES])}
    with pytest.raises(ValueError, match="'exp_avg'"):
        opt.load_state_dict(file)


@pytest.mark.parametrize("options", [BACKUP, {"moments": "int8"}])
def test_upper_halves_are_no_weights(options):
    _, opt = started(SPLIT_INT8)
    other = optimizer(network(torch.bfloat16), **options)
    steps(other, [0])
    before = snapshot(other)
    with pytest.raises(ValueError, match="must have master='float32', got 'split'"):
        other.load_state_dict(through_file(opt.state_dict()))
    assert equal(snapshot(other), before)


def test_codes_load_where_moments_are_whole():
    """Also into rules and dtypes that have no codes of their own."""
    opt = of_one_parameter(INT8)
    wide = WPAdamW([nn.Parameter(torch.zeros(130, dtype=torch.float64))])
    wide.load_state_dict(through_file(opt.state_dict()))
    (state,) = wide.state.values()
    form = OF_MOMENTS["int8"][0]
    (own,) = opt.state.values()
    numbers = form.load([own["exp_avg"], own["exp_avg_scale"]], torch.float32)
    assert equal(state["exp_avg"], numbers.double())
    with pytest.raises(ValueError, match="rule"):
        WPMuon([nn.Parameter(torch.zeros(130, 1))]).load_state_dict(opt.state_dict())
