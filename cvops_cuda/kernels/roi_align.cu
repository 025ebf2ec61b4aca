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
constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

// Parameters of a kernel, one for each level; their names; and an array of them.
#define OF_LEVELS(type, name) type name##0, type name##1, type name##2, type name##3
#define NAMES(name) name##0, name##1, name##2, name##3
#define LISTED(name) {NAMES(name)}

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

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int POOL_THREADS = 128, CHANNELS = 64;  // of a block; as in _roi.py
constexpr int POOL_WARPS = POOL_THREADS / WARP;
constexpr int TOGETHER = 4;  // channels of a thread at a time
constexpr int UNROLLED = 4;  // reads of a channel on their way at once
constexpr int TAPS = 256;    // in shared memory, for each axis

struct Tap {
    long long offset;
    Real weight;
};

// The taps of some bins along one axis. There is room for as many in each bin; a bin that alone has too many is summed up
// in windows of them.
struct Taps {
    Axis axis;
    Real slack;
    long long length, pitch;  // of the axis, in cells, and of a cell
    int room, bins, windows;  // for taps in each bin, bins at a time, windows of taps
    int counts[TAPS / 2];     // of taps in each bin
    Tap taps[TAPS];
};

__device__ void lay_out(Taps& table, const Axis& axis, long long bins, long long length, long long pitch) {
    // A bin has at most two taps for a sample, and one for a cell, more or less where large coordinates are not exact.
    long long cells = min(integer_of(maximum(axis.step, Real{0} - axis.step)) + 3 + (length >> 16), length);
    int most = (int)max(min(2 * axis.samples, cells), 2ll);
    table.axis = axis, table.length = length, table.pitch = pitch, table.slack = slack_of(axis, bins);
    table.room = min(most, TAPS), table.bins = TAPS / table.room, table.windows = (most + TAPS - 1) / TAPS;
}

// Find the taps of a bin in a window: those after so many others.
__device__ void fill(Taps& table, int slot, long long bin, int window) {
    int number = -TAPS * window;
    Tap* taps = table.taps + slot * table.room;
    Range samples = samples_between(table.axis, bin, Real{-1} - table.slack, Real{(T)table.length} + table.slack);
    take_taps(table.axis, bin, table.length, samples.begin, samples.end, [&](int cell, Real weight) {
        if (number >= 0 && number < table.room) taps[number] = {cell * table.pitch, weight};
        ++number;
    });
    table.counts[slot] = min(max(number, 0), table.room);
}

__device__ __forceinline__ Real from_lane(Real value, int distance) {
    return {__shfl_xor_sync(ALL, value.value, distance)};
}

// Add a column of cells, each by its weight, to the sums of the channels. Of a channel that is not there, the first one
// is read again.
__device__ __forceinline__ void add_column(Real (&sums)[TOGETHER], Real weight, const Element* column, long long plane,
                                           int channels, const Tap* taps, int count) {
    Real of_column[TOGETHER] = {};
    for (int t = 0; t < count; t += UNROLLED) {
        Real values[UNROLLED][TOGETHER] = {}, weights[UNROLLED] = {};
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i) {
            if (t + i >= count) continue;
            const Element* cell = column + taps[t + i].offset;
            weights[i] = taps[t + i].weight;
#pragma unroll
            for (int c = 0; c < TOGETHER; ++c) {
                values[i][c] = widen(*cell);
                if (c + 1 < channels) cell += plane;
            }
        }
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
#pragma unroll
            for (int c = 0; c < TOGETHER; ++c) of_column[c] = fused(weights[i], values[i][c], of_column[c]);
    }
#pragma unroll
    for (int c = 0; c < TOGETHER; ++c) sums[c] = fused(weight, of_column[c], sums[c]);
}

// The sums over the lanes of a bin. Of four neighbours, each ends up with one channel.
__device__ __forceinline__ Real sum_of_bin(const Real (&sums)[TOGETHER], int lanes) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    Real low = (odd ? sums[1] : sums[0]) + from_lane(odd ? sums[0] : sums[1], 1);
    Real high = (odd ? sums[3] : sums[2]) + from_lane(odd ? sums[2] : sums[3], 1);
    Real sum = (upper ? high : low) + from_lane(upper ? low : high, 2);
    for (int distance = TOGETHER; distance < lanes; distance *= 2) sum = sum + from_lane(sum, distance);
    return sum;
}

