"""The report of `python -m cvops info`: what runs here, and what is missing to run more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

# OpenBLAS takes processors that it does not know for a Haswell. Forced kernels kill the process where the processor
# lacks their instructions, so this is said only where it has them.
_BLAS_ADVICE = "; OPENBLAS_CORETYPE=SapphireRapids makes NumPy's matrix products faster here (cvops uses none of them)"


def lines() -> dict[str, str]:
    """The lines of the report: name -> text."""
    from . import __version__
    from ._cpu import _jit, _threads

    report = {
        "cvops": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "cpu": _processor(),
        "numpy": _version("numpy"),
        "numba": f"{_version('numba')}, llvmlite {_version('llvmlite')}",
        "threads": f"{_threads.get_num_threads()} (CVOPS_NUM_THREADS or cvops.set_num_threads)",
        "blas": _blas(),
        "cache": _jit.cache_folder() or "none: set NUMBA_CACHE_DIR to a folder that can be written to",
        "cpu backend": "ready",
        "cuda backend": _cuda(),
    }
    for library in ("torch", "jax", "cupy", "array-api-strict"):
        report[library] = _version(library)
    return report


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} processors"


def _blas() -> str:
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    text = f"{blas['name']} {blas['version']}"
    if importlib.util.find_spec("threadpoolctl"):
        import threadpoolctl

        pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        if pools:
            kernels = pools[0].get("architecture", "unknown")
            advice = _BLAS_ADVICE if kernels == "Haswell" and _has_avx512() else ""
            return f"{text}, {pools[0]['num_threads']} threads, {kernels} kernels{advice}"
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    threads = next((f"{name}={os.environ[name]}" for name in variables if name in os.environ), "its default")
    return f"{text}, threads: {threads} (install threadpoolctl to see the number)"


def _has_avx512() -> bool:
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl", "avx512dq"))


def _cuda() -> str:
    try:
        from cvops_cuda import xp as cupy
    except ImportError as error:
        return str(error)
    try:
        names = [
            cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
            for number in range(cupy.cuda.runtime.getDeviceCount())
        ]
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy {cupy.__version__}, no usable GPU: {error}"
    return f"ready: CuPy {cupy.__version__}, {', '.join(names)}"


def print_report() -> None:
    """Print what `lines` says, aligned."""
    report = lines()
    width = max(map(len, report))
    for name, text in report.items():
        print(f"{name:<{width}}  {text}")
