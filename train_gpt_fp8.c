/*
Trains a GPT-2 style transformer on a CPU. The matrix products of its linear layers run on real FP8
bytes with tracked scales, as in "FP8 Formats for Deep Learning" (Micikevicius et al. 2022, arXiv
2209.05433). The same file also builds as FP16, BF16 and FP32, so that two loss curves differ by
nothing but the precision (and, in FP16, the scaling of the loss that it needs).

    make && ./train_gpt_fp8                  # a byte-level model on the embedded corpus
    ./train_gpt_fp8 --help                   # every option
    ./train_gpt_fp8 -i text.txt -e d6 -t 256 # any text file; its bytes are the tokens

HOW FP8 TRAINING WORKS

Formats. A byte has 256 codes. E4M3 (4 bits of exponent, 3 of mantissa) has normal numbers from
2^-6 to 448; rounding to them has a relative error of at most 1/16; denormal ones go down to 2^-9.
E5M2 has normal numbers from 2^-14 to 57344, with an error of at most 1/8, and denormal ones down
to 2^-16. The operands of the forward pass, x and w, are E4M3. The gradient dy is E5M2: gradients
of one tensor spread over more powers of two, and a value that underflows to zero is lost.

Scales. A tensor rarely fits into such a range as it is. Each one has a scale:
    scale = FP8_MAX / amax      amax: the largest |value|;  FP8_MAX: 448 or 57344
    byte  = encode(x * scale)   to nearest even; what is too large saturates at +-FP8_MAX
    x    ~= decode(byte) * scale_inv, scale_inv = 1 / scale
A product (matmul_reference(), section 5) multiplies decoded bytes, sums them in fp32, and
multiplies the sum by scale_inv of both operands, which undoes the scales. If a scale is too small
by 2, the top power of two of the format stays unused, and one more power of two of small values
underflows. If it is too large by 2, values above about amax / 2 saturate. In both cases scale_inv
matches, so the product is not off by 2; and values that stay normal keep their relative precision,
because FP8 is floating point.

Where amax comes from. quantize() (section 4) makes the bytes and takes amax of the same tensor, as
it is stored (bf16), in the same pass. With the default rule, delayed scaling, that amax does not
scale this tensor, so that one pass is enough; if values grow suddenly, they saturate for a step.
After the last micro-batch the largest amax of the step enters a history, and the largest of the
last 16 steps makes the scale of the next step (scale_advance(), which gpt_step() calls). Until
there is a history, normally in the first step, each tensor is scaled by its own amax. An amax that
is 0, denormal, Inf or NaN never enters the history: the scale stays as it was. A value of Inf
becomes +-FP8_MAX, a NaN the code 0x7F; both are counted. An Inf in dy, which its bytes hide, is
seen in the bias gradient, which sums dy itself, and ends the run; so does a NaN anywhere.

The three products of a linear layer (section 6), and who makes the bytes they read, with one scale
a tensor:
    fprop  y  = x w^T    x: linear_forward()     w: gpt_refresh_weights(), once a step
    dgrad  dx = dy w     dy: linear_backward()   w: the same bytes
    wgrad  dw = dy^T x   dy: the same bytes      x: the same bytes, kept from the forward pass
So a transformer layer keeps the inputs of its four linear layers (qkv, attproj, fc, fcproj) as
bytes: one byte an element, where BF16 and FP16 keep two (--recompute makes most of them again
instead). The residual stream, qkv, the GELU's input and the input of the head (the projection to
the vocabulary) have 16 bits in the FP8, BF16 and FP16 builds alike. A transformer layer keeps 25
bytes instead of 32 for each channel of a position.

Block scaling gives each block of a tensor, 32 elements for example, a scale of its own, undone as
an element is read. A block lies along the dimension that is summed over, and the two products that
read an operand sum over different ones, so it is quantized twice. E2M1 is a format of 4 bits, whose
range is so short that it needs blocks (--recipe nvfp4; dev/RECIPES.md).

What is not FP8: embeddings, layernorm, attention, softmax, the loss and the optimizer. Residual
stream and gradients of activations are bf16; master weights and their gradients are fp32, AdamW's
moments too without --fp8-moments, sums fp32 or double. The head is FP8 with --fp8-head only. The
FP16 build differs in this: the stored type is fp16; products read the stored tensors themselves and
an fp16 copy of the weights; the loss is scaled so that gradients do not underflow, and a step whose
gradients overflow is skipped. (A recipe with a constant scale for dy scales the loss, too:
saturated gradients halve the loss scale, but skip no step.) All else is the same text.

A step (gpt_step(), section 9) is: forward and backward of every micro-batch, the scales of the
next step, AdamW, which marks the weights' bytes as stale, and the next loss scale. The next forward
pass makes the bytes again. To try a recipe: --recipe WORDS (--help recipe). To add a rule of
scales: one function and one row (SCALING_RULES, section 4; dev/RECIPES.md shows it).

What this file refuses to do: multiply FP8 faster than bf16 (no CPU can), dropout, other
architectures, splitting a model over machines (data parallelism it has: section 17).

Bits: the same seed, data and --shards give the same parameters, to the last bit, for any number
of threads and processes, compiler, instruction set and across a resume. NUMERICS_VERSION names the
rules: fused multiply-adds in a fixed order for each element of a product (section 5); sums in 16
striped lanes and fixed chunks; exp, log, sin and cos of our own; fp32 and bf16 denormals flushed.

Part one, the trainer: 1 precision, 2 utilities, 3 FP8 formats, 4 scales and recipes, 5 matrix
product, 6 linear layers, 7 other layers, 8 model, 9 optimizer and step.

Part two, the program, the same text in train_gpt_fp8.cu: 10 data, 11 checkpoint, 12 log, 13
options, 14 training loop. Part three, speed: 15 the fast product, 16 the machine, 17 processes.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <dirent.h>
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
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__ // other names, and no huge pages on request
#define st_mtim       st_mtimespec
#define MADV_HUGEPAGE MADV_NORMAL
#endif
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_get_thread_num()  0
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
// Four builds share one text: what one of them leaves unused is used by another.
#pragma GCC diagnostic ignored "-Wunused-function"

#if __FINITE_MATH_ONLY__
#error "needs -ffp-contract=off and no -ffast-math: every operation is the one that is written"
#endif
#if __SIZEOF_POINTER__ < 8
#error "needs a 64-bit system: x87 gives other bits"
#endif
#define NUMERICS_VERSION 1 // changes whenever any bit of a result changes

// #################################################################################################
// Part one: the trainer
// #################################################################################################

// ==== 1. precision ===============================================================================
// Roles: a *stored* tensor is the residual stream, an activation between layers or its gradient; an
// *operand* is what a linear layer's product reads, and what is kept of it for wgrad. Master
// weights, parameter gradients, logits and (by default) moments are fp32; sums fp32 or double.
#define PRECISION_FP8  0
#define PRECISION_FP16 1
#define PRECISION_BF16 2
#define PRECISION_FP32 3
#ifndef PRECISION
#define PRECISION PRECISION_FP8
#endif

// clang-format off
typedef enum { DTYPE_FP32, DTYPE_BF16, DTYPE_FP16, DTYPE_E4M3, DTYPE_E5M2,
               DTYPE_E2M1 /* two codes share a byte */, DTYPE_COUNT } Dtype;
// clang-format on
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
typedef uint16_t stored_t, operand_t;
#else
#define STORED            DTYPE_BF16
#define float_from_stored float_from_bf16
#define stored_from_float bf16_from_float
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
enum { EXIT_DONE = 0, EXIT_BAD_INPUT = 2, EXIT_NONFINITE = 3, EXIT_INTERRUPTED = 130 };

#ifndef PROGRAM
#define PROGRAM "train_gpt_" PRECISION_NAME
#endif
static struct { // processes that train together; here: on this machine; seconds that this waited
    int rank, size, here;
    double waited;
} world = {0, 1, 1, 0};
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
static size_t ceil_div(size_t n, size_t by) { return (n + by - 1) / by; }
static size_t round_up(size_t n, size_t to) { return ceil_div(n, to) * to; }

// Zeroed memory, from 4 MiB on in huge pages; ends the program if there is none.
static size_t memory_taken; // bytes so far
static void *memory_allocate(size_t bytes) {
    void *p = NULL;
    bytes = round_up(bytes + 1, 64);
    memory_taken += bytes;
    const int huge = bytes >= (size_t)1 << 22;
    EXPECT(!posix_memalign(&p, huge ? 1 << 21 : 64, bytes),
           "out of memory: %.1f MiB more were needed", bytes / 1048576.0);
    if (huge) madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 0, bytes);
    return p;
}

// All threads share the loop that follows; PARALLEL_SIMD: and the lanes of their vectors do.
#define PRAGMA(...) _Pragma(#__VA_ARGS__)
#define PARALLEL(kind) PRAGMA(omp parallel for schedule(kind))
#define PARALLEL_SIMD  PRAGMA(omp parallel for simd schedule(static))
#define SIMD   PRAGMA(omp simd)
#define INLINE static inline __attribute__((always_inline))
static int thread_count(void) { return omp_get_max_threads(); }

typedef union {
    float f;
    uint32_t u;
} FloatBits;
INLINE uint32_t float_bits(float f) { return (FloatBits){.f = f}.u; }
INLINE float bits_float(uint32_t u) { return (FloatBits){.u = u}.f; }
INLINE int float_is_finite(float f) { return (float_bits(f) & 0x7f800000) != 0x7f800000; }

// Conversions have no branches, so that compilers make vector code of the loops that call them.
// bf16: round to nearest even, denormals flushed first, what vcvtneps2bf16 does. Any NaN becomes a
// quiet one.
INLINE uint16_t bf16_from_float(float f) {
    uint32_t u = float_bits(f), a = u & 0x7fffffff, r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    r = a < 0x00800000 ? (u >> 16) & 0x8000 : r;
    r = a > 0x7f800000 ? (u >> 16) | 0x40 : r;
    return (uint16_t)r;
}
INLINE float float_from_bf16(uint16_t h) { return bits_float((uint32_t)h << 16); }

// Section 7: IEEE half, and random numbers by counter.
INLINE uint16_t fp16_from_float(float f);
INLINE float float_from_fp16(uint16_t h);
INLINE uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t counter);

// ==== 3. FP8 formats =============================================================================
typedef struct {
    int mantissa_bits, bias;
    uint32_t max_code;        // the code of the largest finite value
    float max;                // that value, FP8_MAX in the formulas below
    uint32_t saturated_above; // bits of the largest |x * scale| that rounds to max; more saturates
    uint32_t nan;             // what a NaN becomes
} Fp8Format;
static const Fp8Format fp8_formats[3] = {
    // E4M3: no infinities, 0x7F is NaN; 464 still ties to 448
    {3, 7, 0x7e, 448.0f, 0x43e80000, 0x7f},
    {2, 15, 0x7b, 57344.0f, 0x476fffff, 0x7f}, // E5M2: as IEEE; 61440 would tie to Inf
    {1, 1, 7, 6.0f, 0x40dfffff, 7},            // E2M1: no NaN; 7 would tie to 8
};
static const Fp8Format *fp8_format(Dtype d) { return &fp8_formats[d - DTYPE_E4M3]; }
INLINE float fp8_max(Dtype d) { return fp8_format(d)->max; }

