// RoIAlign [1]: each bin of a RoI is the mean of bilinear samples of a map; and its gradient. For a pyramid of maps a RoI
// is pooled from the one that suits its area, all in one launch: `pick` finds the map in the kernel.
//
// boxes (K, 5); maps (images, channels, height, width), contiguous or channels-last; pooled and grad (K, channels, rows,
// columns) and gradients (images, channels, height, width), contiguous. A launch knows LEVELS maps; for more, each launch
// does the RoIs of its own.
//
// The operator is separable: Wy . map . Wx^T, of which the samples of a bin that touch one cell are one tap. The taps of
// a RoI are found once for CHANNELS channels and kept in shared memory, instead of once for each channel and bin.
//
// Forward: neighbouring lanes take neighbouring taps of a row of bins, so that a warp reads runs of a row of the map;
// each lane sums its column over the taps along y, for TOGETHER channels, 16 reads on their way at once. A bin is then
// the sum over a few lanes, by shuffles. Nothing but the result is written.
//
// Gradient: a block owns a tile of one map and some channels, finds the RoIs that reach the tile, in order, and adds up
// what they bring to each of its pixels in registers: no atomics, the same bits on every run, and each pixel is written
// once, so that nothing has to be zeroed before. `roi_align_places` works out first where each RoI lies.
//
// [1] K. He et al., "Mask R-CNN", ICCV 2017.

constexpr int LEVELS = 4;
constexpr int THREADS = 256, WARP = 32, WARPS = THREADS / WARP;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

// Parameters of a kernel, one for each level; and their names.
#define OF_LEVELS(type, name) type name##0, type name##1, type name##2, type name##3
#define LISTED(name) {name##0, name##1, name##2, name##3}

// ----------------------------------------------------------------------------------------------------------- places

// Of the maps that a launch knows, from the finest: their sizes and scales, the area from which on a RoI is pooled from
// each of them, and the one that is too large for all. An area that is NaN is none, and a limit that is NaN is never
// reached.
struct Sizes {
    long long heights[LEVELS], widths[LEVELS];
};
struct Pyramid {
    Sizes sizes;
    double scales[LEVELS], limits[LEVELS], end;
};

// Where a RoI is pooled; no level if the launch does not know its map, no image if there is none.
struct Place {
    int level;
    long long image;
    Axis y, x;
};

__device__ Place place_of(Row row, const Pyramid& pyramid, long long images, long long rows, long long columns,
                          long long ratio, long long aligned) {
    Place place = {-1, -1, {}, {}};
    double area;
    convert(((row.x2 - row.x1) * (row.y2 - row.y1)).value, area);
    area = area > 0 ? area : 0;
    if (!(area >= pyramid.limits[0]) || area >= pyramid.end) return place;
    double scale = pyramid.scales[0];
    place.level = 0;
#pragma unroll
    for (int i = 1; i < LEVELS; ++i) {
        if (!(area >= pyramid.limits[i])) continue;
        place.level = i;
        scale = pyramid.scales[i];
    }
    place.image = row.index(images);
    Layout layout = aligned ? ALIGN_CENTRES : ALIGN;
    place.y = axis_of(row.y1, row.y2, real(scale), layout, rows, ratio);
    place.x = axis_of(row.x1, row.x2, real(scale), layout, columns, ratio);
    return place;
}

// One of the values of the levels; by comparison, because an array that is indexed would lie in memory.
template <class Type>
__device__ __forceinline__ Type pick(const Type (&values)[LEVELS], int level) {
    Type value = values[0];
#pragma unroll
    for (int i = 1; i < LEVELS; ++i)
        if (level == i) value = values[i];
    return value;
}

