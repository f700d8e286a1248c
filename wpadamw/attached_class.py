"""The class of an attached module: what it does in calls, mode calls, savings and copies.

Forward hooks would cost microseconds per call, and TorchScript would compile them. So an attached
module gets a subclass of its class, as with torch's parametrizations and ``fully_shard``. Which
optimizers it follows stands in an attribute of the object.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import sys
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import fx, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils import parametrize

from wpadamw.clients import is_averager
from wpadamw.compat import disable_dynamo, run_outside_graphs
from wpadamw.follow import Follower
from wpadamw.join import JoinHook
from wpadamw.links import LINKS, Link, Links, links_of

# Of such a subclass: the class below it, and whether it is one for whole models.
KEY = "_wpadamw_key"


# What an attached module does in a call.


@run_outside_graphs
def _call(call: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
    """A call that may have to move weights before."""
    links, followers = module._wpadamw_links, _enter(module)
    links.has_entered = True
    try:
        outputs = call(module, *args, **kwargs)
    finally:
        links.has_entered = False
        for follower in followers:
            follower.under_way.pop()
    for follower in followers:
        follower.watch(outputs)
    return outputs


@disable_dynamo
def _enter(module: Any) -> list[Follower]:
    """Settles the optimizers that follow this call."""
    followers = []
    for link in getattr(module, LINKS):
        if link.is_of(module):
            if link.follower.is_due(link.is_root):
                link.follower.settle()
                followers.append(link.follower)
        elif link.is_root and getattr(module, "_is_replica", False):
            link.follower.check_replica()
    for follower in followers:
        follower.under_way.append(follower)
    return followers


def _settle_without_call(module: Any) -> None:
    """Before ``forward`` itself; after ``__call__``, and in graphs, there is nothing to do."""
    if not is_dynamo_compiling():
        for link in module._wpadamw_links:
            if link.is_of(module) and not link.follower.under_way:
                link.follower.settle()


def _settle_in_graph(module: Any) -> None:
    """In code that is traced: nothing but guards, unless there is something to do."""
    for link in getattr(module, LINKS):
        if not link.follower.is_settled():
            _break_graph(link.follower)


@disable_dynamo
def _break_graph(follower: Follower) -> None:
    follower.settle()


# What torch.compile(fullgraph=True) says.
_break_graph._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "the forward needs other weights: call opt.train() or opt.eval() before"
)


def _follow_mode(module: Any) -> None:
    """After ``train`` or ``eval``: true weights at once, predicted ones when a forward comes."""
    for link in getattr(module, LINKS):
        follower = link.follower
        if link.is_root and not is_dynamo_compiling():
            follower.follow_parts()
        is_wanted = follower.under_way or not module.training
        if link.is_root and link.is_of(module) and is_wanted and not follower.is_settled():
            follower.settle_if_due()


@disable_dynamo
def _restore(module: Any) -> None:
    """Before somebody reads a module's parameters."""
    for link in getattr(module, LINKS):
        if link.is_of(module):
            if link.is_root:
                link.follower.follow_parts()
            link.follower.show_true()


def _restore_between_forwards(module: Any) -> None:
    if not any(link.follower.under_way for link in getattr(module, LINKS)):
        _restore(module)


# The class of an attached module.


