/*
Tests AdamW's moments in FP8 (--fp8-moments) against a slow definition of their bytes:

    gcc -O2 -march=native -ffp-contract=off -fopenmp -DPRECISION=0 dev/check/test_moments.c -lm

The definition decodes by ldexp(), finds the two codes around a number by walking through all of
them, and cuts each tensor into blocks. Random words alone come from the trainer. Lines that
begin with "planted" feed a check what it must refuse: rounding to nearest, under which v stays, and
a v that becomes 0.
*/
#define main trainer_main
#include "../../train_gpt_fp8.c"
#undef main
#include "free.h"

static int passed, failed;
static void check(int ok, const char *name) {
    printf("%s %s\n", ok ? "ok  " : "FAIL", name);
    *(ok ? &passed : &failed) += 1;
}

// ---- the definition
enum { AS_WRITTEN, TO_NEAREST, ZERO_ALLOWED }; // the last two are planted
typedef struct {
    int bits, bias, codes; // of the mantissa; codes of numbers that are not negative
} Format;
static const Format formats[2] = {{3, 7, 0x7f}, {2, 15, 0x7c}};
static double code_value(const Format *f, int code) {
    const int exponent = code >> f->bits, mantissa = code & ((1 << f->bits) - 1);
    const double one = exponent > 0 ? 1 << f->bits : 0;
    return ldexp(one + mantissa, (exponent > 0 ? exponent : 1) - f->bias - f->bits);
}
static int code_of(const Format *f, double x, uint32_t random, int rule) {
    int low = 0;
    while (low + 1 < f->codes && code_value(f, low + 1) <= x) low++;
    if (low + 1 == f->codes) return low; // the largest
    const double step = code_value(f, low + 1) - code_value(f, low),
                 rest = (x - code_value(f, low)) / step;
    const int bits = low < 1 << f->bits ? 23 : 23 - f->bits; // denormals, normal numbers
    const int up = floor(ldexp(rest, bits)) + (random >> (32 - bits)) >= ldexp(1, bits);
    if (rule == TO_NEAREST) return low + (rest > 0.5 || (rest == 0.5 && low % 2));
    return low + up;
}
typedef struct {
    float *w, *moment[2], *inv; // the moments as numbers after each update
    uint8_t *codes[2];
} Slow;
// Moment k of a block of n elements, of which x is the first: its codes, and what they stand for.
static void slow_write(Slow *s, int k, size_t at, size_t n, size_t block, uint64_t key, int rule) {
    float *x = s->moment[k] + at, amax = 0;
    for (size_t i = 0; i < n; i++) amax = fmaxf(amax, fabsf(x[i]));
    const float most = k ? 57344 : 448, scale = amax > 0 ? fminf(most / amax, 0x1p126f) : 1;
    s->inv[2 * block + k] = 1 / scale;
    for (size_t i = 0; i < n; i++) {
        const uint32_t random = random_u32(key, (uint32_t)(at + i));
        int code = code_of(&formats[k], (double)fabsf(x[i] * scale), random, rule);
        if (k && x[i] > 0 && code == 0 && rule != ZERO_ALLOWED) code = 1;
        s->codes[k][at + i] = (uint8_t)(code | (signbit(x[i]) ? 0x80 : 0));
        x[i] = copysignf((float)code_value(&formats[k], code) * (1 / scale), x[i]);
    }
}
static void slow_update(Slow *s, const Gpt *g, const AdamW *o, float unscale, long t, int rule) {
    const float correct1 = (float)(1 / (1 - power_int(o->beta1, t))),
                correct2 = (float)(1 / (1 - power_int(o->beta2, t)));
    float *m = s->moment[0], *v = s->moment[1];
    for (size_t i = 0; i < g->param_count; i++) {
        int id = NPARAM - 1;
        while (i < g->params[id].offset) id--;
        const float d = g->grad[i] * unscale;
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * d;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * (d * d);
        const float step = m[i] * correct1 / (sqrtf(v[i] * correct2) + o->eps);
        s->w[i] -= o->lr * (step + (g->params[id].decays ? o->weight_decay : 0) * s->w[i]);
    }
    for (int id = 0; id < NPARAM && g->fp8_moments; id++) {
        const ParamSpec *p = &g->params[id];
        const size_t end = p->offset + p->layers * p->rows * p->cols;
        for (size_t at = p->offset; at < end; at += 128)
            for (int k = 0; k < 2; k++)
                slow_write(s, k, at, MIN(end - at, 128), at / 128 + (size_t)id,
                           random_u64(g->seed, 0xada3, (uint64_t)t), rule);
    }
}

