// RoIAlign [1]: each bin of a RoI is the mean of bilinear samples of a map; and its gradient. For a pyramid of maps a
// RoI is pooled from the one that suits its area, which is found here: one launch does all of them.
//
// boxes (K, 5); maps (images, channels, height, width), contiguous or channels-last; pooled and grad (K, channels,
// rows, columns) and gradients (images, channels, height, width), contiguous. A launch knows LEVELS maps; of more, each
// launch does the RoIs of its own.
//
// The operator is separable: Wy . map . Wx^T. The samples of a bin that touch one cell are one tap along each axis. The
// taps of a RoI are found once for many channels and kept in shared memory; to find them anew for each channel and bin
// costs more instructions than all the rest.
//
// Forward: neighbouring lanes take neighbouring taps of a row of bins, so that a warp reads runs of a row of the map.
// Each lane sums a column over the taps along y, for CHANNELS_PER_THREAD channels at once, with 16 reads under way. A
// bin is then the sum over a few lanes, by shuffles. Only the result is written. In channels-last maps the lanes take
// channels.
//
// Gradient: a block owns a tile of one map and some channels, finds the RoIs that reach the tile, in order, and adds up
// what they bring to each pixel, in registers. No atomics on floats: the same bits on every run. Every pixel is written
// once, so that nothing has to be zeroed before. `roi_align_places` works out first where each RoI lies; from that, a
// block passes over RoIs of other images by the hundred. Warps weigh the bins of a RoI each, all of them then add.
//
// [1] K. He et al., "Mask R-CNN", ICCV 2017.

#include "roi.cuh"

constexpr int LEVELS = CVOPS_LEVELS;
constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

// ----------------------------------------------------------------------------------------------------------- places

// Of the maps that a launch knows, from the finest: their sizes and scales, the area from which on a RoI is pooled from
// each of them, and the one from which on another launch does it. An area that is NaN counts as 0, and a limit that is
// NaN is never reached.
struct Pyramid {
    long long heights[LEVELS], widths[LEVELS];
    double scales[LEVELS], limits[LEVELS], end;
};

// Where a RoI is pooled; no level if the launch does not know its map, no image if there is none.
struct RoiOnMap {
    int level;
    long long image;
    Axis y, x;
};

__device__ RoiOnMap on_map(Row row, const Pyramid& pyramid, long long images, long long rows, long long columns,
                           long long ratio, long long aligned) {
    RoiOnMap place = {-1, -1, {}, {}};
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

constexpr int POOL_THREADS = CVOPS_POOL_THREADS, POOL_WARPS = POOL_THREADS / WARP;  // of a block
constexpr int CHANNELS_PER_THREAD = 4;                                              // channels of a thread at a time
constexpr int RUN = 16;             // channels of a warp, one after the other
constexpr int LOADS_IN_FLIGHT = 4;  // reads of a channel on their way at once
constexpr int TAPS = 256;           // in shared memory, for each axis

struct Tap {
    long long offset;
    Real weight;
};

// The taps of some bins along one axis. There is room for as many in each bin; a bin that alone has too many is summed
// up in windows of them.
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

// Add a column of cells, each by its weight, to the sums of the channels. Unless all channels are there, the last one
// is read in place of those that are not.
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

// The sums over the lanes of a bin. Of four neighbours, each ends up with one channel.
__device__ __forceinline__ Real sum_of_bin(const Real (&sums)[CHANNELS_PER_THREAD], int lanes) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    Real low = (odd ? sums[1] : sums[0]) + from_lane(odd ? sums[0] : sums[1], 1);
    Real high = (odd ? sums[3] : sums[2]) + from_lane(odd ? sums[2] : sums[3], 1);
    Real sum = (upper ? high : low) + from_lane(upper ? low : high, 2);
    for (int distance = CHANNELS_PER_THREAD; distance < lanes; distance *= 2) sum = sum + from_lane(sum, distance);
    return sum;
}