class _Quiet:
    """Keeps a user's ``__init_subclass__`` from being told of our subclasses."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def _attached_class(plain: type[nn.Module], for_root: bool) -> type[nn.Module]:
    """The subclass of a module class that follows."""
    for known in type.__subclasses__(plain):
        if vars(known).get(KEY) == (plain, for_root):
            return known
    members = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        KEY: (plain, for_root),
        LINKS: (),
        **{member.__name__: member for member in _members(plain)},
    }
    if for_root:
        # What reading the parameters of a wrapper comes to, DistributedDataParallel for one.
        members["named_modules"] = _reader(plain, "named_modules")
        members["_call_impl"] = _call_impl(plain)
        if isinstance(forward := inspect.getattr_static(plain, "forward", None), FunctionType):
            members["forward"] = _own_forward(plain, forward)
    own: type[nn.Module] = type(plain)(plain.__name__, (_Quiet, plain), members)  # type: ignore[misc]
    return own


def _members(plain: type[nn.Module]) -> list[Callable[..., Any]]:
    # Looked up in the plain class at each call: fx, for one, replaces nn.Module.__call__ at times.

    @run_outside_graphs
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            _settle_in_graph(self)
            return plain.__call__(self, *args, **kwargs)
        links = self._wpadamw_links
        if not links or links.forwards:
            return plain.__call__(self, *args, **kwargs)
        return _call(plain.__call__, self, args, kwargs)

    def train(self: Any, mode: bool = True) -> Any:
        result = plain.train(self, mode)
        _follow_mode(self)
        return result

    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        _restore(self)
        return plain.state_dict(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        _restore_between_forwards(self)
        return _without_attachment(type(self), plain, plain.__reduce_ex__(self, protocol))

    def join_hook(self: Any, **kwargs: Any) -> Any:
        hook = plain.join_hook(self, **kwargs)  # type: ignore[attr-defined]
        return JoinHook(hook, self, [link.follower.optimizer for link in getattr(self, LINKS)])

    readers = [_reader(plain, name) for name in ("parameters", "named_parameters")]
    own: list[Callable[..., Any]] = [__call__, train, state_dict, __reduce_ex__]
    return [*own, *readers, *([join_hook] if hasattr(plain, "join_hook") else [])]


def _without_attachment(own: type, plain: type, reduced: Any) -> Any:
    """What pickle and copy shall make of a module: one of the plain class."""
    if isinstance(reduced, str) or KEY not in vars(own):
        return reduced
    make, args, *rest = reduced
    if rest and isinstance(rest[0], dict):
        rest[0] = {key: value for key, value in rest[0].items() if key != LINKS}
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]
        # Pickle insists that it makes an object of the same class.
        return (copyreg._reconstructor, (plain, object, None), *rest)  # type: ignore[attr-defined]
    args = tuple(plain if arg is own else arg for arg in args)
    return (plain if make is own else make, args, *rest)


def _reader(plain: type[nn.Module], name: str) -> Callable[..., Any]:
    """A method that leads to the parameters: averages read true weights."""

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling() and is_averager(sys._getframe(1)):
            _restore_between_forwards(self)
        return getattr(plain, name)(self, *args, **kwargs)

    read.__name__ = name
    return read


def _call_impl(plain: type[nn.Module]) -> Callable[..., Any]:
    """The second half of ``__call__``. What was compiled before attach comes here only."""

    @run_outside_graphs
    def _call_impl(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            _settle_in_graph(self)
        elif (links := self._wpadamw_links) and not links.has_entered:
            return _call(plain._call_impl, self, args, kwargs)
        elif links:
            links.has_entered = False
        return plain._call_impl(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    return _call_impl


def _own_forward(plain: type[nn.Module], theirs: FunctionType) -> Callable[..., Any]:
    """A class's ``forward``, which may be called directly, in a file that is not torch's.

    torch.compile begins with the first function outside torch. For a model that is a class of
    torch's that would be the caller of the model, and our code would have to be in the graph.
    """
    settle = _settle_without_call

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        settle(self)
        return plain.forward(self, *args, **kwargs)

    # TorchScript compiles the wrapped source, with these globals.
    code, known = forward.__code__, theirs.__globals__
    own: Any = FunctionType(code, known, "forward", None, forward.__closure__)
    own.__signature__ = inspect.signature(theirs)  # Trainers choose columns of the data by it
    return functools.wraps(theirs)(own)


def change_class(module: nn.Module, is_root: bool) -> None:
    """Gives a module a class that follows its links."""
    own = type(module)
    if parametrize.is_parametrized(module) or isinstance(module, fx.GraphModule):
        # Each such module has a class of its own, which torch changes at will: go below it.
        if not issubclass(own, _Quiet):
            plain = own.__bases__[0]
            own.__bases__ = (_attached_class(plain, is_root),)
        return
    plain, was_root = vars(own).get(KEY, (own, False))
    if own is plain and issubclass(own, _Quiet):
        return  # others have changed the class of an attached module
    module.__class__ = _attached_class(plain, was_root or is_root)


def make_link(module: nn.Module, follower: Follower, is_root: bool) -> None:
    """Has a module tell a follower of its calls."""
    if not any(link.follower is follower for link in links_of(module)):
        change_class(module, is_root)
        link = Link(weakref.ref(module), follower, is_root)
        vars(module)[LINKS] = Links((*links_of(module), link))
        follower.linked.append(link.module)


def remove_links(follower: Follower) -> None:
    """Has a model follow no more."""
    for reference in follower.linked:
        if (module := reference()) is not None:
            _remove_link(module, follower)
    follower.linked.clear()
    follower.clients.followers.discard(follower)


def _remove_link(module: nn.Module, follower: Follower) -> None:
    """Has a module follow no more, and takes its class back."""
    links = [link for link in links_of(module) if link.follower is not follower]
    vars(module)[LINKS] = Links(links)
    if not links:
        del vars(module)[LINKS]
        if KEY in vars(type(module)):  # else others have changed it since: stays, idle
            module.__class__ = vars(type(module))[KEY][0]
