"""What its control groups leave a process of the machine: Linux's quotas, as containers have them.

The strictest counts, of the group that the process is in and those around it, as version 2 or 1 of
control groups has it. `root` is where the system's files lie.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cores(root: Path = ROOT) -> float:
    """How many of the CPU's cores, which need not be whole; inf for all."""

    def quota(folder: Path) -> float:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            time, period = (folder / "cpu.max").read_bytes().split()
            return int(time) / int(period)
        with contextlib.suppress(OSError, ValueError):
            time, period = ((folder / f"cpu.cfs_{x}_us").read_bytes() for x in ("quota", "period"))
            return int(time) / int(period) if int(time) > 0 else math.inf
        return math.inf

    return min(map(quota, _groups("cpu", root)), default=math.inf)


def memory(root: Path = ROOT) -> float:
    """How many bytes of memory; inf for all."""

    def quota(file: Path) -> float:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            return int(file.read_bytes())
        return math.inf

    names = "memory.max", "memory.limit_in_bytes"
    files = (folder / name for folder in _groups("memory", root) for name in names)
    return min(map(quota, files), default=math.inf)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's group, and of those around it, the outermost first."""
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):  # version 2 names none
            folder = root / "sys/fs/cgroup" / (controllers and controller)
            # A container sees its own group in place of the outermost one.
            for name in ("", *path.strip("/").split("/")):
                yield (folder := folder / name)
