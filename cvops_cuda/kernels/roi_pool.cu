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
// Gradient: a block owns a tile of a plane, whole planes where they fit, and reads where the maxima of all RoIs of the
// image are, each once if there is one tile. Each of its warps takes some of the RoIs, in order, and has sums of its own
// in shared memory; lanes with one target add up first. No atomics, the same bits on every run, and each pixel is written
// once, so that nothing has to be zeroed before.
//
// [1] R. Girshick, "Fast R-CNN", ICCV 2015.

constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFF;  // lanes

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int THREADS = 448;                         // of a block at most; as in _roi_pool.py
constexpr int TOGETHER = sizeof(T) == 4 ? 4 : 2;     // channels of a thread at a time
constexpr int LANES = 8;                             // of a bin at most
constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;       // at once on a multiprocessor, for which there are registers

struct Frame {
    Axis axes[2];  // y, x
    long long image;
};

// Whether a, found at place i, is the maximum rather than b at place j: NaN is, and of equal ones the first.
__device__ __forceinline__ bool wins(Real a, int i, Real b, int j) {
    if (is_nan(a) || is_nan(b)) return is_nan(a) && (!is_nan(b) || i < j);
    return a > b || (!(a < b) && i < j);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
roi_pool(const Element* __restrict__ maps, const void* __restrict__ boxes, long long boxes_dtype, long long size,
         long long images, long long channels, long long height, long long width, long long rows, long long columns,
         double scale, long long run, Element* __restrict__ pooled, int* __restrict__ argmax) {
    SHARED(Frame, frame);
    long long k = blockIdx.x % size, first = blockIdx.x / size * run, bins = rows * columns, pixels = height * width;
    if (threadIdx.x < 2) {
        Row row = row_of(boxes, k, boxes_dtype);
        bool y = threadIdx.x == 0;
        frame.axes[threadIdx.x] = axis_of(y ? row.y1 : row.x1, y ? row.y2 : row.x2, real(scale), MAXIMUM,
                                          y ? rows : columns, 0);
        if (y) frame.image = row.index(images);
    }
    __syncthreads();  // the frame is there
    Axis y = frame.axes[0], x = frame.axes[1];
    bool placed = frame.image >= 0 && y.samples >= 0 && x.samples >= 0;
    int lanes = 1;
    while (placed && lanes < LANES && !(x.step < Real{(T)(2 * lanes)})) lanes *= 2;
    int lane = threadIdx.x % lanes, slots = blockDim.x / lanes, slot = threadIdx.x / lanes;
    int count = (int)min(run, channels - first);
    const Element* map = maps + (placed ? (frame.image * channels + first) * pixels : 0);
    Element* values = pooled + (k * channels + first) * bins;
    int* places = argmax + (argmax ? (k * channels + first) * bins : 0);

    for (long long begin = 0; begin < bins; begin += slots) {
        int some = (int)min((long long)slots, bins - begin), at_once = slots / some, group = slot / some;
        long long bin = begin + slot % some;
        int top = 0, bottom = 0, left = 0, right = 0;  // of the bin; corners are near enough to the origin
        if (placed) {
            Window down = window_of(y, bin / columns, height), across = window_of(x, bin % columns, width);
            top = (int)down.begin, bottom = (int)down.end, left = (int)across.begin, right = (int)across.end;
        }
        bool empty = top >= bottom || left >= right, reads = group < at_once && !empty;
        long long at_first = top * width + left + lane;
        long long to_next_row = width - max(right - left - lane + lanes - 1, 0) / lanes * lanes;
        for (int channel = group; channel - group < count; channel += at_once * TOGETHER) {
            Real best[TOGETHER];
            int place[TOGETHER];
            const Element* planes[TOGETHER];
#pragma unroll
            for (int c = 0; c < TOGETHER; ++c) {
                best[c] = Real{-1} / Real{0};
                place[c] = (int)at_first;
                planes[c] = map + min(channel + c * at_once, count - 1) * pixels + at_first;
            }
            for (int row = reads ? top : bottom; row < bottom; ++row) {
#pragma unroll 1
                for (int column = left + lane; column < right; column += lanes) {
                    Real seen[TOGETHER];
#pragma unroll
                    for (int c = 0; c < TOGETHER; ++c) {
                        seen[c] = widen(*planes[c]);
                        planes[c] += lanes;
                    }
                    int at = (int)((unsigned)row * (unsigned)width + column);
#pragma unroll
                    for (int c = 0; c < TOGETHER; ++c) {
                        bool better = seen[c] > best[c] | (is_nan(seen[c]) & !is_nan(best[c]));
                        best[c] = better ? seen[c] : best[c];
                        place[c] = better ? at : place[c];
                    }
                }
#pragma unroll
                for (int c = 0; c < TOGETHER; ++c) planes[c] += to_next_row;
            }
            // The lanes of a bin tell each other; some may have had no cell.
            for (int distance = 1; distance < lanes; distance *= 2) {
                bool has = left + (lane & -distance) < right, other_has = left + ((lane ^ distance) & -distance) < right;
#pragma unroll
                for (int c = 0; c < TOGETHER; ++c) {
                    Real other = {__shfl_xor_sync(ALL, best[c].value, distance)};
                    int other_place = __shfl_xor_sync(ALL, place[c], distance);
                    if (other_has && (!has || wins(other, other_place, best[c], place[c]))) {
                        best[c] = other;
                        place[c] = other_place;
                    }
                }
            }
#pragma unroll
            for (int c = 0; c < TOGETHER; ++c) {
                int one = channel + c * at_once;
                if (group >= at_once || one >= count || lane != c % lanes) continue;
                values[one * bins + bin] = narrow(!placed ? Real{0} / Real{0} : empty ? Real{0} : best[c]);
                if (argmax) places[one * bins + bin] = empty ? -1 : place[c];
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- gradient

constexpr int SUMS = sizeof(T) == 4 ? 11264 : 5632;  // of a block; as in _roi_pool.py, like the next one
constexpr int WARPS = 8;                             // of a block at most
constexpr int AHEAD = 4;                             // reads of a lane on their way at once

struct Sums {
    T of[SUMS];
};

// RoIs of the image, in order, of as many as the block has threads.
struct Found {
    long long rois[WARPS * WARP];
    int counts[WARPS];
};

// Add the gradients of the lanes to their targets, those of one target in the order of the lanes; -1 is none.
__device__ __forceinline__ void add(T* sums, int target, Real gradient) {
    int lane = threadIdx.x % WARP;
    unsigned same = __match_any_sync(ALL, target);
    bool leads = target >= 0 && (same & ((1u << lane) - 1)) == 0;
    unsigned others = leads ? same & (same - 1) : 0;
    Real sum = gradient;
    while (__any_sync(ALL, others != 0)) {
        Real other = {__shfl_sync(ALL, gradient.value, others ? __ffs(others) - 1 : lane)};
        if (others) sum = sum + other;
        others &= others - 1;
    }
    if (leads) sums[target] = (Real{sums[target]} + sum).value;
    __syncwarp();  // these are added before the next
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
roi_pool_gradients(const Element* __restrict__ grad, const int* __restrict__ argmax, const void* __restrict__ boxes,
                   long long boxes_dtype, long long size, long long images, long long channels, long long pixels,
                   long long bins, long long tile, Element* __restrict__ gradients) {
    SHARED(Sums, sums);
    SHARED(Found, list);
    long long tiles = (pixels + tile - 1) / tile, begin = blockIdx.x % tiles * tile;
    long long channel = blockIdx.x / tiles % channels, image = blockIdx.x / tiles / channels;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int length = (int)min(tile, pixels - begin);
    T* own = sums.of + warp * tile;
    for (int i = lane; i < length; i += WARP) own[i] = 0;
    long long stride_rois = WARP / bins, stride_bins = WARP % bins;

    for (long long next = 0; next < size; next += blockDim.x) {
        long long k = next + threadIdx.x;
        bool member = k < size && Row{load(boxes, 5 * k, boxes_dtype)}.index(images) == image;
        unsigned votes = __ballot_sync(ALL, member);
        if (lane == 0) list.counts[warp] = __popc(votes);
        __syncthreads();  // all have counted, and the last RoIs are done
        int found = 0, at = __popc(votes & ((1u << lane) - 1));
        for (int i = 0; i < warps; ++i) {
            if (i < warp) at += list.counts[i];
            found += list.counts[i];
        }
        if (member) list.rois[at] = k;
        __syncthreads();  // the list is there

        int roi = found * warp / warps, end = found * (warp + 1) / warps;
        long long steps = ((end - roi) * bins + WARP - 1) / WARP, bin = lane % bins;
        roi += (int)(lane / bins);
        for (long long step = 0; step < steps; step += AHEAD) {
            long long places[AHEAD];
            int targets[AHEAD];
            Real values[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                places[i] = roi < end ? (list.rois[roi] * channels + channel) * bins + bin : -1;
                targets[i] = -1;
                if (places[i] >= 0) {
                    long long target = argmax[places[i]] - begin;
                    if (target >= 0 && target < length) targets[i] = (int)target;
                }
                roi += (int)stride_rois, bin += stride_bins;
                if (bin >= bins) bin -= bins, ++roi;
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) values[i] = targets[i] < 0 ? Real{0} : widen(grad[places[i]]);
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
                if (__any_sync(ALL, targets[i] >= 0)) add(own, targets[i], values[i]);
        }
    }
    __syncthreads();  // all sums are there
    Element* result = gradients + (image * channels + channel) * pixels + begin;
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        Real sum = {sums.of[i]};
        for (int w = 1; w < warps; ++w) sum = sum + Real{sums.of[w * tile + i]};
        result[i] = narrow(sum);
    }
}
