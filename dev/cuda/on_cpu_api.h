/*
The interface of on_cpu.h, which includes this file: what a kernel may call, launches, and the
runtime API. Names, arguments and meaning are CUDA's; what they do here is in on_cpu.h.
*/
#pragma once

namespace on_cpu {
// ---- numbers
template <class To, class From> To bits(From f) {
    static_assert(sizeof(To) == sizeof(From), "a change of type alone");
    To t;
    memcpy(&t, &f, sizeof(t));
    return t;
}
// A small float of e exponent and m mantissa bits. e4m3: no infinity, one NaN.
inline float small_float(unsigned code, int e, int m, bool e4m3) {
    const int bias = (1 << (e - 1)) - 1, exponent = code >> m & ((1 << e) - 1),
              mantissa = code & ((1 << m) - 1);
    float f = exponent ? ldexpf((float)(mantissa + (1 << m)), exponent - bias - m)
                       : ldexpf((float)mantissa, 1 - bias - m);
    if (e4m3 ? (code & 0x7f) == 0x7f : exponent == (1 << e) - 1)
        f = mantissa == 0 && !e4m3 ? INFINITY : NAN;
    return code >> (e + m) & 1 ? -f : f;
}
inline float bf16_float(uint16_t h) { return bits<float>((uint32_t)h << 16); }
inline float fp16_float(uint16_t h) { return small_float(h, 5, 10, false); }

// ---- conversions as a kernel makes them (PTX ISA, cvt and mul.ftz): a NaN is all ones without a
// sign, in FP8 0x7f; bf16 keeps denormals; FP8 saturates, so that infinities become the largest
// number. In whole numbers, apart from the trainer's own code. The code of a magnitude, rounded to
// nearest even: how many of the format's units at this exponent, a carry moving on to the next.
inline unsigned float_code(float f, int m, int bias) {
    const uint32_t a = bits<uint32_t>(f) & 0x7fffffff, one = a >> 23 ? 0x800000 : 0,
                   mantissa = (a & 0x7fffff) | one;
    const int exponent = std::max((int)(a >> 23), 1) - 127, least = 1 - bias,
              at = std::max(exponent, least);
    // Bits below a unit; denormals of the format share the least exponent.
    const int drop = std::min(23 - m + at - exponent, 30);
    const uint32_t units = mantissa >> drop, rest = mantissa & ((1u << drop) - 1),
                   half = 1u << (drop - 1);
    return (units + (rest > half || (rest == half && units % 2)) + ((unsigned)(at - least) << m));
}
inline bool is_nan(float f) { return (bits<uint32_t>(f) & 0x7fffffff) > 0x7f800000; }
inline unsigned sign_of(float f) { return bits<uint32_t>(f) >> 31; }
inline unsigned fp8_code(float f, int m, int bias, unsigned largest) {
    if (is_nan(f)) return 0x7f;
    return std::min(isinf(f) ? largest : float_code(f, m, bias), largest) | sign_of(f) << 7;
}
} // namespace on_cpu
inline uint16_t cvt_bf16(float f) {
    if (on_cpu::is_nan(f)) return 0x7fff;
    return (uint16_t)(isinf(f) ? 0x7f80 | on_cpu::sign_of(f) << 15
                               : on_cpu::float_code(f, 7, 127) | on_cpu::sign_of(f) << 15);
}
inline uint32_t cvt_bf16x2(float low, float high) {
    return cvt_bf16(low) | (uint32_t)cvt_bf16(high) << 16;
}
inline uint16_t cvt_fp16(float f) {
    if (on_cpu::is_nan(f)) return 0x7fff;
    return (uint16_t)((isinf(f) ? 0x7c00 : std::min(on_cpu::float_code(f, 10, 15), 0x7c00u)) |
                      on_cpu::sign_of(f) << 15);
}
inline float cvt_from_fp16(uint16_t h) { return on_cpu::fp16_float(h); }
inline uint16_t cvt_e4m3x2(float low, float high) {
    return (uint16_t)(on_cpu::fp8_code(low, 3, 7, 0x7e) | on_cpu::fp8_code(high, 3, 7, 0x7e) << 8);
}
inline uint16_t cvt_e5m2x2(float low, float high) {
    return (uint16_t)(on_cpu::fp8_code(low, 2, 15, 0x7b) | on_cpu::fp8_code(high, 2, 15, 0x7b)
                                                               << 8);
}
inline float denormal_flush(float f) {
    const uint32_t u = on_cpu::bits<uint32_t>(f);
    return (u & 0x7f800000) == 0 ? on_cpu::bits<float>(u & 0x80000000) : f;
}
namespace on_cpu {
// ---- collectives of a warp
struct Exchange {
    uint64_t value, result;
    unsigned source;
};
inline void shuffle_combine(void **lanes, unsigned mask) {
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        Exchange *to = (Exchange *)lanes[l];
        const unsigned from = to->source;
        ON_CPU_EXPECT(from < 32 && mask >> from & 1,
                      "lane %u shuffles from lane %u, which is not in the mask %08x", l, from,
                      mask);
        to->result = ((Exchange *)lanes[from])->value;
    }
}
template <class T> T shuffle(unsigned mask, T value, unsigned source) {
    Exchange e = {0, 0, source};
    memcpy(&e.value, &value, sizeof(T));
    collective(mask, shuffle_combine, &e);
    memcpy(&value, &e.result, sizeof(T));
    return value;
}
template <class T, T (*pair)(T, T)> void reduce_combine(void **lanes, unsigned mask) {
    const int first = __builtin_ctz(mask);
    T sum = *(T *)lanes[first];
    for (int l = first + 1; l < 32; l++)
        if (mask >> l & 1) sum = pair(sum, *(T *)lanes[l]);
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) *(T *)lanes[l] = sum;
}
template <class T, T (*pair)(T, T)> T reduce(unsigned mask, T value) {
    collective(mask, reduce_combine<T, pair>, &value);
    return value;
}
template <class T> T pair_add(T a, T b) { return a + b; }
template <class T> T pair_max(T a, T b) { return a > b ? a : b; }
template <class T> T pair_min(T a, T b) { return a < b ? a : b; }
template <class T> T pair_or(T a, T b) { return a | b; }
template <class T> T pair_and(T a, T b) { return a & b; }

