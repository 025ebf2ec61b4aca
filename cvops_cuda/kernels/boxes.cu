// Measures of all pairs of two sets of boxes: IoU, and generalized [1], distance and complete IoU [2].
//
// boxes1 (batches, n, 4) and boxes2 (batches, m, 4): corners x1, y1, x2, y2; area1 (batches, n), area2 (batches, m);
// result (batches, n, m). All contiguous. Bound by the writes of the result: a thread owns a column of ROWS pairs, so
// that its box of the second set is read once and neighbouring threads write neighbouring addresses.
//
// [1] H. Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.
// [2] Z. Zheng et al., "Distance-IoU Loss", AAAI 2020.

#include "numeric.cuh"

enum Measure { IOU = CVOPS_IOU, GENERALIZED = CVOPS_GENERALIZED, DISTANCE = CVOPS_DISTANCE, COMPLETE = CVOPS_COMPLETE };
constexpr int COLUMNS = CVOPS_COLUMNS, ROWS = CVOPS_ROWS;  // pairs of a block

struct Box {
    Real x1, y1, x2, y2;
};

__device__ __forceinline__ Real overlap(Real begin1, Real end1, Real begin2, Real end2) {
    return maximum(minimum(end1, end2) - maximum(begin1, begin2), Real{0});
}

__device__ __forceinline__ Real hull(Real begin1, Real end1, Real begin2, Real end2) {
    return maximum(maximum(end1, end2) - minimum(begin1, begin2), Real{0});
}

__device__ __forceinline__ Real angle(Box box) {
    Real width = box.x2 - box.x1, height = box.y2 - box.y1, large = {(T)0x1p100}, small = {(T)0x1p-100}, zero = {0};
    // atan2 flushes subnormal sides; the angle is the same at any scale.
    if (maximum(maximum(width, zero - width), maximum(height, zero - height)) < small) {
        width = width * large, height = height * large;
    }
    return {atan2(width.value, height.value)};
}

__device__ Real measured(long long measure, Box a, Real area_a, Box b, Real area_b, Real eps) {
    Real inter = overlap(a.x1, a.x2, b.x1, b.x2) * overlap(a.y1, a.y2, b.y1, b.y2);
    Real both = (area_a + area_b) - inter;
    Real result = inter / both;
    if (measure == IOU) return result;
    Real width = hull(a.x1, a.x2, b.x1, b.x2), height = hull(a.y1, a.y2, b.y1, b.y2);
    if (measure == GENERALIZED) return result - (width * height - both) / (width * height);
    if (measure == COMPLETE) {
        Real difference = angle(a) - angle(b);
        Real v = Real{(T)0.40528473456935108578} * difference * difference;  // 4 / pi^2
        result = result - v / (Real{1} - result + v + eps) * v;
    }
    Real half = {(T)0.5};
    Real x = (a.x1 + a.x2) * half - (b.x1 + b.x2) * half, y = (a.y1 + a.y2) * half - (b.y1 + b.y2) * half;
    return result - (x * x + y * y) / (width * width + height * height + eps);
}

struct BoxPairs {
    const Box* boxes1;
    const Real* area1;
    const Box* boxes2;
    const Real* area2;
    long long n, m, measure;
    double eps;
    Real* result;
};

extern "C" __global__ void __launch_bounds__(COLUMNS) box_pairs(const BoxPairs args) {
    long long across = (args.m + COLUMNS - 1) / COLUMNS, down = (args.n + ROWS - 1) / ROWS;
    long long column = blockIdx.x % across * COLUMNS + threadIdx.x;
    long long row = blockIdx.x / across % down * ROWS, batch = blockIdx.x / across / down;
    if (column >= args.m) return;
    Box b = args.boxes2[batch * args.m + column];
    Real area_b = args.area2[batch * args.m + column];
    for (long long i = row; i < min(row + ROWS, args.n); ++i) {
        Box a = args.boxes1[batch * args.n + i];
        args.result[(batch * args.n + i) * args.m + column] =
            measured(args.measure, a, args.area1[batch * args.n + i], b, area_b, real(args.eps));
    }
}
