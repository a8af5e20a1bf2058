/*
cuBLASLt for on_cpu.h, which includes this file: the products that it is documented to have, by a
loop.
*/
#pragma once

// ---- cuBLASLt: column-major, D[m, n] = alpha op(A)[m, k] op(B)[k, n] + beta C[m, n] + bias[m]
// clang-format off
typedef enum {
    CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_16F = 2, CUDA_R_16BF = 14, CUDA_R_8F_E4M3 = 28, CUDA_R_8F_E5M2 = 29, CUDA_R_4F_E2M1 = 33 } cudaDataType_t;
typedef cudaDataType_t cudaDataType;
typedef enum { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 } cublasComputeType_t;
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
typedef enum { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 } cublasLtEpilogue_t;
typedef enum {
    CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4, CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER = 17, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER = 18,
    CUBLASLT_MATMUL_DESC_FAST_ACCUM = 25, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26, CUBLASLT_MATMUL_DESC_A_SCALE_MODE = 31,
    CUBLASLT_MATMUL_DESC_B_SCALE_MODE = 32
} cublasLtMatmulDescAttributes_t;
typedef enum {
    CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F = 0, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 = 1, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0 = 2,
    CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F = 3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F = 4,
    CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F = 5
} cublasLtMatmulMatrixScale_t;
typedef enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
} cublasLtMatmulPreferenceAttributes_t;
typedef enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_INPLACE = 1, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2, CUBLASLT_REDUCTION_SCHEME_MASK = 7 } cublasLtReductionScheme_t;
typedef enum {
    CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
    CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, CUBLASLT_ALGO_CONFIG_STAGES_ID
} cublasLtMatmulAlgoConfigAttributes_t;
// clang-format on
typedef struct OnCpuLt *cublasLtHandle_t;
typedef struct OnCpuDesc { // what is set, by attribute
    cublasOperation_t transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    // fast_accum: a byte in the interface.
    int fast_accum = 0, bias_type = -1, mode_a = 0, mode_b = 0;
    const void *bias = NULL, *scale_a = NULL, *scale_b = NULL;
} * cublasLtMatmulDesc_t;
typedef struct OnCpuLayout {
    cudaDataType type;
    size_t rows, cols, ld;
} * cublasLtMatrixLayout_t;
typedef struct OnCpuPreference {
    size_t workspace;
} * cublasLtMatmulPreference_t;
typedef struct {
    uint64_t data[8];
} cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