// What a block does. One thread works it out, into shared memory: registers are needed for what is read. It holds
// offsets instead of pointers, because a compiler does not know where pointers from memory lead.
struct Plan {
    Taps y, x;
    long long source, plane;  // of the first channel of the block in its map, and from one channel to the next
    long long result;         // of the RoI, in the first channel of the block
    int count;                // of channels
    int level, nowhere;       // -1 if another launch knows the map; whether the RoI is NaN
    int lanes;                // of a bin, a power of two
};

struct RoiAlign {
    const Element* maps[LEVELS];
    Pyramid pyramid;
    const void* boxes;
    long long boxes_dtype, images, channels, rows, columns, ratio, aligned, channels_per_block;
    Element* pooled;
};

// For a block that pools some channels of a RoI, and so many bins at a time.
__device__ void prepare(Plan& plan, bool channels_last, int bins_at_once, const RoiAlign& args) {
    unsigned blocks = (unsigned)((args.channels + args.channels_per_block - 1) / args.channels_per_block);
    long long k = blockIdx.x / blocks, first = blockIdx.x % blocks * args.channels_per_block;
    RoiOnMap place = on_map(row_of(args.boxes, k, args.boxes_dtype), args.pyramid, args.images, args.rows, args.columns,
                            args.ratio, args.aligned);
    plan.result = (k * args.channels + first) * args.rows * args.columns;
    plan.count = (int)min(args.channels_per_block, args.channels - first);
    plan.level = place.level;
    plan.nowhere = place.image < 0 || place.y.samples < 0 || place.x.samples < 0;
    if (place.level < 0 || plan.nowhere) return;
    long long height = pick(args.pyramid.heights, place.level), width = pick(args.pyramid.widths, place.level);
    long long pixel = channels_last ? args.channels : 1;
    plan.plane = channels_last ? 1 : height * width;
    plan.source = place.image * args.channels * height * width + first * plan.plane;
    lay_out(plan.y, place.y, args.rows, height, width * pixel);
    lay_out(plan.x, place.x, args.columns, width, pixel);
    plan.x.bins = (int)min((long long)min(plan.x.bins, bins_at_once), args.columns);
    plan.y.bins = min(plan.y.bins, bins_at_once / plan.x.bins);
    // Windows are of one bin, of which each warp keeps the sums of some channels.
    if (plan.y.windows > 1 || plan.x.windows > 1) plan.y.bins = plan.x.bins = 1;
    plan.lanes = CHANNELS_PER_THREAD;
    while (plan.lanes < WARP && plan.lanes < plan.x.room) plan.lanes *= 2;
}

// Whether there is nothing to pool: the RoI belongs to another launch, or it is NaN, which is written.
__device__ bool is_settled(const Plan& plan, Element* result, long long bins) {
    if (plan.level < 0) return true;
    if (!plan.nowhere) return false;
    for (long long i = threadIdx.x; i < plan.count * bins; i += POOL_THREADS) result[i] = narrow(Real{0} / Real{0});
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
extern "C" __global__ void __launch_bounds__(POOL_THREADS, sizeof(T) == 8 ? 1 : 5) roi_align(const RoiAlign args) {
    SHARED(Plan, plan);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) prepare(plan, false, 1 << 30, args);
    __syncthreads();  // the plan is there
    Element* result = args.pooled + plan.result;
    if (is_settled(plan, result, args.rows * args.columns)) return;
    const Element* map = pick(args.maps, plan.level) + plan.source;
    int lanes = plan.lanes, windows = plan.y.windows * plan.x.windows;
    // A warp does a run of channels of some bins; with windows just one, because it keeps their sums.
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
    Real of[TRANSPOSED][LAST_CHANNELS + 1];
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
    int left = (plan.count - lane + WARP - 1) / WARP;  // channels of the lane

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
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) transposed.of[bin][c * WARP + lane] = sums[c];
                }
            }
            __syncthreads();  // the results are there
            for (int i = threadIdx.x; i < plan.count * down * across; i += POOL_THREADS) {
                int channel = i / (down * across), bin = i % (down * across);
                result[(channel * args.rows + row + bin / across) * args.columns + column + bin % across] =
                    narrow(transposed.of[bin][channel]);
            }
        }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int TILE = CVOPS_TILE, GRADIENTS = CVOPS_GRADIENTS;  // pixels along each side of a block; its channels
