// Deformable convolution [1, 2] and its gradients, but for the matrix products, which the launcher leaves to cuBLAS.
//
// pixels (N * H * W, C): the input, the channels of a pixel side by side. columns (size, K): what each tap reads for
// the output pixels [first, first + size), all images counted through; K runs over (group of the weight, tap, channel
// of the group), and so do the rows of weights (O, taps, C / groups). sums (N * OH * OW, O): the output but for bias,
// in working precision; grads: as sums, the gradient of the output; grad_columns, grad_pixels: as columns and pixels,
// in working precision. What else has the caller's shape is as in the docstring of cvops.deform_conv2d. All contiguous;
// pixels begin at a multiple of 16 bytes.
//
// Why it is fast: lanes run over channels, 16 bytes each. So a corner of a sample is contiguous in memory, and most of
// it is in the caches already, because neighbouring taps and pixels read the same corners. One thread locates a sample
// for all its channels (or for as many as a block takes), from offsets that a warp reads side by side.
//
// The gradient of the input has no atomics. A cell is the square between four pixels, and each pixel is a corner of
// four cells. Samples are sorted by their cell, and each pixel sums up the samples of its four cells, in order:
//
//     cells    0 | 1 | 2         def gradient_of_pixel(pixel):
//             ---a---b---            total = 0
//              3 | 4 | 5             for cell in cells_around[pixel]:       # of the pixel a: 0, 1, 3 and 4
//             ---c---d---                for sample in samples_of[cell]:    # from starts[cell] on among the sorted keys
//              6 | 7 | 8                     total += weight_of_corner(sample, pixel) * grad_columns[sample]
//                                    return total
//
// To sort by cell takes a quarter of the keys that it would take to sort by corner.
//
// [1] J. Dai et al., "Deformable Convolutional Networks", ICCV 2017.
// [2] X. Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.

#include "block.cuh"

// A block looks at PIXELS output pixels and at most TAPS taps of each: one sample for each of its THREADS threads.
constexpr int THREADS = CVOPS_THREADS, PIXELS = CVOPS_PIXELS, TAPS = CVOPS_TAPS;
constexpr int EDGE = CVOPS_EDGE;                                          // side of the square that a block transposes
constexpr int WIDTH = 16 / sizeof(Element), REAL_WIDTH = 16 / sizeof(T);  // what a thread reads at once

// ------------------------------------------------------------------------------------------------------ vectors

template <int SIZE, class Stored>
struct Vector {
    Stored values[SIZE];
};

// Read SIZE neighbouring numbers: one, or as many as lie in 16 bytes or 32.
template <int SIZE, class Stored>
__device__ __forceinline__ Vector<SIZE, Stored> fetch(const Stored* from) {
    constexpr int BYTES = SIZE * sizeof(Stored);
    union {
        Vector<SIZE, Stored> some;
        uint4 words[BYTES < 16 ? 1 : BYTES / 16];
    } result;
    if (BYTES < 16) result.some.values[0] = *from;
#pragma unroll
    for (int i = 0; i < BYTES / 16; ++i) result.words[i] = ((const uint4*)from)[i];
    return result.some;
}

template <int SIZE, class Stored>
__device__ __forceinline__ void put(const Vector<SIZE, Stored>& some, Stored* to) {
    constexpr int BYTES = SIZE * sizeof(Stored);
    union {
        Vector<SIZE, Stored> some;
        uint4 words[BYTES < 16 ? 1 : BYTES / 16];
    } source = {some};
    if (BYTES < 16) *to = some.values[0];
#pragma unroll
    for (int i = 0; i < BYTES / 16; ++i) ((uint4*)to)[i] = source.words[i];
}

// --------------------------------------------------------------------------------------------------- where taps read

struct Call {
    long long height, width, channels, out_pixels, out_width, taps, kernel_width;
    long long stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    long long offset_groups, group_channels;  // group_channels: of a group of the weight
    const void* offset;
    long long offset_dtype;
    const void* mask;
    long long mask_dtype, first, size;  // of the output pixels in question