// The code of a magnitude, given by its bits. One beyond `saturated_above` gives a code above
// max_code. It has no branches, so that the compiler vectorizes the loop in codes_make().
static inline uint32_t fp8_round_bits(uint32_t a, const Fp8Format *f) {
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
// Round to nearest even, saturating: +-Inf becomes +-max, every NaN becomes 0x7F (E2M1: 7), as
// CUDA's satfinite conversion does.
static inline uint32_t fp8_encode_bits(uint32_t u, const Fp8Format *f) {
    const uint32_t a = u & 0x7fffffff, code = MIN(fp8_round_bits(a, f), f->max_code);
    return a > 0x7f800000 ? f->nan : code | ((u >> 24) & 0x80);
}
static inline uint8_t fp8_encode(float f, Dtype d) {
    return fp8_encode_bits(float_bits(f), fp8_format(d));
}

// The value of a code (paper, table 1), without branches. A denormal is made with an implicit one,
// which is then taken away.
INLINE float fp8_value(uint32_t code, const Fp8Format *f) {
    const uint32_t a = code & 0x7f, tiny = a < 1u << f->mantissa_bits,
                   lowest = (uint32_t)(128 - f->bias) << 23;
    const float v = bits_float((a << (23 - f->mantissa_bits)) + lowest - (tiny ? 0 : 1u << 23)) -
                    bits_float(tiny ? lowest : 0);
    // E5M2's Inf; NaN.
    const uint32_t special = f->mantissa_bits == 2 && a == 0x7c ? 0x7f800000 : 0x7fc00000;
    return bits_float((a > f->max_code ? special : float_bits(v)) | (code & 0x80) << 24);
}
static float fp8_decode(uint8_t code, Dtype d) { return fp8_value(code, fp8_format(d)); }
// What a second number of a split operand is worth, beside the first: rounding takes away less.
INLINE float split_unit(Dtype d) {
    return bits_float((uint32_t)(126 - fp8_format(d)->mantissa_bits) << 23);
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
// Threads merge theirs in any order: whole numbers and a maximum. Sums of floats, which need an
// order, come after.
#pragma omp declare reduction(merge:Fp8Stats : stats_merge(&omp_out, &omp_in))

// ---- quantize
// Sums over a whole tensor are split into chunks of so many elements, whatever the thread count.
#define CHUNK 8192

// What elements_encode() (section 7) reads and writes.
typedef struct {
    const stored_t *x;
    uint8_t *q, *rest; // codes; NULL, or the second numbers of a split operand
    const ScalingRecipe *recipe;
    uint64_t key; // of random_u32()
} Encoder;
#define SPAN 512 // most elements of a call
static void elements_encode(const Encoder *e, size_t at, size_t n, const float *scale,
                            Fp8Stats *stats);
static float tensor_amax(const stored_t *x, size_t n);
static void sqnr_sums(double *sums, const Encoder *e, size_t at, size_t n, const float *scale,
                      int stride);
// Whether a tensor is scaled by its own amax: by its rule, or because the rule has seen no amax yet
// (in the first step, and weights of a model without its state file).
INLINE int scale_is_own(const Fp8Scale *s) {
    return s->recipe.rule == SCALING_CURRENT ||
           (recipe_remembers(&s->recipe) && s->amax_count == 0);
}
typedef enum { RECORD_NONE, RECORD_STATS, RECORD_SQNR } Record; // NONE: validation and sampling
// Makes the codes q [n] of the stored tensor x [n] with one scale, and takes its amax in the same
// pass; quantize_blocks() (section 7) makes those in blocks. Second numbers (split) lie behind q.
// Returns scale_inv = 1 / scale.
static float quantize(uint8_t *q, const stored_t *x, size_t n, Fp8Scale *s, Record record) {
    const ScalingRecipe *r = &s->recipe;
    float scale = s->scale;
    if (scale_is_own(s)) {
        scale = scale_from_amax(tensor_amax(x, n), scale, r);
        if (record != RECORD_NONE) s->scale = scale;
    }
    float scales[SPAN];
    for (int i = 0; i < SPAN; i++) scales[i] = scale;
    const float scale_inv = 1.0f / scale;
    const Encoder e = {x, q, r->split ? q + n : NULL, r,
                       random_u64(s->random, s->micro_batches, 0)};
    const size_t chunks = ceil_div(n, CHUNK);
    double(*sums)[3] = record == RECORD_SQNR ? memory_allocate(chunks * sizeof(*sums)) : NULL;
    Fp8Stats total = {0};
#pragma omp parallel for schedule(static) reduction(merge : total) if (n > CHUNK)
    for (size_t c = 0; c < chunks; c++) {
        const size_t begin = c * CHUNK, end = MIN(n, begin + CHUNK);
        for (size_t at = begin; at < end; at += SPAN)
            elements_encode(&e, at, MIN(SPAN, end - at), scales, &total);
        if (sums) sqnr_sums(sums[c], &e, begin, end - begin, scales, 0);
    }
    const double inv2 = (double)scale_inv * scale_inv;
    for (size_t c = 0; sums && c < chunks; c++) {
        total.signal += sums[c][0] * inv2;
        total.noise += sums[c][1] * inv2;
        total.fourth += sums[c][2] * (inv2 * inv2);
    }
    free(sums);
    if (record != RECORD_NONE) stats_merge(&s->step, &total);
    const int has_nan = r->format == DTYPE_E2M1 && total.amax_bits > 0x7f800000; // it has no NaN
    return has_nan ? bits_float(total.amax_bits) : scale_inv;
}

// ==== 5. matrix product ==========================================================================
// out[m, n] = epilogue(sum over k of a[m, k] * b[n, k]). Every sum is one chain of fp32 fused
// multiply-adds, the odd element of each pair first,
//     acc = fma(a[k], b[k], fma(a[k+1], b[k+1], acc)),  k = 0, 2, 4, ...
// which is what vdpbf16ps does. Products of FP8, bf16 or fp16 numbers are exact in fp32, so fp32
// FMA gives the same bits. The fast product splits K, but goes on from the stored sum, so that the
// order is the same: no bit depends on tiles, threads or the instruction set.
// --sum-order tiles is another rule, that of AMX's tdpbf16ps: each 32 elements of K, the last
// padded with zeros, have two sums from zero, and their sum is added,
//     even = fma(a[k], b[k], even), k = 0, 2, .. 30;  odd likewise, k = 1, 3, .. 31;  acc += even +
//     odd.
// Every machine computes both rules; which is fast depends on the machine.

// A matrix as it lies in memory: element (i, k) is at data[i * row_stride + k * k_stride]. One of
// the strides is 1. A transposed operand is the same bytes with the strides exchanged.
typedef struct {
    const void *data;
    Dtype dtype;
    size_t row_stride, k_stride;
    float scale_inv; // FP8: an element is worth its decoded byte times this; else 1
    // Block scaling: element (i, k) is also multiplied by inv[i / across * inv_stride + k / along],
    // a power of two or an E4M3 number; bf16 holds the product exactly. NULL: no blocks.
    const float *inv;
    size_t across, along, inv_stride;
} Matrix;
#define matrix(...) ((Matrix){__VA_ARGS__, 1, NULL, 0, 0, 0})

// Epilogue: how the fp32 sum becomes an output element, which is rounded to the output's type:
// value = sum * (factor * (scale_inv of a * scale_inv of b)), plus bias[n] or the old out[m, n] in
// the same fused multiply-add.
typedef struct {
    void *data; // [m, n], stored type or fp32
    Dtype dtype;
    size_t row_stride;
    float factor;
    const float *bias; // [n] or NULL
    int accumulate;    // the old out is added; fp32 only
} Output;
#define output(...) ((Output){__VA_ARGS__})

static int product_in_tiles = 0; // --sum-order tiles

// Element (i, k) of a matrix as a number.
static float matrix_element(const Matrix *m, size_t i, size_t k) {
    const size_t at = i * m->row_stride + k * m->k_stride;
    float value;
    if (m->dtype == DTYPE_FP32) value = ((const float *)m->data)[at];
    else if (dtype_size[m->dtype] == 1)
        value = fp8_decode(code_at(m->data, at, m->dtype), m->dtype);
    else value = float_from_stored(((const stored_t *)m->data)[at]);
    return m->inv ? value * m->inv[i / m->across * m->inv_stride + k / m->along] : value;
}
// fma(a[m, k], b[n, k], sum). Beyond K the elements are zeros, as packing has them.
static float element_fma(const Matrix *a, const Matrix *b, size_t m, size_t n, size_t k, size_t K,
                         float sum) {
    return k < K ? fmaf(matrix_element(a, m, k), matrix_element(b, n, k), sum) : fmaf(0, 0, sum);
}

// The definition of a product, which the fast one of section 15 equals bit for bit. `make
// REFERENCE=1` trains with it: the bytes are decoded one by one, so that everything stands here.
static void matmul_reference(Output out, Matrix a, Matrix b, size_t M, size_t N, size_t K) {
    const float undo = out.factor * (a.scale_inv * b.scale_inv); // here the scales are undone
    PARALLEL(static) for (size_t at = 0; at < M * N; at++) {
        const size_t m = at / N, n = at % N;
        float sum = 0;
        for (size_t k = 0; !product_in_tiles && k < K; k += 2) // in pairs
            sum = element_fma(&a, &b, m, n, k, K, element_fma(&a, &b, m, n, k + 1, K, sum));
        for (size_t k = 0; product_in_tiles && k < K; k += 32) {
            float even = 0, odd = 0;
            for (size_t j = k; j < k + 32; j += 2) {
                even = element_fma(&a, &b, m, n, j, K, even);
                odd = element_fma(&a, &b, m, n, j + 1, K, odd);
            }
            sum += even + odd;
        }
        float *floats = (float *)out.data + m * out.row_stride + n;
        stored_t *stored = (stored_t *)out.data + m * out.row_stride + n;
        const float add = out.bias ? out.bias[n] : out.accumulate ? *floats : 0;
        const float value = out.bias || out.accumulate ? fmaf(sum, undo, add) : sum * undo;
        if (out.dtype == DTYPE_FP32) *floats = value;
        else *stored = stored_from_float(value);
    }
}
// Section 15:
static void matmul_packed(Output out, Matrix a, Matrix b, size_t M, size_t N, size_t K);
#ifdef REFERENCE
#define matmul matmul_reference
#else
#define matmul matmul_packed
#endif

// ==== 6. linear layers ===========================================================================
// Sections 7 and 8:
static void stored_from_floats(stored_t *out, const float *x, size_t n);
static void quantize_blocks(uint8_t *q, float *inv, const stored_t *x, size_t rows, size_t columns,
                            int along_rows, Fp8Scale *s, Record record);
static void hadamard_transform(stored_t *out, const stored_t *x, size_t rows, size_t columns,
                               uint32_t signs);
static void column_sums(float *out, const stored_t *x, float *partial, size_t rows, size_t width);

// y = x w^T + bias. x, w and, in the backward pass, dy are matrices [rows, columns] that two
// products read: one sums over the column index, the other over the row index.
//                  over columns    over rows
//   x  [R, in]     fprop           wgrad
//   w  [out, in]   fprop           dgrad
//   dy [R, out]    dgrad           wgrad
enum { OPERAND_X, OPERAND_W, OPERAND_DY, NOPERAND };
enum { FPROP, DGRAD, WGRAD, NPRODUCT };
enum { OVER_COLUMNS, OVER_ROWS }; // an operand's two ways: which index a product sums over
enum { READ_W = 1 << FPROP | 1 << DGRAD, ALL_PRODUCTS = READ_W | 1 << WGRAD }; // bits
static const char *const operand_name[NOPERAND] = {"x", "w", "dy"};
static const char *const product_name[NPRODUCT] = {"fprop", "dgrad", "wgrad"};
static const int operand_product[NOPERAND][2] = {{FPROP, WGRAD}, {FPROP, DGRAD}, {DGRAD, WGRAD}};

// An operand in the forms in which its two products read it; [0] for OVER_COLUMNS, [1] for
// OVER_ROWS.
typedef struct {
    const stored_t *stored[2]; // the tensor, which a product reads that is not in FP8; [0] of x and
                               // dy is also what the bytes are made of
    uint8_t *bytes[2]; // what one in FP8 reads: the same bytes for both, or, in blocks, two sets
    float *inv[2];     // in blocks: their scale_inv
    Fp8Scale *scale;   // NULL: no product of this layer can be in FP8
    size_t columns;
} Operand;
typedef struct {
    Operand operand[NOPERAND];
    size_t in, out;
    const float *bias; // [out] or NULL
    float *dw, *dbias; // [out, in], [out] or NULL
    int fp8;           // bit p: product p reads FP8 bytes
    int split;         // bit p: product p reads both numbers of a split operand
    int first;         // dw holds nothing yet: it is written, not added to
    uint32_t signs;    // of the Hadamard transform
    stored_t *mixed;   // room for what it makes of an operand
    float *sums;       // room for an output of several products
} Linear;
static int linear_in_fp8(const Linear *f, int product) { return f->fp8 >> product & 1; }
static void operand_is(Linear *f, int which, const stored_t *tensor) {
    f->operand[which].stored[OVER_COLUMNS] = f->operand[which].stored[OVER_ROWS] = tensor;
}

// Makes the bytes of an operand from the tensor [rows, columns], for its products in FP8: both, or
// with first OVER_ROWS only the second. Blocks are made for each of them.
static void operand_quantize(const Linear *f, int which, const stored_t *tensor, size_t rows,
                             int first, Record record) {
    const Operand *o = &f->operand[which];
    for (int way = first; way <= OVER_ROWS; way++) {
        if (!linear_in_fp8(f, operand_product[which][way])) continue;
        if (recipe_blocks(&o->scale->recipe)) {
            const int mixes = way == OVER_ROWS && o->scale->recipe.hadamard;
            if (mixes) hadamard_transform(f->mixed, tensor, rows, o->columns, f->signs);
            quantize_blocks(o->bytes[way], o->inv[way], mixes ? f->mixed : tensor, rows, o->columns,
                            way, o->scale, record);
            record = RECORD_NONE; // counted once
            continue;
        }
        o->scale->scale_inv[OVER_COLUMNS] = o->scale->scale_inv[OVER_ROWS] =
            quantize(o->bytes[way], tensor, rows * o->columns, o->scale, record);
        return; // the other product reads the same bytes
    }
}

// An operand as a product reads it: as stored, as bytes with one scale, or as bytes in blocks.
// rows: of x and dy. part: 1 for the second numbers of a split one.
static Matrix operand(const Linear *f, int which, int product, size_t rows, int part) {
    const Operand *o = &f->operand[which];
    if (which == OPERAND_W) rows = f->out;
    const int way = operand_product[which][OVER_ROWS] == product;
    Matrix m = matrix(o->stored[way], STORED, way ? 1 : o->columns, way ? o->columns : 1);
    if (!linear_in_fp8(f, product)) return m;
    const ScalingRecipe *r = &o->scale->recipe;
    m.data = o->bytes[way] + part * rows * o->columns;
    m.dtype = r->format;
    m.scale_inv = o->scale->scale_inv[way] * (part ? split_unit(r->format) : 1);
    if (!recipe_blocks(r)) return m;
    m.inv = o->inv[way];
    m.across = r->across;
    m.along = r->along;
    m.inv_stride = ceil_div(way ? rows : o->columns, r->along);
    return m;
}

// out = a b^T of a product's operands, by matmul(); rows: of x and dy.
static void linear_product(const Linear *f, int product, Output out, size_t rows);
// y[rows, out] = x w^T + bias, of type y_dtype.
static void linear_forward(const Linear *f, void *y, Dtype y_dtype, size_t rows, Record record) {
    const Operand *x = &f->operand[OPERAND_X];
    operand_quantize(f, OPERAND_X, x->stored[OVER_COLUMNS], rows, OVER_COLUMNS, record);
    if (x->stored[OVER_ROWS] && x->stored[OVER_ROWS] != x->stored[OVER_COLUMNS]) // a wgrad in bf16
        memcpy((stored_t *)x->stored[OVER_ROWS], x->stored[OVER_COLUMNS],
               rows * f->in * sizeof(stored_t));
    linear_product(f, FPROP, output(y, y_dtype, f->out, 1, f->bias, 0), rows);
}

// dx[rows, in] = dy w;  dw += dy^T x (= if f->first);  dbias += sums of dy's columns. These sum dy
// itself: an Inf saturates in its bytes, so that it leaves no trace in dx and dw, but makes dbias
// Inf or NaN.
// partial: room for these sums, [ceil(rows / ROWS)][out].
static void linear_backward(const Linear *f, stored_t *dx, float *partial, size_t rows,
                            Record record) {
    const stored_t *dy = f->operand[OPERAND_DY].stored[OVER_COLUMNS];
    operand_quantize(f, OPERAND_DY, dy, rows, OVER_COLUMNS, record);
    linear_product(f, DGRAD, output(dx, STORED, f->in, 1, NULL, 0), rows);
    linear_product(f, WGRAD, output(f->dw, DTYPE_FP32, f->in, 1, NULL, !f->first), rows);
    if (f->dbias) column_sums(f->dbias, dy, partial, rows, f->out);
}

// Whether a product reads both numbers of an operand.
static int linear_splits(const Linear *f, int which, int product) {
    return linear_in_fp8(f, product) && f->split >> product & f->operand[which].scale->recipe.split;
}
static const int product_operands[NPRODUCT][2] = {
    {OPERAND_X, OPERAND_W}, {OPERAND_DY, OPERAND_W}, {OPERAND_DY, OPERAND_X}};
// Where operands are split, a product is the sum of products of their parts, in fp32: both first
// ones, then first and second, second and first. That of both second ones is left out: at most 2^-8
// of a term, 2^-7 with E5M2.
static void linear_product(const Linear *f, int product, Output out, size_t rows) {
    const int a = product_operands[product][0], b = product_operands[product][1];
    const size_t sizes[NPRODUCT][3] = {
        {rows, f->out, f->in}, {rows, f->in, f->out}, {f->out, f->in, rows}};
    const size_t *mnk = sizes[product];
    const int b_splits = linear_splits(f, b, product),
              last = linear_splits(f, a, product) + b_splits;
    Output to = out;
    const int wide = last > 0 && out.dtype != DTYPE_FP32;
    if (wide) to = output(f->sums, DTYPE_FP32, mnk[1], 1, out.bias, 0);
    for (int i = 0; i <= last; i++) {
        const int part_a = i > b_splits, part_b = i > 0 && !part_a;
        if (i > 0) to.bias = NULL;
        to.accumulate |= i > 0;
        matmul(to, operand(f, a, product, rows, part_a), operand(f, b, product, rows, part_b),
               mnk[0], mnk[1], mnk[2]);
    }
    if (wide) stored_from_floats(out.data, f->sums, mnk[0] * mnk[1]);
}

// ==== 7. other layers ============================================================================
// sum = terms of i < n in the one order that every build keeps: 16 striped lanes, then a tree of
// distances 8, 4, 2, 1.
#define STRIPED_SUM(sum, i, n, term)                                                               \
    do {                                                                                           \
        __typeof__(sum) lanes[16] = {0};                                                           \
        size_t first = 0;                                                                          \
        for (; first + 16 <= (size_t)(n); first += 16)                                             \
            for (size_t lane = 0; lane < 16; lane++) {                                             \
                const size_t i = first + lane;                                                     \
                lanes[lane] += (term);                                                             \
            }                                                                                      \
        for (size_t i = first; i < (size_t)(n); i++) lanes[i - first] += (term);                   \
        for (int d = 8; d > 0; d /= 2)                                                             \
            for (int l = 0; l < d; l++) lanes[l] += lanes[l + d];                                  \
        sum = lanes[0];                                                                            \
    } while (0)

// Adds signal, noise and fourth powers: sums over n <= CHUNK elements from `at` on, of squares of
// x, of what encoding changed of x, and of the squares' squares, in double, because fp32 would lose
// those of small x. With one scale (stride 0) they are sums of (x scale)^2, else (stride 1) of x's
// own.
static void sqnr_sums(double *sums, const Encoder *e, size_t at, size_t n, const float *scale,
                      int stride) {
    const Dtype format = e->recipe->format;
    const stored_t *x = e->x + at;
    float signal, noise;
    double fourth;
#define SIGNAL (float_from_stored(x[i]) * (stride ? 1 : *scale))
#define SECOND (e->rest ? fp8_decode(e->rest[at + i], format) * split_unit(format) : 0)
#define VALUE  (fp8_decode(code_at(e->q, at + i, format), format) + SECOND)
#define NOISE  (SIGNAL - VALUE / (stride ? scale[i] : 1))
    STRIPED_SUM(signal, i, n, SIGNAL * SIGNAL);
    STRIPED_SUM(noise, i, n, NOISE * NOISE);
    STRIPED_SUM(fourth, i, n, (double)(SIGNAL * SIGNAL) * (SIGNAL * SIGNAL));
    sums[0] += signal;
    sums[1] += noise;
    sums[2] += fourth;
}

// IEEE half, round to nearest even, denormal results kept: F16C's rules.
INLINE uint16_t fp16_from_float(float f) {
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
    uint32_t a = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16,
             r = a + (112u << 23);
    r = a < (1u << 23) ? float_bits(bits_float(a + (113u << 23)) - bits_float(113u << 23))
                       : r; // 0 and denormals
    r = a >= (31u << 23) ? a | 0x7f800000 | (a > (31u << 23) ? 0x400000 : 0) : r;
    return bits_float(sign | r);
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
// The code of a magnitude, rounded up with the probability of what truncation takes away, so that
// its mean is the number itself: 32 random bits decide. As in fp8_round_bits(), a large one gives a
// code above max_code.
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

// ---- codes of elements, and what becomes of them
// The codes of n <= SPAN numbers. Inlined for each format, whose constants are then known. Numbers
// are widened and narrowed in loops of their own: compilers make vector code of these. Integer
// reductions only: order does not matter.
INLINE void codes_make(uint8_t *q, const float *x, const float *scale, size_t n,
                       const Fp8Format *f8, const int stochastic, uint64_t key, size_t at,
                       Fp8Stats *stats) {
    uint32_t code[SPAN], amax = 0, top = 0, flushed = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = float_bits(x[i] * scale[i]), a = u & 0x7fffffff,
                       b = float_bits(x[i]) & 0x7fffffff;
        uint32_t c = stochastic ? fp8_round_stochastic(a, f8, random_u32(key, (uint32_t)(at + i)))
                                : fp8_round_bits(a, f8);
        if (stochastic) c = MIN(c, f8->max_code);
        amax = MAX(amax, b);
        top = MAX(top, a);
        flushed += (c == 0) & (b != 0);
        code[i] = (c | ((u >> 24) & 0x80)) & 0xff;
    }
    for (size_t i = 0; i < n; i++) q[i] = (uint8_t)code[i];
    // A code above is wrong where a number saturates or is not finite. That is rare.
    for (size_t i = 0; top > f8->saturated_above && i < n; i++) {
        const float scaled = x[i] * scale[i];
        const uint32_t a = float_bits(scaled) & 0x7fffffff;
        stats->saturated += (a > f8->saturated_above) & (a <= 0x7f800000);
        stats->nonfinite += !float_is_finite(x[i]);
        if (a > f8->saturated_above) q[i] = (uint8_t)fp8_encode_bits(float_bits(scaled), f8);
    }
    stats->amax_bits = MAX(stats->amax_bits, amax);
    stats->flushed += flushed;
    stats->count += n;
}
static float tensor_amax(const stored_t *x, size_t n) {
    uint32_t amax = 0;
#pragma omp parallel for schedule(static) reduction(max : amax) if (n > CHUNK)
    for (size_t i = 0; i < n; i++)
        amax = MAX(amax, float_bits(float_from_stored(x[i])) & 0x7fffffff);
    return bits_float(amax);
}
// Encodes elements at .. at + n, each with a scale of its own.
static void elements_encode(const Encoder *e, size_t at, size_t n, const float *scale,
                            Fp8Stats *stats) {
    const Dtype format = e->recipe->format;
    const Fp8Format *f8 = fp8_format(format);
    float x[SPAN];
    uint8_t packed[SPAN], *code = format == DTYPE_E2M1 ? packed : e->q + at;
    for (size_t i = 0; i < n; i++) x[i] = float_from_stored(e->x[at + i]);
    if (e->recipe->stochastic) codes_make(code, x, scale, n, f8, 1, e->key, at, stats);
    else if (format == DTYPE_E4M3) codes_make(code, x, scale, n, &fp8_formats[0], 0, 0, at, stats);
    else if (format == DTYPE_E5M2) codes_make(code, x, scale, n, &fp8_formats[1], 0, 0, at, stats);
    else codes_make(code, x, scale, n, &fp8_formats[2], 0, 0, at, stats);
#define HALF(c) (((c)&7) | ((c) >> 4 & 8))
    for (size_t i = 0; format == DTYPE_E2M1 && i < n; i += 2)
        e->q[(at + i) / 2] = HALF(packed[i]) | HALF(packed[i + 1]) << 4;
    if (!e->rest) return;
    float up[SPAN]; // what rounding took away, in units of the second number
    Fp8Stats uncounted = {0};
    for (size_t i = 0; i < n; i++) x[i] = x[i] * scale[i] - fp8_value(code[i], f8);
    for (size_t i = 0; i < n; i++) up[i] = 1 / split_unit(format);
    codes_make(e->rest + at, x, up, n, f8, 0, 0, at, &uncounted);
}

// ---- block scaling: quantize() with a scale for each block
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
// Columns are taken SPAN at a time, so that a row's elements are neighbours in memory. A block that
// is wider than that has one scale, which all of its columns share.

// top[i]: bits of the largest |x| in rows r0 .. r1 of columns c0 + i, c0 + SPAN + i, .. below c1.
static void columns_amax(uint32_t *top, const stored_t *x, size_t columns, size_t r0, size_t r1,
                         size_t c0, size_t c1) {
    for (size_t row = r0; row < r1; row++)
        for (size_t c = c0; c < c1; c += SPAN) {
            const stored_t *from = x + row * columns + c;
            for (size_t i = 0; i < MIN(SPAN, c1 - c); i++)
                top[i] = MAX(top[i], float_bits(float_from_stored(from[i])) & 0x7fffffff);
        }
}
// Encodes these rows and columns, and adds sums for the SQNR, unless they are NULL.
static void columns_encode(const Encoder *e, size_t columns, size_t r0, size_t r1, size_t c0,
                           size_t c1, const float *scale, Fp8Stats *stats, double *sums) {
    for (size_t row = r0; row < r1; row++)
        for (size_t c = c0; c < c1; c += SPAN) {
            const size_t at = row * columns + c, n = MIN(SPAN, c1 - c);
            elements_encode(e, at, n, scale, stats);
            if (sums) sqnr_sums(sums, e, at, n, scale, 1);
        }
}

// Bytes of x [rows, columns] in blocks. K is the row index if along_rows, else the column index.
// inv: [blocks across K][blocks along it]. No block's scale depends on another step.
static void quantize_blocks(uint8_t *q, float *inv, const stored_t *x, size_t rows, size_t columns,
                            int along_rows, Fp8Scale *s, Record record) {
    const ScalingRecipe *r = &s->recipe;
    const Encoder e = {x, q, r->split ? q + rows * columns : NULL, r,
                       random_u64(s->random, s->micro_batches, along_rows)};
    const int two_levels = r->rounding == ROUNDING_TWO_LEVEL;
    const float tensor = scale_of_tensor(two_levels ? tensor_amax(x, rows * columns) : 0, r);
    // A block has `tall` rows and `wide` columns; there are `down` times `right` of them.
    const size_t tall = MIN(rows, (size_t)(along_rows ? r->along : r->across));
    const size_t wide = MIN(columns, (size_t)(along_rows ? r->across : r->along));
    const size_t down = ceil_div(rows, tall), right = ceil_div(columns, wide);
    const size_t inv_row = along_rows ? 1 : right, inv_column = along_rows ? down : 1;
    // A task takes blocks side by side: as many as fit into SPAN columns, or one.
    const size_t task_columns = wide < SPAN ? SPAN / wide * wide : wide;
    const size_t spans = ceil_div(columns, task_columns);
    double(*sums)[3] = record == RECORD_SQNR ? memory_allocate(down * spans * sizeof(*sums)) : NULL;
    Fp8Stats total = {0};
#pragma omp parallel for schedule(static) reduction(merge : total)
    for (size_t task = 0; task < down * spans; task++) {
        const size_t block_row = task / spans, r0 = block_row * tall, r1 = MIN(rows, r0 + tall);
        const size_t c0 = task % spans * task_columns, c1 = MIN(columns, c0 + task_columns);
        const size_t used = MIN(SPAN, c1 - c0), width = MIN(wide, SPAN);
        uint32_t top[SPAN] = {0};
        float scale[SPAN];
        columns_amax(top, x, columns, r0, r1, c0, c1);
        for (size_t i = 0; i < used; i += width) { // a block, or the only one
            const size_t end = MIN(used, i + width);
            uint32_t amax = 0;
            for (size_t l = i; l < end; l++) amax = MAX(amax, top[l]);
            float *at = inv + block_row * inv_row + (c0 + i) / wide * inv_column;
            const float own = scale_of_block(bits_float(amax), tensor, r, at);
            for (size_t l = i; l < end; l++) scale[l] = own;
        }
        columns_encode(&e, columns, r0, r1, c0, c1, scale, &total, sums ? sums[task] : NULL);
    }
    for (size_t i = 0; sums && i < down * spans; i++) {
        total.signal += sums[i][0];
        total.noise += sums[i][1];
        total.fourth += sums[i][2];
    }
    free(sums);
    s->scale_inv[along_rows] = 1 / tensor;
    if (record == RECORD_NONE) return;
    s->scale = scale_from_amax(bits_float(total.amax_bits), 1, r);
    stats_merge(&s->step, &total);
}

// out = the random Hadamard transform of x [rows, columns], 16 rows at a time:
//     out[i] = sum over j of H[i][j] sign[j] x[j] / 4,  H[i][j] = -1 to the number of bits of i & j
// Its matrix is orthogonal, so that a product that sums over the rows of two such tensors stays as
// it was. It spreads an outlier over 16 elements. fp32 sums in the order below, rounded once to the
// stored type. Up to 15 rows at the end stay as they are. signs: bit j.
#define HADAMARD 16
static void hadamard_transform(stored_t *out, const stored_t *x, size_t rows, size_t columns,
                               uint32_t signs) {
    PARALLEL(static) for (size_t row = 0; row < rows; row += HADAMARD) {
        const int whole = row + HADAMARD <= rows;
        const size_t count = MIN(HADAMARD, rows - row);
        for (size_t c = 0; c < columns; c += 16) {
            const size_t at = row * columns + c, n = MIN(16, columns - c);
            float v[HADAMARD][16] = {{0}};
            for (size_t i = 0; i < count; i++)
                for (size_t k = 0; k < n; k++)
                    v[i][k] =
                        float_from_stored(x[at + i * columns + k]) * (!whole           ? 1
                                                                      : signs >> i & 1 ? -0.25f
                                                                                       : 0.25f);
            for (size_t d = 1; whole && d < HADAMARD; d *= 2)
                for (size_t i = 0; i < HADAMARD; i++)
                    for (size_t k = 0; !(i & d) && k < 16; k++) {
                        const float low = v[i][k], high = v[i | d][k];
                        v[i][k] = low + high;
                        v[i | d][k] = low - high;
                    }
            for (size_t i = 0; i < count; i++)
                for (size_t k = 0; k < n; k++)
                    out[at + i * columns + k] = stored_from_float(v[i][k]);
        }
    }
}

// ---- functions of one number. Every operation is IEEE and in the order in which it is written, so
// that all compilers and vectors give the same bits.

// e^x, about 2 ulp. x = n ln2 + r, |r| <= ln2 / 2, Taylor to r^7; 2^n in two factors, so that tiny
// results flush to 0. Above 88.3 it saturates near 2.2e38. A NaN stays one. ROUNDER is 1.5 * 2^23:
// adding it rounds to a whole number, which stands in the low bits of the sum.
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
static double log_fixed_order(double x) {
    uint64_t u;
    memcpy(&u, &x, 8);
    int e = (int)(u >> 52) - 1023;
    u = (u & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &u, 8);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double s = (m - 1) / (m + 1), z = s * s, p = 0;
    for (int k = 21; k >= 1; k -= 2) p = p * z + 1.0 / k;
    return 2 * s * p + e * 0.6931471805599453;
}

// Shapes are row-major. B sequences of n positions are B * n rows. Sums over rows: in blocks of
// ROWS, then these in turn.
#define ROWS 32

// out[c] += sum over k of partial[k][c], [blocks][width]: column sums of many rows, whose blocks of
// ROWS rows made `partial`.
static void column_sums_finish(float *out, const float *partial, size_t blocks, size_t width) {
    PARALLEL(static) for (size_t begin = 0; begin < width; begin += 64) {
        const size_t n = MIN(width - begin, 64);
        float sums[64] = {0};
        for (size_t k = 0; k < blocks; k++)
            SIMD for (size_t c = 0; c < n; c++) sums[c] += partial[k * width + begin + c];
        SIMD for (size_t c = 0; c < n; c++) out[begin + c] += sums[c];
    }
}

// out[c] += sum over the rows of x [rows, width]; partial: [ceil(rows / ROWS)][width].
static void column_sums(float *out, const stored_t *x, float *partial, size_t rows, size_t width) {
    const size_t blocks = ceil_div(rows, ROWS);
    PARALLEL(static) for (size_t k = 0; k < blocks; k++) {
        float *sum = partial + k * width;
        memset(sum, 0, width * 4);
        for (size_t row = k * ROWS; row < MIN(rows, (k + 1) * ROWS); row++)
            SIMD for (size_t c = 0; c < width; c++) sum[c] += float_from_stored(x[row * width + c]);
    }
    column_sums_finish(out, partial, blocks, width);
}

// x[b, i] = wte[token] + wpe[pos + i], rounded once to the stored type.
static void encoder_forward(stored_t *x, const int *tokens, const float *wte, const float *wpe,
                            int B, int n, int pos, int C) {
    PARALLEL(static) for (int row = 0; row < B * n; row++) {
        const float *e = wte + (size_t)tokens[row] * C, *p = wpe + (size_t)(pos + row % n) * C;
        stored_t *to = x + (size_t)row * C;
        SIMD for (int c = 0; c < C; c++) to[c] = stored_from_float(e[c] + p[c]);
    }
}

// dwte[token] += dx, dwpe[position] += dx. A thread owns a range of channels and walks the rows in
// ascending order.
static void encoder_backward(float *dwte, float *dwpe, const stored_t *dx, const int *tokens, int B,
                             int T, int C) {
    PARALLEL(static)
    for (int begin = 0; begin < C; begin += 64)
        for (int row = 0; row < B * T; row++) {
            float *e = dwte + (size_t)tokens[row] * C, *p = dwpe + (size_t)(row % T) * C;
            const stored_t *d = dx + (size_t)row * C;
            SIMD for (int c = begin; c < MIN(begin + 64, C); c++) {
                e[c] += float_from_stored(d[c]);
                p[c] += float_from_stored(d[c]);
            }
        }
}

// residual = a + b, rounded to the stored type (b NULL: it is there, a is not read); normed =
// (residual - mean) * rstd * weight + bias. residual, a, b, normed: [rows, C]; mean, rstd: [rows].
// residual may be a.
static void residual_layernorm_forward(stored_t *residual, stored_t *normed, float *mean,
                                       float *rstd, const stored_t *a, const stored_t *b,
                                       const float *weight, const float *bias, size_t rows,
                                       size_t C) {
    PARALLEL(static) for (size_t row = 0; row < rows; row++) {
        stored_t *x = residual + row * C, *y = normed + row * C;
        const stored_t *p = a + row * C, *q = b ? b + row * C : NULL;
        float sum, squares;
        if (q)
            SIMD for (size_t c = 0; c < C; c++) x[c] =
                stored_from_float(float_from_stored(p[c]) + float_from_stored(q[c]));
        STRIPED_SUM(sum, c, C, float_from_stored(x[c])); // what is normalized is the stored value
        const float m = sum / (float)C;
        STRIPED_SUM(squares, c, C, (float_from_stored(x[c]) - m) * (float_from_stored(x[c]) - m));
        const float r = 1.0f / sqrtf(squares / (float)C + 1e-5f);
        SIMD for (size_t c = 0; c < C; c++) y[c] =
            stored_from_float((float_from_stored(x[c]) - m) * r * weight[c] + bias[c]);
        mean[row] = m;
        rstd[row] = r;
    }
}

// norm = (x - mean) rstd, dnorm = dout * weight
//   dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm));  dweight += sum dout norm;
//   dbias += sum dout
// partial: [2][ceil(rows / ROWS)][C], of dweight and of dbias.
static void layernorm_backward(stored_t *dresidual, float *dweight, float *dbias,
                               const stored_t *dout, const stored_t *x, const float *mean,
                               const float *rstd, const float *weight, float *partial, size_t rows,
                               size_t C) {
    const size_t blocks = ceil_div(rows, ROWS);
    PARALLEL(static) for (size_t k = 0; k < blocks; k++) {
        float *dw = partial + k * C, *db = partial + (blocks + k) * C, sum, sum_norm;
        memset(dw, 0, C * 4);
        memset(db, 0, C * 4);
        for (size_t row = k * ROWS; row < MIN(rows, (k + 1) * ROWS); row++) {
            const stored_t *dy = dout + row * C, *in = x + row * C;
            stored_t *dx = dresidual + row * C;
            const float m = mean[row], r = rstd[row];
#define NORM(c)  ((float_from_stored(in[c]) - m) * r)
#define DNORM(c) (float_from_stored(dy[c]) * weight[c])
            STRIPED_SUM(sum, c, C, DNORM(c));
            STRIPED_SUM(sum_norm, c, C, DNORM(c) * NORM(c));
            const float mean_dn = sum / (float)C, mean_dnn = sum_norm / (float)C;
            SIMD for (size_t c = 0; c < C; c++) {
                const float d = float_from_stored(dy[c]),
                            add = ((DNORM(c) - mean_dn) - NORM(c) * mean_dnn) * r;
                dw[c] += d * NORM(c);
                db[c] += d;
                dx[c] = stored_from_float(float_from_stored(dx[c]) + add);
            }
        }
    }
    column_sums_finish(dweight, partial, blocks, C);
    column_sums_finish(dbias, partial + blocks * C, blocks, C);
}

// tanh GELU: 0.5 x (1 + tanh u) = x s, s = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); no
// tanh is needed.
#define GELU_LINEAR 0.7978845608f
#define GELU_CUBIC  (0.044715f * 0.7978845608f)
INLINE float gelu_sigmoid(float x) {
    return 1 / (1 + exp_fixed_order(-2 * (x * (GELU_LINEAR + GELU_CUBIC * (x * x)))));
}
static void gelu_forward(stored_t *out, const stored_t *x, size_t n) {
    PARALLEL_SIMD for (size_t i = 0; i < n; i++) {
        const float v = float_from_stored(x[i]);
        out[i] = stored_from_float(v * gelu_sigmoid(v));
    }
}
// dx = dout (s + x s (1 - s) 2 u'), in place: d is dout, then dx.
static void gelu_backward(stored_t *d, const stored_t *x, size_t n) {
    PARALLEL_SIMD for (size_t i = 0; i < n; i++) {
        const float v = float_from_stored(x[i]), s = gelu_sigmoid(v),
                    du = GELU_LINEAR + 3 * GELU_CUBIC * (v * v);
        d[i] = stored_from_float(float_from_stored(d[i]) * (s + v * (s * (1 - s)) * (2 * du)));
    }
}

// to[i] = stored_from_float(from[i]), by the instruction that rounds so where there is one.
static void store_row(stored_t *to, const float *from, size_t n) {
    size_t i = 0;
#if defined(__AVX512BF16__) && (IS_FP8 || PRECISION == PRECISION_BF16)
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16),
                                                                 _mm512_loadu_ps(from + i)));