// What a block does. One thread works it out, into shared memory: registers are needed for what is read.
struct Plan {
    Taps y, x;
    const Element* map;  // the first channel of the block
    long long plane;     // from one channel to the next
    Element* result;     // of the RoI, in the first channel of the block
    int count;           // of channels
    int level, nowhere;  // -1 if another launch knows the map; whether the RoI is NaN
    int lanes;           // of a bin, a power of two
};

#define POOL_PARAMETERS                                                                                                \
    OF_LEVELS(const Element*, map), OF_LEVELS(long long, height), OF_LEVELS(long long, width), OF_LEVELS(double, scale), \
        OF_LEVELS(double, limit), double limit_of_all, const void *boxes, long long boxes_dtype, long long images,      \
        long long channels, long long rows, long long columns, long long ratio, long long aligned, Element *pooled
#define POOL_ARGUMENTS                                                                                             \
    NAMES(map), NAMES(height), NAMES(width), NAMES(scale), NAMES(limit), limit_of_all, boxes, boxes_dtype, images, \
        channels, rows, columns, ratio, aligned, pooled

// For the block of that number, each of so many channels of a RoI, and bins of which so many are pooled at a time.
__device__ void prepare(Plan& plan, bool channels_last, int channels_of_block, int bins_at_once, POOL_PARAMETERS) {
    unsigned blocks = (unsigned)((channels + channels_of_block - 1) / channels_of_block);
    long long k = blockIdx.x / blocks, first = blockIdx.x % blocks * (long long)channels_of_block;
    const Element* maps[LEVELS] = LISTED(map);
    Pyramid pyramid = {{LISTED(height), LISTED(width)}, LISTED(scale), LISTED(limit), limit_of_all};
    Place place = place_of(row_of(boxes, k, boxes_dtype), pyramid, images, rows, columns, ratio, aligned);
    plan.result = pooled + (k * channels + first) * rows * columns;
    plan.count = (int)min((long long)channels_of_block, channels - first);
    plan.level = place.level;
    plan.nowhere = place.image < 0 || place.y.samples < 0 || place.x.samples < 0;
    if (place.level < 0 || plan.nowhere) return;
    long long height = pick(pyramid.sizes.heights, place.level), width = pick(pyramid.sizes.widths, place.level);
    long long pixel = channels_last ? channels : 1;
    plan.plane = channels_last ? 1 : height * width;
    plan.map = pick(maps, place.level) + place.image * channels * height * width + first * plan.plane;
    lay_out(plan.y, place.y, rows, height, width * pixel);
    lay_out(plan.x, place.x, columns, width, pixel);
    plan.x.bins = (int)min((long long)min(plan.x.bins, bins_at_once), columns);
    plan.y.bins = min(plan.y.bins, bins_at_once / plan.x.bins);
    // Windows are of one bin, of which each warp keeps the sums of some channels.
    if (plan.y.windows > 1 || plan.x.windows > 1) plan.y.bins = plan.x.bins = 1;
    plan.lanes = TOGETHER;
    while (plan.lanes < WARP && plan.lanes < plan.x.room) plan.lanes *= 2;
}

// Whether there is nothing to pool: the RoI belongs to another launch, or it is NaN, which is written.
__device__ bool is_settled(const Plan& plan, long long rows, long long columns) {
    if (plan.level < 0) return true;
    if (!plan.nowhere) return false;
    long long size = plan.count * rows * columns;
    for (long long i = threadIdx.x; i < size; i += POOL_THREADS) plan.result[i] = narrow(Real{0} / Real{0});
    return true;
}

// The taps of some rows and columns of bins.
__device__ void fill_both(Plan& plan, unsigned row, unsigned column, int down, int across, int window) {
    for (int i = threadIdx.x; i < down + across; i += POOL_THREADS) {
        bool of_row = i < down;
        fill(of_row ? plan.y : plan.x, of_row ? i : i - down, of_row ? row + i : column + (i - down),
             of_row ? window / plan.x.windows : window % plan.x.windows);
    }
}

