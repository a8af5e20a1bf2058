/*
What cuBLASLt can do on this GPU, and how fast: which FP8 products exist, and the two ceilings that
a step is held to.

    nvcc -O3 -std=c++17 -arch=sm_90 dev/bench/gpu_cublaslt.cu -lcublasLt -o build/gpu/gpu_cublaslt
    build/gpu/gpu_cublaslt matrix    [--tsv FILE]   every combination of types, scale modes,
transposes, epilogues build/gpu/gpu_cublaslt ceilings  [--tsv FILE]   bandwidth of reading, writing,
copying; products of 8192 x 8192 x 8192 build/gpu/gpu_cublaslt products  [--tsv FILE] [--models
124M,1.5B] [--tokens 8192,16384] [--rounds 7] [--seconds 60]

A table goes to the screen, every figure to FILE (appended), a line at a time, flushed. A
combination that does not exist says so and the next one follows; one that breaks the device's
context is named, and the program starts itself again after that row.

matrix: each combination is asked of the heuristic, then run on random data and compared with a
plain kernel that applies the scales by the documented layouts, so a wrong layout or a silently
ignored scale shows as wrong values. products: GPT-2's linear layers and its head, all three
products, fp32 sums. Arms are timed in turn, forwards and backwards, and medians are shown. Operand
sets rotate so that twice the L2 cache lies between two uses of one: times are those of cold
operands.

Left out: several GPUs, batched products, FP4.
*/
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <unistd.h>
#include <vector>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#define CUDA(call) cuda_expect((call), #call, __LINE__)
static void cuda_expect(cudaError_t e, const char *call, int line) {
    if (e == cudaSuccess) return;
    printf("gpu_cublaslt: line %d: %s: %s\n", line, call, cudaGetErrorString(e));
    exit(1);
}
#define LT(call) lt_expect((call), #call, __LINE__)
static void lt_expect(cublasStatus_t s, const char *call, int line) {
    if (s == CUBLAS_STATUS_SUCCESS) return;
    printf("gpu_cublaslt: line %d: %s: %s\n", line, call, cublasLtGetStatusName(s));
    exit(1);
}
static const char *status_short(cublasStatus_t s) { // without CUBLAS_STATUS_
    const char *name = cublasLtGetStatusName(s);
    return strncmp(name, "CUBLAS_STATUS_", 14) ? name : name + 14;
}

// ==== types, data, devices
// ===========================================================================================
enum Type { E4M3, E5M2, BF16, FP16, FP32 };
static const char *const type_name[] = {"E4M3", "E5M2", "BF16", "FP16", "FP32"};
static const cudaDataType_t type_cuda[] = {CUDA_R_8F_E4M3, CUDA_R_8F_E5M2, CUDA_R_16BF, CUDA_R_16F,
                                           CUDA_R_32F};
static const size_t type_size[] = {1, 1, 2, 2, 4};
__host__ __device__ static bool is_fp8(int t) { return t == E4M3 || t == E5M2; }

