"""What every figure depends on besides the code: the machine, the versions, the memory allocator."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_name

import cvops

PACKAGES = [
    "numpy", "numba", "torch", "torchvision", "onnxruntime", "opencv-python", "opencv-python-headless", "lsnms",
    "cupy-cuda12x", "cupy-cuda13x",
]  # fmt: skip

# glibc gives large blocks back to the system when they are freed. Fresh pages can cost tens of milliseconds at random
# on a virtual machine, to whichever side comes next. With these settings it keeps what it has.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def restart_with_kept_memory() -> None:
    """Replace this process by itself with `KEEP_FREED_MEMORY` set, which glibc reads at the start only."""
    if platform.libc_ver()[0] == "glibc" and not os.environ.items() >= KEEP_FREED_MEMORY.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP_FREED_MEMORY)


def describe() -> dict[str, Any]:
    """The environment of this process, for the results file."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{_cpu_model()} ({get_host_cpu_name()})",
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "versions": {"python": platform.python_version(), "cvops": cvops.__version__} | _versions(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # peers are optional
    return versions
