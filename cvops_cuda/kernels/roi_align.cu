// RoIAlign [1]: each bin of a RoI is the mean of bilinear samples of a map; and its gradient. For a pyramid of maps a
// RoI is pooled from the one that suits its area, which is found here: one launch does all of them.
//
// boxes (K, 5); maps (images, channels, height, width), contiguous or channels-last; pooled and grad (K, channels,
// rows, columns) and gradients (images, channels, height, width), contiguous. A launch knows LEVELS maps; of more, each
// launch does the RoIs of its own.
//
// The operator is separable: Wy . map . Wx^T. Along each axis, the samples of a bin that read the same cell are one
// tap. The taps of a RoI are found once for many channels and kept in shared memory, because to find them again for
// each channel and bin would take more instructions than all the rest.
//
// Forward: neighbouring lanes take neighbouring taps of a row of bins, so that a warp reads parts of a row of the map.
// Each lane sums a column over the taps along y, for CHANNELS_PER_THREAD channels at once, with 16 reads under way. A
// bin is then the sum over a few lanes, by shuffles. Only the result is written. In channels-last maps the lanes take
// channels.
//
// Gradient: a block owns a tile of 16 x 16 pixels of one map, for some channels, and a thread owns a pixel of it:
//
//     map                        a RoI of 2 x 3 bins        for each RoI that reaches the tile, in order:
//     +-------+-------+          +-----+-----+-----+            weigh   what each of its bins weighs in each row and in
//     |       |  tile |          |     |     |     |                    each column of the tile (a warp for each RoI)
//     |     +-|--+----|--+--+    +-----+-----+-----+            add     sum over the bins that touch the thread's pixel
//     +-----|-+--+----+--+--+    |     |     |     |
//     |     +----+-------+--+    +-----+-----+-----+
//     +---------------+
//
//     def gradient_of_tile(tile, rois, grad):  # for one channel
//         sums = np.zeros((16, 16))            # in registers, one for each thread
//         for k in rois:                       # whose footprint has the tile, in order of k
//             for p, weights_y in bins_that_touch_rows_of(tile, k):           # of the 16 rows, mostly 0
//                 for q, weights_x in bins_that_touch_columns_of(tile, k):    # of the 16 columns, mostly 0
//                     sums += np.outer(weights_y, weights_x) * grad[k, p, q]
//         return sums
//
// So there are no atomics on floats, every run gives the same bits, and each pixel is written once, so that nothing has
// to be zeroed before. `roi_align_footprints` finds first which tiles each RoI may touch. It also finds which maps each
// chunk of RoIs touches, so that a block can skip whole chunks of RoIs on other images.
//
// [1] K. He et al., "Mask R-CNN", ICCV 2017.

#include "roi.cuh"

constexpr int LEVELS = CVOPS_LEVELS;

// -------------------------------------------------------------------------------------------------- where RoIs lie

// The maps that a launch knows, from the finest on: their sizes and scales. A RoI is pooled from the last level whose
// limit its area reaches, but by another launch if its area reaches `end`. An area that is NaN counts as 0, and a limit
// that is NaN is never reached.
struct Pyramid {
    long long heights[LEVELS], widths[LEVELS];
    double scales[LEVELS], limits[LEVELS], end;
};

// Where a RoI is pooled. The level is -1 if another launch knows its map; the image is -1 if its index is wrong.
struct RoiOnMap {
    int level;
    long long image;
    Axis y, x;
};

__device__ RoiOnMap on_map(Roi roi, const Pyramid& pyramid, long long images, long long rows, long long columns,
                           long long ratio, long long aligned) {
    RoiOnMap result = {-1, -1, {}, {}};
    double area;
    convert(((roi.x2 - roi.x1) * (roi.y2 - roi.y1)).value, area);
    area = area > 0 ? area : 0;
    if (!(area >= pyramid.limits[0]) || area >= pyramid.end) return result;
    double scale = pyramid.scales[0];
    result.level = 0;
#pragma unroll
    for (int i = 1; i < LEVELS; ++i) {
        if (!(area >= pyramid.limits[i])) continue;
        result.level = i;
        scale = pyramid.scales[i];
    }
    result.image = roi.index(images);
    Layout layout = aligned ? ALIGN_CENTRES : ALIGN;
    result.y = axis_of(roi.y1, roi.y2, real(scale), layout, rows, ratio);
    result.x = axis_of(roi.x1, roi.x2, real(scale), layout, columns, ratio);
    return result;
}

