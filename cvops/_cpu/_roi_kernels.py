"""The kernels of the RoI operators: from the tables of `_roi_tables` to pooled bins, and back.

A kernel computes a range of work items, which the threads share. In the fast kernels an item is an image and 16 of its
channels, which lie side by side in the lanes of a vector: the kernel transposes the map into a block of pixels by 16
channels, and RoIs read the block. Position-sensitive operators take each bin from channels of its own, called the group
of the bin: there an item is an image, a bin and 16 channels of its group.

Where transposing does not pay, the kernels whose names end in `direct` read the maps pixel by pixel.

All kernels take RoIs in groups by map: those on map m are r = starts[m], ..., starts[m + 1] - 1, and RoI r is row
order[r] of the result.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._simd import WIDTH, full, keep_first_maximum, load, load_one, madd, maximum, read_once, store, transpose_square

FEW_CHANNELS = 4  # with fewer, pixel by pixel is faster
UNIT = 4  # taps along x that `forward` takes at a time


# ------------------------------------------------------------------------------------------------------------- blocks


@jit
def _transpose(source, i, source_stride, rows, columns, target, j, target_stride):
    """target[j + c * target_stride + r] = source[i + r * source_stride + c] for r < rows and c < columns."""
    if rows < WIDTH or columns < WIDTH:
        for r in range(rows):
            for c in range(columns):
                target[j + c * target_stride + r] = source[i + r * source_stride + c]
        return
    # Where a side is no multiple of 16, its last square overlaps the one before.
    for r in range(0, rows, WIDTH):
        r = min(r, rows - WIDTH)
        for c in range(0, columns, WIDTH):
            c = min(c, columns - WIDTH)
            from_, to = i + r * source_stride + c, j + c * target_stride + r
            transpose_square(source, from_, source_stride, target, to, target_stride)


@jit
def transpose_all(begin, end, rows, columns, source, sources, target, targets):
    """Transpose matrices of rows x columns: number sources[i] of `source` becomes number targets[i] of `target`."""
    size = rows * columns
    for i in range(begin, end):
        _transpose(source, sources[i] * size, columns, rows, columns, target, targets[i] * size, rows)


@jit
def lines(vectors, like):
    """An uninitialised array of 16 * vectors elements that begins at a cache line.

    A vector that lies on two cache lines takes twice as long to load.
    """
    memory = np.empty((vectors + 1) * WIDTH, like.dtype)
    start = -memory.ctypes.data % 64 // like.itemsize
    return memory[start : start + vectors * WIDTH]


@jit
def _gather(flat, start, plane, pixel, lanes, runs, begin, end, block):
    """Transpose the listed runs of pixels, of `lanes` planes, into the block."""
    pixels = len(block) // WIDTH
    for i in range(begin, end):
        p = max(min(runs[i] * WIDTH, pixels - WIDTH), 0)
        count = min(pixels - p, WIDTH)
        if lanes < WIDTH:  # the rest of the lanes too: arithmetic on what is in memory by chance, NaN say, may be slow
            for q in range(p, p + count):
                store(block, q * WIDTH, full(block.dtype.type(0)))
        if pixel == 1:
            _transpose(flat, start + p, plane, lanes, count, block, p * WIDTH, WIDTH)
        elif plane == 1 and lanes == WIDTH:
            for q in range(p, p + count):
                store(block, q * WIDTH, load(flat, start + q * pixel))
        else:
            for q in range(p, p + count):
                for c in range(lanes):
                    block[q * WIDTH + c] = flat[start + q * pixel + c * plane]


@jit
def _work_of(item, images, channels, groups):
    """(image, group, first channel of the output, number of channels) of a work item; the only group may be 0."""
    blocks = -(-channels // WIDTH)
    # The last 16 channels may overlap those before: some are computed twice, with the same result.
    channel = max(min(item % blocks * WIDTH, channels - WIDTH), 0)
    return item // blocks // groups, item // blocks % groups, channel, min(channels, WIDTH)


@jit
def _bins_of(group, groups, rows, columns):
    """The bins of an item, as (first, last + 1) along y and x: positions in a RoI's part of the array `first`."""
    if groups == 1:
        return (0, rows), (rows + 1, rows + 1 + columns)
    p, q = group // columns, rows + 1 + group % columns
    return (p, p + 1), (q, q + 1)


