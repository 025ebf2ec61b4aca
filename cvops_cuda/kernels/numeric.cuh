// What every kernel file begins with. The loader puts the text of an included file in the place of the line that
// includes it, because CuPy's cache would not notice a change of that file. What begins with CVOPS_ comes from
// _constants.py.
//
// CuPy compiles with -ftz=true, which flushes subnormal floats in +, -, *, /, min, max and comparisons, intrinsics such
// as __fmul_rn included; and the compiler may fuse a * b + c. Either can flip a decision (a box kept or not). So what
// decides something is computed on `Real`, whose operators are single PTX instructions without .ftz, rounded once each:
// exactly what IEEE 754 and the CPU backend do. The second half of each #ifdef is for the tests, which compile this
// same text for the host.

// 16-bit numbers are only stored.
struct Float16 {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

// What the module reads and writes, and the working precision: float, or double for double. (A macro T would break
// NVRTC's own templates.)
using Element = ELEMENT;
template <class From>
struct Working {
    using Type = float;
};
template <>
struct Working<double> {
    using Type = double;
};
using T = Working<Element>::Type;

#ifdef __CUDACC__

#define SHARED(TYPE, name) __shared__ TYPE name
#define PAUSE() __nanosleep(20)

#define BINARY(name, instruction, type, letter)                                 \
    __device__ __forceinline__ type name(type a, type b) {                      \
        type c;                                                                 \
        asm(instruction " %0, %1, %2;" : "=" letter(c) : letter(a), letter(b)); \
        return c;                                                               \
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

#define UNARY(name, instruction, type, letter)                   \
    __device__ __forceinline__ type name(type a) {               \
        type b;                                                  \
        asm(instruction " %0, %1;" : "=" letter(b) : letter(a)); \
        return b;                                                \
    }
#define INTEGER(type, instruction, letter)                    \
    __device__ __forceinline__ long long integer_of(type a) { \
        long long b;                                          \
        asm(instruction " %0, %1;" : "=l"(b) : letter(a));    \
        return b;                                             \
    }
INTEGER(float, "cvt.rzi.s64.f32", "f")
INTEGER(double, "cvt.rzi.s64.f64", "d")
#undef INTEGER

UNARY(floor_of, "cvt.rmi.f32.f32", float, "f")
UNARY(floor_of, "cvt.rmi.f64.f64", double, "d")
UNARY(ceiling_of, "cvt.rpi.f32.f32", float, "f")
UNARY(ceiling_of, "cvt.rpi.f64.f64", double, "d")
#undef UNARY

__device__ __forceinline__ float fused(float a, float b, float c) {
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
    return d;
}
__device__ __forceinline__ double fused(double a, double b, double c) {
    double d;
    asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(d) : "d"(a), "d"(b), "d"(c));
    return d;
}

// What nobody writes while the kernel runs: such reads need not wait for writes to other memory.
__device__ __forceinline__ Float16 read_only(const Float16* from) { return {__ldg(&from->bits)}; }
__device__ __forceinline__ BFloat16 read_only(const BFloat16* from) { return {__ldg(&from->bits)}; }
template <class Type>
__device__ __forceinline__ Type read_only(const Type* from) {
    return __ldg(from);
}

__device__ __forceinline__ bool less(float a, float b) {
    int yes;
    asm("{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.s32 %0, 1, 0, p; }" : "=r"(yes) : "f"(a), "f"(b));
    return yes;
}
__device__ __forceinline__ bool less(double a, double b) { return a < b; }
__device__ __forceinline__ bool is_nan(float a) {
    int yes;
    asm("{ .reg .pred p; setp.nan.f32 p, %1, %1; selp.s32 %0, 1, 0, p; }" : "=r"(yes) : "f"(a));
    return yes;
}
__device__ __forceinline__ bool is_nan(double a) { return a != a; }

__device__ __forceinline__ void convert(float a, float& b) { b = a; }
__device__ __forceinline__ void convert(double a, double& b) { b = a; }
__device__ __forceinline__ void convert(float a, double& b) { asm("cvt.f64.f32 %0, %1;" : "=d"(b) : "f"(a)); }
__device__ __forceinline__ void convert(double a, float& b) { asm("cvt.rn.f32.f64 %0, %1;" : "=f"(b) : "d"(a)); }
__device__ __forceinline__ float from_float16(unsigned short bits) {
    float a;
    asm("cvt.f32.f16 %0, %1;" : "=f"(a) : "h"(bits));
    return a;
}
__device__ __forceinline__ unsigned short to_float16(float a) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a));
    return bits;
}
__device__ __forceinline__ float with_bits(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double with_bits(unsigned long long bits) { return __longlong_as_double(bits); }
__device__ __forceinline__ unsigned bits_of(float a) { return __float_as_uint(a); }
__device__ __forceinline__ unsigned long long bits_of(double a) { return __double_as_longlong(a); }

#else

#define BINARY(name, expression)                               \
    inline float name(float a, float b) { return expression; } \
    inline double name(double a, double b) { return expression; }
BINARY(add, a + b)
BINARY(subtract, a - b)
BINARY(multiply, a* b)
BINARY(divide, a / b)
BINARY(minimum_of, b < a || a != a ? b : a)
BINARY(maximum_of, b > a || a != a ? b : a)
#undef BINARY
inline long long integer_of(double a) { return (long long)a; }
inline float floor_of(float a) { return std::floor(a); }
inline double floor_of(double a) { return std::floor(a); }
inline float ceiling_of(float a) { return std::ceil(a); }
inline double ceiling_of(double a) { return std::ceil(a); }
inline float fused(float a, float b, float c) { return a * b + c; }
inline double fused(double a, double b, double c) { return a * b + c; }
template <class Type>
Type read_only(const Type* from) {
    return *from;
}
inline bool less(double a, double b) { return a < b; }
inline bool is_nan(double a) { return a != a; }
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
inline unsigned short to_float16(float a) {
    unsigned sign = emulation::bits<unsigned>(a) >> 16 & 0x8000;
    double size = std::fabs(a);
    if (size != size) return 0x7FFF;
    int exponent = size < 0x1p-14 ? -14 : std::ilogb(std::min(size, 0x1p16));
    double units = std::nearbyint(std::ldexp(std::min(size, 0x1p16), 10 - exponent));  // to even, as the GPU does
    return sign | (unsigned)std::min(units + 1024 * (exponent + 14), 0x1p10 * 31);
}
inline float with_bits(unsigned bits) { return emulation::bits<float>(bits); }
inline double with_bits(unsigned long long bits) { return emulation::bits<double>(bits); }
inline unsigned bits_of(float a) { return emulation::bits<unsigned>(a); }
inline unsigned long long bits_of(double a) { return emulation::bits<unsigned long long>(a); }

#endif

// bfloat16 is the upper half of a float32.
__device__ __forceinline__ float from_bfloat16(unsigned short bits) { return with_bits((unsigned)bits << 16); }
__device__ __forceinline__ unsigned short to_bfloat16(float a) {
    unsigned bits = bits_of(a);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

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

// Whole numbers, as numbers and as integers (what is left of the fraction being cut off).
__device__ __forceinline__ long long integer_of(Real a) { return integer_of(a.value); }
__device__ __forceinline__ Real floor_of(Real a) { return {floor_of(a.value)}; }
__device__ __forceinline__ Real ceiling_of(Real a) { return {ceiling_of(a.value)}; }
// a * b + c, which a GPU rounds once and a test twice: not for decisions.
__device__ __forceinline__ Real fused(Real a, Real b, Real c) { return {fused(a.value, b.value, c.value)}; }
__device__ __forceinline__ bool is_nan(Real a) { return is_nan(a.value); }

// A float or double in working precision.
template <class From>
__device__ __forceinline__ Real real(From value) {
    Real result;
    convert(value, result.value);
    return result;
}

// Element types as launchers pass them (`_device.dtype_code`), so that arrays are converted where they are read: no
// launch for it, and no flushing.
enum { FLOAT64, FLOAT32, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BFLOAT16 };

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
        case BFLOAT16: return real(from_bfloat16(((const unsigned short*)array)[i]));
        default: return {(T)((const unsigned long long*)array)[i]};
    }
}

// Elements to working precision and back, rounded to nearest, ties to even.
__device__ __forceinline__ Real widen(double element) { return real(element); }
__device__ __forceinline__ Real widen(float element) { return real(element); }
__device__ __forceinline__ Real widen(Float16 element) { return real(from_float16(element.bits)); }
__device__ __forceinline__ Real widen(BFloat16 element) { return real(from_bfloat16(element.bits)); }

__device__ __forceinline__ void narrow(Real value, double& element) { convert(value.value, element); }
__device__ __forceinline__ void narrow(Real value, float& element) { convert(value.value, element); }
__device__ __forceinline__ void narrow(Real value, Float16& element) {
    float single;
    convert(value.value, single);
    element.bits = to_float16(single);
}
__device__ __forceinline__ void narrow(Real value, BFloat16& element) {
    float single;
    convert(value.value, single);
    element.bits = to_bfloat16(single);
}
__device__ __forceinline__ Element narrow(Real value) {
    Element element;
    narrow(value, element);
    return element;
}