// values[level], found by comparisons: an array that is indexed would lie in memory and not in registers.
template <class Type>
__device__ __forceinline__ Type pick(const Type (&values)[LEVELS], int level) {
    Type value = values[0];
#pragma unroll
    for (int i = 1; i < LEVELS; ++i)
        if (level == i) value = values[i];
    return value;
}

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int POOL_THREADS = CVOPS_POOL_THREADS, POOL_WARPS = POOL_THREADS / WARP;  // of a block
constexpr int CHANNELS_PER_THREAD = 4;                                              // channels of a thread at a time
constexpr int RUN = 16;             // channels of a warp, one after the other
constexpr int LOADS_IN_FLIGHT = 4;  // reads of a channel on their way at once
constexpr int TAPS = 256;           // in shared memory, for each axis

struct Tap {
    long long offset;
    Real weight;
};

// The taps of some bins along one axis. There is room for equally many in each bin. Where one bin alone has more than
// TAPS, it is summed up in several windows of its taps.
struct Taps {
    Axis axis;
    Real slack;
    long long length, stride;  // cells of the axis, and from one to the next in memory
    int room, bins, windows;   // for taps in each bin, bins at a time, windows of taps
    int counts[TAPS / 2];      // of taps in each bin
    Tap taps[TAPS];
};

__device__ void lay_out(Taps& table, const Axis& axis, long long bins, long long length, long long stride) {
    // A bin has at most two taps for each sample, and one for each cell, or a few more if large coordinates are
    // rounded.
    long long cells = min(integer_of(maximum(axis.bin_size, Real{0} - axis.bin_size)) + 3 + (length >> 16), length);
    int most = (int)max(min(2 * axis.samples, cells), 2ll);
    table.axis = axis, table.length = length, table.stride = stride, table.slack = slack_of(axis, bins);
    table.room = min(most, TAPS), table.bins = TAPS / table.room, table.windows = (most + TAPS - 1) / TAPS;
}

// Find the taps of a bin that are in a window, taps TAPS * window and following, as those of bin number `entry` here.
__device__ void fill(Taps& table, int entry, long long bin, int window) {
    int number = -TAPS * window;
    Tap* taps = table.taps + entry * table.room;
    Range samples = samples_between(table.axis, bin, Real{-1} - table.slack, Real{(T)table.length} + table.slack);
    bilinear_taps(table.axis, bin, table.length, samples.begin, samples.end, [&](int cell, Real weight) {
        if (number >= 0 && number < table.room) taps[number] = {cell * table.stride, weight};
        ++number;
    });
    table.counts[entry] = min(max(number, 0), table.room);
}

__device__ __forceinline__ Real from_lane(Real value, int distance) {
    return {__shfl_xor_sync(ALL, value.value, distance)};
}

// Add a column of cells, each times its weight, to the sums of the channels. Where there are fewer channels than sums,
// the last channel is read again for the others.
template <bool ALL_CHANNELS>
__device__ __forceinline__ void add_cells(Real (&sums)[CHANNELS_PER_THREAD], Real weight, const Element* column,
                                          long long plane, int channels, const Tap* taps, int count) {
    Real of_column[CHANNELS_PER_THREAD] = {};
    for (int t = 0; t < count; t += LOADS_IN_FLIGHT) {
        Real values[LOADS_IN_FLIGHT][CHANNELS_PER_THREAD] = {}, weights[LOADS_IN_FLIGHT] = {};
#pragma unroll
        for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
            if (t + i >= count) continue;
            const Element* cell = column + taps[t + i].offset;
            weights[i] = taps[t + i].weight;
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                values[i][c] = widen(*cell);
                if (ALL_CHANNELS || c + 1 < channels) cell += plane;
            }
        }
