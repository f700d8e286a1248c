"""What a step tells of the prediction that it had its gradients from."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import BACKENDS, KINDS, NARROW, assert_same_bits, set_grad, tracked_sums, wide
from rule_table import RULES

from wpadamw import WPAdamW
from wpadamw.rules.summing import in_order, total

SHAPES = [(5000,), (33,), (40, 60), (0,), (2048,)]
FORMS = {
    "backup": {},
    "no-backup": {"backup": False},
    "literal": {"predict_in_step": False},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 2.5, "backup": False},
    "copies": {"compute_dtype": torch.float32},
}


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(wide(shape, dtype, generator)) for shape in shapes]


def give_gradients(params, seed, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        set_grad(param, wide(param.shape, dtype or param.dtype, generator))


def train(params, opt, num_steps=3):
    for step in range(num_steps):
        opt.predict()
        give_gradients(params, step)
        opt.step()


def weights_of(params, opt):
    with opt.true_weights():
        return [param.detach().clone() for param in params]


def shown(params, opt):
    """The weights that forwards see."""
    copies = opt.compute_dtype is not None
    return [(opt.compute_copy(p) if copies else p.detach()).clone() for p in params]


def measured(params, opt):
    """A step, and what it should have summed, per parameter."""
    opt.predict()
    old, expected = weights_of(params, opt), shown(params, opt)
    give_gradients(params, 9)
    opt.step()
    new = weights_of(params, opt)
    triples = list(zip(expected, new, old, strict=True))
    moves = [(p - w, w - before) for p, w, before in triples]
    return torch.stack(
        [torch.stack([total(x) for x in (e * e, d * d, e * d)]) for e, d in moves], dim=1
    )


@pytest.mark.parametrize("backend", BACKENDS)
# Without a backup true weights are computed back, to another last bit.
@pytest.mark.parametrize("form", [name for name in FORMS if "no-backup" not in name])
def test_a_step_sums_what_weights_show(form, backend, num_threads):
    params, options = parameters(), FORMS[form]
    opt = WPAdamW(params, lr=0.01, track_prediction=True, backend=backend, **options)
    train(params, opt)
    want = measured(params, opt)
    (got,) = tracked_sums(opt)
    assert_same_bits("sums", got, want)
    assert (got[:2, [0, 1, 2, 4]] > 0).all()


def kinds_and_forms():
    """Those that go together."""
    for kind, (dtype, grad_dtype) in KINDS.items():
        for form, options in FORMS.items():
            needs_way_back = not options.get("backup", True)
            may_be_copied = "compute_dtype" not in options or dtype == torch.float32
            if may_be_copied and not (needs_way_back and dtype in NARROW):
                yield pytest.param(dtype, grad_dtype, options, id=f"{kind}-{form}")


@pytest.mark.parametrize("dtype, grad_dtype, options", list(kinds_and_forms()))
@pytest.mark.parametrize("name", ["adamw", "sgd", "mars"])
def test_backends_have_the_same_sums(name, dtype, grad_dtype, options):
    case, found = RULES[name], []
    for backend in BACKENDS:
        params = parameters(dtype, [(2100,), (33,), (0,)])
        options = {**case.options, **options, "track_prediction": True}
        opt = case.make(params, lr=0.01, backend=backend, **options)
        for step in range(3):
            opt.predict()
            give_gradients(params, step, grad_dtype)
            opt.step()
        found.append((tracked_sums(opt), weights_of(params, opt)))
    for own, want in zip(*found, strict=True):
        for a, b in zip(own, want, strict=True):
            assert_same_bits("sums and weights", a, b)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_tracking_changes_no_bit_of_the_weights(options):
    found = []
    for is_tracked in (False, True):
        params = parameters()
        opt = WPAdamW(params, lr=0.01, track_prediction=is_tracked, **options)
        train(params, opt, 5)
        found.append(shown(params, opt) + weights_of(params, opt))
    for own, want in zip(*found, strict=True):
        assert_same_bits("weights", own, want)


def flat(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize("steps", [0.5, 1.0, 3.0])
def test_numbers_are_those_of_their_definitions(steps):
    params = parameters(torch.float64)
    opt = WPAdamW(params, lr=0.01, prediction_steps=steps, track_prediction=True)
    train(params, opt)
    old, expected = flat(weights_of(params, opt)), flat(shown(params, opt))
    give_gradients(params, 9)
    opt.step()
    new = flat(weights_of(params, opt))
    (stats,) = opt.prediction_stats()
    move, step = expected - old, new - old
    assert float(stats.error) == pytest.approx(float((expected - new).norm() / step.norm()))
    cosine = float(move @ step / (move.norm() * step.norm()))
    assert float(stats.cosine) == pytest.approx(cosine)
    # The least distance from the new weights on the line of the prediction.
    best = float(stats.best_steps)
    assert best == pytest.approx(steps * float(move @ step / (move @ move)))
    errors = [(old + move * (s / steps) - new).norm() for s in (best - 0.1, best, best + 0.1)]
    assert min(errors) == errors[1]


def test_each_group_has_its_own_numbers_in_the_order_of_its_parameters():
    params = parameters() + parameters(torch.bfloat16)
    groups = [{"params": params[::2]}, {"params": params[1::2], "prediction_steps": 3.0}]
    opt = WPAdamW(groups, lr=0.01, track_prediction=True)
    train(params, opt)
    stats = opt.prediction_stats()
    assert len(stats) == 2 and float(stats[0].error) != float(stats[1].error)
    parts = opt._plans.of(opt.param_groups[0]).tracked
    of = {id(p): s for part in parts for p, s in zip(part.bucket.params, part.sums.T, strict=True)}
    error, step, _ = torch.stack([of[id(p)] for p in params[::2]], dim=1)
    assert float(stats[0].error) == math.sqrt(float(in_order(error) / in_order(step)))


def test_without_a_prediction_the_error_is_a_whole_step():
    params = parameters()
    opt = WPAdamW(params, lr=0.01, track_prediction=True)
    give_gradients(params, 0)
    opt.step()
    (stats,) = opt.prediction_stats()
    assert float(stats.error) == 1.0
    assert math.isnan(float(stats.cosine))
    opt.eval()  # gradients of true weights
    give_gradients(params, 1)
    opt.step()
    assert float(opt.prediction_stats()[0].error) == 1.0


def test_a_closure_is_called_at_predicted_weights():
    params = parameters()
    opt = WPAdamW(params, lr=0.01, predict_in_step=False, track_prediction=True)
    for step in range(3):
        opt.step(lambda step=step: give_gradients(params, step))
    assert float(opt.prediction_stats()[0].error) != 1.0


def test_parameters_without_a_gradient_do_not_count():
    params = parameters()
    opt = WPAdamW(params, lr=0.01, track_prediction=True)
    train(params, opt)
    give_gradients(params[:1], 5)
    for param in params[1:]:
        param.grad = None
    opt.step()
    (sums,) = tracked_sums(opt)
    assert (sums[:, 1:] == 0).all() and (sums[:2, 0] > 0).all()


def test_it_may_be_switched_on_and_off():
    params = parameters()
    opt = WPAdamW(params, lr=0.01)
    train(params, opt)
    with pytest.raises(RuntimeError, match=r"needs track_prediction=True, got False in param_gr"):
        opt.prediction_stats()
    opt.param_groups[0]["track_prediction"] = True
    with pytest.raises(RuntimeError, match=r"needs a step, param_groups\[0\] had none"):
        opt.prediction_stats()
    train(params, opt, 1)
    assert float(opt.prediction_stats()[0].error) > 0


def test_a_void_step_on_a_device_leaves_the_numbers_of_the_former_one():
    """As where the host does not know: the flag reaches the kernels' call."""
    from wpadamw.tracking import Tracked, unless_void

    bucket = object()
    former, found = ([Tracked(bucket, torch.full((3, 2), x))] for x in (1.0, 2.0))
    for flag, want in ((0.0, 2.0), (1.0, 1.0)):
        (kept,) = unless_void(found, former, torch.tensor(flag))
        assert (kept.sums == want).all()


@pytest.mark.parametrize("value", ["yes", 2, None])
def test_bad_input_is_refused(value):
    with pytest.raises(ValueError, match="track_prediction must be one of"):
        WPAdamW(parameters(), track_prediction=value)