__host__ __device__ static float value_load(const void *p, size_t i, int type) {
    if (is_fp8(type)) {
        const __half_raw h =
            __nv_cvt_fp8_to_halfraw(((const uint8_t *)p)[i], type == E4M3 ? __NV_E4M3 : __NV_E5M2);
        return __half2float(__half(h));
    }
    if (type == BF16) return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    if (type == FP16) return __half2float(((const __half *)p)[i]);
    return ((const float *)p)[i];
}
__device__ static void value_store(void *p, size_t i, int type, float f) {
    if (is_fp8(type))
        ((uint8_t *)p)[i] =
            __nv_cvt_float_to_fp8(f, __NV_SATFINITE, type == E4M3 ? __NV_E4M3 : __NV_E5M2);
    else if (type == BF16) ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(f);
    else if (type == FP16) ((__half *)p)[i] = __float2half_rn(f);
    else ((float *)p)[i] = f;
}
__host__ __device__ static uint64_t mix(uint64_t z) { // splitmix64's finalizer
    z = (z + 0x9e3779b97f4a7c15ull ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
// Numbers that are near normal, of deviation 1: zeros or uniform codes would let the card clock
// higher than real data do.
__global__ static void random_fill(void *p, size_t n, int type, uint64_t seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const uint64_t u = mix(seed ^ mix(i));
        float sum = 0;
        for (int j = 0; j < 4; j++) sum += (float)(u >> 16 * j & 0xffff) * 0x1p-16f - 0.5f;
        value_store(p, i, type, sum * 1.7320508f);
    }
}

static cudaDeviceProp device;
static cublasLtHandle_t lt;
static cudaStream_t stream;
static const size_t workspace_bytes = 32u << 20; // what cuBLAS asks for on sm_90 and newer
static void *workspace;
static FILE *tsv;

static void *device_allocate(size_t bytes) {
    void *p = NULL;
    const cudaError_t e = cudaMalloc(&p, bytes);
    if (e != cudaSuccess) cudaGetLastError(); // no room is an answer, not a fault
    return e == cudaSuccess ? p : NULL;
}

// ==== one product
// ====================================================================================================
// Column-major, as cuBLASLt has it: D[m, n] = op(A) op(B) + beta C + bias[m]. For row-major y = x
// w^T that is A = w, B = x.
enum Mode { TENSOR, OUTER, BLOCK1, BLOCK2, MX };
static const char *const mode_name[] = {"tensor", "outer", "1x128", "128x128", "mx"};
static const int mode_lt[] = {
    CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
    CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
    CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0};
struct Product {
    int a, b, d; // types
    int mode_a, mode_b;
    int ta, tb; // transposed? TN: ta 1, tb 0
    int64_t m, n, k;
    int beta, bias, fast;
};
struct Plan {
    cublasLtMatmulDesc_t desc = NULL;
    cublasLtMatrixLayout_t A = NULL, B = NULL, C = NULL, D = NULL;
    cublasLtMatmulHeuristicResult_t found[8];
    int count = 0;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS; // the first step that failed
};
static void plan_free(Plan *p) {
    if (p->desc) cublasLtMatmulDescDestroy(p->desc);
    for (cublasLtMatrixLayout_t l : {p->A, p->B, p->C, p->D})
        if (l) cublasLtMatrixLayoutDestroy(l);
    *p = Plan();
}
// Asks the heuristic for at most `want` algorithms.
static Plan plan_make(const Product &q, const void *scale_a, const void *scale_b, const void *bias,
                      int want) {
    Plan p;
    const auto check = [&](cublasStatus_t s) {
        p.status = p.status == CUBLAS_STATUS_SUCCESS ? s : p.status;
    };
    const auto set = [&](cublasLtMatmulDescAttributes_t a, const void *value, size_t size) {
        if (p.desc) check(cublasLtMatmulDescSetAttribute(p.desc, a, value, size));
    };
    check(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t op[2] = {CUBLAS_OP_N, CUBLAS_OP_T};
    set(CUBLASLT_MATMUL_DESC_TRANSA, &op[q.ta], sizeof(op[0]));
    set(CUBLASLT_MATMUL_DESC_TRANSB, &op[q.tb], sizeof(op[0]));
    if (is_fp8(q.a)) {
        const int8_t fast = (int8_t)q.fast;
        const int32_t modes[2] = {mode_lt[q.mode_a], mode_lt[q.mode_b]};
        set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof(fast));
        set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &modes[0], sizeof(modes[0]));
        set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &modes[1], sizeof(modes[1]));
        set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale_a, sizeof(scale_a));
        set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scale_b, sizeof(scale_b));
    }
    if (q.bias) { // of D's type; FP8 products into fp32 or FP8 take it as bf16
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const int32_t type = type_cuda[is_fp8(q.d) || (is_fp8(q.a) && q.d == FP32) ? BF16 : q.d];
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
        set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof(type));
        set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
    }
    const cudaDataType_t c = type_cuda[is_fp8(q.d) ? BF16 : q.d]; // C is never FP8
    check(cublasLtMatrixLayoutCreate(&p.A, type_cuda[q.a], q.ta ? q.k : q.m, q.ta ? q.m : q.k,
                                     q.ta ? q.k : q.m));
    check(cublasLtMatrixLayoutCreate(&p.B, type_cuda[q.b], q.tb ? q.n : q.k, q.tb ? q.k : q.n,
                                     q.tb ? q.n : q.k));
    check(cublasLtMatrixLayoutCreate(&p.C, c, q.m, q.n, q.m));
    check(cublasLtMatrixLayoutCreate(&p.D, type_cuda[q.d], q.m, q.n, q.m));
    cublasLtMatmulPreference_t preference;
    LT(cublasLtMatmulPreferenceCreate(&preference));
    LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &workspace_bytes, sizeof(workspace_bytes)));
    if (p.status == CUBLAS_STATUS_SUCCESS)
        check(cublasLtMatmulAlgoGetHeuristic(lt, p.desc, p.A, p.B, p.C, p.D, preference, want,
                                             p.found, &p.count));
    if (p.status == CUBLAS_STATUS_SUCCESS && p.count == 0) p.status = CUBLAS_STATUS_NOT_SUPPORTED;
    cublasLtMatmulPreferenceDestroy(preference);
    return p;
}
static cublasStatus_t plan_run(const Plan &p, int choice, const void *a, const void *b,
                               const void *c, void *d, int beta) {
    const float one = 1, beta_value = (float)beta;
    return cublasLtMatmul(lt, p.desc, &one, a, p.A, b, p.B, &beta_value, c, p.C, d, p.D,
                          &p.found[choice].algo, workspace, workspace_bytes, stream);
}
// Algorithm, tile and parts of K of a choice, for the record.
static std::string plan_algorithm(const Plan &p, int choice) {
    int32_t id = -1, tile = -1, split = -1;
    size_t written;
    const cublasLtMatmulAlgo_t *a = &p.found[choice].algo;
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof(id), &written);
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof(tile),
                                         &written);
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof(split),
                                         &written);
    return std::to_string(id) + "/" + std::to_string(tile) + "/" + std::to_string(split);
}

// ==== matrix
// =========================================================================================================
// Five K blocks, so that the padding of the 128x128 layout to four is met; m, n and k differ, so
// that a mix-up shows.
static const int M = 256, N = 384, K = 640;

