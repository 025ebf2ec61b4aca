"""What every figure depends on besides the code: the machine, the versions, the memory allocator."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

import cvops

PACKAGES = [
    "numpy", "numba", "torch", "torchvision", "onnxruntime", "openvino", "opencv-python", "opencv-python-headless",
    "powerboxes", "lsnms", "ensemble-boxes", "sahi",
    "cupy-cuda12x", "cupy-cuda13x",
]  # fmt: skip

# glibc gives large blocks back to the system when they are freed. Fresh pages can cost tens of milliseconds at random
# on a virtual machine, to whichever side comes next. With these settings it keeps what it has.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


# Names of instructions beyond AVX2, as LLVM's and NumPy's begin.
BEYOND_AVX2 = ("avx512", "avx10", "evex", "amx", "x86_v4")


def restart(avx2: bool) -> None:
    """Replace this process by itself with `KEEP_FREED_MEMORY` and for AVX2 set, which are read at the start only."""
    wanted = KEEP_FREED_MEMORY if platform.libc_ver()[0] == "glibc" else {}
    if avx2 and has_beyond_avx2():
        if "NUMBA_CPU_NAME" in os.environ:
            sys.exit("NumPy or Numba computes with AVX-512 although it was told not to")
        wanted = wanted | for_avx2()
    if not os.environ.items() >= wanted.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def for_avx2() -> dict[str, str]:
    """Variables that have Numba and NumPy do without what is beyond AVX2.

    The name of a processor alone changes nothing: Numba adds the features of this one. NumPy's names differ by version,
    and it ignores those that it does not know, so they are what it says that it has found.
    """
    features = {name: on and not name.startswith(BEYOND_AVX2) for name, on in get_host_cpu_features().items()}
    return {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(f"{'+' if on else '-'}{name}" for name, on in features.items()),
        "NPY_DISABLE_CPU_FEATURES": " ".join(_found_beyond_avx2()),
    }


def has_beyond_avx2() -> bool:
    """Whether Numba or NumPy uses instructions beyond AVX2 in this process."""
    given = numba.config.CPU_FEATURES
    features = get_host_cpu_features().flatten() if given is None else given
    return bool(_found_beyond_avx2()) or any(f"+{name}" in features for name in BEYOND_AVX2)


def _found_beyond_avx2() -> list[str]:
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return [name for name in found if name.lower().startswith(BEYOND_AVX2)]


def describe() -> dict[str, Any]:
    """The environment of this process, for the results file."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{_cpu_model()} ({get_host_cpu_name()})",
        "target": "all that it has" if has_beyond_avx2() else "AVX2",
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