// For contiguous maps.
extern "C" __global__ void __launch_bounds__(POOL_THREADS, sizeof(T) == 8 ? 1 : 5)
roi_align(POOL_PARAMETERS) {
    SHARED(Plan, plan);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) prepare(plan, false, CHANNELS, 1 << 30, POOL_ARGUMENTS);
    __syncthreads();  // the plan is there
    if (is_settled(plan, rows, columns)) return;
    int lanes = plan.lanes, windows = plan.y.windows * plan.x.windows;
    // Where one set of sums is all that a warp has, it does one run of channels.
    int run = windows > 1 ? TOGETHER : CHANNELS / 4, channels_at_once = windows > 1 ? run * POOL_WARPS : CHANNELS;

    for (unsigned row = 0; row < rows; row += plan.y.bins)
        for (unsigned column = 0; column < columns; column += plan.x.bins)
            for (int start = 0; start < plan.count; start += channels_at_once) {
                int down = (int)min((long long)plan.y.bins, rows - row);
                int across = (int)min((long long)plan.x.bins, columns - column);
                int steps = (down * across * lanes + WARP - 1) / WARP;
                int items = (min(channels_at_once, plan.count - start) + run - 1) / run * steps;
                Real sums[TOGETHER];
                for (int window = 0; window < windows; ++window) {
                    __syncthreads();  // the last taps are used up
                    fill_both(plan, row, column, down, across, window);
                    __syncthreads();  // the taps are there
                    for (int item = warp; item < items; item += POOL_WARPS) {
                        int bin = (item % steps * WARP + lane) / lanes, p = bin / across, q = bin % across;
                        bool there = bin < down * across;
                        const Tap *y = plan.y.taps + p * plan.y.room, *x = plan.x.taps + q * plan.x.room;
                        int channel = start + item / steps * run, end = min(channel + run, plan.count);
                        for (; channel < end; channel += TOGETHER) {
                            if (window == 0)
                                for (int c = 0; c < TOGETHER; ++c) sums[c] = {0};
                            const Element* source = plan.map + channel * plan.plane;
                            if (there)
                                for (int i = lane % lanes; i < plan.x.counts[q]; i += lanes)
                                    add_column(sums, x[i].weight, source + x[i].offset, plan.plane, end - channel, y,
                                               plan.y.counts[p]);
                            if (window + 1 < windows) continue;
                            Real sum = sum_of_bin(sums, lanes);
                            long long own = channel + lane % lanes;
                            if (there && own < min(channel + TOGETHER, end))
                                plan.result[(own * rows + row + p) * columns + column + q] = narrow(sum);
                        }
                    }
                }
            }
}

// For channels-last maps: neighbouring lanes take neighbouring channels, and results are turned in shared memory, so that
// they are written in runs.
constexpr int LAST_CHANNELS = TOGETHER * WARP;  // of a block; as in _roi.py
constexpr int TURNED = 32;                      // bins at a time

struct Turned {
    Real of[TURNED][LAST_CHANNELS + 1];
};

extern "C" __global__ void __launch_bounds__(POOL_THREADS, sizeof(T) == 8 ? 1 : 5)
roi_align_last(POOL_PARAMETERS) {
    SHARED(Plan, plan);
    SHARED(Turned, turned);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) prepare(plan, true, LAST_CHANNELS, TURNED, POOL_ARGUMENTS);
    __syncthreads();  // the plan is there
    if (is_settled(plan, rows, columns)) return;
    int windows = plan.y.windows * plan.x.windows, left = (plan.count - lane + WARP - 1) / WARP;  // channels of the lane

    for (unsigned row = 0; row < rows; row += plan.y.bins)
        for (unsigned column = 0; column < columns; column += plan.x.bins) {
            int down = (int)min((long long)plan.y.bins, rows - row);
            int across = (int)min((long long)plan.x.bins, columns - column);
            Real sums[TOGETHER];
            for (int window = 0; window < windows; ++window) {
                __syncthreads();  // the last taps are used up, and the last results written
                fill_both(plan, row, column, down, across, window);
                __syncthreads();  // the taps are there
                for (int bin = warp; bin < down * across && left > 0; bin += POOL_WARPS) {
                    int p = bin / across, q = bin % across;
                    const Tap *y = plan.y.taps + p * plan.y.room, *x = plan.x.taps + q * plan.x.room;
                    if (window == 0)
                        for (int c = 0; c < TOGETHER; ++c) sums[c] = {0};
                    for (int i = 0; i < plan.x.counts[q]; ++i)
                        add_column(sums, x[i].weight, plan.map + x[i].offset + lane, (long long)WARP, left, y,
                                   plan.y.counts[p]);
#pragma unroll
                    for (int c = 0; c < TOGETHER; ++c) turned.of[bin][c * WARP + lane] = sums[c];
                }
            }
            __syncthreads();  // the results are there
            for (int i = threadIdx.x; i < plan.count * down * across; i += POOL_THREADS) {
                int channel = i / (down * across), bin = i % (down * across);
                plan.result[(channel * rows + row + bin / across) * columns + column + bin % across] =
                    narrow(turned.of[bin][channel]);
            }
        }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int TILE = 16, GRADIENTS = 16;  // pixels along each side of a block, and its channels; as in _roi.py