    __device__ __forceinline__ long long columns() const { return channels * taps; }
    __device__ __forceinline__ long long offset_channels() const { return channels / offset_groups; }

    // The column of a channel, for tap 0, among the columns of a pixel.
    __device__ __forceinline__ long long column(long long channel) const {
        return channel + channel / group_channels * group_channels * (taps - 1);
    }
};

enum { ABOVE_LEFT = 1, ABOVE_RIGHT = 2, BELOW_LEFT = 4, BELOW_RIGHT = 8, READS = 16 };

// What one tap reads for one output pixel and one group of offsets.
struct Sample {
    long long row, column;  // its upper left corner; row = image * height + (row of the image)
    Real y, x, mask;        // y, x: distances from that corner
    int corners;            // which of the four corners are on the map, and READS unless the sample is 0
};

// A sample whose offset is NaN has no corners, but its distances are NaN, which makes all that it enters NaN. A sample
// exactly at -1 is 0, but it has a derivative, that of the cell between -1 and 0.
__device__ Sample locate(const Call& call, long long index, long long group, long long tap) {
    long long image = index / call.out_pixels, pixel = index - image * call.out_pixels;
    long long row = pixel / call.out_width, column = pixel - row * call.out_width;
    long long i = tap / call.kernel_width, j = tap - i * call.kernel_width;
    long long entry = (image * call.offset_groups + group) * call.taps + tap;
    Real y = Real{(T)(row * call.stride_y - call.padding_y + i * call.dilation_y)} +
             load(call.offset, 2 * entry * call.out_pixels + pixel, call.offset_dtype);
    Real x = Real{(T)(column * call.stride_x - call.padding_x + j * call.dilation_x)} +
             load(call.offset, (2 * entry + 1) * call.out_pixels + pixel, call.offset_dtype);
    Real mask = call.mask ? load(call.mask, entry * call.out_pixels + pixel, call.mask_dtype) : Real{1};
    Sample sample = {0, 0, {0}, {0}, mask, 0};
    if (is_nan(y) || is_nan(x)) {
        sample.y = sample.x = y + x;
        sample.corners = READS;
    } else if (!(y < Real{-1}) && !(x < Real{-1}) && y < Real{(T)call.height} && x < Real{(T)call.width}) {
        Real top = floor_of(y), left = floor_of(x);
        long long upper = integer_of(top), before = integer_of(left);
        bool above = upper >= 0, below = upper + 1 < call.height, near = before >= 0, far = before + 1 < call.width;
        sample.row = image * call.height + upper, sample.column = before;
        sample.y = y - top, sample.x = x - left;
        sample.corners = (above && near) * ABOVE_LEFT + (above && far) * ABOVE_RIGHT + (below && near) * BELOW_LEFT +
                         (below && far) * BELOW_RIGHT + (y > Real{-1} && x > Real{-1}) * READS;
    }
    return sample;
}

// Which samples a block looks at. Blocks are numbered by pixels first, then by taps, groups of offsets and chunks of
// their channels.
struct Part {
    long long pixel, group, chunk;  // pixel counts from 0 in [first, first + size)
    int tap, taps;

    __device__ __forceinline__ Part(const Call& call) {
        long long number = blockIdx.x, runs = (call.size + PIXELS - 1) / PIXELS;
        long long parts = (call.taps + TAPS - 1) / TAPS, most = (call.taps + parts - 1) / parts;
        pixel = number % runs * PIXELS, number /= runs;
        tap = int(number % parts * most), number /= parts;
        taps = int(min(most, call.taps - tap));
        group = number % call.offset_groups, chunk = number / call.offset_groups;
    }
    __device__ __forceinline__ bool has(const Call& call, int sample) const {
        return sample / PIXELS < taps && pixel + sample % PIXELS < call.size;
    }
};