#endif
    for (; i < n; i++) to[i] = stored_from_float(from[i]);
}

// ---- packed products, which one thread computes for attention (section 15): an operand is packed
// once and multiplied many times. A packed number is a pair of bf16 or an fp32 one.
typedef uint32_t unit_t __attribute__((may_alias));
static int units_of(int count); // packed numbers that `count` elements along K take
static void pack_a(unit_t *to, Matrix a, size_t row, int rows, size_t k, int count); // left operand
static void pack_b(unit_t *to, Matrix b, size_t row, int rows, size_t k, int count); // right one
static void *workspace_thread(void);
// out[rows, columns] = left right^T over `units` packed numbers; right was packed with right_units.
// sums[rows, columns], if not NULL, holds the sums between calls, at first zeros; the last call
// writes out.
static void packed_product(const Output *out, const unit_t *left, const unit_t *right, int rows,
                           int columns, int units, int right_units, float *sums, int last);

// ---- attention. One task is one head of one sequence. The scores of a block of QROWS queries are
// held whole: exact maximum, keys summed in ascending order; so no bit depends on a tile. Forward,
// e^(s - max) is rounded to the stored type, multiplied by v and then divided by the row's sum (of
// unrounded terms, in 16 lanes). Backward, the scores are made again instead of kept, and it is the
// normalized probability and the score's gradient that are rounded before they are multiplied.
#define QROWS 64

// A thread's buffers in its slice of the workspace: type, name, count. Tp = T rounded up to 64, hp
// = head size likewise; p and ds are stored numbers, the rest fp32 or packed.
#define ATTENTION_BUFFERS(X)                                                                       \
    X(float, scores, QROWS *Tp)                                                                    \
    X(float, dp, QROWS *Tp)                                                                        \
    X(stored_t, p, QROWS *Tp)                                                                      \
    X(stored_t, ds, QROWS *Tp)                                                                     \
    X(float, o, QROWS *hp)                                                                         \
    X(float, dk, Tp *hp)                                                                           \
    X(float, dv, Tp *hp)                                                                           \
    X(unit_t, a,                                                                                   \
      (QROWS + 32) *                                                                               \
          (Tp +                                                                                    \
           hp)) /* packed left operand of any of the products: [QROWS, T or hs], [T, QROWS] */     \
    X(unit_t, k_scores, Tp *hp) /* packed k and v: [keys, hs] and [hs, keys] */                    \
    X(unit_t, v_scores, Tp *hp)                                                                    \
    X(unit_t, k_out, Tp *hp)                                                                       \
    X(unit_t, v_out, Tp *hp)                                                                       \
    X(unit_t, q_out, QROWS *hp) /* packed q and dout of a block: [hs, QROWS] */                    \
    X(unit_t, do_out, QROWS *hp)
#define BUFFER_FIELD(type, name, count) type *name;
#define BUFFER_CARVE(type, name, count)                                                            \
    w->name = (type *)((uintptr_t)base + at), at += round_up((count) * sizeof(type) + 64, 64);
typedef struct {
    ATTENTION_BUFFERS(BUFFER_FIELD)
} AttentionBuffers;
// Returns their bytes.
static size_t attention_buffers(AttentionBuffers *w, char *base, size_t T, size_t hs) {
    const size_t Tp = round_up(T, 64), hp = round_up(hs, 64);
    size_t at = 0;
    ATTENTION_BUFFERS(BUFFER_CARVE)
    return at;
}

static inline int32_t float_key(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7fffffff);
} // its own inverse

// s holds `valid` scores, then anything up to `keys`. Makes e^(s - max) of it, zeros beyond;
// returns the sum of the row, and in *top the max (a NaN may be lost there, but not in the sum).
static float softmax_row(float *s, int valid, int keys, float *top) {
    int32_t key = INT32_MIN; // of the largest: whole numbers that ascend as the floats do
    for (int j = 0; j < valid; j++) key = MAX(key, float_key(float_bits(s[j])));
    const float max = bits_float(float_key(key));
    float sum;
    SIMD for (int j = 0; j < valid; j++) s[j] = exp_fixed_order(s[j] - max);
    memset(s + valid, 0, (keys - valid) * 4);
    STRIPED_SUM(sum, j, valid, s[j]);
    *top = max;
    return sum;
}

// out[b, i] = softmax(q k^T / sqrt(hs)) v for n queries at positions pos .. pos+n, keys 0 .. pos+n
// (causal). qkv: [B, pos + n, 3C] (a KV cache where pos > 0; then B is 1). out: [B, n, C].
static void attention_forward(stored_t *out, const stored_t *qkv, int B, int n, int pos, int C,
                              int NH) {
    const int hs = C / NH, T = pos + n, hu = units_of(hs), Tu = units_of(T);
    const size_t stride = 3 * (size_t)C, Tp = round_up(T, 64);
    const float scale = 1.0f / sqrtf((float)hs);
    PARALLEL(dynamic) for (int task = 0; task < B * NH; task++) {
        const int b = task / NH, h = task % NH;
        AttentionBuffers w;
        attention_buffers(&w, workspace_thread(), T, hs);
        const stored_t *base = qkv + b * T * stride + h * hs;
        const Matrix q = matrix(base + pos * stride, STORED, stride, 1),
                     k = matrix(base + C, STORED, stride, 1);
        const Matrix v_t = matrix(base + 2 * C, STORED, 1, stride), p = matrix(w.p, STORED, Tp, 1);
        const Output scores = output(w.scores, DTYPE_FP32, Tp, scale, NULL, 0),
                     o = output(w.o, DTYPE_FP32, hs, 1, NULL, 0);
        pack_b(w.k_scores, k, 0, T, 0, hs);
        pack_b(w.v_out, v_t, 0, hs, 0, T);
        for (int i0 = 0; i0 < n; i0 += QROWS) {
            const int rows = MIN(n - i0, QROWS), keys = pos + i0 + rows;
            float inverse[QROWS], max;
            pack_a(w.a, q, i0, rows, 0, hs);
            packed_product(&scores, w.a, w.k_scores, rows, keys, hu, hu, NULL, 1);
            for (int i = 0; i < rows; i++) {
                float *s = w.scores + i * Tp;
                inverse[i] = 1.0f / softmax_row(s, pos + i0 + i + 1, keys, &max);
                store_row(w.p + i * Tp, s, keys);
            }
            pack_a(w.a, p, 0, rows, 0, keys);
            packed_product(&o, w.a, w.v_out, rows, hs, units_of(keys), Tu, NULL, 1);
            for (int i = 0; i < rows; i++) {
                stored_t *to = out + (size_t)(b * n + i0 + i) * C + h * hs;
                SIMD for (int c = 0; c < hs; c++) to[c] =
                    stored_from_float(w.o[i * hs + c] * inverse[i]);
            }
        }
    }
}