constexpr int THREADS = TILE * TILE, WARPS = THREADS / WARP;
constexpr int BINS = 16;    // along each axis at a time
constexpr int FOUND = 512;  // RoIs in the list of a block

// The cells that a RoI may touch on its map: level * images + image, or -1 if it touches none.
struct Footprint {
    long long map;
    int top, bottom, left, right;
};

// Both axes of a RoI.
struct Frame {
    Axis y, x;
};

// The first and the last cell that the bins may touch; the first is behind the last if there is none.
__device__ void extent(Axis axis, long long bins, long long length, int& first, int& last) {
    Real end = axis.start + Real{(T)bins} * axis.step, slack = slack_of(axis, bins);
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
    const Element* grad;  // of the first of these bins, in the first channel of the block
    int pieces;           // in which the bins of the RoI are taken
};
struct Shares {
    Share of[WARPS];
};

// RoIs that reach the tile, in order.
struct Found {
    unsigned rois[FOUND];
    int counts[2][WARPS];  // by warp, of one round of the search and of the next
};

__device__ Range bins_between(const Axis& axis, long long bins, long long low) {
    Real slack = slack_of(axis, bins) + Real{1};
    return steps_between(axis.start, axis.step, (int)bins, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
}

// What the bin of each lane of half a warp weighs in the cells from `low` on; then each lane does a cell.
__device__ void weigh(Line& line, const Axis& axis, long long bins, int begin, int end, long long length,
                      long long low) {
    int lane = threadIdx.x % BINS;
    for (int cell = 0; cell < TILE; ++cell) line.weights[cell][lane] = {-1};
    int bin = begin + lane;
    if (bin < end) {
        Real slack = slack_of(axis, bins) + Real{1};
        Range samples = samples_between(axis, bin, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
        take_taps(axis, bin, length, samples.begin, samples.end, [&](int cell, Real weight) {
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

// Add what a share brings to a pixel of the tile.
template <bool FULL>
__device__ __forceinline__ void add(Real (&sums)[GRADIENTS], const Share& share, long long columns, long long bins,
                                    int count) {
    int y = threadIdx.x / TILE, x = threadIdx.x % TILE;
    int rows_there = share.y.counts[y], columns_there = share.x.counts[x];
#pragma unroll 1
    for (int i = share.y.first[y]; i < share.y.first[y] + rows_there; ++i)
#pragma unroll 1
        for (int j = share.x.first[x]; j < share.x.first[x] + columns_there; ++j) {
            Real weight = share.y.weights[y][i] * share.x.weights[x][j];
            const Element* grad = share.grad + (i * columns + j);
#pragma unroll
            for (int c = 0; c < GRADIENTS; ++c) {
                if (FULL || c < count) sums[c] = fused(weight, widen(*grad), sums[c]);
                grad += bins;
            }
        }
}

// The pixels of a block, and its channels. In shared memory, because registers are needed for the sums.
struct Tile {
    long long height, width, top, left, first, map, bins;  // bins of a RoI
    Element* result;  // of the first channel
    int count;        // of channels
};

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 3)
roi_align_gradients(const Element* grad, const Footprint* footprints, const Frame* frames, long long size,
                    long long images, long long channels, long long rows, long long columns,
                    OF_LEVELS(long long, height), OF_LEVELS(long long, width), OF_LEVELS(Element*, gradient)) {
    static_assert(TILE == BINS && 2 * BINS == WARP, "half a warp for each axis");
    SHARED(Shares, shares);
    SHARED(Found, list);
    SHARED(Tile, tile);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        long long heights[LEVELS] = LISTED(height), widths[LEVELS] = LISTED(width);
        Element* gradients[LEVELS] = LISTED(gradient);
        // The coarsest map first: most RoIs reach its few tiles.
        unsigned block = blockIdx.x, groups = (unsigned)((channels + GRADIENTS - 1) / GRADIENTS), tiles = 0, across = 0;
        int level = -1;
#pragma unroll
        for (int i = LEVELS - 1; i >= 0; --i) {
            if (level >= 0) continue;
            across = (unsigned)((widths[i] + TILE - 1) / TILE);
            tiles = (unsigned)((heights[i] + TILE - 1) / TILE) * across;
            unsigned blocks = (unsigned)images * groups * tiles;
            if (block < blocks) level = i;
            else block -= blocks;
        }
        tile.height = pick(heights, level), tile.width = pick(widths, level);
        tile.top = block % tiles / across * (long long)TILE, tile.left = block % tiles % across * (long long)TILE;
        tile.first = block / tiles % groups * (long long)GRADIENTS;
        tile.count = (int)min((long long)GRADIENTS, channels - tile.first);
        long long image = block / tiles / groups;
        tile.map = level * images + image;
        tile.bins = rows * columns;
        tile.result = pick(gradients, level) + (image * channels + tile.first) * tile.height * tile.width;
    }
    __syncthreads();  // the tile is known

    Real sums[GRADIENTS] = {};
    for (unsigned next = 0; next < size;) {
        int found = 0;
        for (; next < size && found + THREADS <= FOUND; next += THREADS) {
            unsigned k = next + threadIdx.x;
            bool reaches = false;
            if (k < size) {
                Footprint print = footprints[k];
                reaches = print.map == tile.map && print.top < tile.top + TILE && print.bottom >= tile.top &&
                          print.left < tile.left + TILE && print.right >= tile.left;
            }
            unsigned votes = __ballot_sync(ALL, reaches);
            int(&counts)[WARPS] = list.counts[next / THREADS % 2];
            if (lane == 0) counts[warp] = __popc(votes);
            __syncthreads();  // all have counted
            int at = found + __popc(votes & ((1u << lane) - 1));
            for (int i = 0; i < WARPS; ++i) {
                if (i < warp) at += counts[i];
                found += counts[i];
            }
            if (reaches) list.rois[at] = k;
        }
        for (int begin = 0; begin < found; begin += WARPS) {
            int together = min(WARPS, found - begin);
            bool more = true;
            for (int piece = 0; more; ++piece) {
                __syncthreads();  // the list is there, and the last shares are used up
                if (warp < together) {
                    Share& share = shares.of[warp];
                    long long k = list.rois[begin + warp];
                    const Frame& frame = frames[k];
                    Range y = bins_between(frame.y, rows, tile.top), x = bins_between(frame.x, columns, tile.left);
                    int pieces_x = (x.end - x.begin + BINS - 1) / BINS;
                    int pieces = (y.end - y.begin + BINS - 1) / BINS * pieces_x;
                    if (lane == 0) share.pieces = pieces;
                    if (piece < pieces) {
                        int row = y.begin + piece / pieces_x * BINS, column = x.begin + piece % pieces_x * BINS;
                        if (lane == 0) share.grad = grad + (k * channels + tile.first) * tile.bins + row * columns + column;
                        bool of_row = lane < BINS;
                        weigh(of_row ? share.y : share.x, of_row ? frame.y : frame.x, of_row ? rows : columns,
                              of_row ? row : column, of_row ? y.end : x.end, of_row ? tile.height : tile.width,
                              of_row ? tile.top : tile.left);
                    }
                }
                __syncthreads();  // the shares are there
                more = false;
                for (int i = 0; i < together; ++i) {
                    const Share& share = shares.of[i];
                    more |= piece + 1 < share.pieces;
                    if (piece >= share.pieces) continue;
                    if (tile.count == GRADIENTS) add<true>(sums, share, columns, tile.bins, GRADIENTS);
                    else add<false>(sums, share, columns, tile.bins, tile.count);
                }
            }
        }
    }
    long long y = tile.top + threadIdx.x / TILE, x = tile.left + threadIdx.x % TILE;
    if (y >= tile.height || x >= tile.width) return;
    Element* result = tile.result + y * tile.width + x;
#pragma unroll
    for (int c = 0; c < GRADIENTS; ++c) {
        if (c < tile.count) *result = narrow(sums[c]);
        result += tile.height * tile.width;
    }
}