#pragma unroll
        for (int i = 0; i < LOADS_IN_FLIGHT; ++i)
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) of_column[c] = fused(weights[i], values[i][c], of_column[c]);
    }
#pragma unroll
    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) sums[c] = fused(weight, of_column[c], sums[c]);
}

__device__ __forceinline__ void add_column(Real (&sums)[CHANNELS_PER_THREAD], Real weight, const Element* column,
                                           long long plane, int channels, const Tap* taps, int count) {
    if (channels >= CHANNELS_PER_THREAD)
        add_cells<true>(sums, weight, column, plane, channels, taps, count);
    else
        add_cells<false>(sums, weight, column, plane, channels, taps, count);
}

// The sums over the lanes of a bin: each of four neighbouring lanes returns that of one channel.
__device__ __forceinline__ Real sum_of_bin(const Real (&sums)[CHANNELS_PER_THREAD], int lanes) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    Real low = (odd ? sums[1] : sums[0]) + from_lane(odd ? sums[0] : sums[1], 1);
    Real high = (odd ? sums[3] : sums[2]) + from_lane(odd ? sums[2] : sums[3], 1);
    Real sum = (upper ? high : low) + from_lane(upper ? low : high, 2);
    for (int distance = CHANNELS_PER_THREAD; distance < lanes; distance *= 2) sum = sum + from_lane(sum, distance);
    return sum;
}

// What a block does. One thread computes it and puts it into shared memory, because registers are needed for what is
// read. It holds offsets instead of pointers, because compilers do not know that pointers from memory lead to global
// memory.
struct Plan {
    Taps y, x;
    long long source, plane;  // of the first channel of the block in its map, and from one channel to the next
    long long result;         // of the RoI, in the first channel of the block
    int count;                // of channels
    int level, invalid;       // -1 if another launch knows the map; whether the result of the RoI is NaN
    int lanes;                // of a bin, a power of two
};

struct RoiAlign {
    const Element* maps[LEVELS];
    Pyramid pyramid;
    const void* boxes;
    long long boxes_dtype, images, channels, rows, columns, ratio, aligned, channels_per_block;
    Element* pooled;
};

// The plan of a block that pools some channels of a RoI, at most `bins_at_once` bins at a time.
__device__ void prepare(Plan& plan, bool channels_last, int bins_at_once, const RoiAlign& args) {
    unsigned blocks = (unsigned)((args.channels + args.channels_per_block - 1) / args.channels_per_block);
    long long k = blockIdx.x / blocks, first = blockIdx.x % blocks * args.channels_per_block;
    RoiOnMap roi = on_map(roi_of(args.boxes, k, args.boxes_dtype), args.pyramid, args.images, args.rows, args.columns,
                          args.ratio, args.aligned);
    plan.result = (k * args.channels + first) * args.rows * args.columns;
    plan.count = (int)min(args.channels_per_block, args.channels - first);
    plan.level = roi.level;
    plan.invalid = roi.image < 0 || roi.y.samples < 0 || roi.x.samples < 0;
    if (roi.level < 0 || plan.invalid) return;
    long long height = pick(args.pyramid.heights, roi.level), width = pick(args.pyramid.widths, roi.level);
    long long pixel = channels_last ? args.channels : 1;
    plan.plane = channels_last ? 1 : height * width;
    plan.source = roi.image * args.channels * height * width + first * plan.plane;
    lay_out(plan.y, roi.y, args.rows, height, width * pixel);
    lay_out(plan.x, roi.x, args.columns, width, pixel);
    plan.x.bins = (int)min((long long)min(plan.x.bins, bins_at_once), args.columns);
    plan.y.bins = min(plan.y.bins, bins_at_once / plan.x.bins);
    // With several windows a block takes one bin at a time, and each warp keeps its sums for some channels.
    if (plan.y.windows > 1 || plan.x.windows > 1) plan.y.bins = plan.x.bins = 1;
    plan.lanes = CHANNELS_PER_THREAD;
    while (plan.lanes < WARP && plan.lanes < plan.x.room) plan.lanes *= 2;
}

