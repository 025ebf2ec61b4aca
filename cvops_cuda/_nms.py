"""Greedy non-maximum suppression: rank the boxes, then drop each that overlaps a kept one of better rank.

Launches, whatever the data: one up to `_BLOCK_LIMIT` boxes. Beyond, the keys, a radix sort, the search and the
compaction; for classes, their labels and a second sort. Workspace: one box (24 bytes, 40 in float64) and about 40 bytes
of keys and ranks for each box.

Without `padded` the host reads how many boxes are kept, which waits for the device; with it nothing is read, and the
call can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import numpy as np

from cvops._checks import working_dtype

from ._device import Array, contiguous, dtype_code, empty, launch, order_of_keys, read, zeros

# As in kernels/nms.cu.
_BLOCK_LIMIT = 2048
_BLOCK_THREADS, _CHAIN_THREADS, _COMPACT_THREADS = 256, 512, 1024
_BOX_BYTES = {"f": 24, "d": 40}
_KEYS = {"f": "uint32", "d": "uint64"}


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    return _nms(boxes, scores, None, iou_threshold, score_threshold, max_output, padded)


def batched_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    return _nms(boxes, scores, contiguous(idxs), iou_threshold, score_threshold, max_output, padded)


def _nms(
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    dtype = working_dtype(boxes, scores)
    boxes, scores = contiguous(boxes), contiguous(scores)
    size = len(scores) if max_output is None else max_output
    if not padded:
        size = min(size, len(scores))
    if len(scores) == 0:
        keep = empty((size,), "int64")
        keep[...] = -1
        return (keep, zeros((), "int64")) if padded else keep
    # No IoU is above 1, whatever rounding says.
    threshold = math.inf if iou_threshold >= 1 else _round_down(iou_threshold, dtype)
    floor = math.nan if score_threshold is None else _round_down(score_threshold, dtype)
    search = _in_one_block if len(scores) <= _BLOCK_LIMIT else _in_a_chain
    keep, count = search(boxes, scores, idxs, dtype, threshold, floor, size)
    return (keep, count) if padded else keep[: read(count)]


def _round_down(value: float, dtype: str) -> float:
    """The largest number in working precision that is not above `value`: a comparison with both decides alike."""
    real = np.float64 if dtype == "d" else np.float32
    with np.errstate(over="ignore"):
        rounded = real(value)
    return float(np.nextafter(rounded, real(-math.inf)) if float(rounded) > value else rounded)


def _in_one_block(
    boxes: Array, scores: Array, idxs: Array | None, dtype: str, threshold: float, floor: float, size: int
) -> tuple[Array, Array]:
    keep, count = empty((size,), "int64"), empty((), "int64")
    launch(
        "nms",
        "nms_block",
        dtype,
        1,
        _BLOCK_THREADS,
        boxes,
        dtype_code(boxes),
        scores,
        dtype_code(scores),
        idxs,
        0 if idxs is None else dtype_code(idxs),
        len(scores),
        threshold,
        floor,
        empty((len(scores) * _BOX_BYTES[dtype],), "uint8"),
        keep,
        size,
        count,
    )
    return keep, count


def _in_a_chain(
    boxes: Array, scores: Array, idxs: Array | None, dtype: str, threshold: float, floor: float, size: int
) -> tuple[Array, Array]:
    length = len(scores)
    blocks = math.ceil(length / _BLOCK_THREADS)
    keys = empty((length,), _KEYS[dtype])
    launch("nms", "nms_keys", dtype, blocks, _BLOCK_THREADS, scores, dtype_code(scores), length, floor, keys)
    order = order_of_keys(keys)
    members = labels = None
    if idxs is not None:
        labels = empty((length,), "uint64")
        launch("nms", "nms_labels", dtype, blocks, _BLOCK_THREADS, idxs, dtype_code(idxs), order, length, labels)
        members = order_of_keys(labels)
    chunks, parts = math.ceil(length / _CHAIN_THREADS), math.ceil(length / _COMPACT_THREADS)
    progress = zeros((1 + chunks + parts,), "int64")  # one memset for all
    flags = empty((length,), "uint8")
    ticket, states, counts = progress[:1], progress[1 : 1 + chunks], progress[1 + chunks :]
    launch(
        "nms",
        "nms_chain",
        dtype,
        chunks,
        _CHAIN_THREADS,
        boxes,
        dtype_code(boxes),
        keys,
        order,
        members,
        labels,
        length,
        threshold,
        size,
        ticket,
        states,
        empty((length * _BOX_BYTES[dtype],), "uint8"),
        flags,
        counts,
    )
    keep, count = empty((size,), "int64"), empty((), "int64")
    blocks = math.ceil(max(length, size) / _COMPACT_THREADS)
    launch("nms", "nms_compact", dtype, blocks, _COMPACT_THREADS, order, flags, counts, length, keep, size, count)
    return keep, count
