"""nms and batched_nms: from ten boxes to a million, hostile sets, real detections, memory and start-up."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import cvops
from tests.data import clustered, hostile, uniform_scores

from . import peers
from .fresh import in_fresh_process
from .harness import Call, Figure, Row, same_indices

SIZES = [10, 100, 300, 1_000, 5_000, 20_000, 100_000, 1_000_000]
BATCHED_SIZES = [1_000, 5_000, 20_000, 100_000]
# These look at all pairs, so that a million boxes take them from one minute to many.
LARGEST = {
    "torchvision": 100_000, "ONNX Runtime": 100_000, "OpenVINO": 100_000, "OpenCV": 100_000, "powerboxes": 100_000,
    "ensemble-boxes": 100_000, "SAHI": 20_000,
}  # fmt: skip
HOSTILE_THRESHOLDS = [0.1, 0.3, 0.7, 0.9, 0.95]
DETECTIONS = Path(__file__).parent.parent / "examples" / "data"


def rows(quick: bool) -> Iterator[Row | Figure]:
    largest = 5_000 if quick else 1_000_000
    for n in SIZES:
        if n <= largest:
            yield clustered_row(n, 0.5)
    yield clustered_row(min(20_000, largest), 0.0)
    for n in BATCHED_SIZES:
        if n <= largest:
            yield batched_row(n)
    yield from detection_rows()
    yield growth_row(largest)
    yield from hostile_rows(min(100_000, largest))
    yield from start_up_figures(1 if quick else 5)
    if sys.platform == "linux":
        peak = in_fresh_process("peak")
        yield Figure(table="memory above the inputs", name="nms of 1,000,000 boxes", value=peak, unit="MB at the peak")


def clustered_row(n: int, iou_threshold: float) -> Row:
    boxes, scores, _ = clustered(n)
    left_out = {peer: "takes a minute or more" for peer, largest in LARGEST.items() if n > largest}
    return Row(
        table=f"nms, threshold {iou_threshold:g}",
        name=f"{n:,} boxes",
        inputs=f"clustered({n}, seed=0)",
        sides={"cvops": partial(cvops.nms, boxes, scores, iou_threshold)}
        | peers.sides(peers.NMS, boxes, scores, iou_threshold, but=left_out),
        check=same_indices(scores),
        size=n,
        left_out=left_out,
    )


def batched_row(n: int) -> Row:
    boxes, scores, labels = clustered(n)
    return Row(
        table="batched_nms, 80 classes, threshold 0.5",
        name=f"{n:,} boxes",
        inputs=f"clustered({n}, seed=0)",
        sides=_batched_sides(boxes, scores, labels),
        check=same_indices(scores),
        size=n,
    )


def detection_rows() -> Iterator[Row]:
    for path in sorted(DETECTIONS.glob("*.npz")):
        with np.load(path) as file:
            if "scores" not in file:
                continue  # a feature pyramid, not detections
            boxes, scores, labels = file["boxes"], file["scores"], file["labels"].astype(np.int64)
        yield Row(
            table="batched_nms of real detections, threshold 0.5",
            name=f"{path.stem}, {len(boxes):,}",
            inputs=f"examples/data/{path.name}",
            sides=_batched_sides(boxes, scores, labels),
            check=same_indices(scores),
        )


def _batched_sides(*arguments: Any) -> dict[str, Call]:
    own = {"cvops": partial(cvops.batched_nms, *arguments, 0.5)}
    return own | peers.sides(peers.BATCHED_NMS, *arguments, 0.5)


def growth_row(largest: int) -> Row:
    sizes = [largest // 10, largest]
    return Row(
        table="nms, ten times as many boxes",
        name="cvops, threshold 0.5",
        inputs=f"clustered({sizes}, seed=0)",
        sides={f"{n:,}": partial(cvops.nms, *clustered(n)[:2], 0.5) for n in sizes},
        check=None,
    )


def hostile_rows(n: int) -> Iterator[Row]:
    ordinary = partial(cvops.nms, *clustered(n)[:2], 0.5)
    scores = uniform_scores(n)
    for name, boxes in hostile(n).items():
        yield Row(
            table=f"nms of {n:,} hostile boxes, cvops, by threshold",
            name=name,
            inputs=f"hostile({n}, seed=0), uniform_scores({n}, seed=1)",
            sides={"clustered, 0.5": ordinary}
            | {f"{threshold}": partial(cvops.nms, boxes, scores, threshold) for threshold in HOSTILE_THRESHOLDS},
            check=None,
        )


def start_up_figures(processes: int) -> Iterator[Figure]:
    figures: dict[str, list[float]] = {"import cvops": [], "first nms, no cache": [], "first nms, warm cache": []}
    for _ in range(processes):
        with tempfile.TemporaryDirectory() as folder:
            figures["import cvops"].append(in_fresh_process("import"))
            figures["first nms, no cache"].append(in_fresh_process("first call", NUMBA_CACHE_DIR=folder))
            figures["first nms, warm cache"].append(in_fresh_process("first call", NUMBA_CACHE_DIR=folder))
    for name, milliseconds in figures.items():
        yield Figure(table="start-up of a process", name=name, value=median(milliseconds), unit="ms")
