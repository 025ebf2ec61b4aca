"""No operator reads outside its inputs: a page before or behind them faults when it is touched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import cvops
from tests.strategies import few

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pages are protected by mprotect")

# What takes no array, or is an operator with its options, or changes a process.
OTHERS = {
    "LastLevelMaxPool", "LastLevelP6P7", "PSRoIAlign", "PSRoIPool", "RoIAlign", "RoIPool", "get_num_threads",
    "set_num_threads", "warmup",
}  # fmt: skip


def run(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", few(["float32", "float64", "float16"], 3))
def test_every_operator(dtype):
    result = run("-X", "faulthandler", "-m", "tests.guarded", dtype)
    called = result.stdout.splitlines()
    assert result.returncode == 0, f"after {called[-1:]}: {result.stderr}"
    public = {name for name in cvops.__all__ if callable(getattr(cvops, name))} - OTHERS
    assert {line.split()[0] for line in called} == public


@pytest.mark.parametrize(("side", "index"), [("before the input", -1), ("behind the input", 5)])
def test_the_pages_are_guarded(side, index):
    """What the test above relies on: one element further is a fault."""
    code = (
        "import ctypes, numpy as np; from tests.guarded import guarded;"
        f"array = guarded(np.arange(5.0), {side!r}); assert (array == np.arange(5)).all(); print('alive', flush=True);"
        f"ctypes.c_double.from_address(array.ctypes.data + {8 * index}).value"
    )
    result = run("-c", code)
    assert result.stdout == "alive\n"
    assert result.returncode < 0


def test_the_inputs_cannot_be_written():
    code = (
        "import ctypes, numpy as np; from tests.guarded import guarded;"
        "array = guarded(np.arange(5.0), 'behind the input'); print('alive', flush=True);"
        "ctypes.memset(array.ctypes.data, 0, 1)"
    )
    result = run("-c", code)
    assert result.stdout == "alive\n"
    assert result.returncode < 0
