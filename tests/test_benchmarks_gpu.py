"""What of `python -m benchmarks gpu` runs without a GPU."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, gpu, harness
from tests.libraries import require

ROOT = Path(__file__).parents[1]


def test_it_says_what_is_missing():
    if not gpu.missing():
        pytest.skip("nothing is missing")
    command = [sys.executable, "-m", "benchmarks", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "the suite gpu needs a GPU, CuPy, torch and torchvision: " in done.stderr


@pytest.mark.parametrize(("inputs", "copies"), [(0, 4096), (1, 4096), (10_000, 4096), (10**6, 100), (10**9, 2)])
def test_copies_are_twice_as_large_as_the_cache(inputs, copies):
    assert gpu.copies_past(50 * 10**6, inputs) == copies


def test_calls_take_turns():
    call = gpu.in_turns([partial(str, i) for i in range(3)])
    assert [call() for _ in range(5)] == ["0", "1", "2", "0", "1"]


def test_a_gradient_of_each_copy():
    torch = require("torch")
    peer = gpu.gradient(lambda given: given["x"] * given["y"], ["x", "y"])
    copies = [{name: torch.tensor([value * scale]) for name, value in (("x", 2.0), ("y", 3.0), ("grad", 1.0))}
              for scale in (1, 10)]  # fmt: skip
    for _ in range(2):
        assert [gpu.to_host(peer(given)) for given in copies] == [(3, 2), (300, 200)]


def test_padded_indices_are_compared_up_to_their_number():
    check = gpu.of_padded(harness.same_indices(np.float32([3, 2, 1])))
    assert check(np.array([0, 2]), (np.array([0, 2, -1]), np.array(2))) == ""
    assert check(np.array([0, 2]), np.array([0, 2])) == ""
    with pytest.raises(harness.DisagreementError):
        check(np.array([0, 2]), (np.array([0, 2, 1]), np.array(3)))


def test_rows_are_timed_by_their_clock():
    boxes, scores, _ = data.clustered(20)
    row = harness.Row(
        table="", name="", inputs="", sides={"a": lambda: (boxes, 1), "b": lambda: (scores, 2)}, check=None,
        clock=lambda call, number: number * call()[1],
    )  # fmt: skip
    record = harness.measured(row, 3)
    assert (record["milliseconds"], record["ratios"]) == ({"a": 1000, "b": 2000}, {"b": 2})
