/*
Tests of train_gpt_fp8.cu against train_gpt_fp8.c: bytes, scales and statistics bit for bit, layers
within what the format's rounding explains, whole runs from the command line. On a CPU by on_cpu.h,
or on a GPU:

    dev/cuda/test.sh fp8            # or fp16, bf16, fp32; builds in build/cuda, on a CPU, and runs
    dev/cuda/test.sh --gpu fp8      # the same by nvcc

Every kind of check is also made once on a planted fault, which it must find. Prints what failed,
`ok` lines with the figures found, then `N passed, M failed`; exit status 0 if nothing failed.

reference.c makes the C file's functions reachable from here, under a prefix, since both files use
the same names. The program calls itself for whole runs: `--as-cuda ARGS` is the CUDA file's main(),
`--as-ref ARGS` the C file's, `--as-bf16` and so on the C file's in another precision.
*/
#include <algorithm>
#include <functional>
#include <string>
#include <vector>
#include <sys/wait.h>
#ifndef TRAINER
#define TRAINER "../../train_gpt_fp8.cu"
#endif
#define main cuda_main
#include TRAINER
#undef main
#include "reference.h"
#ifdef CUDA_ON_CPU
#define ORDERS 4
static const char *const orders[ORDERS] = {"forward", "backward", "shuffled:1", "shuffled:2"};
static void order_set(int i) { on_cpu::order_set(orders[i]); }
#else
#define ORDERS 2 // on a GPU: twice
static void order_set(int) {}
#endif

static int passed, failed;
#define CHECK(condition, ...) /* prints the first three failures of each */                        \
    do {                                                                                           \
        static int shown;                                                                          \
        if (condition) passed++;                                                                   \
        else if (failed++, shown++ < 3)                                                            \
            printf("failed: line %d: %s: ", __LINE__, #condition), printf(__VA_ARGS__),            \
                printf("\n");                                                                      \
    } while (0)

// ---- memory and numbers
template <class T> struct Device { // an array on the device
    T *p;
    size_t n;
    explicit Device(size_t n) : p((T *)device_allocate(n * sizeof(T))), n(n) {}
    explicit Device(const std::vector<T> &host) : Device(host.size()) { write(host); }
    Device(const Device &) = delete;
    ~Device() { cudaFree(p); }
    void write(const std::vector<T> &host) {
        device_write(p, host.data(), host.size() * sizeof(T));
    }
    std::vector<T> read() const {
        std::vector<T> host(n);
        device_read(host.data(), p, n * sizeof(T));
        return host;
    }
};
static uint64_t draws;
static double uniform() { return random_unit(random_u64(7, 7, draws++)); } // 0 .. 1
static float normal() {
    return (float)((uniform() + uniform() + uniform() + uniform() + uniform() + uniform() - 3) *
                   1.41421356);
}
static std::vector<float> normals(size_t n, float std, float mean = 0) {
    std::vector<float> x(n);
    for (float &f : x) f = mean + std * normal();
    return x;
}
static std::vector<stored_t> stored(const std::vector<float> &x) {
    std::vector<stored_t> s(x.size());
    for (size_t i = 0; i < x.size(); i++) s[i] = stored_from_float(x[i]);
    return s;
}
static std::vector<float> floats(const std::vector<stored_t> &x) {
    std::vector<float> f(x.size());
    for (size_t i = 0; i < x.size(); i++) f[i] = float_from_stored(x[i]);
    return f;
}
#if PRECISION != PRECISION_FP32
static std::vector<float> floats(const std::vector<float> &x) { return x; }
#endif
// The relative error of one rounding to the stored type.
static const double EPSILON = PRECISION == PRECISION_FP32   ? 0x1p-24
                              : PRECISION == PRECISION_FP16 ? 0x1p-11
                                                            : 0x1p-9;

// |found - reference| / |reference|, as norms; huge where one of them is not finite.
template <class A, class B> static double error_of(const A &reference, const B &found) {
    double difference = 0, norm = 0;
    if (reference.size() != found.size()) return 1e30;
    for (size_t i = 0; i < reference.size(); i++) {
        const double r = reference[i], d = r - (double)found[i];
        difference += d * d, norm += r * r;
    }
    const double e = sqrt(difference) / (sqrt(norm) + 1e-300);
    return e == e ? e : 1e30;
}
static void check_error(const char *name, const std::vector<float> &reference,
                        const std::vector<float> &found, double tolerance) {
    const double e = error_of(reference, found);
    CHECK(e <= tolerance, "%s: relative error %.3g, allowed %.3g", name, e, tolerance);
    printf("ok   %-44s error %.2e (allowed %.2e)\n", name, e, tolerance);
}
template <class T> static bool same(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}
template <class T>
static void check_same(const char *name, const std::vector<T> &reference,
                       const std::vector<T> &found) {
    size_t i = 0;
    while (i < reference.size() && i < found.size() && !memcmp(&reference[i], &found[i], sizeof(T)))
        i++;
    uint64_t r = 0, f = 0;
    if (!same(reference, found))
        memcpy(&r, &reference[i], MIN(sizeof(T), sizeof(r))),
            memcpy(&f, &found[i], MIN(sizeof(T), sizeof(f)));
    CHECK(same(reference, found), "%s: element %zu of %zu: %llx, expected %llx", name, i,
          reference.size(), (unsigned long long)f, (unsigned long long)r);
}
template <class T>
static std::vector<T> transposed(const std::vector<T> &x, size_t rows, size_t columns,
                                 size_t pitch) {
    std::vector<T> t(columns * pitch);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) t[c * pitch + r] = x[r * columns + c];
    return t;
}

// ---- the functions of one number, for every 16-bit input and many floats
static __global__ void numbers_kernel(uint32_t *out, const float *x, size_t n) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const stored_t s = stored_from_float(PRECISION == PRECISION_FP32 ? x[i] : denormal_flush(x[i]));
    uint32_t *to = out + 6 * i;
    to[0] = 0;
    memcpy(to, &s, sizeof(s));
    to[1] = float_bits(float_from_stored(s));
    to[2] = float_bits(exp_fixed_order(x[i])), to[3] = float_bits(gelu_sigmoid(x[i]));
    to[4] = fp8_encode2(x[i], -x[i], DTYPE_E4M3), to[5] = fp8_encode2(x[i], -x[i], DTYPE_E5M2);
}
static __global__ void codes_kernel(uint32_t *out) {
    const int code = threadIdx.x;
    out[code] = float_bits(fp8_decode((uint8_t)code, DTYPE_E4M3)),
    out[256 + code] = float_bits(fp8_decode((uint8_t)code, DTYPE_E5M2));
}
static bool same_number(uint32_t a, uint32_t b) { // one NaN is as good as another
    const bool nan = (a & 0x7fffffff) > 0x7f800000;
    return nan ? (b & 0x7fffffff) > 0x7f800000 : a == b;
}
static bool same_stored(uint32_t a, uint32_t b) {
    return same_number(float_bits(ref_stored_value(a)), float_bits(ref_stored_value(b)));
}
static void test_numbers() {
    std::vector<float> x;
    for (uint32_t h = 0; h < 65536; h++)
        for (uint32_t low : {0u, 0x8000u, 0x7fffu, 0x1234u}) x.push_back(bits_float(h << 16 | low));
    Device<float> in(x);
    Device<uint32_t> out(6 * x.size()), decoded(512);
    LAUNCH(numbers_kernel, ceil_div(x.size(), 256), 256, 0, machine.stream, out.p, in.p, x.size());
    const std::vector<uint32_t> got = out.read();
    size_t wrong[6] = {0, 0, 0, 0, 0, 0};
    for (size_t i = 0; i < x.size(); i++) {
        const uint32_t want[6] = {ref_stored_bits(x[i]),
                                  float_bits(ref_stored_value(ref_stored_bits(x[i]))),
                                  float_bits(ref_exp(x[i])),
                                  float_bits(ref_gelu_sigmoid(x[i])),
                                  ref_encode(x[i], DTYPE_E4M3) | ref_encode(-x[i], DTYPE_E4M3) << 8,
                                  ref_encode(x[i], DTYPE_E5M2) | ref_encode(-x[i], DTYPE_E5M2)
                                                                     << 8};
        for (int k = 0; k < 6; k++) {
            const float a = bits_float(want[k]), b = bits_float(got[6 * i + k]);
            if (k == 3 && a == a)
                wrong[k] += !(fabsf(a - b) <= 1e-5f * a + 0x1p-120f); // the GPU's own exponential
            else if (k == 0) wrong[0] += !same_stored(want[0], got[6 * i]);
            else
                wrong[k] +=
                    k <= 3 ? !same_number(want[k], got[6 * i + k]) : want[k] != got[6 * i + k];
        }
    }
    CHECK(wrong[0] == 0 && wrong[1] == 0, "stored type: %zu wrong there, %zu back", wrong[0],
          wrong[1]);
    CHECK(wrong[2] == 0 && wrong[3] == 0,
          "exp: %zu wrong, GELU's sigmoid: %zu off by more than 1e-5", wrong[2], wrong[3]);
    CHECK(wrong[4] == 0 && wrong[5] == 0, "encode: %zu wrong in E4M3, %zu in E5M2", wrong[4],
          wrong[5]);
    LAUNCH(codes_kernel, 1, 256, 0, machine.stream, decoded.p);
    const std::vector<uint32_t> codes = decoded.read();
    size_t bad = 0;
    for (int c = 0; c < 512; c++)
        bad += !same_number(float_bits(ref_decode((uint8_t)c, c < 256 ? DTYPE_E4M3 : DTYPE_E5M2)),
                            codes[c]);
    CHECK(bad == 0, "decode: %zu codes wrong", bad);
    printf("ok   conversions, exp, GELU's sigmoid: %zu numbers\n", x.size());
}

// ---- quantizing
#if IS_FP8
struct NamedRecipe {
    const char *name;
    ScalingRecipe r;
};
static ScalingRecipe recipe_of(const char *words, Dtype format) {
    ScalingRecipe r[NOPERAND];
    recipe_parse(r, words, "test");
    r[OPERAND_X].format = format;
    return r[OPERAND_X];
}
static std::vector<NamedRecipe> recipes_all() {
    std::vector<NamedRecipe> all;
    for (const char *words :
         {"delayed", "delayed=2+margin=2", "delayed=1+pow2", "current", "current+margin=1+pow2",
          "scale=1", "scale=24", "rowwise", "block=1x128", "block=128x128", "block=32x64",
          "block=1x128+margin=1", "mx", "mx+floor"})
        for (Dtype d : {DTYPE_E4M3, DTYPE_E5M2}) all.push_back({words, recipe_of(words, d)});
    for (const char *words :
         {"e2m1", "e2m1+stochastic", "e2m1+scale=3", "mxfp4", "mxfp4+floor", "mxfp4+stochastic",
          "nvfp4", "nvfp4+stochastic", "block=16x16+two-level+e2m1"})
        all.push_back({words, recipe_of(words, DTYPE_E2M1)});
    for (const char *words : {"stochastic", "current+stochastic", "mx+stochastic", "split",
                              "deepseek+stochastic", "block=1x16+two-level", "mx+split"})
        for (Dtype d : {DTYPE_E4M3, DTYPE_E5M2}) all.push_back({words, recipe_of(words, d)});
    return all;
}
// A byte for each of n codes from number `at` on.
static std::vector<uint8_t> unpacked(const std::vector<uint8_t> &q, size_t at, size_t n, Dtype d) {
    std::vector<uint8_t> codes(n);
    for (size_t i = 0; i < n; i++) codes[i] = code_at(q.data(), at + i, d);
    return codes;
}
static Fp8Scale scale_new(const ScalingRecipe &r) {
    Fp8Scale s;
    memset(&s, 0, sizeof(s));
    s.recipe = r, s.scale = s.logged_scale = r.rule == SCALING_CONSTANT ? r.number : 1,
    s.scale_inv[0] = s.scale_inv[1] = 1, s.random = 0x1234567887654321ull, s.micro_batches = 3;
    return s;
}
// The first field in which two scales differ, or NULL.
static const char *scale_difference(const Fp8Scale &a, const Fp8Scale &b) {
#define FIELD(name)                                                                                \
    if (memcmp(&a.name, &b.name, sizeof(a.name))) return #name
#define SUM(name) /* one NaN is as good as another; of blocks in another order */                  \
    if (a.name != b.name && (a.name == a.name || b.name == b.name) &&                              \
        !(recipe_blocks(&a.recipe) && fabs(a.name - b.name) <= 1e-5 * fabs(b.name)))               \
    return #name
    FIELD(recipe);
    FIELD(scale);
    FIELD(amax_count);
    FIELD(amax_history);
    FIELD(logged_scale);
#define STATS(which)                                                                               \
    FIELD(which.amax_bits);                                                                        \
    FIELD(which.saturated);                                                                        \
    FIELD(which.flushed);                                                                          \
    FIELD(which.nonfinite);                                                                        \
    FIELD(which.count);                                                                            \
    SUM(which.signal);                                                                             \
    SUM(which.noise);                                                                              \
    SUM(which.fourth)
    STATS(step);
    STATS(logged);
    return NULL;
}
// A scale on both sides: `host` is the C file's.
struct Pair {
    Fp8Scale host;
    Device<Fp8Scale> scale;
    Device<ScaleInUse> use;
    Device<unsigned long long> cut;
    explicit Pair(const Fp8Scale &s)
        : host(s), scale(std::vector<Fp8Scale>{s}), use(1),
          cut(std::vector<unsigned long long>{0}) {
        Fp8Scale copy = s;
        ScaleInUse in_use = {};
        scale_use(&copy, &in_use, copy.scale);
        scale.write({copy}), use.write({in_use});
    }
    Operand operand() const {
        Operand o = {};
        o.recipe = host.recipe, o.s = scale.p, o.use = use.p, o.own_amax = scale_is_own(&host);
        return o;
    }
    void advance() {
        ref_scale_advance(&host);
        scales_advance(scale.p, use.p, cut.p, 1, 1);
    }
    // kept_inv of the bytes: the device has it in use, and in the scale itself once the step has
    // ended.
    void check(const char *name, const char *when, bool step_ended) {
        const Fp8Scale found = scale.read()[0];
        const char *field = scale_difference(host, found);
        CHECK(!field, "%s, %s: %s differs (scale %.9g, expected %.9g)", name, when, field,
              found.scale, host.scale);
        const ScaleInUse in_use = use.read()[0];
        const float *inv = step_ended ? found.scale_inv : in_use.inv;
        for (int way = 0; way < 2; way++)
            CHECK(inv[way] == host.scale_inv[way] || inv[way] != inv[way],
                  "%s, %s: scale_inv of the bytes is %.9g, expected %.9g", name, when, inv[way],
                  host.scale_inv[way]);
    }
};