// Whether nothing is left to do: another launch pools the RoI, or it is invalid, for which NaN is written.
__device__ bool is_settled(const Plan& plan, Element* result, long long bins) {
    if (plan.level < 0) return true;
    if (!plan.invalid) return false;
    for (long long i = threadIdx.x; i < plan.count * bins; i += POOL_THREADS) result[i] = narrow(Real{0} / Real{0});
    return true;
}

// Find the taps of `down` rows and `across` columns of bins.
__device__ void fill_both(Plan& plan, unsigned row, unsigned column, int down, int across, int window) {
    for (int i = threadIdx.x; i < down + across; i += POOL_THREADS) {
        bool of_row = i < down;
        fill(of_row ? plan.y : plan.x, of_row ? i : i - down, of_row ? row + i : column + (i - down),
             of_row ? window / plan.x.windows : window % plan.x.windows);
    }
}

// For contiguous maps.
extern "C" __global__ void __launch_bounds__(POOL_THREADS, sizeof(T) == 8 ? 1 : 5) roi_align(const RoiAlign args) {
    SHARED(Plan, plan);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) prepare(plan, false, 1 << 30, args);
    __syncthreads();  // the plan is there
    Element* result = args.pooled + plan.result;
    if (is_settled(plan, result, args.rows * args.columns)) return;
    const Element* map = pick(args.maps, plan.level) + plan.source;
    int lanes = plan.lanes, windows = plan.y.windows * plan.x.windows;
    // A warp takes `run` channels of some bins, CHANNELS_PER_THREAD at a time; with windows only so many, because it
    // keeps their sums from one window to the next.
    int run = windows > 1 ? CHANNELS_PER_THREAD : RUN,
        channels_at_once = windows > 1 ? CHANNELS_PER_THREAD * POOL_WARPS : plan.count;

    for (unsigned row = 0; row < args.rows; row += plan.y.bins)
        for (unsigned column = 0; column < args.columns; column += plan.x.bins)
            for (int start = 0; start < plan.count; start += channels_at_once) {
                int down = (int)min((long long)plan.y.bins, args.rows - row);
                int across = (int)min((long long)plan.x.bins, args.columns - column);
                int steps = (down * across * lanes + WARP - 1) / WARP;
                int items = (min(channels_at_once, plan.count - start) + run - 1) / run * steps;
                Real sums[CHANNELS_PER_THREAD];
                for (int window = 0; window < windows; ++window) {
                    __syncthreads();  // the last taps are used up
                    fill_both(plan, row, column, down, across, window);
                    __syncthreads();  // the taps are there
                    for (int item = warp; item < items; item += POOL_WARPS) {
                        int bin = (item % steps * WARP + lane) / lanes, p = bin / across, q = bin % across;
                        bool there = bin < down * across;
                        const Tap *y = plan.y.taps + p * plan.y.room, *x = plan.x.taps + q * plan.x.room;
                        int channel = start + item / steps * run, end = min(channel + run, plan.count);
                        for (; channel < end; channel += CHANNELS_PER_THREAD) {
                            if (window == 0)
                                for (int c = 0; c < CHANNELS_PER_THREAD; ++c) sums[c] = {0};
                            const Element* source = map + channel * plan.plane;
                            if (there)
                                for (int i = lane % lanes; i < plan.x.counts[q]; i += lanes)
                                    add_column(sums, x[i].weight, source + x[i].offset, plan.plane, end - channel, y,
                                               plan.y.counts[p]);
                            if (window + 1 < windows) continue;
                            Real sum = sum_of_bin(sums, lanes);
                            long long own = channel + lane % lanes;
                            if (there && own < min(channel + CHANNELS_PER_THREAD, end))
                                result[(own * args.rows + row + p) * args.columns + column + q] = narrow(sum);
                        }
                    }
                }
            }
}

