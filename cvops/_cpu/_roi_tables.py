"""What every bin of every RoI reads: the tables that `_roi_kernels` works from.

All decisions are made here, in working precision and in the order of the formulas: nothing here may contract (see
`_jit`).

RoIs are grouped by map. The maps of all images and levels are numbered through: all images of the first level, of the
second, ... Of each map the tiles are listed, runs of 16 pixels, that are read at all: none, if asked for none. A table
of `sampled` or `averaged` holds taps, pairs of a cell and its weight: a bin is the sum over its taps along y of wy *
(the sum over its taps along x of wx * map[y, x]). A table of `windows` holds rectangles of cells.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._simd import WIDTH, read_once

# How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True; ps_roi_pool; roi_pool.
ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM = range(4)
_MOST_SAMPLES = 1 << 16  # along one axis of a bin
_MOST_CELLS = 1 << 30  # of a corner from the origin


@jit
def _scaled(coordinate, scale):
    """A coordinate in cells of the map, within reach of integers unless it is NaN or infinite."""
    scaled = coordinate * scale
    if abs(scaled) < np.inf:
        return max(min(scaled, type(scaled)(_MOST_CELLS)), type(scaled)(-_MOST_CELLS))
    return scaled


@jit
def _rounded(number):
    """The nearest integer, halves away from zero."""
    whole = np.trunc(number)
    if abs(number - whole) >= type(number)(0.5):
        whole += np.copysign(type(number)(1), number)
    return whole


@jit
def _frame(low, high, scale, kind, bins, ratio):
    """How the bins of a RoI lie along one axis: (start of the first, size of each, samples or cells in each).

    -1 samples mean that the RoI has no place: a corner is NaN or infinite, or there would be too many samples.
    """
    real = type(low)
    low, high = _scaled(low, scale), _scaled(high, scale)
    if not (abs(low) < np.inf and abs(high) < np.inf):
        return low, low, -1
    if kind in (AVERAGE, MAXIMUM):
        low, high = _rounded(low), _rounded(high)
        # In integers: float32 would lose the last cells of a large RoI.
        size = real(max(np.int64(high) - np.int64(low) + (kind == MAXIMUM), 1))
        step = size / real(bins)
        return low, step, np.int64(np.ceil(step))
    if kind == ALIGN_CENTRES:
        low, high = low - real(0.5), high - real(0.5)
        size = high - low
    else:
        size = max(high - low, real(1))
    step = size / real(bins)
    samples = real(ratio) if ratio > 0 else max(np.ceil(step), real(0))
    return low, step, np.int64(samples) if samples <= _MOST_SAMPLES else -1


# RoIs of one map are put in order of the strip of it, one of so many, in which they begin: the pixels that the next RoI
# reads are then likely in the cache.
_STRIPS = 64


@jit
def _corners(rois, k):
    """(image, x1, y1, x2, y2) of RoI k, each read once: another thread of the caller may be changing them."""
    at = 5 * k
    return (
        read_once(rois, at), read_once(rois, at + 1), read_once(rois, at + 2),
        read_once(rois, at + 3), read_once(rois, at + 4),
    )  # fmt: skip


@jit
def _strip(rois, k, images, levels, area_limits, kind, rows, ratio):
    """The strip in which RoI k begins, those of all maps numbered through; -1 if there is no such image."""
    image, x1, y1, x2, y2 = _corners(rois, k)
    if not 0 <= image < images or image != np.floor(image):
        return -1
    area = (x2 - x1) * (y2 - y1)
    level = 0
    for limit in area_limits:
        level += area >= limit
    start, _, _ = _frame(y1, y2, type(y1)(levels[level, 2]), kind, rows, ratio)
    strip = start / levels[level, 0] * _STRIPS
    return (level * images + np.int64(image)) * _STRIPS + (np.int64(min(strip, _STRIPS - 1)) if strip >= 0 else 0)


@jit
def place(rois, images, levels, area_limits, kind, rows, ratio, begin, most):
    """Put the RoIs in order of the maps and on each from the top; what is equal stays in its order.

    Returns (-1 or a row whose image there is not, the RoIs of the places from `begin` on, at most so many, where those
    of each map start among them).
    """
    cursors = strips(len(levels) * images)
    order = np.zeros(min(len(rois) - begin, most), np.int64)
    starts = np.zeros(len(levels) * images + 1, np.int64)
    known = np.empty(min(len(rois), most), np.int64)  # the strips of the first RoIs: those of all could be too many
    bad = count_strips(rois, images, levels, area_limits, kind, rows, ratio, known, cursors)
    if bad >= 0:
        return bad, order[:0], starts
    for m in range(len(starts)):
        starts[m] = min(max(cursors[m * _STRIPS] - begin, 0), len(order))
    find_places(rois, images, levels, area_limits, kind, rows, ratio, known, cursors, 0, begin, order)
    return -1, order, starts


@jit
def strips(maps):
    """What `count_strips` adds to: nothing yet."""
    return np.zeros(maps * _STRIPS + 1, np.int64)


@jit
def count_strips(rois, images, levels, area_limits, kind, rows, ratio, known, cursors):
    """Let cursors[s] grow by how many of these RoIs lie in strips before s, and tell in `known` which the first lie in.

    Returns -1 or a row whose image there is not: then no place is right.
    """
    counts = np.zeros(len(cursors), np.int64)
    for k in range(len(rois)):
        strip = _strip(rois, k, images, levels, area_limits, kind, rows, ratio)
        if strip < 0:
            return k
        if k < len(known):
            known[k] = strip
        counts[strip + 1] += 1
    before = 0
    for strip in range(len(cursors)):
        before += counts[strip]
        cursors[strip] += before
    return -1


@jit
def find_places(rois, images, levels, area_limits, kind, rows, ratio, known, cursors, first, begin, order):
    """Enter in `order`, which begins at place `begin`, those of these RoIs that it has room for.

    They are numbered from `first` on. cursors[s] is the next place in strip s, and goes on.
    """
    for k in range(len(rois)):
        if k < len(known):
            strip = known[k]
        else:
            strip = max(_strip(rois, k, images, levels, area_limits, kind, rows, ratio), 0)
        r = cursors[strip] - begin
        cursors[strip] += 1
        if 0 <= r < len(order):
            order[r] = first + k


@jit
def _continue(rois, images, levels, area_limits, kind, rows, ratio, done, most, order, starts):
    """What `place` returned for the places around `done`: it is called again only for the next `most`."""
    if done % most == 0:
        return place(rois, images, levels, area_limits, kind, rows, ratio, done, most)
    return -1, order, starts


@jit
def _part_of(starts, begin, count):
    """Where the RoIs of each map start among the `count` from place `begin` on."""
    part = np.empty_like(starts)
    for m in range(len(starts)):
        part[m] = min(max(starts[m] - begin, 0), count)
    return part


@jit
def _fill_up(begin, at, multiple_of, offset, weight):
    """Split the last of the taps from `begin` on until their number is a `multiple_of`; returns their end."""
    if begin < at:
        while (at - begin) % multiple_of:
            weight[at - 1] /= 2
            offset[at], weight[at] = offset[at - 1], weight[at - 1]
            at += 1
    return at


@jit
def _no_taps(bounds, many, at, first, f, offset, weight):
    """Taps of a RoI that has no place: `many` of weight NaN in each bin."""
    for p in range(bounds):
        first[f + p] = at + p * many
    end = at + (bounds - 1) * many
    for i in range(at, end):
        offset[i], weight[i] = 0, np.nan
    return end


@jit
def _sample_taps(start, step, samples, bins, length, stride, multiple_of, at, first, f, offset, weight):
    """Taps of bilinear samples. A cell that several samples of a bin touch is one tap."""
    real = type(start)
    for p in range(bins):
        first[f + p] = at
        cell, near, far = -2, 0.0, 0.0  # the cell of the last sample, and what it and the next one weigh so far
        for i in range(samples + 1):
            if i < samples:
                # Towards larger coordinates also in an inverted RoI.
                sample = real(i if step >= 0 else samples - 1 - i)
                y = start + real(p) * step + (sample + real(0.5)) * step / real(samples)
                if y < -1 or y > length:
                    continue
                y = max(y, real(0))
                low = min(int(y), length - 1)
                fraction = float(y - real(low)) if low < length - 1 else 0.0
            else:
                low, fraction = -2, 0.0  # behind the last sample, to write down what is left
            if low != cell:
                if cell >= 0:
                    offset[at], weight[at] = cell * stride, near / samples
                    at += 1
                    near = 0.0
                    if low == cell + 1:
                        near = far
                    elif cell + 1 < length:
                        offset[at], weight[at] = (cell + 1) * stride, far / samples
                        at += 1
                    far = 0.0
                cell = low
            near += 1 - fraction
            far += fraction
        at = _fill_up(np.int64(first[f + p]), at, multiple_of, offset, weight)
    first[f + bins] = at
    return at


@jit
def _mark(marks, low, high):
    """Mark the tiles that hold the pixels low to high."""
    for tile in range(low // WIDTH, min(high // WIDTH + 1, len(marks))):
        marks[tile] = True


@jit
def _list_marked(marks, tiles, count):
    """Append the marked tiles to a list of `count`, and wipe the marks off; returns the new count."""
    for tile in range(len(marks)):
        if marks[tile]:
            tiles[count] = tile
            count += 1
            marks[tile] = False
    return count


@jit
def sampled(
    rois, images, levels, area_limits, done, placed, order, starts, most_bytes, roi_bytes,
    tiles_of_map, kind, rows, columns, ratio, multiple_of, emit_nan,
):  # fmt: skip
    """Table of bilinear samples for the RoIs of the places from `done` on, as many as may be done at once.

    `order` and `starts` are of the call before, if there was one: `placed` RoIs are put in order at a time. Those done
    at once take at most `most_bytes`, `roi_bytes` for each and the table, unless it is one.

    Returns (bad row or -1, order, starts, chunk). A chunk is (order, starts, tiles, tile_starts, first, offset,
    weight), of its RoIs alone. The tiles of map m that are read are tiles[tile_starts[m] : tile_starts[m + 1]]. The
    taps of RoI order[r] along y in bin row p lie from first[f + p] to first[f + p + 1], where f = r * (rows + columns +
    2), those along x in bin column p from first[f + rows + 1 + p] to the next, a `multiple_of`. An offset counts pixels
    of the map. A RoI that has no place has no taps, or if `emit_nan`, taps of weight NaN.
    """
    bad, order, starts = _continue(
        rois, images, levels, area_limits, kind, rows, ratio, done, placed, order, starts
    )  # fmt: skip
    begin, real = done % placed, rois.dtype.type
    roi_bytes += 8 * (rows + columns + 2) + 4 * rois.itemsize + 16
    most = min(len(order) - begin, most_bytes // roi_bytes + 1)
    frames, samples = np.empty((most, 4), rois.dtype), np.empty((most, 2), np.int64)
    room = count = m = 0
    for r in range(begin, begin + most):
        while starts[m + 1] <= r:
            m += 1
        height, width = np.int64(levels[m // images, 0]), np.int64(levels[m // images, 1])
        scale = real(levels[m // images, 2])
        _, x1, y1, x2, y2 = _corners(rois, order[r])
        frames[count, 0], frames[count, 1], samples[count, 0] = _frame(y1, y2, scale, kind, rows, ratio)
        frames[count, 2], frames[count, 3], samples[count, 1] = _frame(x1, x2, scale, kind, columns, ratio)
        # A bin has at most two taps a sample, and one a cell before it is filled up; neighbours share two cells.
        taps = min(2 * rows * max(samples[count, 0], 1), height + 2 * rows)
        taps += min(2 * columns * max(samples[count, 1], 1), width + 2 * columns)
        taps += multiple_of * (rows + columns)
        if count > 0 and (room + taps) * (8 + rois.itemsize) + (count + 1) * roi_bytes > most_bytes:
            break
        room += taps
        count += 1
    order_of_chunk, starts_of_chunk = order[begin : begin + count], _part_of(starts, begin, count)
    # Unsigned, because each use of a signed index would be checked for being negative.
    first = np.empty(count * (rows + columns + 2), np.uint64)
    offset, weight = np.empty(room, np.int64), np.empty(room, rois.dtype)
    marks = np.zeros(tiles_of_map, np.bool_)
    tiles, tile_starts = np.empty((len(starts) - 1) * tiles_of_map, np.int64), np.zeros(len(starts), np.int64)
    at, f = np.int64(0), np.int64(0)
    one = np.int64(1)  # not a literal, which would be compiled apart
    for m in range(len(starts) - 1):
        height, width = np.int64(levels[m // images, 0]), np.int64(levels[m // images, 1])
        for r in range(starts_of_chunk[m], starts_of_chunk[m + 1]):
            begin, x_first = at, f + rows + 1
            if samples[r, 0] < 0 or samples[r, 1] < 0:
                at = _no_taps(rows + columns + 2, multiple_of if emit_nan else 0, at, first, f, offset, weight)
                middle = np.int64(first[x_first])
            else:
                middle = _sample_taps(
                    frames[r, 0], frames[r, 1], samples[r, 0], rows, height, width, one,
                    at, first, f, offset, weight,
                )  # fmt: skip
                at = _sample_taps(
                    frames[r, 2], frames[r, 3], samples[r, 1], columns, width, one, multiple_of,
                    middle, first, x_first, offset, weight,
                )  # fmt: skip
            f = x_first + columns + 1
            if middle < at and tiles_of_map > 0:
                low = high = offset[middle]
                for x in range(middle, at):
                    low, high = min(low, offset[x]), max(high, offset[x])
                for y in range(begin, middle):
                    _mark(marks, offset[y] + low, offset[y] + high)
        tile_starts[m + 1] = _list_marked(marks, tiles, tile_starts[m])
    chunk = order_of_chunk, starts_of_chunk, tiles, tile_starts, first, offset, weight
    return bad, order, starts, chunk


@jit
def _window(start, step, p, length):
    """Cells [begin, end) of bin p of a pooling operator, clipped to [0, length]."""
    real = type(start)
    begin = np.int64(np.floor(real(p) * step)) + np.int64(start)
    end = np.int64(np.ceil(real(p + 1) * step)) + np.int64(start)
    return min(max(begin, 0), length), min(max(end, 0), length)


@jit
def windows(
    rois, images, levels, area_limits, done, placed, order, starts, most_bytes, roi_bytes,
    tiles_of_map, kind, rows, columns, multiple_of,
):  # fmt: skip
    """Table of rectangles of cells, for one level and the RoIs of the places from `done` on.

    As `sampled`, but a chunk is (order, starts, tiles, tile_starts, windows), and what `averaged` takes for it counts
    too. windows[r, p] are the begin and end of bin row p of RoI order[r], windows[r, rows + p] those of bin column p.
    In a RoI that has no place all end before they begin, by which it is told from one without cells.
    """
    bad, order, starts = _continue(rois, images, levels, area_limits, kind, rows, 0, done, placed, order, starts)
    # ps_roi_pool never reads the last row and column: so it is in torchvision.
    height = np.int64(levels[0, 0]) - (kind == AVERAGE)
    width = np.int64(levels[0, 1])
    columns_read = width - (kind == AVERAGE)
    begin, scale = done % placed, rois.dtype.type(levels[0, 2])
    roi_bytes += 16 * (rows + columns)
    if kind == AVERAGE:
        roi_bytes += 8 * (rows + columns + 2) + multiple_of * (rows + columns + 1) * (8 + rois.itemsize)
    most = min(len(order) - begin, most_bytes // roi_bytes + 1)
    windows = np.empty((most, rows + columns, 2), np.int64)
    marks = np.zeros(tiles_of_map, np.bool_)
    tiles, tile_starts = np.empty(images * tiles_of_map, np.int64), np.zeros(len(starts), np.int64)
    cells = count = 0
    full = False
    for m in range(images):
        for r in range(max(starts[m], begin), min(starts[m + 1], begin + most)):
            if full:
                break
            _, x1, y1, x2, y2 = _corners(rois, order[r])
            top, row_step, row_cells = _frame(y1, y2, scale, kind, rows, 0)
            left, column_step, column_cells = _frame(x1, x2, scale, kind, columns, 0)
            if row_cells < 0 or column_cells < 0:
                for p in range(rows + columns):
                    windows[count, p, 0], windows[count, p, 1] = 0, -1
            else:
                for p in range(rows):
                    windows[count, p, 0], windows[count, p, 1] = _window(top, row_step, p, height)
                for p in range(columns):
                    q = rows + p
                    windows[count, q, 0], windows[count, q, 1] = _window(left, column_step, p, columns_read)
            if kind == AVERAGE:
                for p in range(rows + columns):
                    cells += max(windows[count, p, 1] - windows[count, p, 0], 0)
            if count > 0 and cells * (8 + rois.itemsize) + (count + 1) * roi_bytes > most_bytes:
                full = True
                break
            if row_cells < 0 or column_cells < 0:
                _mark(marks, 0, 0)
            elif windows[count, rows, 0] < windows[count, -1, 1]:
                for y in range(windows[count, 0, 0], windows[count, rows - 1, 1]):
                    _mark(marks, y * width + windows[count, rows, 0], y * width + windows[count, -1, 1] - 1)
            count += 1
        tile_starts[m + 1] = _list_marked(marks, tiles, tile_starts[m])
    chunk = order[begin : begin + count], _part_of(starts, begin, count), tiles, tile_starts, windows[:count]
    return bad, order, starts, chunk


@jit
def averaged(windows, weights, width, rows, columns, multiple_of, emit_nan):
    """The taps (first, offset, weight), as of `sampled`, that average over rectangles; `weights` tells their dtype."""
    room = len(windows) * multiple_of * (rows + columns + 1)
    for r in range(len(windows)):
        for p in range(rows + columns):
            room += max(windows[r, p, 1] - windows[r, p, 0], 0)
    first = np.empty(len(windows) * (rows + columns + 2), np.uint64)
    offset, weight = np.empty(room, np.int64), np.empty(room, weights.dtype)
    at, f = np.int64(0), np.int64(0)
    for r in range(len(windows)):
        if windows[r, 0, 1] < windows[r, 0, 0]:
            at = _no_taps(rows + columns + 2, multiple_of if emit_nan else 0, at, first, f, offset, weight)
            f += rows + columns + 2
            continue
        for p in range(rows + columns):
            if p == rows:
                first[f] = at
                f += 1
            first[f] = at
            f += 1
            begin, end = windows[r, p, 0], windows[r, p, 1]
            for cell in range(begin, end):
                offset[at], weight[at] = cell * (width if p < rows else 1), 1 / (end - begin)
                at += 1
            at = _fill_up(np.int64(first[f - 1]), at, 1 if p < rows else multiple_of, offset, weight)
        first[f] = at
        f += 1
    return first, offset, weight