// Tensors of every kind that a quantizer may meet.
enum { KINDS = 9 };
static std::vector<stored_t> tensor_of_kind(int kind, size_t n) {
    std::vector<stored_t> x = stored(normals(n, kind == 1 ? 1e-3f : kind == 6 ? 1e30f : 1));
    for (size_t i = 0; i < n; i++) {
        if (kind == 1 && i % 3 == 0) x[i] = stored_from_float(i % 2 ? 0.0f : -0.0f);
        if (kind == 2) x[i] = stored_from_float(0);
        if (kind == 3 && i % 5)
            x[i] = (stored_t)(random_u64(3, 1, i) & 0x80ff); // denormals and the smallest normals
        if (kind == 4 && i % 97 == 3) x[i] = stored_from_float(i % 2 ? INFINITY : -INFINITY);
        if (kind == 5 && i % 89 == 5) x[i] = stored_from_float(i % 2 ? NAN : -NAN);
        if (kind == 7) { // ties, at scale 1: half way between two codes of either format
            const Dtype d = i % 2 ? DTYPE_E5M2 : DTYPE_E4M3;
            const uint8_t code = random_u64(5, 1, i) % (d == DTYPE_E5M2 ? 0x7b : 0x7e);
            const float tie = (ref_decode(code, d) + ref_decode(code + 1, d)) / 2;
            x[i] = stored_from_float(i % 4 < 2 ? tie : -tie);
        }
        if (kind == 8) x[i] = (stored_t)random_u64(9, kind, i + n); // any bits at all
    }
    return x;
}
static const size_t shapes[][2] = {{1, 16}, {16, 64}, {33, 48}, {130, 144}, {257, 32}};

static void test_quantize() {
    size_t tensors = 0;
    for (const NamedRecipe &named : recipes_all())
        for (auto &shape : shapes) {
            const size_t rows = shape[0], columns = shape[1], n = rows * columns,
                         pitch = round_up(rows, 16);
            const bool blocks = recipe_blocks(&named.r);
            Pair pair(scale_new(named.r));
            const Dtype d = named.r.format;
            Device<uint8_t> q(2 * pitch * columns), q_t(2 * columns * pitch);
            Device<stored_t> x(n);
            Device<float> inv(n + 64), partial(ceil_div(rows, TILE_ROWS) * columns);
            Device<double> sqnr(3 * (n / CHUNK + 1));
            for (int i = 0; i < 2 * KINDS; i++, tensors++) {
                // All of them, in another order.
                const std::vector<stored_t> host = tensor_of_kind(i * 4 % KINDS, n);
                const bool sqnr_too = i % 3 == 2 || i == 7; // 7: ordinary numbers along the rows
                const Record record = i % 5 == 4 ? RECORD_NONE
                                      : sqnr_too ? RECORD_SQNR
                                                 : RECORD_STATS;
                std::vector<uint8_t> want(2 * n);
                x.write(host);
                if (blocks) {
                    const int along_rows = i % 2;
                    std::vector<float> want_inv(n + 64);
                    ref_quantize_blocks(want.data(), want_inv.data(), host.data(), rows, columns,
                                        along_rows, &pair.host, record);
                    const Operand o = pair.operand();
                    quantize_blocks(along_rows ? q_t.p : q.p, inv.p, x.p, rows, columns, along_rows,
                                    &o, record, NULL, sqnr.p);
                    const Blocks b = blocks_of(NULL, rows, columns, along_rows, &named.r,
                                               blocks_native(&named.r));
                    const size_t down = ceil_div(rows, b.tall), right = ceil_div(columns, b.wide);
                    const std::vector<float> all = inv.read();
                    // In the C file's order: [across K][along it].
                    std::vector<float> found_inv(down * right);
                    want_inv.resize(down * right);
                    for (size_t r = 0; r < down; r++)
                        for (size_t c = 0; c < right; c++)
                            found_inv[along_rows ? c * down + r : r * right + c] =
                                all[r * b.row_stride + c * b.column_stride];
                    check_same(named.name, want_inv, found_inv);
                } else {
                    pair.host.scale_inv[0] = pair.host.scale_inv[1] =
                        ref_quantize(want.data(), host.data(), n, &pair.host, record);
                    const Operand o = pair.operand();
                    quantize(q.p, q_t.p, x.p, columns, rows, columns, &o, record, partial.p,
                             sqnr.p);
                }
                for (int part = 0; part <= named.r.split; part++) {
                    const size_t plane = pitch * columns;
                    std::vector<uint8_t> codes = unpacked(want, part * n, n, d);
                    if (!blocks || i % 2)
                        check_same(named.name, transposed(codes, rows, columns, pitch),
                                   unpacked(q_t.read(), part * plane, plane, d));
                    codes.resize(plane);
                    if (!blocks || i % 2 == 0)
                        check_same(named.name, codes, unpacked(q.read(), part * plane, plane, d));
                }
                pair.check(named.name, "after quantizing", false);
                if (i % 2) pair.advance(), pair.check(named.name, "after a step", true);
            }
        }
    printf("ok   quantize: %zu tensors, bytes both ways, scales, statistics\n", tensors);

    // Planted: one byte, one bit of a statistic, one element more in the tensor.
    const NamedRecipe named = recipes_all()[0];
    Pair pair(scale_new(named.r));
    std::vector<stored_t> x = stored(normals(64, 1));
    std::vector<uint8_t> want(64);
    Device<uint8_t> q(16 * 16);
    ref_quantize(want.data(), x.data(), 64, &pair.host, RECORD_STATS);
    x[17] = stored_from_float(float_from_stored(x[17]) * 1.25f);
    Device<stored_t> in(x);
    const Operand o = pair.operand();
    quantize(q.p, NULL, in.p, 16, 4, 16, &o, RECORD_STATS, NULL, NULL);
    std::vector<uint8_t> found = q.read();
    found.resize(64);
    CHECK(!same(want, found), "a fault that must show: another element");
    Fp8Scale scale = pair.host;
    scale.step.flushed++;
    CHECK(scale_difference(pair.host, scale), "a fault that must show: a count");
}

static void test_scale_update() {
    const float amaxes[] = {1,   0,      3,     NAN, INFINITY, 1e-39f, 0x1p-126f, 1e30f,
                            448, 0.001f, 3e38f, 7,   0,        0.5f,   0x1p-100f, 2};
    size_t steps = 0;
    for (NamedRecipe named : recipes_all())
        for (int history : {1, 3, 16, 1024}) {
            if (named.r.rule != SCALING_DELAYED && history > 1) continue;
            if (named.r.rule == SCALING_DELAYED) named.r.number = history;
            Pair pair(scale_new(named.r));
            for (int i = 0; i < (history == 1024 ? 40 : 24); i++, steps++) {
                Fp8Scale s = pair.scale.read()[0];
                s.step.amax_bits = pair.host.step.amax_bits = float_bits(amaxes[(i * 7) % 16]);
                for (int way = 0; way < 2; way++)
                    s.scale_inv[way] = pair.host.scale_inv[way] = 1.0f / s.scale;
                s.step.count = pair.host.step.count = 100 + i,
                s.step.saturated = pair.host.step.saturated = i;
                pair.scale.write({s});
                pair.advance();
                pair.check(named.name, "scale update", true);
                const ScaleInUse use = pair.use.read()[0];
                const bool right = use.scale == pair.host.scale && use.inv[1] == 1.0f / use.scale;
                CHECK(right || named.r.rule == SCALING_CURRENT,
                      "%s: the scale in use is %g, expected %g", named.name, use.scale,
                      pair.host.scale);
            }
        }
    printf("ok   scale update: %zu steps\n", steps);
}

// ---- what is fused makes the bytes of what is not
struct Unfused { // bytes, both ways, and statistics of a stored tensor, by quantize()
    std::vector<uint8_t> q, q_t;
    Fp8Scale scale;
    Unfused(const Fp8Scale &s, const stored_t *x, size_t rows, size_t columns) {
        const size_t pitch = round_up(rows, 16);
        Pair pair(s);
        Device<uint8_t> a(pitch * columns), b(columns * pitch);
        const Operand o = pair.operand();
        quantize(a.p, b.p, x, columns, rows, columns, &o, RECORD_STATS, NULL, NULL);
        q = a.read(), q_t = b.read(), scale = pair.scale.read()[0];
        q.resize(rows * columns);
    }
};
static void test_fused() {
    for (Dtype format : {DTYPE_E4M3, DTYPE_E5M2})
        for (size_t rows : {1, 37, 130})
            for (size_t C : {16, 96, 256, 272, 784}) {
                Fp8Scale s = scale_new(recipes_all()[format == DTYPE_E5M2].r);
                s.scale = format == DTYPE_E5M2 ? 9000 : 150, s.amax_count = 1; // saturates a few
                const size_t n = rows * C, pitch = round_up(rows, 16);
                Device<stored_t> a(stored(normals(n, 1))), b(stored(normals(n, 1))), residual(n),
                    plain(n), other(n);
                Device<float> mean(rows), rstd(rows), weight(normals(C, 0.2f, 1)),
                    bias(normals(C, 0.2f));
                Device<uint8_t> q(pitch * C), q_t(C * pitch);
                char name[64];
                const auto compare = [&](const char *what, const Unfused &want, Pair &pair,
                                         bool turned) {
                    std::vector<uint8_t> found = q.read();
                    found.resize(n);
                    snprintf(name, sizeof(name), "%s, %zu x %zu", what, rows, C);
                    check_same(name, want.q, found);
                    if (turned) check_same(name, want.q_t, q_t.read());
                    const char *field = scale_difference(want.scale, pair.scale.read()[0]);
                    CHECK(!field, "%s: %s differs", name, field);
                };
                { // layernorm + quantize
                    Pair pair(s);
                    Written w = {};
                    w.stored = plain.p;
                    residual_layernorm_forward(residual.p, w, mean.p, rstd.p, a.p, b.p, weight.p,
                                               bias.p, rows, C);
                    const Unfused want(s, plain.p, rows, C);
                    const Operand o = pair.operand();
                    w = {}, w.q = q.p, w.quantizer = quantizer(&o, RECORD_STATS);
                    residual_layernorm_forward(residual.p, w, mean.p, rstd.p, a.p, b.p, weight.p,
                                               bias.p, rows, C);
                    compare("layernorm", want, pair, false);
                    bytes_turn(q_t.p, q.p, rows, C);
                    check_same("bytes turned", want.q_t, q_t.read());
                }
                { // GELU + quantize, both ways
                    Pair pair(s);
                    Tiles t = tiles(rows, C);
                    t.out = plain.p;
                    tiles_run(GeluSource{a.p, C}, t);
                    const Unfused want(s, plain.p, rows, C);
                    const Operand o = pair.operand();
                    t = tiles(rows, C), t.q = q.p, t.q_t = q_t.p,
                    t.quantizer = quantizer(&o, RECORD_STATS);
                    tiles_run(GeluSource{a.p, C}, t);
                    compare("GELU", want, pair, true);
                }
                { // GELU backward + quantize, both ways, + bias gradient
                    Pair pair(s);
                    Tiles t = tiles(rows, C);
                    t.out = plain.p;
                    tiles_run(GeluBackwardSource{a.p, b.p, C}, t);
                    const Unfused want(s, plain.p, rows, C);
                    const Operand o = pair.operand();
                    const size_t tall = ceil_div(rows, TILE_ROWS);
                    Device<float> partial(tall * C), sums(std::vector<float>(C, 1)),
                        unfused(tall * C), sums2(std::vector<float>(C, 1));
                    t = tiles(rows, C), t.q = q.p, t.q_t = q_t.p, t.partial = partial.p,
                    t.quantizer = quantizer(&o, RECORD_STATS);
                    tiles_run(GeluBackwardSource{a.p, b.p, C}, t);
                    compare("GELU backward", want, pair, true);
                    column_sums_finish(sums.p, NULL, partial.p, tall, C);
                    t = tiles(rows, C), t.partial = unfused.p;
                    tiles_run(StoredSource{plain.p, C}, t);
                    column_sums_finish(sums2.p, NULL, unfused.p, tall, C);
                    check_same("bias gradient, fused", sums2.read(), sums.read());
                }
                { // a master weight, rounded and quantized
                    Pair pair(s);
                    std::vector<float> weights = normals(n, 1);
                    for (size_t i = 3; i < n; i += 7)
                        // Denormals: they are 0.
                        weights[i] = bits_float((uint32_t)i << 8 | i << 31);
                    Device<float> master(weights);
                    Tiles t = tiles(rows, C);
                    t.out = plain.p;
                    tiles_run(MasterSource{master.p, C}, t);
                    check_same("a weight, rounded", stored(master.read()), plain.read());
                    const Unfused want(s, plain.p, rows, C);
                    const Operand o = pair.operand();
                    t = tiles(rows, C), t.q = q.p, t.q_t = q_t.p, t.out = other.p,
                    t.quantizer = quantizer(&o, RECORD_STATS);
                    tiles_run(MasterSource{master.p, C}, t);
                    compare("a weight", want, pair, true);
                    check_same("a weight, rounded beside its bytes", plain.read(), other.read());
                }
            }
    for (int hs : {16, 64, 128})
        for (int T : {5, 64, 150}) { // attention's output
            const int B = 2, NH = 2, C = NH * hs;
            const size_t rows = (size_t)B * T, n = rows * C;
            Fp8Scale s = scale_new(recipes_all()[0].r);
            s.scale = 300, s.amax_count = 1;
            Pair pair(s);
            Device<stored_t> qkv(stored(normals(3 * n, 1))), out(n), again(n);
            Device<float> lse(rows * NH);
            Device<uint8_t> q(round_up(rows, 16) * C);
            Written w = {};
            w.stored = out.p;
            attention_forward(w, lse.p, qkv.p, B, T, 0, C, NH);
            const Unfused want(s, out.p, rows, C);
            const Operand o = pair.operand();
            w.stored = again.p, w.q = q.p, w.quantizer = quantizer(&o, RECORD_STATS);
            attention_forward(w, lse.p, qkv.p, B, T, 0, C, NH);
            std::vector<uint8_t> found = q.read();
            found.resize(n);
            check_same("attention's output, fused", want.q, found);
            check_same("attention's output beside its bytes", out.read(), again.read());
            const char *field = scale_difference(want.scale, pair.scale.read()[0]);
            CHECK(!field, "attention's output: %s differs", field);
        }
    for (int logits16 : {0, 1}) { // dlogits of an FP8 head; a row in the middle does not count
        const int rows = 21, V = 20001, Vp = 20096;
        const size_t n = (size_t)rows * Vp, stride = DLOGITS_STRIDE(Vp, logits16 ? 2 : 4);
        Fp8Scale s = scale_new(recipes_all()[1].r);
        s.scale = 4000, s.amax_count = 1;
        Pair pair(s);
        const std::vector<float> logits = normals(n, 3);
        std::vector<stored_t> halves = stored(logits);
        halves.resize(2 * n);
        std::vector<float> raw = logits;
        if (logits16) memcpy(raw.data(), halves.data(), n * sizeof(float));
        std::vector<int> targets(rows);
        for (int &t : targets) t = (int)(uniform() * V);
        targets[9] = -1;
        Device<float> d_logits(raw), losses(rows), again(rows), scale(std::vector<float>{0.5f});
        Device<int> d_targets(targets);
        Device<uint8_t> q(n);
        const Operand o = pair.operand();
        Written w = {};
        w.q = q.p, w.quantizer = quantizer(&o, RECORD_STATS);
        classifier(losses.p, d_logits.p, logits16, w, d_targets.p, rows, V, Vp, scale.p);
        check_same("logits whose gradient is bytes stay", raw, d_logits.read());
        classifier(again.p, d_logits.p, logits16, Written{}, d_targets.p, rows, V, Vp, scale.p);
        check_same("losses beside bytes", again.read(), losses.read());
        const std::vector<float> after = d_logits.read();
        std::vector<stored_t> plain(n);
        for (int r = 0; r < rows; r++)
            memcpy(&plain[(size_t)r * Vp], (const stored_t *)after.data() + r * stride,
                   Vp * sizeof(stored_t));
        Device<stored_t> d_plain(plain);
        const Unfused want(s, d_plain.p, rows, Vp);
        check_same("dlogits as bytes", want.q, q.read());
        const char *field = scale_difference(want.scale, pair.scale.read()[0]);
        CHECK(!field, "dlogits as bytes: %s differs", field);
    }
    { // SQNR over more chunks than one warp adds at a time, both ways of its bytes
        const size_t rows = 2100, columns = 144, n = rows * columns, pitch = round_up(rows, 16);
        const std::vector<stored_t> host = stored(normals(n, 1));
        Device<stored_t> x(host);
        Device<uint8_t> q(pitch * columns), q_t(columns * pitch);
        Device<double> sqnr(3 * (n / CHUNK + 1));
        for (int turned : {0, 1}) {
            Pair pair(scale_new(recipes_all()[0].r));
            const Operand o = pair.operand();
            std::vector<uint8_t> want(n);
            pair.host.scale_inv[0] = pair.host.scale_inv[1] =
                ref_quantize(want.data(), host.data(), n, &pair.host, RECORD_SQNR);
            quantize(turned ? NULL : q.p, turned ? q_t.p : NULL, x.p, columns, rows, columns, &o,
                     RECORD_SQNR, NULL, sqnr.p);
            pair.check("SQNR of 37 chunks", turned ? "turned" : "as x lies", false);
        }
    }
    printf("ok   fused kernels: bytes, both ways, statistics\n");
}
#endif

