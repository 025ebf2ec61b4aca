// What the RoI operators share: where the bins of a RoI lie. The loader puts this text between numeric.cuh and theirs.
//
// Everything here decides which elements are read, so it is computed on `Real`, in the order in which the CPU backend does.

// How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True and ps_roi_align; ps_roi_pool; roi_pool.
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
