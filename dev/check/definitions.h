// The plain definitions that tests compare the trainer with: doubles or whole numbers, one element
// at a time, no vectors. Included after the trainer's file.

// ---- FP8

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
        for (int c = 0; c < 128; c++)
            positive_values[t][c] = code_value(c, t ? DTYPE_E5M2 : DTYPE_E4M3);
}

// The code of a float by bisection: the nearest value, ties to the even code, saturating; NaN is
// 0x7F, denormals are 0.
static uint8_t code_of(float f, Dtype d) {
    const uint32_t u = float_bits(f), a = u & 0x7fffffff;
    const double *value = positive_values[d == DTYPE_E5M2];
    const int sign = u >> 31 ? 128 : 0;
    if (a > 0x7f800000) return 0x7f;
    if (a == 0x7f800000) return (uint8_t)(sign | max_code(d));
    if (a < 0x00800000) return (uint8_t)sign;
    const double x = (double)bits_float(a);
    // value[low] <= x < value[high], the last one taken as infinite.
    int low = 0, high = max_code(d) + 1;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (value[middle] <= x) low = middle;
        else high = middle;
    }
    if (low == max_code(d)) return (uint8_t)(sign | low);
    const double tie = (value[low] + value[low + 1]) / 2;
    return (uint8_t)(sign | (x > tie || (x == tie && (low & 1)) ? low + 1 : low));
}

// Slow, one element at a time, in doubles: what quantize() must make and count.
static void quantize_slowly(uint8_t *q, const stored_t *x, size_t n, float scale, Dtype d,
                            Fp8Stats *s) {
    // E4M3: 464 itself still rounds to 448 (tie to even).
    const double cut = d == DTYPE_E4M3 ? 464 : 61440;
    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < n; i++) {
        // The product is exact in double.
        const float f = float_from_stored(x[i]), y = (float)((double)f * (double)scale);
        const uint32_t a = float_bits(f) & 0x7fffffff;
        q[i] = code_of(y, d);
        s->count++;
        s->nonfinite += a >= 0x7f800000;
        s->saturated += d == DTYPE_E4M3 ? fabs((double)y) > cut : fabs((double)y) >= cut;
        s->flushed += (q[i] & 127) == 0 && a != 0;
        if (a > s->amax_bits) s->amax_bits = a;
    }
}

static int stats_same(const Fp8Stats *a, const Fp8Stats *b) {
    return a->amax_bits == b->amax_bits && a->saturated == b->saturated &&
           a->flushed == b->flushed && a->nonfinite == b->nonfinite && a->count == b->count;
}

// ---- 16-bit types, fma

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
    // Of the last bit; below 2^fraction the result is a denormal.
    const double units = nearbyint(ldexp(x, fraction - e));
    const uint32_t code =
        units < ldexp(1, fraction)
            ? (uint32_t)units
            : (uint32_t)(((e - emin + 1) << fraction) + (units - ldexp(1, fraction)));
    return (uint16_t)(sign | (code > infinite ? infinite : code));
}

// fma with one rounding, denormals flushed, by exact integers.
__extension__ typedef __int128 Wide;
static float fma_by_integers(float a, float b, float c) {
    const float in[3] = {a, b, c};
    Wide m[3];
    int e[3], negative[3];
    for (int i = 0; i < 3; i++) {
        const uint32_t u = float_bits(in[i]), exponent = (u >> 23) & 255;
        if (exponent == 255)
            return (float)((double)a * (double)b + (double)c); // Inf and NaN need no rounding
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
    // What is too far below the other only matters as "a little more or less": one unit 60 bits
    // down.
    if (ep - ec > 70) {
        sum = 1;
        ec = ep - 60;
    }
    if (ec - ep > 70) {
        product = 1;
        ep = ec - 60;
    }
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
        magnitude >>= shift;
        exponent += shift;
        magnitude += rest > half || (rest == half && (magnitude & 1));
        if (magnitude >> 24) {
            magnitude >>= 1;
            exponent++;
        }
    } else {
        magnitude <<= 24 - bits;
        exponent -= 24 - bits;
    }
    const int biased = exponent + 150;
    if (biased >= 255) return bits_float(sign | 0x7f800000);
    if (biased <= 0) return bits_float(sign); // tiny after rounding
    return bits_float(sign | (uint32_t)biased << 23 | (uint32_t)(magnitude & 0x7fffff));
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

// ---- layers, from the equations

// The chain that section 4 of the trainer promises, one element at a time; even_first is the
// planted fault.
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

static void attention_reference(double *out, double *dqkv, const double *dout, const double *qkv,
                                int B, int T, int C, int NH) {
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
                    p[j] /= sqrt(hs);
                    max = fmax(max, p[j]);
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
                    for (int c = 0; c < hs; c++) {
                        dp[j] += g[c] * base[j * S + 2 * C + c];
                        dbase[j * S + 2 * C + c] += p[j] * g[c];
                    }
                    dot += p[j] * dp[j];
                }
                for (int j = 0; j <= i; j++)
                    for (int c = 0; c < hs; c++) {
                        const double ds = p[j] * (dp[j] - dot) / sqrt(hs);
                        dbase[i * S + c] += ds * base[j * S + C + c];
                        dbase[j * S + C + c] += ds * q[c];
                    }
            }
    free(p);
    free(dp);
}

// y = layernorm(x); with dy: dx +=, dweight +=, dbias +=.
static void layernorm_reference(double *y, const double *x, const double *w, const double *b,
                                int rows, int C, const double *dy, double *dx, double *dw,
                                double *db) {
    for (int r = 0; r < rows; r++, x += C) {
        double mean = 0, variance = 0, m1 = 0, m2 = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
        const double rstd = 1 / sqrt(variance + 1e-5);
        for (int c = 0; y && c < C; c++) y[r * C + c] = (x[c] - mean) * rstd * w[c] + b[c];
        for (int c = 0; dy && c < C; c++) {
            m1 += dy[r * C + c] * w[c] / C;
            m2 += dy[r * C + c] * w[c] * (x[c] - mean) * rstd / C;
        }
        for (int c = 0; dy && c < C; c++) {
            const double norm = (x[c] - mean) * rstd;
            dx[r * C + c] += rstd * (dy[r * C + c] * w[c] - m1 - norm * m2);
            dw[c] += dy[r * C + c] * norm;
            db[c] += dy[r * C + c];
        }
    }
}

static double gelu_reference(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
}

// y[M, N] = x[M, K] w[N, K]^T + b
static void linear_reference(double *y, const double *x, const double *w, const double *b, int M,
                             int N, int K) {
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

#if IS_FP8
// What a product reads of x [rows, columns], v [across K][K], and what is left for its epilogue, by
// the rules' words; its K runs along the columns or the rows.
static float reference_operand(float *v, const stored_t *x, size_t rows, size_t columns,
                               int along_rows, const ScalingRecipe *r) {
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
                        const float f =
                            float_from_stored(x[along_rows ? k * columns + i : i * columns + k]);
                        amax = MAX(amax, fabsf(f));
                        if (pass)
                            v[i * K + k] = fp8_decode(fp8_encode(f * scale, r->format), r->format) *
                                           (blocks ? 1 / scale : 1);
                    }
                if (pass == 0) scale = scale_from_amax(amax, 1, r);
                else if (!blocks) inv = 1 / scale;
            }
    return inv;
}

#endif