// ---- layers against the C file. What both compute in the same order has the same bits; sums in
// another order differ in the last bits of fp32, and now and then in how a result then rounds to
// the stored type.
static const double ROUNDED = EPSILON + 1e-6, SUMS = 1e-5; // what these explain
#ifdef CUDA_ON_CPU
static const double SUMS8 = 1e-5; // of an FP8 product
#else
static const double SUMS8 = 5e-3; // a GPU's fast sums have 14 bits, and are cut, not rounded
#endif

static void test_encoder() {
    const int B = 3, T = 20, C = 48, V = 37;
    const size_t rows = B * T;
    std::vector<int> tokens(rows);
    for (int &t : tokens) t = (int)(uniform() * V * 0.5) * 2; // some often, some never
    const std::vector<float> wte = normals(V * C, 1), wpe = normals(T * C, 1),
                             dwte = normals(V * C, 1), dwpe = normals(T * C, 1);
    const std::vector<stored_t> dx = stored(normals(rows * C, 1));
    std::vector<stored_t> want(rows * C);
    std::vector<float> want_dwte = dwte, want_dwpe = dwpe;
    ref_encoder_forward(want.data(), tokens.data(), wte.data(), wpe.data(), B, T, 0, C);
    ref_encoder_backward(want_dwte.data(), want_dwpe.data(), dx.data(), tokens.data(), B, T, C);
    std::vector<int> order(rows), buckets(rows + 1), seen(V);
    const int count =
        token_buckets(order.data(), buckets.data(), seen.data(), tokens.data(), (int)rows, V);
    Device<int> d_tokens(tokens), d_order(order), d_buckets(buckets),
        d_count(std::vector<int>{count});
    Device<float> d_wte(wte), d_wpe(wpe), d_dwte(dwte), d_dwpe(dwpe);
    Device<stored_t> x(rows * C), d_dx(dx);
    encoder_forward(x.p, d_tokens.p, d_wte.p, d_wpe.p, B, T, 0, C);
    check_same("encoder forward", want, x.read());
    encoder_backward(d_dwte.p, d_dwpe.p, d_dx.p, d_tokens.p, d_order.p, d_buckets.p, d_count.p,
                     MIN((int)rows, V), B, T, C);
    check_same("encoder backward, tokens", want_dwte, d_dwte.read());
    check_same("encoder backward, positions", want_dwpe, d_dwpe.read());
    // One sequence that goes on at position 7.
    encoder_forward(x.p, d_tokens.p, d_wte.p, d_wpe.p, 1, 5, 7, C);
    ref_encoder_forward(want.data(), tokens.data(), wte.data(), wpe.data(), 1, 5, 7, C);
    check_same("encoder forward from a position on", want, x.read());
    printf("ok   encoder: same bits\n");
}

static void test_layernorm() {
    for (size_t C : {16, 80, 256, 784, 1040, 2064}) {
        const size_t rows = C > 1000 ? 9 : 70, n = rows * C;
        const std::vector<stored_t> a = stored(normals(n, 1, 0.3f)), b = stored(normals(n, 1)),
                                    dout = stored(normals(n, 1)), dres = stored(normals(n, 1));
        const std::vector<float> weight = normals(C, 0.3f, 1), bias = normals(C, 0.3f),
                                 dw0 = normals(C, 1), db0 = normals(C, 1);
        for (int alone = 0; alone < 2; alone++) { // without b
            std::vector<stored_t> residual(n), normed(n), want_dres = dres;
            std::vector<float> mean(rows), rstd(rows), dw = dw0, db = db0;
            Device<stored_t> d_a(a), d_b(b), d_residual(n), d_normed(n), d_dout(dout), d_dres(dres);
            Device<float> d_mean(rows), d_rstd(rows), d_weight(weight), d_bias(bias), d_dw(dw0),
                d_db(db0), partial(2 * ceil_div(rows, ROWS) * C);
            ref_residual_layernorm_forward(residual.data(), normed.data(), mean.data(), rstd.data(),
                                           a.data(), alone ? NULL : b.data(), weight.data(),
                                           bias.data(), rows, C);
            Written w = {};
            w.stored = d_normed.p;
            residual_layernorm_forward(d_residual.p, w, d_mean.p, d_rstd.p, d_a.p,
                                       alone ? NULL : d_b.p, d_weight.p, d_bias.p, rows, C);
            char name[64];
            snprintf(name, sizeof(name), "layernorm of %zu%s", C, alone ? ", no second input" : "");
            check_same(name, residual, d_residual.read());
            check_error(name, floats(normed), floats(d_normed.read()), ROUNDED);
            const double em = error_of(mean, d_mean.read()), er = error_of(rstd, d_rstd.read());
            CHECK(em < SUMS && er < SUMS, "%s: mean off by %g, rstd by %g", name, em, er);
            if (alone) continue;
            ref_layernorm_backward(want_dres.data(), dw.data(), db.data(), dout.data(),
                                   residual.data(), mean.data(), rstd.data(), weight.data(), rows,
                                   C);
            d_residual.write(residual), d_mean.write(mean), d_rstd.write(rstd);
            layernorm_backward(d_dres.p, d_dw.p, d_db.p, d_dout.p, d_residual.p, d_mean.p, d_rstd.p,
                               d_weight.p, partial.p, rows, C);
            snprintf(name, sizeof(name), "layernorm of %zu, backward", C);
            check_error(name, floats(want_dres), floats(d_dres.read()), ROUNDED);
            const double ew = error_of(dw, d_dw.read()), eb = error_of(db, d_db.read());
            CHECK(ew < SUMS && eb < SUMS, "%s: dweight off by %g, dbias by %g", name, ew, eb);
            db[C / 2] *= 1.01f;
            CHECK(!(error_of(db, d_db.read()) < SUMS),
                  "a fault that must show: one element of a gradient");
        }
    }
}

// How many elements lie further off than a rounding of the stored type to either side, and the
// sums' last bits.
static size_t elements_off(const std::vector<float> &a, const std::vector<float> &b) {
    size_t off = 0;
    for (size_t i = 0; i < a.size(); i++)
        off += !(fabs((double)a[i] - b[i]) <= 2 * EPSILON * fabs(a[i]) + 1e-6 * (1 + fabs(a[i])));
    return off;
}
static void test_gelu() {
    const size_t rows = 137, C = 112, n = rows * C; // among them every size of number
    std::vector<stored_t> x = stored(normals(n, 2)), d = stored(normals(n, 1)), want(n), want_d = d;
    for (size_t i = 0; i < 4000; i++) { // up to 100; beyond 1e19 x^2 would be infinite
        const float f = bits_float((uint32_t)(i * 0x83131) & 0x7fffffff);
        x[i] = stored_from_float(f < 100 ? (i % 2 ? -f : f) : (float)i * 0.01f);
    }
    ref_gelu_forward(want.data(), x.data(), n), ref_gelu_backward(want_d.data(), x.data(), n);
    Device<stored_t> dx(x), dd(d), out(n);
    Tiles t = tiles(rows, C);
    t.out = out.p;
    tiles_run(GeluSource{dx.p, C}, t);
    check_error("GELU", floats(want), floats(out.read()), ROUNDED);
    CHECK(elements_off(floats(want), floats(out.read())) == 0, "GELU: %zu elements are off",
          elements_off(floats(want), floats(out.read())));
    tiles_run(GeluBackwardSource{dd.p, dx.p, C}, t);
    std::vector<float> a = floats(want_d), b = floats(out.read());
    check_error("GELU, backward", a, b, ROUNDED);
    CHECK(elements_off(a, b) == 0, "GELU backward: %zu elements are off", elements_off(a, b));
    a[5] += 0.01f + 0.01f * fabsf(a[5]);
    CHECK(elements_off(a, b) == 1, "a fault that must show: one element");
    const std::vector<stored_t> dy = stored(normals(n, 1)); // the bias gradient
    std::vector<float> want_bias(C, 0.5f);
    Device<stored_t> d_dy(dy);
    Device<float> partial(ceil_div(rows, TILE_ROWS) * C), bias(std::vector<float>(C, 0.5f));
    ref_bias_backward(want_bias.data(), dy.data(), rows, C);
    t = tiles(rows, C), t.partial = partial.p;
    tiles_run(StoredSource{d_dy.p, C}, t);
    column_sums_finish(bias.p, NULL, partial.p, ceil_div(rows, TILE_ROWS), C);
    CHECK(error_of(want_bias, bias.read()) < SUMS, "bias gradient: off by %g",
          error_of(want_bias, bias.read()));
}

