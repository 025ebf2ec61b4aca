// What the RoI operators share: where the bins of a RoI lie.
//
// Everything here decides which elements are read, so it is computed on `Real`, in the order in which the CPU backend
// does.

#include "block.cuh"

// How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True and ps_roi_align; ps_roi_pool;
// roi_pool.
enum Layout { ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM };

// The bins of a RoI along one axis: where the first starts, the size of each, and how many samples or cells each has.
// -1 samples: the RoI is invalid, because a corner is NaN or infinite, or there would be too many samples.
struct Axis {
    Real start, bin_size;
    long long samples;
};

constexpr long long MOST_SAMPLES = 1 << 16;  // along one axis of a bin

__device__ __forceinline__ bool is_finite(Real a) { return !is_nan(a - a); }

// A coordinate in cells of the map. Finite ones are clipped so that integers can hold them.
__device__ __forceinline__ Real scaled(Real coordinate, Real scale) {
    Real most = {(T)(1 << 30)}, cells = coordinate * scale;
    return is_finite(cells) ? maximum(minimum(cells, most), Real{0} - most) : cells;
}

// The nearest integer, halves away from zero.
__device__ __forceinline__ Real rounded(Real a) {
    Real half = {(T)0.5}, whole = a < Real{0} ? ceiling_of(a) : floor_of(a), rest = a - whole;
    if (!(rest < half)) return whole + Real{1};
    return rest > Real{0} - half ? whole : whole - Real{1};
}

__device__ Axis axis_of(Real low, Real high, Real scale, Layout layout, long long bins, long long ratio) {
    low = scaled(low, scale), high = scaled(high, scale);
    if (!is_finite(low) || !is_finite(high)) return {low, low, -1};
    if (layout == AVERAGE || layout == MAXIMUM) {
        low = rounded(low), high = rounded(high);
        // In integers: float32 would lose the last cells of a large RoI.
        long long size = max(integer_of(high) - integer_of(low) + (layout == MAXIMUM), 1ll);
        Real bin_size = Real{(T)size} / Real{(T)bins};
        return {low, bin_size, integer_of(ceiling_of(bin_size))};
    }
    Real size;
    if (layout == ALIGN_CENTRES) {
        Real half = {(T)0.5};
        low = low - half, high = high - half;
        size = high - low;
    } else {
        size = maximum(high - low, Real{1});
    }
    Real bin_size = size / Real{(T)bins};
    Real samples = ratio > 0 ? Real{(T)ratio} : maximum(ceiling_of(bin_size), Real{0});
    return {low, bin_size, samples > Real{(T)MOST_SAMPLES} ? -1 : integer_of(samples)};
}

// A row of `boxes` (K, 5): image index, x1, y1, x2, y2.
struct Roi {
    Real image, x1, y1, x2, y2;

    // The index of its image, or -1 if that is no whole number from 0 to images - 1.
    __device__ __forceinline__ long long index(long long images) const {
        bool whole = !(image < Real{0}) && image < Real{(T)images} && !(floor_of(image) < image);
        return whole ? integer_of(image) : -1;
    }
};

__device__ __forceinline__ Roi roi_of(const void* boxes, long long k, long long dtype) {
    return {load(boxes, 5 * k, dtype), load(boxes, 5 * k + 1, dtype), load(boxes, 5 * k + 2, dtype),
            load(boxes, 5 * k + 3, dtype), load(boxes, 5 * k + 4, dtype)};
}

// Calls take(cell, weight) once for each cell that the bilinear samples of a bin read along one axis, in ascending
// order of cells. A sample at y between the cells i and i + 1 reads both, with the weights 1 - (y - i) and y - i:
//
//     cells      i           i + 1         i + 2
//     samples    |     a  b    |      c      |       taps of the bin: three cells, with the weights
//                                                    (1-a + 1-b) / 3, (a + b + 1-c) / 3, c / 3
//
// Of the samples in ascending order, only those from `begin` to `end` are looked at. So only the weights of two cells,
// `near` and `far`, are growing at a time. They are summed in double, because a cell may have 65 536 samples. Cells of
// samples fit into int, because coordinates are clipped.
template <class Take>
__device__ void bilinear_taps(const Axis& axis, long long bin, long long length, int begin, int end, Take take) {
    Real half = {(T)0.5}, samples = {(T)axis.samples}, base = axis.start + Real{(T)bin} * axis.bin_size;
    int first = axis.bin_size < Real{0} ? (int)axis.samples - 1 : 0;  // an inverted RoI begins with its last sample
    int cell = -2;                                                    // that of the sample before
    double near = 0, far = 0;                                         // the weights so far of it and the next cell
    for (int i = begin; i <= end; ++i) {
        int low = -2;  // after the last sample, so that the last two cells are taken
        Real fraction = {0};
        if (i < end) {
            Real sample = {(T)abs(first - i)};
            Real at = base + (sample + half) * axis.bin_size / samples;
            if (at < Real{-1} || at > Real{(T)length}) continue;
            at = maximum(at, Real{0});
            low = (int)min(integer_of(at), length - 1);
            if (low < length - 1) fraction = at - Real{(T)low};
        }
        if (low != cell) {
            if (cell >= 0) {
                take(cell, real(near) / samples);
                near = 0;
                if (low == cell + 1)
                    near = far;
                else if (cell + 1 < length)
                    take(cell + 1, real(far) / samples);
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

// By how much rounding may have moved the positions of samples.
__device__ __forceinline__ Real slack_of(const Axis& axis, long long bins) {
    Real zero = {0}, end = axis.start + Real{(T)bins} * axis.bin_size;
    return maximum(maximum(axis.start, zero - axis.start), maximum(end, zero - end)) * Real{(T)1e-6};
}

// Of `count` intervals of one size that follow each other from `origin` on, a range that includes all that meet the
// interval from `low` to `high`. If they are few, it is all of them.
struct Range {
    int begin, end;
};
__device__ Range intervals_between(Real origin, Real size, int count, Real low, Real high) {
    Real zero = {0}, most = {(T)count};
    if (count <= 16 || !(size < zero || size > zero)) return {0, count};
    Real one = (low - origin) / size, other = (high - origin) / size, spare = Real{1} + most * Real{(T)1e-6};
    Real begin = maximum(minimum(minimum(one, other) - spare, most), zero);
    Real end = maximum(minimum(maximum(one, other) + spare, most), zero);
    return {(int)integer_of(begin), (int)min(integer_of(end) + 1, (long long)count)};
}

// A range of the samples of a bin, in ascending order, that includes all from `low` to `high`, for `bilinear_taps`.
__device__ Range samples_between(const Axis& axis, long long bin, Real low, Real high) {
    if (axis.samples <= 16) return {0, (int)axis.samples};
    Real zero = {0}, origin = axis.start + Real{(T)bin} * axis.bin_size,
         size = maximum(axis.bin_size, zero - axis.bin_size);
    if (axis.bin_size < zero) origin = origin - size;
    return intervals_between(origin, size / Real{(T)axis.samples}, (int)axis.samples, low, high);
}

// The cells [begin, end) of a bin of a pooling operator along one axis, clipped to those from 0 to length - 1.
struct Window {
    long long begin, end;
};

__device__ __forceinline__ Window window_of(Axis axis, long long bin, long long length) {
    long long start = integer_of(axis.start);
    long long begin = integer_of(floor_of(Real{(T)bin} * axis.bin_size)) + start;
    long long end = integer_of(ceiling_of(Real{(T)(bin + 1)} * axis.bin_size)) + start;
    return {min(max(begin, 0ll), length), min(max(end, 0ll), length)};
}