namespace on_cpu {
enum { // scale modes
    PER_TENSOR = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
    NVFP4 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3,
    MX = CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0,
    PER_ROW = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
    PER_1x128 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
    PER_128x128 = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F
};
inline std::string refusal; // why the last product was not supported
inline int type_bytes(int type) {
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16F || type == CUDA_R_16BF ? 2 : 1;
}
inline float number(int type, const void *p, size_t i) {
    static const std::vector<float> table = [] {
        std::vector<float> t(512);
        for (unsigned c = 0; c < 256; c++)
            t[c] = small_float(c, 4, 3, true), t[256 + c] = small_float(c, 5, 2, false);
        return t;
    }();
    if (type == CUDA_R_32F) return ((const float *)p)[i];
    if (type == CUDA_R_4F_E2M1) {
        static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        const unsigned code = ((const uint8_t *)p)[i / 2] >> 4 * (i % 2) & 15;
        return code & 8 ? -values[code & 7] : values[code];
    }
    if (type == CUDA_R_16BF) return bf16_float(((const uint16_t *)p)[i]);
    if (type == CUDA_R_16F) return fp16_float(((const uint16_t *)p)[i]);
    return table[((const uint8_t *)p)[i] + (type == CUDA_R_8F_E5M2 ? 256u : 0u)];
}
// Whether cuBLASLt has the product, as far as its documentation says; the reason goes into
// `refusal`.
inline bool supported(const OnCpuDesc &o, const OnCpuLayout &a, const OnCpuLayout &b,
                      const OnCpuLayout &c, const OnCpuLayout &d) {
    const bool ta = o.transa == CUBLAS_OP_T, tb = o.transb == CUBLAS_OP_T,
               fp8 = type_bytes(a.type) == 1;
    const size_t m = ta ? a.cols : a.rows, k = ta ? a.rows : a.cols, n = tb ? b.rows : b.cols;
    const int arch = architecture();
#define ON_CPU_NEEDS(condition)                                                                    \
    if (!(condition)) return refusal = #condition, false
    ON_CPU_NEEDS(k == (tb ? b.cols : b.rows) && d.rows == m && d.cols == n && c.rows == m &&
                 c.cols == n && m * n * k > 0);
    ON_CPU_NEEDS(a.ld >= a.rows && b.ld >= b.rows && c.ld >= c.rows && d.ld >= d.rows &&
                 c.type == d.type);
    ON_CPU_NEEDS(o.epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
                 (o.epilogue == CUBLASLT_EPILOGUE_BIAS && o.bias));
    if (!fp8) {
        ON_CPU_NEEDS(a.type == b.type && (d.type == a.type || d.type == CUDA_R_32F) && !o.scale_a &&
                     !o.scale_b && !o.fast_accum);
        ON_CPU_NEEDS(o.epilogue == CUBLASLT_EPILOGUE_DEFAULT || o.bias_type == -1 ||
                     o.bias_type == d.type);
        return true;
    }
    ON_CPU_NEEDS(arch >= 89 && type_bytes(b.type) == 1 &&
                 !(a.type == CUDA_R_8F_E5M2 && b.type == CUDA_R_8F_E5M2));
    ON_CPU_NEEDS((ta && !tb) || arch >= 100); // K-major, TN
    // 16 bytes.
    ON_CPU_NEEDS(m % 16 == 0 && n % 16 == 0 && k % 16 == 0 && a.ld % 16 == 0 && b.ld % 16 == 0);
    ON_CPU_NEEDS(d.ld * (size_t)type_bytes(d.type) % 16 == 0 &&
                 c.ld * (size_t)type_bytes(c.type) % 16 == 0);
    ON_CPU_NEEDS(type_bytes(d.type) > 1); // FP8 output exists, but nothing here wants it
    ON_CPU_NEEDS(o.epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
                 (o.bias_type == -1
                      ? d.type != CUDA_R_32F
                      : o.bias_type == (d.type == CUDA_R_16F ? CUDA_R_16F : CUDA_R_16BF)));
    for (int mode : {o.mode_a, o.mode_b})
        ON_CPU_NEEDS(mode == PER_TENSOR ||
                     (o.scale_a && o.scale_b && (!o.fast_accum || mode == PER_ROW) &&
                      (mode == MX || mode == NVFP4 ? arch >= 100 && ta && !tb : arch == 90)));
    for (const OnCpuLayout *l : {&a, &b})
        ON_CPU_NEEDS(l->type != CUDA_R_4F_E2M1 || (o.mode_a == NVFP4 && l->ld % 32 == 0));
    ON_CPU_NEEDS(o.mode_a != NVFP4 || (a.type == CUDA_R_4F_E2M1 && b.type == CUDA_R_4F_E2M1));
    // What a version of the library may not have.
    const char *refuses = getenv("CUDA_ON_CPU_LT_REFUSES");
    ON_CPU_NEEDS(!refuses || strcmp(refuses, "bias") || o.mode_a == PER_TENSOR ||
                 o.epilogue == CUBLASLT_EPILOGUE_DEFAULT);
    ON_CPU_NEEDS(!refuses || strcmp(refuses, "fast") || o.mode_a == PER_TENSOR || !o.fast_accum);
    ON_CPU_NEEDS(!refuses || strcmp(refuses, "fp8"));
    ON_CPU_NEEDS(o.mode_a == o.mode_b || (o.mode_a >= PER_1x128 && o.mode_b >= PER_1x128));
    ON_CPU_NEEDS(o.mode_a != PER_128x128 || o.mode_b != PER_128x128);
    return true;
}
// The scale of row i of an operand (of `rows`) in block kb of K (of `blocks`). 1 x 128: those of
// one block of K lie together; 128 x 128: those of one row of blocks, its length rounded up to a
// multiple of 4.
inline float scale_at(const void *scales, int mode, size_t i, size_t rows, size_t kb,
                      size_t blocks) {
    const size_t at = mode == PER_ROW     ? i
                      : mode == PER_1x128 ? kb * rows + i
                                          : i / 128 * ((blocks + 3) / 4 * 4) + kb;
    if (!scales || mode == MX || mode == NVFP4) return 1; // block_scale() has them
    return ((const float *)scales)[mode == PER_TENSOR ? 0 : at];
}
// MX and NVFP4: what element k of row i is multiplied by. Scales lie in tiles of 128 rows and four
// blocks: in a tile 32 groups of 16 bytes, each of the four rows i, i + 32, i + 64, i + 96.
inline float block_scale(const void *scales, int mode, size_t i, size_t k, size_t K) {
    const size_t length = mode == MX ? 32 : 16, kb = k / length,
                 tiles = ((K + length - 1) / length + 3) / 4;
    if (mode != MX && mode != NVFP4) return 1;
    const size_t tile = i / 128 * tiles + kb / 4, in_tile = i % 128;
    const uint8_t byte =
        ((const uint8_t *)scales)[tile * 512 + in_tile % 32 * 16 + in_tile / 32 * 4 + kb % 4];
    return mode == MX ? ldexpf(1, byte - 127) : small_float(byte, 4, 3, true);
}
#if defined(__FMA__) || defined(__aarch64__)
inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
#else
inline float multiply_add(float a, float b, float c) {
    return a * b + c;
} // the same bits but for operands in fp32
#endif
inline void product(const OnCpuDesc &o, float alpha, const void *A, const OnCpuLayout &a,
                    const void *B, const OnCpuLayout &b, float beta, const void *C,
                    const OnCpuLayout &c, void *D, const OnCpuLayout &d) {
    const bool ta = o.transa == CUBLAS_OP_T, tb = o.transb == CUBLAS_OP_T,
               blocked = o.mode_a >= PER_1x128;
    const size_t M = d.rows, N = d.cols, K = ta ? a.rows : a.cols, blocks = (K + 127) / 128,
                 Ke = (K + 1) & ~(size_t)1;
    const auto scale = [&](size_t m, size_t n, size_t kb) {
        return scale_at(o.scale_a, o.mode_a, m, M, kb, blocks) *
               scale_at(o.scale_b, o.mode_b, n, N, kb, blocks);
    };
    std::vector<float> row(Ke), left((M + 15) / 16 * 16 * Ke); // left: panels of 16 rows, [K][16]
    for (size_t m = 0; m < M; m++)
        for (size_t k = 0; k < K; k++)
            left[m / 16 * 16 * Ke + k * 16 + m % 16] =
                number(a.type, A, ta ? m * a.ld + k : k * a.ld + m) *
                block_scale(o.scale_a, o.mode_a, m, k, K);
    for (size_t n = 0; n < N; n++) {
        for (size_t k = 0; k < K; k++)
            row[k] = number(b.type, B, tb ? k * b.ld + n : n * b.ld + k) *
                     block_scale(o.scale_b, o.mode_b, n, k, K);
        for (size_t m0 = 0; m0 < M; m0 += 16) {
            const size_t rows = std::min(M - m0, (size_t)16);
            const float *panel = &left[m0 * Ke];
            float total[16] = {}, chain[16] = {};
            for (size_t k = 0; k < Ke; k += 2) {
                for (size_t i = 0; i < 16; i++)
                    chain[i] = multiply_add(panel[(k + 1) * 16 + i], row[k + 1], chain[i]);
                for (size_t i = 0; i < 16; i++)
                    chain[i] = multiply_add(panel[k * 16 + i], row[k], chain[i]);
                if (!blocked || (k + 2 < Ke && (k + 2) % 128)) continue; // else a block ends
                for (size_t i = 0; i < rows; i++)
                    total[i] = fmaf(chain[i], scale(m0 + i, n, k / 128), total[i]), chain[i] = 0;
            }
            for (size_t i = 0; i < rows; i++) {
                const size_t m = m0 + i, at = n * d.ld + m;
                const float sum = blocked ? total[i] : chain[i],
                            by = blocked ? alpha : alpha * scale(m, n, 0);
                const bool biased = o.epilogue == CUBLASLT_EPILOGUE_BIAS;
                float add = beta != 0 ? beta * number(c.type, C, n * c.ld + m) : 0;
                if (biased) add += number(o.bias_type >= 0 ? o.bias_type : d.type, o.bias, m);
                const float y = biased || beta != 0 ? fmaf(sum, by, add) : sum * by;
                if (d.type == CUDA_R_32F) ((float *)D)[at] = y;
                else ((uint16_t *)D)[at] = d.type == CUDA_R_16BF ? cvt_bf16(y) : cvt_fp16(y);
            }
        }
    }
}
} // namespace on_cpu
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    *h = (cublasLtHandle_t)(uintptr_t)1;
    return on_cpu::setting("CUDA_ON_CPU_DEVICES", 1) > 0 ? CUBLAS_STATUS_SUCCESS
                                                         : CUBLAS_STATUS_NOT_INITIALIZED;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline size_t cublasLtGetVersion() { return 130000; }
