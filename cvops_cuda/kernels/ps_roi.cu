// Position-sensitive RoI operators: bins averaged over bilinear samples [1] or over cells [2], each from channels of
// its own; and their gradients.
//
// maps and gradients (images, channels * rows * columns, height, width): the planes of an image in order (channel, bin
// row, bin column); boxes (K, 5); pooled and grad (K, channels, rows, columns). All contiguous.
//
// All RoIs of an image read a plane for the same bin. So a block owns the planes of one bin of an image, for a few
// channels: what it finds out about a RoI serves all of these, and the planes stay in the caches. A bin is a sum over
// taps, pairs of a cell and its weight along each axis; samples that read the same cell are one tap.
//
// Forward: a thread for each RoI. (Copying the planes into shared memory first took half as long again on an H100.)
//
// Gradient: a block sums up a tile of its planes in shared memory, and each of its warps owns some rows of the tile:
//
//     tile                          one RoI: its taps in the tile, here 3 along y and 4 along x
//     +-----------------------+
//     |  . x x x x . . . . .  |     warp 0    a lane for each pair of taps adds
//     |  . x x x x . . . . .  |                   weight[y] * weight[x] * grad[k, c, p, q]
//     |-----------------------|                   to the cells marked x in the rows of its warp
//     |  . x x x x . . . . .  |     warp 1
//     |  . . . . . . . . . .  |
//     +-----------------------+
//
//     def gradient_of_tile(tile, rois, grad, image, c, p, q):    # for one channel
//         sums = np.zeros(tile.shape)                            # in shared memory
//         for some in chunks(rois, THREADS):
//             members = [k for k in some if k is on image]       # list_members: by all threads
//             for few in chunks(members, MEMBERS):
//                 taps = [taps_in(tile, k, p, q) for k in few]   # find_taps: a thread for each RoI and axis
//                 for k, (along_y, along_x) in zip(few, taps):   # add_taps: each warp in its own rows
//                     for y, weight_y in along_y:
//                         for x, weight_x in along_x:
//                             sums[y, x] += weight_y * weight_x * grad[k, c, p, q]
//         return sums
//
// There is room for TAPS taps of a RoI along each axis. A RoI with more is taken in several pieces of TAPS x TAPS. So
// there are no atomics, every run gives the same bits, and each pixel is written once, so that nothing has to be zeroed
// before.
//
// [1] Z. Li et al., "Light-Head R-CNN: In Defense of Two-Stage Object Detector", arXiv:1711.07264.
// [2] J. Dai et al., "R-FCN: Object Detection via Region-based Fully Convolutional Networks", NIPS 2016.

#include "roi.cuh"

constexpr int THREADS = CVOPS_THREADS, WARPS = THREADS / WARP;  // of a block, at most
constexpr int CHANNELS_PER_THREAD = CVOPS_CHANNELS;             // channels of a block
// Blocks at once on a multiprocessor, for which there are registers; with more, some would be spilled.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;
#else
constexpr int BLOCKS = sizeof(T) == 4 ? 3 : 1;
#endif
constexpr int CELL_BLOCKS = sizeof(T) == 4 ? 2 : 1;  // of ps_roi_pool

// Calls take(cell, weight) for each tap of a bin along an axis, in ascending order of cells.
template <bool SAMPLES, class Take>
__device__ __forceinline__ void each_tap(const Axis& axis, long long bins, long long bin, long long length, Take take) {
    if constexpr (SAMPLES) {
        Real slack = slack_of(axis, bins);
        Range range = samples_between(axis, bin, Real{-1} - slack, Real{(T)length} + slack);
        bilinear_taps(axis, bin, length, range.begin, range.end, take);
    } else {
        // The last row and column are never read: so it is in torchvision.
        Window window = window_of(axis, bin, length - 1);
        Real weight = Real{1} / Real{(T)(window.end - window.begin)};
        for (int cell = (int)window.begin; cell < (int)window.end; ++cell) take(cell, weight);
    }
}