struct Samples {
    Sample values[THREADS];
};

// Locate one sample for each thread. A barrier has to follow.
__device__ __forceinline__ void locate_all(const Call& call, const Part& part, Samples& samples) {
    int own = threadIdx.x;
    if (part.has(call, own))
        samples.values[own] = locate(call, call.first + part.pixel + own % PIXELS, part.group, part.tap + own / PIXELS);
}

template <int SIZE>
struct Corners {
    Vector<SIZE, Element> above_left, above_right, below_left, below_right;
};

template <int SIZE>
__device__ __forceinline__ Corners<SIZE> corners_of(const Call& call, const Sample& sample, const Element* pixels,
                                                    long long channel) {
    Corners<SIZE> corners = {};
    const Element* from = pixels + (sample.row * call.width + sample.column) * call.channels + channel;
    const Element* below = from + call.width * call.channels;
    if (sample.corners & ABOVE_LEFT) corners.above_left = fetch<SIZE>(from);
    if (sample.corners & ABOVE_RIGHT) corners.above_right = fetch<SIZE>(from + call.channels);
    if (sample.corners & BELOW_LEFT) corners.below_left = fetch<SIZE>(below);
    if (sample.corners & BELOW_RIGHT) corners.below_right = fetch<SIZE>(below + call.channels);
    return corners;
}

template <int SIZE>
__device__ __forceinline__ Vector<SIZE, Element> columns_of(const Sample& sample, const Corners<SIZE>& corners) {
    Vector<SIZE, Element> result;
    Real y = sample.y, x = sample.x, up = Real{1} - y, back = Real{1} - x;
    Real weights[] = {up * back, up * x, y * back, y * x};
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
        Real value = weights[0] * widen(corners.above_left.values[i]);
        value = fused(weights[1], widen(corners.above_right.values[i]), value);
        value = fused(weights[2], widen(corners.below_left.values[i]), value);
        value = fused(weights[3], widen(corners.below_right.values[i]), value);
        result.values[i] = narrow(sample.mask * (sample.corners & READS ? value : Real{0}));
    }
    return result;
}

// ----------------------------------------------------------------------------------------------------------- forward

template <int SIZE>
__device__ __forceinline__ void gather(const Call& call, const Part& part, const Samples& samples,
                                       const Element* pixels, int lanes, Element* columns) {
    int lane = threadIdx.x % lanes;
    long long inner = (part.chunk * lanes + lane) * SIZE, channel = part.group * call.offset_channels() + inner;
    if (inner >= call.offset_channels()) return;
    columns += part.pixel * call.columns() + part.tap * call.group_channels + call.column(channel);
    for (int s = threadIdx.x / lanes; s < part.taps * PIXELS; s += THREADS / lanes) {
        if (!part.has(call, s)) continue;
        const Sample sample = samples.values[s];
        Corners<SIZE> corners = corners_of<SIZE>(call, sample, pixels, channel);
        put(columns_of(sample, corners), columns + s % PIXELS * call.columns() + s / PIXELS * call.group_channels);
    }
}

// `wide`: whether threads take WIDTH channels at a time. `lanes`: how many threads a sample has, a power of two.
struct DeformColumns {
    Call call;
    const Element* pixels;
    long long wide, lanes;
    Element* columns;
};

extern "C" __global__ void __launch_bounds__(THREADS, 4) deform_columns(const DeformColumns args) {
    const Call& call = args.call;
    Part part(call);
    SHARED(Samples, samples);
    locate_all(call, part, samples);
    __syncthreads();
    if (args.wide)
        gather<WIDTH>(call, part, samples, args.pixels, (int)args.lanes, args.columns);
    else
        gather<1>(call, part, samples, args.pixels, (int)args.lanes, args.columns);
}

// ---------------------------------------------------------------------------------------------- gradients of samples

// Derivatives with respect to the position of a sample and to its mask.
struct Slopes {
    Real y, x, mask;
};
struct AllSlopes {
    Slopes values[THREADS];
};

