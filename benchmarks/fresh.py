"""Figures that need a process of their own, because they are about its start or its peak memory.

`python -m benchmarks.fresh FIGURE` measures one and prints the number. Nothing is imported before it is needed: imports
are part of what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def in_fresh_process(figure: str, **environment: str) -> float:
    """Measure one of FIGURES in a new interpreter, with the memory allocator's own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "benchmarks.fresh", figure]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def import_milliseconds() -> float:
    start = time.perf_counter()
    import cvops  # noqa: F401

    return 1e3 * (time.perf_counter() - start)


def first_call_milliseconds() -> float:
    """The first call of a process, in which Numba is imported and the kernels are compiled or loaded."""
    import cvops
    from tests.data import clustered

    boxes, scores, _ = clustered(10)
    start = time.perf_counter()
    cvops.nms(boxes, scores, 0.5)
    return 1e3 * (time.perf_counter() - start)


def peak_megabytes() -> float:
    """Peak of the memory that one nms of a million boxes takes, above the inputs. Linux only."""
    import ctypes

    import cvops
    from tests.data import clustered

    cvops.nms(*clustered(100_000)[:2], 0.5)  # kernels and threads are there already
    boxes, scores, _ = clustered(1_000_000)
    ctypes.CDLL(None).malloc_trim(0)  # else the call would use what making the inputs has freed, and seem to take less
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present
    before = _kilobytes("VmRSS")
    cvops.nms(boxes, scores, 0.5)
    return (_kilobytes("VmHWM") - before) / 1e3


def peak_megabytes_of_roi_align() -> float:
    """Peak of the memory that one roi_align of the largest map takes, above the inputs and the result. Linux only."""
    import ctypes

    import cvops
    from tests.data import CASES

    maps, boxes, case = CASES[0].maps(), CASES[0].boxes(), CASES[0]
    cvops.roi_align(maps, boxes[:8], case.bins, case.scale, case.samples)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    pooled = cvops.roi_align(maps, boxes, case.bins, case.scale, case.samples)
    return (_kilobytes("VmHWM") - before) / 1e3 - float(pooled.nbytes) / 1e6


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


FIGURES = {
    "import": import_milliseconds,
    "first call": first_call_milliseconds,
    "peak": peak_megabytes,
    "peak of roi_align": peak_megabytes_of_roi_align,
}

if __name__ == "__main__":
    print(FIGURES[sys.argv[1]]())
