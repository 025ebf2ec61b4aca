"""How benchmarks are measured and written down, on this machine's CPU."""

from __future__ import annotations

import ast
import graphlib
import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__, harness, markdown

FOLDER = Path(harness.__file__).parent


def row(**sides):
    return harness.Row(table="table", name="name", inputs="", sides=sides, check=None)


def test_times_are_lower_quartiles():
    assert harness.lower_quartile([5.0, 1.0, 4.0, 2.0, 3.0]) == 2
    assert harness.lower_quartile([7.0]) == 7
    assert harness.in_milliseconds({"a": 2.0, "b": 3.0}, "a") == {
        "milliseconds": {"a": 2000, "b": 3000}, "ratios": {"b": 1.5}
    }  # fmt: skip


def test_sides_take_turns():
    called = []
    clock = lambda call, number: call() or 1.0  # noqa: E731
    sides = {name: (lambda name=name: called.append(name)) for name in "abc"}
    times = harness.times_in_rotation(sides, 3, clock)
    assert {name: len(of_side) for name, of_side in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert called[3:] == [
        *"aabbcc",
        *"bbccaa",
        *"ccaabb",
    ]  # after one each to see how long it takes; warm-up and timing


@pytest.mark.parametrize(("limit", "has_cold"), [(math.inf, True), (0, False)])
def test_short_calls_are_timed_cold_too(limit, has_cold, monkeypatch):
    monkeypatch.setattr(harness, "COLD_BELOW_SECONDS", limit)
    monkeypatch.setattr(harness, "SECONDS_PER_TIMING", 0)
    monkeypatch.setattr(harness, "WARM_UP_SECONDS", 0)
    between = []
    monkeypatch.setattr(harness, "other_work", lambda numbers: between.append(len(numbers)))
    record = harness.measured(row(a=lambda: 1, b=lambda: 2), 3)
    assert set(record["milliseconds"]) == {"a", "b"}
    assert set(record["ratios"]) == {"b"}
    if has_cold:
        assert set(record["cold"]["milliseconds"]) == {"a", "b"}
        assert set(record["cold"]["ratios"]) == {"b"}
        assert len(between) == 2 * 3 * harness.COLD_CALLS_PER_REPEAT
    else:
        assert record["cold"] is None
        assert not between
    json.dumps(record)


def test_rows_of_other_clocks_are_not_timed_cold():
    timed_by = harness.Row(
        table="", name="", inputs="", sides={"a": lambda: 0}, check=None, clock=lambda call, number: 1e-6 * number
    )
    assert harness.measured(timed_by, 3)["cold"] is None


def test_cold_calls_have_rows_of_their_own_on_the_page():
    record = {
        "table": "nms", "name": "10 boxes", "left_out": {},
        "milliseconds": {"cvops": 0.01, "peer": 0.02}, "ratios": {"peer": 2.0},
        "cold": {"milliseconds": {"cvops": 0.03, "peer": 0.03}, "ratios": {"peer": 1.0}},
    }  # fmt: skip
    longer = record | {"name": "1,000 boxes", "cold": None}
    assert markdown.comparison("nms", [record, longer]).splitlines() == [
        "| nms | cvops, ms | peer |",
        "|---|---:|---:|",
        "| 10 boxes | 0.0100 | 2.00 x |",
        "| 10 boxes, cold | 0.0300 | 1.00 x |",
        "| 1,000 boxes | 0.0100 | 2.00 x |",
    ]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86")
def test_without_avx512_numba_and_numpy_do_without():
    code = """
from benchmarks import environment
environment.restart(True)
import json, os, numpy, numba
from cvops._cpu import _simd
@numba.njit(fastmath=True)
def total(numbers):
    sum = 0.0
    for number in numbers:
        sum += number * number
    return sum
total(numpy.ones(9, "f"))
(assembly,) = total.inspect_asm().values()
found = numpy.show_config(mode="dicts")["SIMD Extensions"]["found"]
print(json.dumps([environment.describe()["target"], _simd.ROW_BYTES, "zmm" in assembly, found]))
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True, text=True).stdout
    target, row_bytes, has_wide_registers, found = json.loads(output)
    assert (target, row_bytes, has_wide_registers) == ("AVX2", 64, False)
    assert not [name for name in found if "512" in name or name == "X86_V4"]


def test_modules_do_not_import_each_other_in_a_circle():
    """Imports within functions included."""
    imported = {}
    for file in FOLDER.glob("*.py"):
        of_file = imported.setdefault(file.stem, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                of_file |= {node.module} if node.module else {name.name for name in node.names}
    assert imported["nms"] >= {"peers", "harness"}
    graphlib.TopologicalSorter(imported).prepare()


def test_every_suite_is_named():
    suites = {file.stem for file in FOLDER.glob("*.py") if "\ndef rows(quick" in file.read_text()}
    assert suites == {*__main__.SUITES, __main__.ON_GPU}


def test_what_tests_share_does_not_import_the_benchmarks():
    """They take their inputs and answers from there."""
    helpers = [file for file in Path(__file__).parent.rglob("*.py") if not file.name.startswith("test_")]
    assert {"data", "reference", "strategies"} <= {file.stem for file in helpers}
    for file in helpers:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "benchmarks" not in {name.partition(".")[0] for name in names}, file


def test_other_work_takes_no_argument_along():
    numbers = np.array([2.0, 1.0])
    harness.other_work(numbers)
    np.testing.assert_array_equal(numbers, [2.0, 1.0])