// ---- matrix fragments. Lane l = 4 g + t holds: of a (16 x 16) rows g and g + 8, columns 2t, 2t +
// 1 and those + 8; of b (16 x 8) the same k, column g; of d (16 x 8) rows g and g + 8, columns 2t,
// 2t + 1.
struct Mma {
    float *d;
    const uint32_t *a, *b;
};
template <float (*decode)(uint16_t)> void mma_combine(void **lanes, unsigned mask) {
    float a[16][16], b[16][8];
    ON_CPU_EXPECT(mask == ~0u, "mma needs a whole warp");
    for (int l = 0; l < 32; l++) {
        const Mma *m = (const Mma *)lanes[l];
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++)
            a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] =
                decode((uint16_t)(m->a[i / 2] >> i % 2 * 16));
        for (int i = 0; i < 4; i++)
            b[2 * t + i % 2 + i / 2 * 8][g] = decode((uint16_t)(m->b[i / 2] >> i % 2 * 16));
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            float *d = &((const Mma *)lanes[l])->d[i];
            for (int k = 0; k < 16; k++)
                *d = a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2] + *d;
        }
}
struct Ldmatrix {
    uint32_t *r;
    const void *row;
};
template <bool trans> void ldmatrix_combine(void **lanes, unsigned mask) {
    ON_CPU_EXPECT(mask == ~0u, "ldmatrix needs a whole warp");
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            uint16_t two[2];
            for (int i = 0; i < 2; i++) {
                const int row = trans ? l % 4 * 2 + i : l / 4,
                          column = trans ? l / 4 : l % 4 * 2 + i;
                memcpy(&two[i],
                       (const char *)((const Ldmatrix *)lanes[8 * m + row])->row + 2 * column, 2);
            }
            ((const Ldmatrix *)lanes[l])->r[m] = two[0] | (uint32_t)two[1] << 16;
        }
}
template <bool trans> void ldmatrix(uint32_t *r, const void *row) {
    Ldmatrix l = {r, row};
    ON_CPU_EXPECT((uintptr_t)row % 16 == 0, "ldmatrix: a row at %p is not 16-byte aligned", row);
    ON_CPU_EXPECT(in_shared(row, 16), "ldmatrix: a row at %p is not in shared memory", row);
    collective(~0u, ldmatrix_combine<trans>, &l);
}