// Where the scale of element (row, k) of an operand lies. outer: [rows]; 1x128: [K/128][rows], rows
// next to each other; 128x128: [rows/128][K/128 rounded up to 4]; mx: all the same, so its swizzle
// does not matter here.
__host__ __device__ static int scale_index(int mode, int rows, int row, int k) {
    const int padded = ((K + 127) / 128 + 3) / 4 * 4;
    if (mode == OUTER) return row;
    if (mode == BLOCK1) return k / 128 * rows + row;
    if (mode == BLOCK2) return row / 128 * padded + k / 128;
    return 0;
}
__global__ static void reference(float *out, const void *a, const void *b, Product q,
                                 const float *scale_a, const float *scale_b) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y;
    if (i >= q.m) return;
    float sum = 0;
    for (int k = 0; k < q.k; k++) {
        const float x = value_load(a, q.ta ? (size_t)i * q.k + k : (size_t)k * q.m + i, q.a);
        const float y = value_load(b, q.tb ? (size_t)k * q.n + j : (size_t)j * q.k + k, q.b);
        float s = 1;
        if (is_fp8(q.a)) {
            s = q.mode_a == MX ? 0.5f : scale_a[scale_index(q.mode_a, q.m, i, k)];
            s *= q.mode_b == MX ? 0.5f : scale_b[scale_index(q.mode_b, q.n, j, k)];
        }
        sum += s * x * y;
    }
    out[(size_t)j * q.m + i] = sum;
}

