"""What is needed of torch that has no public name, or differs between the versions supported."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import CodeType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

# Files under these are no caller whose line a warning should show.
_LIBRARIES = tuple(os.path.dirname(str(file)) for file in (__file__, torch.__file__))

Function = TypeVar("Function", bound=Callable[..., Any])


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Has a function called when the running backward pass has ended without an error."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def check_capture(groups: Sequence[dict[str, Any]]) -> None:
    """Raises RuntimeError where a CUDA graph records a step that it could not repeat."""
    has_started = torch.cuda._initialized  # the function takes ten times as long
    if has_started and is_capturing() and not all(group["capturable"] for group in groups):
        raise RuntimeError("a step in a CUDA graph needs capturable=True, got False in a group")


def clear_autocast_cache() -> None:
    """Has autocast forget the copies of weights that it made in the present region."""
    torch.clear_autocast_cache()


def is_capturing() -> bool:
    """Whether a CUDA graph records what is launched."""
    # Asked in every step: the function torch.cuda.is_initialized takes ten times as long.
    return torch.cuda._initialized and torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> int:
    """The address of a CUDA device's current stream; 0 for devices without streams."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def device_guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device the current one, for launches and allocations."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_no_transform(what: str) -> None:
    """Raises RuntimeError inside `torch.func` transforms, whose tensors have no memory to write."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{what} writes parameters in place, got a call inside a torch.func transform: "
            "call it before or after"
        )


def disable_dynamo(function: Function) -> Function:
    """Keeps torch.compile from tracing into a function and into what it calls.

    The function stays as it is and costs nothing more: Dynamo is told about its code instead. (The
    public way wraps it, and imports Dynamo when it is called.)
    """
    inner: Callable[..., Any] = inspect.unwrap(function)
    if not _run_eagerly(inner.__code__, with_callees=True):
        return cast(Function, torch._disable_dynamo(function))  # type: ignore[attr-defined]
    for each in (function, inner):
        vars(each).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="may write weights")
    return function


def run_outside_graphs(function: Function) -> Function:
    """Has a function run as Python where torch.compile begins with it; what it calls is traced.

    Called by code that is traced it is traced itself.
    """
    _run_eagerly(function.__code__, with_callees=False)
    return function


def _run_eagerly(code: CodeType, with_callees: bool) -> bool:
    """False where this torch has no way to say so."""
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
        strategy = frames._FrameExecStrategy(skip, skip if with_callees else default)
        frames.set_code_exec_strategy(code, strategy)
        return True
    if hasattr(frames, "skip_code") and not with_callees:  # before torch 2.7
        frames.skip_code(code)
        return True
    return False


def forget_gathered() -> None:
    """Has modules of `fully_shard` gather weights anew: they may hold those of another mode."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    states = sys.modules.get("torch.distributed._composable_state")
    if kind is None or is_in_backward():
        return
    for module in list(getattr(states, "_module_state_mapping", ())):
        if isinstance(module, kind):
            module.reshard()


def fsdp_states(model: torch.nn.Module) -> list[Any]:
    """What torch knows of each call of `fully_shard` in a model: its ``FSDPState``."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    states = [m._get_fsdp_state() for m in model.modules() if isinstance(m, kind)]
    return list(dict.fromkeys(states))


def fsdp_groups(state: Any) -> list[Any]:
    """The parameters of a call of `fully_shard`, as they are gathered: ``FSDPParamGroup``."""
    groups = getattr(state, "_fsdp_param_groups", None)  # before torch 2.12 there is one
    found = [state._fsdp_param_group] if groups is None else groups
    return [group for group in found if group is not None]


def forget(group: Any) -> None:
    """Drops what a group has gathered, or is gathering, also after a forward that has failed."""
    if group._all_gather_result is not None:
        group.wait_for_unshard()
    group._to_sharded()


def watch_forwards(state: Any, before: Callable[[], None], after: Callable[[Any], None]) -> None:
    """Has FSDP call a function before a forward of its own, and one with what forwards return.

    Its forwards are also methods that `register_fsdp_forward_method` was told of.
    """
    kind = type(state)

    def enter(*args: Any) -> Any:
        if state._state_ctx.iter_forward_root is None:  # no part of another one's forward
            before()
        return kind._root_pre_forward(state, *args)

    def leave(output: Any) -> Any:
        after(output)
        return kind._register_pre_backward_hook(state, output)

    vars(state).update(_root_pre_forward=enter, _register_pre_backward_hook=leave)


def unwatch_forwards(state: Any) -> None:
    """Undoes the same."""
    for name in ("_root_pre_forward", "_register_pre_backward_hook"):
        vars(state).pop(name, None)


def backward_pass() -> int:
    """A number of the backward pass that this thread runs; -1 for none."""
    return torch._C._current_graph_task_id()


def is_in_backward() -> bool:
    """Whether this thread runs a backward pass."""
    return backward_pass() != -1


def is_in_transform() -> bool:
    """Whether this thread runs a function under a transform of `torch.func`."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def hook_accumulation(param: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Has a function called with a parameter whenever it has got its gradient."""
    register: Any = param.register_post_accumulate_grad_hook  # has no types
    return cast(RemovableHandle, register(hook))


def accumulation_hooks(param: Tensor) -> list[Any]:
    """What is called then."""
    return list((param._post_accumulate_grad_hooks or {}).values())


def has_saved_tensor_hooks() -> bool:
    """Whether what autograd saves is packed just now (save_on_cpu, checkpoints), if known."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return ask is not None and ask(True) is not None


def increment_version(tensors: Sequence[Tensor]) -> None:
    """Tells autograd that kernels wrote to the tensors."""
    try:
        torch._C._increment_version(tensors)  # what torch.autograd.graph.increment_version calls
    except (AttributeError, TypeError, RuntimeError):  # before torch 2.6 it takes one tensor
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)


def outside_inference_mode(function: Function) -> Function:
    """Has a function work on ordinary tensors where the caller is in `torch.inference_mode`.

    State that came into being there could not be updated elsewhere.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    wrapper: Any = run
    _run_eagerly(wrapper.__code__, with_callees=True)  # nothing here is for graphs
    return cast(Function, wrapper)


def needs_profiled_step(optimizer: Optimizer) -> bool:
    """Whether a profiler runs or step hooks are registered."""
    return bool(
        torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def taken_by(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that a function of torch has in this version."""
    known = _parameters(getattr(function, "__func__", function))
    return {name: value for name, value in arguments.items() if name in known}


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def to_complex(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype of pairs of a real one."""
    return {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype]


def total_norm(grads: Sequence[Tensor], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """The norm of all gradients as one vector, also of sharded ones."""
    if hasattr(torch.nn.utils, "get_total_norm"):
        norm = torch.nn.utils.get_total_norm(grads, norm_type, error_if_nonfinite)
    else:  # before torch 2.6
        norms = [torch.linalg.vector_norm(grad, norm_type) for grad in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the norm of order {norm_type} of the gradients is non-finite")
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def warn_caller(text: str) -> None:
    """Warns at the line of the user's code that led here (Python 3.12 has an argument for it)."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
