// Kernels with one fault each, which the emulation has to notice.

using Values = int[64];

extern "C" __global__ void __launch_bounds__(64)
barrier_for_some(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    else while (out[0] == 0) PAUSE();
    out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64)
barrier_never_reached(int* out) {
    if (threadIdx.x % 32 < 16) __syncthreads();
    else __ballot_sync(0xFFFFFFFF, 1);
    out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64)
missing_barrier(int* out) {
    SHARED(Values, values);
    values[threadIdx.x] = threadIdx.x;
    __ballot_sync(0xFFFFFFFF, 1);
    out[threadIdx.x] = values[63 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64)
write_before_the_start(int* out) {
    out[(int)threadIdx.x - 1] = 1;
}

extern "C" __global__ void __launch_bounds__(64)
write_after_the_end(int* out) {
    out[threadIdx.x + 1] = 1;
}

extern "C" __global__ void __launch_bounds__(64)
order_of_blocks(int* out) {
    if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(out + 63, 1);
}

extern "C" __global__ void __launch_bounds__(64)
exchange_with_the_wrong_lanes(int* out) {
    out[0] = __ballot_sync(0x0000FFFF, 1);
}