static void matrix(char **argv, int from) {
    static const int pairs[][2] = {{E4M3, E4M3}, {E4M3, E5M2}, {E5M2, E4M3},
                                   {E5M2, E5M2}, {BF16, BF16}, {FP16, FP16}};
    static const int modes[][2] = {{TENSOR, TENSOR}, {OUTER, OUTER},   {BLOCK1, BLOCK1},
                                   {BLOCK2, BLOCK1}, {BLOCK1, BLOCK2}, {BLOCK2, BLOCK2},
                                   {MX, MX}};
    static const int transposes[][2] = {{1, 0}, {0, 0}, {0, 1}};
    static const char *const transposes_name[] = {"TN", "NN", "NT"};
    static const int outputs[] = {BF16, FP16, FP32, E4M3, E5M2};
    // Of D's rounding, and of FP8's narrow accumulator.
    static const double tolerance[] = {0.06, 0.12, 0.01, 0.01, 0.01};

    void *a = device_allocate(M * K * 4), *b = device_allocate(N * K * 4),
         *c = device_allocate(M * N * 4);
    void *d = device_allocate(M * N * 4), *bias = device_allocate(M * 4);
    float *ref = (float *)device_allocate(M * N * 4), *scales = (float *)device_allocate(4 << 20);
    std::vector<float> want(M * N), scale_values(1 << 20);
    std::vector<unsigned char> got(M * N * 4), c_host(M * N * 4), bias_host(M * 4);
    // powers of two, 1/4 to 2, so that a scale that is dropped or taken from a wrong place changes
    // the result
    for (size_t i = 0; i < scale_values.size(); i++)
        scale_values[i] = ldexpf(1, (int)(mix(i) % 4) - 2);
    CUDA(cudaMemcpy(scales, scale_values.data(), 4 << 20, cudaMemcpyHostToDevice));
    unsigned char *mx_scales = (unsigned char *)device_allocate(1 << 20);
    CUDA(cudaMemset(mx_scales, 126, 1 << 20)); // E8M0 of 1/2
    float *scale_a = scales, *scale_b = scales + (1 << 19);

    if (from == 0) {
        printf("\ncuBLASLt's matrix, m n k = %d %d %d. In a cell, what ran with right values: p "
               "plain, b bias epilogue, f fast\n"
               "accumulate, x both; ?: the heuristic offered it, the call failed; !: wrong values; "
               "-: not offered.\n\n"
               "%-10s %-16s %-3s",
               M, N, K, "A x B", "scales of A, B", "");
        for (int out : outputs)
            for (int beta = 0; beta < 2; beta++)
                printf(" %6s%s", type_name[out], beta ? "+C" : "  ");
        printf("\n");
        if (tsv)
            fprintf(tsv, "matrix\ta\tb\tscale_a\tscale_"
                         "b\ttransposes\td\tbeta\tbias\tfast\theuristic\tcall\terror\talgorithm\n");
    }
    int row = 0;
    for (const auto &pair : pairs)
        for (const auto &mode : modes) {
            if (!is_fp8(pair[0]) && mode[0] + mode[1] > 0) continue; // no scales
            for (int t = 0; t < 3; t++, row++) {
                if (row < from) continue;
                Product q = {
                    pair[0], pair[1], BF16, mode[0], mode[1], transposes[t][0], transposes[t][1], M,
                    N,       K,       0,    0,       0};
                random_fill<<<128, 256, 0, stream>>>(a, (size_t)M * K, q.a, 1);
                random_fill<<<128, 256, 0, stream>>>(b, (size_t)N * K, q.b, 2);
                reference<<<dim3(M / 128, N), 128, 0, stream>>>(ref, a, b, q, scale_a, scale_b);
                CUDA(cudaMemcpyAsync(want.data(), ref, M * N * 4, cudaMemcpyDeviceToHost, stream));
                CUDA(cudaStreamSynchronize(stream));
                char scale_text[32];
                snprintf(scale_text, sizeof(scale_text), "%s %s",
                         is_fp8(q.a) ? mode_name[q.mode_a] : "none",
                         is_fp8(q.a) ? mode_name[q.mode_b] : "");
                printf("%s x %s %-16s %-3s", type_name[q.a], type_name[q.b], scale_text,
                       transposes_name[t]);
                fflush(stdout);
                std::string cells;
                for (int out : outputs)
                    for (q.d = out, q.beta = 0; q.beta < 2; q.beta++) {
                        char cell[16] = "";
                        const int c_type = is_fp8(out) ? BF16 : out;
                        const int bias_type = is_fp8(q.a) && out == FP32 ? BF16 : c_type;
                        for (int v = 0; v < (is_fp8(q.a) ? 4 : 2); v++) {
                            q.bias = v & 1, q.fast = v >> 1;
                            random_fill<<<128, 256, 0, stream>>>(c, (size_t)M * N, c_type, 3);
                            random_fill<<<1, 256, 0, stream>>>(bias, M, bias_type, 4);
                            // NaNs: what is not written shows.
                            CUDA(cudaMemsetAsync(d, 0xff, M * N * type_size[out], stream));
                            const void *sa = q.mode_a == MX ? (void *)mx_scales : scale_a;
                            const void *sb = q.mode_b == MX ? (void *)mx_scales : scale_b;
                            Plan p = plan_make(q, sa, sb, bias, 1);
                            cublasStatus_t call = p.status;
                            cudaError_t e = cudaSuccess;
                            double error = -1;
                            if (p.status == CUBLAS_STATUS_SUCCESS) {
                                call = plan_run(p, 0, a, b, c, d, q.beta);
                                e = cudaStreamSynchronize(stream);
                                if (e == cudaSuccess && call == CUBLAS_STATUS_SUCCESS) {
                                    CUDA(cudaMemcpy(got.data(), d, M * N * type_size[out],
                                                    cudaMemcpyDeviceToHost));
                                    CUDA(cudaMemcpy(c_host.data(), c, M * N * type_size[c_type],
                                                    cudaMemcpyDeviceToHost));
                                    CUDA(cudaMemcpy(bias_host.data(), bias,
                                                    M * type_size[bias_type],
                                                    cudaMemcpyDeviceToHost));
                                    double difference = 0, norm = 0;
                                    for (int i = 0; i < M * N; i++) {
                                        double w = want[i];
                                        if (q.beta) w += value_load(c_host.data(), i, c_type);
                                        if (q.bias)
                                            w += value_load(bias_host.data(), i % M, bias_type);
                                        const double g = value_load(got.data(), i, out) - w;
                                        difference += g * g, norm += w * w;
                                    }
                                    error = sqrt(difference / norm);
                                }
                            }
                            const bool ran = e == cudaSuccess && call == CUBLAS_STATUS_SUCCESS,
                                       right = error < tolerance[out];
                            const char letter = "pbfx"[v];
                            if (ran && right && error >= 0) strncat(cell, &letter, 1);
                            else if (p.status == CUBLAS_STATUS_SUCCESS)
                                strcat(cell, ran ? "!" : "?"), strncat(cell, &letter, 1);
                            if (tsv) {
                                fprintf(tsv,
                                        "matrix\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%."
                                        "3g\t%s\n",
                                        type_name[q.a], type_name[q.b], mode_name[q.mode_a],
                                        mode_name[q.mode_b], transposes_name[t], type_name[out],
                                        q.beta, q.bias, q.fast, status_short(p.status),
                                        e != cudaSuccess ? cudaGetErrorName(e) : status_short(call),
                                        error, p.count ? plan_algorithm(p, 0).c_str() : "-");
                                fflush(tsv);
                            }
                            plan_free(&p);
                            cudaGetLastError();
                            if (cudaDeviceSynchronize() != cudaSuccess) { // the context is broken
                                printf("%s %s: %s; starting again after this row\n", cells.c_str(),
                                       cell, cudaGetErrorName(e));
                                fflush(stdout);
                                const std::string next = std::to_string(row + 1);
                                std::vector<char *> again;
                                for (char **x = argv; *x && strcmp(*x, "--from"); x++)
                                    again.push_back(*x);
                                again.insert(again.end(),
                                             {(char *)"--from", (char *)next.c_str(), NULL});
                                execv("/proc/self/exe", again.data());
                                exit(1);
                            }
                        }
                        char padded[24];
                        snprintf(padded, sizeof(padded), " %8s", cell[0] ? cell : "-");
                        cells += padded;
                    }
                const bool nothing = cells.find_first_not_of(" -") == std::string::npos;
                printf("%s\n", nothing ? "        - (in all columns)" : cells.c_str());
                fflush(stdout);
            }
        }
    for (void *p : {a, b, c, d, bias, (void *)ref, (void *)scales, (void *)mx_scales})
        CUDA(cudaFree(p));
}

