"""From the output of a detection head to detections: multiclass_nms and decode_boxes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cvops
from tests.data import Array, clustered

from . import peers
from .harness import DisagreementError, Row, all_close_to_largest

TABLE = "multiclass_nms of scores in the order (N, C, L), at most 300 for each image"
MOST = 300


class Head(NamedTuple):
    """What a head gives, and what is asked for."""

    name: str
    shape: tuple[int, int, int]  # images, boxes, classes
    power: int  # of uniform scores: the higher, the fewer pass
    floor: float
    iou_threshold: float
    candidates: int | None

    def __str__(self) -> str:
        text = f"{self.name}, {self.shape}, score {self.floor:g}, IoU {self.iou_threshold:g}"
        return text + (f", {self.candidates:,} candidates" if self.candidates else "")

    @property
    def inputs(self) -> str:
        """How `inputs` makes them."""
        return f"clustered({self.shape[1]}, seed=image), uniform scores to the power {self.power}"


def _heads(shape: tuple[int, int, int], of_one: tuple[int, int, int]) -> list[Head]:
    return [
        Head("a YOLO's, few scores pass", shape, 2000, 0.25, 0.45, None),
        Head("a YOLO's, all scores pass", shape, 1, 0.001, 0.7, 30_000),
        Head("one image", of_one, 20, 0.05, 0.5, None),
    ]


HEADS, SMALL = _heads((8, 8400, 80), (1, 2000, 20)), _heads((2, 500, 10), (1, 300, 5))


def rows(quick: bool) -> Iterator[Row]:
    yield from map(head_row, SMALL if quick else HEADS)
    yield decode_row(2_000 if quick else 200_000)


def inputs(head: Head) -> tuple[Array, Array]:
    """Boxes (N, L, 4), and scores (N, C, L) in memory."""
    images, length, classes = head.shape
    boxes = np.stack([clustered(length, seed=seed)[0] for seed in range(images)])
    scores = np.random.default_rng(0).random((images, classes, length), np.float32) ** np.float32(head.power)
    return boxes, scores


def head_row(head: Head) -> Row:
    boxes, scores = inputs(head)
    options: Any = {"score_threshold": head.floor, "max_output": MOST, "max_candidates": head.candidates}
    given = boxes, scores, head.floor, head.iou_threshold, head.candidates
    return Row(
        table=TABLE,
        name=str(head),
        inputs=head.inputs,
        sides={"cvops": partial(_selected, boxes, scores.transpose(0, 2, 1), head.iou_threshold, **options)}
        | peers.sides(peers.MULTICLASS_NMS, *given, but=("ONNX Runtime", "OpenVINO") if head.candidates else ()),
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
