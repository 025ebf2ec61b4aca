// RoI pooling [1]: the maximum of each bin of a RoI and where it is; and its gradient.
//
// maps (images, channels, height, width); boxes (K, 5); pooled, argmax and grad (K, channels, rows, columns); gradient
// (images, channels, height, width). All contiguous.
//
// Forward: a block does one RoI for a run of channels, and a thread one bin of it for all of these: where bins lie is
// found once, and four channels are read at a time, four reads on their way at once. Bins that are several cells wide
// are shared among neighbouring lanes, so that a warp reads runs of a few rows and not 32 places far apart. Blocks of
// neighbouring numbers take the same channels of all RoIs: their planes then stay in the L2 cache.
//
// Gradient: a block owns a tile of a plane, all of it where that fits, and reads where the maxima of the RoIs of the
// image are. If there are several tiles, `roi_pool_extents` finds out before which RoIs a tile can do without. Each
// warp takes some of the RoIs, in order, and has sums of its own in shared memory; lanes with one target add up first.
// No atomics, the same bits on every run, and each pixel is written once, so that nothing has to be zeroed before.
//
// [1] R. Girshick, "Fast R-CNN", ICCV 2015.

#include "roi.cuh"

constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int THREADS = CVOPS_THREADS;               // of a block at most
constexpr int CHANNELS_PER_THREAD = CVOPS_CHANNELS;  // channels of a thread at a time
constexpr int LANES = 8;                             // of a bin at most
constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;       // at once on a multiprocessor, for which there are registers

struct RoiOnMap {
    Axis axes[2];  // y, x
    long long image;
};

// Whether a, found at place i, is the maximum rather than b at place j: NaN is, and of equal ones the first.
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
        Row row = row_of(args.boxes, k, args.boxes_dtype);
        bool y = threadIdx.x == 0;
        on_map.axes[threadIdx.x] = axis_of(y ? row.y1 : row.x1, y ? row.y2 : row.x2, real(args.scale), MAXIMUM,
                                           y ? args.rows : args.columns, 0);
        if (y) on_map.image = row.index(args.images);
    }
    __syncthreads();  // what is known of the RoI is there
    Axis y = on_map.axes[0], x = on_map.axes[1];
    bool placed = on_map.image >= 0 && y.samples >= 0 && x.samples >= 0;
    int lanes = 1;
    while (placed && lanes < LANES && !(x.step < Real{(T)(2 * lanes)})) lanes *= 2;
    int lane = threadIdx.x % lanes, slots = blockDim.x / lanes, slot = threadIdx.x / lanes;
    int count = (int)min(args.run, args.channels - first);
    const Element* map = args.maps + (placed ? (on_map.image * args.channels + first) * pixels : 0);
    Element* values = args.pooled + (k * args.channels + first) * bins;
    int* places = args.argmax + (args.argmax ? (k * args.channels + first) * bins : 0);

    for (long long begin = 0; begin < bins; begin += slots) {
        int some = (int)min((long long)slots, bins - begin), group = slot / some;
        int at_once = min(slots / some, (count + CHANNELS_PER_THREAD - 1) / CHANNELS_PER_THREAD);
        long long bin = begin + slot % some;
        int top = 0, bottom = 0, left = 0, right = 0;  // of the bin; corners are near enough to the origin
        if (placed) {
            Window down = window_of(y, bin / args.columns, args.height),
                   across = window_of(x, bin % args.columns, args.width);
            top = (int)down.begin, bottom = (int)down.end, left = (int)across.begin, right = (int)across.end;
        }
        bool empty = top >= bottom || left >= right, reads = group < at_once && !empty;
        long long at_first = top * args.width + left + lane;
        long long to_next_row = args.width - max(right - left - lane + lanes - 1, 0) / lanes * lanes;
        for (int channel = group; channel - group < count; channel += at_once * CHANNELS_PER_THREAD) {
            Real best[CHANNELS_PER_THREAD];
            int place[CHANNELS_PER_THREAD];
            const Element* planes[CHANNELS_PER_THREAD];
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                best[c] = Real{-1} / Real{0};
                place[c] = (int)at_first;
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
                    int at = (int)((unsigned)row * (unsigned)args.width + column);
#pragma unroll
                    for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                        bool better = seen[c] > best[c] | (is_nan(seen[c]) & !is_nan(best[c]));
                        best[c] = better ? seen[c] : best[c];
                        place[c] = better ? at : place[c];
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
                    int other_place = __shfl_xor_sync(ALL, place[c], distance);
                    if (other_has && (!has || wins(other, other_place, best[c], place[c]))) {
                        best[c] = other;
                        place[c] = other_place;
                    }
                }
            }