static void test_attention() {
    const int shapes[][3] = {{1, 1, 16},   {2, 7, 32},    {1, 64, 64}, {2, 65, 64},
                             {1, 150, 16}, {1, 130, 128}, {1, 96, 80}, {1, 200, 112}};
    for (auto &s : shapes) {
        const int B = s[0], T = s[1], hs = s[2], NH = 3, C = NH * hs;
        const size_t rows = (size_t)B * T, n = rows * C;
        const std::vector<stored_t> qkv = stored(normals(3 * n, 1.5f)),
                                    dout = stored(normals(n, 1));
        std::vector<stored_t> want(n), want_d(3 * n);
        ref_begin(T, hs);
        ref_attention_forward(want.data(), qkv.data(), B, T, 0, C, NH);
        ref_attention_backward(want_d.data(), dout.data(), qkv.data(), B, T, C, NH);
        Device<stored_t> d_qkv(qkv), out(n), d_dout(dout), d_dqkv(3 * n);
        Device<float> lse(rows * NH), delta(rows * NH);
        Written w = {};
        w.stored = out.p;
        attention_forward(w, lse.p, d_qkv.p, B, T, 0, C, NH);
        attention_backward(d_dqkv.p, delta.p, d_dout.p, out.p, lse.p, d_qkv.p, B, T, C, NH);
        char name[64];
        snprintf(name, sizeof(name), "attention, T %d, heads of %d", T, hs);
        check_error(name, floats(want), floats(out.read()), 2 * ROUNDED); // of p and of the result
        const std::vector<stored_t> got_d = d_dqkv.read();
        for (int part = 0; part < 3; part++) { // dq, dk, dv
            std::vector<float> a, b;
            for (size_t r = 0; r < rows; r++)
                for (int c = 0; c < C; c++)
                    a.push_back(float_from_stored(want_d[(r * 3 + part) * C + c])),
                        b.push_back(float_from_stored(got_d[(r * 3 + part) * C + c]));
            snprintf(name, sizeof(name), "attention, T %d, heads of %d, d%c", T, hs, "qkv"[part]);
            if (T > 1 || part == 2) check_error(name, a, b, 3 * ROUNDED); // dp - delta loses digits
        }
        const int pos = T / 2, m = T - pos; // the last queries alone, with a KV cache
        if (pos == 0) continue;
        ref_attention_forward(want.data(), qkv.data(), 1, m, pos, C, NH);
        attention_forward(w, lse.p, d_qkv.p, 1, m, pos, C, NH);
        std::vector<stored_t> tail = out.read();
        tail.resize((size_t)m * C), want.resize((size_t)m * C);
        snprintf(name, sizeof(name), "attention from position %d of %d on", pos, T);
        check_error(name, floats(want), floats(tail), 2 * ROUNDED);
        tail[tail.size() - 1] = stored_from_float(float_from_stored(tail[tail.size() - 1]) + 1);
        CHECK(error_of(floats(want), floats(tail)) > 2 * ROUNDED,
              "a fault that must show: one element of attention");
    }
}

static void test_classifier() {
    for (int V : {5, 256, 5000, 16390}) { // over two steps of the loops
        const int rows = 11, Vp = (int)round_up(V, 128);
        const float dscale = 0.25f;
        std::vector<float> logits = normals((size_t)rows * Vp, 3), losses(rows);
        std::vector<int> targets(rows);
        for (int &t : targets) t = (int)(uniform() * V);
        targets[3] = -1, targets[10] = V - 1;
        logits[5 * Vp + 1] = 200; // one that is sure of itself
        for (int c = 8; c < 16 && V > 16; c++) logits[4 * Vp + c] = -INFINITY;
        for (int c = 8200; c < 8208 && V > c; c++) logits[4 * Vp + c] = -INFINITY;
        if (V > 16) targets[4] = 2;
        std::vector<stored_t> want((size_t)rows * Vp);
        Device<float> d_logits(logits), d_losses(rows), d_scale(std::vector<float>{dscale});
        Device<int> d_targets(targets);
        std::vector<float> theirs = logits;
        ref_classifier(losses.data(), want.data(), theirs.data(), targets.data(), rows, V, Vp,
                       dscale);
        classifier(d_losses.p, d_logits.p, 0, Written{}, d_targets.p, rows, V, Vp, NULL);
        CHECK(error_of(losses, d_losses.read()) < SUMS, "classifier: losses off by %g",
              error_of(losses, d_losses.read()));
        check_same("classifier leaves the logits", logits, d_logits.read());
        classifier(d_losses.p, d_logits.p, 0, Written{}, d_targets.p, rows, V, Vp, d_scale.p);
        CHECK(error_of(losses, d_losses.read()) < SUMS, "classifier: losses off by %g",
              error_of(losses, d_losses.read()));
        const std::vector<float> raw = d_logits.read();
        std::vector<stored_t> found((size_t)rows * Vp);
        for (int r = 0; r < rows; r++)
            memcpy(&found[(size_t)r * Vp], &raw[(size_t)r * Vp], Vp * sizeof(stored_t));
        char name[64];
        snprintf(name, sizeof(name), "classifier, %d columns", V);
        check_error(name, floats(want), floats(found), ROUNDED);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < Vp; c++)
                if (c >= V || r == 3)
                    CHECK(float_from_stored(found[(size_t)r * Vp + c]) == 0,
                          "classifier: padding at %d, %d", r, c);
        Device<double> total(std::vector<double>{1});
        loss_add(total.p, d_losses.p, rows);
        double sum = 1;
        for (float l : losses) sum += l;
        CHECK(fabs(total.read()[0] - sum) < 1e-4 * sum, "the losses' sum: %g, expected %g",
              total.read()[0], sum);
        logits[2 * Vp + 4] = NAN;
        d_logits.write(logits);
        classifier(d_losses.p, d_logits.p, 0, Written{}, d_targets.p, rows, V, Vp, NULL);
        CHECK(isnan(d_losses.read()[2]) && !isnan(d_losses.read()[1]),
              "classifier: a NaN among the logits gives %g", d_losses.read()[2]);
    }
}

// ---- linear layers: all three products, in the build's own type (the FP8 products are tested with
// the model)
static void test_linear() {
    const size_t rows = 48, in = 80, out = 112; // what FP8 asks for, too
    const std::vector<stored_t> x = stored(normals(rows * in, 1)),
                                w = stored(normals(out * in, 0.1f)),
                                dy = stored(normals(rows * out, 1)), b = stored(normals(out, 1));
    const std::vector<float> dw0 = normals(out * in, 1), db0 = normals(out, 1);
    std::vector<float> y(rows * out), dx(rows * in), dw = dw0, db = db0;
    const std::vector<float> fx = floats(x), fw = floats(w), fdy = floats(dy), fb = floats(b);
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < out; o++) {
            double sum = fb[o];
            for (size_t i = 0; i < in; i++) sum += (double)fx[r * in + i] * fw[o * in + i];
            y[r * out + o] = (float)sum;
        }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < in; i++) {
            double sum = 0;
            for (size_t o = 0; o < out; o++) sum += (double)fdy[r * out + o] * fw[o * in + i];
            dx[r * in + i] = (float)sum;
        }
    for (size_t o = 0; o < out; o++) {
        for (size_t i = 0; i < in; i++) {
            double sum = dw0[o * in + i];
            for (size_t r = 0; r < rows; r++) sum += (double)fdy[r * out + o] * fx[r * in + i];
            dw[o * in + i] = (float)sum;
        }
        double sum = db0[o];
        for (size_t r = 0; r < rows; r++) sum += fdy[r * out + o];
        db[o] = (float)sum;
    }
    Device<stored_t> d_x(x), d_w(w), d_dy(dy), d_b(b), d_y(rows * out), d_dx(rows * in);
    Device<float> d_dw(dw0), d_db(db0), partial(ceil_div(rows, TILE_ROWS) * out);
    Linear f = {};
    f.bias = d_b.p, f.dw = d_dw.p, f.dbias = d_db.p, f.in = in, f.out = out, f.partial = partial.p;
    const size_t columns[NOPERAND] = {in, in, out};
    stored_t *const tensors[NOPERAND] = {d_x.p, d_w.p, d_dy.p};
    for (int o = 0; o < NOPERAND; o++) {
        f.operand[o].tensor = tensors[o];
        f.operand[o].columns = f.operand[o].stride = columns[o];
    }
    linear_forward(&f, d_y.p, STORED, rows, RECORD_STATS);
    linear_backward(&f, d_dx.p, StoredSource{d_dy.p, out}, rows, RECORD_STATS);
    const double fp32 = PRECISION == PRECISION_FP32 ? 1e-6 : 0; // sums in another order
    check_error("linear layer, fprop", y, floats(d_y.read()), EPSILON + fp32);
    check_error("linear layer, dgrad", dx, floats(d_dx.read()), EPSILON + fp32);
    check_error("linear layer, wgrad", dw, d_dw.read(), 1e-6);
    check_error("linear layer, bias", db, d_db.read(), 1e-6);
}

// ---- every kind of product that the trainer asks for, by itself: the values that its bytes and
// scales stand for, multiplied in doubles. FP8 sums on a GPU have about 14 bits.
#if IS_FP8
static void test_products() {
    const size_t M = 256, N = 384, K = 512;
    struct {
        const char *name;
        Dtype a, b, out;
        const char *words[2];
        int bias, accumulate, fast, emulate;
    } kinds[] = {
        {"fprop: E4M3 x E4M3 to bf16, bias, fast sums",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"delayed", "delayed"},
         1,
         0,
         1,
         0},
        {"head: E4M3 x E4M3 to fp32, fast sums",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_FP32,
         {"delayed", "delayed"},
         0,
         0,
         1,
         0},
        {"dgrad: E5M2 x E4M3 to bf16",
         DTYPE_E5M2,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"delayed", "delayed"},
         0,
         0,
         0,
         0},
        {"wgrad: E5M2 x E4M3 added to fp32",
         DTYPE_E5M2,
         DTYPE_E4M3,
         DTYPE_FP32,
         {"delayed", "delayed"},
         0,
         1,
         0,
         0},
        {"E4M3 x E5M2 to bf16, bias",
         DTYPE_E4M3,
         DTYPE_E5M2,
         DTYPE_BF16,
         {"delayed", "delayed"},
         1,
         0,
         1,
         0},
        {"E5M2 x E5M2 added to fp32, emulated",
         DTYPE_E5M2,
         DTYPE_E5M2,
         DTYPE_FP32,
         {"delayed", "delayed"},
         0,
         1,
         0,
         0},
        {"E4M3 x E4M3 to bf16, bias, emulated",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"delayed", "delayed"},
         1,
         0,
         1,
         1},
        {"rows: E4M3 x E4M3 to bf16, bias, fast sums",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"rowwise", "rowwise"},
         1,
         0,
         1,
         0},
        {"rows: E4M3 x E4M3 added to fp32",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_FP32,
         {"rowwise", "rowwise"},
         0,
         1,
         0,
         0},
        {"blocks: 1 x 128 by 128 x 128 to bf16, bias",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"block=1x128", "block=128x128"},
         1,
         0,
         1,
         0},
        {"blocks: 1 x 128 by 1 x 128 added to fp32",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_FP32,
         {"block=1x128", "block=1x128"},
         0,
         1,
         0,
         0},
        {"MX: 1 x 32 to bf16, bias, emulated",
         DTYPE_E4M3,
         DTYPE_E4M3,
         DTYPE_BF16,
         {"mx", "mx"},
         1,
         0,
         1,
         0},
    };
    Device<stored_t> a16(M * K), b16(N * K);
    Device<float> sums(M * N);
    emulation.a = a16.p, emulation.b = b16.p, emulation.sums = sums.p;
    const std::vector<stored_t> host[2] = {stored(normals(M * K, 1)), stored(normals(N * K, 0.1f))},
                                bias = stored(normals(N, 1));
    const std::vector<float> old = normals(M * N, 1);
    for (auto &k : kinds) {
        const size_t rows[2] = {M, N};
        const Dtype formats[2] = {k.a, k.b};
        std::vector<float> values[2];
        std::vector<Matrix> m;
        std::vector<std::function<void()>> drop;
        machine.emulates = k.emulate || machine.sm < 89;
        for (int i = 0; i < 2; i++) {
            const ScalingRecipe r = recipe_of(k.words[i], formats[i]);
            Pair *pair = new Pair(scale_new(r));
            Device<stored_t> x(host[i]);
            Device<uint8_t> *q = new Device<uint8_t>(rows[i] * K);
            Device<float> *inv = new Device<float>(rows[i] * K / 16 + 4096);
            const int which = i == 0 ? OPERAND_X : OPERAND_W;
            Linear f = {};
            f.fp8 = 1 << FPROP, f.out = N;
            Operand &o = f.operand[which];
            o = pair->operand();
            o.bytes[0] = q->p, o.inv[0] = inv->p, o.columns = K;
            std::vector<uint8_t> bytes(rows[i] * K);
            std::vector<float> scales(rows[i] * K / 16 + 4096, 1);
            drop.push_back([=] { delete pair, delete q, delete inv; });
            const bool blocks = recipe_blocks(&r);
            if (blocks) {
                quantize_blocks(q->p, inv->p, x.p, rows[i], K, 0, &o, RECORD_NONE, NULL, NULL);
                ref_quantize_blocks(bytes.data(), scales.data(), host[i].data(), rows[i], K, 0,
                                    &pair->host, RECORD_NONE);
            } else {
                quantize(q->p, NULL, x.p, K, rows[i], K, &o, RECORD_NONE, NULL, NULL);
                scales[0] = ref_quantize(bytes.data(), host[i].data(), rows[i] * K, &pair->host,
                                         RECORD_NONE);
            }
            m.push_back(operand(&f, which, FPROP, rows[i], 0));
            const size_t along = blocks ? MIN((size_t)r.along, K) : K,
                         across = blocks ? (size_t)r.across : rows[i];
            for (size_t row = 0; row < rows[i]; row++)
                for (size_t c = 0; c < K; c++)
                    values[i].push_back(ref_decode(bytes[row * K + c], formats[i]) *
                                        scales[row / across * (K / along) + c / along]);
        }
        Device<stored_t> d_bias(bias);
        Device<float> out(old); // of either type
        product_count = 0;      // those of earlier kinds
        matmul({out.p, k.out, N, k.bias ? d_bias.p : NULL, k.accumulate, k.fast}, m[0], m[1], M, N,
               K);
        bool native = false;
        for (int i = 0; i < product_count; i++)
            native = native || (products[i].found && dtype_size[products[i].key.a_dtype] == 1);
        CHECK(native == !product_emulated(m[0].dtype, m[1].dtype, m[0].across, m[0].along,
                                          m[1].across, m[1].along),
              "%s: cuBLASLt %s it", k.name, native ? "computed" : "did not compute");
        const std::vector<float> raw = out.read();
        std::vector<stored_t> small(M * N);
        memcpy(small.data(), raw.data(), M * N * sizeof(stored_t));
        std::vector<float> want(M * N);
        for (size_t i = 0; i < M; i++)
            for (size_t j = 0; j < N; j++) {
                double sum = k.accumulate ? old[i * N + j]
                             : k.bias     ? float_from_stored(bias[j])
                                          : 0;
                for (size_t c = 0; c < K; c++)
                    sum += (double)values[0][i * K + c] * values[1][j * K + c];
                want[i * N + j] = (float)sum;
            }
        check_error(k.name, want, k.out == DTYPE_FP32 ? raw : floats(small),
                    k.out == DTYPE_FP32 ? SUMS8 : 2 * EPSILON);
        for (auto &f : drop) f();
    }
    machine.emulates = machine.sm < 89, emulation = {};
}
#endif