@jit(contract=True)
def forward(
    begin,
    end,
    shape,
    groups,
    first_map,
    strides,
    flat,
    order,
    starts,
    runs,
    run_starts,
    first,
    offset,
    weight,
    bins,
    pooled,
):
    """Pool the RoIs of the items [begin, end). Of an item, and of RoI r on its map, it computes

        for p in bin rows:
            for q in bin columns:
                total = 0
                for y in taps of bin row p:
                    row = 0
                    for x in taps of bin column q:
                        row += weight[x] * block[offset[y] + offset[x]]
                    total += weight[y] * row
                pooled[order[r], :, p, q] = total

    where `block` is the map of pixels by 16 channels, so that each line is about 16 numbers. A bin of three taps along
    y, which are rows of the map, and five along x:

              x0     x1     x2     x3   |  x4     x4     x4     x4
        y0    w0     w1     w2     w3   |  w4/2   w4/4   w4/8   w4/8     row = sum over x of weight * pixel
        y1    .      .      .      .    |  .      .      .      .        total += weight[y0] * row, and so on
        y2    .      .      .      .    |  .      .      .      .
              first unit, for all p     |  second unit, for all p: `total` goes on from `values`

    The taps along x come in units of four; the table splits the last one until a unit is full. The loop over units is
    outside of that over p, so that the offsets and weights of a unit are read once for all bins of a column. What the
    units have added up so far waits in `values`.
    """
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    channels //= groups
    zero = weight.dtype.type(0)
    block = lines(height * width, weight)
    values = lines(rows * columns, weight)
    for item in range(begin, end):
        image, group, channel, lanes = _work_of(item, images, channels, groups)
        m = first_map + image
        start = image * channels * groups * height * width + (channel * groups + group) * plane
        _gather(flat, start, plane * groups, pixel, lanes, runs, run_starts[m], run_starts[m + 1], block)
        y_bins, x_bins = _bins_of(group, groups, rows, columns)
        count = rows * columns // groups
        for r in range(starts[m], starts[m + 1]):
            f = r * (rows + columns + 2)
            for q in range(x_bins[0], x_bins[1]):
                x_begin, x_end = first[f + q], first[f + q + 1]
                if x_begin == x_end:
                    for at in range((q - x_bins[0]) * WIDTH, count * WIDTH, columns * WIDTH):
                        store(values, at, full(zero))
                for x in range(x_begin, x_end, UNIT):
                    x0, x1 = offset[x] * WIDTH, offset[x + 1] * WIDTH
                    x2, x3 = offset[x + 2] * WIDTH, offset[x + 3] * WIDTH
                    w0, w1, w2, w3 = weight[x], weight[x + 1], weight[x + 2], weight[x + 3]
                    at = (q - x_bins[0]) * WIDTH
                    y_end = first[f + y_bins[0]]
                    for p in range(y_bins[0], y_bins[1]):
                        total = full(zero)
                        if x > x_begin:
                            total = load(values, at)
                        y_begin, y_end = y_end, first[f + p + 1]
                        for y in range(y_begin, y_end):
                            i = offset[y] * WIDTH
                            row = madd(w0, load(block, i + x0), full(zero))
                            row = madd(w1, load(block, i + x1), row)
                            row = madd(w2, load(block, i + x2), row)
                            row = madd(w3, load(block, i + x3), row)
                            total = madd(weight[y], row, total)
                        store(values, at, total)
                        at += columns * WIDTH
            if groups == 1:
                _transpose(values, 0, WIDTH, count, lanes, pooled, (order[r] * channels + channel) * count, count)
            else:
                store(pooled, (order[r] * groups + group) * channels + channel, load(values, 0))