//   dv = p^T dout;  dp = dout v^T;  ds = p (dp - sum_j p dp)
//   dq = ds k / sqrt(hs);  dk = ds^T q / sqrt(hs)
// dqkv: [B, T, 3C]; dout: [B, T, C]. dk and dv are sums over all queries, kept as fp32 sums between
// blocks of queries.
static void attention_backward(stored_t *dqkv, const stored_t *dout, const stored_t *qkv, int B,
                               int T, int C, int NH) {
    const int hs = C / NH, hu = units_of(hs), Tu = units_of(T);
    const size_t stride = 3 * (size_t)C, Tp = round_up(T, 64);
    const float scale = 1.0f / sqrtf((float)hs);
    PARALLEL(dynamic) for (int task = 0; task < B * NH; task++) {
        const int b = task / NH, h = task % NH;
        AttentionBuffers w;
        attention_buffers(&w, workspace_thread(), T, hs);
        const stored_t *base = qkv + b * T * stride + h * hs,
                       *dbase = dout + (size_t)b * T * C + h * hs;
        stored_t *dqkv_base = dqkv + b * T * stride + h * hs;
        const Matrix q = matrix(base, STORED, stride, 1), q_t = matrix(base, STORED, 1, stride);
        const Matrix k = matrix(base + C, STORED, stride, 1),
                     k_t = matrix(base + C, STORED, 1, stride);
        const Matrix v = matrix(base + 2 * C, STORED, stride, 1), p_t = matrix(w.p, STORED, 1, Tp);
        const Matrix dO = matrix(dbase, STORED, C, 1), dO_t = matrix(dbase, STORED, 1, C);
        const Matrix ds = matrix(w.ds, STORED, Tp, 1), ds_t = matrix(w.ds, STORED, 1, Tp);
        const Output scores = output(w.scores, DTYPE_FP32, Tp, scale, NULL, 0),
                     dp = output(w.dp, DTYPE_FP32, Tp, 1, NULL, 0);
        const Output dk = output(dqkv_base + C, STORED, stride, scale, NULL, 0);
        const Output dv = output(dqkv_base + 2 * C, STORED, stride, 1, NULL, 0);
        pack_b(w.k_scores, k, 0, T, 0, hs);
        pack_b(w.v_scores, v, 0, T, 0, hs);
        pack_b(w.k_out, k_t, 0, hs, 0, T);
        memset(w.dk, 0, (size_t)T * hs * 4);
        memset(w.dv, 0, (size_t)T * hs * 4);
        for (int i0 = 0; i0 < T; i0 += QROWS) {
            const int rows = MIN(T - i0, QROWS), keys = i0 + rows, ru = units_of(rows);
            pack_a(w.a, q, i0, rows, 0, hs);
            packed_product(&scores, w.a, w.k_scores, rows, keys, hu, hu, NULL, 1);
            pack_a(w.a, dO, i0, rows, 0, hs);
            packed_product(&dp, w.a, w.v_scores, rows, keys, hu, hu, NULL, 1);
            for (int i = 0; i < rows; i++) {
                float *s = w.scores + i * Tp, *d = w.dp + i * Tp, max, dot;
                const float inverse = 1.0f / softmax_row(s, i0 + i + 1, keys, &max);
                SIMD for (int j = 0; j < keys; j++) s[j] *= inverse;
                STRIPED_SUM(dot, j, keys, s[j] * d[j]);
                SIMD for (int j = 0; j < keys; j++) d[j] = s[j] * (d[j] - dot);
                store_row(w.p + i * Tp, s, keys);
                store_row(w.ds + i * Tp, d, keys);
            }
            const Output dq = output(dqkv_base + i0 * stride, STORED, stride, scale, NULL, 0);
            pack_a(w.a, ds, 0, rows, 0, keys);
            packed_product(&dq, w.a, w.k_out, rows, hs, units_of(keys), Tu, NULL, 1);
            pack_b(w.q_out, q_t, 0, hs, i0, rows);
            pack_a(w.a, ds_t, 0, keys, 0, rows);
            packed_product(&dk, w.a, w.q_out, keys, hs, ru, ru, w.dk, keys == T);
            pack_b(w.do_out, dO_t, 0, hs, i0, rows);
            pack_a(w.a, p_t, 0, keys, 0, rows);
            packed_product(&dv, w.a, w.do_out, keys, hs, ru, ru, w.dv, keys == T);
        }
    }
}

// Softmax cross entropy of logits [rows, Vp], overwritten, of which V columns count. losses[row] =
// -ln p[target], 0 where target is -1. dlogits (may be NULL) = (p - onehot) * dscale, rounded to
// the stored type; its padding is exactly 0.
static void classifier(float *losses, stored_t *dlogits, float *logits, const int *targets,
                       int rows, int V, int Vp, float dscale) {
    PARALLEL(static) for (int row = 0; row < rows; row++) {
        float *z = logits + (size_t)row * Vp;
        stored_t *d = dlogits ? dlogits + (size_t)row * Vp : NULL;
        const int target = targets[row];
        losses[row] = 0;
        if (target < 0) {
            if (d) memset(d, 0, Vp * sizeof(stored_t));
            continue;
        }
        float max;
        const float at_target = z[target], sum = softmax_row(z, V, Vp, &max);
        losses[row] =
            sum != sum ? sum : (float)(log_fixed_order(sum) - ((double)at_target - (double)max));
        if (!d) continue;
        const float inverse = 1.0f / sum;
        SIMD for (int j = 0; j < Vp; j++) d[j] = stored_from_float(z[j] * inverse * dscale);
        d[target] = stored_from_float((z[target] * inverse - 1.0f) * dscale);
    }
}