constexpr int THREADS = TILE * TILE, WARPS = THREADS / WARP;
constexpr int BINS = 16;     // along each axis at a time
constexpr int LISTED = 512;  // RoIs in the list of a block

// The tiles that a RoI may touch on its map, and that map: image * LEVELS + level, or -1 if it touches none. Tiles from
// FARTHEST on are taken for one.
struct alignas(16) Footprint {
    long long map;
    unsigned short top, bottom, left, right;
};
constexpr long long FARTHEST = 65535;

// Both axes of a RoI.
struct Axes {
    Axis y, x;
};

// The least and the greatest map that RoIs of a block of `roi_align_places` touch.
struct Chunk {
    long long least, greatest;
};

// What `roi_align_places` finds out for so many RoIs.
struct Workspace {
    Footprint* footprints;
    Axes* frames;
    Chunk* chunks;
};
static_assert(sizeof(Footprint) + sizeof(Axes) == CVOPS_ROI_BYTES && sizeof(Chunk) == CVOPS_CHUNK_BYTES,
              "the launcher allocates so many");
__device__ Workspace workspace_at(void* memory, long long size) {
    Footprint* footprints = (Footprint*)memory;
    Axes* frames = (Axes*)(footprints + size);
    return {footprints, frames, (Chunk*)(frames + size)};
}

// The first and the last tile that the bins may touch; false if there is none.
__device__ bool find_tiles(const Axis& axis, long long bins, long long length, unsigned short& first,
                           unsigned short& last) {
    Real end = axis.start + Real{(T)bins} * axis.step, slack = slack_of(axis, bins);
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
    Chunk of[WARPS];
};

struct RoiAlignPlaces {
    Pyramid pyramid;
    const void* boxes;
    long long boxes_dtype, size, images, rows, columns, ratio, aligned;
    void* workspace;
};