// The sum over `lanes` neighbouring lanes, in each of them.
__device__ __forceinline__ Real total(Real sum, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
        sum = sum + Real{__shfl_xor_sync(ALL, sum.value, distance)};
    return sum;
}

template <int SIZE>
__device__ __forceinline__ void differentiate(const Call& call, const Part& part, const Samples& samples,
                                              const Element* pixels, int lanes, const T* grad_columns, Element* columns,
                                              AllSlopes& slopes) {
    int lane = threadIdx.x % lanes;
    long long group = part.group * call.offset_channels();
    for (int base = 0; base < part.taps * PIXELS; base += THREADS / lanes) {
        int s = base + threadIdx.x / lanes;
        bool active = part.has(call, s);
        Sample sample = {0, 0, {0}, {0}, {0}, 0};
        if (active) sample = samples.values[s];
        long long start = (part.pixel + s % PIXELS) * call.columns() + (part.tap + s / PIXELS) * call.group_channels;
        // Differences are summed, because differences of sums would lose digits where neighbouring pixels are alike.
        Real value = {0}, down = {0}, down_right = {0}, right = {0};
        for (long long inner = lane * SIZE; active && inner < call.offset_channels(); inner += lanes * SIZE) {
            long long channel = group + inner, column = start + call.column(channel);
            Corners<SIZE> corners = corners_of<SIZE>(call, sample, pixels, channel);
            if (columns) put(columns_of(sample, corners), columns + column);
            if (!grad_columns) continue;
            Vector<SIZE, T> grads = fetch<SIZE>(grad_columns + column);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) {
                Real grad = {grads.values[i]};
                Real above_left = widen(corners.above_left.values[i]),
                     above_right = widen(corners.above_right.values[i]);
                value = fused(grad, above_left, value);
                down = fused(grad, widen(corners.below_left.values[i]) - above_left, down);
                down_right = fused(grad, widen(corners.below_right.values[i]) - above_right, down_right);
                right = fused(grad, above_right - above_left, right);
            }
        }
        if (!grad_columns) continue;
        Real y = sample.y, x = sample.x;
        Real by_y = (Real{1} - x) * down + x * down_right, by_x = right + y * (down_right - down);
        Real by_mask = sample.corners & READS ? value + x * right + y * by_y : Real{0};
        by_y = total(by_y, lanes), by_x = total(by_x, lanes), by_mask = total(by_mask, lanes);
        if (active && lane == 0) slopes.values[s] = {sample.mask * by_y, sample.mask * by_x, by_mask};
    }
}

// Computes the columns, unless `columns` is null, and the gradients of offset and mask, unless `grad_columns` is null.
struct DeformSlopes {
    Call call;
    const Element* pixels;
    long long wide, lanes;
    const T* grad_columns;
    Element* columns;
    Element* grad_offset;
    Element* grad_mask;
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) deform_slopes(const DeformSlopes args) {
    const Call& call = args.call;
    Part part(call);
    SHARED(Samples, samples);
    SHARED(AllSlopes, slopes);
    locate_all(call, part, samples);
    __syncthreads();
    if (args.wide)
        differentiate<WIDTH>(call, part, samples, args.pixels, (int)args.lanes, args.grad_columns, args.columns,
                             slopes);
    else
        differentiate<1>(call, part, samples, args.pixels, (int)args.lanes, args.grad_columns, args.columns, slopes);
    __syncthreads();  // the slopes are there; now neighbouring threads have neighbouring pixels
    int own = threadIdx.x;
    if (!args.grad_columns || !part.has(call, own)) return;
    long long index = call.first + part.pixel + own % PIXELS, image = index / call.out_pixels;
    long long entry = (image * call.offset_groups + part.group) * call.taps + part.tap + own / PIXELS;
    long long pixel = index - image * call.out_pixels;
    Slopes slope = slopes.values[own];
    if (args.grad_offset) {
        args.grad_offset[2 * entry * call.out_pixels + pixel] = narrow(slope.y);
        args.grad_offset[(2 * entry + 1) * call.out_pixels + pixel] = narrow(slope.x);
    }
    if (args.grad_mask) args.grad_mask[entry * call.out_pixels + pixel] = narrow(slope.mask);
}

