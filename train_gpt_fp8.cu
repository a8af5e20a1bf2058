/*
Trains a GPT-2 style transformer on NVIDIA GPUs. The matrix products of its linear layers run on
FP8 tensor cores with tracked scales, as in "FP8 Formats for Deep Learning" (Micikevicius et al.
2022, arXiv 2209.05433). The same file also builds as FP16, BF16 and FP32, so that two loss curves
differ by nothing but the precision.

    make cuda && ./train_gpt_fp8cu           # a byte-level model on the embedded corpus
    ./train_gpt_fp8cu --help                 # every option
    ./train_gpt_fp8cu -e d12 -t 1024 -b 16 -i shards.bin

The page "How FP8 training works" is at the top of train_gpt_fp8.c. This file is that one for a GPU:
the same sections, options, files and logs, and the same names for the same host functions, to be
read side by side. A checkpoint goes from one to the other. What differs:

The kernel that writes a linear layer's input (layernorm, attention, GELU) or the gradient of its
output also writes the FP8 bytes, with the scale that earlier steps left, and counts what becomes of
them. A tensor that has to be whole first, for its own amax, its blocks or an SQNR, is written and
then quantized in a second pass (operand_fuses(), section 6). Weights become bytes once a step
(gpt_refresh_weights(), section 8).

Products are cuBLASLt's (section 15). It wants the dimension K, which is summed over, contiguous in
both FP8 operands. So dy and w are written in both directions, and x is turned for wgrad:
                     forward pass writes         backward pass reads
    x of qkv, fc     bytes                       them turned (--recompute: made again, turned)
    x of fcproj      bytes, and turned ones      the turned ones (--recompute: made again)
    x of attproj     bytes, and the bf16 tensor  bytes made again of the tensor, turned
    x in blocks      bytes, and turned ones      the turned ones, but for attproj

Nothing in a step waits for the host, so a step consists of CUDA graphs: one for the weights' bytes,
one for the first micro-batch, one for each other, one for the update (gpt_step(), section 9). With
several processes, a GPU each, the graph of a shard's last micro-batch has a branch: as soon as the
gradients of a matrix are made, they go from all to all through NCCL (section 17), on a second
stream, under the backward pass of what comes next.

What this file refuses to do: dropout, other architectures, GPUs before Ampere, splitting a model
over GPUs (data parallelism it has).

Bits: bytes, scales and statistics are those of the C file for the same tensor, and the same seed,
data and --shards give the same parameters from run to run on GPUs of one kind, for any number of
processes and across a resume. No sum uses floating-point atomics; every one has a fixed order.

Part one, the trainer: 1 precision, 2 utilities, 3 FP8 formats, 4 scales and recipes, 5 matrix
product, 6 linear layers, 7 other layers, 8 model, 9 optimizer and step.

Part two, the program, the same text in train_gpt_fp8.c: 10 data, 11 checkpoint, 12 log, 13 options,
14 training loop.

Part three, speed: 15 the fast product, 16 the machine, 17 processes.
*/
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifndef CUDA_ON_CPU // else dev/cuda/on_cpu.h runs the kernels on the CPU, for tests
#include <cublasLt.h>
#include <cuda_runtime.h>
#if CUDART_VERSION < 12090
#error "the scale modes of FP8 products need CUDA 12.9 or newer"
#endif
#ifdef USE_NCCL
#include <nccl.h>
#endif
#endif
#ifdef USE_MPI // with USE_NCCL
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#endif
// `make cuda` found cuDNN's headers; its library is opened when a run begins. It has no fp32; code
// for the device has no use for it.
#if defined(HAS_CUDNN) && !defined(__CUDA_ARCH__) && PRECISION != 3
#define USES_CUDNN
#ifndef CUDA_ON_CPU
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#include <cudnn_frontend.h>
#if CUDNN_FRONTEND_VERSION < 11400
#error "cuDNN's frontend has to be 1.14 or newer; make cuda USE_CUDNN=0 does without"
#endif
#endif
#endif
#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
#include <immintrin.h>
#endif
// Four builds share one text: what one of them leaves unused is used by another.
#pragma GCC diagnostic ignored "-Wunused-function"
#ifdef __CUDACC__
#pragma nv_diag_suppress 177
#endif

#define NUMERICS_VERSION 1 // of the C file, whose state files this one reads and writes

// #################################################################################################
// Part one: the trainer
// #################################################################################################

// ==== 1. precision ===============================================================================
// Roles: a *stored* tensor is the residual stream, a saved activation or the gradient of an
// activation; an *operand* is what a linear layer's product reads. Master weights,
// parameter gradients, logits and sums are fp32 always, moments by default.
#define PRECISION_FP8  0
#define PRECISION_FP16 1
#define PRECISION_BF16 2
#define PRECISION_FP32 3
#ifndef PRECISION
#define PRECISION PRECISION_FP8
#endif

typedef enum {
    DTYPE_FP32,
    DTYPE_BF16,
    DTYPE_FP16,
    DTYPE_E4M3,
    DTYPE_E5M2,
    DTYPE_E2M1, // two codes share a byte
    DTYPE_COUNT
} Dtype;
static const size_t dtype_size[DTYPE_COUNT] = {4, 2, 2, 1, 1, 1};

// The stored type, and its conversions among those of section 2; the type of an operand.
#define IS_FP8 (PRECISION == PRECISION_FP8)
#if PRECISION == PRECISION_FP32
#define PRECISION_NAME       "fp32"
#define STORED               DTYPE_FP32
#define float_from_stored(s) (s)
#define stored_from_float(f) (f)
typedef float stored_t, operand_t;
#elif PRECISION == PRECISION_FP16
#define PRECISION_NAME    "fp16"
#define STORED            DTYPE_FP16
#define float_from_stored float_from_fp16
#define stored_from_float fp16_from_float
#define PTX_STORED        "f16"
typedef uint16_t stored_t, operand_t;
#else
#define STORED            DTYPE_BF16
#define float_from_stored float_from_bf16
#define stored_from_float bf16_from_float
#define PTX_STORED        "bf16"
typedef uint16_t stored_t;
#if IS_FP8
#define PRECISION_NAME "fp8"
typedef uint8_t operand_t;
#else
#define PRECISION_NAME "bf16"
typedef uint16_t operand_t;
#endif
#endif

// ==== 2. utilities ===============================================================================
// Exit statuses, as --help prints them.
enum { EXIT_DONE = 0, EXIT_BAD_INPUT = 2, EXIT_NONFINITE = 3, EXIT_INTERRUPTED = 130 };

#ifndef PROGRAM
#define PROGRAM "train_gpt_" PRECISION_NAME "cu"
#endif
static struct { // processes that train together; local: this one's GPU; seconds that this waited
    int rank, size, local;
    double waited;
} world = {0, 1, 0, 0};
// One line on stderr, then the end. Callers name the file or option, what was expected, what was
// found, what to do. Rank 0 speaks first: what it says of all of them is said once.
__attribute__((noreturn, format(printf, 2, 3))) static void fatal(int status, const char *format,
                                                                  ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    if (world.rank > 0 && signal(SIGTERM, SIG_DFL) != SIG_ERR) sleep(3); // mpirun ends it
    fprintf(stderr, "%s: ", PROGRAM);
    if (world.rank > 0) fprintf(stderr, "rank %d: ", world.rank);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    _exit(status);
}

// Bad input ends the program before anything is lost.
#define EXPECT(condition, ...) ((condition) ? (void)0 : fatal(EXIT_BAD_INPUT, __VA_ARGS__))

#define MIN(a, b)    ((a) < (b) ? (a) : (b))
#define MAX(a, b)    ((a) > (b) ? (a) : (b))
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define INLINE       static __forceinline__ __host__ __device__ // for kernels and the host
INLINE size_t ceil_div(size_t n, size_t by) { return (n + by - 1) / by; }
INLINE size_t round_up(size_t n, size_t to) { return ceil_div(n, to) * to; }

// Zeroed host memory; ends the program if there is none.
static size_t memory_taken; // bytes so far
static void *memory_allocate(size_t bytes) {
    void *p = NULL;
    bytes = round_up(bytes + 1, 64);
    memory_taken += bytes;
    EXPECT(!posix_memalign(&p, 64, bytes), "out of memory: %.1f MiB more were needed",
           bytes / 1048576.0);
    memset(p, 0, bytes);
    return p;
}

template <class To, class From> INLINE To bits_as(From from) { // the same bits as another type
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
INLINE uint32_t float_bits(float f) { return bits_as<uint32_t>(f); }
INLINE float bits_float(uint32_t u) { return bits_as<float>(u); }
INLINE int float_is_finite(float f) { return (float_bits(f) & 0x7f800000) != 0x7f800000; }

// ---- PTX's own conversions, which kernels use
// They give the bits of the C file's rules with two exceptions (PTX ISA, cvt): every NaN becomes
// the positive one of all ones, and denormals of bf16 stay. No kernel makes denormals: fp32
// arithmetic flushes them (-ftz=true), and numbers from memory or from a matrix unit go through
// denormal_flush().
#ifdef CUDA_ON_CPU // on_cpu_api.h has the same by the same document
#define DEVICE static inline
#define IN_KERNEL(sm, statement)                                                                   \
    if (on_cpu::self && on_cpu::kernel_architecture >= sm) statement
#else
#ifdef __CUDA_ARCH__
#define IN_KERNEL(sm, statement)                                                                   \
    if (__CUDA_ARCH__ >= 10 * sm) statement
#else
#define IN_KERNEL(sm, statement) (void)0
#endif
#define DEVICE static __device__ __forceinline__
#define CVT(name, to, letter, instruction)                                                         \
    DEVICE to name(float f) {                                                                      \
        to r;                                                                                      \
        asm(instruction " %0, %1;" : letter(r) : "f"(f));                                          \
        return r;                                                                                  \
    }
#define CVT2(name, to, letter, instruction) /* the first in the low half */                        \
    DEVICE to name(float low, float high) {                                                        \
        to r;                                                                                      \
        asm(instruction " %0, %1, %2;" : letter(r) : "f"(high), "f"(low));                         \
        return r;                                                                                  \
    }
CVT(cvt_bf16, uint16_t, "=h", "cvt.rn.bf16.f32")
CVT(cvt_fp16, uint16_t, "=h", "cvt.rn.f16.f32")
CVT2(cvt_bf16x2, uint32_t, "=r", "cvt.rn.bf16x2.f32")
CVT2(cvt_e4m3x2, uint16_t, "=h", "cvt.rn.satfinite.e4m3x2.f32") // from sm_89 on
CVT2(cvt_e5m2x2, uint16_t, "=h", "cvt.rn.satfinite.e5m2x2.f32")
DEVICE float cvt_from_fp16(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE float denormal_flush(float f) { // a denormal becomes a 0 of its sign
    float r;
    asm("mul.ftz.f32 %0, %1, 0f3F800000;" : "=f"(r) : "f"(f));
    return r;
}
#endif

// bf16: round to nearest even, denormals flushed first, what vcvtneps2bf16 does. Any NaN becomes a
// quiet one.
INLINE uint16_t bf16_from_float(float f) {
    IN_KERNEL(80, return cvt_bf16(f));
    uint32_t u = float_bits(f), a = u & 0x7fffffff, r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    r = a < 0x00800000 ? (u >> 16) & 0x8000 : r;
    r = a > 0x7f800000 ? (u >> 16) | 0x40 : r;
    return (uint16_t)r;
}
INLINE float float_from_bf16(uint16_t h) { return bits_float((uint32_t)h << 16); }

// IEEE half, round to nearest even, denormal results kept: F16C's rules.
INLINE uint16_t fp16_from_float(float f) {
    IN_KERNEL(80, return cvt_fp16(f));
    uint32_t u = float_bits(f), a = u & 0x7fffffff,
             r = (a + 0xfff + ((a >> 13) & 1) - 0x38000000) >> 13;
    // ulp(0.5) = 2^-24, half's smallest denormal.
    uint32_t small = float_bits(bits_float(a) + 0.5f) - float_bits(0.5f);
    r = a < 0x38800000 ? small : r;
    r = a >= 0x477ff000 ? 0x7c00 : r; // 65520 and above round to Inf
    r = a > 0x7f800000 ? 0x7e00 | ((a >> 13) & 0x3ff) : r;
    return (uint16_t)(((u >> 16) & 0x8000) | r);
}
INLINE float float_from_fp16(uint16_t h) {
    IN_KERNEL(80, return cvt_from_fp16(h));
    uint32_t a = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16,
             r = a + (112u << 23);
    r = a < (1u << 23) ? float_bits(bits_float(a + (113u << 23)) - bits_float(113u << 23))
                       : r; // 0 and denormals
    r = a >= (31u << 23) ? a | 0x7f800000 | (a > (31u << 23) ? 0x400000 : 0) : r;
    return bits_float(sign | r);
}

// ---- the GPU
// Every kernel stands right above its launcher. A launch or call that fails ends the program with
// its name and line.
#ifndef CUDA_ON_CPU
#define SHARED __shared__
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(128) unsigned char name##_bytes[];                                 \
    type *name = (type *)name##_bytes
#define LAUNCH(kernel, grid, block, shared, stream, ...)                                           \
    do {                                                                                           \
        kernel<<<grid, block, shared, stream>>>(__VA_ARGS__);                                      \
        cuda_check(cudaGetLastError(), "kernel " #kernel, __FILE__, __LINE__);                     \
    } while (0)
#endif
static void cuda_check(cudaError_t error, const char *what, const char *file, int line) {
    if (error != cudaSuccess)
        fatal(EXIT_BAD_INPUT, "%s:%d: %s failed: %s", file, line, what, cudaGetErrorString(error));
}
static void lt_check(cublasStatus_t status, const char *what, const char *file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fatal(EXIT_BAD_INPUT, "%s:%d: %s failed: cuBLAS status %d", file, line, what, (int)status);
}
#define CUDA(call) cuda_check(call, #call, __FILE__, __LINE__)
#define LT(call)   lt_check(call, #call, __FILE__, __LINE__)

// The device, its streams, and cuBLASLt with a workspace of its own: if it were shared, bits
// would depend on the sharing.
#define LT_WORKSPACE ((size_t)32 << 20)
typedef struct {
    char name[256];
    // sm: 90 for compute capability 9.0. Versions are numbers as 13000. processors:
    // multiprocessors.
    int sm, driver, runtime, processors;
    int captures;     // a graph is being made
    int emulates;     // no FP8 units, or --emulate: FP8 products are computed from the same
                      // bytes in bf16
    size_t available; // bytes of device memory free at the start
    cudaStream_t stream, second; // the second one exchanges gradients
    cudaEvent_t event;           // of stream_follows()
    cublasLtHandle_t lt;
    void *lt_workspace;
} Machine;
static Machine machine;

static void device_wait(void) { CUDA(cudaStreamSynchronize(machine.stream)); }
// What `later` is given from now on begins when `earlier` has done what it was given.
static void stream_follows(cudaStream_t later, cudaStream_t earlier) {
    CUDA(cudaEventRecord(machine.event, earlier));
    CUDA(cudaStreamWaitEvent(later, machine.event, 0));
}
static void *device_allocate(size_t bytes) {
    void *p = NULL;
    if (bytes) CUDA(cudaMalloc(&p, bytes));
    return p;
}
static void device_zero(void *p, size_t bytes) {
    CUDA(cudaMemsetAsync(p, 0, bytes, machine.stream));
}
static void device_move(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes) CUDA(cudaMemcpyAsync(to, from, bytes, kind, machine.stream));
    device_wait();
}
static void device_write(void *to, const void *from, size_t bytes) {
    device_move(to, from, bytes, cudaMemcpyHostToDevice);
}
static void device_read(void *to, const void *from, size_t bytes) {
    device_move(to, from, bytes, cudaMemcpyDeviceToHost);
}
static void device_copy(void *to, const void *from, size_t bytes) {
    device_move(to, from, bytes, cudaMemcpyDeviceToDevice);
}

// ---- what kernels share
// A thread moves eight neighboring elements at a time: 16 bytes of a 16-bit tensor. Blocks are
// one-dimensional.
#define THREADS                256
#define KERNEL                 static __global__ void
#define KERNEL_OF(threads)     static __global__ void __launch_bounds__(threads)
#define STREAM                 machine.stream
#define RUN(kernel, grid, ...) LAUNCH(kernel, grid, THREADS, 0, STREAM, __VA_ARGS__)
#ifdef __CUDA_ARCH__ // arrays whose indices are constants then live in registers
#define UNROLL       _Pragma("unroll")
#define UNROLL_BY(n) PRAGMA(unroll n)
#define PRAGMA(...)  _Pragma(#__VA_ARGS__)
#else
#define UNROLL
#define UNROLL_BY(n)
#endif
// Loads several elements as one word. p is aligned as T is.
template <class T> INLINE T get(const void *p) {
#ifdef __CUDA_ARCH__
    return *(const T *)p;
#else
    T word;
    memcpy(&word, p, sizeof(T));
    return word;
#endif
}
template <class T> INLINE void put(void *p, T word) {
#ifdef __CUDA_ARCH__
    *(T *)p = word;
#else
    memcpy(p, &word, sizeof(T));
#endif
}
template <int N> INLINE void load_words(uint32_t *w, const void *p) { // N: 2, or a multiple of 4
    if (N % 4) {
        const uint2 u = get<uint2>(p);
        w[0] = u.x;
        w[1] = u.y;
    }
    UNROLL for (int i = 0; i < N / 4 * 4; i += 4) {
        const uint4 u = get<uint4>((const uint32_t *)p + i);
        w[i] = u.x;
        w[i + 1] = u.y;
        w[i + 2] = u.z;
        w[i + 3] = u.w;
    }
}
INLINE void load8(float *v, const float *p) {
    const float4 a = get<float4>(p), b = get<float4>(p + 4);
    v[0] = a.x;
    v[1] = a.y;
    v[2] = a.z;
    v[3] = a.w;
    v[4] = b.x;
    v[5] = b.y;
    v[6] = b.z;
    v[7] = b.w;
}
INLINE void store8(float *p, const float *v) {
    put(p, make_float4(v[0], v[1], v[2], v[3]));
    put(p + 4, make_float4(v[4], v[5], v[6], v[7]));
}
#if PRECISION == PRECISION_FP32
enum { WORDS = 8 }; // that eight stored numbers fill
INLINE void load2(float *v, const float *p) {
    v[0] = p[0];
    v[1] = p[1];
}
INLINE void pack8(uint32_t *w, const float *v) {
    UNROLL for (int i = 0; i < 8; i++) w[i] = float_bits(v[i]);
}
INLINE void unpack8(float *v, const uint32_t *w) {
    UNROLL for (int i = 0; i < 8; i++) v[i] = bits_float(w[i]);
}
#else
enum { WORDS = 4 };
INLINE void unpack8(float *v, const uint32_t *w) {
    UNROLL for (int i = 0; i < 4; i++) {
        v[2 * i] = float_from_stored(w[i] & 0xffff);
        v[2 * i + 1] = float_from_stored(w[i] >> 16);
    }
}
INLINE void load2(float *v, const stored_t *p) {
    const uint32_t w = get<uint32_t>(p);
    v[0] = float_from_stored(w & 0xffff);
    v[1] = float_from_stored(w >> 16);
}
INLINE uint32_t pack2(float low, float high) {
#if PRECISION != PRECISION_FP16
    IN_KERNEL(80, return cvt_bf16x2(low, high));
#endif
    return stored_from_float(low) | (uint32_t)stored_from_float(high) << 16;
}
INLINE void pack8(uint32_t *w, const float *v) {
    UNROLL for (int i = 0; i < 4; i++) w[i] = pack2(v[2 * i], v[2 * i + 1]);
}
INLINE void load8(float *v, const stored_t *p) {
    uint32_t w[4];
    load_words<4>(w, p);
    unpack8(v, w);
}
INLINE void store8(stored_t *p, const float *v) {
    uint32_t w[4];
    pack8(w, v);
#ifdef __CUDA_ARCH__ // nvcc makes four stores of it where it can
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
#else
    put(p, make_uint4(w[0], w[1], w[2], w[3]));
#endif
}
#endif

// Eight numbers to the stored type and back. Conversions of pairs are several times as fast.
INLINE void stored_round8(float *v) {
    uint32_t w[WORDS];
    pack8(w, v);
    unpack8(v, w);
}

// Sums over the threads of a warp, in a fixed order. Every thread gets the result.
template <class T> DEVICE T warp_sum(T v) {
    UNROLL for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
    return v;
}
DEVICE float warp_max(float v) {
    UNROLL for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, d));
    return v;
}
// The sum over a block. All its threads call it, and all get the result.
template <class T> DEVICE T block_sum(T v) {
    SHARED T warps[32];
    v = warp_sum(v);
    __syncthreads(); // the array may still be read from an earlier call
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = 0;
    for (unsigned w = 0; w < (blockDim.x + 31) / 32; w++) sum += warps[w];
    return sum;
}

// ---- random numbers: counter based, so that any thread may draw any element. mix64 is
// splitmix64's finalizer (Steele, Lea, Flood 2014).
INLINE uint64_t mix64(uint64_t z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
INLINE uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t counter) {
    return mix64(mix64(mix64(seed) ^ stream) ^ counter);
}
INLINE double random_unit(uint64_t bits) { return (double)(bits >> 11) * 0x1p-53; } // [0, 1)
// 32 random bits of element i under a key, for one rounding: two rounds of multiply and shift
// (constants by Wellons 2018), which compilers vectorize.
INLINE uint32_t random_u32(uint64_t key, uint32_t i) {
    i ^= (uint32_t)key;
    i = (i ^ i >> 16) * 0x7feb352d;
    i = ((i ^ i >> 15) + (uint32_t)(key >> 32)) * 0x846ca68b;
    return i ^ i >> 16;
}

// ==== 3. FP8 formats =============================================================================
// A value x is kept as the byte encode(x * scale) and read as decode(byte) * scale_inv (the page at
// the top of train_gpt_fp8.c).
typedef struct {
    int mantissa_bits, bias;
    uint32_t max_code;        // the code of the largest finite value
    float max;                // that value, FP8_MAX in the formulas below
    uint32_t saturated_above; // |x * scale| beyond these bits is cut: rounding alone would not
                              // bring it back to max
    uint32_t nan;             // what a NaN becomes
} Fp8Format;
INLINE Fp8Format fp8_format(Dtype d) {
    if (d == DTYPE_E5M2)
        // IEEE-like; >= 61440 is cut (the tie would go to Inf).
        return {2, 15, 0x7b, 57344.0f, 0x476fffff, 0x7f};
    if (d == DTYPE_E2M1) return {1, 1, 7, 6.0f, 0x40dfffff, 7}; // no NaN; 7 would tie to 8
    // E4M3: no infinities, 0x7F is NaN; > 464 is cut (464 itself ties to 448).
    return {3, 7, 0x7e, 448.0f, 0x43e80000, 0x7f};
}

INLINE float fp8_max(Dtype d) { return fp8_format(d).max; }

// The code of a magnitude, given by its bits, that is not beyond `saturated_above`; larger ones
// give a code above max_code.
INLINE uint32_t fp8_round_bits(uint32_t a, const Fp8Format *f) {
    const int shift = 23 - f->mantissa_bits;
    // normal results: round at the last kept bit and move the exponent's bias
    uint32_t normal = ((a + (1u << (shift - 1)) - 1 + ((a >> shift) & 1)) >> shift) -
                      ((127u - f->bias) << f->mantissa_bits);
    // denormal results: adding a number whose ulp is the format's smallest denormal makes the
    // hardware round there
    uint32_t magic_bits = (uint32_t)(127 + 23 + 1 - f->bias - f->mantissa_bits) << 23;
    uint32_t denormal = float_bits(bits_float(a) + bits_float(magic_bits)) - magic_bits;
    return a < ((uint32_t)(128 - f->bias) << 23) ? denormal : normal;
}
// The code of a magnitude, rounded up with the probability of what truncation takes away, so that
// its mean is the number itself: 32 random bits decide. As above, a large one gives a code above
// max_code.
INLINE uint32_t fp8_round_stochastic(uint32_t a, const Fp8Format *f, uint32_t random) {
    const int shift = 23 - f->mantissa_bits;
    const uint32_t lowest = (uint32_t)(128 - f->bias) << 23; // bits of the smallest normal number
    uint32_t normal =
        ((a + (random >> (32 - shift))) >> shift) - ((127u - f->bias) << f->mantissa_bits);
    // denormal results: a whole number of the smallest denormal's 2^-23
    const float unit = bits_float((uint32_t)(127 + 23 - 1 + f->bias + f->mantissa_bits) << 23);
    const uint32_t fixed = (uint32_t)(int32_t)(bits_float(MIN(a, lowest)) * unit);
    return a < lowest ? (fixed + (random >> 9)) >> 23 : normal;
}
// Round to nearest even, saturating: +-Inf becomes +-max, every NaN becomes 0x7F, as CUDA's
// satfinite conversion does.
INLINE uint32_t fp8_encode_bits(uint32_t u, const Fp8Format *f) {
    const uint32_t a = u & 0x7fffffff, code = MIN(fp8_round_bits(a, f), f->max_code);
    return a > 0x7f800000 ? f->nan : code | ((u >> 24) & 0x80);
}
INLINE uint8_t fp8_encode(float f, Dtype d) {
    const Fp8Format format = fp8_format(d);
    return fp8_encode_bits(float_bits(f), &format);
}
// Encodes two numbers, the first into the low byte. From sm_89 on it is one instruction with the
// same bits.
INLINE uint32_t fp8_encode2(float low, float high, Dtype d) {
#if defined(CUDA_ON_CPU) || __CUDA_ARCH__ >= 890
    IN_KERNEL(89, return d == DTYPE_E5M2 ? cvt_e5m2x2(low, high) : cvt_e4m3x2(low, high));
#endif
    return fp8_encode(low, d) | (uint32_t)fp8_encode(high, d) << 8;
}

// The value of a code, by way of half precision: an E5M2 code is the upper byte of a half; E4M3 has
// its exponent off by 8.
INLINE float fp8_decode(uint8_t code, Dtype d) {
    if (d == DTYPE_E5M2) return float_from_fp16((uint16_t)(code << 8));
    if (d == DTYPE_E2M1) // as fp16, whose exponent is off by 14
        return float_from_fp16((uint16_t)((code & 0x80) << 8 | (code & 7) << 9)) * 16384.0f;
    if ((code & 0x7f) == 0x7f) return bits_float(0x7fc00000);
    return float_from_fp16((uint16_t)((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256.0f;
}

// What a second number of a split operand is worth, beside the first: rounding takes away less.
INLINE float split_unit(Dtype d) {
    return bits_float((uint32_t)(126 - fp8_format(d).mantissa_bits) << 23);
}
// Code i of memory, with the sign as its top bit. E2M1: elements 2 i and 2 i + 1 share a byte, the
// first in its low half.
INLINE uint8_t code_at(const uint8_t *q, size_t i, Dtype d) {
    if (d != DTYPE_E2M1) return q[i];
    const uint8_t half = q[i / 2] >> 4 * (i % 2);
    return (half & 7) | (half & 8) << 4;
}

// ==== 4. scales and recipes ======================================================================
// ---- rules begin
// Scales and recipes, the same text in train_gpt_fp8.c and train_gpt_fp8.cu.
// What is counted for every operand, in the pass that quantizes it. SQNR is the signal to
// quantization noise ratio, 10 log10(signal / noise) dB. Kurtosis is mean(x^4) / mean(x^2)^2 over
// all elements, about zero and not about their mean: 3 for a normal distribution, more where there
// are outliers.
typedef struct {
    uint32_t amax_bits; // of the largest |x|; as integers, Inf is above all numbers, NaN above Inf
    uint64_t saturated, flushed, nonfinite, count;
    double signal, noise, fourth; // sums of x^2, (x - dequantized)^2 and x^4, when asked
} Fp8Stats;

// A scale is FP8_MAX / amax. A rule says which amax that is: a row of the table. Its columns: name,
// word in --recipe, its argument (=N is a whole number), the argument's default (0: it has to be
// given), least and largest, function, help. The function gets the amax of the step that ended and
// returns the amax for the next scale. CONSTANT and CURRENT have none; rules after them, new ones
// too, keep a history. A new rule is a function and a row at the end, here; same_program.sh --write
// copies them into the other file (dev/RECIPES.md adds one as an example).
#define AMAX_HISTORY_MAX                     1024
#define no_function(r, history, count, amax) (amax)
#define SCALING_RULES(X)                                                                           \
    X(CONSTANT, "scale", "=S", 0, 1e-15, 1e15, no_function,                                        \
      "the constant S; a power of two adds no rounding error")                                     \
    X(CURRENT, "current", "", 0, 0, 0, no_function,                                                \
      "from the tensor's own amax, found before it is quantized")                                  \
    X(DELAYED, "delayed", "=N", 16, 1, AMAX_HISTORY_MAX, amax_of_history,                          \
      "from the largest amax of the last N steps")
#define RULE_NAME(name, ...) SCALING_##name,
enum { SCALING_RULES(RULE_NAME) };
enum { ROUNDING_EXACT, ROUNDING_POW2, ROUNDING_FLOOR, ROUNDING_TWO_LEVEL, ROUNDING_UNSAID };

// How one operand is quantized. --recipe is three of these, for x, w and dy (recipe_parse()).
typedef struct {
    Dtype format;
    int rule;
    float number; // the rule's: the constant scale, or how many steps are remembered
    int margin;   // the scale is divided by 2^margin
    // POW2: the scale is rounded down to a power of two. FLOOR: amax is rounded down first, as in
    // OCP's MX; the scale can then be twice that of POW2, and the largest values may saturate.
    // TWO_LEVEL: NVFP4's, see scale_of_block().
    int rounding;
    // Block scaling: how many elements share a scale across K, the dimension that a product sums
    // over, and along it. along is 0 where the whole tensor has one scale.
    int across, along;
    int stochastic; // elements are rounded up or down at random, right in the mean
    int hadamard;   // wgrad reads the random Hadamard transform of the tensor
    int split;      // two numbers for an element: the rounded one, and what rounding took from it
} ScalingRecipe;
INLINE int recipe_blocks(const ScalingRecipe *r) { return r->along > 0; }
INLINE int recipe_remembers(const ScalingRecipe *r) { return r->rule > SCALING_CURRENT; }

// The scale of one operand of one linear layer, and what it is made from. A checkpoint holds it
// whole.
typedef struct {
    ScalingRecipe recipe;
    // With a history: the scale of this step. Until then, and with CURRENT: of the last recorded
    // tensor. In blocks: of the largest amax, for the log. Of the head's dy: see gpt_forward().
    float scale;
    // Of the bytes that are in memory now: for the product that sums over the tensor's columns, and
    // for that which sums over its rows.
    float scale_inv[2];
    int64_t amax_count; // steps in the history; 0: such a rule takes the tensor's own amax
    float amax_history[AMAX_HISTORY_MAX];
    float logged_scale;
    Fp8Stats step;   // of this step, over its micro-batches
    Fp8Stats logged; // of the last finished step, for scales.tsv and the table at the end
    uint64_t random, micro_batches; // of stochastic rounding: the tensor's key, and their number
} Fp8Scale;

INLINE int amax_usable(float amax) { return amax >= 0x1p-126f && float_is_finite(amax); }
// scale = FP8_MAX / amax / 2^margin, clamped so that its inverse is no denormal. An amax that is 0,
// denormal, Inf or NaN gives `keep`: the scale as it was, or 1 in blocks.
INLINE float scale_from_amax(float amax, float keep, const ScalingRecipe *r) {
    if (!amax_usable(amax)) return keep;
    float scale = fp8_max(r->format);
    for (int i = 0; i < r->margin; i++) scale *= 0.5f;
    if (r->rounding == ROUNDING_FLOOR)
        amax = bits_float(float_bits(amax) & 0x7f800000); // down to a power of two
    scale /= amax;
    if (r->rounding == ROUNDING_POW2 || r->rounding == ROUNDING_FLOOR)
        scale = bits_float(float_bits(scale) & 0x7f800000);
    return scale < 0x1p-126f ? 0x1p-126f : scale > 0x1p126f ? 0x1p126f : scale;
}

// The functions of the rules. amax: of the step that ended, a usable number (a step whose amax is
// not usable is not counted). count: how many were counted before it. history: the rule's own
// memory.
INLINE float amax_of_history(const ScalingRecipe *r, float *history, int64_t count, float amax) {
    const int length = (int)r->number, filled = (int)MIN(count + 1, length);
    history[count % length] = amax;
    for (int i = 0; i < filled; i++) amax = MAX(amax, history[i]);
    return amax;
}

// Once an optimizer step, before the update: the operand's amax, the largest over its
// micro-batches, makes the next step's scale. Validation and sampling record nothing of x and dy.
INLINE void scale_advance(Fp8Scale *s) {
    const ScalingRecipe *r = &s->recipe;
    float amax = bits_float(s->step.amax_bits);
    s->logged = s->step;
    s->logged_scale = s->scale;
    memset(&s->step, 0, sizeof(s->step));
    if (!recipe_remembers(r) || !amax_usable(amax)) return;
#define RULE_APPLY(name, word, argument, initial, least, largest, function, help)                  \
    if (r->rule == SCALING_##name) amax = function(r, s->amax_history, s->amax_count, amax);
    SCALING_RULES(RULE_APPLY)
    s->amax_count++;
    s->scale = scale_from_amax(amax, s->scale, r);
}

INLINE void stats_merge(Fp8Stats *into, const Fp8Stats *s) {
    into->amax_bits = MAX(into->amax_bits, s->amax_bits);
    into->saturated += s->saturated;
    into->flushed += s->flushed;
    into->nonfinite += s->nonfinite;
    into->count += s->count;
    into->signal += s->signal;
    into->noise += s->noise;
    into->fourth += s->fourth;
}
// ---- rules end
// ---- scales of blocks begin
// Block scaling. A block's scale is a power of two, made from its amax. Or, as in NVFP4 (NVIDIA
// 2025, arXiv 2509.25149, appendix), it has two levels: an fp32 scale of the tensor, and for each
// block an E4M3 number, so that FP8_MAX of the format times 448 is the tensor's amax:
//     tensor = 448 FP8_MAX / amax of the tensor,  inv = E4M3(amax / FP8_MAX * tensor),
//     scale = tensor / inv
// inv is at least E4M3's smallest number. The bytes are worth code * inv / tensor.
INLINE float scale_of_tensor(float amax, const ScalingRecipe *r) {
    if (r->rounding != ROUNDING_TWO_LEVEL || !amax_usable(amax)) return 1;
    const float scale = 448 * fp8_max(r->format) / amax;
    return scale < 0x1p100f ? scale : 0x1p100f;
}
// Returns the scale of a block; sets *inv. E2M1 has no NaN, so that a NaN makes inv one.
INLINE float scale_of_block(float amax, float tensor, const ScalingRecipe *r, float *inv) {
    if (r->rounding != ROUNDING_TWO_LEVEL) *inv = 1 / scale_from_amax(amax, 1, r);
    else *inv = fp8_decode(fp8_encode(amax / fp8_max(r->format) * tensor, DTYPE_E4M3), DTYPE_E4M3);
    if (*inv < 0x1p-9f && r->rounding == ROUNDING_TWO_LEVEL) *inv = 0x1p-9f;
    if (amax != amax && r->format == DTYPE_E2M1) *inv = amax;
    return tensor / *inv; // exact where inv is a power of two
}
// ---- scales of blocks end

// What kernels and cuBLASLt read of a scale: 16 bytes. Products take `inv` by its address.
// Fp8Scale.scale_inv is here only a copy of it for checkpoints.
typedef struct {
    // Of the bytes that now lie in memory, or are about to be made; inv by product, as Fp8Scale has
    // it. The scale of blocks is 1.
    float inv[2], scale;
    uint32_t amax_bits; // scratch of a tensor's own amax; 0 between tensors
} ScaleInUse;

// Sets the scale that the next tensor is quantized with.
INLINE void scale_use(Fp8Scale *s, ScaleInUse *use, float scale) {
    for (int way = 0; way < 2; way++) s->scale_inv[way] = use->inv[way] = 1.0f / scale;
    use->scale = scale;
}
// Whether a tensor is scaled by its own amax: by its rule, or because the rule has seen no amax yet
// (in the first step, and weights of a model without its state file).
INLINE int scale_is_own(const Fp8Scale *s) {
    return s->recipe.rule == SCALING_CURRENT ||
           (recipe_remembers(&s->recipe) && s->amax_count == 0);
}

// One thread a scale. *cut gets the number of gradients that saturated (every `operands`th scale is
// that of a dy).
KERNEL scales_advance_kernel(Fp8Scale *scales, ScaleInUse *use, unsigned long long *cut, int count,
                             int operands) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    Fp8Scale *s = &scales[i];
    for (int way = 0; way < 2; way++) s->scale_inv[way] = use[i].inv[way];
    scale_advance(s);
    if (i % operands == operands - 1) atomicAdd(cut, (unsigned long long)s->logged.saturated);
    if (recipe_remembers(&s->recipe) && s->amax_count > 0) {
        use[i].scale = s->scale;
        use[i].inv[0] = use[i].inv[1] = 1.0f / s->scale;
    }
}
static void scales_advance(Fp8Scale *scales, ScaleInUse *use, unsigned long long *cut, int count,
                           int operands) {
    if (count)
        LAUNCH(scales_advance_kernel, ceil_div(count, 32), 32, 0, STREAM, scales, use, cut, count,
               operands);
}

// After a micro-batch of training: the next one's random numbers; or those of micro-batch `at`.
KERNEL micro_batch_kernel(Fp8Scale *scales, int count, long at) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i].micro_batches = at < 0 ? scales[i].micro_batches + 1 : at;
}

// ---- quantize
// The C file splits sums over a whole tensor into chunks of so many elements. So do SQNR and norm
// here.
#define CHUNK 8192

typedef enum { RECORD_NONE, RECORD_STATS, RECORD_SQNR } Record; // NONE: validation and sampling
// An operand of a linear layer: how it is quantized, and where its tensor and its bytes are. Of two
// values, [0] is for the product that sums over the tensor's columns, [1] for that which sums over
// its rows (section 6).
typedef struct {
    ScalingRecipe recipe;
    Fp8Scale *s; // on the device
    ScaleInUse *use;
    int own_amax;     // its scale may have to come from this very tensor
    stored_t *tensor; // [rows, columns]
    size_t columns, stride;
    int stored_too;    // a kernel that makes the bytes also writes the tensor: something reads it
    int unfused;       // no kernel that writes the tensor makes its bytes, whatever the recipe
    uint8_t *bytes[2]; // [rows, columns]; turned, [columns, rows rounded up to 16]: K is contiguous
                       // in both. [1] may be NULL: the backward pass, if any, makes them
    float *inv[2];     // in blocks: their scale_inv
} Operand;
// What a kernel needs to write FP8 bytes beside, or instead of, a stored tensor.
typedef struct {
    const ScaleInUse *use;
    Fp8Scale *s; // that counts, or NULL
    Dtype format;
} Quantizer;
static Quantizer quantizer(const Operand *o, Record record) {
    return {o->use, record == RECORD_NONE ? NULL : o->s, o->recipe.format};
}

// The counts of a thread. counts_commit() adds those of a block to the operand's: integers and a
// maximum, so that the order does not matter. All threads of the block call it, once in a kernel.
// count: how many elements this block quantized; or the number of all elements in one block, and 0
// in the others.
typedef struct {
    uint32_t amax, saturated, flushed, nonfinite;
} Counts;
DEVICE Counts counts_of_warp(Counts c) {
    c.amax = __reduce_max_sync(0xffffffff, c.amax);
    c.saturated = __reduce_add_sync(0xffffffff, c.saturated);
    c.flushed = __reduce_add_sync(0xffffffff, c.flushed);
    c.nonfinite = __reduce_add_sync(0xffffffff, c.nonfinite);
    return c;
}
DEVICE void counts_commit(Fp8Scale *s, Counts c, size_t count) {
    SHARED Counts warps[32];
    c = counts_of_warp(c);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = c;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    c = counts_of_warp(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : Counts{0, 0, 0, 0});
    if (threadIdx.x > 0) return;
    if (c.amax) atomicMax(&s->step.amax_bits, c.amax);
    if (c.saturated)
        atomicAdd((unsigned long long *)&s->step.saturated, (unsigned long long)c.saturated);
    if (c.flushed) atomicAdd((unsigned long long *)&s->step.flushed, (unsigned long long)c.flushed);
    if (c.nonfinite)
        atomicAdd((unsigned long long *)&s->step.nonfinite, (unsigned long long)c.nonfinite);
    if (count) atomicAdd((unsigned long long *)&s->step.count, (unsigned long long)count);
}

// bytes = encode(v * scale) of eight stored values, and their counts. SCALES: each has a scale of
// its own. Values that saturated or became 0 are rare, and only counted if there are any.
template <bool SCALES>
DEVICE uint2 quantize8(const float *v, const float *scale, Dtype format, Counts *c) {
    const uint32_t above = fp8_format(format).saturated_above;
    uint32_t code[2] = {0, 0}, amax = 0, top = 0, nonzero = 0;
    UNROLL for (int i = 0; i < 8; i += 2) {
        const float x[2] = {v[i] * scale[SCALES ? i : 0], v[i + 1] * scale[SCALES ? i + 1 : 0]};
        code[i / 4] |= fp8_encode2(x[0], x[1], format) << i % 4 * 8;
        amax = MAX(amax, MAX(float_bits(v[i]) & 0x7fffffff, float_bits(v[i + 1]) & 0x7fffffff));
        if (SCALES)
            top = MAX(top, MAX(float_bits(x[0]) & 0x7fffffff, float_bits(x[1]) & 0x7fffffff));
    }
    if (!SCALES) top = float_bits(bits_float(amax) * *scale); // rounding is monotone
    c->amax = MAX(c->amax, amax);
    UNROLL for (int i = 0; i < 2; i++) nonzero |=
        (((code[i] & 0x7f7f7f7f) + 0x7f7f7f7f) & 0x80808080) >> (7 - i); // a bit a byte
    // Of the codes that are 0, those of zeros were not flushed.
    if (nonzero != 0x03030303) {
        c->flushed += 8 - __popc(nonzero);
        UNROLL for (int i = 0; i < 8; i++) c->flushed -= !(float_bits(v[i]) & 0x7fffffff);
    }
    if (top > above || amax >= 0x7f800000) UNROLL for (int i = 0; i < 8; i++) {
            const uint32_t a = float_bits(v[i]) & 0x7fffffff,
                           b = float_bits(v[i] * scale[SCALES ? i : 0]) & 0x7fffffff;
            c->saturated += b > above && b <= 0x7f800000;
            c->nonfinite += a >= 0x7f800000;
        }
    return make_uint2(code[0], code[1]);
}

// Where the elements of a tile come from. They are rounded to the stored type, so that a fused and
// an unfused path make the same bytes. Section 7 adds GELU and its backward pass.
template <class T> struct TensorSource {
    static constexpr bool IS_STORED = false;
    static constexpr int RAW = 2 * sizeof(T); // words that eight elements fill as they are fetched
    const T *x;
    size_t stride;
    __device__ void fetch(uint32_t *raw, size_t row, size_t column) const {
        load_words<RAW>(raw, x + row * stride + column);
    }
};
struct StoredSource : TensorSource<stored_t> {
    static constexpr bool IS_STORED = true;
    __device__ void values(float *v, const uint32_t *raw) const { unpack8(v, raw); }
};
struct MasterSource : TensorSource<float> {
    __device__ void values(float *v, const uint32_t *raw) const {
        UNROLL for (int i = 0; i < 8; i++) v[i] = denormal_flush(bits_float(raw[i]));
        stored_round8(v);
    }
};
// Block scaling: the scale of element (row, column) is 1 / inv[row / tall * row_stride + column /
// wide * column_stride].
typedef struct {
    float *inv; // NULL: one scale for the tensor
    uint32_t tall, wide;
    size_t row_stride, column_stride, count;
} Blocks;
INLINE float *blocks_at(const Blocks *b, uint32_t row, uint32_t column) {
    return b->inv + row / b->tall * b->row_stride + column / b->wide * b->column_stride;
}

INLINE float power2_inverse(float f) {
    return bits_float(0x7f000000 - float_bits(f));
} // 1 / f of a power of two, as these are

// What tiles_kernel writes; any may be NULL.
typedef struct {
    // Columns a multiple of 16; pitch: rows rounded up to 16, since rows are wgrad's K.
    size_t rows, columns, pitch;
    stored_t *out;  // [rows, columns] the tensor itself
    uint8_t *q;     // [pitch, columns] its bytes,
    uint8_t *q_t;   // [columns, pitch] and turned. Rows beyond `rows` are zeros
    float *partial; // [ceil(rows / TILE_ROWS)][columns] sums of its columns by tile, for a bias
                    // gradient
    Quantizer quantizer;
    Blocks blocks;
} Tiles;
#define TILE_ROWS    128
#define TILE_COLUMNS 64

typedef uint32_t TurnedTile[TILE_COLUMNS][TILE_ROWS / 4 + 1];

// A thread has four rows of eight columns. It transposes 4 x 4 bytes in registers; shared memory
// does the rest, so that both directions are written in whole sectors.
DEVICE void tile_turn(TurnedTile turned, const uint2 *bytes) {
    const unsigned group = threadIdx.x / 8, first = threadIdx.x % 8 * 8;
    UNROLL for (int half = 0; half < 2; half++) { // columns 0-3, 4-7
        const uint32_t a = half ? bytes[0].y : bytes[0].x, b = half ? bytes[1].y : bytes[1].x;
        const uint32_t c = half ? bytes[2].y : bytes[2].x, d = half ? bytes[3].y : bytes[3].x;
        const uint32_t ab0 = __byte_perm(a, b, 0x5140), ab1 = __byte_perm(a, b, 0x7362);
        const uint32_t cd0 = __byte_perm(c, d, 0x5140), cd1 = __byte_perm(c, d, 0x7362);
        turned[first + half * 4 + 0][group] = __byte_perm(ab0, cd0, 0x5410);
        turned[first + half * 4 + 1][group] = __byte_perm(ab0, cd0, 0x7632);
        turned[first + half * 4 + 2][group] = __byte_perm(ab1, cd1, 0x5410);
        turned[first + half * 4 + 3][group] = __byte_perm(ab1, cd1, 0x7632);
    }
}
// A warp writes 128 bytes of a column at a time. To be called after a barrier.
DEVICE void tile_turned_store(uint8_t *q_t, const TurnedTile turned, size_t columns, size_t pitch) {
    const size_t row = (size_t)blockIdx.x * TILE_ROWS + threadIdx.x % 32 * 4;
    for (unsigned c = threadIdx.x / 32; c < TILE_COLUMNS; c += THREADS / 32) {
        const size_t to = (size_t)blockIdx.y * TILE_COLUMNS + c;
        if (to < columns && row < pitch) put(q_t + to * pitch + row, turned[c][threadIdx.x % 32]);
    }
}

// One pass over a tensor [rows, columns]. It reads the source once and writes what is wanted of:
// the tensor, its bytes in both directions, the sums of its columns.
template <class Source, bool BLOCKS, Dtype FORMAT>
KERNEL_OF(THREADS)
tiles_kernel(Source source, Tiles t) {
    SHARED TurnedTile turned;
    SHARED float sums[TILE_ROWS / 4][TILE_COLUMNS + 4];
    // Of rows; the column in the tile.
    const unsigned group = threadIdx.x / 8, first = threadIdx.x % 8 * 8;
    const size_t row0 = (size_t)blockIdx.x * TILE_ROWS + group * 4,
                 column = (size_t)blockIdx.y * TILE_COLUMNS + first;
    const int quantizes = t.q || t.q_t;
    const float scale = !BLOCKS && quantizes ? t.quantizer.use->scale : 1;
    Counts counts = {0, 0, 0, 0};
    uint2 bytes[4];
    uint32_t raw[4][Source::RAW];
    float column_sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    UNROLL for (int r = 0; r < 4;
                r++) // all under way before the first is written: no compiler may do that by itself
        if (column < t.columns && row0 + r < t.rows) source.fetch(raw[r], row0 + r, column);
    UNROLL for (int r = 0; r < 4; r++) {
        const size_t row = row0 + r;
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        bytes[r] = make_uint2(0, 0);
        if (column < t.columns && row < t.rows) {
            source.values(v, raw[r]);
            if (t.out) store8(t.out + row * t.columns + column, v);
            if (quantizes && BLOCKS) {
                float scales[8];
                UNROLL for (int i = 0; i < 8; i++) scales[i] =
                    t.blocks.wide >= 8 && i > 0
                        ? scales[0]
                        : power2_inverse(*blocks_at(&t.blocks, row, column + i));
                bytes[r] = quantize8<true>(v, scales, FORMAT, &counts);
            } else if (quantizes) bytes[r] = quantize8<false>(v, &scale, FORMAT, &counts);
        }
        if (t.q && column < t.columns && row < t.pitch)
            put(t.q + row * t.columns + column, bytes[r]);
        UNROLL for (int i = 0; i < 8; i++) column_sums[i] += v[i];
    }
    if (t.q_t) tile_turn(turned, bytes);
    if (t.partial) UNROLL for (int i = 0; i < 8; i++) sums[group][first + i] = column_sums[i];
    __syncthreads();
    if (t.q_t) tile_turned_store(t.q_t, turned, t.columns, t.pitch);
    if (t.partial && threadIdx.x < TILE_COLUMNS) {
        const size_t c = (size_t)blockIdx.y * TILE_COLUMNS + threadIdx.x;
        float sum = 0;
        for (int g = 0; g < TILE_ROWS / 4; g++) sum += sums[g][threadIdx.x];
        if (c < t.columns) t.partial[(size_t)blockIdx.x * t.columns + c] = sum;
    }
    if (quantizes && t.quantizer.s) {
        if (BLOCKS) counts.amax = 0; // blocks_amax_kernel() found it
        counts_commit(t.quantizer.s, counts,
                      blockIdx.x == 0 && blockIdx.y == 0 ? t.rows * t.columns : 0);
    }
}
template <bool BLOCKS = false, class Source> static void tiles_run(Source source, Tiles t) {
    t.pitch = round_up(t.rows, 16);
    const dim3 grid(ceil_div(t.pitch, TILE_ROWS), ceil_div(t.columns, TILE_COLUMNS));
    const auto kernel = IS_FP8 && t.quantizer.format == DTYPE_E5M2
                            ? tiles_kernel<Source, BLOCKS, DTYPE_E5M2>
                            : tiles_kernel<Source, BLOCKS, DTYPE_E4M3>;
    RUN(kernel, grid, source, t);
}
static Tiles tiles(size_t rows, size_t columns) {
    return {rows, columns, 0, NULL, NULL, NULL, NULL, {}, {}};
}

// Writes the bits of the largest |x| of n elements to *top. n is a multiple of 8.
KERNEL amax_kernel(uint32_t *top, const stored_t *x, size_t n) {
    uint32_t amax = 0;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n;
         i += (size_t)gridDim.x * blockDim.x * 8) {
        float v[8];
        load8(v, x + i);
        UNROLL for (int k = 0; k < 8; k++) amax = MAX(amax, float_bits(v[k]) & 0x7fffffff);
    }
    amax = __reduce_max_sync(0xffffffff, amax);
    if (threadIdx.x % 32 == 0 && amax) atomicMax(top, amax);
}
// An operand that has no history yet, or whose rule is `current`, is scaled by its own amax. This
// is decided on the device, because the host's copies may be old.
KERNEL scale_choose_kernel(Fp8Scale *s, ScaleInUse *use, int record) {
    const ScalingRecipe *r = &s->recipe;
    float scale = s->scale;
    if (scale_is_own(s)) {
        scale = scale_from_amax(bits_float(use->amax_bits), scale, r);
        if (record) s->scale = scale;
    }
    scale_use(s, use, scale);
    use->amax_bits = 0;
}
static void amax_find(const stored_t *x, size_t n, const Operand *o) {
    const size_t blocks = MIN(ceil_div(n, 8 * THREADS), (size_t)machine.processors * 8);
    RUN(amax_kernel, blocks, &o->use->amax_bits, x, n);
}
static void scale_choose(const stored_t *x, size_t n, const Operand *o, Record record) {
    if (!o->own_amax) return;
    amax_find(x, n, o);
    LAUNCH(scale_choose_kernel, 1, 1, 0, STREAM, o->s, o->use, record != RECORD_NONE);
}

// For each chunk the sums of squares of x, of what encoding changed of x, and of the squares'
// squares, in double, because fp32 would lose those of small x. With one scale they are sums of (x
// scale)^2, in blocks of x itself. Element (row, column) of the bytes q is at
// q[row * q_row + column * q_column].
// The order for one scale is the C file's: 16 striped lanes and a tree. A warp has a chunk. A lane
// squares 16 neighbors of every 512. Shared memory brings the squares to the lane that adds them:
// half a warp has the signal, the other half the noise. Its gaps keep lanes in banks of their own.
// Both also add the squares of what they read, of which only the signal's are used.
KERNEL_OF(THREADS)
sqnr_kernel(double *sums, const uint8_t *q, const uint8_t *rest, size_t q_row, size_t q_column,
            StoredSource x, uint32_t columns, size_t n, const ScaleInUse *use, Dtype format,
            Blocks blocks) {
    enum { STRIPES = 16, PITCH = STRIPES + 4, NOISE = 32 * PITCH + 16 };
    alignas(16) SHARED float squares[THREADS / 32][2 * NOISE];
    const size_t chunk = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32,
                 begin = chunk * CHUNK, row0 = begin / columns;
    const uint32_t lane = threadIdx.x % 32, column0 = begin % columns,
                   count = begin < n ? MIN(n - begin, CHUNK) : 0;
    const float scale = use->scale, unit = split_unit(format);
    const float tensor_inv = blocks.inv ? use->inv[q_column != 1] : 1; // of two levels
    float *mine = squares[threadIdx.x / 32], sum = 0;
    double fourth = 0;
    for (uint32_t i = lane * STRIPES; i - lane * STRIPES < count; i += 32 * STRIPES) {
        const uint32_t column = (column0 + i) % columns;
        const size_t row = row0 + (column0 + i) / columns;
        const size_t from = row * q_row + column * q_column;
        UNROLL for (int half = 0; half < STRIPES; half += 8) { // what is not there adds 0
            uint32_t raw[WORDS] = {}, code[2] = {};
            float v[8], noise[8], inv = 1;
            if (i < count) {
                x.fetch(raw, row, column + half);
                if (q_column == 1 && format != DTYPE_E2M1) load_words<2>(code, q + from + half);
                else
                    for (int k = 0; k < 8; k++)
                        code[k / 4] |= code_at(q, from + (half + k) * q_column, format)
                                       << k % 4 * 8;
            }
            x.values(v, raw);
            UNROLL for (int k = 0; k < 8; k++) {
                if (blocks.inv && i < count && (k == 0 || blocks.wide < 8))
                    inv = *blocks_at(&blocks, row, column + half + k) * tensor_inv;
                float value = fp8_decode(code[k / 4] >> k % 4 * 8 & 0xff, format);
                if (rest && i < count)
                    value += fp8_decode(rest[from + (half + k) * q_column], format) * unit;
                v[k] *= scale;
                noise[k] = v[k] - value * inv;
                v[k] *= v[k];
                noise[k] *= noise[k];
            }
            store8(mine + lane * PITCH + half, v);
            store8(mine + NOISE + lane * PITCH + half, noise);
        }
        __syncwarp();
        UNROLL for (int k = 0; k < 32; k++) {
            const float square = mine[lane / STRIPES * NOISE + k * PITCH + lane % STRIPES];
            sum += square;
            fourth += (double)square * square;
        }
        __syncwarp();
    }
    UNROLL for (int d = 8; d > 0; d /= 2) {
        sum += __shfl_down_sync(0xffffffff, sum, d, 16);
        fourth += __shfl_down_sync(0xffffffff, fourth, d, 16);
    }
    if (lane % STRIPES == 0 && count) sums[3 * chunk + lane / STRIPES] = sum;
    if (lane == 0 && count) sums[3 * chunk + 2] = fourth;
}
// Adds the chunks in ascending order, as the C file does: a warp each of the three sums.
KERNEL_OF(96)
sqnr_finish_kernel(Fp8Scale *s, const double *sums, size_t chunks, const ScaleInUse *use) {
    const double inv = 1.0f / use->scale, inv2 = inv * inv;
    const size_t lane = threadIdx.x % 32, which = threadIdx.x / 32;
    double *const into[] = {&s->step.signal, &s->step.noise, &s->step.fourth};
    const double unit = which == 2 ? inv2 * inv2 : inv2;
    double total = 0;
    for (size_t c = 0; c < chunks; c += 32) {
        const double part = c + lane < chunks ? sums[3 * (c + lane) + which] * unit : 0;
        UNROLL for (int k = 0; k < 32; k++) total += __shfl_sync(0xffffffff, part, k);
    }
    if (lane == 0) *into[which] += total;
}
// sums: [ceil(n / CHUNK)][3]. To be called after the bytes q were made of x: as x lies or, if
// along_rows, turned.
static void sqnr_record(const uint8_t *q, int along_rows, const stored_t *x, size_t stride,
                        size_t rows, size_t columns, const Operand *o, Blocks blocks,
                        double *sums) {
    const size_t n = rows * columns, chunks = ceil_div(n, CHUNK), pitch = round_up(rows, 16);
    const uint8_t *rest = o->recipe.split ? q + pitch * columns : NULL;
    RUN(sqnr_kernel, ceil_div(chunks, THREADS / 32), sums, q, rest, along_rows ? 1 : columns,
        along_rows ? pitch : 1, StoredSource{x, stride}, columns, n, o->use, o->recipe.format,
        blocks);
    LAUNCH(sqnr_finish_kernel, 1, 96, 0, STREAM, o->s, sums, chunks, o->use);
}

// ---- codes that tiles_kernel does not make: E2M1, stochastic rounding, split operands, two-level
// scales, and those of recipes with a Hadamard transform. A thread has eight elements of a line
// along K: of a row, or, if along_rows, of a column. Element k of a line is code line * pitch + k
// of q. Whatever is not in the tensor is 0. Second numbers of split operands lie behind the others.
static int recipe_simple(const ScalingRecipe *r) {
    return r->format != DTYPE_E2M1 && r->rounding != ROUNDING_TWO_LEVEL && !r->stochastic &&
           !r->split && !r->hadamard;
}
KERNEL_OF(THREADS)
encode_kernel(uint8_t *q, int along_rows, const stored_t *x, size_t stride, size_t rows,
              size_t columns, Fp8Scale *s, ScaleInUse *use, int record, Blocks blocks) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x,
                 padded = round_up(rows, 16), lines = along_rows ? columns : padded,
                 pitch = along_rows ? padded : columns, chunks = pitch / 8;
    const ScalingRecipe r = s->recipe;
    const size_t line = along_rows ? thread % lines : thread / chunks,
                 k0 = (along_rows ? thread / lines : thread % chunks) * 8;
    const Dtype d = r.format;
    const Fp8Format f = fp8_format(d);
    const uint64_t key = random_u64(s->random, s->micro_batches, blocks.inv && along_rows);
    const float tensor = scale_of_tensor(bits_float(use->amax_bits), &r);
    Counts counts = {0, 0, 0, 0};
    uint32_t codes[2] = {0, 0}, rest[2] = {0, 0}, halves = 0;
    for (size_t k = k0; k < k0 + 8; k++) {
        const size_t row = along_rows ? k : line, column = along_rows ? line : k;
        if (row >= rows || column >= columns) continue;
        const float v = float_from_stored(x[row * stride + column]);
        const float scaled =
            v * (blocks.inv ? tensor / *blocks_at(&blocks, row, column) : use->scale);
        const uint32_t a = float_bits(scaled) & 0x7fffffff, b = float_bits(v) & 0x7fffffff;
        const uint32_t random = random_u32(key, (uint32_t)(row * columns + column));
        uint32_t code = fp8_encode_bits(float_bits(scaled), &f);
        if (r.stochastic && a <= 0x7f800000)
            code = MIN(fp8_round_stochastic(a, &f, random), f.max_code) | (code & 0x80);
        counts.amax = MAX(counts.amax, b);
        counts.saturated += a > f.saturated_above && a <= 0x7f800000;
        counts.flushed += (code & 0x7f) == 0 && b != 0;
        counts.nonfinite += b >= 0x7f800000;
        if (d == DTYPE_E2M1 && !blocks.inv && b > 0x7f800000) // it has no NaN
            use->inv[0] = use->inv[1] = v;
        codes[(k - k0) / 4] |= code << k % 4 * 8;
        halves |= ((code & 7) | (code >> 4 & 8)) << (k - k0) * 4;
        if (r.split)
            rest[(k - k0) / 4] |=
                (uint32_t)fp8_encode((scaled - fp8_decode(code, d)) / split_unit(d), d)
                << k % 4 * 8;
    }
    const size_t at = line * pitch + k0;
    const int inside = line < lines && k0 < pitch;
    if (inside && d == DTYPE_E2M1) put(q + at / 2, halves);
    else if (inside) put(q + at, make_uint2(codes[0], codes[1]));
    if (inside && r.split) put(q + lines * pitch + at, make_uint2(rest[0], rest[1]));
    if (!record) return;
    if (blocks.inv) counts.amax = 0; // blocks_amax_kernel() found it
    counts_commit(s, counts, blockIdx.x == 0 ? rows * columns : 0);
}
static void codes_run(uint8_t *q, int along_rows, const stored_t *x, size_t stride, size_t rows,
                      size_t columns, const Operand *o, Record record, Blocks blocks) {
    RUN(encode_kernel, ceil_div(round_up(rows, 16) * columns / 8, THREADS), q, along_rows, x,
        stride, rows, columns, o->s, o->use, record != RECORD_NONE, blocks);
}

// How many tensors were read again to be quantized, instead of being quantized by the kernel that
// made them.
static long quantize_passes;
// Makes the FP8 bytes of a stored tensor x [rows, columns] that is whole in memory: q as x lies,
// q_t transposed (one of them may be NULL). partial: room for column sums, or NULL. record: whether
// statistics count for this step, and whether to sum for the SQNR (sqnr_sums: room for that).
static void quantize(uint8_t *q, uint8_t *q_t, const stored_t *x, size_t stride, size_t rows,
                     size_t columns, const Operand *o, Record record, float *partial,
                     double *sqnr_sums) {
    Tiles t = tiles(rows, columns);
    const int simple = recipe_simple(&o->recipe);
    quantize_passes++;
    if (simple) {
        t.q = q;
        t.q_t = q_t;
        t.quantizer = quantizer(o, record);
    }
    t.partial = partial;
    scale_choose(x, rows * columns, o, record);
    if (simple || partial) tiles_run(StoredSource{x, stride}, t);
    for (int way = 0; way < 2 && !simple; way++) {
        uint8_t *to = way ? q_t : q;
        if (to)
            codes_run(to, way, x, stride, rows, columns, o, way && q ? RECORD_NONE : record, {});
    }
    if (record == RECORD_SQNR)
        sqnr_record(q ? q : q_t, !q, x, stride, rows, columns, o, t.blocks, sqnr_sums);
}

// Transposes bytes that were made before: q_t [columns, pitch] of q [rows, columns]. The backward
// pass does so for the x of a wgrad.
KERNEL_OF(THREADS)
turn_kernel(uint8_t *q_t, const uint8_t *q, size_t rows, size_t columns, size_t pitch) {
    SHARED TurnedTile turned;
    const size_t row0 = (size_t)blockIdx.x * TILE_ROWS + threadIdx.x / 8 * 4;
    const size_t column = (size_t)blockIdx.y * TILE_COLUMNS + threadIdx.x % 8 * 8;
    uint2 bytes[4];
    UNROLL for (int r = 0; r < 4; r++) bytes[r] =
        column < columns && row0 + r < rows ? get<uint2>(q + (row0 + r) * columns + column)
                                            : make_uint2(0, 0);
    tile_turn(turned, bytes);
    __syncthreads();
    tile_turned_store(q_t, turned, columns, pitch);
}
static void bytes_turn(uint8_t *q_t, const uint8_t *q, size_t rows, size_t columns) {
    const size_t pitch = round_up(rows, 16);
    const dim3 grid(ceil_div(pitch, TILE_ROWS), ceil_div(columns, TILE_COLUMNS));
    RUN(turn_kernel, grid, q_t, q, rows, columns, pitch);
}

// ---- block scaling in two passes
// The first finds the amax of each block, where its scale_inv will be; the second makes the bytes.
// A thread has eight columns of 16 rows; a block has one row or at least as many.
KERNEL blocks_amax_kernel(Blocks b, const stored_t *x, size_t rows, size_t columns) {
    const size_t chunk = (size_t)blockIdx.x * blockDim.x + threadIdx.x, chunks = columns / 8,
                 column = chunk % chunks * 8;
    const size_t begin = chunk / chunks * 16, end = MIN(rows, begin + 16);
    uint32_t top[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (size_t row = begin; row < end; row++) {
        float v[8];
        load8(v, x + row * columns + column);
        UNROLL for (int i = 0; i < 8; i++) top[i] = MAX(top[i], float_bits(v[i]) & 0x7fffffff);
        if (b.tall > 1 && row + 1 < end) continue;
        UNROLL for (int i = 0; i < 8; i++) {
            if (b.wide >= 8 && i > 0) break;
            if (b.wide >= 8)
                for (int k = 1; k < 8; k++) top[0] = MAX(top[0], top[k]);
            if (top[i]) atomicMax((uint32_t *)blocks_at(&b, row, column + i), top[i]);
        }
        UNROLL for (int i = 0; i < 8; i++) top[i] = 0;
    }
}
// Two levels: the tensor's amax was found before.
KERNEL blocks_scale_kernel(float *inv, size_t n, ScalingRecipe r, ScaleInUse *use) {
    const float tensor = scale_of_tensor(bits_float(use->amax_bits), &r);
    uint32_t top = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const uint32_t amax = float_bits(inv[i]);
        scale_of_block(bits_float(amax), tensor, &r, &inv[i]);
        top = MAX(top, amax);
    }
    top = __reduce_max_sync(0xffffffff, top);
    if (threadIdx.x % 32 == 0 && top) atomicMax(&use->amax_bits, top);
}
KERNEL blocks_record_kernel(Fp8Scale *s, ScaleInUse *use, int along_rows, int record) {
    const float amax = bits_float(use->amax_bits), tensor = scale_of_tensor(amax, &s->recipe);
    if (record) {
        s->scale = scale_from_amax(amax, 1, &s->recipe);
        s->step.amax_bits = MAX(s->step.amax_bits, use->amax_bits);
    }
    s->scale_inv[along_rows] = use->inv[along_rows] = 1 / tensor;
    use->amax_bits = 0;
    use->scale = 1;
}
// The C file's hadamard_transform(): a thread has 16 rows of a column.
#define HADAMARD 16
KERNEL hadamard_kernel(stored_t *out, const stored_t *x, size_t rows, size_t columns,
                       uint32_t signs) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x,
                 row0 = thread / columns * HADAMARD, at = row0 * columns + thread % columns;
    const int whole = row0 + HADAMARD <= rows;
    float v[HADAMARD];
    UNROLL for (int i = 0; i < HADAMARD; i++) if (row0 + i < rows) v[i] =
        float_from_stored(x[at + i * columns]) * (!whole           ? 1
                                                  : signs >> i & 1 ? -0.25f
                                                                   : 0.25f);
    UNROLL for (int d = 1; d < HADAMARD; d *= 2) UNROLL for (int i = 0; i < HADAMARD; i++) {
        const float low = v[i & ~d], high = v[i | d];
        if (i & d || !whole) continue;
        v[i] = low + high;
        v[i | d] = low - high;
    }
    UNROLL for (int i = 0; i < HADAMARD; i++) if (row0 + i < rows) out[at + i * columns] =
        stored_from_float(v[i]);
}
// Whether cuBLASLt multiplies blocks of 128 itself. It wants their scales in an order of its own.
static int blocks_native(const ScalingRecipe *r) {
    return r->along == 128 && (r->across == 1 || r->across == 128) && machine.sm == 90 &&
           !machine.emulates;
}
// The blocks of x [rows, columns]. K is the row index if along_rows, else the column index. In
// memory inv is [blocks across K][blocks along it]. In cuBLASLt's order its rows are padded to a
// multiple of 4, and for blocks of 1 x 128 it is transposed.
static Blocks blocks_of(float *inv, size_t rows, size_t columns, int along_rows,
                        const ScalingRecipe *r, int native) {
    const size_t by_row = along_rows ? r->along : r->across;
    const size_t by_column = along_rows ? r->across : r->along;
    const uint32_t tall = MIN(rows, by_row), wide = MIN(columns, by_column);
    const size_t down = ceil_div(rows, tall), right = ceil_div(columns, wide);
    const size_t along = along_rows ? down : right, across = along_rows ? right : down;
    // Strides of the scales: ours.
    size_t per_across = along, per_along = 1, count = along * across;
    if (native && r->across == 1) {
        per_across = 1;
        per_along = round_up(across, 16);
        count = per_along * along;
    } else if (native) {
        per_across = round_up(along, 4);
        count = per_across * across;
    }
    if (along_rows) return {inv, tall, wide, per_along, per_across, count};
    return {inv, tall, wide, per_across, per_along, count};
}
// Makes the bytes of x in blocks: as x lies, or transposed if K is the row index, so that K is
// contiguous in both. partial, sqnr_sums: as above.
static void quantize_blocks(uint8_t *q, float *inv, const stored_t *x, size_t rows, size_t columns,
                            int along_rows, const Operand *o, Record record, float *partial,
                            double *sqnr_sums) {
    const Blocks b =
        blocks_of(inv, rows, columns, along_rows, &o->recipe, blocks_native(&o->recipe));
    Tiles t = tiles(rows, columns);
    const int simple = recipe_simple(&o->recipe);
    quantize_passes++;
    device_zero(inv, b.count * sizeof(float));
    if (o->recipe.rounding == ROUNDING_TWO_LEVEL) amax_find(x, rows * columns, o);
    RUN(blocks_amax_kernel, ceil_div(ceil_div(rows, 16) * (columns / 8), THREADS), b, x, rows,
        columns);
    RUN(blocks_scale_kernel, MIN(ceil_div(b.count, THREADS), 1024), inv, b.count, o->recipe,
        o->use);
    t.partial = partial;
    if (simple) {
        (along_rows ? t.q_t : t.q) = q;
        t.quantizer = quantizer(o, record);
        t.blocks = b;
        tiles_run<true>(StoredSource{x, columns}, t);
    } else {
        codes_run(q, along_rows, x, columns, rows, columns, o, record, b);
        if (partial) tiles_run(StoredSource{x, columns}, t);
    }
    LAUNCH(blocks_record_kernel, 1, 1, 0, STREAM, o->s, o->use, along_rows, record != RECORD_NONE);
    if (record == RECORD_SQNR)
        sqnr_record(q, along_rows, x, columns, rows, columns, o, b, sqnr_sums);
}

// ==== 5. matrix product ==========================================================================
// out[m, n] = epilogue(sum over k of a[m, k] * b[n, k]), by cuBLASLt. It takes the first algorithm
// for a shape, so that bits stay from run to run. Sums are fp32; K is never split into 16-bit
// partial sums. FP8 operands must be K-major, and all sizes multiples of 16. M and K are rounded
// up: the bytes of wgrad, whose K are the rows, have zeros behind the last one; what lies behind an
// output's last row is not read. cuBLASLt counts columns first: its A is our b, its B our a, and
// K-major means "transposed A, plain B".
// Some products do not exist in cuBLASLt: E5M2 x E5M2, MX and NVFP4 before sm_100, MXFP4, operands
// in different blocks, rows and blocks of 128 except on sm_90, and all on GPUs without FP8 units.
// They, those of split operands, and all with --emulate, are emulated: the same codes are decoded
// to bf16, which holds them exactly (times the scale of their block), multiplied as bf16, then
// scaled.

// A matrix as it lies in memory: element (i, k) is at data[i * row_stride + k * k_stride]; one of
// the strides is 1.
typedef struct {
    const void *data;
    Dtype dtype;
    size_t row_stride, k_stride;
    const float *inv; // FP8: what one scale_inv, or those of blocks, [across K][along it],
                      // multiply; on the device
    size_t across, along, inv_across, inv_along; // blocks, and strides of their scales; else 0
    const float *factor; // the scale_inv that multiplies the sum, or NULL where there is none
    float unit;          // of a split operand: what its numbers are worth, else 0
} Matrix;
static Matrix matrix(const void *data, Dtype dtype, size_t row_stride, size_t k_stride) {
    return {data, dtype, row_stride, k_stride, NULL, 0, 0, 0, 0, NULL, 0};
}

// Epilogue: how the sum becomes an output element: times the operands' scale_inv, plus bias[n] or
// the old out[m, n].
typedef struct {
    void *data; // [m, n], stored type or fp32
    Dtype dtype;
    size_t row_stride;
    const stored_t *bias; // [n] or NULL
    int accumulate;       // out += sum; fp32 only
    int fast;             // FP8: Hopper's shorter accumulator for the whole sum; fprop only
} Output;

// Working memory of the emulated path, sized by the plan: operands as bf16, sums in fp32.
static struct {
    stored_t *a, *b;
    float *sums;
    uint8_t *scales[2]; // NULL, or for the scales of MX and NVFP4 as cuBLASLt wants them
} emulation;
// Room for their bytes, a block of 16 each, of [R, 4 C], [4 C, R] and [C, 4 C], with padding.
#define LT_SCALES(R, C) ((MAX(R, C) + 128) * (4 * (C) + 128) / 16)
#define PRODUCTS_MAX    512
#define HAS_LT_BLOCKS   (machine.sm >= 100)
// Section 15.
static void matmul(Output out, const Matrix &a, const Matrix &b, size_t M, size_t N, size_t K);
// Whether cuBLASLt computes products of these formats and blocks on this device.
static int product_emulated(Dtype a, Dtype b, int across_a, int along_a, int across_b, int along_b);

// ==== 6. linear layers ===========================================================================
static void column_sums_finish(float *out, float *out2, const float *partial, size_t blocks,
                               size_t width); // section 7
#define ROWS 32

// y = x w^T + bias. x, w and, in the backward pass, dy are matrices [rows, columns] that two
// products read: one sums over the column index, the other over the row index.
//                  over columns    over rows
//   x  [R, in]     fprop           wgrad
//   w  [out, in]   fprop           dgrad
//   dy [R, out]    dgrad           wgrad
enum { OPERAND_X, OPERAND_W, OPERAND_DY, NOPERAND };
enum { FPROP, DGRAD, WGRAD, NPRODUCT };
enum { OVER_COLUMNS, OVER_ROWS }; // an operand's two ways: which index a product sums over
enum { READ_W = 1 << FPROP | 1 << DGRAD, ALL_PRODUCTS = READ_W | 1 << WGRAD }; // bits of products
static const char *const operand_name[NOPERAND] = {"x", "w", "dy"};
static const char *const product_name[NPRODUCT] = {"fprop", "dgrad", "wgrad"};
static const int operand_product[NOPERAND][2] = {{FPROP, WGRAD}, {FPROP, DGRAD}, {DGRAD, WGRAD}};

typedef struct {
    Operand operand[NOPERAND];
    size_t in, out;
    const stored_t *bias; // [out] rounded to the stored type, or NULL
    float *dw, *dbias;    // [out, in], [out] or NULL
    int first;            // dw holds nothing yet: it is written, not added to
    int fp8;              // bit p: product p reads FP8 bytes
    int split;            // bit p: product p reads both numbers of a split operand
    uint32_t signs;       // of the Hadamard transform
    stored_t *mixed;      // room for what it makes of an operand
    float *sums;          // room for an output of several products
    // Room for column sums, [ceil(rows / TILE_ROWS)][out], and for sqnr_record().
    float *partial;
    double *sqnr;
} Linear;
static int linear_in_fp8(const Linear *f, int product) { return f->fp8 >> product & 1; }
static int products_of(int which) { // bits of the two that read an operand
    return 1 << operand_product[which][OVER_COLUMNS] | 1 << operand_product[which][OVER_ROWS];
}
static int operand_in_fp8(const Linear *f, int which) { return (f->fp8 & products_of(which)) != 0; }
// Whether a product reads both numbers of an operand.
static int linear_splits(const Linear *f, int which, int product) {
    return linear_in_fp8(f, product) && f->split >> product & f->operand[which].recipe.split;
}

// Where the bytes for one of an operand's products are made; NULL if they are not.
static uint8_t *operand_bytes(const Linear *f, int which, int way) {
    const Operand *o = &f->operand[which];
    if (linear_in_fp8(f, operand_product[which][way])) return o->bytes[way];
    // Only the other product reads FP8. If the backward pass makes its bytes of these, or again of
    // the tensor, these are made now, to be counted. (Blocks of one way cannot serve the other.)
    const int first = way == OVER_COLUMNS && !o->bytes[OVER_ROWS] && !recipe_blocks(&o->recipe);
    return first && operand_in_fp8(f, which) ? o->bytes[way] : NULL;
}

// Whether the kernel that writes an operand's tensor also makes its bytes. It cannot where the
// tensor has to be whole in memory first: for its amax, for those of its blocks, for an SQNR.
static int operand_fuses(const Linear *f, int which, Record record) {
    const Operand *o = &f->operand[which];
    return operand_in_fp8(f, which) && !recipe_blocks(&o->recipe) && recipe_simple(&o->recipe) &&
           !o->unfused && !o->own_amax && record != RECORD_SQNR;
}
// What the kernel that makes an operand writes: the tensor, its bytes, or both.
static Tiles operand_tiles(const Linear *f, int which, size_t rows, Record record) {
    const Operand *o = &f->operand[which];
    const int fuses = operand_fuses(f, which, record);
    Tiles t = tiles(rows, o->columns);
    if (o->stored_too || !fuses) t.out = o->tensor;
    if (!fuses) return t;
    t.q = operand_bytes(f, which, OVER_COLUMNS);
    t.q_t = operand_bytes(f, which, OVER_ROWS);
    t.quantizer = quantizer(o, record);
    return t;
}
// Makes the bytes of an operand whose tensor is there, unless the kernel that wrote it has made
// them. partial: room for the tensor's column sums, or NULL.
static void operand_quantize(const Linear *f, int which, size_t rows, float *partial,
                             Record record) {
    const Operand *o = &f->operand[which];
    uint8_t *q = operand_bytes(f, which, OVER_COLUMNS), *q_t = operand_bytes(f, which, OVER_ROWS);
    if (!operand_in_fp8(f, which) || operand_fuses(f, which, record)) return;
    if (!recipe_blocks(&o->recipe)) {
        quantize(q, q_t, o->tensor, o->stride, rows, o->columns, o, record, partial, f->sqnr);
        return;
    }
    if (q)
        quantize_blocks(q, o->inv[0], o->tensor, rows, o->columns, 0, o, record, partial, f->sqnr);
    const stored_t *tensor = o->tensor;
    if (q_t && o->recipe.hadamard) {
        RUN(hadamard_kernel, ceil_div(ceil_div(rows, HADAMARD) * o->columns, THREADS), f->mixed,
            tensor, rows, o->columns, f->signs);
        tensor = f->mixed;
    }
    if (q_t) // counted, and summed, once
        quantize_blocks(q_t, o->inv[1], tensor, rows, o->columns, 1, o, q ? RECORD_NONE : record,
                        q ? NULL : partial, f->sqnr);
}

// An operand as a product reads it: as stored, as bytes with one scale, or as bytes in blocks.
// rows: of x and dy. part: 1 for the second numbers of a split one.
static Matrix operand(const Linear *f, int which, int product, size_t rows, int part) {
    const Operand *o = &f->operand[which];
    const ScalingRecipe *r = &o->recipe;
    const int way = operand_product[which][OVER_ROWS] == product;
    if (which == OPERAND_W) rows = f->out;
    if (!linear_in_fp8(f, product))
        return matrix(o->tensor, STORED, way ? 1 : o->stride, way ? o->stride : 1);
    const size_t pitch = round_up(rows, 16);
    Matrix m =
        matrix(o->bytes[way] + part * pitch * o->columns, r->format, way ? pitch : o->columns, 1);
    if (linear_splits(f, which, product)) m.unit = part ? split_unit(r->format) : 1;
    m.inv = m.factor = o->use->inv;
    if (!recipe_blocks(r)) return m;
    const Blocks b = blocks_of(o->inv[way], way ? o->columns : rows, way ? rows : o->columns, 0, r,
                               blocks_native(r));
    m.inv = b.inv;
    m.factor = r->rounding == ROUNDING_TWO_LEVEL ? &o->use->inv[way] : NULL;
    m.across = r->across;
    m.along = r->along;
    m.inv_across = b.row_stride;
    m.inv_along = b.column_stride;
    return m;
}

static const int product_operands[NPRODUCT][2] = {
    {OPERAND_X, OPERAND_W}, {OPERAND_DY, OPERAND_W}, {OPERAND_DY, OPERAND_X}};
// out = a b^T of a product's operands; rows: of x and dy. Where operands are split, it is the sum
// of products of their parts, in fp32: both first ones, then first and second, second and first.
static void linear_product(const Linear *f, int product, Output out, size_t rows) {
    const int a = product_operands[product][0], b = product_operands[product][1];
    const size_t sizes[NPRODUCT][3] = {
        {rows, f->out, f->in}, {rows, f->in, f->out}, {f->out, f->in, rows}};
    const size_t *mnk = sizes[product];
    const int b_splits = linear_splits(f, b, product),
              last = linear_splits(f, a, product) + b_splits;
    Output to = out;
    const int wide = last > 0 && out.dtype != DTYPE_FP32;
    if (wide) to = {f->sums, DTYPE_FP32, mnk[1], out.bias, 0, 0};
    for (int i = 0; i <= last; i++) {
        const int part_a = i > b_splits, part_b = i > 0 && !part_a;
        if (i > 0) to.bias = NULL;
        to.accumulate |= i > 0;
        matmul(to, operand(f, a, product, rows, part_a), operand(f, b, product, rows, part_b),
               mnk[0], mnk[1], mnk[2]);
    }
    if (!wide) return;
    Tiles t = tiles(mnk[0], mnk[1]);
    t.out = (stored_t *)out.data;
    tiles_run(MasterSource{f->sums, mnk[1]}, t);
}

// y[rows, out] = x w^T + bias, of type y_dtype.
static void linear_forward(const Linear *f, void *y, Dtype y_dtype, size_t rows, Record record) {
    operand_quantize(f, OPERAND_X, rows, NULL, record);
    linear_product(f, FPROP, {y, y_dtype, f->out, f->bias, 0, 1}, rows);
}

// dx[rows, in] = dy w;  dw += dy^T x (= if f->first), of operands that are ready.
static void linear_gradients(const Linear *f, stored_t *dx, size_t rows) {
    linear_product(f, DGRAD, {dx, STORED, f->in, NULL, 0, 0}, rows);
    linear_product(f, WGRAD, {f->dw, DTYPE_FP32, f->in, NULL, !f->first, 0}, rows);
}
// linear_gradients(), and dbias += sums of dy's columns. These sum dy itself: an Inf saturates in
// its bytes, so that it leaves no trace in dx and dw, but makes dbias Inf or NaN.
// source: the tensor dy, or what a kernel makes it of. One pass over it writes what is wanted of
// dy, its bytes in both directions and its column sums; a tensor that is only quantized is read by
// operand_quantize() alone.
template <class Source>
static void linear_backward(const Linear *f, stored_t *dx, Source source, size_t rows,
                            Record record) {
    float *partial = f->dbias ? f->partial : NULL;
    const int only_quantized =
        Source::IS_STORED && operand_in_fp8(f, OPERAND_DY) && !operand_fuses(f, OPERAND_DY, record);
    Tiles t = operand_tiles(f, OPERAND_DY, rows, record);
    if (Source::IS_STORED) t.out = NULL; // it is there already
    if (!only_quantized) t.partial = partial;
    if (t.out || t.q || t.q_t || t.partial) tiles_run(source, t);
    operand_quantize(f, OPERAND_DY, rows, only_quantized ? partial : NULL, record);
    if (f->dbias) column_sums_finish(f->dbias, NULL, f->partial, ceil_div(rows, TILE_ROWS), f->out);
    linear_gradients(f, dx, rows);
}

// ==== 7. other layers ============================================================================
// e^x, about 2 ulp. x = n ln2 + r, |r| <= ln2 / 2, Taylor to r^7; 2^n in two factors, so that tiny
// results flush to 0. Above 88.3 it saturates near 2.2e38. A NaN stays one.
// 1.5 * 2^23: adding it rounds to a whole number, which stands in the low bits of the sum.
#define ROUNDER 12582912.0f
INLINE float pow2_whole(float n) { return bits_float((float_bits(n + ROUNDER) + 127) << 23); }
INLINE float exp_fixed_order(float x) {
    x = 88.3f < x ? 88.3f : x;
    x = -104.0f > x ? -104.0f : x;
    const float n = (x * 1.44269504f + ROUNDER) - ROUNDER, half = (n * 0.5f + ROUNDER) - ROUNDER;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = (1.0f / 5040) * r + 1.0f / 720;
    p = ((p * r + 1.0f / 120) * r + 1.0f / 24) * r + 1.0f / 6;
    p = ((p * r + 0.5f) * r + 1) * r + 1;
    return p * pow2_whole(half) * pow2_whole(n - half);
}

// ln x for normal x > 0, in double: x = 2^e m, m in [sqrt 1/2, sqrt 2), 2 atanh((m - 1) / (m + 1))
// as a series.
INLINE double log_fixed_order(double x) {
    const uint64_t u = bits_as<uint64_t>(x);
    int e = (int)(u >> 52) - 1023;
    double m = bits_as<double>((u & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double s = (m - 1) / (m + 1), z = s * s, p = 0;
    for (int k = 21; k >= 1; k -= 2) p = p * z + 1.0 / k;
    return 2 * s * p + e * 0.6931471805599453;
}

// Where the kernel that makes an operand writes it: the tensor, its FP8 bytes, or both. Either may
// be NULL.
typedef struct {
    stored_t *stored;
    uint8_t *q;
    Quantizer quantizer;
} Written;
// Shapes are row-major. B sequences of n positions are B * n rows. Channels are a multiple of 16.
// Sums over channels are a warp's striped lanes and a fixed tree; sums over rows go block by block
// of rows, the blocks then in fixed stripes and a tree.
#define WARPS        (THREADS / 32)
#define CHANNELS_MAX 4096 // what a warp holds of a row in registers

// out[c] += sum over k of partial[k][c], [blocks][width]: finishes sums over rows that were made in
// blocks of rows. Two vectors at once (the weight and bias of a layernorm): the partial sums of the
// second follow in memory.
KERNEL_OF(1024)
column_sums_kernel(float *out, float *out2, const float *partial, size_t blocks, size_t width) {
    SHARED float sums[32][33];
    const unsigned x = threadIdx.x % 32, y = threadIdx.x / 32;
    const size_t c = (size_t)blockIdx.x * 32 + x;
    const float *from = partial + blockIdx.y * blocks * width;
    float sum = 0;
    for (size_t k = y; c < width && k < blocks; k += 32) sum += from[k * width + c];
    sums[y][x] = sum;
    __syncthreads();
    sum = warp_sum(sums[x][y]); // this warp's column
    const size_t column = (size_t)blockIdx.x * 32 + y;
    if (x == 0 && column < width) (blockIdx.y ? out2 : out)[column] += sum;
}
static void column_sums_finish(float *out, float *out2, const float *partial, size_t blocks,
                               size_t width) {
    const dim3 grid(ceil_div(width, 32), out2 ? 2 : 1);
    LAUNCH(column_sums_kernel, grid, 1024, 0, STREAM, out, out2, partial, blocks, width);
}

// x[b, i] = wte[token] + wpe[pos + i], rounded once to the stored type. A thread has eight
// channels.
KERNEL encoder_forward_kernel(stored_t *x, const int *tokens, const float *wte, const float *wpe,
                              int rows, int n, int pos, int C) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8, row = i / C, c = i % C;
    float e[8], p[8];
    if (row >= (size_t)rows) return;
    load8(e, wte + (size_t)tokens[row] * C + c);
    load8(p, wpe + (pos + row % n) * C + c);
    UNROLL for (int k = 0; k < 8; k++) e[k] += p[k];
    store8(x + i, e);
}
static void encoder_forward(stored_t *x, const int *tokens, const float *wte, const float *wpe,
                            int B, int n, int pos, int C) {
    RUN(encoder_forward_kernel, ceil_div((size_t)B * n * C / 8, THREADS), x, tokens, wte, wpe,
        B * n, n, pos, C);
}

// dwte[token] += dx, dwpe[position] += dx, without atomics. The host sorts the rows by token
// (token_buckets()): a bucket's rows are added in ascending order. Buckets [count + 1]: the first
// of each one's rows in order [rows].
KERNEL encoder_backward_wte_kernel(float *dwte, const stored_t *dx, const int *tokens,
                                   const int *order, const int *buckets, const int *count, int C) {
    const size_t c = ((size_t)blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if ((int)blockIdx.x >= *count || c >= (size_t)C) return;
    const int begin = buckets[blockIdx.x], end = buckets[blockIdx.x + 1];
    float sum[8], v[8], *to = dwte + (size_t)tokens[order[begin]] * C + c;
    load8(sum, to);
    UNROLL_BY(8) for (int i = begin; i < end; i++) {
        load8(v, dx + (size_t)order[i] * C + c);
        UNROLL for (int k = 0; k < 8; k++) sum[k] += v[k];
    }
    store8(to, sum);
}
KERNEL encoder_backward_wpe_kernel(float *dwpe, const stored_t *dx, int B, int T, int C) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    float sum[8], v[8];
    if (i >= (size_t)T * C) return;
    load8(sum, dwpe + i);
    for (int b = 0; b < B; b++) {
        load8(v, dx + (size_t)b * T * C + i);
        UNROLL for (int k = 0; k < 8; k++) sum[k] += v[k];
    }
    store8(dwpe + i, sum);
}
// order, buckets, count: made by token_buckets(), here on the device. There are at most
// most_buckets.
static void encoder_backward(float *dwte, float *dwpe, const stored_t *dx, const int *tokens,
                             const int *order, const int *buckets, const int *count,
                             int most_buckets, int B, int T, int C) {
    const dim3 grid(most_buckets, ceil_div(C / 8, 64));
    LAUNCH(encoder_backward_wte_kernel, grid, 64, 0, STREAM, dwte, dx, tokens, order, buckets,
           count, C);
    RUN(encoder_backward_wpe_kernel, ceil_div((size_t)T * C / 8, THREADS), dwpe, dx, B, T, C);
}
// Sorts the rows by token (a counting sort), those of a token in ascending order. seen: [V]
// scratch. Returns the number of buckets.
static int token_buckets(int *order, int *buckets, int *seen, const int *tokens, int rows, int V) {
    int count = 0, at = 0;
    memset(seen, 0, V * sizeof(int));
    for (int row = 0; row < rows; row++) seen[tokens[row]]++;
    for (int token = 0; token < V; token++) {
        const int n = seen[token];
        if (n) buckets[count++] = at;
        seen[token] = at;
        at += n;
    }
    buckets[count] = at;
    for (int row = 0; row < rows; row++) order[seen[tokens[row]]++] = row;
    return count;
}

// residual = a + b (b may be NULL), rounded to the stored type; normed = (residual - mean) * rstd *
// weight + bias. residual, a, b, normed: [rows, C]; mean, rstd: [rows]. residual may be a. A warp
// has a row, of which it keeps 8 VECTORS elements a lane in registers: residual, normed and its
// bytes are written in one pass over memory.
template <int VECTORS>
KERNEL_OF(THREADS)
layernorm_forward_kernel(stored_t *__restrict__ residual, Written normed, float *mean, float *rstd,
                         const stored_t *__restrict__ a, const stored_t *__restrict__ b,
                         const float *__restrict__ weight, const float *__restrict__ bias,
                         size_t rows, size_t C) {
    const size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    Counts counts = {0, 0, 0, 0};
    if (row < rows) {
        uint32_t kept[VECTORS][WORDS]; // the row, as it is stored
        float sum = 0, squares = 0, x[8], w[8], v[8];
        UNROLL for (int i = 0; i < VECTORS; i++) {
            const size_t c = (i * 32 + lane) * 8, at = row * C + c;
            if (c >= C) continue;
            load8(x, a + at);
            if (b) {
                load8(v, b + at);
                // The stored value is what is normalized.
                UNROLL for (int k = 0; k < 8; k++) x[k] += v[k];
                stored_round8(x);
            }
            if (b || residual != a) store8(residual + at, x);
            pack8(kept[i], x);
            UNROLL for (int k = 0; k < 8; k++) sum += x[k];
        }
        const float m = warp_sum(sum) / (float)C;
        UNROLL for (int i = 0; i < VECTORS; i++) {
            if ((size_t)(i * 32 + lane) * 8 >= C) continue;
            unpack8(x, kept[i]);
            UNROLL for (int k = 0; k < 8; k++) squares += (x[k] - m) * (x[k] - m);
        }
        const float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + 1e-5f),
                    scale = normed.q ? normed.quantizer.use->scale : 1;
        if (lane == 0) {
            mean[row] = m;
            rstd[row] = r;
        }
        UNROLL for (int i = 0; i < VECTORS; i++) {
            const size_t c = (i * 32 + lane) * 8, at = row * C + c;
            if (c >= C) continue;
            load8(w, weight + c);
            load8(v, bias + c);
            unpack8(x, kept[i]);
            UNROLL for (int k = 0; k < 8; k++) v[k] = (x[k] - m) * r * w[k] + v[k];
            stored_round8(v);
            if (normed.stored) store8(normed.stored + at, v);
            if (normed.q)
                put(normed.q + at, quantize8<false>(v, &scale, normed.quantizer.format, &counts));
        }
    }
    if (normed.q && normed.quantizer.s)
        counts_commit(normed.quantizer.s, counts, blockIdx.x == 0 ? rows * C : 0);
}
static void residual_layernorm_forward(stored_t *residual, Written normed, float *mean, float *rstd,
                                       const stored_t *a, const stored_t *b, const float *weight,
                                       const float *bias, size_t rows, size_t C) {
    const size_t grid = ceil_div(rows, WARPS);
#define LAYERNORM(vectors)                                                                         \
    RUN((layernorm_forward_kernel<vectors>), grid, residual, normed, mean, rstd, a, b, weight,     \
        bias, rows, C)
    if (C <= 256) LAYERNORM(1);
    else if (C <= 768) LAYERNORM(3);
    else if (C <= 1024) LAYERNORM(4);
    else if (C <= 2048) LAYERNORM(8);
    else LAYERNORM(16);
}

// norm = (x - mean) rstd, dnorm = dout * weight
//   dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm));  dweight += sum dout norm;
//   dbias += sum dout
// partial: [2][ceil(rows / ROWS)][C], of dweight and of dbias. A block has ROWS rows: first a warp
// a row for dresidual, then a thread two columns for the sums, whose reads of the same rows are in
// cache by then.
KERNEL_OF(THREADS)
layernorm_backward_kernel(stored_t *__restrict__ dresidual, const stored_t *__restrict__ dout,
                          const stored_t *__restrict__ x, const float *mean, const float *rstd,
                          const float *__restrict__ weight, float *partial, size_t rows, size_t C) {
    const size_t first = (size_t)blockIdx.x * ROWS, end = MIN(rows, first + ROWS);
    const int lane = threadIdx.x % 32;
    for (size_t row = first + threadIdx.x / 32; row < end; row += WARPS) {
        const float m = mean[row], r = rstd[row];
        float sum = 0, sum_norm = 0, d[8], in[8], w[8], dx[8];
        for (size_t c = lane * 8; c < C; c += 256) {
            load8(d, dout + row * C + c);
            load8(in, x + row * C + c);
            load8(w, weight + c);
            UNROLL for (int k = 0; k < 8; k++) {
                sum += d[k] * w[k];
                sum_norm += d[k] * w[k] * ((in[k] - m) * r);
            }
        }
        const float mean_dn = warp_sum(sum) / (float)C, mean_dnn = warp_sum(sum_norm) / (float)C;
        for (size_t c = lane * 8; c < C; c += 256) {
            load8(d, dout + row * C + c);
            load8(in, x + row * C + c);
            load8(w, weight + c);
            load8(dx, dresidual + row * C + c);
            UNROLL for (int k = 0; k < 8; k++) dx[k] +=
                ((d[k] * w[k] - mean_dn) - (in[k] - m) * r * mean_dnn) * r;
            store8(dresidual + row * C + c, dx);
        }
    }
    for (size_t c = threadIdx.x * 2; c < C; c += THREADS * 2) {
        float dw[2] = {0, 0}, db[2] = {0, 0};
        UNROLL_BY(4) for (size_t row = first; row < end; row++) {
            const float m = mean[row], r = rstd[row];
            float d[2], in[2];
            load2(d, dout + row * C + c);
            load2(in, x + row * C + c);
            UNROLL for (int k = 0; k < 2; k++) {
                dw[k] += d[k] * ((in[k] - m) * r);
                db[k] += d[k];
            }
        }
        float *to = partial + blockIdx.x * C + c;
        to[0] = dw[0];
        to[1] = dw[1];
        to += gridDim.x * C;
        to[0] = db[0];
        to[1] = db[1];
    }
}
static void layernorm_backward(stored_t *dresidual, float *dweight, float *dbias,
                               const stored_t *dout, const stored_t *x, const float *mean,
                               const float *rstd, const float *weight, float *partial, size_t rows,
                               size_t C) {
    const size_t blocks = ceil_div(rows, ROWS);
    RUN(layernorm_backward_kernel, blocks, dresidual, dout, x, mean, rstd, weight, partial, rows,
        C);
    column_sums_finish(dweight, dbias, partial, blocks, C);
}

// tanh GELU: 0.5 x (1 + tanh u) = x s, s = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); no
// tanh is needed. dx = dout (s + x s (1 - s) 2 u'). Both are sources of tiles_kernel (section 4),
// which also writes the bytes that the next product reads and, in the backward pass, the bias
// gradient.
#define LOG2E       1.4426950408889634f
#define GELU_LINEAR 0.7978845608f
#define GELU_CUBIC  (0.044715f * 0.7978845608f)
// Uses the special function unit: the C file's own exp would take longer than the memory does.
DEVICE float gelu_sigmoid(float x) {
    return __fdividef(
        1.0f, 1.0f + exp2f(x * fmaf(x * x, -2 * LOG2E * GELU_CUBIC, -2 * LOG2E * GELU_LINEAR)));
}
struct GeluSource : TensorSource<stored_t> {
    __device__ void values(float *v, const uint32_t *raw) const {
        unpack8(v, raw);
        UNROLL for (int i = 0; i < 8; i++) v[i] *= gelu_sigmoid(v[i]);
        stored_round8(v);
    }
};
struct GeluBackwardSource {
    static constexpr bool IS_STORED = false;
    static constexpr int RAW = 2 * WORDS;
    const stored_t *dout, *x;
    size_t stride;
    __device__ void fetch(uint32_t *raw, size_t row, size_t column) const {
        load_words<WORDS>(raw, dout + row * stride + column);
        load_words<WORDS>(raw + WORDS, x + row * stride + column);
    }
    __device__ void values(float *v, const uint32_t *raw) const {
        float in[8];
        unpack8(v, raw);
        unpack8(in, raw + WORDS);
        UNROLL for (int i = 0; i < 8; i++) {
            const float s = gelu_sigmoid(in[i]),
                        two_du = fmaf(in[i] * in[i], 6 * GELU_CUBIC, 2 * GELU_LINEAR);
            v[i] *= fmaf(in[i] * two_du, s * (1 - s), s);
        }
        stored_round8(v);
    }
};

// ---- attention (section 15): its own kernels, which never hold the scores whole, or cuDNN's
// out: [B, n, C] of qkv [B, pos + n, 3C] (a KV cache where pos > 0; then B is 1); lse: [B, NH, n].
static void attention_forward(Written out, float *lse, const stored_t *qkv, int B, int n, int pos,
                              int C, int NH);
// dqkv: [B, T, 3C]; dout, out: [B, T, C]; lse, and delta as scratch: [B, NH, T].
static void attention_backward(stored_t *dqkv, float *delta, const stored_t *dout,
                               const stored_t *out, const float *lse, const stored_t *qkv, int B,
                               int T, int C, int NH);
static void attention_init(void);
static size_t cudnn_bytes(void); // device memory that cuDNN's attention takes

// Softmax cross entropy of logits [rows, Vp], of which V columns count. losses[row] = -ln
// p[target], 0 where target is -1. A block has a row. dlogits (if dscale is not NULL) = (p -
// onehot) * *dscale, rounded to the stored type; the padding is exactly 0. Either their bytes go to
// d.q [rows, Vp], or they overwrite the beginning of the row (DLOGITS_STRIDE; d.stored is not
// read). Over fp32 logits that needs a barrier: a step of the loop may only overwrite what all
// threads have read.
#define DLOGITS_STRIDE(Vp, logit) ((Vp) * ((logit) / sizeof(stored_t))) // logit: bytes of one
// One block a multiprocessor, so that its row is still in L2 when it is read again.
#define CLASSIFIER_THREADS 1024
#define CLASSIFIER_STEP    (CLASSIFIER_THREADS * 8)
template <class T>
KERNEL_OF(CLASSIFIER_THREADS)
classifier_kernel(float *losses, T *logits, Written d, const int *targets, int V, int Vp,
                  const float *dscale) {
    SHARED float2 warps[CLASSIFIER_THREADS / 32]; // the maximum of a warp, its sum
    T *z = logits + (size_t)blockIdx.x * Vp;
    float v[2][8], top = -INFINITY, sum = 0;
    const int target = targets[blockIdx.x], first = threadIdx.x * 8;
    const float at_target = target < 0       ? 0
                            : sizeof(T) == 4 ? (float)z[target]
                                             : float_from_stored((stored_t)z[target]);
    for (int i = first; i < V && target >= 0; i += 2 * CLASSIFIER_STEP) {
        float max = top;
        UNROLL for (int a = 0; a < 2; a++) if (i + a * CLASSIFIER_STEP < V)
            load8(v[a], z + i + a * CLASSIFIER_STEP);
        UNROLL for (int a = 0; a < 2; a++) {
            const int left = V - i - a * CLASSIFIER_STEP;
            if (left < 8) UNROLL for (int k = 0; k < 8; k++) if (k >= left) v[a][k] = -INFINITY;
            UNROLL for (int k = 0; k < 8; k++) max = fmaxf(max, v[a][k]);
        }
        const float base = max == -INFINITY ? 0 : max; // then all terms are 0
        sum *= exp2f((top - base) * LOG2E);
        top = max;
        UNROLL for (int k = 0; k < 16; k++) sum += exp2f((v[k / 8][k % 8] - base) * LOG2E);
    }
    const float warp_top = warp_max(top);
    sum = warp_sum(sum != 0 ? sum * exp2f((top - warp_top) * LOG2E) : 0); // 0: it had no column
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = make_float2(warp_top, sum);
    __syncthreads();
    const float2 other = warps[threadIdx.x % 32];
    const float max = warp_max(other.x);
    sum = warp_sum(other.y != 0 ? other.y * exp2f((other.x - max) * LOG2E) : 0);
    const float inverse = 1.0f / sum, factor = dscale ? *dscale : 0;
    const float scale = d.q ? d.quantizer.use->scale : 1;
    Counts counts = {0, 0, 0, 0};
    for (int step = 0; dscale && step < Vp; step += CLASSIFIER_STEP) {
        const int i = step + first, there = i < Vp;
        if (there) {
            load8(v[0], z + i);
            UNROLL for (int k = 0; k < 8; k++) v[0][k] = exp2f((v[0][k] - max) * LOG2E) * inverse;
            if (target >= i && target < i + 8)
                UNROLL for (int k = 0; k < 8; k++) v[0][k] -= i + k == target;
            UNROLL for (int k = 0; k < 8; k++) v[0][k] *= factor;
            if (target < 0 || i + 8 > V)
                UNROLL for (int k = 0; k < 8; k++) if (target < 0 || i + k >= V) v[0][k] = 0;
        }
        if (sizeof(T) > sizeof(stored_t) && !d.q) __syncthreads();
        if (!there) continue;
        stored_round8(v[0]);
        if (d.q)
            put(d.q + (size_t)blockIdx.x * Vp + i,
                quantize8<false>(v[0], &scale, d.quantizer.format, &counts));
        else store8((stored_t *)z + i, v[0]);
    }
    if (d.q && d.quantizer.s)
        counts_commit(d.quantizer.s, counts, blockIdx.x == 0 ? (size_t)gridDim.x * Vp : 0);
    // The logarithm comes last, so that nothing waits for it.
    if (threadIdx.x > 0) return;
    const double loss = log_fixed_order(sum) - ((double)at_target - (double)max);
    losses[blockIdx.x] = target < 0 ? 0 : sum != sum ? sum : (float)loss;
}
static void classifier(float *losses, float *logits, int logits16, Written d, const int *targets,
                       int rows, int V, int Vp, const float *dscale) {
    if (logits16)
        LAUNCH(classifier_kernel<stored_t>, rows, CLASSIFIER_THREADS, 0, STREAM, losses,
               (stored_t *)logits, d, targets, V, Vp, dscale);
    else
        LAUNCH(classifier_kernel<float>, rows, CLASSIFIER_THREADS, 0, STREAM, losses, logits, d,
               targets, V, Vp, dscale);
}

// *total += the losses, each stripe in ascending order, then a tree.
KERNEL_OF(1024) loss_kernel(double *total, const float *losses, int rows) {
    double sum = 0;
    for (int row = threadIdx.x; row < rows; row += blockDim.x) sum += losses[row];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total += sum;
}
static void loss_add(double *total, const float *losses, int rows) {
    LAUNCH(loss_kernel, 1, 1024, 0, STREAM, total, losses, rows);
}

// ==== 8. model ===================================================================================
// cos and sin of 2 pi u for u in [0, 1]: to the nearest quarter turn, then Taylor.
INLINE void sincos_turns(double u, double *sine, double *cosine) {
    int q = (int)(4 * u + 0.5);
    double x = 6.283185307179586 * (u - 0.25 * q), z = x * x, s = 0, c = 0;
    for (int k = 17; k >= 1; k -= 2) {
        s = 1 - s * z / ((k + 1) * (double)(k + 2));
        c = 1 - c * z / (k * (double)(k + 1));
    }
    s *= x;
    const double turned[5] = {s, c, -s, -c, s}; // by quarters; the cosine is a quarter ahead
    *sine = turned[q & 3];
    *cosine = turned[(q & 3) + 1];
}
#define LAYERS_MAX 1024
typedef struct {
    // Longest context, vocabulary, padded vocabulary, layers, heads, channels.
    int T, V, Vp, L, NH, C;
} Config;

// Parameters in the order of llm.c's model file, each for all layers together.
enum {
    WTE,
    WPE,
    LN1W,
    LN1B,
    QKVW,
    QKVB,
    ATTPROJW,
    ATTPROJB,
    LN2W,
    LN2B,
    FCW,
    FCB,
    FCPROJW,
    FCPROJB,
    LNFW,
    LNFB,
    NPARAM
};
typedef struct {
    const char *name;
    size_t layers, rows, cols; // cols is 1 for a vector
    int decays;                // AdamW's weight decay applies: matrices only
    float init_std, init_value;
    size_t offset;       // in floats from the start of the arena
    size_t from, to, at; // what of it this process holds of the master weights, and where
} ParamSpec;

// Fills specs[NPARAM]; returns the number of parameters.
static size_t param_specs(ParamSpec *specs, const Config *c) {
    const size_t C = c->C, L = c->L, Vp = c->Vp, T = c->T;
    // GPT-2: scaled by the number of residual additions.
    const float std = 0.02f, residual_std = 0.02f / sqrtf(2.0f * c->L);
    const ParamSpec table[NPARAM] = {
        {"wte", 1, Vp, C, 1, std, 0, 0, 0, 0, 0},
        {"wpe", 1, T, C, 1, std, 0, 0, 0, 0, 0},
        {"ln1w", L, C, 1, 0, 0, 1, 0, 0, 0, 0},
        {"ln1b", L, C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"qkvw", L, 3 * C, C, 1, std, 0, 0, 0, 0, 0},
        {"qkvb", L, 3 * C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"attprojw", L, C, C, 1, residual_std, 0, 0, 0, 0, 0},
        {"attprojb", L, C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"ln2w", L, C, 1, 0, 0, 1, 0, 0, 0, 0},
        {"ln2b", L, C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"fcw", L, 4 * C, C, 1, std, 0, 0, 0, 0, 0},
        {"fcb", L, 4 * C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"fcprojw", L, C, 4 * C, 1, residual_std, 0, 0, 0, 0, 0},
        {"fcprojb", L, C, 1, 0, 0, 0, 0, 0, 0, 0},
        {"lnfw", 1, C, 1, 0, 0, 1, 0, 0, 0, 0},
        {"lnfb", 1, C, 1, 0, 0, 0, 0, 0, 0, 0},
    };
    size_t at = 0;
    for (int i = 0; i < NPARAM; i++) {
        specs[i] = table[i];
        specs[i].offset = at;
        at += specs[i].layers * specs[i].rows * specs[i].cols;
    }
    return at;
}
enum { LIN_QKV, LIN_ATTPROJ, LIN_FC, LIN_FCPROJ, NLIN };
static const int linear_param[NLIN] = {QKVW, ATTPROJW, FCW, FCPROJW};
static int param_is_linear(int id) {
    return id == QKVW || id == ATTPROJW || id == FCW || id == FCPROJW;
}
static const char *const linear_name[NLIN + 1] = {"qkv", "attproj", "fc", "fcproj", "head"};
// Rows of logits that exist at once. Changing it changes bits: each slab is a product of its own in
// dwte.
#define HEAD_ROWS 8192
typedef enum {
    // The storage of a tensor, and its type in this build:
    STORAGE_fp32,
    STORAGE_stored,
    STORAGE_operand,
    STORAGE_byte,
    STORAGE_int,
    STORAGE_fp64
} Storage;
typedef float fp32_t;
typedef double fp64_t;
typedef uint8_t byte_t;
typedef int int_t;
// --fp8-moments: elements of a tensor that share a scale. Every tensor begins a block.
#define MOMENT_BLOCK          128
#define MOMENT_BLOCKS(at, id) ((at) / MOMENT_BLOCK + (id)) // before element `at`, of tensor `id`
// Floats of m, and of v; codes take a byte each.
#define MOMENTS                                                                                    \
    (t * (g->fp8_moments ? ceil_div(g->own.end - g->own.begin, 4) : g->own.end - g->own.begin))
// --grad-comm: gradients of shards are sent and added as fp32, bf16 or E4M3, a piece at a time.
enum { COMM_FP32, COMM_BF16, COMM_FP8 };
#ifndef PIECE // elements; tests take smaller ones
#define PIECE MIN(round_up(((size_t)1 << 24) / world.size, 8), g->param_count)
#endif
#define TENSORS(g) ((size_t)NPARAM * (g)->config.L) // at most
// Where in grad_sum the part lies that a process adds of tensors from number `tensor`, parameter
// `at`, on. 24: a part is up to 8 longer than an equal share, and two such places are rounded.
#define SUM_AT(at, tensor) (round_up((at) / world.size, 8) + (size_t)24 * (tensor))
// What a shard leaves in the scale of x or dy; behind them, its loss (as `signal`), and the seconds
// from its backward pass to the end of the exchange (`noise`; of a process without a shard in the
// last round, of all that it is idle).
typedef struct {
    Fp8Stats step;
    float scale;
} ShardScale;
#define SHARD_SCALES (((g)->scale_count + 1) * sizeof(ShardScale)) // bytes
// Bytes an element in a build of the given precision.
static size_t role_size(Storage role, int precision) {
    if (role == STORAGE_byte || (role == STORAGE_operand && precision == PRECISION_FP8)) return 1;
    if (role == STORAGE_fp64) return 8;
    return role == STORAGE_fp32 || role == STORAGE_int || precision == PRECISION_FP32 ? 4 : 2;
}

// Every tensor of the model: the one table for fields, memory plan and allocation. R: rows, B T and
// up to 16 more, since FP8 products write whole multiples of 16; of logits a slab of min(R,
// HEAD_ROWS) rows exists at once. KEPT ones live from forward to backward, REUSED ones are
// overwritten. Those of 0 elements (what only training, t, one build, one recipe or an option
// needs) are not allocated. What is kept of x: the table at the top. A layernorm that also wrote
// turned bytes would need 32 whole rows in shared memory; turning them later moves 2 bytes an
// element.
// clang-format off
#define GPT_TENSORS(X) /* role, name, layers, elements of one, life */ \
    /* weights; gradients of a shard, and then of all; this process's parts of the sum between \
       rounds; AdamW's moments: of what this process holds, or owns */ \
    X(fp32, master, 1, g->held, OPTIMIZER) \
    X(fp32, grad, 1, t * g->param_count, OPTIMIZER) \
    X(fp32, grad_sum, 1, \
        t * (shard_rounds(g) > 1) * SUM_AT(g->param_count, TENSORS(g)), OPTIMIZER) \
    X(fp32, m, 1, MOMENTS, OPTIMIZER) \
    X(fp32, v, 1, MOMENTS, OPTIMIZER) \
    /* with --fp8-moments, which are codes: scale_inv of their blocks */ \
    X(fp32, moment_inv, 2, t * g->fp8_moments * (g->own.end_block - g->own.block), OPTIMIZER) \
    /* --grad-comm bf16 or fp8: a shard's gradient as it is sent, and amax of its tensors of all \
       processes; what others send; what shards leave */ \
    X(byte, wire, 1, t * (g->grad_comm > 0) * wire_width(g) * g->param_count, REUSED) \
    X(int, wire_amax, world.size, t * (g->grad_comm == COMM_FP8) * TENSORS(g), REUSED) \
    X(byte, incoming, world.size, t * (world.size > 1) * PIECE * 4, REUSED) \
    X(byte, left, world.size, t * (g->shards > 1) * shard_rounds(g) * SHARD_SCALES, REUSED) \
    /* made of the master weights once a step by gpt_refresh_weights() */ \
    X(operand, weights, L, copies * ROOM(OPERAND_W, 12 * C * C), REUSED) \
    X(byte, weights_t, L, fp8 * t * ROOM(OPERAND_W, 12 * C * C), REUSED)  /* turned, for dgrad */ \
    /* of the four matrices in turn, each for all layers */ \
    X(stored, biases, 1, copies * L * 9 * C, REUSED) \
    /* [Vp, C] likewise; the fp32 build reads the master */ \
    X(stored, head_w, 1, copies * Vp * C, REUSED) \
    X(byte, head_q, 1, head8 * Vp * C, REUSED)           /* [Vp, C] likewise */ \
    X(byte, head_t, 1, head8 * t * Vp * C, REUSED)       /* [C, Vp] turned */ \
    /* for products that --bf16 names: weights, */ \
    X(stored, w16, w16_layers, 12 * C * C, REUSED) \
    X(stored, x16, x16_layers, 6 * R * C, KEPT)          /* and what wgrad keeps */ \
    /* of operands in blocks: scales of the weights' two copies, */ \
    X(fp32, w_inv, 2 * L, BLOCKS(OPERAND_W) * SCALE_ROOM(OPERAND_W, 12 * C * C, 4), REUSED) \
    /* of what wgrad keeps, */ \
    X(fp32, kept_inv, L, BLOCKS(OPERAND_X) * SCALE_ROOM(OPERAND_X, 7 * R * C, 4), KEPT) \
    /* of x and of dy as they pass */ \
    X(fp32, inv, 1, \
        MAX(BLOCKS(OPERAND_X) * (SCALE_ROOM(OPERAND_X, 4 * R * C, 4) + R), \
            2 * BLOCKS(OPERAND_DY) * (SCALE_ROOM(OPERAND_DY, 4 * R * C, 4) + R)), REUSED) \
    /* [R, C] before attention, before the MLP, and at the end */ \
    X(stored, residual, 2 * L + 1, R * C, KEPT) \
    X(fp32, ln_mean, 2 * L + 1, R, KEPT) \
    X(fp32, ln_rstd, 2 * L + 1, R, KEPT) \
    /* ln1, ln2, gelu: inputs of the linear layers, for wgrad; of those that */ \
    X(operand, ln1, again, ROOM(OPERAND_X, R * C), KEPT) \
    X(operand, ln2, again, ROOM(OPERAND_X, R * C), KEPT) /* are made again, one layer's exist */ \
    X(operand, gelu, again, ROOM(OPERAND_X, R * 4 * C), KEPT) /* [R, 4C]; FP8: [4C, R] */ \
    X(stored, qkv, L, R * 3 * C, KEPT)                 /* [R, 3C]; a KV cache while sampling */ \
    X(stored, att, L, R * C, KEPT)                     /* [R, C] attention's output */ \
    X(fp32, lse, L, R * NH, KEPT)                      /* [B, NH, T] */ \
    X(stored, fc, L, R * 4 * C, KEPT)                  /* [R, 4C] before the GELU */ \
    X(stored, lnf, 1, R * C, KEPT)                     /* [R, C] input of the head */ \
    X(byte, lnf_q, 1, head8 * slab * C, REUSED)          /* [slab, C] */ \
    X(byte, lnf_t, 1, head8 * t * slab * C, REUSED)      /* [C, slab] */ \
    /* [R, 4C] a linear layer's input that has to be whole before it is quantized */ \
    X(stored, x, 1, fp8 * R * 4 * C, REUSED) \
    /* [R, 4C] bytes that only a forward product reads */ \
    X(byte, x_bytes, 1, fp8 * ROOM(OPERAND_X, R * 4 * C), REUSED) \
    /* [C, R] bytes that a wgrad reads */ \
    X(byte, x_turned, 1, fp8 * t * ROOM(OPERAND_X, R * C), REUSED) \
    /* a weight matrix that has to be whole */ \
    X(stored, rounded, 1, fp8 * 4 * C * C, REUSED) \
    /* [R, C] what is added to the residual stream */ \
    X(stored, y, 1, R * C, REUSED) \
    /* [R, 4C] x or dy after a Hadamard transform; sums of several products */ \
    X(stored, mixed, 1, t * ANY(hadamard) * R * 4 * C, REUSED) \
    X(fp32, sums, 1, ANY(split) * R * 4 * C, REUSED) \
    /* [slab, Vp], then dlogits at the beginning of each row, or as dy_bytes */ \
    X(fp32, logits, 1, slab * Vp, REUSED) \
    X(byte, dy_bytes, 1, fp8 * t * MAX(ROOM(OPERAND_DY, R * 4 * C), head8 * slab * Vp), REUSED) \
    X(byte, dy_turned, 1, fp8 * t * MAX(ROOM(OPERAND_DY, R * 4 * C), head8 * slab * Vp), REUSED) \
    /* [R, C] the gradient of the residual stream, walked backwards */ \
    X(stored, dresidual, 1, t * R * C, REUSED) \
    X(stored, dwide, 1, t * R * 4 * C, REUSED)           /* [R, 4C] */ \
    X(stored, dnarrow, 1, t * R * C, REUSED)             /* [R, C] */ \
    X(fp32, delta, 1, t * R * NH, REUSED)                /* [B, NH, T] */ \
    /* column sums by blocks of rows */ \
    X(fp32, partial_sums, 1, t * ceil_div(R, ROWS) * 4 * C, REUSED) \
    /* by chunks */ \
    X(fp64, sqnr, 1, \
        fp8 * 3 * (MAX(MAX(R, C) * 4 * C, head8 * MAX(slab, C) * Vp) / CHUNK + 1), REUSED) \
    /* the emulated path: operands, sums */ \
    X(stored, emulate_a, 1, emulates * MAX(R * 4 * C, head8 * slab * Vp), REUSED) \
    X(stored, emulate_b, 1, emulates * MAX(MAX(R, C) * 4 * C, head8 * Vp * C), REUSED) \
    X(fp32, emulate_sums, 1, emulates * MAX(MAX(R, C) * 4 * C, head8 * MAX(slab, C) * Vp), REUSED) \
    X(byte, lt_scales, 2, emulates * HAS_LT_BLOCKS * LT_SCALES(R, C), REUSED) \
    /* tokens, targets, rows by token: see Inputs */ \
    X(int, inputs, 1, INPUTS(R), REUSED) \
    /* squares of the gradient by chunks */ \
    X(fp32, norm_sums, 1, t * (g->param_count / CHUNK + 1), REUSED) \
    X(fp32, losses, 1, R, REUSED)                        /* [R] */
// clang-format on
#define BLOCKS(operand)                                                                            \
    (fp8 * (size_t)recipe_blocks(&g->recipes[operand])) // 1 where it is in blocks
// Room for so many elements of an operand; and for the scales of its blocks, of whatever shape, in
// so many matrices, of at most 4 C rows or columns, with so many elements together.
#define ROOM(operand, elements) operand_room(g, fp8, operand, elements)
#define SCALE_ROOM(operand, elements, matrices)                                                    \
    ((elements) / (g->recipes[operand].along < 32 ? 16 : 32) + (matrices)*16 * C)
// 1 where the recipe of some operand has this.
#define ANY(field)                                                                                 \
    (fp8 * (size_t)(g->recipes[OPERAND_X].field | g->recipes[OPERAND_W].field |                    \
                    g->recipes[OPERAND_DY].field))
typedef enum { OPTIMIZER, KEPT, REUSED, LIVES } Life;
#define TENSOR_FIELD(role, name, layers, count, life) role##_t *name;
// Each tensor is an allocation of its own, so that compute-sanitizer sees an access beyond it.
#define TENSOR_MAKE(role, name, layers, count, life)                                               \
    bytes = (layers) * (count)*role_size(STORAGE_##role, precision);                               \
    if (bytes >= 1 << 20) bytes = round_up(bytes, 2 << 20); /* as cudaMalloc does */               \
    if (part) part[life] += bytes;                                                                 \
    else g->name = (role##_t *)device_allocate(bytes);                                             \
    if (!part && g->name && life == OPTIMIZER) device_zero(g->name, bytes);

// What the host writes for a micro-batch, in one piece: int32 tokens [R], targets [R], order [R]
// and buckets [R + 1] (encoder_backward), and the number of buckets.
#define INPUTS(R) (4 * (R) + 2)
typedef struct {
    int *tokens, *targets, *order, *buckets, *count;
} Inputs;
static Inputs inputs_at(int *p, size_t R) {
    return {p, p + R, p + 2 * R, p + 3 * R, p + 4 * R + 1};
}

typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
} AdamW;
// What the host writes for a step, and what it reads when the step is done.
typedef struct {
    float grad_scale; // d(objective) / d(loss of a token)
    AdamW adamw;
    float correct1, correct2;     // 1 / (1 - beta^t)
    double grad_clip, loss_scale; // 0: no clipping
    uint64_t moments_key;         // of their stochastic rounding
} StepInputs;
typedef struct {
    double loss, norm;      // the sum of the losses; of the unscaled gradient
    double waited;          // seconds, as a ShardScale has it; in the end of all processes
    unsigned long long cut; // gradients that FP8 saturated
    float update_scale; // what AdamW multiplies gradients by; 0: the step is skipped, since loss or
                        // norm is not finite
    unsigned nonfinite; // 1: the update made a weight that is not finite; or the NONFINITE_MARK of
                        // a gradient that was added
} StepResults;

// Section 17, if there are several processes. world_bcast(), world_any() move what the host has,
// the others what the device has, as work of STREAM. `root` has the data, and all get them.
// device_max() takes the largest of all processes' x[i]. sent[q] goes to process q, and got[q]
// comes from it. What stands between group_begin() and group_end() may begin together. world_any():
// whether `yes` is true in any process; it waits for all.
#define WORLD_MAX 4096 // processes
typedef struct {
    void *data;
    size_t bytes;
} Message;
#ifdef USE_NCCL
static void world_open(void);
static void world_join(void);
static void world_bcast(void *data, size_t bytes, int root);
static void world_trade(const Message *sent, const Message *got);
static int world_any(int yes);
static void device_bcast(void *data, size_t bytes, int root);
static void device_max(unsigned *x, size_t n);
static void group_begin(void);
static void group_end(void);
#else
#define world_open()                    (void)0
#define world_join()                    (void)0
#define world_bcast(data, bytes, root)  (void)(data), (void)(bytes), (void)(root)
#define world_any(yes)                  (yes)
#define device_bcast(data, bytes, root) (void)(data), (void)(bytes), (void)(root)
#define device_max(x, n)                (void)0
#define group_begin()                   (void)0
#define group_end()                     (void)0
static void world_trade(const Message *, const Message *) {}
#endif
// Each process has `each` bytes at its place among all of them, and all get all.
static void world_gather(void *data, size_t each) {
    for (int q = 0; q < world.size; q++) world_bcast((char *)data + q * each, each, q);
}
static void device_gather(void *data, size_t each) {
    for (int q = 0; q < world.size; q++) device_bcast((char *)data + q * each, each, q);
}
// The parameters whose moments and gradients' sum a process owns: it updates them. Blocks of
// moments, and matrices that are quantized whole, have one owner.
typedef struct {
    size_t begin, end;
    size_t reach;            // up to which it sums: whole chunks, for the norm
    size_t block, end_block; // its blocks of moments
} Slice;

// Phases of a step on the device: the weights' bytes, the update, and micro-batches, to which is
// added what they do: one begins a shard's gradients, one ends them, in the first round of shards
// or in the last. (LAST_ROUND alone: a process without a shard in it takes part in the exchange.)
enum {
    PHASE_REFRESH,
    PHASE_UPDATE,
    PHASE_MICRO_BATCH,
    BEGINS = 1,
    ENDS = 2,
    FIRST_ROUND = 4,
    LAST_ROUND = 8,
    PHASES = PHASE_MICRO_BATCH + 16
};
// The host's side of a step: two buffers of inputs, taken in turn, and what a step consists of,
// from the second on.
typedef struct {
    int *inputs[2], *seen; // [V] scratch
    long prepared;         // the micro-batch that was made last
    cudaEvent_t sent[2];   // the device has them
    StepInputs *inputs_of_step;
    StepResults *results;
    cudaGraphExec_t graphs[PHASES];
    int warm;                                 // a step was done, so that all products are made
    int graphs_own_amax;                      // Gpt.own_amax when they were captured
    long graph_steps;                         // steps that were graphs
    long graph_passes[PHASE_MICRO_BATCH + 1]; // quantizing passes in the graphs of each phase,
                                              // apart from kernels that make operands
} StepHost;

typedef struct {
    // what was asked for, before allocation
    Config config;
    int B;         // sequences in a batch; activations have room for B * T positions
    int training;  // gradients and moments exist
    int shards;    // parts of a step's micro-batches, each with a gradient of its own
    int grad_comm; // COMM_FP32 ..
    int fp8_head;
    int recompute; // the backward pass makes outputs of layernorm and GELU again
    int logits16;  // logits have the stored type
    int fp8_moments;
    uint64_t seed; // of stochastic rounding
    ScalingRecipe recipes[NOPERAND];
    uint8_t bf16[LAYERS_MAX][NLIN];  // bit p: product p of that linear layer stays in bf16
    uint8_t split[LAYERS_MAX][NLIN]; // it reads both numbers of split operands

    ParamSpec params[NPARAM];
    size_t param_count, held; // all; those whose master weights this process holds
    Slice own;
    GPT_TENSORS(TENSOR_FIELD) // all on the device
    int weights_ready;        // what products read is made of the master weights as they are

    // FP8 scales: [L][NLIN][NOPERAND], then the head's NOPERAND. On the host as they were when last
    // read.
    Fp8Scale *scales, *device_scales;
    ScaleInUse *scales_in_use; // on the device
    int scale_count;
    int own_amax; // how many scales have no history yet, and come from their tensor: only fewer

    float loss_scale;        // a power of two; 1 unless the build or recipe needs it
    float good_steps;        // steps in a row without an overflow
    float logged_loss_scale; // of the last finished step, for scales.tsv and the table at the end
    int loss_scale_fixed;    // --loss-scale off or N: it never changes
    int first;    // a shard's first micro-batch: gradients of wte and of linear layers' weights are
                  // written, not added
    int exchange; // while gradients leave as they are made: ENDS, FIRST_ROUND, LAST_ROUND; else 0
    unsigned nonfinite; // the last step's StepResults.nonfinite
    Record record;      // of x and dy: NONE but in a training step, so that validation and sampling
                        // leave no trace
    Record record_weights;   // of the weights, for the next step: they may be made in a validation
                             // before it
    StepInputs *step_inputs; // on the device
    StepResults *step_results; // on the device
    StepHost host;
    char attention[64];        // whose it is: own, or cuDNN and its version
    const char *attention_why; // what cuDNN said if it was asked and did not take it
} Gpt;
static size_t gpt_rows(const Gpt *g) { return round_up((size_t)g->B * g->config.T + 15, 16); }

// Shards of a process, at most.
static size_t shard_rounds(const Gpt *g) { return ceil_div(g->shards, world.size); }
static size_t wire_width(const Gpt *g) { return 4 >> g->grad_comm; }
// ---- slices begin
// The parameter tensor that element `at` of an arena is in.
static int param_at(const Gpt *g, size_t at) {
    int id = 0;
    while (id < NPARAM - 1 && at >= g->params[id + 1].offset) id++;
    return id;
}
// Where process q's slice begins: at q / size of all parameters, or the next place at which a block
// of moments begins and, among the linear layers' weights, a matrix.
static size_t slice_begin(const Gpt *g, int q) {
    const size_t at = g->param_count * q / world.size;
    if (q == world.size) return at;
    const int id = param_at(g, at);
    const ParamSpec *s = &g->params[id];
    const size_t size = s->rows * s->cols, unit = param_is_linear(id) ? size : MOMENT_BLOCK,
                 end = s->offset + s->layers * size;
    size_t begin = s->offset + round_up(at - s->offset, unit);
    while (begin < end && (begin - s->offset) % MOMENT_BLOCK) begin += unit;
    return MIN(begin, end);
}
static Slice slice_of(const Gpt *g, int q) {
    const size_t begin = slice_begin(g, q), end = slice_begin(g, q + 1), n = g->param_count;
    const Slice s = {begin, end, begin < end ? MIN(round_up(end, CHUNK), n) : end,
                     MOMENT_BLOCKS(begin, begin < n ? param_at(g, begin) : NPARAM),
                     MOMENT_BLOCKS(end, end < n ? param_at(g, end) : NPARAM)};
    return s;
}
// The process that owns parameter `at`.
static int slice_owner(const Gpt *g, size_t at) {
    int q = world.size - 1;
    while (slice_begin(g, q) > at) q--;
    return q;
}
// Whether this process holds a tensor's master weights whole: all but those of linear layers, of
// which the others read copies only. (The fp32 build has none.)
static int param_is_whole(int id) {
    return world.size == 1 || PRECISION == PRECISION_FP32 || !param_is_linear(id);
}
// Decides what this process owns and holds.
static void slices_make(Gpt *g) {
    g->held = 0;
    g->own = slice_of(g, world.rank);
    for (int id = 0; id < NPARAM; id++) {
        ParamSpec *s = &g->params[id];
        const size_t end = s->offset + s->layers * s->rows * s->cols;
        s->from = param_is_whole(id) ? s->offset : MIN(MAX(g->own.begin, s->offset), end);
        s->to = param_is_whole(id) ? end : MIN(MAX(g->own.end, s->offset), end);
        s->at = g->held;
        g->held += s->to - s->from;
    }
}
// ---- slices end

// How many elements of a buffer n elements of an operand take: in the FP8 build, bytes.
static size_t operand_room(const Gpt *g, int fp8, int which, size_t n) {
    const ScalingRecipe *r = &g->recipes[which];
    return !fp8 ? n : r->split ? 2 * n : r->format == DTYPE_E2M1 ? n / 2 : n;
}
// How many of the first `end` layers have one of these products in bf16.
static size_t layers_in_bf16(const Gpt *g, int end, int products) {
    size_t n = 0;
    for (int l = 0; l < end; l++)
        n += ((g->bf16[l][0] | g->bf16[l][1] | g->bf16[l][2] | g->bf16[l][3]) & products) != 0;
    return n;
}

static int recipes_emulated(const ScalingRecipe *a, const ScalingRecipe *b) {
    return product_emulated(a->format, b->format, a->across, a->along, b->across, b->along);
}
// Whether some product of the recipe takes the emulated path, and so its scratch.
static int gpt_emulates(const Gpt *g) {
    const ScalingRecipe *x = &g->recipes[OPERAND_X], *w = &g->recipes[OPERAND_W],
                        *dy = &g->recipes[OPERAND_DY];
    return recipes_emulated(x, w) || recipes_emulated(dy, w) || recipes_emulated(dy, x);
}

// Adds the bytes of every tensor to part[LIVES], in a build of the given precision (the plan also
// asks for another's); without it, allocates them.
static void tensors_make(Gpt *g, int precision, size_t *part) {
    const Config *c = &g->config;
    const size_t R = gpt_rows(g), C = c->C, L = c->L, NH = c->NH, Vp = c->Vp,
                 slab = MIN(R, HEAD_ROWS), t = g->training != 0;
    const size_t fp8 = precision == PRECISION_FP8, head8 = fp8 && g->fp8_head,
                 copies = precision != PRECISION_FP32;
    const size_t again = g->recompute ? 1 : L,
                 emulates = fp8 && (BLOCKS(OPERAND_X) | BLOCKS(OPERAND_W) | BLOCKS(OPERAND_DY) |
                                    ANY(split) | gpt_emulates(g));
    const size_t w16_layers = fp8 * layers_in_bf16(g, c->L, READ_W),
                 x16_layers = fp8 * t * layers_in_bf16(g, c->L, 1 << WGRAD);
    size_t bytes;
    g->param_count = param_specs(g->params, c);
    g->shards = MAX(g->shards, 1);
    slices_make(g);
    g->scale_count = IS_FP8 ? (c->L * NLIN + 1) * NOPERAND : 0;
    GPT_TENSORS(TENSOR_MAKE)
}

// How much CUDA loads onto the device with the kernels, at most.
#define PROGRAM_BYTES ((size_t)96 << 20)
typedef struct {
    // Bytes; kept_fp16: what the FP16 build keeps for the same model; alone: parameters and
    // optimizer of a process that owns all.
    size_t part[LIVES], kept_fp16, alone, total;
} MemoryPlan;
static MemoryPlan memory_plan(Gpt *g) {
    MemoryPlan plan = {};
    size_t fp16[LIVES] = {0}, alone[LIVES] = {0};
    const int rank = world.rank, size = world.size;
    world.rank = 0;
    world.size = 1;
    tensors_make(g, PRECISION, alone);
    world.rank = rank;
    world.size = size;
    tensors_make(g, PRECISION_FP16, fp16);
    tensors_make(g, PRECISION, plan.part);
    plan.alone = alone[OPTIMIZER];
    plan.kept_fp16 = fp16[KEPT];
    plan.part[REUSED] +=
        g->scale_count * (sizeof(Fp8Scale) + sizeof(ScaleInUse)) + LT_WORKSPACE + PROGRAM_BYTES;
    plan.part[REUSED] += cudnn_bytes();
    plan.total = plan.part[OPTIMIZER] + plan.part[KEPT] + plan.part[REUSED];
    return plan;
}

// Copies the scales from the device to the host; below, those of a new or loaded state to the
// device, where they are put to use.
static void gpt_scales_read(Gpt *g) {
    if (g->scale_count) device_read(g->scales, g->device_scales, g->scale_count * sizeof(Fp8Scale));
    g->own_amax = 0;
    for (int i = 0; i < g->scale_count; i++) {
        const int head = i >= g->scale_count - NOPERAND;
        g->own_amax += recipe_remembers(&g->scales[i].recipe) && g->scales[i].amax_count == 0 &&
                       (!head || g->fp8_head);
    }
}
static void gpt_scales_write(Gpt *g) {
    const int count = g->scale_count;
    ScaleInUse *use = (ScaleInUse *)memory_allocate(count * sizeof(*use));
    for (int i = 0; i < count; i++) { // of blocks 1, also in a product that is never in FP8
        Fp8Scale *s = &g->scales[i];
        scale_use(s, &use[i], recipe_blocks(&s->recipe) ? 1 : s->scale);
    }
    if (count) device_write(g->scales_in_use, use, count * sizeof(*use));
    if (count) device_write(g->device_scales, g->scales, count * sizeof(Fp8Scale));
    free(use);
    gpt_scales_read(g);
}

// The recipe of scale i. The last is the head's dy: gpt_forward_device() sets its scale, from the
// bound of dlogits, so that its amax is only logged.
static ScalingRecipe gpt_recipe(const Gpt *g, int i) {
    ScalingRecipe r = g->recipes[i % NOPERAND];
    const int linear = i / NOPERAND, layer = linear / NLIN;
    r.split &= layer < g->config.L && g->split[layer][linear % NLIN];
    r.stochastic &= layer < g->config.L; // the head's slabs have no element numbers of their own
    if (i < g->scale_count - 1) return r;
    r.rule = SCALING_CONSTANT;
    r.number = 1;
    r.across = r.along = 0;
    return r;
}
static void step_host_make(Gpt *g) {
    StepHost *h = &g->host;
    const size_t bytes = INPUTS(gpt_rows(g)) * sizeof(int);
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMallocHost((void **)&h->inputs[i], bytes));
        memset(h->inputs[i], 0, bytes);
        CUDA(cudaEventCreateWithFlags(&h->sent[i], cudaEventDisableTiming));
        CUDA(cudaEventRecord(h->sent[i], STREAM));
    }
    CUDA(cudaMallocHost((void **)&h->inputs_of_step, sizeof(StepInputs)));
    CUDA(cudaMallocHost((void **)&h->results, sizeof(StepResults)));
    h->seen = (int *)memory_allocate(g->config.V * sizeof(int));
    h->prepared = -1;
}
static void gpt_allocate(Gpt *g) {
    const size_t R = gpt_rows(g), C = g->config.C;
    tensors_make(g, PRECISION, NULL);
    g->scales = (Fp8Scale *)memory_allocate(g->scale_count * sizeof(Fp8Scale));
    for (int i = 0; i < g->scale_count; i++) {
        Fp8Scale *s = &g->scales[i];
        s->recipe = gpt_recipe(g, i);
        s->scale = s->logged_scale = s->recipe.rule == SCALING_CONSTANT ? s->recipe.number : 1;
        s->scale_inv[0] = s->scale_inv[1] = 1;
        s->random = random_u64(g->seed, NPARAM, i); // gpt_init() has the streams before
    }
    g->device_scales = (Fp8Scale *)device_allocate(g->scale_count * sizeof(Fp8Scale));
    g->scales_in_use = (ScaleInUse *)device_allocate(g->scale_count * sizeof(ScaleInUse));
    gpt_scales_write(g);
    g->step_inputs = (StepInputs *)device_allocate(sizeof(StepInputs));
    g->step_results = (StepResults *)device_allocate(sizeof(StepResults));
    emulation.a = g->emulate_a;
    emulation.b = g->emulate_b;
    emulation.sums = g->emulate_sums;
    for (int i = 0; i < 2 && g->lt_scales; i++)
        emulation.scales[i] = g->lt_scales + i * LT_SCALES(R, C);
    attention_init();
    g->loss_scale = 1;
    if (g->training) step_host_make(g);
}

// Layer l of parameter `id` in g->grad, or in g->master, if this process holds it.
static float *gpt_param(const Gpt *g, float *arena, int id, int l) {
    const ParamSpec *s = &g->params[id];
    const size_t at = s->offset + l * s->rows * s->cols;
    return !arena ? NULL : arena + (arena == g->master ? s->at + (at - s->from) : at);
}

// An array of which each process has the part that it owns, so many bytes a parameter or a block of
// moments. slice_move() returns all of it, in g->grad, which is free between steps; or it takes
// this process's part from there.
static void slices_share(const Gpt *g, void *all, size_t per_param, size_t per_block) {
    for (int q = 0; q < world.size; q++) {
        const Slice s = slice_of(g, q);
        const size_t from = per_param * s.begin + per_block * s.block;
        device_bcast((char *)all + from, per_param * s.end + per_block * s.end_block - from, q);
    }
    device_wait(); // a process may end after this
}
static void *slice_move(const Gpt *g, void *own, size_t per_param, size_t per_block, int take) {
    const Slice *s = &g->own;
    const size_t from = per_param * s->begin + per_block * s->block,
                 bytes = per_param * s->end + per_block * s->end_block - from;
    char *all = (char *)g->grad;
    if (world.size == 1 || per_param + per_block == 0) return own;
    device_copy(take ? own : all + from, take ? all + from : own, bytes);
    if (!take) slices_share(g, all, per_param, per_block);
    return all;
}
// The master weights of all, in g->grad likewise.
static float *masters_gather(const Gpt *g) {
    if (world.size == 1) return g->master;
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        device_copy(g->grad + s->from, g->master + s->at, (s->to - s->from) * 4);
    }
    slices_share(g, g->grad, 4, 0);
    return g->grad;
}

// GPT-2's initialization: normal(0, 0.02), projections into the residual stream scaled down, biases
// 0, layernorm 1. Element pairs come from one Box-Muller draw, addressed by tensor and index: the C
// file's numbers to the last bit.
KERNEL init_kernel(float *w, size_t from, size_t n, size_t used, float std, float value,
                   uint64_t seed, int id) {
    const size_t i = from + ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 2;
    if (i >= n) return;
    const double u = 1.0 - random_unit(random_u64(seed, id, i)),
                 turn = random_unit(random_u64(seed, id, i + 1));
    const double radius = sqrt(-2.0 * log_fixed_order(u)) * std;
    double part[2];
    sincos_turns(turn, &part[1], &part[0]);
    for (size_t k = i; k < MIN(i + 2, n); k++) // rows of the padded vocabulary are zero
        w[k - from] = k < used ? value + (float)(part[k - i] * radius) : 0;
}
static void gpt_init(Gpt *g, uint64_t seed) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        const size_t from = s->from - s->offset, n = s->to - s->offset,
                     used = id == WTE ? g->config.V * s->cols : n;
        if (from < n)
            RUN(init_kernel, ceil_div(n - from, 2 * THREADS), g->master + s->at, from, n, used,
                s->init_std, s->init_value, seed, id);
    }
    g->weights_ready = 0;
}

// The scale of an operand: what gpt_linear() and gpt_head() add the tensor and the bytes to.
static Operand gpt_operand(const Gpt *g, int l, int linear, int which) {
    const int i = (l * NLIN + linear) * NOPERAND + which;
    Operand o = {};
    o.recipe = g->scales[i].recipe;
    o.s = g->device_scales + i;
    o.use = g->scales_in_use + i;
    o.own_amax = scale_is_own(&g->scales[i]);
    return o;
}

// What linear layer i of layer l keeps for wgrad.
static operand_t *gpt_kept(const Gpt *g, int l, int i) {
    operand_t *const kept[NLIN] = {g->ln1, NULL, g->ln2, g->gelu};
    const size_t layer = g->recompute ? 0 : l;
    const size_t n = gpt_rows(g) * g->params[linear_param[i]].cols;
    return kept[i] + operand_room(g, IS_FP8, OPERAND_X, layer * n);
}
// The input of linear layer i of layer l in 16 bits. A wgrad in bf16 keeps it.
static stored_t *gpt_input(const Gpt *g, int l, int i) {
    // Inputs are C wide; fcproj's, the last one, is 4 C wide.
    static const size_t start[NLIN] = {0, 0, 1, 2};
    const size_t RC = gpt_rows(g) * g->config.C;
    if (i == LIN_ATTPROJ) return g->att + l * RC; // attention's backward pass reads it, too
    if (!IS_FP8) return (stored_t *)gpt_kept(g, l, i);
    if (!g->training || !(g->bf16[l][i] & 1 << WGRAD)) return g->x;
    return g->x16 + (layers_in_bf16(g, l, 1 << WGRAD) * 6 + start[i]) * RC;
}
// A transformer layer has 12 C^2 weights. Where those of its linear layers begin, in units of C^2:
static const size_t weights_start[NLIN] = {0, 3, 4, 8};
// The FP8 build's operands of a linear layer.
static void gpt_linear_bytes(const Gpt *g, int l, int i, Linear *f) {
    const size_t C = g->config.C, RC = gpt_rows(g) * C, start = weights_start[i] * C * C;
    const size_t w_room = SCALE_ROOM(OPERAND_W, 12 * C * C, 4);
    const size_t w_at = operand_room(g, 1, OPERAND_W, l * 12 * C * C + start);
    const int all = g->training ? ALL_PRODUCTS : 1 << FPROP, bf16 = g->bf16[l][i] & all;
    f->fp8 = all & ~bf16;
    f->split = g->split[l][i];
    f->signs = random_u64(g->seed, NPARAM, UINT64_MAX);
    f->mixed = g->mixed;
    f->sums = g->sums;
    for (int o = 0; o < NOPERAND; o++) {
        f->operand[o] = gpt_operand(g, l, i, o);
        f->operand[o].stored_too = (bf16 & products_of(o)) != 0;
    }
    Operand *x = &f->operand[OPERAND_X], *w = &f->operand[OPERAND_W], *dy = &f->operand[OPERAND_DY];
    x->stored_too |= i == LIN_ATTPROJ;
    x->bytes[0] = g->x_bytes;
    const int turned = g->kept_inv || !recipe_simple(&x->recipe); // no kernel turns these bytes
    if (i == LIN_FCPROJ || (turned && i != LIN_ATTPROJ))
        x->bytes[1] = g->training ? (uint8_t *)gpt_kept(g, l, i) : NULL;
    else if (i != LIN_ATTPROJ) x->bytes[0] = (uint8_t *)gpt_kept(g, l, i);
    w->tensor =
        w->stored_too ? g->w16 + layers_in_bf16(g, l, READ_W) * 12 * C * C + start : g->rounded;
    w->bytes[0] = (uint8_t *)g->weights + w_at;
    w->bytes[1] = g->training ? g->weights_t + w_at : NULL;
    dy->bytes[0] = g->dy_bytes;
    dy->bytes[1] = g->dy_turned;
    x->inv[0] = dy->inv[0] = g->inv;
    if (g->inv) dy->inv[1] = g->inv + SCALE_ROOM(OPERAND_DY, 4 * RC, 4) + gpt_rows(g);
    // Inputs are C wide, the last one 4 C, so that those of a layer start at i C.
    if (g->kept_inv)
        x->inv[1] =
            g->kept_inv + l * SCALE_ROOM(OPERAND_X, 7 * RC, 4) + SCALE_ROOM(OPERAND_X, i * RC, i);
    if (!g->w_inv) return;
    w->inv[0] = g->w_inv + 2 * l * w_room + SCALE_ROOM(OPERAND_W, start, i);
    w->inv[1] = w->inv[0] + w_room;
}
// One of the four linear layers of layer l.
static Linear gpt_linear(const Gpt *g, int l, int i) {
    const size_t C = g->config.C, start = weights_start[i];
    const int id = linear_param[i]; // of the weight; its bias is next
    Linear f = {};
    Operand *x = &f.operand[OPERAND_X], *w = &f.operand[OPERAND_W], *dy = &f.operand[OPERAND_DY];
    f.in = g->params[id].cols;
    f.out = g->params[id].rows;
    f.dw = gpt_param(g, g->grad, id, l);
    f.dbias = gpt_param(g, g->grad, id + 1, l);
    f.first = g->first;
    f.partial = g->partial_sums;
    f.sqnr = g->sqnr;
    if (PRECISION == PRECISION_FP32) {
        w->tensor = (stored_t *)gpt_param(g, g->master, id, l);
        f.bias = (stored_t *)gpt_param(g, g->master, id + 1, l);
    } else {
        w->tensor = (stored_t *)(g->weights + (l * 12 + start) * C * C);
        f.bias = g->biases + start * C * g->config.L + l * f.out;
    }
    if (IS_FP8) gpt_linear_bytes(g, l, i, &f);
    x->tensor = gpt_input(g, l, i);
    x->columns = x->stride = w->columns = w->stride = f.in;
    dy->columns = dy->stride = f.out;
    return f;
}

// The head, logits = lnf wte^T, for the rows of lnf from `row` on. FP8 with --fp8-head only, and
// never in blocks: options_recipes() refuses that.
static Linear gpt_head(const Gpt *g, size_t row) {
    Linear f = {};
    Operand *x = &f.operand[OPERAND_X], *w = &f.operand[OPERAND_W], *dy = &f.operand[OPERAND_DY];
    uint8_t *const bytes[NOPERAND][2] = {
        {g->lnf_q, g->lnf_t}, {g->head_q, g->head_t}, {g->dy_bytes, g->dy_turned}};
    for (int o = 0; o < NOPERAND && g->head_q; o++) {
        f.operand[o] = gpt_operand(g, g->config.L, 0, o);
        for (int way = 0; way < 2; way++) f.operand[o].bytes[way] = bytes[o][way];
    }
    f.dw = g->grad; // wte's are first
    f.first = g->first && row == 0;
    f.in = g->config.C;
    f.out = g->config.Vp;
    f.sqnr = g->sqnr;
    if (g->head_q) f.fp8 = g->training ? ALL_PRODUCTS : 1 << FPROP;
    x->tensor = g->lnf + row * f.in;
    x->unfused = 1;
    w->tensor = PRECISION == PRECISION_FP32 ? (stored_t *)g->master : g->head_w;
    dy->tensor = (stored_t *)g->logits;
    x->columns = x->stride = w->columns = w->stride = f.in;
    dy->columns = f.out;
    dy->stride = DLOGITS_STRIDE(f.out, g->logits16 ? sizeof(stored_t) : sizeof(float));
    return f;
}

// Makes the copies of a master weight that its products read: rounded to the stored type, then
// bytes in both directions. One pass does both if the scale is known.
static void weight_refresh(const Linear *f, const float *master, Record record) {
    tiles_run(MasterSource{master, f->in}, operand_tiles(f, OPERAND_W, f->out, record));
    operand_quantize(f, OPERAND_W, f->out, NULL, record);
}

// The process that owns the weight of linear layer i of layer l and makes what products read of it;
// this goes to all others: in the FP8 build bytes, and the scale. Bytes that only lie in another
// order are turned there.
static int weight_owner(const Gpt *g, int l, int i) {
    const ParamSpec *s = &g->params[linear_param[i]];
    return slice_owner(g, s->offset + l * s->rows * s->cols);
}
static void weight_share(Gpt *g, int l, int i) {
    const int from = weight_owner(g, l, i);
    const Linear f = gpt_linear(g, l, i);
    const Operand *w = &f.operand[OPERAND_W];
    const size_t n = f.in * f.out, C = g->config.C;
    uint8_t *const bytes[2] = {operand_bytes(&f, OPERAND_W, 0), operand_bytes(&f, OPERAND_W, 1)};
    const int turns = bytes[0] && bytes[1] && !w->inv[0] && recipe_simple(&w->recipe);
    group_begin();
    if (!IS_FP8 || w->stored_too) device_bcast(w->tensor, n * sizeof(stored_t), from);
    for (int way = 0; way < 2 - turns; way++) {
        if (bytes[way]) device_bcast(bytes[way], operand_room(g, 1, OPERAND_W, n), from);
        if (w->inv[way]) device_bcast(w->inv[way], SCALE_ROOM(OPERAND_W, n, 1) * 4, from);
    }
    if (IS_FP8) device_bcast(w->s, sizeof(*w->s), from);
    if (IS_FP8) device_bcast(w->use, sizeof(*w->use), from);
    group_end();
    if (turns && from != world.rank) bytes_turn(bytes[1], bytes[0], f.out, f.in);
}

// Makes the operand copies of the master weights, once after each update, when a forward pass first
// needs them. The scale is the one that checkpoints hold, so that a resumed run makes the same
// bytes. What is quantized is the weight rounded to the stored type.
static void gpt_refresh_weights(Gpt *g) {
    if (g->weights_ready) return;
    g->weights_ready = 1;
    if (PRECISION == PRECISION_FP32) return;
    const Record record = MAX(g->record_weights, RECORD_STATS);
    const Linear head = gpt_head(g, 0);
    weight_refresh(&head, g->master, record);
    for (int i = 0; i < NLIN; i++) {
        const Linear first = gpt_linear(g, 0, i);
        Tiles t = tiles(g->config.L, first.out); // the biases of all layers
        t.out = (stored_t *)first.bias;
        tiles_run(MasterSource{gpt_param(g, g->master, linear_param[i] + 1, 0), first.out}, t);
        for (int l = 0; l < g->config.L; l++) {
            const Linear f = gpt_linear(g, l, i);
            if (weight_owner(g, l, i) == world.rank)
                weight_refresh(&f, gpt_param(g, g->master, linear_param[i], l), record);
        }
    }
    for (int i = 0; world.size > 1 && i < g->config.L * NLIN; i++)
        weight_share(g, i / NLIN, i % NLIN);
}

// Where layernorm, attention and classifier write an operand, as operand_tiles() says; turned bytes
// are none of theirs.
static Written operand_written(const Linear *f, int which, Record record) {
    const Tiles t = operand_tiles(f, which, 0, record);
    return {t.out, t.q, t.quantizer};
}
// The layernorms are counted along the residual stream: 2l and 2l + 1 in layer l, before attention
// and before the MLP, and 2L at the end. The bias is the parameter after the weight.
static int layernorm_param(const Gpt *g, int norm) {
    return norm == 2 * g->config.L ? LNFW : norm % 2 ? LN2W : LN1W;
}

// residual[norm] = residual[norm - 1] + y, the output of the block between them (NULL: it is
// there); normed = layernorm of it.
static void gpt_layernorm_forward(Gpt *g, int norm, const stored_t *y, Written normed,
                                  size_t rows) {
    const int id = layernorm_param(g, norm), l = norm / 2 % g->config.L;
    const size_t R = gpt_rows(g), C = g->config.C;
    stored_t *residual = g->residual + norm * R * C;
    residual_layernorm_forward(residual, normed, g->ln_mean + norm * R, g->ln_rstd + norm * R,
                               y ? residual - R * C : residual, y, gpt_param(g, g->master, id, l),
                               gpt_param(g, g->master, id + 1, l), rows, C);
}
static Written gpt_written(const Gpt *g, int l, int i) {
    const Linear f = gpt_linear(g, l, i);
    return operand_written(&f, OPERAND_X, g->record);
}
static void gpt_linear_forward(Gpt *g, int l, int i, stored_t *y, size_t rows) {
    const Linear f = gpt_linear(g, l, i);
    linear_forward(&f, y, STORED, rows, g->record);
}
// GELU of layer l's fc: the input of fcproj.
static void gpt_gelu_forward(Gpt *g, const Linear *fcproj, int l, size_t rows, Record record) {
    tiles_run(GeluSource{g->fc + l * gpt_rows(g) * fcproj->in, fcproj->in},
              operand_tiles(fcproj, OPERAND_X, rows, record));
}

// Completes what the wgrad of linear layer i reads of x, as the table at the top says. The scale is
// the forward pass's, which is in use still; so no amax is taken.
static void gpt_wgrad_input(Gpt *g, Linear *f, int l, int i, size_t rows) {
    const int fp8 = linear_in_fp8(f, WGRAD);
    Record record = RECORD_NONE;
    if (IS_FP8 && !fp8) return; // it was kept in bf16
    // Attention's output is kept in 16 bits, which its own backward pass reads.
    if (i == LIN_ATTPROJ) f->operand[OPERAND_X].bytes[1] = g->x_turned;
    Linear now = *f; // wgrad alone reads x now: no bytes are made for fprop, and no tensor
    Operand *x = &now.operand[OPERAND_X];
    now.fp8 &= 1 << WGRAD;
    x->own_amax = x->stored_too = 0;
    if (i == LIN_ATTPROJ) {
        x->unfused = 1;
        // Blocks that no forward product read are counted here.
        if (recipe_blocks(&x->recipe) && !linear_in_fp8(f, FPROP)) record = g->record;
    } else if (g->recompute && i == LIN_FCPROJ) gpt_gelu_forward(g, &now, l, rows, record);
    else if (g->recompute)
        gpt_layernorm_forward(g, 2 * l + (i == LIN_FC), NULL,
                              operand_written(&now, OPERAND_X, record), rows);
    if (i == LIN_ATTPROJ || g->recompute) operand_quantize(&now, OPERAND_X, rows, NULL, record);
    if (!fp8 || x->bytes[1]) return;
    bytes_turn(g->x_turned, x->bytes[0], rows, f->in);
    f->operand[OPERAND_X].bytes[1] = g->x_turned;
}
static void gradient_exchange(const Gpt *g, int tensor);
static void gradients_exchange_rest(const Gpt *g);
// dx and the gradients of linear layer i of layer l, from dy [rows, out]: the tensor, or where it
// is written if something reads it in 16 bits.
template <class Source>
static void gpt_linear_backward(Gpt *g, int l, int i, stored_t *dx, Source source, stored_t *dy,
                                size_t rows) {
    Linear f = gpt_linear(g, l, i);
    f.operand[OPERAND_DY].tensor = dy;
    gpt_wgrad_input(g, &f, l, i, rows);
    linear_backward(&f, dx, source, rows, g->record);
    if (g->exchange) gradient_exchange(g, linear_param[i] * g->config.L + l);
}

// dresidual += the layernorm's backward of dnarrow.
static void gpt_layernorm_backward(Gpt *g, int norm, size_t rows) {
    const int id = layernorm_param(g, norm), l = norm / 2 % g->config.L;
    const size_t R = gpt_rows(g), C = g->config.C;
    layernorm_backward(g->dresidual, gpt_param(g, g->grad, id, l), gpt_param(g, g->grad, id + 1, l),
                       g->dnarrow, g->residual + norm * R * C, g->ln_mean + norm * R,
                       g->ln_rstd + norm * R, gpt_param(g, g->master, id, l), g->partial_sums, rows,
                       C);
}

// The transformer up to the last layernorm: tokens [B, n] (on the device) at positions pos .. pos+n
// give lnf [B n, C]. pos > 0 (B = 1) continues a sequence whose keys and values lie in qkv.
static void gpt_forward_blocks(Gpt *g, const int *tokens, int B, int n, int pos) {
    const Config *c = &g->config;
    const size_t C = c->C, R = gpt_rows(g), rows = (size_t)B * n;
    gpt_refresh_weights(g);
    encoder_forward(g->residual, tokens, g->master, gpt_param(g, g->master, WPE, 0), B, n, pos,
                    c->C);
    for (int l = 0; l < c->L; l++) {
        stored_t *qkv = g->qkv + l * R * 3 * C;
        // The first layer's residual is the encoder's output.
        gpt_layernorm_forward(g, 2 * l, l ? g->y : NULL, gpt_written(g, l, LIN_QKV), rows);
        gpt_linear_forward(g, l, LIN_QKV, qkv + pos * 3 * C, rows);
        attention_forward(gpt_written(g, l, LIN_ATTPROJ), g->lse + l * R * c->NH, qkv, B, n, pos,
                          c->C, c->NH);
        gpt_linear_forward(g, l, LIN_ATTPROJ, g->y, rows);
        gpt_layernorm_forward(g, 2 * l + 1, g->y, gpt_written(g, l, LIN_FC), rows);
        gpt_linear_forward(g, l, LIN_FC, g->fc + l * R * 4 * C, rows);
        const Linear fcproj = gpt_linear(g, l, LIN_FCPROJ);
        gpt_gelu_forward(g, &fcproj, l, rows, g->record);
        gpt_linear_forward(g, l, LIN_FCPROJ, g->y, rows);
    }
    Written lnf = {};
    lnf.stored = g->lnf;
    gpt_layernorm_forward(g, 2 * c->L, g->y, lnf, rows);
}

// g->logits [rows, Vp] = lnf wte^T for rows from `row` on.
static void head_forward(Gpt *g, Dtype logit, size_t row, size_t rows) {
    const Linear f = gpt_head(g, row);
    linear_forward(&f, g->logits, logit, rows, g->record);
}

// dlogits are bounded by grad_scale, so their scale needs no amax.
KERNEL head_scale_kernel(Fp8Scale *s, ScaleInUse *use, const float *grad_scale) {
    const float max = fp8_max(s->recipe.format);
    for (s->scale = 1; s->scale * *grad_scale * 2 <= max;) s->scale *= 2;
    scale_use(s, use, s->scale);
}

// Adds the losses, in nats, of g->inputs' tokens [B, n] against their targets (-1: not counted) to
// the step's results. With grads the head's backward pass runs slab by slab, so that logits never
// exist whole; the step's inputs hold the gradient's scale.
static void gpt_forward_device(Gpt *g, int B, int n, int grads) {
    const size_t rows = (size_t)B * n;
    const Inputs in = inputs_at(g->inputs, gpt_rows(g));
    const float *grad_scale = grads ? &g->step_inputs->grad_scale : NULL;
    gpt_forward_blocks(g, in.tokens, B, n, 0);
    const Linear head = gpt_head(g, 0);
    const Operand dy = head.operand[OPERAND_DY];
    if (head.fp8 && grads) LAUNCH(head_scale_kernel, 1, 1, 0, STREAM, dy.s, dy.use, grad_scale);
    for (size_t row = 0; row < rows; row += HEAD_ROWS) {
        const size_t slab = MIN(rows - row, HEAD_ROWS);
        const Linear f = gpt_head(g, row);
        Written d = {}; // an FP8 head's dlogits are written as bytes
        if (grads) d = operand_written(&f, OPERAND_DY, g->record);
        head_forward(g, g->logits16 ? STORED : DTYPE_FP32, row, slab);
        classifier(g->losses + row, g->logits, g->logits16, d, in.targets + row, slab, g->config.V,
                   g->config.Vp, grad_scale);
        stored_t *dx = g->dnarrow + row * f.in;
        if (d.q) {
            bytes_turn(f.operand[OPERAND_DY].bytes[OVER_ROWS], d.q, slab, f.out);
            linear_gradients(&f, dx, slab);
        } else if (grads)
            linear_backward(&f, dx, StoredSource{dy.tensor, dy.stride}, slab, g->record);
    }
    loss_add(&g->step_results->loss, g->losses, rows);
}

// Sum of the losses of tokens [B, n] against targets, without gradients; both on the host.
static double gpt_loss(Gpt *g, const int *tokens, const int *targets, int B, int n) {
    const Inputs in = inputs_at(g->inputs, gpt_rows(g));
    StepResults results;
    device_write(in.tokens, tokens, (size_t)B * n * sizeof(int));
    device_write(in.targets, targets, (size_t)B * n * sizeof(int));
    device_zero(g->step_results, sizeof(results));
    gpt_forward_device(g, B, n, 0);
    device_read(&results, g->step_results, sizeof(results));
    return results.loss;
}

// The logits [V] of the last of n tokens at positions pos .. pos+n; all on the host.
static void gpt_logits(Gpt *g, float *logits, const int *tokens, int n, int pos) {
    const Inputs in = inputs_at(g->inputs, gpt_rows(g));
    device_write(in.tokens, tokens, n * sizeof(int));
    gpt_forward_blocks(g, in.tokens, 1, n, pos);
    head_forward(g, DTYPE_FP32, n - 1, 1);
    device_read(logits, g->logits, g->config.V * sizeof(float));
}

// Gradients of everything below the head, written or added to g->grad. Runs after
// gpt_forward_device() with grads.
static void gpt_backward(Gpt *g, int B, int n) {
    const Config *c = &g->config;
    const size_t C = c->C, R = gpt_rows(g), rows = (size_t)B * n;
    const Inputs in = inputs_at(g->inputs, R);
    device_zero(g->dresidual, rows * C * sizeof(stored_t));
    gpt_layernorm_backward(g, 2 * c->L, rows);
    for (int l = c->L - 1; l >= 0; l--) {
        const StoredSource dresidual = {g->dresidual, C};
        gpt_linear_backward(g, l, LIN_FCPROJ, g->dwide, dresidual, g->dresidual, rows);
        gpt_linear_backward(g, l, LIN_FC, g->dnarrow,
                            GeluBackwardSource{g->dwide, g->fc + l * R * 4 * C, 4 * C}, g->dwide,
                            rows);
        gpt_layernorm_backward(g, 2 * l + 1, rows);
        gpt_linear_backward(g, l, LIN_ATTPROJ, g->dnarrow, dresidual, g->dresidual, rows);
        attention_backward(g->dwide, g->delta, g->dnarrow, g->att + l * R * C,
                           g->lse + l * R * c->NH, g->qkv + l * R * 3 * C, B, n, c->C, c->NH);
        gpt_linear_backward(g, l, LIN_QKV, g->dnarrow, StoredSource{g->dwide, 3 * C}, g->dwide,
                            rows);
        gpt_layernorm_backward(g, 2 * l, rows);
    }
    encoder_backward(g->grad, gpt_param(g, g->grad, WPE, 0), g->dresidual, in.tokens, in.order,
                     in.buckets, in.count, MIN((int)R, c->V), B, n, c->C);
    if (g->exchange) gradients_exchange_rest(g);
}

// Draws from softmax(logits / temperature) with u in [0, 1), walking the tokens in order;
// temperature 0 takes the best.
static int sample_token(const float *logits, int V, float temperature, double u) {
    int best = 0;
    for (int j = 1; j < V; j++)
        if (logits[j] > logits[best]) best = j;
    if (!(temperature > 0)) return best;
    double sum[2] = {0, 0}; // of all weights; of those up to j
    for (int pass = 0; pass < 2; pass++)
        for (int j = 0; j < V; j++) {
            const float weight = exp_fixed_order((logits[j] - logits[best]) / temperature);
            sum[pass] += weight;
            if (pass == 1 && sum[1] > u * sum[0]) return j;
        }
    return best;
}

// ==== 9. optimizer and step ======================================================================
INLINE double power_int(double x, long n) { // x^n by squaring, n >= 0
    double r = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) r *= x;
    return r;
}

// Sums of squares of the unscaled gradient by chunks, in the C file's order: 16 striped lanes and a
// tree. Half a warp has a chunk.
KERNEL norm_kernel(float *sums, const float *grad, size_t n, const StepInputs *in) {
    const size_t chunk = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 16,
                 begin = chunk * CHUNK, end = MIN(n, begin + CHUNK);
    const float scale = (float)(1 / in->loss_scale);
    float sum = 0;
    for (size_t i = begin + threadIdx.x % 16; i < end; i += 8 * 16) {
        float g[8]; // loads that are under way at once
        UNROLL for (int k = 0; k < 8; k++) g[k] = i + k * 16 < end ? grad[i + k * 16] * scale : 0;
        UNROLL for (int k = 0; k < 8; k++) sum += g[k] * g[k];
    }
    UNROLL for (int d = 8; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffff, sum, d, 16);
    if (threadIdx.x % 16 == 0 && begin < n) sums[chunk] = sum;
}
// The norm, and from it the factor that AdamW multiplies gradients by (clipping and loss scale); 0
// if norm or loss is not finite.
KERNEL_OF(1024)
norm_finish_kernel(StepResults *r, const float *sums, size_t chunks, const StepInputs *in) {
    double total = 0;
    for (size_t k = threadIdx.x; k < chunks; k += blockDim.x) total += sums[k];
    total = block_sum(total);
    if (threadIdx.x > 0) return;
    const double norm = r->norm = sqrt(total);
    const double clip = in->grad_clip > 0 && norm > in->grad_clip ? in->grad_clip / norm : 1;
    r->update_scale =
        norm - norm != 0 || r->loss - r->loss != 0 ? 0 : (float)(clip / in->loss_scale);
}
// Each process sums the chunks that begin in its slice.
static void gradient_norm(const Gpt *g) {
    const size_t n = g->param_count;
    float *sums = g->norm_sums;
#define FIRST_CHUNK(q) ceil_div(slice_begin(g, q), CHUNK)
    const size_t from = FIRST_CHUNK(world.rank), to = FIRST_CHUNK(world.rank + 1);
    if (from < to)
        RUN(norm_kernel, ceil_div((to - from) * 16, THREADS), sums + from, g->grad + from * CHUNK,
            MIN(n, to * CHUNK) - from * CHUNK, g->step_inputs);
    for (int q = 0; q < world.size; q++)
        device_bcast(sums + FIRST_CHUNK(q), (FIRST_CHUNK(q + 1) - FIRST_CHUNK(q)) * 4, q);
    LAUNCH(norm_finish_kernel, 1, 1024, 0, STREAM, g->step_results, sums, ceil_div(n, CHUNK),
           g->step_inputs);
}

// ---- moments in FP8 (FP8-LM, arXiv 2310.18313; COAT, arXiv 2410.19313)
typedef struct {
    float *of[2]; // m and v, or their codes
    float *inv;   // of codes, else NULL
    Slice own;    // that they are of
} Moments;
// Eight elements of m (k: 0) or v (1), of which 16 threads have a block, as numbers.
DEVICE void moment_read(const Moments *o, int k, float *x, size_t block, size_t i) {
    i -= o->own.begin;
    if (!o->inv) return load8(x, o->of[k] + i);
    const float inv = o->inv[2 * (block - o->own.block) + k];
    const Dtype d = k ? DTYPE_E5M2 : DTYPE_E4M3;
    uint32_t code[2];
    load_words<2>(code, (uint8_t *)o->of[k] + i);
    UNROLL for (int e = 0; e < 8; e++) x[e] = fp8_decode(code[e / 4] >> e % 4 * 8 & 0xff, d) * inv;
}
// Back, by a scale that the block's own amax makes. Rounding is stochastic, by one random number
// for m and v of an element: to nearest, a v beside a constant amax would never decay, since 0.95 v
// is nearest to v. Where v became 0 and m did not, a step would be m / eps: no v > 0 becomes 0.
// All threads of a warp call it; some only help to find amax.
DEVICE void moment_write(const Moments *o, int k, const float *x, size_t block, size_t i,
                         uint64_t key, bool writes) {
    const size_t at = i - o->own.begin;
    if (!o->inv && writes) store8(o->of[k] + at, x);
    if (!o->inv) return;
    ScalingRecipe r = {};
    r.format = k ? DTYPE_E5M2 : DTYPE_E4M3;
    const Fp8Format f = fp8_format(r.format);
    uint32_t code[2] = {0, 0};
    float amax = 0;
    UNROLL for (int e = 0; e < 8; e++) amax = fmaxf(amax, fabsf(x[e]));
    UNROLL for (int d = 8; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, d));
    const float scale = scale_from_amax(amax, 1, &r);
    UNROLL for (int e = 0; e < 8; e++) {
        const uint32_t u = float_bits(x[e] * scale), random = random_u32(key, i + e),
                       c = MIN(fp8_round_stochastic(u & 0x7fffffff, &f, random), f.max_code),
                       least = k && x[e] > 0;
        code[e / 4] |= (MAX(c, least) | (u >> 24 & 0x80)) << e % 4 * 8;
    }
    if (!writes) return;
    put((uint8_t *)o->of[k] + at, make_uint2(code[0], code[1]));
    o->inv[2 * (block - o->own.block) + k] = 1 / scale;
}

// AdamW with decoupled weight decay (Loshchilov and Hutter 2019), on matrices only. t: this
// update's number, from 1.
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
// One pass over all parameters of this process's slice, from which `grad` and the moments begin; a
// thread has eight, 16 threads a block of moments.
typedef struct {
    size_t end[NPARAM], size[NPARAM]; // size: of a layer's tensor
    size_t held[NPARAM];              // parameter i is weights[i + held]
    int decays[NPARAM], layers;
} ParamRanges;
static ParamRanges param_ranges(const Gpt *g) {
    ParamRanges r;
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        r.size[id] = s->rows * s->cols;
        r.end[id] = s->offset + s->layers * r.size[id];
        r.held[id] = s->at - s->from;
        r.decays[id] = s->decays;
    }
    r.layers = g->config.L;
    return r;
}
KERNEL_OF(THREADS)
adamw_kernel(float *weights, Moments o, const float *grad, ParamRanges ranges, const StepInputs *in,
             StepResults *results) {
    const size_t block = o.own.block + ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 16;
    const float grad_scale = results->update_scale;
    if (grad_scale == 0) return;
    int id = 0;
    while (id < NPARAM - 1 && block >= MOMENT_BLOCKS(ranges.end[id], id + 1)) id++;
    const size_t begin = id ? ranges.end[id - 1] : 0;
    const size_t i =
        begin + (block - MOMENT_BLOCKS(begin, id)) * MOMENT_BLOCK + threadIdx.x % 16 * 8;
    const bool here = i < MIN(ranges.end[id], o.own.end); // all tensors have whole eights
    const AdamW a = in->adamw;
    const float decay = ranges.decays[id] ? a.weight_decay : 0;
    float g[8], ms[8] = {0}, vs[8] = {0}, w[8];
    if (here) {
        load8(g, grad + (i - o.own.begin));
        load8(w, weights + (i + ranges.held[id]));
        moment_read(&o, 0, ms, block, i);
        moment_read(&o, 1, vs, block, i);
        UNROLL for (int k = 0; k < 8; k++) {
            const float d = g[k] * grad_scale;
            ms[k] = a.beta1 * ms[k] + (1 - a.beta1) * d;
            vs[k] = a.beta2 * vs[k] + (1 - a.beta2) * (d * d);
            const float step = ms[k] * in->correct1 / (sqrtf(vs[k] * in->correct2) + a.eps);
            w[k] -= a.lr * (step + decay * w[k]);
            if (!float_is_finite(w[k])) atomicOr(&results->nonfinite, 1u);
        }
        store8(weights + (i + ranges.held[id]), w);
    }
    moment_write(&o, 0, ms, block, i, in->moments_key, here);
    moment_write(&o, 1, vs, block, i, in->moments_key, here);
}
static void adamw_update(Gpt *g) {
    const size_t blocks = ceil_div((g->own.end_block - g->own.block) * 16, THREADS);
    if (blocks)
        RUN(adamw_kernel, blocks, g->master, Moments{{g->m, g->v}, g->moment_inv, g->own},
            g->grad + g->own.begin, param_ranges(g), g->step_inputs, g->step_results);
    g->weights_ready = 0;
}

// The learning rate of a step (from 0): linear warm-up, then a schedule to final * lr at the last
// step (constant: lr).
typedef enum { COSINE, LINEAR, CONSTANT, WSD } Schedule; // --schedule's words
static float schedule_lr(Schedule kind, float lr, float final, long step, long warmup, long steps) {
    if (step < warmup) return (float)(lr * (double)(step + 1) / (double)warmup);
    const double p =
        steps > warmup + 1 ? MIN((double)(step - warmup) / (double)(steps - 1 - warmup), 1) : 1;
    double factor = 1, s, c;
    sincos_turns(0.5 * p, &s, &c);
    if (kind == COSINE) factor = final + (1 - final) * 0.5 * (1 + c);
    if (kind == LINEAR) factor = 1 + (final - 1) * p;
    if (kind == WSD && p > 0.8)
        factor = 1 + (final - 1) * (p - 0.8) / 0.2; // warm-up, stable, decay over the last fifth
    return (float)(lr * factor);
}

// Dynamic loss scaling (Micikevicius et al. 2018): halved at an overflow, doubled after
// LOSS_SCALE_PATIENCE good steps. Powers of two: scaling and unscaling are exact.
#define LOSS_SCALE_INIT     65536.0f
#define LOSS_SCALE_MAX      16777216.0f
#define LOSS_SCALE_PATIENCE 1000
static int gpt_scales_loss(const Gpt *g) {
    return !g->loss_scale_fixed && (PRECISION == PRECISION_FP16 ||
                                    (IS_FP8 && g->recipes[OPERAND_DY].rule == SCALING_CONSTANT));
}
static void loss_scale_update(Gpt *g, int overflow) {
    if (!gpt_scales_loss(g)) return;
    g->good_steps = overflow ? 0 : g->good_steps + 1;
    if (overflow) g->loss_scale = MAX(g->loss_scale * 0.5f, 1);
    if (g->good_steps < LOSS_SCALE_PATIENCE) return;
    g->good_steps = 0;
    g->loss_scale = MIN(g->loss_scale * 2, LOSS_SCALE_MAX);
}

// ---- a step
typedef struct Run Run; // what one call of the program works with (section 12)
// Micro-batch `index`, counted from the first step on.
static void run_batch(Run *r, long index, int *tokens, int *targets);
typedef struct {
    long index, update;      // of this step, from 0; of AdamW's update in it, from 1
    int micro_batches, last; // last: of the run
    long tokens;             // of all micro-batches
    double grad_clip;        // largest norm; 0: no clipping
    AdamW adamw;
} Step;
typedef struct {
    double loss, norm;     // mean over the tokens; of the unscaled gradient
    int skipped;           // the loss scale was too high, so that the weights stay
    const char *nonfinite; // what is not finite, so that the run has to end; or NULL
} StepOutcome;

// ---- shards: the micro-batches of a step are split into g->shards parts. Each has a gradient, a
// loss and statistics of its own, and they are added in the order of the shards, by whoever holds
// them; so no bit depends on the number of processes. Process r of P has shards r, r + P and so on:
// those of one round follow each other, so that each can be added at once.
INLINE size_t shard_place(int shard, int shards, int processes) {
    return shard % processes * ceil_div(shards, processes) + shard / processes;
}
// A thread a scale, and one for the loss.
KERNEL shard_leave_kernel(ShardScale *to, Fp8Scale *scales, StepResults *r, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && i % NOPERAND != OPERAND_W) { // weights are made once a step
        to[i] = {scales[i].step, scales[i].scale};
        scales[i].step = {};
    }
    if (i != count) return;
    to[i] = {};
    to[i].step.signal = r->loss;
    to[i].step.noise = r->waited;
    r->loss = r->waited = 0;
}
static ShardScale *shard_scales(const Gpt *g, int shard) {
    return (ShardScale *)g->left + shard_place(shard, g->shards, world.size) * (g->scale_count + 1);
}
static void shard_leave(const Gpt *g, int shard) {
    if (g->shards > 1)
        RUN(shard_leave_kernel, ceil_div(g->scale_count + 1, THREADS), shard_scales(g, shard),
            g->device_scales, g->step_results, g->scale_count);
}
KERNEL shards_merge_kernel(Fp8Scale *scales, StepResults *r, const ShardScale *all, int count,
                           int shards, int processes) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > count || (i < count && i % NOPERAND == OPERAND_W)) return;
    Fp8Stats sum = {};
    for (int shard = 0; shard < shards; shard++) {
        const ShardScale *from = &all[shard_place(shard, shards, processes) * (count + 1) + i];
        stats_merge(&sum, &from->step);
        if (i < count) scales[i].scale = from->scale;
    }
    if (i < count) scales[i].step = sum;
    if (i < count) return;
    r->loss = sum.signal;
    for (size_t place = 0; place < ceil_div(shards, processes) * processes; place++)
        r->waited += all[place * (count + 1) + i].step.noise;
}
// All processes get what all shards left.
static void shards_merge(Gpt *g) {
    if (g->shards == 1) return;
    device_gather(g->left, shard_rounds(g) * SHARD_SCALES);
    RUN(shards_merge_kernel, ceil_div(g->scale_count + 1, THREADS), g->device_scales,
        g->step_results, (ShardScale *)g->left, g->scale_count, g->shards, world.size);
}

// --grad-comm fp8, after FP8-LM (arXiv 2310.18313): each tensor of a shard's gradient is sent as
// E4M3 with one scale, a power of two, which its own amax makes; so nothing saturates. FP8-LM adds
// the bytes themselves, so that all shards need one scale, and room in it for their sum; here
// decoded numbers are added in fp32. A value that is not finite makes all NaN.
INLINE float wire_scale(uint32_t amax) {
    ScalingRecipe r = {};
    r.format = DTYPE_E4M3;
    r.rounding = ROUNDING_POW2;
    return scale_from_amax(bits_float(amax), 1, &r);
}
// Eight numbers as they are sent.
DEVICE void wire_put(void *wire, size_t i, const float *v, int comm, float scale) {
    uint32_t w[4] = {0, 0, 0, 0};
    for (int k = 0; k < 8; k += 2)
        if (comm == COMM_BF16)
            w[k / 2] = bf16_from_float(v[k]) | (uint32_t)bf16_from_float(v[k + 1]) << 16;
        else w[k / 4] |= fp8_encode2(v[k] * scale, v[k + 1] * scale, DTYPE_E4M3) << k % 4 * 8;
    if (comm == COMM_BF16) put((uint16_t *)wire + i, make_uint4(w[0], w[1], w[2], w[3]));
    else put((uint8_t *)wire + i, make_uint2(w[0], w[1]));
}
DEVICE void wire_get(float *v, const void *wire, size_t i, int comm, float inv) {
    uint32_t w[4];
    if (comm == COMM_FP32) return load8(v, (const float *)wire + i);
    if (comm == COMM_BF16) load_words<4>(w, (const uint16_t *)wire + i);
    else load_words<2>(w, (const uint8_t *)wire + i);
    UNROLL for (int k = 0; k < 8; k++) v[k] =
        comm == COMM_BF16 ? float_from_bf16(w[k / 2] >> k % 2 * 16 & 0xffff)
                          : fp8_decode(w[k / 4] >> k % 4 * 8 & 0xff, DTYPE_E4M3) * inv;
}
// Neighboring tensors by number, [NPARAM][layers], with parameters at .. to. Every process adds a
// part of them.
typedef struct {
    size_t at, to;
    int tensor, tensors;
} Span;
// A tensor: returns where it begins; *end: where it ends.
INLINE size_t gradient_tensor(const ParamRanges *p, size_t i, size_t *end) {
    const size_t id = i / p->layers, at = (id ? p->end[id - 1] : 0) + i % p->layers * p->size[id];
    *end = MIN(at + p->size[id], p->end[id]);
    return at;
}
static size_t part_begin(const Span *s, int q) {
    return MIN(s->at + round_up((s->to - s->at) * q / world.size, 8), s->to);
}
// Row y of a grid has tensor y of a span; its threads take eights in turn.
#define EIGHTS(i, begin, end)                                                                      \
    for (size_t i = (begin) + ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < (end);      \
         i += (size_t)gridDim.x * blockDim.x * 8)
static dim3 span_grid(const Span *s) {
    return dim3(MIN(ceil_div(s->to - s->at, 8 * THREADS), 128), s->tensors);
}
// amax [tensors] of this process's gradient.
KERNEL gradient_amax_kernel(unsigned *amax, const float *grad, Span s, ParamRanges ranges) {
    size_t end;
    const size_t begin = gradient_tensor(&ranges, s.tensor + blockIdx.y, &end);
    uint32_t top = 0;
    EIGHTS(i, begin, end) {
        float v[8];
        load8(v, grad + i);
        UNROLL for (int k = 0; k < 8; k++) top = MAX(top, float_bits(v[k]) & 0x7fffffff);
    }
    top = __reduce_max_sync(0xffffffff, top);
    if (threadIdx.x % 32 == 0 && top) atomicMax(&amax[blockIdx.y], top);
}
KERNEL gradient_encode_kernel(uint8_t *wire, const float *grad, const unsigned *amax, Span s,
                              ParamRanges ranges, int comm) {
    size_t end;
    const size_t begin = gradient_tensor(&ranges, s.tensor + blockIdx.y, &end);
    const float scale = comm == COMM_FP8 ? wire_scale(amax[blockIdx.y]) : 1;
    EIGHTS(i, begin, end) {
        float v[8];
        load8(v, grad + i);
        wire_put(wire, i, v, comm, scale);
    }
}
// Where the amax of a span's tensors lie, [processes][tensors].
static unsigned *span_amax(const Gpt *g, const Span *s) {
    return g->wire_amax ? (unsigned *)g->wire_amax + (size_t)world.size * s->tensor : NULL;
}
// The shard's gradient as it is sent. In FP8 all processes get each other's amax: each fills its
// own row, in which all others have zeros, so that the maximum is every row. (A gather takes more
// messages.)
static void gradient_encode(const Gpt *g, Span s) {
    unsigned *amax = span_amax(g, &s), *mine = amax ? amax + world.rank * s.tensors : NULL;
    const ParamRanges ranges = param_ranges(g);
    const int sends = g->exchange & ENDS;
    if (amax) device_zero(amax, (size_t)world.size * s.tensors * 4);
    if (amax && sends) RUN(gradient_amax_kernel, span_grid(&s), mine, g->grad, s, ranges);
    if (sends)
        RUN(gradient_encode_kernel, span_grid(&s), g->wire, g->grad, mine, s, ranges, g->grad_comm);
    if (amax) device_max(amax, (size_t)world.size * s.tensors);
}
// A piece of a part: parameters at .. to, of tensors from `tensor` on.
typedef struct {
    size_t at, to, stride;
    const char *own, *incoming;     // gradients as sent: this process's; others', `stride` apart
    const float *sum;               // of the shards before; NULL: there are none
    float *out;                     // the sum with them
    int tensor, rank, inside, comm; // inside: processes that have a shard
} Piece;
// Adds in the order of the shards. Where a shard makes the sum infinite or NaN, it leaves a mark,
// of which the largest stays: of the lowest process q, then of the last layer, then of the last
// tensor.
#define NONFINITE_MARK(processes, q, layers, l, id)                                                \
    (2u + (((processes) - (q)) * (layers) + (l)) * NPARAM + (id))
KERNEL gradient_add_kernel(Piece p, const unsigned *amax, ParamRanges ranges, unsigned *nonfinite,
                           int processes) {
    size_t end;
    const size_t begin = MAX(gradient_tensor(&ranges, p.tensor + blockIdx.y, &end), p.at);
    end = MIN(end, p.to);
    EIGHTS(i, begin, end) {
        float x[8] = {0}, y[8];
        if (p.sum) load8(x, p.sum + (i - p.at));
        for (int q = 0; q < p.inside; q++) {
            float inv = 1;
            int finite = 1;
            if (p.comm == COMM_FP8) {
                const uint32_t top = amax[q * gridDim.y + blockIdx.y];
                inv = top < 0x7f800000 ? 1 / wire_scale(top) : NAN;
            }
            wire_get(y, q == p.rank ? p.own : p.incoming + q * p.stride, i - p.at, p.comm, inv);
            UNROLL for (int k = 0; k < 8; k++) {
                const int before = float_is_finite(x[k]);
                x[k] = !p.sum && q == 0 ? y[k] : x[k] + y[k];
                finite &= !before || float_is_finite(x[k]);
            }
            if (finite) continue;
            const int tensor = p.tensor + blockIdx.y, L = ranges.layers, id = tensor / L,
                      l = id >= LNFW ? L - 1 : tensor % L;
            atomicMax(nonfinite, NONFINITE_MARK(processes, q, L, l, id));
        }
        store8(p.out + (i - p.at), x);
    }
}
static Message elements(void *p, size_t begin, size_t end, size_t width) {
    return {(char *)p + begin * width, begin < end ? (end - begin) * width : 0};
}
// Every process gets its part of the span from this round's shards, piece by piece, and adds it to
// the sum, which in the last round takes the place of the shard's gradient.
static void gradient_add(const Gpt *g, Span s) {
    static Message sent[WORLD_MAX], got[WORLD_MAX];
    const int last = g->exchange & LAST_ROUND, sends = g->exchange & ENDS;
    const size_t width = wire_width(g), mine = part_begin(&s, world.rank),
                 end = part_begin(&s, world.rank + 1);
    char *out = (char *)(g->wire ? (void *)g->wire : g->grad);
    Piece p = {};
    p.tensor = s.tensor, p.rank = world.rank, p.comm = g->grad_comm;
    p.inside = last ? g->shards - (shard_rounds(g) - 1) * world.size : world.size;
    p.incoming = (char *)g->incoming, p.stride = PIECE * width;
    for (size_t at = 0; at < ceil_div(s.to - s.at, world.size) + 8; at += PIECE) {
        p.at = mine + at, p.to = MIN(p.at + PIECE, end), p.own = out + p.at * width;
        for (int q = 0; q < world.size; q++) {
            const size_t from = part_begin(&s, q) + at,
                         to = MIN(from + PIECE, part_begin(&s, q + 1));
            sent[q] = elements(out, from, sends ? to : 0, width);
            got[q] = elements(g->incoming + q * p.stride, 0,
                              q < p.inside && p.at < p.to ? p.to - p.at : 0, width);
        }
        world_trade(sent, got);
        p.out = g->grad_sum ? g->grad_sum + SUM_AT(s.at, s.tensor) + at : NULL;
        p.sum = g->exchange & FIRST_ROUND ? NULL : p.out;
        if (last) p.out = g->grad + p.at;
        if (p.at < p.to)
            RUN(gradient_add_kernel, span_grid(&s), p, span_amax(g, &s), param_ranges(g),
                &g->step_results->nonfinite, world.size);
    }
}
// Parts of the sum go to the tensors' owners.
static void span_share(const Gpt *g, Span s) {
    static Message sent[WORLD_MAX], got[WORLD_MAX];
    for (int q = 0; q < world.size; q++) {
        const Slice owned = slice_of(g, q);
        sent[q] = elements(g->grad, MAX(part_begin(&s, world.rank), owned.begin),
                           MIN(part_begin(&s, world.rank + 1), owned.reach), 4);
        got[q] = elements(g->grad, MAX(part_begin(&s, q), g->own.begin),
                          MIN(part_begin(&s, q + 1), g->own.reach), 4);
    }
    world_trade(sent, got);
}
// What is exchanged at once: a linear layer's weight, or all tensors up to the next of these.
static Span span_at(const Gpt *g, int tensor) {
    const int L = g->config.L;
    const ParamRanges ranges = param_ranges(g);
    size_t end;
    Span s = {gradient_tensor(&ranges, tensor, &end), 0, tensor, 1};
    int id = tensor / L;
    if (!param_is_linear(id)) {
        while (id < NPARAM && !param_is_linear(id)) id++;
        s.tensors = id * L - tensor;
    }
    gradient_tensor(&ranges, tensor + s.tensors - 1, &s.to);
    return s;
}
// The gradients of a span, once this round's shards have made them, from all processes to all: a
// reduce-scatter, in which each process adds a part, whoever owns the tensors. (If the owner of a
// matrix added it alone, its link would be the only one in use.) This is work of the second stream,
// under the backward pass of what comes next; in a graph, a branch.
static void gradient_exchange(const Gpt *g, int tensor) {
    const cudaStream_t stream = STREAM;
    const Span s = span_at(g, tensor);
    stream_follows(machine.second, stream);
    machine.stream = machine.second;
    if (g->wire) gradient_encode(g, s);
    gradient_add(g, s);
    machine.stream = stream;
}
#ifndef CUDA_ON_CPU
DEVICE uint64_t device_nanoseconds() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
#endif
KERNEL clock_kernel(double *seconds, int sign) {
    *seconds += sign * 1e-9 * (double)device_nanoseconds();
}
// What is left at the end of the backward pass, after which the first stream waits for the second.
static void gradients_exchange_rest(const Gpt *g) {
    const int tensors = TENSORS(g);
    double *waited = &g->step_results->waited;
    if (world.size > 1) LAUNCH(clock_kernel, 1, 1, 0, STREAM, waited, -1);
    for (int t = 0; t < tensors; t += span_at(g, t).tensors)
        if (!param_is_linear(t / g->config.L)) gradient_exchange(g, t);
    stream_follows(STREAM, machine.second);
    group_begin();
    for (int t = 0; t < tensors && g->exchange & LAST_ROUND; t += span_at(g, t).tensors)
        span_share(g, span_at(g, t));
    group_end();
    if (world.size > 1) LAUNCH(clock_kernel, 1, 1, 0, STREAM, waited, 1);
}
// The exchange alone: of a process that has no shard in the last round.
static void shards_add(Gpt *g, int does) {
    g->exchange = does;
    for (int k = g->config.L * NLIN - 1; k >= 0; k--)
        gradient_exchange(g, linear_param[k % NLIN] * g->config.L + k / NLIN);
    gradients_exchange_rest(g);
    g->exchange = 0;
}
// After the update: every process gets the master weights of the tensors that all hold whole.
static void masters_share(const Gpt *g) {
    group_begin();
    for (int id = 0; id < NPARAM; id++)
        for (int q = 0; q < world.size && param_is_whole(id); q++) {
            const ParamSpec *s = &g->params[id];
            const size_t from = MAX(slice_begin(g, q), s->from),
                         to = MIN(slice_begin(g, q + 1), s->to);
            if (from < to) device_bcast(g->master + s->at + (from - s->from), (to - from) * 4, q);
        }
    group_end();
}

// Sets gradients to zero, but for those of wte and of linear layers' weights, which the first
// micro-batch writes.
static void gradients_begin(Gpt *g) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        if (s->cols == 1 || id == WPE)
            device_zero(g->grad + s->offset, s->layers * s->rows * s->cols * sizeof(float));
    }
}
// The micro-batch whose random numbers are next; -1: the one after the last.
static void micro_batch_is(const Gpt *g, long at) {
    const size_t fp8 = IS_FP8;
    if (ANY(stochastic) > 0)
        RUN(micro_batch_kernel, ceil_div(g->scale_count, THREADS), g->device_scales, g->scale_count,
            at);
}
// A step has these phases on the device. From the second step on each is a CUDA graph, with what
// NCCL does, but for steps that record an SQNR. Whatever changes from step to step is in buffers
// that are written before. What the host decides is fixed when a graph is captured: the kernels of
// operands (which fuse, by recipe, own_amax and record), products, attention, shapes, --recompute.
static void phase_work(Gpt *g, int phase) {
    if (phase == PHASE_REFRESH) {
        g->weights_ready = 0;
        gpt_refresh_weights(g);
    } else if (phase == PHASE_MICRO_BATCH + LAST_ROUND) {
        shards_add(g, LAST_ROUND);
    } else if (phase >= PHASE_MICRO_BATCH) {
        const int does = phase - PHASE_MICRO_BATCH;
        g->first = does & BEGINS;
        if (g->first) gradients_begin(g);
        gpt_forward_device(g, g->B, g->config.T, 1);
        g->exchange = does & ENDS ? does : 0;
        gpt_backward(g, g->B, g->config.T);
        g->exchange = 0;
        micro_batch_is(g, -1);
    } else {
        gradient_norm(g);
        scales_advance(g->device_scales, g->scales_in_use, &g->step_results->cut, g->scale_count,
                       NOPERAND);
        adamw_update(g);
        device_max(&g->step_results->nonfinite, 1);
        masters_share(g);
    }
}
static void graphs_drop(StepHost *h) {
    for (int i = 0; i < PHASES; i++) {
        if (h->graphs[i]) CUDA(cudaGraphExecDestroy(h->graphs[i]));
        h->graphs[i] = NULL;
    }
}
static long graph_passes(const StepHost *h) { // of a step of one micro-batch
    return h->graph_passes[PHASE_REFRESH] + h->graph_passes[PHASE_UPDATE] +
           h->graph_passes[PHASE_MICRO_BATCH];
}
static void phase_run(Gpt *g, int phase, int as_graph) {
    StepHost *h = &g->host;
    cudaGraph_t graph;
    if (!as_graph) return phase_work(g, phase);
    if (!h->graphs[phase]) {
        // Relaxed, because a library may still load a kernel.
        CUDA(cudaStreamBeginCapture(STREAM, cudaStreamCaptureModeRelaxed));
        const long passes = quantize_passes;
        machine.captures = 1;
        phase_work(g, phase);
        machine.captures = 0;
        if (phase != PHASE_MICRO_BATCH + LAST_ROUND)
            h->graph_passes[MIN(phase, PHASE_MICRO_BATCH)] = quantize_passes - passes;
        CUDA(cudaStreamEndCapture(STREAM, &graph));
        CUDA(cudaGraphInstantiate(&h->graphs[phase], graph, 0));
        CUDA(cudaGraphDestroy(graph));
    }
    CUDA(cudaGraphLaunch(h->graphs[phase], STREAM));
    g->weights_ready = phase != PHASE_UPDATE; // as phase_work() leaves it
}

// Writes micro-batch `index` to one of two buffers, while the other may still be on its way to the
// device.
static void batch_prepare(Gpt *g, Run *run, long index) {
    StepHost *h = &g->host;
    const Inputs in = inputs_at(h->inputs[index % 2], gpt_rows(g));
    if (h->prepared == index) return;
    h->prepared = index;
    CUDA(cudaEventSynchronize(h->sent[index % 2]));
    run_batch(run, index, in.tokens, in.targets);
    *in.count =
        token_buckets(in.order, in.buckets, h->seen, in.tokens, g->B * g->config.T, g->config.V);
}
static void batch_send(Gpt *g, long index) {
    const size_t bytes = INPUTS(gpt_rows(g)) * sizeof(int);
    CUDA(cudaMemcpyAsync(g->inputs, g->host.inputs[index % 2], bytes, cudaMemcpyHostToDevice,
                         STREAM));
    CUDA(cudaEventRecord(g->host.sent[index % 2], STREAM));
}

// Whether gradients are added, or at least encoded, after a shard's last micro-batch.
static int gradients_travel(const Gpt *g) { return g->shards > 1 || g->wire; }
// The forward and backward passes of a shard's micro-batches.
static long shard_begin(const Gpt *g, const Step *s, int shard) { // its first one, of all steps
    return s->index * s->micro_batches + (long)shard * (s->micro_batches / g->shards);
}
static void gpt_shard(Gpt *g, const Step *s, Run *run, int shard, int as_graph) {
    const long first = shard_begin(g, s, shard), end = shard_begin(g, s, shard + 1);
    const int last = ENDS + FIRST_ROUND * (shard < world.size) +
                     LAST_ROUND * (shard / world.size == (int)shard_rounds(g) - 1);
    if (g->shards > 1) micro_batch_is(g, first);
    for (long micro = first; micro < end; micro++) {
        batch_prepare(g, run, micro);
        batch_send(g, micro);
        phase_run(g,
                  PHASE_MICRO_BATCH + BEGINS * (micro == first) +
                      last * (gradients_travel(g) && micro == end - 1),
                  as_graph);
    }
}
// What the host writes for a step.
static void step_inputs_make(const Gpt *g, const Step *s, StepInputs *in) {
    const AdamW *a = &s->adamw;
    in->adamw = *a;
    in->moments_key = random_u64(g->seed, 0xada3, s->update);
    in->correct1 = 1.0 / (1.0 - power_int(a->beta1, s->update));
    in->correct2 = 1.0 / (1.0 - power_int(a->beta2, s->update));
    in->grad_scale = g->loss_scale / (float)s->tokens;
    in->loss_scale = g->loss_scale;
    in->grad_clip = s->grad_clip;
}
// One optimizer step: micro-batches forward and backward, norm, scales, clipping, AdamW. A loss or
// gradient that is not finite ends the run before any weight changes. In FP16, while the loss scale
// is above 1, such a gradient skips the update and halves the loss scale instead.
static StepOutcome gpt_step(Gpt *g, const Step *s, Run *run) {
    StepHost *h = &g->host;
    StepInputs *in = h->inputs_of_step;
    const float loss_scale = g->loss_scale;
    // record_weights is the same in a step that makes the weights' bytes.
    const int as_graph = h->warm && g->record == RECORD_STATS;
    if (h->graphs_own_amax != g->own_amax) { // other kernels than before
        graphs_drop(h);
        h->graphs_own_amax = g->own_amax;
    }
    step_inputs_make(g, s, in);
    CUDA(cudaMemcpyAsync(g->step_inputs, in, sizeof(StepInputs), cudaMemcpyHostToDevice, STREAM));
    device_zero(g->step_results, sizeof(StepResults));
    if (!g->weights_ready) phase_run(g, PHASE_REFRESH, as_graph);
    for (size_t round = 0; round < shard_rounds(g); round++) {
        const int shard = round * world.size + world.rank;
        if (shard < g->shards) gpt_shard(g, s, run, shard, as_graph);
        else phase_run(g, PHASE_MICRO_BATCH + LAST_ROUND, as_graph);
        shard_leave(g, shard);
    }
    shards_merge(g);
    if (g->shards > 1) micro_batch_is(g, (s->index + 1) * s->micro_batches);
    phase_run(g, PHASE_UPDATE, as_graph);
    CUDA(cudaMemcpyAsync(h->results, g->step_results, sizeof(StepResults), cudaMemcpyDeviceToHost,
                         STREAM));
    if (!s->last) // while the device works
        batch_prepare(g, run, shard_begin(g, s, world.rank) + s->micro_batches);
    device_wait();
    world.waited = h->results->waited / world.size;
    h->warm = 1;
    h->graph_steps += as_graph;
    StepOutcome r = {h->results->loss / s->tokens, h->results->norm, !isfinite(h->results->norm),
                     NULL};
    if (!isfinite(r.loss)) r.nonfinite = "the loss is";
    else if (r.skipped && !(PRECISION == PRECISION_FP16 && loss_scale > 1))
        r.nonfinite = "the gradient is";
    else if (h->results->nonfinite && !r.skipped) r.nonfinite = "weights after the update are";
    g->nonfinite = h->results->nonfinite;
    if (r.nonfinite) return r;
    if (g->own_amax) gpt_scales_read(g); // which have a history now?
    loss_scale_update(g, r.skipped || h->results->cut);
    return r;
}

// ---- what the program asks for. Options of the GPU, beside those of the C file:
#define BACKEND       "an NVIDIA GPU"
#define BACKEND_WAITS "in exchanges behind the backward pass, by"
#ifndef USE_NCCL
#define WORLD_HELP ""
#elif defined(USE_MPI)
#define WORLD_HELP "With mpirun process N of a machine uses GPU N.\n"
#else
#define WORLD_HELP                                                                                 \
    "WORLD_SIZE processes, each with its RANK and, for its GPU, LOCAL_RANK, meet in the "          \
    "directory WORLD_DIR.\n"
#endif
#define BACKEND_HELP                                                                               \
    "The first GPU is used; CUDA_VISIBLE_DEVICES=N makes another one the first.\n" WORLD_HELP
#define BACKEND_LINES 128
// clang-format off
#define BACKEND_OPTIONS(X) \
    X(MAYBE, emulate, 0, "emulate", "[0|1]", FP8 | FREE, 0, 1, "0", \
        "FP8 products as bf16 ones of the same bytes") \
    X(CHOICE, attention, 0, "attention", "auto|own|cudnn", FREE, 0, 0, "auto", \
        "auto: cuDNN's where it takes the shape") \
    X(MAYBE, logits16, 0, "logits16", "[0|1]", FREE, 0, 1, "0", \
        "logits in 16 bits: less memory traffic, other losses")
// clang-format on

// #################################################################################################
// Part two: the program
// #################################################################################################

// ---- program begins
// The program around the trainer. From here to the line `program ends`, train_gpt_fp8.c and
// train_gpt_fp8.cu have the same text, which dev/check/same_program.sh copies and CI compares. What
// differs between a CPU and a GPU goes through these hooks. Part one defines:
// - device_read(), device_write(): copies between the host's memory and the model's
// - gpt_step(), gpt_loss(), gpt_logits(), gpt_refresh_weights(), gpt_scales_read(),
//   gpt_scales_write(): the model's work
// - world_open(), world_bcast(), world_gather(), world_any(): processes that train together
// - BACKEND, BACKEND_WAITS, BACKEND_HELP, BACKEND_OPTIONS, BACKEND_LINES: names, options that only
//   this file has, and room for their lines in a log
// Part three defines:
static const char *backend_name(void);                                     // for --version
static void backend_limits(const Config *c, long batch, int from_options); // refuses a shape
static void backend_open(Run *r);                  // finds the device, before anything is allocated
static MemoryPlan memory_check(Gpt *g);            // refuses a model that does not fit
static void backend_start(Run *r);                 // sets the device to work
static void backend_ready(Run *r);                 // the model is there; adds lines to the options
static void backend_header(FILE *f, const Run *r); // the log's lines about the machine
static void backend_note(const Run *r);            // what the user has to know beside them
static void backend_resumed(Run *r);               // what a log says again after a resume
static const char *backend_speed(double gflops, char *out); // of a step
static void backend_summary(const Run *r);                  // memory, at the end
// Whether the gradient of a tensor of layer l is not finite in this process.
static int gradient_nonfinite(const Gpt *g, int id, int l);

// ==== 10. data ===================================================================================
// Prints a file name into out[PATH_MAX].
__attribute__((format(printf, 2, 3))) static void path_print(char *out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    EXPECT(vsnprintf(out, PATH_MAX, format, args) < PATH_MAX, "a file name is too long: %.64s...",
           out);
    va_end(args);
}
static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
// A 64-bit checksum, eight bytes at a time. Each step maps states one to one, so a single changed
// byte always changes the result.
static uint64_t checksum(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    while (bytes > 0) {
        const size_t n = bytes < 8 ? 1 : 8; // the last ones singly
        uint64_t w = *p;
        if (n == 8) memcpy(&w, p, 8);
        h = (h ^ w) * 0x9fb21c651e98df25ull;
        h ^= h >> 32;
        p += n;
        bytes -= n;
    }
    return h;
}

// A data set is a list of files: llm.c token shards (uint16), or plain texts, whose bytes are the
// tokens. A window is T inputs and their T targets, which are one token further on. The seed and
// the step alone decide which windows a step reads.
#define SHARD_MAGIC     20240520
#define TOKENIZER_MAGIC 20240328
#define GPT2_VOCAB      50257
typedef int32_t FileHeader[256]; // at the start of each of llm.c's files

// ---- reading files
// A file is absent only if it does not exist. Any other failure to read it ends the program. Files
// are read in parts and never mapped: a file that shrinks is then an error and no SIGBUS, and its
// pages are not the program's memory.
typedef struct {
    const char *path;
    int fd; // -1: there is none
    size_t bytes;
    struct timespec time; // of its last change
    FileHeader header;    // its first bytes; what a short file lacks is 0
} File;

// Reads n bytes from offset `at`. The program ends if they are not there.
static void file_read(const File *f, size_t at, void *to, size_t n) {
    for (ssize_t got = 0; n > 0; at += got, n -= got, to = (char *)to + got) {
        got = pread(f->fd, to, n, at);
        EXPECT(got > 0, "%s: cannot read byte %zu: %s", f->path, at,
               got ? strerror(errno) : "it became shorter");
    }
}
// optional: the file need not exist, and may be empty.
static File file_open(const char *path, int optional) {
    struct stat st;
    // O_NONBLOCK: opening a pipe would wait for its writer.
    File f = {path, open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), 0, {0, 0}, {0}};
    if (optional && f.fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return f;
    EXPECT(f.fd >= 0 && !fstat(f.fd, &st), "%s: cannot open: %s", path, strerror(errno));
    EXPECT(S_ISREG(st.st_mode) && (optional || st.st_size),
           "%s: is empty, or a directory, pipe or device", path);
    f.bytes = st.st_size;
    f.time = st.st_mtim;
    file_read(&f, 0, f.header, MIN(f.bytes, sizeof(FileHeader)));
    return f;
}
// Reads bytes `at` to `end` of a file block by block. Returns the block at `at` and its size in *n.
// Every block but the last is a multiple of 8 bytes, as checksum() needs.
static const unsigned char *file_block(const File *f, size_t at, size_t end, size_t *n) {
    static unsigned char block[1 << 16] __attribute__((aligned(8)));
    *n = MIN(end - at, sizeof(block));
    file_read(f, at, block, *n);
    return block;
}

// Ends the program unless the number that was found in a file lies in min .. max.
static void file_expect(const char *path, const char *what, long found, long min, long max) {
    EXPECT(min < max || found == min, "%s: expected %s %ld, found %ld", path, what, min, found);
    EXPECT(found >= min && found <= max, "%s: expected %s of %ld to %ld, found %ld", path, what,
           min, max, found);
}

// ---- tables of text: `# key<TAB>value` lines, then rows of tab-separated columns
// A whole text, ended by a 0; NULL if there is no such file.
static char *text_read(const char *path) {
    const File f = file_open(path, 1);
    if (f.fd < 0) return NULL;
    char *text = (char *)memory_allocate(f.bytes + 1);
    file_read(&f, 0, text, f.bytes);
    close(f.fd);
    return text;
}

static void text_free(char *text) {
    memory_taken -= strlen(text);
    free(text);
}

// The value of a header line, copied to out[PATH_MAX]; empty if there is none. The last one counts:
// a run that goes on longer says so behind its rows.
static const char *text_value(const char *text, const char *key, char *out) {
    char line[128];
    snprintf(line, sizeof(line), "# %s\t", key);
    const char *at = "";
    for (const char *next = strstr(text, line); next; next = strstr(at, line))
        at = next + strlen(line);
    path_print(out, "%.*s", (int)strcspn(at, "\n"), at);
    return out;
}

// Reads numbers from the first n columns of a line and moves *at to the next line. Returns how many
// columns had numbers before the first that has none.
static int text_row(const char **at, double *row, int n) {
    int found = 0;
    for (const char *p = *at; found < n && !isspace((unsigned char)*p); found++) {
        char *end;
        row[found] = strtod(p, &end);
        if (end == p || (*end != '\t' && *end != '\n')) break;
        p = *end == '\t' ? end + 1 : end;
    }
    *at += strcspn(*at, "\n");
    *at += **at == '\n';
    return found;
}

// ---- token shards and texts
typedef struct {
    File file;
    size_t begin; // of this set's first token in it, in bytes
    int width;    // bytes a token, 1 or 2
    // Tokens, windows of an epoch, and by how many tokens they may shift.
    size_t count, windows, slack;
} Shard;
typedef struct {
    Shard *shards;
    int shard_count, V;
    size_t tokens, windows;
    uint64_t hash;        // of every token, their order, and how they are split into files
    unsigned char *bytes; // of the window that is being read
} Dataset;
static int token_at(const unsigned char *bytes, int width, size_t i) {
    return width == 1 ? bytes[i] : bytes[2 * i] | bytes[2 * i + 1] << 8;
}

// The last dot in a path's last part, or its end.
static const char *path_dot(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot && !strchr(dot, '/') ? dot : path + strlen(path);
}
static Shard shard_open(const char *path, int *V) {
    Shard s = {file_open(strdup(path), 0), 0, 1, 0, 0, 0};
    const int32_t *header = s.file.header;
    const char *dot = path_dot(path), *packed = strstr(".gz/.bz2/.xz/.zst/.zip/", dot);
    EXPECT(!packed || packed[strlen(dot)] != '/', "%s: is compressed; unpack it first", path);
    if (header[0] != SHARD_MAGIC && strcmp(dot, ".bin")) { // a text
        s.count = s.file.bytes;
        *V = 256;
        return s;
    }
    s.begin = sizeof(FileHeader);
    s.count = (uint32_t)header[2];
    s.width = 2;
    *V = header[3] ? header[3] : GPT2_VOCAB;
    const long bytes = sizeof(FileHeader) + 2 * s.count;
    file_expect(path, "a token shard (data/tokens.py) with magic number", header[0], SHARD_MAGIC,
                SHARD_MAGIC);
    file_expect(path, "shard version", header[1], 1, 1);
    file_expect(path, "a vocabulary", *V, 2, 65536);
    file_expect(path, "size in bytes, by its token count,", s.file.bytes, bytes, bytes);
    return s;
}

// The hash of every token, their order, and how they are split into files, which windows do not
// cross.
static uint64_t dataset_hash(const Dataset *d) {
    uint64_t hash = 0;
    for (int i = 0; i < d->shard_count; i++) {
        const Shard *s = &d->shards[i];
        hash ^= (s->file.bytes - s->begin) / s->width;
        for (size_t at = s->begin, n; at < s->file.bytes; at += n) {
            const unsigned char *block = file_block(&s->file, at, s->file.bytes, &n);
            hash = checksum(hash, block, n);
            for (size_t k = 0; s->width == 2 && k < n / 2; k++)
                EXPECT(token_at(block, 2, k) < d->V,
                       "%s: token %zu is %d, beyond its vocabulary of %d", s->file.path,
                       (at - s->begin) / 2 + k, token_at(block, 2, k), d->V);
        }
    }
    return hash;
}

// Opens, checks and hashes every file that matches the pattern, in sorted order.
static Dataset dataset_open(const char *pattern) {
    Dataset d = {NULL, 1, 0, 0, 0, 0, NULL};
    const char *const *paths = &pattern;
    static glob_t found;
    if (access(pattern, F_OK)) { // else it is the name of a file, whatever characters it has
        EXPECT(errno == ENOENT && !glob(pattern, GLOB_ERR, NULL, &found),
               "%s: %s; expected a text or a glob of shards (`make` writes data/tales.d)", pattern,
               strerror(errno));
        paths = (const char *const *)found.gl_pathv;
        d.shard_count = found.gl_pathc;
    }
    d.shards = (Shard *)memory_allocate(d.shard_count * sizeof(Shard));
    for (int i = 0, V = 0; i < d.shard_count; i++) {
        d.shards[i] = shard_open(paths[i], &V);
        EXPECT(i == 0 || V == d.V, "%s: expected the vocabulary of %s, %d, found %d", paths[i],
               paths[0], d.V, V);
        d.V = V;
        d.tokens += d.shards[i].count;
    }
    d.hash = dataset_hash(&d);
    globfree(&found);
    return d;
}

// Ends the program if the data changed since they were opened. Where only a file's time changed,
// they are hashed again, once.
static void dataset_check(Dataset *d, const char *name) {
    int same = 1, touched = 0;
    for (int i = 0; i < d->shard_count; i++) {
        File *f = &d->shards[i].file;
        struct stat st;
        same &= !fstat(f->fd, &st) && (size_t)st.st_size == f->bytes;
        touched |= memcmp(&st.st_mtim, &f->time, sizeof(f->time));
        f->time = st.st_mtim;
    }
    EXPECT(same && (!touched || dataset_hash(d) == d->hash),
           "%s: changed during the run; bring it back and resume", name);
}

// Moves the last tenth of `train` into a new data set and returns it.
static Dataset dataset_hold_out(Dataset *train) {
    Dataset val = *train;
    size_t keep = train->tokens - train->tokens / 10;
    val.shards = (Shard *)memory_allocate(train->shard_count * sizeof(Shard));
    val.shard_count = 0;
    val.tokens = 0;
    for (int i = 0; i < train->shard_count; i++) {
        Shard *s = &train->shards[i], rest = *s;
        s->count = MIN(s->count, keep);
        keep -= s->count;
        rest.begin += s->count * s->width;
        rest.count -= s->count;
        if (rest.count) {
            val.shards[val.shard_count++] = rest;
            val.tokens += rest.count;
        }
    }
    train->tokens -= val.tokens;
    return val;
}

// Divides the data into windows. spare: a file of more than 8 windows leaves one out, so that the
// windows of an epoch can be shifted.
static void dataset_windows(Dataset *d, const char *role, int T, int spare) {
    d->windows = 0;
    d->bytes = (unsigned char *)memory_allocate(2 * (T + 1));
    for (int i = 0; i < d->shard_count; i++) {
        Shard *s = &d->shards[i];
        s->windows = s->count > 0 ? (s->count - 1) / T : 0;
        if (s->windows > 8) s->windows -= spare;
        s->slack = s->windows ? s->count - 1 - s->windows * T : 0;
        d->windows += s->windows;
    }
    EXPECT(d->windows > 0,
           "%s data: no file fills a window of %d tokens; use more text or a smaller -t", role,
           T + 1);
}

// Reads window `index`, moved forward by `shift` (modulo what the shard allows).
static void dataset_window(const Dataset *d, size_t index, uint64_t shift, int *tokens,
                           int *targets, int T) {
    const Shard *s = d->shards;
    while (index >= s->windows) {
        index -= s->windows;
        s++;
    }
    const size_t at = index * T + shift % (s->slack + 1);
    file_read(&s->file, s->begin + at * s->width, d->bytes, (T + 1) * s->width);
    for (int t = 0; t < T; t++) {
        tokens[t] = token_at(d->bytes, s->width, t);
        targets[t] = token_at(d->bytes, s->width, t + 1);
    }
}

// A permutation of 0 .. n-1: four Feistel rounds on the next even power of two, repeated until the
// value is below n.
static uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
    int half = 1;
    while (half < 31 && (1ull << (2 * half)) < n) half++;
    const uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t l = i >> half, r = i & mask;
        for (uint64_t round = 0; round < 4; round++) {
            const uint64_t t = l ^ (random_u64(key, round, r) & mask);
            l = r;
            r = t;
        }
        i = l << half | r;
    } while (i >= n);
    return i;
}

// Reads B windows of the endless shuffled sequence, from number `first`. From the second epoch on
// they are shifted.
static void dataset_batch(const Dataset *d, uint64_t seed, uint64_t first, int *tokens,
                          int *targets, int B, int T) {
    for (int b = 0; b < B; b++) {
        const uint64_t i = first + b, epoch = i / d->windows, key = mix64(seed ^ mix64(epoch));
        dataset_window(d, permute(i % d->windows, d->windows, key), epoch ? mix64(key) : 0,
                       tokens + b * T, targets + b * T, T);
    }
}

// ---- the validation set, a fixed list of rows
// The rows are windows, spread evenly over the data. If a sidecar NAME.floor.tsv gives the exact
// surprisal of every story, they are whole stories, one at the start of each row. The loss then has
// a known floor.
typedef struct {
    int T;
    long rows;
    int *tokens, *targets; // [rows, T]; target -1: not counted
    double floor;          // nats a token below which no model can be on these rows; 0: unknown
    size_t counted;        // targets that count
    double bytes;          // of text that a target stands for, on average; 0: unknown
} ValidationSet;
static void validation_allocate(ValidationSet *v, long rows) {
    v->rows = rows;
    v->tokens = (int *)memory_allocate(rows * v->T * sizeof(int));
    v->targets = (int *)memory_allocate(rows * v->T * sizeof(int));
}

// Fills the set with at most `want` of the sidecar's stories. Returns 0 if one of them is longer
// than T.
static int validation_stories(ValidationSet *v, const Dataset *d, const char *path, long want) {
    const File *f = &d->shards->file;
    char *text = text_read(path), value[PATH_MAX];
    uint64_t hash = 14695981039346656037ull; // FNV-1a
    long stories = 0, index = 0, row = 0;
    double x[3], nats = 0; // x: offset, bytes and nats of a story
    if (!text) return 0;
    for (size_t at = 0, n; at < f->bytes; at += n) {
        const unsigned char *block = file_block(f, at, f->bytes, &n);
        for (size_t i = 0; i < n; i++) hash = (hash ^ block[i]) * 1099511628211ull;
    }
    EXPECT(strtoull(text_value(text, "fnv1a64", value), NULL, 16) == hash,
           "%s: not the sidecar of %s: expected hash %016llx, found '%s'", path, f->path,
           (unsigned long long)hash, value);
    for (const char *at = text; *at;) stories += text_row(&at, x, 3) == 3;
    EXPECT(atol(text_value(text, "stories", value)) == stories,
           "%s: expected %s stories, found %ld", path, value, stories);
    validation_allocate(v, stories < want ? stories : want);
    for (const char *at = text; *at && row < v->rows;) {
        if (text_row(&at, x, 3) != 3 || index++ != row * stories / v->rows) continue;
        EXPECT(x[0] >= 0 && x[1] > 0 && x[0] + x[1] <= f->bytes, "%s: story %ld lies beyond %s",
               path, index - 1, f->path);
        const long bytes = x[1];
        if (bytes > v->T) break;
        file_read(f, x[0], d->bytes, bytes);
        for (int t = 0; t < v->T; t++) { // a story starts after a newline
            v->tokens[row * v->T + t] = t == 0 || t >= bytes ? '\n' : d->bytes[t - 1];
            v->targets[row * v->T + t] = t < bytes ? d->bytes[t] : -1;
        }
        v->counted += bytes;
        nats += x[2];
        row++;
    }
    text_free(text);
    v->floor = row == v->rows ? nats / v->counted : 0;
    return row > 0 && row == v->rows;
}

static ValidationSet validation_open(Dataset *d, int T, long want) {
    ValidationSet v = {T, 0, NULL, NULL, 0, 0, 0};
    const Shard *s = d->shards;
    if (d->shard_count == 1 && s->width == 1 && s->count == s->file.bytes) {
        char path[PATH_MAX];
        path_print(path, "%.*s.floor.tsv", (int)(path_dot(s->file.path) - s->file.path),
                   s->file.path);
        if (validation_stories(&v, d, path, want)) return v;
    }
    if (want > (long)d->windows) dataset_windows(d, "validation", T, 0); // every window
    validation_allocate(&v, MIN(want, (long)d->windows));
    v.counted = v.rows * T;
    for (long i = 0; i < v.rows; i++)
        dataset_window(d, i * d->windows / v.rows, 0, v.tokens + i * T, v.targets + i * T, T);
    return v;
}

// ---- tokens to text and back
// Bytes need no file. GPT-2's vocabulary comes from llm.c's tokenizer file.
typedef struct {
    int V, separator; // the token between documents
    // [V] the bytes of each token; the byte before them is their number. NULL: no file.
    const unsigned char **text;
} Tokenizer;

static Tokenizer tokenizer_open(const char *path, int V) {
    size_t at = sizeof(FileHeader);
    const File f = file_open(path, 0);
    const int32_t *header = f.header;
    file_expect(path, "a tokenizer with magic number", header[0], TOKENIZER_MAGIC, TOKENIZER_MAGIC);
    file_expect(path, "tokenizer version", header[1], 2, 2);
    file_expect(path, "the model's vocabulary,", header[2], V, V);
    file_expect(path, "an end-of-text token", header[3], 0, V - 1);
    const Tokenizer t = {V, header[3],
                         (const unsigned char **)memory_allocate(V * sizeof(*t.text))};
    unsigned char *bytes = (unsigned char *)memory_allocate(f.bytes); // stays
    file_read(&f, 0, bytes, f.bytes);
    close(f.fd);
    for (int i = 0; i < V; i++) {
        EXPECT(at < f.bytes && at + bytes[at] < f.bytes, "%s: truncated at token %d of %d", path, i,
               V);
        t.text[i] = bytes + at + 1;
        at += 1 + bytes[at];
    }
    return t;
}

// GPT-2 splits a text into words and merges bytes only within a word. A word is the end of a
// contraction ('ll), or a run of letters, of digits or of other characters with the space before
// it, or a run of white space, without its last character if a word follows. This split is exact
// for ASCII. All other characters count as letters, which is approximate.
static int byte_kind(unsigned char c) {
    return c > 127 || isalpha(c) ? 'a' : isdigit(c) ? '1' : isspace(c) ? ' ' : c ? '!' : 0;
}
static int word_bytes(const char *text) { // the first word's
    static const char *const ends[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (int i = 0; i < COUNT(ends); i++)
        if (!strncmp(text, ends[i], strlen(ends[i]))) return strlen(ends[i]);
    int n = *text == ' ' && text[1];
    const int kind = byte_kind(text[n]);
    while (byte_kind(text[n]) == kind) n++;
    return n - (kind == ' ' && n > 1 && text[n]);
}
// The token whose bytes are the na of a and then the nb of b; V: there is none.
static int token_find(const Tokenizer *t, const void *a, int na, const void *b, int nb) {
    int i = 0;
    while (i < t->V && (t->text[i][-1] != na + nb || memcmp(t->text[i], a, na) ||
                        memcmp(t->text[i] + na, b, nb)))
        i++;
    return i;
}
// Byte pair encoding. GPT-2's tokens are numbered in the order of their merges, so the pair of
// neighbours that makes the lowest token is merged, again and again. tokens[n]: at first those of a
// word's bytes. Returns how many remain. pairs: scratch, n numbers.
static int word_merge(const Tokenizer *t, int *tokens, int *pairs, int n) {
    for (int i = 0; i < n; i++) pairs[i] = -1; // what tokens i and i + 1 make: not known yet
    for (;; n--) {
        int best = 0;
        for (int i = 0; i + 1 < n; i++) {
            const unsigned char *a = t->text[tokens[i]], *b = t->text[tokens[i + 1]];
            if (pairs[i] < 0) pairs[i] = token_find(t, a, a[-1], b, b[-1]);
            if (pairs[i] < pairs[best]) best = i;
        }
        if (n < 2 || pairs[best] == t->V) return n;
        tokens[best] = pairs[best];
        memmove(tokens + best + 1, tokens + best + 2, (n - best - 2) * sizeof(int));
        memmove(pairs + best, pairs + best + 1, (n - best - 1) * sizeof(int));
        pairs[best] = -1;
        if (best > 0) pairs[best - 1] = -1;
    }
}
// The tokens of a text: its bytes, or GPT-2's. Returns how many there are. out has room for two
// numbers a byte.
static int tokenizer_encode(const Tokenizer *t, const char *text, int *out) {
    int n = 0;
    for (int bytes; *text; text += bytes) {
        bytes = t->text ? word_bytes(text) : 1;
        for (int i = 0; i < bytes; i++) {
            const int byte = (unsigned char)text[i];
            out[n + i] = t->text ? token_find(t, text + i, 1, "", 0) : byte;
            EXPECT(out[n + i] < t->V, "option --tokenizer: its file has no token for byte %d",
                   byte);
        }
        n += t->text ? word_merge(t, out + n, out + n + bytes, bytes) : bytes;
    }
    return n;
}
// The bytes of text that a target of the set stands for, on average. The token between documents is
// no text and has none. Returns 0 where a vocabulary's texts are unknown.
static double tokenizer_bytes(const Tokenizer *t, const ValidationSet *v) {
    size_t bytes = 0;
    if (!t->text) return t->V == 256;
    for (long i = 0; i < v->rows * v->T; i++) {
        const int target = v->targets[i];
        if (target >= 0 && target != t->separator) bytes += t->text[target][-1];
    }
    return (double)bytes / v->counted;
}
// Prints a token's bytes; control characters, which a terminal would obey, become '?'. Without a
// tokenizer file, and where that has no text, it prints the token's number.
static void token_print(const Tokenizer *t, int token) {
    const unsigned char byte = token, *text = t->text ? t->text[token] : &byte;
    const int bytes = t->text ? text[-1] : t->V == 256;
    if (!bytes) printf("<%d>", token);
    for (int i = 0; i < bytes; i++) {
        const int c = text[i];
        putchar((c < 32 && c != '\n' && c != '\t') || c == 127 ? '?' : c);
    }
    fflush(stdout);
}

// ==== 11. checkpoint =============================================================================
// model_%08d.bin   llm.c's format, version 3: the fp32 master weights
// state_%08d.bin   everything else that training needs, in tagged, checksummed sections
// DONE_%08d        written last: the two above are whole
// Every file is written under a temporary name, flushed to disk, then renamed.
#define MODEL_MAGIC   20240326
#define STATE_MAGIC   0x6574617473387066ull // "fp8state", little-endian
#define STATE_VERSION 10
enum { SECTION_PROGRESS = 1, SECTION_SCALES = 5, SECTIONS = 8 }; // of state_sections()

// Magic number, version, numerics, precision, world, rank, number of sections; checksum of these.
typedef uint64_t StateHeader[8];
typedef struct {
    char name[24];
    // dtype: E4M3 also means bytes. checksum: of the fields before it and of the data.
    uint64_t dtype, rows, cols, bytes, checksum;
} SectionHeader;
typedef struct {
    SectionHeader header;
    void *data;
    int on_device;
    size_t per_param, per_block; // bytes, if each process has the part that it owns
} Section;
typedef struct {
    int64_t step, updates; // steps done; AdamW updates done (FP16 may skip some)
    uint64_t model_checksum;
} Progress;
static void state_header(uint64_t *h) {
    const uint64_t fields[7] = {STATE_MAGIC, STATE_VERSION, NUMERICS_VERSION, PRECISION, 1,
                                0,           SECTIONS};
    memcpy(h, fields, sizeof(fields));
    h[7] = checksum(0, fields, sizeof(fields));
}

// The one table of sections, for writing, checking and reading a state. Checksums are filled in
// later.
static void state_sections(Gpt *g, Progress *p, char *options, Section *sections) {
    const uint64_t n = g->param_count, text = options ? strlen(options) + 1 : 0,
                   scales = g->scale_count, fp8 = g->fp8_moments,
                   type = fp8 ? DTYPE_E4M3 : DTYPE_FP32, each = dtype_size[type],
                   blocks = fp8 * MOMENT_BLOCKS(n, NPARAM);
    const Section table[SECTIONS] = {
        {{"options", DTYPE_E4M3, text, 1, text, 0}, options, 0, 0, 0},
        {{"progress", DTYPE_E4M3, sizeof(*p), 1, sizeof(*p), 0}, p, 0, 0, 0},
        {{"adamw_m", type, n, 1, each * n, 0}, g->m, 1, each, 0},
        {{"adamw_v", type, n, 1, each * n, 0}, g->v, 1, each, 0},
        {{"adamw_inv", DTYPE_FP32, blocks, 2, 8 * blocks, 0}, g->moment_inv, 1, 0, 8 * fp8},
        {{"scales", DTYPE_E4M3, scales, sizeof(Fp8Scale), scales * sizeof(Fp8Scale), 0},
         g->scales,
         0,
         0,
         0},
        {{"loss_scale", DTYPE_FP32, 1, 1, 4, 0}, &g->loss_scale, 0, 0, 0},
        {{"good_steps", DTYPE_FP32, 1, 1, 4, 0}, &g->good_steps, 0, 0, 0},
    };
    memcpy(sections, table, sizeof(table));
}
// A directory that files are written to through its descriptor, so that they stay together even if
// the directory is renamed. Reading and the search for old checkpoints use the path.
typedef struct {
    int fd;
    char path[PATH_MAX];
} Directory;

// Begins a new file under a temporary name. Whatever has that name (a link, for example) is removed
// and never followed.
static FILE *file_begin(const Directory *d, const char *name) {
    char temporary[PATH_MAX];
    path_print(temporary, "%s.tmp", name);
    unlinkat(d->fd, temporary, 0);
    const int fd =
        openat(d->fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    EXPECT(f, "%s/%s: cannot create: %s", d->path, temporary, strerror(errno));
    return f;
}
// Flushes the file to disk, gives it its name, and flushes the directory where the system can. A
// write that failed is noticed here.
static void file_commit(FILE *f, const Directory *d, const char *name) {
    char temporary[PATH_MAX];
    path_print(temporary, "%s.tmp", name);
    EXPECT(!ferror(f) && fflush(f) == 0 && fsync(fileno(f)) == 0 && fclose(f) == 0 &&
               renameat(d->fd, temporary, d->fd, name) == 0,
           "%s/%s: cannot write: %s; what was there is untouched", d->path, name, strerror(errno));
    fsync(d->fd);
}

// Continues a checksum over memory of the host or the device. Also writes the memory to f, unless
// that is NULL.
static uint64_t memory_save(FILE *f, uint64_t sum, const void *data, size_t bytes, int on_device) {
    static unsigned char block[1 << 16]; // a multiple of 8 bytes, as checksum() needs
    for (size_t at = 0, n; at < bytes; at += n) {
        const unsigned char *from = (const unsigned char *)data + at;
        n = MIN(bytes - at, sizeof(block));
        if (on_device) device_read(block, from, n);
        sum = checksum(sum, on_device ? block : from, n);
        if (f) fwrite(on_device ? block : from, 1, n, f);
    }
    return sum;
}
// Whether n floats of the host hold Inf or NaN; below, the same for a tensor of the device.
static int floats_nonfinite(const float *x, size_t n) {
    uint32_t largest = 0; // bits of the largest |x|
    for (size_t i = 0; i < n; i++) largest = MAX(largest, float_bits(x[i]) & 0x7fffffff);
    return largest >= 0x7f800000;
}
static int tensor_nonfinite(const void *x, Dtype dtype, size_t n) {
    float floats[4096];
    stored_t stored[4096];
    for (size_t at = 0, m; at < n; at += m) {
        m = MIN(n - at, 4096);
        const void *from = (const char *)x + at * dtype_size[dtype];
        if (dtype == DTYPE_FP32) device_read(floats, from, m * sizeof(float));
        else device_read(stored, from, m * sizeof(stored_t));
        for (size_t i = 0; dtype != DTYPE_FP32 && i < m; i++)
            floats[i] = float_from_stored(stored[i]);
        if (floats_nonfinite(floats, m)) return 1;
    }
    return 0;
}

// Writes the master weights; returns the file's checksum.
static uint64_t model_save(const Gpt *g, const Directory *d, const char *name) {
    const Config *c = &g->config;
    FileHeader header = {MODEL_MAGIC, 3, c->T, c->V, c->L, c->NH, c->C, c->Vp};
    const float *weights = masters_gather(g);
    if (world.rank) return 0;
    FILE *f = file_begin(d, name);
    fwrite(header, 1, sizeof(FileHeader), f);
    const uint64_t sum =
        memory_save(f, checksum(0, header, sizeof(FileHeader)), weights, g->param_count * 4, 1);
    file_commit(f, d, name);
    return sum;
}

// Checks a model file: its header, its size, and that every weight is finite. sum: its checksum.
static Config model_check(const File *f, uint64_t *sum) {
    static const char *const names[6] = {"context", "vocabulary", "layers",
                                         "heads",   "channels",   "padded vocabulary"};
    static const int limits[6] = {1 << 20, 65536, LAYERS_MAX, 1024, 65536, 65536};
    ParamSpec specs[NPARAM];
    const int32_t *h = f->header;
    file_expect(f->path, "an llm.c model with magic number", h[0], MODEL_MAGIC, MODEL_MAGIC);
    EXPECT(h[1] == 3 || h[1] == 5, "%s: expected model version 3 (fp32) or 5 (bf16), found %d",
           f->path, h[1]);
    for (int i = 0; i < 6; i++) file_expect(f->path, names[i], h[2 + i], 1, limits[i]);
    const Config c = {h[2], h[3], h[7], h[4], h[5], h[6]};
    EXPECT(c.Vp >= c.V && c.Vp % 128 == 0,
           "%s: expected a multiple of 128 that holds %d tokens, found %d", f->path, c.V, c.Vp);
    EXPECT(c.C % c.NH == 0, "%s: %d channels cannot be split over %d heads", f->path, c.C, c.NH);
    const size_t width = h[1] == 3 ? 4 : 2,
                 want = sizeof(FileHeader) + param_specs(specs, &c) * width;
    file_expect(f->path, "size in bytes, by its header,", f->bytes, want, want);
    *sum = checksum(0, h, sizeof(FileHeader));
    for (size_t at = sizeof(FileHeader), n; at < want; at += n) {
        const unsigned char *block = file_block(f, at, want, &n);
        *sum = checksum(*sum, block, n);
        for (size_t i = width; i <= n; i += width)
            EXPECT((block[i - 1] & 0x7f) != 0x7f || !(block[i - 2] & 0x80),
                   "%s: weight %zu is not finite; this model diverged", f->path,
                   (at + i - sizeof(FileHeader)) / width - 1);
    }
    return c;
}

// Loads a checked model file. If its context is longer than the model's, the first positions are
// taken. Rows of the padded vocabulary become zeros, whatever the file has there.
static void model_load(Gpt *g, const File *f) {
    // real: how many elements of wte are not padding.
    const size_t width = f->header[1] == 3 ? 4 : 2, real = (size_t)g->config.V * g->config.C;
    size_t at = sizeof(FileHeader);
    static float block[1 << 15]; // what file_block() gives of 16-bit numbers
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        const size_t n = s->layers * s->rows * s->cols;
        for (size_t done = 0, part; done < n; done += part) {
            size_t bytes;
            const unsigned char *x = file_block(f, at + done * width, at + n * width, &bytes);
            part = bytes / width;
            if (width == 4) memcpy(block, x, bytes);
            for (size_t i = 0; width == 2 && i < part; i++)
                block[i] = float_from_bf16((uint16_t)(x[2 * i] | x[2 * i + 1] << 8));
            for (size_t i = 0; id == WTE && i < part; i++)
                if (done + i >= real) block[i] = 0;
            // What this process holds of them.
            const size_t from = MAX(s->offset + done, s->from),
                         to = MIN(s->offset + done + part, s->to);
            if (from < to)
                device_write(g->master + s->at + (from - s->from),
                             block + (from - s->offset - done), (to - from) * sizeof(float));
        }
        at += (id == WPE ? f->header[2] * s->cols : n) * width;
    }
    g->weights_ready = 0;
}

static void state_save(Gpt *g, const Directory *d, const char *name, Progress *progress,
                       char *options) {
    Section s[SECTIONS];
    StateHeader header;
    gpt_scales_read(g);
    for (int i = 0; i < g->scale_count; i++) // of bytes that this process made last
        if (i % NOPERAND != OPERAND_W) g->scales[i].scale_inv[0] = g->scales[i].scale_inv[1] = 1;
    state_sections(g, progress, options, s);
    state_header(header);
    FILE *f = world.rank ? NULL : file_begin(d, name);
    if (f) fwrite(header, sizeof(header), 1, f);
    for (int i = 0; i < SECTIONS; i++) {
        SectionHeader *h = &s[i].header;
        const void *data = slice_move(g, s[i].data, s[i].per_param, s[i].per_block, 0);
        if (!f) continue;
        h->checksum = memory_save(NULL, checksum(0, h, offsetof(SectionHeader, checksum)), data,
                                  h->bytes, s[i].on_device);
        fwrite(h, sizeof(*h), 1, f);
        memory_save(f, 0, data, h->bytes, s[i].on_device);
    }
    if (f) file_commit(f, d, name);
}

// A state file. Nothing is taken from it before its header and all checksums were found right.
typedef struct {
    char path[PATH_MAX];
    File file;
    SectionHeader header[SECTIONS];
    size_t at[SECTIONS]; // where their data begin
    char *options;
    Progress progress;
} StateFile;
static void state_check(StateFile *f) {
    static const char *const names[8] = {
        "magic number", "version", "numerics version", "build (0 fp8, 1 fp16, 2 bf16, 3 fp32)",
        "ranks",        "rank",    "sections",         "checksum"};
    StateHeader want, found;
    size_t at = sizeof(want), n;
    f->file = file_open(f->path, 0);
    memcpy(found, f->file.header, sizeof(found));
    state_header(want);
    const size_t end = f->file.bytes;
    for (int i = 0; i < 8; i++) file_expect(f->path, names[i], found[i], want[i], want[i]);
    for (int i = 0; i < SECTIONS; i++) {
        SectionHeader *s = &f->header[i];
        const size_t left = end > at + sizeof(*s) ? end - at - sizeof(*s) : 0;
        if (left) file_read(&f->file, at, s, sizeof(*s));
        at += sizeof(*s);
        f->at[i] = at;
        uint64_t sum = checksum(0, s, offsetof(SectionHeader, checksum));
        for (const size_t to = at + MIN(s->bytes, left); at < to; at += n) {
            const unsigned char *block = file_block(&f->file, at, to, &n);
            sum = checksum(sum, block, n);
        }
        EXPECT(left && s->bytes <= left && sum == s->checksum,
               "%s: section %d is damaged; to resume from an older checkpoint, remove this one's "
               "DONE file",
               f->path, i);
    }
    file_expect(f->path, "size in bytes, by its sections,", end, at, at);
    const SectionHeader *h = f->header;
    f->options = (char *)memory_allocate(h[0].bytes + 1); // ended by a 0, whatever the file says
    file_read(&f->file, f->at[0], f->options, h[0].bytes);
    file_expect(f->path, "bytes of progress", h[1].bytes, sizeof(Progress), sizeof(Progress));
    file_read(&f->file, f->at[1], &f->progress, sizeof(Progress));
}

// Copies a checked state into the model: moments (if it trains), scales with their histories, loss
// scale. The checksums were right, so it only has to check that training can have made these
// numbers.
static void state_load(Gpt *g, const StateFile *f) {
    Section s[SECTIONS];
    Progress progress;
    state_sections(g, &progress, NULL, s);
    int wild = 0;
    for (int i = SECTION_PROGRESS; i < SECTIONS; i++) {
        const SectionHeader *want = &s[i].header, *h = &f->header[i];
        EXPECT(!memcmp(h, want, offsetof(SectionHeader, checksum)),
               "%s: section %d: expected %s of %d rows, found %.23s of %d", f->path, i, want->name,
               (int)want->rows, h->name, (int)h->rows);
        const int sliced = world.size > 1 && (s[i].per_param || s[i].per_block);
        char *data = (char *)(s[i].data && sliced ? g->grad : s[i].data);
        for (size_t at = 0, n; data && at < h->bytes; at += n) {
            const unsigned char *block =
                file_block(&f->file, f->at[i] + at, f->at[i] + h->bytes, &n);
            wild |= h->dtype == DTYPE_FP32 &&
                    floats_nonfinite((const float *)(const void *)block, n / sizeof(float));
            if (s[i].on_device) device_write(data + at, block, n);
            else memcpy(data + at, block, n);
        }
        if (data && sliced) slice_move(g, s[i].data, s[i].per_param, s[i].per_block, 1);
    }
    for (int i = 0; i < g->scale_count; i++) {
        Fp8Scale *q = &g->scales[i];
        const ScalingRecipe r = gpt_recipe(g, i);
        wild |= memcmp(&q->recipe, &r, sizeof(r)) || !amax_usable(q->scale) || q->amax_count < 0;
        memset(&q->step, 0, sizeof(Fp8Stats)); // weights are counted when made again
    }
    EXPECT(!wild && amax_usable(g->loss_scale), "%s: has numbers that no run makes", f->path);
    g->logged_loss_scale = g->loss_scale;
    gpt_scales_write(g);
    g->weights_ready = 0;
}

// Returns the step of the newest finished checkpoint before step `before`; -1 if there are only
// other files of a run, -2 if there is nothing of a run.
static long checkpoint_newest(const char *dir, long before) {
    DIR *d = opendir(dir);
    long newest = -2, step;
    int n;
    if (!d && (errno == ENOENT || errno == ENOTDIR)) return newest;
    errno = d ? 0 : errno;
    for (struct dirent *e; d && (e = readdir(d)) != NULL; errno = 0) {
        const char *s = e->d_name;
        if (!strcmp(s, "log.tsv") || sscanf(s, "%*5[DONEstamodel]_%8ld", &step) == 1)
            newest = MAX(newest, -1);
        if (sscanf(s, "DONE_%8ld%n", &step, &n) == 1 && n == 13 && !s[13] && step < before)
            newest = MAX(newest, step);
    }
    EXPECT(!errno, "%s: cannot look into it: %s", dir, strerror(errno));
    closedir(d);
    return newest;
}

// Writes the model, then the state, then DONE, so that a kill at any instant leaves the older
// checkpoint whole. Then removes old checkpoints, all but `keep`.
static void checkpoint_save(Gpt *g, const Directory *d, Progress *progress, char *options,
                            int keep) {
    static const char *const names[3] = {"DONE_%08ld", "state_%08ld.bin", "model_%08ld.bin"};
    char name[32];
    for (int i = 2; i >= 0; i--) {
        snprintf(name, sizeof(name), names[i], (long)progress->step);
        if (i == 2) progress->model_checksum = model_save(g, d, name);
        else if (i == 1) state_save(g, d, name, progress, options);
        else if (!world.rank) file_commit(file_begin(d, name), d, name);
    }
    if (world.rank) return;
    long old = keep ? progress->step + 1 : -1;
    for (int i = 0; i <= keep && old >= 0; i++) old = checkpoint_newest(d->path, old);
    for (; old >= 0; old = checkpoint_newest(d->path, old))
        for (int i = 0; i < 3; i++) { // DONE goes first
            snprintf(name, sizeof(name), names[i], old);
            unlinkat(d->fd, name, 0);
        }
}

// ==== 12. log ====================================================================================
// DIR/log.tsv     `# key<TAB>value` lines, then a row a step
// DIR/scales.tsv  a row an operand, every --scales-every steps
// Rows are written and flushed whole. They are flushed to disk before every checkpoint. A resume
// drops the rows that are newer than its checkpoint.
#define LOG_COLUMNS                                                                                \
    "step\ttokens\ttrain_loss\tval_loss\tlr\tgrad_norm\tloss_scale\tms\ttok_s\ttflops\twait_ms"
#define SCALES_COLUMNS                                                                             \
    "step\tlayer\toperand\tamax\tscale\tsaturated\tflushed\tnonfinite\tsqnr_db\tkurtosis"

// Opens a table and checks its rows up to `step`; log_begin() cuts the rest. Rows must be whole and
// in order. log.tsv (`every`) must have one for every step. A kill can leave a last line without a
// newline.
static FILE *log_open(const Directory *d, const char *name, long step, int every) {
    const int fd = openat(d->fd, name, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "a+");
    EXPECT(f, "%s/%s: cannot open: %s", d->path, name, strerror(errno));
    char *line = NULL;
    size_t room = 0, keep = 0;
    long last = 0;
    for (ssize_t n; (n = getline(&line, &room, f)) > 0 && line[n - 1] == '\n'; keep += n) {
        const long at = atol(line), next = every ? last + 1 : MAX(at, last);
        if (*line == '#' || *line == 's')
            continue; // the header; the names of the columns, of which "step" is the first
        if (at > step) break;
        int tabs = 0;
        for (ssize_t i = 0; i < n; i++) tabs += line[i] == '\t';
        EXPECT(at == next && tabs == 9 + every,
               "%s/%s: the row of step %ld is damaged or missing; bring it back", d->path, name,
               next);
        last = at;
    }
    free(line);
    EXPECT(!ferror(f) && (!every || last == step) && !fseek(f, keep, SEEK_SET),
           "%s/%s: expected rows up to step %ld, they end at %ld", d->path, name, step, last);
    return f;
}
// Cuts what log_open() did not keep. Writes the header of a new table.
static void log_begin(FILE *f, const Directory *d, const char *header, const char *columns) {
    EXPECT(!ftruncate(fileno(f), ftell(f)), "%s: cannot cut a log: %s", d->path, strerror(errno));
    if (!ftell(f)) fprintf(f, "%s%s\n", header, columns);
}
// Gives rows to the operating system. on_disk: also waits until they are on disk.
static void log_flush(FILE *f, const Directory *d, int on_disk) {
    EXPECT(!ferror(f) && !fflush(f) && (!on_disk || !fsync(fileno(f))),
           "%s: cannot write the log: %s; make room, go on with -y", d->path, strerror(errno));
}

// Writes the name of operand i in Gpt.scales, as in "qkv.x", to out[32]; returns its layer.
static int scale_name(const Gpt *g, int i, char *out) {
    const int linear = i / NOPERAND, layer = linear / NLIN;
    snprintf(out, 32, "%s.%s", linear_name[layer == g->config.L ? NLIN : linear % NLIN],
             operand_name[i % NOPERAND]);
    return layer;
}

// An operand's statistics of the last finished step, in the tensor's own unit: without the loss
// scale, which dy carries. sqnr: in dB. It and kurtosis may be NAN: not measured.
typedef struct {
    double amax, scale, saturated, flushed, sqnr, kurtosis; // saturated, flushed: shares
} OperandReport;
static OperandReport operand_report(const Gpt *g, int i) {
    const Fp8Stats *t = &g->scales[i].logged;
    const double loss_scale = i % NOPERAND == OPERAND_DY ? g->logged_loss_scale : 1;
    const double count = t->count;
    const OperandReport report = {
        bits_float(t->amax_bits) / loss_scale,
        g->scales[i].logged_scale * loss_scale,
        t->saturated / count,
        t->flushed / count,
        t->noise > 0 ? 10 * log_fixed_order(t->signal / t->noise) / 2.302585092994046 : NAN,
        t->signal > 0 && isfinite(t->fourth) ? t->fourth * count / (t->signal * t->signal) : NAN};
    return report;
}
static void log_scales(FILE *f, const Gpt *g, long step) {
    char name[32];
    for (int i = 0; i < g->scale_count; i++) {
        const Fp8Stats *t = &g->scales[i].logged;
        if (t->count == 0) continue;
        const OperandReport s = operand_report(g, i);
        const int layer = scale_name(g, i, name);
        fprintf(f, "%ld\t%d\t%s\t%.9g\t%.9g\t%.6g\t%.6g\t%llu\t%.2f\t%.6g\n", step, layer, name,
                s.amax, s.scale, s.saturated, s.flushed, (unsigned long long)t->nonfinite, s.sqnr,
                s.kurtosis);
    }
}

// Moves forward in a log's text to the row of `step`. Returns whether that has a validation loss,
// which is then row[3]. Rows ascend, so *at and row can be used again for the next, higher step.
// They start as the text and zeros.
static int log_validation(const char **at, double *row, double step) {
    double next[4];
    while (**at && row[0] < step)
        if (text_row(at, next, 4) == 4 && !isnan(next[3])) memcpy(row, next, sizeof(next));
    return step > 0 && row[0] == step;
}

// ==== 13. options ================================================================================

// The scope of an option. FIXED: a part of the run's identity, which a resume may not change and a
// comparison needs equal. FREE: a resume may change it. CALL: it concerns this call of the program
// only. FP8: only the FP8 build has it. OWN: a part of the precision, which compared runs may
// differ in.
enum { FIXED = 1, FREE = 2, CALL = 4, FP8 = 8, OWN = 16 };

// The one table that parser, --help, printed configuration, log header and state read. MAYBE: 0 or
// 1; without a number 1. CHOICE: one of the words of its argument; the field holds the number of
// the word.
// clang-format off
#define OPTIONS(X) /* kind, field, letter, name, argument, scope, least, largest, default, help */ \
    X(TEXT, train, 'i', "train", "GLOB", FREE, 0, 0, "data/tales.d/train.txt", \
        "a text, or a glob of shards") \
    X(TEXT, val, 'j', "val", "GLOB", FREE, 0, 0, "", \
        "validation data; default: the last 10% of train") \
    X(LONG, batch, 'b', "batch", "N", FIXED, 1, 65536, "4", "sequences in a micro-batch") \
    X(LONG, seq_len, 't', "seq-len", "N", FIXED, 1, 1 << 20, "256", \
        "tokens in a sequence (of -e FILE: its own)") \
    X(LONG, total_batch, 'd', "total-batch", "N", FIXED, 0, 1 << 30, "0", \
        "tokens a step; 0: one micro-batch a shard") \
    X(LONG, shards, 0, "shards", "N", FIXED, 0, WORLD_MAX, "0", \
        "parts of a step, summed in order; 0: processes") \
    X(LONG, seed, 0, "seed", "N", FIXED, 0, 1e15, "1", "of the initial weights and of samples") \
    X(LONG, data_seed, 0, "data-seed", "N", FIXED, 0, 1e15, "1", "of the order of the data") \
    X(LONG, val_rows, 0, "val-rows", "N", FIXED, 1, 1e8, "80", "sequences in the validation set") \
    X(LONG, val_batches, 'm', "val-batches", "N", CALL, 0, 1e6, "0", "the same in micro-batches") \
    X(TEXT, tokenizer, 0, "tokenizer", "FILE", FREE, 0, 0, "", \
        "llm.c's [gpt2_tokenizer.bin beside the shards]") \
    X(TEXT, model, 'e', "model", "dN|FILE", FIXED, 0, 0, "d3", \
        "depth N with 64 N channels, or a model file") \
    X(LONG, layers, 0, "layers", "N", FIXED, 0, LAYERS_MAX, "0", "instead of what dN says") \
    X(LONG, heads, 0, "heads", "N", FIXED, 0, 1024, "0", "likewise") \
    X(LONG, channels, 0, "channels", "N", FIXED, 0, 65536, "0", "likewise") \
    X(LONG, steps, 'x', "steps", "N", FIXED, 0, 99999999, "1500", \
        "optimizer steps; -y with more goes on") \
    X(LONG, val_every, 'v', "val-every", "N", FREE, 0, 1e8, "100", \
        "steps between validations; 0: never") \
    X(LONG, sample_every, 's', "sample-every", "N", FREE, 0, 1e8, "500", \
        "steps between samples; 0: never") \
    X(LONG, sample_len, 'g', "sample-len", "N", FREE, 1, 1e6, "200", "tokens in a sample") \
    X(DOUBLE, temperature, 0, "temperature", "X", FREE, 0, 100, "1", \
        "of samples; 0: the likeliest token") \
    X(LONG, checkpoint_every, 'n', "checkpoint-every", "N", FREE, 0, 1e8, "500", \
        "steps between checkpoints; 0: only at Ctrl-C") \
    X(LONG, keep, 0, "keep", "N", FREE, 0, 255, "2", "checkpoints that stay; 0: all") \
    X(LONG, print_every, 0, "print-every", "N", FREE, 0, 1e8, "10", \
        "steps between lines; 0: at validations only") \
    X(MAYBE, resume, 'y', "resume", "[0|1]", CALL, 0, 1, "0", \
        "continue from the newest checkpoint") \
    X(TEXT, out, 'o', "out", "DIR", CALL, 0, 0, "", \
        "log and checkpoints [log/" PRECISION_NAME "[-RECIPE], -2, ..]") \
    X(MAYBE, recompute, 0, "recompute", "[0|1]", FREE, 0, 1, "0", \
        "layernorm and GELU again, to save memory") \
    X(CHOICE, sum_order, 0, "sum-order", "pairs|tiles", FIXED, 0, 0, "pairs", \
        "order of a CPU's sums; tiles is AMX's") \
    X(DOUBLE, lr, 'l', "lr", "X", FIXED, 0, 1e30, "0", "peak learning rate; 0: 0.3 / channels") \
    X(LONG, warmup, 'u', "warmup", "N", FIXED, 0, 1e8, "100", "steps of linear warm-up") \
    X(CHOICE, schedule, 'k', "schedule", "cosine|linear|constant|wsd", FIXED, 0, 0, "cosine", \
        "of the learning rate") \
    X(LONG, schedule_steps, 0, "schedule-steps", "N", FIXED, 0, 99999999, "0", \
        "the schedule's length; 0: --steps") \
    X(DOUBLE, final_lr, 'q', "final-lr", "X", FIXED, 0, 1, "0.1", \
        "last learning rate, as a fraction of the peak") \
    X(DOUBLE, weight_decay, 'c', "weight-decay", "X", FIXED, 0, 100, "0.1", \
        "decoupled, of matrices only") \
    X(DOUBLE, grad_clip, 0, "grad-clip", "X", FIXED, 0, 1e30, "1", \
        "largest gradient norm; 0: no clipping") \
    X(TEXT, loss_scale, 0, "loss-scale", "auto|off|N", FIXED | OWN, 0, 0, "auto", \
        "of gradients; auto: dynamic where needed") \
    X(DOUBLE, beta1, 0, "beta1", "X", FIXED, 0, 0.9999999, "0.9", "AdamW's") \
    X(DOUBLE, beta2, 0, "beta2", "X", FIXED, 0, 0.9999999, "0.95", "AdamW's") \
    X(DOUBLE, eps, 0, "eps", "X", FIXED, 1e-20, 1, "1e-08", "AdamW's") \
    X(CHOICE, grad_comm, 0, "grad-comm", "fp32|bf16|fp8", FIXED | OWN, 0, 0, "fp32", \
        "how gradients of shards are sent and added") \
    X(FLAG, fp8_moments, 0, "fp8-moments", "", FIXED | OWN, 0, 1, "0", \
        "AdamW's m in E4M3, v in E5M2") \
    X(RECIPE, recipe, 0, "recipe", "WORDS", FP8 | FIXED, 0, 0, "e4m3+dy:e5m2+delayed=16", \
        "formats and scales") \
    X(TEXT, bf16, 0, "bf16", "PRODUCTS", FP8 | FIXED, 0, 0, "", \
        "what stays in bf16, e.g. first+2.fc+qkv.fprop") \
    X(TEXT, split, 0, "split", "PRODUCTS", FP8 | FIXED, 0, 0, "", \
        "where split operands have both numbers [everywhere]") \
    X(FLAG, fp8_head, 0, "fp8-head", "", FP8 | FIXED, 0, 1, "0", \
        "the tied output head in FP8 too") \
    X(LONG, scales_every, 0, "scales-every", "N", FP8 | FREE, 0, 1e8, "10", \
        "steps between rows of scales.tsv; 0: none") \
    X(LONG, sqnr_every, 0, "sqnr-every", "N", FP8 | FREE, 0, 1e8, "100", \
        "steps between SQNRs in these rows; 0: none") \
    BACKEND_OPTIONS(X) \
    X(TEXT, baseline, 0, "baseline", "DIR", FREE, 0, 0, "", \
        "run to measure the gap to [newest FP16 and BF16]") \
    X(FLAG, eval, 0, "eval", "", CALL, 0, 1, "0", "validate the model and stop") \
    X(TEXT, prompt, 0, "prompt", "TEXT", CALL, 0, 0, "", \
        "continue a text from a model (-e FILE, -y)") \
    X(LONG, generate, 0, "generate", "N", CALL, 0, 1e8, "200", "tokens after --prompt") \
    X(FLAG, verbose, 0, "verbose", "", CALL, 0, 1, "0", "every option and hash in the header") \
    X(FLAG, help, 0, "help", "[recipe]", CALL, 0, 1, "0", "this page; or the words of --recipe") \
    X(FLAG, version, 0, "version", "", CALL, 0, 1, "0", "commit and instruction set")
// clang-format on
// ---- the language of --recipe
// Words are joined by plus signs or commas. Parser, --help recipe, log and build/lab/explain read
// this table.
typedef struct {
    const char *word, *argument; // what stands behind the word, "" for nothing
    size_t sets;                 // a field of ScalingRecipe
    int value;                   // what it becomes
    double initial, least, largest;
    const char *help;
} RecipeWord;
#define SETS(name) offsetof(ScalingRecipe, name)
#define RULE_WORD(name, word, argument, initial, least, largest, function, help)                   \
    {word, argument, SETS(rule), SCALING_##name, initial, least, largest, help},
static const RecipeWord recipe_words[] = {
    {"e4m3", "", SETS(format), DTYPE_E4M3, 0, 0, 0,
     "format: 3 bits of mantissa, largest number 448"},
    {"e5m2", "", SETS(format), DTYPE_E5M2, 0, 0, 0,
     "format: 2 bits of mantissa, largest number 57344"},
    {"e2m1", "", SETS(format), DTYPE_E2M1, 0, 0, 0,
     "format of 4 bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives"},
    SCALING_RULES(RULE_WORD){"block", "=AxB", SETS(along), 0, 0, 0, 0,
                             "own amax of each block: A x B elements, B along the sum"},
    {"exact", "", SETS(rounding), ROUNDING_EXACT, 0, 0, 0, "the scale as it is"},
    {"pow2", "", SETS(rounding), ROUNDING_POW2, 0, 0, 0,
     "the scale rounded down to a power of two; always so in blocks"},
    {"floor", "", SETS(rounding), ROUNDING_FLOOR, 0, 0, 0,
     "by amax's exponent alone (OCP MX), which may saturate"},
    {"two-level", "", SETS(rounding), ROUNDING_TWO_LEVEL, 0, 0, 0,
     "blocks: an E4M3 number each, and one fp32 scale (NVFP4)"},
    {"margin", "=N", SETS(margin), 0, 0, 0, 64, "the scale divided by 2^N"},
    {"nearest", "", SETS(stochastic), 0, 0, 0, 0, "elements: rounded to nearest even"},
    {"stochastic", "", SETS(stochastic), 1, 0, 0, 0, "elements: up or down, right in the mean"},
    {"hadamard", "", SETS(hadamard), 1, 0, 0, 0,
     "wgrad's x and dy, in blocks: random Hadamard transform of 16 rows"},
    {"split", "", SETS(split), 1, 0, 0, 0, "two numbers an element, where --split says"},
};
static const struct {
    const char *name, *words, *bf16, *source; // bf16: as --bf16 lists products
} recipe_names[] = {
    {"te", "e4m3+delayed=1024+dy:e5m2", "", "Transformer Engine's HYBRID"},
    {"hybrid-qkv", "e4m3+dy:e5m2+delayed=16", "0.qkv.fprop", "dev/FINDINGS.md, 16"},
    {"rowwise", "e4m3+block=1xall", "", "torchao: a scale for each row"},
    {"deepseek", "e4m3+block=1x128+w:block=128x128", "", "DeepSeek-V3, arXiv 2412.19437"},
    {"mx", "e4m3+block=1x32", "", "OCP MX; +floor: its rounding"},
    {"mxfp4", "e2m1+block=1x32", "", "OCP MXFP4; +floor: its rounding"},
    {"nvfp4", "e2m1+block=1x16+w:block=16x16+two-level", "", "NVIDIA, arXiv 2509.25149"},
    {"none", "e4m3+scale=1", "", "scales of 1; see --loss-scale"},
};

static void recipe_help(void) {
    printf("--recipe WORDS: how the operands x, w and dy of FP8 products are quantized.\n"
           "Words are joined by + or commas. A later word overrides an earlier one. A word\n"
           "sets all three operands, or the one that is named before it, as in dy:e5m2.\n"
           "The default, e4m3+dy:e5m2+delayed=16, is what the words change.\n\n");
    for (int i = 0; i < COUNT(recipe_words); i++)
        printf("  %s%-*s %s\n", recipe_words[i].word, 11 - (int)strlen(recipe_words[i].word),
               recipe_words[i].argument, recipe_words[i].help);
    printf("\nNames stand for words:\n");
    for (int i = 0; i < COUNT(recipe_names); i++) {
        char all[128];
        const char *bf16 = recipe_names[i].bf16;
        snprintf(all, sizeof(all), "%s%s%s", recipe_names[i].words, *bf16 ? " --bf16 " : "", bf16);
        printf("  %-12s %-32s %s\n", recipe_names[i].name, all, recipe_names[i].source);
    }
    printf("\nExamples: te+dy:margin=1, deepseek+dy:e5m2, current\n");
}

static void recipe_blocks_set(ScalingRecipe *r, const char *text, const char *where) {
    int across = 0, along = 32, end = 0;
    const int plain = !text[strspn(text, "0123456789xal")]; // no sign, no space
    const int all = sscanf(text, "%5dxall%n", &across, &end) == 1 && end > 0;
    if (!all) sscanf(text, "%5dx%5d%n", &across, &along, &end);
    EXPECT(
        plain && end > 0 && !text[end] && along >= 16 && along <= 65536 && along % 16 == 0 &&
            (across == 1 || (across >= 16 && across <= 1024 && across % 16 == 0)),
        "%s --recipe: expected block=AxB with A 1 or a multiple of 16 up to 1024, B a multiple of "
        "16 up to 65536, or all; found 'block=%s'",
        where, text);
    r->rule = SCALING_CURRENT;
    r->number = 0;
    r->across = across;
    r->along = all ? INT_MAX : along;
}

// Changes one operand's recipe by a word of the table and what stands behind its equals sign. NULL:
// nothing does, which words with a default allow.
static void recipe_word_set(ScalingRecipe *r, const RecipeWord *w, const char *argument,
                            const char *where) {
    const int wants = *w->argument != 0, whole = !strcmp(w->argument, "=N");
    EXPECT(argument ? wants : !wants || w->initial > 0,
           "%s --recipe: expected %s%s, found '%s%s%s'", where, w->word, w->argument, w->word,
           argument ? "=" : "", argument ? argument : "");
    if (w->sets == SETS(along)) {
        recipe_blocks_set(r, argument, where);
        return;
    }
    char *end = NULL;
    const double number = argument ? strtod(argument, &end) : w->initial;
    EXPECT(!argument || (end != argument && !*end && number >= w->least && number <= w->largest &&
                         (!whole || !argument[strspn(argument, "0123456789")])),
           "%s --recipe: expected %s=%.9g to %.9g%s, found '%s=%s'", where, w->word, w->least,
           w->largest, whole ? ", a whole number" : "", w->word, argument);
    const int value = w->sets == SETS(margin) ? (int)number : w->value;
    memcpy((char *)r + w->sets, &value, sizeof(value));
    if (w->sets != SETS(rule)) return;
    r->number = number;
    r->across = r->along = 0;
}
// Applies words to the recipes of the operands in `operands`, a bit for each. Returns the products
// that a name among the words leaves in bf16, as --bf16 lists them; "" for none. Of several such
// names the last counts.
static const char *recipe_apply(ScalingRecipe *recipes, const char *text, int operands,
                                const char *where) {
    const char *bf16 = "";
    char list[256], *words = list;
    EXPECT(strlen(text) < sizeof(list), "%s --recipe: expected at most %zu characters", where,
           sizeof(list) - 1);
    strcpy(list, text);
    for (char *word = strsep(&words, "+,"); word; word = strsep(&words, "+,")) {
        int only = operands, found = 0;
        char *colon = strchr(word, ':');
        for (int i = 0; colon && i < NOPERAND; i++)
            if (!strncmp(word, operand_name[i], colon - word) && !operand_name[i][colon - word]) {
                only = operands & 1 << i;
                found = 1;
            }
        EXPECT(!colon || found, "%s --recipe: expected x:, w: or dy: before a word, found '%s'",
               where, word);
        if (colon) word = colon + 1;
        char *equals = strchr(word, '=');
        const int length = strcspn(word, "=");
        found = 0;
        for (int n = 0; n < COUNT(recipe_names) && !found; n++)
            if (!strcmp(word, recipe_names[n].name)) {
                const char *inner = recipe_apply(recipes, recipe_names[n].words, only, where);
                if (*recipe_names[n].bf16) inner = recipe_names[n].bf16;
                if (*inner) bf16 = inner;
                found = 1;
            }
        for (int n = 0; n < COUNT(recipe_words) && !found; n++) {
            const RecipeWord *w = &recipe_words[n];
            if (strncmp(word, w->word, length) || w->word[length]) continue;
            found = 1;
            for (int i = 0; i < NOPERAND; i++)
                if (only >> i & 1)
                    recipe_word_set(&recipes[i], w, equals ? equals + 1 : NULL, where);
        }
        EXPECT(found, "%s --recipe: expected words that --help recipe lists, found '%s' in '%s'",
               where, word, text);
    }
    return bf16;
}
// Reads a recipe. `where` is what errors begin with. Returns the products that it leaves in bf16.
static const char *recipe_parse(ScalingRecipe *recipes, const char *text, const char *where) {
    for (int i = 0; i < NOPERAND; i++) {
        const Dtype format = i == OPERAND_DY ? DTYPE_E5M2 : DTYPE_E4M3;
        const ScalingRecipe delayed = {format, SCALING_DELAYED, 16, 0, ROUNDING_UNSAID, 0, 0, 0, 0,
                                       0};
        recipes[i] = delayed;
    }
    const char *bf16 = recipe_apply(recipes, text, (1 << NOPERAND) - 1, where);
    for (int i = 0; i < NOPERAND; i++) {
        ScalingRecipe *r = &recipes[i];
        const int blocks = recipe_blocks(r), constant = r->rule == SCALING_CONSTANT;
        const char *wrong = NULL;
        if (blocks && r->rounding == ROUNDING_EXACT)
            wrong = "exact: it is in blocks, whose scales are powers of two";
        if (r->rounding == ROUNDING_UNSAID) r->rounding = blocks ? ROUNDING_POW2 : ROUNDING_EXACT;
        if (constant && (r->margin || r->rounding))
            wrong = "it has a constant scale, which margin, pow2 and floor do not change";
        if (r->rounding == ROUNDING_TWO_LEVEL && (!blocks || r->margin))
            wrong = "two-level: it must be in blocks, without margin";
        if (r->split && (r->stochastic || r->format == DTYPE_E2M1))
            wrong = "split: it must be e4m3 or e5m2, rounded to nearest";
        if (i != OPERAND_W &&
            (recipes[OPERAND_X].hadamard | recipes[OPERAND_W].hadamard |
             recipes[OPERAND_DY].hadamard) &&
            !(r->hadamard && blocks))
            wrong = "hadamard: both x and dy must have it, and be in blocks";
        EXPECT(!wrong, "%s --recipe: %s: %s", where, operand_name[i], wrong);
    }
    recipes[OPERAND_W].hadamard = 0; // a word for all operands; wgrad does not read w
    return bf16;
}

// Whether two texts stand for the same recipe.
static int recipe_same(const char *text, const char *other) {
    ScalingRecipe recipes[2][NOPERAND];
    recipe_parse(recipes[0], text, "option");
    recipe_parse(recipes[1], other, "option");
    return !memcmp(recipes[0], recipes[1], sizeof(recipes[0]));
}

typedef enum {
    OPT_TEXT,
    OPT_LONG,
    OPT_DOUBLE,
    OPT_FLAG,
    OPT_MAYBE,
    OPT_CHOICE,
    OPT_RECIPE
} OptionKind;
typedef char *TEXT_t, *RECIPE_t;
typedef long LONG_t, FLAG_t, MAYBE_t, CHOICE_t;
typedef double DOUBLE_t;
#define OPTION_FIELD(kind, field, ...) kind##_t field;
typedef struct {
    OPTIONS(OPTION_FIELD)
} Options;
typedef struct {
    OptionKind kind;
    size_t field;
    int letter; // or 0
    const char *name, *argument;
    int scope;
    double min, max;
    const char *initial, *help;
} OptionSpec;
#define OPTION_SPEC(kind, field, ...) {OPT_##kind, offsetof(Options, field), __VA_ARGS__},
static const OptionSpec option_specs[] = {OPTIONS(OPTION_SPEC)};
#define OPTION_COUNT ((int)(sizeof(option_specs) / sizeof(option_specs[0])))
static int option_here(const OptionSpec *s) {
    return IS_FP8 || !(s->scope & FP8);
} // this build has it
static int option_index(const char *name) {
    for (int i = 0; i < OPTION_COUNT; i++)
        if (!strcmp(option_specs[i].name, name)) return i;
    return -1;
}

// --steps and --schedule-steps, which a resume that goes on longer may change.
static int option_is_length(const OptionSpec *s) { return strstr(s->name, "steps") != NULL; }

// Copies word `n` of a CHOICE to out[32]; returns whether there is one.
static int option_word(const OptionSpec *s, long n, char *out) {
    const char *at = s->argument;
    for (; n > 0 && *at; n--) {
        at += strcspn(at, "|");
        at += *at == '|';
    }
    snprintf(out, 32, "%.*s", (int)strcspn(at, "|"), at);
    return *at != 0;
}

// Sets one option from text that came from `where`.
static void option_set(Options *o, const OptionSpec *s, const char *text, const char *where) {
    void *field = (char *)o + s->field;
    char *end = NULL;
    if (s->kind == OPT_TEXT || s->kind == OPT_RECIPE) {
        ScalingRecipe recipes[NOPERAND];
        EXPECT((s->scope & CALL) || !strpbrk(text, "\n\t"),
               "%s --%s: a log cannot keep a tab or new line", where, s->name);
        if (s->kind == OPT_RECIPE) recipe_parse(recipes, text, where); // refuses what is wrong
        *(char **)field = strdup(text);
        return;
    }
    if (s->kind == OPT_CHOICE) {
        char word[32];
        long n = 0;
        while (option_word(s, n, word) && strcmp(word, text)) n++;
        EXPECT(*word, "%s --%s: expected one of: %s; found '%s'", where, s->name, s->argument,
               text);
        *(long *)field = n;
        return;
    }
    const int real = s->kind == OPT_DOUBLE;
    const double value = real ? strtod(text, &end) : strtol(text, &end, 10);
    EXPECT(end != text && !*end, "%s --%s: expected a %s number, found '%s'", where, s->name,
           real ? "real" : "whole", text);
    const int fits = value >= s->min && value <= s->max;
    EXPECT(fits, "%s --%s: expected %.8g to %.8g, found %s", where, s->name, s->min, s->max, text);
    if (real) *(double *)field = value;
    else *(long *)field = value;
}
static const char *option_text(const Options *o, const OptionSpec *s, char *out) {
    const void *field = (const char *)o + s->field;
    if (s->kind == OPT_TEXT || s->kind == OPT_RECIPE) path_print(out, "%s", *(char *const *)field);
    else if (s->kind == OPT_CHOICE) option_word(s, *(const long *)field, out);
    // Short if that gives the same number back, else in full, because a resume reads it.
    else if (s->kind == OPT_DOUBLE) {
        path_print(out, "%.9g", *(const double *)field);
        if (strtod(out, NULL) != *(const double *)field)
            path_print(out, "%.17g", *(const double *)field);
    } else path_print(out, "%ld", *(const long *)field);
    return out;
}

static void options_help(void) {
    static const struct {
        const char *first, *title;
    } groups[] = {{"train", "Data"},
                  {"model", "Model"},
                  {"steps", "Run"},
                  {"lr", "Optimizer"},
                  {"recipe", "FP8 (in the FP8 build only)"},
                  {"baseline", "Other"}};
    printf("train_gpt_" PRECISION_NAME ": trains a GPT in " PRECISION_NAME " on " BACKEND ".\n"
           "Without options: a byte-level model on the embedded corpus.\n"
           "[Default]. A resume (-y) may change what has a *.\n");
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        char name[64], letter[8] = "";
        for (int n = 0; n < COUNT(groups); n++)
            if (!strcmp(groups[n].first, s->name)) printf("\n%s\n", groups[n].title);
        if (s->letter) sprintf(letter, "-%c", s->letter);
        snprintf(name, sizeof(name), "--%s %s", s->name, s->argument);
        printf("%c %2s %-22s", s->scope & FREE ? '*' : ' ', letter, name);
        if (strlen(name) > 22) printf("\n%28s", "");
        printf(" %s", s->help);
        if (s->initial[0] && s->kind != OPT_FLAG && s->kind != OPT_MAYBE)
            printf(" [%s]", s->initial);
        printf("\n");
    }
    printf("\n%sExit status: 0 done, 2 bad input, 3 stopped by a non-finite value, 130\n"
           "interrupted after a checkpoint.\n",
           BACKEND_HELP);
}

// Parses argv; given[i] tells which options were on the command line.
static Options options_parse(int argc, char **argv, int *given) {
    Options o;
    struct option longs[OPTION_COUNT + 1];
    memset(&o, 0, sizeof(o));
    memset(longs, 0, sizeof(longs));
    char shorts[4 * OPTION_COUNT + 2] = "+:";
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        option_set(&o, s, s->initial, "default");
        longs[i].name = s->name;
        longs[i].val = s->letter ? s->letter : 1000 + i;
        longs[i].has_arg = s->kind == OPT_FLAG    ? no_argument
                           : s->kind == OPT_MAYBE ? optional_argument
                                                  : required_argument;
        if (s->letter)
            sprintf(shorts + strlen(shorts), "%c%s", s->letter, s->kind == OPT_MAYBE ? "" : ":");
    }
    optind = 1;
    for (int c, at = optind; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;
         at = optind) {
        EXPECT(c != '?', "unknown option '%s'; see --help", argv[at]);
        EXPECT(c != ':', "option '%s' needs a value; see --help", argv[at]);
        int i = 0;
        while (longs[i].val != c) i++;
        const OptionSpec *s = &option_specs[i];
        const char *value = optarg ? optarg : "1";
        if (s->kind == OPT_MAYBE && !optarg && optind < argc &&
            (!strcmp(argv[optind], "0") || !strcmp(argv[optind], "1")))
            value = argv[optind++];
        EXPECT(option_here(s), "option --%s: only the FP8 build has it; this is " PRECISION_NAME,
               s->name);
        option_set(&o, s, value, "option");
        given[i] = 1;
        if (s->field == offsetof(Options, help) && optind < argc &&
            !strcmp(argv[optind], "recipe")) {
            o.help = 2;
            optind++;
        }
    }
    EXPECT(optind >= argc,
           "unexpected argument '%s'; options start with a dash, a glob needs quotes; see --help",
           argv[optind]);
    ScalingRecipe recipes[NOPERAND];
    const char *bf16 = recipe_parse(recipes, o.recipe, "option");
    if (*bf16 && !given[option_index("bf16")]) { // as if it had been given
        o.bf16 = strdup(bf16);
        given[option_index("bf16")] = 1;
    }
    return o;
}

// Options as `# name<TAB>value` lines: what the log, the state and the screen show.
static char *options_lines(const Options *o) {
    char *text = (char *)memory_allocate(OPTION_COUNT * (PATH_MAX + 64) + BACKEND_LINES),
         value[PATH_MAX], *end = text;
    for (int i = 0; i < OPTION_COUNT; i++)
        if (!(option_specs[i].scope & CALL) && option_here(&option_specs[i]))
            end += sprintf(end, "# %s\t%s\n", option_specs[i].name,
                           option_text(o, &option_specs[i], value));
    return text;
}

// Takes the options of a checkpoint. An option of the command line wins if a resume may change it;
// otherwise both must agree. A run may go on longer. Its learning rate then stays at the end of the
// schedule, unless --schedule-steps gives the schedule another length.
static void options_resume(Options *o, const char *lines, const int *given, const char *path) {
    char value[PATH_MAX], theirs_text[PATH_MAX], mine[PATH_MAX];
    const long before = atol(text_value(lines, "steps", value));
    const int longer = given[option_index("steps")] && o->steps > before;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if ((s->scope & CALL) || !option_here(s)) continue;
        Options theirs = *o;
        if (!*text_value(lines, s->name, value) && s->scope & FREE && s->kind != OPT_TEXT)
            continue; // another backend's state
        option_set(&theirs, s, value, path);
        option_text(&theirs, s, theirs_text);
        option_text(o, s, mine);
        const int same =
            s->kind == OPT_RECIPE ? recipe_same(theirs_text, mine) : !strcmp(theirs_text, mine);
        EXPECT(!given[i] || !(s->scope & FIXED) || same || (longer && option_is_length(s)),
               "option --%s: the run in %s has '%s', a resume cannot change it to '%s'; a new run "
               "can begin with its model (-e)",
               s->name, path, theirs_text, mine);
        if (!given[i]) *o = theirs;
    }
    if (longer && !given[option_index("schedule-steps")] && !o->schedule_steps)
        o->schedule_steps = before;
}

// The recipes of the model's operands.
static void options_recipes(const Options *o, Gpt *g) {
    recipe_parse(g->recipes, o->recipe, "option");
    const int blocks =
        recipe_blocks(&g->recipes[OPERAND_X]) || recipe_blocks(&g->recipes[OPERAND_W]);
    EXPECT(!blocks || !o->fp8_head,
           "option --fp8-head: the head has one scale a tensor: x and w must not be in blocks");
    g->fp8_head = o->fp8_head;
}

// A model without its state has no amax history. An own amax over all positions would let later
// tokens change what comes before them, so x then has a scale for each row.
static void options_bare(const Options *o, Gpt *g) {
    ScalingRecipe *x = &g->recipes[OPERAND_X];
    if (o->fp8_head || !recipe_remembers(x)) return;
    recipe_blocks_set(x, "1xall", "option");
    if (x->rounding == ROUNDING_EXACT) x->rounding = ROUNDING_POW2;
}

static void options_loss_scale(const Options *o, Gpt *g) {
    char *end = NULL;
    const int off = !strcmp(o->loss_scale, "off");
    const double n = off ? 1 : strtod(o->loss_scale, &end);
    g->loss_scale_fixed = strcmp(o->loss_scale, "auto") != 0;
    EXPECT(
        !g->loss_scale_fixed || off ||
            (!*end && n >= 1 && n <= LOSS_SCALE_MAX && n == bits_float(float_bits(n) & 0x7f800000)),
        "option --loss-scale: expected auto, off or a power of two up to %.0f, found '%s'",
        LOSS_SCALE_MAX, o->loss_scale);
    if (g->loss_scale_fixed) g->loss_scale = n;
    else if (gpt_scales_loss(g)) g->loss_scale = LOSS_SCALE_INIT;
}

// --bf16 and --split: items are separated by commas or plus signs, the words of an item by dots. An
// item selects the products that match all its words: a layer (first, last or a number), a matrix
// (linear_name), a product (product_name). Their bits are set in chosen[L].
static void products_parse(const char *name, const char *text, int L, uint8_t (*chosen)[NLIN]) {
    char list[PATH_MAX], *items = list, *end;
    EXPECT(strlen(text) < sizeof(list), "option --%s: expected at most %zu characters", name,
           sizeof(list) - 1);
    strcpy(list, text);
    if (!*list) return;
    for (char *item = strsep(&items, ",+"); item; item = strsep(&items, ",+")) {
        int part[3] = {-1, -1, -1}; // layer, matrix, product: -1 is all of them
        for (char *word = strsep(&item, "."); word; word = strsep(&item, ".")) {
            const long number = strtol(word, &end, 10);
            // What the word can mean.
            long is[3] = {*end || end == word || number >= L ? -1 : number, NLIN - 1, NPRODUCT - 1};
            int added = 0;
            if (!strcmp(word, "first") || !strcmp(word, "last")) is[0] = *word == 'f' ? 0 : L - 1;
            while (is[1] >= 0 && strcmp(word, linear_name[is[1]])) is[1]--;
            while (is[2] >= 0 && strcmp(word, product_name[is[2]])) is[2]--;
            for (int k = 0; k < 3; k++)
                if (part[k] < 0 && is[k] >= 0) {
                    part[k] = is[k];
                    added = 1;
                }
            EXPECT(added,
                   "option --%s: expected one layer (first, last, 0 to %d), one matrix (qkv, "
                   "attproj, fc, fcproj), one product "
                   "(fprop, dgrad, wgrad) with dots between; found '%s' in '%s'",
                   name, L - 1, word, text);
        }
        for (int i = 0; i < L * NLIN; i++)
            if ((part[0] < 0 || i / NLIN == part[0]) && (part[1] < 0 || i % NLIN == part[1]))
                chosen[i / NLIN][i % NLIN] |= part[2] < 0 ? 7 : 1 << part[2];
    }
}

static void options_products(const Options *o, Gpt *g) {
    const ScalingRecipe *r = g->recipes;
    for (int i = 0; i < NOPERAND; i++)
        EXPECT(g->config.C % 2 == 0 || r[i].format != DTYPE_E2M1,
               "option --recipe: e2m1 needs an even number of channels, found %d", g->config.C);
    EXPECT(!*o->split || r[0].split || r[1].split || r[2].split,
           "option --split: no operand is split; --recipe split makes it so");
    products_parse("bf16", o->bf16, g->config.L, g->bf16);
    products_parse("split", *o->split ? o->split : "fprop+dgrad+wgrad", g->config.L, g->split);
}

// -e dN: its depth; 0 where -e names a file.
static int options_depth(const Options *o) {
    char *end;
    const long depth = o->model[0] == 'd' && isdigit((unsigned char)o->model[1])
                           ? strtol(o->model + 1, &end, 10)
                           : 0;
    if (depth == 0 || *end) return 0;
    EXPECT(depth >= 1 && depth <= 200, "option --model: expected a depth of d1 to d200, found '%s'",
           o->model);
    return depth;
}
static Config options_config(const Options *o, int depth, int V) {
    const int C = o->channels   ? o->channels
                  : depth == 24 ? 1024
                  : depth == 36 ? 1280
                  : depth == 48 ? 1600
                                : 64 * depth;
    const int NH = o->heads ? o->heads : MAX(C / 64, 1), L = o->layers ? o->layers : depth;
    EXPECT(C % NH == 0, "option --heads: %d channels cannot be split over %d heads", C, NH);
    const Config c = {(int)o->seq_len, V, (int)round_up(V, 128), L, NH, C};
    return c;
}

// ==== 14. training loop ==========================================================================

#ifndef COMMIT
#define COMMIT "unknown"
#endif
static volatile sig_atomic_t interrupted = 0;
// A second Ctrl-C ends the program at once. TERM and HUP may come twice.
static void on_interrupt(int signal_number) {
    interrupted = 1;
    if (signal_number == SIGINT) signal(SIGINT, SIG_DFL);
}
static void on_illegal(int signal_number) {
    fatal(EXIT_BAD_INPUT, "built for another CPU (signal %d); make clean && make", signal_number);
}

static double mib(size_t bytes) { return bytes / 1048576.0; }

// Makes a directory and its parents.
static void directory_make(char *path) {
    for (char *p = path, end = '/'; end; *p = end) {
        p += 1 + strcspn(p + 1, "/");
        end = *p;
        *p = 0;
        EXPECT(mkdir(path, 0777) == 0 || errno == EEXIST, "%s: cannot make the directory: %s", path,
               strerror(errno));
    }
}
// Opens and locks a directory. Returns -1 if another program has locked it. A file system without
// locks gives a warning.
static int directory_lock(const char *path) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EXPECT(fd >= 0, "%s: cannot open: %s", path, strerror(errno));
    if (!flock(fd, LOCK_EX | LOCK_NB)) return fd;
    if (errno == EWOULDBLOCK) {
        close(fd);
        return -1;
    }
    fprintf(stderr, "%s: %s: cannot lock it (%s); run one program there\n", PROGRAM, path,
            strerror(errno));
    return fd;
}

// The name of run n of those without --out: log/PRECISION, with the recipe if that is not the
// default, with a number after the first.
static const char *run_name(const char *recipe, long n, char *out) {
    const int usual = recipe_same(recipe, option_specs[option_index("recipe")].initial);
    char number[32] = "";
    if (n > 1) snprintf(number, sizeof(number), "-%ld", n);
    path_print(out, "log/" PRECISION_NAME "%s%.200s%s", usual ? "" : "-", usual ? "" : recipe,
               number);
    for (char *p = out + 4; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr(".=_-", *p)) *p = '-';
    return out;
}

// Section 14's end: the newest run of a precision under log/.
static int log_newest(const char *precision, const Run *r, char *dir);

// Finds or makes the directory of a run and locks it before it looks at what is there (lock 0: only
// looks). A new run never writes into an old run's directory: without --out it takes the name after
// the last one (99 missing numbers in a row end the search), with --out it refuses. A resume
// without --out takes the newest run of this precision under log/. Returns the step of the newest
// checkpoint.
static long run_directory(Directory *d, const Options *o, int resume, int lock) {
    const char *out = o->out;
    long last = 0;
    for (long n = 1; !resume && !out[0] && n < last + 100; n++)
        if (checkpoint_newest(run_name(o->recipe, n, d->path), 0) > -2) last = n;
    for (long n = last + 1;; n++) {
        if (out[0]) path_print(d->path, "%s", out);
        else if (!resume || !log_newest(PRECISION_NAME, NULL, d->path))
            run_name(o->recipe, n, d->path);
        if (!resume) directory_make(d->path);
        d->fd = lock ? directory_lock(d->path) : AT_FDCWD;
        const long newest = checkpoint_newest(d->path, LONG_MAX);
        if (!resume && !out[0] && (newest > -2 || d->fd == -1)) { // taken meanwhile
            close(d->fd);
            continue;
        }
        EXPECT(d->fd != -1, "%s: another program is training in this directory", d->path);
        EXPECT(resume || newest == -2,
               "option --out: %s holds a run already; choose another name, or %s", d->path,
               newest < 0 ? "remove it: it has no checkpoint" : "resume it with -y");
        EXPECT(!resume || newest >= 0, "%s: no finished checkpoint (DONE_*) to resume from%s",
               d->path, lock && newest > -2 ? "; remove it to begin again" : "");
        return newest;
    }
}

// Writes the name of the first tensor that holds Inf or NaN to out[256]. It looks at activations in
// the order in which they are made (leaving out those that later ones would show), then at
// gradients from the top down, then at losses and weights.
static void nonfinite_find(Gpt *g, char *out) {
    const int L = g->config.L;
    // Rows in use, channels, and allocated elements of one activation.
    const size_t R = (size_t)g->B * g->config.T, C = g->config.C, RC = gpt_rows(g) * C;
    for (int l = 0; l <= L; l++) {
        const stored_t *residual = g->residual + 2 * l * RC;
        const stored_t *const at[] = {residual, g->qkv + l * 3 * RC, residual + RC,
                                      g->fc + l * 4 * RC, g->lnf};
        static const char *const names[] = {"residual before attention", "qkv",
                                            "residual before the MLP", "fc", "lnf"};
        static const int wide[] = {1, 3, 1, 4, 1};
        for (int i = 0; i < 5; i++) // after the last layer, residual and lnf
            if ((l == L ? i % 4 == 0 : i < 4) && tensor_nonfinite(at[i], STORED, wide[i] * R * C))
                return (void)snprintf(out, 256, "activation %s of layer %d", names[i], l);
    }
    for (int l = g->grad ? L - 1 : -1; l >= 0; l--)
        for (int id = NPARAM - 1; id >= 0; id--) {
            const ParamSpec *s = &g->params[id];
            if (s->layers == 1 && (id >= LNFW ? l < L - 1 : l > 0)) continue;
            if (gradient_nonfinite(g, id, l))
                return (void)snprintf(out, 256, "gradient of %s of layer %d", s->name, l);
        }
    strcpy(out, tensor_nonfinite(g->losses, DTYPE_FP32, R) ? "the losses"
                : tensor_nonfinite(g->master, DTYPE_FP32, g->held)
                    ? "weights"
                    : "none; the sum of squares overflowed");
}

// "1h05m" or "4m07s", into out[64].
static const char *duration_text(double seconds, char *out) {
    const long s = seconds + 0.5, hours = s >= 3600, unit = hours ? 60 : 1;
    snprintf(out, 64, "%ld%c%02ld%c", s / (60 * unit), hours ? 'h' : 'm', s / unit % 60,
             hours ? 'm' : 's');
    return out;
}

// Prints the eight operands that lost most in the last step: those whose SQNR is lowest for their
// format's bits of precision (6 dB each), or, where none was measured, those with the largest
// shares that saturated or underflowed to zero.
static void scale_table_print(const Gpt *g) {
    char *shown = (char *)memory_allocate(g->scale_count), name[32];
    printf("\nthe operands that lost most in the last step\n"
           "  layer operand          amax       scale   saturated   underflowed     SQNR\n");
    for (int row = 0; row < 8; row++) {
        double most = -INFINITY;
        int best = -1;
        for (int i = 0; i < g->scale_count; i++) {
            const OperandReport s = operand_report(g, i);
            const double bits = g->scales[i].recipe.format == DTYPE_E5M2 ? 3 : 4;
            const double lost = isnan(s.sqnr) ? s.saturated + s.flushed - 1000 : 6 * bits - s.sqnr;
            if (shown[i] || !(lost > most)) continue; // NAN: was not quantized
            most = lost;
            best = i;
        }
        if (best < 0) break;
        shown[best] = 1;
        const OperandReport worst = operand_report(g, best);
        const int layer = scale_name(g, best, name);
        printf("  %5d %-10s %10.3g  %10.4g  %9.5f%%    %9.5f%%  ", layer, name, worst.amax,
               worst.scale, 100 * worst.saturated, 100 * worst.flushed);
        if (isnan(worst.sqnr)) printf("      -\n");
        else printf("%4.1f dB\n", worst.sqnr);
    }
    printf("With E4M3 31 dB are normal, with E5M2 25. Less means values that saturate or "
           "underflow.\n");
    free(shown);
}

// Another run's directory and log, and how far the log was read.
typedef struct {
    char dir[PATH_MAX], precision[32];
    const char *at;
    double row[4]; // its row there
} Baseline;

// Everything that one call of the program works with.
struct Run {
    Options o;
    int given[OPTION_COUNT], prompts, trains; // neither: --eval
    Gpt g;
    Dataset train, val;
    ValidationSet validation;
    Tokenizer tokenizer;
    Baseline baselines[2]; // runs that gaps are measured against
    int baseline_count;
    int longer;                      // its log has another number of steps
    char baseline_note[2][PATH_MAX]; // why a baseline is not taken, or ""
    MemoryPlan plan;
    Progress progress;
    StateFile state;      // that it resumes from
    char model[PATH_MAX]; // file that it starts from; "": new weights
    File model_file;
    Directory dir;
    char *option_lines; // what the state holds
    FILE *log, *scales;
};

// Ends the program. Says what is not finite, where that began, and which checkpoint is left.
__attribute__((noreturn)) static void run_nonfinite(Run *r, long step, const char *what) {
    char tensor[256], last[PATH_MAX] = "no checkpoint yet";
    const long newest = r->trains ? checkpoint_newest(r->dir.path, LONG_MAX) : -1;
    if (newest >= 0)
        path_print(last, "the last good checkpoint is %s/state_%08ld.bin", r->dir.path, newest);
    char(*found)[256] = (char(*)[256])memory_allocate(world.size * sizeof(*found));
    nonfinite_find(&r->g, found[world.rank]);
    world_gather(found, sizeof(*found));
    int q = 0; // the first process that found something
    while (q < world.size - 1 && !strncmp(found[q], "none", 4)) q++;
    const int one = world.size > 1 && strncmp(found[q], "none", 4);
    snprintf(tensor, sizeof(tensor), one ? "%.200s of rank %d" : "%.200s", found[q], q);
    if (isatty(STDOUT_FILENO)) printf("\n"); // below the step's line
    fatal(EXIT_NONFINITE, "step %ld: %s not finite; first non-finite tensor: %s; %s", step, what,
          tensor, last);
}

// Prints `text` and `count` more tokens. The model first reads a separator, as it stands between
// documents of the training text. Keys and values stay in the KV cache. When the context is full,
// the last half is read again from its start. Training does not notice: the random numbers are
// separate and no statistics are recorded.
static void run_write(Run *r, const char *text, long count, uint64_t seed) {
    Gpt *g = &r->g;
    const int T = g->config.T, V = g->config.V, half = MAX(T / 2, 1);
    int *all = (int *)memory_allocate((2 * strlen(text) + T + 3) * sizeof(int));
    float *logits = (float *)memory_allocate(V * sizeof(float));
    gpt_refresh_weights(g); // with all processes
    all[0] = r->tokenizer.separator;
    const int n = 1 + tokenizer_encode(&r->tokenizer, text, all + 1);
    // The end of a prompt that is longer than the context.
    int pos = 0, length = MIN(n, MAX(T - 1, 1)), *context = all + n - length;
    fputs(text, stdout);
    for (long i = 0; i < count && !ferror(stdout); i++) {
        if (length > T) {
            memmove(context, context + length - half, half * sizeof(int));
            length = half;
            pos = 0;
        }
        gpt_logits(g, logits, context + pos, length - pos, pos);
        if (floats_nonfinite(logits, V))
            run_nonfinite(r, r->progress.step, "the logits of a sample are");
        pos = length;
        context[length] =
            sample_token(logits, V, r->o.temperature, random_unit(random_u64(seed, 0x5a3b1e, i)));
        token_print(&r->tokenizer, context[length++]);
    }
    printf("\n");
    free(all);
    free(logits);
}

// Prints the gaps of a validation loss to the baselines' losses after the same step.
static void baselines_print(Run *r, long step, double loss) {
    const char *before = " | gap to";
    for (int i = 0; i < r->baseline_count; i++) {
        Baseline *b = &r->baselines[i];
        if (!log_validation(&b->at, b->row, step)) continue;
        printf("%s %s %+.6f", before, b->precision, loss - b->row[3]);
        before = ",";
    }
}

// Mean loss over the validation set, in nats a token.
static double run_validate(Run *r, long step) {
    const ValidationSet *v = &r->validation;
    const int B = r->g.B, batches = ceil_div(v->rows, B), each = ceil_div(batches, world.size);
    double sum = 0, *losses = (double *)memory_allocate(world.size * each * sizeof(double));
    gpt_refresh_weights(&r->g); // with all processes
    for (long i = world.rank; i < batches; i += world.size)
        losses[world.rank * each + i / world.size] =
            gpt_loss(&r->g, v->tokens + i * B * v->T, v->targets + i * B * v->T,
                     MIN(B, v->rows - i * B), v->T);
    world_gather(losses, each * sizeof(double));
    for (int i = 0; i < batches; i++) sum += losses[i % world.size * each + i / world.size];
    free(losses);
    const double loss = sum / v->counted;
    if (!isfinite(loss)) run_nonfinite(r, step, "the validation loss is");
    printf("validation after step %ld: loss %.6f", step, loss);
    if (v->bytes > 0) printf(", %.4f bits a byte", loss / M_LN2 / v->bytes);
    if (v->floor > 0) printf(", floor %.4f, excess %.4f", v->floor, loss - v->floor);
    baselines_print(r, step, loss);
    printf("\n");
    return loss;
}

// A description of the run, then every option, as `# key<TAB>value` lines. The log begins with
// them, and the screen shows them first.
static char *run_header(const Run *r) {
    const Config *c = &r->g.config;
    const MemoryPlan *p = &r->plan;
    static char *text; // static: gcc 12 warns of open_memstream()'s pointer to it elsewhere
    static size_t size;
    char sliced[64] = "";
    FILE *f = open_memstream(&text, &size);
    if (world.size > 1)
        snprintf(sliced, sizeof(sliced), " (%.1f if there were one process)", mib(p->alone));
    fprintf(f, "# commit\t" COMMIT "\n# precision\t" PRECISION_NAME "\n# numerics\t%d\n",
            NUMERICS_VERSION);
    backend_header(f, r);
    fprintf(f,
            "# shape\t%d layers, %d heads, %d channels, context %d, vocabulary %d (padded %d), %zu "
            "parameters\n",
            c->L, c->NH, c->C, c->T, c->V, c->Vp, r->g.param_count);
    fprintf(f, "# data\t%zu tokens in %zu windows; validation: %ld rows of %zu tokens%s\n",
            r->train.tokens, r->train.windows, r->validation.rows, r->validation.counted,
            r->validation.floor > 0 ? ", whole stories with a known floor" : "");
    fprintf(f, "# data_hash\t%016llx\n# val_hash\t%016llx\n", (unsigned long long)r->train.hash,
            (unsigned long long)r->val.hash);
    fprintf(f, "# floor\t%.9g\n", r->validation.floor);
    if (r->model[0])
        fprintf(f, "# begins_with\tstep %ld, model %016llx\n", (long)r->progress.step,
                (unsigned long long)r->progress.model_checksum);
    if (r->validation.bytes > 0) fprintf(f, "# bytes_per_token\t%.9g\n", r->validation.bytes);
    fprintf(
        f,
        "# memory\t%.1f MiB: parameters and optimizer %.1f%s, activations kept for the backward "
        "pass %.1f (FP16 keeps %.1f), reused buffers %.1f\n%s",
        mib(p->total), mib(p->part[OPTIMIZER]), sliced, mib(p->part[KEPT]), mib(p->kept_fp16),
        mib(p->part[REUSED]), r->option_lines);
    fclose(f);
    return text;
}

// All processes must have the same header, but for lines about the machine.
static void run_agree(Run *r) {
    if (world.size == 1) return;
    const long begins[] = {r->o.resume, r->o.eval, r->progress.step};
    long first[] = {begins[0], begins[1], begins[2]};
    world_bcast(first, sizeof(first), 0);
    EXPECT(!memcmp(first, begins, sizeof(first)),
           "its -y, --eval and checkpoint are %ld, %ld, %ld, those of rank 0 %ld, %ld, %ld; all "
           "processes need the same",
           begins[0], begins[1], begins[2], first[0], first[1], first[2]);
    r->option_lines = options_lines(&r->o);
    char key[64], theirs[PATH_MAX], mine[PATH_MAX], *header = run_header(r);
    size_t bytes = strlen(header) + 1;
    world_bcast(&bytes, sizeof(bytes), 0);
    char *all = (char *)memory_allocate(bytes);
    memcpy(all, header, MIN(bytes, strlen(header)));
    world_bcast(all, bytes, 0);
    for (const char *at = all; *at; at += strcspn(at, "\n") + 1) {
        snprintf(key, sizeof(key), "%.*s", (int)strcspn(at + 2, "\t"), at + 2);
        EXPECT(strstr("threads machine memory", key) ||
                   !strcmp(text_value(all, key, theirs), text_value(header, key, mine)),
               "its %s is '%s', that of rank 0 '%s'; all processes need the same", key, mine,
               theirs);
    }
    free(all);
    free(header);
    free(r->option_lines);
    (void)world_any(0); // nobody goes on before all have agreed
}

// Prints `# key<TAB>value` lines to the screen, as two columns. Options that have their default are
// shown with --verbose only.
static void lines_print(const char *line, int verbose) {
    char key[64];
    for (int n = strcspn(line, "\n"); *line; line += n + 1, n = strcspn(line, "\n")) {
        const int end = strcspn(line, "\t");
        snprintf(key, sizeof(key), "%.*s", end - 2, line + 2);
        const int i = option_index(key);
        const char *usual = i < 0 ? "\t" : option_specs[i].initial;
        const int differs =
            strncmp(line + end + 1, usual, strlen(usual)) || end + 1 + (int)strlen(usual) != n;
        if (verbose || differs) printf("%-16s %.*s\n", key, n - end - 1, line + end + 1);
    }
}

// Returns the name of the first thing in which another log's run differs from this one: data,
// shape, seeds, a hyper-parameter. The precision may differ. resumed: it is this run's own log,
// before it goes on, maybe longer. NULL: nothing.
static const char *run_difference(const Run *r, const char *log, int resumed) {
    char theirs[PATH_MAX], mine[PATH_MAX];
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionSpec *s = &option_specs[i];
        if (s->scope != FIXED || (resumed && option_is_length(s))) continue;
        if (strcmp(text_value(log, s->name, theirs), option_text(&r->o, s, mine))) return s->name;
    }
    if (strtoull(text_value(log, "data_hash", theirs), NULL, 16) != r->train.hash)
        return "data_hash";
    if (strtoull(text_value(log, "val_hash", theirs), NULL, 16) != r->val.hash) return "val_hash";
    path_print(mine, "%.9g", r->validation.floor); // whole stories, or windows
    if (strcmp(text_value(log, "floor", theirs), mine)) return "floor (NAME.floor.tsv)";
    double row[4] = {0};
    const char *at = log;
    if (!resumed && !(log_validation(&at, row, r->o.steps) && isfinite(row[3])))
        return "last validation";
    return atoi(text_value(log, "numerics", theirs)) != NUMERICS_VERSION ? "numerics" : NULL;
}

// A resume must find the data that the run began with.
static void run_resume_check(Run *r) {
    char path[PATH_MAX], value[PATH_MAX];
    path_print(path, "%s/log.tsv", r->dir.path);
    char *mine = text_read(path);
    EXPECT(mine,
           "%s: the run's log is missing; bring it back, or begin another run with its model (-e)",
           path);
    const char *different = run_difference(r, mine, 1);
    const long said = atol(text_value(mine, "steps", value)), steps = r->o.steps;
    const char *first = strstr(mine, "\n# steps\t"); // later ones may be cut with their rows
    r->longer = said != steps || !first || atol(first + 9) != steps ||
                atol(text_value(mine, "schedule-steps", value)) != r->o.schedule_steps;
    if (said > steps) printf("note: the log says %ld steps; -x %ld goes on to them\n", said, said);
    text_free(mine);
    EXPECT(!different,
           "%s: the run's %s is another than now; bring the data back that it began with", path,
           different);
}

// Writes the directory of the newest run of a precision under log/; with r, of the newest finished
// one that differs in nothing else. Returns whether there is one.
static int log_newest(const char *precision, const Run *r, char *dir) {
    char value[PATH_MAX];
    struct stat st;
    double newest = 0;
    glob_t found;
    if (glob("log/*/log.tsv", 0, NULL, &found)) found.gl_pathc = 0;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *path = found.gl_pathv[i];
        if (access(path, R_OK) || stat(path, &st) || !S_ISREG(st.st_mode)) continue;
        const double time = st.st_mtim.tv_sec + 1e-9 * st.st_mtim.tv_nsec;
        char *text = text_read(path);
        if (!text) continue; // removed meanwhile
        if (time >= newest && !strcmp(text_value(text, "precision", value), precision) &&
            (!r || !run_difference(r, text, 0))) {
            path_print(dir, "%.*s", (int)(strrchr(path, '/') - path), path);
            newest = time;
        }
        text_free(text);
    }
    globfree(&found);
    return newest > 0;
}

// Opens the baselines: --baseline, or the newest finished FP16 and BF16 runs under log/ that differ
// in the precision alone.
static void run_baselines(Run *r) {
    static const char *const precisions[] = {"fp16", "bf16"};
    const char *asked = r->o.baseline;
    char path[PATH_MAX];
    for (int i = 0; i < (asked[0] ? 1 : 2); i++) {
        Baseline *b = &r->baselines[r->baseline_count];
        if (asked[0]) path_print(b->dir, "%s", asked);
        else if (!strcmp(precisions[i], PRECISION_NAME) ||
                 !(log_newest(precisions[i], r, b->dir) || log_newest(precisions[i], NULL, b->dir)))
            continue;
        path_print(path, "%s/log.tsv", b->dir);
        char *text = text_read(path);
        const char *different = text ? run_difference(r, text, 0) : "log.tsv";
        EXPECT(!different || !asked[0] || !r->given[option_index("baseline")],
               "option --baseline: %s is no finished run that differs in the precision alone: see "
               "its %s",
               asked, different);
        if (different) {
            snprintf(r->baseline_note[i], PATH_MAX, "%.900s: see its %s", b->dir, different);
            if (text) text_free(text);
            continue;
        }
        snprintf(b->precision, sizeof(b->precision), "%.31s", text_value(text, "precision", path));
        b->at = text;
        r->baseline_count++;
    }
}

static void run_batch(Run *r, long index, int *tokens, int *targets) {
    dataset_batch(&r->train, r->o.data_seed, (uint64_t)index * r->g.B, tokens, targets, r->g.B,
                  r->g.config.T);
}
// Runs step `step` (from 0) and returns its mean loss. Ends the program if something is not finite.
static double run_step(Run *r, long step, double *norm, float *lr) {
    const Options *o = &r->o;
    *lr = schedule_lr((Schedule)o->schedule, o->lr, o->final_lr, step, o->warmup,
                      o->schedule_steps ? o->schedule_steps : o->steps);
    r->g.logged_loss_scale = r->g.loss_scale;
    const AdamW adamw = {*lr, (float)o->beta1, (float)o->beta2, (float)o->eps,
                         (float)o->weight_decay};
    const int micro_batches = o->total_batch / (r->g.B * r->g.config.T);
    const Step in = {step,           (long)r->progress.updates + 1,
                     micro_batches,  step + 1 == o->steps,
                     o->total_batch, o->grad_clip,
                     adamw};
    const StepOutcome results = gpt_step(&r->g, &in, r);
    if (results.nonfinite) run_nonfinite(r, step + 1, results.nonfinite);
    if (!results.skipped) r->progress.updates++;
    *norm = results.norm;
    return results.loss;
}

// Prints what the run came to, where its files are, and what to do next.
static void run_summary(Run *r, double val_loss, double seconds, double waited) {
    char text[PATH_MAX];
    const long step = r->progress.step, steps = step - r->state.progress.step;
    const char *dir = r->dir.path;
    if (IS_FP8) scale_table_print(&r->g);
    const double floor = r->validation.floor;
    printf("\n%ld steps in %s, ", steps, duration_text(seconds, text));
    if (world.size > 1)
        printf("%.1f%% of it " BACKEND_WAITS " %d processes, ", 100 * waited / seconds, world.size);
    backend_summary(r);
    if (val_loss > 0) {
        printf("validation loss %.6f", val_loss);
        if (floor > 0)
            printf(": %.4f above the floor of %.4f nats a byte", val_loss - floor, floor);
        baselines_print(r, step, val_loss);
    }
    printf("\nlog         %s/log.tsv%s\n", dir, IS_FP8 ? " and scales.tsv" : "");
    if (r->o.checkpoint_every && step) {
        printf("checkpoint  %s/model_%08ld.bin and state_%08ld.bin\n", dir, step, step);
        printf("go on       ./%s -y -o '%s' -x %ld\n", PROGRAM, dir, 2 * step);
        printf("generate    ./%s -y -o '%s' --prompt 'Once there was'\n", PROGRAM, dir);
    }
    printf("compare     %smake build/compare && build/compare --logs",
           r->baseline_count ? "" : "train it in another precision; then ");
    for (int i = 0; i < r->baseline_count; i++) printf(" '%s'", r->baselines[i].dir);
    printf(" '%s'\n", dir);
}

// Whether something is due after this step: after every `every` steps and after the last.
static int step_is_due(const Options *o, long step, long every) {
    return every && (step % every == 0 || step == o->steps);
}
// What a step records: an SQNR if its row of scales.tsv is the first after a multiple of
// --sqnr-every, or the last.
static Record step_record(const Options *o, long step) {
    const long rows = o->scales_every, every = o->sqnr_every;
    const int asked = every && (step == o->steps || step / every > (step - rows) / every);
    return IS_FP8 && asked && step_is_due(o, step, rows) ? RECORD_SQNR : RECORD_STATS;
}

// What is printed and logged of a step. seconds: of the step. each: of a step with all that lies
// between two.
typedef struct {
    double loss, norm;
    float lr, loss_scale;
    double seconds, each, waited; // waited: for other processes, on average
} StepReport;
// FLOPs of a step: 6 N a token for the matrices (with the head, without embeddings), and the causal
// half of attention.
static double step_flops(const Run *r) {
    const Config *c = &r->g.config;
    const double C = c->C, matrices = 12 * C * C * c->L + c->Vp * C;
    return r->o.total_batch * (6 * matrices + 6.0 * c->L * C * c->T);
}
// In a terminal every step rewrites one line, which ends where something else is printed. Elsewhere
// a line is printed every --print-every steps and where something else is.
static void step_print(const Run *r, long step, const StepReport *s, int ends) {
    const Options *o = &r->o;
    const int live = isatty(STDOUT_FILENO), width = 10 * step / o->steps;
    char left[64], speed[64], line[512];
    backend_speed(step_flops(r) / s->seconds * 1e-9, speed); // of every step: it notes slow ones
    if (!live && !ends && !step_is_due(o, step, o->print_every) && isfinite(s->norm)) return;
    snprintf(line, sizeof(line),
             "%5ld/%ld [%.*s%.*s] %s left | loss %.5f%s | lr %.2e | norm %.3f | %.0f tok/s | %s",
             step, o->steps, width, "##########", 10 - width, "..........",
             duration_text(s->each * (o->steps - step), left), s->loss,
             isfinite(s->norm) ? "" : ", overflow: skipped", s->lr, s->norm,
             o->total_batch / s->seconds, speed);
    int fits = strlen(line); // 80 columns, whole fields
    for (; live && fits > 79; line[fits] = 0) fits = (int)(strrchr(line, '|') - line) - 1;
    printf("%s%.*s%s", live ? "\r\033[K" : "", fits, line, live && !ends ? "" : "\n");
    fflush(stdout);
}
static void step_log(Run *r, long step, const StepReport *s, double val_loss) { // NAN: none
    const long tokens = r->o.total_batch;
    if (world.rank) return;
    fprintf(r->log, "%ld\t%ld\t%.9g\t%.9g\t%.9g\t%.9g\t%.9g\t%.3f\t%.1f\t%.5f\t%.3f\n", step,
            step * tokens, s->loss, isfinite(val_loss) ? val_loss : NAN, s->lr, s->norm,
            s->loss_scale, s->seconds * 1e3, tokens / s->seconds,
            step_flops(r) / s->seconds * 1e-12, s->waited * 1e3);
    log_flush(r->log, &r->dir, 0);
}

static int run_train(Run *r) {
    Gpt *g = &r->g;
    const Options *o = &r->o;
    const double begin = seconds_now();
    const long first = r->progress.step;
    double val_loss = 0, waited = 0;
    g->record_weights = step_record(o, first + 1);
    for (long step = first + 1; step <= o->steps; step++) {
        const int last = step == o->steps;
        const float loss_scale = g->loss_scale;
        double t = seconds_now(), norm;
        float lr;
        g->record = step_record(o, step);
        const double loss = run_step(r, step - 1, &norm, &lr);
        g->record = RECORD_NONE;
        g->record_weights = step_record(o, step + 1);
        t = seconds_now() - t;
        r->progress.step = step;

        const StepReport report = {
            loss, norm, lr, loss_scale, t, (seconds_now() - begin) / (step - first), world.waited};
        waited += report.waited;
        world.waited = 0;
        step_print(r, step, &report,
                   step == first + 1 || step_is_due(o, step, o->val_every) ||
                       step_is_due(o, step, o->sample_every) || interrupted || last);
        if (step_is_due(o, step, o->val_every)) val_loss = run_validate(r, step);
        step_log(r, step, &report, step_is_due(o, step, o->val_every) ? val_loss : NAN);
        if (r->scales && step_is_due(o, step, o->scales_every)) {
            gpt_scales_read(g);
            log_scales(r->scales, g, step);
            log_flush(r->scales, &r->dir, 0);
        }
        if (step_is_due(o, step, o->sample_every)) {
            printf("--- a sample after step %ld\n", step);
            run_write(r, "", o->sample_len, o->seed ^ mix64(step));
            printf("---\n");
        }
        // `interrupted` is read once, so that the message below is true. A run also stops when its
        // output can no longer be written.
        const int stop = world_any(interrupted || fflush(stdout) != 0 || ferror(stdout));
        const int saves = stop || step_is_due(o, step, o->checkpoint_every);
        if (saves || last) dataset_check(&r->train, o->train);
        if (saves) {
            if (r->log) log_flush(r->log, &r->dir, 1);
            if (r->scales) log_flush(r->scales, &r->dir, 1);
            checkpoint_save(g, &r->dir, &r->progress, r->option_lines, o->keep);
        }
        if (stop && !last) {
            if (!world.rank)
                fprintf(stderr, "interrupted after step %ld. To go on: ./%s -y -o '%s'\n", step,
                        PROGRAM, r->dir.path);
            return EXIT_INTERRUPTED;
        }
    }
    gpt_scales_read(g);
    run_summary(r, val_loss, seconds_now() - begin, waited);
    return EXIT_DONE;
}

// Takes the model's shape from a file, which is checked whole. V: the vocabulary of the data; 0: no
// data.
static void run_open_model(Run *r, int V) {
    Options *o = &r->o;
    uint64_t sum;
    r->model_file = file_open(r->model, 0);
    r->g.config = model_check(&r->model_file, &sum);
    const int longest = r->g.config.T;
    EXPECT(!o->resume || sum == r->progress.model_checksum,
           "%s: damaged: not what %s was written with", r->model, r->state.path);
    r->progress.model_checksum = sum;
    EXPECT(options_depth(o) || !(o->layers || o->heads || o->channels),
           "option --layers, --heads, --channels: %s has a shape", r->model);
    EXPECT(!V || r->g.config.V == V, "%s: expected a vocabulary of %d, as the data have; found %d",
           r->model, V, r->g.config.V);
    if (!r->given[option_index("seq-len")] && !o->resume) o->seq_len = longest;
    EXPECT(o->seq_len <= longest, "option --seq-len: %s has %d positions, found %ld", r->model,
           longest, o->seq_len);
    r->g.config.T = o->seq_len;
}

// Fills in the numbers whose defaults depend on others.
static void run_open_numbers(Run *r) {
    Options *o = &r->o;
    const long micro_batch = o->batch * o->seq_len; // tokens
    EXPECT(micro_batch <= 1 << 30,
           "option --batch: expected a batch x seq-len of at most 2^30, found %ld", micro_batch);
    if (o->shards == 0) o->shards = world.size;
    EXPECT(o->shards >= world.size || !r->trains,
           "option --shards: the run has %ld; start at most so many processes, found %d", o->shards,
           world.size);
    if (o->total_batch == 0) o->total_batch = micro_batch * o->shards;
    EXPECT(o->total_batch % (micro_batch * o->shards) == 0,
           "option --total-batch: expected a multiple of batch x seq-len x shards, %ld",
           micro_batch * o->shards);
    if (o->lr == 0)
        // A short number. Wider models want smaller rates: 1.6e-3 for d3, 4e-4 for d12.
        o->lr = round(3e8 / r->g.config.C) / 1e9;
    const long rows = o->val_batches ? o->val_batches * o->batch : o->val_rows;
    EXPECT(rows == o->val_rows || !(o->resume || r->given[option_index("val-rows")]),
           "option --val-batches: --val-rows is %ld", o->val_rows);
    o->val_rows = rows;
    r->g.fp8_moments = o->fp8_moments;
    r->g.seed = o->seed;
    r->g.shards = o->shards;
    r->g.grad_comm = o->grad_comm;
}

// Reads the checkpoint to resume from, the data, and the shape of the model, and completes the
// options. It checks all of them before anything is allocated or a thread started.
static void run_open(Run *r) {
    Options *o = &r->o;
    if (o->resume) { // the newest checkpoint, checked whole, and its options
        const long step = run_directory(&r->dir, o, 1, r->trains && !world.rank);
        path_print(r->state.path, "%s/state_%08ld.bin", r->dir.path, step);
        path_print(r->model, "%s/model_%08ld.bin", r->dir.path, step);
        state_check(&r->state);
        options_resume(o, r->state.options, r->given, r->state.path);
        r->progress = r->state.progress;
    }
    options_recipes(o, &r->g);
    options_loss_scale(o, &r->g);
    if ((o->eval || r->prompts) && !o->resume) options_bare(o, &r->g);
    int V = 0; // unknown
    if (!r->prompts) {
        if (!o->val[0] && !strcmp(o->train, option_specs[option_index("train")].initial))
            o->val = strdup("data/tales.d/val.txt");
        r->train = dataset_open(o->train);
        r->val = o->val[0] ? dataset_open(o->val) : dataset_hold_out(&r->train);
        V = r->train.V;
        EXPECT(r->val.V == V,
               "%s: expected a vocabulary of %d, as the training data have; found %d", o->val, V,
               r->val.V);
    }
    const int depth = options_depth(o);
    if (!r->model[0] && !depth) path_print(r->model, "%s", o->model);
    EXPECT(r->model[0] || (depth && !r->prompts),
           "options --model, --prompt: give a model file with -e, or a run with -y");
    if (r->model[0]) run_open_model(r, V);
    else r->g.config = options_config(o, depth, V);
    backend_limits(&r->g.config, r->prompts ? 1 : o->batch, !r->model[0]);
    options_products(o, &r->g);
    r->g.B = r->prompts ? 1 : o->batch;
    r->g.training = r->trains;
    r->g.recompute = o->recompute;
    run_open_numbers(r);
    V = r->g.config.V;
    char beside[PATH_MAX]; // the shards, or a model that is asked
    const char *with = r->prompts && !o->resume ? r->model : o->train, *slash = strrchr(with, '/');
    path_print(beside, "%.*sgpt2_tokenizer.bin", slash ? (int)(slash + 1 - with) : 0, with);
    if (V == GPT2_VOCAB && !o->tokenizer[0] && !access(beside, F_OK)) o->tokenizer = strdup(beside);
    r->tokenizer.V = V;
    r->tokenizer.separator = V == GPT2_VOCAB ? V - 1 : MIN('\n', V - 1);
    if (o->tokenizer[0]) r->tokenizer = tokenizer_open(o->tokenizer, V);
    EXPECT(!r->prompts || V == 256 || r->tokenizer.text,
           "option --prompt: this model's %d tokens need --tokenizer FILE", V);
    if (!r->prompts) {
        dataset_windows(&r->train, "training", o->seq_len, 1);
        dataset_windows(&r->val, "validation", o->seq_len, 1);
        r->validation = validation_open(&r->val, o->seq_len, o->val_rows);
        r->validation.bytes = tokenizer_bytes(&r->tokenizer, &r->validation);
    }
    if (o->resume && r->trains) run_resume_check(r);
    if (r->trains) run_baselines(r);
    backend_open(r);
    r->plan = memory_check(&r->g);
    run_agree(r);
    if (r->trains && !o->resume && !world.rank) run_directory(&r->dir, o, 0, 1);
}

// Runs when the program ends: everything that it printed must have been written. (Ctrl-C also ends
// the reader of a pipe.)
static void output_check(void) {
    EXPECT(interrupted || (fflush(stdout) == 0 && !ferror(stdout)),
           "the standard output cannot be written to");
}
// Opens descriptors 0 to 2 if they are closed: otherwise one of our files would get such a number,
// and what is printed would land in it. Turns signals that end a program silently into errors. Of
// several processes, rank 0 alone prints.
static void surroundings_init(void) {
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGILL, on_illegal);
    atexit(output_check);
    world_open();
    for (int i = 0; i < 2; i++) {
        const char *size = getenv(sizes[i]);
        EXPECT(!size || atoi(size) == world.size,
               "%s is %s, but this program finds %d; build it for that MPI: make MPI=1 (GPU: "
               "NCCL=1, too)",
               sizes[i], size, world.size);
    }
    EXPECT(world.size <= WORLD_MAX, "expected at most %d processes, found %d", WORLD_MAX,
           world.size);
    if (world.rank) dup2(open("/dev/null", O_WRONLY), 1);
}

// What the user should know before the run begins.
static void run_notes(const Run *r) {
    const Options *o = &r->o;
    const ScalingRecipe *x = &r->g.recipes[OPERAND_X];
    backend_note(r);
    for (int i = 0; i < 2; i++)
        if (r->baseline_note[i][0]) printf("note: no gap to %s\n", r->baseline_note[i]);
    if (o->warmup >= MAX(o->steps, 1)) printf("note: --warmup is longer than the run\n");
    if (o->val[0] && r->val.hash == r->train.hash)
        printf("note: train and val are the same data\n");
    if (IS_FP8 && o->eval && x->rule != SCALING_CONSTANT && !recipe_blocks(x) &&
        !(o->resume && recipe_remembers(x)))
        printf("note: x is scaled by its own amax, so this loss depends on --batch\n");
}

// Opens the logs, which rank 0 writes.
static void run_logs(Run *r, const char *header) {
    r->log = log_open(&r->dir, "log.tsv", r->progress.step, 1);
    if (IS_FP8) r->scales = log_open(&r->dir, "scales.tsv", r->progress.step, 0);
    log_begin(r->log, &r->dir, header, LOG_COLUMNS); // after both were checked
    if (IS_FP8) log_begin(r->scales, &r->dir, "", SCALES_COLUMNS);
    if (!r->o.resume) return;
    backend_resumed(r);
    if (r->longer)
        fprintf(r->log, "# steps\t%ld\n# schedule-steps\t%ld\n", r->o.steps, r->o.schedule_steps);
}

// The tests have a main() of their own.
#ifndef TESTING
int main(int argc, char **argv) {
    surroundings_init();
    static Run run;
    Run *r = &run;
    Options *o = &r->o;
    *o = options_parse(argc, argv, r->given);
    if (o->help == 2) {
        recipe_help();
        return EXIT_DONE;
    }
    if (o->help) {
        options_help();
        return EXIT_DONE;
    }
    if (o->version) {
        printf("train_gpt_" PRECISION_NAME " " COMMIT ", %s\n", backend_name());
        return EXIT_DONE;
    }
    r->prompts = r->given[option_index("prompt")];
    EXPECT(!r->prompts || world.size == 1, "option --prompt: start one process, found %d",
           world.size);
    r->trains = !r->prompts && !o->eval;
    run_open(r);
    backend_start(r);
    gpt_allocate(&r->g);
    if (r->model[0]) model_load(&r->g, &r->model_file);
    else gpt_init(&r->g, o->seed);
    options_loss_scale(o, &r->g);
    if (o->resume) state_load(&r->g, &r->state);
    if (r->prompts) {
        run_write(r, o->prompt, o->generate, o->seed);
        return EXIT_DONE;
    }
    r->option_lines = options_lines(o);
    backend_ready(r);
    char *header = run_header(r);
    lines_print(header, o->verbose);
    run_notes(r);
    if (o->eval) {
        run_validate(r, r->progress.step);
        return EXIT_DONE;
    }
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    signal(SIGUSR1, on_interrupt); // mpirun passes it on
    signal(SIGPIPE, SIG_IGN);
    if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN); // nohup
    if (!world.rank) run_logs(r, header);
    printf("run              %s\n\n", r->dir.path);
    if (o->resume) printf("resumed from step %ld\n", (long)r->progress.step);
    return run_train(r);
}
#endif
// ---- program ends

// #################################################################################################
// Part three: speed
// #################################################################################################

// ==== 15. the fast product =======================================================================
// The descriptors and the algorithm of a product, made when its shape is first seen.
typedef struct {
    size_t M, N, K, a_stride, b_stride, out_stride, a_align, b_align, out_align, bias_align;
    int a_dtype, b_dtype, out_dtype, a_across, b_across; // strides run across K
    int bias, accumulate, fast, a_mode, b_mode;
} ProductKey;
typedef struct {
    ProductKey key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t algorithm;
    int found; // cuBLASLt has one
} Product;
static Product products[PRODUCTS_MAX];
static int product_count;

static cudaDataType_t cuda_type(Dtype d) {
    static const cudaDataType_t types[DTYPE_COUNT] = {
        CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F, CUDA_R_8F_E4M3, CUDA_R_8F_E5M2, CUDA_R_4F_E2M1};
    return types[d];
}
// Largest power of two, up to 256, that divides address and stride.
static size_t alignment(const void *p, size_t stride_bytes) {
    const uintptr_t bits = (uintptr_t)p | stride_bytes | 256;
    return bits & -bits;
}

#define DESC_SET(what, value)                                                                      \
    LT(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_##what, &(value),              \
                                      sizeof(value)))
static cublasStatus_t product_launch(const Product *p, const Output *out, const Matrix *a,
                                     const Matrix *b) {
    const float one = 1, zero = 0;
    return cublasLtMatmul(machine.lt, p->desc, &one, b->data, p->a, a->data, p->b,
                          out->accumulate ? &one : &zero, out->data, p->out, out->data, p->out,
                          &p->algorithm, machine.lt_workspace, LT_WORKSPACE, STREAM);
}

static void product_missing(Product *p, cublasStatus_t status) {
    const ProductKey *k = &p->key;
    fprintf(stderr, "%s: cuBLASLt has no %s product of %zu x %zu x %zu%s%s (status %d)\n",
            machine.name, dtype_size[k->a_dtype] == 1 ? "FP8" : "16-bit or fp32", k->M, k->N, k->K,
            k->bias ? " with a bias" : "", k->fast ? ", fast sums" : "", (int)status);
    p->found = 0;
}
// The descriptor and the layouts of a product.
static void product_describe(Product *p, const Output *out, const Matrix *a, const Matrix *b) {
    const ProductKey *k = &p->key;
    const int32_t op_a = k->b_across ? CUBLAS_OP_N : CUBLAS_OP_T;
    const int32_t op_b = k->a_across ? CUBLAS_OP_T : CUBLAS_OP_N;
    LT(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    DESC_SET(TRANSA, op_a);
    DESC_SET(TRANSB, op_b);
    if (dtype_size[k->a_dtype] == 1) {
        const int8_t fast = (int8_t)k->fast;
        const int32_t mode_a = k->b_mode, mode_b = k->a_mode;
        DESC_SET(FAST_ACCUM, fast);
        if (mode_a || mode_b) {
            DESC_SET(A_SCALE_MODE, mode_a);
            DESC_SET(B_SCALE_MODE, mode_b);
        }
        DESC_SET(A_SCALE_POINTER, b->inv);
        DESC_SET(B_SCALE_POINTER, a->inv);
    }
    if (k->bias) {
        const int32_t epilogue = CUBLASLT_EPILOGUE_BIAS, type = cuda_type(STORED);
        DESC_SET(EPILOGUE, epilogue);
        DESC_SET(BIAS_DATA_TYPE, type);
        DESC_SET(BIAS_POINTER, out->bias);
    }
    // rows and columns as cuBLASLt counts them
    const size_t ka = k->b_across ? k->N : k->K, na = k->b_across ? k->K : k->N;
    const size_t kb = k->a_across ? k->M : k->K, nb = k->a_across ? k->K : k->M;
    LT(cublasLtMatrixLayoutCreate(&p->a, cuda_type((Dtype)k->b_dtype), ka, na, k->b_stride));
    LT(cublasLtMatrixLayoutCreate(&p->b, cuda_type((Dtype)k->a_dtype), kb, nb, k->a_stride));
    LT(cublasLtMatrixLayoutCreate(&p->out, cuda_type((Dtype)k->out_dtype), k->N, k->M,
                                  k->out_stride));
}
static void product_make(Product *p, const Output *out, const Matrix *a, const Matrix *b) {
    const ProductKey *k = &p->key;
    const size_t workspace = LT_WORKSPACE;
    // A K that is split is summed in fp32 and in a fixed order: in the workspace, or one part after
    // the other in an fp32 output.
    const uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
        (k->out_dtype == DTYPE_FP32 ? CUBLASLT_REDUCTION_SCHEME_INPLACE : 0);
    const uint32_t align[3] = {(uint32_t)k->b_align, (uint32_t)k->a_align, (uint32_t)k->out_align};
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t choice;
    int choices = 0;
    product_describe(p, out, a, b);
    LT(cublasLtMatmulPreferenceCreate(&preference));
#define PREFER(what, value)                                                                        \
    LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_##what, &(value),     \
                                            sizeof(value)))
    PREFER(MAX_WORKSPACE_BYTES, workspace);
    PREFER(REDUCTION_SCHEME_MASK, reductions);
    PREFER(MIN_ALIGNMENT_A_BYTES, align[0]);
    PREFER(MIN_ALIGNMENT_B_BYTES, align[1]);
    PREFER(MIN_ALIGNMENT_C_BYTES, align[2]);
    PREFER(MIN_ALIGNMENT_D_BYTES, align[2]);
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        machine.lt, p->desc, p->a, p->b, p->out, p->out, preference, 1, &choice, &choices);
    cublasLtMatmulPreferenceDestroy(preference);
    // Any status but success: for FP8 products that do not exist it is sometimes INVALID_VALUE.
    p->found =
        status == CUBLAS_STATUS_SUCCESS && choices > 0 && choice.state == CUBLAS_STATUS_SUCCESS;
    if (!p->found) return product_missing(p, status);
    p->algorithm = choice.algo;
}

static int scale_mode(const Matrix *m) { // cuBLASLt's name for the shape of a matrix's blocks
    return !m->across            ? CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F
           : m->along == 16      ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
           : m->along == 32      ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0
           : m->along == INT_MAX ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
           : m->across == 1      ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
                                 : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
}
// The product of a shape, made if it is new; NULL if cuBLASLt has none.
static Product *product_find(const Output *out, const Matrix *a, const Matrix *b, size_t M,
                             size_t N, size_t K) {
    ProductKey k;
    memset(&k, 0, sizeof(k)); // keys are compared as bytes
    k.M = M;
    k.N = N;
    k.K = K;
    k.a_across = a->k_stride != 1;
    k.b_across = b->k_stride != 1;
    k.a_stride = MAX(a->row_stride, a->k_stride);
    k.b_stride = MAX(b->row_stride, b->k_stride);
    k.out_stride = out->row_stride;
    k.a_align = alignment(a->data, k.a_stride * dtype_size[a->dtype] >> (a->dtype == DTYPE_E2M1));
    k.b_align = alignment(b->data, k.b_stride * dtype_size[b->dtype] >> (b->dtype == DTYPE_E2M1));
    k.out_align = alignment(out->data, k.out_stride * dtype_size[out->dtype]);
    k.bias_align = out->bias ? alignment(out->bias, 0) : 0; // which the choice may depend on, too
    k.a_dtype = a->dtype;
    k.b_dtype = b->dtype;
    k.out_dtype = out->dtype;
    k.bias = out->bias != NULL;
    k.accumulate = out->accumulate;
    k.fast = out->fast;
    k.a_mode = scale_mode(a);
    k.b_mode = scale_mode(b);
    for (int i = 0; i < product_count; i++)
        if (!memcmp(&products[i].key, &k, sizeof(k)))
            return products[i].found ? &products[i] : NULL;
    EXPECT(product_count < PRODUCTS_MAX, "%s:%d: more than %d shapes of products", __FILE__,
           __LINE__, PRODUCTS_MAX);
    EXPECT(!machine.captures, "%s:%d: a product's shape was first seen in a graph", __FILE__,
           __LINE__);
    Product *p = &products[product_count++];
    p->key = k;
    product_make(p, out, a, b);
    return p->found ? p : NULL;
}

// ---- the emulated path
// out[i, k] = the value of a K-major matrix's byte, times its block's scale_inv, as bf16. A thread
// has eight.
KERNEL decode_kernel(stored_t *out, Matrix m, size_t rows, size_t K) {
    const size_t chunk = (size_t)blockIdx.x * blockDim.x + threadIdx.x, i = chunk / (K / 8),
                 k = chunk % (K / 8) * 8;
    if (i >= rows) return;
    const size_t at = i * m.row_stride + k;
    float v[8];
    UNROLL for (int j = 0; j < 8; j++) {
        v[j] = fp8_decode(code_at((const uint8_t *)m.data, at + j, m.dtype), m.dtype);
        if (m.unit != 0) v[j] *= m.unit;
        if (m.across) v[j] *= m.inv[i / m.across * m.inv_across + (k + j) / m.along * m.inv_along];
    }
    store8(out + i * K + k, v);
}
// value = fma(sum, scale_inv of a * scale_inv of b, bias or the old value), rounded once.
KERNEL epilogue_kernel(Output out, const float *sums, const float *inv_a, const float *inv_b,
                       size_t M, size_t N) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, m = i / N, n = i % N;
    if (m >= M) return;
    const float scale = (inv_a ? *inv_a : 1) * (inv_b ? *inv_b : 1);
    float *floats = (float *)out.data + m * out.row_stride + n;
    const float add = out.bias ? float_from_stored(out.bias[n]) : out.accumulate ? *floats : 0;
    const float value = fmaf(sums[i], scale, add);
    if (out.dtype == DTYPE_FP32) *floats = value;
    else ((stored_t *)out.data)[m * out.row_stride + n] = stored_from_float(value);
}
KERNEL bias_kernel(Output out, size_t M, size_t N) { // out += bias; a thread has eight
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8, m = i / N, n = i % N;
    float v[8], bias[8];
    if (m >= M) return;
    stored_t *to = (stored_t *)out.data + m * out.row_stride + n;
    load8(v, to);
    load8(bias, out.bias + n);
    UNROLL for (int k = 0; k < 8; k++) v[k] += bias[k];
    store8(to, v);
}

// Computes a product. Returns 0 if cuBLASLt does not have it: the heuristic may offer what the call
// then refuses.
static int product_try(const Output *out, const Matrix *a, const Matrix *b, size_t M, size_t N,
                       size_t K) {
    Product *p = product_find(out, a, b, M, N, K);
    if (!p) return 0;
    if (dtype_size[a->dtype] == 1) {
        DESC_SET(A_SCALE_POINTER, b->inv);
        DESC_SET(B_SCALE_POINTER, a->inv);
    }
    if (out->bias) DESC_SET(BIAS_POINTER, out->bias);
    const cublasStatus_t status = product_launch(p, out, a, b);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) product_missing(p, status);
    else LT(status);
    return p->found;
}

// Whether cuBLASLt computes products of these formats and scales on this device: one scale a
// tensor, or, on sm_90, a scale for each row or for each block of 128.
static int product_emulated(Dtype a, Dtype b, int across_a, int along_a, int across_b,
                            int along_b) {
    const int rows = along_a == INT_MAX && across_a == 1 && across_b == 1;
    const int blocks = along_a == 128 && (across_a == 1 || across_a == 128) &&
                       (across_b == 1 || across_b == 128) && across_a * across_b <= 128;
    return machine.emulates || (a == DTYPE_E5M2 && b == DTYPE_E5M2) || a == DTYPE_E2M1 ||
           b == DTYPE_E2M1 || along_a != along_b ||
           (along_a && !(machine.sm == 90 && (rows || blocks)));
}
// ---- MX and NVFP4 by cuBLASLt itself, from sm_100 on. No GPU has run this yet.
// The scales of m [rows, K] in cuBLASLt's order, 128 rows by 4 blocks at a time, a byte each: MX's
// exponent, or NVFP4's E4M3 number. What lies beyond the matrix is 0.
KERNEL lt_scales_kernel(uint8_t *to, Matrix m, size_t rows, size_t blocks) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x,
                 fours = ceil_div(blocks, 4);
    const size_t i = thread / (4 * fours), k = thread % (4 * fours);
    if (i >= round_up(rows, 128)) return;
    uint8_t byte = 0;
    if (i < rows && k < blocks) {
        const float inv = m.inv[i / m.across * m.inv_across + k * m.inv_along];
        byte = m.along == 16 ? fp8_encode(inv, DTYPE_E4M3) : float_bits(inv) >> 23;
    }
    to[(i / 128 * fours + k / 4) * 512 + i % 32 * 16 + i % 128 / 32 * 4 + k % 4] = byte;
}
// sums = a b^T in blocks, without factors. Returns 0 if cuBLASLt does not have it: MX wants powers
// of two for 32 elements, NVFP4 E4M3 numbers for 16.
static int lt_blocks(const Output *sums, const Matrix *a, const Matrix *b, size_t M, size_t N,
                     size_t K) {
    const size_t along = a->along == b->along ? a->along : 0;
    const int two_levels = along == 16;
    if (!emulation.scales[0] || machine.emulates || K % 32 || (along != 16 && along != 32) ||
        two_levels != !!a->factor || two_levels != !!b->factor || a->unit + b->unit != 0)
        return 0;
    Matrix m[2] = {*a, *b};
    const size_t rows[2] = {M, N}, blocks = K / along;
    for (int i = 0; i < 2; i++) {
        RUN(lt_scales_kernel, ceil_div(round_up(rows[i], 128) * round_up(blocks, 4), THREADS),
            emulation.scales[i], m[i], rows[i], blocks);
        m[i].inv = (const float *)emulation.scales[i];
    }
    return product_try(sums, &m[0], &m[1], M, N, K);
}

static void matmul_emulated(const Output *out, const Matrix *a, const Matrix *b, size_t M, size_t N,
                            size_t K) {
    EXPECT(emulation.a,
           "an FP8 product that the run needs does not exist on %s (above); use --emulate",
           machine.name);
    Matrix a16 = matrix(emulation.a, DTYPE_BF16, K, 1), b16 = matrix(emulation.b, DTYPE_BF16, K, 1);
    const Output sums = {emulation.sums, DTYPE_FP32, N, NULL, 0, 0};
    if (!lt_blocks(&sums, a, b, M, N, K)) {
        RUN(decode_kernel, ceil_div(M * (K / 8), THREADS), emulation.a, *a, M, K);
        RUN(decode_kernel, ceil_div(N * (K / 8), THREADS), emulation.b, *b, N, K);
        EXPECT(product_try(&sums, &a16, &b16, M, N, K),
               "a product that the run needs does not exist on %s (above)", machine.name);
    }
    RUN(epilogue_kernel, ceil_div(M * N, THREADS), *out, emulation.sums, a->factor, b->factor, M,
        N);
}
// FP8 operands are K-major. M and K are rounded up to 16; there is room for that behind the rows of
// the operands and of out.
static void matmul(Output out, const Matrix &a, const Matrix &b, size_t M, size_t N, size_t K) {
    const int fast = out.fast && a.along != 128; // blocks of 128 have their sums promoted anyway
    const int fp8 = dtype_size[a.dtype] == 1;
    M = fp8 ? round_up(M, 16) : M;
    K = fp8 ? round_up(K, 16) : K;
    const int emulated = product_emulated(a.dtype, b.dtype, a.across, a.along, b.across, b.along);
    // Split operands and two-level scales are always emulated.
    if (fp8 && (emulated || a.unit != 0 || b.unit != 0 || (a.across && a.factor) ||
                (b.across && b.factor)))
        return matmul_emulated(&out, &a, &b, M, N, K);
    for (int i = 0; i < (a.across ? 4 : 1);
         i++) { // beside scales in blocks, fast sums or a bias may not exist: without them, then
        if ((i & 1 && !fast) || (i & 2 && !out.bias)) continue;
        Output o = out;
        o.fast = fast && !(i & 1);
        o.bias = i & 2 ? NULL : out.bias;
        if (!product_try(&o, &a, &b, M, N, K)) continue;
        if (out.bias && !o.bias) RUN(bias_kernel, ceil_div(M * N / 8, THREADS), out, M, N);
        return;
    }
    EXPECT(fp8, "a product that the run needs does not exist on %s (above)", machine.name);
    matmul_emulated(&out, &a, &b, M, N, K);
}

// ---- attention: out[b, i] = softmax(q k^T / sqrt(hs)) v, causal; never whole in memory (flash
// attention, Dao et al. 2022). A block has TILE queries, or backwards TILE keys, of one head of one
// sequence; a warp has 16 of them, and walks the other side in tiles of 64. Kept for the backward
// pass: lse[b, h, i] = log2 of the sum of 2^(score log2 e), so that p = 2^(score log2 e - lse).
// Forward, e^(s - max) is rounded to the stored type, multiplied by v and then divided by the sum
// of unrounded terms. Backward, p and ds are rounded before they are multiplied. Nothing is added
// by atomics: dq, and dk with dv, are kernels of their own, each of which makes the scores again;
// that costs two products of seven, and gives the same bits from run to run.
typedef struct {
    int n, pos, T, C, NH, hs; // queries at positions pos .. pos+n, of T = pos + n keys
    float scale;              // 1 / sqrt(hs)
} Attention;
enum { ATT_TILE = 64, ATT_WARPS = 4, ATT_THREADS = 32 * ATT_WARPS };

// delta[b, h, i] = sum over the head of dout out, which is sum_j p dp, but that out was rounded: a
// first query's ds, 0 in the C file, is noise here, and its dq may be flushed to zero. Eight lanes
// have a row of a head.
KERNEL attention_delta_kernel(float *delta, const stored_t *dout, const stored_t *out, int B,
                              Attention at) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 8, row = i / at.NH,
                 h = i % at.NH;
    const int lane = threadIdx.x % 8;
    float sum = 0;
    if (row < (size_t)B * at.T)
        for (int c = lane * 8; c < at.hs; c += 64) {
            float x[8], y[8];
            load8(x, dout + row * at.C + h * at.hs + c);
            load8(y, out + row * at.C + h * at.hs + c);
            UNROLL for (int k = 0; k < 8; k++) sum += x[k] * y[k];
        }
    UNROLL for (int d = 4; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
    if (lane == 0 && row < (size_t)B * at.T)
        delta[(row / at.T * at.NH + h) * at.T + row % at.T] = sum;
}

#if PRECISION != PRECISION_FP32
#ifndef CUDA_ON_CPU
// d += a b: a 16 x 16 (rows of a warp), b 16 x 8, sums in fp32. Lane l = 4 g + t has of a rows g, g
// + 8 and columns 2t, 2t + 1, + 8; of b the same of its columns' K; of d rows g, g + 8 and columns
// 2t, 2t + 1.
DEVICE void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." PTX_STORED "." PTX_STORED ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane l gives the address of row l % 8
// of matrix l / 8; each register gets elements (g, 2t), (g, 2t + 1) of its matrix, or, turned, (2t,
// g), (2t + 1, g).
#define LDMATRIX_X4(trans)                                                                         \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"       \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                  \
                 : "r"((uint32_t)__cvta_generic_to_shared(row))                                    \
                 : "memory")
DEVICE void ldmatrix_x4(uint32_t r[4], const void *row) { LDMATRIX_X4(""); }
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row) { LDMATRIX_X4(".trans"); }
// The first `bytes` of 16 from global to shared memory, past the registers, and zeros behind them;
// done after the wait for its group and a barrier.
DEVICE void cp_async16(void *shared, const void *global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int GROUPS> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
}
#endif

// Rows of HS numbers in shared memory, 16 bytes longer, so that eight rows lie in all banks. A head
// of hs < HS is filled with zeros.
template <int HS> struct AttTile { stored_t row[ATT_TILE][HS + 8]; };
// Begins to fetch `rows` rows of hs numbers; the others are zeros. A thread has eight columns.
template <int HS>
DEVICE void att_fetch(AttTile<HS> *to, const stored_t *from, size_t stride, int rows, int hs) {
    const int r = threadIdx.x / (HS / 8), c = threadIdx.x % (HS / 8) * 8;
    from += r * stride + c;
    UNROLL for (int i = 0; i < ATT_TILE; i += ATT_THREADS / (HS / 8)) {
        cp_async16(&to->row[r + i][c], from, r + i < rows && c < hs ? 16 : 0);
        from += ATT_THREADS / (HS / 8) * stride;
    }
}
// Fragments of a warp's own 16 rows: all columns, as left operands (their K along the rows of
// memory) ...
template <int HS> DEVICE void att_left(uint32_t a[HS / 16][4], const AttTile<HS> *s) {
    const stored_t *row = s->row[threadIdx.x / 32 * 16 + threadIdx.x % 16];
    UNROLL for (int k = 0; k < HS / 16; k++)
        ldmatrix_x4(a[k], row + k * 16 + threadIdx.x / 16 % 2 * 8);
}
// ... of 16 rows from r0 on and 16 columns from c0 on, as two right operands of 8 rows each, K
// along the rows ...
template <int HS> DEVICE void att_right(uint32_t b[4], const AttTile<HS> *s, int r0, int c0) {
    const int l = threadIdx.x % 32;
    ldmatrix_x4(b, &s->row[r0 + l / 16 * 8 + l % 8][c0 + l / 8 % 2 * 8]);
}
// ... and as two right operands of 8 columns each, K across the rows.
template <int HS>
DEVICE void att_right_turned(uint32_t b[4], const AttTile<HS> *s, int r0, int c0) {
    const int l = threadIdx.x % 32;
    ldmatrix_x4_trans(b, &s->row[r0 + l % 16][c0 + l / 16 * 8]);
}
// Sums of 16 rows and 16 columns, two fragments wide, as the left operand of the next product.
DEVICE void att_as_left(uint32_t a[4], float s[2][4]) {
    a[0] = pack2(s[0][0], s[0][1]);
    a[1] = pack2(s[0][2], s[0][3]);
    a[2] = pack2(s[1][0], s[1][1]);
    a[3] = pack2(s[1][2], s[1][3]);
}
// s[16 rows, 8 N columns] += left [16, HS] right [8 N, HS]^T, whose rows begin at r1.
template <int HS, int N>
DEVICE void att_scores(float (&s)[N][4], const uint32_t left[HS / 16][4], const AttTile<HS> *right,
                       int r1) {
    UNROLL for (int k = 0; k < HS / 16; k++) UNROLL for (int j = 0; j < N; j += 2) {
        uint32_t b[4];
        att_right(b, right, r1 + j * 8, k * 16);
        mma_m16n8k16(s[j], left[k], b);
        mma_m16n8k16(s[j + 1], left[k], b + 2);
    }
}
// Hides the scores of keys behind a query. Where rows are queries, sign is 1, and row 0 sees the
// columns up to `first`; where rows are keys, it is -1, and row 0 is seen from there on.
template <int N> DEVICE void att_mask(float (&s)[N][4], int first, int sign) {
    first += threadIdx.x % 32 / 4 - threadIdx.x % 4 * 2;
    UNROLL for (int i = 0; i < 4 * N; i++) {
        if ((i / 4 * 8 + i % 2 - i % 4 / 2 * 8 - first) * sign > 0) s[i / 4][i % 4] = -INFINITY;
    }
}
// out[16, HS] += p [16, 8 N] right [8 N, HS], whose rows begin at r1.
template <int HS, int N>
DEVICE void att_add(float out[HS / 8][4], float (&p)[N][4], const AttTile<HS> *right, int r1) {
    UNROLL for (int j = 0; j < N; j += 2) {
        uint32_t a[4], b[4];
        att_as_left(a, p + j);
        UNROLL for (int d = 0; d < HS; d += 16) {
            att_right_turned(b, right, r1 + j * 8, d);
            mma_m16n8k16(out[d / 8], a, b);
            mma_m16n8k16(out[d / 8 + 1], a, b + 2);
        }
    }
}
// A warp's sums, times scale of their row, to its 16 rows of a tile, which are then written to
// memory eight numbers at a time.
template <int HS>
DEVICE void att_round(AttTile<HS> *to, float s[HS / 8][4], float scale_g, float scale_g8) {
    const int l = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + l / 4;
    UNROLL for (int d = 0; d < HS / 8; d++) {
        const float x[4] = {s[d][0] * scale_g, s[d][1] * scale_g, s[d][2] * scale_g8,
                            s[d][3] * scale_g8}; // a scale of 1 flushes nothing
        put(&to->row[row][d * 8 + l % 4 * 2], pack2(denormal_flush(x[0]), denormal_flush(x[1])));
        put(&to->row[row + 8][d * 8 + l % 4 * 2],
            pack2(denormal_flush(x[2]), denormal_flush(x[3])));
    }
}
template <int HS>
DEVICE void att_store(stored_t *to, size_t stride, const AttTile<HS> *from, int rows, int hs) {
    const int c = threadIdx.x % (HS / 8) * 8;
    for (int r = threadIdx.x / (HS / 8); r < rows && c < hs; r += ATT_THREADS / (HS / 8))
        put(to + r * stride + c, get<uint4>(&from->row[r][c]));
}

// The largest, and the sum, of the four threads that hold parts of a row.
DEVICE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffff, v, 2));
}
DEVICE float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v + __shfl_xor_sync(0xffffffff, v, 2);
}
// The bytes of a tile of the output, which lies in shared memory.
template <int HS>
DEVICE void att_quantize(const Written &out, const AttTile<HS> *tile, size_t to, int rows,
                         const Attention &at) {
    const float scale = out.quantizer.use->scale;
    Counts counts = {0, 0, 0, 0};
    const int c = threadIdx.x % (HS / 8) * 8;
    for (int r = threadIdx.x / (HS / 8); r < rows && c < at.hs; r += ATT_THREADS / (HS / 8)) {
        float x[8];
        load8(x, &tile->row[r][c]);
        put(out.q + to + (size_t)r * at.C + c,
            quantize8<false>(x, &scale, out.quantizer.format, &counts));
    }
    if (out.quantizer.s) counts_commit(out.quantizer.s, counts, (size_t)rows * at.hs);
}

// A block of queries, the last ones first, since they take longest.
template <int HS>
KERNEL_OF(ATT_THREADS)
attention_forward_kernel(Written out, float *lse, const stored_t *qkv, Attention at) {
    DYNAMIC_SHARED(AttTile<HS>, tile); // q; k and v twice: of these, the next are fetched early
    const int b = blockIdx.y / at.NH, h = blockIdx.y % at.NH, l = threadIdx.x % 32,
              r0 = threadIdx.x / 32 * 16;
    const int i0 = (gridDim.x - 1 - blockIdx.x) * ATT_TILE, rows = MIN(at.n - i0, ATT_TILE),
              keys = at.pos + i0 + rows, blocks = (keys + ATT_TILE - 1) / ATT_TILE;
    const size_t stride = 3 * (size_t)at.C;
    const stored_t *base = qkv + (size_t)b * at.T * stride + h * at.hs;
    const float to_log2 = at.scale * LOG2E;
    float o[HS / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    uint32_t q[HS / 16][4];
    att_fetch(tile, base + (at.pos + i0) * stride, stride, rows, at.hs);
    att_fetch(tile + 1, base + at.C, stride, MIN(keys, ATT_TILE), at.hs);
    att_fetch(tile + 2, base + 2 * at.C, stride, MIN(keys, ATT_TILE), at.hs);
    cp_async_commit();
    for (int j = 0; j < blocks; j++) {
        const AttTile<HS> *k = tile + 1 + j % 2 * 2; // v is behind it
        if (j + 1 < blocks) {
            const stored_t *next = base + (size_t)(j + 1) * ATT_TILE * stride;
            const int left = MIN(keys - (j + 1) * ATT_TILE, ATT_TILE);
            att_fetch(tile + 1 + (j + 1) % 2 * 2, next + at.C, stride, left, at.hs);
            att_fetch(tile + 2 + (j + 1) % 2 * 2, next + 2 * at.C, stride, left, at.hs);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        if (j == 0) att_left(q, tile);
        float s[8][4] = {}, alpha[2];
        att_scores(s, q, k, 0);
        // The last key in this tile that the warp's first row may see.
        const int first = at.pos + i0 + r0 - j * ATT_TILE;
        if (first < ATT_TILE - 1) att_mask(s, first, 1);
        UNROLL for (int i = 0; i < 2; i++) { // rows g and g + 8
            const float old = top[i];
            UNROLL for (int c = 0; c < 16; c++) top[i] = fmaxf(top[i], s[c / 2][2 * i + c % 2]);
            top[i] = quad_max(top[i]);
            alpha[i] = exp2f((old - top[i]) * to_log2);
            sum[i] *= alpha[i];
            UNROLL for (int c = 0; c < 16; c++) {
                float *x = &s[c / 2][2 * i + c % 2];
                *x = exp2f(fmaf(*x, to_log2, -top[i] * to_log2));
                sum[i] += *x;
            }
        }
        UNROLL for (int e = 0; e < HS / 2; e++) o[e / 4][e % 4] *= alpha[e / 2 % 2];
        att_add(o, s, k + 1, 0);
        __syncthreads();
    }
    UNROLL for (int i = 0; i < 2; i++) {
        sum[i] = quad_sum(sum[i]);
        const int row = i0 + r0 + l / 4 + 8 * i;
        if (l % 4 == 0 && row < at.n)
            lse[(size_t)blockIdx.y * at.n + row] = top[i] * to_log2 + log2f(sum[i]);
    }
    att_round(tile, o, 1.0f / sum[0], 1.0f / sum[1]); // a warp's own rows of q, now done with
    __syncthreads();
    const size_t to = (size_t)(b * at.n + i0) * at.C + h * at.hs;
    att_store(out.stored + to, at.C, tile, rows, at.hs);
    if (out.q) att_quantize(out, tile, to, rows, at);
}

// Backwards, tiles are fetched one step ahead where there is room: 99 KB a block on the smaller
// GPUs.
#define ATT_AHEAD(HS) ((HS) <= 64)

// dk = ds^T q / sqrt(hs);  dv = p^T dout. A block has 64 keys and walks the queries that see them,
// 32 scores of a key at a time.
template <int HS>
KERNEL_OF(ATT_THREADS)
attention_dkdv_kernel(stored_t *dqkv, const stored_t *dout, const stored_t *qkv, const float *lse,
                      const float *delta, Attention at) {
    constexpr int AHEAD = ATT_AHEAD(HS);
    DYNAMIC_SHARED(AttTile<HS>, tile);  // k, v; q and dout 1 + AHEAD times
    SHARED float2 of_rows[2][ATT_TILE]; // lse and delta
    const int b = blockIdx.y / at.NH, h = blockIdx.y % at.NH, j0 = blockIdx.x * ATT_TILE,
              keys = MIN(at.T - j0, ATT_TILE);
    const int l = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16,
              blocks = (at.T + ATT_TILE - 1) / ATT_TILE, begin = blockIdx.x;
    const size_t stride = 3 * (size_t)at.C, base = (size_t)b * at.T * stride + h * at.hs,
                 dbase = (size_t)b * at.T * at.C + h * at.hs;
    uint32_t k[HS / 16][4], v[HS / 16][4]; // for heads of up to 64 these stay in registers
    float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
    att_fetch(tile, qkv + base + at.C + j0 * stride, stride, keys, at.hs);
    att_fetch(tile + 1, qkv + base + 2 * at.C + j0 * stride, stride, keys, at.hs);
    for (int i = begin - AHEAD; i < blocks; i++) {
        if (i + AHEAD < blocks) {
            const int next = (i + AHEAD) * ATT_TILE, rows = MIN(at.T - next, ATT_TILE),
                      side = (i + AHEAD) % (1 + AHEAD);
            att_fetch(tile + 2 + side * 2, qkv + base + next * stride, stride, rows, at.hs);
            att_fetch(tile + 3 + side * 2, dout + dbase + (size_t)next * at.C, at.C, rows, at.hs);
            if (threadIdx.x < ATT_TILE) {
                const size_t row = (size_t)blockIdx.y * at.T + next + threadIdx.x;
                of_rows[side][threadIdx.x] = (int)threadIdx.x < rows
                                                 ? make_float2(lse[row], delta[row])
                                                 : make_float2(INFINITY, 0); // so that p is 0
            }
        }
        cp_async_commit();
        if (i < begin) continue;
        cp_async_wait<AHEAD>();
        __syncthreads();
        const AttTile<HS> *q = tile + 2 + i % (1 + AHEAD) * 2, *dO = q + 1;
        if (HS <= 64 && i == begin) {
            att_left(k, tile);
            att_left(v, tile + 1);
        }
        UNROLL_BY(1) for (int c0 = i == begin ? r0 / 32 * 32 : 0; c0 < ATT_TILE; c0 += 32) {
            float p[4][4] = {}, ds[4][4] = {};
            if (HS > 64) att_left(k, tile);
            att_scores(p, k, q, c0);
            if (HS > 64) att_left(v, tile + 1);
            att_scores(ds, v, dO, c0); // dp
            if (i == begin) att_mask(p, r0 - c0, -1);
            UNROLL for (int c = 0; c < 4; c++) UNROLL for (int e = 0; e < 4; e++) {
                const float2 row = of_rows[i % (1 + AHEAD)][c0 + c * 8 + l % 4 * 2 + e % 2];
                p[c][e] = exp2f(fmaf(p[c][e], at.scale * LOG2E, -row.x));
                ds[c][e] = p[c][e] * (ds[c][e] - row.y);
            }
            att_add(dv, p, dO, c0);
            att_add(dk, ds, q, c0);
        }
        __syncthreads();
    }
    att_round(tile, dk, at.scale, at.scale);
    att_round(tile + 1, dv, 1, 1); // a warp's own rows
    __syncthreads();
    att_store(dqkv + base + at.C + j0 * stride, stride, tile, keys, at.hs);
    att_store(dqkv + base + 2 * at.C + j0 * stride, stride, tile + 1, keys, at.hs);
}

// dp = dout v^T;  ds = p (dp - delta);  dq = ds k / sqrt(hs). A block has 64 queries and walks the
// keys that they see.
template <int HS>
KERNEL_OF(ATT_THREADS)
attention_dq_kernel(stored_t *dqkv, const stored_t *dout, const stored_t *qkv, const float *lse,
                    const float *delta, Attention at) {
    constexpr int AHEAD = ATT_AHEAD(HS);
    DYNAMIC_SHARED(AttTile<HS>, tile); // q, dout; k and v 1 + AHEAD times
    const int b = blockIdx.y / at.NH, h = blockIdx.y % at.NH,
              i0 = (gridDim.x - 1 - blockIdx.x) * ATT_TILE, rows = MIN(at.T - i0, ATT_TILE);
    const int l = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16, keys = i0 + rows,
              blocks = (keys + ATT_TILE - 1) / ATT_TILE;
    const size_t stride = 3 * (size_t)at.C, base = (size_t)b * at.T * stride + h * at.hs;
    float dq[HS / 8][4] = {}, row_lse[2], row_delta[2];
    uint32_t q[HS / 16][4], dO[HS / 16][4];
    UNROLL for (int i = 0; i < 2; i++) {
        const int row = r0 + l / 4 + 8 * i;
        const size_t at_row = (size_t)blockIdx.y * at.T + i0 + row;
        row_lse[i] = row < rows ? lse[at_row] : INFINITY;
        row_delta[i] = row < rows ? delta[at_row] : 0;
    }
    att_fetch(tile, qkv + base + i0 * stride, stride, rows, at.hs);
    att_fetch(tile + 1, dout + (size_t)(b * at.T + i0) * at.C + h * at.hs, at.C, rows, at.hs);
    for (int j = -AHEAD; j < blocks; j++) {
        if (j + AHEAD < blocks) {
            const stored_t *next = qkv + base + (size_t)(j + AHEAD) * ATT_TILE * stride;
            const int left = MIN(keys - (j + AHEAD) * ATT_TILE, ATT_TILE),
                      side = (j + AHEAD) % (1 + AHEAD);
            att_fetch(tile + 2 + side * 2, next + at.C, stride, left, at.hs);
            att_fetch(tile + 3 + side * 2, next + 2 * at.C, stride, left, at.hs);
        }
        cp_async_commit();
        if (j < 0) continue;
        cp_async_wait<AHEAD>();
        __syncthreads();
        const AttTile<HS> *k = tile + 2 + j % (1 + AHEAD) * 2; // v is behind it
        // For heads of up to 64 these stay in registers.
        if (HS <= 64 && j == 0) {
            att_left(q, tile);
            att_left(dO, tile + 1);
        }
        const int seen = MIN(i0 + r0 + 16 - j * ATT_TILE, ATT_TILE); // by this warp's queries
        UNROLL_BY(1) for (int c0 = 0; c0 < seen; c0 += 32) {
            float s[4][4] = {}, ds[4][4] = {};
            if (HS > 64) att_left(q, tile);
            att_scores(s, q, k, c0);
            if (HS > 64) att_left(dO, tile + 1);
            att_scores(ds, dO, k + 1, c0);
            if (j + 1 == blocks) att_mask(s, r0 - c0, 1);
            UNROLL for (int c = 0; c < 4; c++) UNROLL for (int e = 0; e < 4; e++) {
                const float p = exp2f(fmaf(s[c][e], at.scale * LOG2E, -row_lse[e / 2]));
                ds[c][e] = p * (ds[c][e] - row_delta[e / 2]);
            }
            att_add(dq, ds, k, c0);
        }
        __syncthreads();
    }
    att_round(tile, dq, at.scale, at.scale);
    __syncthreads();
    att_store(dqkv + base + i0 * stride, stride, tile, rows, at.hs);
}
#define ATT_FORWARD_BYTES(HS)  (5 * sizeof(AttTile<HS>)) // of shared memory
#define ATT_BACKWARD_BYTES(HS) ((4 + 2 * ATT_AHEAD(HS)) * sizeof(AttTile<HS>))
#define ATT_ALLOW(kernel, bytes)                                                                   \
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))
#else
// fp32 has no tensor cores that keep it: plain kernels. A warp has a query (backwards, a key), and
// walks the other side 32 at a time: a lane makes one's score, then all lanes add its row, each to
// its own channels of the head.
enum { HEAD_LANES = 4 }; // channels a lane has: 128 / 32
INLINE float dot_rows(const float *a, const float *b, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++) sum += a[c] * b[c];
    return sum;
}
DEVICE void row_add(float *sum, float factor, const float *row, int hs) {
    UNROLL for (int k = 0; k < HEAD_LANES; k++) if ((int)threadIdx.x + 32 * k < hs) sum[k] +=
        factor * row[threadIdx.x + 32 * k];
}
DEVICE void row_store(float *to, const float *sum, float scale, int hs) {
    UNROLL for (int k = 0; k < HEAD_LANES; k++) if ((int)threadIdx.x + 32 * k < hs)
        to[threadIdx.x + 32 * k] = sum[k] * scale;
}
KERNEL attention_forward_kernel(Written out, float *lse, const float *qkv, Attention at) {
    const int b = blockIdx.y / at.NH, h = blockIdx.y % at.NH, i = blockIdx.x, keys = at.pos + i + 1;
    const size_t stride = 3 * (size_t)at.C;
    const float *base = qkv + (size_t)b * at.T * stride + h * at.hs,
                *q = base + (at.pos + i) * stride;
    float o[HEAD_LANES] = {0, 0, 0, 0}, top = -INFINITY, sum = 0;
    for (int j0 = 0; j0 < keys; j0 += 32) {
        const int j = j0 + threadIdx.x;
        const float s =
            j < keys ? dot_rows(q, base + at.C + j * stride, at.hs) * at.scale * LOG2E : -INFINITY;
        const float m = warp_max(fmaxf(top, s));
        const float p = exp2f(s - m), alpha = exp2f(top - m);
        sum = sum * alpha + warp_sum(p);
        top = m;
        for (int k = 0; k < HEAD_LANES; k++) o[k] *= alpha;
        for (int k = 0; k < MIN(keys - j0, 32); k++)
            row_add(o, __shfl_sync(0xffffffff, p, k), base + 2 * at.C + (j0 + k) * stride, at.hs);
    }
    if (threadIdx.x == 0) lse[(size_t)blockIdx.y * at.n + i] = top + log2f(sum);
    row_store(out.stored + (size_t)(b * at.n + i) * at.C + h * at.hs, o, 1 / sum, at.hs);
}
// dq of a query, or (KEYS) dk and dv of a key.
template <bool KEYS>
KERNEL attention_backward_kernel(float *dqkv, const float *dout, const float *qkv, const float *lse,
                                 const float *delta, Attention at) {
    const int b = blockIdx.y / at.NH, h = blockIdx.y % at.NH, i = blockIdx.x;
    const int begin = KEYS ? i : 0, end = KEYS ? at.T : i + 1; // of the other side
    const size_t stride = 3 * (size_t)at.C, base = (size_t)b * at.T * stride + h * at.hs,
                 row = (size_t)blockIdx.y * at.T;
    const float *q = qkv + base, *k = q + at.C, *v = k + at.C,
                *dO = dout + (size_t)b * at.T * at.C + h * at.hs;
    float dqk[HEAD_LANES] = {0, 0, 0, 0}, dv[HEAD_LANES] = {0, 0, 0, 0};
    for (int n0 = begin; n0 < end; n0 += 32) {
        const int n = n0 + threadIdx.x, query = KEYS ? n : i, key = KEYS ? i : n;
        float p = 0, ds = 0;
        if (n < end) {
            p = exp2f(dot_rows(q + query * stride, k + key * stride, at.hs) * at.scale * LOG2E -
                      lse[row + query]);
            ds = p * (dot_rows(dO + (size_t)query * at.C, v + key * stride, at.hs) -
                      delta[row + query]);
        }
        for (int m = 0; m < MIN(end - n0, 32); m++) {
            row_add(dqk, __shfl_sync(0xffffffff, ds, m), (KEYS ? q : k) + (n0 + m) * stride, at.hs);
            const float weight = __shfl_sync(0xffffffff, p, m);
            if (KEYS) row_add(dv, weight, dO + (size_t)(n0 + m) * at.C, at.hs);
        }
    }
    float *to = dqkv + base + i * stride;
    row_store(KEYS ? to + at.C : to, dqk, at.scale, at.hs);
    if (KEYS) row_store(to + 2 * at.C, dv, 1, at.hs);
}
#endif

// ---- cuDNN's attention instead of the file's own
// It is used for the shape of a run's micro-batches, if `make cuda` found its headers, this machine
// has its library, and cuDNN takes the shape. All other shapes (a sample, a last batch of
// validation) take the kernels above. Its lse is in nats; only its own backward pass reads it.
enum { ATTENTION_AUTO, ATTENTION_OWN, ATTENTION_CUDNN }; // --attention's words
#ifdef USES_CUDNN
#define CUDNN_LIBRARY "libcudnn.so.9"
namespace fe = cudnn_frontend;
void *cudnn_frontend::cudnn_dlhandle = NULL; // where the frontend looks for cuDNN's functions
enum {
    CUDNN_Q = 1,
    CUDNN_K,
    CUDNN_V,
    CUDNN_OUT,
    CUDNN_LSE,
    CUDNN_DOUT,
    CUDNN_DQ,
    CUDNN_DK,
    CUDNN_DV
};
static struct {
    cudnnHandle_t handle;
    fe::graph::Graph *forward, *backward; // backward: NULL without training
    int B, T, C, NH;                      // B is 0 while no shape is planned
    size_t workspace_bytes;
    void *workspace;
} cudnn;
static void fe_check(fe::error_t e) {
    if (!e.is_good()) throw std::runtime_error(e.get_message());
}
typedef std::shared_ptr<fe::graph::Tensor_attributes> CudnnTensor;
// [B, NH, T, width] within rows of `row` numbers
static void cudnn_shape(CudnnTensor t, int id, int B, int T, int NH, int64_t row, int64_t width) {
    t->set_uid(id).set_dim({B, NH, T, width});
    if (id == CUDNN_LSE)
        t->set_stride({(int64_t)NH * T, T, 1, 1}).set_data_type(fe::DataType_t::FLOAT);
    else t->set_stride({T * row, width, row, 1});
}
// The graph of a pass, and its workspace's bytes.
static fe::graph::Graph *cudnn_graph(int backward, int B, int T, int C, int NH, size_t *workspace) {
    // Stays: at the program's end its library may be gone.
    fe::graph::Graph *g = new fe::graph::Graph();
    const int64_t hs = C / NH;
    const float scale = 1.0f / sqrtf((float)hs);
    const auto input = [&](int id, int64_t row, int64_t width) {
        CudnnTensor t = g->tensor(fe::graph::Tensor_attributes().set_name(std::to_string(id)));
        cudnn_shape(t, id, B, T, NH, row, width);
        return t;
    };
    const auto output = [&](CudnnTensor t, int id, int64_t row, int64_t width) {
        cudnn_shape(t, id, B, T, NH, row, width);
        t->set_output(true);
    };
    g->set_io_data_type(PRECISION == PRECISION_FP16 ? fe::DataType_t::HALF
                                                    : fe::DataType_t::BFLOAT16);
    g->set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    const CudnnTensor q = input(CUDNN_Q, 3 * C, hs), k = input(CUDNN_K, 3 * C, hs),
                      v = input(CUDNN_V, 3 * C, hs);
    if (!backward) {
        auto options = fe::graph::SDPA_attributes()
                           .set_generate_stats(true)
                           .set_causal_mask(true)
                           .set_attn_scale(scale);
        auto [out, lse] = g->sdpa(q, k, v, options);
        output(out, CUDNN_OUT, C, hs);
        output(lse, CUDNN_LSE, 0, 1);
    } else {
        const CudnnTensor out = input(CUDNN_OUT, C, hs), dout = input(CUDNN_DOUT, C, hs),
                          lse = input(CUDNN_LSE, 0, 1);
        auto options = fe::graph::SDPA_backward_attributes()
                           .set_causal_mask(true)
                           .set_attn_scale(scale)
                           .set_deterministic_algorithm(true);
        auto [dq, dk, dv] = g->sdpa_backward(q, k, v, out, dout, lse, options);
        output(dq, CUDNN_DQ, 3 * C, hs);
        output(dk, CUDNN_DK, 3 * C, hs);
        output(dv, CUDNN_DV, 3 * C, hs);
    }
    int64_t bytes = 0;
    fe_check(g->validate());
    fe_check(g->build_operation_graph(cudnn.handle));
    fe_check(g->create_execution_plans({fe::HeurMode_t::A}));
    fe_check(g->check_support(cudnn.handle));
    fe_check(g->build_plans(cudnn.handle));
    fe_check(g->get_workspace_size(bytes));
    *workspace = MAX(*workspace, (size_t)MAX(bytes, 16));
    return g;
}
// Plans the passes of a shape and writes cuDNN's name and version to by[64]; or returns why cuDNN
// does not take it.
static const char *cudnn_plan(int B, int T, int C, int NH, int training, char *by) {
    static std::string why;
    try {
        setenv("CUDNN_FRONTEND_CUDART_LIB_NAME",
               CUDART_VERSION >= 13000 ? "libcudart.so.13" : "libcudart.so.12", 0); // not both
        // cuDNN looks for this library; the path that we give finds it.
        dlopen(CUDART_VERSION >= 13000 ? "libnvrtc.so.13" : "libnvrtc.so.12", RTLD_NOW);
        if (!fe::cudnn_dlhandle) fe::cudnn_dlhandle = dlopen(CUDNN_LIBRARY, RTLD_NOW);
        if (!fe::cudnn_dlhandle) throw std::runtime_error(dlerror());
        const size_t version = fe::detail::get_backend_version(); // 9 13 00, two digits each
        // the frontend then copies from the host within a graph, and before 1.32 from memory that
        // it has freed by then
        if (training && T % 128 && version <= 91500)
            throw std::runtime_error("up to 9.15.0 it needs -t a multiple of 128");
        if (fe::detail::create_handle(&cudnn.handle) != CUDNN_STATUS_SUCCESS)
            throw std::runtime_error("cuDNN does not start");
        cudnn.forward = cudnn_graph(0, B, T, C, NH, &cudnn.workspace_bytes);
        if (training) cudnn.backward = cudnn_graph(1, B, T, C, NH, &cudnn.workspace_bytes);
        // the headers choose among its kernels, too
        snprintf(by, 64, "cuDNN %zu.%zu.%zu, headers %d, frontend %d", version / 10000,
                 version / 100 % 100, version % 100, (int)CUDNN_VERSION,
                 (int)CUDNN_FRONTEND_VERSION);
    } catch (const std::exception &e) {
        why = e.what();
        for (char &c : why) c = c == '\n' || c == '\t' ? ' ' : c;
        return why.c_str();
    }
    cudnn.B = B;
    cudnn.T = T;
    cudnn.C = C;
    cudnn.NH = NH;
    return NULL;
}
static size_t cudnn_bytes(void) { return cudnn.B ? cudnn.workspace_bytes : 0; }
static void cudnn_begin(void) {
    if (!cudnn.B) return;
    cudnn.workspace = device_allocate(cudnn.workspace_bytes);
    EXPECT(fe::detail::set_stream(cudnn.handle, STREAM) == CUDNN_STATUS_SUCCESS,
           "cuDNN refuses a stream; use --attention own");
}
static int cudnn_takes(int B, int T, int C, int NH) {
    return cudnn.B == B && cudnn.T == T && cudnn.C == C && cudnn.NH == NH;
}
static void cudnn_run(fe::graph::Graph *g, std::unordered_map<int64_t, void *> pointers) {
    try {
        fe_check(g->execute(cudnn.handle, pointers, cudnn.workspace));
    } catch (const std::exception &e) {
        fatal(EXIT_BAD_INPUT, "cuDNN's attention failed: %s; use --attention own", e.what());
    }
}
static void cudnn_forward(const Written &out, float *lse, const stored_t *qkv) {
    stored_t *q = (stored_t *)qkv;
    cudnn_run(cudnn.forward, {{CUDNN_Q, q},
                              {CUDNN_K, q + cudnn.C},
                              {CUDNN_V, q + 2 * cudnn.C},
                              {CUDNN_OUT, out.stored},
                              {CUDNN_LSE, lse}});
    Tiles t = tiles((size_t)cudnn.B * cudnn.T, cudnn.C);
    t.q = out.q;
    t.quantizer = out.quantizer;
    if (out.q)
    // cuDNN's kernel cannot make the bytes.
    {
        quantize_passes++;
        tiles_run(StoredSource{out.stored, (size_t)cudnn.C}, t);
    }
}
static void cudnn_backward(stored_t *dqkv, const stored_t *dout, const stored_t *out,
                           const float *lse, const stored_t *qkv) {
    stored_t *q = (stored_t *)qkv;
    const int C = cudnn.C;
    cudnn_run(cudnn.backward, {{CUDNN_Q, q},
                               {CUDNN_K, q + C},
                               {CUDNN_V, q + 2 * C},
                               {CUDNN_OUT, (void *)out},
                               {CUDNN_DOUT, (void *)dout},
                               {CUDNN_LSE, (void *)lse},
                               {CUDNN_DQ, dqkv},
                               {CUDNN_DK, dqkv + C},
                               {CUDNN_DV, dqkv + 2 * C}});
}
#else
static const char *cudnn_plan(int, int, int, int, int, char *) {
    return PRECISION == PRECISION_FP32 ? "it has none in fp32"
                                       : "make cuda did not find its headers";
}
static size_t cudnn_bytes(void) { return 0; }
static void cudnn_begin(void) {}
static int cudnn_takes(int, int, int, int) { return 0; }
static void cudnn_forward(const Written &, float *, const stored_t *) {}
static void cudnn_backward(stored_t *, const stored_t *, const stored_t *, const float *,
                           const stored_t *) {}
#endif

static Attention attention_shape(int n, int pos, int C, int NH) {
    return {n, pos, pos + n, C, NH, C / NH, 1.0f / sqrtf((float)(C / NH))};
}

// out: [B, n, C] of qkv [B, pos + n, 3C] (a KV cache where pos > 0; then B is 1); lse: [B, NH, n].
static void attention_forward(Written out, float *lse, const stored_t *qkv, int B, int n, int pos,
                              int C, int NH) {
    const Attention at = attention_shape(n, pos, C, NH);
    if (pos == 0 && cudnn_takes(B, n, C, NH)) return cudnn_forward(out, lse, qkv);
#if PRECISION == PRECISION_FP32
    LAUNCH(attention_forward_kernel, dim3(n, B * NH), 32, 0, STREAM, out, lse, qkv, at);
#else
    const dim3 grid(ceil_div(n, ATT_TILE), B * NH);
    const auto forward_kernel =
        at.hs <= 64 ? attention_forward_kernel<64> : attention_forward_kernel<128>;
    const size_t bytes = at.hs <= 64 ? ATT_FORWARD_BYTES(64) : ATT_FORWARD_BYTES(128);
    LAUNCH(forward_kernel, grid, ATT_THREADS, bytes, STREAM, out, lse, qkv, at);
#endif
}

// dqkv: [B, T, 3C]; dout, out: [B, T, C]; lse, and delta as scratch: [B, NH, T].
static void attention_backward(stored_t *dqkv, float *delta, const stored_t *dout,
                               const stored_t *out, const float *lse, const stored_t *qkv, int B,
                               int T, int C, int NH) {
    const Attention at = attention_shape(T, 0, C, NH);
    if (cudnn_takes(B, T, C, NH)) return cudnn_backward(dqkv, dout, out, lse, qkv);
    RUN(attention_delta_kernel, ceil_div((size_t)B * T * NH * 8, THREADS), delta, dout, out, B, at);
#if PRECISION == PRECISION_FP32
    const dim3 grid(T, B * NH);
    LAUNCH(attention_backward_kernel<false>, grid, 32, 0, STREAM, dqkv, dout, qkv, lse, delta, at);
    LAUNCH(attention_backward_kernel<true>, grid, 32, 0, STREAM, dqkv, dout, qkv, lse, delta, at);
#else
    const dim3 grid(ceil_div(T, ATT_TILE), B * NH);
    const auto dq_kernel = at.hs <= 64 ? attention_dq_kernel<64> : attention_dq_kernel<128>;
    const auto dkdv_kernel = at.hs <= 64 ? attention_dkdv_kernel<64> : attention_dkdv_kernel<128>;
    const size_t bytes = at.hs <= 64 ? ATT_BACKWARD_BYTES(64) : ATT_BACKWARD_BYTES(128);
    LAUNCH(dq_kernel, grid, ATT_THREADS, bytes, STREAM, dqkv, dout, qkv, lse, delta, at);
    LAUNCH(dkdv_kernel, grid, ATT_THREADS, bytes, STREAM, dqkv, dout, qkv, lse, delta, at);
#endif
}
// How much shared memory blocks may take has to be said once, before anything is captured.
static void attention_init(void) {
    cudnn_begin();
#if PRECISION != PRECISION_FP32
    ATT_ALLOW(attention_forward_kernel<64>, ATT_FORWARD_BYTES(64));
    ATT_ALLOW(attention_forward_kernel<128>, ATT_FORWARD_BYTES(128));
    ATT_ALLOW(attention_dq_kernel<64>, ATT_BACKWARD_BYTES(64));
    ATT_ALLOW(attention_dkdv_kernel<64>, ATT_BACKWARD_BYTES(64));
    ATT_ALLOW(attention_dq_kernel<128>, ATT_BACKWARD_BYTES(128));
    ATT_ALLOW(attention_dkdv_kernel<128>, ATT_BACKWARD_BYTES(128));
#endif
}

// ==== 16. the machine ============================================================================
// Flushes denormal results (FTZ) and inputs (DAZ) on the host, as kernels do (-ftz=true).
static void fp_mode_set(void) {
#if defined(__x86_64__) && !defined(__CUDA_ARCH__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr | (1u << 24)));
#endif
}

static __global__ void any_kernel(void) {} // asked whether this program holds code for the device
// Finds the device; makes nothing on it yet, so that a plan that does not fit ends before.
static void machine_find(int emulate) {
    int count = 0;
    cudaDeviceProp p;
    size_t total;
    if (cudaDriverGetVersion(&machine.driver) != cudaSuccess) machine.driver = 0;
    CUDA(cudaRuntimeGetVersion(&machine.runtime));
    EXPECT(machine.driver, "no NVIDIA driver was found; without a GPU use the CPU's trainer, "
                           "./train_gpt_" PRECISION_NAME);
    EXPECT(machine.driver / 1000 >= machine.runtime / 1000,
           "the driver supports CUDA %d.%d, this program was built with CUDA %d.%d; update the "
           "driver, or build with an older toolkit",
           machine.driver / 1000, machine.driver % 1000 / 10, machine.runtime / 1000,
           machine.runtime % 1000 / 10);
    const cudaError_t found = cudaGetDeviceCount(&count);
    EXPECT(found == cudaSuccess && count > 0,
           "no CUDA device was found (%s); the CPU's trainer is ./train_gpt_" PRECISION_NAME,
           found == cudaSuccess ? "the driver lists none" : cudaGetErrorString(found));
    EXPECT(world.local < count,
           "process %d of this machine has no GPU, there are %d; start at most so many processes "
           "(CUDA_VISIBLE_DEVICES names the GPUs that they see)",
           world.local, count);
    CUDA(cudaSetDevice(world.local));
    CUDA(cudaGetDeviceProperties(&p, world.local));
    machine.sm = 10 * p.major + p.minor;
    machine.processors = p.multiProcessorCount;
    snprintf(machine.name, sizeof(machine.name), "%s", p.name);
    EXPECT(machine.sm >= 80,
           "%s has compute capability %d.%d; this program needs 8.0 (Ampere) or newer", p.name,
           p.major, p.minor);
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, any_kernel);
    EXPECT(
        code == cudaSuccess,
        "%s is sm_%d, for which this program holds no code (%s); make cuda GPU_ARCH=sm_%d, or all",
        p.name, machine.sm, cudaGetErrorString(code), machine.sm);
    machine.emulates = IS_FP8 && (emulate || machine.sm < 89);
    world_join();
    CUDA(cudaMemGetInfo(&machine.available, &total));
}
static void machine_init(void) {
    fp_mode_set();
    CUDA(cudaStreamCreateWithFlags(&machine.stream, cudaStreamNonBlocking));
    CUDA(cudaStreamCreateWithPriority(&machine.second, cudaStreamNonBlocking, -1)); // goes first
    CUDA(cudaEventCreateWithFlags(&machine.event, cudaEventDisableTiming));
    LT(cublasLtCreate(&machine.lt));
    CUDA(cudaMalloc(&machine.lt_workspace, LT_WORKSPACE));
    if (machine.emulates) printf("FP8 products are emulated: the same bytes, multiplied as bf16\n");
}

static const char *backend_name(void) { return "CUDA"; }

// Refuses a shape that the kernels do not take. named: the shape comes from options; the message
// then says what would do.
static void backend_limits(const Config *c, long batch, int named) {
    const int C = c->C, NH = c->NH, hs = C / NH;
    char hint[256] = "";
    // The nearest channels for these heads, and the nearest heads for these channels.
    int low = 0, high = 0, heads = 0;
    for (int n = 16 * NH; n <= MIN(128 * NH, CHANNELS_MAX); n += 16 * NH) {
        if (n <= C) low = n;
        else if (!high) high = n;
    }
    for (int n = 1; n <= C; n++)
        if (C % (16 * n) == 0 && C <= 128 * n && (!heads || abs(n - NH) < abs(heads - NH)))
            heads = n;
    if (named && heads) snprintf(hint, sizeof(hint), "; --heads %d would do", heads);
    if (named && (low || high))
        snprintf(hint + strlen(hint), sizeof(hint) - strlen(hint),
                 "; for %d head%s the nearest: --channels %d", NH, NH > 1 ? "s" : "",
                 low ? low : high);
    if (named && low && high)
        snprintf(hint + strlen(hint), sizeof(hint) - strlen(hint), " or %d", high);
    EXPECT(hs % 16 == 0 && hs <= 128,
           "the GPU's trainer has heads of 16, 32, .. 128 channels; %d channels over %d head%s are "
           "%d%s",
           C, NH, NH > 1 ? "s" : "", hs, hint);
    EXPECT(C <= CHANNELS_MAX, "option --channels: the GPU's trainer has at most %d, found %d",
           CHANNELS_MAX, C);
    EXPECT(batch * NH <= 65535, "option --batch: batch x heads may be 65535 at most, found %ld",
           batch * NH);
}

// Decides whose attention this run has. Its bits differ between the file's own and cuDNN's, and
// between versions of cuDNN. A resume takes what the run had (own if its state names none, as those
// of the C file), unless --attention own or cudnn is given.
static void attention_choose(Run *r) {
    Gpt *g = &r->g;
    const int asked = r->o.attention,
              decides = r->given[option_index("attention")] && asked != ATTENTION_AUTO;
    const int keeps = r->o.resume && !decides, done = r->progress.step >= r->o.steps;
    char before[PATH_MAX] = "";
    size_t total;
    if (r->o.resume) text_value(r->state.options, "attention_by", before);
    if (r->o.resume && !*before) strcpy(before, "own");
    const int own = r->prompts || (keeps ? !strcmp(before, "own") : asked == ATTENTION_OWN);
    strcpy(g->attention, "own");
    const char *why =
        own ? ""
            : cudnn_plan(g->B, g->config.T, g->config.C, g->config.NH, g->training, g->attention);
    EXPECT(keeps || asked != ATTENTION_CUDNN || !why || own,
           "option --attention: cuDNN does not take this run: %s", why);
    EXPECT(!keeps || !r->trains || done || !strcmp(before, g->attention),
           "%s: the run's attention was by %s; here it would be by %s, with other bits%s%s; to go "
           "on so, add --attention %s",
           r->state.path, before, g->attention, why && *why ? ": " : "", why ? why : "",
           why ? "own" : "cudnn");
    if (!own) CUDA(cudaMemGetInfo(&machine.available, &total)); // what cuDNN's kernels left
    g->attention_why = why ? why : "";
}

// Finds the device; makes nothing on it yet.
static void backend_open(Run *r) {
    r->g.logits16 = r->o.logits16;
    EXPECT(!r->o.logits16 || PRECISION != PRECISION_FP32,
           "option --logits16: the fp32 build keeps nothing in 16 bits; leave it out");
    machine_find(IS_FP8 && r->o.emulate);
    attention_choose(r);
}
static MemoryPlan memory_check(Gpt *g) {
    const MemoryPlan plan = memory_plan(g);
    EXPECT(plan.total <= machine.available,
           "this run needs %.0f MiB on %s, %.0f are free; choose a smaller -b, -t or -e%s",
           mib(plan.total), machine.name, mib(machine.available),
           cudnn_bytes() ? ", or --attention own" : "");
    return plan;
}
static void backend_start(Run *r) {
    (void)r;
    machine_init();
}

static void backend_ready(Run *r) {
    char first[sizeof(r->g.attention)];
    memcpy(first, r->g.attention, sizeof(first));
    world_bcast(first, sizeof(first), 0);
    EXPECT(!strcmp(first, r->g.attention),
           "its attention is '%s', that of rank 0 '%s'; all processes need the same, or "
           "--attention own",
           r->g.attention, first);
    sprintf(r->option_lines + strlen(r->option_lines), "# attention_by\t%s\n", r->g.attention);
}
static void backend_header(FILE *f, const Run *r) {
    fprintf(f, "# threads\t1\n# machine\t%s, sm_%d, driver %d.%d, CUDA %d.%d, cuBLASLt %zu%s\n",
            machine.name, machine.sm, machine.driver / 1000, machine.driver % 1000 / 10,
            machine.runtime / 1000, machine.runtime % 1000 / 10, cublasLtGetVersion(),
            IS_FP8 && gpt_emulates(&r->g) ? ", FP8 products emulated" : "");
}
static void backend_note(const Run *r) {
    if (r->g.attention_why[0] && PRECISION != PRECISION_FP32)
        printf("note: attention is not cuDNN's: %s\n", r->g.attention_why);
}
// The header of a log names attention. If a resume has another attention than the rows before it,
// the log says so from there on.
static void backend_resumed(Run *r) {
    char path[PATH_MAX], line[128];
    path_print(path, "%s/log.tsv", r->dir.path);
    char *text = text_read(path);
    const char *last = "";
    for (const char *at = text; (at = strstr(at, "# attention_by\t")) != NULL; at++) last = at;
    snprintf(line, sizeof(line), "# attention_by\t%s\n", r->g.attention);
    if (strncmp(last, line, strlen(line))) fputs(line, r->log);
    free(text);
}
static const char *backend_speed(double gflops, char *out) {
    sprintf(out, "%.1f TFLOP/s", gflops * 1e-3);
    return out;
}
static void backend_summary(const Run *r) {
    const StepHost *h = &r->g.host;
    struct rusage usage;
    size_t free_now = 0, total;
    getrusage(RUSAGE_SELF, &usage);
    CUDA(cudaMemGetInfo(&free_now, &total));
    printf("device memory %.1f MiB (planned %.1f), the host's peak %.1f MiB\n",
           mib(machine.available > free_now ? machine.available - free_now : 0), mib(r->plan.total),
           usage.ru_maxrss / 1024.0);
    printf("%ld of these steps were CUDA graphs", h->graph_steps);
    if (IS_FP8 && h->graph_steps)
        printf(", each with %ld separate quantizing passes", graph_passes(h));
    printf("\n");
}

// If gradients were added, only the tensor counts whose mark gradient_add_kernel() left.
static int gradient_nonfinite(const Gpt *g, int id, int l) {
    const ParamSpec *s = &g->params[id];
    if (gradients_travel(g))
        return g->nonfinite == NONFINITE_MARK(world.size, world.rank, g->config.L, l, id);
    return tensor_nonfinite(gpt_param(g, g->grad, id, s->layers == 1 ? 0 : l), DTYPE_FP32,
                            s->rows * s->cols);
}

// ==== 17. processes ==============================================================================
// Several processes train one model together, a GPU each and each on its own shards of a step
// (section 9). NCCL moves bytes between them, as work of a stream, and adds nothing: the order of
// an addition is not the library's. No GPU has run this yet.
#ifdef USE_NCCL
static ncclComm_t world_comm;
static char *world_room; // on the device, for what passes from host to host
#define WORLD_ROOM ((size_t)1 << 16)
static void nccl_check(ncclResult_t r, const char *what, const char *file, int line) {
    if (r != ncclSuccess)
        fatal(EXIT_BAD_INPUT, "%s:%d: %s failed: %s: %s", file, line, what, ncclGetErrorString(r),
              ncclGetLastError(NULL));
}
#define NCCL(call) nccl_check(call, #call, __FILE__, __LINE__)

// Who this process is, and how NCCL's id comes from rank 0 to all: MPI says so, or else the
// environment, under torchrun's names, and a file.
static char id_path[PATH_MAX];
#ifdef USE_MPI
static void world_close(void) { MPI_Finalize(); }
static void world_open(void) {
    int level;
    MPI_Comm node;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &world.local);
    atexit(world_close);
}
static void id_share(ncclUniqueId *id) { MPI_Bcast(id, sizeof(*id), MPI_BYTE, 0, MPI_COMM_WORLD); }
#else
static int world_number(const char *name, int least, int most, int otherwise) {
    const char *text = getenv(name);
    char *end = NULL;
    const long n = text ? strtol(text, &end, 10) : otherwise;
    EXPECT(n >= least && n <= most && (!text || (*text && !*end)),
           "%s: expected a number from %d to %d, found '%s'", name, least, most, text ? text : "");
    return n;
}
static void world_open(void) {
    world.size = world_number("WORLD_SIZE", 1, WORLD_MAX, 1);
    world.rank = world_number("RANK", 0, world.size - 1, world.size > 1 ? -1 : 0);
    world.local = world_number("LOCAL_RANK", 0, WORLD_MAX, world.rank);
}
static void id_share(ncclUniqueId *id) {
    const char *dir = getenv("WORLD_DIR");
    char part[PATH_MAX];
    FILE *f;
    EXPECT(dir && *dir, "WORLD_DIR: expected a directory that all processes see, in which rank 0 "
                        "leaves NCCL's id for the others");
    path_print(id_path, "%s/nccl_id", dir);
    path_print(part, "%s/nccl_id.part", dir);
    if (!world.rank) {
        EXPECT(access(id_path, F_OK),
               "%s is there already: end the run that it is of, or remove it", id_path);
        f = fopen(part, "wb");
        EXPECT(f && fwrite(id, sizeof(*id), 1, f) == 1 && !fclose(f) && !rename(part, id_path),
               "%s cannot be written: %s", part, strerror(errno));
        return;
    }
    for (int i = 0; access(id_path, R_OK); i++, usleep(100000))
        EXPECT(i < 3000, "%s did not come from rank 0 within five minutes", id_path);
    f = fopen(id_path, "rb");
    EXPECT(f && fread(id, sizeof(*id), 1, f) == 1 && !fclose(f), "%s cannot be read", id_path);
}
#endif
// Once the device is set. NCCL refuses two processes on one GPU, and names them.
static void world_join(void) {
    ncclUniqueId id;
    if (world.size == 1) return;
    if (!world.rank) NCCL(ncclGetUniqueId(&id));
    id_share(&id);
    NCCL(ncclCommInitRank(&world_comm, world.size, id, world.rank));
    if (!world.rank && *id_path) unlink(id_path); // all have read it
    world_room = (char *)device_allocate(WORLD_ROOM);
}

static void group_begin(void) { NCCL(ncclGroupStart()); }
static void group_end(void) { NCCL(ncclGroupEnd()); }
static void device_bcast(void *data, size_t bytes, int root) {
    if (world.size > 1 && bytes)
        NCCL(ncclBroadcast(data, data, bytes, ncclUint8, root, world_comm, STREAM));
}
static void device_max(unsigned *x, size_t n) {
    if (world.size > 1) NCCL(ncclAllReduce(x, x, n, ncclUint32, ncclMax, world_comm, STREAM));
}
static void world_bcast(void *data, size_t bytes, int root) {
    for (size_t at = 0, n; world.size > 1 && at < bytes; at += n) {
        n = MIN(bytes - at, WORLD_ROOM);
        if (world.rank == root) device_write(world_room, (char *)data + at, n);
        device_bcast(world_room, n, root);
        device_read((char *)data + at, world_room, n);
    }
}
static void world_trade(const Message *sent, const Message *got) {
    group_begin();
    for (int i = 1; i < world.size; i++) {
        const int to = (world.rank + i) % world.size,
                  from = (world.rank + world.size - i) % world.size;
        if (sent[to].bytes)
            NCCL(ncclSend(sent[to].data, sent[to].bytes, ncclUint8, to, world_comm, STREAM));
        if (got[from].bytes)
            NCCL(ncclRecv(got[from].data, got[from].bytes, ncclUint8, from, world_comm, STREAM));
    }
    group_end();
}
static int world_any(int yes) {
    unsigned any = yes;
    if (world.size == 1) return yes;
    device_write(world_room, &any, sizeof(any));
    device_max((unsigned *)world_room, 1);
    device_read(&any, world_room, sizeof(any));
    return any;
}
#endif