// For channels-last maps: neighbouring lanes take neighbouring channels, and results are transposed in shared memory,
// so that they are written in runs.
constexpr int LAST_CHANNELS = CVOPS_LAST_CHANNELS;  // of a block at most
constexpr int TRANSPOSED = 32;                      // bins at a time

static_assert(LAST_CHANNELS == CHANNELS_PER_THREAD * WARP, "a lane takes CHANNELS_PER_THREAD channels");

struct Transposed {
    Real values[TRANSPOSED][LAST_CHANNELS + 1];
};

extern "C" __global__ void __launch_bounds__(POOL_THREADS, sizeof(T) == 8 ? 1 : 5) roi_align_last(const RoiAlign args) {
    SHARED(Plan, plan);
    SHARED(Transposed, transposed);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) prepare(plan, true, TRANSPOSED, args);
    __syncthreads();  // the plan is there
    Element* result = args.pooled + plan.result;
    if (is_settled(plan, result, args.rows * args.columns)) return;
    const Element* map = pick(args.maps, plan.level) + plan.source;
    int windows = plan.y.windows * plan.x.windows;
    int left = (plan.count - lane + WARP - 1) / WARP;  // channels that this lane takes

    for (unsigned row = 0; row < args.rows; row += plan.y.bins)
        for (unsigned column = 0; column < args.columns; column += plan.x.bins) {
            int down = (int)min((long long)plan.y.bins, args.rows - row);
            int across = (int)min((long long)plan.x.bins, args.columns - column);
            Real sums[CHANNELS_PER_THREAD];
            for (int window = 0; window < windows; ++window) {
                __syncthreads();  // the last taps are used up, and the last results written
                fill_both(plan, row, column, down, across, window);
                __syncthreads();  // the taps are there
                for (int bin = warp; bin < down * across && left > 0; bin += POOL_WARPS) {
                    int p = bin / across, q = bin % across;
                    const Tap *y = plan.y.taps + p * plan.y.room, *x = plan.x.taps + q * plan.x.room;
                    if (window == 0)
                        for (int c = 0; c < CHANNELS_PER_THREAD; ++c) sums[c] = {0};
                    for (int i = 0; i < plan.x.counts[q]; ++i)
                        add_column(sums, x[i].weight, map + x[i].offset + lane, (long long)WARP, left, y,
                                   plan.y.counts[p]);
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) transposed.values[bin][c * WARP + lane] = sums[c];
                }
            }
            __syncthreads();  // the results are there
            for (int i = threadIdx.x; i < plan.count * down * across; i += POOL_THREADS) {
                int channel = i / (down * across), bin = i % (down * across);
                result[(channel * args.rows + row + bin / across) * args.columns + column + bin % across] =
                    narrow(transposed.values[bin][channel]);
            }
        }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int TILE = CVOPS_TILE, GRADIENTS = CVOPS_GRADIENTS;  // pixels along each side of a block; its channels
constexpr int THREADS = TILE * TILE, WARPS = THREADS / WARP;
constexpr int BINS = 16;     // along each axis at a time
constexpr int LISTED = 512;  // RoIs in the list of a block

// The tiles that a RoI may touch on its map, from (top, left) to (bottom, right), and that map: image * LEVELS + level,
// or -1 if it touches none. Numbers of tiles are clipped to FARTHEST, so tiles from there on are taken for one.
struct alignas(16) Footprint {
    long long map;
    unsigned short top, bottom, left, right;
};
constexpr long long FARTHEST = 65535;

// How the bins of a RoI lie along both axes.
struct Axes {
    Axis y, x;
};

// The least and the greatest map that a chunk of RoIs touches: those of one block of `roi_align_footprints`.
struct Chunk {
    long long least, greatest;
};