// ==== 8. model ===================================================================================
// cos and sin of 2 pi u for u in [0, 1]: to the nearest quarter turn, then Taylor.
static void sincos_turns(double u, double *sine, double *cosine) {
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

// The model's memory is the host's own here; in train_gpt_fp8.cu it is the GPU's.
static void device_read(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void device_write(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void device_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

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
// Rows of logits that exist at once. Changing it changes bits: each slab is a sum of its own in
// dwte.
#define HEAD_ROWS 512
typedef enum {
    // The role of a tensor (section 1), which decides its type in this build:
    STORAGE_fp32,
    STORAGE_stored,
    STORAGE_operand,
    STORAGE_byte
} Storage;
typedef float fp32_t;
typedef uint8_t byte_t;
// --fp8-moments: elements of a tensor that share a scale. Every tensor begins a block.
#define MOMENT_BLOCK          128
#define MOMENT_BLOCKS(at, id) ((at) / MOMENT_BLOCK + (id)) // before element `at`, of tensor `id`
// Floats of m, and of v; codes take a byte each.
#define MOMENTS                                                                                    \
    (t * (g->fp8_moments ? ceil_div(g->own.end - g->own.begin, 4) : g->own.end - g->own.begin))
// --grad-comm: gradients of shards are sent and added as fp32, bf16 or E4M3, a piece at a time.
enum { COMM_FP32, COMM_BF16, COMM_FP8 };
#define PIECE      (1 << 17)                        // elements
#define TENSORS(g) ((size_t)NPARAM * (g)->config.L) // at most
// Bytes an element in a build of the given precision.
static size_t role_size(Storage role, int precision) {
    if (role == STORAGE_byte || (role == STORAGE_operand && precision == PRECISION_FP8)) return 1;
    return role == STORAGE_fp32 || precision == PRECISION_FP32 ? 4 : 2;
}

// Every tensor of the model: the one table for fields, memory plan and allocation. R = B T rows.
// Logits exist for a slab of min(R, HEAD_ROWS) rows at a time. KEPT: from forward to backward.
// REUSED: overwritten. A tensor of 0 elements is not allocated. Factors that are 0 or 1: t, the
// call trains; fp8, the FP8 build; copies, any but the fp32 build; head8, --fp8-head; BLOCKS(), the
// recipe has that operand in blocks.
// clang-format off
#define GPT_TENSORS(X) /* role, name, layers, elements of one, life */ \
    /* weights, gradients of a shard and, if there are several shards, their sum, and AdamW's \
       moments: of what this process holds, or owns */ \
    X(fp32, master, 1, g->held, OPTIMIZER) \
    X(fp32, grad, 1, t * g->param_count, OPTIMIZER) \
    X(fp32, grad_sum, 1, t * (g->shards > 1) * (g->own.reach - g->own.begin), OPTIMIZER) \
    X(fp32, m, 1, MOMENTS, OPTIMIZER) \
    X(fp32, v, 1, MOMENTS, OPTIMIZER) \
    /* with --fp8-moments, which are codes: scale_inv of their blocks */ \
    X(fp32, moment_inv, 2, t * g->fp8_moments * (g->own.end_block - g->own.block), OPTIMIZER) \
    /* --grad-comm bf16 or fp8: a shard's gradient as it is sent; and what others send */ \
    X(byte, wire, 1, t * (g->grad_comm > 0) * wire_width(g) * g->param_count, REUSED) \
    X(byte, incoming, world.size, t * (world.size > 1) * PIECE * 4, REUSED) \
    /* what products read, made of the master weights by gpt_refresh_weights() */ \
    X(operand, weights, L, copies * ROOM(OPERAND_W, 12 * C * C), REUSED) \
    /* [Vp, C] of wte, likewise; the fp32 build reads the master. head_q: its bytes */ \
    X(stored, head_w, 1, copies * Vp * C, REUSED) \
    X(byte, head_q, 1, head8 * Vp * C, REUSED) \
    /* for products that --bf16 names: weights, and the inputs that wgrad reads */ \
    X(stored, w16, w16_layers, 12 * C * C, REUSED) \
    X(stored, x16, x16_layers, 7 * R * C, KEPT) \
    /* block scaling: the weights' bytes for dgrad, [out, in] with blocks along `out` */ \
    X(byte, w_for_dgrad, L, BLOCKS(OPERAND_W) * ROOM(OPERAND_W, 12 * C * C), REUSED) \
    /* block scaling: scale_inv of the blocks of weights, of w_for_dgrad (the second half), */ \
    X(fp32, w_inv, 2 * L, BLOCKS(OPERAND_W) * SCALE_ROOM(OPERAND_W, 12 * C * C, 4), REUSED) \
    /* of the inputs that are kept for wgrad, */ \
    X(fp32, kept_inv, L, BLOCKS(OPERAND_X) * SCALE_ROOM(OPERAND_X, 7 * R * C, 4), KEPT) \
    /* of x_for_fprop, */ \
    X(fp32, x_inv, 1, BLOCKS(OPERAND_X) * (SCALE_ROOM(OPERAND_X, 4 * R * C, 4) + R), REUSED) \
    /* and of dy_bytes and dy_for_wgrad */ \
    X(fp32, dy_inv, 2, t * BLOCKS(OPERAND_DY) * (SCALE_ROOM(OPERAND_DY, 4 * R * C, 4) + R), \
        REUSED) \
    /* block scaling: [R, 4C] the bytes of an input for fprop */ \
    X(byte, x_for_fprop, 1, BLOCKS(OPERAND_X) * ROOM(OPERAND_X, R * 4 * C), REUSED) \
    /* block scaling: [R, 4C] the bytes of dy for wgrad */ \
    X(byte, dy_for_wgrad, 1, t * BLOCKS(OPERAND_DY) * ROOM(OPERAND_DY, R * 4 * C), REUSED) \
    /* [R, C] before attention, before the MLP, and at the end */ \
    X(stored, residual, 2 * L + 1, R * C, KEPT) \
    X(fp32, ln_mean, 2 * L + 1, R, KEPT) \
    X(fp32, ln_rstd, 2 * L + 1, R, KEPT) \
    /* ln1, att, ln2 and gelu: the inputs of the linear layers, for wgrad. kept_layers is 1 if the \
       backward pass makes them again */ \
    X(operand, ln1, kept_layers, ROOM(OPERAND_X, R * C), KEPT) \
    /* [R, 3C]; a KV cache while sampling */ \
    X(stored, qkv, L, R * 3 * C, KEPT) \
    X(operand, att, L, ROOM(OPERAND_X, R * C), KEPT) \
    X(operand, ln2, kept_layers, ROOM(OPERAND_X, R * C), KEPT) \
    /* [R, 4C] before the GELU */ \
    X(stored, fc, L, R * 4 * C, KEPT) \
    X(operand, gelu, kept_layers, ROOM(OPERAND_X, R * 4 * C), KEPT) \
    /* [R, C] the head's input. lnf_q: [slab, C] its bytes */ \
    X(stored, lnf, 1, R * C, KEPT) \
    X(byte, lnf_q, 1, head8 * slab * C, REUSED) \
    /* [R, 4C] the input of a linear layer, and a weight matrix, before they are quantized */ \
    X(stored, x, 1, fp8 * R * 4 * C, REUSED) \
    X(stored, rounded, 1, fp8 * 4 * C * C, REUSED) \
    /* [R, 4C] x or dy after a Hadamard transform; sums of several products */ \
    X(stored, mixed, 1, t * ANY(hadamard) * R * 4 * C, REUSED) \
    X(fp32, sums, 1, ANY(split) * R * 4 * C, REUSED) \
    /* [R, C] what is added to the residual stream */ \
    X(stored, y, 1, R * C, REUSED) \
    /* [slab, Vp] */ \
    X(fp32, logits, 1, slab * Vp, REUSED) \
    X(stored, dlogits, 1, t * slab * Vp, REUSED) \
    /* dy as FP8 */ \
    X(byte, dy_bytes, 1, fp8 * t * MAX(ROOM(OPERAND_DY, R * 4 * C), head8 * slab * Vp), REUSED) \
    /* [R, C] the gradient of the residual stream, from the end to the beginning. dwide: [R, 4C], \
       dnarrow: [R, C] gradients on the way */ \
    X(stored, dresidual, 1, t * R * C, REUSED) \
    X(stored, dwide, 1, t * R * 4 * C, REUSED) \
    X(stored, dnarrow, 1, t * R * C, REUSED) \
    /* column sums by blocks of rows */ \
    X(fp32, partial_sums, 1, t * ceil_div(R, ROWS) * 4 * C, REUSED) \
    /* [R] */ \
    X(fp32, losses, 1, R, REUSED)
// clang-format on
// 1 where this operand is in blocks.
#define BLOCKS(operand) (fp8 * (size_t)recipe_blocks(&g->recipes[operand]))
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
#define TENSOR_MAKE(role, name, layers, count, life)                                               \
    bytes = (layers) * (count)*role_size(STORAGE_##role, precision);                               \
    if (part) part[life] += bytes;                                                                 \
    else g->name = (role##_t *)(bytes ? memory_allocate(bytes) : NULL);
// Section 17, if there are several processes. `root` has the data, and all get them. sent[q] goes
// to process q, and got[q] comes from it. Whether `yes` is true in any; this waits for all.
#define WORLD_MAX 4096 // processes
typedef struct {
    void *data;
    size_t bytes;
} Message;
#ifdef USE_MPI
#include <mpi.h>
static void world_open(void);
static void world_bcast(void *data, size_t bytes, int root);
static void world_trade(const Message *sent, const Message *got);
static int world_any(int yes);
#else
#define world_open()                   (void)0
#define world_bcast(data, bytes, root) (void)(data), (void)(bytes), (void)(root)
#define world_trade(sent, got)         (void)0
#define world_any(yes)                 (yes)
#endif
// Each process has `each` bytes at its place among all of them, and all get all.
static void world_gather(void *data, size_t each) {
    for (int q = 0; q < world.size; q++) world_bcast((char *)data + q * each, each, q);
}
// The parameters whose moments and gradients' sum a process owns: it updates them. Blocks of
// moments, and matrices that are quantized whole, have one owner.
typedef struct {
    size_t begin, end;
    size_t reach;            // up to which it sums: whole chunks, for the norm
    size_t block, end_block; // its blocks of moments
} Slice;
typedef struct {
    // what was asked for, before allocation
    Config config;
    int B;         // sequences in a batch; activations have room for B * T positions
    int training;  // gradients and moments exist
    int shards;    // parts of a step's micro-batches, each with a gradient of its own
    int grad_comm; // COMM_FP32 ..
    int fp8_head;
    int recompute; // the backward pass makes outputs of layernorm and GELU again
    int fp8_moments;
    uint64_t seed; // of stochastic rounding
    ScalingRecipe recipes[NOPERAND];
    uint8_t bf16[LAYERS_MAX][NLIN];  // bit p: product p of that linear layer stays in bf16
    uint8_t split[LAYERS_MAX][NLIN]; // it reads both numbers of split operands

    ParamSpec params[NPARAM];
    size_t param_count, held; // all; those whose master weights this process holds
    Slice own;
    GPT_TENSORS(TENSOR_FIELD)
    int weights_ready; // what products read is made of the master weights as they are
    int first; // the step's first micro-batch: gradients of linear weights are written, not added

    // FP8 scales: [L][NLIN][NOPERAND], then the head's NOPERAND.
    Fp8Scale *scales;
    int scale_count;

    float loss_scale;        // a power of two; 1 unless the build or recipe needs it
    float good_steps;        // steps in a row without an overflow
    float logged_loss_scale; // of the last finished step, for scales.tsv and the table at the end
    int loss_scale_fixed;    // --loss-scale off or N: it never changes
    int *tokens, *targets;   // [B, T] of a micro-batch, where it trains
    // What is recorded of x and dy: NONE, but run_train() (section 14) sets more around gpt_step();
    // and of weights, which a validation may be the first to quantize after an update.
    Record record, record_weights;
} Gpt;

// Rows that activations have room for.
static size_t gpt_rows(const Gpt *g) { return (size_t)g->B * g->config.T; }
// The host's copies of the scales are the only ones here.
static void gpt_scales_read(Gpt *g) { (void)g; }
static void gpt_scales_write(Gpt *g) { (void)g; }

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

// Adds the bytes of every tensor to part[LIVES], in a build of the given precision (the plan also
// asks for another's); without it, allocates them.
static void tensors_make(Gpt *g, int precision, size_t *part) {
    const Config *c = &g->config;
    const size_t R = (size_t)g->B * c->T, C = c->C, L = c->L, Vp = c->Vp, slab = MIN(R, HEAD_ROWS),
                 t = g->training != 0;
    const size_t fp8 = precision == PRECISION_FP8, head8 = fp8 && g->fp8_head,
                 copies = precision != PRECISION_FP32;
    const size_t kept_layers = g->recompute ? 1 : L,
                 w16_layers = fp8 * layers_in_bf16(g, c->L, READ_W),
                 x16_layers = fp8 * t * layers_in_bf16(g, c->L, 1 << WGRAD);
    size_t bytes;
    g->param_count = param_specs(g->params, c);
    g->shards = MAX(g->shards, 1);
    slices_make(g);
    g->scale_count = IS_FP8 ? (c->L * NLIN + 1) * NOPERAND : 0;
    GPT_TENSORS(TENSOR_MAKE)
}

// Working memory of products and attention (section 15), in bytes; and its allocation.
static size_t workspace_bytes(const Gpt *g);
static void workspace_make(const Gpt *g);
#ifdef USE_MPI
#define PROGRAM_BYTES (14 << 20)
#else
#define PROGRAM_BYTES (3 << 20) // the program and its libraries themselves
#endif
typedef struct {
    // Bytes; kept_fp16: what the FP16 build keeps for the same model; alone: parameters and
    // optimizer of a process that owns all.
    size_t part[LIVES], kept_fp16, alone, total;
} MemoryPlan;
// With all that was taken before: the validation set, a baseline's log.
static MemoryPlan memory_plan(Gpt *g) {
    MemoryPlan plan = {0};
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
    plan.part[REUSED] += g->scale_count * sizeof(Fp8Scale) + workspace_bytes(g);
    plan.part[REUSED] += memory_taken + PROGRAM_BYTES;
    plan.total = plan.part[OPTIMIZER] + plan.part[KEPT] + plan.part[REUSED];
    return plan;
}

// The recipe of scale i. The last is the head's dy: gpt_forward() sets its scale, from the bound of
// dlogits, so that its amax is only logged.
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
static void gpt_allocate(Gpt *g) {
    tensors_make(g, PRECISION, NULL);
    g->scales = memory_allocate(g->scale_count * sizeof(Fp8Scale));
    for (int i = 0; i < g->scale_count; i++) {
        Fp8Scale *s = &g->scales[i];
        s->recipe = gpt_recipe(g, i);
        s->scale = s->logged_scale = s->recipe.rule == SCALING_CONSTANT ? s->recipe.number : 1;
        s->scale_inv[0] = s->scale_inv[1] = 1;
        s->random = random_u64(g->seed, NPARAM, i); // gpt_init() has the streams before
    }
    g->loss_scale = 1;
    if (g->training) {
        g->tokens = memory_allocate(gpt_rows(g) * sizeof(int));
        g->targets = memory_allocate(gpt_rows(g) * sizeof(int));
    }
    workspace_make(g);
}
// Layer l of parameter `id` in g->grad, or in g->master, if this process holds it.
static float *gpt_param(const Gpt *g, float *arena, int id, int l) {
    const ParamSpec *s = &g->params[id];
    const size_t at = s->offset + l * s->rows * s->cols;
    return !arena ? NULL : arena + (arena == g->master ? s->at + (at - s->from) : at);
}
static Fp8Scale *gpt_scale(const Gpt *g, int l, int linear, int which) { // l = L: the head
    return &g->scales[(l * NLIN + linear) * NOPERAND + which];
}

// An array of which each process has the part that it owns, so many bytes a parameter or a block of
// moments. slice_move() returns all of it, in g->grad, which is free between steps; or it takes
// this process's part from there.
static void slices_share(const Gpt *g, void *all, size_t per_param, size_t per_block) {
    for (int q = 0; q < world.size; q++) {
        const Slice s = slice_of(g, q);
        const size_t from = per_param * s.begin + per_block * s.block;
        world_bcast((char *)all + from, per_param * s.end + per_block * s.end_block - from, q);
    }
}
static void *slice_move(const Gpt *g, void *own, size_t per_param, size_t per_block, int take) {
    const Slice *s = &g->own;
    const size_t from = per_param * s->begin + per_block * s->block,
                 bytes = per_param * s->end + per_block * s->end_block - from;
    char *all = (char *)g->grad;
    if (world.size == 1 || per_param + per_block == 0) return own;
    if (bytes) device_copy(take ? own : all + from, take ? all + from : own, bytes);
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
// 0, layernorm 1. Element pairs come from one Box-Muller draw, addressed by tensor and index.
static void gpt_init(Gpt *g, uint64_t seed) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        const size_t from = s->from - s->offset, n = s->to - s->offset,
                     used = id == WTE ? g->config.V * s->cols : n;
        float *w = g->master + s->at;
        PARALLEL(static) for (size_t i = from; i < n; i += 2) {
            const double u = 1.0 - random_unit(random_u64(seed, id, i)),
                         turn = random_unit(random_u64(seed, id, i + 1));
            const double radius = sqrt(-2.0 * log_fixed_order(u)) * s->init_std;
            double part[2];
            sincos_turns(turn, &part[1], &part[0]);
            for (size_t k = i; k < MIN(i + 2, n); k++) // rows of the padded vocabulary are zero
                w[k - from] = k < used ? s->init_value + (float)(part[k - i] * radius) : 0;
        }
    }
    g->weights_ready = 0;
}

static void stored_from_floats(stored_t *out, const float *x, size_t n) {
    PARALLEL(static)
    for (size_t i = 0; i < n; i += CHUNK) store_row(out + i, x + i, MIN(n - i, CHUNK));
}
// What linear layer i of layer l keeps for wgrad.
static operand_t *gpt_kept(const Gpt *g, int l, int i) {
    operand_t *const kept[NLIN] = {g->ln1, g->att, g->ln2, g->gelu};
    const size_t layer = g->recompute && i != LIN_ATTPROJ ? 0 : l;
    const size_t n = gpt_rows(g) * g->params[linear_param[i]].cols;
    return kept[i] + operand_room(g, IS_FP8, OPERAND_X, layer * n);
}
// Where that layer's input is written: FP8 keeps bytes of it, so all layers share one place; the
// other builds keep it as it is.
static stored_t *gpt_input(const Gpt *g, int l, int i) {
    return IS_FP8 ? g->x : (stored_t *)gpt_kept(g, l, i);
}

// A transformer layer has 12 C^2 weights. Where those of its linear layers begin, in units of C^2:
static const size_t weights_start[NLIN] = {0, 3, 4, 8};
// The FP8 operands of linear layer i of layer l: where their bytes and scales lie.
static void gpt_linear_bytes(const Gpt *g, int l, int i, Linear *f) {
    const size_t C = g->config.C, CC = C * C, RC = gpt_rows(g) * C, start = weights_start[i] * CC;
    const size_t w_room = SCALE_ROOM(OPERAND_W, 12 * CC, 4),
                 w_at = operand_room(g, 1, OPERAND_W, l * 12 * CC + start);
    Operand *x = &f->operand[OPERAND_X], *w = &f->operand[OPERAND_W], *dy = &f->operand[OPERAND_DY];
    uint8_t *kept = (uint8_t *)gpt_kept(g, l, i);
    for (int o = 0; o < NOPERAND; o++) f->operand[o].scale = gpt_scale(g, l, i, o);
    f->fp8 = ~g->bf16[l][i] & (g->training ? ALL_PRODUCTS : 1 << FPROP);
    f->split = g->split[l][i];
    f->signs = random_u64(g->seed, NPARAM, UINT64_MAX);
    f->mixed = g->mixed;
    f->sums = g->sums;
    x->bytes[0] = g->x_for_fprop ? g->x_for_fprop : kept;
    x->bytes[1] = kept;
    w->bytes[0] = w->bytes[1] = (uint8_t *)g->weights + w_at;
    dy->bytes[0] = g->dy_bytes;
    dy->bytes[1] = g->dy_for_wgrad ? g->dy_for_wgrad : g->dy_bytes;
    if (g->x_for_fprop) {
        x->inv[0] = g->x_inv;
        // Inputs are C wide, fcproj's 4 C.
        x->inv[1] =
            g->kept_inv + l * SCALE_ROOM(OPERAND_X, 7 * RC, 4) + SCALE_ROOM(OPERAND_X, i * RC, i);
    }
    if (g->w_for_dgrad) {
        w->bytes[1] = g->w_for_dgrad + w_at;
        w->inv[0] = g->w_inv + 2 * l * w_room + SCALE_ROOM(OPERAND_W, start, i);
        w->inv[1] = w->inv[0] + w_room;
    }
    if (g->dy_for_wgrad) {
        dy->inv[0] = g->dy_inv;
        dy->inv[1] = g->dy_inv + SCALE_ROOM(OPERAND_DY, 4 * RC, 4) + gpt_rows(g);
    }
    if (g->bf16[l][i] & READ_W)
        operand_is(f, OPERAND_W, g->w16 + layers_in_bf16(g, l, READ_W) * 12 * CC + start);
    if (g->x16 && g->bf16[l][i] & 1 << WGRAD)
        x->stored[OVER_ROWS] = g->x16 + (layers_in_bf16(g, l, 1 << WGRAD) * 7 + i) * RC;
}
// One of the four linear layers of layer l.
static Linear gpt_linear(const Gpt *g, int l, int i) {
    const size_t CC = (size_t)g->config.C * g->config.C;
    const int id = linear_param[i]; // of the weight; its bias is next
    Linear f = {.in = g->params[id].cols, .out = g->params[id].rows, .first = g->first};
    f.bias = gpt_param(g, g->master, id + 1, l);
    f.dw = gpt_param(g, g->grad, id, l);
    f.dbias = gpt_param(g, g->grad, id + 1, l);
    f.operand[OPERAND_X].columns = f.operand[OPERAND_W].columns = f.in;
    f.operand[OPERAND_DY].columns = f.out;
    f.operand[OPERAND_X].stored[OVER_COLUMNS] = gpt_input(g, l, i);
    if (IS_FP8) {
        gpt_linear_bytes(g, l, i, &f);
        return f;
    }
    operand_is(&f, OPERAND_X, gpt_input(g, l, i));
    if (PRECISION == PRECISION_FP32)
        operand_is(&f, OPERAND_W, (stored_t *)gpt_param(g, g->master, id, l));
    else operand_is(&f, OPERAND_W, (stored_t *)(g->weights + (l * 12 + weights_start[i]) * CC));
    return f;
}

// The head, logits = lnf wte^T, for the rows of lnf from `row` on. FP8 with --fp8-head only.
static Linear gpt_head(const Gpt *g, size_t row) {
    Linear f = {.dw = g->grad, .in = g->config.C, .out = g->config.Vp}; // wte's are first
    f.first = g->first && row == 0;
    f.operand[OPERAND_X].columns = f.operand[OPERAND_W].columns = f.in;
    f.operand[OPERAND_DY].columns = f.out;
    operand_is(&f, OPERAND_X, g->lnf + row * f.in);
    operand_is(&f, OPERAND_W, PRECISION == PRECISION_FP32 ? (stored_t *)g->master : g->head_w);
    if (!g->head_q) return f;
    f.fp8 = g->training ? ALL_PRODUCTS : 1 << FPROP;
    uint8_t *const bytes[NOPERAND] = {g->lnf_q, g->head_q, g->dy_bytes};
    for (int o = 0; o < NOPERAND; o++) {
        f.operand[o].scale = gpt_scale(g, g->config.L, 0, o);
        f.operand[o].bytes[0] = f.operand[o].bytes[1] = bytes[o];
    }
    return f;
}

// The process that owns the weight of linear layer i of layer l and makes what products read of it;
// this goes to all others: in the FP8 build bytes, and the scale.
static int weight_owner(const Gpt *g, int l, int i) {
    const ParamSpec *s = &g->params[linear_param[i]];
    return slice_owner(g, s->offset + l * s->rows * s->cols);
}
static void weight_share(Gpt *g, int l, int i) {
    const int from = weight_owner(g, l, i);
    const Linear f = gpt_linear(g, l, i);
    const Operand *w = &f.operand[OPERAND_W];
    const size_t n = f.in * f.out, C = g->config.C;
    if (w->stored[0]) world_bcast((stored_t *)w->stored[0], n * sizeof(stored_t), from);
    if (!w->scale) return;
    const int ways = w->bytes[0] == w->bytes[1] ? 1 : 2;
    for (int way = 0; way < ways; way++) {
        world_bcast(w->bytes[way], operand_room(g, 1, OPERAND_W, n), from);
        if (w->inv[way]) world_bcast(w->inv[way], SCALE_ROOM(OPERAND_W, n, 1) * 4, from);
    }
    world_bcast(w->scale, sizeof(*w->scale), from);
}

// Makes the operand copies of the master weights, once after each update, when a forward pass first
// needs them. The scale is the one that checkpoints hold, so that a resumed run makes the same
// bytes. What is quantized is the weight rounded to the stored type.
static void gpt_refresh_weights(Gpt *g) {
    if (g->weights_ready) return;
    g->weights_ready = 1;
    if (PRECISION == PRECISION_FP32) return;
    const size_t C = g->config.C, head = g->config.Vp * C;
    const Record record = MAX(g->record_weights, RECORD_STATS);
    stored_from_floats(g->head_w, g->master, head);
    const Linear f = gpt_head(g, 0);
    operand_quantize(&f, OPERAND_W, g->head_w, f.out, OVER_COLUMNS, record);
    for (int l = 0; l < g->config.L; l++)
        for (int i = 0; i < NLIN; i++) {
            const Linear f = gpt_linear(g, l, i);
            stored_t *to = (stored_t *)f.operand[OPERAND_W].stored[OVER_COLUMNS];
            if (!to) to = g->rounded; // FP8: one matrix at a time
            if (weight_owner(g, l, i) != world.rank) continue;
            stored_from_floats(to, gpt_param(g, g->master, linear_param[i], l), f.in * f.out);
            operand_quantize(&f, OPERAND_W, to, f.out, OVER_COLUMNS, record);
        }
    for (int i = 0; world.size > 1 && i < g->config.L * NLIN; i++)
        weight_share(g, i / NLIN, i % NLIN);
}

// The layernorms are counted along the residual stream: 2l and 2l + 1 in layer l, before attention
// and before the MLP, and 2L at the end. The bias is the parameter after the weight.
static int layernorm_param(const Gpt *g, int norm) {
    return norm == 2 * g->config.L ? LNFW : norm % 2 ? LN2W : LN1W;
}

// residual[norm] = residual[norm - 1] + y, the output of the block between them (NULL: it is
// there); normed = layernorm of it.
static void gpt_layernorm_forward(Gpt *g, int norm, const stored_t *y, stored_t *normed,
                                  size_t rows) {
    const int id = layernorm_param(g, norm), l = norm / 2 % g->config.L;
    const size_t R = (size_t)g->B * g->config.T, C = g->config.C;
    stored_t *residual = g->residual + norm * R * C;
    residual_layernorm_forward(residual, normed, g->ln_mean + norm * R, g->ln_rstd + norm * R,
                               y ? residual - R * C : residual, y, gpt_param(g, g->master, id, l),
                               gpt_param(g, g->master, id + 1, l), rows, C);
}

static void gpt_linear_forward(Gpt *g, int l, int i, stored_t *y, size_t rows) {
    const Linear f = gpt_linear(g, l, i);
    linear_forward(&f, y, STORED, rows, g->record);
}
static void gpt_linear_backward(Gpt *g, int l, int i, stored_t *dx, const stored_t *dy,
                                size_t rows) {
    Linear f = gpt_linear(g, l, i);
    const int kept16 = IS_FP8 && !linear_in_fp8(&f, WGRAD);
    if (g->recompute && i != LIN_ATTPROJ && !kept16) { // its input again, of the same bits
        stored_t *x = gpt_input(g, l, i);
        if (i == LIN_FCPROJ) gelu_forward(x, g->fc + l * gpt_rows(g) * f.in, rows * f.in);
        else gpt_layernorm_forward(g, 2 * l + (i == LIN_FC), NULL, x, rows);
        operand_quantize(&f, OPERAND_X, x, rows, OVER_ROWS, RECORD_NONE);
    }
    operand_is(&f, OPERAND_DY, dy);
    linear_backward(&f, dx, g->partial_sums, rows, g->record);
}

// dresidual += the layernorm's backward of dnarrow.
static void gpt_layernorm_backward(Gpt *g, int norm, size_t rows) {
    const int id = layernorm_param(g, norm), l = norm / 2 % g->config.L;
    const size_t R = (size_t)g->B * g->config.T, C = g->config.C;
    layernorm_backward(g->dresidual, gpt_param(g, g->grad, id, l), gpt_param(g, g->grad, id + 1, l),
                       g->dnarrow, g->residual + norm * R * C, g->ln_mean + norm * R,
                       g->ln_rstd + norm * R, gpt_param(g, g->master, id, l), g->partial_sums, rows,
                       C);
}

// The transformer up to the last layernorm: tokens [B, n] at positions pos .. pos+n give lnf [B n,
// C]. pos > 0 (B = 1) continues a sequence whose keys and values lie in qkv. Rows beyond B n of
// every activation are left alone.
static void gpt_forward_blocks(Gpt *g, const int *tokens, int B, int n, int pos) {
    const Config *c = &g->config;
    const size_t C = c->C, R = (size_t)g->B * c->T, rows = (size_t)B * n;
    gpt_refresh_weights(g);
    encoder_forward(g->residual, tokens, g->master, gpt_param(g, g->master, WPE, 0), B, n, pos,
                    c->C);
    for (int l = 0; l < c->L; l++) {
        stored_t *qkv = g->qkv + l * R * 3 * C, *fc = g->fc + l * R * 4 * C;
        // The first layer's residual is the encoder's output.
        gpt_layernorm_forward(g, 2 * l, l ? g->y : NULL, gpt_input(g, l, LIN_QKV), rows);
        gpt_linear_forward(g, l, LIN_QKV, qkv + pos * 3 * C, rows);
        attention_forward(gpt_input(g, l, LIN_ATTPROJ), qkv, B, n, pos, c->C, c->NH);
        gpt_linear_forward(g, l, LIN_ATTPROJ, g->y, rows);
        gpt_layernorm_forward(g, 2 * l + 1, g->y, gpt_input(g, l, LIN_FC), rows);
        gpt_linear_forward(g, l, LIN_FC, fc, rows);
        gelu_forward(gpt_input(g, l, LIN_FCPROJ), fc, rows * 4 * C);
        gpt_linear_forward(g, l, LIN_FCPROJ, g->y, rows);
    }
    gpt_layernorm_forward(g, 2 * c->L, g->y, g->lnf, rows);
}

// logits [rows, Vp] = lnf wte^T for rows from `row` on.
static void head_forward(Gpt *g, float *logits, size_t row, size_t rows) {
    const Linear f = gpt_head(g, row);
    linear_forward(&f, logits, DTYPE_FP32, rows, g->record);
}

// Sum of the losses, in nats, of tokens [B, n] against targets [B, n] (-1: not counted). With
// grad_scale != 0 the head's backward pass runs slab by slab, so that logits never exist whole;
// grad_scale is d(objective) / d(loss of a token).
static double gpt_forward(Gpt *g, const int *tokens, const int *targets, int B, int n,
                          float grad_scale) {
    const size_t rows = (size_t)B * n;
    Fp8Scale *scale = gpt_head(g, 0).operand[OPERAND_DY].scale;
    stored_t *dlogits = grad_scale != 0 ? g->dlogits : NULL;
    gpt_forward_blocks(g, tokens, B, n, 0);
    if (scale && dlogits) { // dlogits are bounded by grad_scale, so their scale needs no amax
        scale->scale = 1;
        while (scale->scale * grad_scale * 2 <= fp8_max(scale->recipe.format)) scale->scale *= 2;
    }
    for (size_t row = 0; row < rows; row += HEAD_ROWS) {
        const size_t slab = MIN(rows - row, HEAD_ROWS);
        head_forward(g, g->logits, row, slab);
        classifier(g->losses + row, dlogits, g->logits, targets + row, slab, g->config.V,
                   g->config.Vp, grad_scale);
        if (!dlogits) continue;
        Linear f = gpt_head(g, row);
        operand_is(&f, OPERAND_DY, dlogits);
        linear_backward(&f, g->dnarrow + row * f.in, NULL, slab, g->record);
    }
    double sum = 0;
    for (size_t row = 0; row < rows; row++) sum += g->losses[row];
    return sum;
}

// The sum of the losses without gradients, and the logits [V] of the last of n tokens at positions
// pos .. pos+n.
static double gpt_loss(Gpt *g, const int *tokens, const int *targets, int B, int n) {
    return gpt_forward(g, tokens, targets, B, n, 0);
}
static void gpt_logits(Gpt *g, float *logits, const int *tokens, int n, int pos) {
    gpt_forward_blocks(g, tokens, 1, n, pos);
    head_forward(g, g->logits, n - 1, 1);
    memcpy(logits, g->logits, g->config.V * sizeof(float));
}

// Gradients of everything below the head, added to g->grad; those of the linear layers' weights are
// written where g->first is set. Runs after gpt_forward() with grad_scale != 0.
static void gpt_backward(Gpt *g, const int *tokens, int B, int n) {
    const Config *c = &g->config;
    const size_t C = c->C, R = (size_t)g->B * c->T, rows = (size_t)B * n;
    memset(g->dresidual, 0, rows * C * sizeof(stored_t));
    gpt_layernorm_backward(g, 2 * c->L, rows);
    for (int l = c->L - 1; l >= 0; l--) {
        gpt_linear_backward(g, l, LIN_FCPROJ, g->dwide, g->dresidual, rows);
        gelu_backward(g->dwide, g->fc + l * R * 4 * C, rows * 4 * C);
        gpt_linear_backward(g, l, LIN_FC, g->dnarrow, g->dwide, rows);
        gpt_layernorm_backward(g, 2 * l + 1, rows);
        gpt_linear_backward(g, l, LIN_ATTPROJ, g->dnarrow, g->dresidual, rows);
        attention_backward(g->dwide, g->dnarrow, g->qkv + l * R * 3 * C, B, n, c->C, c->NH);
        gpt_linear_backward(g, l, LIN_QKV, g->dnarrow, g->dwide, rows);
        gpt_layernorm_backward(g, 2 * l, rows);
    }
    encoder_backward(g->grad, gpt_param(g, g->grad, WPE, 0), g->dresidual, tokens, B, n, c->C);
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
static double power_int(double x, long n) { // x^n by squaring, n >= 0
    double r = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) r *= x;
    return r;
}

// From parameter `at` on: the gradient that AdamW reads, of the only shard or the sum of all.
static float *gradient_at(const Gpt *g, size_t at) {
    return g->grad_sum ? g->grad_sum + (at - g->own.begin) : g->grad + at;
}
// Norm of scale * gradients: squares summed in 16 lanes a chunk, chunks ascending in double. Each
// process sums the chunks that begin in its slice.
static double gradient_norm(const Gpt *g, float scale) {
    const size_t n = g->param_count, chunks = ceil_div(n, CHUNK);
    float *sums = memory_allocate(chunks * sizeof(float));
#define FIRST_CHUNK(q) ceil_div(slice_begin(g, q), CHUNK)
    const size_t from = FIRST_CHUNK(world.rank), to = FIRST_CHUNK(world.rank + 1);
    PARALLEL(static) for (size_t k = from; k < to; k++) {
        const float *x = gradient_at(g, k * CHUNK);
        STRIPED_SUM(sums[k], i, MIN(n - k * CHUNK, CHUNK), x[i] * scale * (x[i] * scale));
    }
    for (int q = 0; q < world.size; q++)
        world_bcast(sums + FIRST_CHUNK(q), (FIRST_CHUNK(q + 1) - FIRST_CHUNK(q)) * 4, q);
    double total = 0;
    for (size_t k = 0; k < chunks; k++) total += sums[k];
    free(sums);
    return sqrt(total);
}
typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
} AdamW;

// ---- moments in FP8 (FP8-LM, arXiv 2310.18313; COAT, arXiv 2410.19313)
// n elements of m (k: 0) or v (1) from `at` on, which are a block, as numbers: codes are decoded to
// x, fp32 moments are where they are.
INLINE float *moment_read(const Gpt *g, int k, float *x, size_t block, size_t at, size_t n) {
    float *moments = k ? g->v : g->m;
    at -= g->own.begin;
    const uint8_t *code = (const uint8_t *)moments + at;
    if (!g->fp8_moments) return moments + at;
    const float inv = g->moment_inv[2 * (block - g->own.block) + k];
    SIMD for (size_t i = 0; i < n; i++) x[i] = fp8_value(code[i], &fp8_formats[k]) * inv;
    return x;
}
// Back, by a scale that the block's own amax makes. Rounding is stochastic, by one random number
// for m and v of an element: to nearest, a v beside a constant amax would never decay, since 0.95 v
// is nearest to v. Where v became 0 and m did not, a step would be m / eps: no v > 0 becomes 0.
INLINE void moment_write(Gpt *g, int k, const float *x, size_t block, size_t at, size_t n,
                         uint64_t key) {
    uint8_t *code = (uint8_t *)(k ? g->v : g->m) + (at - g->own.begin);
    if (!g->fp8_moments) return;
    const ScalingRecipe r = {.format = DTYPE_E4M3 + k};
    float scales[MOMENT_BLOCK];
    Fp8Stats unused = {0};
    uint32_t amax = 0;
    PRAGMA(omp simd reduction(max : amax))
    for (size_t i = 0; i < n; i++) amax = MAX(amax, float_bits(x[i]) & 0x7fffffff);
    const float scale = scale_from_amax(bits_float(amax), 1, &r);
    g->moment_inv[2 * (block - g->own.block) + k] = 1 / scale;
    for (size_t i = 0; i < n; i++) scales[i] = scale;
    codes_make(code, x, scales, n, &fp8_formats[k], 1, key, at, &unused);
    for (size_t i = 0; k && i < n; i++)
        if (x[i] > 0) code[i] = MAX(code[i], 1);
}

// AdamW with decoupled weight decay (Loshchilov and Hutter 2019), on matrices only. t: this
// update's number, from 1.
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr (m / (1 - b1^t) / (sqrt(v / (1 -
//   b2^t)) + eps) + decay w)
// Each process updates its slice. Returns whether every weight of it is still finite.
static int adamw_update(Gpt *g, const AdamW *o, float unscale, long t) {
    uint32_t largest = 0; // bits of the largest |w|
    const float correct1 = 1.0 / (1.0 - power_int(o->beta1, t)),
                correct2 = 1.0 / (1.0 - power_int(o->beta2, t));
    const float lr = o->lr, b1 = o->beta1, b2 = o->beta2, eps = o->eps;
    const uint64_t key = random_u64(g->seed, 0xada3, t);
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        const size_t begin = MAX(s->offset, g->own.begin),
                     end = MIN(s->offset + s->layers * s->rows * s->cols, g->own.end);
        const float decay = s->decays ? o->weight_decay : 0;
        PRAGMA(omp parallel for schedule(static) reduction(max : largest))
        for (size_t at = begin; at < end; at += MOMENT_BLOCK) {
            const size_t n = MIN(end - at, MOMENT_BLOCK), block = MOMENT_BLOCKS(at, id);
            float own[2][MOMENT_BLOCK], *w = g->master + s->at + (at - s->from),
                                        *grad = gradient_at(g, at);
            float *m = moment_read(g, 0, own[0], block, at, n),
                  *v = moment_read(g, 1, own[1], block, at, n);
            PRAGMA(omp simd reduction(max : largest))
            for (size_t i = 0; i < n; i++) {
                const float d = grad[i] * unscale;
                m[i] = b1 * m[i] + (1 - b1) * d;
                v[i] = b2 * v[i] + (1 - b2) * (d * d);
                const float step = m[i] * correct1 / (sqrtf(v[i] * correct2) + eps);
                w[i] -= lr * (step + decay * w[i]);
                largest = MAX(largest, float_bits(w[i]) & 0x7fffffff);
            }
            moment_write(g, 0, m, block, at, n, key);
            moment_write(g, 1, v, block, at, n, key);
        }
    }
    g->weights_ready = 0;
    return largest < 0x7f800000;
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
// What a shard leaves in the scale of x or dy; behind them, its loss (as `signal`), and the seconds
// for which its process waited (`noise`).
typedef struct {
    Fp8Stats step;
    float scale;
} ShardScale;
static ShardScale *shard_scales(const Gpt *g, ShardScale *all, int shard) {
    const size_t rounds = ceil_div(g->shards, world.size);
    return all + (shard % world.size * rounds + shard / world.size) * (g->scale_count + 1);
}
static void shard_leave(const Gpt *g, ShardScale *to, double loss) {
    for (int i = 0; i < g->scale_count; i++) {
        Fp8Scale *s = &g->scales[i];
        if (i % NOPERAND == OPERAND_W) continue; // weights are made once a step
        to[i] = (ShardScale){s->step, s->scale};
        memset(&s->step, 0, sizeof(s->step));
    }
    to[g->scale_count].step.signal = loss;
}
// All processes get what all shards left. Returns the sum of the losses.
static double shards_merge(Gpt *g, ShardScale *all) {
    Fp8Stats sum = {0};
    shard_scales(g, all, world.rank)[g->scale_count].step.noise = world.waited;
    world_gather(all, ceil_div(g->shards, world.size) * (g->scale_count + 1) * sizeof(*all));
    for (int shard = 0; shard < g->shards; shard++) {
        const ShardScale *from = shard_scales(g, all, shard);
        for (int i = 0; i < g->scale_count; i++) {
            if (i % NOPERAND == OPERAND_W) continue;
            stats_merge(&g->scales[i].step, &from[i].step);
            g->scales[i].scale = from[i].scale;
        }
        stats_merge(&sum, &from[g->scale_count].step);
    }
    world.waited = sum.noise / world.size;
    return sum.signal;
}

// --grad-comm fp8, after FP8-LM (arXiv 2310.18313): each tensor of a shard's gradient is sent as
// E4M3 with one scale, a power of two, which its own amax makes; so nothing saturates. FP8-LM adds
// the bytes themselves, so that all shards need one scale, and room in it for their sum; here
// decoded numbers are added in fp32. Returns scale_inv. A value that is not finite makes all NaN.
static float gradient_quantize(uint8_t *q, const float *x, size_t n) {
    static const ScalingRecipe r = {.format = DTYPE_E4M3, .rounding = ROUNDING_POW2};
    uint32_t amax = 0;
    PRAGMA(omp parallel for simd schedule(static) reduction(max : amax))
    for (size_t i = 0; i < n; i++) amax = MAX(amax, float_bits(x[i]) & 0x7fffffff);
    const float scale = scale_from_amax(bits_float(amax), 1, &r);
    PARALLEL(static)
    for (size_t i = 0; i < n; i++)
        q[i] = fp8_encode_bits(float_bits(x[i] * scale), &fp8_formats[0]);
    return amax < 0x7f800000 ? 1 / scale : NAN;
}
// A tensor of g->grad by number, [NPARAM][L]: returns where it begins; *end: where it ends.
static size_t gradient_tensor(const Gpt *g, size_t i, size_t *end) {
    const size_t l = i % g->config.L;
    const ParamSpec *s = &g->params[i / g->config.L];
    const size_t n = l < s->layers ? s->rows * s->cols : 0, at = s->offset + l * n;
    *end = at + n;
    return at;
}
// The shard's gradient as it is sent; inv [NPARAM][L] gets the scale_inv of FP8 tensors.
static void gradient_encode(const Gpt *g, float *inv) {
    uint16_t *to = (uint16_t *)g->wire;
    if (g->grad_comm == COMM_BF16)
        PARALLEL_SIMD for (size_t i = 0; i < g->param_count; i++) to[i] =
            bf16_from_float(g->grad[i]);
    for (size_t i = 0, at, end; g->grad_comm == COMM_FP8 && i < TENSORS(g); i++) {
        at = gradient_tensor(g, i, &end);
        inv[i] = gradient_quantize(g->wire + at, g->grad + at, end - at);
    }
}
// Adds parameters at .. to of a shard's gradient, as sent, to the sum. first: it holds nothing yet.
static void gradient_add(const Gpt *g, const void *sent, const float *inv, size_t at, size_t to,
                         int first) {
#define ADD(begin, end, type, x)                                                                   \
    {                                                                                              \
        const type *from = (const type *)sent - at;                                                \
        PARALLEL_SIMD for (size_t i = begin; i < end; i++) sum[i] = first ? (x) : sum[i] + (x);    \
    }
    float *sum = gradient_at(g, at) - at;
    if (g->grad_comm == COMM_FP32) ADD(at, to, float, from[i])
    if (g->grad_comm == COMM_BF16) ADD(at, to, uint16_t, float_from_bf16(from[i]))
    for (size_t i = 0, begin, end; g->grad_comm == COMM_FP8 && i < TENSORS(g); i++) {
        const float scale_inv = inv[i];
        begin = MAX(gradient_tensor(g, i, &end), at);
        end = MIN(end, to);
        ADD(begin, end, uint8_t, fp8_value(from[i], &fp8_formats[0]) * scale_inv)
    }
}
// Every process gets the gradients of this round's shards for its slice, piece by piece, and adds
// them in the order of the shards.
static void shards_add(const Gpt *g, int round) {
    const int inside = MIN(world.size, g->shards - round * world.size), // processes with a shard
        mine = world.rank < inside, rank = world.rank;
    const size_t width = wire_width(g), tensors = TENSORS(g);
    char *out = (char *)(g->wire ? (void *)g->wire : g->grad);
    static Message sent[WORLD_MAX], got[WORLD_MAX];
    if (g->shards == 1 && !g->wire) return;
    float *inv = memory_allocate(world.size * tensors * sizeof(float));
    if (mine && g->wire) gradient_encode(g, inv + rank * tensors);
    (void)world_any(0);
    if (g->grad_comm == COMM_FP8) world_gather(inv, tensors * sizeof(float));
    for (size_t at = 0, more = 1; more; at += PIECE) {
        more = 0;
        for (int q = 0; q < world.size; q++) {
            const Slice s = slice_of(g, q);
            const size_t begin = MIN(s.begin + at, s.reach), end = MIN(begin + PIECE, s.reach);
            more |= end < s.reach;
            sent[q] = (Message){out + begin * width, mine * (end - begin) * width};
        }
        const size_t begin = MIN(g->own.begin + at, g->own.reach),
                     end = MIN(begin + PIECE, g->own.reach);
        for (int q = 0; q < world.size; q++)
            got[q] =
                (Message){g->incoming + q * PIECE * width, (q < inside) * (end - begin) * width};
        world_trade(sent, got);
        for (int q = 0; q < inside; q++)
            gradient_add(g, q == rank ? sent[q].data : got[q].data, inv + q * tensors, begin, end,
                         round == 0 && q == 0);
    }
    free(inv);
}
// After the update: every process gets the master weights of the tensors that all hold whole.
static void masters_share(const Gpt *g) {
    for (int id = 0; id < NPARAM; id++)
        for (int q = 0; q < world.size && param_is_whole(id); q++) {
            const ParamSpec *s = &g->params[id];
            const size_t from = MAX(slice_begin(g, q), s->from),
                         to = MIN(slice_begin(g, q + 1), s->to);
            if (from < to) world_bcast(g->master + s->at + (from - s->from), (to - from) * 4, q);
        }
}

static int floats_nonfinite(const float *x, size_t n);
// The forward and backward passes of a shard's micro-batches; returns its part of the loss. before:
// micro-batches before this step.
static double gpt_shard(Gpt *g, const Step *in, Run *run, int shard, uint64_t before) {
    const int each = in->micro_batches / g->shards;
    double loss = 0;
    // The other gradients, of wte and the linear layers' weights, are written by products.
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        if (id == WPE || !s->decays)
            memset(g->grad + s->offset, 0, s->layers * s->rows * s->cols * 4);
    }
    for (int i = 0; i < each && isfinite(loss); i++) {
        const long micro = (long)shard * each + i;
        run_batch(run, in->index * in->micro_batches + micro, g->tokens, g->targets);
        for (int k = 0; k < g->scale_count; k++) g->scales[k].micro_batches = before + micro;
        g->first = i == 0;
        loss += gpt_forward(g, g->tokens, g->targets, g->B, g->config.T,
                            g->loss_scale / (float)in->tokens) /
                in->tokens;
        gpt_backward(g, g->tokens, g->B, g->config.T);
    }
    g->first = 0;
    return loss;
}
// One optimizer step: micro-batches forward and backward, norm, scales, clipping, AdamW. A loss or
// gradient that is not finite ends the run before any weight changes. In FP16, while the loss scale
// is above 1, such a gradient skips the update and halves the loss scale instead.
static StepOutcome gpt_step(Gpt *g, const Step *in, Run *run) {
    const float loss_scale = g->loss_scale;
    const uint64_t before = g->scale_count ? g->scales->micro_batches : 0;
    StepOutcome r = {0};
    double loss = 0; // of this process's last shard
    const int rounds = ceil_div(g->shards, world.size);
    ShardScale *all =
        memory_allocate(rounds * world.size * (g->scale_count + 1) * sizeof(ShardScale));
    gpt_refresh_weights(g);
    for (int round = 0; round < rounds; round++) {
        const int shard = round * world.size + world.rank;
        if (shard < g->shards && isfinite(loss)) loss = gpt_shard(g, in, run, shard, before);
        if (shard < g->shards) shard_leave(g, shard_scales(g, all, shard), loss);
        shards_add(g, round);
    }
    r.loss = shards_merge(g, all);
    free(all);
    r.norm = gradient_norm(g, 1 / loss_scale);
    r.skipped = !isfinite(r.norm);
    if (!isfinite(r.loss)) r.nonfinite = "the loss is";
    else if (r.skipped && !(PRECISION == PRECISION_FP16 && loss_scale > 1))
        r.nonfinite = "the gradient is";
    // The run ends. If its last shard is sound, each is made again, up to where that began.
    for (int shard = world.rank; r.nonfinite && shard < g->shards && isfinite(loss) &&
                                 !floats_nonfinite(g->grad, g->param_count);
         shard += world.size)
        loss = gpt_shard(g, in, run, shard, before);
    if (r.nonfinite) return r;
    uint64_t cut = 0; // gradients that saturated: the loss scale is too high
    for (int i = 0; i < g->scale_count; i++) {
        g->scales[i].micro_batches = before + in->micro_batches;
        scale_advance(&g->scales[i]);
        if (i % NOPERAND == OPERAND_DY) cut += g->scales[i].logged.saturated;
    }
    if (!r.skipped) {
        const double clip =
            in->grad_clip > 0 && r.norm > in->grad_clip ? in->grad_clip / r.norm : 1;
        if (world_any(!adamw_update(g, &in->adamw, clip / loss_scale, in->update)))
            r.nonfinite = "weights after the update are";
        masters_share(g);
    }
    loss_scale_update(g, r.skipped || cut);
    return r;
}

#define BACKEND       "this CPU"
#define BACKEND_WAITS "waiting for the others of"
#define BACKEND_HELP  ""
#define BACKEND_LINES 0
#define BACKEND_OPTIONS(X)

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
// Operands are packed: decoded to 32-bit *units* and laid out as the kernel reads them, in *panels*
// of MR rows (a) or NR columns (b), [unit][row in panel]. A unit is a pair of bf16 numbers (k, k+1)
// for vdpbf16ps, or one fp32 number. A *chain* is the sum of one output element. Packing decodes
// FP8, so a transposed operand needs no transposed copy in memory.

// The bf16 values of the first 128 codes (bf16 holds all formats exactly), split into bytes for
// vpermi2b.
static uint8_t fp8_low[3][128], fp8_high[3][128];
static void fp8_tables_init(void) {
    for (int i = 0; i < 3 * 128; i++) {
        const uint32_t h = float_bits(fp8_value(i & 127, &fp8_formats[i >> 7])) >> 16;
        fp8_low[i >> 7][i & 127] = h & 0xff;
        fp8_high[i >> 7][i & 127] = h >> 8;
    }
}

// Decodes n FP8 codes to bf16.
static void decode_bf16(uint16_t *out, const uint8_t *codes, int n, Dtype d) {
    int i = 0;
#ifdef __AVX512VBMI__
    const int t = d - DTYPE_E4M3;
    // Low and high byte of the bf16 come from two tables of 128 entries, in which code 0 is 0; the
    // sign is the code's own top bit.
    const __m512i l0 = _mm512_loadu_si512(fp8_low[t]), l1 = _mm512_loadu_si512(fp8_low[t] + 64);
    const __m512i h0 = _mm512_loadu_si512(fp8_high[t]), h1 = _mm512_loadu_si512(fp8_high[t] + 64);
    const __m512i top = _mm512_set1_epi8((char)0x80);
    for (; i < n; i += 32) { // masked loads and stores, which can be slow, only for less than 32
        const __mmask32 valid = n - i < 32 ? ((__mmask32)1 << (n - i)) - 1 : ~(__mmask32)0;
        const void *from = codes + i;
        __m512i c = _mm512_cvtepu8_epi16(n - i < 32 ? _mm256_maskz_loadu_epi8(valid, from)
                                                    : _mm256_loadu_si256(from));
        __m512i low = _mm512_permutex2var_epi8(l0, c, l1),
                high = _mm512_permutex2var_epi8(h0, c, h1);
        // High | (c & 0x80).
        high = _mm512_slli_epi16(_mm512_ternarylogic_epi64(high, c, top, 0xf8), 8);
        if (n - i < 32) _mm512_mask_storeu_epi16(out + i, valid, _mm512_or_si512(low, high));
        else _mm512_storeu_si512(out + i, _mm512_or_si512(low, high));
    }
#endif
    for (; i < n; i++) out[i] = float_bits(fp8_decode(codes[i], d)) >> 16;
}

// How many elements are decoded at once across K, and units along it: a multiple of MR, NR, AMX_MR
// and of 16, AMX's units.
#define STRIP 192
// Decodes n <= STRIP FP8 codes to fp32.
static void decode_fp32(float *out, const uint8_t *codes, int n, Dtype d) {
#ifdef __AVX512VBMI__
    uint16_t half[STRIP];
    decode_bf16(half, codes, n, d);
    SIMD for (int i = 0; i < n; i++) out[i] = float_from_bf16(half[i]);
#else
    uint32_t wide[STRIP]; // widened first, or gcc makes code of half the speed
    for (int i = 0; i < n; i++) wide[i] = codes[i];
    if (d == DTYPE_E4M3)
        SIMD for (int i = 0; i < n; i++) out[i] = fp8_value(wide[i], &fp8_formats[0]);
    else if (d == DTYPE_E5M2)
        SIMD for (int i = 0; i < n; i++) out[i] = fp8_value(wide[i], &fp8_formats[1]);
    else SIMD for (int i = 0; i < n; i++) out[i] = fp8_value(wide[i], &fp8_formats[2]);
#endif
}

// A vector, and the tile of MR rows and NR columns that a kernel keeps in registers.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#ifdef __AVX512BF16__
#define ISA_NAME                  "AVX-512 BF16"
#define vector_fma_pairs(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#else
#define ISA_NAME "AVX-512"
#endif
#define LANES       16
#define vector_set1 _mm512_set1_ps
#define vector_fma  _mm512_fmadd_ps
#define MR          12 // 12 rows x 2 vectors: 24 accumulators, 2 vectors of b, 1 broadcast
#define NR          32
#elif defined(__AVX2__) && defined(__FMA__)
#define ISA_NAME    "AVX2 + FMA"
#define LANES       8
#define vector_set1 _mm256_set1_ps
#define vector_fma  _mm256_fmadd_ps
#elif defined(__ARM_NEON)
#define ISA_NAME            "NEON"
#define LANES               4
#define vector_set1         vdupq_n_f32
#define vector_fma(a, b, c) vfmaq_f32(c, a, b)
#else
#define ISA_NAME            "portable C"
#define LANES               1
#define vector_set1(x)      ((Vector){x})
#define vector_fma(a, b, c) ((Vector){fmaf((a)[0], (b)[0], (c)[0])})
#endif
#ifndef MR
#define MR 6
#define NR 16
#endif
#ifdef vector_fma_pairs
#define HAS_PAIRS (PRECISION == PRECISION_FP8 || PRECISION == PRECISION_BF16)
#else
#define HAS_PAIRS        0
#define vector_fma_pairs vector_fma // never run
#endif
#if HAS_PAIRS && (defined(__AMX_BF16__) || defined(__AMXBF16__))
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), may_alias));
// Columns of b that one task packs at most; a panel of a in L1 (AMX: in L2) meets them all.
#define NB (HAS_AMX ? 192 : 96)
// Units of K in one block: NB * KU * 4 bytes of packed b stay in L2.
#define KU     (HAS_AMX ? 1536 : 1024)
#define MC     1536 // rows of a packed at a time
#define AMX_MR 32   // rows of a in a panel for AMX: two of its tiles, each of 16 rows and 16 units
#define PANEL  MAX(MR, HAS_AMX *AMX_MR) // the most rows of a in a panel

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

// Whether units are pairs of bf16. The bits are the same. Which is faster depends on the CPU (a Zen
// 5 runs vdpbf16ps at twice the FLOPs of FMA, a Sapphire Rapids at half), so machine_init()
// measures it.
static int product_uses_pairs = 0;
INLINE int panel_rows(void) {
    return HAS_AMX && product_in_tiles && product_uses_pairs ? AMX_MR : MR;
}

// tile[MR][NR] += the chains over `units` of one panel of a and one of b; a fresh tile begins at
// zero. tile is in L1. Kernels are not inlined, and a fence keeps the loads of one unit from moving
// into another. Compilers that do either run out of registers, and spilled accumulators cost a
// quarter of the speed.
#define KERNEL     __attribute__((noinline)) static void
#define UNIT_FENCE __asm__ volatile("" : : : "memory")
#if defined(__x86_64__) && LANES > 1
#define IN_REGISTER(v) __asm__("" : "+v"(v)) // or gcc loads it again for every row
#define ROW_FENCE      (void)0
#else
#define IN_REGISTER(v) (void)0
#define ROW_FENCE      UNIT_FENCE // without it gcc loads six rows of a at once for NEON
#endif
#define EACH_ROW    UNROLL for (int i = 0; i < MR; i++)
#define EACH_VECTOR UNROLL for (int j = 0; j < NR / LANES; j++)
#if LANES > 1 || !defined(__SSE2__)
// A chain takes `group` units at a time: of these first number `from`, then those before it, down
// to 0.
INLINE void kernel_chain(int units, const unit_t *a, const unit_t *b, float *tile, int fresh,
                         const int pairs, const int group, const int from) {
    Vector c[MR][NR / LANES], v[NR / LANES], *t = (Vector *)tile;
    EACH_ROW EACH_VECTOR c[i][j] = vector_set1(0);
    // Not by memcpy, which would keep c in memory.
    if (!fresh) EACH_ROW EACH_VECTOR c[i][j] = t[i * (NR / LANES) + j];
    for (int u = 0; u < units; u += group, a += group * MR, b += group * NR)
        UNROLL for (int k = from; k >= 0; k--) {
            const float *rows = (const float *)a + k * MR, *line = (const float *)b + k * NR;
            UNIT_FENCE;
            UNROLL for (int j = 0; j < NR; j += 16) __builtin_prefetch(line + 8 * NR + j);
            EACH_VECTOR v[j] = ((const Vector *)line)[j];
            EACH_VECTOR IN_REGISTER(v[j]);
            EACH_ROW {
                ROW_FENCE;
                const Vector s = vector_set1(rows[i]);
                EACH_VECTOR c[i][j] =
                    pairs ? vector_fma_pairs(s, v[j], c[i][j]) : vector_fma(s, v[j], c[i][j]);
            }
        }
    EACH_ROW EACH_VECTOR t[i * (NR / LANES) + j] = c[i][j];
}
#else
// Without an FMA instruction. The product of two floats is exact in double. If the sum, rounded to
// double, is not halfway between two floats, rounding it to float is the same as rounding once.
// With 16-bit operands it never is by accident (53 >= 2 * 24 + 2 bits). Converting from memory,
// where the chains are, needs no shuffle; gcc has no intrinsic for it.
static inline __m128d float2_to_double(const void *p) {
    __m128d d;
    __asm__("cvtps2pd %1, %0" : "=x"(d) : "m"(*(const __m64 *)p));
    return d;
}
INLINE void kernel_chain(int units, const unit_t *a, const unit_t *b, float *tile, int fresh,
                         const int pairs, const int group, const int from) {
    const __m128i low29 = _mm_set1_epi64x(0x1fffffff), half = _mm_set1_epi64x(0x10000000);
    if (fresh) memset(tile, 0, MR * NR * 4);
    for (int u = 0; u < units; u += group, a += group * MR, b += group * NR)
        for (int k = from; !pairs && k >= 0; k--) {
            const float *line = (const float *)b + k * NR;
            __m128d v[NR / 2];
            UNROLL for (int j = 0; j < NR / 2; j++) v[j] = float2_to_double(line + j * 2);
            for (int i = 0; i < MR; i++) {
                const float s = bits_float(a[k * MR + i]);
                const __m128d twice = _mm_set1_pd(s);
                UNROLL for (int j = 0; j < NR; j += 8) {
                    float *c = tile + i * NR + j;
                    __m128d sum[4];
                    __m128i tie = _mm_setzero_si128();
                    UNROLL for (int l = 0; l < 4; l++) {
                        sum[l] = _mm_add_pd(_mm_mul_pd(twice, v[j / 2 + l]),
                                            float2_to_double(c + 2 * l));
                        tie = _mm_or_si128(
                            tie, _mm_cmpeq_epi32(_mm_and_si128((__m128i)sum[l], low29), half));
                    }
                    if (PRECISION == PRECISION_FP32 && (_mm_movemask_epi8(tie) & 0x0f0f))
                        for (int l = 0; l < 8; l++) c[l] = fmaf(s, line[j + l], c[l]);
                    else
                        UNROLL for (int l = 0; l < 4; l++)
                            _mm_storel_pi((__m64 *)(void *)(c + 2 * l), _mm_cvtpd_ps(sum[l]));
                }
            }
        }
}
#endif
KERNEL kernel_pairs(int units, const unit_t *a, const unit_t *b, float *tile, int fresh) {
    kernel_chain(units, a, b, tile, fresh, 1, 1, 0);
}
KERNEL kernel_fp32(int units, const unit_t *a, const unit_t *b, float *tile, int fresh) {
    kernel_chain(units, a, b, tile, fresh, 0, 2, 1);
}
KERNEL kernel_every_other(int units, const unit_t *a, const unit_t *b, float *tile, int fresh) {
    kernel_chain(units, a, b, tile, fresh, 0, 2, 0);
}
#if HAS_AMX
#include <sys/syscall.h>
// Sets the shape of a thread's eight tile registers, once: 16 rows of 64 bytes each.
static void amx_configure(void) {
    static __thread int configured;
    uint8_t shape[64] = {
        1}; // the palette; from 16 on bytes a row, two of shape each; from 48 on rows
    for (int i = 0; i < 8; i++) {
        shape[16 + 2 * i] = 64;
        shape[48 + i] = 16;
    }
    UNIT_FENCE; // gcc's intrinsic does not say that it reads all of it
    if (!configured) _tile_loadconfig(shape);
    configured = 1;
}
#define AMX_ZERO(t, to, line) _tile_zero(t)
#define EACH_AMX_TILE(move)                                                                        \
    move(0, tile, line);                                                                           \
    move(1, tile + 16, line);                                                                      \
    move(2, tile + 16 * NR, line);                                                                 \
    move(3, tile + 16 * NR + 16, line)
// tile[32][32] in four AMX tiles. The lines of b that come next are brought from L2 into L1.
#define AMX_PREFETCH(begin)                                                                        \
    UNROLL for (int i = 0; i < 128; i += 16) __builtin_prefetch(b + 16 * NR + begin + i)
KERNEL kernel_amx(int units, const unit_t *a, const unit_t *b, float *tile, int fresh) {
    const long line = NR * 4;
    amx_configure();
    UNIT_FENCE;
    EACH_AMX_TILE(AMX_ZERO);
    if (!fresh) { EACH_AMX_TILE(_tile_loadd); }
    for (int u = 0; u < units; u += 16, a += 16 * AMX_MR, b += 16 * NR) {
        _tile_loadd(6, b, line);
        _tile_loadd(7, b + 16, line);
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + 256, 64);
        AMX_PREFETCH(0);
        _tile_dpbf16ps(0, 4, 6);
        AMX_PREFETCH(128);
        _tile_dpbf16ps(1, 4, 7);
        AMX_PREFETCH(256);
        _tile_dpbf16ps(2, 5, 6);
        AMX_PREFETCH(384);
        _tile_dpbf16ps(3, 5, 7);
    }
    EACH_AMX_TILE(_tile_stored);
    UNIT_FENCE;
}
#define AMX_PERMITTED()                                                                            \
    (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0)
#else
#define kernel_amx      kernel_pairs // never run
#define AMX_PERMITTED() 0
#endif
static void kernel(int units, const unit_t *a, const unit_t *b, float *tile, int fresh) {
    if (product_uses_pairs && product_in_tiles) kernel_amx(units, a, b, tile, fresh);
    else if (product_uses_pairs) kernel_pairs(units, a, b, tile, fresh);
    else if (!product_in_tiles) kernel_fp32(units, a, b, tile, fresh);
    else {
        if (fresh) memset(tile, 0, MR * NR * 4);
        for (; units > 0; units -= 32, a += 32 * MR, b += 32 * NR) {
            float sums[2][MR * NR] __attribute__((aligned(64)));
            kernel_every_other(32, a, b, sums[0], 1);
            kernel_every_other(32, a + MR, b + NR, sums[1], 1);
            SIMD for (int i = 0; i < MR * NR; i++) tile[i] += sums[0][i] + sums[1][i];
        }
    }
}

// ---- packing
// A byte for each of n E2M1 codes, and one more if n is odd.
__attribute__((noinline)) static void codes_unpack(uint8_t *restrict codes,
                                                   const uint8_t *restrict pairs, int n) {
    for (int i = 0; i < (n + 1) / 2; i++) {
        codes[2 * i] = (pairs[i] & 7) | (pairs[i] & 8) << 4;
        codes[2 * i + 1] = (pairs[i] >> 4 & 7) | (pairs[i] & 0x80);
    }
}
// Decodes n consecutive elements, from (i, k) on along K or across it, to what the kernel reads:
// bf16 (pairs) or fp32. FP8 becomes fp32 for n <= STRIP only.
static void decode_row(void *out, const Matrix *s, size_t i, size_t k, int n) {
    const size_t at = i * s->row_stride + k * s->k_stride;
    const void *from = (const char *)s->data + at * dtype_size[s->dtype];
    uint8_t codes[2 * STRIP];
    if (s->dtype == DTYPE_E2M1) { // a byte for each code first; at is even
        codes_unpack(codes, (const uint8_t *)s->data + at / 2, n);
        from = codes;
    }
    if (s->dtype == (product_uses_pairs ? DTYPE_BF16 : DTYPE_FP32))
        memcpy(out, from, n * dtype_size[s->dtype]);
    else if (product_uses_pairs) decode_bf16(out, from, n, s->dtype);
    else if (dtype_size[s->dtype] == 1) decode_fp32(out, from, n, s->dtype);
    else
        SIMD for (int j = 0; j < n; j++)((float *)out)[j] =
            float_from_stored(((const stored_t *)from)[j]);
    if (!s->inv) return;
    float factor[2 * STRIP]; // of each element
    const int goes_along = s->k_stride == 1;
    const size_t block = goes_along ? s->along : s->across, start = goes_along ? k : i;
    const float *inv = s->inv + (goes_along ? i / s->across * s->inv_stride : k / s->along);
    const size_t step = goes_along ? 1 : s->inv_stride;
    if (block == 1)
        for (int j = 0; j < n; j++) factor[j] = inv[(start + j) * step];
    else
        for (int j = 0, run; j < n; j += run) { // elements of one block
            run = MIN((size_t)(n - j), block - (start + j) % block);
            for (int x = j; x < j + run; x++) factor[x] = inv[(start + j) / block * step];
        }
    float *floats = (float *)out;
    uint16_t *halves = (uint16_t *)out;
    if (product_uses_pairs)
        SIMD for (int j = 0; j < n; j++) halves[j] =
            float_bits(float_from_bf16(halves[j]) * factor[j]) >> 16;
    else SIMD for (int j = 0; j < n; j++) floats[j] *= factor[j];
}

// How many units nk elements of K take, padded with zeros as the order of the sum demands.
static int units_of(int nk) {
    return round_up(nk, product_in_tiles ? 32 : 2) / (product_uses_pairs ? 2 : 1);
}

// to[c * to_stride + r] = from[r * from_stride + c]
INLINE void units_transpose(unit_t *to, size_t to_stride, const unit_t *from, size_t from_stride,
                            int rows, int columns) {
    int c = 0;
#if defined(__SSE2__)
    for (; c + 4 <= columns; c += 4)
        for (int i = 0; i < rows; i += 4) { // 4 x 4 blocks; the last may overlap the one before
            const int r = MIN(i, rows - 4);
            const float *f = (const float *)from + r * from_stride + c;
            float *t = (float *)to + c * to_stride + r;
            __m128 r0 = _mm_loadu_ps(f), r1 = _mm_loadu_ps(f + from_stride);
            __m128 r2 = _mm_loadu_ps(f + 2 * from_stride), r3 = _mm_loadu_ps(f + 3 * from_stride);
            _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
            _mm_storeu_ps(t, r0);
            _mm_storeu_ps(t + to_stride, r1);
            _mm_storeu_ps(t + 2 * to_stride, r2);
            _mm_storeu_ps(t + 3 * to_stride, r3);
        }
#endif
    for (; c < columns; c++)
        for (int r = 0; r < rows; r++) to[c * to_stride + r] = from[r * from_stride + c];
}

// Packs rows i0 .. i0+ni and elements k0 .. k0+nk of s into panels of `width` rows. Rows after ni
// are zeros. dst: [ceil(ni / width)][units][width]; for the left operand of AMX (by_row)
// [ceil(ni / width)][units / 16][width][16].
INLINE void pack_width(unit_t *dst, const Matrix *s, size_t i0, int ni, size_t k0, int nk,
                       const int width, const int by_row) {
    const int units = units_of(nk), per_unit = product_uses_pairs ? 2 : 1;
    unit_t rows[MAX(MR, NR) * STRIP] __attribute__((aligned(64)));
    if (s->k_stride == 1) { // along K: decode a piece of each row, then turn it
        for (int p = 0; p < ni; p += width, dst += units * width) {
            const int n = MIN(ni - p, width);
            for (int u0 = 0; u0 < units; u0 += STRIP) {
                const int nu = MIN(units - u0, STRIP), k = u0 * per_unit,
                          len = MIN(nk - k, nu * per_unit);
                if (n < width || len < nu * per_unit) memset(rows, 0, sizeof(rows));
                for (int i = 0; i < n; i++)
                    decode_row(rows + i * STRIP, s, i0 + p + i, k0 + k, len);
                unit_t *to = dst + u0 * width;
                if (!by_row) units_transpose(to, width, rows, STRIP, width, nu);
                else
                    for (int u = 0; u < nu; u += 16)
                        for (int i = 0; i < width; i++)
                            memcpy(to + u * width + i * 16, rows + i * STRIP + u, 64);
            }
        }
        return;
    }
    // Across K: decode rows k and k+1 of the source, STRIP elements at a time; then interleave
    // (pairs) or copy (fp32).
    for (int j = 0; j < ni; j += STRIP) {
        const int n = MIN(ni - j, STRIP), panels = (n + width - 1) / width;
        uint16_t halves[2][2 * STRIP] = {{0}}; // room for 4 n bytes
        memset(rows, 0, sizeof(rows));
        for (int u = 0; u < units; u++) {
            unit_t *line = rows + (by_row ? u % 16 * STRIP : 0); // one unit of every panel
            for (int h = 0; h < per_unit; h++) {
                const int k = u * per_unit + h;
                void *to = product_uses_pairs ? (void *)halves[h] : line;
                if (k < nk) decode_row(to, s, i0 + j, k0 + k, n);
                else memset(to, 0, 4 * n);
                const char *later = (const char *)s->data + // hardware does not
                                    ((k0 + k + 32) * s->k_stride + i0 + j) * dtype_size[s->dtype];
                for (int x = 0; x < n * (int)dtype_size[s->dtype]; x += 64)
                    __builtin_prefetch(later + x);
            }
            for (int i = 0; product_uses_pairs && i < panels * width; i++)
                line[i] = halves[0][i] | (uint32_t)halves[1][i] << 16;
            for (int p = 0; p < panels; p++) {
                unit_t *to = dst + (p * units + u) * width;
                if (!by_row) memcpy(to, line + p * width, width * 4);
                else if (u % 16 == 15)
                    units_transpose(to - 15 * width, 16, rows + p * width, STRIP, 16, width);
            }
        }
        dst += panels * units * width;
    }
}
static void pack_a(unit_t *dst, Matrix s, size_t i0, int ni, size_t k0, int nk) {
    if (panel_rows() == AMX_MR) pack_width(dst, &s, i0, ni, k0, nk, AMX_MR, 1);
    else pack_width(dst, &s, i0, ni, k0, nk, MR, 0);
}
static void pack_b(unit_t *dst, Matrix s, size_t i0, int ni, size_t k0, int nk) {
    pack_width(dst, &s, i0, ni, k0, nk, NR, 0);
}

// ---- the product of packed panels
// Makes output elements, from (m, n) on, of rows x cols of a finished tile, which is overwritten.
static void epilogue(const Output *out, size_t m, size_t n, float *tile, int rows, int cols) {
    const int is_fp32 = out->dtype == DTYPE_FP32;
    const float factor = out->factor;
    for (int i = 0; i < rows; i++, tile += NR) {
        const size_t at = (m + i) * out->row_stride + n;
        float *floats = is_fp32 ? (float *)out->data + at : tile;
        const float *add = out->bias ? out->bias + n : out->accumulate ? floats : NULL;
        if (add) SIMD for (int j = 0; j < cols; j++) floats[j] = fmaf(tile[j], factor, add[j]);
        else SIMD for (int j = 0; j < cols; j++) floats[j] = tile[j] * factor;
        if (!is_fp32) store_row((stored_t *)out->data + at, tile, cols);
    }
}

// Copies rows x cols floats between the tile and memory.
static void tile_copy(float *to, size_t to_stride, const float *from, size_t from_stride, int rows,
                      int cols) {
    for (int r = 0; r < rows; r++, to += to_stride, from += from_stride)
        if (cols == NR) memcpy(to, from, NR * 4); // whole lines, the usual case, need no loop
        else memcpy(to, from, cols * 4);
}

// Multiplies packed a (m rows) by packed b (n columns), over `units` of the b_units units that b
// was packed with. partial [m][partial_stride] holds chains that several calls make: it is read
// unless `first`, written unless `last`.
static void product_panels(const Output *out, size_t m0, size_t n0, const unit_t *a,
                           const unit_t *b, int m, int n, int units, int b_units, float *partial,
                           size_t partial_stride, int first, int last) {
    float tile[PANEL * NR] __attribute__((aligned(64))) = {0};
    const int panel = panel_rows();
    for (int i = 0; i < m; i += panel, a += units * panel)
        for (int j = 0; j < n; j += NR) {
            const int rows = MIN(m - i, panel), cols = MIN(n - j, NR);
            const size_t at = (m0 + i) * partial_stride + n0 + j;
            if (!first) tile_copy(tile, NR, partial + at, partial_stride, rows, cols);
            if (last) { // the output's lines come while the kernel runs
                const size_t size = dtype_size[out->dtype], line = out->row_stride * size;
                const char *to = (const char *)out->data + (m0 + i) * line + (n0 + j) * size;
                for (int r = 0; r < rows; r++, to += line)
                    for (size_t x = 0; x < NR * size; x += 64) __builtin_prefetch(to + x, 1);
            }
            kernel(units, a, b + (size_t)j * b_units, tile, first);
            if (last) epilogue(out, m0 + i, n0 + j, tile, rows, cols);
            else tile_copy(partial + at, partial_stride, tile, NR, rows, cols);
        }
}

// Working memory of the products and of attention, made once by workspace_init().
static struct {
    int threads;
    unit_t *packed_a;     // [MC rounded up to MR][KU], shared by all threads
    float *partial;       // raw chains of a product whose K takes several blocks, [m][n]
    size_t partial_count; // its size in floats
    char *thread;         // a slice for each thread: packed b of a product, or attention's buffers
    size_t thread_bytes;
} workspace;
static void *workspace_thread(void) {
    return workspace.thread + omp_get_thread_num() * workspace.thread_bytes;
}

// out[M, N] from a[M, K] and b[N, K]. A task is a block of up to NB columns of b and a range of
// rows of a.
static void matmul_packed(Output out, Matrix a, Matrix b, size_t M, size_t N, size_t K) {
    out.factor *= a.scale_inv * b.scale_inv;
    const size_t blocks = ceil_div(K, product_uses_pairs ? 2 * KU : KU);
    const size_t step = round_up(ceil_div(K, blocks), 32); // K in equal blocks
    // Between blocks of K the chains lie in the output itself, if that is fp32 and holds nothing
    // else.
    const int in_place = out.dtype == DTYPE_FP32 && !out.accumulate;
    float *partial = blocks == 1 ? NULL : in_place ? out.data : workspace.partial;
    const size_t partial_stride = in_place ? out.row_stride : N;
    EXPECT(blocks == 1 || in_place || M * N <= workspace.partial_count,
           "matmul needs more workspace than was planned");
    const size_t width = MIN(NB, round_up(ceil_div(N, 3u * workspace.threads), NR)),
                 columns = ceil_div(N, width);
    for (size_t m0 = 0; m0 < M; m0 += MC) {
        const size_t rows = MIN(M - m0, MC), panel = panel_rows(), panels = ceil_div(rows, panel);
        const size_t share = round_up(ceil_div(rows, workspace.threads), panel); // of one thread
        // Parts of the rows, so that every thread gets several tasks.
        const size_t splits = MAX(MIN(panels / 8, ceil_div(3u * workspace.threads, columns)), 1);
#pragma omp parallel
        for (size_t k0 = 0; k0 < K; k0 += step) {
            const int nk = MIN(K - k0, step), units = units_of(nk);
#pragma omp for schedule(static)
            for (size_t i = 0; i < rows; i += share)
                pack_a(workspace.packed_a + i * units, a, m0 + i, MIN(rows - i, share), k0, nk);
#pragma omp for schedule(dynamic)
            for (size_t task = 0; task < columns * splits; task++) {
                unit_t *packed_b = workspace_thread();
                const size_t n0 = task % columns * width, n = MIN(N - n0, width),
                             part = task / columns;
                const size_t i0 = panels * part / splits * panel,
                             i1 = MIN(panels * (part + 1) / splits * panel, rows);
                pack_b(packed_b, b, n0, n, k0, nk);
                product_panels(&out, m0 + i0, n0, workspace.packed_a + i0 * units, packed_b,
                               i1 - i0, n, units, units, partial, partial_stride, k0 == 0,
                               k0 + step >= K);
            }
        }
    }
}

static void packed_product(const Output *out, const unit_t *left, const unit_t *right, int rows,
                           int columns, int units, int right_units, float *sums, int last) {
    product_panels(out, 0, 0, left, right, rows, columns, units, right_units, sums, columns, !sums,
                   last);
}

// partial_count: floats of unfinished chains. attention_bytes: what one thread of attention needs.
static void workspace_init(size_t partial_count, size_t attention_bytes) {
    workspace.threads = thread_count();
    workspace.packed_a = memory_allocate(round_up(MC, MR) * KU * 4);
    workspace.partial = memory_allocate(partial_count * 4);
    workspace.partial_count = partial_count;
    workspace.thread_bytes = round_up(MAX(attention_bytes, NB * KU * 4), 4096) + 64;
    workspace.thread = memory_allocate(workspace.threads * workspace.thread_bytes);
}

// How many floats of unfinished chains the largest product over several blocks of K has.
static size_t partial_count(const Gpt *g) {
    const size_t R = (size_t)g->B * g->config.T, C = g->config.C;
    // Logits need none: they are fp32 and hold their own.
    const size_t forward = MAX(R * C, C > KU ? R * 4 * C : 0);
    return g->training ? MAX(forward, R > KU ? 4 * C * C : 0) : forward;
}
static size_t attention_bytes(const Gpt *g) {
    AttentionBuffers w;
    return attention_buffers(&w, NULL, g->config.T, g->config.C / g->config.NH);
}
static size_t workspace_bytes(const Gpt *g) {
    const size_t thread = MAX(attention_bytes(g), NB * KU * 4) + (1 << 15);
    return partial_count(g) * 4 + MC * KU * 4 + thread * thread_count();
}
static void workspace_make(const Gpt *g) { workspace_init(partial_count(g), attention_bytes(g)); }
// ==== 16. the machine ============================================================================
// Flushes denormal results (FTZ) and inputs (DAZ) to zero. vdpbf16ps always does so. The other
// paths have to be told, or bits would depend on the instruction set.
static void fp_mode_set(void) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr | (1u << 24)));
#endif
}