inline const char *cublasLtGetStatusString(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS         ? "success"
           : s == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported"
                                              : "invalid value";
}
inline const char *cublasGetStatusString(cublasStatus_t s) { return cublasLtGetStatusString(s); }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *o, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    return *o = new OnCpuDesc(), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t o) {
    return delete o, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t o,
                                                     cublasLtMatmulDescAttributes_t attribute,
                                                     const void *from, size_t bytes) {
    void *to = NULL;
    size_t want = 4;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: to = &o->transa; break;
    case CUBLASLT_MATMUL_DESC_TRANSB: to = &o->transb; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: to = &o->epilogue; break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: to = &o->bias, want = 8; break;
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: to = &o->scale_a, want = 8; break;
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: to = &o->scale_b, want = 8; break;
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM: to = &o->fast_accum, want = 1; break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: to = &o->bias_type; break;
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE: to = &o->mode_a; break;
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE: to = &o->mode_b; break;
    }
    if (!to || bytes != want) return CUBLAS_STATUS_INVALID_VALUE;
    return memcpy(to, from, bytes), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    return *l = new OnCpuLayout{type, rows, cols, (size_t)ld}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return delete l, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p = new OnCpuPreference(), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                     cublasLtMatmulPreferenceAttributes_t attribute,
                                     const void *from, size_t bytes) {
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8)
        memcpy(&p->workspace, from, 8);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
                               cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                               cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t p, int want,
                               cublasLtMatmulHeuristicResult_t *results, int *found) {
    *found = on_cpu::supported(*o, *a, *b, *c, *d) ? std::min(want, 2) : 0;
    for (int i = 0; i < *found; i++)
        results[i] = {{{(uint64_t)i + 1}},
                      std::min(p->workspace, (size_t)4096),
                      CUBLAS_STATUS_SUCCESS,
                      1,
                      {}};
    if (getenv("CUDA_ON_CPU_LT_REFUSES") && !*found) return CUBLAS_STATUS_INVALID_VALUE;
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
inline cublasStatus_t
cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                     cublasLtMatmulAlgoConfigAttributes_t attribute, void *to,
                                     size_t bytes, size_t *written) {
    memset(to, 0, bytes),
        memcpy(to, &algo->data[0],
               attribute == CUBLASLT_ALGO_CONFIG_ID ? std::min(bytes, (size_t)4) : 0);
    if (written) *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t o, const void *alpha,
                                     const void *A, cublasLtMatrixLayout_t a, const void *B,
                                     cublasLtMatrixLayout_t b, const void *beta, const void *C,
                                     cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                                     const cublasLtMatmulAlgo_t *, void *workspace,
                                     size_t workspace_bytes, cudaStream_t stream) {
    using namespace on_cpu;
    if (!supported(*o, *a, *b, *c, *d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    const char *refuses = getenv("CUDA_ON_CPU_LT_REFUSES"); // what the heuristic offered
    if (refuses && !strcmp(refuses, "call") && type_bytes(a->type) == 1 &&
        o->mode_a != PER_TENSOR && o->epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const struct {
        const void *p;
        const OnCpuLayout *l;
        const char *name;
    } all[4] = {{A, a, "A"}, {B, b, "B"}, {C, c, "C"}, {D, d, "D"}};
    for (auto &x : all) {
        if ((uintptr_t)x.p % (type_bytes(a->type) == 1 ? 16 : (size_t)type_bytes(x.l->type)))
            return refusal = std::string(x.name) + " is misaligned", CUBLAS_STATUS_NOT_SUPPORTED;
        ON_CPU_EXPECT(in_device(x.p), "cublasLtMatmul: %s is the host's", x.name);
        range_check(x.p,
                    ((x.l->cols - 1) * x.l->ld + x.l->rows) * (size_t)type_bytes(x.l->type) >>
                        (x.l->type == CUDA_R_4F_E2M1),
                    "cublasLtMatmul");
    }
    for (const void *p : {o->bias, o->scale_a, o->scale_b, (const void *)workspace})
        ON_CPU_EXPECT(!p || in_device(p), "cublasLtMatmul: %p is the host's", p);
    range_check(workspace, workspace_bytes, "cublasLtMatmul: workspace");
    submit(stream, [=, desc = *o, la = *a, lb = *b, lc = *c, ld = *d, x = *(const float *)alpha,
                    y = *(const float *)beta] {
        if (workspace)
            memset(workspace, 0xff, std::min(workspace_bytes, (size_t)4096)); // it is the library's
        product(desc, x, A, la, B, lb, y, C, lc, D, ld);
    });
    return CUBLAS_STATUS_SUCCESS;
}
