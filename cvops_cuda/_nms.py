"""Greedy non-maximum suppression: rank the boxes, then drop each that overlaps a kept one of better rank.

Launches, whatever the data: one up to `_BLOCK_LIMIT` boxes. Up to `_BATCH`: a memset, the ranks, the boxes in order,
the mask of all pairs, the search and the compaction. Beyond: the keys, a radix sort (for classes, their labels and a
second sort), a memset, and for each batch its boxes, mask and search, from the second one on after a look at the boxes
kept before; then the compaction.

Workspace: about 60 bytes for each box up to `_BATCH` (80 beyond, 100 in float64, 16 more for classes), a bit for each
pair in a batch (18 MB at most), and what the sorts take.

Without `padded` the host reads how many boxes are kept, which waits for the device; with it nothing is read, and the
call can be captured in a CUDA graph.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from cvops._checks import working_dtype

from ._device import Array, contiguous, dtype_code, empty, launch, order_of_keys, read, zeros

# Boxes that are compared with each other. A multiple of _CHUNK.
_BATCH = 16384
# As in kernels/nms.cu and nms.cuh.
_BLOCK_LIMIT = 1024
_RANK_THREADS, _RANK_TILE = 256, 1024
_CHUNK, _WORDS, _RIVALS = 512, 16, 64
_NEAR_WARPS, _COMPACT_THREADS = 8, 1024
_LEVEL_PAIRS = 4096
_BOX_BYTES = {"f": 24, "d": 40}
_KEYS = {"f": "uint32", "d": "uint64"}
# Below, each box is compared with all kept ones, as on the CPU.
_NEAR_THRESHOLD = 0.1


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
    if len(scores) <= _BLOCK_LIMIT:
        keep, count = _in_one_block(boxes, scores, idxs, dtype, threshold, floor, size)
    elif len(scores) <= _BATCH:
        keep, count = _in_one_batch(boxes, scores, idxs, dtype, threshold, floor, size)
    else:
        keep, count = _in_batches(boxes, scores, idxs, dtype, threshold, floor, size, iou_threshold)
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
        max(32, 1 << (len(scores) - 1).bit_length()),
        boxes,
        dtype_code(boxes),
        scores,
        dtype_code(scores),
        idxs,
        _code(idxs),
        len(scores),
        threshold,
        floor,
        keep,
        size,
        count,
    )
    return keep, count


def _in_one_batch(
    boxes: Array, scores: Array, idxs: Array | None, dtype: str, threshold: float, floor: float, size: int
) -> tuple[Array, Array]:
    length = len(scores)
    across, tiles, chunks = (math.ceil(length / step) for step in (_RANK_THREADS, _RANK_TILE, _CHUNK))
    count, ticket, states, flags, counts, ranks, positions = _zeros(
        1, 1, chunks * _WORDS, *_flags_and_counts(length), length, 0 if idxs is None else length
    )
    if idxs is None:
        positions = None
    ranking = scores, dtype_code(scores), idxs, _code(idxs), length, floor
    launch("nms", "nms_rank", dtype, across * tiles, _RANK_THREADS, *ranking, ranks, positions)
    order, batch = empty((length,), "int64"), _Batch.of(length, dtype, count)
    launch(
        "nms",
        "nms_place",
        dtype,
        across,
        _RANK_THREADS,
        boxes,
        dtype_code(boxes),
        *ranking,
        ranks,
        positions,
        order,
        batch.boxes,
        batch.ranks,
        batch.count,
    )
    _search(batch, 0, length, dtype, threshold, ticket, states, flags, counts, None, None, _grid(0, dtype), None)
    return _compact(order, flags, counts, length, dtype, size)


def _in_batches(
    boxes: Array,
    scores: Array,
    idxs: Array | None,
    dtype: str,
    threshold: float,
    floor: float,
    size: int,
    iou_threshold: float,
) -> tuple[Array, Array]:
    length = len(scores)
    blocks = math.ceil(length / _RANK_THREADS)
    keys = empty((length,), _KEYS[dtype])
    launch("nms", "nms_keys", dtype, blocks, _RANK_THREADS, scores, dtype_code(scores), length, floor, keys)
    order = order_of_keys(keys)
    members = labels = None
    if idxs is not None:
        labels = empty((length,), "uint64")
        launch("nms", "nms_labels", dtype, blocks, _RANK_THREADS, idxs, _code(idxs), order, length, labels)
        members = order_of_keys(labels)
    ranked = boxes, dtype_code(boxes), keys, order, members, labels

    batches, chunks, slots = math.ceil(length / _BATCH), _BATCH // _CHUNK, 1 << length.bit_length()
    flags, counts, heads, occupied, listed_counts, total, tickets, states, found = _zeros(
        *_flags_and_counts(length),
        slots,
        _LEVEL_PAIRS // 8,
        batches * chunks,
        1,
        2 * batches,
        batches * chunks * _WORDS,
        batches * chunks,
    )
    batch, dropped = _Batch.of(_BATCH, dtype, empty((1,), "int64")), empty((_BATCH,), "uint8")
    kept = _Kept(
        empty((length * _BOX_BYTES[dtype],), "uint8"),
        heads,
        empty((length,), "int64"),
        occupied,
        slots,
        empty((length,), "int64"),
        listed_counts,
        total,
    )
    grid, keeps_all = _grid(iou_threshold, dtype), iou_threshold >= 1
    near = iou_threshold >= _NEAR_THRESHOLD and not keeps_all
    for number, begin in enumerate(range(0, length, _BATCH)):
        end = min(begin + _BATCH, length)
        earlier = None if number == 0 or keeps_all else kept
        if earlier and near:
            launch(
                "nms",
                "nms_near",
                dtype,
                math.ceil((end - begin) / _NEAR_WARPS),
                32 * _NEAR_WARPS,
                *ranked,
                begin,
                end,
                threshold,
                *grid,
                *kept[:5],
                dropped,
            )
        launch(
            "nms",
            "nms_gather",
            dtype,
            math.ceil((end - begin) / _CHUNK),
            _CHUNK,
            *ranked,
            begin,
            end,
            threshold,
            size,
            *grid,
            dropped if earlier and near else None,
            *((kept.boxes, kept.listed, kept.listed_counts) if earlier else (None, None, None)),
            total,
            tickets[2 * number : 2 * number + 1],
            found[number * chunks : (number + 1) * chunks],
            batch.boxes,
            batch.ranks,
            batch.count,
        )
        _search(
            batch,
            begin,
            end,
            dtype,
            threshold,
            tickets[2 * number + 1 : 2 * number + 2],
            states[number * chunks * _WORDS : (number + 1) * chunks * _WORDS],
            flags,
            counts,
            members,
            labels,
            grid,
            None if end == length or keeps_all else kept,
        )
    return _compact(order, flags, counts, length, dtype, size)


class _Batch(NamedTuple):
    """What is compared with each other: boxes in the order of their positions, their ranks, how many, the mask."""

    boxes: Array
    ranks: Array
    count: Array
    mask: Array

    @staticmethod
    def of(size: int, dtype: str, count: Array) -> _Batch:
        chunks = math.ceil(size / _CHUNK)
        return _Batch(
            empty((size * _BOX_BYTES[dtype],), "uint8"),
            empty((size,), "int64"),
            count,
            empty((chunks * (chunks + 1) // 2 * _CHUNK * _WORDS,), "uint32"),
        )


class _Kept(NamedTuple):
    """What later batches need of those before: `Table` in kernels/nms.cuh."""

    boxes: Array
    heads: Array
    before: Array
    occupied: Array
    slots: int
    listed: Array
    listed_counts: Array
    total: Array


def _search(
    batch: _Batch,
    begin: int,
    end: int,
    dtype: str,
    threshold: float,
    ticket: Array,
    states: Array,
    flags: Array,
    counts: Array,
    members: Array | None,
    labels: Array | None,
    grid: tuple[float, float, float, int],
    kept: _Kept | None,
) -> None:
    """Flag the boxes of a batch that are kept, and hand them to `kept` where it is given."""
    chunks = math.ceil((end - begin) / _CHUNK)
    blocks = chunks * (chunks + 1) // 2 * (_CHUNK // _RIVALS)
    launch("nms", "nms_mask", dtype, blocks, _CHUNK, batch.boxes, batch.count, threshold, batch.mask)
    launch(
        "nms",
        "nms_chain",
        dtype,
        chunks,
        _CHUNK,
        *batch,
        ticket,
        states,
        flags,
        counts,
        members,
        labels,
        begin,
        end,
        *grid,
        *(kept or (None, None, None, None, 0, None, None, None)),
    )


def _compact(order: Array, flags: Array, counts: Array, length: int, dtype: str, size: int) -> tuple[Array, Array]:
    keep, count = empty((size,), "int64"), empty((), "int64")
    blocks = math.ceil(max(length, size) / _COMPACT_THREADS)
    launch("nms", "nms_compact", dtype, blocks, _COMPACT_THREADS, order, flags, counts, length, keep, size, count)
    return keep, count


def _grid(iou_threshold: float, dtype: str) -> tuple[float, float, float, int]:
    """The numbers of `Grid` in kernels/nms.cuh: t, pitch, least area, bits of a float64 below its size level.

    t is the threshold less some roundings in working precision, and 0 where all boxes are listed. The pitch, and the
    octaves of size in a level, shrink with 1 - t, as the room between two kept boxes does.
    """
    if iou_threshold < _NEAR_THRESHOLD:
        return 0.0, 1.0, 1.0, 0
    limits = np.finfo(dtype)
    slack = 64 * float(limits.eps)
    pitch = max(4 * (1 - iou_threshold), 16 * slack)
    # Two octaves in a level up to t = 0.3; above, so many levels that pairs of them keep a warp's 32 lanes busy.
    shift = 53 - max(0, math.ceil(math.log2(2.8 / pitch)))
    return iou_threshold * (1 - slack), pitch, 16 * float(limits.tiny), shift


def _code(idxs: Array | None) -> int:
    return 0 if idxs is None else dtype_code(idxs)


def _flags_and_counts(length: int) -> tuple[int, int]:
    """Sizes in 8 bytes of a byte for each box, and of a number for each block of nms_compact."""
    return math.ceil(length / 8), math.ceil(length / _COMPACT_THREADS)


def _zeros(*sizes: int) -> list[Array]:
    """Arrays of int64 zeros, by one memset."""
    ends = [0, *itertools.accumulate(sizes)]
    memory = zeros((ends[-1],), "int64")
    return [memory[begin:end] for begin, end in itertools.pairwise(ends)]
