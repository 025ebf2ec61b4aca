// Position-sensitive RoI operators: bins averaged over bilinear samples [1] or over cells [2], each from channels of
// its own; and their gradients.
//
// maps and gradients (images, channels * rows * columns, height, width): the planes of an image in order (channel, bin
// row, bin column); boxes (K, 5); pooled and grad (K, channels, rows, columns). All contiguous.
//
// A plane serves one bin alone, but of all RoIs. So a block owns the planes of one bin of an image for a few channels:
// what it knows about a RoI serves all of these, and the planes stay in the caches. Bins are sums over taps, pairs of a
// cell and its weight along each axis: samples on one cell are one tap.
//
// Forward: a thread for each RoI. (To copy the planes into shared memory first took half as long again on an H100.)
//
// Gradient: the block sums up a tile of its planes, from the RoIs of the image in order: half of the threads find taps,
// and each warp adds what falls into its rows, lanes side by side on different cells. No atomics, the same bits on
// every run, and each pixel is written once, so that nothing has to be zeroed before.
//
// [1] Z. Li et al., "Light-Head R-CNN: In Defense of Two-Stage Object Detector", arXiv:1711.07264.
// [2] J. Dai et al., "R-FCN: Object Detection via Region-based Fully Convolutional Networks", NIPS 2016.

#include "roi.cuh"

constexpr int THREADS = CVOPS_THREADS, WARP = 32, WARPS = THREADS / WARP;  // of a block, at most
constexpr int CHANNELS_PER_THREAD = CVOPS_CHANNELS;                        // channels of a block
constexpr unsigned ALL = 0xFFFFFFFF;                                       // lanes
// Blocks at once on a multiprocessor, for which there are registers; with more, some would be spilled.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;
#else
constexpr int BLOCKS = sizeof(T) == 4 ? 3 : 1;
#endif
constexpr int CELL_BLOCKS = sizeof(T) == 4 ? 2 : 1;  // of ps_roi_pool

// Calls take(cell, weight) for each tap of one of some bins along an axis, cells ascending.
template <bool SAMPLES, class Take>
__device__ __forceinline__ void each_tap(const Axis& axis, long long bins, long long bin, long long length, Take take) {
    if constexpr (SAMPLES) {
        Real slack = slack_of(axis, bins);
        Range range = samples_between(axis, bin, Real{-1} - slack, Real{(T)length} + slack);
        take_taps(axis, bin, length, range.begin, range.end, take);
    } else {
        // The last row and column are never read: so it is in torchvision.
        Window window = window_of(axis, bin, length - 1);
        Real weight = Real{1} / Real{(T)(window.end - window.begin)};
        for (int cell = (int)window.begin; cell < (int)window.end; ++cell) take(cell, weight);
    }
}

// The bin and the channels of a block.
struct BlockBin {
    int image, row, column, first, count;  // the last two: of the channels
    long long plane;                       // that of the first channel
};

__device__ BlockBin bin_of_block(long long block, long long channels, long long rows, long long columns) {
    long long bins = rows * columns, groups = (channels + CHANNELS_PER_THREAD - 1) / CHANNELS_PER_THREAD,
              bin = block % bins;
    long long first = block / bins % groups * CHANNELS_PER_THREAD, image = block / bins / groups;
    return {(int)image,
            (int)(bin / columns),
            (int)(bin % columns),
            (int)first,
            (int)min((long long)CHANNELS_PER_THREAD, channels - first),
            (image * channels + first) * bins + bin};
}

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int ROIS = CVOPS_ROIS;  // of a block at most

struct PsRoi {
    const Element* maps;
    const void* boxes;
    long long boxes_dtype, size, images, channels, height, width, rows, columns;
    double scale;
    long long ratio;
    Element* pooled;
};

