// RoI pooling [1]: the maximum of each bin of a RoI and where it is; and its gradient.
//
// maps (images, channels, height, width); boxes (K, 5); pooled, argmax and grad (K, channels, rows, columns); gradient
// (images, channels, height, width). All contiguous.
//
// Forward: a block pools one RoI for some channels, and a thread pools one bin of it for all of these channels. So a
// bin is located once, and a thread reads four channels at a time, with four reads under way. A bin that is several
// cells wide is divided among neighbouring lanes, so that a warp reads parts of a few rows and not 32 pixels far apart.
// Blocks of neighbouring numbers take the same channels of all RoIs: the planes of these channels stay in the L2 cache.
//
// Gradient: a block owns a tile of a plane, or the whole plane if that fits, and goes through the maxima of all RoIs of
// the image. If there are several tiles, `roi_pool_extents` finds first which pixels a RoI reaches, so that a tile can
// leave out RoIs. Each warp takes some of the RoIs, in order, and has its own sums in shared memory. Where several
// lanes of a warp have the same pixel, one of them adds for all. So there are no atomics, every run gives the same
// bits, and each pixel is written once, so that nothing has to be zeroed before.
//
// [1] R. Girshick, "Fast R-CNN", ICCV 2015.

#include "roi.cuh"

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int THREADS = CVOPS_THREADS;               // of a block at most
constexpr int CHANNELS_PER_THREAD = CVOPS_CHANNELS;  // channels of a thread at a time
constexpr int LANES = 8;                             // of a bin at most
constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;       // at once on a multiprocessor, which has registers for so many

struct RoiOnMap {
    Axis axes[2];  // y, x
    long long image;
};

// Whether a, at pixel i, is the maximum rather than b, at pixel j. NaN is greater than any number, and of equal ones
// the first is the maximum.
__device__ __forceinline__ bool wins(Real a, int i, Real b, int j) {
    if (is_nan(a) || is_nan(b)) return is_nan(a) && (!is_nan(b) || i < j);
    return a > b || (!(a < b) && i < j);
}