// ---- cuDNN's attention, of the shapes that it takes, against the C file; and whose attention a
// resume has
#ifdef USES_CUDNN
static void test_cudnn() {
    char by[64];
    int taken = 0;
#ifdef CUDA_ON_CPU
    setenv("CUDA_ON_CPU_CUDNN", "91600", 1);
#endif
#ifdef CUDA_ON_CPU
    const int large = 128;
#else
    const int large = 1024; // differences from run to run show in large shapes
#endif
    const int shapes[][4] = {
        {2, 128, 64, 3}, {large / 128, large, 64, 6}, {2, 256, 128, 2}, {3, 80, 32, 3}};
    for (auto &s : shapes) {
        const int B = s[0], T = s[1], hs = s[2], NH = s[3], C = NH * hs;
        const size_t n = (size_t)B * T * C;
        memset((void *)&cudnn, 0, sizeof(cudnn));
        const char *why = cudnn_plan(B, T, C, NH, 1, by);
        if (why) {
            printf("     cuDNN does not take B %d, T %d, heads of %d: %s\n", B, T, hs, why);
            continue;
        }
        taken++, cudnn_begin();
        const std::vector<stored_t> qkv = stored(normals(3 * n, 1.5f)),
                                    dout = stored(normals(n, 1));
        std::vector<stored_t> want(n), want_d(3 * n);
        ref_begin(T, hs);
        ref_attention_forward(want.data(), qkv.data(), B, T, 0, C, NH);
        ref_attention_backward(want_d.data(), dout.data(), qkv.data(), B, T, C, NH);
        Device<stored_t> d_qkv(qkv), out(n), d_dout(dout), d_dqkv(3 * n), again(3 * n);
        Device<float> lse((size_t)B * T * NH), delta((size_t)B * T * NH);
        Written w = {};
        w.stored = out.p;
        attention_forward(w, lse.p, d_qkv.p, B, T, 0, C, NH);
        attention_backward(d_dqkv.p, delta.p, d_dout.p, out.p, lse.p, d_qkv.p, B, T, C, NH);
        attention_backward(again.p, delta.p, d_dout.p, out.p, lse.p, d_qkv.p, B, T, C, NH);
        char name[128];
        snprintf(name, sizeof(name), "%s, T %d, heads of %d", by, T, hs);
        check_error(name, floats(want), floats(out.read()), 2 * ROUNDED);
        check_error(name, floats(want_d), floats(d_dqkv.read()), 3 * ROUNDED);
        check_same("cuDNN's gradients, twice", d_dqkv.read(), again.read());
#if IS_FP8
        // From a graph, with the bytes of its output.
        Fp8Scale scale = scale_new(recipes_all()[0].r);
        scale.scale = 300, scale.amax_count = 1;
        Pair pair(scale);
        Device<uint8_t> q(round_up((size_t)B * T, 16) * C);
        const Operand o = pair.operand();
        w.q = q.p, w.quantizer = quantizer(&o, RECORD_STATS);
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        CUDA(cudaStreamBeginCapture(STREAM, cudaStreamCaptureModeRelaxed));
        attention_forward(w, lse.p, d_qkv.p, B, T, 0, C, NH);
        attention_backward(again.p, delta.p, d_dout.p, out.p, lse.p, d_qkv.p, B, T, C, NH);
        CUDA(cudaStreamEndCapture(STREAM, &graph));
        CUDA(cudaGraphInstantiate(&replay, graph, 0));
        for (int i = 0; i < 3; i++) {
            device_zero(again.p, 3 * n * sizeof(stored_t));
            CUDA(cudaGraphLaunch(replay, STREAM));
            check_same("cuDNN's gradients, from a graph", d_dqkv.read(), again.read());
        }
        const Unfused plain(scale, out.p, (size_t)B * T, C);
        std::vector<uint8_t> found = q.read();
        found.resize(n);
        check_same("the bytes of cuDNN's output", plain.q, found);
        CUDA(cudaGraphExecDestroy(replay));
        CUDA(cudaGraphDestroy(graph));
#endif
        cudaFree(cudnn.workspace);
    }
    const size_t version = fe::cudnn_dlhandle ? fe::detail::get_backend_version() : 0;
    memset((void *)&cudnn, 0, sizeof(cudnn));
#ifdef CUDA_ON_CPU
    unsetenv("CUDA_ON_CPU_CUDNN");
#endif
    CHECK(taken == (version > 91500 ? 4 : 3) || !fe::cudnn_dlhandle,
          "cuDNN is here, and took %d of 4 shapes", taken);
    printf("ok   cuDNN took %d of 4 shapes\n", taken);
}
#endif

static void test_optimizer() {
    const size_t n = 3 * CHUNK + 1000;
    std::vector<float> w = normals(n, 1), m = normals(n, 0.01f), v = normals(n, 0.01f),
                       grad = normals(n, 1);
    for (float &x : v) x *= x;
    grad[7] = 0, grad[8] = 1e-30f, v[8] = 0, m[9] = 0, v[9] = 0;
    Device<float> d_w(w), d_m(m), d_v(v), d_grad(grad), sums(n / CHUNK + 1);
    StepInputs in = {};
    in.adamw.lr = 1e-3f, in.adamw.beta1 = 0.9f, in.adamw.beta2 = 0.95f, in.adamw.eps = 1e-8f,
    in.adamw.weight_decay = 0.1f, in.grad_clip = 1, in.loss_scale = 4;
    in.correct1 = (float)(1.0 / (1.0 - power_int(in.adamw.beta1, 3))),
    in.correct2 = (float)(1.0 / (1.0 - power_int(in.adamw.beta2, 3)));
    Device<StepInputs> d_in(std::vector<StepInputs>{in});
    Device<StepResults> results(std::vector<StepResults>{StepResults()});
    Gpt g;
    memset(&g, 0, sizeof(g));
    for (int id = 0; id < NPARAM; id++)
        g.params[id] = {"w", id == 0 ? (size_t)1 : 0, n, 1, 1, 0, 0, id == 0 ? 0 : n, 0, n, 0};
    g.param_count = n, g.master = d_w.p, g.m = d_m.p, g.v = d_v.p, g.grad = d_grad.p,
    g.norm_sums = sums.p, g.step_inputs = d_in.p, g.step_results = results.p;
    g.own = {0, n, n, 0, MOMENT_BLOCKS(n, NPARAM)};
    gradient_norm(&g);
    const StepResults found = results.read()[0];
    const double norm = ref_gradient_norm(grad.data(), n, 0.25f);
    CHECK(fabs(found.norm / norm - 1) < 1e-12, "gradient norm %.17g, expected %.17g", found.norm,
          norm);
    CHECK(found.update_scale == (float)(1 / norm / 4),
          "clipping: the gradient is multiplied by %.9g, expected %.9g", found.update_scale,
          1 / norm / 4);
    for (double clip :
         {0.7 * norm, 1.4 * norm, 0.0}) { // above the norm it changes nothing, 0 is off
        in.grad_clip = clip, d_in.write({in});
        gradient_norm(&g);
        const float want = (float)((clip > 0 && clip < norm ? clip / norm : 1) / 4),
                    got = results.read()[0].update_scale;
        CHECK(fabsf(got / want - 1) < 1e-6f,
              "clipping to %g of %g: the gradient is multiplied by %.9g, expected %.9g", clip, norm,
              got, want);
    }
    in.grad_clip = 1, d_in.write({in});
    gradient_norm(&g);
    adamw_update(&g);
    const float hyper[5] = {in.adamw.lr, in.adamw.beta1, in.adamw.beta2, in.adamw.eps,
                            in.adamw.weight_decay};
    ref_adamw(w.data(), m.data(), v.data(), grad.data(), n, hyper, found.update_scale, 3);
    check_same("AdamW, weights", w, d_w.read());
    check_same("AdamW, first moments", m, d_m.read());
    check_same("AdamW, second moments", v, d_v.read());
    for (float bad : {NAN, INFINITY}) { // a gradient that is not finite reaches no weight
        grad[n - 3] = bad, d_grad.write(grad);
        gradient_norm(&g);
        CHECK(results.read()[0].update_scale == 0, "a gradient of %g: multiplied by %g", bad,
              results.read()[0].update_scale);
        adamw_update(&g);
        check_same("AdamW skips", w, d_w.read());
    }
    for (int kind = 0; kind < 4; kind++)
        for (long step = 0; step < 40; step++) {
            const float a = ref_schedule_lr(kind, 0.01f, 0.1f, step, 5, 40),
                        b = schedule_lr((Schedule)kind, 0.01f, 0.1f, step, 5, 40);
            CHECK(float_bits(a) == float_bits(b),
                  "learning rate of step %ld, schedule %d: %g, expected %g", step, kind, b, a);
        }
    printf("ok   gradient norm, clipping, AdamW, schedules: same bits\n");
}

