// Kernels with one fault each, which the emulation has to notice.

using Values = int[64];

struct Fault {
    int* out;
};

extern "C" __global__ void __launch_bounds__(64) barrier_for_some(const Fault args) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        while (args.out[0] == 0) PAUSE();
    args.out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64) barrier_never_reached(const Fault args) {
    if (threadIdx.x % 32 < 16)
        __syncthreads();
    else
        __ballot_sync(0xFFFFFFFF, 1);
    args.out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64) missing_barrier(const Fault args) {
    SHARED(Values, values);
    values[threadIdx.x] = threadIdx.x;
    __ballot_sync(0xFFFFFFFF, 1);
    args.out[threadIdx.x] = values[63 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) write_before_the_start(const Fault args) {
    args.out[(int)threadIdx.x - 1] = 1;
}

extern "C" __global__ void __launch_bounds__(64) write_after_the_end(const Fault args) {
    args.out[threadIdx.x + 1] = 1;
}

extern "C" __global__ void __launch_bounds__(64) order_of_blocks(const Fault args) {
    if (threadIdx.x == 0) args.out[blockIdx.x] = atomicAdd(args.out + 63, 1);
}

extern "C" __global__ void __launch_bounds__(64) exchange_with_the_wrong_lanes(const Fault args) {
    args.out[0] = __ballot_sync(0x0000FFFF, 1);
}
