// What the RoI operators share: where the bins of a RoI lie.
//
// Everything here decides which elements are read, so it is computed on `Real`, in the order in which the CPU backend
// does.

#include "numeric.cuh"

// How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True and ps_roi_align; ps_roi_pool;
// roi_pool.
enum Layout { ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM };

// The bins of a RoI along one axis: where the first starts, the size of each, and how many samples or cells each has.
// -1 samples: the RoI has no place, because a corner is NaN or infinite, or there would be too many samples.
struct Axis {
    Real start, step;
    long long samples;
};

constexpr long long MOST_SAMPLES = 1 << 16;  // along one axis of a bin

__device__ __forceinline__ bool is_finite(Real a) { return !is_nan(a - a); }

// A coordinate in cells of the map, within reach of integers unless it is NaN or infinite.
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
        Real step = Real{(T)size} / Real{(T)bins};
        return {low, step, integer_of(ceiling_of(step))};
    }
    Real size;
    if (layout == ALIGN_CENTRES) {
        Real half = {(T)0.5};
        low = low - half, high = high - half;
        size = high - low;
    } else {
        size = maximum(high - low, Real{1});
    }
    Real step = size / Real{(T)bins};
    Real samples = ratio > 0 ? Real{(T)ratio} : maximum(ceiling_of(step), Real{0});
    return {low, step, samples > Real{(T)MOST_SAMPLES} ? -1 : integer_of(samples)};
}

// A row of `boxes` (K, 5): image index, x1, y1, x2, y2.
struct Row {
    Real image, x1, y1, x2, y2;

    // The image, or -1 if it is none of so many.
    __device__ __forceinline__ long long index(long long images) const {
        bool whole = !(image < Real{0}) && image < Real{(T)images} && !(floor_of(image) < image);
        return whole ? integer_of(image) : -1;
    }
};

__device__ __forceinline__ Row row_of(const void* boxes, long long k, long long dtype) {
    return {load(boxes, 5 * k, dtype), load(boxes, 5 * k + 1, dtype), load(boxes, 5 * k + 2, dtype),
            load(boxes, 5 * k + 3, dtype), load(boxes, 5 * k + 4, dtype)};
}

// Calls take(cell, weight) once for each cell that the samples of a bin touch along one axis, cells ascending; of the
// samples in ascending order it is given those from `begin` to `end`. Sums are in double: there may be 65 536 samples
// on one cell. Cells of samples are near enough to the origin for int.
template <class Take>
__device__ void take_taps(const Axis& axis, long long bin, long long length, int begin, int end, Take take) {
    Real half = {(T)0.5}, samples = {(T)axis.samples}, base = axis.start + Real{(T)bin} * axis.step;
    int last = axis.step < Real{0} ? (int)axis.samples - 1 : 0;  // of an inverted RoI, the sample that comes first
    int cell = -2;                                               // that of the last sample
    double near = 0, far = 0;                                    // what it and the next one weigh so far
    for (int i = begin; i <= end; ++i) {
        int low = -2;  // behind the last sample, to take what is left
        Real fraction = {0};
        if (i < end) {
            Real sample = {(T)abs(last - i)};
            Real at = base + (sample + half) * axis.step / samples;
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

// How far the positions of samples may be off by rounding.
__device__ __forceinline__ Real slack_of(const Axis& axis, long long bins) {
    Real zero = {0}, end = axis.start + Real{(T)bins} * axis.step;
    return maximum(maximum(axis.start, zero - axis.start), maximum(end, zero - end)) * Real{(T)1e-6};
}

// Of `count` steps that follow each other from `origin` on, at least those that meet what lies from `low` to `high`:
// all, if they are few.
struct Range {
    int begin, end;
};
__device__ Range steps_between(Real origin, Real step, int count, Real low, Real high) {
    Real zero = {0}, most = {(T)count};
    if (count <= 16 || !(step < zero || step > zero)) return {0, count};
    Real one = (low - origin) / step, other = (high - origin) / step, spare = Real{1} + most * Real{(T)1e-6};
    Real begin = maximum(minimum(minimum(one, other) - spare, most), zero);
    Real end = maximum(minimum(maximum(one, other) + spare, most), zero);
    return {(int)integer_of(begin), (int)min(integer_of(end) + 1, (long long)count)};
}

// The samples of a bin from `low` to `high`, and maybe more, in ascending order: what `take_taps` takes.
__device__ Range samples_between(const Axis& axis, long long bin, Real low, Real high) {
    if (axis.samples <= 16) return {0, (int)axis.samples};
    Real zero = {0}, origin = axis.start + Real{(T)bin} * axis.step, size = maximum(axis.step, zero - axis.step);
    if (axis.step < zero) origin = origin - size;
    return steps_between(origin, size / Real{(T)axis.samples}, (int)axis.samples, low, high);
}

// The cells of a bin of a pooling operator along one axis, within a line of so many.
struct Window {
    long long begin, end;
};

__device__ __forceinline__ Window window_of(Axis axis, long long bin, long long length) {
    long long start = integer_of(axis.start);
    long long begin = integer_of(floor_of(Real{(T)bin} * axis.step)) + start;
    long long end = integer_of(ceiling_of(Real{(T)(bin + 1)} * axis.step)) + start;
    return {min(max(begin, 0ll), length), min(max(end, 0ll), length)};
}
