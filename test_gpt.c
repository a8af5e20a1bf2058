/*
Tests of train_gpt_fp8.c, built like it, once for each precision, instruction set and compiler:

    gcc -O3 -march=native ... -DPRECISION=0 test_gpt.c -o test_gpt_fp8 -lm
    ./test_gpt_fp8                   # every quick check, some seconds
    ./test_gpt_fp8 --only product    # the groups whose name contains "product"
    ./test_gpt_fp8 --exhaustive      # FP8 encoding of all 2^32 floats too, minutes

A check compares the trainer with a second definition written here in the plainest way (doubles, no tables, no vectors), or
with itself under a condition that must not matter (threads, tiles, a stop in between). Bits are compared where the rules
of NUMERICS_VERSION promise bits; elsewhere a tolerance follows from UNIT, the rounding of the stored type. "planted
fault" lines feed a comparing function what it must refuse: a check that cannot fail holds nothing.

Sections
     A. fp8          encode, decode, quantise, 16-bit types, fma
     B. scale        scales from amax histories
     C. math         exp, log, sin, sums, tails
     D. product      every bit of the matrix product
     E. layers       against double precision, and finite differences
     F. fp8 layer    signal to noise, non-finite tensors
     G. model        bits for any thread count, overfitting, padding, decoding
     H. data         windows, shards
     I. checkpoint   state and model files, damage, options, log
     J. run          whole runs: stop and resume
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h> // declares posix_memalign, before it is another name
#endif
// memory_allocate()'s calls are counted, to hold the memory plan to what is really taken.
static size_t bytes_allocated;
static int counting_memalign(void **p, size_t align, size_t bytes) {
    bytes_allocated += bytes;
    return posix_memalign(p, align, bytes);
}
#define posix_memalign counting_memalign
// The trainer's main stays, under another name: whole runs are started as children of this program (section J).
#define main trainer_main
#include "train_gpt_fp8.c"
#undef main
#include "dev/check/free.h"
#include <sys/resource.h>
#include <sys/wait.h>

// Unit roundoff of the stored type: the largest relative error of one rounding to nearest.
static const double UNIT = STORED == DTYPE_BF16 ? 0x1p-8 : STORED == DTYPE_FP16 ? 0x1p-11 : 0x1p-24;
// fp32 sums of some hundred terms and v_exp (4e-7) between the roundings to the stored type.
static const double FP32_WORK = 2e-6;

static const char *const dtype_names[DTYPE_COUNT] = {"fp32", "bf16", "fp16", "e4m3", "e5m2"};
static int passed, failed;

__attribute__((format(printf, 3, 4))) static int check(int ok, const char *name, const char *format, ...) {
    va_list args;
    printf(ok ? "ok   %s\n" : "FAIL %s: ", name);
    ok ? passed++ : failed++;
    if (!ok) {
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
        printf("\n");
    }
    fflush(stdout);
    return ok;
}

static void threads_set(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

// A formatted name of a check.
__attribute__((format(printf, 1, 2))) static const char *label(const char *format, ...) {
    static char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return text;
}

// Memory of a group of checks, freed all together when the group ends.
static void *blocks[4096];
static int block_count;
static void *take(size_t bytes) {
    if (block_count == 4096) abort();
    return blocks[block_count++] = memory_allocate(bytes);
}
static float *take_floats(size_t n) { return (float *)take(n * sizeof(float)); }
static double *take_doubles(size_t n) { return (double *)take(n * sizeof(double)); }
static stored_t *take_stored(size_t n) { return (stored_t *)take(n * sizeof(stored_t)); }
static void take_end(void) {
    while (block_count > 0) free(blocks[--block_count]);
}

// Normal numbers by libm, independent of gpt_init.
static double normal(uint64_t seed, uint64_t i) {
    double u = 1 - random_unit(random_u64(seed, 1, i)), turn = random_unit(random_u64(seed, 2, i));
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * turn);
}
static float *normal_floats(size_t n, double std, uint64_t seed) {
    float *x = take_floats(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(std * normal(seed, i));
    return x;
}
static stored_t *normal_stored(size_t n, double std, uint64_t seed) {
    stored_t *x = take_stored(n);
    for (size_t i = 0; i < n; i++) x[i] = stored_from_float((float)(std * normal(seed, i)));
    return x;
}
static double *doubles_of_stored(const stored_t *x, size_t n) {
    double *d = take_doubles(n);
    for (size_t i = 0; i < n; i++) d[i] = (double)float_from_stored(x[i]);
    return d;
}
static double *doubles_of_floats(const float *x, size_t n) {
    double *d = take_doubles(n);
    for (size_t i = 0; i < n; i++) d[i] = (double)x[i];
    return d;
}

// ---- comparing functions, which the planted faults also go through

// Elements whose bits differ; NaN equals any NaN.
static size_t bits_differ(const float *a, const float *b, size_t n) {
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) differ += float_bits(a[i]) != float_bits(b[i]) && !(a[i] != a[i] && b[i] != b[i]);
    return differ;
}

typedef struct {
    double ratio, cosine; // |found| / |reference|, and the angle between the two
    double error, sqnr;   // |found - reference| / |reference|, and the same in dB
} Likeness;

// A NaN anywhere makes all four NaN, and no comparison of a check is true of a NaN.
static Likeness likeness(const double *reference, const double *found, size_t n) {
    double rr = 0, ff = 0, rf = 0, ee = 0;
    for (size_t i = 0; i < n; i++) {
        rr += reference[i] * reference[i], ff += found[i] * found[i], rf += reference[i] * found[i];
        ee += (found[i] - reference[i]) * (found[i] - reference[i]);
    }
    Likeness l = {1, 1, 0, INFINITY};
    if (rr == 0 && ff == 0) return l;
    l.ratio = sqrt(ff / rr), l.cosine = rf / sqrt(rr * ff), l.error = sqrt(ee / rr), l.sqnr = 10 * log10(rr / ee);
    return l;
}
static Likeness likeness_stored(const double *reference, const stored_t *found, size_t n) {
    return likeness(reference, doubles_of_stored(found, n), n);
}
static Likeness likeness_floats(const double *reference, const float *found, size_t n) {
    return likeness(reference, doubles_of_floats(found, n), n);
}

// A gradient is right when its length and its direction are: Adam hides a wrong length, a plain sum hides a wrong direction.
static int gradient_right(Likeness l, double tolerance) { return fabs(l.ratio - 1) < tolerance && l.cosine > 1 - tolerance; }
static void check_gradient(const char *name, Likeness l, double tolerance) {
    check(gradient_right(l, tolerance), name, "norm ratio %.6f, cosine %.6f, tolerance %g", l.ratio, l.cosine, tolerance);
}
static void check_error(const char *name, Likeness l, double tolerance) {
    check(l.error <= tolerance, name, "relative error %.3g, expected at most %.3g", l.error, tolerance);
}

// ---------------------------------------------------------------------------------------------------------------------
// A. fp8

// The value of a code as the paper's table 1 says it, in doubles.
static double code_value(int code, Dtype d) {
    const int mantissa = d == DTYPE_E4M3 ? 3 : 2, bias = d == DTYPE_E4M3 ? 7 : 15, a = code & 127;
    const int e = a >> mantissa, m = a & ((1 << mantissa) - 1);
    const double sign = code & 128 ? -1 : 1;
    if (d == DTYPE_E4M3 && a == 127) return NAN;
    if (d == DTYPE_E5M2 && e == 31) return m ? NAN : sign * INFINITY;
    return sign * (e ? ldexp(1 + ldexp(m, -mantissa), e - bias) : ldexp(m, 1 - bias - mantissa));
}

static double positive_values[2][128]; // of the finite codes 0 .. max_code
static int max_code(Dtype d) { return d == DTYPE_E4M3 ? 0x7e : 0x7b; }
static void values_init(void) {
    for (int t = 0; t < 2; t++)
        for (int c = 0; c < 128; c++) positive_values[t][c] = code_value(c, t ? DTYPE_E5M2 : DTYPE_E4M3);
}

// The code of a float by bisection: the nearest value, ties to the even code, saturating; NaN is 0x7F, denormals are 0.
static uint8_t code_of(float f, Dtype d) {
    const uint32_t u = float_bits(f), a = u & 0x7fffffff;
    const double *value = positive_values[d == DTYPE_E5M2];
    const int sign = u >> 31 ? 128 : 0;
    if (a > 0x7f800000) return 0x7f;
    if (a == 0x7f800000) return (uint8_t)(sign | max_code(d));
    if (a < 0x00800000) return (uint8_t)sign;
    const double x = (double)bits_float(a);
    int low = 0, high = max_code(d) + 1; // value[low] <= x < value[high], the last one taken as infinite
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (value[middle] <= x) low = middle;
        else high = middle;
    }
    if (low == max_code(d)) return (uint8_t)(sign | low);
    const double tie = (value[low] + value[low + 1]) / 2;
    return (uint8_t)(sign | (x > tie || (x == tie && (low & 1)) ? low + 1 : low));
}

static void test_fp8_codes(void) {
    for (int t = 0; t < 2; t++) {
        const Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        int wrong = 0, vector_wrong = 0, round_trip = 0;
        uint8_t codes[256];
        float packed[256]; // as packing decodes them, many at once
        for (int c = 0; c < 256; c++) codes[c] = (uint8_t)c;
        for (int c = 0; c < 256; c += 64) decode_fp32(packed + c, codes + c, 64, d);
        for (int c = 0; c < 256; c++) {
            const double want = code_value(c, d), got = (double)fp8_decode((uint8_t)c, d);
            const double vector = (double)packed[c];
            wrong += !(want == got || (want != want && got != got)) || (want == want && signbit(want) != signbit(got));
            vector_wrong += !(want == vector || (want != want && vector != vector));
            if ((c & 127) <= max_code(d)) round_trip += fp8_encode((float)want, d) != c;
        }
        check(!wrong && !vector_wrong, label("fp8 %s: all 256 codes decode to the format's definition", dtype_names[d]),
              "%d of fp8_decode and %d of decode_fp32 differ", wrong, vector_wrong);
        check(!round_trip, label("fp8 %s: every finite code survives decode and encode", dtype_names[d]), "%d codes changed",
              round_trip);

        // Every 4099th float (a prime stride, so that all low bits occur), and both sides of every midpoint between codes.
        long differ = 0;
        uint32_t first = 0;
#pragma omp parallel for reduction(+ : differ)
        for (long i = 0; i < (1l << 32) / 4099; i++) {
            const float f = bits_float((uint32_t)(i * 4099));
            differ += fp8_encode(f, d) != code_of(f, d);
        }
        for (int c = 0; c <= max_code(d); c++) {
            const double value = positive_values[t][c],
                         next = c < max_code(d) ? positive_values[t][c + 1] : 2 * value - positive_values[t][c - 1];
            for (int way = 0; way < 3; way++) { // the value, the midpoint, and for the last code where saturation is counted
                const uint32_t u = float_bits((float)(way == 0 ? value : way == 1 ? (value + next) / 2 : next));
                for (int k = -3; k <= 3; k++)
                    for (uint32_t sign = 0; sign < 2; sign++) {
                        const uint32_t bits = ((u + (uint32_t)k) & 0x7fffffff) | sign << 31;
                        if (fp8_encode(bits_float(bits), d) != code_of(bits_float(bits), d)) differ++, first = bits;
                    }
            }
        }
        check(!differ,
              label("fp8 %s: encode is nearest, ties to even, saturating (a million floats, every midpoint)", dtype_names[d]),
              "%ld floats differ, e.g. bits %08x", differ, first);
        const float nan = bits_float(0xffc00001), inf = INFINITY;
        check(fp8_encode(inf, d) == max_code(d) && fp8_encode(-inf, d) == (128 | max_code(d)) && fp8_encode(nan, d) == 0x7f &&
                  fp8_encode(-0.0f, d) == 0x80,
              label("fp8 %s: Inf becomes max, every NaN 0x7F, as CUDA's satfinite", dtype_names[d]),
              "Inf %02x, -Inf %02x, NaN %02x, -0 %02x", fp8_encode(inf, d), fp8_encode(-inf, d), fp8_encode(nan, d),
              fp8_encode(-0.0f, d));
    }
    // A truncating encoder, which a comparison of decoded values "within one step" would let through.
    long caught = 0;
    for (long i = 0; i < 100000; i++) {
        const float f = bits_float((uint32_t)(i * 42943)), cut = bits_float(float_bits(f) & 0xfff00000);
        caught += code_of(f, DTYPE_E4M3) != fp8_encode(cut, DTYPE_E4M3);
    }
    check(caught > 0, "planted fault: truncation instead of rounding in encode is caught", "no float differed");
}

// All 2^32 floats, for both formats.
static void test_fp8_exhaustive(void) {
    for (int t = 0; t < 2; t++) {
        const Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        long differ = 0, done = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : differ)
        for (long high = 0; high < 4096; high++) {
            for (uint32_t low = 0; low < 1u << 20; low++) {
                const float f = bits_float((uint32_t)high << 20 | low);
                differ += fp8_encode(f, d) != code_of(f, d);
            }
#pragma omp critical
            if (++done % 64 == 0) fprintf(stderr, "\r%s: %ld%% of 2^32 floats", dtype_names[d], done * 100 / 4096), fflush(stderr);
        }
        fprintf(stderr, "\r%40s\r", "");
        check(!differ, label("fp8 %s: encode is right for all 2^32 floats", dtype_names[d]), "%ld differ", differ);
    }
}

// Slow, one element at a time, in doubles: what quantise_block must make and count.
static void quantise_slowly(uint8_t *q, const stored_t *x, size_t n, float scale, Dtype d, Fp8Stats *s) {
    const double cut = d == DTYPE_E4M3 ? 464 : 61440; // E4M3: 464 itself still rounds to 448 (tie to even)
    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < n; i++) {
        const float f = float_from_stored(x[i]), y = (float)((double)f * (double)scale); // the product is exact in double
        const uint32_t a = float_bits(f) & 0x7fffffff;
        q[i] = code_of(y, d);
        s->count++, s->nonfinite += a >= 0x7f800000;
        s->saturated += d == DTYPE_E4M3 ? fabs((double)y) > cut : fabs((double)y) >= cut;
        s->flushed += (q[i] & 127) == 0 && a != 0;
        if (a > s->amax_bits) s->amax_bits = a;
    }
}
static int stats_same(const Fp8Stats *a, const Fp8Stats *b) {
    return a->amax_bits == b->amax_bits && a->saturated == b->saturated && a->flushed == b->flushed &&
           a->nonfinite == b->nonfinite && a->count == b->count;
}

static void test_fp8_blocks(void) {
    // 16-bit builds: all stored values there are. fp32: a stride of all floats, with every low bit.
    const size_t n = 65536;
    stored_t *x = take_stored(n);
    uint8_t *q = (uint8_t *)take(n + 64), *want = (uint8_t *)take(n);
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)i * 65551u;
        const uint16_t half = (uint16_t)i;
        memcpy(&x[i], sizeof(stored_t) == 2 ? (const void *)&half : (const void *)&bits, sizeof(stored_t));
    }
    const float scales[] = {1, 0.37f, 1000.25f, 3e-5f, 0x1p-126f, 0x1p126f, 1e30f};
    for (int t = 0; t < 2; t++) {
        const Dtype d = t ? DTYPE_E5M2 : DTYPE_E4M3;
        size_t bytes = 0;
        int stats = 0;
        for (int k = 0; k < 7; k++)
            for (size_t cut = 0; cut < 3; cut++) { // odd lengths and starts, so that the loops' tails are run too
                const size_t length = n - 5 * cut, at = 2 * cut;
                Fp8Stats s, r;
                memset(&s, 0, sizeof(s));
                if (t) quantise_block(q, x + at, length, scales[k], &s, &fp8_formats[1]);
                else quantise_block(q, x + at, length, scales[k], &s, &fp8_formats[0]);
                quantise_slowly(want, x + at, length, scales[k], d, &r);
                for (size_t i = 0; i < length; i++) bytes += q[i] != want[i];
                stats += !stats_same(&s, &r);
            }
        check(!bytes, label("fp8 %s: quantise_block makes the right bytes of 65536 stored values x 7 scales", dtype_names[d]),
              "%zu bytes differ", bytes);
        check(!stats, label("fp8 %s: amax, saturated, flushed, non-finite and count equal a slow count", dtype_names[d]),
              "%d of 21 differ", stats);
    }
    Fp8Stats s, r;
    memset(&s, 0, sizeof(s));
    quantise_block(q, x, n, 2, &s, &fp8_formats[0]);
    quantise_slowly(want, x, n, 1, DTYPE_E4M3, &r);
    check(memcmp(q, want, n) != 0 && !stats_same(&s, &r), "planted fault: a scale off by 2 shows in bytes and in statistics",
          "nothing differed");

    int wrong = 0;
    for (int t = 0; t < 2; t++)
        for (int length = 0; length < 300; length++) {
            uint8_t codes[300];
            uint16_t out[301];
            for (int i = 0; i < 300; i++) codes[i] = (uint8_t)(i * 7 + length);
            out[length] = 0x1234;
            decode_bf16(out, codes, length, t ? DTYPE_E5M2 : DTYPE_E4M3);
            wrong += out[length] != 0x1234;
            for (int i = 0; i < length; i++) {
                const float a = float_from_bf16(out[i]), b = fp8_decode(codes[i], t ? DTYPE_E5M2 : DTYPE_E4M3);
                wrong += bits_differ(&a, &b, 1) != 0;
            }
        }
    check(!wrong, "fp8: decode_bf16 equals fp8_decode for every code and length, and writes no further", "%d differ", wrong);
}

// Rounding to a 16-bit type with p significant bits and least normal exponent emin, in doubles.
static uint16_t half_of(float f, int p, int emin) {
    const uint32_t u = float_bits(f), a = u & 0x7fffffff;
    const int fraction = p - 1;
    const uint32_t sign = u >> 31 << 15, infinite = p == 8 ? 0x7f80 : 0x7c00;
    if (a > 0x7f800000) return 0x7fff; // "is NaN" is all that is promised
    if (a == 0x7f800000) return (uint16_t)(sign | infinite);
    if (a < 0x00800000) return (uint16_t)sign; // denormal floats are zeros
    int e;
    const double x = (double)bits_float(a);
    frexp(x, &e); // x = m 2^e, m in [1/2, 1)
    e = e - 1 < emin ? emin : e - 1;
    const double units = nearbyint(ldexp(x, fraction - e)); // of the last bit; below 2^fraction the result is a denormal
    const uint32_t code =
        units < ldexp(1, fraction) ? (uint32_t)units : (uint32_t)(((e - emin + 1) << fraction) + (units - ldexp(1, fraction)));
    return (uint16_t)(sign | (code > infinite ? infinite : code));
}

static void test_fp8_sixteen_bits(void) {
    long bf16 = 0, fp16 = 0, vectors = 0;
#pragma omp parallel for reduction(+ : bf16, fp16, vectors)
    for (long block = 0; block < (1l << 32) / 4099 / 16; block++) {
        float f[16];
        stored_t s[16];
        for (int l = 0; l < 16; l++) {
            // The stride visits everything; every second block is moved next to a tie, where rounding is decided.
            uint32_t u = (uint32_t)((block * 16 + l) * 4099);
            if (block & 1) u = (u & 0xffff0000) | (0x8000u - 2 + (uint32_t)l % 5);
            if ((block & 7) == 3) u = (u & 0xffffe000) | (0x1000u - 2 + (uint32_t)l % 5);
            f[l] = bits_float(u);
            const uint16_t b = bf16_from_float(f[l]), h = fp16_from_float(f[l]);
            if (f[l] != f[l]) bf16 += !((b & 0x7fff) > 0x7f80), fp16 += !((h & 0x7fff) > 0x7c00);
            else bf16 += b != half_of(f[l], 8, -126), fp16 += h != half_of(f[l], 11, -14);
        }
        stored_from_floats(s, f, 16); // a vector at a time
        for (int l = 0; l < 16; l++) {
            volatile float one = f[l]; // alone
            const float a = float_from_stored(s[l]), b = float_from_stored(stored_from_float(one));
            vectors += float_bits(a) != float_bits(b) && !(a != a && b != b);
        }
    }
    check(!bf16, "16 bits: bf16 is rounded to nearest even, denormals flushed first", "%ld of a million floats differ", bf16);
    check(!fp16, "16 bits: fp16 is rounded to nearest even, denormals kept (F16C's rules)", "%ld of a million floats differ", fp16);
    check(!vectors, "16 bits: stored_from_floats makes the bits of stored_from_float", "%ld of a million floats differ", vectors);
    long half = 0;
    for (int h = 0; h < 65536; h++) {
        const int e = (h >> 10) & 31, m = h & 1023;
        const double sign = h & 0x8000 ? -1 : 1, got = (double)float_from_fp16((uint16_t)h);
        const double want = e == 31 ? (m ? NAN : sign * INFINITY) : sign * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
        half += !(want == got || (want != want && got != got));
    }
    check(!half, "16 bits: all 65536 fp16 values are read by their definition", "%ld differ", half);
}

// fma with one rounding, denormals flushed, by exact integers.
__extension__ typedef __int128 Wide;
static float fma_by_integers(float a, float b, float c) {
    const float in[3] = {a, b, c};
    Wide m[3];
    int e[3], negative[3];
    for (int i = 0; i < 3; i++) {
        const uint32_t u = float_bits(in[i]), exponent = (u >> 23) & 255;
        if (exponent == 255) return (float)((double)a * (double)b + (double)c); // Inf and NaN need no rounding
        negative[i] = (int)(u >> 31);
        m[i] = exponent ? (Wide)((u & 0x7fffff) | 0x800000) : 0;
        e[i] = (int)exponent - 150;
    }
    Wide product = m[0] * m[1], sum = m[2];
    int ep = e[0] + e[1], ec = e[2];
    const int minus = negative[0] ^ negative[1];
    if (product == 0 && sum == 0) return minus && negative[2] ? -0.0f : 0.0f;
    if (product == 0) ep = ec;
    if (sum == 0) ec = ep;
    // What is too far below the other only matters as "a little more or less": one unit 60 bits down.
    if (ep - ec > 70) sum = 1, ec = ep - 60;
    if (ec - ep > 70) product = 1, ep = ec - 60;
    const int base = ep < ec ? ep : ec;
    sum = (negative[2] ? -sum : sum) * ((Wide)1 << (ec - base));
    sum += (minus ? -product : product) * ((Wide)1 << (ep - base));
    if (sum == 0) return 0.0f;
    const uint32_t sign = sum < 0 ? 0x80000000u : 0;
    Wide magnitude = sum < 0 ? -sum : sum;
    int bits = 0, exponent = base;
    for (Wide t = magnitude; t > 0; t >>= 1) bits++;
    if (bits > 24) {
        const int shift = bits - 24;
        const Wide rest = magnitude & (((Wide)1 << shift) - 1), half = (Wide)1 << (shift - 1);
        magnitude >>= shift, exponent += shift;
        magnitude += rest > half || (rest == half && (magnitude & 1));
        if (magnitude >> 24) magnitude >>= 1, exponent++;
    } else magnitude <<= 24 - bits, exponent -= 24 - bits;
    const int biased = exponent + 150;
    if (biased >= 255) return bits_float(sign | 0x7f800000);
    if (biased <= 0) return bits_float(sign); // tiny after rounding
    return bits_float(sign | (uint32_t)biased << 23 | (uint32_t)(magnitude & 0x7fffff));
}

static void test_fp8_fma(void) {
    const uint32_t nasty[] = {0,          0x80000000, 1,          0x807fffff, 0x00800000, 0x80800001, 0x3f800000,
                              0xbf800001, 0x3f7fffff, 0x7f7fffff, 0xff7ffffe, 0x7f800000, 0xff800000, 0x7fc00000,
                              0x20000000, 0x1fffffff, 0x5f7fffff, 0x33800000, 0x4b800001, 0x00ffffff};
    const int n = (int)(sizeof(nasty) / sizeof(nasty[0]));
    size_t differ = 0, fused = 0;
    float first[3] = {0, 0, 0};
    for (long i = 0; i < n * n * n + 400000; i++) {
        float v[3];
        for (int k = 0; k < 3; k++) v[k] = bits_float(nasty[(i / (k == 0 ? 1 : k == 1 ? n : n * n)) % n]);
        if (i >= n * n * n) { // random; every second c cancels the product but for some bits, every fourth is a tie's neighbour
            for (uint64_t k = 0; k < 3; k++) v[k] = bits_float((uint32_t)random_u64(5, k, i) & 0x8fffffff) * 0x1p40f;
            if (i & 1) v[2] = bits_float(float_bits(-(float)((double)v[0] * (double)v[1])) ^ (uint32_t)(i % 5));
            if ((i & 3) == 2) v[2] = (float)((double)v[0] * (double)v[1]) * 0x1p24f;
        }
        const float got = fmaf(v[0], v[1], v[2]), want = fma_by_integers(v[0], v[1], v[2]);
        if (bits_differ(&got, &want, 1)) differ++, memcpy(first, v, sizeof(first));
        volatile float product = v[0] * v[1];
        const float twice = product + v[2];
        fused += bits_differ(&twice, &want, 1);
    }
    check(!differ, "fma: fmaf rounds once, flushes denormals (nasty and random cases)", "%zu differ, e.g. fma(%a, %a, %a)", differ,
          (double)first[0], (double)first[1], (double)first[2]);
    check(fused > 0, "planted fault: a multiply and an add instead of fma is caught", "no case differed");
}

// ---------------------------------------------------------------------------------------------------------------------
// B. scale

static Fp8Scale scale_make(const ScalingRecipe *recipe) {
    Fp8Scale s;
    memset(&s, 0, sizeof(s));
    s.recipe = *recipe, s.scale = s.kept_inv = 1;
    return s;
}
static void scale_step(Fp8Scale *s, float amax) {
    s->step.amax_bits = float_bits(amax), s->step.count = 1;
    scale_advance(s);
}

static void test_scale_update(void) {
    const volatile float amaxes[] = {
        0, -0.0f, 1e-45f, 1e-40f, 1e-38f, 1.2e-38f, 1e-20f, 1, 448, 3e38f, bits_float(0x7f7fffff), INFINITY, NAN};
    int bad = 0;
    char first[128] = "";
    for (int t = 0; t < 2; t++)
        for (int margin = 0; margin <= 64; margin += 8)
            for (size_t i = 0; i < 13; i++) {
                const float amax = amaxes[i];
                const ScalingRecipe r = {t ? DTYPE_E5M2 : DTYPE_E4M3, SCALING_DELAYED, 3, 1, margin, 0, 0, 0, 0};
                const float s = scale_from_amax(amax, 7, &r);
                bad += !(s >= 0x1p-126f && s <= 0x1p126f) || !(1 / s >= 0x1p-126f);
                const int usable = amax >= 0x1p-126f && amax < INFINITY;
                if (!usable) bad += s != 7;
                else {
                    const double want = fmin(fmax(ldexp((t ? 57344.0 : 448.0) / (double)amax, -margin), 0x1p-126), 0x1p126);
                    if (s != (float)want)
                        bad++, snprintf(first, sizeof(first), "amax %g, margin %d: %g, expected %g", (double)amax, margin,
                                        (double)s, want);
                }
            }
    check(!bad, "scale: FP8_MAX / amax / 2^margin in 2^-126 .. 2^126; amax 0, denormal, Inf, NaN keep the old one",
          "%d cases differ, e.g. %s", bad, first);

    const ScalingRecipe max3 = {DTYPE_E4M3, SCALING_DELAYED, 3, 1, 0, 0, 0, 0, 0},
                        recent = {DTYPE_E5M2, SCALING_DELAYED, 3, 0, 1, 0, 0, 0, 0};
    Fp8Scale s = scale_make(&max3), r = scale_make(&recent);
    const volatile float unusable[] = {0, 1e-40f, INFINITY, NAN}; // volatile: a compiler folds 1e-40 > 0 without the flush
    for (int i = 0; i < 4; i++) scale_step(&s, unusable[i]);
    check(s.scale == 1 && s.history_count == 0, "scale: with an empty history, an unusable amax changes nothing",
          "scale %g, %d entries", (double)s.scale, s.history_count);
    const float steps[] = {8, 2, 4, 1, 1, 1}, max_of_3[] = {8, 8, 8, 4, 4, 1};
    int max_wrong = 0, recent_wrong = 0;
    for (int i = 0; i < 6; i++) {
        scale_step(&s, steps[i]), scale_step(&r, steps[i]);
        max_wrong += s.scale != 448 / max_of_3[i] || s.history_count != (i < 2 ? i + 1 : 3);
        recent_wrong += r.scale != 57344 / steps[i] / 2;
    }
    check(!max_wrong, "scale: a history of 3 rolls, and its maximum makes the scale", "%d of 6 steps differ", max_wrong);
    check(!recent_wrong, "scale: the most recent amax, with its own format's maximum and a margin of 1", "%d of 6 steps differ",
          recent_wrong);
    const Fp8Scale before = s;
    float history[3];
    memcpy(history, s.amax_history, sizeof(history));
    for (int i = 0; i < 4; i++) scale_step(&s, unusable[i]);
    check(s.scale == before.scale && s.history_count == before.history_count && s.history_next == before.history_next &&
              !memcmp(history, s.amax_history, sizeof(history)),
          "scale: an unusable amax never enters a history", "scale %g was %g", (double)s.scale, (double)before.scale);
    s.step.count = 9, s.step.saturated = 3;
    scale_advance(&s);
    check(s.logged.count == 9 && s.logged.saturated == 3 && s.step.count == 0 && s.logged_scale == before.scale,
          "scale: an advance moves the step's statistics to the log and starts again from zero", "count %d", (int)s.logged.count);
}

static void test_scale_quantise(void) {
    const size_t n = 3 * CHUNK + 77;
    stored_t *x = normal_stored(n, 1, 11), *y = normal_stored(n, 4, 12);
    uint8_t *q = (uint8_t *)take(n), *want = (uint8_t *)take(n);
    Fp8Stats sx, sy;
    const ScalingRecipe delayed = {DTYPE_E4M3, SCALING_DELAYED, 4, 1, 0, 0, 0, 0, 0},
                        current = {DTYPE_E4M3, SCALING_CURRENT, 4, 1, 0, 0, 0, 0, 0};
    const ScalingRecipe none = {DTYPE_E5M2, SCALING_NONE, 4, 1, 0, 0, 0, 0, 0},
                        fixed = {DTYPE_E4M3, SCALING_STATIC, 4, 1, 0, 0, 0, 0, 0};
    quantise_slowly(want, x, n, 1, DTYPE_E4M3, &sx), quantise_slowly(want, y, n, 1, DTYPE_E4M3, &sy);
    const float own_x = 448 / bits_float(sx.amax_bits), own_y = 448 / bits_float(sy.amax_bits);

    Fp8Scale s = scale_make(&delayed);
    s.scale = 1e-3f; // stale, as after a change of recipe
    float inv = quantise(q, x, n, &s, 1);
    quantise_slowly(want, x, n, own_x, DTYPE_E4M3, &sx);
    check(inv == 1 / own_x && s.scale == own_x && !memcmp(q, want, n),
          "quantise: with an empty history the tensor's own amax makes the scale", "scale %g, expected %g", 1 / (double)inv,
          (double)own_x);
    inv = quantise(q, y, n, &s, 1);
    check(inv == 1 / own_y, "quantise: so it does in every micro-batch of the first step", "scale %g, expected %g", 1 / (double)inv,
          (double)own_y);
    quantise_slowly(want, y, n, own_y, DTYPE_E4M3, &sy);
    Fp8Stats both = sx;
    stats_merge(&both, &sy);
    check(stats_same(&s.step, &both) && s.step.count == 2 * n, "quantise: the statistics of a step's micro-batches are merged",
          "count %d of %d", (int)s.step.count, (int)(2 * n));
    scale_advance(&s);
    inv = quantise(q, x, n, &s, 1);
    quantise_slowly(want, x, n, s.scale, DTYPE_E4M3, &sx);
    check(s.scale == 448 / bits_float(both.amax_bits) && inv == 1 / s.scale && !memcmp(q, want, n),
          "quantise: later the scale comes from the history, not from the tensor", "scale %g", (double)s.scale);

    Fp8Scale before = s;
    quantise(q, y, n, &s, 0);
    check(!memcmp(&before, &s, sizeof(s)), "quantise: without recording (validation, sampling) nothing of the scale changes",
          "it changed");
    Fp8Scale empty = scale_make(&delayed), untouched = empty;
    inv = quantise(q, x, n, &empty, 0);
    check(!memcmp(&untouched, &empty, sizeof(empty)) && inv == 1 / own_x,
          "quantise: nor with an empty history, where the own amax is used", "scale %g", 1 / (double)inv);
    Fp8Scale c = scale_make(&current);
    const float i1 = quantise(q, x, n, &c, 1);
    scale_advance(&c);
    const float i2 = quantise(q, y, n, &c, 1);
    check(i1 == 1 / own_x && i2 == 1 / own_y, "quantise: current scaling takes each tensor's own amax", "scales %g %g",
          1 / (double)i1, 1 / (double)i2);
    Fp8Scale u = scale_make(&none), f = scale_make(&fixed);
    u.scale = 5, f.scale = 32;
    check(quantise(q, x, n, &u, 1) == 1 && quantise(q, x, n, &f, 1) == 0x1p-5f,
          "quantise: none is scale 1, static is the scale given", "they are not");

    // SQNR: sums in fp32 lanes against doubles and an independent decoding; the same bits for any number of threads.
    int sqnr_wrong = 0;
    double first[2] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        double signal = 0, noise = 0;
        Fp8Scale m = scale_make(&delayed);
        threads_set(threads);
        inv = quantise(q, x, n, &m, 2);
        for (size_t i = 0; i < n; i++) {
            const double v = (double)float_from_stored(x[i]), e = v - code_value(q[i], DTYPE_E4M3) * (double)inv;
            signal += v * v, noise += e * e;
        }
        if (threads == 1) first[0] = m.step.signal, first[1] = m.step.noise;
        sqnr_wrong += fabs(m.step.signal / signal - 1) > 1e-5 || fabs(m.step.noise / noise - 1) > 1e-5;
        sqnr_wrong += m.step.signal != first[0] || m.step.noise != first[1];
    }
    check(!sqnr_wrong, "quantise: SQNR sums equal doubles to 1e-5, with the same bits for 1, 2 and 3 threads", "%d differ",
          sqnr_wrong);

    // E5M2 against E4M3's 448 wastes 7 binades at the top: the largest byte used tells.
    const ScalingRecipe e5m2 = {DTYPE_E5M2, SCALING_CURRENT, 4, 1, 0, 0, 0, 0, 0};
    Fp8Scale d = scale_make(&e5m2), wasted = scale_make(&fixed);
    ScalingRecipe fault = fixed;
    fault.format = DTYPE_E5M2;
    wasted.recipe = fault, wasted.scale = own_x;
    double top = 0, top_wasted = 0;
    quantise(q, x, n, &d, 1);
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs(code_value(q[i], DTYPE_E5M2)));
    quantise(q, x, n, &wasted, 1);
    for (size_t i = 0; i < n; i++) top_wasted = fmax(top_wasted, fabs(code_value(q[i], DTYPE_E5M2)));
    check(top >= 57344 * 0.75, "quantise: an E5M2 tensor reaches E5M2's own largest values", "largest %g of 57344", top);
    check(top_wasted < 57344 * 0.75, "planted fault: E5M2 gradients scaled to E4M3's 448 are caught", "largest %g", top_wasted);
}

// ---------------------------------------------------------------------------------------------------------------------
// C. math

static void test_math(void) {
    double worst = 0, worst_log = 0, worst_sin = 0, worst_power = 0;
    for (double x = -87; x <= 88; x += 0.0007) {
        float in[16], out[16];
        for (int l = 0; l < 16; l++) in[l] = (float)(x + 0.00004 * l);
        for (int l = 0; l < 16; l++) out[l] = exp_fixed_order(in[l]);
        for (int l = 0; l < 16; l++) worst = fmax(worst, fabs((double)out[l] / exp((double)in[l]) - 1));
    }
    check(worst < 4e-7, "math: exp_fixed_order is within 4e-7 of exp() on -87 .. 88", "relative error %.3g",
          worst); // 3 ulp of fp32
    float special[16] = {-INFINITY, NAN, 0, -200, 88.3f, INFINITY}, out[16];
    for (int l = 0; l < 16; l++) out[l] = exp_fixed_order(special[l]);
    check(out[0] == 0 && out[1] != out[1] && out[2] == 1 && out[3] == 0 && out[5] == out[4] && isfinite(out[5]),
          "math: exp(-Inf) is 0, exp(NaN) NaN, exp(0) 1, and above 88.3 it saturates", "%g %g %g %g %g", (double)out[0],
          (double)out[1], (double)out[2], (double)out[3], (double)out[5]);
    for (int i = 1; i < 100000; i++) {
        const double x = ldexp(1 + (double)(i % 997) / 997, i % 300 - 150);
        if (fabs(log(x)) > 1e-3) worst_log = fmax(worst_log, fabs(log_fixed_order(x) / log(x) - 1));
        double s, c;
        const double u = (double)i / 100000;
        sincos_turns(u, &s, &c);
        worst_sin = fmax(worst_sin, fmax(fabs(s - sin(6.283185307179586 * u)), fabs(c - cos(6.283185307179586 * u))));
        worst_power = fmax(worst_power, fabs(power_int(0.9997, i) / pow(0.9997, i) - 1));
    }
    check(worst_log < 1e-14, "math: log_fixed_order equals log() to 1e-14", "%.3g",
          worst_log); // 11 terms: 6e-19, some roundings
    check(worst_sin < 2e-15, "math: sincos_turns equals sin() and cos() to 2e-15", "%.3g", worst_sin); // of numbers below 1
    check(worst_power < 1e-11, "math: power_int equals pow() to 1e-11", "%.3g", worst_power);          // errors add up to n 2^-53
    double s, c;
    sincos_turns(0.25, &s, &c);
    check(s == 1 && c == 0 && log_fixed_order(1) == 0 && power_int(3, 0) == 1, "math: exact at a quarter turn, ln 1 and x^0",
          "%g %g", s, c);

    float t[16], lanes[16];
    int tree_wrong = 0, ascending_differs = 0;
    for (uint64_t k = 0; k < 100; k++) {
        for (uint64_t l = 0; l < 16; l++) t[l] = (float)normal(3 + k, l);
        const float q0 = (t[0] + t[8]) + (t[4] + t[12]), q1 = (t[1] + t[9]) + (t[5] + t[13]), q2 = (t[2] + t[10]) + (t[6] + t[14]),
                    q3 = (t[3] + t[11]) + (t[7] + t[15]);
        float ascending = 0;
        for (int l = 0; l < 16; l++) ascending += t[l];
        memcpy(lanes, t, sizeof(t));
        const float sum = lanes_sum(lanes);
        tree_wrong += sum != (q0 + q2) + (q1 + q3);
        ascending_differs += sum != ascending;
    }
    check(!tree_wrong, "math: lanes_sum adds lanes at distance 8, 4, 2, 1", "%d of 100 sums differ", tree_wrong);
    check(ascending_differs > 0, "planted fault: lanes summed in ascending order have other bits", "no sum of 100 differs");
    int wrong = 0;
    float *terms = take_floats(100);
    for (size_t l = 0; l < 100; l++) terms[l] = (float)normal(200, l);
    for (size_t n = 0; n <= 100; n++) {
        float sum;
        memset(lanes, 0, sizeof(lanes));
        for (size_t i = 0; i < n; i++) lanes[i % 16] += terms[i];
        STRIPED_SUM(sum, i, n, terms[i]);
        wrong += sum != lanes_sum(lanes);
    }
    check(!wrong, "math: STRIPED_SUM adds element i to lane i % 16, for 0 .. 100 terms", "%d of 101 sums differ", wrong);
}

// ---------------------------------------------------------------------------------------------------------------------
// D. product

// The chain that section 4 of the trainer promises, one element at a time; even_first is the planted fault.
static float chain(const float *a, const float *b, size_t K, int even_first) {
    float acc = 0;
    if (product_in_tiles) { // --sum-order tiles: two chains over 32 elements, padded with zeros
        for (size_t k = 0; k < K; k += 32) {
            float even = 0, odd = 0;
            for (size_t i = k; i < k + 32; i += 2) {
                even = fmaf(i < K ? a[i] : 0, i < K ? b[i] : 0, even);
                odd = fmaf(i + 1 < K ? a[i + 1] : 0, i + 1 < K ? b[i + 1] : 0, odd);
            }
            acc = even_first ? acc + even + odd : acc + (even + odd);
        }
        return acc;
    }
    for (size_t k = 0; k < K; k += 2) {
        const float a1 = k + 1 < K ? a[k + 1] : 0, b1 = k + 1 < K ? b[k + 1] : 0;
        if (even_first) acc = fmaf(a1, b1, fmaf(a[k], b[k], acc));
        else acc = fmaf(a[k], b[k], fmaf(a1, b1, acc));
    }
    return acc;
}

static void dtype_put(void *data, Dtype d, size_t i, uint32_t bits) {
    if (dtype_size[d] == 4) memcpy((uint32_t *)data + i, &bits, 4);
    else if (dtype_size[d] == 2) ((uint16_t *)data)[i] = (uint16_t)bits;
    else ((uint8_t *)data)[i] = (uint8_t)bits;
}
static float dtype_value(Dtype d, uint32_t bits) { // denormal floats read as zeros
    const float f = d == DTYPE_FP32   ? bits_float(bits)
                    : d == DTYPE_BF16 ? float_from_bf16((uint16_t)bits)
                    : d == DTYPE_FP16 ? float_from_fp16((uint16_t)bits)
                                      : fp8_decode((uint8_t)bits, d);
    return (float_bits(f) & 0x7f800000) ? f : bits_float(float_bits(f) & 0x80000000);
}
static uint32_t dtype_bits(Dtype d, float f) {
    return d == DTYPE_FP32   ? float_bits(f)
           : d == DTYPE_BF16 ? bf16_from_float(f)
           : d == DTYPE_FP16 ? fp16_from_float(f)
                             : fp8_encode(f, d);
}

// ordinary: numbers around 1. tiny: products around 2^-126, every eighth element a denormal. special: a few Inf and NaN.
enum { ORDINARY, TINY, SPECIAL, TIES };
static uint32_t random_element(Dtype d, int mode, uint64_t i) {
    const uint64_t r = random_u64(77, mode, i);
    const float f = (float)((random_unit(r) - 0.5) * 4);
    if (mode == TINY) {
        if (r % 8 == 0)
            return dtype_size[d] == 1   ? (uint32_t)(r >> 8 & 0x83)
                   : dtype_size[d] == 2 ? (uint32_t)(r >> 8 & 0x807f)
                                        : (uint32_t)(r >> 8 & 0x807fffff);
        return d == DTYPE_FP32 || d == DTYPE_BF16 ? dtype_bits(d, f * bits_float((uint32_t)(52 + r % 25) << 23))
                                                  : dtype_bits(d, f * 0x1p-10f);
    }
    if (mode == TIES) { // 2^30, to which 2^6 (1 + 2^-30) is added: rounded to double first, it would be a tie
        static const float values[4] = {32768, 8 * (1 + 0x1p-10f), 8 * (1 - 0x1p-10f + 0x1p-20f), -8 * (1 + 0x1p-10f)};
        return float_bits(values[r >> 20 & 3]);
    }
    if (mode == SPECIAL && r % 701 == 0) return dtype_bits(d, r & 1024 ? NAN : INFINITY);
    return dtype_bits(d, f);
}

// Whether this build and machine have an instruction for pairs of bf16 in the given order of sums.
static int instruction_exists(int in_tiles) {
    static int amx = -1;
    if (amx < 0) { // what machine_init() chose for this order
        const int before = product_in_tiles, pairs = product_uses_pairs;
        machine_init(1);
        amx = product_uses_pairs;
        product_in_tiles = before, product_uses_pairs = pairs;
    }
    return in_tiles ? amx : HAS_PAIRS;
}

typedef struct {
    size_t cases, differ, touched;
    char first[160];
} ProductResult;

// One shape, in every layout, epilogue, instruction and number of threads, against chains made once.
static void product_shape(ProductResult *result, Dtype da, Dtype db, size_t M, size_t N, size_t K, int mode) {
    const int first_block = block_count;
    const size_t pad = 3, stride = N + 5;
    float *va = take_floats(M * K), *vb = take_floats(N * K), *acc = take_floats(M * N), *bias = take_floats(N),
          *old = take_floats(M * stride);
    float *want = take_floats(M * N), *got = take_floats(M * N), *out32 = take_floats(M * stride);
    stored_t *out16 = take_stored(M * stride);
    char *data[2][2]; // [a or b][layout], padded with 0xff: NaN in every type, so that a read too far is seen
    for (int which = 0; which < 2; which++) {
        const Dtype d = which ? db : da;
        const size_t rows = which ? N : M, across = rows + pad, along = K + pad;
        for (int layout = 0; layout < 2; layout++) {
            const size_t bytes = (layout ? K * across : rows * along) * dtype_size[d];
            data[which][layout] = (char *)take(bytes);
            memset(data[which][layout], 0xff, bytes);
        }
        for (size_t i = 0; i < rows; i++)
            for (size_t k = 0; k < K; k++) {
                const uint32_t bits = random_element(d, mode, (i * K + k) * 2 + which);
                (which ? vb : va)[i * K + k] = dtype_value(d, bits);
                dtype_put(data[which][0], d, i * along + k, bits);
                dtype_put(data[which][1], d, k * across + i, bits);
            }
    }
    threads_set(2);
#pragma omp parallel for
    for (size_t i = 0; i < M * N; i++) acc[i] = chain(va + i / N * K, vb + i % N * K, K, 0);
    const float scale = mode == TINY ? 1 : 0.3f;
    for (size_t j = 0; j < N; j++) bias[j] = mode == TINY ? 0 : (float)normal(8, j);
    for (size_t i = 0; i < M * stride; i++) old[i] = (float)normal(9, i);
    for (int form = 0; form < 4; form++) { // fp32, fp32 accumulated, stored with bias, stored
        for (size_t i = 0; i < M * N; i++) {
            const float v = form == 1   ? fmaf(acc[i], scale, old[i / N * stride + i % N])
                            : form == 2 ? fmaf(acc[i], scale, bias[i % N])
                                        : acc[i] * scale;
            want[i] = form < 2 ? v : float_from_stored(stored_from_float(v));
        }
        for (int variant = 0; variant < 4 * 3 * 2; variant++) { // several threads: not in every combination, for time
            const int la = variant & 1, lb = variant >> 1 & 1, threads = 1 + (variant >> 2) % 3, pairs = variant / 12;
            if (pairs && !instruction_exists(product_in_tiles)) continue;
            if (threads > 1 && (M < 13 || form == 1 || (form + la + lb + threads) % 2)) continue;
            product_uses_pairs = pairs;
            threads_set(threads);
            workspace.threads = threads;
            memcpy(out32, old, M * stride * 4);
            for (size_t i = 0; i < M * stride; i++) out16[i] = stored_from_float(old[i]);
            matmul(output(form < 2 ? (void *)out32 : (void *)out16, form < 2 ? DTYPE_FP32 : STORED, stride, scale,
                          form == 2 ? bias : NULL, form == 1),
                   matrix(data[0][la], da, la ? 1 : K + pad, la ? M + pad : 1),
                   matrix(data[1][lb], db, lb ? 1 : K + pad, lb ? N + pad : 1), M, N, K);
            for (size_t i = 0; i < M; i++)
                for (size_t j = 0; j < stride; j++) {
                    const float v = form < 2 ? out32[i * stride + j] : float_from_stored(out16[i * stride + j]);
                    const float was = form < 2 ? old[i * stride + j] : float_from_stored(stored_from_float(old[i * stride + j]));
                    if (j < N) got[i * N + j] = v;
                    else result->touched += float_bits(v) != float_bits(was);
                }
            const size_t differ = bits_differ(want, got, M * N);
            if (differ && !result->differ)
                snprintf(result->first, sizeof(result->first),
                         "%zu x %zu x %zu, layouts %d %d, form %d, %d threads, pairs %d: %zu elements", M, N, K, la, lb, form,
                         threads, pairs, differ);
            result->cases++, result->differ += differ != 0;
        }
    }
    while (block_count > first_block) free(blocks[--block_count]);
}

// Bytes, scales and counts of quantise_blocks() against the definition, one element at a time; then products of such bytes against
// chains over the numbers that they stand for.
static void test_blocks(void) {
#if IS_FP8
    static const struct {
        const char *name;
        int rule;
        int across, along, power2;
        Dtype format;
    } recipes[] = {
        {"rowwise", SCALING_ROWWISE, 1, INT_MAX, 1, DTYPE_E4M3}, {"block, x and dy", SCALING_BLOCK, 1, 128, 1, DTYPE_E4M3},
        {"block, w", SCALING_BLOCK, 128, 128, 1, DTYPE_E4M3},    {"mx, up", SCALING_MX, 1, 32, 1, DTYPE_E4M3},
        {"mx, floor", SCALING_MX, 1, 32, 2, DTYPE_E4M3},         {"mx, floor, E5M2", SCALING_MX, 1, 32, 2, DTYPE_E5M2}};
    static const size_t shapes[][2] = {{1, 1}, {37, 300}, {64, 1100}, {130, 33}, {300, 64}};
    char name[160];
    for (size_t n = 0; n < sizeof(recipes) / sizeof(recipes[0]); n++) {
        size_t wrong = 0, counts = 0, sqnr = 0, products = 0;
        const ScalingRecipe r = {recipes[n].format, recipes[n].rule, 1, 1, 0, recipes[n].power2, 0,
                                 recipes[n].across, recipes[n].along};
        const float most = recipes[n].format == DTYPE_E4M3 ? 448 : 57344;
        for (size_t shape = 0; shape < 5; shape++)
            for (int along_rows = 0; along_rows < 2; along_rows++) {
                const size_t rows = shapes[shape][0], columns = shapes[shape][1], count = rows * columns;
                const size_t I = along_rows ? columns : rows, K = along_rows ? rows : columns;
                const size_t blocks = ceil_div(K, r.along), all = ceil_div(I, r.across) * blocks;
                stored_t *x = normal_stored(count, 1, 90 + shape);
                for (size_t i = 0; i < count; i++) { // binades far apart; a quiet row; shape 3 has what is not finite
                    x[i] = stored_from_float(float_from_stored(x[i]) * bits_float((uint32_t)(117 + i / 7 % 20) << 23));
                    if (i / columns == 2) x[i] = 0;
                    if (shape == 3 && i % 501 == 77) x[i] = stored_from_float(i % 2 ? NAN : -INFINITY);
                }
                uint8_t *q = (uint8_t *)take(count);
                float *inv = take_floats(all), *scale = take_floats(all), *amax = take_floats(all);
                Fp8Scale s = scale_make(&r);
                threads_set(1 + (int)(shape % 3));
                quantise_blocks(q, inv, x, rows, columns, along_rows, &s, RECORD_SQNR);
                memset(amax, 0, all * sizeof(float));
                uint64_t saturated = 0, flushed = 0, nonfinite = 0;
                double signal = 0, noise = 0;
                for (int pass = 0; pass < 2; pass++) {
                    for (size_t i = 0; i < count; i++) {
                        const size_t row = i / columns, column = i % columns;
                        const size_t b =
                            (along_rows ? column : row) / (size_t)r.across * blocks + (along_rows ? row : column) / (size_t)r.along;
                        const float f = float_from_stored(x[i]);
                        if (pass == 0) amax[b] = isnan(f) || isnan(amax[b]) ? NAN : MAX(amax[b], fabsf(f));
                        else {
                            const uint8_t want = fp8_encode(f * scale[b], r.format);
                            wrong += q[i] != want || inv[b] != 1 / scale[b];
                            saturated += fabsf(f * scale[b]) > (r.format == DTYPE_E4M3 ? 464 : 61439.99f) && !isnan(f);
                            flushed += (want & 0x7f) == 0 && f != 0, nonfinite += !isfinite(f);
                            const double lost = (double)f - (double)fp8_decode(want, r.format) / (double)scale[b];
                            signal += (double)f * (double)f, noise += lost * lost;
                        }
                    }
                    for (size_t b = 0; pass == 0 && b < all; b++) { // in doubles, from the rule's words
                        int e, e_most;
                        frexp(amax[b], &e), frexp(most, &e_most);
                        const double exact =
                            r.power2 == 2 ? ldexp(1, e_most - e) : exp2(floor(log2((double)most / (double)amax[b])));
                        scale[b] = amax[b] > 0 && isfinite(amax[b]) ? (float)exact : 1;
                    }
                }
                const Fp8Stats *t = &s.step;
                counts += t->saturated != saturated || t->flushed != flushed || t->nonfinite != nonfinite || t->count != count;
                sqnr += isfinite(signal) && !(fabs(t->signal - signal) <= 1e-5 * signal && fabs(t->noise - noise) <= 1e-5 * noise);
            }
        // a [M, K] and b [N, K], each in both layouts
        enum { M = 33, N = 40, K = 300 };
        float *va[2], *vb[2], *want = take_floats(M * N), *got = take_floats(M * N);
        Matrix a[2], b[2];
        for (int which = 0; which < 2; which++)
            for (int layout = 0; layout < 2; layout++) {
                const size_t I = which ? N : M, blocks = ceil_div(K, r.along);
                stored_t *x = normal_stored(I * K, 3, 95 + which);
                uint8_t *q = (uint8_t *)take(I * K);
                float *inv = take_floats(ceil_div(I, r.across) * blocks), *v = (which ? vb : va)[layout] = take_floats(I * K);
                Fp8Scale s = scale_make(&r);
                quantise_blocks(q, inv, x, layout ? K : I, layout ? I : K, layout, &s, RECORD_NONE);
                for (size_t i = 0; i < I; i++)
                    for (size_t k = 0; k < K; k++)
                        v[i * K + k] = fp8_decode(q[layout ? k * I + i : i * K + k], r.format) *
                                       inv[i / (size_t)r.across * blocks + k / (size_t)r.along];
                (which ? b : a)[layout] = operand_bytes(&s, q, inv, layout ? 1 : K, layout ? I : 1, K);
            }
        const int before = product_uses_pairs;
        for (int way = 0; way < 8; way++) {
            const int la = way & 1, lb = way >> 1 & 1;
            if (way >= 4 && !instruction_exists(product_in_tiles)) break;
            product_uses_pairs = way >= 4;
            for (size_t i = 0; i < M * N; i++) want[i] = chain(va[la] + i / N * K, vb[lb] + i % N * K, K, 0);
            matmul(output(got, DTYPE_FP32, N, 1, NULL, 0), a[la], b[lb], M, N, K);
            products += bits_differ(want, got, M * N);
        }
        product_uses_pairs = before;
        snprintf(name, sizeof(name), "blocks: bytes and scales of %s equal the definition", recipes[n].name);
        check(!wrong && !counts && !sqnr, name, "%zu elements differ, %zu counts, %zu SQNR", wrong, counts, sqnr);
        snprintf(name, sizeof(name), "blocks: products of %s%s are chains over what the bytes stand for", recipes[n].name,
                 product_in_tiles ? ", in tiles," : "");
        check(!products, name, "%zu elements differ", products);
    }
    threads_set(2);
#endif
}

static void test_product(void) {
    const int pairs_before = product_uses_pairs;
    const size_t shapes[][3] = {{1, 1, 1},     {2, 3, 7},      {7, 17, 2},    {17, 64, 65},   {65, 130, 64},
                                {130, 65, 17}, {3, 64, 1},     {64, 7, 130},  {13, 129, 127}, {61, 33, 128},
                                {6, 5, 1025},  {64, 65, 2100}, {9, 17, 4100}, {1600, 20, 65}};
    const Dtype kinds[4][2] = {{STORED, STORED}, {DTYPE_E4M3, DTYPE_E4M3}, {DTYPE_E5M2, DTYPE_E4M3}, {DTYPE_E4M3, DTYPE_E5M2}};
    workspace_free();
    threads_set(3);
    workspace_init(65536, 0); // slices for 3 threads, of which fewer are used below
    for (int kind = 0; kind < (IS_FP8 ? 4 : 1); kind++)
        for (int mode = 0; mode < (PRECISION == PRECISION_FP32 ? 4 : 3); mode++) {
            static const char *const modes[4] = {"ordinary numbers", "tiny numbers and denormals", "some Inf and NaN", "ties"};
            char name[160];
            ProductResult r;
            memset(&r, 0, sizeof(r));
            for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
                if (mode == ORDINARY || i % 3 == 0 || i == 10)
                    product_shape(&r, kinds[kind][0], kinds[kind][1], shapes[i][0], shapes[i][1], shapes[i][2], mode);
            snprintf(name, sizeof(name), "product %s x %s%s: the bits of the chain in every layout, epilogue, thread count; %s",
                     dtype_names[kinds[kind][0]], dtype_names[kinds[kind][1]], product_in_tiles ? " in tiles" : "", modes[mode]);
            check(!r.differ && !r.touched, name, "%zu of %zu cases differ, first: %s; %zu elements beyond a row were written",
                  r.differ, r.cases, r.first, r.touched);
        }
    const size_t n = 64;
    stored_t *a = normal_stored(n * n, 1, 1), *b = normal_stored(n * n, 1, 2);
    float *fa = take_floats(n * n), *fb = take_floats(n * n), *want = take_floats(n * n), *swapped = take_floats(n * n),
          *out = take_floats(n * n);
    for (size_t i = 0; i < n * n; i++) fa[i] = float_from_stored(a[i]), fb[i] = float_from_stored(b[i]);
    for (size_t i = 0; i < n * n; i++)
        want[i] = chain(fa + i / n * n, fb + i % n * n, n, 0), swapped[i] = chain(fa + i / n * n, fb + i % n * n, n, 1);
    matmul(output(out, DTYPE_FP32, n, 1, NULL, 0), matrix(a, STORED, n, 1), matrix(b, STORED, n, 1), n, n, n);
    check(!bits_differ(want, out, n * n) && bits_differ(swapped, out, n * n) > 0, "planted fault: a sum in another order is caught",
          "%zu bits differ", bits_differ(swapped, out, n * n));
    matmul(output(out, DTYPE_FP32, n, 1, NULL, 0), matrix(a, STORED, n, 1), matrix(b, STORED, 1, n), n, n, n);
    check(bits_differ(want, out, n * n) > 0, "planted fault: a transposed operand of a square product is caught", "no bit differs");
    product_uses_pairs = pairs_before;
}

// ---------------------------------------------------------------------------------------------------------------------
// E. layers: references in doubles, written from the equations

static void layers_workspace(int T, int hs) {
    AttentionBuffers w;
    workspace_free();
    workspace_init(1 << 18, attention_buffers(&w, NULL, T, hs));
}

static void attention_reference(double *out, double *dqkv, const double *dout, const double *qkv, int B, int T, int C, int NH) {
    const int hs = C / NH, S = 3 * C;
    double *p = (double *)malloc(T * sizeof(double)), *dp = (double *)malloc(T * sizeof(double));
    memset(out, 0, (B * T * C) * sizeof(double));
    if (dqkv) memset(dqkv, 0, (B * T * S) * sizeof(double));
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const double *base = qkv + b * T * S + h * hs, *q = base + i * S;
                double max = -INFINITY, sum = 0, dot = 0, *o = out + (b * T + i) * C + h * hs;
                for (int j = 0; j <= i; j++) {
                    p[j] = 0;
                    for (int c = 0; c < hs; c++) p[j] += q[c] * base[j * S + C + c];
                    p[j] /= sqrt(hs), max = fmax(max, p[j]);
                }
                for (int j = 0; j <= i; j++) sum += p[j] = exp(p[j] - max);
                for (int j = 0; j <= i; j++) {
                    p[j] /= sum;
                    for (int c = 0; c < hs; c++) o[c] += p[j] * base[j * S + 2 * C + c];
                }
                if (!dqkv) continue;
                const double *g = dout + (b * T + i) * C + h * hs;
                double *dbase = dqkv + b * T * S + h * hs;
                for (int j = 0; j <= i; j++) {
                    dp[j] = 0;
                    for (int c = 0; c < hs; c++) dp[j] += g[c] * base[j * S + 2 * C + c], dbase[j * S + 2 * C + c] += p[j] * g[c];
                    dot += p[j] * dp[j];
                }
                for (int j = 0; j <= i; j++)
                    for (int c = 0; c < hs; c++) {
                        const double ds = p[j] * (dp[j] - dot) / sqrt(hs);
                        dbase[i * S + c] += ds * base[j * S + C + c], dbase[j * S + C + c] += ds * q[c];
                    }
            }
    free(p), free(dp);
}

// y = layernorm(x); with dy: dx +=, dweight +=, dbias +=.
static void layernorm_reference(double *y, const double *x, const double *w, const double *b, int rows, int C, const double *dy,
                                double *dx, double *dw, double *db) {
    for (int r = 0; r < rows; r++, x += C) {
        double mean = 0, variance = 0, m1 = 0, m2 = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
        const double rstd = 1 / sqrt(variance + 1e-5);
        for (int c = 0; y && c < C; c++) y[r * C + c] = (x[c] - mean) * rstd * w[c] + b[c];
        for (int c = 0; dy && c < C; c++) m1 += dy[r * C + c] * w[c] / C, m2 += dy[r * C + c] * w[c] * (x[c] - mean) * rstd / C;
        for (int c = 0; dy && c < C; c++) {
            const double norm = (x[c] - mean) * rstd;
            dx[r * C + c] += rstd * (dy[r * C + c] * w[c] - m1 - norm * m2), dw[c] += dy[r * C + c] * norm, db[c] += dy[r * C + c];
        }
    }
}

static double gelu_reference(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x))); }

// y[M, N] = x[M, K] w[N, K]^T + b
static void linear_reference(double *y, const double *x, const double *w, const double *b, int M, int N, int K) {
#pragma omp parallel for
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = b ? b[j] : 0;
            for (int k = 0; k < K; k++) sum += x[i * K + k] * w[j * K + k];
            y[i * N + j] = sum;
        }
}

static double cross_entropy_reference(const double *z, int V, int target) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < V; j++) max = fmax(max, z[j]);
    for (int j = 0; j < V; j++) sum += exp(z[j] - max);
    return log(sum) + max - z[target];
}

static void test_layers(void) {
    // Attention: T across blocks of 64 queries and no multiple of 16; heads of one vector, of four, and not of whole ones.
    const int shapes[][4] = {{2, 70, 32, 2}, {1, 131, 64, 1}, {1, 64, 128, 2}, {2, 5, 24, 2}, {1, 1, 16, 1}};
    for (size_t k = 0; k < 5; k++) {
        const int B = shapes[k][0], T = shapes[k][1], C = shapes[k][2], NH = shapes[k][3];
        const size_t n = (B * T * C);
        layers_workspace(T, C / NH);
        stored_t *qkv = normal_stored(3 * n, 1, 21 + k), *dout = normal_stored(n, 1, 31 + k), *out = take_stored(n),
                 *dqkv = take_stored(3 * n);
        double *want = take_doubles(n), *dwant = take_doubles(3 * n), *g = doubles_of_stored(dout, n);
        attention_reference(want, dwant, g, doubles_of_stored(qkv, 3 * n), B, T, C, NH);
        attention_forward(out, qkv, B, T, 0, C, NH);
        attention_backward(dqkv, dout, qkv, B, T, C, NH);
        // Forward: probabilities and the output are each rounded once. Backward: score gradients (p only for dv), the output.
        check_error(label("attention: forward equals the definition in doubles, T %d, head %d", T, C / NH),
                    likeness_stored(want, out, n), 2 * UNIT + FP32_WORK);
        check_error(label("attention: backward equals the equations in doubles, T %d, head %d", T, C / NH),
                    likeness_stored(dwant, dqkv, 3 * n), 2 * UNIT + FP32_WORK);
        if (k) continue;
        double *later = take_doubles(n); // sees one key too many: what a wrong causal mask would do
        memcpy(later, want, n * sizeof(double));
        for (int t = 0; t + 1 < T; t++) memcpy(later + t * C, want + (t + 1) * C, C * sizeof(double));
        check(likeness_stored(later, out, n).error > 2 * UNIT + FP32_WORK,
              "planted fault: attention shifted by one position is caught", "not caught");
    }

    // Layernorm, with the residual addition; C is no multiple of 16, rows are no multiple of a block.
    const int rows = 75, C = 100;
    const size_t n = (rows * C);
    stored_t *a = normal_stored(n, 1, 41), *b = normal_stored(n, 1, 42), *res = take_stored(n), *normed = take_stored(n),
             *dout = normal_stored(n, 1, 43), *dres = normal_stored(n, 1, 44);
    float *w = normal_floats(C, 1, 45), *bias = normal_floats(C, 1, 46), *mean = take_floats(rows), *rstd = take_floats(rows);
    float *dw = normal_floats(C, 1, 47), *db = normal_floats(C, 1, 48), *partial = take_floats(2 * 3 * C);
    double *da = doubles_of_stored(a, n), *bd = doubles_of_stored(b, n), *dx = doubles_of_stored(dres, n),
           *dwant = doubles_of_floats(dw, C), *dbwant = doubles_of_floats(db, C);
    residual_layernorm_forward(res, normed, mean, rstd, a, b, w, bias, rows, C);
    int sum_wrong = 0;
    for (size_t i = 0; i < n; i++)
        sum_wrong += float_from_stored(res[i]) != float_from_stored(stored_from_float((float)(da[i] + bd[i])));
    check(!sum_wrong, "layernorm: the residual sum is rounded once", "%d of %zu differ", sum_wrong, n);
    double *y = take_doubles(n), *xr = doubles_of_stored(res, n), *wd = doubles_of_floats(w, C),
           *biasd = doubles_of_floats(bias, C);
    layernorm_reference(y, xr, wd, biasd, rows, C, doubles_of_stored(dout, n), dx, dwant, dbwant);
    check_error("layernorm: forward equals the definition in doubles", likeness_stored(y, normed, n), UNIT + FP32_WORK);
    layernorm_backward(dres, dw, db, dout, res, mean, rstd, w, partial, rows, C);
    check_error("layernorm: backward adds to the gradient of the residual stream", likeness_stored(dx, dres, n), UNIT + FP32_WORK);
    check_error("layernorm: backward adds to dweight", likeness_floats(dwant, dw, C), FP32_WORK);
    check_error("layernorm: backward adds to dbias", likeness_floats(dbwant, db, C), FP32_WORK);

    // GELU, over the range where its branches differ, forwards and backwards.
    double *gw = take_doubles(n), *dgw = take_doubles(n);
    stored_t *x = normal_stored(n, 3, 51), *gelu = take_stored(n), *dgelu = take_stored(n);
    memcpy(dgelu, dout, n * sizeof(stored_t));
    for (size_t i = 0; i < n; i++) {
        const double v = (double)float_from_stored(x[i]), h = 1e-5;
        gw[i] = gelu_reference(v),
        dgw[i] = (gelu_reference(v + h) - gelu_reference(v - h)) / (2 * h) * (double)float_from_stored(dout[i]);
    }
    gelu_forward(gelu, x, n), gelu_backward(dgelu, x, n);
    check_error("gelu: forward equals tanh's formula in doubles", likeness_stored(gw, gelu, n), UNIT + FP32_WORK);
    check_error("gelu: backward equals the slope of the formula", likeness_stored(dgw, dgelu, n), UNIT + FP32_WORK);
    const stored_t far[4] = {stored_from_float(-60), stored_from_float(60), stored_from_float(-1e4f), stored_from_float(0)};
    stored_t at_far[4];
    gelu_forward(at_far, far, 4);
    check(float_from_stored(at_far[0]) == 0 && float_from_stored(at_far[1]) == float_from_stored(far[1]) &&
              float_from_stored(at_far[2]) == 0 && float_from_stored(at_far[3]) == 0,
          "gelu: far out it is 0 and x", "%g %g", (double)float_from_stored(at_far[0]), (double)float_from_stored(at_far[1]));

    // Classifier: padded columns hold nonsense that must not matter; a target of -1 counts nothing.
    const int R = 37, V = 75, Vp = 128;
    float *logits = normal_floats((R * Vp), 3, 61), *losses = take_floats(R);
    stored_t *dl = take_stored((R * Vp));
    double *z = doubles_of_floats(logits, (R * Vp)), *lw = take_doubles(R), *dlw = take_doubles((R * Vp));
    int targets[37], padding = 0;
    const float dscale = 0.25f;
    for (int r = 0; r < R; r++) {
        targets[r] = r % 7 == 3 ? -1 : (r * 31) % V;
        if (targets[r] < 0) continue;
        lw[r] = cross_entropy_reference(z + r * Vp, V, targets[r]);
        for (int j = 0; j < V; j++)
            dlw[r * Vp + j] = (double)dscale * (exp(-cross_entropy_reference(z + r * Vp, V, j)) - (j == targets[r]));
    }
    classifier(losses, dl, logits, targets, R, V, Vp, dscale);
    for (int r = 0; r < R; r++)
        for (int j = V; j < Vp; j++) padding += float_from_stored(dl[r * Vp + j]) != 0;
    check_error("classifier: losses equal the definition in doubles", likeness_floats(lw, losses, R), FP32_WORK);
    check_error("classifier: dlogits equal (p - onehot) * scale", likeness_stored(dlw, dl, (R * Vp)), UNIT + FP32_WORK);
    check(!padding && losses[3] == 0, "classifier: the padded vocabulary gets exactly zero, a target of -1 no loss", "%d not zero",
          padding);

    // Linear, against doubles, in the builds whose operands are exact.
    if (IS_FP8) return;
    const int M = 45, in = 70, out_n = 33;
    layers_workspace(1, 16);
    stored_t *lx = normal_stored((M * in), 1, 71), *ldy = normal_stored((M * out_n), 1, 72), *ly = take_stored((M * out_n)),
             *ldx = take_stored((M * in)), *lwt = normal_stored((out_n * in), 1, 73);
    float *ldw = normal_floats((out_n * in), 1, 74), *ldb = normal_floats(out_n, 1, 75), *lb = normal_floats(out_n, 1, 76),
          *lpartial = take_floats(2 * out_n);
    Linear f;
    memset(&f, 0, sizeof(f));
    f.w = (const operand_t *)(const void *)lwt, f.bias = lb, f.dw = ldw, f.dbias = ldb, f.in = in, f.out = out_n;
    double *xd = doubles_of_stored(lx, (M * in)), *dyd = doubles_of_stored(ldy, (M * out_n)),
           *lwd = doubles_of_stored(lwt, (out_n * in));
    double *yw = take_doubles((M * out_n)), *dxw = take_doubles((M * in)), *dww = doubles_of_floats(ldw, (out_n * in)),
           *dbw = doubles_of_floats(ldb, out_n);
    linear_reference(yw, xd, lwd, doubles_of_floats(lb, out_n), M, out_n, in);
    for (int i = 0; i < M; i++)
        for (int o = 0; o < out_n; o++) {
            const double g = dyd[i * out_n + o];
            for (int c = 0; c < in; c++) dxw[i * in + c] += g * lwd[o * in + c], dww[o * in + c] += g * xd[i * in + c];
            dbw[o] += g;
        }
    linear_forward(&f, ly, STORED, lx, (operand_t *)(void *)lx, M, 0);
    linear_backward(&f, ldx, ldy, (operand_t *)(void *)lx, NULL, lpartial, M, 0);
    check_error("linear: forward equals x w^T + bias in doubles", likeness_stored(yw, ly, (M * out_n)), UNIT + FP32_WORK);
    check_error("linear: dgrad equals dy w", likeness_stored(dxw, ldx, (M * in)), UNIT + FP32_WORK);
    check_error("linear: wgrad adds dy^T x", likeness_floats(dww, ldw, (out_n * in)), FP32_WORK);
    check_error("linear: the bias gradient adds the column sums of dy", likeness_floats(dbw, ldb, out_n), FP32_WORK);
}

// ---- gradients against central finite differences, in the fp32 build, where a small step is not lost in rounding

// L = sum w_i y_i + 0.5 c_i y_i^2 with random w and c: no plain sum, which a gradient of ones would satisfy.
typedef struct {
    double (*forward)(void *layer); // the loss L of the layer's outputs
    void *layer;
} Objective;

static double weighted_loss(const stored_t *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double v = (double)float_from_stored(y[i]);
        sum += normal(101, i) * v + 0.5 * normal(102, i) * v * v;
    }
    return sum;
}
static void weighted_gradient(stored_t *dy, const stored_t *y, size_t n) {
    for (size_t i = 0; i < n; i++)
        dy[i] = stored_from_float((float)(normal(101, i) + normal(102, i) * (double)float_from_stored(y[i])));
}

// The derivative at up to 96 elements of x; what the trainer says of the same elements lies in `gradient`.
static Likeness finite_difference(Objective o, float *x, size_t n, const float *gradient, int ones) {
    const size_t samples = n < 96 ? n : 96;
    double want[96], found[96];
    for (size_t k = 0; k < samples; k++) {
        const size_t i = n <= 96 ? k : (random_u64(55, n, k) % n);
        const float was = x[i], h = 0x1p-7f;
        x[i] = was + h;
        const double up = o.forward(o.layer), width_up = (double)x[i];
        x[i] = was - h;
        const double down = o.forward(o.layer), width = width_up - (double)x[i];
        x[i] = was;
        want[k] = (up - down) / width, found[k] = ones ? 1 : (double)gradient[i];
    }
    return likeness(want, found, samples);
}
// fp32 noise of the loss is about 1e-7 of its terms over a step of 2^-7, the difference's own error h^2 / 6 = 1e-5 L'''.
#define FD_TOLERANCE 2e-3

#if PRECISION == PRECISION_FP32
typedef struct {
    float *in, *more, *out, *weight, *bias, *mean, *rstd; // whatever the layer has
    int B, T, C, NH, *tokens;
} Layer;
static double loss_attention(void *p) {
    Layer *l = (Layer *)p;
    attention_forward(l->out, l->in, l->B, l->T, 0, l->C, l->NH);
    return weighted_loss(l->out, (l->B * l->T * l->C));
}
static double loss_layernorm(void *p) {
    Layer *l = (Layer *)p;
    const size_t n = (l->T * l->C);
    float *sum = (float *)malloc(n * 4);
    residual_layernorm_forward(sum, l->out, l->mean, l->rstd, l->in, l->more, l->weight, l->bias, l->T, l->C);
    free(sum);
    return weighted_loss(l->out, n);
}
static double loss_gelu(void *p) {
    Layer *l = (Layer *)p;
    gelu_forward(l->out, l->in, l->T);
    return weighted_loss(l->out, l->T);
}
static double loss_linear(void *p) {
    Layer *l = (Layer *)p;
    Linear f;
    memset(&f, 0, sizeof(f));
    f.w = l->weight, f.bias = l->bias, f.in = l->C, f.out = l->NH;
    linear_forward(&f, l->out, STORED, l->in, l->in, l->T, 0);
    return weighted_loss(l->out, (l->T * l->NH));
}
static double loss_encoder(void *p) {
    Layer *l = (Layer *)p;
    encoder_forward(l->out, l->tokens, l->in, l->more, l->B, l->T, 0, l->C);
    return weighted_loss(l->out, (l->B * l->T * l->C));
}
static double loss_classifier(void *p) {
    Layer *l = (Layer *)p;
    float *logits = (float *)malloc((l->T * l->C) * 4);
    double sum = 0;
    memcpy(logits, l->in, (l->T * l->C) * 4); // the classifier works in place
    classifier(l->out, NULL, logits, l->tokens, l->T, l->NH, l->C, 1);
    for (int r = 0; r < l->T; r++) sum += (double)l->out[r];
    free(logits);
    return sum;
}

static void test_gradients(void) {
    const int shapes[][4] = {{2, 37, 32, 2}, {1, 75, 64, 1}, {1, 66, 48, 3}};
    for (int k = 0; k < 3; k++) { // T not a multiple of 64, and beyond 64; heads of 16 and 64
        Layer l;
        memset(&l, 0, sizeof(l));
        l.B = shapes[k][0], l.T = shapes[k][1], l.C = shapes[k][2], l.NH = shapes[k][3];
        const size_t n = (l.B * l.T * l.C);
        layers_workspace(l.T, l.C / l.NH);
        l.in = normal_floats(3 * n, 1, 201), l.out = take_floats(n);
        float *d = take_floats(n), *dqkv = take_floats(3 * n);
        Objective o = {loss_attention, &l};
        loss_attention(&l);
        weighted_gradient(d, l.out, n);
        attention_backward(dqkv, d, l.in, l.B, l.T, l.C, l.NH);
        check_gradient(label("finite differences: attention, T %d, head %d", l.T, l.C / l.NH),
                       finite_difference(o, l.in, 3 * n, dqkv, 0), FD_TOLERANCE);
        if (k) continue;
        check(!gradient_right(finite_difference(o, l.in, 3 * n, dqkv, 1), FD_TOLERANCE),
              "planted fault: a gradient of ones is caught", "it passed");
        for (size_t i = 0; i < 3 * n; i++) dqkv[i] *= 2;
        check(!gradient_right(finite_difference(o, l.in, 3 * n, dqkv, 0), FD_TOLERANCE),
              "planted fault: a gradient of twice the length is caught", "it passed");
    }
    Layer l;
    memset(&l, 0, sizeof(l));
    l.T = 70, l.C = 50; // rows over three blocks of 32
    size_t n = (l.T * l.C), C = l.C;
    l.in = normal_floats(n, 1, 211), l.more = normal_floats(n, 1, 212), l.weight = normal_floats(C, 1, 213),
    l.bias = normal_floats(C, 1, 214);
    l.out = take_floats(n), l.mean = take_floats(l.T), l.rstd = take_floats(l.T);
    float *d = take_floats(n), *dx = take_floats(n), *dw = take_floats(C), *db = take_floats(C), *sum = take_floats(n),
          *partial = take_floats(8 * C);
    Objective layernorm = {loss_layernorm, &l};
    for (size_t i = 0; i < n; i++) sum[i] = l.in[i] + l.more[i];
    loss_layernorm(&l);
    weighted_gradient(d, l.out, n);
    layernorm_backward(dx, dw, db, d, sum, l.mean, l.rstd, l.weight, partial, l.T, C);
    check_gradient("finite differences: layernorm, left term of the residual sum", finite_difference(layernorm, l.in, n, dx, 0),
                   FD_TOLERANCE);
    check_gradient("finite differences: layernorm, right term", finite_difference(layernorm, l.more, n, dx, 0), FD_TOLERANCE);
    check_gradient("finite differences: layernorm, weight", finite_difference(layernorm, l.weight, C, dw, 0), FD_TOLERANCE);
    check_gradient("finite differences: layernorm, bias", finite_difference(layernorm, l.bias, C, db, 0), FD_TOLERANCE);

    Objective gelu = {loss_gelu, &l};
    l.T = 333;
    loss_gelu(&l);
    weighted_gradient(d, l.out, 333);
    gelu_backward(d, l.in, 333);
    check_gradient("finite differences: gelu", finite_difference(gelu, l.in, 333, d, 0), FD_TOLERANCE);

    Objective linear = {loss_linear, &l};
    l.T = 35, l.C = 40, l.NH = 30; // rows, in, out
    layers_workspace(1, 16);
    Linear f;
    memset(&f, 0, sizeof(f));
    l.weight = normal_floats(1200, 1, 221), l.bias = normal_floats(30, 1, 222);
    f.w = l.weight, f.bias = l.bias, f.in = 40, f.out = 30, f.dw = take_floats(1200), f.dbias = take_floats(30);
    loss_linear(&l);
    weighted_gradient(d, l.out, 1050);
    linear_backward(&f, dx, d, l.in, NULL, partial, 35, 0);
    check_gradient("finite differences: linear, x", finite_difference(linear, l.in, 1400, dx, 0), FD_TOLERANCE);
    check_gradient("finite differences: linear, w", finite_difference(linear, l.weight, 1200, f.dw, 0), FD_TOLERANCE);
    check_gradient("finite differences: linear, bias", finite_difference(linear, l.bias, 30, f.dbias, 0), FD_TOLERANCE);

    int tokens[40];
    Objective encoder = {loss_encoder, &l};
    l.B = 2, l.T = 20, l.C = 24, l.tokens = tokens;
    for (int i = 0; i < 40; i++) tokens[i] = i * i % 11;
    l.in = normal_floats(11 * 24, 1, 231), l.more = normal_floats(20 * 24, 1, 232);
    float *dwte = take_floats(11 * 24), *dwpe = take_floats(20 * 24);
    loss_encoder(&l);
    weighted_gradient(d, l.out, 960);
    encoder_backward(dwte, dwpe, d, tokens, 2, 20, 24);
    check_gradient("finite differences: encoder, token embeddings", finite_difference(encoder, l.in, 11 * 24, dwte, 0),
                   FD_TOLERANCE);
    check_gradient("finite differences: encoder, position embeddings", finite_difference(encoder, l.more, 20 * 24, dwpe, 0),
                   FD_TOLERANCE);

    Objective cross_entropy = {loss_classifier, &l};
    l.T = 9, l.C = 128, l.NH = 100; // rows, padded vocabulary, vocabulary
    l.in = normal_floats(9 * 128, 2, 241);
    for (int i = 0; i < 9; i++) tokens[i] = i == 4 ? -1 : i * 12;
    float *logits = take_floats(9 * 128), *losses = take_floats(9), *dlogits = take_floats(9 * 128);
    memcpy(logits, l.in, 9 * 128 * 4);
    classifier(losses, dlogits, logits, tokens, 9, 100, 128, 1);
    check_gradient("finite differences: classifier", finite_difference(cross_entropy, l.in, 9 * 128, dlogits, 0), FD_TOLERANCE);
}
#else
static void test_gradients(void) { (void)finite_difference, (void)weighted_gradient, (void)check_gradient; }
#endif

// ---------------------------------------------------------------------------------------------------------------------
// F. fp8 layer

typedef struct {
    Linear f;
    Fp8Scale scale[NOPERAND];
    ScalingRecipe recipe[NOPERAND];
    uint8_t *w, *kept, *dy_bytes;
    stored_t *x, *y, *dx, *dy, *w16;
    float *partial;
    size_t rows;
} Fp8Layer;

static void fp8_layer_make(Fp8Layer *l, size_t rows, size_t in, size_t out) {
    memset(l, 0, sizeof(*l));
    for (int i = 0; i < NOPERAND; i++) {
        const ScalingRecipe r = {i == OPERAND_DY ? DTYPE_E5M2 : DTYPE_E4M3, SCALING_DELAYED, 4, 1, 0, 0, 0, 0, 0};
        l->recipe[i] = r, l->scale[i] = scale_make(&l->recipe[i]);
    }
    l->rows = rows, l->f.in = in, l->f.out = out;
    l->w = (uint8_t *)take(in * out), l->kept = (uint8_t *)take(rows * in), l->dy_bytes = (uint8_t *)take(rows * out);
    l->x = normal_stored(rows * in, 1, 301), l->dy = normal_stored(rows * out, 1e-5, 302),
    l->w16 = normal_stored(in * out, 0.02, 303);
    l->y = take_stored(rows * out), l->dx = take_stored(rows * in), l->partial = take_floats((rows + ROWS - 1) / ROWS * out);
    l->f.w = (const operand_t *)(const void *)l->w, l->f.dw = take_floats(in * out), l->f.dbias = take_floats(out);
    l->f.scales = l->scale;
    l->scale[OPERAND_W].kept_inv = quantise(l->w, l->w16, in * out, &l->scale[OPERAND_W], RECORD_STATS);
}
static void fp8_layer_run(Fp8Layer *l) {
    memset(l->f.dw, 0, l->f.in * l->f.out * 4), memset(l->f.dbias, 0, l->f.out * 4);
    linear_forward(&l->f, l->y, STORED, l->x, (operand_t *)(void *)l->kept, l->rows, 1);
    linear_backward(&l->f, l->dx, l->dy, (const operand_t *)(const void *)l->kept, l->dy_bytes, l->partial, l->rows, 1);
}
static size_t nan_count(const stored_t *x, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += float_from_stored(x[i]) != float_from_stored(x[i]);
    return count;
}
static double cast_sqnr(const stored_t *x, const uint8_t *q, size_t n, Dtype d, float inv) {
    double *back = take_doubles(n);
    for (size_t i = 0; i < n; i++) back[i] = code_value(q[i], d) * (double)inv;
    return likeness(doubles_of_stored(x, n), back, n).sqnr;
}

static void test_fp8_layer(void) {
    if (!IS_FP8) return;
    const size_t rows = 130, in = 192, out = 160;
    Fp8Layer l;
    layers_workspace(1, 16);
    fp8_layer_make(&l, rows, in, out);
    fp8_layer_run(&l);
    // torchao's floors: 25 dB for a cast and a product, 18 dB for a layer's output, 17 dB for its weight gradient. A cast to m
    // mantissa bits of normal numbers leaves about 6 (m + 1) + 7 dB: 31 for E4M3, 25 for E5M2.
    const double cx = cast_sqnr(l.x, l.kept, rows * in, DTYPE_E4M3, l.scale[OPERAND_X].kept_inv),
                 cw = cast_sqnr(l.w16, l.w, in * out, DTYPE_E4M3, l.scale[OPERAND_W].kept_inv);
    const double cdy = cast_sqnr(l.dy, l.dy_bytes, rows * out, DTYPE_E5M2, 1 / l.scale[OPERAND_DY].scale);
    check(cx >= 25 && cw >= 25 && cdy >= 25, "fp8 layer: SQNR of the casts of x, w and dy is at least 25 dB", "%.1f, %.1f, %.1f dB",
          cx, cw, cdy);
    double *x = doubles_of_stored(l.x, rows * in), *w = doubles_of_stored(l.w16, in * out),
           *dy = doubles_of_stored(l.dy, rows * out);
    double *y = take_doubles(rows * out), *dx = take_doubles(rows * in), *dw = take_doubles(in * out), *wt = take_doubles(in * out),
           *dyt = take_doubles(rows * out), *xt = take_doubles(rows * in);
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++) wt[i * out + o] = w[o * in + i];
    for (size_t r = 0; r < rows; r++) {
        for (size_t o = 0; o < out; o++) dyt[o * rows + r] = dy[r * out + o];
        for (size_t i = 0; i < in; i++) xt[i * rows + r] = x[r * in + i];
    }
    linear_reference(y, x, w, NULL, (int)rows, (int)out, (int)in);
    linear_reference(dx, dy, wt, NULL, (int)rows, (int)in, (int)out);
    linear_reference(dw, dyt, xt, NULL, (int)out, (int)in, (int)rows);
    const Likeness ly = likeness_stored(y, l.y, rows * out), ldx = likeness_stored(dx, l.dx, rows * in),
                   ldw = likeness_floats(dw, l.f.dw, in * out);
    check(ly.sqnr >= 25, "fp8 layer: SQNR of the forward product is at least 25 dB", "%.1f dB", ly.sqnr);
    // E4M3 times E5M2: the E5M2 operand decides, 25 dB less the 1 dB that the other adds
    check(ldx.sqnr >= 18, "fp8 layer: SQNR of dgrad is at least 18 dB", "%.1f dB", ldx.sqnr);
    check(ldw.sqnr >= 17, "fp8 layer: SQNR of wgrad is at least 17 dB", "%.1f dB", ldw.sqnr);
    check(fabs(ly.ratio - 1) < 0.02 && fabs(ldx.ratio - 1) < 0.02 && fabs(ldw.ratio - 1) < 0.02,
          "fp8 layer: all three products have the right length", "norm ratios %.4f %.4f %.4f", ly.ratio, ldx.ratio, ldw.ratio);
    float *bias = take_floats(out);
    size_t bias_wrong = 0;
    for (size_t o = 0; o < out; o++) // blocks of ROWS rows, each ascending, the blocks then ascending
        for (size_t r0 = 0; r0 < rows; r0 += ROWS) {
            float sum = 0;
            for (size_t r = r0; r < rows && r < r0 + ROWS; r++) sum += float_from_stored(l.dy[r * out + o]);
            bias[o] += sum;
        }
    bias_wrong = bits_differ(bias, l.f.dbias, out);
    check(!bias_wrong, "fp8 layer: the bias gradient is the column sum of dy before it is quantised, to the bit", "%zu differ",
          bias_wrong);
    // --bf16: each product has the bits of the layer all in FP8, or of plain bf16, whatever the other two have; statistics are
    // those of the operands that became bytes.
    stored_t *y_of[2] = {take_stored(rows * out), take_stored(rows * out)},
             *dx_of[2] = {take_stored(rows * in), take_stored(rows * in)};
    float *dw_of[2] = {take_floats(in * out), take_floats(in * out)};
    size_t differ = 0, counted = 0;
    for (int kind = 0; kind < 2; kind++) { // of FP8, of bf16
        Linear f = l.f;
        if (kind) f.scales = NULL, f.w = l.w16;
        memset(f.dw, 0, in * out * 4);
        linear_forward(&f, y_of[kind], STORED, l.x, kind ? (void *)l.x : l.kept, rows, RECORD_NONE);
        linear_backward(&f, dx_of[kind], l.dy, kind ? (void *)l.x : l.kept, l.dy_bytes, l.partial, rows, RECORD_NONE);
        memcpy(dw_of[kind], f.dw, in * out * 4);
    }
    for (int mask = 0; mask < 8; mask++) {
        Fp8Layer m = l;
        m.f.scales = m.scale, m.f.bf16 = mask, m.f.w16 = mask & (1 << FPROP | 1 << DGRAD) ? l.w16 : NULL;
        m.f.x16 = mask & 1 << WGRAD ? take_stored(rows * in) : NULL;
        memset(&m.scale[OPERAND_X].step, 0, sizeof(Fp8Stats)), memset(&m.scale[OPERAND_DY].step, 0, sizeof(Fp8Stats));
        fp8_layer_run(&m);
        const size_t x_read = !(mask & 1 << FPROP) || !(mask & 1 << WGRAD), dy_read = !(mask & 1 << DGRAD) || !(mask & 1 << WGRAD);
        counted += m.scale[OPERAND_X].step.count == x_read * rows * in && m.scale[OPERAND_DY].step.count == dy_read * rows * out;
        differ += memcmp(m.y, y_of[mask >> FPROP & 1], rows * out * 2) != 0;
        differ += memcmp(m.dx, dx_of[mask >> DGRAD & 1], rows * in * 2) != 0;
        differ += memcmp(m.f.dw, dw_of[mask >> WGRAD & 1], in * out * 4) != 0;
    }
    check(!differ && counted == 8 && memcmp(y_of[0], y_of[1], rows * out * 2) && memcmp(dw_of[0], dw_of[1], in * out * 4),
          "fp8 layer: every choice of products in bf16 has each product's own bits", "%zu products differ, %zu counts right",
          differ, counted);
    for (int i = 0; i < NOPERAND; i++) memset(&l.scale[i].step, 0, sizeof(Fp8Stats));
    fp8_layer_run(&l);
    for (size_t i = 0; i < rows * out; i++) y[i] *= 2;
    check(!gradient_right(likeness_stored(y, l.y, rows * out), 0.02), "planted fault: a product whose scale is off by 2 is caught",
          "it passed");

    // What the statistics say of a pass, and a second forward pass with the history that the first one made.
    check(l.scale[OPERAND_X].step.count == rows * in && l.scale[OPERAND_DY].step.count == rows * out &&
              l.scale[OPERAND_X].step.saturated == 0 && l.scale[OPERAND_DY].step.nonfinite == 0,
          "fp8 layer: every operand is counted, nothing of a scaled tensor is cut", "count %d", (int)l.scale[OPERAND_X].step.count);
    for (int i = 0; i < NOPERAND; i++) scale_advance(&l.scale[i]);
    const Fp8Scale x_scale = l.scale[OPERAND_X];

    static const char *const cases[4] = {"all zeros", "1e38", "an Inf", "a NaN"};
    for (int k = 0; k < 4; k++)
        for (int history = 0; history < 2; history++) {
            Fp8Layer s = l;
            char name[128];
            for (int i = 0; i < NOPERAND; i++) {
                if (!history) s.scale[i] = scale_make(&l.recipe[i]);
                memset(&s.scale[i].step, 0, sizeof(Fp8Stats));
            }
            s.f.scales = s.scale, s.x = take_stored(rows * in), s.dy = take_stored(rows * out);
            if (k) memcpy(s.x, l.x, rows * in * sizeof(stored_t)), memcpy(s.dy, l.dy, rows * out * sizeof(stored_t));
            const float odd = k == 1 ? 1e38f : k == 2 ? INFINITY : NAN;
            if (k) s.x[7 * in + 3] = s.dy[9 * out + 5] = stored_from_float(odd);
            fp8_layer_run(&s);
            const size_t ny = nan_count(s.y, rows * out), ndx = nan_count(s.dx, rows * in), row = nan_count(s.y + 7 * out, out);
            const Fp8Stats *sx = &s.scale[OPERAND_X].step, *sy = &s.scale[OPERAND_DY].step;
            snprintf(name, sizeof(name), "fp8 layer: x and dy with %s, %s", cases[k],
                     history ? "scaled by their history" : "no history yet");
            int ok = 1;
            if (k == 0) { // zero in, zero out
                for (size_t i = 0; i < rows * out; i++) ok &= float_from_stored(s.y[i]) == 0;
                for (size_t i = 0; i < rows * in; i++) ok &= float_from_stored(s.dx[i]) == 0;
                for (size_t i = 0; i < in * out; i++) ok &= s.f.dw[i] == 0;
                ok &= sx->amax_bits == 0 && sx->nonfinite == 0;
            }
            if (k == 1)
                ok = ny == 0 && ndx == 0 && sx->nonfinite == 0 &&
                     (history ? sx->saturated == 1 && sy->saturated == 1 : sx->saturated == 0);
            if (k == 2)
                ok = ny == 0 && ndx == 0 && sx->nonfinite == 1 && sy->nonfinite == 1 && sx->saturated == 1 && sy->saturated == 1;
            if (k == 3)
                ok = row == out && ny == out && ndx == in && sx->nonfinite == 1 && sy->nonfinite == 1; // its own row, no other
            check(ok, name, "%zu and %zu NaN, saturated %d %d, nonfinite %d %d", ny, ndx, (int)sx->saturated, (int)sy->saturated,
                  (int)sx->nonfinite, (int)sy->nonfinite);
            scale_advance(&s.scale[OPERAND_X]);
            const float after = s.scale[OPERAND_X].scale;
            check(after >= 0x1p-126f && after <= 0x1p126f && (k == 1 || !history || after == x_scale.scale),
                  label("fp8 layer: the scale after %s, %s, is usable", cases[k], history ? "with a history" : "with none"),
                  "scale %g was %g", (double)after, (double)x_scale.scale);
        }
}

// What a product reads of x [rows, columns], v [across K][K], and what is left for its epilogue, by the rules' words; its K runs
// along the columns or the rows.
static float reference_operand(float *v, const stored_t *x, size_t rows, size_t columns, int along_rows, const ScalingRecipe *r) {
    const size_t I = along_rows ? columns : rows, K = along_rows ? rows : columns;
    const int blocks = recipe_blocks(r);
    const size_t across = blocks ? (size_t)r->across : I, along = blocks ? (size_t)r->along : K;
    float inv = 1;
    for (size_t i0 = 0; i0 < I; i0 += across)
        for (size_t k0 = 0; k0 < K; k0 += along)
            for (int pass = 0; pass < 2; pass++) {
                static float scale;
                float amax = 0;
                for (size_t i = i0; i < MIN(I, i0 + across); i++)
                    for (size_t k = k0; k < MIN(K, k0 + along); k++) {
                        const float f = float_from_stored(x[along_rows ? k * columns + i : i * columns + k]);
                        amax = MAX(amax, fabsf(f));
                        if (pass) v[i * K + k] = fp8_decode(fp8_encode(f * scale, r->format), r->format) * (blocks ? 1 / scale : 1);
                    }
                if (pass == 0) scale = scale_from_amax(amax, 1, r);
                else if (!blocks) inv = 1 / scale;
            }
    return inv;
}

// Every operand under a rule of its own: the three products' bits are those of the definition.
static void test_fp8_mixed(void) {
    if (!IS_FP8) return;
    enum { ROWS_X = 70, IN = 140, OUT = 72 };
    static const ScalingRecipe rules[3] = {{DTYPE_E4M3, SCALING_CURRENT, 1, 1, 0, 0, 0, 0, 0},
                                           {DTYPE_E4M3, SCALING_BLOCK, 1, 1, 0, 1, 0, 1, 128},
                                           {DTYPE_E5M2, SCALING_MX, 1, 1, 0, 1, 0, 1, 32}};
    const stored_t *x = normal_stored(ROWS_X * IN, 1, 311), *dy = normal_stored(ROWS_X * OUT, 1e-5, 312),
                   *w = normal_stored(IN * OUT, 0.02, 313);
    float *xv = take_floats(ROWS_X * IN), *wv = take_floats(IN * OUT), *dv = take_floats(ROWS_X * OUT);
    stored_t *y = take_stored(ROWS_X * OUT), *dx = take_stored(ROWS_X * IN);
    float *dw = take_floats(IN * OUT), *partial = take_floats(3 * OUT), *w_inv[2] = {take_floats(OUT * IN), take_floats(OUT * IN)};
    uint8_t *kept = (uint8_t *)take(ROWS_X * IN), *dy_bytes = (uint8_t *)take(ROWS_X * OUT),
            *x_bytes = (uint8_t *)take(ROWS_X * IN), *w_bytes[2] = {(uint8_t *)take(IN * OUT), (uint8_t *)take(IN * OUT)};
    size_t wrong[NPRODUCT] = {0};
    layers_workspace(1, 16);
    for (int combination = 0; combination < 27; combination++) {
        const int of[NOPERAND] = {combination % 3, combination / 3 % 3, combination / 9};
        Fp8Scale s[NOPERAND];
        ScalingRecipe r[NOPERAND];
        for (int i = 0; i < NOPERAND; i++) {
            r[i] = rules[of[i]];
            if (i == OPERAND_W && r[i].rule == SCALING_BLOCK) r[i].across = 128;
            s[i] = scale_make(&r[i]);
        }
        Linear f = {.in = IN, .out = OUT, .w = w_bytes[0], .dw = dw, .scales = s, .x_bytes = x_bytes, .inv = take_floats(OUT * IN)};
        if (recipe_blocks(&r[OPERAND_X])) f.kept_inv = take_floats(ROWS_X * IN);
        if (recipe_blocks(&r[OPERAND_W])) {
            f.w_across = w_bytes[1], f.w_inv = w_inv[0], f.w_across_inv = w_inv[1];
            quantise_blocks(w_bytes[0], f.w_inv, w, OUT, IN, 0, s + OPERAND_W, RECORD_NONE);
            quantise_blocks(f.w_across, f.w_across_inv, w, OUT, IN, 1, s + OPERAND_W, RECORD_NONE);
        } else s[OPERAND_W].kept_inv = quantise(w_bytes[0], w, IN * OUT, s + OPERAND_W, RECORD_NONE);
        memset(dw, 0, IN * OUT * 4);
        linear_forward(&f, y, STORED, x, kept, ROWS_X, RECORD_STATS);
        linear_backward(&f, dx, dy, kept, dy_bytes, partial, ROWS_X, RECORD_STATS);
        float scale = reference_operand(xv, x, ROWS_X, IN, 0, &r[OPERAND_X]) * reference_operand(wv, w, OUT, IN, 0, &r[OPERAND_W]);
        for (size_t i = 0; i < ROWS_X * OUT; i++)
            wrong[FPROP] += y[i] != stored_from_float(chain(xv + i / OUT * IN, wv + i % OUT * IN, IN, 0) * scale);
        scale = reference_operand(dv, dy, ROWS_X, OUT, 0, &r[OPERAND_DY]) * reference_operand(wv, w, OUT, IN, 1, &r[OPERAND_W]);
        for (size_t i = 0; i < ROWS_X * IN; i++)
            wrong[DGRAD] += dx[i] != stored_from_float(chain(dv + i / IN * OUT, wv + i % IN * OUT, OUT, 0) * scale);
        scale = reference_operand(dv, dy, ROWS_X, OUT, 1, &r[OPERAND_DY]) * reference_operand(xv, x, ROWS_X, IN, 1, &r[OPERAND_X]);
        for (size_t i = 0; i < OUT * IN; i++)
            wrong[WGRAD] += dw[i] != chain(dv + i / IN * ROWS_X, xv + i % IN * ROWS_X, ROWS_X, 0) * scale;
    }
    check(!wrong[FPROP] && !wrong[DGRAD] && !wrong[WGRAD],
          "fp8 layer: x, w and dy each under a rule of their own, 27 combinations: products to the bit",
          "%zu outputs, %zu of dx, %zu of dw differ", wrong[FPROP], wrong[DGRAD], wrong[WGRAD]);
}

// ---------------------------------------------------------------------------------------------------------------------
// G. model

#define MODEL_T 40 // with two sequences 80 rows: three blocks of ROWS, so that the order of blocks shows in the bits
#define MODEL_B 2
#define MODEL_V 60
static int model_tokens[MODEL_B * MODEL_T], model_targets[MODEL_B * MODEL_T];

static void model_make(Gpt *g, int fp8_head) {
    const Config c = {MODEL_T, MODEL_V, 128, 2, 2, 32};
    memset(g, 0, sizeof(*g));
    g->config = c, g->B = MODEL_B, g->training = 1, g->fp8_head = fp8_head;
    for (int i = 0; i < NOPERAND; i++) {
        const ScalingRecipe r = {i == OPERAND_DY ? DTYPE_E5M2 : DTYPE_E4M3, SCALING_DELAYED, 3, 1, 0, 0, 0, 0, 0};
        g->recipes[i] = r;
    }
    g->head_dy_recipe = g->recipes[OPERAND_DY], g->head_dy_recipe.rule = SCALING_STATIC;
    workspace_free();
    gpt_allocate(g);
    gpt_init(g, 7);
    g->record = 1;
    for (int i = 0; i < MODEL_B * MODEL_T; i++) {
        model_tokens[i] = (int)(random_u64(1, 1, i) % MODEL_V), model_targets[i] = (int)(random_u64(1, 2, i) % MODEL_V);
    }
}

// Gradients of the mean loss over `micro` micro-batches, each a part of the batch; returns that loss.
static double model_gradients(Gpt *g, int micro) {
    const int rows = MODEL_B / micro;
    const float loss_scale = PRECISION == PRECISION_FP16 ? 1024 : 1;
    double loss = 0;
    memset(g->grad, 0, g->param_count * 4);
    for (int k = 0; k < micro; k++) {
        const int *tokens = model_tokens + k * rows * MODEL_T, *targets = model_targets + k * rows * MODEL_T;
        loss += gpt_forward(g, tokens, targets, rows, MODEL_T, loss_scale / (MODEL_B * MODEL_T)) / (MODEL_B * MODEL_T);
        gpt_backward(g, tokens, rows, MODEL_T);
    }
    for (size_t i = 0; i < g->param_count; i++) g->grad[i] /= loss_scale; // a power of two: exact
    return loss;
}
static double model_step(Gpt *g, long t, float lr) {
    const AdamW adamw = {lr, 0.9f, 0.95f, 1e-8f, 0.1f};
    const double loss = model_gradients(g, 1);
    for (int i = 0; i < g->scale_count; i++) scale_advance(&g->scales[i]);
    adamw_update(g, &adamw, 1, t);
    return loss;
}

// Everything a training step leaves behind, as one number.
static uint64_t fingerprint(const Gpt *g) {
    uint64_t h = 0;
    h = checksum(h, g->master, g->param_count * 4), h = checksum(h, g->grad, g->param_count * 4);
    h = checksum(h, g->m, g->param_count * 4), h = checksum(h, g->v, g->param_count * 4);
    for (int i = 0; i < g->scale_count; i++) {
        const Fp8Scale *s = &g->scales[i];
        h = checksum(h, &s->scale, 4), h = checksum(h, s->amax_history, AMAX_HISTORY_MAX * 4);
        h = checksum(h, &s->history_count, 4), h = checksum(h, &s->logged.amax_bits, 4), h = checksum(h, &s->logged.count, 8);
        h = checksum(h, &s->logged.saturated, 8), h = checksum(h, &s->logged.flushed, 8);
    }
    return h;
}

// Logits [Vp] after n tokens at position pos, whose keys and values before it are cached.
static const float *gpt_decode(Gpt *g, const int *tokens, int n, int pos) {
    gpt_forward_blocks(g, tokens, 1, n, pos);
    head_forward(g, g->logits, n - 1, 1);
    return g->logits;
}

static uint64_t three_steps(int threads, int fp8_head, int disturbed) {
    Gpt g;
    threads_set(threads);
    model_make(&g, fp8_head);
    for (long t = 1; t <= 3; t++) {
        model_step(&g, t, 1e-2f);
        if (!disturbed) continue;
        g.record = 0; // validation on other rows, and a sample
        gpt_forward(&g, model_targets, model_tokens, MODEL_B, MODEL_T, 0);
        gpt_decode(&g, model_targets, 5, 0);
        g.record = 1;
    }
    const uint64_t h = fingerprint(&g);
    gpt_free(&g);
    return h;
}

// The losses of the whole model in doubles, straight from the master weights.
static void model_reference(const Gpt *g, double *losses) {
    const int B = MODEL_B, T = MODEL_T, C = g->config.C, L = g->config.L, NH = g->config.NH, V = g->config.V, R = B * T;
    double *w[NPARAM], *x = take_doubles((R * C)), *n = take_doubles((R * C)), *wide = take_doubles((R * 4 * C)),
                       *y = take_doubles((R * C)), *logits = take_doubles((R * V));
    for (int id = 0; id < NPARAM; id++)
        w[id] = doubles_of_floats(g->master + g->params[id].offset, g->params[id].layers * g->params[id].rows * g->params[id].cols);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) x[r * C + c] = w[WTE][model_tokens[r] * C + c] + w[WPE][r % T * C + c];
    for (int l = 0; l < L; l++) {
        layernorm_reference(n, x, w[LN1W] + l * C, w[LN1B] + l * C, R, C, NULL, NULL, NULL, NULL);
        linear_reference(wide, n, w[QKVW] + l * 3 * C * C, w[QKVB] + l * 3 * C, R, 3 * C, C);
        attention_reference(n, NULL, NULL, wide, B, T, C, NH);
        linear_reference(y, n, w[ATTPROJW] + l * C * C, w[ATTPROJB] + l * C, R, C, C);
        for (int i = 0; i < R * C; i++) x[i] += y[i];
        layernorm_reference(n, x, w[LN2W] + l * C, w[LN2B] + l * C, R, C, NULL, NULL, NULL, NULL);
        linear_reference(wide, n, w[FCW] + l * 4 * C * C, w[FCB] + l * 4 * C, R, 4 * C, C);
        for (int i = 0; i < R * 4 * C; i++) wide[i] = gelu_reference(wide[i]);
        linear_reference(y, wide, w[FCPROJW] + l * 4 * C * C, w[FCPROJB] + l * C, R, C, 4 * C);
        for (int i = 0; i < R * C; i++) x[i] += y[i];
    }
    layernorm_reference(n, x, w[LNFW], w[LNFB], R, C, NULL, NULL, NULL, NULL);
    linear_reference(logits, n, w[WTE], NULL, R, V, C);
    for (int r = 0; r < R; r++) losses[r] = cross_entropy_reference(logits + r * V, V, model_targets[r]);
}

// Small random initial weights make attention uniform and losses equal; larger ones use every part of the model.
static void model_enlarge(Gpt *g, float factor) {
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g->params[id];
        for (size_t i = 0; i < s->layers * s->rows * s->cols; i++)
            g->master[s->offset + i] =
                s->decays ? g->master[s->offset + i] * factor
                          : g->master[s->offset + i] +
                                (float)(id == LN1W || id == LN2W || id == LNFW ? 0.2 : 0.1) * (float)normal(400 + id, i);
    }
    g->weights_ready = 0;
}

static void test_model_bits(void) {
    for (int head = 0; head <= IS_FP8; head++) {
        uint64_t h[3];
        for (int threads = 1; threads <= 3; threads++) h[threads - 1] = three_steps(threads, head, 0);
        check(h[0] == h[1] && h[0] == h[2],
              label("model: 1, 2 and 3 threads give the same bits in three steps%s", head ? " with an FP8 head" : ""),
              "%016llx %016llx %016llx", (unsigned long long)h[0], (unsigned long long)h[1], (unsigned long long)h[2]);
        // From any compiler and instruction set. They change only together with NUMERICS_VERSION.
        static const uint64_t golden[2][4][2] = {
            {{0x8f32cd341af91179, 0xad4b247489836db1}, {0x970706a4759743e9, 0}, {0xf996a0ed5322630d, 0}, {0x257564028403654f, 0}},
            {{0xd39ad3a31c43ccc7, 0xb25384cf7ca2df50}, {0xd16b1d341fec3d1e, 0}, {0xba305cb0cc9a9f19, 0}, {0xa86969c36fadd261, 0}}};
        const uint64_t want = golden[product_in_tiles][PRECISION][head];
        check(h[0] == want, label("model: the bits are those of numerics version 1 on every machine%s", head ? ", FP8 head" : ""),
              "%016llx, expected %016llx", (unsigned long long)h[0], (unsigned long long)want);
        const uint64_t disturbed = three_steps(2, head, 1);
        check(disturbed == h[0],
              label("model: validation and sampling between steps change no bit of training%s", head ? ", FP8 head" : ""),
              "%016llx, expected %016llx", (unsigned long long)disturbed, (unsigned long long)h[0]);
    }
    if (instruction_exists(product_in_tiles)) {
        const int before = product_uses_pairs;
        product_uses_pairs = 0;
        const uint64_t single = three_steps(2, 0, 0);
        product_uses_pairs = 1;
        const uint64_t pairs = three_steps(2, 0, 0);
        check(single == pairs, label("model: %s and fp32 multiply-adds give the same bits", product_instruction()),
              "%016llx %016llx", (unsigned long long)single, (unsigned long long)pairs);
        product_uses_pairs = before;
    }
    threads_set(2);
}

static void test_model(void) {
    Gpt g;
    threads_set(2);
    workspace_free();
    bytes_allocated = 0;
    model_make(&g, 0);
    memory_taken = 0;                                                                           // by other tests
    const size_t plan = memory_plan(&g).total - PROGRAM_BYTES - ((size_t)thread_count() << 15); // what is not allocated here
    const double beyond = (double)bytes_allocated - (double)plan;
    // Each of some 35 tensors is rounded up to 64 bytes, each thread's slice to a page.
    check(fabs(beyond) < 35 * 128 + 3 * 4200, "model: the memory plan is what is allocated", "planned %zu, %.0f more", plan,
          beyond);

    // The whole forward pass against doubles. The losses average the roundings of a dozen tensors in a row to below one UNIT;
    // FP8's operands have 4 bits, 2.5% an element, of which a product's sum and the residual stream leave less.
    model_enlarge(&g, 5);
    double *losses = take_doubles(MODEL_B * MODEL_T);
    const double tolerance = IS_FP8 ? 0.02 : UNIT + FP32_WORK;
    model_reference(&g, losses);
    gpt_forward(&g, model_tokens, model_targets, MODEL_B, MODEL_T, 0);
    check_error("model: the losses of all tokens equal a forward pass in doubles",
                likeness_floats(losses, g.losses, MODEL_B * MODEL_T), tolerance);
    float *projection = gpt_param(&g, g.master, ATTPROJW, 1);
    for (int way = 0; way < 2; way++) {
        for (int i = 0; i < 32 * 32; i++) projection[i] = -projection[i];
        if (way == 0) model_reference(&g, losses);
    }
    check(likeness_floats(losses, g.losses, MODEL_B * MODEL_T).error > tolerance,
          "planted fault: one projection subtracted instead of added is caught", "not caught");

#if PRECISION == PRECISION_FP32
    // Directional derivatives of the whole model, one parameter tensor at a time: along the gradient (its length) mixed with
    // a random direction (its direction). A step of 1e-2 in weights of some 0.1: the difference's own error is about 1e-3.
    model_gradients(&g, 1);
    float *gradient = take_floats(g.param_count), *master = take_floats(g.param_count);
    memcpy(gradient, g.grad, g.param_count * 4), memcpy(master, g.master, g.param_count * 4);
    for (int id = 0; id < NPARAM; id++) {
        const ParamSpec *s = &g.params[id];
        const size_t n = s->layers * s->rows * s->cols, used = id == WTE ? MODEL_V * s->cols : n;
        float *direction = normal_floats(n, 1, 500 + id);
        double gg = 0, rr = 0, want = 0, change[2] = {0, 0};
        for (size_t i = 0; i < used; i++)
            gg += (double)gradient[s->offset + i] * (double)gradient[s->offset + i],
                rr += (double)direction[i] * (double)direction[i];
        for (size_t i = 0; i < used; i++) {
            direction[i] = (float)((double)gradient[s->offset + i] / sqrt(gg) + 0.5 * (double)direction[i] / sqrt(rr));
            want += (double)gradient[s->offset + i] * (double)direction[i];
        }
        for (int way = 0; way < 2; way++) {
            for (size_t i = 0; i < used; i++)
                g.master[s->offset + i] = master[s->offset + i] + (way ? -0.01f : 0.01f) * direction[i];
            g.weights_ready = 0;
            change[way] = gpt_forward(&g, model_tokens, model_targets, MODEL_B, MODEL_T, 0) / (MODEL_B * MODEL_T);
        }
        memcpy(g.master + s->offset, master + s->offset, n * 4);
        const double found = (change[0] - change[1]) / 0.02;
        check(fabs(found / want - 1) < 0.01, label("finite differences: the whole model, %s", s->name),
              "derivative %.6g, gradient says %.6g", found, want);
    }
    g.weights_ready = 0;
#endif

    // Histories of at least one step, so that scales no longer depend on the tensor; then one batch against two halves.
    model_step(&g, 1, 1e-3f), model_step(&g, 2, 1e-3f);
    float *whole = take_floats(g.param_count);
    gpt_refresh_weights(&g);
    model_gradients(&g, 1);
    memcpy(whole, g.grad, g.param_count * 4);
    Fp8Stats none, *dy_stats = IS_FP8 ? &gpt_scale(&g, 1, LIN_FC, OPERAND_DY)->step : &none;
    memset(&none, 0, sizeof(none));
    const Fp8Stats one = *dy_stats;
    memset(dy_stats, 0, sizeof(*dy_stats));
    model_gradients(&g, 2);
    // The same products in two chains instead of one: fp32 rounding of sums, and nothing else.
    check_error("model: two micro-batches give the gradient of one batch",
                likeness(doubles_of_floats(whole, g.param_count), doubles_of_floats(g.grad, g.param_count), g.param_count),
                10 * FP32_WORK);
    if (IS_FP8) {
        Fp8Scale *s = gpt_scale(&g, 1, LIN_FC, OPERAND_DY);
        check(stats_same(&one, &s->step), "model: and the same FP8 statistics", "count %d, amax %08x; of one batch %d, %08x",
              (int)s->step.count, s->step.amax_bits, (int)one.count, one.amax_bits);
        const int before = s->history_count;
        scale_advance(s);
        check(before == 2 && s->history_count == 3, "model: a history advances once a step, whatever the micro-batches",
              "%d, then %d entries", before, s->history_count);
    }

    // Decoding with a KV cache, token by token, against whole prefixes.
    float *cached = take_floats(MODEL_T * 128);
    int wrong = 0;
    g.record = 0;
    for (int t = 0; t < MODEL_T; t++) memcpy(cached + t * 128, gpt_decode(&g, model_tokens + t, 1, t), 128 * 4);
    for (int t = 0; t < MODEL_T; t++) wrong += bits_differ(cached + t * 128, gpt_decode(&g, model_tokens, t + 1, 0), MODEL_V) != 0;
    check(!wrong, "model: decoding through the KV cache gives the bits of a whole forward pass", "%d of %d positions differ", wrong,
          MODEL_T);
    wrong = 0;
    memcpy(cached + 7 * 128, gpt_decode(&g, model_tokens, 8, 0), 128 * 4);
    gpt_decode(&g, model_tokens, 3, 0);
    wrong = bits_differ(cached + 7 * 128, gpt_decode(&g, model_tokens + 3, 5, 3), MODEL_V) != 0;
    check(!wrong, "model: several tokens may follow a cached prefix", "logits differ");
    g.record = 1;
    gpt_free(&g);

    // One batch, learnt by heart.
    double loss = 0;
    model_make(&g, IS_FP8);
    for (long t = 1; t <= 120; t++) loss = model_step(&g, t, t < 100 ? 1e-2f : 2e-3f);
    check(loss < 0.1, "model: one batch is learnt by heart in 120 steps (loss below 0.1)", "loss %.4f", loss);
    size_t padded = 0;
    for (size_t i = MODEL_V * 32; i < 128 * 32; i++)
        padded += float_bits(g.master[i]) != 0 || g.grad[i] != 0 || g.m[i] != 0 || g.v[i] != 0;
    check(!padded, "model: rows of the padded vocabulary are exactly zero after training, their gradients too",
          "%zu elements are not", padded);
    gpt_free(&g);
    layers_workspace(1, 16);
}

// AdamW, clipping's norm and schedules against doubles.
static void test_optimiser(void) {
    Gpt g;
    threads_set(2);
    model_make(&g, 0);
    const size_t n = g.param_count;
    double *w = doubles_of_floats(g.master, n), *m = take_doubles(n), *v = take_doubles(n), norm = 0;
    const AdamW o = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f};
    for (long t = 1; t <= 3; t++) {
        norm = 0;
        for (size_t i = 0; i < n; i++)
            g.grad[i] = (float)(normal(600 + t, i) * 0.1), norm += 0.25 * (double)g.grad[i] * (double)g.grad[i];
        adamw_update(&g, &o, 0.5f, t);
        for (int id = 0; id < NPARAM; id++)
            for (size_t k = 0; k < g.params[id].layers * g.params[id].rows * g.params[id].cols; k++) {
                const size_t i = g.params[id].offset + k;
                const double d = 0.5 * (double)g.grad[i],
                             decay = g.params[id].cols > 1 ? 0.1 : 0; // matrices decay, vectors do not
                const int vector = id == LN1W || id == LN1B || id == LN2W || id == LN2B || id == LNFW || id == LNFB;
                m[i] = 0.9 * m[i] + 0.1 * d, v[i] = 0.95 * v[i] + 0.05 * d * d;
                w[i] -= 0.01 * (m[i] / (1 - pow(0.9, (double)t)) / (sqrt(v[i] / (1 - pow(0.95, (double)t))) + 1e-8) +
                                (vector ? 0 : decay) * w[i]);
            }
    }
    check_error("optimiser: three updates of AdamW equal the equations in doubles", likeness(w, doubles_of_floats(g.master, n), n),
                1e-6); // beta is a float: 3e-8 relative, over 1 - beta
    check(fabs(gradient_norm(g.grad, n, 0.5f) / sqrt(norm) - 1) < 1e-6,
          "optimiser: the gradient norm is that of the scaled gradient", "%.9g, expected %.9g", gradient_norm(g.grad, n, 0.5f),
          sqrt(norm));
    gpt_free(&g);
    layers_workspace(1, 16);
    const Schedule kinds[4] = {COSINE, LINEAR, CONSTANT, WSD};
    int wrong = 0;
    for (int k = 0; k < 4; k++) {
        const float at[4] = {schedule_lr(kinds[k], 1, 0.1f, 0, 10, 101), schedule_lr(kinds[k], 1, 0.1f, 10, 10, 101),
                             schedule_lr(kinds[k], 1, 0.1f, 55, 10, 101), schedule_lr(kinds[k], 1, 0.1f, 100, 10, 101)};
        const double middle[4] = {0.55, 0.55, 1, 1}, end = k == 2 ? 1 : 0.1;
        wrong += fabs((double)at[0] - 0.1) > 1e-6 || fabs((double)at[1] - 1) > 1e-6 || fabs((double)at[2] - middle[k]) > 1e-6 ||
                 fabs((double)at[3] - end) > 1e-6;
    }
    check(!wrong, "optimiser: schedules start at lr / warmup, peak after it and end at the final rate", "%d of 4 differ", wrong);
}

// ---------------------------------------------------------------------------------------------------------------------
// Files and children: sections H to J work in a directory of their own, and start the trainer's main in a child, which is
// this program executed again (OpenMP does not survive a bare fork). Their threads wait passively: see main.

static char work_dir[128];
static char self_path[PATH_MAX];

static const char *in_dir(const char *name) { // up to eight results live at once
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH_MAX, "%.100s/%.200s", work_dir, name);
    return path;
}
static void file_put(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) abort();
}
static unsigned char *file_get(const char *path, size_t *bytes) { // NULL if there is none; one byte of room is added
    struct stat st;
    FILE *f = fopen(path, "rb");
    *bytes = 0;
    if (!f || fstat(fileno(f), &st) != 0) return NULL;
    unsigned char *data = (unsigned char *)take(st.st_size + 1);
    *bytes = fread(data, 1, st.st_size, f);
    fclose(f);
    return data;
}
static int files_same(const char *a, const char *b) {
    size_t na, nb;
    const unsigned char *da = file_get(a, &na), *db = file_get(b, &nb);
    return da && db && na == nb && !memcmp(da, db, na);
}
static void shell(const char *command, const char *a, const char *b) { // cp, rm and the like, on paths without blanks
    char line[3 * PATH_MAX];
    snprintf(line, sizeof(line), "%s %s %s", command, a, b);
    if (system(line) != 0) printf("note: '%s' failed\n", line);
}

typedef struct {
    int status; // of exit, or 1000 + the signal that ended it
    char error[2048];
} Child;

static pid_t child_start(int threads, const char *arguments) {
    char number[16], *argv[80], *text = strdup(arguments);
    const char *error = in_dir("stderr.txt"), *output = in_dir("stdout.txt");
    int argc = 0;
    argv[argc++] = self_path, argv[argc++] = (char *)(uintptr_t) "--as-trainer";
    for (char *word = strtok(text, " "); word && argc < 79; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    snprintf(number, sizeof(number), "%d", threads);
    setenv("OMP_NUM_THREADS", number, 1);
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int err = open(error, O_WRONLY | O_CREAT | O_TRUNC, 0666), out = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        dup2(err, 2), dup2(out, 1);
        alarm(60); // survives exec: no child outlives a test
        execv(self_path, argv);
        _exit(127);
    }
    free(text);
    return pid;
}
static Child child_end(pid_t pid) {
    Child c;
    int status = 0;
    size_t n = 0;
    memset(&c, 0, sizeof(c));
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    c.status = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    const unsigned char *text = file_get(in_dir("stderr.txt"), &n);
    if (text) memcpy(c.error, text, n < sizeof(c.error) - 1 ? n : sizeof(c.error) - 1);
    return c;
}
static Child child_run(const char *arguments) { return child_end(child_start(2, arguments)); }

// The child must end with status 2 and one line that names `word`.
static int refused(const char *arguments, const char *word, char *why, size_t room) {
    const Child c = child_run(arguments);
    const char *newline = strchr(c.error, '\n');
    if (c.status == EXIT_BAD_INPUT && strstr(c.error, word) && newline && newline[1] == 0) return 1;
    snprintf(why, room, "'%.120s': expected status 2 and a line with '%.80s', found status %d, '%.300s'", arguments, word, c.status,
             c.error);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// H. data

// A shard whose tokens count up, so that a token tells its position.
static void shard_put(const char *path, uint32_t count, uint32_t vocabulary, uint32_t first) {
    uint32_t *shard = (uint32_t *)take(1024 + 2 * count + 4);
    uint16_t *tokens = (uint16_t *)(void *)(shard + 256);
    shard[0] = 20240520, shard[1] = 1, shard[2] = count, shard[3] = vocabulary;
    for (uint32_t i = 0; i < count; i++) tokens[i] = (uint16_t)(first + i);
    file_put(path, shard, 1024 + 2 * count);
}

static int shard_token(const Shard *s, size_t i) {
    unsigned char bytes[2];
    file_read(&s->file, s->begin + i * s->width, bytes, s->width);
    return token_at(bytes, s->width, 0);
}
static void test_data(void) {
    enum { T = 16, N = 40 };
    int seen[64], tokens[N * T], targets[N * T], again[N * T], again_targets[N * T], order[3][N], wrong = 0;
    shard_put(in_dir("count_0.bin"), 400, 65536, 0), shard_put(in_dir("count_1.bin"), 270, 65536, 1000);
    Dataset d = dataset_open(in_dir("count_*.bin"));
    dataset_windows(&d, "test", T, 1);
    check(d.shard_count == 2 && d.tokens == 670 && d.V == 65536 && d.windows == 23 + 15,
          "data: shards of a glob are opened in order, windows stay inside a shard", "%d shards, %zu tokens, %zu windows",
          d.shard_count, d.tokens, d.windows);
    const int windows = (int)d.windows;
    int content = 0, permutation = 0, same_order = 0, shifted = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        memset(seen, 0, sizeof(seen));
        dataset_batch(&d, 5, (epoch * windows), tokens, targets, windows, T);
        for (int w = 0; w < windows; w++) {
            const int first = tokens[w * T], index = first >= 1000 ? 23 + (first - 1000) / T : first / T;
            for (int t = 0; t < T; t++) content += tokens[w * T + t] != first + t || targets[w * T + t] != first + t + 1;
            content += first + T >= (first >= 1000 ? 1270 : 400);
            shifted += epoch && first % T != (first >= 1000 ? 1000 % T : 0);
            content += !epoch && first % T != (first >= 1000 ? 1000 % T : 0);
            seen[index]++, order[epoch][w] = first;
        }
        for (int i = 0; i < windows; i++) permutation += !epoch && seen[i] != 1;
        if (epoch) same_order += !memcmp(order[epoch], order[0], windows * sizeof(int));
    }
    check(!content, "data: a window is T consecutive tokens of one shard, and its targets the next ones", "%d wrong", content);
    check(!permutation, "data: an epoch reads every window exactly once", "%d windows not once", permutation);
    check(!same_order && shifted > 0, "data: every epoch has another order, and from the second on another offset", "the same");
    for (int i = 0; i < windows * 2; i++) { // row i, alone and out of order
        const int row = windows * 2 - 1 - i;
        dataset_batch(&d, 5, row, again, again_targets, 1, T);
        dataset_batch(&d, 5, (row / 4 * 4), tokens, targets, 4, T);
        wrong += memcmp(again, tokens + row % 4 * T, T * sizeof(int)) != 0 ||
                 memcmp(again_targets, targets + row % 4 * T, T * sizeof(int)) != 0;
    }
    check(!wrong, "data: a row depends on seed and number only, not on what was read before or on the batch", "%d rows differ",
          wrong);
    dataset_batch(&d, 6, 0, again, again_targets, windows, T), dataset_batch(&d, 5, 0, tokens, targets, windows, T);
    check(memcmp(again, tokens, (windows * T) * sizeof(int)) != 0, "data: another data seed gives another order", "the same");
    wrong = 0;
    for (uint64_t n = 1; n < 300; n = n < 40 ? n + 1 : n * 2 - 3)
        for (uint64_t key = 0; key < 3; key++) {
            char hit[512] = {0};
            for (uint64_t i = 0; i < n; i++) {
                const uint64_t p = permute(i, n, mix64(key));
                wrong += p >= n || hit[p]++;
            }
        }
    check(!wrong, "data: permute() is one to one for every size", "%d collisions", wrong);
    Dataset held = dataset_hold_out(&d);
    check(d.tokens == 603 && held.tokens == 67 && held.shard_count == 1 && shard_token(&held.shards[0], 0) == 1203 &&
              shard_token(&d.shards[1], d.shards[1].count - 1) == 1202,
          "data: the last tenth is held out, and nothing of it stays", "%zu and %zu tokens", d.tokens, held.tokens);

    const char *text = "no shard, but text\xc3\xa9";
    file_put(in_dir("text.txt"), text, strlen(text));
    Dataset bytes = dataset_open(in_dir("text.txt"));
    check(bytes.V == 256 && bytes.tokens == strlen(text) && shard_token(&bytes.shards[0], 19) == 0xa9,
          "data: of a text, the bytes are the tokens", "%zu tokens", bytes.tokens);

    // Validation by whole stories, where a sidecar gives their surprisal: 4.5 + 7 + 2 nats over 9 + 14 + 4 bytes.
    char tales[] = "one cat.\ntwo big dogs.\nno.\n", sidecar[512];
    static const int story_start[3] = {0, 9, 23}, story_bytes[3] = {9, 14, 4};
    unsigned long long fnv = 14695981039346656037ull;
    for (const char *p = tales; *p; p++) fnv = (fnv ^ (unsigned char)*p) * 1099511628211ull;
    const int sidecar_bytes = snprintf(
        sidecar, sizeof(sidecar), "# stories\t3\n# fnv1a64\t%016llx\noffset\tbytes\tnats\n0\t9\t4.5\n9\t14\t7\n23\t4\t2\n", fnv);
    file_put(in_dir("tales.txt"), tales, strlen(tales)), file_put(in_dir("tales.floor.tsv"), sidecar, sidecar_bytes);
    Dataset told = dataset_open(in_dir("tales.txt"));
    dataset_windows(&told, "test", T, 1);
    ValidationSet stories = validation_open(&told, T, 8);
    wrong = stories.rows != 3 || stories.counted != 27 || stories.floor != 0.5;
    for (int row = 0; !wrong && row < 3; row++)
        for (int t = 0; t < T; t++) {
            const char *story = tales + story_start[row];
            const int inside = t < story_bytes[row];
            wrong += stories.tokens[row * T + t] != (t == 0 || !inside ? '\n' : story[t - 1]);
            wrong += stories.targets[row * T + t] != (inside ? story[t] : -1);
        }
    check(!wrong, "data: validation stories start a row each, only their bytes count, the floor is theirs",
          "%ld rows, %zu counted, floor %g, %d wrong", stories.rows, stories.counted, stories.floor, wrong);
    dataset_windows(&told, "test", 13, 1);
    stories = validation_open(&told, 13, 8);
    check(stories.rows == 2 && stories.counted == 26 && stories.floor == 0,
          "data: with a story longer than the context there are plain windows and no floor", "%ld rows, floor %g", stories.rows,
          stories.floor);
    tales[5]++;
    file_put(in_dir("tales.txt"), tales, strlen(tales));
    char told_why[700] = "", told_arguments[PATH_MAX * 2];
    snprintf(told_arguments, sizeof(told_arguments), "-e d1 -t 16 -x 1 -n 0 -o %s -i %s -j %s", in_dir("never"),
             in_dir("tales.txt"), in_dir("tales.txt"));
    check(refused(told_arguments, "tales.floor.tsv", told_why, sizeof(told_why)),
          "data: a sidecar of another text is refused by name", "%s", told_why);

    // Damaged and foreign shards end the program by name, status 2.
    shard_put(in_dir("good.bin"), 2000, 4096, 0);
    size_t n;
    unsigned char *good = file_get(in_dir("good.bin"), &n), *bad = (unsigned char *)take(n + 2);
    int let_through = 0, checks = 0;
    char why[700] = "", arguments[PATH_MAX * 2];
    snprintf(arguments, sizeof(arguments), "-e d1 --channels 32 --heads 2 -t 16 -b 1 -x 1 -n 0 -s 0 -v 0 -o %s -i %s",
             in_dir("never"), in_dir("bad.bin"));
    static const struct {
        size_t at;
        uint32_t value;
    } fields[] = {{0, 1}, {0, 20240521},   {4, 0},  {4, 2},      {8, 1999}, {8, 2001},
                  {8, 0}, {8, 0xffffffff}, {12, 1}, {12, 65537}, {12, 1000}};
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++, checks++) {
        memcpy(bad, good, n), memcpy(bad + fields[i].at, &fields[i].value, 4);
        file_put(in_dir("bad.bin"), bad, n);
        let_through += !refused(arguments, "bad.bin", why, sizeof(why));
    }
    const size_t lengths[] = {0, 3, 1023, 1024, 1025, n - 1, n + 1};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++, checks++) {
        memcpy(bad, good, n);
        file_put(in_dir("bad.bin"), bad, lengths[i]);
        let_through += !refused(arguments, "bad.bin", why, sizeof(why));
    }
    check(!let_through, "data: a shard with a damaged header, a token beyond the vocabulary or a wrong length is refused by name",
          "%d of %d, e.g. %s", let_through, checks, why);
    unlink(in_dir("bad.bin"));
    snprintf(arguments, sizeof(arguments), "-e d1 -t 16 -x 1 -n 0 -o %s -i %s/*.bin", in_dir("never"), work_dir);
    const int mixed = refused(arguments, "vocabulary", why, sizeof(why));
    snprintf(arguments, sizeof(arguments), "-e d1 -t 16 -x 1 -n 0 -o %s -i %s", in_dir("never"), work_dir);
    const int directory = refused(arguments, work_dir, why, sizeof(why));
    snprintf(arguments, sizeof(arguments), "-e d1 -t 512 -x 1 -n 0 -o %s -i %s", in_dir("never"), in_dir("count_0.bin"));
    const int small = refused(arguments, "smaller -t", why, sizeof(why));
    check(mixed && directory && small, "data: mixed vocabularies, a directory, and too little text are refused", "%s", why);
    snprintf(arguments, sizeof(arguments), "-e d1 --channels 32 --heads 2 -t 16 -b 1 -m 1 -x 1 -n 0 -s 0 -v 0 -o %s -i %s",
             in_dir("fine"), in_dir("good.bin"));
    const Child fine = child_run(arguments);
    check(fine.status == 0, "data: and the undamaged shard trains", "status %d, %s", fine.status, fine.error);
}

// ---------------------------------------------------------------------------------------------------------------------
// I. checkpoint

static Directory work_directory(void) {
    Directory d;
    path_print(d.path, "%s", work_dir);
    d.fd = open(work_dir, O_RDONLY | O_DIRECTORY);
    return d;
}

// One more step after a save and a load, against one more step without; what: a field that the load is made to lose.
static uint64_t step_after_load(int lose) {
    Gpt g, h;
    Progress p;
    static StateFile f;
    char options[] = "train\tx\n";
    memset(&p, 0, sizeof(p)), memset(&f, 0, sizeof(f));
    model_make(&g, IS_FP8);
    for (long t = 1; t <= 4; t++) model_step(&g, t, 1e-2f);
    p.step = p.updates = 4;
    g.loss_scaling[0] = 512;
    const Directory work = work_directory();
    p.model_checksum = model_save(&g, &work, "model.bin");
    state_save(&g, &work, "state.bin", &p, options);
    gpt_free(&g);
    model_make(&h, IS_FP8);
    uint64_t sum;
    const File model = file_open(in_dir("model.bin"), 0);
    const Config c = model_check(&model, &sum);
    if (sum != p.model_checksum) return 3;
    if (memcmp(&c, &h.config, sizeof(c)) != 0) return 1;
    snprintf(f.path, sizeof(f.path), "%s", in_dir("state.bin"));
    state_check(&f);
    model_load(&h, &model);
    state_load(&h, &f);
    if (h.loss_scaling[0] != 512) return 2;
    for (int i = 0; lose == 1 && i < h.scale_count; i++) h.scales[i].history_count = 0;
    if (lose == 2) memset(h.v, 0, h.param_count * 4);
    model_step(&h, 5, 1e-2f);
    const uint64_t print = fingerprint(&h);
    gpt_free(&h);
    return print;
}

static void test_checkpoint(void) {
    Gpt g;
    threads_set(2);
    model_make(&g, IS_FP8);
    for (long t = 1; t <= 5; t++) model_step(&g, t, 1e-2f);
    const uint64_t straight = fingerprint(&g), loaded = step_after_load(0);
    check(loaded == straight, "checkpoint: a step after save and load has the bits of a step without", "%016llx, expected %016llx",
          (unsigned long long)loaded, (unsigned long long)straight);
    if (IS_FP8) check(step_after_load(1) != straight, "planted fault: amax histories lost in a resume are caught", "the same bits");
    check(step_after_load(2) != straight, "planted fault: AdamW's second moment lost in a resume is caught", "the same bits");

    // llm.c's model format: header and order, and its bf16 version.
    size_t n;
    unsigned char *file = file_get(in_dir("model.bin"), &n);
    const int32_t want[8] = {20240326, 3, MODEL_T, MODEL_V, 2, 2, 32, 128};
    check(n == 1024 + g.param_count * 4 && !memcmp(file, want, sizeof(want)),
          "checkpoint: the model file has llm.c's header, then fp32 weights", "%zu bytes", n);
    memset(file + 4, 0, 4), file[4] = 5;
    for (size_t i = 0; i < g.param_count; i++) {
        float w;
        memcpy(&w, file + 1024 + 4 * i, 4);
        const uint16_t half = bf16_from_float(w);
        memcpy(file + 1024 + 2 * i, &half, 2);
    }
    gpt_free(&g);
    file_put(in_dir("bf16.bin"), file, 1024 + (n - 1024) / 2);
    model_make(&g, 0);
    uint64_t sum;
    const File bf16 = file_open(in_dir("bf16.bin"), 0);
    model_check(&bf16, &sum), model_load(&g, &bf16);
    file = file_get(in_dir("model.bin"), &n);
    size_t wrong = 0;
    for (size_t i = 0; i < g.param_count; i++) {
        float w;
        memcpy(&w, file + 1024 + 4 * i, 4);
        wrong += g.master[i] != float_from_bf16(bf16_from_float(w));
    }
    check(!wrong, "checkpoint: llm.c's bf16 models are read too", "%zu of %zu weights differ", wrong, g.param_count);
    gpt_free(&g);
    layers_workspace(1, 16);
}

// Byte text that a small model can work on.
static const char *tiny_text(void) {
    char text[6000];
    static const char *const words[8] = {"the", "cat", "sat", "on", "a", "mat", "and", "slept"};
    size_t n = 0;
    for (uint64_t i = 0; n < sizeof(text) - 10; i++) n += sprintf(text + n, "%s ", words[random_u64(4, 4, i) % 8]);
    static char path[PATH_MAX]; // in_dir()'s results do not live long enough
    snprintf(path, sizeof(path), "%s", in_dir("tiny.txt"));
    file_put(path, text, n);
    return path;
}
#define TINY_RUN "-l 1e-3 -e d1 --channels 32 --heads 2 -t 16 -b 2 -m 2 -s 0 -u 2 "

static void test_damage(void) {
    char arguments[PATH_MAX * 2], resume[PATH_MAX], why[700] = "";
    snprintf(arguments, sizeof(arguments), TINY_RUN "-x 4 -v 0 -n 2 -i %s -o %s", tiny_text(), in_dir("hurt"));
    const Child made = child_run(arguments);
    if (!check(made.status == 0, "checkpoint: a small run writes its checkpoints", "status %d, %s", made.status, made.error))
        return;
    snprintf(resume, sizeof(resume), "-y -o %s", in_dir("hurt"));
    static const char *const files[2] = {"hurt/state_00000004.bin", "hurt/model_00000004.bin"};
    for (int k = 0; k < 2; k++) {
        size_t n, at = sizeof(StateHeader);
        int through = 0, cases = 0;
        unsigned char *good = file_get(in_dir(files[k]), &n), *bad = (unsigned char *)take(n + 8);
        size_t flips[64];
        int flip_count = 0;
        // Every field of the header; of a state also every field of every section's header, and a byte in its data.
        for (size_t i = 0; i < (k ? 8 * sizeof(int32_t) : sizeof(StateHeader)); i += k ? 4 : 8) flips[flip_count++] = i;
        for (int s = 0; k == 0 && s < SECTIONS; s++) {
            SectionHeader h;
            memcpy(&h, good + at, sizeof(h));
            if (s == SECTION_M) // one section's header is enough: all are read alike
                for (size_t i = 24; i < sizeof(h); i += 8) flips[flip_count++] = at + i;
            flips[flip_count++] = at, at += sizeof(h);
            if (h.bytes) flips[flip_count++] = at + h.bytes / 2, flips[flip_count++] = at + h.bytes - 1;
            at += h.bytes;
        }
        if (k) flips[flip_count++] = 1024 + 5, flips[flip_count++] = n - 1, flips[flip_count++] = n / 2;
        for (int i = 0; i < flip_count; i++, cases++) {
            memcpy(bad, good, n), bad[flips[i]] ^= 0x41;
            file_put(in_dir(files[k]), bad, n);
            through += !refused(resume, strchr(files[k], '/') + 1, why, sizeof(why));
        }
        const size_t lengths[] = {0, 1, 63, 64, 100, n / 2, n - 1, n + 1};
        for (int i = 0; i < 8; i++, cases++) {
            memset(bad, 0, n + 8), memcpy(bad, good, n);
            file_put(in_dir(files[k]), bad, lengths[i]);
            through += !refused(resume, strchr(files[k], '/') + 1, why, sizeof(why));
        }
        unlink(in_dir(files[k])), cases++;
        through += !refused(resume, strchr(files[k], '/') + 1, why, sizeof(why));
        file_put(in_dir(files[k]), good, n);
        check(!through,
              k ? "checkpoint: a damaged model file is refused by name"
                : "checkpoint: a damaged state file is refused by name: every header field, a byte of every section, any length",
              "%d of %d were not, e.g. %s", through, cases, why);
    }
    // Whole files that are not this run's: an older model under the new name, a model with a NaN.
    size_t n;
    unsigned char *model = file_get(in_dir(files[1]), &n), *older = file_get(in_dir("hurt/model_00000002.bin"), &n);
    file_put(in_dir(files[1]), older, n);
    const int foreign = refused(resume, "model_00000004.bin", why, sizeof(why));
    file_put(in_dir(files[1]), model, n);
    check(foreign, "checkpoint: a whole model file that the state was not written with is refused", "%s", why);
    const uint32_t nan = 0x7fc00000;
    memcpy(older + 1024 + 4 * 77, &nan, 4);
    file_put(in_dir("nan.bin"), older, n);
    snprintf(arguments, sizeof(arguments), "--eval -t 16 -b 2 -i %s -e %s", in_dir("tiny.txt"), in_dir("nan.bin"));
    check(refused(arguments, "nan.bin: weight 77", why, sizeof(why)),
          "checkpoint: a model with a NaN is refused, and the weight named", "%s", why);

    // A directory in use, a directory without a run, and one that holds a run already.
    const int lock = open(in_dir("hurt"), O_RDONLY);
    const int locked = flock(lock, LOCK_EX | LOCK_NB) == 0 && refused(resume, "another program", why, sizeof(why));
    close(lock);
    check(locked, "run: a directory in use is locked", "%s", why);
    snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir("nowhere"));
    const int nothing = refused(arguments, "nowhere", why, sizeof(why));
    snprintf(arguments, sizeof(arguments), TINY_RUN "-x 1 -i %s -o %s", in_dir("tiny.txt"), in_dir("hurt"));
    check(nothing && refused(arguments, "hurt", why, sizeof(why)),
          "run: nothing to resume, or a directory that holds a run already, is refused", "%s", why);
}

static void test_options(void) {
    // "arguments > what the message must name;"
    static const char bad[] = "--no-such > --no-such;-Z > -Z;stray > stray;--batch 0 > --batch;-b 1.5 > --batch;-b x > --batch;"
                              "-b 70000 > --batch;-l nan > --lr;--lr -1 > --lr;--lr inf > --lr;--lr 1e-3x > --lr;--steps > --steps;"
                              "-x > -x;-x 99999999999999999999 > --steps;--beta1 1 > --beta1;--schedule sine > cosine;"
                              "--heads 5 > --heads;-e d0 > d0;-e d900 > --model;-e /no/model.bin > /no/model.bin;"
                              "-i /no/text > /no/text;-j /no/text > /no/text;-d 33 > --total-batch;-t 100000 > smaller -t;"
                              "--prompt hello > --prompt;--tokenizer /no/t.bin > /no/t.bin;--baseline /no/run > /no/run;-y 2 > 2;"
                              "--eval=1 > --eval;--steps= > --steps;";
    static const char bad_fp8[] =
        "--amax-history 0 > --amax-history;--amax-history 1025 > --amax-history;--scaling block128 > "
        "delayed;--static-scale 0 > --static-scale;--format-x fp6 > e4m3;"
        "--scaling x > delayed;--formats e3m4 > hybrid;--amax-algo mean > recent;--margin -1 > --margin;"
        "--margin 65 > --margin;--scaling mx --fp8-head > --fp8-head;--bf16 head > 'head';--bf16 fc.4 > '4';"
        "--scaling none --margin 1 > --margin;--scaling static --pow2 > --pow2;--scaling mx --pow2 0 > --pow2;"
        "--static-scale 2 > --static-scale;--scaling static=x > --static-scale;--mx-round floor > --mx-round;--scaling current "
        "--amax-history 16 > --amax-history;"
        "--recipe deepseek --amax-algo max > --amax-algo;--scaling-x best > delayed;--scaling-x static=2 --scaling-w static=4 > "
        "one scale;--scaling-w mx --fp8-head > blocks for w;";
    char arguments[PATH_MAX * 2], why[700] = "", one[2][64];
    const char *text = tiny_text();
    for (int table = 0; table < 2; table++) {
        int through = 0, tried = 0, length;
        for (const char *at = table ? bad_fp8 : bad; sscanf(at, "%63[^>]> %63[^;];%n", one[0], one[1], &length) == 2;
             at += length, tried++) {
            snprintf(arguments, sizeof(arguments), "-i %s -t 16 -b 2 -e d1 -n 0 -x 1 -o %s %s", text, in_dir("never"), one[0]);
            through += !refused(arguments, table && !IS_FP8 ? "only the FP8 build" : one[1], why, sizeof(why));
        }
        check(tried > 7 && !through,
              table ? "options: bad FP8 options, or any in another build, are refused by name"
                    : "options: bad ones are refused by name, with status 2",
              "%d of %d were not, e.g. %s", through, tried, why);
    }
    check(access(in_dir("never/log.tsv"), F_OK) != 0, "options: a refused call begins no run", "there is a log");
    const Child help = child_run("--help"), version = child_run("--version");
    check(help.status == 0 && version.status == 0, "options: --help and --version end with status 0", "%d and %d", help.status,
          version.status);

    // The lines that a state keeps must be read back to the same options, empty texts included.
    int given[OPTION_COUNT] = {0};
    char program[] = "x", *argv[2] = {program, NULL};
    Options o = options_parse(1, argv, given), back = o;
    o.batch = 7, o.lr = 0.0123456789, o.val = strdup("a file with blanks.txt"), o.seed = 123456789012345;
    char *lines = options_lines(&o);
    options_resume(&back, lines, given, "test");
    char *lines_back = options_lines(&back);
    check(!strcmp(lines, lines_back), "options: what a checkpoint keeps is read back the same", "'%s', expected '%s'", lines_back,
          lines);
    Options empty = options_parse(1, argv, given), empty_back = empty;
    free(lines), free(lines_back);
    lines = options_lines(&empty);
    empty_back.val = strdup("something"), empty_back.tokenizer = strdup("else");
    options_resume(&empty_back, lines, given, "test");
    check(empty_back.val[0] == 0 && empty_back.tokenizer[0] == 0 && empty_back.batch == empty.batch,
          "options: an empty text is read back as empty", "val '%s', tokenizer '%s'", empty_back.val, empty_back.tokenizer);
    free(lines);
}

// ---------------------------------------------------------------------------------------------------------------------
// J. run

// The log without what may differ: the machine's header lines, and the last three columns (time and speed).
static char *log_without_time(const char *path) {
    size_t n, out = 0;
    const char *text = (const char *)file_get(path, &n);
    char *kept = (char *)take(n + 2);
    if (!text) return kept;
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        size_t length = strcspn(line, "\n");
        if (line[0] == '#' && (!strncmp(line, "# threads", 9) || !strncmp(line, "# m", 3))) continue; // machine, memory
        for (int tabs = 0; isdigit((unsigned char)line[0]) && tabs < 3 && length > 0; length--) tabs += line[length - 1] == '\t';
        memcpy(kept + out, line, length), out += length;
        kept[out++] = '\n';
        if (!line[strcspn(line, "\n")]) break;
    }
    return kept;
}
static int rows_of(const char *text) {
    int rows = 0;
    for (const char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        rows += isdigit((unsigned char)line[0]) != 0;
    return rows;
}

// Whether two runs' directories agree in their last checkpoint and in their logs; how: what differed.
static int runs_same(const char *a, const char *b, int step, char *how, size_t room) {
    char pa[256], pb[256];
    static const char *const names[2] = {"model", "state"};
    how[0] = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(pa, sizeof(pa), "%s/%s_%08d.bin", a, names[i], step),
            snprintf(pb, sizeof(pb), "%s/%s_%08d.bin", b, names[i], step);
        if (!files_same(in_dir(pa), in_dir(pb))) snprintf(how, room, "%s and %s differ", pa, pb);
    }
    snprintf(pa, sizeof(pa), "%s/log.tsv", a), snprintf(pb, sizeof(pb), "%s/log.tsv", b);
    const char *la = log_without_time(in_dir(pa)), *lb = log_without_time(in_dir(pb));
    if (strcmp(la, lb) || rows_of(la) != step)
        snprintf(how, room, "%s (%d rows) and %s (%d) differ", pa, rows_of(la), pb, rows_of(lb));
    snprintf(pa, sizeof(pa), "%s/scales.tsv", a), snprintf(pb, sizeof(pb), "%s/scales.tsv", b);
    if (IS_FP8 && !files_same(in_dir(pa), in_dir(pb))) snprintf(how, room, "%s and %s differ", pa, pb);
    return how[0] == 0;
}

// Until the file is there, or the child has ended (as a zombie it keeps its number).
static void wait_for(const char *name, pid_t pid) {
    siginfo_t ended;
    memset(&ended, 0, sizeof(ended));
    for (int i = 0; i < 4000 && access(in_dir(name), F_OK) != 0 && ended.si_pid == 0; i++) {
        usleep(2000);
        waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
}

// The run once more, step by step from the design: micro-batches, scales once a step, norm, clipping, schedule, AdamW.
// Returns the number of weights that differ from the model file; rows: of the log that have the same loss, rate and norm,
// which Adam would hide.
static size_t run_by_hand(char *arguments, const char *model, const char *log, int *rows) {
    Gpt g;
    int given[OPTION_COUNT] = {0}, argc = 1, tokens[32], targets[32], clipped = 0;
    char program[] = "x", *argv[64] = {program};
    for (char *word = strtok(arguments, " "); word && argc < 63; word = strtok(NULL, " ")) argv[argc++] = word;
    const Options o = options_parse(argc, argv, given);
    Dataset train = dataset_open(o.train);
    dataset_hold_out(&train), dataset_windows(&train, "training", 16, 1);
    memset(&g, 0, sizeof(g));
    options_recipes(&o, given, &g);
    g.config = options_config(&o, options_depth(&o), train.V), g.B = 2, g.training = 1;
    workspace_free();
    gpt_allocate(&g), gpt_init(&g, 1);
    g.record = 1;
    if (PRECISION == PRECISION_FP16) g.loss_scaling[0] = 65536;
    for (int step = 0; step < 8; step++) {
        char want[2][128];
        double loss = 0;
        memset(g.grad, 0, g.param_count * 4);
        for (int micro = 0; micro < 2; micro++) { // 64 tokens a step
            dataset_batch(&train, 1, (step * 2 + micro) * 2, tokens, targets, 2, 16);
            loss += gpt_forward(&g, tokens, targets, 2, 16, g.loss_scaling[0] / 64) / 64;
            gpt_backward(&g, tokens, 2, 16);
        }
        const double norm = gradient_norm(g.grad, g.param_count, 1 / g.loss_scaling[0]), clip = norm > 0.5 ? 0.5 / norm : 1;
        const AdamW adamw = {schedule_lr(COSINE, 1e-3f, 0.1f, step, 2, 8), 0.9f, 0.95f, 1e-8f, 0.1f};
        for (int i = 0; i < g.scale_count; i++) scale_advance(&g.scales[i]);
        adamw_update(&g, &adamw, (float)(clip / (double)g.loss_scaling[0]), step + 1);
        snprintf(want[0], 128, "\n%d\t%d\t%.9g\t", step + 1, 64 * (step + 1), loss);
        snprintf(want[1], 128, "\t%.9g\t%.9g\t", (double)adamw.lr, norm);
        const char *row = strstr(log, want[0]), *rate = row ? strstr(row, want[1]) : NULL;
        *rows += rate && rate < row + 1 + strcspn(row + 1, "\n");
        clipped += clip < 1;
    }
    size_t n, differ;
    const unsigned char *file = file_get(model, &n);
    differ = !file || clipped == 0 || n != 1024 + g.param_count * 4
                 ? g.param_count
                 : bits_differ(g.master, (const float *)(const void *)(file + 1024), g.param_count);
    gpt_free(&g);
    layers_workspace(1, 16);
    return differ;
}

// Whole runs under the other rules of scaling: they learn as the default does, and a resume keeps their bits.
static void test_run_rules(void) {
#if IS_FP8
    char arguments[PATH_MAX * 2], how[700] = "", name[160];
    static const char *const rules[] = {"delayed", "current", "none", "static", "rowwise", "block", "mx", "mixed"};
    static const char *const words[] = {"--scaling delayed",
                                        "--scaling current",
                                        "--scaling none",
                                        "--scaling static=32 --format-w e5m2 --format-dy e4m3",
                                        "--scaling rowwise",
                                        "--scaling block --recompute",
                                        "--scaling mx --mx-round floor",
                                        "--scaling current --scaling-x mx --scaling-dy block --recompute --bf16 fc.wgrad"};
    double last[8] = {0};
    int without_sqnr = 0;
    for (int k = 0; k < 8; k++) {
        snprintf(arguments, sizeof(arguments), TINY_RUN "-x 60 -v 15 -n 30 --keep 0 --scales-every 1 --sqnr-every 1 %s -i %s -o %s",
                 words[k], tiny_text(), in_dir(rules[k]));
        const Child run = child_run(arguments);
        size_t n;
        char path[256];
        snprintf(path, sizeof(path), "%s/log.tsv", rules[k]);
        const char *log = (const char *)file_get(in_dir(path), &n);
        double row[7] = {0}, first = 0;
        for (const char *at = log ? log : ""; *at;) {
            double next[7]; // step, tokens, train_loss; val_loss is no number here
            if (text_row(&at, next, 3) == 3) memcpy(row, next, 3 * sizeof(double)), first = first > 0 ? first : row[2];
        }
        last[k] = row[2];
        snprintf(name, sizeof(name), "run: %s learns, within 0.02 nats of delayed scaling", words[k]);
        check(run.status == 0 && row[0] == 60 && row[2] < first - 1 && fabs(last[k] - last[0]) < 0.02, name,
              "status %d, step %g, loss %g then %g, delayed %g, %s", run.status, row[0], first, row[2], last[0], run.error);
        snprintf(name, sizeof(name), "%s-again", rules[k]);
        shell("cp -r", in_dir(rules[k]), in_dir(name));
        snprintf(path, sizeof(path), "%s/DONE_00000060", name), unlink(in_dir(path));
        snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir(name));
        const Child resumed = child_run(arguments);
        const int same = runs_same(rules[k], name, 60, how, sizeof(how));
        snprintf(name, sizeof(name), "run: %s resumed from step 30: the same bits", words[k]);
        check(resumed.status == 0 && same, name, "status %d, %s %s", resumed.status, how, resumed.error);
        snprintf(path, sizeof(path), "%s/scales.tsv", rules[k]);
        const char *scales = (const char *)file_get(in_dir(path), &n);
        without_sqnr += !scales || strstr(scales, "\t-\n");
    }
    check(!without_sqnr, "run: every row of scales.tsv has an SQNR, of weights and blocks too", "%d runs have one without",
          without_sqnr);
    snprintf(arguments, sizeof(arguments), TINY_RUN "-x 10 -v 0 -n 0 --scales-every 2 --sqnr-every 4 -i %s -o %s", tiny_text(),
             in_dir("sqnr"));
    child_run(arguments);
    size_t n;
    int wrong = 0, rows = 0, with = 0;
    const char *at = (const char *)file_get(in_dir("sqnr/scales.tsv"), &n);
    for (at = at ? strchr(at, '\n') : NULL; at && at[1]; at = strchr(at + 1, '\n')) {
        const int step = atoi(at + 1), length = strcspn(at + 1, "\n"), has = strncmp(at + length - 1, "\t-", 2) != 0;
        rows++, with += has, wrong += step % 2 || has != (step == 4 || step == 8 || step == 10);
    }
    check(!wrong && rows == 5 * with / 3 && with > 0,
          "run: --sqnr-every 4 measures it in steps 4, 8 and the last, 10; rows are of 2, 4, .. 10",
          "%d rows, %d with an SQNR, %d wrong", rows, with, wrong);
    const char *none = (const char *)file_get(in_dir("none/log.tsv"), &n),
               *delayed = (const char *)file_get(in_dir("delayed/log.tsv"), &n);
    Gpt g;
    memset(&g, 0, sizeof(g));
    int given[OPTION_COUNT] = {0};
    char *formats[] = {(char *)"test", (char *)"--formats", (char *)"e5m2", (char *)"--format-w", (char *)"e4m3", (char *)"--pow2"};
    const Options o = options_parse(6, formats, given);
    options_recipes(&o, given, &g);
    const ScalingRecipe *r = g.recipes;
    check(r[OPERAND_X].format == DTYPE_E5M2 && r[OPERAND_W].format == DTYPE_E4M3 && r[OPERAND_DY].format == DTYPE_E5M2,
          "recipe: --format-w overrides --formats", "%d %d %d", r[0].format, r[1].format, r[2].format);
    char *named[] = {(char *)"test", (char *)"--margin",  (char *)"2",   (char *)"--recipe",
                     (char *)"te",   (char *)"--formats", (char *)"e4m3"};
    const Options te = options_parse(7, named, given);
    check(te.amax_history == 1024 && te.margin == 2 && te.formats == 2 && te.scaling == SCALING_DELAYED,
          "recipe: a named set is expanded, options after it change it", "%ld %ld %ld %ld", te.amax_history, te.margin, te.formats,
          te.scaling);
    // Named sets, from their sources' words, and --explain, which tells any two of these recipes apart.
    static const struct {
        const char *name;
        int rule, dy_format, history, across_w, along;
    } sets[] = {{"paper", SCALING_DELAYED, DTYPE_E5M2, 16, 1, 0},   {"te", SCALING_DELAYED, DTYPE_E5M2, 1024, 1, 0},
                {"torchao", SCALING_CURRENT, DTYPE_E5M2, 16, 1, 0}, {"deepseek", SCALING_BLOCK, DTYPE_E4M3, 16, 128, 128},
                {"mx", SCALING_MX, DTYPE_E4M3, 16, 1, 32},          {"naive", SCALING_NONE, DTYPE_E4M3, 16, 1, 0}};
    static const char *const changes[] = {"--recipe paper",
                                          "--recipe te",
                                          "--recipe torchao",
                                          "--recipe deepseek",
                                          "--recipe mx",
                                          "--recipe naive",
                                          "--amax-algo recent",
                                          "--margin 1",
                                          "--pow2",
                                          "--scaling static --static-scale 8",
                                          "--scaling mx --mx-round floor",
                                          "--scaling rowwise",
                                          "--scaling-w mx",
                                          "--scaling-dy current",
                                          "--format-x e5m2",
                                          "--bf16 first",
                                          "--bf16 wgrad",
                                          "--fp8-head",
                                          "--sum-order tiles",
                                          "--formats e4m3",
                                          "--recompute",
                                          "--scaling mx --formats hybrid"};
    enum { CHANGES = sizeof(changes) / sizeof(changes[0]) };
    const char *texts[CHANGES];
    size_t differ = 0, alike = 0;
    for (size_t k = 0; k < sizeof(sets) / sizeof(sets[0]); k++) {
        char *words_of[] = {(char *)"test", (char *)"--recipe", strdup(sets[k].name)};
        int none_given[OPTION_COUNT] = {0};
        const Options set = options_parse(3, words_of, none_given);
        Gpt h = {0};
        options_recipes(&set, none_given, &h);
        for (int i = 0; i < NOPERAND; i++)
            differ += (int)h.recipes[i].rule != sets[k].rule || h.recipes[i].history_len != sets[k].history ||
                      h.recipes[i].margin || (int)h.recipes[i].format != (i == OPERAND_DY ? sets[k].dy_format : DTYPE_E4M3) ||
                      h.recipes[i].across != (i == OPERAND_W ? sets[k].across_w : 1) || h.recipes[i].along != sets[k].along ||
                      h.recipes[i].power2 != (sets[k].along != 0) || !h.recipes[i].use_max;
    }
    check(!differ, "recipe: all six named sets stand for what their authors publish", "%zu operands differ", differ);
    for (int k = 0; k < CHANGES; k++) {
        snprintf(arguments, sizeof(arguments), "--explain -e d2 -t 16 -b 2 -i %s %s", tiny_text(), changes[k]);
        const Child run = child_run(arguments);
        texts[k] = (const char *)file_get(in_dir("stdout.txt"), &n);
        for (int j = 0; j <= k; j++) alike += run.status != 0 || (j < k && !strcmp(texts[j], texts[k]));
    }
    check(!alike, "--explain: any two of 22 recipes read differently", "%zu pairs do not, or failed", alike);
    const char *const parts[] = {"own amax of 1 x 128, 2^n", "own amax of 128 x 128, 2^n", "scores", "softmax", "fp32"};
    for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++) alike += !strstr(texts[3], parts[k]);
    check(!alike, "--explain: blocks, attention's products, accumulators are named", "%zu are not", alike);
    ScalingRecipe mx = r[OPERAND_W];
    mx.power2 = 2;
    const float tiny = scale_from_amax(0x1p-126f, 1, &mx), one = scale_from_amax(1, 1, &mx);
    check(tiny == 0x1p126f && one == 256, "recipe: --mx-round floor of the smallest amax stays a scale", "%g %g", tiny, one);
    const float scale = scale_from_amax(3, 1, &r[OPERAND_W]);
    check(scale == 128, "recipe: --pow2 takes the power of two below 448 / 3", "%g", scale);
    check(strstr(none, "\t65536\t") && !strstr(delayed, "\t65536\t"),
          "run: --scaling none scales the loss as FP16 does, delayed does not", "it is the other way round");
#endif
}

// Options that trade speed and memory: the bits stay; the plan is what is used.
static void test_run_memory(void) {
    char arguments[PATH_MAX * 2], how[700] = "";
    double peak[3] = {0}, planned[3] = {1, 1, 1};
    int status = 0;
    for (int again = 0; again < 3; again++) { // the third: the first one resumed
        snprintf(arguments, sizeof(arguments), "-l 1e-3 -e d4 -b 4 -t 128 -m 1 -x 2 -v 0 -s 0 -n 2 -u 0 --recompute %d -i %s -o %s",
                 again, tiny_text(), in_dir(again ? "again" : "kept"));
        if (again == 2) snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir("kept"));
        status |= child_run(arguments).status;
        size_t n = 0;
        const char *text = (const char *)file_get(in_dir("stdout.txt"), &n), *at = text ? strstr(text, "peak memory") : NULL;
        if (at) sscanf(at, "peak memory %lf MiB (planned %lf)", &peak[again], &planned[again]);
    }
    size_t n[2] = {0};
    const unsigned char *model[2] = {file_get(in_dir("kept/model_00000002.bin"), &n[0]),
                                     file_get(in_dir("again/model_00000002.bin"), &n[1])};
    check(status == 0 && n[0] && n[0] == n[1] && !memcmp(model[0], model[1], n[0]), "run: --recompute changes no bit", "status %d",
          status);
    check(fabs(peak[0] / planned[0] - 1) < 0.05 && fabs(peak[1] / planned[1] - 1) < 0.05,
          "run: peak memory is within 5% of the plan, with and without --recompute", "%g of %g, %g of %g MiB", peak[0], planned[0],
          peak[1], planned[1]);
    check(planned[1] < planned[0] - 1, "run: --recompute keeps less", "%g and %g MiB", planned[0], planned[1]);
    check(fabs(peak[2] / planned[2] - 1) < 0.05, "run: peak memory of a resume is within 5% of the plan", "%g of %g MiB", peak[2],
          planned[2]);
    snprintf(arguments, sizeof(arguments), TINY_RUN "-x 4 -v 0 -n 2 --sum-order tiles --keep 0 -i %s -o %s", tiny_text(),
             in_dir("tiles"));
    const Child run = child_run(arguments);
    shell("cp -r", in_dir("tiles"), in_dir("tiles-again")), unlink(in_dir("tiles-again/DONE_00000004"));
    snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir("tiles-again"));
    const Child resumed = child_run(arguments);
    check(run.status == 0 && resumed.status == 0 && runs_same("tiles", "tiles-again", 4, how, sizeof(how)),
          "run: --sum-order tiles resumed at step 2: the same bits", "status %d %d, %s %s", run.status, resumed.status, how,
          resumed.error);
    snprintf(arguments, sizeof(arguments), "-y --sum-order pairs -o %s", in_dir("tiles-again"));
    check(refused(arguments, "'tiles'", how, sizeof(how)), "run: a resume cannot change --sum-order", "%s", how);
    snprintf(arguments, sizeof(arguments), TINY_RUN "--sum-order rows -i %s", tiny_text());
    check(refused(arguments, "pairs tiles; found 'rows'", how, sizeof(how)), "run: an unknown --sum-order is refused", "%s", how);
}

// A gradient that overflows FP16: the step is skipped, the loss scale halved, Adam's count stays; other builds stop.
static void test_run_overflow(void) {
#if PRECISION == PRECISION_FP16
    static Run r;
    memset(&r, 0, sizeof(r));
    char *argv[] = {(char *)"test", (char *)"-l", (char *)"1e-3", (char *)"-u", (char *)"0"};
    r.o = options_parse(5, argv, r.given);
    threads_set(2);
    workspace_free();
    model_make(&r.g, 0);
    const int B = r.g.B, T = r.g.config.T;
    r.o.total_batch = B * T, r.tokens = (int *)take(B * T * sizeof(int)), r.targets = (int *)take(B * T * sizeof(int));
    size_t bytes; // the text's, within the small model's vocabulary
    unsigned char *tokens = file_get(tiny_text(), &bytes);
    for (size_t i = 0; i < bytes; i++) tokens[i] %= MODEL_V;
    file_put(in_dir("few.txt"), tokens, bytes);
    r.train = dataset_open(in_dir("few.txt"));
    dataset_windows(&r.train, "training", T, 1);
    float *before = take_floats(r.g.param_count), lr;
    memcpy(before, r.g.master, r.g.param_count * 4);
    r.g.loss_scaling[0] = 0x1p40f;
    double norm = INFINITY;
    int skipped = 0, wrong = 0;
    for (; skipped < 60 && norm - norm != 0; skipped++) {
        const double loss = run_step(&r, skipped, &norm, &lr);
        const int overflow = norm - norm != 0;
        wrong += !(loss > 0) || (memcmp(before, r.g.master, r.g.param_count * 4) == 0) != overflow;
        wrong += r.g.loss_scaling[0] != (overflow ? ldexpf(1, 39 - skipped) : ldexpf(1, 40 - skipped));
        wrong += r.progress.updates != !overflow;
    }
    check(!wrong && skipped > 5 && skipped < 60,
          "overflow: FP16 skips the step and halves the loss scale until the gradients fit; then Adam's first update",
          "%d wrong, %d steps", wrong, skipped);
    gpt_free(&r.g);
    layers_workspace(1, 16);
#endif
}

// A disk that is full at a checkpoint: a limit on the size of files, which every child inherits, stands for it.
static void test_run_disk_full(void) {
    char arguments[PATH_MAX * 2], how[700] = "";
    snprintf(arguments, sizeof(arguments), TINY_RUN "-x 8 -v 2 -n 2 --keep 0 -i %s -o %s", tiny_text(), in_dir("whole"));
    child_run(arguments);
    shell("cp -r", in_dir("whole"), in_dir("full"));
    for (int step = 4; step <= 8; step += 2) {
        char path[64];
        snprintf(path, sizeof(path), "full/DONE_%08d", step), unlink(in_dir(path));
    }
    struct rlimit unlimited, small;
    getrlimit(RLIMIT_FSIZE, &unlimited);
    small = unlimited, small.rlim_cur = 60000; // less than a checkpoint, more than the log
    signal(SIGXFSZ, SIG_IGN), setrlimit(RLIMIT_FSIZE, &small);
    snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir("full"));
    const Child full = child_run(arguments);
    setrlimit(RLIMIT_FSIZE, &unlimited), signal(SIGXFSZ, SIG_DFL);
    check(full.status == EXIT_BAD_INPUT && strstr(full.error, "model_00000004.bin: cannot write") &&
              access(in_dir("full/DONE_00000002"), F_OK) == 0 && access(in_dir("full/DONE_00000004"), F_OK) != 0,
          "run: a full disk ends it with status 2 and leaves the last checkpoint", "status %d, %s", full.status, full.error);
    const Child again = child_run(arguments);
    check(again.status == 0 && runs_same("whole", "full", 8, how, sizeof(how)),
          "run: with room again, a resume ends as if nothing had been", "status %d, %s %s", again.status, how, again.error);
}

static void test_run(void) {
    char arguments[PATH_MAX * 2], how[700] = "";
    const char *text = tiny_text();
    const char *scales = IS_FP8 ? "--scales-every 1 --fp8-head --amax-history 3" : "";
#define RUN_OPTIONS TINY_RUN "-d 64 -v 2 -n 2 --keep 0 -x 8 --grad-clip 0.5 -i %s %s -o "
    snprintf(arguments, sizeof(arguments), RUN_OPTIONS "%s", text, scales, in_dir("straight"));
    const Child straight = child_run(arguments);
    if (!check(straight.status == 0, "run: eight steps with validation, checkpoints and a log", "status %d, %s", straight.status,
               straight.error))
        return;
    size_t n;
    int rows = 0;
    const char *log_text = (const char *)file_get(in_dir("straight/log.tsv"), &n);
    const size_t differ = run_by_hand(arguments, in_dir("straight/model_00000008.bin"), log_text ? log_text : "", &rows);
    check(!differ && rows == 8, "run: eight steps done by hand give the same weights, losses, rates and norms",
          "%zu weights differ (all, if no step was clipped), %d of 8 rows of the log are the same", differ, rows);
    for (int threads = 1; threads <= 3; threads += 2) {
        char name[64], dir[32];
        snprintf(dir, sizeof(dir), "threads%d", threads),
            snprintf(name, sizeof(name), "run: %d thread%s the same checkpoint and log", threads,
                     threads == 1 ? " gives" : "s give");
        snprintf(arguments, sizeof(arguments), RUN_OPTIONS "%s", text, scales, in_dir(dir));
        child_end(child_start(threads, arguments));
        check(runs_same("straight", dir, 8, how, sizeof(how)), name, "%s", how);
    }
    for (int stop = 2; stop <= 6; stop += 4) { // as after a kill: later checkpoints are not there, the log may be further
        char name[96], path[64];
        shell("cp -r", in_dir("straight"), in_dir("resumed"));
        for (int step = stop + 2; step <= 8; step += 2) {
            snprintf(path, sizeof(path), "resumed/DONE_%08d", step), unlink(in_dir(path));
            snprintf(path, sizeof(path), "resumed/model_%08d.bin", step), unlink(in_dir(path));
            snprintf(path, sizeof(path), "resumed/state_%08d.bin", step), unlink(in_dir(path));
        }
        FILE *log = fopen(in_dir("resumed/log.tsv"), "a"); // a row that the kill cut short
        if (log) fputs("9\t12", log), fclose(log);
        snprintf(arguments, sizeof(arguments), "-y -o %s", in_dir("resumed"));
        const Child resumed = child_run(arguments);
        snprintf(name, sizeof(name), "run: stopped after step %d and resumed: the same checkpoint, log and scales", stop);
        const int same = runs_same("straight", "resumed", 8, how, sizeof(how));
        check(resumed.status == 0 && same, name, "status %d, %s %s", resumed.status, how, resumed.error);
        shell("rm -rf", in_dir("resumed"), "");
    }
    snprintf(arguments, sizeof(arguments), RUN_OPTIONS "%s --data-seed 2", text, scales, in_dir("other"));
    child_run(arguments);
    check(!runs_same("straight", "other", 8, how, sizeof(how)), "planted fault: a run on other data is not taken for the same",
          "it was");
    snprintf(arguments, sizeof(arguments), "-y -o %s --lr 5", in_dir("other"));
    check(refused(arguments, "--lr", how, sizeof(how)), "run: a resume may not change the learning rate", "%s", how);
    snprintf(arguments, sizeof(arguments), "-y -o %s --val-every 1 -t 16", in_dir("other"));
    const Child free_option = child_run(arguments);
    check(free_option.status == 0, "run: it may change --val-every, and repeat what it was", "status %d, %s", free_option.status,
          free_option.error);

    // A kill at an instant nobody chose, and an interrupt.
    snprintf(arguments, sizeof(arguments), TINY_RUN "-v 5 -n 3 -x 60 -i %s -o %s", text, in_dir("long"));
    child_run(arguments);
    for (int k = 0; k < 2; k++) {
        const char *dir = k ? "interrupted" : "killed";
        char wait[64], resume[PATH_MAX], name[96];
        snprintf(arguments, sizeof(arguments), TINY_RUN "-v 5 -n 3 -x 60 -i %s -o %s", text, in_dir(dir));
        const pid_t pid = child_start(1, arguments);
        snprintf(wait, sizeof(wait), "%s/DONE_00000003", dir);
        wait_for(wait, pid);
        usleep(20000);
        kill(pid, k ? SIGINT : SIGKILL);
        const Child first = child_end(pid);
        snprintf(resume, sizeof(resume), "-y -o %s", in_dir(dir));
        const Child second = child_run(resume);
        const int same = runs_same("long", dir, 60, how, sizeof(how));
        snprintf(name, sizeof(name),
                 k ? "run: interrupted (status 130), resumed: the same end" : "run: killed at any instant, resumed: the same end");
        check((first.status == (k ? EXIT_INTERRUPTED : 1000 + SIGKILL) || first.status == 0) && second.status == 0 && same, name,
              "status %d then %d, %s %s", first.status, second.status, how, second.error);
    }
    snprintf(arguments, sizeof(arguments), TINY_RUN "-u 0 -l 1e30 -v 0 -x 20 -n 0 -i %s -o %s", text, in_dir("diverges"));
    const Child diverges = child_run(arguments);
    check(diverges.status == EXIT_NONFINITE && strstr(diverges.error, "not finite"),
          "run: a loss that is not finite stops it with status 3", "status %d, %s", diverges.status, diverges.error);
    snprintf(arguments, sizeof(arguments), "--prompt the --generate 40 -e %s", in_dir("straight/model_00000008.bin"));
    const Child prompt = child_run(arguments);
    snprintf(arguments, sizeof(arguments), "--eval -b 2 -m 2 -t 16 -i %s -e %s", text, in_dir("straight/model_00000008.bin"));
    const Child eval = child_run(arguments);
    check(prompt.status == 0 && eval.status == 0, "run: a model file can be prompted and evaluated", "status %d and %d, %s%s",
          prompt.status, eval.status, prompt.error, eval.error);
    snprintf(arguments, sizeof(arguments), "-e d1 --channels 32 --heads 2 -t 1 -b 2 -m 2 -s 1 -g 5 -v 1 -n 0 -x 2 -i %s -o %s",
             text, in_dir("short"));
    const Child one = child_run(arguments);
    check(one.status == 0, "run: a context of one token trains and samples", "status %d, %s", one.status, one.error);
}

// ---------------------------------------------------------------------------------------------------------------------

// All that rests on products, again under --sum-order tiles.
static void test_tiles(void) {
    machine_init(1);
    printf("in tiles, by %s:\n", product_instruction());
    test_product(), test_blocks(), test_layers(), test_gradients(), test_fp8_layer(), test_fp8_mixed(), test_model_bits(),
        test_model();
    machine_init(0);
}

typedef struct {
    const char *name;
    void (*run)(void);
} Group;
static const Group groups[] = {
    {"fp8_codes", test_fp8_codes},
    {"fp8_blocks", test_fp8_blocks},
    {"fp8_sixteen_bits", test_fp8_sixteen_bits},
    {"fp8_fma", test_fp8_fma},
    {"scale_update", test_scale_update},
    {"scale_quantise", test_scale_quantise},
    {"math", test_math},
    {"product", test_product},
    {"blocks", test_blocks},
    {"layers", test_layers},
    {"gradients", test_gradients},
    {"fp8_layer", test_fp8_layer},
    {"fp8_mixed", test_fp8_mixed},
    {"model_bits", test_model_bits},
    {"model", test_model},
    {"optimiser", test_optimiser},
    {"data", test_data},
    {"checkpoint", test_checkpoint},
    {"damage", test_damage},
    {"options", test_options},
    {"run", test_run},
    {"run_rules", test_run_rules},
    {"run_memory", test_run_memory},
    {"run_overflow", test_run_overflow},
    {"run_disk_full", test_run_disk_full},
    {"tiles", test_tiles},
};

int main(int argc, char **argv) {
    const char *only = "";
    int exhaustive = 0;
    if (argc > 1 && !strcmp(argv[1], "--as-trainer")) return trainer_main(argc - 1, argv + 1);
    // More threads than cores must not spin at every barrier; libgomp reads this once, at its start.
    if (!getenv("OMP_WAIT_POLICY")) {
        setenv("OMP_WAIT_POLICY", "passive", 1);
        execv("/proc/self/exe", argv);
    }
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--exhaustive")) exhaustive = 1;
        else if (!strcmp(argv[i], "--only") && i + 1 < argc) only = argv[++i];
        else {
            printf("usage: %s [--exhaustive] [--only NAME]; groups:", argv[0]);
            for (size_t k = 0; k < sizeof(groups) / sizeof(groups[0]); k++) printf(" %s", groups[k].name);
            printf("\n");
            return EXIT_BAD_INPUT;
        }
    }
    const ssize_t n = readlink("/proc/self/exe", self_path, sizeof(self_path) - 1);
    const char *temporary = getenv("TMPDIR");
    snprintf(work_dir, sizeof(work_dir), "%.80s/test_gpt_XXXXXX", temporary && temporary[0] ? temporary : "/tmp");
    if (n < 0 || !mkdtemp(work_dir)) {
        printf("cannot make a directory %s\n", work_dir);
        return EXIT_BAD_INPUT;
    }
    machine_init(0);
    values_init();
    layers_workspace(1, 16);
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (!strstr(groups[i].name, only)) continue;
        const double begin = seconds_now();
        groups[i].run();
        take_end();
        if (getenv("TEST_TIMES")) printf("     %.2f s in %s\n", seconds_now() - begin, groups[i].name);
    }
    if (exhaustive) test_fp8_exhaustive();
    shell("rm -rf", work_dir, "");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