// --------------------------------------------------------------------------------------------- gradient of the input

// What a sample contributes to the gradients of its four corners: its distances and mask as in `Sample`, and where its
// gradients begin in grad_columns. A tile has no more columns than an unsigned counts, unless it is a single pixel.
struct Contribution {
    Real y, x, mask;
    unsigned column;
};
static_assert(sizeof(Contribution) == CVOPS_CONTRIBUTION_BYTES, "the launcher allocates so many");

// A cell lies between four pixels, of which some are outside at the border: there are (H + 1) * (W + 1) cells for each
// image and group of offsets, and one more for all samples that add nothing. Keys have 4 bytes, or 8 for very many
// cells.
__device__ __forceinline__ long long key_of(const void* keys, long long i, long long key_bytes) {
    return key_bytes == 4 ? (long long)((const unsigned*)keys)[i] : (long long)((const unsigned long long*)keys)[i];
}

// The key of each sample is its cell; its contribution is what the sum needs of it. Samples are numbered
// i = (group * taps + tap) * size + pixel.
struct DeformKeys {
    Call call;
    long long cells, key_bytes;
    void* keys;
    Contribution* contributions;
};

extern "C" __global__ void __launch_bounds__(THREADS) deform_keys(const DeformKeys args) {
    const Call& call = args.call;
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= call.offset_groups * call.taps * call.size) return;
    long long entry = i / call.size, pixel = i - entry * call.size, group = entry / call.taps,
              tap = entry - group * call.taps;
    Sample sample = locate(call, call.first + pixel, group, tap);
    long long key = args.cells;
    if ((sample.corners & READS) && !is_nan(sample.y)) {
        long long image = (call.first + pixel) / call.out_pixels,
                  plane = (image - call.first / call.out_pixels) * call.offset_groups + group;
        key = (plane * (call.height + 1) + sample.row - image * call.height + 1) * (call.width + 1) + sample.column + 1;
    }
    if (args.key_bytes == 4)
        ((unsigned*)args.keys)[i] = (unsigned)key;
    else
        ((unsigned long long*)args.keys)[i] = key;
    unsigned start = (unsigned)(pixel * call.columns() + tap * call.group_channels);
    args.contributions[i] = {sample.y, sample.x, sample.mask, start};
}

// starts[cell]: how many samples lie in the cells before.
struct DeformStarts {
    const void* keys;
    long long key_bytes;
    const long long* order;
    long long samples, cells;
    long long* starts;
};

extern "C" __global__ void __launch_bounds__(THREADS) deform_starts(const DeformStarts args) {
    long long cell = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (cell > args.cells) return;
    long long low = 0, high = args.samples;
    while (low < high) {
        long long middle = low + (high - low) / 2;
        if (key_of(args.keys, args.order[middle], args.key_bytes) < cell)
            low = middle + 1;
        else
            high = middle;
    }
    args.starts[cell] = low;
}

template <int SIZE>
__device__ __forceinline__ void add_list(const long long* order, const Contribution* contributions,
                                         const T* grad_columns, long long begin, long long split, long long end,
                                         bool below, long long column, Real* sums) {
#pragma unroll 4
    for (long long i = begin; i < end; ++i) {
        Contribution sample = contributions[order[i]];
        Real y = below ? sample.y : Real{1} - sample.y, x = i < split ? sample.x : Real{1} - sample.x;
        Real weight = sample.mask * (y * x);
        Vector<SIZE, T> grads = fetch<SIZE>(grad_columns + sample.column + column);
#pragma unroll
        for (int k = 0; k < SIZE; ++k) sums[k] = fused(weight, Real{grads.values[k]}, sums[k]);
    }
}