// What a block owns: one bin of an image, for `count` channels from `first` on.
struct BlockBin {
    int image, row, column, first, count;
    long long plane;  // of the first channel
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
    BlockBin own = bin_of_block(blockIdx.x / parts, args.channels, args.rows, args.columns);
    const Element* source = args.maps + own.plane * pixels;
    long long plane_stride = bins * pixels;
    long long begin = blockIdx.x % parts * ROIS, end = min(begin + ROIS, args.size);
    for (long long k = begin + threadIdx.x; k < end; k += blockDim.x) {
        Roi roi = roi_of(args.boxes, k, args.boxes_dtype);
        long long image = roi.index(args.images);
        // Blocks of the first image also write the result of a RoI whose image index is wrong.
        if (image != own.image && (image >= 0 || own.image > 0)) continue;
        Layout layout = SAMPLES ? ALIGN_CENTRES : AVERAGE;
        Axis y = axis_of(roi.y1, roi.y2, real(args.scale), layout, args.rows, args.ratio);
        Axis x = axis_of(roi.x1, roi.x2, real(args.scale), layout, args.columns, args.ratio);
        bool valid = image >= 0 && y.samples >= 0 && x.samples >= 0;
        Real sums[CHANNELS_PER_THREAD] = {};
        if (valid)
            each_tap<SAMPLES>(y, args.rows, own.row, args.height, [&](int row, Real weight_y) {
                Real of_row[CHANNELS_PER_THREAD] = {};
                const Element* line = source + row * args.width;
                each_tap<SAMPLES>(x, args.columns, own.column, args.width, [&](int column, Real weight_x) {
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                        if (c < own.count)
                            of_row[c] = fused(weight_x, widen(line[c * plane_stride + column]), of_row[c]);
                });
#pragma unroll
                for (int c = 0; c < CHANNELS_PER_THREAD; ++c) sums[c] = fused(weight_y, of_row[c], sums[c]);
            });
        Element* result =
            args.pooled + ((k * args.channels + own.first) * args.rows + own.row) * args.columns + own.column;
#pragma unroll
        for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
            if (c < own.count) result[c * bins] = narrow(valid ? sums[c] : Real{0} / Real{0});
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) ps_roi_align(const PsRoi args) { pool<true>(args); }

extern "C" __global__ void __launch_bounds__(THREADS, CELL_BLOCKS) ps_roi_pool(const PsRoi args) { pool<false>(args); }

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int SUMS = CVOPS_SUMS;  // of a block
constexpr int MEMBERS = 64;       // RoIs at a time
constexpr int TAPS = 8;           // of a RoI along each axis at a time

struct Sums {
    T values[SUMS];
};

// Of as many RoIs as the block has threads, those on its image, in order.
struct RoiList {
    short rois[THREADS];
    unsigned counts[WARPS];
};

// One piece of the taps of some RoIs, those in the tile: at most TAPS of each along y (0) and along x (1).
struct Taps {
    T weights[2][TAPS][MEMBERS + 2];  // two more, so that the taps of a RoI lie in different banks
    short cells[2][TAPS][MEMBERS + 2];
    int totals[2][MEMBERS];  // taps of each RoI in all pieces
};

__device__ __forceinline__ int pieces_of(int total) { return (total + TAPS - 1) / TAPS; }

// Pieces are numbered along x first. The number of the first tap of a piece, along one axis.
__device__ __forceinline__ int first_of(const Taps& taps, int member, int piece, bool x) {
    int across = max(pieces_of(taps.totals[1][member]), 1);
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

// The tile of a block: of which bin and channels, where it begins on the map, and which of its rows the warp owns.
struct Tile {
    BlockBin bin;
    long long top, left;
    int tall, wide;  // size of the tile
    int begin, end;  // rows of this thread's warp, counted from `top`
};

// List those of the RoIs from `next` on, one for each thread, that are on the image of the block; returns how many.
__device__ __forceinline__ int list_members(RoiList& list, const Tile& own, long long next,
                                            const PsRoiGradients& args) {
    bool member = next + threadIdx.x < args.size &&
                  Roi{load(args.boxes, 5 * (next + threadIdx.x), args.boxes_dtype)}.index(args.images) == own.bin.image;
    int count, at = position_among(list.counts, member, count);  // and the last RoIs are done
    if (member) list.rois[at] = threadIdx.x;
    return count;
}

// Find a piece of the taps of one RoI along one axis: those in the tile.
template <bool SAMPLES>
__device__ __forceinline__ void find_taps(Taps& taps, int member, long long k, bool is_x, int piece, const Tile& own,
                                          const PsRoiGradients& args) {
    int total = 0, first = piece ? first_of(taps, member, piece, is_x) : 0;
    Roi roi = roi_of(args.boxes, k, args.boxes_dtype);
    Layout layout = SAMPLES ? ALIGN_CENTRES : AVERAGE;
    Axis axis = axis_of(is_x ? roi.x1 : roi.y1, is_x ? roi.x2 : roi.y2, real(args.scale), layout,
                        is_x ? args.columns : args.rows, args.ratio);
    int low = is_x ? (int)own.left : (int)own.top, length = is_x ? own.wide : own.tall;
    auto keep = [&](int cell, Real weight) {
        int inside = cell - low, tap = total - first;
        if (inside < 0 || inside >= length) return;
        ++total;
        if (tap < 0 || tap >= TAPS) return;
        taps.cells[is_x][tap][member] = (short)inside;
        taps.weights[is_x][tap][member] = weight.value;
    };
    if (axis.samples > 0)
        each_tap<SAMPLES>(axis, is_x ? args.columns : args.rows, is_x ? own.bin.column : own.bin.row,
                          is_x ? args.width : args.height, keep);
    if (piece == 0) taps.totals[is_x][member] = total;
}

// Add a piece of the taps of `members` RoIs, the list from `from` on, to the sums in the rows of this warp: one RoI
// after another, for which each lane has looked at one before. Returns whether any of them has more pieces.
__device__ __forceinline__ bool add_taps(Sums& sums, const RoiList& list, const Taps& taps, int from, int members,
                                         int piece, long long next, const Tile& own, const PsRoiGradients& args) {
    int lane = threadIdx.x % WARP, pixels = own.tall * own.wide;
    long long bins = args.rows * args.columns;
    bool more = false;
    for (int group = 0; group < members; group += WARP) {
        int member = group + lane, y_taps = 0, x_taps = 0;
        bool reaches = false, unfinished = false;  // the rows of the warp; all pieces
        if (member < members) {
            int y_total = taps.totals[0][member], x_total = taps.totals[1][member];
            y_taps = min(y_total - first_of(taps, member, piece, false), TAPS);
            x_taps = min(x_total - first_of(taps, member, piece, true), TAPS);
            unfinished = piece + 1 < pieces_of(y_total) * pieces_of(x_total);
            reaches = y_taps > 0 && x_taps > 0 && taps.cells[0][0][member] < own.end &&
                      taps.cells[0][y_taps - 1][member] >= own.begin;
        }
        more |= __any_sync(ALL, unfinished) != 0;
        Real values[CHANNELS_PER_THREAD] = {};
        if (reaches) {
            long long k = next + list.rois[from + member];
            const Element* of_bin = args.grad +
                                    ((k * args.channels + own.bin.first) * args.rows + own.bin.row) * args.columns +
                                    own.bin.column;
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                if (c < own.bin.count) values[c] = widen(of_bin[c * bins]);
        }
        for (unsigned left_over = __ballot_sync(ALL, reaches); left_over; left_over &= left_over - 1) {
            int i = __ffs(left_over) - 1;
            int rows_here = __shfl_sync(ALL, y_taps, i), columns_here = __shfl_sync(ALL, x_taps, i);
            Real of_roi[CHANNELS_PER_THREAD];
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) of_roi[c] = {__shfl_sync(ALL, values[c].value, i)};
            int column = lane % TAPS, other = group + i;
            for (int row = lane / TAPS; row < rows_here; row += WARP / TAPS) {
                int y = taps.cells[0][row][other];
                if (column >= columns_here || y < own.begin || y >= own.end) continue;
                Real weight = Real{taps.weights[0][row][other]} * Real{taps.weights[1][column][other]};
                T* sum = sums.values + y * own.wide + taps.cells[1][column][other];
#pragma unroll
                for (int c = 0; c < CHANNELS_PER_THREAD; ++c)
                    if (c < own.bin.count) sum[c * pixels] = fused(weight, of_roi[c], Real{sum[c * pixels]}).value;
            }
            __syncwarp();  // this RoI is added before the next
        }
    }
    return more;
}

template <bool SAMPLES>
__device__ __forceinline__ void spread(Sums& sums, RoiList& list, Taps& taps, const PsRoiGradients& args) {
    long long down = (args.height + args.tile_height - 1) / args.tile_height,
              across = (args.width + args.tile_width - 1) / args.tile_width;
    long long tile = blockIdx.x % (down * across), bins = args.rows * args.columns;
    Tile own;
    own.bin = bin_of_block(blockIdx.x / (down * across), args.channels, args.rows, args.columns);
    own.top = tile / across * args.tile_height, own.left = tile % across * args.tile_width;
    own.tall = (int)min(args.tile_height, args.height - own.top);
    own.wide = (int)min(args.tile_width, args.width - own.left);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, pixels = own.tall * own.wide;
    own.begin = own.tall * warp / WARPS, own.end = own.tall * (warp + 1) / WARPS;
    for (int c = 0; c < own.bin.count; ++c)
        for (int i = own.begin * own.wide + lane; i < own.end * own.wide; i += WARP) sums.values[c * pixels + i] = 0;

    for (long long next = 0; next < args.size; next += THREADS) {
        int count = list_members(list, own, next, args);
        for (int from = 0; from < count; from += MEMBERS) {
            int members = min(MEMBERS, count - from);
            bool more = true;
            for (int piece = 0; more; ++piece) {
                __syncthreads();  // the list is there, and the last taps are used up
                int member = threadIdx.x % MEMBERS;
                if (threadIdx.x < 2 * MEMBERS && member < members)
                    find_taps<SAMPLES>(taps, member, next + list.rois[from + member], threadIdx.x / MEMBERS, piece, own,
                                       args);
                __syncthreads();  // the taps are there
                more = add_taps(sums, list, taps, from, members, piece, next, own, args);
            }
        }
    }
    for (int c = 0; c < own.bin.count; ++c) {
        Element* result = args.gradients + (own.bin.plane + c * bins) * args.height * args.width + own.left;
        for (int i = own.begin * own.wide + lane; i < own.end * own.wide; i += WARP)
            result[(own.top + i / own.wide) * args.width + i % own.wide] = narrow({sums.values[c * pixels + i]});
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