// ---- a model on both sides, from one command line
static std::string scratch; // a directory of ours
static std::string text_path() { return scratch + "/text.txt"; }
static std::vector<std::string> words_of(const std::string &line) {
    std::vector<std::string> words(1);
    for (char c : line)
        if (c != ' ') words.back() += c;
        else if (!words.back().empty()) words.emplace_back();
    if (words.back().empty()) words.pop_back();
    return words;
}
static std::vector<char *> argv_of(std::vector<std::string> &words) {
    std::vector<char *> argv;
    for (std::string &w : words) argv.push_back(&w[0]);
    argv.push_back(NULL);
    return argv;
}
#define TENSOR_FREE(role, name, ...) CUDA(cudaFree(g->name));
static void gpt_free(Gpt *g) { // and the products, whose shapes were this model's
    GPT_TENSORS(TENSOR_FREE)
    CUDA(cudaFree(g->device_scales));
    CUDA(cudaFree(g->scales_in_use));
    CUDA(cudaFree(g->step_inputs));
    CUDA(cudaFree(g->step_results));
    free(g->scales);
    memset(g, 0, sizeof(*g));
    for (int i = 0; i < product_count; i++) {
        cublasLtMatmulDescDestroy(products[i].desc);
        for (cublasLtMatrixLayout_t m : {products[i].a, products[i].b, products[i].out})
            cublasLtMatrixLayoutDestroy(m);
    }
    product_count = 0;
}
struct Both {
    Run r;
    void *ref;
    std::vector<int> tokens, targets;
    explicit Both(const std::string &options) {
        memset(&r, 0, sizeof(r));
        std::vector<std::string> words = words_of(
            "test -i " + text_path() + " --layers 2 --heads 2 --channels 64 -t 24 -b 2 " + options);
        std::vector<char *> argv = argv_of(words);
        ref = ref_gpt_new((int)words.size(), argv.data(), 256);
        r.o = options_parse((int)words.size(), argv.data(), r.given);
        options_recipes(&r.o, &r.g);
        r.g.config = options_config(&r.o, options_depth(&r.o), 256);
        options_products(&r.o, &r.g);
        r.g.B = (int)r.o.batch, r.g.training = 1, r.g.recompute = (int)r.o.recompute;
        r.g.fp8_moments = (int)r.o.fp8_moments, r.g.seed = (uint64_t)r.o.seed;
        r.g.shards = (int)r.o.shards, r.g.grad_comm = r.o.grad_comm;
        if (r.o.total_batch == 0) r.o.total_batch = r.o.batch * r.o.seq_len;
        if (r.o.lr == 0) r.o.lr = 1e-3;
        r.train = dataset_open(r.o.train);
        dataset_windows(&r.train, "training", (int)r.o.seq_len, 1);
        gpt_allocate(&r.g), gpt_init(&r.g, r.o.seed);
        if (gpt_scales_loss(&r.g)) r.g.loss_scale = 1024;
        r.g.record = RECORD_STATS, ref_gpt_record(ref, RECORD_STATS);
        tokens.resize(r.g.B * r.g.config.T), targets.resize(tokens.size());
    }
    ~Both() {
        device_wait();
        graphs_drop(&r.g.host), gpt_free(&r.g), ref_gpt_free(ref);
        for (int i = 0; i < 2; i++)
            cudaFreeHost(r.g.host.inputs[i]), cudaEventDestroy(r.g.host.sent[i]);
        cudaFreeHost(r.g.host.inputs_of_step), cudaFreeHost(r.g.host.results), free(r.g.host.seen);
    }
    double step_cuda(long step) {
        double norm;
        float lr;
        return run_step(&r, step, &norm, &lr);
    }
    // What run_step() of the C file does, by its parts.
    double step_ref(long step, float scale, double *norm) {
        const int B = r.g.B, T = r.g.config.T, micro_steps = (int)r.o.total_batch / (B * T);
        size_t bytes;
        float *grad = (float *)ref_gpt_tensor(ref, "grad", &bytes);
        double loss = 0;
        memset(grad, 0, bytes);
        for (int micro = 0; micro < micro_steps; micro++) {
            ref_batch(r.o.train, T, (uint64_t)r.o.data_seed,
                      (uint64_t)(step * micro_steps + micro) * B, tokens.data(), targets.data(), B);
            loss += ref_gpt_forward(ref, tokens.data(), targets.data(), B, T,
                                    scale / (float)r.o.total_batch) /
                    (double)r.o.total_batch;
            ref_gpt_backward(ref, tokens.data(), B, T);
        }
        *norm = ref_gradient_norm(grad, bytes / 4, 1 / scale);
        ref_gpt_advance(ref);
        const float lr = ref_schedule_lr((int)r.o.schedule, (float)r.o.lr, (float)r.o.final_lr,
                                         step, r.o.warmup, r.o.steps);
        const float hyper[5] = {lr, (float)r.o.beta1, (float)r.o.beta2, (float)r.o.eps,
                                (float)r.o.weight_decay};
        const double clip = r.o.grad_clip > 0 && *norm > r.o.grad_clip ? r.o.grad_clip / *norm : 1;
        ref_gpt_adamw(ref, hyper, (float)(clip / scale), step + 1);
        return loss;
    }
    std::vector<float> ref_floats(const char *name) {
        size_t bytes;
        const float *p = (const float *)ref_gpt_tensor(ref, name, &bytes);
        return std::vector<float>(p, p + bytes / 4);
    }
    std::vector<float> cuda_floats(const float *p) {
        std::vector<float> x(r.g.param_count);
        device_read(x.data(), p, x.size() * 4);
        return x;
    }
};
// AdamW's moments in FP8: the C file's bytes, from the same gradients.
static std::vector<uint8_t> device_bytes(const void *p, size_t bytes) {
    std::vector<uint8_t> x(bytes);
    if (bytes) device_read(x.data(), p, bytes);
    return x;
}
static void test_moments() {
    for (const char *words : {"", "--fp8-moments"}) {
        Both b(std::string("--seed 7 --layers 3 --channels 48 ") + words); // odd blocks
        Gpt *g = &b.r.g;
        const size_t n = g->param_count;
        size_t bytes;
        StepInputs in = {};
        in.adamw = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f};
        StepResults results = {};
        results.update_scale = 0.5f;
        device_write(g->step_results, &results, sizeof(results));
        const float hyper[5] = {in.adamw.lr, in.adamw.beta1, in.adamw.beta2, in.adamw.eps,
                                in.adamw.weight_decay};
        for (long t = 1; t <= 4; t++) {
            std::vector<float> grad = normals(n, 0.1f);
            for (size_t i = 0; i < n; i++)
                grad[i] *= i / 128 % 5 == 1 ? 0 : ldexpf(1, -(int)(i % 50));
            memcpy(ref_gpt_tensor(b.ref, "grad", &bytes), grad.data(), n * 4);
            device_write(g->grad, grad.data(), n * 4);
            in.correct1 = (float)(1.0 / (1.0 - power_int(in.adamw.beta1, t)));
            in.correct2 = (float)(1.0 / (1.0 - power_int(in.adamw.beta2, t)));
            in.moments_key = random_u64(g->seed, 0xada3, t);
            device_write(g->step_inputs, &in, sizeof(in));
            ref_gpt_adamw(b.ref, hyper, 0.5f, t);
            adamw_update(g);
        }
        const std::pair<const char *, const void *> all[] = {
            {"master", g->master}, {"m", g->m}, {"v", g->v}, {"moment_inv", g->moment_inv}};
        for (auto &tensor : all) {
            const uint8_t *p = (const uint8_t *)ref_gpt_tensor(b.ref, tensor.first, &bytes);
            check_same(tensor.first, std::vector<uint8_t>(p, p + bytes),
                       device_bytes(tensor.second, bytes));
        }
        printf("ok   four updates %s: the same bytes\n", words);
    }
}
// --grad-comm: the C file's bytes of a gradient as it is sent, and their sum.
static void test_shards() {
    for (const char *words : {"bf16", "fp8"}) {
        Both b(std::string("--layers 3 --channels 48 --shards 2 --grad-comm ") + words);
        Gpt *g = &b.r.g;
        const size_t n = g->param_count;
        size_t bytes;
        std::vector<float> grad = normals(n, 1e-4f), sum(n);
        for (size_t i = 0; i < n; i++) grad[i] *= ldexpf(1, -(int)(i / 1000 % 30));
        for (bool finite : {true, false}) {
            if (!finite) grad[5] = NAN, grad[n - 5] = INFINITY;
            memcpy(ref_gpt_tensor(b.ref, "grad", &bytes), grad.data(), n * 4);
            device_write(g->grad, grad.data(), n * 4);
            ref_gpt_encode(b.ref);
            shards_add(g, ENDS + FIRST_ROUND);
            shards_add(g, ENDS + LAST_ROUND);
            const uint8_t *wire = (const uint8_t *)ref_gpt_tensor(b.ref, "wire", &bytes);
            if (finite)
                check_same(words, std::vector<uint8_t>(wire, wire + bytes),
                           device_bytes(g->wire, bytes));
            device_read(sum.data(), g->grad, n * 4);
            size_t wrong = 0, nans = 0;
            for (size_t i = 0; i < n; i++) {
                nans += !isfinite(sum[i]);
                wrong += fabsf(sum[i] - 2 * grad[i]) > fabsf(grad[i]) / 8 && fabsf(grad[i]) > 1e-6f;
            }
            CHECK(!finite || wrong + nans == 0, "--grad-comm %s: %zu numbers are no sums", words,
                  wrong + nans);
            // in FP8 all of their tensors; the first is wte
            const size_t want = words[0] == 'b' ? 2 : g->params[WPE].offset + g->params[LNFB].rows;
            CHECK(finite || nans == want, "--grad-comm %s: %zu are not finite, expected %zu", words,
                  nans, want);
        }
        printf("ok   gradients of shards in %s: the same bytes\n", words);
    }
}
#if IS_FP8
// Whether steps run as they should: from the second on as graphs, in which one tensor a layer
// (attention's output, turned) and the head's input are quantized apart from the kernels that make
// them; those that record SQNR neither.
static void test_steps() {
    struct {
        const char *options;
        long passes;
    } all[] = {{"", 2}, {"--fp8-head", 3}, {"-d 144", 2}, {"--recompute 1", 2}};
    for (auto &c : all) {
        Both b(c.options);
        for (int step = 0; step < 5; step++)
            b.r.g.record = b.r.g.record_weights = step == 3 ? RECORD_SQNR : RECORD_STATS,
            b.step_cuda(step);
        CHECK(b.r.g.host.graph_steps == 3 && graph_passes(&b.r.g.host) == c.passes,
              "'%s': %ld of 5 steps are graphs, expected 3; with %ld separate quantizing passes, "
              "expected %ld",
              c.options, b.r.g.host.graph_steps, graph_passes(&b.r.g.host), c.passes);
        for (long step = 1; step <= 400;
             step++) { // the default options: SQNR at every 100th step and the last, nowhere else
            b.r.o.steps = 399;
            CHECK((step_record(&b.r.o, step) == RECORD_SQNR) == (step % 100 == 0 || step == 399),
                  "step %ld records SQNR, or does not", step);
        }
    }
    printf("ok   steps are graphs, and quantize in the kernels that make operands\n");
}
#endif

// How far the gradient of each tensor may lie from the C file's. In FP8 an amax that rounds the
// other way gives a tensor another scale, and all its bytes other roundings, whose noise is spacing
// / sqrt 12 each: 2^-3 in E4M3, 2^-2 in E5M2, as dy is. Mostly they are the same bytes, so that
// half of all command lines have to be much nearer.
static double gradient_tolerance(const Run &r) {
    const bool wide =
        IS_FP8 && (r.g.recipes[0].format == DTYPE_E5M2 || r.g.recipes[1].format == DTYPE_E5M2);
    if (IS_FP8 && r.g.recipes[0].format == DTYPE_E2M1) return 0.12;
    if (IS_FP8) return wide ? 0.12 : 0.06;
    return PRECISION == PRECISION_FP32 ? 2e-5 : 4 * EPSILON;
}
#ifdef CUDA_ON_CPU
static const double NEAR = 0.01;
#else
static const double NEAR = 0.03;  // a GPU's FP8 sums have 14 bits
#endif
static std::vector<double> gradient_errors;
static void compare_gradients(Both &b, const char *options, bool must_differ) {
    const std::vector<float> theirs = b.ref_floats("grad"), ours = b.cuda_floats(b.r.g.grad);
    double worst = 0;
    const char *where = "";
    for (int id = 0; id < NPARAM; id++) {
        const char *name;
        size_t count;
        const size_t at = ref_gpt_param(b.ref, id, &name, &count);
        const std::vector<float> a(theirs.begin() + (long)at, theirs.begin() + (long)(at + count)),
            c(ours.begin() + (long)at, ours.begin() + (long)(at + count));
        const double e = error_of(a, c);
        if (e > worst) worst = e, where = name;
    }
    const double allowed = gradient_tolerance(b.r);
    if (must_differ) {
        CHECK(worst > allowed,
              "a fault that must show: gradients of another batch (error %.3g, allowed %.3g)",
              worst, allowed);
        return;
    }
    gradient_errors.push_back(worst);
    CHECK(worst <= allowed, "gradients of '%s': error %.3g in %s, allowed %.3g", options, worst,
          where, allowed);
    printf("ok   gradients: %-34s error %.2e in %s (allowed %.2e)\n",
           *options ? options : "(no option)", worst, where, allowed);
}
static void test_model() {
    static const char *const all[] = {
        "",
        "-d 144",
        "--recompute 1",
        "--schedule linear --seed 5 --data-seed 9",
#if IS_FP8
        "--recipe current",
        "--recipe scale=1",
        "--recipe scale=16",
        "--recipe rowwise",
        "--recipe deepseek",
        "--recipe mx",
        "--recipe mx+floor",
        "--recipe e4m3",
        "--recipe e5m2",
        "--recipe x:e5m2",
        "--recipe pow2",
        "--recipe margin=1",
        "--recipe delayed=1",
        "--recipe delayed=2",
        "--fp8-head",
        "--recipe current --fp8-head",
        "--bf16 first+last.fc",
        "--bf16 dgrad",
        "--bf16 wgrad",
        "--bf16 fprop",
        "--bf16 1.qkv.wgrad+0.attproj",
        "--recipe deepseek --recompute 1",
        "--recipe hybrid-qkv",
        "--recipe mx --bf16 wgrad",
        "--recipe mx --bf16 fprop",
        "--recipe dy:mx --fp8-head",
        "--recipe w:mx+dy:deepseek+e4m3",
        "--recipe x:rowwise+dy:current --recompute 1",
        "--recipe deepseek+w:delayed --bf16 fc.wgrad+fprop",
        "--emulate 1",
        "--recipe te",
        "--recipe mxfp4",
        "--recipe nvfp4+dy:stochastic+hadamard",
        "--recipe nvfp4+stochastic --bf16 0.qkv --recompute 1",
        "--recipe e2m1 --fp8-head",
        "--recipe stochastic --recompute 1",
        "--recipe split",
        "--recipe deepseek+stochastic+hadamard",
        "--recipe deepseek+x:split --split fprop",
        "--recipe mx+x:split --split qkv.fprop+wgrad --recompute 1"
#endif
    };
    for (const char *options : all) {
#if IS_FP8
        machine.emulates = strstr(options, "--emulate") != NULL;
#endif
        std::string theirs = options; // the C file has no such option
        if (theirs.find("--emulate") != std::string::npos) theirs = "";
        Both b(theirs);
        if (options == all[0] || strstr(options, "--seed"))
            check_same("initial weights", b.ref_floats("master"), b.cuda_floats(b.r.g.master));
        for (int step = 0; step < 2; step++) {
            double norm;
            const float scale = b.r.g.loss_scale;
            const double ours = b.step_cuda(step), want = b.step_ref(step, scale, &norm);
            const double allowed = PRECISION == PRECISION_FP32 ? 1e-5
                                   : IS_FP8                    ? 0.2 * NEAR
                                                               : 1e-3; // of the loss, in nats
            CHECK(fabs(ours - want) <= allowed, "'%s': loss %.7f, expected %.7f", options, ours,
                  want);
            if (step == 0) compare_gradients(b, options, false);
#if IS_FP8
            gpt_scales_read(&b.r.g);
            int count;
            const Fp8Scale *s = (const Fp8Scale *)ref_gpt_scales(b.ref, &count);
            CHECK(count == b.r.g.scale_count, "'%s': %d scales, expected %d", options,
                  b.r.g.scale_count, count);
            for (int i = 0; i < count; i++) {
                const Fp8Scale *o = &b.r.g.scales[i];
                char name[32];
                const int layer = scale_name(&b.r.g, i, name);
                CHECK(o->logged.count == s[i].logged.count,
                      "'%s', step %d: %d %s counts %llu elements, expected %llu", options, step,
                      layer, name, (unsigned long long)o->logged.count,
                      (unsigned long long)s[i].logged.count);
                CHECK(o->amax_count == s[i].amax_count, "'%s': %d %s: %ld steps, expected %ld",
                      options, layer, name, (long)o->amax_count, (long)s[i].amax_count);
                if (step > 0 || s[i].logged.count == 0) continue;
                const float a = bits_float(o->logged.amax_bits),
                            c = bits_float(s[i].logged.amax_bits); // weights and data are the same
                CHECK(fabs(a / c - 1) < 0.06, "'%s': %d %s: amax %g, expected %g", options, layer,
                      name, a, c);
                CHECK(i % NOPERAND != OPERAND_W || (a == c && o->scale == s[i].scale &&
                                                    o->logged.flushed == s[i].logged.flushed),
                      "'%s': %d %s: a weight's scale or statistics differ", options, layer, name);
            }
#endif
        }
        if (options != all[0]) continue;
        double norm;
        b.step_ref(7, 1, &norm); // another batch
        compare_gradients(b, options, true);
    }
    std::sort(gradient_errors.begin(), gradient_errors.end());
    const double median = gradient_errors[gradient_errors.size() / 2];
    CHECK(!IS_FP8 || median < NEAR,
          "gradients: the median of the errors is %g, expected less than %g", median, NEAR);
#if IS_FP8
    machine.emulates = 0;
#endif
}
// Bits of three steps of a model: the weights, moments and scales after them.
static uint64_t fingerprint_of(const std::string &options) {
    Both b(options);
    for (int step = 0; step < 3; step++) b.step_cuda(step);
    const Gpt *g = &b.r.g;
    uint64_t h = 0;
    for (const float *p : {g->master, g->m, g->v})
        h = checksum(h, b.cuda_floats(p).data(), g->param_count * 4);
    gpt_scales_read(&b.r.g);
    for (int i = 0; i < g->scale_count; i++) {
        const Fp8Scale *s = &g->scales[i];
        h = checksum(h, &s->scale, 4), h = checksum(h, s->amax_history, sizeof(s->amax_history));
        for (uint64_t n : {(uint64_t)s->logged.amax_bits, s->logged.saturated, s->logged.flushed,
                           s->logged.nonfinite, s->logged.count})
            h = checksum(h, &n, 8);
    }
    return h;
}
static void test_bits() {
    static const char *const all[] = {
        "-d 96",
#if IS_FP8
        "--recipe current --fp8-head",
        "--recipe deepseek",
        "--emulate 1"
#endif
    };
    for (const char *options : all) {
        const bool emulates = strstr(options, "--emulate");
#if IS_FP8
        machine.emulates = emulates;
#endif
        uint64_t first = 0;
        for (int i = 0; i < ORDERS; i++) {
            order_set(i);
            const uint64_t h = fingerprint_of(emulates ? "" : options);
            if (i == 0) first = h;
            CHECK(h == first, "'%s': other bits in another order of blocks and threads (%d)",
                  options, i);
        }
        order_set(0);
        if (options == all[0]) {
            CHECK(fingerprint_of(std::string(options) + " --recompute 1") == first,
                  "other bits with --recompute");
            CHECK(fingerprint_of(std::string(options) + " --seed 2") != first,
                  "a fault that must show: another seed");
            CHECK(fingerprint_of(std::string(options) + " --data-seed 2") != first,
                  "a fault that must show: other data");
        }
        printf("ok   same bits in %d orders: '%s'\n", ORDERS, options);
    }
#if IS_FP8
    machine.emulates = 0;
#endif
}