// ==== ceilings
// =======================================================================================================
// 16-byte loads and stores, four in flight a thread.
enum Traffic { READ, WRITE, COPY, NARROW, MEMCPY, MEMSET };
static const char *const traffic_name[] = {"read",       "write",     "copy", "read 2, write 1",
                                           "cudaMemcpy", "cudaMemset"};
template <int traffic> __global__ static void stream_kernel(uint4 *out, const uint4 *in, size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    uint4 sum = {1, 2, 3, 4};
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i + 3 * step < n;
         i += 4 * step) {
        uint4 v[4];
        for (int j = 0; j < 4; j++) v[j] = traffic == WRITE ? sum : in[i + j * step];
        if (traffic == READ)
            for (int j = 0; j < 4; j++)
                sum.x ^= v[j].x, sum.y ^= v[j].y, sum.z ^= v[j].z, sum.w ^= v[j].w;
        if (traffic == WRITE || traffic == COPY)
            for (int j = 0; j < 4; j++) out[i + j * step] = v[j];
        if (traffic == NARROW) { // as quantizing does: two bytes in, one out
            out[i] = {v[0].x ^ v[1].x, v[0].y ^ v[1].y, v[0].z ^ v[1].z, v[0].w ^ v[1].w};
            out[i + step] = {v[2].x ^ v[3].x, v[2].y ^ v[3].y, v[2].z ^ v[3].z, v[2].w ^ v[3].w};
        }
    }
    if (traffic == READ && (sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u)
        out[threadIdx.x] = sum; // so that the reads stay
}

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty()      ? 0
           : v.size() % 2 ? v[v.size() / 2]
                          : (v[v.size() / 2 - 1] + v[v.size() / 2]) / 2;
}
struct Timer {
    cudaEvent_t begin, end;
    Timer() { CUDA(cudaEventCreate(&begin)), CUDA(cudaEventCreate(&end)); }
    double milliseconds() const {
        float ms;
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        return ms;
    }
};

static void bandwidth(int rounds) {
    static const size_t sizes[] = {32u << 20, 256u << 20, (size_t)2 << 30};
    size_t free_bytes, total;
    CUDA(cudaMemGetInfo(&free_bytes, &total));
    printf("\nMemory, GB/s of bytes read plus bytes written, random data, medians of %d (L2 cache: "
           "%.0f MiB)\n\n%-10s",
           rounds, device.l2CacheSize / 1048576.0, "buffer");
    for (const char *name : traffic_name) printf(" %16s", name);
    printf("\n");
    if (tsv) fprintf(tsv, "bandwidth\tbytes\ttraffic\tGB/s\tus\n");
    for (size_t bytes : sizes) {
        if (2 * bytes > free_bytes * 9 / 10) {
            printf("%5zu MiB  no room\n", bytes >> 20);
            continue;
        }
        uint4 *in = (uint4 *)device_allocate(bytes), *out = (uint4 *)device_allocate(bytes);
        const size_t n = bytes / 16;
        // 8 blocks of 256 fill the threads of a multiprocessor.
        const int grid = device.multiProcessorCount * 8;
        random_fill<<<grid, 256, 0, stream>>>(in, bytes / 2, BF16, 5);
        std::vector<double> ms[6];
        std::vector<Timer> timers(6);
        for (int round = -1; round < rounds; round++) { // the first one warms up
            for (int kind = 0; kind < 6; kind++) {
                CUDA(cudaEventRecord(timers[kind].begin, stream));
                if (kind == READ) stream_kernel<READ><<<grid, 256, 0, stream>>>(out, in, n);
                if (kind == WRITE) stream_kernel<WRITE><<<grid, 256, 0, stream>>>(out, in, n);
                if (kind == COPY) stream_kernel<COPY><<<grid, 256, 0, stream>>>(out, in, n);
                if (kind == NARROW) stream_kernel<NARROW><<<grid, 256, 0, stream>>>(out, in, n);
                if (kind == MEMCPY)
                    CUDA(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, stream));
                if (kind == MEMSET) CUDA(cudaMemsetAsync(out, 0, bytes, stream));
                CUDA(cudaEventRecord(timers[kind].end, stream));
            }
            CUDA(cudaStreamSynchronize(stream));
            for (int kind = 0; kind < 6 && round >= 0; kind++)
                ms[kind].push_back(timers[kind].milliseconds());
        }
        printf("%5zu MiB ", bytes >> 20);
        for (int kind = 0; kind < 6; kind++) {
            const double moved = kind == COPY || kind == MEMCPY ? 2.0 * bytes
                                 : kind == NARROW               ? 1.5 * bytes
                                                                : bytes;
            const double gb_s = moved / median(ms[kind]) * 1e-6;
            printf(" %16.0f", gb_s);
            if (tsv)
                fprintf(tsv, "bandwidth\t%zu\t%s\t%.1f\t%.2f\n", bytes, traffic_name[kind], gb_s,
                        1e3 * median(ms[kind])),
                    fflush(tsv);
        }
        printf("%s\n", 2 * bytes <= (size_t)device.l2CacheSize * 2 ? "  (partly in L2)" : "");
        fflush(stdout);
        CUDA(cudaFree(in)), CUDA(cudaFree(out));
    }
}