extern "C" __global__ void __launch_bounds__(THREADS) roi_align_places(const RoiAlignPlaces args) {
    SHARED(Chunks, chunks);
    Workspace workspace = workspace_at(args.workspace, args.size);
    long long k = (long long)blockIdx.x * THREADS + threadIdx.x;
    Chunk chunk = {1ll << 62, -1};
    if (k < args.size) {
        RoiOnMap place = on_map(row_of(args.boxes, k, args.boxes_dtype), args.pyramid, args.images, args.rows,
                                args.columns, args.ratio, args.aligned);
        Footprint footprint = {-1, 0, 0, 0, 0};
        bool touches = place.level >= 0 && place.image >= 0;
        touches = touches && find_tiles(place.y, args.rows, pick(args.pyramid.heights, place.level), footprint.top,
                                        footprint.bottom);
        touches = touches && find_tiles(place.x, args.columns, pick(args.pyramid.widths, place.level), footprint.left,
                                        footprint.right);
        if (touches) {
            footprint.map = place.image * LEVELS + place.level;
            chunk = {footprint.map, footprint.map};
        }
        workspace.footprints[k] = footprint;
        workspace.frames[k] = {place.y, place.x};
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        chunk = joined(chunk,
                       {__shfl_xor_sync(ALL, chunk.least, distance), __shfl_xor_sync(ALL, chunk.greatest, distance)});
    if (threadIdx.x % WARP == 0) chunks.of[threadIdx.x / WARP] = chunk;
    __syncthreads();  // all warps have told
    if (threadIdx.x > 0) return;
    for (int i = 1; i < WARPS; ++i) chunk = joined(chunk, chunks.of[i]);
    workspace.chunks[blockIdx.x] = chunk;
}

// Which bins touch each of a line of cells of the tile, a bit for each, and what those weigh there.
struct Line {
    unsigned touching[TILE];
    Real weights[TILE][BINS + 1];  // one more, so that lanes that read a column of it find it in different banks
};

// What some bins of a RoI contribute to the gradients of the tile.
struct Contribution {
    Line y, x;
    long long offset;  // in grad, of the first of these bins in the first channel of the block
    int pieces;        // in which the bins of the RoI are taken
};
struct Contributions {
    Contribution of[WARPS];
};

// RoIs that reach the tile, in order.
struct RoiList {
    unsigned rois[LISTED];
    int counts[2][WARPS];  // by warp, of one round of the search and of the next
};

__device__ Range bins_between(const Axis& axis, long long bins, long long low) {
    Real slack = slack_of(axis, bins) + Real{1};
    return steps_between(axis.start, axis.step, (int)bins, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
}

// What the bin of each lane of half a warp weighs in the cells from `low` on.
__device__ void weigh(Line& line, const Axis& axis, long long bins, int begin, int end, long long length,
                      long long low) {
    int lane = threadIdx.x % BINS, bin = begin + lane;
    line.touching[lane] = 0;
    __syncwarp();  // no bin touches a cell yet
    if (bin >= end) return;
    Real slack = slack_of(axis, bins) + Real{1};
    Range samples = samples_between(axis, bin, Real{(T)low} - slack, Real{(T)(low + TILE - 1)} + slack);
    take_taps(axis, bin, length, samples.begin, samples.end, [&](int cell, Real weight) {
        if (cell < low || cell >= low + TILE) return;
        line.weights[cell - low][lane] = weight;
        atomicOr(&line.touching[cell - low], 1u << lane);
    });
}

// Add a contribution to a pixel of the tile.
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

// The pixels of a block, and its channels. In shared memory, because registers are needed for the sums.
struct Tile {
    long long height, width, top, left, first, map, bins;  // bins of a RoI
    long long result;                                      // offset of the first channel
    int row, column;                                       // of the tile, as in a footprint
    int level, count;                                      // count of channels
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
        // The coarsest map first: most RoIs reach its few tiles.
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
        int found = 0;
        for (; next < args.size && found + THREADS <= LISTED; next += THREADS) {
            Chunk chunk = workspace.chunks[next / THREADS];
            if (tile.map < chunk.least || tile.map > chunk.greatest) continue;
            unsigned k = next + threadIdx.x;
            bool reaches = false;
            if (k < args.size) {
                Footprint print = workspace.footprints[k];
                reaches = print.map == tile.map && print.top <= tile.row && print.bottom >= tile.row &&
                          print.left <= tile.column && print.right >= tile.column;
            }
            unsigned votes = __ballot_sync(ALL, reaches);
            int (&counts)[WARPS] = list.counts[round];
            if (lane == 0) counts[warp] = __popc(votes);
            __syncthreads();  // all have counted
            round ^= 1;
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
                __syncthreads();  // the list is there, and the last contributions are used up
                if (warp < together) {
                    Contribution& contribution = contributions.of[warp];
                    long long k = list.rois[begin + warp];
                    const Axes& frame = workspace.frames[k];
                    Range y = bins_between(frame.y, args.rows, tile.top),
                          x = bins_between(frame.x, args.columns, tile.left);
                    int pieces_x = (x.end - x.begin + BINS - 1) / BINS;
                    int pieces = (y.end - y.begin + BINS - 1) / BINS * pieces_x;
                    if (lane == 0) contribution.pieces = pieces;
                    if (piece < pieces) {
                        int row = y.begin + piece / pieces_x * BINS, column = x.begin + piece % pieces_x * BINS;
                        if (lane == 0)
                            contribution.offset =
                                (k * args.channels + tile.first) * tile.bins + row * args.columns + column;
                        bool of_row = lane < BINS;
                        weigh(of_row ? contribution.y : contribution.x, of_row ? frame.y : frame.x,
                              of_row ? args.rows : args.columns, of_row ? row : column, of_row ? y.end : x.end,
                              of_row ? tile.height : tile.width, of_row ? tile.top : tile.left);
                    }
                }
                __syncthreads();  // the contributions are there
                more = false;
                for (int i = 0; i < together; ++i) {
                    const Contribution& contribution = contributions.of[i];
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
