"""Bytes that optimizers hold, and that a step takes for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROBE = "wpadamw.bench.speed.memory_probe"


def bench_memory(benchmark, scale, device):
    benchmark.group = "memory"
    rows = benchmark.pedantic(_probe, args=(scale.memory, device))
    title = f"Bytes per parameter, one tensor of {scale.memory:,} elements"
    benchmark.extra_info |= {"table": "memory", "title": title, "rows": rows}


def _probe(numel, device):
    # Without it freed blocks of up to 32 MiB stay resident and hide in the next peak.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", PROBE, str(numel), str(device)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)