// ---- the machine's peak
// The GFLOP/s of one thread in the kernel that is in use, with operands in L1.
static double kernel_speed(void) {
    enum { UNITS = 128, CALLS = LANES > 1 ? 1600 : 32 };
    unit_t panels[UNITS * (PANEL + NR)] __attribute__((aligned(64)));
    float tile[PANEL * NR] __attribute__((aligned(64)));
    for (size_t i = 0; i < sizeof(panels) / 4; i++)
        panels[i] = 0x3f9d3f9d; // 1.23, also as a pair: zeros would cost less power
    const double t = seconds_now();
    for (int i = 0; i < CALLS; i++) kernel(UNITS, panels, panels + UNITS * PANEL, tile, 1);
    return 2e-9 * CALLS * panel_rows() * NR * UNITS * (product_uses_pairs ? 2 : 1) /
           (seconds_now() - t);
}
static double machine_peak_gflops; // all threads together

// Sets the denormal mode and the tables, and chooses the instruction for products. For sums of
// pairs it takes the faster of two. They are measured in turn and the best of each counts, so that
// a busy moment misleads neither.
static void machine_init(int in_tiles) {
    fp_mode_set(); // libomp's threads take over the first one's mode; libgomp's keep what each sets
#pragma omp parallel
    fp_mode_set();
    volatile float v[2] = {1 + 0x1p-12f, 0x1p24f};
    const float x = v[0], y = v[1];
    v[0] = x * x - (1 + 0x1p-11f);
    v[1] = (y + 1) - y; // not 0 if contracted, or reordered
    EXPECT(v[0] == 0 && v[1] == 0, "built with flags that change arithmetic; use the Makefile's");
    fp8_tables_init();
    product_in_tiles = in_tiles;
    const int pairs = in_tiles ? AMX_PERMITTED() : HAS_PAIRS;
    double peak[2] = {0}; // with fp32 units, with pairs
    for (int round = 0; round < 5; round++)
        for (product_uses_pairs = 0; product_uses_pairs <= pairs; product_uses_pairs++) {
            double sum = 0;
#pragma omp parallel reduction(+ : sum)
            sum += kernel_speed();
            peak[product_uses_pairs] = MAX(peak[product_uses_pairs], sum);
        }
    product_uses_pairs = peak[1] > peak[0];
    machine_peak_gflops = peak[product_uses_pairs];
}
static const char *product_instruction(void) {
    return !product_uses_pairs ? "fp32 multiply-adds"
           : product_in_tiles  ? "tdpbf16ps"
                               : "vdpbf16ps";
}

