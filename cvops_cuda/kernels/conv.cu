// What a plain convolution does around its matrix products, which the launcher leaves to cuBLAS.
//
// input (images, channels, height, width), columns (images, channels * taps, size): what each tap reads for the output
// pixels [first, first + size) of each image, in the order of a weight (outputs, channels, taps). Neighbouring threads
// read and write neighbouring pixels, and each goes through some channels with all their taps, so that what taps share
// is in the cache.

#include "numeric.cuh"

constexpr int THREADS = CVOPS_THREADS, CHANNELS = CVOPS_CHANNELS, PIXELS = CVOPS_PIXELS;

struct ConvColumns {
    const Element* input;
    long long channels, height, width, kernel_height, kernel_width, stride_y, stride_x, padding_y;
    long long padding_x, out_width, first, size;
    Element* columns;
};

// At most 5 blocks at once on a multiprocessor: with more, NVRTC spills registers on sm_90.
extern "C" __global__ void __launch_bounds__(THREADS, 5) conv_columns(const ConvColumns args) {
    long long runs = (args.size + THREADS - 1) / THREADS, parts = (args.channels + CHANNELS - 1) / CHANNELS;
    long long pixel = blockIdx.x % runs * THREADS + threadIdx.x, rest = blockIdx.x / runs;
    long long channel = rest % parts * CHANNELS, image = rest / parts;
    if (pixel >= args.size) return;
    long long row = (args.first + pixel) / args.out_width;
    long long top = row * args.stride_y - args.padding_y,
              left = (args.first + pixel - row * args.out_width) * args.stride_x - args.padding_x;
    const Element* from = args.input + (image * args.channels + channel) * args.height * args.width;
    Element* to =
        args.columns + (image * args.channels + channel) * args.kernel_height * args.kernel_width * args.size + pixel;
    for (long long last = min(channel + CHANNELS, args.channels); channel < last;
         ++channel, from += args.height * args.width)
        for (long long y = top; y < top + args.kernel_height; ++y)
            for (long long x = left; x < left + args.kernel_width; ++x, to += args.size) {
                bool inside = y >= 0 && y < args.height && x >= 0 && x < args.width;
                *to = inside ? from[y * args.width + x] : Element{};
            }
}

// The bias for each pixel of the result (images, outputs, plane), to which the products are added.
struct ConvBias {
    const Element* bias;
    long long outputs, plane;
    Element* result;
};

extern "C" __global__ void __launch_bounds__(THREADS) conv_bias(const ConvBias args) {
    long long parts = (args.plane + PIXELS - 1) / PIXELS, row = blockIdx.x / parts;
    Element value = args.bias[row % args.outputs];
    for (int i = threadIdx.x; i < PIXELS; i += THREADS) {
        long long pixel = blockIdx.x % parts * PIXELS + i;
        if (pixel < args.plane) args.result[row * args.plane + pixel] = value;
    }
}