// ---- launches
inline std::map<const void *, size_t> shared_allowed; // by cudaFuncSetAttribute
// An argument as the kernel's parameter; NULL may come as a whole number.
template <class P, class A> P argument(A a) {
    if constexpr (std::is_pointer_v<P> && std::is_integral_v<A>) return (P)(uintptr_t)a;
    else if constexpr (std::is_pointer_v<P> && !std::is_null_pointer_v<A>)
        return ON_CPU_EXPECT(!a || in_device((const void *)a) || in_pinned((const void *)a),
                             "is given the host's pointer %p", (const void *)a),
               a;
    else return static_cast<P>(a);
}
template <class... P, class... A>
void launch(const char *name, const char *file, int line, void (*function)(P...), dim3 grid,
            dim3 block, size_t shared, const void *stream, A... arguments) {
    static_assert(sizeof...(P) == sizeof...(A),
                  "a launch needs as many arguments as the kernel has parameters");
    const void *key = (const void *)function;
    Kernel k = {name, file, line, grid, block, shared, {}};
    kernel = &k;
    const size_t threads_each = (size_t)block.x * block.y * block.z,
                 limit = shared_allowed.count(key) ? shared_allowed[key] : 48 << 10;
    ON_CPU_EXPECT(threads_each >= 1 && threads_each <= 1024 && block.z <= 64,
                  "a block of %u x %u x %u threads", block.x, block.y, block.z);
    ON_CPU_EXPECT(grid.x >= 1 && grid.x < 1u << 31 && grid.y >= 1 && grid.y < 65536 &&
                      grid.z >= 1 && grid.z < 65536,
                  "a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    ON_CPU_EXPECT(shared <= limit,
                  "%zu bytes of dynamic shared memory, %zu are allowed (cudaFuncSetAttribute)",
                  shared, limit);
    std::tuple<P...> values(argument<P>(arguments)...);
    k.body = [=] { std::apply(function, values); };
    kernel = NULL;
    submit(stream, [k] { run_kernel(k); });
}
} // namespace on_cpu
#define LAUNCH(function, grid, block, shared, stream, ...)                                         \
    on_cpu::launch(#function, __FILE__, __LINE__, function, dim3(grid), dim3(block), shared,       \
                   stream, ##__VA_ARGS__)

// ---- the built-in functions of a kernel
#define __syncthreads() on_cpu::barrier(__LINE__)
#define ON_CPU_ALL      0xffffffffu
inline void __syncwarp(unsigned mask = ON_CPU_ALL) {
    on_cpu::collective(
        mask, [](void **, unsigned) {}, NULL);
}
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    return on_cpu::shuffle(mask, v,
                           (on_cpu::lane_id() & ~(unsigned)(width - 1)) |
                               ((unsigned)source & (unsigned)(width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    const unsigned lane = on_cpu::lane_id(), from = lane ^ (unsigned)with;
    return on_cpu::shuffle(mask, v, from > (lane | (unsigned)(width - 1)) ? lane : from);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const unsigned lane = on_cpu::lane_id(), from = lane + by;
    return on_cpu::shuffle(mask, v, from > (lane | (unsigned)(width - 1)) ? lane : from);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const unsigned lane = on_cpu::lane_id();
    return on_cpu::shuffle(mask, v, lane < (lane & ~(unsigned)(width - 1)) + by ? lane : lane - by);
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
    return on_cpu::reduce<unsigned, on_cpu::pair_or>(mask, yes ? 1u << on_cpu::lane_id() : 0u);
}
inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, !yes) == 0; }
template <class T> T __reduce_add_sync(unsigned mask, T v) {
    return on_cpu::reduce<T, on_cpu::pair_add>(mask, v);
}
template <class T> T __reduce_max_sync(unsigned mask, T v) {
    return on_cpu::reduce<T, on_cpu::pair_max>(mask, v);
}
template <class T> T __reduce_min_sync(unsigned mask, T v) {
    return on_cpu::reduce<T, on_cpu::pair_min>(mask, v);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
    return on_cpu::reduce<unsigned, on_cpu::pair_or>(mask, v);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) {
    return on_cpu::reduce<unsigned, on_cpu::pair_and>(mask, v);
}
// Whole numbers only: the order in which a GPU adds is not fixed.
#define ON_CPU_ATOMIC(name, result)                                                                \
    template <class T, class V> T name(T *at, V by) {                                              \
        static_assert(std::is_integral_v<T>, #name ": whole numbers only");                        \
        const T old = *at, v = (T)by;                                                              \
        *at = result;                                                                              \
        return old;                                                                                \
    }
ON_CPU_ATOMIC(atomicAdd, old + v)
ON_CPU_ATOMIC(atomicSub, old - v)
ON_CPU_ATOMIC(atomicMax, old > v ? old : v)
ON_CPU_ATOMIC(atomicMin, old < v ? old : v)
ON_CPU_ATOMIC(atomicOr, old | v)
ON_CPU_ATOMIC(atomicAnd, old &v)
ON_CPU_ATOMIC(atomicExch, (void(old), v))
ON_CPU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
template <class T> T atomicCAS(T *at, T expected, T v) {
    const T old = *at;
    if (old == expected) *at = v;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> void __stcs(T *p, T v) { *p = v; }
template <class T> void __stcg(T *p, T v) { *p = v; }
inline unsigned __float_as_uint(float f) { return on_cpu::bits<unsigned>(f); }
inline int __float_as_int(float f) { return on_cpu::bits<int>(f); }
inline float __uint_as_float(unsigned u) { return on_cpu::bits<float>(u); }
inline float __int_as_float(int u) { return on_cpu::bits<float>(u); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline int __float2int_rn(float a) { return (int)rintf(a); }
inline int __popc(unsigned u) { return __builtin_popcount(u); }
inline int __ffs(int u) { return __builtin_ffs(u); }
inline int __clz(int u) { return u ? __builtin_clz((unsigned)u) : 32; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
    const uint64_t both = a | (uint64_t)b << 32;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = select >> 4 * i & 0xf, byte = (unsigned)(both >> 8 * (s & 7)) & 0xff;
        r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return r;
}
#define ON_CPU_MINMAX(name, f, is)                                                                 \
    template <class A, class B> constexpr std::common_type_t<A, B> name(A a, B b) {                \
        using T = std::common_type_t<A, B>;                                                        \
        if constexpr (std::is_same_v<T, float>) return f((T)a, (T)b);                              \
        else return (T)a is(T) b ? (T)a : (T)b;                                                    \
    }
ON_CPU_MINMAX(min, fminf, <)
ON_CPU_MINMAX(max, fmaxf, >)

// ---- matrix units and asynchronous copies: the trainer's wrappers of PTX
inline void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    on_cpu::Mma m = {d, a, b};
    on_cpu::collective(ON_CPU_ALL, on_cpu::mma_combine<on_cpu::bf16_float>, &m);
}
inline void mma_m16n8k16_fp16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    on_cpu::Mma m = {d, a, b};
    on_cpu::collective(ON_CPU_ALL, on_cpu::mma_combine<on_cpu::fp16_float>, &m);
}
#if defined(PRECISION) && PRECISION == 1 // the stored type's
inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_m16n8k16_fp16(d, a, b);
}
#else
inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_m16n8k16_bf16(d, a, b);
}
#endif
inline uint64_t device_nanoseconds() { return on_cpu::nanoseconds(); }
inline void ldmatrix_x4(uint32_t r[4], const void *row) { on_cpu::ldmatrix<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) { on_cpu::ldmatrix<true>(r, row); }
// Zeros land at once, so that a barrier missing before them shows; a wait missing behind zeros does
// not. Everything else lands as late as may be.
inline void cp_async16(void *shared, const void *global, int bytes = 16) {
    ON_CPU_EXPECT((uintptr_t)shared % 16 == 0 && (uintptr_t)global % 16 == 0,
                  "cp.async: %p or %p is not 16-byte aligned", shared, global);
    ON_CPU_EXPECT(on_cpu::in_shared(shared, 16) && (bytes == 0 || on_cpu::in_device(global)),
                  "cp.async: not from device memory (%p) to shared (%p)", global, shared);
    ON_CPU_EXPECT(bytes == 0 || bytes == 16, "cp.async: %d bytes of 16", bytes);
    if (bytes) on_cpu::self->copies.push_back({shared, global, on_cpu::self->groups});
    else memset(shared, 0, 16);
}
inline void cp_async_commit() { on_cpu::self->groups++; }
template <int N> void cp_async_wait() { // all groups but the last N land
    auto &copies = on_cpu::self->copies;
    size_t left = 0;
    for (auto &c : copies)
        if (c.group < on_cpu::self->groups - N) memcpy(c.to, c.from, 16);
        else copies[left++] = c;
    copies.resize(left);
}

