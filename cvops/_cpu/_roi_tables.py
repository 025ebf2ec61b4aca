"""What every bin of every RoI reads: the tables that `_roi_kernels` works from.

All decisions are made here, in working precision and in the order of the formulas: nothing here may contract (see
`_jit`).

RoIs are grouped by map. Map m = level * images + image. A table has one of two forms:

- Windows: a bin is a rectangle of cells, from windows[r, p] along y and windows[r, rows + q] along x.
- Taps: along each axis a bin has taps, pairs of a cell and its weight, so that

      bin = sum(weight[y] * sum(weight[x] * map[y, x] for x in taps along x) for y in taps along y)

A table also lists which pixels of each map are read, in runs of 16 pixels, so that kernels transpose no others. The
list is empty for kernels that transpose nothing.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._simd import WIDTH, read_once

# How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True and ps_roi_align; ps_roi_pool;
# roi_pool.
ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM = range(4)
_MOST_SAMPLES = 1 << 16  # along one axis of a bin
_MOST_CELLS = 1 << 30  # between a corner and the origin


@jit
def _scaled(coordinate, scale):
    """A coordinate in cells of the map. Finite ones are clipped so that integers can hold them."""
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
def axis_of(low, high, scale, layout, bins, ratio):
    """How the bins of a RoI lie along one axis: (start of the first, size of each, samples or cells in each).

    -1 samples mean that the RoI is invalid: a corner is NaN or infinite, or there would be too many samples.
    """
    real = type(low)
    low, high = _scaled(low, scale), _scaled(high, scale)
    if not (abs(low) < np.inf and abs(high) < np.inf):
        return low, low, -1
    if layout in (AVERAGE, MAXIMUM):
        low, high = _rounded(low), _rounded(high)
        # In integers: float32 would lose the last cells of a large RoI.
        size = real(max(np.int64(high) - np.int64(low) + (layout == MAXIMUM), 1))
        bin_size = size / real(bins)
        return low, bin_size, np.int64(np.ceil(bin_size))
    if layout == ALIGN_CENTRES:
        low, high = low - real(0.5), high - real(0.5)
        size = high - low
    else:
        size = max(high - low, real(1))
    bin_size = size / real(bins)
    samples = real(ratio) if ratio > 0 else max(np.ceil(bin_size), real(0))
    return low, bin_size, np.int64(samples) if samples <= _MOST_SAMPLES else -1


# A map is divided along y into so many strips, and its RoIs are sorted by the strip in which they begin: then the next
# RoI likely reads pixels that are in the cache.
_STRIPS = 64


@jit
def roi_of(rois, k):
    """(image, x1, y1, x2, y2) of RoI k. Each is read once, because a thread of the caller may be changing them."""
    at = 5 * k
    return (
        read_once(rois, at), read_once(rois, at + 1), read_once(rois, at + 2),
        read_once(rois, at + 3), read_once(rois, at + 4),
    )  # fmt: skip


@jit
def _strip(rois, k, images, levels, area_limits, layout, rows, ratio):
    """The strip in which RoI k begins, m * _STRIPS + strip of map m; -1 if its image index is wrong."""
    image, x1, y1, x2, y2 = roi_of(rois, k)
    if not 0 <= image < images or image != np.floor(image):
        return -1
    area = (x2 - x1) * (y2 - y1)
    level = 0
    for limit in area_limits:
        level += area >= limit
    start, _, _ = axis_of(y1, y2, type(y1)(levels[level, 2]), layout, rows, ratio)
    strip = start / levels[level, 0] * _STRIPS
    return (level * images + np.int64(image)) * _STRIPS + (np.int64(min(strip, _STRIPS - 1)) if strip >= 0 else 0)


@jit
def sort_rois(rois, images, levels, area_limits, layout, rows, ratio, begin, most):
    """Sort the RoIs by map, and on each map by strip from the top. The sort is stable.

    Returns (bad, order, starts). `order` holds the RoIs at the positions from `begin` on in the sorted list, at most
    `most` of them; those on map m are order[starts[m] : starts[m + 1]]. `bad` is a RoI whose image index is wrong, and
    then the rest means nothing, or -1.
    """
    cursors = strips(len(levels) * images)
    order = np.zeros(min(len(rois) - begin, most), np.int64)
    starts = np.zeros(len(levels) * images + 1, np.int64)
    known = np.empty(min(len(rois), most), np.int64)  # the strips of the first RoIs; those of all could be too many
    bad = count_strips(rois, images, levels, area_limits, layout, rows, ratio, known, cursors)
    if bad >= 0:
        return bad, order[:0], starts
    for m in range(len(starts)):
        starts[m] = min(max(cursors[m * _STRIPS] - begin, 0), len(order))
    fill_order(rois, images, levels, area_limits, layout, rows, ratio, known, cursors, 0, begin, order)
    return -1, order, starts


@jit
def strips(maps):
    """The cursors before `count_strips` has counted any RoIs."""
    return np.zeros(maps * _STRIPS + 1, np.int64)


@jit
def count_strips(rois, images, levels, area_limits, layout, rows, ratio, known, cursors):
    """Add to cursors[s] how many of these RoIs lie in the strips before s: then RoIs of strip s start there.

    The strips of the first RoIs are written to `known`, which has room for some. Returns -1, or a RoI whose image index
    is wrong.
    """
    counts = np.zeros(len(cursors), np.int64)
    for k in range(len(rois)):
        strip = _strip(rois, k, images, levels, area_limits, layout, rows, ratio)
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
def fill_order(rois, images, levels, area_limits, layout, rows, ratio, known, cursors, first, begin, order):
    """Write to `order` those of these RoIs whose positions in the sorted list are begin, ..., begin + len(order) - 1.

    They are numbered from `first` on. cursors[s] is the position of the next RoI of strip s, and is advanced.
    """
    for k in range(len(rois)):
        if k < len(known):
            strip = known[k]
        else:
            strip = max(_strip(rois, k, images, levels, area_limits, layout, rows, ratio), 0)
        r = cursors[strip] - begin
        cursors[strip] += 1
        if 0 <= r < len(order):
            order[r] = first + k


@jit
def _continue(rois, images, levels, area_limits, layout, rows, ratio, done, most, order, starts):
    """The part of the sorted list that holds position `done`: known, unless a part of `most` RoIs begins there."""
    if done % most == 0:
        return sort_rois(rois, images, levels, area_limits, layout, rows, ratio, done, most)
    return -1, order, starts


@jit
def _part_of(starts, begin, count):
    """The `starts` of a chunk: of the `count` RoIs from position `begin` on."""
    part = np.empty_like(starts)
    for m in range(len(starts)):
        part[m] = min(max(starts[m] - begin, 0), count)
    return part


@jit
def _fill_up(begin, at, multiple_of, offset, weight):
    """Split the last of the taps begin, ..., at - 1 until their number is a `multiple_of` 1 or 4; returns their end."""
    if begin < at:
        while (at - begin) & (multiple_of - 1):
            weight[at - 1] /= 2
            offset[at], weight[at] = offset[at - 1], weight[at - 1]
            at += 1
    return at


@jit
def _invalid_taps(bounds, many, at, first, f, offset, weight):
    """Taps of an invalid RoI: `many` of weight NaN in each bin."""
    for p in range(bounds):
        first[f + p] = at + p * many
    end = at + (bounds - 1) * many
    for i in range(at, end):
        offset[i], weight[i] = 0, np.nan
    return end


@jit
def _bilinear_taps(start, bin_size, samples, bins, length, stride, multiple_of, at, first, f, offset, weight):
    """Write the taps of bilinear samples along one axis, and return their end. A cell is one tap of a bin, not more.

    A sample at y between the cells i and i + 1 reads both, with the weights 1 - (y - i) and y - i:

        cells      i           i + 1         i + 2
        samples    |     a  b    |      c      |       taps of the bin: three cells, with the weights
                                                        (1-a + 1-b) / 3, (a + b + 1-c) / 3, c / 3

    Samples come in ascending order, so only the weights of two cells, `near` and `far`, are still growing at a time.
    """
    real = type(start)
    for p in range(bins):
        first[f + p] = at
        cell, near, far = -2, 0.0, 0.0  # the cell of the last sample, and the weights so far of it and the next one
        for i in range(samples + 1):
            if i < samples:
                # In ascending order: an inverted RoI begins with its last sample.
                sample = real(i if bin_size >= 0 else samples - 1 - i)
                y = start + real(p) * bin_size + (sample + real(0.5)) * bin_size / real(samples)
                if y < -1 or y > length:
                    continue
                y = max(y, real(0))
                low = min(int(y), length - 1)
                fraction = float(y - real(low)) if low < length - 1 else 0.0
            else:
                low, fraction = -2, 0.0  # after the last sample, so that the last two cells are written
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
def room_of_taps(samples, sides, bins, multiple_of):
    """No fewer taps than a RoI has, with so many samples in a bin along each axis.

    A bin has at most two taps a sample, and one a cell before it is filled up; neighbours share two cells.
    """
    y_taps = min(2 * bins[0] * max(samples[0], 1), sides[0] + 2 * bins[0])
    x_taps = min(2 * bins[1] * max(samples[1], 1), sides[1] + 2 * bins[1])
    return y_taps + x_taps + multiple_of * (bins[0] + bins[1])


@jit
def taps_of(y_axis, x_axis, sides, bins, multiple_of, emit_nan, at, first, f, offset, weight):
    """Write the taps of a RoI with these axes (see `axis_of`), as in `table_of_samples`.

    Returns where those along x begin, and the end.
    """
    (y_start, y_size, y_samples), (x_start, x_size, x_samples) = y_axis, x_axis
    (height, width), (rows, columns) = sides, bins
    x_first, one = f + rows + 1, np.int64(1)  # not a literal, which would be compiled apart
    if y_samples < 0 or x_samples < 0:
        end = _invalid_taps(rows + columns + 2, multiple_of if emit_nan else 0, at, first, f, offset, weight)
        return np.int64(first[x_first]), end
    middle = _bilinear_taps(
        y_start, y_size, y_samples, rows, height, width, one, at, first, f, offset, weight
    )  # fmt: skip
    return middle, _bilinear_taps(
        x_start, x_size, x_samples, columns, width, one, multiple_of, middle, first, x_first, offset, weight
    )  # fmt: skip


@jit
def _mark(marks, low, high):
    """Mark the runs that hold the pixels low to high."""
    for run in range(low // WIDTH, min(high // WIDTH + 1, len(marks))):
        marks[run] = True


@jit
def _list_marked(marks, runs, count):
    """Append the marked runs to the `count` in the list, and clear the marks; returns the new count."""
    for run in range(len(marks)):
        if marks[run]:
            runs[count] = run
            count += 1
            marks[run] = False
    return count


@jit
def table_of_samples(
    rois, images, levels, area_limits, done, sorted_at_once, order, starts, most_bytes, roi_bytes,
    runs_of_map, layout, rows, columns, ratio, multiple_of, emit_nan,
):  # fmt: skip
    """The table of taps of roi_align, for a chunk of the RoIs: those from position `done` of the sorted list on.

    The list is computed in parts of `sorted_at_once` RoIs; `order` and `starts` are what the call before returned, if
    there was one. A chunk has as many RoIs as take at most `most_bytes`, and at least one; each takes `roi_bytes`
    besides its table.

    Returns (bad, order, starts, chunk). `bad` is -1 or a RoI whose image index is wrong. The arrays of a chunk are for
    its RoIs alone: (order, starts, runs, run_starts, first, offset, weight).

    - runs[run_starts[m] : run_starts[m + 1]] are the runs of pixels of map m that are read.
    - With f = r * (rows + columns + 2), the taps of RoI order[r] along y in bin row p begin at first[f + p] and end at
      first[f + p + 1]; those along x in bin column q begin at first[f + rows + 1 + q] and end at the next, and their
      number is a `multiple_of`. Tap t has the weight weight[t] and reads offset[t] pixels further on in the map.

    An invalid RoI has no taps, or to `emit_nan` it has taps of weight NaN.
    """
    bad, order, starts = _continue(
        rois, images, levels, area_limits, layout, rows, ratio, done, sorted_at_once, order, starts
    )  # fmt: skip
    begin, real = done % sorted_at_once, rois.dtype.type
    roi_bytes += 8 * (rows + columns + 2) + 4 * rois.itemsize + 16
    most = min(len(order) - begin, most_bytes // roi_bytes + 1)
    axes, samples = np.empty((most, 4), rois.dtype), np.empty((most, 2), np.int64)
    room = count = m = 0
    for r in range(begin, begin + most):
        while starts[m + 1] <= r:
            m += 1
        height, width = np.int64(levels[m // images, 0]), np.int64(levels[m // images, 1])
        scale = real(levels[m // images, 2])
        _, x1, y1, x2, y2 = roi_of(rois, order[r])
        axes[count, 0], axes[count, 1], samples[count, 0] = axis_of(y1, y2, scale, layout, rows, ratio)
        axes[count, 2], axes[count, 3], samples[count, 1] = axis_of(x1, x2, scale, layout, columns, ratio)
        taps = room_of_taps(samples[count], (height, width), (rows, columns), multiple_of)
        if count > 0 and (room + taps) * (8 + rois.itemsize) + (count + 1) * roi_bytes > most_bytes:
            break
        room += taps
        count += 1
    order_of_chunk, starts_of_chunk = order[begin : begin + count], _part_of(starts, begin, count)
    # Unsigned, because each use of a signed index would be checked for being negative.
    first = np.empty(count * (rows + columns + 2), np.uint64)
    offset, weight = np.empty(room, np.int64), np.empty(room, rois.dtype)
    marks = np.zeros(runs_of_map, np.bool_)
    runs, run_starts = np.empty((len(starts) - 1) * runs_of_map, np.int64), np.zeros(len(starts), np.int64)
    at, f = np.int64(0), np.int64(0)
    for m in range(len(starts) - 1):
        height, width = np.int64(levels[m // images, 0]), np.int64(levels[m // images, 1])
        for r in range(starts_of_chunk[m], starts_of_chunk[m + 1]):
            begin = at
            y_axis, x_axis = (axes[r, 0], axes[r, 1], samples[r, 0]), (axes[r, 2], axes[r, 3], samples[r, 1])
            middle, at = taps_of(
                y_axis, x_axis, (height, width), (rows, columns), multiple_of, emit_nan,
                at, first, f, offset, weight,
            )  # fmt: skip
            f += rows + columns + 2
            if middle < at and runs_of_map > 0:
                low = high = offset[middle]
                for x in range(middle, at):
                    low, high = min(low, offset[x]), max(high, offset[x])
                for y in range(begin, middle):
                    _mark(marks, offset[y] + low, offset[y] + high)
        run_starts[m + 1] = _list_marked(marks, runs, run_starts[m])
    chunk = order_of_chunk, starts_of_chunk, runs, run_starts, first, offset, weight
    return bad, order, starts, chunk


@jit
def _window(start, bin_size, p, length):
    """Cells [begin, end) of bin p of a pooling operator, clipped to [0, length]."""
    real = type(start)
    begin = np.int64(np.floor(real(p) * bin_size)) + np.int64(start)
    end = np.int64(np.ceil(real(p + 1) * bin_size)) + np.int64(start)
    return min(max(begin, 0), length), min(max(end, 0), length)


@jit
def table_of_windows(
    rois, images, levels, area_limits, done, sorted_at_once, order, starts, most_bytes, roi_bytes,
    runs_of_map, layout, rows, columns, multiple_of,
):  # fmt: skip
    """The table of windows, for one level and a chunk of the RoIs: those from position `done` of the sorted list on.

    As `table_of_samples`, but a chunk is (order, starts, runs, run_starts, windows), and for AVERAGE the bytes of what
    `taps_of_windows` makes of it are counted too. Bin row p of RoI order[r] has the cells from windows[r, p, 0] up to,
    not including, windows[r, p, 1]; bin column q those of windows[r, rows + q]. All windows of an invalid RoI end
    before they begin, and no others do.
    """
    bad, order, starts = _continue(
        rois, images, levels, area_limits, layout, rows, 0, done, sorted_at_once, order, starts
    )
    # ps_roi_pool never reads the last row and column: so it is in torchvision.
    height = np.int64(levels[0, 0]) - (layout == AVERAGE)
    width = np.int64(levels[0, 1])
    columns_read = width - (layout == AVERAGE)
    begin, scale = done % sorted_at_once, rois.dtype.type(levels[0, 2])
    roi_bytes += 16 * (rows + columns)
    if layout == AVERAGE:
        roi_bytes += 8 * (rows + columns + 2) + multiple_of * (rows + columns + 1) * (8 + rois.itemsize)
    most = min(len(order) - begin, most_bytes // roi_bytes + 1)
    windows = np.empty((most, rows + columns, 2), np.int64)
    marks = np.zeros(runs_of_map, np.bool_)
    runs, run_starts = np.empty(images * runs_of_map, np.int64), np.zeros(len(starts), np.int64)
    cells = count = 0
    full = False
    for m in range(images):
        for r in range(max(starts[m], begin), min(starts[m + 1], begin + most)):
            if full:
                break
            _, x1, y1, x2, y2 = roi_of(rois, order[r])
            top, bin_height, row_cells = axis_of(y1, y2, scale, layout, rows, 0)
            left, bin_width, column_cells = axis_of(x1, x2, scale, layout, columns, 0)
            if row_cells < 0 or column_cells < 0:
                for p in range(rows + columns):
                    windows[count, p, 0], windows[count, p, 1] = 0, -1
            else:
                for p in range(rows):
                    windows[count, p, 0], windows[count, p, 1] = _window(top, bin_height, p, height)
                for p in range(columns):
                    q = rows + p
                    windows[count, q, 0], windows[count, q, 1] = _window(left, bin_width, p, columns_read)
            if layout == AVERAGE:
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
        run_starts[m + 1] = _list_marked(marks, runs, run_starts[m])
    chunk = order[begin : begin + count], _part_of(starts, begin, count), runs, run_starts, windows[:count]
    return bad, order, starts, chunk


@jit
def taps_of_windows(windows, weights, width, rows, columns, multiple_of, emit_nan):
    """The taps (first, offset, weight), as in `table_of_samples`, that average the cells of each window.

    They have the dtype of `weights`.
    """
    room = len(windows) * multiple_of * (rows + columns + 1)
    for r in range(len(windows)):
        for p in range(rows + columns):
            room += max(windows[r, p, 1] - windows[r, p, 0], 0)
    first = np.empty(len(windows) * (rows + columns + 2), np.uint64)
    offset, weight = np.empty(room, np.int64), np.empty(room, weights.dtype)
    at, f = np.int64(0), np.int64(0)
    for r in range(len(windows)):
        if windows[r, 0, 1] < windows[r, 0, 0]:
            at = _invalid_taps(rows + columns + 2, multiple_of if emit_nan else 0, at, first, f, offset, weight)
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
