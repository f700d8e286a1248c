"""On what machine the numbers were taken, and what it has: caches and free memory."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import wpadamw

from . import ROOT
from .report.markup import machine as named
from .report.markup import rounded

# A guess for systems that do not tell: more than most have, so that rotation leaves it.
UNKNOWN_CACHE_BYTES = 2**26


def facts(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device.type,
        "cpu": cpu_model(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": rounded(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "cache_mib": rounded(cache_bytes(device) / 2**20),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wpadamw": wpadamw.__version__,
        "backend": _backend(device),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _is_dirty(),
        **(_gpu_facts(device) if device.type == "cuda" else {}),
    }


def _backend(device: torch.device) -> str:
    """What backend="auto" takes; plain PyTorch serves every device."""
    backends = wpadamw.backends().get(device.type, {})
    return next((name for name, why in backends.items() if why is None), "torch")


def name(device: torch.device) -> str:
    """The GPU, or the processor and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return named({"cpu": cpu_model(), "cores": num_cores()})


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_slug(facts: dict[str, Any]) -> str:
    """The machine as the name of a directory."""
    name = facts["gpu"] if "gpu" in facts else f"{facts['cpu']} {facts['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def cpu_model() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text() if path.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name(device),
        "gpu_memory_gib": rounded(torch.cuda.mem_get_info(device)[1] / 2**30),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "driver_and_clock": _output(query),
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_dirty() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    # An installed copy may lie within a repository of somebody else.
    return _output(["git", *arguments]) if (ROOT / ".git").exists() else None


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it cannot be had."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# Its memory.


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    known = [found for found in (_available_bytes(), *_cgroup_free_bytes()) if found is not None]
    return min(known, default=None)


def _available_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    found = re.search(r"MemAvailable:\s*(\d+) kB", _text(path))
    return int(found[1]) * 1024 if found else None


def _cgroup_free_bytes(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What the limits of this process's control groups, and of those around them, leave."""
    for line in _text(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left_in(root, path, "memory.max", "memory.current")
        elif controllers == "memory":
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _left_in(root / "memory", path, *files)


def _left_in(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    # In a container the group's path may be that outside: then only the root is there.
    group = root / path.strip("/")
    for folder in (group, *itertools.takewhile(lambda p: p != root.parent, group.parents)):
        allowed, used = (_text(folder / name).strip() for name in (limit, usage))
        if allowed.isdecimal() and used.isdecimal():
            yield int(allowed) - int(used) + _reclaimable_bytes(folder)


def _reclaimable_bytes(folder: Path) -> int:
    """Files that were read count as used, until somebody needs the memory."""
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.M)
    return int(found[1]) if found else 0


def cache_bytes(device: torch.device) -> int:
    """The last level of caches before the memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return _last_level_bytes(Path("/sys/devices/system/cpu")) or UNKNOWN_CACHE_BYTES


def _last_level_bytes(cpus: Path) -> int:
    """All caches of the last level together: threads may run beside every one of them."""
    found = [
        (int(_text(cache / "level")), _text(cache / "shared_cpu_list"), size)
        for cache in cpus.glob("cpu[0-9]*/cache/index*")
        if (size := _size_bytes(_text(cache / "size").strip()))
    ]
    last = max((level for level, _, _ in found), default=0)
    return sum({shared: size for level, shared, size in found if level == last}.values())


def _size_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KM])", text)
    return int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]] if match else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
