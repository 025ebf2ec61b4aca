"""Greedy non-maximum suppression: rank the boxes, then drop each that overlaps a kept one of better rank.

kernels/nms.cu explains the algorithm. Launches and workspace depend on sizes, never on values; docs/performance.md
lists them.

Without `padded` the host reads how many boxes are kept, which waits for the device; with it nothing is read, and the
call can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from cvops._checks import lowered, working_dtype
from cvops._nms import NEAR_THRESHOLD

from ._constants import NMS, WARP, working_size
from ._device import Array, allocate, contiguous, dtype_code, empty, launch, order_of_keys, read, zeros
from ._records import pack

# Boxes that are compared with each other. A multiple of NMS.CHUNK.
_BATCH = 16384
_WORDS = NMS.CHUNK // WARP  # of 32 bits, one for each box of a chunk
KEYS = {"f": "uint32", "d": "uint64"}


class NmsBlock(NamedTuple):
    boxes: Array
    boxes_dtype: int
    scores: Array
    scores_dtype: int
    idxs: Array
    idxs_dtype: int
    length: int
    iou_threshold: float
    score_threshold: float
    keep: Array
    size: int
    count: Array


class Ranking(NamedTuple):
    scores: Array
    scores_dtype: int
    idxs: Array
    idxs_dtype: int
    length: int
    score_threshold: float


class Ranked(NamedTuple):
    boxes: Array
    boxes_dtype: int
    keys: Array
    order: Array
    members: Array
    labels: Array


class Grid(NamedTuple):
    t: float
    cell_ratio: float
    least_area: float
    shift: int


class Table(NamedTuple):
    kept: Array
    heads: Array
    older: Array
    occupied: Array
    capacity: int


class NmsRank(NamedTuple):
    ranking: Ranking
    ranks: Array
    positions: Array


class NmsOrder(NamedTuple):
    boxes: Array
    boxes_dtype: int
    ranking: Ranking
    ranks: Array
    positions: Array
    order: Array
    candidates: Array
    candidate_ranks: Array
    count: Array


class NmsKeys(NamedTuple):
    ranking: Ranking
    keys: Array


class NmsLabels(NamedTuple):
    idxs: Array
    idxs_dtype: int
    order: Array
    length: int
    labels: Array


class NmsNear(NamedTuple):
    ranked: Ranked
    begin: int
    end: int
    iou_threshold: float
    grid: Grid
    table: Table
    dropped: Array


class NmsGather(NamedTuple):
    ranked: Ranked
    begin: int
    end: int
    iou_threshold: float
    limit: int
    grid: Grid
    dropped: Array
    kept: Array
    listed: Array
    listed_counts: Array
    total: Array
    ticket: Array
    found_counts: Array
    candidates: Array
    candidate_ranks: Array
    count: Array


class NmsMask(NamedTuple):
    candidates: Array
    count: Array
    iou_threshold: float
    mask: Array


class NmsChain(NamedTuple):
    candidates: Array
    candidate_ranks: Array
    count: Array
    mask: Array
    ticket: Array
    states: Array
    flags: Array
    counts: Array
    members: Array
    labels: Array
    begin: int
    end: int
    grid: Grid
    table: Table
    listed: Array
    listed_counts: Array
    total: Array


class NmsCompact(NamedTuple):
    order: Array
    flags: Array
    counts: Array
    length: int
    keep: Array
    size: int
    count: Array


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
    dtype, length = working_dtype(boxes, scores), len(scores)
    boxes, scores = contiguous(boxes), contiguous(scores)
    size = length if max_output is None else max_output
    if not padded:
        size = min(size, length)
    if length == 0:
        keep = empty((size,), "int64")
        keep[...] = -1
        return (keep, zeros((), "int64")) if padded else keep
    threshold = comparable(iou_threshold, dtype)
    floor = math.nan if score_threshold is None else lowered(score_threshold, dtype)
    scores_dtype, idxs_dtype = dtype_code(scores), 0 if idxs is None else dtype_code(idxs)
    if length <= NMS.BLOCK_THREADS:
        keep, count = empty((size,), "int64"), empty((), "int64")
        record = NmsBlock(
            boxes, dtype_code(boxes), scores, scores_dtype, idxs, idxs_dtype, length, threshold, floor,
            keep, size, count,
        )  # fmt: skip
        launch("nms", "nms_block", dtype, 1, max(WARP, 1 << (length - 1).bit_length()), record)
    else:
        ranking = Ranking(scores, scores_dtype, idxs, idxs_dtype, length, floor)
        if length <= _BATCH:
            keep, count = _in_one_batch(boxes, ranking, dtype, threshold, size)
        else:
            keep, count = _in_batches(boxes, ranking, dtype, threshold, size, iou_threshold)
    return (keep, count) if padded else keep[: read(count)]


def comparable(iou_threshold: float, dtype: str) -> float:
    """The threshold with which kernels compare an IoU in working precision."""
    # No IoU is above 1, whatever rounding says.
    return math.inf if iou_threshold >= 1 else lowered(iou_threshold, dtype)


def _in_one_batch(boxes: Array, ranking: Ranking, dtype: str, threshold: float, size: int) -> tuple[Array, Array]:
    length, classes = ranking.length, ranking.idxs is not None
    blocks, parts, chunks = (math.ceil(length / n) for n in (NMS.RANK_THREADS, NMS.RANK_OTHERS, NMS.CHUNK))
    candidate_count, ticket, states, flags, counts, ranks, positions, order, *candidates = allocate(
        (1, "int64"), (1, "int64"), (chunks * _WORDS, "int64"), *_flags_and_counts(length), (length, "int64"),
        (length if classes else 0, "int64"), (length, "int64"), *_candidates(length, dtype), zeroed=7,
    )  # fmt: skip
    batch = _Batch(candidate_count, *candidates)
    if not classes:
        positions = None
    record = NmsRank(ranking, ranks, positions)
    launch("nms", "nms_rank", dtype, blocks * parts, NMS.RANK_THREADS, record)
    in_order = NmsOrder(
        boxes, dtype_code(boxes), ranking, ranks, positions, order, batch.candidates, batch.ranks, batch.size
    )
    launch("nms", "nms_order", dtype, blocks, NMS.RANK_THREADS, in_order)
    search = _Search(dtype, threshold, flags, counts, None, None, _grid(0, dtype))
    _search(search, batch, 0, length, ticket, states, None)
    return _compact(order, flags, counts, length, dtype, size)


def _in_batches(
    boxes: Array, ranking: Ranking, dtype: str, threshold: float, size: int, iou_threshold: float
) -> tuple[Array, Array]:
    length, idxs = ranking.length, ranking.idxs
    blocks = math.ceil(length / NMS.RANK_THREADS)
    keys = empty((length,), KEYS[dtype])
    launch("nms", "nms_keys", dtype, blocks, NMS.RANK_THREADS, NmsKeys(ranking, keys))
    order = order_of_keys(keys)
    members = labels = None
    if idxs is not None:
        labels = empty((length,), "uint64")
        record = NmsLabels(idxs, ranking.idxs_dtype, order, length, labels)
        launch("nms", "nms_labels", dtype, blocks, NMS.RANK_THREADS, record)
        members = order_of_keys(labels)
    ranked = Ranked(boxes, dtype_code(boxes), keys, order, members, labels)

    batches, chunks, capacity = math.ceil(length / _BATCH), _BATCH // NMS.CHUNK, 1 << length.bit_length()
    (
        flags, counts, heads, occupied, listed_counts, total, tickets, states, found_counts,
        kept_boxes, older, listed, dropped, batch_count, *candidates,
    ) = allocate(
        *_flags_and_counts(length), (capacity, "int64"), (NMS.SIZE_BUCKET_PAIRS, "uint8"), (batches * chunks, "int64"),
        (1, "int64"), (2 * batches, "int64"), (batches * chunks * _WORDS, "int64"), (batches * chunks, "int64"),
        (length * NMS.BOX_BYTES[working_size(dtype)], "uint8"), (length, "int64"), (length, "int64"), (_BATCH, "uint8"),
        (1, "int64"), *_candidates(_BATCH, dtype), zeroed=9,
    )  # fmt: skip
    batch = _Batch(batch_count, *candidates)
    kept = _Kept(Table(kept_boxes, heads, older, occupied, capacity), listed, listed_counts, total)
    grid, keeps_all = _grid(iou_threshold, dtype), iou_threshold >= 1
    near = iou_threshold >= NEAR_THRESHOLD and not keeps_all
    search = _Search(dtype, threshold, flags, counts, members, labels, grid)
    for number, begin in enumerate(range(0, length, _BATCH)):
        end = min(begin + _BATCH, length)
        earlier = number > 0 and not keeps_all
        if earlier and near:
            of_near = NmsNear(ranked, begin, end, threshold, grid, kept.table, dropped)
            warps = NMS.NEAR_THREADS // WARP
            launch("nms", "nms_near", dtype, math.ceil((end - begin) / warps), NMS.NEAR_THREADS, of_near)
        gather = NmsGather(
            ranked, begin, end, threshold, size, grid, dropped if earlier and near else None,
            kept_boxes if earlier else None, listed if earlier else None, listed_counts if earlier else None,
            total, tickets[2 * number : 2 * number + 1], found_counts[number * chunks : (number + 1) * chunks],
            batch.candidates, batch.ranks, batch.size,
        )  # fmt: skip
        launch("nms", "nms_gather", dtype, math.ceil((end - begin) / NMS.CHUNK), NMS.CHUNK, gather)
        own_states = states[number * chunks * _WORDS : (number + 1) * chunks * _WORDS]
        ticket = tickets[2 * number + 1 : 2 * number + 2]
        _search(search, batch, begin, end, ticket, own_states, None if end == length or keeps_all else kept)
    return _compact(order, flags, counts, length, dtype, size)


class _Batch(NamedTuple):
    """Boxes that are compared with each other, in the order of their positions: their number, ranks and mask."""

    size: Array
    candidates: Array
    ranks: Array
    mask: Array


def _candidates(size: int, dtype: str) -> list[tuple[int, str]]:
    """The arrays of a batch of `size` boxes, as `allocate` takes them, except that for their number."""
    chunks = math.ceil(size / NMS.CHUNK)
    words = chunks * (chunks + 1) // 2 * NMS.CHUNK * _WORDS
    return [(size * NMS.BOX_BYTES[working_size(dtype)], "uint8"), (size, "int64"), (words, "uint32")]


class _Kept(NamedTuple):
    """What later batches need of those before."""

    table: Table
    listed: Array
    listed_counts: Array
    total: Array


_NOTHING_KEPT = _Kept(Table(None, None, None, None, 0), None, None, None)


class _Search(NamedTuple):
    """What is the same for all batches of a call."""

    dtype: str
    threshold: float
    flags: Array
    counts: Array
    members: Array
    labels: Array
    grid: Any


def _search(
    search: _Search, batch: _Batch, begin: int, end: int, ticket: Array, states: Array, kept: _Kept | None
) -> None:
    """Flag the boxes of a batch that are kept, and hand them to `kept` where it is given."""
    dtype, threshold, flags, counts, members, labels, grid = search
    count, candidates, ranks, mask = batch
    chunks = math.ceil((end - begin) / NMS.CHUNK)
    blocks = chunks * (chunks + 1) // 2 * (NMS.CHUNK // NMS.SUPPRESSORS)
    launch("nms", "nms_mask", dtype, blocks, NMS.CHUNK, NmsMask(candidates, count, threshold, mask))
    table, *lists = kept or _NOTHING_KEPT
    chain = NmsChain(
        candidates, ranks, count, mask, ticket, states, flags, counts, members, labels, begin, end, grid, table, *lists
    )
    launch("nms", "nms_chain", dtype, chunks, NMS.CHUNK, chain)


def _compact(order: Array, flags: Array, counts: Array, length: int, dtype: str, size: int) -> tuple[Array, Array]:
    keep, count = empty((size,), "int64"), empty((), "int64")
    blocks = math.ceil(max(length, size) / NMS.COMPACT_THREADS)
    record = NmsCompact(order, flags, counts, length, keep, size, count)
    launch("nms", "nms_compact", dtype, blocks, NMS.COMPACT_THREADS, record)
    return keep, count


@functools.lru_cache(64)
def _grid(iou_threshold: float, dtype: str) -> Any:
    """How kept boxes are hashed: `Grid` in kernels/nms.cuh, packed.

    t is the threshold less some roundings in working precision, and 0 where all boxes are listed. The cells, and the
    octaves of size in a bucket, shrink with 1 - t, as the distance between two kept boxes does.
    """
    if iou_threshold < NEAR_THRESHOLD:
        return pack(Grid(0.0, 1.0, 1.0, 0))
    limits = np.finfo(dtype)
    slack = 64 * float(limits.eps)
    cell_ratio = max(4 * (1 - iou_threshold), 16 * slack)
    # Two octaves in a bucket up to t = 0.3. Above, so many buckets that their pairs keep the 32 lanes of a warp busy.
    shift = 53 - max(0, math.ceil(math.log2(2.8 / cell_ratio)))
    return pack(Grid(iou_threshold * (1 - slack), cell_ratio, 16 * float(limits.tiny), shift))


def _flags_and_counts(length: int) -> tuple[tuple[int, str], tuple[int, str]]:
    """A byte for each box, and a number for each block of nms_compact."""
    return (length, "uint8"), (math.ceil(length / NMS.COMPACT_THREADS), "int64")