// ---- the runtime API
// clang-format off
typedef enum {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101, cudaErrorNoKernelImageForDevice = 209,
    cudaErrorLaunchFailure = 719
} cudaError_t;
typedef enum {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
} cudaMemcpyKind;
typedef enum { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed } cudaStreamCaptureMode;
typedef enum {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9
} cudaFuncAttribute;
// clang-format on
typedef struct OnCpuStream *cudaStream_t;
typedef struct OnCpuEvent {
    double ms;
    on_cpu::Flag last; // its last record
} * cudaEvent_t;
typedef on_cpu::Graph *cudaGraph_t, *cudaGraphExec_t;
enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventDisableTiming = 2
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int regsPerBlock, warpSize, major, minor, multiProcessorCount, maxThreadsPerBlock,
        maxThreadsPerMultiProcessor, l2CacheSize, memoryBusWidth;
};
namespace on_cpu {
inline cudaError_t last_error;
inline cudaError_t error_set(cudaError_t e) { return last_error = e; }
inline int architecture() { // 90 for "9.0"
    const char *text = getenv("CUDA_ON_CPU_ARCH");
    return text ? (int)(atof(text) * 10 + 0.5) : 90;
}
inline void copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (kind != cudaMemcpyDefault)
        ON_CPU_EXPECT(
            in_device(to) == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
                in_device(from) ==
                    (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice),
            "cudaMemcpy: its kind is %d, and its pointers are %p, %p", kind, to, from);
    range_check(to, bytes, "cudaMemcpy"), range_check(from, bytes, "cudaMemcpy");
    device_open(true), memcpy(to, from, bytes), device_open(false);
}
inline void fill(void *p, int value, size_t bytes) {
    ON_CPU_EXPECT(in_device(p) || in_pinned(p), "cudaMemset: %p is the host's", p);
    range_check(p, bytes, "cudaMemset");
    device_open(true), memset(p, value, bytes), device_open(false);
}
inline double milliseconds() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}
} // namespace on_cpu
inline cudaError_t cudaMallocRaw(void **p, size_t bytes) {
    ON_CPU_EXPECT(!on_cpu::capture, "cudaMalloc() while a stream is captured");
    *p = on_cpu::device_allocate(bytes);
    return *p ? cudaSuccess : on_cpu::error_set(cudaErrorMemoryAllocation);
}
template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) {
    return cudaMallocRaw((void **)p, bytes);
}
inline cudaError_t cudaFree(void *p) {
    on_cpu::drain("cudaFree");
    if (!p) return cudaSuccess;
    ON_CPU_EXPECT(on_cpu::allocations.count((char *)p), "cudaFree: %p was not allocated", p);
    on_cpu::device_open(true), on_cpu::device_check();
    const size_t bytes = on_cpu::allocations[(char *)p];
    memset(p, 0xff, bytes);
    ON_CPU_SEAL(p, bytes);
    on_cpu::device_open(false);
    on_cpu::allocations.erase((char *)p), on_cpu::device_used -= bytes;
    return cudaSuccess;
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes, unsigned = 0) {
    *p = (T *)aligned_alloc(256, (bytes + 256) & ~(size_t)255);
    memset((void *)*p, 0xff, bytes), on_cpu::pinned[(const char *)*p] = bytes;
    return cudaSuccess;
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned) {
    return cudaMallocHost(p, bytes);
}
inline cudaError_t cudaFreeHost(void *p) {
    on_cpu::drain("cudaFreeHost");
    on_cpu::pinned.erase((const char *)p), free(p);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    return on_cpu::drain("cudaStreamSynchronize", on_cpu::stream_index(s)), cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    return on_cpu::drain("cudaDeviceSynchronize"), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return on_cpu::drain("cudaMemcpy"), on_cpu::copy(to, from, bytes, kind), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = NULL) {
    return on_cpu::submit(stream, [=] { on_cpu::copy(to, from, bytes, kind); }), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = NULL) {
    return on_cpu::submit(stream, [=] { on_cpu::fill(p, value, bytes); }), cudaSuccess;
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    return cudaMemsetAsync(p, value, bytes);
}
inline cudaError_t cudaStreamCreate(cudaStream_t *s) {
    static uintptr_t streams;
    ON_CPU_EXPECT(streams < on_cpu::STREAMS, "more than %d streams", on_cpu::STREAMS);
    return *s = (cudaStream_t)++streams, cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    return cudaStreamCreate(s);
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int) {
    return cudaStreamCreate(s);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    return on_cpu::stream_wait(s, e->last), cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = new OnCpuEvent(), cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    return on_cpu::drain("cudaEventDestroy"), delete e, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = NULL) {
    e->last = std::make_shared<bool>(false);
    on_cpu::submit(s, on_cpu::Op{[=] { e->ms = on_cpu::milliseconds(); }, {}, e->last});
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->last) on_cpu::drain("cudaEventSynchronize", on_cpu::STREAMS, e->last);
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    ON_CPU_EXPECT(a->last && *a->last && b->last && *b->last,
                  "cudaEventElapsedTime: an event has not happened");
    return *ms = (float)(b->ms - a->ms), cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    const cudaError_t e = on_cpu::last_error;
    return on_cpu::last_error = cudaSuccess, e;
}
inline cudaError_t cudaPeekAtLastError() { return on_cpu::last_error; }
inline const char *cudaGetErrorString(cudaError_t e) {
    static const std::map<int, const char *> names = {
        {cudaSuccess, "no error"},
        {cudaErrorMemoryAllocation, "out of memory"},
        {cudaErrorNoDevice, "no CUDA-capable device is detected"},
        {cudaErrorInvalidDevice, "invalid device ordinal"},
        {cudaErrorNoKernelImageForDevice, "no kernel image is available"}};
    return names.count(e) ? names.at(e) : "invalid argument";
}
inline const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = (int)on_cpu::setting("CUDA_ON_CPU_DEVICES", 1);
    return *n > 0 ? cudaSuccess : on_cpu::error_set(cudaErrorNoDevice);
}
inline int on_cpu_device;
inline cudaError_t cudaSetDevice(int i) {
    if (i >= on_cpu::setting("CUDA_ON_CPU_DEVICES", 1))
        return on_cpu::error_set(cudaErrorInvalidDevice);
    return on_cpu_device = i, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int *i) { return *i = on_cpu_device, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int *v) {
    return *v = (int)on_cpu::setting("CUDA_ON_CPU_DRIVER", 13000), cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int *v) { return *v = 13000, cudaSuccess; }
inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    return *total = (size_t)on_cpu::setting("CUDA_ON_CPU_MEMORY", 4096) << 20,
           *free_bytes = *total - on_cpu::device_used, cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = {};
    snprintf(p->name, sizeof(p->name), "CPU harness");
    p->totalGlobalMem = (size_t)on_cpu::setting("CUDA_ON_CPU_MEMORY", 4096) << 20;
    p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = on_cpu::SHARED_MAX,
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->major = on_cpu::architecture() / 10, p->minor = on_cpu::architecture() % 10,
    p->multiProcessorCount = (int)on_cpu::setting("CUDA_ON_CPU_SMS", 4);
    p->regsPerBlock = 65536, p->warpSize = 32, p->maxThreadsPerBlock = 1024,
    p->maxThreadsPerMultiProcessor = 2048, p->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
struct cudaFuncAttributes {
    int binaryVersion;
};
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, F *) {
    if (on_cpu::setting("CUDA_ON_CPU_NO_CODE", 0))
        return on_cpu::error_set(cudaErrorNoKernelImageForDevice);
    return a->binaryVersion = on_cpu::architecture(), cudaSuccess;
}
template <class F> cudaError_t cudaFuncSetAttribute(F *function, cudaFuncAttribute a, int value) {
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if ((size_t)value > on_cpu::SHARED_MAX) return on_cpu::error_set(cudaErrorInvalidValue);
    return on_cpu::shared_allowed[(const void *)function] = (size_t)value, cudaSuccess;
}
template <class F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, F *, int threads, size_t shared) {
    return *n = std::max(1, std::min(2048 / threads, (int)((228 << 10) / (shared + 1024)))),
           cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    ON_CPU_EXPECT(s && !on_cpu::capture,
                  "cudaStreamBeginCapture: the default stream, or while another is captured");
    on_cpu::capture = new on_cpu::Graph();
    on_cpu::capture->origin = on_cpu::stream_index(s);
    on_cpu::capture->taken[on_cpu::stream_index(s)] = true;
    for (bool &joined : on_cpu::capture->joined) joined = true;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g) {
    ON_CPU_EXPECT(on_cpu::capture, "cudaStreamEndCapture: nothing is captured");
    for (int i = 0; i < on_cpu::STREAMS; i++)
        ON_CPU_EXPECT(i == on_cpu::capture->origin || on_cpu::capture->joined[i],
                      "cudaStreamEndCapture: stream %d has work that nothing waits for", i);
    return *g = on_cpu::capture, on_cpu::capture = NULL, cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long = 0) {
    return *e = new on_cpu::Graph(*g), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    ON_CPU_EXPECT(on_cpu::stream_index(s) == e->origin, "cudaGraphLaunch: another stream than the "
                                                        "one that was captured");
    return on_cpu::graph_launch(e), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete g, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return delete e, cudaSuccess; }