#pragma unroll
            for (int c = 0; c < CHANNELS_PER_THREAD; ++c) {
                int one = channel + c * at_once;
                if (group >= at_once || one >= count || lane != c % lanes) continue;
                values[one * bins + bin] = narrow(!placed ? Real{0} / Real{0} : empty ? Real{0} : best[c]);
                if (args.argmax) places[one * bins + bin] = empty ? -1 : place[c];
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int SUMS = CVOPS_SUMS;    // of a block
constexpr int WARPS = CVOPS_WARPS;  // of a block at most
constexpr int LOADS_IN_FLIGHT = 4;  // reads of a lane on their way at once

struct Sums {
    T of[SUMS];
};

// Where the gradients and maxima of RoIs begin in the channel of the block: of the RoIs of its image that may have a
// maximum in its tile, in order, of as many as the block has threads.
struct RoiList {
    long long begins[WARPS * WARP];
    int counts[WARPS];
};

// The first and the last of the maxima of a RoI; the first is behind the last if there is none.
struct Extent {
    int first, last;
};
struct Extents {
    Extent of[WARPS];
};

struct RoiPoolExtents {
    const int* argmax;
    long long length, pixels;
    Extent* extents;
};

extern "C" __global__ void __launch_bounds__(WARPS* WARP) roi_pool_extents(const RoiPoolExtents args) {
    SHARED(Extents, warps);
    Extent extent = {0x7FFFFFFF, -1};
    const int* places = args.argmax + blockIdx.x * args.length;
#pragma unroll 4
    for (long long i = threadIdx.x; i < args.length; i += WARPS * WARP) {
        int place = read_only(places + i);
        if (place < 0 || place >= args.pixels) continue;
        extent.first = min(extent.first, place), extent.last = max(extent.last, place);
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        extent.first = min(extent.first, __shfl_xor_sync(ALL, extent.first, distance));
        extent.last = max(extent.last, __shfl_xor_sync(ALL, extent.last, distance));
    }
    if (threadIdx.x % WARP == 0) warps.of[threadIdx.x / WARP] = extent;
    __syncthreads();  // all warps have found theirs
    if (threadIdx.x > 0) return;
    for (int w = 1; w < WARPS; ++w) {
        extent.first = min(extent.first, warps.of[w].first), extent.last = max(extent.last, warps.of[w].last);
    }
    args.extents[blockIdx.x] = extent;
}

// Add some gradients of each lane to their targets, those of one target in the order of the lanes; -1 is none.
__device__ __forceinline__ void add(T* sums, const int (&targets)[LOADS_IN_FLIGHT],
                                    Real (&gradients)[LOADS_IN_FLIGHT]) {
    int lane = threadIdx.x % WARP;
    unsigned before = (1u << lane) - 1, others[LOADS_IN_FLIGHT],
             left = 0;  // lanes whose gradients the first of them adds up
    bool leads[LOADS_IN_FLIGHT];
    Real brought[LOADS_IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
        unsigned same = __match_any_sync(ALL, targets[i]);
        leads[i] = targets[i] >= 0 && (same & before) == 0;
        others[i] = leads[i] ? same & (same - 1) : 0;
        left |= others[i];
        brought[i] = gradients[i];
    }
    while (__any_sync(ALL, left != 0)) {
        left = 0;
#pragma unroll
        for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
            Real other = {__shfl_sync(ALL, brought[i].value, others[i] ? __ffs(others[i]) - 1 : lane)};
            if (others[i]) gradients[i] = gradients[i] + other;
            others[i] &= others[i] - 1;
            left |= others[i];
        }
    }
#pragma unroll
    for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
        if (leads[i]) sums[targets[i]] = (Real{sums[targets[i]]} + gradients[i]).value;
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
    T* own = sums.of + warp * args.tile;
    for (int i = lane; i < length; i += WARP) own[i] = 0;
    unsigned span = begin >> 31 ? 0 : length;  // of the tile, as far as an argmax reaches
    int rois_of_step = (int)(WARP / args.bins), bins_of_step = (int)(WARP % args.bins);

    for (long long next = 0; next < args.size; next += blockDim.x) {
        long long k = next + threadIdx.x;
        bool member = k < args.size && Row{load(args.boxes, 5 * k, args.boxes_dtype)}.index(args.images) == image;
        if (member && args.extents) member = args.extents[k].first < begin + length && args.extents[k].last >= begin;
        unsigned votes = __ballot_sync(ALL, member);
        if (lane == 0) list.counts[warp] = __popc(votes);
        __syncthreads();  // all have counted, and the last RoIs are done
        int found = 0, at = __popc(votes & ((1u << lane) - 1));
        for (int i = 0; i < warps; ++i) {
            if (i < warp) at += list.counts[i];
            found += list.counts[i];
        }
        if (member) list.begins[at] = (k * args.channels + channel) * args.bins;
        __syncthreads();  // the list is there

        // The bins of all RoIs of the warp, one after another.
        int roi = found * warp / warps, end = found * (warp + 1) / warps;
        long long left = (end - roi) * args.bins, bin = lane % args.bins;
        roi += (int)(lane / args.bins);
        for (; left > 0; left -= LOADS_IN_FLIGHT * WARP) {
            long long places[LOADS_IN_FLIGHT];
            int targets[LOADS_IN_FLIGHT];
            Real values[LOADS_IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
                places[i] = roi < end ? list.begins[roi] + bin : -1;
                roi += rois_of_step, bin += bins_of_step;
                if (bin >= args.bins) bin -= args.bins, ++roi;
            }
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) {
                unsigned target = places[i] < 0 ? span : (unsigned)read_only(args.argmax + places[i]) - (unsigned)begin;
                targets[i] = target < span ? (int)target : -1;
            }
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i)
                values[i] = targets[i] < 0 ? Real{0} : widen(read_only(args.grad + places[i]));
            bool some = false;
#pragma unroll
            for (int i = 0; i < LOADS_IN_FLIGHT; ++i) some |= targets[i] >= 0;
            if (__any_sync(ALL, some)) add(own, targets, values);
        }
    }
    __syncthreads();  // all sums are there
    Element* result = args.gradients + (image * args.channels + channel) * args.pixels + begin;
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        Real sum = {sums.of[i]};
        for (int w = 1; w < warps; ++w) sum = sum + Real{sums.of[w * args.tile + i]};
        result[i] = narrow(sum);
    }
}