// ---- both, side by side
static const AdamW adamw = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f};
static void begin(Gpt *g, Slow *s, int fp8) {
    memset(g, 0, sizeof(*g));
    g->config = (Config){.T = 7, .V = 60, .Vp = 128, .L = 3, .NH = 1, .C = 20}; // odd blocks
    g->B = 1, g->training = 1, g->fp8_moments = fp8, g->seed = 5;
    tensors_make(g, PRECISION, NULL);
    const size_t n = g->param_count;
    s->w = memory_allocate(4 * n);
    s->inv = memory_allocate(8 * (n / 128 + NPARAM));
    for (int k = 0; k < 2; k++) {
        s->moment[k] = memory_allocate(4 * n);
        s->codes[k] = memory_allocate(n);
    }
    gpt_init(g, 3);
    memcpy(s->w, g->master, 4 * n);
}
static void end(Gpt *g, Slow *s) {
    for (int k = 0; k < 2; k++) {
        free(s->moment[k]);
        free(s->codes[k]);
    }
    free(s->w);
    free(s->inv);
    gpt_free(g);
}
// Gradients of all sizes: blocks of zeros, neighbors 80 binades apart, one beyond E4M3's range.
static void gradients(Gpt *g, long t) {
    for (size_t i = 0; i < g->param_count; i++) {
        const uint64_t r = random_u64(9, (uint64_t)t, i);
        const int kind = (int)(i / 128 % 5), binades = kind == 2 ? (int)(r >> 8 & 127) : 4;
        g->grad[i] = kind == 1 ? 0 : (float)ldexp(random_unit(r) - 0.5, -binades);
    }
}
static int same(const Gpt *g, const Slow *s) {
    const size_t n = g->param_count;
    if (memcmp(g->master, s->w, 4 * n)) return 0;
    if (!g->fp8_moments)
        return !memcmp(g->m, s->moment[0], 4 * n) && !memcmp(g->v, s->moment[1], 4 * n);
    return !memcmp(g->m, s->codes[0], n) && !memcmp(g->v, s->codes[1], n) &&
           !memcmp(g->moment_inv, s->inv, 8 * (n / 128 + NPARAM));
}
static void test_bytes(int fp8, int threads) {
    const char *const what = fp8 ? "FP8" : "fp32";
    Gpt g;
    Slow s;
    char name[96];
    int equal = 1, planted = 0;
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    begin(&g, &s, fp8);
    for (long t = 1; t <= 6; t++) {
        gradients(&g, t);
        slow_update(&s, &g, &adamw, 0.5f, t, AS_WRITTEN);
        adamw_update(&g, &adamw, 0.5f, t);
        equal &= same(&g, &s);
    }
    snprintf(name, 96, "%s, %d threads: six updates make the definition's bytes", what, threads);
    check(equal, name);
    g.seed++;
    slow_update(&s, &g, &adamw, 0.5f, 7, AS_WRITTEN);
    g.seed--;
    adamw_update(&g, &adamw, 0.5f, 7);
    planted = same(&g, &s);
    snprintf(name, 96, "planted: %s, another seed makes other bytes", what);
    if (fp8) check(!planted, name);
    end(&g, &s);
}

// A v whose gradients have ended decays as in fp32, on average, beside one that stays: the ratio to
// fp32 after 60 updates.
static double decay_ratio(int rule) {
    Gpt g;
    Slow s;
    double sum = 0;
    begin(&g, &s, 1);
    for (long t = 1; t <= 60; t++) {
        for (size_t i = 0; i < g.param_count; i++) g.grad[i] = t == 1 || i % 128 == 0 ? 1 : 0;
        slow_update(&s, &g, &adamw, 1, t, rule);
    }
    for (size_t i = 1; i < 128; i++) sum += (double)s.moment[1][i] / 127;
    end(&g, &s);
    return sum / (0.05 * pow(0.95, 59));
}
static int decays(double ratio) { return ratio > 0.7 && ratio < 1.4; }

// The largest step of 40 updates, in learning rates, of gradients 0.8^i in a block.
static double largest_step(int rule) {
    Gpt g;
    Slow s;
    double most = 0;
    AdamW o = adamw;
    o.weight_decay = 0;
    begin(&g, &s, 1);
    for (long t = 1; t <= 40; t++) {
        for (size_t i = 0; i < g.param_count; i++)
            g.grad[i] = (float)pow(0.8, (double)(i % 128)) * (random_u64(3, 3, i) & 1 ? 1 : -1);
        float before[128];
        memcpy(before, s.w, sizeof(before));
        slow_update(&s, &g, &o, 1, t, rule);
        for (int i = 0; i < 128; i++) most = fmax(most, fabs((double)s.w[i] - (double)before[i]));
    }
    end(&g, &s);
    return most / (double)o.lr;
}

int main(void) {
    machine_init(0);
    for (int fp8 = 0; fp8 <= 1; fp8++)
        for (int threads = 1; threads <= 3; threads++) test_bytes(fp8, threads);
    check(decays(decay_ratio(AS_WRITTEN)), "v in E5M2 decays as in fp32, on average");
    check(!decays(decay_ratio(TO_NEAREST)), "planted: rounded to nearest, v stays");
    const double most = largest_step(AS_WRITTEN), zero = largest_step(ZERO_ALLOWED);
    printf("     largest step %.2f learning rates; %.2f if v may become 0\n", most, zero);
    check(most < 20, "no step is much larger than the learning rate");
    check(zero > 20, "planted: where v becomes 0, steps are");
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