// Sum up the gradient of one pixel of an image, for SIZE channels of a group of offsets, from channel `inner` of it on.
template <int SIZE>
__device__ __forceinline__ void collect(const Call& call, long long image, long long pixel, long long group,
                                        long long inner, const long long* order, const long long* starts,
                                        const Contribution* contributions, const T* grad_columns, T* grad_pixels) {
    long long channel = group * call.offset_channels() + inner, column = call.column(channel);
    long long row = pixel / call.width, across = call.width + 1;
    // Of the cells above, this pixel is a lower corner, and of those to the left a right one.
    long long plane = (image - call.first / call.out_pixels) * call.offset_groups + group;
    const long long* upper = starts + (plane * (call.height + 1) + row) * across + (pixel - row * call.width);
    const long long* lower = upper + across;
    // An earlier launch has set the sums if output pixels of this image came before.
    bool begun = image * call.out_pixels < call.first;
    if (begun && upper[0] == upper[2] && lower[0] == lower[2]) return;
    T* target = grad_pixels + (image * call.height * call.width + pixel) * call.channels + channel;
    Vector<SIZE, T> result = {};
    if (begun) result = fetch<SIZE>(target);
    Real sums[SIZE];
#pragma unroll
    for (int k = 0; k < SIZE; ++k) sums[k] = Real{result.values[k]};
    add_list<SIZE>(order, contributions, grad_columns, upper[0], upper[1], upper[2], true, column, sums);
    add_list<SIZE>(order, contributions, grad_columns, lower[0], lower[1], lower[2], false, column, sums);
#pragma unroll
    for (int k = 0; k < SIZE; ++k) result.values[k] = sums[k].value;
    put(result, target);
}

// grad_pixels has the layout of `pixels`, in working precision. The output pixels [first, first + size) lie in `images`
// images. What they read is added to the sums of earlier launches for the same image; if there was none, the sums are
// set, and need no value before. `wide` and `lanes` are as above, but for REAL_WIDTH.
struct DeformCollect {
    Call call;
    long long images, wide, lanes;
    const long long* order;
    const long long* starts;
    const Contribution* contributions;
    const T* grad_columns;
    T* grad_pixels;
};

extern "C" __global__ void __launch_bounds__(THREADS, 4) deform_collect(const DeformCollect args) {
    const Call& call = args.call;
    long long size = args.wide ? REAL_WIDTH : 1;
    long long i = ((long long)blockIdx.x * THREADS + threadIdx.x) / args.lanes, plane = call.height * call.width;
    long long pixel = i % plane, image = i / plane % args.images, rest = i / plane / args.images;
    long long group = rest % call.offset_groups, chunk = rest / call.offset_groups;
    long long inner = (chunk * args.lanes + threadIdx.x % args.lanes) * size;
    if (inner >= call.offset_channels()) return;
    image += call.first / call.out_pixels;
    if (args.wide)
        collect<REAL_WIDTH>(call, image, pixel, group, inner, args.order, args.starts, args.contributions,
                            args.grad_columns, args.grad_pixels);
    else
        collect<1>(call, image, pixel, group, inner, args.order, args.starts, args.contributions, args.grad_columns,
                   args.grad_pixels);
}

// ------------------------------------------------------------------------------------------- how arrays are laid out

template <class Stored>
struct Square {
    Stored values[EDGE][EDGE + 1];  // no two rows in the same banks
};
using Elements = Square<Element>;
using Reals = Square<T>;

__device__ __forceinline__ long long squares(long long matrices, long long rows, long long columns) {
    return matrices * ((rows + EDGE - 1) / EDGE) * ((columns + EDGE - 1) / EDGE);
}