struct RoiPool {
    const Element* maps;
    const void* boxes;
    long long boxes_dtype, size, images, channels, height, width, rows, columns;
    double scale;
    long long run;
    Element* pooled;
    int* argmax;
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) roi_pool(const RoiPool args) {
    SHARED(RoiOnMap, on_map);
    long long k = blockIdx.x % args.size, first = blockIdx.x / args.size * args.run, bins = args.rows * args.columns,
              pixels = args.height * args.width;
    if (threadIdx.x < 2) {
        Roi row = roi_of(args.boxes, k, args.boxes_dtype);
        bool y = threadIdx.x == 0;
        on_map.axes[threadIdx.x] = axis_of(y ? row.y1 : row.x1, y ? row.y2 : row.x2, real(args.scale), MAXIMUM,
                                           y ? args.rows : args.columns, 0);
        if (y) on_map.image = row.index(args.images);
    }
    __syncthreads();  // what is known of the RoI is there
    Axis y = on_map.axes[0], x = on_map.axes[1];
    bool valid = on_map.image >= 0 && y.samples >= 0 && x.samples >= 0;
    int lanes = 1;
    while (valid && lanes < LANES && !(x.bin_size < Real{(T)(2 * lanes)})) lanes *= 2;
    int lane = threadIdx.x % lanes, teams = blockDim.x / lanes, team = threadIdx.x / lanes;  // a team has a bin
    int count = (int)min(args.run, args.channels - first);
    const Element* map = args.maps + (valid ? (on_map.image * args.channels + first) * pixels : 0);
    Element* values = args.pooled + (k * args.channels + first) * bins;
    int* argmax = args.argmax + (args.argmax ? (k * args.channels + first) * bins : 0);

    for (long long begin = 0; begin < bins; begin += teams) {
        int some = (int)min((long long)teams, bins - begin), group = team / some;
        int at_once = min(teams / some, (count + CHANNELS_PER_THREAD - 1) / CHANNELS_PER_THREAD);
        long long bin = begin + team % some;
        int top = 0, bottom = 0, left = 0, right = 0;  // of the bin; corners are near enough to the origin
        if (valid) {
            Window down = window_of(y, bin / args.columns, args.height),
                   across = window_of(x, bin % args.columns, args.width);
            top = (int)down.begin, bottom = (int)down.end, left = (int)across.begin, right = (int)across.end;
        }
        bool empty = top >= bottom || left >= right, reads = group < at_once && !empty;
        long long at_first = top * args.width + left + lane;
        long long to_next_row = args.width - max(right - left - lane + lanes - 1, 0) / lanes * lanes;
        for (int channel = group; channel - group < count; channel += at_once * CHANNELS_PER_THREAD) {
            Real best[CHANNELS_PER_THREAD];
            int best_pixel[CHANNELS_PER_THREAD];
            const Element* planes[CHANNELS_PER_THREAD];
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                best[c] = Real{-1} / Real{0};
                best_pixel[c] = (int)at_first;
                planes[c] = map + min(channel + c * at_once, count - 1) * pixels + at_first;
            }
            for (int row = reads ? top : bottom; row < bottom; ++row) {
#pragma unroll 1
                for (int column = left + lane; column < right; column += lanes) {
                    Real seen[CHANNELS_PER_THREAD];
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                        seen[c] = widen(read_only(planes[c]));
                        planes[c] += lanes;
                    }
                    int pixel = (int)((unsigned)row * (unsigned)args.width + column);
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                        bool better = seen[c] > best[c] | (is_nan(seen[c]) & !is_nan(best[c]));
                        best[c] = better ? seen[c] : best[c];
                        best_pixel[c] = better ? pixel : best_pixel[c];
                    }
                }
#pragma unroll
                for (int c = 0; c < CHANNELS_PER_THREAD; ++c) planes[c] += to_next_row;
            }
            // The lanes of a bin tell each other; some may have had no cell.
            for (int distance = 1; distance < lanes; distance *= 2) {
                bool has = left + (lane & -distance) < right;
                bool other_has = left + ((lane ^ distance) & -distance) < right;
#pragma unroll
                for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                    Real other = {__shfl_xor_sync(ALL, best[c].value, distance)};
                    int other_pixel = __shfl_xor_sync(ALL, best_pixel[c], distance);
                    if (other_has && (!has || wins(other, other_pixel, best[c], best_pixel[c]))) {
                        best[c] = other;
                        best_pixel[c] = other_pixel;
                    }
                }
            }
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                int one = channel + c * at_once;
                if (group >= at_once || one >= count || lane != c % lanes) continue;
                values[one * bins + bin] = narrow(!valid ? Real{0} / Real{0} : empty ? Real{0} : best[c]);
                if (args.argmax) argmax[one * bins + bin] = empty ? -1 : best_pixel[c];
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int SUMS = CVOPS_SUMS;    // of a block
constexpr int WARPS = CVOPS_WARPS;  // of a block at most
constexpr int LOADS_IN_FLIGHT = 4;  // reads of a lane on their way at once

struct Sums {
    T values[SUMS];
};

// Of as many RoIs as the block has threads, those of its image that may have a maximum in its tile, in order: where the
// gradients and maxima of each begin in `grad` and `argmax`, for the channel of the block.
struct RoiList {
    long long begins[WARPS * WARP];
    unsigned counts[WARPS];
};

// The first and the last pixel that is a maximum of a RoI. If there is none, the first is behind the last.
struct Extent {
    int first, last;
};
struct Extents {
    Extent values[WARPS];
};

struct RoiPoolExtents {
    const int* argmax;
    long long length, pixels;
    Extent* extents;
};

extern "C" __global__ void __launch_bounds__(WARPS* WARP) roi_pool_extents(const RoiPoolExtents args) {
    SHARED(Extents, warps);
    Extent extent = {0x7FFFFFFF, -1};
    const int* argmax = args.argmax + blockIdx.x * args.length;
#pragma unroll 4
    for (long long i = threadIdx.x; i < args.length; i += WARPS * WARP) {
        int pixel = read_only(argmax + i);
        if (pixel < 0 || pixel >= args.pixels) continue;
        extent.first = min(extent.first, pixel), extent.last = max(extent.last, pixel);
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        extent.first = min(extent.first, __shfl_xor_sync(ALL, extent.first, distance));
        extent.last = max(extent.last, __shfl_xor_sync(ALL, extent.last, distance));
    }
    if (threadIdx.x % WARP == 0) warps.values[threadIdx.x / WARP] = extent;
    __syncthreads();  // all warps have found theirs
    if (threadIdx.x > 0) return;
    for (int w = 1; w < WARPS; ++w) {
        extent.first = min(extent.first, warps.values[w].first), extent.last = max(extent.last, warps.values[w].last);
    }
    args.extents[blockIdx.x] = extent;
}

