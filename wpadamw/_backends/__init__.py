"""The backends, the choice between them, and the report of why one is missing."""

from __future__ import annotations

from typing import cast

from wpadamw._backends import cpp, cuda, torch, triton
from wpadamw._backends.interface import Backend

# Per type of device, in the order in which backend="auto" tries them.
_BY_DEVICE: dict[str, tuple[Backend, ...]] = {
    "cpu": (cast(Backend, cpp), cast(Backend, torch)),
    "cuda": (cast(Backend, cuda), cast(Backend, triton), cast(Backend, torch)),
}
# Other devices are served by the specification.
_ANYWHERE = (cast(Backend, torch),)

NAMES = tuple({b.NAME: None for candidates in _BY_DEVICE.values() for b in candidates})


def backends() -> dict[str, dict[str, str | None]]:
    """Report which backend serves which type of device here.

    Returns:
        For each type of device the backends in the order in which ``backend="auto"`` tries them,
        with None for one that serves this machine and otherwise the reason why it does not.

    Example:
        >>> wpadamw.backends()["cpu"]["torch"] is None
        True
    """
    return {
        device: {backend.NAME: backend.why_not(device) for backend in candidates}
        for device, candidates in _BY_DEVICE.items()
    }


def choose(name: str, device_type: str) -> Backend:
    """The backend that serves a type of device.

    Raises:
        RuntimeError: if the named backend, or for ``"auto"`` every backend, cannot.
    """
    candidates = _BY_DEVICE.get(device_type, _ANYWHERE)
    reasons = []
    for backend in candidates:
        if name not in ("auto", backend.NAME):
            continue
        reason = backend.why_not(device_type)
        if reason is None:
            return backend
        reasons.append(f"{backend.NAME}: {reason}")
    known = ", ".join(backend.NAME for backend in candidates)
    why = "; ".join(reasons) or f"backends for {device_type} tensors are {known}"
    raise RuntimeError(f"backend={name!r} cannot serve tensors on device {device_type!r} ({why})")


def check_available(name: str) -> None:
    """Raises unless ``name`` is ``"auto"`` or a backend that serves some device here.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: for a backend that is not there, with the reason.
    """
    if name == "auto":
        return
    if name not in NAMES:
        known = ", ".join(repr(known) for known in ("auto", *NAMES))
        raise ValueError(f"backend must be one of {known}, got {name!r}")
    reasons = [report[name] for report in backends().values() if name in report]
    if None not in reasons:
        raise RuntimeError(f"backend={name!r} cannot run here: {reasons[0]}")
