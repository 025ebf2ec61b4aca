// What every kernel file starts with: the loader puts this text before it, because CuPy's cache would not notice a change
// of an included file.
//
// CuPy compiles with -ftz=true, which flushes subnormal floats in +, -, *, /, min, max and comparisons, intrinsics such
// as __fmul_rn included; and the compiler may fuse a * b + c. Either can flip a decision (a box kept or not). So what
// decides something is computed on `Real`, whose operators are single PTX instructions without .ftz, rounded once each:
// exactly what IEEE 754 and the CPU backend do. The second half of each #ifdef is for the tests, which compile this same
// text for the host.

// The working precision of the module, float or double. (A macro T would break NVRTC's own templates.)
using T = ELEMENT;

#ifdef __CUDACC__

#define SHARED(TYPE, name) __shared__ TYPE name
#define PAUSE() __nanosleep(20)

#define BINARY(name, instruction, type, letter)                                                           \
    __device__ __forceinline__ type name(type a, type b) {                                                \
        type c;                                                                                           \
        asm(instruction " %0, %1, %2;" : "=" letter(c) : letter(a), letter(b));                           \
        return c;                                                                                         \
    }
BINARY(add, "add.rn.f32", float, "f")
BINARY(add, "add.rn.f64", double, "d")
BINARY(subtract, "sub.rn.f32", float, "f")
BINARY(subtract, "sub.rn.f64", double, "d")
BINARY(multiply, "mul.rn.f32", float, "f")
BINARY(multiply, "mul.rn.f64", double, "d")
BINARY(divide, "div.rn.f32", float, "f")
BINARY(divide, "div.rn.f64", double, "d")
BINARY(minimum_of, "min.f32", float, "f")
BINARY(minimum_of, "min.f64", double, "d")
BINARY(maximum_of, "max.f32", float, "f")
BINARY(maximum_of, "max.f64", double, "d")
#undef BINARY

__device__ __forceinline__ bool less(float a, float b) {
    int yes;
    asm("{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.s32 %0, 1, 0, p; }" : "=r"(yes) : "f"(a), "f"(b));
    return yes;
}
__device__ __forceinline__ bool less(double a, double b) { return a < b; }

__device__ __forceinline__ void convert(float a, float& b) { b = a; }
__device__ __forceinline__ void convert(double a, double& b) { b = a; }
__device__ __forceinline__ void convert(float a, double& b) { asm("cvt.f64.f32 %0, %1;" : "=d"(b) : "f"(a)); }
__device__ __forceinline__ void convert(double a, float& b) { asm("cvt.rn.f32.f64 %0, %1;" : "=f"(b) : "d"(a)); }
__device__ __forceinline__ float from_float16(unsigned short bits) {
    float a;
    asm("cvt.f32.f16 %0, %1;" : "=f"(a) : "h"(bits));
    return a;
}
__device__ __forceinline__ unsigned bits_of(float a) { return __float_as_uint(a); }
__device__ __forceinline__ unsigned long long bits_of(double a) { return __double_as_longlong(a); }

#else

#define BINARY(name, expression)                              \
    inline float name(float a, float b) { return expression; } \
    inline double name(double a, double b) { return expression; }
BINARY(add, a + b)
BINARY(subtract, a - b)
BINARY(multiply, a * b)
BINARY(divide, a / b)
BINARY(minimum_of, std::fmin(a, b))
BINARY(maximum_of, std::fmax(a, b))
#undef BINARY
inline bool less(double a, double b) { return a < b; }
template <class From, class To>
void convert(From a, To& b) {
    b = (To)a;
}
inline float from_float16(unsigned short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? std::ldexp((float)fraction, -24)
                                 : std::ldexp((float)(1024 + fraction), exponent - 25);
    return bits >> 15 ? -size : size;
}
inline unsigned bits_of(float a) { return emulation::bits<unsigned>(a); }
inline unsigned long long bits_of(double a) { return emulation::bits<unsigned long long>(a); }

#endif

// A number in working precision on which arithmetic is exactly that of IEEE 754.
struct Real {
    T value;
};
__device__ __forceinline__ Real operator+(Real a, Real b) { return {add(a.value, b.value)}; }
__device__ __forceinline__ Real operator-(Real a, Real b) { return {subtract(a.value, b.value)}; }
__device__ __forceinline__ Real operator*(Real a, Real b) { return {multiply(a.value, b.value)}; }
__device__ __forceinline__ Real operator/(Real a, Real b) { return {divide(a.value, b.value)}; }
__device__ __forceinline__ bool operator<(Real a, Real b) { return less(a.value, b.value); }
__device__ __forceinline__ bool operator>(Real a, Real b) { return less(b.value, a.value); }
// The smaller and the larger of two; of a NaN and a number, the number.
__device__ __forceinline__ Real minimum(Real a, Real b) { return {minimum_of(a.value, b.value)}; }
__device__ __forceinline__ Real maximum(Real a, Real b) { return {maximum_of(a.value, b.value)}; }

// A float or double in working precision.
template <class From>
__device__ __forceinline__ Real real(From value) {
    Real result;
    convert(value, result.value);
    return result;
}

// Element types as launchers pass them (`_device.dtype_code`), so that arrays are converted where they are read: no
// launch for it, and no flushing.
enum { FLOAT64, FLOAT32, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 };

// Element i of an array, converted to working precision; exact wherever `working_dtype` chose the precision.
__device__ __forceinline__ Real load(const void* array, long long i, long long dtype) {
    switch (dtype) {
        case FLOAT64: return real(((const double*)array)[i]);
        case FLOAT32: return real(((const float*)array)[i]);
        case FLOAT16: return real(from_float16(((const unsigned short*)array)[i]));
        case INT8: return {(T)((const signed char*)array)[i]};
        case INT16: return {(T)((const short*)array)[i]};
        case INT32: return {(T)((const int*)array)[i]};
        case INT64: return {(T)((const long long*)array)[i]};
        case UINT8: return {(T)((const unsigned char*)array)[i]};
        case UINT16: return {(T)((const unsigned short*)array)[i]};
        case UINT32: return {(T)((const unsigned*)array)[i]};
        default: return {(T)((const unsigned long long*)array)[i]};
    }
}