// What `roi_align_footprints` leaves to `roi_align_gradients`.
struct Workspace {
    Footprint* footprints;
    Axes* axes;
    Chunk* chunks;
};
static_assert(sizeof(Footprint) + sizeof(Axes) == CVOPS_ROI_BYTES && sizeof(Chunk) == CVOPS_CHUNK_BYTES,
              "the launcher allocates so many");
__device__ Workspace workspace_at(void* memory, long long size) {
    Footprint* footprints = (Footprint*)memory;
    Axes* axes = (Axes*)(footprints + size);
    return {footprints, axes, (Chunk*)(axes + size)};
}

// Find the first and the last tile that bins may touch along an axis. False if there is none.
__device__ bool find_tiles(const Axis& axis, long long bins, long long length, unsigned short& first,
                           unsigned short& last) {
    Real end = axis.start + Real{(T)bins} * axis.bin_size, slack = slack_of(axis, bins);
    Real low = minimum(axis.start, end) - slack, high = maximum(axis.start, end) + slack;
    if (axis.samples <= 0 || low > Real{(T)length} || high < Real{-1}) return false;
    long long cell = min(max(integer_of(floor_of(low)), 0ll), length - 1);
    first = (unsigned short)min(cell / TILE, FARTHEST);
    cell = min(max(integer_of(floor_of(high)) + 1, 0ll), length - 1);
    last = (unsigned short)min(cell / TILE, FARTHEST);
    return true;
}

__device__ __forceinline__ Chunk joined(Chunk a, Chunk b) {
    return {min(a.least, b.least), max(a.greatest, b.greatest)};
}

struct Chunks {
    Chunk values[WARPS];
};

struct RoiAlignFootprints {
    Pyramid pyramid;
    const void* boxes;
    long long boxes_dtype, size, images, rows, columns, ratio, aligned;
    void* workspace;
};