// ==== products
// =======================================================================================================
// Memory for operands and outputs, filled once: any part of it is as random as any other.
struct Arena {
    unsigned char *base[5] = {}; // by type; fp32's is that of the outputs, of whatever type
    size_t bytes[5] = {};
};
static bool arena_reserve(Arena *arena, int type, size_t bytes, bool is_output) {
    const int slot = is_output ? FP32 : type;
    if (arena->bytes[slot] >= bytes) return true;
    if (arena->base[slot]) CUDA(cudaFree(arena->base[slot]));
    arena->base[slot] = (unsigned char *)device_allocate(bytes);
    arena->bytes[slot] = arena->base[slot] ? bytes : 0;
    if (!arena->base[slot]) return false;
    if (is_output) CUDA(cudaMemsetAsync(arena->base[slot], 0, bytes, stream));
    else
        random_fill<<<device.multiProcessorCount * 8, 256, 0, stream>>>(
            arena->base[slot], bytes / type_size[type], type, 6 + type);
    return true;
}

struct Arm {
    const char *name;
    Product q;
    Plan plan;
    size_t bytes_a, bytes_b, bytes_d, stride_operands;
    int sets, best; // operand sets that rotate; the fastest of the algorithms offered
    std::vector<double> ms[2];
    Timer timer[2];
};
static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

// Launches `inner` products on operand sets that take turns. which: 0 the heuristic's first
// algorithm, 1 the fastest.
static cublasStatus_t arm_run(Arm *arm, const Arena *arena, int algorithm, int inner, int *turn) {
    for (int i = 0; i < inner; i++, ++*turn) {
        const int set = *turn % arm->sets;
        const unsigned char *a = arena->base[arm->q.a] + set * arm->stride_operands;
        const unsigned char *b =
            arena->base[arm->q.b] + set * arm->stride_operands + align256(arm->bytes_a);
        void *d = arena->base[FP32] + set * align256(arm->bytes_d);
        const cublasStatus_t s = plan_run(arm->plan, algorithm, a, b, d, d, arm->q.beta);
        if (s != CUBLAS_STATUS_SUCCESS) return s;
    }
    return CUBLAS_STATUS_SUCCESS;
}

