"""From the output of a detection head to detections: multiclass_nms and decode_boxes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import cvops
from tests.data import Array, clustered

from . import peers
from .harness import DisagreementError, Row, all_close_to_largest


def rows(quick: bool) -> Iterator[Row]:
    shape = (2, 500, 10) if quick else (8, 8400, 80)
    of_one = (1, 300, 5) if quick else (1, 2000, 20)
    yield head_row("a YOLO's, few scores pass", shape, 2000, 0.25, 0.45, None)
    yield head_row("a YOLO's, all scores pass", shape, 1, 0.001, 0.7, 30_000)
    yield head_row("one image", of_one, 20, 0.05, 0.5, None)
    yield decode_row(2_000 if quick else 200_000)


def head_row(
    name: str, shape: tuple[int, int, int], power: int, floor: float, iou_threshold: float, most: int | None
) -> Row:
    """Scores (N, C, L) in memory, uniform ones to this power: the higher, the fewer pass."""
    images, length, classes = shape
    boxes = np.stack([clustered(length, seed=seed)[0] for seed in range(images)])
    scores = np.random.default_rng(0).random((images, classes, length), np.float32) ** np.float32(power)
    options: Any = {"score_threshold": floor, "max_output": 300, "max_candidates": most}
    given = boxes, scores, floor, iou_threshold, most
    return Row(
        table="multiclass_nms of scores in the order (N, C, L), at most 300 for each image",
        name=f"{name}, {shape}, score {floor:g}, IoU {iou_threshold:g}" + (f", {most:,} candidates" if most else ""),
        inputs=f"clustered({length}, seed=image), uniform scores to the power {power}",
        sides={"cvops": partial(_selected, boxes, scores.transpose(0, 2, 1), iou_threshold, **options)}
        | peers.sides(peers.MULTICLASS_NMS, *given, but=("ONNX Runtime", "OpenVINO") if most else ()),
        check=same_detections,
    )


def _selected(*args: Any, **options: Any) -> Array:
    return np.stack(cvops.multiclass_nms(*args, **options), 1)


def same_detections(expected: Any, got: Any) -> str:
    """A check of rows (image, box, class) in any order, where `got` may have more of them."""
    wanted, found = ({*map(tuple, np.asarray(each).tolist())} for each in (expected, got))
    missing = len(wanted - found)
    if missing > len(wanted) // 1000:  # scores that are equal may trade places at a limit
        raise DisagreementError(f"misses {missing} of {len(wanted)} detections")
    return "has a limit for each class alone" if len(found) > len(wanted) else ""


def decode_row(n: int) -> Row:
    anchors = clustered(n)[0]
    deltas = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Row(
        table="decode_boxes",
        name=f"{n:,} boxes",
        inputs=f"clustered({n}, seed=0), normal deltas",
        sides={"cvops": partial(cvops.decode_boxes, deltas, anchors)}
        | peers.sides(peers.DECODE_BOXES, deltas, anchors),
        check=all_close_to_largest,  # two large numbers whose difference is a corner
    )