// Add LOADS_IN_FLIGHT gradients of each lane to sums[target]; -1 is no target. Lanes with the same target add up first,
// in the order of the lanes.
__device__ __forceinline__ void add(T* sums, const int (&targets)[LOADS_IN_FLIGHT],
                                    Real (&gradients)[LOADS_IN_FLIGHT]) {
    int lane = threadIdx.x % WARP;
    unsigned before = (1u << lane) - 1, others[LOADS_IN_FLIGHT],
             left = 0;  // others: lanes whose gradients this one has to add to its own
    bool is_first[LOADS_IN_FLIGHT];
    Real own[LOADS_IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
        unsigned same = __match_any_sync(ALL, targets[i]);
        is_first[i] = targets[i] >= 0 && (same & before) == 0;
        others[i] = is_first[i] ? same & (same - 1) : 0;
        left |= others[i];
        own[i] = gradients[i];
    }
    while (__any_sync(ALL, left != 0)) {
        left = 0;
#pragma unroll
        for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
            Real other = {__shfl_sync(ALL, own[i].value, others[i] ? __ffs(others[i]) - 1 : lane)};
            if (others[i]) gradients[i] = gradients[i] + other;
            others[i] &= others[i] - 1;
            left |= others[i];
        }
    }
#pragma unroll
    for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
        if (is_first[i]) sums[targets[i]] = (Real{sums[targets[i]]} + gradients[i]).value;
        __syncwarp();  // these are added before the next
    }
}

struct RoiPoolGradients {
    const Element* grad;
    const int* argmax;
    const void* boxes;
    long long boxes_dtype, size, images, channels, pixels, bins, tile;
    const Extent* extents;
    Element* gradients;
};

extern "C" __global__ void __launch_bounds__(WARPS* WARP) roi_pool_gradients(const RoiPoolGradients args) {
    SHARED(Sums, sums);
    SHARED(RoiList, list);
    long long tiles = (args.pixels + args.tile - 1) / args.tile, begin = blockIdx.x % tiles * args.tile;
    long long channel = blockIdx.x / tiles % args.channels, image = blockIdx.x / tiles / args.channels;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int length = (int)min(args.tile, args.pixels - begin);
    T* own = sums.values + warp * args.tile;
    for (int i = lane; i < length; i += WARP) own[i] = 0;
    unsigned span = begin >> 31 ? 0 : length;  // pixels of the tile that an argmax, an int, can be
    int rois_of_step = (int)(WARP / args.bins), bins_of_step = (int)(WARP % args.bins);

    for (long long next = 0; next < args.size; next += blockDim.x) {
        long long k = next + threadIdx.x;
        bool member = k < args.size && Roi{load(args.boxes, 5 * k, args.boxes_dtype)}.index(args.images) == image;
        if (member && args.extents) member = args.extents[k].first < begin + length && args.extents[k].last >= begin;
        int found, at = position_among(list.counts, member, found, warps);  // and the last RoIs are done
        if (member) list.begins[at] = (k * args.channels + channel) * args.bins;
        __syncthreads();  // the list is there

        // The lanes of the warp go through the bins of all its RoIs, one after another.
        int roi = found * warp / warps, end = found * (warp + 1) / warps;
        long long left = (end - roi) * args.bins, bin = lane % args.bins;
        roi += (int)(lane / args.bins);
        for (; left > 0; left -= LOADS_IN_FLIGHT * WARP) {
            long long entries[LOADS_IN_FLIGHT];
            int targets[LOADS_IN_FLIGHT];
            Real values[LOADS_IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
                entries[i] = roi < end ? list.begins[roi] + bin : -1;
                roi += rois_of_step, bin += bins_of_step;
                if (bin >= args.bins) bin -= args.bins, ++roi;
            }
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
                unsigned target =
                    entries[i] < 0 ? span : (unsigned)read_only(args.argmax + entries[i]) - (unsigned)begin;
                targets[i] = target < span ? (int)target : -1;
            }
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i)
                values[i] = targets[i] < 0 ? Real{0} : widen(read_only(args.grad + entries[i]));
            bool some = false;
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) some |= targets[i] >= 0;
            if (__any_sync(ALL, some)) add(own, targets, values);
        }
    }
    __syncthreads();  // all sums are there
    Element* result = args.gradients + (image * args.channels + channel) * args.pixels + begin;
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        Real sum = {sums.values[i]};
        for (int w = 1; w < warps; ++w) sum = sum + Real{sums.values[w * args.tile + i]};
        result[i] = narrow(sum);
    }
}