// Times the arms of one shape in turn and prints a line. group, layer, kind: its name in the TSV.
static void shape_time(Arena *arena, const char *group, long tokens, const char *layer,
                       const char *kind, std::vector<Arm *> arms, const float *scales, int rounds) {
    const Product &first = arms[0]->q;
    const double flops = 2.0 * (double)first.m * (double)first.n * (double)first.k;
    printf("%-5s %6ld %-8s %-6s %6ld %6ld %6ld", group, tokens, layer, kind, (long)first.m,
           (long)first.n, (long)first.k);
    int turn = 0;
    // Half a millisecond or so a sample.
    const int inner = (int)std::min(8.0, std::max(1.0, 4e11 / flops));
    for (Arm *arm : arms) {
        const Product &q = arm->q;
        arm->bytes_a = q.m * q.k * type_size[q.a], arm->bytes_b = q.n * q.k * type_size[q.b];
        arm->bytes_d = q.m * q.n * type_size[q.d];
        arm->stride_operands = align256(arm->bytes_a) + align256(arm->bytes_b);
        const size_t one = arm->stride_operands + align256(arm->bytes_d);
        arm->sets = (int)std::min<size_t>(16, 1 + 2 * (size_t)device.l2CacheSize / one);
        for (int type : {q.a, q.b})
            if (!arena_reserve(arena, type, arm->sets * arm->stride_operands, false))
                arm->plan.status = CUBLAS_STATUS_ALLOC_FAILED;
        if (!arena_reserve(arena, q.d, arm->sets * align256(arm->bytes_d), true))
            arm->plan.status = CUBLAS_STATUS_ALLOC_FAILED;
        if (arm->plan.status != CUBLAS_STATUS_SUCCESS) continue;
        arm->plan = plan_make(q, scales, scales, NULL, 8);
        if (arm->plan.status != CUBLAS_STATUS_SUCCESS) continue;
        // the fastest of what the heuristic offers: the better of two samples each, after one that
        // loads the kernel
        double fastest = 1e30;
        for (int i = 0; i < arm->plan.count; i++)
            for (int sample = 0; sample < 3; sample++) {
                CUDA(cudaEventRecord(arm->timer[0].begin, stream));
                const cublasStatus_t s = arm_run(arm, arena, i, sample ? inner : 1, &turn);
                CUDA(cudaEventRecord(arm->timer[0].end, stream));
                CUDA(cudaStreamSynchronize(stream));
                if (s != CUBLAS_STATUS_SUCCESS) {
                    if (i == 0) arm->plan.status = s;
                    break;
                }
                if (sample && arm->timer[0].milliseconds() < fastest)
                    fastest = arm->timer[0].milliseconds(), arm->best = i;
            }
    }
    for (int round = 0; round < rounds; round++) {
        for (size_t j = 0; j < 2 * arms.size(); j++) {
            const size_t at = round % 2 ? 2 * arms.size() - 1 - j : j; // there, then back
            Arm *arm = arms[at / 2];
            const int which = at % 2;
            if (arm->plan.status != CUBLAS_STATUS_SUCCESS || (which && arm->best == 0)) continue;
            CUDA(cudaEventRecord(arm->timer[which].begin, stream));
            arm->plan.status = arm_run(arm, arena, which ? arm->best : 0, inner, &turn);
            CUDA(cudaEventRecord(arm->timer[which].end, stream));
        }
        CUDA(cudaStreamSynchronize(stream));
        for (Arm *arm : arms)
            for (int which = 0; which < 2; which++)
                if (arm->plan.status == CUBLAS_STATUS_SUCCESS && !(which && arm->best == 0))
                    arm->ms[which].push_back(arm->timer[which].milliseconds() / inner);
    }
    // Bf16, and FP8 as the trainer runs it: fast accumulate in fprop only.
    double base = 0, ours = 0;
    for (Arm *arm : arms) {
        char text[64];
        const bool ok = arm->plan.status == CUBLAS_STATUS_SUCCESS && !arm->ms[0].empty();
        const double ms = median(arm->ms[0]), ms_best = arm->best ? median(arm->ms[1]) : ms;
        if (ok && !strcmp(arm->name, "bf16")) base = ms;
        if (ok && !strcmp(arm->name,
                          !strcmp(kind, "fprop") || !strcmp(kind, "peak") ? "fp8 fast" : "fp8"))
            ours = ms;
        if (ok)
            snprintf(text, sizeof(text), "%.0f (%.0f)", flops / ms * 1e-9, flops / ms_best * 1e-9);
        else snprintf(text, sizeof(text), "%s", status_short(arm->plan.status));
        printf(" %14.14s", text);
        if (tsv) {
            fprintf(tsv,
                    "product\t%s\t%ld\t%s\t%s\t%ld\t%ld\t%ld\t%s\t%s\t%.2f\t%.1f\t%.1f\t%d\t%s\t%"
                    "s\t%d\n",
                    group, tokens, layer, kind, (long)first.m, (long)first.n, (long)first.k,
                    arm->name, status_short(arm->plan.status), ok ? 1e3 * ms : 0,
                    ok ? flops / ms * 1e-9 : 0, ok ? flops / ms_best * 1e-9 : 0, arm->best,
                    arm->plan.count ? plan_algorithm(arm->plan, 0).c_str() : "-",
                    arm->plan.count ? plan_algorithm(arm->plan, arm->best).c_str() : "-",
                    arm->sets);
            fflush(tsv);
        }
        plan_free(&arm->plan);
    }
    if (base > 0 && ours > 0) printf("  %.2f", base / ours);
    printf("\n");
    fflush(stdout);
}

static void products_head(int rounds) {
    static const char *const names[] = {"bf16", "fp8 fast", "fp8", "fp8 rowwise", "fp8 block"};
    printf("\nProducts, TFLOP/s by the heuristic's first algorithm (and by the fastest of at most "
           "8), random data, operands cold:\n"
           "medians of %d interleaved samples. The last column: FP8 (fast accumulate in fprop "
           "only) over bf16.\n\n"
           "%-5s %6s %-8s %-6s %6s %6s %6s",
           rounds, "model", "tokens", "layer", "", "m", "n", "k");
    for (const char *name : names) printf(" %14s", name);
    printf("  ratio\n");
    if (tsv)
        fprintf(tsv, "product\tmodel\ttokens\tlayer\tproduct\tm\tn\tk\tarm\tstatus\tus\ttflops\ttfl"
                     "ops_best\tbest\tfirst_algorithm\t"
                     "best_algorithm\tsets\n");
}
// The arms of one product. bf16 takes the operands as they lie; FP8 is TN always, on bytes
// transposed beforehand.
static void product_time(Arena *arena, const char *group, long tokens, const char *layer,
                         const char *kind, int64_t m, int64_t n, int64_t k, const float *scales,
                         int rounds) {
    const int is_dgrad = !strcmp(kind, "dgrad"), is_wgrad = !strcmp(kind, "wgrad"),
              is_backward = is_dgrad || is_wgrad;
    const int d = is_wgrad ? FP32 : BF16, other = is_backward ? E5M2 : E4M3, fast = !is_backward;
    const int block = is_wgrad ? BLOCK1 : BLOCK2; // of weights; x and dy have 1x128
    std::vector<Arm> arms(5);
    arms[0].name = "bf16",
    arms[0].q = {BF16, BF16, d, TENSOR, TENSOR, !is_backward, is_wgrad, m, n, k, is_wgrad, 0, 0};
    arms[1].name = "fp8 fast",
    arms[1].q = {E4M3, other, d, TENSOR, TENSOR, 1, 0, m, n, k, is_wgrad, 0, 1};
    arms[2].name = "fp8",
    arms[2].q = {E4M3, other, d, TENSOR, TENSOR, 1, 0, m, n, k, is_wgrad, 0, 0};
    arms[3].name = "fp8 rowwise",
    arms[3].q = {E4M3, E4M3, d, OUTER, OUTER, 1, 0, m, n, k, is_wgrad, 0, fast};
    arms[4].name = "fp8 block",
    arms[4].q = {E4M3, E4M3, d, block, BLOCK1, 1, 0, m, n, k, is_wgrad, 0, 0};
    std::vector<Arm *> pointers;
    for (Arm &arm : arms) arm.best = 0, pointers.push_back(&arm);
    shape_time(arena, group, tokens, layer, kind, pointers, scales, rounds);
}