#ifdef __APPLE__
#include <sys/resource.h>
// As in <sys/sysctl.h>, which has a MIN and a MAX of its own.
int sysctlbyname(const char *, void *, size_t *, void *, size_t);
static const char *machine_name(char *out) {
    size_t bytes = 256;
    return sysctlbyname("machdep.cpu.brand_string", out, &bytes, NULL, 0) ? "unknown" : out;
}
// In MiB: all of the machine's memory, and the most that this process has held.
static double memory_available(void) {
    uint64_t all = 0;
    size_t bytes = sizeof(all);
    sysctlbyname("hw.memsize", &all, &bytes, NULL, 0);
    return mib(all);
}
static double memory_peak(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return mib(use.ru_maxrss);
}
#else
// Copies what follows `key`, in the first line of a /proc file that begins with it, to out[256]; or
// "unknown".
static const char *proc_value(const char *path, const char *key, char *out) {
    char line[512] = "";
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof(line), f) && strncmp(line, key, strlen(key))) line[0] = 0;
    if (f) fclose(f);
    const char *at = line[0] ? line + strlen(key) : "unknown";
    at += strspn(at, " \t:");
    snprintf(out, 256, "%.*s", (int)strcspn(at, "\n"), at);
    return out;
}
static const char *machine_name(char *out) {
    return proc_value("/proc/cpuinfo", "model name", out);
}
// How many MiB can still be taken; 0: unknown. It is the least of the machine's available memory
// and, for each control group above this process (a container), its limit without the anonymous
// memory that it holds.
static double memory_available(void) {
    char line[PATH_MAX], path[PATH_MAX], value[256];
    double least = atof(proc_value("/proc/meminfo", "MemAvailable", value)) / 1024;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof(line), f)) {
        const int old = strstr(line, ":memory:") != NULL; // version 1's, else 2's
        const char *base = old ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
        char *group = strchr(line, '/'), *end = group ? group + strcspn(group, "\n") : NULL;
        for (; end; end = strrchr(group, '/')) { // it, its parent, and so on to the root
            *end = 0;
            path_print(path, "%s%s/memory.%s", base, group, old ? "limit_in_bytes" : "max");
            const double limit = atof(proc_value(path, "", value));
            path_print(path, "%s%s/memory.stat", base, group);
            const double left = limit - atof(proc_value(path, old ? "total_rss " : "anon ", value));
            if (limit > 0) least = MIN(least, MAX(left / 1048576, 1));
        }
    }
    if (f) fclose(f);
    return least;
}
static double memory_peak(void) { // in MiB
    char value[256];
    return atof(proc_value("/proc/self/status", "VmHWM", value)) / 1024;
}
#endif