template <bool SAMPLES>
__device__ __forceinline__ void pool(const PsRoi& args) {
    long long parts = (args.size + ROIS - 1) / ROIS, pixels = args.height * args.width, bins = args.rows * args.columns;
    BlockBin place = bin_of_block(blockIdx.x / parts, args.channels, args.rows, args.columns);
    const Element* source = args.maps + place.plane * pixels;
    long long apart = bins * pixels;
    long long begin = blockIdx.x % parts * ROIS, end = min(begin + ROIS, args.size);
    for (long long k = begin + threadIdx.x; k < end; k += blockDim.x) {
        Row roi = row_of(args.boxes, k, args.boxes_dtype);
        long long image = roi.index(args.images);
        // A RoI of no image is left to the first one.
        if (image != place.image && (image >= 0 || place.image > 0)) continue;
        Layout layout = SAMPLES ? ALIGN_CENTRES : AVERAGE;
        Axis y = axis_of(roi.y1, roi.y2, real(args.scale), layout, args.rows, args.ratio);
        Axis x = axis_of(roi.x1, roi.x2, real(args.scale), layout, args.columns, args.ratio);
        bool placed = image >= 0 && y.samples >= 0 && x.samples >= 0;
        Real sums[CHANNELS_PER_THREAD] = {};
        if (placed)
            each_tap<SAMPLES>(y, args.rows, place.row, args.height, [&](int row, Real weight_y) {
                Real of_row[CHANNELS_PER_THREAD] = {};
                const Element* line = source + row * args.width;
                each_tap<SAMPLES>(x, args.columns, place.column, args.width, [&](int column, Real weight_x) {
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                        if (c < place.count) of_row[c] = fused(weight_x, widen(line[c * apart + column]), of_row[c]);
                });
#pragma unroll
                for (int c = 0; c < CHANNELS_PER_THREAD; ++c) sums[c] = fused(weight_y, of_row[c], sums[c]);
            });
        Element* result =
            args.pooled + ((k * args.channels + place.first) * args.rows + place.row) * args.columns + place.column;
#pragma unroll
        for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
            if (c < place.count) result[c * bins] = narrow(placed ? sums[c] : Real{0} / Real{0});
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ps_roi_align(const PsRoi args) { pool<true>(args); }

extern "C" __global__ void __launch_bounds__(THREADS, CELL_BLOCKS) ps_roi_pool(const PsRoi args) { pool<false>(args); }

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int SUMS = CVOPS_SUMS;  // of a block
constexpr int MEMBERS = 64;       // RoIs at a time
constexpr int TAPS = 8;           // of a RoI along each axis at a time

struct Sums {
    T of[SUMS];
};

// RoIs of the image, in order, of as many as the block has threads.
struct RoiList {
    short rois[THREADS];
    int counts[WARPS];
};

// Taps of some RoIs in the tile, at most TAPS of each along y (0) and x (1), of so many in all.
struct Taps {
    T weights[2][TAPS][MEMBERS + 2];  // two more, so that the taps of a RoI lie in different banks
    short cells[2][TAPS][MEMBERS + 2];
    int numbers[2][MEMBERS];
};

__device__ __forceinline__ int pieces_of(int number) { return (number + TAPS - 1) / TAPS; }

// The taps of a RoI are taken in pieces of TAPS times TAPS. Which those of one piece are along an axis: the first.
__device__ __forceinline__ int first_of(const Taps& taps, int member, int piece, bool x) {
    int across = max(pieces_of(taps.numbers[1][member]), 1);
    return (x ? piece % across : piece / across) * TAPS;
}

struct PsRoiGradients {
    const Element* grad;
    const void* boxes;
    long long boxes_dtype, size, images, channels, height, width, rows, columns;
    double scale;
    long long ratio, tile_height, tile_width;
    Element* gradients;
};

template <bool SAMPLES>
__device__ __forceinline__ void spread(Sums& sums, RoiList& list, Taps& taps, const PsRoiGradients& args) {
    long long down = (args.height + args.tile_height - 1) / args.tile_height,
              across = (args.width + args.tile_width - 1) / args.tile_width;
    long long tile = blockIdx.x % (down * across), bins = args.rows * args.columns;
    BlockBin place = bin_of_block(blockIdx.x / (down * across), args.channels, args.rows, args.columns);
    long long top = tile / across * args.tile_height, left = tile % across * args.tile_width;
    int tall = (int)min(args.tile_height, args.height - top), wide = (int)min(args.tile_width, args.width - left),
        pixels = tall * wide;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // The rows of the warp.
    int begin = tall * warp / WARPS, end = tall * (warp + 1) / WARPS;
    for (int c = 0; c < place.count; ++c)
        for (int i = begin * wide + lane; i < end * wide; i += WARP) sums.of[c * pixels + i] = 0;

    for (long long next = 0; next < args.size; next += THREADS) {
        bool member =
            next + threadIdx.x < args.size &&
            Row{load(args.boxes, 5 * (next + threadIdx.x), args.boxes_dtype)}.index(args.images) == place.image;
        unsigned votes = __ballot_sync(ALL, member);
        if (lane == 0) list.counts[warp] = __popc(votes);
        __syncthreads();  // all have counted, and the last RoIs are done
        int found = 0, at = __popc(votes & ((1u << lane) - 1));
        for (int i = 0; i < WARPS; ++i) {
            if (i < warp) at += list.counts[i];
            found += list.counts[i];
        }
        if (member) list.rois[at] = threadIdx.x;
        for (int from = 0; from < found; from += MEMBERS) {
            int members = min(MEMBERS, found - from);
            bool more = true;
            for (int piece = 0; more; ++piece) {
                __syncthreads();  // the list is there, and the last taps are used up
                if (threadIdx.x < 2 * MEMBERS && threadIdx.x % MEMBERS < members) {
                    int i = threadIdx.x % MEMBERS, number = 0;
                    bool is_x = threadIdx.x / MEMBERS;
                    int skipped = piece ? first_of(taps, i, piece, is_x) : 0;
                    Row roi = row_of(args.boxes, next + list.rois[from + i], args.boxes_dtype);
                    Layout layout = SAMPLES ? ALIGN_CENTRES : AVERAGE;
                    Axis axis = axis_of(is_x ? roi.x1 : roi.y1, is_x ? roi.x2 : roi.y2, real(args.scale), layout,
                                        is_x ? args.columns : args.rows, args.ratio);
                    int low = is_x ? (int)left : (int)top, length = is_x ? wide : tall;
                    auto keep = [&](int cell, Real weight) {
                        int inside = cell - low, at_tap = number - skipped;
                        if (inside < 0 || inside >= length) return;
                        ++number;
                        if (at_tap < 0 || at_tap >= TAPS) return;
                        taps.cells[is_x][at_tap][i] = (short)inside;
                        taps.weights[is_x][at_tap][i] = weight.value;
                    };
                    if (axis.samples > 0)
                        each_tap<SAMPLES>(axis, is_x ? args.columns : args.rows, is_x ? place.column : place.row,
                                          is_x ? args.width : args.height, keep);
                    if (piece == 0) taps.numbers[is_x][i] = number;
                }
                __syncthreads();  // the taps are there
                more = false;
                for (int group = 0; group < members; group += WARP) {
                    int own = group + lane, y_taps = 0, x_taps = 0;
                    bool reaches = false, unfinished = false;
                    if (own < members) {
                        int y_number = taps.numbers[0][own], x_number = taps.numbers[1][own];
                        y_taps = min(y_number - first_of(taps, own, piece, false), TAPS);
                        x_taps = min(x_number - first_of(taps, own, piece, true), TAPS);
                        unfinished = piece + 1 < pieces_of(y_number) * pieces_of(x_number);
                        reaches = y_taps > 0 && x_taps > 0 && taps.cells[0][0][own] < end &&
                                  taps.cells[0][y_taps - 1][own] >= begin;
                    }
                    more |= __any_sync(ALL, unfinished) != 0;
                    Real values[CHANNELS_PER_THREAD] = {};
                    if (reaches) {
                        long long k = next + list.rois[from + own];
                        const Element* of_bin =
                            args.grad + ((k * args.channels + place.first) * args.rows + place.row) * args.columns +
                            place.column;
#pragma unroll
                        for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                            if (c < place.count) values[c] = widen(of_bin[c * bins]);
                    }
                    for (unsigned left_over = __ballot_sync(ALL, reaches); left_over; left_over &= left_over - 1) {
                        int i = __ffs(left_over) - 1;
                        int rows_here = __shfl_sync(ALL, y_taps, i), columns_here = __shfl_sync(ALL, x_taps, i);
                        Real of_roi[CHANNELS_PER_THREAD];
#pragma unroll
                        for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                            of_roi[c] = {__shfl_sync(ALL, values[c].value, i)};
                        int column = lane % TAPS, other = group + i;
                        for (int row = lane / TAPS; row < rows_here; row += WARP / TAPS) {
                            int y = taps.cells[0][row][other];
                            if (column >= columns_here || y < begin || y >= end) continue;
                            Real weight = Real{taps.weights[0][row][other]} * Real{taps.weights[1][column][other]};
                            T* sum = sums.of + y * wide + taps.cells[1][column][other];
#pragma unroll
                            for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                                if (c < place.count)
                                    sum[c * pixels] = fused(weight, of_roi[c], Real{sum[c * pixels]}).value;
                        }
                        __syncwarp();  // this RoI is added before the next
                    }
                }
            }
        }
    }
    for (int c = 0; c < place.count; ++c) {
        Element* result = args.gradients + (place.plane + c * bins) * args.height * args.width + left;
        for (int i = begin * wide + lane; i < end * wide; i += WARP)
            result[(top + i / wide) * args.width + i % wide] = narrow({sums.of[c * pixels + i]});
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ps_roi_align_gradients(const PsRoiGradients args) {
    SHARED(Sums, sums);
    SHARED(RoiList, list);
    SHARED(Taps, taps);
    spread<true>(sums, list, taps, args);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ps_roi_pool_gradients(const PsRoiGradients args) {
    SHARED(Sums, sums);
    SHARED(RoiList, list);
    SHARED(Taps, taps);
    spread<false>(sums, list, taps, args);
}
