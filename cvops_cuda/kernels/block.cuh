// What the threads of a block do together.

#include "numeric.cuh"

constexpr int WARP = 32;              // threads of a warp
constexpr unsigned ALL = 0xFFFFFFFF;  // its lanes

__device__ __forceinline__ int lane() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp() { return threadIdx.x / WARP; }
__device__ __forceinline__ unsigned lower_lanes() { return (1u << lane()) - 1; }

// The sum of `value` over the lanes up to this one.
__device__ __forceinline__ unsigned sum_up_to(unsigned value) {
    for (int distance = 1; distance < WARP; distance *= 2) {
        unsigned others = __shfl_up_sync(ALL, value, distance);
        if (lane() >= distance) value += others;
    }
    return value;
}

// How many threads before this one have set `flag`; `total` is how many of all have. The block has `warps` warps.
template <int WARPS>
__device__ __forceinline__ int position_among(unsigned (&counts)[WARPS], bool flag, int& total, int warps = WARPS) {
    unsigned votes = __ballot_sync(ALL, flag);
    if (lane() == 0) counts[warp()] = __popc(votes);
    __syncthreads();  // all warps have counted
    int before = __popc(votes & lower_lanes());
    total = 0;
    for (int i = 0; i < warps; ++i) {
        if (i == warp()) before += total;
        total += counts[i];
    }
    return before;
}
