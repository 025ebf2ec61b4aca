// What a plain convolution does around its matrix products, which the launcher leaves to cuBLAS.
//
// input (images, channels, height, width), columns (images, channels * taps, count): what each tap reads for the output
// pixels [first, first + count) of each image, in the order of a weight (outputs, channels, taps). Neighbouring threads
// read and write neighbouring pixels, and each goes through some channels with all their taps, so that what taps share
// is in the cache.

constexpr int THREADS = 256, CHANNELS = 8, PIXELS = 1024;  // as in _conv.py

extern "C" __global__ void __launch_bounds__(THREADS)
conv_columns(const Element* input, long long channels, long long height, long long width, long long kernel_height,
             long long kernel_width, long long stride_y, long long stride_x, long long padding_y, long long padding_x,
             long long out_width, long long first, long long count, Element* columns) {
    long long runs = (count + THREADS - 1) / THREADS, parts = (channels + CHANNELS - 1) / CHANNELS;
    long long pixel = blockIdx.x % runs * THREADS + threadIdx.x, rest = blockIdx.x / runs;
    long long channel = rest % parts * CHANNELS, image = rest / parts;
    if (pixel >= count) return;
    long long row = (first + pixel) / out_width;
    long long top = row * stride_y - padding_y, left = (first + pixel - row * out_width) * stride_x - padding_x;
    const Element* from = input + (image * channels + channel) * height * width;
    Element* to = columns + (image * channels + channel) * kernel_height * kernel_width * count + pixel;
    for (long long last = min(channel + CHANNELS, channels); channel < last; ++channel, from += height * width)
        for (long long y = top; y < top + kernel_height; ++y)
            for (long long x = left; x < left + kernel_width; ++x, to += count) {
                bool inside = y >= 0 && y < height && x >= 0 && x < width;
                *to = inside ? from[y * width + x] : Element{};
            }
}

// The bias for each pixel of the result (images, outputs, plane), to which the products are added.
extern "C" __global__ void __launch_bounds__(THREADS)
conv_bias(const Element* bias, long long outputs, long long plane, Element* result) {
    long long parts = (plane + PIXELS - 1) / PIXELS, row = blockIdx.x / parts;
    Element value = bias[row % outputs];
    for (int i = threadIdx.x; i < PIXELS; i += THREADS) {
        long long pixel = blockIdx.x % parts * PIXELS + i;
        if (pixel < plane) result[row * plane + pixel] = value;
    }
}
