"""From the scores of a head to detections, by the same kernels whatever the data.

kernels/multiclass_nms.cu explains them. docs/performance.md lists launches and workspace.

Without `padded` the host reads how many detections there are before the last kernel, which waits for the device; with
it nothing is read, and the call can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from cvops._checks import working_dtype

from ._constants import MULTICLASS_NMS, NMS, working_size
from ._device import Array, allocate, contiguous, dtype_code, empty, flat, launch, to_host, zeros
from ._nms import KEYS, comparable

# Boxes and classes of an image are numbered in 32 bits.
_MOST_SCORES = 2**31 - 1


class Head(NamedTuple):
    scores: Array
    scores_dtype: int
    origin: int
    strides: tuple[int, int, int]
    objectness: Array
    objectness_dtype: int
    floors: Array
    floors_dtype: int
    floor: float
    length: int
    classes: int


class MulticlassScan(NamedTuple):
    head: Head
    by_boxes: int
    scanned: int
    parts: int
    keys: Array
    numbers: Array
    found: Array


class MulticlassRank(NamedTuple):
    keys: Array
    numbers: Array
    other_keys: Array
    other_numbers: Array
    found: Array
    offsets: Array
    by_boxes: int
    scanned: int
    parts: int
    part: int
    length: int
    classes: int
    capacity: int
    segments: int
    ranked: Array
    members: Array
    starts: Array


class MulticlassSuppress(NamedTuple):
    boxes: Array
    boxes_dtype: int
    of_classes: int
    length: int
    classes: int
    iou_threshold: float
    capacity: int
    segments: int
    most: int
    of_class: int
    ranked: Array
    members: Array
    starts: Array
    flags: Array
    counts: Array
    class_counts: Array


class MulticlassWrite(NamedTuple):
    ranked: Array
    flags: Array
    counts: Array
    capacity: int
    classes: int
    most: int
    images: Array
    boxes: Array
    labels: Array
    found: Array


def multiclass_nms(
    boxes: Array,
    scores: Array,
    objectness: Array | None,
    iou_threshold: float,
    score_threshold: float | Array | None,
    max_candidates: int | None,
    max_per_class: int | None,
    max_output: int | None,
    multi_label: bool,
    class_agnostic: bool,
    metric: str,
    padded: bool,
) -> tuple[Array, Array, Array]:
    images, length, classes = scores.shape
    scanned = length * classes if multi_label else length * min(classes, 1)
    capacity = scanned if max_candidates is None else min(max_candidates, scanned)
    most = capacity if max_output is None else max_output if padded else min(max_output, capacity)
    if images * capacity * most == 0 or max_per_class == 0:
        return _nothing(images, most, padded)
    if length * classes > _MOST_SCORES:
        text = f"`scores` must have at most {_MOST_SCORES} scores of an image on CUDA, got {length} * {classes}"
        raise ValueError(text)
    segments = 1 if class_agnostic else classes
    dtype = working_dtype(boxes, scores, objectness)
    rounds = MULTICLASS_NMS.SCAN_ROUNDS[working_size(dtype)] if multi_label else 1
    per_part = MULTICLASS_NMS.SCAN_THREADS * rounds
    parts = math.ceil(scanned / per_part)
    counts_classes = class_agnostic and max_per_class is not None
    counts, class_counts, flags, keys, other_keys, numbers, other_numbers, found, offsets, ranked, members, starts = (
        allocate(
            (images, "uint64"), (images * classes if counts_classes else 0, "uint64"), (images * capacity, "uint8"),
            *[(images * scanned, KEYS[dtype])] * 2, *[(images * scanned, "uint32")] * 2,
            *[(images * parts, "uint32")] * 2, *[(images * capacity, "uint32")] * 2,
            (images * (segments + 1), "uint32"), zeroed=3,
        )
    )  # fmt: skip

    head = _head(scores, objectness, score_threshold)
    by_boxes = int(multi_label and classes > 1 and length > 1 and abs(head.strides[1]) < abs(head.strides[2]))
    launch(
        "multiclass_nms", "multiclass_scan" if multi_label else "multiclass_best", dtype, images * parts,
        MULTICLASS_NMS.SCAN_THREADS, MulticlassScan(head, by_boxes, scanned, parts, keys, numbers, found),
    )  # fmt: skip
    of_rank = MulticlassRank(
        keys, numbers, other_keys, other_numbers, found, offsets, by_boxes, scanned, parts, per_part, length, classes,
        capacity, segments, ranked, members, starts,
    )  # fmt: skip
    launch("multiclass_nms", "multiclass_rank", dtype, images, MULTICLASS_NMS.RANK_THREADS, of_rank)

    of_class = capacity if max_per_class is None else min(max_per_class, capacity)
    boxes = contiguous(boxes)
    of_suppress = MulticlassSuppress(
        boxes, dtype_code(boxes), boxes.ndim == 4, length, classes, comparable(iou_threshold, dtype), capacity,
        segments, most if class_agnostic else min(most, of_class), of_class, ranked, members, starts, flags, counts,
        class_counts if counts_classes else None,
    )  # fmt: skip
    launch("multiclass_nms", "multiclass_suppress", dtype, images * segments, NMS.CHUNK, of_suppress)

    image = number = None
    if padded:
        box, label, number = empty((images, most), "int64"), empty((images, most), "int64"), empty((images,), "int64")
    else:
        total = sum(min(count, most) for count in to_host(counts).tolist())
        image, box, label = empty((total,), "int64"), empty((total,), "int64"), empty((total,), "int64")
    of_write = MulticlassWrite(ranked, flags, counts, capacity, classes, most, image, box, label, number)
    launch("multiclass_nms", "multiclass_write", dtype, images, MULTICLASS_NMS.WRITE_THREADS, of_write)
    return (box, label, number) if padded else (image, box, label)


def _nothing(images: int, most: int, padded: bool) -> tuple[Array, Array, Array]:
    if not padded:
        return empty((0,), "int64"), empty((0,), "int64"), empty((0,), "int64")
    box, label = empty((images, most), "int64"), empty((images, most), "int64")
    box[...] = label[...] = -1
    return box, label, zeros((images,), "int64")


def _head(scores: Array, objectness: Array | None, score_threshold: float | Array | None) -> Head:
    memory, origin, (of_images, of_boxes, of_classes) = flat(scores)
    if objectness is not None:
        objectness = contiguous(objectness)
    floors, floor = None, math.nan
    if isinstance(score_threshold, float):
        floor = score_threshold
    elif score_threshold is not None:
        floors = contiguous(score_threshold)
    return Head(
        memory, dtype_code(scores), origin, (of_images, of_boxes, of_classes),
        objectness, 0 if objectness is None else dtype_code(objectness),
        floors, 0 if floors is None else dtype_code(floors), floor, *scores.shape[1:],
    )  # fmt: skip