// Refuses a model that does not fit, before anything is allocated.
static MemoryPlan memory_check(Gpt *g) {
    const MemoryPlan plan = memory_plan(g);
    const double available = memory_available();
    EXPECT(available == 0 || mib(plan.total) * world.here <= available,
           "this run needs %.0f MiB, %.0f are available; choose a smaller -b, -t or -e",
           mib(plan.total) * world.here, available);
    return plan;
}

static const char *backend_name(void) { return ISA_NAME; }
static void backend_limits(const Config *c, long batch, int from_options) {
    (void)c;
    (void)batch;
    (void)from_options;
}
static void backend_open(Run *r) { (void)r; }
static void backend_start(Run *r) {
#ifdef _OPENMP // processes of one machine share its cores
    const int cores = sysconf(_SC_NPROCESSORS_ONLN) / world.here;
    if (!getenv("OMP_NUM_THREADS") && cores < omp_get_max_threads())
        omp_set_num_threads(MAX(cores, 1));
#endif
    machine_init(r->o.sum_order);
}
static void backend_ready(Run *r) { (void)r; }
static void backend_header(FILE *f, const Run *r) {
    char cpu[256];
    (void)r;
    fprintf(f, "# threads\t%d\n# machine\t%s, " ISA_NAME ", measured peak %.0f GFLOP/s in %s\n",
            thread_count(), machine_name(cpu), machine_peak_gflops, product_instruction());
}
static void backend_note(const Run *r) { (void)r; }
static void backend_resumed(Run *r) { (void)r; }
static const char *backend_speed(double gflops, char *out) {
    static double fastest;
    static int slow;
    fastest = MAX(fastest, gflops);
    if (gflops < fastest / 2 && ++slow == 3 && thread_count() > 1 && !getenv("OMP_WAIT_POLICY"))
        printf("\nnote: steps vary by more than 2 times; in a pipe or on a busy machine "
               "OMP_WAIT_POLICY=passive helps\n");
    sprintf(out, "%.0f GFLOP/s, %.0f%% of peak", gflops, 100 * gflops / machine_peak_gflops);
    return out;
}
static void backend_summary(const Run *r) {
    printf("peak memory %.1f MiB (planned %.1f)\n", memory_peak(), mib(r->plan.total));
}
static int gradient_nonfinite(const Gpt *g, int id, int l) {
    const ParamSpec *s = &g->params[id];
    return tensor_nonfinite(gpt_param(g, g->grad, id, s->layers == 1 ? 0 : l), DTYPE_FP32,
                            s->rows * s->cols);
}

// ==== 17. processes ==============================================================================
// Several processes train one model together, each on its own shards of a step (section 9). MPI
// moves bytes between them and adds nothing: the order of an addition is not the library's.
#ifdef USE_MPI
static void world_close(void) { MPI_Finalize(); }
static void world_open(void) {
    int level;
    MPI_Comm node;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &world.here);
    atexit(world_close);
}
static void world_bcast(void *data, size_t bytes, int root) {
    for (size_t at = 0, n; world.size > 1 && at < bytes; at += n) { // MPI counts in int
        n = MIN(bytes - at, (size_t)1 << 30);
        MPI_Bcast((char *)data + at, n, MPI_BYTE, root, MPI_COMM_WORLD);
    }
}
static void world_trade(const Message *sent, const Message *got) {
    static MPI_Request requests[2 * WORLD_MAX];
    int n = 0;
    for (int i = 1; i < world.size; i++) {
        const int to = (world.rank + i) % world.size,
                  from = (world.rank + world.size - i) % world.size;
        MPI_Irecv(got[from].data, got[from].bytes, MPI_BYTE, from, 0, MPI_COMM_WORLD,
                  &requests[n++]);
        MPI_Isend(sent[to].data, sent[to].bytes, MPI_BYTE, to, 0, MPI_COMM_WORLD, &requests[n++]);
    }
    MPI_Waitall(n, requests, MPI_STATUSES_IGNORE);
}
static int world_any(int yes) {
    const double begin = seconds_now();
    MPI_Allreduce(MPI_IN_PLACE, &yes, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    world.waited += seconds_now() - begin;
    return yes;
}
#endif