// Calls take(cell, weight) for each tap of a bin along one axis, cells ascending, given its samples from `begin` to `end`
// of those in ascending order. Sums are in double: there may be 65 536 samples on one cell.
template <class Take>
__device__ void take_taps(Axis axis, long long bin, long long length, long long begin, long long end, Take take) {
    Real half = {(T)0.5}, samples = {(T)axis.samples}, base = axis.start + Real{(T)bin} * axis.step;
    bool inverted = axis.step < Real{0};
    long long cell = -2;          // that of the last sample
    double near = 0, far = 0;     // what it and the next one weigh so far
    for (long long i = begin; i <= end; ++i) {
        long long low = -2;  // behind the last sample, to take what is left
        Real fraction = {0};
        if (i < end) {
            Real sample = {(T)(inverted ? axis.samples - 1 - i : i)};
            Real at = base + (sample + half) * axis.step / samples;
            if (at < Real{-1} || at > Real{(T)length}) continue;
            at = maximum(at, Real{0});
            low = min(integer_of(at), length - 1);
            if (low < length - 1) fraction = at - Real{(T)low};
        }
        if (low != cell) {
            if (cell >= 0) {
                take(cell, real(near) / samples);
                near = 0;
                if (low == cell + 1) near = far;
                else if (cell + 1 < length) take(cell + 1, real(far) / samples);
                far = 0;
            }
            cell = low;
        }
        double part;
        convert(fraction.value, part);
        near += 1 - part;
        far += part;
    }
}

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int CHANNELS = 64;  // of a block; as in _roi.py
constexpr int TOGETHER = 4;   // channels of a thread at a time
constexpr int TAPS = 512;     // in shared memory, for each axis

struct Tap {
    long long offset;
    Real weight;
};

// The taps of some bins along one axis: those of each begin at a multiple of the same number.
struct Taps {
    Tap taps[TAPS];
    int counts[TAPS / 2];  // of each bin
};

// More than a bin has taps: two for a sample, and one for a cell, where large coordinates are not exact.
__device__ long long most_taps(Axis axis, long long length) {
    long long cells = integer_of(maximum(axis.step, Real{0} - axis.step)) + 3 + (length >> 16);
    return max(min(2 * axis.samples, cells), 2ll);
}

// Find the taps of bin number `slot` of the table: of all that the bin has, at most `room`, after skipping some.
__device__ void fill(Taps& table, int slot, int room, Axis axis, long long bin, long long length, long long pitch,
                     long long skipped) {
    long long number = -skipped;
    Tap* taps = table.taps + slot * room;
    take_taps(axis, bin, length, 0, axis.samples, [&](long long cell, Real weight) {
        if (number >= 0 && number < room) taps[number] = {cell * pitch, weight};
        ++number;
    });
    table.counts[slot] = (int)min(max(number, 0ll), (long long)room);
}

__device__ __forceinline__ Real from_lane(Real value, int distance) {
    return {__shfl_xor_sync(ALL, value.value, distance)};
}

