"""Time the same work done by several sides, in one process and in turns, and print and record what came out.

A suite yields `Row`s, which are timed here, and `Figure`s, which it has measured itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from timeit import timeit
from typing import Any

import numpy as np

from tests.data import Array

Call = Callable[[], Any]

# One timing lasts at least this long, in as many calls as that takes: the clock and the loop must not show.
SECONDS_PER_TIMING = 0.01
# A side whose calls are slow is timed for about this long in each row, and never less than three times.
SECONDS_PER_SIDE = 10.0
LEAST_REPEATS = 3
# Before each timing the side runs untimed for about this long, at least one call. By then the thread pool of the side
# before has stopped spinning (OpenBLAS and ONNX Runtime: about 20 ms), and this side's threads are awake, each on its
# own core, which takes the scheduler milliseconds after a rest.
WARM_UP_SECONDS = 0.1
# Calls of less than this are timed cold as well: in a program they do not follow each other, and find neither their
# code and data in the caches nor their branches in the processor's predictors, which learn small inputs by heart.
COLD_BELOW_SECONDS = 1e-4
COLD_CALLS_PER_REPEAT = 15


def wall_seconds(call: Call, number: int) -> float:
    """Seconds that `number` calls take."""
    return timeit(call, number=number)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: sides to be timed against the first of them."""

    table: str
    name: str
    inputs: str  # how they were made
    sides: Mapping[str, Call]
    # Takes the answers of the first side and of another. Returns a remark or "", or raises DisagreementError.
    # None where the sides do different work, which is then what the row compares.
    check: Callable[[Any, Any], str] | None
    size: int | None = None  # where rows of a table differ by a size alone: the plot's horizontal axis
    left_out: dict[str, str] = field(default_factory=dict)  # side -> reason
    clock: Callable[[Call, int], float] = wall_seconds  # seconds of so many calls


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of a table: a single number, measured by the suite."""

    table: str
    name: str
    value: float
    unit: str


class DisagreementError(Exception):
    """The answer of a side is not that of the first side, so that their times must not be compared."""


# ----------------------------------------------------------------------------------------------------------- checks


def same_indices(scores: Array) -> Callable[[Any, Any], str]:
    """A check that two rankings of the boxes with these scores are equal; equal scores may trade places."""

    def check(expected: Any, got: Any) -> str:
        expected, got = np.asarray(expected).ravel(), np.asarray(got).ravel()
        if np.array_equal(expected, got):
            return ""
        missing, extra = len(np.setdiff1d(expected, got)), len(np.setdiff1d(got, expected))
        if missing or extra or len(expected) != len(got):
            raise DisagreementError(f"keeps {len(got)} boxes, not {len(expected)}: {missing} missing, {extra} too many")
        if not np.array_equal(scores[expected], scores[got]):
            raise DisagreementError("is not in the order of scores")
        return "orders equal scores otherwise"

    return check


def all_close(expected: Any, got: Any) -> str:
    """A check that two float32 results are equal up to rounding."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        raise DisagreementError(f"has shape {got.shape}, not {expected.shape}")
    if not np.allclose(expected, got, rtol=1e-5, atol=1e-5, equal_nan=True):
        raise DisagreementError(f"is off by up to {np.nanmax(np.abs(expected - got)):.2g}")
    return ""


def all_close_to_largest(expected: Any, got: Any) -> str:
    """A check that the results of long float32 sums, one or a tuple of them, are equal up to rounding."""
    if not isinstance(expected, tuple):
        expected, got = (expected,), (got,)
    for one, other in zip(expected, map(np.asarray, got), strict=True):
        if one.shape != other.shape:
            raise DisagreementError(f"has shape {other.shape}, not {one.shape}")
        error = np.abs(one - other).max() / max(1, np.abs(one).max())
        if not error <= 1e-4:
            raise DisagreementError(f"is off by {error:.2g} of the largest value")
    return ""


# ----------------------------------------------------------------------------------------------------------- timing


def run(rows: Iterable[Row | Figure], repeats: int) -> Iterator[dict[str, Any]]:
    """Measure and print row after row; yield each as a record for the results file."""
    table, columns = "", []
    for row in rows:
        if row.table != table:
            table, columns = row.table, [] if isinstance(row, Figure) else [*row.sides, *row.left_out]
            print(f"\n{table}")
            if columns:
                print(f"{'milliseconds (and ratio to the first)':36}" + "".join(f"{column:>20}" for column in columns))
        record = asdict(row) if isinstance(row, Figure) else measured(row, repeats)
        print_record(record, columns)
        yield record


