"""A compiler that optimizes nothing, and that takes what it has made of the same source before.

``compile_once.py FOLDER COMPILER ARGUMENTS``: several builds, in folders and with environments of
their own, keep their objects in one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

# The compiler's last word on optimization counts.
QUICK = ("-O0", "-g0")
DAYS_KEPT = 3
# Each before a path, which other folders have otherwise.
PATHS = ("-o", "-c", "-MF", "-MT", "-isystem")
# What has done its work in the preprocessed source.
GONE = ("-I", "-D", "-fmacro-prefix-map")


def without_places(command: list[str]) -> list[str]:
    """Options for assertions, which name their file."""
    folders = [option for before, option in pairwise(command) if before == "-isystem"]
    folders += [option.removeprefix("-I") for option in command if option.startswith("-I")]
    return [f"-fmacro-prefix-map={folder}=" for folder in folders]


def key_of(command: list[str], text: bytes) -> str:
    """What an object depends on: source, options and compiler."""
    compiler = os.stat(shutil.which(command[0]) or command[0])
    options = [
        option
        for before, option in pairwise(command)
        if before not in PATHS and option not in PATHS and not option.startswith(GONE)
    ]
    facts = (compiler.st_mtime_ns, compiler.st_size, options)
    return hashlib.sha256(repr(facts).encode() + text).hexdigest()


def main(folder: Path, command: list[str]) -> None:
    """Compile, or copy."""
    command = [*command, *QUICK, *without_places(command)]
    made = Path(command[command.index("-o") + 1])
    # One text with all that is included, without its places. It also notes what is included.
    subprocess.run([*command, "-E", "-P"], check=True)
    kept = folder / f"{key_of(command, made.read_bytes())}.o"
    if kept.exists():
        shutil.copyfile(kept, made)
        kept.touch()
    else:
        subprocess.run(command, check=True)
        keep(made, kept)


def keep(made: Path, kept: Path) -> None:
    """Copy in one go, as another build may look for it now; what nobody uses goes."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as whole:
        shutil.copyfile(made, whole.name)
    os.replace(whole.name, kept)
    for old in kept.parent.glob("*.o"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > DAYS_KEPT * 24 * 3600:
                old.unlink()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)