// Transpose square `number` of matrices (matrices, rows, columns) to (matrices, columns, rows). `added`, unless null,
// has a number for each column, which is added to it.
template <class From>
__device__ __forceinline__ void transpose(long long number, const From* from, long long rows, long long columns,
                                          const Element* added, Element* to, Square<From>& square) {
    long long across = (columns + EDGE - 1) / EDGE, down = (rows + EDGE - 1) / EDGE;
    long long left = number % across * EDGE, top = number / across % down * EDGE;
    long long start = number / across / down * rows * columns;
    int x = threadIdx.x % EDGE;
    for (int y = threadIdx.x / EDGE; y < EDGE; y += THREADS / EDGE)
        if (top + y < rows && left + x < columns) square.values[y][x] = from[start + (top + y) * columns + left + x];
    __syncthreads();
    for (int y = threadIdx.x / EDGE; y < EDGE; y += THREADS / EDGE) {
        if (left + y >= columns || top + x >= rows) continue;
        Real value = widen(square.values[x][y]);
        if (added) value = value + widen(added[left + y]);
        to[start + (left + y) * rows + top + x] = narrow(value);
    }
}

// The copies that are needed before the products, each unless it is null: pixels from input (images, channels, plane),
// weights from weight (outputs, group_channels, taps), and grads from grad (images, outputs, out_plane).
struct DeformArrange {
    const Element* input;
    long long images, channels, plane;
    Element* pixels;
    const Element* weight;
    long long outputs, group_channels, taps;
    Element* weights;
    const Element* grad;
    long long out_plane;
    Element* grads;
};

extern "C" __global__ void __launch_bounds__(THREADS) deform_arrange(const DeformArrange args) {
    SHARED(Elements, square);
    long long number = blockIdx.x, count = args.pixels ? squares(args.images, args.channels, args.plane) : 0;
    if (number < count) return transpose(number, args.input, args.channels, args.plane, nullptr, args.pixels, square);
    number -= count, count = args.weights ? squares(args.outputs, args.group_channels, args.taps) : 0;
    if (number < count)
        return transpose(number, args.weight, args.group_channels, args.taps, nullptr, args.weights, square);
    transpose(number - count, args.grad, args.outputs, args.out_plane, nullptr, args.grads, square);
}

// What is left to do after the products: `result` (images, channels, plane) from `pixels` (images, plane, channels),
// which is the output from sums and bias, or the gradient of the input; and the gradient of the weight from
// grad_weights.
struct DeformRestore {
    const T* pixels;
    long long images, channels, plane;
    const Element* bias;
    Element* result;
    const T* grad_weights;
    long long outputs, group_channels, taps;
    Element* grad_weight;
};

extern "C" __global__ void __launch_bounds__(THREADS) deform_restore(const DeformRestore args) {
    SHARED(Reals, square);
    long long number = blockIdx.x, count = args.result ? squares(args.images, args.plane, args.channels) : 0;
    if (number < count)
        return transpose(number, args.pixels, args.plane, args.channels, args.bias, args.result, square);
    transpose(number - count, args.grad_weights, args.taps, args.group_channels, nullptr, args.grad_weight, square);
}

struct Totals {
    Real values[THREADS];
};

// The gradient of the bias, a block for each output: the sum of grad over images and pixels.
struct DeformBias {
    const Element* grad;
    long long images, outputs, out_plane;
    Element* grad_bias;
};

extern "C" __global__ void __launch_bounds__(THREADS) deform_bias(const DeformBias args) {
    SHARED(Totals, totals);
    long long output = blockIdx.x;
    Real sum = {0};
    for (long long i = threadIdx.x; i < args.images * args.out_plane; i += THREADS) {
        long long image = i / args.out_plane;
        sum = sum + widen(args.grad[(image * args.outputs + output) * args.out_plane + i - image * args.out_plane]);
    }
    totals.values[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            totals.values[threadIdx.x] = totals.values[threadIdx.x] + totals.values[threadIdx.x + half];
    }
    if (threadIdx.x == 0) args.grad_bias[output] = narrow(totals.values[0]);
}