// What run_write() writes with its cache, and the loss without gradients. Here a token's text is
// its number in hexadecimal; that of token 'a' is z.
static void test_generate() {
    Both b("--temperature 0");
    // Two tokens behind the separator.
    const std::string path = scratch + "/written.txt", prompt = "zz";
    std::vector<std::string> texts(b.r.g.config.V);
    std::vector<const unsigned char *> text(texts.size());
    for (size_t i = 0; i < texts.size(); i++) {
        char hex[3];
        snprintf(hex, sizeof(hex), "%02x", (unsigned)i);
        texts[i] = i == 'a' ? "\1z" : std::string(1, '\2') + hex;
        text[i] = (const unsigned char *)texts[i].c_str() + 1;
    }
    b.r.tokenizer = {b.r.g.config.V, '\n', text.data()};
    for (int step = 0; step < 2; step++) b.step_cuda(step);
    b.r.g.record = RECORD_NONE;
    fflush(stdout);
    const int screen = dup(1);
    CHECK(freopen(path.c_str(), "w", stdout), "%s: cannot write", path.c_str());
    run_write(&b.r, prompt.c_str(), 40, 1); // greedy, beyond the context
    fflush(stdout), dup2(screen, 1), close(screen), setbuf(stdout, NULL);
    char *out = text_read(path.c_str());
    std::vector<int> written;
    for (const char *at = out + prompt.size(); isalnum((unsigned char)*at);
         at += *at == 'z' ? 1 : 2) {
        unsigned token_found = 'a';
        if (*at != 'z') sscanf(at, "%2x", &token_found);
        written.push_back((int)token_found);
    }
    free(out);
    CHECK(written.size() == 40, "%zu tokens were written", written.size());
    // each of the first tokens is the likeliest after the ones before, by a forward pass without a
    // cache
    std::vector<int> all(b.r.g.config.T, 'a'), targets(all.size(), 0);
    all[0] = '\n';
    size_t agree = 0, asked = 0;
    for (int n = 3; n < b.r.g.config.T; n++) {
        for (int i = 3; i < n; i++) all[i] = written[i - 3];
        float best = 1e30f;
        int token = -1;
        std::vector<float> logits(b.r.g.config.Vp);
        gpt_loss(&b.r.g, all.data(), targets.data(), 1, n);
        device_read(logits.data(), b.r.g.logits + (size_t)(n - 1) * b.r.g.config.Vp,
                    logits.size() * 4);
        for (int t = 0; t < b.r.g.config.V; t++)
            if (-logits[t] < best) best = -logits[t], token = t;
        agree += token == written[n - 3], asked++;
    }
    // FP8: its scales are the same, its sums nearly.
    CHECK(agree + 2 >= asked, "with a cache %zu of %zu tokens are those without", agree, asked);
    const std::vector<int> no_targets(all.size(), -1);
    CHECK(gpt_loss(&b.r.g, all.data(), no_targets.data(), 1, 5) == 0, "targets of -1 count");
    printf("ok   generation with a cache: %zu of %zu tokens as without\n", agree, asked);
}