@jit(contract=True)
def backward(
    begin,
    end,
    shape,
    groups,
    first_map,
    grad,
    order,
    starts,
    first,
    offset,
    weight,
    bins,
    fresh,
    result,
):
    """Add the gradients of the RoIs to `result`, or set `result` to them if `fresh`: the adjoint of `forward`.

    Of an item, and of RoI r on its map, it computes

        for p in bin rows:
            for q in bin columns:
                for y in taps of bin row p:
                    for x in taps of bin column q:
                        block[offset[y] + offset[x]] += weight[x] * (weight[y] * grad[order[r], :, p, q])

    and it then transposes the block into `result`.
    """
    images, channels, height, width = shape
    rows, columns = bins
    channels //= groups
    pixels = height * width
    zero = weight.dtype.type(0)
    block = lines(pixels, weight)
    values = lines(rows * columns, weight)
    values[:] = 0
    for item in range(begin, end):
        image, group, channel, lanes = _work_of(item, images, channels, groups)
        y_bins, x_bins = _bins_of(group, groups, rows, columns)
        count = rows * columns // groups
        to = (image * channels * groups + channel * groups + group) * pixels
        skip = 0
        block[:] = 0
        if not fresh:
            if starts[first_map + image] == starts[first_map + image + 1]:
                continue
            # Where the channels of two items overlap, only the earlier item adds to them.
            skip = item % -(-channels // WIDTH) * WIDTH - channel
            to += skip * groups * pixels
            _transpose(result, to, groups * pixels, lanes - skip, pixels, block, skip, WIDTH)
        for r in range(starts[first_map + image], starts[first_map + image + 1]):
            f = r * (rows + columns + 2)
            if groups == 1:
                _transpose(grad, (order[r] * channels + channel) * count, count, lanes, count, values, 0, WIDTH)
            else:
                store(values, 0, load(grad, (order[r] * groups + group) * channels + channel))
            at = 0
            for p in range(y_bins[0], y_bins[1]):
                for q in range(x_bins[0], x_bins[1]):
                    value = load(values, at)
                    at += WIDTH
                    for y in range(first[f + p], first[f + p + 1]):
                        row = madd(weight[y], value, full(zero))
                        for x in range(first[f + q], first[f + q + 1]):
                            cell = (offset[y] + offset[x]) * WIDTH
                            store(block, cell, madd(weight[x], row, load(block, cell)))
        _transpose(block, skip, WIDTH, pixels, lanes - skip, result, to, groups * pixels)


@jit(contract=True)
def forward_direct(
    begin,
    end,
    shape,
    groups,
    first_map,
    strides,
    flat,
    order,
    starts,
    runs,
    run_starts,
    first,
    offset,
    weight,
    bins,
    pooled,
):
    """As `forward`, pixel by pixel. An item is a RoI."""
    _, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    zero = weight.dtype.type(0)
    m = first_map
    for r in range(starts[first_map] + begin, starts[first_map] + end):
        while starts[m + 1] <= r:
            m += 1
        start = (m - first_map) * channels * height * width
        y_first = r * (rows + columns + 2)
        x_first = y_first + rows + 1
        at = order[r] * (channels // groups) * rows * columns
        for c in range(0, channels, groups):
            for p in range(rows):
                for q in range(columns):
                    of_bin = c if groups == 1 else c + p * columns + q
                    total = zero
                    for y in range(first[y_first + p], first[y_first + p + 1]):
                        row = zero
                        line = start + of_bin * plane + offset[y] * pixel
                        for x in range(first[x_first + q], first[x_first + q + 1]):
                            row += weight[x] * flat[line + offset[x] * pixel]
                        total += weight[y] * row
                    pooled[at] = total
                    at += 1


@jit
def _distinct_rows(first, offset, rows):
    """(slots, ys): tap t along y, of the RoI whose taps begin the table, is for the row of pixels at ys[slots[t]].

    Neighbouring bins share rows, at most two in their ascending order: a kernel sums each along x once for all bins.
    """
    slots, ys = np.empty((2, np.int64(first[rows])), np.int64)
    count = 0
    for t in range(len(slots)):
        slot = count
        for earlier in range(max(count - 2, 0), count):
            if ys[earlier] == offset[t]:
                slot = earlier
        if slot == count:
            ys[count] = offset[t]
            count += 1
        slots[t] = slot
    return slots, ys[:count]


@jit(contract=True)
def forward_one(flat, start, shape, first, offset, weight, bins, pooled, at):
    """As `forward`, for one RoI, whose map begins at flat[start] and whose values begin at pooled[at].

    Row by row, the part that the RoI reads is transposed, and the units along x are summed. The sums of all rows are
    kept until those of a bin are added up.
    """
    _, channels, height, width = shape
    rows, columns = bins
    pixels, count, zero = height * width, rows * columns, weight.dtype.type(0)
    slots, ys = _distinct_rows(first, offset, rows)
    x_first = np.int64(first[rows + 1])
    units = (np.int64(first[rows + 1 + columns]) - x_first) // UNIT
    left, right = width, np.int64(0)
    for x in range(x_first, x_first + units * UNIT):
        left, right = min(left, offset[x]), max(right, offset[x] + 1)
    span = min(-(-max(right - left, 1) // WIDTH) * WIDTH, pixels)
    block, sums, values = lines(span, weight), lines(len(ys) * units, weight), lines(count, weight)
    lanes = min(channels, WIDTH)
    if lanes < WIDTH:  # arithmetic on what is in memory by chance may be slow
        block[:] = 0
    for item in range(-(-channels // WIDTH)):
        channel = max(min(item * WIDTH, channels - WIDTH), 0)
        i = 0
        for s in range(len(ys)):
            begin = max(min(ys[s] + left, pixels - span), 0)
            _transpose(flat, start + channel * pixels + begin, pixels, lanes, span, block, 0, WIDTH)
            to_row = ys[s] - begin
            for x in range(x_first, x_first + units * UNIT, UNIT):
                row = madd(weight[x], load(block, (to_row + offset[x]) * WIDTH), full(zero))
                row = madd(weight[x + 1], load(block, (to_row + offset[x + 1]) * WIDTH), row)
                row = madd(weight[x + 2], load(block, (to_row + offset[x + 2]) * WIDTH), row)
                row = madd(weight[x + 3], load(block, (to_row + offset[x + 3]) * WIDTH), row)
                store(sums, i, row)
                i += WIDTH
        for q in range(columns):
            begin, end = np.int64(first[rows + 1 + q]), np.int64(first[rows + 2 + q])
            if begin == end:
                for i in range(q * WIDTH, count * WIDTH, columns * WIDTH):
                    store(values, i, full(zero))
            for x in range(begin, end, UNIT):
                of_unit = (x - x_first) // UNIT * WIDTH
                i, y_end = q * WIDTH, first[0]
                for p in range(rows):
                    total = full(zero)
                    if x > begin:
                        total = load(values, i)
                    y_begin, y_end = y_end, first[p + 1]
                    for y in range(y_begin, y_end):
                        total = madd(weight[y], load(sums, slots[y] * units * WIDTH + of_unit), total)
                    store(values, i, total)
                    i += columns * WIDTH
        _transpose(values, 0, WIDTH, count, lanes, pooled, at + channel * count, count)


@jit(contract=True)
def forward_one_direct(flat, start, shape, first, offset, weight, bins, pooled, at):
    """As `forward_one`, pixel by pixel, and as `forward_direct`.

    Values are computed by 16: those beyond a bin row are overwritten by the next, and `pooled` needs 15 elements more.
    """
    _, channels, height, width = shape
    rows, columns = bins
    zero = weight.dtype.type(0)
    slots, ys = _distinct_rows(first, offset, rows)
    line, last = -(-columns // WIDTH) * WIDTH, len(ys) - 1
    sums = np.empty(len(ys) * line, weight.dtype)
    for i in range(line - WIDTH, len(sums), line):
        store(sums, i, full(zero))
    for _ in range(channels):
        for s in range(0, len(ys), 4):  # four rows at a time; beyond the last it is the last again
            s1, s2, s3 = min(s + 1, last), min(s + 2, last), min(s + 3, last)
            i0, i1, i2, i3 = start + ys[s], start + ys[s1], start + ys[s2], start + ys[s3]
            for q in range(columns):
                r0 = r1 = r2 = r3 = zero
                for x in range(first[rows + 1 + q], first[rows + 2 + q]):
                    w, i = weight[x], offset[x]
                    r0 += w * load_one(flat, i0 + i)
                    r1 += w * load_one(flat, i1 + i)
                    r2 += w * load_one(flat, i2 + i)
                    r3 += w * load_one(flat, i3 + i)
                sums[s * line + q], sums[s1 * line + q] = r0, r1
                sums[s2 * line + q], sums[s3 * line + q] = r2, r3
        for p in range(rows):
            for q in range(0, columns, WIDTH):
                total = full(zero)
                for y in range(first[p], first[p + 1]):
                    total = madd(weight[y], load(sums, slots[y] * line + q), total)
                store(pooled, at + q, total)
            at += columns
        start += height * width


@jit(contract=True)
def backward_direct(
    begin, end, shape, groups, first_map, grad, order, starts, first, offset, weight, bins, fresh, result
):  # fmt: skip
    """As `backward`, pixel by pixel. An item is a channel of an image."""
    _, channels, height, width = shape
    rows, columns = bins
    pixels = height * width
    for item in range(begin, end):
        image, channel = item // channels, item % channels
        plane = result[item * pixels : (item + 1) * pixels]
        if fresh:
            plane[:] = 0
        y_bins, x_bins = _bins_of(channel % groups, groups, rows, columns)
        for r in range(starts[first_map + image], starts[first_map + image + 1]):
            f = r * (rows + columns + 2)
            at = (order[r] * channels + channel) * rows * columns if groups == 1 else channel * len(order) + order[r]
            for p in range(y_bins[0], y_bins[1]):
                for q in range(x_bins[0], x_bins[1]):
                    for y in range(first[f + p], first[f + p + 1]):
                        row = weight[y] * grad[at]
                        for x in range(first[f + q], first[f + q + 1]):
                            plane[offset[y] + offset[x]] += weight[x] * row
                    at += 1


# ----------------------------------------------------------------------------------------------------------- roi_pool


@jit
def maxima(begin, end, shape, strides, flat, order, starts, runs, run_starts, windows, bins, pooled, argmax):
    """Write the maximum of each window to `pooled`, and its pixel to `argmax` unless that is empty.

    A window without cells has maximum 0 and pixel -1. All bins of an invalid RoI are NaN, with pixel -1.
    """
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    count = rows * columns
    block = lines(height * width, pooled)
    values = lines(count, pooled)
    pixels = lines(count, argmax)
    for item in range(begin, end):
        m, _, channel, lanes = _work_of(item, images, channels, 1)
        start = m * channels * height * width + channel * plane
        _gather(flat, start, plane, pixel, lanes, runs, run_starts[m], run_starts[m + 1], block)
        for r in range(starts[m], starts[m + 1]):
            at = 0
            for p in range(rows):
                top, bottom = windows[r, p, 0], windows[r, p, 1]
                for q in range(rows, rows + columns):
                    left, right = windows[r, q, 0], windows[r, q, 1]
                    if bottom <= top or right <= left:
                        nothing = 0 if top <= bottom else np.nan
                        store(values, at, full(pooled.dtype.type(nothing)))
                        store(pixels, at, full(np.int32(-1)))
                    elif argmax.size == 0:
                        best = load(block, (top * width + left) * WIDTH)
                        for y in range(top, bottom):
                            for x in range(y * width + left, y * width + right):
                                best = maximum(best, load(block, x * WIDTH))
                        store(values, at, best)
                    else:
                        best = load(block, (top * width + left) * WIDTH)
                        where = full(np.int32(top * width + left))
                        for y in range(top, bottom):
                            for x in range(y * width + left, y * width + right):
                                value = load(block, x * WIDTH)
                                where = keep_first_maximum(best, value, where, full(np.int32(x)))
                                best = maximum(best, value)
                        store(values, at, best)
                        store(pixels, at, where)
                    at += WIDTH
            to = (order[r] * channels + channel) * count
            _transpose(values, 0, WIDTH, count, lanes, pooled, to, count)
            if argmax.size:
                _transpose(pixels, 0, WIDTH, count, lanes, argmax, to, count)


@jit
def _first_maximum(flat, start, pixel, width, top, bottom, left, right):
    """(value, pixel) of the first maximum in a rectangle of cells, or of the first NaN."""
    where = top * width + left
    best = flat[start + where * pixel]
    has_nan = False
    for y in range(top, bottom):
        for x in range(y * width + left, y * width + right):
            value = flat[start + x * pixel]
            greater = value > best
            best, where = value if greater else best, x if greater else where
            has_nan |= value != value
    if has_nan:
        for y in range(top, bottom):
            for x in range(y * width + left, y * width + right):
                if flat[start + x * pixel] != flat[start + x * pixel]:
                    return flat[start + x * pixel], x
    return best, where


@jit
def maxima_direct(begin, end, shape, strides, flat, order, starts, runs, run_starts, windows, bins, pooled, argmax):
    """As `maxima`, pixel by pixel. An item is a RoI."""
    _, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    m = 0
    for r in range(begin, end):
        while starts[m + 1] <= r:
            m += 1
        at = order[r] * channels * rows * columns
        for c in range(channels):
            start = m * channels * height * width + c * plane
            for p in range(rows):
                for q in range(rows, rows + columns):
                    top, bottom = windows[r, p, 0], windows[r, p, 1]
                    left, right = windows[r, q, 0], windows[r, q, 1]
                    if bottom <= top or right <= left:
                        best, where = pooled.dtype.type(0 if top <= bottom else np.nan), -1
                    else:
                        best, where = _first_maximum(flat, start, pixel, width, top, bottom, left, right)
                    pooled[at] = best
                    if argmax.size:
                        argmax[at] = where
                    at += 1


@jit
def maxima_backward(begin, end, planes, shape, bins, grad, argmax, order, starts, fresh, result):
    """Add the gradient of each bin to the pixel of its maximum, in `result`, which is set to 0 before if `fresh`.

    An item is an image and some of its channels, of `planes` each.
    """
    _, channels, height, width = shape
    pixels = height * width
    blocks = -(-channels // planes)
    for item in range(begin, end):
        image, channel = item // blocks, item % blocks * planes
        last = min(channel + planes, channels)
        if fresh:
            result[(image * channels + channel) * pixels : (image * channels + last) * pixels] = 0
        for r in range(starts[image], starts[image + 1]):
            at = (order[r] * channels + channel) * bins
            for c in range(channel, last):
                plane = result[(image * channels + c) * pixels :]
                values, pixels_of_maxima = grad[at : at + bins], argmax[at : at + bins]
                for p in range(bins):
                    where = read_once(pixels_of_maxima, p)
                    if 0 <= where < pixels:
                        plane[where] += values[p]
                at += bins