extern "C" __global__ void __launch_bounds__(THREADS) roi_align_footprints(const RoiAlignFootprints args) {
    SHARED(Chunks, chunks);
    Workspace workspace = workspace_at(args.workspace, args.size);
    long long k = (long long)blockIdx.x * THREADS + threadIdx.x;
    Chunk chunk = {1ll << 62, -1};
    if (k < args.size) {
        RoiOnMap roi = on_map(roi_of(args.boxes, k, args.boxes_dtype), args.pyramid, args.images, args.rows,
                              args.columns, args.ratio, args.aligned);
        Footprint footprint = {-1, 0, 0, 0, 0};
        bool touches = roi.level >= 0 && roi.image >= 0;
        touches = touches &&
                  find_tiles(roi.y, args.rows, pick(args.pyramid.heights, roi.level), footprint.top, footprint.bottom);
        touches = touches && find_tiles(roi.x, args.columns, pick(args.pyramid.widths, roi.level), footprint.left,
                                        footprint.right);
        if (touches) {
            footprint.map = roi.image * LEVELS + roi.level;
            chunk = {footprint.map, footprint.map};
        }
        workspace.footprints[k] = footprint;
        workspace.axes[k] = {roi.y, roi.x};
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        chunk = joined(chunk,
                       {__shfl_xor_sync(ALL, chunk.least, distance), __shfl_xor_sync(ALL, chunk.greatest, distance)});
    if (threadIdx.x % WARP == 0) chunks.values[threadIdx.x / WARP] = chunk;
    __syncthreads();  // the chunks of all warps are there
    if (threadIdx.x > 0) return;
    for (int i = 1; i < WARPS; ++i) chunk = joined(chunk, chunks.values[i]);
    workspace.chunks[blockIdx.x] = chunk;
}

// Along one axis: which bins touch each row, or each column, of the tile, a bit for each bin, and their weights there.
struct Line {
    unsigned touching[TILE];
    Real weights[TILE][BINS + 1];  // one more, so that lanes that read a column read from different banks
};

// What BINS x BINS bins of a RoI contribute to the gradients of the tile.
struct Contribution {
    Line y, x;
    long long offset;  // in grad, of the first of these bins in the first channel of the block
    int pieces;        // of so many bins, in which the bins of the RoI are taken
};
struct Contributions {
    Contribution values[WARPS];
};

// RoIs that reach the tile, in order.
struct RoiList {
    unsigned rois[LISTED];
    unsigned counts[2][WARPS];  // of each warp, in one round of the search and in the next
};

__device__ Range bins_between(const Axis& axis, long long bins, long long low) {
    Real slack = slack_of(axis, bins) + Real{1};
    return intervals_between(axis.start, axis.bin_size, (int)bins, Real{(T)low} - slack,
                             Real{(T)(low + TILE - 1)} + slack);
}

// Fill a line for the bins from `begin` to `end`, one for each lane of half a warp, and the cells from `low` on.
__device__ void weigh(Line& line, const Axis& axis, long long bins, int begin, int end, long long length,
                      long long low) {
    int lane = threadIdx.x % BINS, bin = begin + lane;
    line.touching[lane] = 0;
    __syncwarp();  // no bin touches a cell yet
    if (bin >= end) return;
    Real slack = slack_of(axis, bins) + Real{1};
    Range samples = samples_between(axis, bin, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
    bilinear_taps(axis, bin, length, samples.begin, samples.end, [&](int cell, Real weight) {
        if (cell < low || cell >= low + TILE) return;
        line.weights[cell - low][lane] = weight;
        atomicOr(&line.touching[cell - low], 1u << lane);
    });
}

// Add a contribution to the pixel of this thread.
template <bool FULL>
__device__ __forceinline__ void add(Real (&sums)[GRADIENTS], const Contribution& contribution, const Element* grad,
                                    long long columns, long long bins, int count) {
    int y = threadIdx.x / TILE, x = threadIdx.x % TILE;
#pragma unroll 1
    for (unsigned rows = contribution.y.touching[y]; rows; rows &= rows - 1)
#pragma unroll 1
        for (unsigned there = contribution.x.touching[x]; there; there &= there - 1) {
            int i = __ffs(rows) - 1, j = __ffs(there) - 1;
            Real weight = contribution.y.weights[y][i] * contribution.x.weights[x][j];
            const Element* of_bin = grad + (contribution.offset + i * columns + j);
#pragma unroll
            for (int c = 0; c < GRADIENTS; ++c) {
                if (FULL || c < count) sums[c] = fused(weight, widen(*of_bin), sums[c]);
                of_bin += bins;
            }
        }
}

// The pixels and channels of a block. In shared memory, because registers are needed for the sums.
struct Tile {
    long long height, width, top, left;  // of the map, and of the tile on it
    long long first, map, bins;          // its first channel, its map as in a footprint, bins of a RoI
    long long result;                    // offset of the first channel
    int row, column;                     // of the tile, as in a footprint
    int level, count;                    // count of channels
};

struct RoiAlignGradients {
    const Element* grad;
    void* workspace;
    long long size, images, channels, rows, columns;
    Pyramid pyramid;
    Element* gradients[LEVELS];
};

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 3)
    roi_align_gradients(const RoiAlignGradients args) {
    static_assert(TILE == BINS && 2 * BINS == WARP, "half a warp for each axis");
    SHARED(Contributions, contributions);
    SHARED(RoiList, list);
    SHARED(Tile, tile);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        // The first blocks take the coarsest map, because most RoIs reach its few tiles.
        unsigned block = blockIdx.x, groups = (unsigned)((args.channels + GRADIENTS - 1) / GRADIENTS), tiles = 0,
                 across = 0;
        int level = -1;
#pragma unroll
        for (int i = LEVELS - 1; i >= 0; --i) {
            if (level >= 0) continue;
            across = (unsigned)((args.pyramid.widths[i] + TILE - 1) / TILE);
            tiles = (unsigned)((args.pyramid.heights[i] + TILE - 1) / TILE) * across;
            unsigned blocks = (unsigned)args.images * groups * tiles;
            if (block < blocks)
                level = i;
            else
                block -= blocks;
        }
        tile.height = pick(args.pyramid.heights, level), tile.width = pick(args.pyramid.widths, level);
        unsigned row = block % tiles / across, column = block % tiles % across;
        tile.top = row * (long long)TILE, tile.left = column * (long long)TILE;
        tile.row = (int)min((long long)row, FARTHEST), tile.column = (int)min((long long)column, FARTHEST);
        tile.first = block / tiles % groups * (long long)GRADIENTS;
        tile.count = (int)min((long long)GRADIENTS, args.channels - tile.first);
        long long image = block / tiles / groups;
        tile.map = image * LEVELS + level;
        tile.bins = args.rows * args.columns;
        tile.level = level, tile.result = (image * args.channels + tile.first) * tile.height * tile.width;
    }
    __syncthreads();  // the tile is known

    Workspace workspace = workspace_at(args.workspace, args.size);
    Real sums[GRADIENTS] = {};
    int round = 0;
    for (unsigned next = 0; next < args.size;) {
        int length = 0;  // of the list
        for (; next < args.size && length + THREADS <= LISTED; next += THREADS) {
            Chunk chunk = workspace.chunks[next / THREADS];
            if (tile.map < chunk.least || tile.map > chunk.greatest) continue;
            unsigned k = next + threadIdx.x;
            bool reaches = false;
            if (k < args.size) {
                Footprint own = workspace.footprints[k];
                reaches = own.map == tile.map && own.top <= tile.row && own.bottom >= tile.row &&
                          own.left <= tile.column && own.right >= tile.column;
            }
            int count, at = length + position_among(list.counts[round], reaches, count);
            round ^= 1;
            length += count;
            if (reaches) list.rois[at] = k;
        }
        for (int begin = 0; begin < length; begin += WARPS) {
            int some = min(WARPS, length - begin);  // RoIs that are taken together, one by each warp
            bool more = true;
            for (int piece = 0; more; ++piece) {
                __syncthreads();  // the list is there, and the last contributions are used up
                if (warp < some) {
                    Contribution& contribution = contributions.values[warp];
                    long long k = list.rois[begin + warp];
                    const Axes& axes = workspace.axes[k];
                    Range y = bins_between(axes.y, args.rows, tile.top),
                          x = bins_between(axes.x, args.columns, tile.left);
                    int pieces_x = (x.end - x.begin + BINS - 1) / BINS;
                    int pieces = (y.end - y.begin + BINS - 1) / BINS * pieces_x;
                    if (lane == 0) contribution.pieces = pieces;
                    if (piece < pieces) {
                        int row = y.begin + piece / pieces_x * BINS, column = x.begin + piece % pieces_x * BINS;
                        if (lane == 0)
                            contribution.offset =
                                (k * args.channels + tile.first) * tile.bins + row * args.columns + column;
                        bool of_row = lane < BINS;
                        weigh(of_row ? contribution.y : contribution.x, of_row ? axes.y : axes.x,
                              of_row ? args.rows : args.columns, of_row ? row : column, of_row ? y.end : x.end,
                              of_row ? tile.height : tile.width, of_row ? tile.top : tile.left);
                    }
                }
                __syncthreads();  // the contributions are there
                more = false;
                for (int i = 0; i < some; ++i) {
                    const Contribution& contribution = contributions.values[i];
                    more |= piece + 1 < contribution.pieces;
                    if (piece >= contribution.pieces) continue;
                    if (tile.count == GRADIENTS)
                        add<true>(sums, contribution, args.grad, args.columns, tile.bins, GRADIENTS);
                    else
                        add<false>(sums, contribution, args.grad, args.columns, tile.bins, tile.count);
                }
            }
        }
    }
    long long y = tile.top + threadIdx.x / TILE, x = tile.left + threadIdx.x % TILE;
    if (y >= tile.height || x >= tile.width) return;
    Element* result = pick(args.gradients, tile.level) + tile.result + y * tile.width + x;
#pragma unroll
    for (int c = 0; c < GRADIENTS; ++c) {
        if (c < tile.count) *result = narrow(sums[c]);
        result += tile.height * tile.width;
    }
}