// ---- whole runs, by calling this program again
static std::string self_path;
static int run_as(const char *who, const std::string &arguments,
                  const std::string &environment = "") {
    const std::string command = "cd '" + scratch + "' && OMP_NUM_THREADS=1 " + environment + " '" +
                                self_path + "' --as-" + who + " " + arguments + " > out.txt 2>&1";
    const int status = system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
static std::string output_text() {
    char *text = text_read((scratch + "/out.txt").c_str());
    const std::string s = text ? text : "";
    free(text);
    return s;
}
static void shell(const std::string &command) {
    if (system(("cd '" + scratch + "' && " + command).c_str()) != 0)
        CHECK(0, "%s", command.c_str());
}
static void run_well(const char *who, const std::string &arguments,
                     const std::string &environment = "") {
    const int status = run_as(who, arguments, environment);
    CHECK(status == 0, "%s %s: exit status %d: %s", who, arguments.c_str(), status,
          output_text().c_str());
}
static bool files_same(const std::string &a, const std::string &b) {
    return system(("cmp -s '" + scratch + "/" + a + "' '" + scratch + "/" + b + "'").c_str()) == 0;
}
// A column of log.tsv: 2 is the loss.
static std::vector<double> log_column(const std::string &dir, int column) {
    std::vector<double> values;
    char *text = text_read((scratch + "/" + dir + "/log.tsv").c_str());
    const char *at = text ? text : "";
    double row[3];
    while (*at)
        if (text_row(&at, row, 3) == 3) values.push_back(row[column]);
    free(text);
    return values;
}
#define SHAPE "-i text.txt --layers 2 --heads 2 --channels 64 -t 32 -b 2 -s 0 "

// Mean over the steps.
static double log_distance(const std::vector<double> &a, const std::vector<double> &b) {
    double sum = 0;
    for (size_t i = 0; i < a.size() && i < b.size(); i++) sum += fabs(a[i] - b[i]);
    return a.size() == b.size() && !a.empty() ? sum / (double)a.size() : 1e30;
}
static void test_losses() {
    static const char *const precisions[] = {"fp8", "fp16", "bf16", "fp32"};
    const std::string run = SHAPE "-x 20 -v 0 -n 0 -u 5 ";
    std::vector<double> theirs[4];
    for (int p = 0; p < 4; p++) {
        run_well(precisions[p], run + "-o loss_" + precisions[p]);
        theirs[p] = log_column(std::string("loss_") + precisions[p], 2);
    }
    run_well("cuda", run + "-o loss_cuda");
    const std::vector<double> ours = log_column("loss_cuda", 2);
    // Of the C file's precisions; five times as much is a tenth of what another learning rate
    // makes.
    double spread = 0;
    for (int p = 0; p < 4; p++)
        spread = MAX(spread, 5 * log_distance(theirs[p], theirs[PRECISION]));
    const double distance = log_distance(ours, theirs[PRECISION]);
    CHECK(distance <= spread && ours.size() == 20,
          "20 steps: %g nats from the C file, at most %g expected", distance, spread);
    printf("ok   20 steps: mean distance to the C file %.5f nats (allowed %.5f, five times that of "
           "its precisions)\n",
           distance, spread);
    if (PRECISION != PRECISION_FP32) {
        run_well("cuda", run + "-o loss_16 --logits16");
        const std::vector<double> rounded = log_column("loss_16", 2);
        const double nearby = log_distance(rounded, theirs[PRECISION]);
        CHECK(rounded != ours && nearby < 1e-2, "--logits16: %g nats from the C file", nearby);
    }
    run_well("cuda", run + "-o loss_other --lr 0.003");
    const double other = log_distance(log_column("loss_other", 2), theirs[PRECISION]);
    CHECK(other > 5 * spread, "a fault that must show: another learning rate makes %g nats", other);
}

static void test_runs() {
    const std::string run = SHAPE "-x 6 -v 3 -m 2 -n 2 --keep 0 -u 2 -d 128 ";
    const std::string six = "/model_00000006.bin", state = "/state_00000006.bin";
    run_well("cuda", run + "-o straight");
    run_well("cuda", run + "-o again");
    CHECK(files_same("straight" + six, "again" + six) &&
              files_same("straight" + state, "again" + state),
          "two runs differ");
#ifdef CUDA_ON_CPU
    for (const char *order : orders) {
        const std::string dir = std::string("order_") + order;
        run_well("cuda", run + "-o " + dir, std::string("CUDA_ON_CPU_ORDER=") + order);
        CHECK(files_same("straight" + six, dir + six) &&
                  files_same("straight" + state, dir + state),
              "order %s differs", order);
    }
#endif
    // stopped after 2 and after 4 steps and resumed: the same bits, and the same log but for times
    for (int stop = 2; stop <= 4; stop += 2) {
        shell(stop == 2
                  ? "rm -rf part; cp -r straight part; rm part/DONE_00000004 part/DONE_00000006"
                  : "rm -rf part; cp -r straight part; rm part/DONE_00000006");
        run_well("cuda", "-y -o part");
        CHECK(files_same("straight" + six, "part" + six) &&
                  files_same("straight" + state, "part" + state),
              "a resume after step %d differs", stop);
        shell("cut -f 1-7 straight/log.tsv | grep -v '^#' > a.tsv; cut -f 1-7 part/log.tsv | grep "
              "-v '^#' > b.tsv; cmp a.tsv b.tsv");
    }
    // GPU -> CPU -> GPU: two steps here, two by the C file, two here
    shell("rm -rf there; cp -r straight there; rm there/DONE_00000004 there/DONE_00000006");
    run_well("ref", "-y -o there");
    shell("cmp straight/model_00000002.bin there/model_00000002.bin && rm there/DONE_00000006");
    run_well("cuda", "-y -o there");
    const std::vector<double> a = log_column("straight", 2), b = log_column("there", 2);
    CHECK(log_distance(a, b) < 0.02 && a.size() == 6, "GPU, CPU, GPU: losses differ by %g",
          log_distance(a, b));
    run_well("ref", run + "-o theirs"); // and one that began there
    shell("rm theirs/DONE_00000004 theirs/DONE_00000006");
    run_well("cuda", "-y -o theirs");
    CHECK(log_distance(log_column("theirs", 2), a) < 0.02,
          "a run that the C file began: losses differ by %g",
          log_distance(log_column("theirs", 2), a));
    // a checkpoint of the C file, loaded and saved: every byte as it was
    {
        Both other(IS_FP8 ? "-t 32" : "-t 32");
        StateFile f;
        Progress progress;
        uint64_t sum;
        memset(&f, 0, sizeof(f));
        run_well("ref", run + "-o whole");
        snprintf(f.path, sizeof(f.path), "%s/whole/state_00000006.bin", scratch.c_str());
        const std::string path = scratch + "/whole/model_00000006.bin";
        const File model = file_open(path.c_str(), 0);
        state_check(&f);
        model_check(&model, &sum);
        progress = f.progress;
        CHECK(sum == progress.model_checksum, "the model's checksum");
        model_load(&other.r.g, &model), state_load(&other.r.g, &f);
        Directory to;
        snprintf(to.path, sizeof(to.path), "%s/copy", scratch.c_str());
        directory_make(to.path), to.fd = directory_lock(to.path);
        checkpoint_save(&other.r.g, &to, &progress, f.options, 0);
        CHECK(files_same("whole" + six, "copy" + six), "a model that was loaded and saved differs");
        // the state: every section, but the statistics of the step under way and kept_inv, which
        // are made again with the weights
        StateFile copy;
        memset(&copy, 0, sizeof(copy));
        snprintf(copy.path, sizeof(copy.path), "%s/copy/state_00000006.bin", scratch.c_str());
        state_check(&copy);
        for (int i = 0; i < SECTIONS; i++) {
            const size_t bytes = f.header[i].bytes;
            std::vector<uint8_t> a(bytes), b(copy.header[i].bytes);
            file_read(&f.file, f.at[i], a.data(), a.size()),
                file_read(&copy.file, copy.at[i], b.data(), b.size());
            for (size_t k = 0;
                 i == SECTION_SCALES && k + sizeof(Fp8Scale) <= MIN(a.size(), b.size());
                 k += sizeof(Fp8Scale)) {
                memset(&a[k + offsetof(Fp8Scale, scale_inv)], 0, 2 * sizeof(float));
                memset(&b[k + offsetof(Fp8Scale, scale_inv)], 0, 2 * sizeof(float));
                memset(&a[k + offsetof(Fp8Scale, step)], 0, sizeof(Fp8Stats));
                memset(&b[k + offsetof(Fp8Scale, step)], 0, sizeof(Fp8Stats));
            }
            CHECK(same(a, b), "section %s of a state that was loaded and saved differs",
                  f.header[i].name);
        }
        printf("ok   a checkpoint loaded and saved: the same\n");
    }
    // damage is refused
    shell("rm -rf broken; cp -r straight broken; printf x | dd of=broken/state_00000006.bin bs=1 "
          "seek=3000 conv=notrunc 2> dd.txt");
    CHECK(run_as("cuda", "-y -o broken") == EXIT_BAD_INPUT &&
              output_text().find("damaged") != std::string::npos,
          "a damaged state: %s", output_text().c_str());
    printf("ok   runs: same bits again, in every order, across a resume; checkpoints go to the C "
           "file and back\n");
}

// Whose attention a run has stays with it, unless a resume asks for another.
#if PRECISION != PRECISION_FP32 && defined(CUDA_ON_CPU)
#define CUDNN "CUDA_ON_CPU_CUDNN=91600"
static void test_attention_by() {
    const std::string run = SHAPE "-x 4 -v 2 -m 2 -n 2 --keep 0 -u 2 ",
                      four = "/model_00000004.bin";
    run_well("cuda", run + "-o by_own");
    run_well("cuda", run + "-o by_cudnn", CUDNN);
    run_well("cuda", run + "-o by_again", CUDNN);
    CHECK(files_same("by_cudnn" + four, "by_again" + four) &&
              !files_same("by_cudnn" + four, "by_own" + four),
          "two runs with cuDNN differ, or are ours");
    CHECK(log_distance(log_column("by_own", 2), log_column("by_cudnn", 2)) < 0.02,
          "losses with cuDNN are %g from those without",
          log_distance(log_column("by_own", 2), log_column("by_cudnn", 2)));
    run_well("cuda", run + "--attention cudnn -o by_asked", CUDNN);
    run_well("ref", run + "-o by_cpu");
    double planned[2] = {0, 0}; // the plan holds cuDNN's workspace: 3 MiB of the stub's
    for (int i = 0; i < 2; i++) {
        run_well("cuda", run + "-o " + (i ? "by_plan" : "by_none"), i ? CUDNN : "");
        const std::string text = output_text();
        sscanf(text.c_str() + text.find("(planned "), "(planned %lf", &planned[i]);
    }
    CHECK(fabs(planned[1] - planned[0] - 3) < 0.11,
          "memory planned with cuDNN: %g MiB, without: %g", planned[1], planned[0]);
    struct {
        const char *from, *environment, *arguments, *word, *same;
        int status;
    } all[] = {
        {"by_own", CUDNN, "", "", "by_own", EXIT_DONE},
        {"by_own", CUDNN, "--attention cudnn", "", NULL, EXIT_DONE},
        {"by_cudnn", CUDNN, "", "", "by_cudnn", EXIT_DONE},
        {"by_cudnn", "", "",
         "the run's attention was by cuDNN 9.16.0, headers 91300, frontend 13200; here it would be "
         "by own",
         NULL, EXIT_BAD_INPUT},
        {"by_cudnn", "CUDA_ON_CPU_CUDNN=91700", "", "here it would be by cuDNN 9.17.0", NULL,
         EXIT_BAD_INPUT},
        {"by_cudnn", "CUDA_ON_CPU_CUDNN=91700", "--attention cudnn", "", "by_cudnn", EXIT_DONE},
        {"by_cudnn", "", "--attention own", "", NULL, EXIT_DONE},
        {"by_cudnn", "", "--attention auto", "here it would be by own", NULL, EXIT_BAD_INPUT},
        {"by_asked", "", "", "here it would be by own", NULL, EXIT_BAD_INPUT},
        {"by_cudnn", "", "--eval", "attention is not cuDNN's", NULL, EXIT_DONE},
        {"by_cpu", CUDNN, "", "attention_by     own", NULL, EXIT_DONE},
        {"by_cpu", CUDNN, "--attention cudnn", "attention_by     cuDNN", NULL, EXIT_DONE},
    };
    for (auto &c : all) {
        shell(std::string("rm -rf part; cp -r ") + c.from + " part; rm part/DONE_00000004");
        const int status = run_as("cuda", std::string("-y -o part ") + c.arguments, c.environment);
        const std::string text = output_text();
        CHECK(status == c.status && text.find(c.word) != std::string::npos,
              "%s, then %s %s: exit status %d: %s", c.from, c.environment, c.arguments, status,
              text.c_str());
        if (c.same && !*c.arguments)
            shell("test $(grep -c '^# attention_by' part/log.tsv) = 1"); // as in its header
        CHECK(!c.same || files_same(c.same + four, "part" + four), "%s, then %s %s: other bits",
              c.from, c.environment, c.arguments);
    }
    // `part` went on from the C file's with cuDNN; its log says so, and what is right again when
    // that is taken back
    shell("grep '^# attention_by' part/log.tsv | tail -1 | grep -q cuDNN && rm part/*00000004*");
    run_well("cuda", "-y -o part");
    shell("grep '^# attention_by' part/log.tsv | tail -1 | grep -q own && test $(grep -c '^# "
          "attention_by' part/log.tsv) = 2");
    shell("rm -rf by_cudnn/DONE_00000004"); // the C file takes it
    run_well("ref", "-y -o by_cudnn");
    printf("ok   whose attention: a resume keeps it, or refuses, or is told\n");
}
#endif

static void test_errors() {
    struct {
        const char *environment, *arguments, *word;
        int status;
    } cases[] = {
#ifdef CUDA_ON_CPU
        {"CUDA_ON_CPU_DEVICES=0", "", "no CUDA device", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_ARCH=7.5", "", "compute capability 7.5", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_DRIVER=12040", "", "driver supports CUDA 12.4", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_MEMORY=140", "-b 4096 ", "choose a smaller", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_MEMORY=40", "", "choose a smaller", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_ARCH=8.6", "", "", EXIT_DONE}, // FP8 is emulated there
        {"CUDA_ON_CPU_ARCH=8.9", "", "", EXIT_DONE},
        {"CUDA_ON_CPU_ARCH=12.0", "", "", EXIT_DONE},
        {"CUDA_ON_CPU_NO_CODE=1", "", "holds no code", EXIT_BAD_INPUT},
#if IS_FP8
        {"CUDA_ON_CPU_LT_REFUSES=fp8", "", "use --emulate", EXIT_BAD_INPUT},
        {"CUDA_ON_CPU_LT_REFUSES=fp8", "--recipe deepseek", "has no FP8 product", EXIT_DONE},
        {"CUDA_ON_CPU_LT_REFUSES=bias", "--recipe rowwise", "with a bias", EXIT_DONE},
        {"CUDA_ON_CPU_LT_REFUSES=fast", "--recipe rowwise", "fast sums", EXIT_DONE},
#endif
        {"", "--attention cudnn", "cuDNN does not take this run", EXIT_BAD_INPUT},
#if PRECISION != PRECISION_FP32
        {CUDNN, "", "cuDNN 9.16.0", EXIT_DONE},
        {CUDNN, "--attention own", "attention_by     own", EXIT_DONE},
        {CUDNN " CUDA_ON_CPU_CUDNN_REFUSES=backward", "", "attention_by     own", EXIT_DONE},
        {CUDNN " CUDA_ON_CPU_CUDNN_REFUSES=forward", "--attention cudnn",
         "no engine supports this graph", EXIT_BAD_INPUT},
        {CUDNN, "-t 1 -b 32", "attention_by     own",
         EXIT_DONE}, // its backward pass has no single position
        {"CUDA_ON_CPU_CUDNN=91300", "", "multiple of 128", EXIT_DONE},
#endif
#endif
        {"", "--logits16", PRECISION == PRECISION_FP32 ? "keeps nothing in 16 bits" : "",
         PRECISION == PRECISION_FP32 ? EXIT_BAD_INPUT : EXIT_DONE},
        {"", "--heads 8", "are 8; --heads 4 would do; for 8 heads the nearest: --channels 128",
         EXIT_BAD_INPUT},
        {"", "--channels 100", "are 50; for 2 heads the nearest: --channels 96 or 128",
         EXIT_BAD_INPUT},
        {"", "--channels 160 --heads 1",
         "are 160; --heads 2 would do; for 1 head the nearest: --channels 128", EXIT_BAD_INPUT},
        {"", "--channels 1000 --heads 500", "500 heads are 2", EXIT_BAD_INPUT},
        {"", "--nonsense", "unknown option", EXIT_BAD_INPUT},
        {"", "--lr 1e30 -x 9 -u 0", "not finite", EXIT_NONFINITE},
        {"", "--help", "--recompute", EXIT_DONE},
    };
    for (auto &c : cases) {
        const int status =
            run_as("cuda", std::string(SHAPE "-x 2 -v 0 -n 0 -o errors_tried ") + c.arguments,
                   c.environment);
        const std::string text = output_text();
        CHECK(status == c.status && text.find(c.word) != std::string::npos,
              "%s %s: exit status %d (expected %d), it said: %s", c.environment, c.arguments,
              status, c.status, text.substr(text.size() > 600 ? text.size() - 600 : 0).c_str());
        shell("rm -rf errors_tried");
    }
    // every option of the C file is here
    for (size_t i = 0; i < ref_option(-1, NULL, NULL); i++) {
        const char *name;
        int scope;
        ref_option((int)i, &name, &scope);
        const int at = option_index(name);
        CHECK(at >= 0 && option_specs[at].scope == scope,
              "option --%s of the C file is missing or of another scope", name);
    }
    printf("ok   errors and options\n");
}

static void test_data() {
    Dataset d = dataset_open(text_path().c_str());
    const int B = 5, T = 24;
    dataset_windows(&d, "test", T, 1);
    for (uint64_t first : {0, 5, 300, 5000}) {
        std::vector<int> a(B * T), b(B * T), c(B * T), e(B * T);
        dataset_batch(&d, 3, first, a.data(), b.data(), B, T);
        ref_batch(text_path().c_str(), T, 3, first, c.data(), e.data(), B);
        check_same("data, tokens", c, a), check_same("data, targets", e, b);
    }
    const size_t sizes[] = {sizeof(Fp8Scale), sizeof(ScalingRecipe), sizeof(Fp8Stats)};
    for (int i = 0; i < 3; i++)
        CHECK(ref_size((RefSize)i) == sizes[i], "struct %d: %zu bytes, the C file has %zu", i,
              sizes[i], ref_size((RefSize)i));
    CHECK(ref_size(REF_CHUNK) == CHUNK && ref_size(REF_NUMERICS) == NUMERICS_VERSION,
          "CHUNK or NUMERICS_VERSION differ");
    printf("ok   data: same order\n");
}

// A text of made-up words.
static void text_write() {
    FILE *f = fopen(text_path().c_str(), "w");
    std::string words[60];
    for (std::string &w : words)
        for (int i = (int)(uniform() * 5) + 2; i > 0; i--) w += (char)('a' + (int)(uniform() * 16));
    for (int line = 0; line < 900; line++) {
        for (int i = 0; i < 9; i++)
            fprintf(f, "%s ", words[(int)(uniform() * uniform() * 60)].c_str());
        fprintf(f, ".\n");
    }
    fclose(f);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*main)(int, char **);
    } programs[] = {{"--as-cuda", cuda_main},     {"--as-ref", ref_main},
                    {"--as-fp8", ref_main_fp8},   {"--as-fp16", ref_main_fp16},
                    {"--as-bf16", ref_main_bf16}, {"--as-fp32", ref_main_fp32}};
    for (auto &p : programs)
        if (argc > 1 && !strcmp(argv[1], p.name)) return p.main(argc - 1, argv + 1);

    static const struct {
        const char *name;
        void (*test)();
    } tests[] = {
        {"numbers", test_numbers},
        {"data", test_data},
#if IS_FP8
        {"quantize", test_quantize},
        {"scales", test_scale_update},
        {"fused", test_fused},
#endif
        {"encoder", test_encoder},
        {"layernorm", test_layernorm},
        {"gelu", test_gelu},
        {"attention", test_attention},
        {"classifier", test_classifier},
        {"linear", test_linear},
#if IS_FP8
        {"products", test_products},
        {"steps", test_steps},
#endif
#ifdef USES_CUDNN
        {"cudnn", test_cudnn},
#endif
        {"optimizer", test_optimizer},
        {"moments", test_moments},
        {"shards", test_shards},
        {"model", test_model},
        {"bits", test_bits},
        {"generate", test_generate},
        {"losses", test_losses},
        {"runs", test_runs},
#if PRECISION != PRECISION_FP32 && defined(CUDA_ON_CPU)
        {"attention_by", test_attention_by},
#endif
        {"errors", test_errors}
    };
    char dir[] = "/tmp/test_cuda.XXXXXX", path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (!mkdtemp(dir) || length < 0) return perror(dir), 1;
    scratch = dir, self_path = std::string(path, (size_t)length);
    setbuf(stdout, NULL);
    text_write();
    ref_begin(64, 64);
    machine_find(0), machine_init(), attention_init();
    printf("test of train_gpt_" PRECISION_NAME ", CUDA file on %s\n", machine.name);
    for (int i = 1; i < argc; i++) {
        // those of other builds count as known
        bool known = strstr(" scales quantize fused products steps cudnn attention_by ",
                            (" " + std::string(argv[i]) + " ").c_str()) != NULL;
        for (auto &t : tests) known = known || !strcmp(argv[i], t.name);
        CHECK(known, "no test is called %s", argv[i]);
    }
    for (auto &t : tests) {
        bool wanted = argc == 1; // or those that are named
        for (int i = 1; i < argc; i++) wanted = wanted || !strcmp(argv[i], t.name);
        const double begin = seconds_now();
        draws = 0;
        if (wanted)
            t.test(), device_wait(), printf("     %s: %.1f s\n", t.name, seconds_now() - begin);
    }
    if (failed == 0 && system(("rm -rf '" + scratch + "'").c_str()) != 0) perror("rm");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