def measured(row: Row, repeats: int) -> dict[str, Any]:
    remarks, left_out = compare_answers(row)
    sides = {side: call for side, call in row.sides.items() if side not in left_out}
    times = times_in_rotation(sides, repeats, row.clock)
    hot = {side: lower_quartile(of_side) for side, of_side in times.items()}
    first = next(iter(sides))
    is_short = row.clock is wall_seconds and hot[first] < COLD_BELOW_SECONDS
    return {
        "table": row.table,
        "name": row.name,
        "inputs": row.inputs,
        "size": row.size,
        **in_milliseconds(hot, first),
        "cold": in_milliseconds(cold_times(sides, repeats * COLD_CALLS_PER_REPEAT), first) if is_short else None,
        "repeats": {side: len(of_side) for side, of_side in times.items()},
        "remarks": remarks,
        "left_out": row.left_out | left_out,
    }


def compare_answers(row: Row) -> tuple[dict[str, str], dict[str, str]]:
    """Call every side once. Returns (side -> remark, side -> reason not to time it)."""
    remarks, left_out = {}, {}
    answers = {side: call() for side, call in row.sides.items()}
    first, *others = row.sides
    if row.check is not None:
        for side in others:
            try:
                remarks[side] = row.check(answers[first], answers[side])
            except DisagreementError as disagreement:
                left_out[side] = str(disagreement)
    return {side: remark for side, remark in remarks.items() if remark}, left_out


def in_milliseconds(seconds: dict[str, float], first: str) -> dict[str, dict[str, float]]:
    """Times of the sides, and the ratios of all but the first side to that."""
    return {
        "milliseconds": {side: 1e3 * of_side for side, of_side in seconds.items()},
        "ratios": {side: of_side / seconds[first] for side, of_side in seconds.items() if side != first},
    }


def lower_quartile(times: list[float]) -> float:
    """What disturbs a machine only ever adds time, so the lower ones are closer to the work."""
    return sorted(times)[(len(times) - 1) // 4]


def times_in_rotation(
    sides: dict[str, Call], repeats: int, clock: Callable[[Call, int], float]
) -> dict[str, list[float]]:
    """Seconds of one call, side by side.

    Each repetition times every side once, beginning with another one each time, so that what disturbs the machine for
    a while disturbs all of them.
    """
    calls, warm_up_calls, repeats_of = {}, {}, {}
    for side, call in sides.items():
        calls[side], seconds = calls_per_timing(call, clock)
        warm_up_calls[side] = max(1, int(WARM_UP_SECONDS / seconds * calls[side]))
        repeats_of[side] = min(repeats, max(LEAST_REPEATS, int(SECONDS_PER_SIDE / seconds)))
    times: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for repeat in range(repeats):
        for side in order:
            if repeat < repeats_of[side]:
                clock(sides[side], warm_up_calls[side])
                times[side].append(clock(sides[side], calls[side]) / calls[side])
        order = order[1:] + order[:1]
    return times


def cold_times(sides: dict[str, Call], repeats: int) -> dict[str, float]:
    """Seconds of a call of each side that follows other work."""
    numbers = np.random.default_rng(0).random(20_000)
    times: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for _ in range(repeats):
        for side in order:
            other_work(numbers)
            times[side].append(wall_seconds(sides[side], 1))
        order = order[1:] + order[:1]
    return {side: lower_quartile(of_side) for side, of_side in times.items()}


def other_work(numbers: Array) -> None:
    """What programs do between two calls, for under a millisecond: branches, allocations, more than a near cache."""
    np.sort(numbers, kind="stable")
    words = {str(i): i for i in range(1000)}
    sum(words[word] for word in sorted(words))


def calls_per_timing(call: Call, clock: Callable[[Call, int], float]) -> tuple[int, float]:
    """(how many calls make a timing long enough, how many seconds those take)."""
    number = 1
    while (seconds := clock(call, number)) < SECONDS_PER_TIMING:
        number *= 2
    return number, seconds


# --------------------------------------------------------------------------------------------------------- printing


def print_record(record: dict[str, Any], columns: list[str]) -> None:
    if "value" in record:
        print(f"{record['name']:36}{three_digits(record['value']):>20} {record['unit']}", flush=True)
        return
    for name, of_row in ((record["name"], record), ("    cold", record["cold"])):
        if of_row:
            cells = [cell(of_row["milliseconds"].get(side), of_row["ratios"].get(side)) for side in columns]
            print(f"{name:36}" + "".join(f"{text:>20}" for text in cells), flush=True)
    for side, remark in (record["remarks"] | record["left_out"]).items():
        print(f"    {side}: {remark}")


def cell(milliseconds: float | None, ratio: float | None) -> str:
    if milliseconds is None:
        return "-"
    times = "" if ratio is None else f"{three_digits(ratio)}x".rjust(9)
    return f"{three_digits(milliseconds)}{times}"


def three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"
