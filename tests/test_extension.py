"""The extension called directly: what can be checked without reading memory is refused by name."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from extension_bad_calls import BAD_CPU, BAD_CUDA, NARROW, NO_WEIGHTS, OF_ANOTHER_TYPE
from extension_calls import CpuCalls, CudaCalls, int32s
from helpers import needs_cpp

pytestmark = needs_cpp

FUZZ = Path(__file__).with_name("extension_fuzz.py")
TYPES = "incompatible (function|constructor) arguments"


@pytest.fixture(scope="module")
def extension():
    return importlib.import_module("wpadamw._C")


def flattened(table):
    return [
        pytest.param(call, *entry, id=f"{call}-{i}-{entry[0]}")
        for call, entries in table.items()
        for i, entry in enumerate(entries)
    ]


def check_refusal(make_calls, call, name, value, error, message):
    """Refused; then memory is as it was, and the bucket does what an untouched one does."""
    calls, untouched = make_calls(), make_calls()
    before = calls.memory.content()
    with pytest.raises(error, match=message):
        calls.call(call, **{name: value(calls) if callable(value) else value})
    assert calls.memory.content() == before
    calls.use()
    untouched.use()
    assert calls.numbers() == untouched.numbers() != before


@pytest.mark.parametrize("call, name, value, message", flattened(BAD_CPU))
def test_bad_arguments_are_refused_by_name(call, name, value, message, extension):
    make = lambda: CpuCalls(extension)  # noqa: E731
    check_refusal(make, call, name, value, ValueError, re.escape(message))


@pytest.mark.parametrize("call, name, value, message", flattened(BAD_CUDA))
def test_bad_arguments_of_cuda_are_refused_by_name(
    call, name, value, message, cuda_extension_on_host
):
    make = lambda: CudaCalls(cuda_extension_on_host)  # noqa: E731
    check_refusal(make, call, name, value, ValueError, re.escape(message))


@pytest.mark.parametrize("call, name, value", flattened(OF_ANOTHER_TYPE))
def test_arguments_of_another_type_are_refused(call, name, value, extension):
    check_refusal(lambda: CpuCalls(extension), call, name, value, TypeError, TYPES)


@pytest.mark.parametrize("name, value, message", NARROW)
def test_narrow_parameters_need_weights_and_their_own_alignment(name, value, message, extension):
    make = lambda: CpuCalls(extension, "bfloat16")  # noqa: E731
    check_refusal(make, "Bucket", name, value, ValueError, re.escape(message))


def test_narrow_parameters_need_weights_on_cuda(cuda_extension_on_host):
    make = lambda: CudaCalls(cuda_extension_on_host, "bfloat16")  # noqa: E731
    check_refusal(make, "Bucket", "has_weights", False, ValueError, NO_WEIGHTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_weights_must_be_aligned_for_the_dtype_of_the_state(dtype, extension):
    size = 8 if dtype == "float64" else 4
    misaligned = lambda calls: [*calls.weights[:2], calls.weights[2] + size // 2]  # noqa: E731
    make = lambda: CpuCalls(extension, dtype)  # noqa: E731
    message = rf"weights\[2\] must be a multiple of {size}, got"
    check_refusal(make, "Bucket", "weights", misaligned, ValueError, message)


@pytest.mark.parametrize("has_weights", [True, False], ids=["apart", "none-apart"])
def test_tensors_without_elements_need_no_address(has_weights, extension, cuda_extension_on_host):
    calls = CpuCalls(extension, "bfloat16")
    nothing = {"weights": [0] * 3 if has_weights else [], "state": [0, 0]}
    calls.bucket = calls.call("Bucket", **nothing, params=[0] * 3, numels=[0] * 3)
    calls.call("set_grads", grads=[0] * 3)
    calls.use()
    cuda = CudaCalls(cuda_extension_on_host, "bfloat16")
    nothing = {"chunks": 0, "num_chunks": 0, "num_tensors": 0, "grads": 0, "state": [0, 0]}
    cuda.bucket = cuda.call("Bucket", **nothing, has_weights=has_weights)
    cuda.call("run_row")
    cuda.call("run_rows", scalars=0, index=0)
    cuda.sums_bucket = cuda.call("Bucket", **cuda.of_sums, chunks=0, num_chunks=0, num_tensors=0)
    cuda.call("sums", scalars=0, index=0, partial=0, out=0)
    cuda.call(
        "advance", num_tensors=0, steps=0, predictions=0, hyper=0, shares=0, has_grad=0, sums=0
    )


# Rules.


def test_rules_tell_their_names(extension):
    rules = extension.rules()
    assert {"adamw", "amsgrad", "sgd", "squares"} <= set(rules)
    assert rules["adamw"] == rules["amsgrad"] | {"state": ["exp_avg", "exp_avg_sq"]}
    assert rules["squares"] == {
        **{"state": [], "hyper": [], "step": [], "look": []},
        **{"num_terms": 1, "can_recover": False},
    }


@pytest.mark.parametrize("kind", [CpuCalls, CudaCalls])
def test_what_a_rule_has_not_is_refused_by_name(kind, cuda_extension_on_host):
    calls = kind(cuda_extension_on_host)
    run = "run" if kind is CpuCalls else "run_row"
    with pytest.raises(ValueError, match="rule must be one that moves weights, got squares"):
        getattr(calls.sums_bucket, run)(**calls.good[run])
    with pytest.raises(ValueError, match="rule must be one with terms to sum, got adamw"):
        calls.bucket.sums(**calls.good["sums"])
    blend = {"rule": "blend", "state": calls.state[:1]}
    message = "rule must be one that recovers weights where there are none apart, got blend"
    with pytest.raises(ValueError, match=message):
        calls.call("Bucket", **blend, **calls.none_apart)
    calls.call("Bucket", **blend)


def test_a_prediction_that_moves_nothing_leaves_parameters_alone(extension):
    calls = CpuCalls(extension)
    index = calls.memory.add("index of a prediction", int32s(-1, -1, 0, -1, -1, -1))
    before = calls.memory.content()
    calls.call("run", operation=extension.Operation.predict, index=index)
    changed = {name for name, value in calls.memory.content().items() if value != before[name]}
    assert changed == {"params[2]"}


# Gradients.


@pytest.mark.parametrize("grad_dtype, size", [("bfloat16", 2), ("float32", 4)])
def test_gradients_must_be_aligned_for_the_dtype_with_which_they_run(grad_dtype, size, extension):
    calls = CpuCalls(extension, "bfloat16")
    before = calls.memory.content()
    address = calls.grads[2] + size // 2
    calls.call("set_grads", grads=[*calls.grads[:2], address])
    with pytest.raises(
        ValueError, match=rf"grads\[2\] must be a multiple of {size}, got {address}"
    ):
        calls.call("run", grad_dtype=getattr(extension.DType, grad_dtype))
    assert calls.memory.content() == before
    calls.call("run", operation=extension.Operation.predict)  # reads none


def test_a_step_needs_gradients(extension):
    calls = CpuCalls(extension)
    calls.bucket = calls.call("Bucket")
    before = calls.memory.content()
    with pytest.raises(RuntimeError, match="set_grads must be called before a step runs"):
        calls.call("run")
    assert calls.memory.content() == before
    calls.call("run", operation=extension.Operation.restore)
    calls.call("set_grads")
    calls.call("run")


def test_a_bucket_that_runs_in_another_thread_is_left_alone(extension):
    calls = CpuCalls(extension)
    numel, size = 1 << 22, 4 << 22
    param, grad, *flat = (calls.memory.add(str(i), bytes(size)) for i in range(5))
    spans = {"params": [param], "offsets": [0], "numels": [numel]}
    calls.bucket = calls.call("Bucket", **spans, weights=flat[:1], state=flat[1:])
    calls.call("set_grads", grads=[grad])
    one_row = {"num_rows": 1, "index": 0}
    thread = threading.Thread(target=lambda: [calls.call("run", **one_row) for _ in range(20)])
    refusals = set()
    thread.start()
    while thread.is_alive():
        try:
            calls.call("set_grads", grads=[grad])
        except RuntimeError as error:
            refusals.add(str(error))
    assert refusals == {"the bucket runs in another thread"}


# Objects without a constructor.


def methods(calls):
    return [name for name in calls.good if hasattr(type(calls.bucket), name)]


@pytest.mark.parametrize("kind", [CpuCalls, CudaCalls])
def test_objects_without_init_are_refused(kind, cuda_extension_on_host):
    calls = kind(cuda_extension_on_host)
    bucket_type = type(calls.bucket)
    for unmade in (bucket_type.__new__(bucket_type), _early(bucket_type, calls), 5):
        for name in methods(calls):
            with pytest.raises(
                TypeError, match=r"__init__ must be called|self must be a Bucket, got"
            ):
                getattr(bucket_type, name)(unmade, **calls.good[name])


def _early(bucket_type, calls):
    """A subclass that calls a method before the constructor of its base."""

    class Early(bucket_type):
        def __init__(self):
            name = methods(calls)[0]
            with pytest.raises(TypeError, match="__init__ must be called before methods"):
                getattr(self, name)(**calls.good[name])

    with pytest.raises(TypeError, match="must be called when overriding __init__"):
        Early()
    return Early.__new__(Early)


@pytest.mark.parametrize("kind", [CpuCalls, CudaCalls])
def test_init_is_called_once_and_again_after_a_refusal(kind, cuda_extension_on_host):
    calls, untouched = kind(cuda_extension_on_host), kind(cuda_extension_on_host)
    with pytest.raises(TypeError, match="__init__ must be called once"):
        calls.bucket.__init__(**calls.good["Bucket"])
    bucket_type = type(calls.bucket)
    again = bucket_type.__new__(bucket_type)
    with pytest.raises(ValueError, match="rule must be a known name"):
        again.__init__(**{**calls.good["Bucket"], "rule": "lion"})
    again.__init__(**calls.good["Bucket"])
    calls.bucket = again
    if kind is CpuCalls:
        calls.call("set_grads")
    calls.use()
    untouched.use()
    assert calls.numbers() == untouched.numbers()


# Objects that are held.


def test_holds_takes_lists_of_dicts(extension):
    value = object()
    assert extension.holds([{"a": value}, {}], [value])
    with pytest.raises(TypeError, match=r"dicts\[1\] must be a dict, got list"):
        extension.holds([{"a": value}, [value]], [value, value])
    for dicts, values in [(({},), []), ([], ()), (None, []), ([], {})]:
        with pytest.raises(TypeError, match=TYPES):
            extension.holds(dicts, values)


# Random calls, in a process of their own: a crash is a failure.


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_random_bad_calls_are_refused(device, cuda_extension_on_host):
    library = cuda_extension_on_host.__file__
    if device == "cpu":
        library = importlib.util.find_spec("wpadamw._C").origin
    command = [sys.executable, "-X", "faulthandler", FUZZ, library, device, "10000"]
    done = subprocess.run(command, capture_output=True, text=True)
    last_call = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, (done.returncode, last_call, done.stderr)


def test_layouts_refuse_what_is_no_list_of_tensors(extension):
    layouts = extension.Layouts
    tensors = [torch.ones(3), torch.ones(2, 2)]
    good = layouts(torch.Tensor, tensors)
    assert good.are_of(tensors)
    assert not good.are_of(tensors[:1])
    for bad in ([1, 2], [None, None], (1,), None):
        with pytest.raises(TypeError):
            good.are_of(bad)
    with pytest.raises(ValueError, match="grads must have 2 entries, got 1"):
        good.addresses_of([None])
    with pytest.raises(AttributeError):
        layouts(int, [])
    with pytest.raises(TypeError, match="__init__ must be called"):
        layouts.__new__(layouts).are_of(tensors)
    assert good.are_of(tensors)