extern "C" __global__ void __launch_bounds__(THREADS)
roi_align(OF_LEVELS(const Element*, map), OF_LEVELS(long long, height), OF_LEVELS(long long, width),
          OF_LEVELS(double, scale), OF_LEVELS(double, limit), double limit_of_all, const void* boxes,
          long long boxes_dtype, long long images, long long channels, long long channels_last, long long rows,
          long long columns, long long ratio, long long aligned, Element* pooled) {
    SHARED(Taps, y_taps);
    SHARED(Taps, x_taps);
    const Element* maps[LEVELS] = LISTED(map);
    Pyramid pyramid = {{LISTED(height), LISTED(width)}, LISTED(scale), LISTED(limit), limit_of_all};
    long long groups = (channels + CHANNELS - 1) / CHANNELS, k = blockIdx.x / groups;
    long long first = blockIdx.x % groups * CHANNELS, bins = rows * columns;
    int count = (int)min((long long)CHANNELS, channels - first), quads = (count + TOGETHER - 1) / TOGETHER;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    Place place = place_of(row_of(boxes, k, boxes_dtype), pyramid, images, rows, columns, ratio, aligned);
    if (place.level < 0) return;
    Element* result = pooled + (k * channels + first) * bins;
    if (place.image < 0 || place.y.samples < 0 || place.x.samples < 0) {
        for (long long i = threadIdx.x; i < count * bins; i += THREADS) result[i] = narrow(Real{0} / Real{0});
        return;
    }
    long long height = pick(pyramid.sizes.heights, place.level), width = pick(pyramid.sizes.widths, place.level);
    long long pixel = channels_last ? channels : 1, plane = channels_last ? 1 : height * width;
    const Element* map = pick(maps, place.level) + place.image * channels * height * width + first * plane;

    // As many bins at a time as have room. A bin that alone has too many taps is summed up in several windows of them;
    // each warp then has one bin of some channels, and keeps its sums.
    long long most_y = most_taps(place.y, height), most_x = most_taps(place.x, width);
    bool windows = most_y > TAPS || most_x > TAPS;
    int room_y = (int)min(most_y, (long long)TAPS), room_x = (int)min(most_x, (long long)TAPS);
    int rows_at_once = windows ? 1 : TAPS / room_y, columns_at_once = windows ? 1 : TAPS / room_x;
    int quads_at_once = windows ? WARPS : quads;
    int lanes_of_bin = TOGETHER;  // a power of two
    while (lanes_of_bin < WARP && lanes_of_bin < room_x) lanes_of_bin *= 2;
    int bins_of_warp = WARP / lanes_of_bin, lane_of_bin = lane % lanes_of_bin;

    for (long long row = 0; row < rows; row += rows_at_once)
        for (long long column = 0; column < columns; column += columns_at_once)
            for (int quad = 0; quad < quads; quad += quads_at_once) {
                int down = (int)min((long long)rows_at_once, rows - row);
                int across = (int)min((long long)columns_at_once, columns - column);
                int steps = (down * across + bins_of_warp - 1) / bins_of_warp;
                int items = min(quads_at_once, quads - quad) * steps;
                Real sums[TOGETHER];
                for (long long window_y = 0; window_y < most_y; window_y += TAPS)
                    for (long long window_x = 0; window_x < most_x; window_x += TAPS) {
                        __syncthreads();  // the last taps are used up
                        for (int i = threadIdx.x; i < down + across; i += THREADS) {
                            bool of_row = i < down;
                            fill(of_row ? y_taps : x_taps, of_row ? i : i - down, of_row ? room_y : room_x,
                                 of_row ? place.y : place.x, of_row ? row + i : column + i - down,
                                 of_row ? height : width, of_row ? width * pixel : pixel, of_row ? window_y : window_x);
                        }
                        __syncthreads();  // the taps are there
                        bool begins = !window_y && !window_x;
                        bool ends = window_y + TAPS >= most_y && window_x + TAPS >= most_x;
                        for (int item = warp; item < items; item += WARPS) {
                            int channel = (quad + item / steps) * TOGETHER, left = count - channel;
                            int bin = item % steps * bins_of_warp + lane / lanes_of_bin;
                            int p = bin / across, q = bin % across;
                            bool there = bin < down * across;
                            int taps_y = there ? y_taps.counts[p] : 0, taps_x = there ? x_taps.counts[q] : 0;
                            // Of a channel that is not there, read the first one of the thread.
                            const Element* source = map + channel * plane;
                            long long apart[TOGETHER];
#pragma unroll
                            for (int c = 0; c < TOGETHER; ++c) {
                                apart[c] = c < left ? c * plane : 0;
                                if (begins) sums[c] = {0};
                            }
                            for (int t = lane_of_bin; t < taps_x; t += lanes_of_bin) {
                                Tap x = x_taps.taps[q * room_x + t];
                                Real of_column[TOGETHER] = {};
                                for (int u = 0; u < taps_y; u += 4) {
                                    Real values[4][TOGETHER] = {}, weights[4] = {};
#pragma unroll
                                    for (int i = 0; i < 4; ++i)
                                        if (u + i < taps_y) {
                                            Tap y = y_taps.taps[p * room_y + u + i];
                                            const Element* cell = source + (y.offset + x.offset);
                                            weights[i] = y.weight;
#pragma unroll
                                            for (int c = 0; c < TOGETHER; ++c) values[i][c] = widen(cell[apart[c]]);
                                        }
#pragma unroll
                                    for (int i = 0; i < 4; ++i)
#pragma unroll
                                        for (int c = 0; c < TOGETHER; ++c)
                                            of_column[c] = fused(weights[i], values[i][c], of_column[c]);
                                }
#pragma unroll
                                for (int c = 0; c < TOGETHER; ++c) sums[c] = fused(x.weight, of_column[c], sums[c]);
                            }
                            if (!ends) continue;
                            // Add up over the lanes of the bin; of four neighbours, each ends up with one channel.
                            bool odd = lane & 1, upper = lane & 2;
                            Real low = (odd ? sums[1] : sums[0]) + from_lane(odd ? sums[0] : sums[1], 1);
                            Real high = (odd ? sums[3] : sums[2]) + from_lane(odd ? sums[2] : sums[3], 1);
                            Real sum = (upper ? high : low) + from_lane(upper ? low : high, 2);
                            for (int distance = 4; distance < lanes_of_bin; distance *= 2)
                                sum = sum + from_lane(sum, distance);
                            if (there && lane_of_bin < min(TOGETHER, left))
                                result[(channel + lane_of_bin) * bins + (row + p) * columns + column + q] = narrow(sum);
                        }
                    }
            }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int TILE = 16;     // pixels along each side of the tile of a block; as in _roi.py, like the next ones
constexpr int GRADIENTS = 16;  // channels of a block
constexpr int BINS = 16;     // along each axis at a time
constexpr int FOUND = 512;   // RoIs in the list of a block

// The cells that a RoI may touch on its map: level * images + image, or -1 if it touches none.
struct Footprint {
    long long map;
    int top, bottom, left, right;
};

// Both axes of a RoI.
struct Frame {
    Axis y, x;
};

// How far positions may be off by rounding.
__device__ __forceinline__ Real slack_of(Axis axis, Real end) {
    Real most = maximum(maximum(axis.start, Real{0} - axis.start), maximum(end, Real{0} - end));
    return most * Real{(T)1e-6};
}

// The first and the last cell that the bins may touch; the first is behind the last if there is none.
__device__ void extent(Axis axis, long long bins, long long length, int& first, int& last) {
    Real end = axis.start + Real{(T)bins} * axis.step, slack = slack_of(axis, end);
    Real low = minimum(axis.start, end) - slack, high = maximum(axis.start, end) + slack;
    bool none = axis.samples <= 0 || low > Real{(T)length} || high < Real{-1};
    first = (int)min(max(integer_of(floor_of(low)), 0ll), length - 1);
    last = none ? -1 : (int)min(max(integer_of(floor_of(high)) + 1, 0ll), length - 1);
}

extern "C" __global__ void __launch_bounds__(THREADS)
roi_align_places(OF_LEVELS(long long, height), OF_LEVELS(long long, width), OF_LEVELS(double, scale),
                 OF_LEVELS(double, limit), double limit_of_all, const void* boxes, long long boxes_dtype,
                 long long size, long long images, long long rows, long long columns, long long ratio,
                 long long aligned, Footprint* footprints, Frame* frames) {
    Pyramid pyramid = {{LISTED(height), LISTED(width)}, LISTED(scale), LISTED(limit), limit_of_all};
    long long k = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (k >= size) return;
    Place place = place_of(row_of(boxes, k, boxes_dtype), pyramid, images, rows, columns, ratio, aligned);
    Footprint footprint = {-1, 0, -1, 0, -1};
    if (place.level >= 0 && place.image >= 0 && place.y.samples > 0 && place.x.samples > 0) {
        extent(place.y, rows, pick(pyramid.sizes.heights, place.level), footprint.top, footprint.bottom);
        extent(place.x, columns, pick(pyramid.sizes.widths, place.level), footprint.left, footprint.right);
        bool touches = footprint.top <= footprint.bottom && footprint.left <= footprint.right;
        if (touches) footprint.map = place.level * images + place.image;
    }
    footprints[k] = footprint;
    frames[k] = {place.y, place.x};
}

// What bins weigh in each of a line of cells of the tile, -1 where a bin does not touch the cell; and which touch it.
struct Line {
    Real weights[TILE][BINS + 1];  // one more, so that lanes that read a column of it find it in different banks
    int first[TILE], counts[TILE];
};

// What some bins of a RoI bring to the tile.
struct Share {
    Line y, x;
    long long roi, row, column;  // the first of these bins
    long long pieces;            // in which the bins of the RoI are taken
};
struct Shares {
    Share of[WARPS];
};

// RoIs that reach the tile, in order.
struct Found {
    long long rois[FOUND];
    int counts[2][WARPS];  // by warp, of one round of the search and of the next
};

// Of `count` steps that follow each other from `origin` on, those that may meet what lies between `low` and `high`.
struct Range {
    long long begin, end;
};
__device__ Range steps_between(Real origin, Real step, long long count, Real low, Real high) {
    Real zero = {0}, most = {(T)count};
    if (count <= BINS || !(step < zero || step > zero)) return {0, count};
    Real one = (low - origin) / step, other = (high - origin) / step, spare = Real{1} + most * Real{(T)1e-6};
    Real begin = maximum(minimum(minimum(one, other) - spare, most), zero);
    Real end = maximum(minimum(maximum(one, other) + spare, most), zero);
    return {integer_of(begin), min(integer_of(end) + 1, count)};
}

__device__ Range bins_between(Axis axis, long long bins, long long low) {
    Real slack = slack_of(axis, axis.start + Real{(T)bins} * axis.step) + Real{1};
    return steps_between(axis.start, axis.step, bins, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
}

// What the bin of each lane of half a warp weighs in the cells from `low` on; then each lane does a cell.
__device__ void weigh(Line& line, Axis axis, long long bins, long long begin, long long end, long long length,
                      long long low) {
    int lane = threadIdx.x % BINS;
    for (int cell = 0; cell < TILE; ++cell) line.weights[cell][lane] = {-1};
    long long bin = begin + lane;
    if (bin < end) {
        Real slack = slack_of(axis, axis.start + Real{(T)bins} * axis.step) + Real{1}, zero = {0};
        Real origin = axis.start + Real{(T)bin} * axis.step, size = maximum(axis.step, zero - axis.step);
        if (axis.step < zero) origin = origin - size;
        Range samples = steps_between(origin, size / Real{(T)axis.samples}, axis.samples, Real{(T)low} - slack,
                                      Real{(T)(low + TILE - 1)} + slack);
        take_taps(axis, bin, length, samples.begin, samples.end, [&](long long cell, Real weight) {
            if (cell < low || cell >= low + TILE) return;
            Real& sum = line.weights[cell - low][lane];
            sum = maximum(sum, Real{0}) + weight;
        });
    }
    __syncwarp();  // all bins are weighed
    int first = 0, last = -1;
    for (int i = 0; i < BINS; ++i) {
        if (line.weights[lane][i] < Real{0}) continue;
        if (last < 0) first = i;
        last = i;
    }
    for (int i = first; i <= last; ++i) line.weights[lane][i] = maximum(line.weights[lane][i], Real{0});
    line.first[lane] = first, line.counts[lane] = last - first + 1;
}

// Add what a share brings to a pixel of the tile; `grad` is that of the first channel of the RoI.
template <bool FULL>
__device__ __forceinline__ void add(Real (&sums)[GRADIENTS], const Share& share, const Element* grad, long long columns,
                                    long long bins, int count) {
    int y = threadIdx.x / TILE, x = threadIdx.x % TILE;
    int rows_there = share.y.counts[y], columns_there = share.x.counts[x];
#pragma unroll 1
    for (int i = share.y.first[y]; i < share.y.first[y] + rows_there; ++i)
#pragma unroll 1
        for (int j = share.x.first[x]; j < share.x.first[x] + columns_there; ++j) {
            Real weight = share.y.weights[y][i] * share.x.weights[x][j];
            const Element* of_bin = grad + (share.row + i) * columns + share.column + j;
#pragma unroll
            for (int c = 0; c < GRADIENTS; ++c)
                if (FULL || c < count) sums[c] = fused(weight, widen(of_bin[c * bins]), sums[c]);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS)
roi_align_gradients(const Element* grad, const Footprint* footprints, const Frame* frames, long long size,
                    long long images, long long channels, long long rows, long long columns,
                    OF_LEVELS(long long, height), OF_LEVELS(long long, width), OF_LEVELS(Element*, gradient)) {
    static_assert(TILE * TILE == THREADS && TILE == BINS && 2 * BINS == WARP, "a thread for each pixel; half a warp");
    SHARED(Shares, shares);
    SHARED(Found, list);
    long long heights[LEVELS] = LISTED(height), widths[LEVELS] = LISTED(width);
    Element* gradients[LEVELS] = LISTED(gradient);
    long long groups = (channels + GRADIENTS - 1) / GRADIENTS, bins = rows * columns;

    // The coarsest map first: most RoIs reach its few tiles.
    long long block = blockIdx.x, tiles = 0, height = 0, width = 0;
    int level = -1;
#pragma unroll
    for (int i = LEVELS - 1; i >= 0; --i) {
        if (level >= 0) continue;
        tiles = ((heights[i] + TILE - 1) / TILE) * ((widths[i] + TILE - 1) / TILE);
        if (block < images * groups * tiles) level = i, height = heights[i], width = widths[i];
        else block -= images * groups * tiles;
    }
    long long tile = block % tiles, group = block / tiles % groups, image = block / tiles / groups;
    long long across = (width + TILE - 1) / TILE, top = tile / across * TILE, left = tile % across * TILE;
    long long first = group * GRADIENTS;
    int count = (int)min((long long)GRADIENTS, channels - first);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    Real sums[GRADIENTS] = {};
    int round = 0;
    for (long long next = 0; next < size;) {
        int found = 0;
        for (; next < size && found + THREADS <= FOUND; next += THREADS, round ^= 1) {
            long long k = next + threadIdx.x;
            bool reaches = false;
            if (k < size) {
                Footprint print = footprints[k];
                reaches = print.map == level * images + image && print.top < top + TILE && print.bottom >= top &&
                          print.left < left + TILE && print.right >= left;
            }
            unsigned votes = __ballot_sync(ALL, reaches);
            if (lane == 0) list.counts[round][warp] = __popc(votes);
            __syncthreads();  // all have counted
            int at = found + __popc(votes & ((1u << lane) - 1));
            for (int i = 0; i < WARPS; ++i) {
                if (i < warp) at += list.counts[round][i];
                found += list.counts[round][i];
            }
            if (reaches) list.rois[at] = k;
        }
        for (int begin = 0; begin < found; begin += WARPS) {
            int together = min(WARPS, found - begin);
            bool more = true;
            for (long long piece = 0; more; ++piece) {
                __syncthreads();  // the list is there, and the last shares are used up
                if (warp < together) {
                    Share& share = shares.of[warp];
                    long long k = list.rois[begin + warp];
                    Frame frame = frames[k];
                    Range y = bins_between(frame.y, rows, top), x = bins_between(frame.x, columns, left);
                    long long pieces_x = (x.end - x.begin + BINS - 1) / BINS;
                    long long pieces = (y.end - y.begin + BINS - 1) / BINS * pieces_x;
                    if (lane == 0) share.pieces = pieces;
                    if (piece < pieces) {
                        long long row = y.begin + piece / pieces_x * BINS, column = x.begin + piece % pieces_x * BINS;
                        if (lane == 0) share.roi = k, share.row = row, share.column = column;
                        bool of_row = lane < BINS;
                        weigh(of_row ? share.y : share.x, of_row ? frame.y : frame.x, of_row ? rows : columns,
                              of_row ? row : column, of_row ? y.end : x.end, of_row ? height : width,
                              of_row ? top : left);
                    }
                }
                __syncthreads();  // the shares are there
                more = false;
                for (int i = 0; i < together; ++i) {
                    const Share& share = shares.of[i];
                    more |= piece + 1 < share.pieces;
                    if (piece >= share.pieces) continue;
                    const Element* of_roi = grad + (share.roi * channels + first) * bins;
                    if (count == GRADIENTS) add<true>(sums, share, of_roi, columns, bins, count);
                    else add<false>(sums, share, of_roi, columns, bins, count);
                }
            }
        }
    }
    long long y = top + threadIdx.x / TILE, x = left + threadIdx.x % TILE;
    if (y >= height || x >= width) return;
    Element* result = pick(gradients, level) + ((image * channels + first) * height + y) * width + x;
#pragma unroll
    for (int c = 0; c < GRADIENTS; ++c)
        if (c < count) result[c * height * width] = narrow(sums[c]);
}