// Scales for every mode: ones. 50304 rows by 16384 / 128 blocks of K is the most that is asked for.
static float *scales_ones() {
    const size_t n = (size_t)50304 * 400;
    float *scales = (float *)device_allocate(n * 4);
    std::vector<float> ones(n, 1.0f);
    if (scales) CUDA(cudaMemcpy(scales, ones.data(), n * 4, cudaMemcpyHostToDevice));
    return scales;
}
static double seconds_now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void products(const char *models, const char *token_list, int rounds, double seconds) {
    static const struct {
        const char *name;
        int64_t C;
    } all[] = {{"124M", 768}, {"1.5B", 1600}};
    static const struct {
        const char *name;
        int64_t out, in; // times C; the head's out is the padded vocabulary
    } layers[] = {{"qkv", 3, 1}, {"attproj", 1, 1}, {"fc", 4, 1}, {"fcproj", 1, 4}, {"head", 0, 1}};
    const double begin = seconds_now();
    float *scales = scales_ones();
    Arena arena;
    products_head(rounds);
    for (const auto &model : all)
        for (const char *at = token_list; *at;) {
            const long tokens = strtol(at, (char **)&at, 10);
            at += *at == ',';
            if (!strstr(models, model.name) || tokens <= 0) continue;
            for (const auto &layer : layers) {
                const int64_t out = layer.out ? layer.out * model.C : 50304,
                              in = layer.in * model.C;
                if (seconds_now() - begin > seconds) {
                    printf("%-5s %6ld %-8s left out: %.0f seconds are over\n", model.name, tokens,
                           layer.name, seconds);
                    continue;
                }
                product_time(&arena, model.name, tokens, layer.name, "fprop", out, tokens, in,
                             scales, rounds);
                product_time(&arena, model.name, tokens, layer.name, "dgrad", in, tokens, out,
                             scales, rounds);
                product_time(&arena, model.name, tokens, layer.name, "wgrad", in, out, tokens,
                             scales, rounds);
            }
        }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all", *models = "124M,1.5B", *tokens = "8192,16384";
    int rounds = 7, from = 0;
    double seconds = 60;
    for (int i = 2; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--tsv")) tsv = fopen(argv[i + 1], "a");
        else if (!strcmp(argv[i], "--models")) models = argv[i + 1];
        else if (!strcmp(argv[i], "--tokens")) tokens = argv[i + 1];
        else if (!strcmp(argv[i], "--rounds")) rounds = std::max(1, atoi(argv[i + 1]));
        else if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[i + 1]);
        else if (!strcmp(argv[i], "--from")) from = atoi(argv[i + 1]);
        else
            return printf("gpu_cublaslt: unknown option '%s'; the head of "
                          "dev/bench/gpu_cublaslt.cu lists them\n",
                          argv[i]),
                   2;
    }
    const bool every = !strcmp(what, "all");
    if (!every && strcmp(what, "matrix") && strcmp(what, "ceilings") && strcmp(what, "products"))
        return printf("gpu_cublaslt: expected matrix, ceilings, products or all, found '%s'\n",
                      what),
               2;
    int count = 0, driver = 0, runtime = 0;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return printf("gpu_cublaslt: no CUDA device: %s\n",
                      e != cudaSuccess ? cudaGetErrorString(e) : "none is there"),
               1;
    CUDA(cudaGetDeviceProperties(&device, 0));
    CUDA(cudaDriverGetVersion(&driver)), CUDA(cudaRuntimeGetVersion(&runtime));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    LT(cublasLtCreate(&lt));
    workspace = device_allocate(workspace_bytes);
    if (from == 0)
        printf(
            "%s, sm_%d%d, %d multiprocessors, %.1f GiB; CUDA driver %d, runtime %d; cuBLASLt %zu\n",
            device.name, device.major, device.minor, device.multiProcessorCount,
            device.totalGlobalMem / 1073741824.0, driver, runtime, cublasLtGetVersion());
    fflush(stdout);
    if (every || !strcmp(what, "matrix")) matrix(argv, from);
    if (every || !strcmp(what, "ceilings")) {
        bandwidth(std::max(rounds, 9));
        float *scales = scales_ones();
        Arena arena;
        products_head(rounds);
        product_time(&arena, "-", 8192, "ceiling", "peak", 8192, 8192, 8192, scales, rounds);
        for (void *p : arena.base)
            if (p) CUDA(cudaFree(p));
        CUDA(cudaFree(scales));
    }
    if (every || !strcmp(what, "products")) products(models, tokens, rounds, seconds);
    CUDA(cudaDeviceSynchronize());
    return 0;
}
