/*
Tests of on_cpu.h, the header that runs CUDA kernels on a CPU: what is right must give the right
result, the same bits in every order of blocks and threads; each fault that is planted here must be
caught.

    g++ -std=c++17 -O2 -ffp-contract=off -Wall -Wextra -o on_cpu_test dev/cuda/on_cpu_test.cpp &&
./on_cpu_test

Prints what failed, then `N passed, M failed`; exit status 0 if nothing failed.
*/
#include "on_cpu.h"
#include <sys/wait.h>

static int passed, failed;
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (condition) passed++;                                                                   \
        else                                                                                       \
            failed++, printf("failed: %s:%d: %s: ", __FILE__, __LINE__, #condition),               \
                printf(__VA_ARGS__), printf("\n");                                                 \
    } while (0)
static const char *const orders[] = {"forward", "backward", "shuffled:1", "shuffled:2"};
static unsigned random_state = 1;
static unsigned random_next() {
    return random_state = random_state * 1664525 + 1013904223, random_state >> 8;
}
static float random_float() { return (float)random_next() / (1 << 23) - 1; } // -1 .. 1

// Device memory with a copy of what the host has, and back.
template <class T> static T *to_device(const std::vector<T> &host) {
    T *p;
    cudaMalloc(&p, host.size() * sizeof(T));
    cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
    return p;
}
template <class T> static std::vector<T> to_host(const T *p, size_t n) {
    std::vector<T> host(n);
    cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
    return host;
}

// Runs a fault in a child. What it prints must hold `expected`, and its exit status must be that of
// an error.
static void caught(const char *name, const char *expected, const std::function<void()> &fault) {
    int fd[2], status;
    char text[4096] = {0};
    fflush(stdout);
    if (pipe(fd) != 0) abort();
    const pid_t child = fork();
    if (child == 0) {
        dup2(fd[1], 2), close(fd[0]);
        fault();
        cudaDeviceSynchronize();
        _exit(0);
    }
    close(fd[1]);
    for (size_t n = 0; n + 1 < sizeof(text);) {
        const ssize_t got = read(fd[0], text + n, sizeof(text) - 1 - n);
        if (got <= 0) break;
        n += (size_t)got;
    }
    close(fd[0]), waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 0 && strstr(text, expected),
          "%s: status %d, it said: %s", name, status, text);
}

// A program that gives other bits in another order has a race.
static bool orders_agree(const std::function<std::vector<float>()> &program) {
    std::vector<float> first;
    bool agree = true;
    for (const char *order : orders) {
        on_cpu::order_set(order);
        const std::vector<float> now = program();
        if (first.empty()) first = now;
        agree = agree && memcmp(first.data(), now.data(), now.size() * 4) == 0;
    }
    on_cpu::order_set("forward");
    return agree;
}

// ---- what must work
static __global__ void transpose_kernel(float *to, const float *from, int rows, int columns) {
    SHARED float tile[32][33];
    const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (x < columns && y + i < rows)
            tile[threadIdx.y + i][threadIdx.x] = __ldg(&from[(y + i) * columns + x]);
    __syncthreads();
    const int tx = blockIdx.y * 32 + threadIdx.x, ty = blockIdx.x * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (tx < rows && ty + i < columns)
            to[(ty + i) * rows + tx] = tile[threadIdx.x][threadIdx.y + i];
}
static void test_transpose() {
    const int rows = 75, columns = 100;
    std::vector<float> a(rows * columns);
    for (float &x : a) x = random_float();
    float *from = to_device(a), *to;
    cudaMalloc(&to, a.size() * 4);
    CHECK(orders_agree([&] {
              LAUNCH(transpose_kernel, dim3(4, 3), dim3(32, 8), 0, NULL, to, from, rows, columns);
              return to_host(to, a.size());
          }),
          "a transpose");
    const std::vector<float> b = to_host(to, a.size());
    bool right = true;
    for (int i = 0; i < rows * columns; i++)
        right = right && b[i % columns * rows + i / columns] == a[i];
    CHECK(right, "a transpose");
    cudaFree(from), cudaFree(to);
}

// Sums of 256 floats each: lanes by shuffles, warps through dynamic shared memory.
static __global__ void __launch_bounds__(256) sum_kernel(float *sums, const float *x) {
    DYNAMIC_SHARED(float, partial);
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < 8 ? partial[threadIdx.x] : 0;
        for (int d = 4; d > 0; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
        if (threadIdx.x == 0) sums[blockIdx.x] = v;
    }
}
static void test_sum() {
    std::vector<float> a(256 * 5);
    for (float &x : a) x = random_float();
    float *x = to_device(a), *sums;
    cudaMalloc(&sums, 5 * 4);
    CHECK(orders_agree([&] {
              LAUNCH(sum_kernel, 5, 256, 8 * sizeof(float), NULL, sums, x);
              return to_host(sums, 5);
          }),
          "a block's sum");
    const std::vector<float> s = to_host(sums, 5);
    for (int b = 0; b < 5; b++) {
        double want = 0;
        for (int i = 0; i < 256; i++) want += a[b * 256 + i];
        CHECK(fabs(s[b] - want) < 1e-4, "block %d: %g, expected %g", b, s[b], want);
    }
    cudaFree(x), cudaFree(sums);
}

static __global__ void lanes_kernel(unsigned *out) {
    const unsigned lane = threadIdx.x;
    unsigned scan = lane * lane + 1;
    for (unsigned d = 1; d < 32; d *= 2) {
        const unsigned below = __shfl_up_sync(0xffffffffu, scan, d);
        if (lane >= d) scan += below;
    }
    out[lane] = scan;
    out[32 + lane] = __shfl_sync(0xffffffffu, lane * 3, (int)lane + 5, 8);
    out[64 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    out[96 + lane] =
        __reduce_max_sync(0xffffffffu, lane ^ 21u) + 1000 * __reduce_add_sync(0xffffffffu, lane);
    if (lane < 16) out[128 + lane] = __shfl_xor_sync(0x0000ffffu, lane, 3); // each half on its own
    else out[128 + lane] = __shfl_xor_sync(0xffff0000u, lane, 5);
    __syncwarp();
    out[160 + lane] = (unsigned)__any_sync(0xffffffffu, lane == 7) * 2 +
                      (unsigned)__all_sync(0xffffffffu, lane < 31);
}
static void test_lanes() {
    unsigned *d;
    cudaMalloc(&d, 192 * 4);
    for (const char *order : orders) {
        on_cpu::order_set(order);
        LAUNCH(lanes_kernel, 1, 32, 0, NULL, d);
        const std::vector<unsigned> u = to_host(d, 192);
        unsigned sum = 0;
        bool right = true;
        for (unsigned l = 0; l < 32; l++) {
            sum += l * l + 1;
            right = right && u[l] == sum && u[32 + l] == ((l & 24) + (l + 5) % 8) * 3 &&
                    u[64 + l] == 0x49249249 && u[96 + l] == 31 + 1000 * 496 &&
                    u[128 + l] == (l < 16 ? l ^ 3 : l ^ 5) && u[160 + l] == 2;
        }
        CHECK(right, "collectives, %s", order);
    }
    on_cpu::order_set("forward");
    cudaFree(d);
}

static __global__ void histogram_kernel(unsigned *bins, unsigned *top, const unsigned *x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[x[i] % 16], 1u), atomicMax(top, x[i]);
}
static void test_atomics() {
    std::vector<unsigned> a(1000), want(16, 0);
    unsigned most = 0;
    for (unsigned &x : a) x = random_next(), want[x % 16]++, most = std::max(most, x);
    unsigned *x = to_device(a), *bins = to_device(std::vector<unsigned>(17, 0));
    LAUNCH(histogram_kernel, 4, 256, 0, NULL, bins, bins + 16, x, 1000);
    const std::vector<unsigned> got = to_host(bins, 17);
    CHECK(std::equal(want.begin(), want.end(), got.begin()) && got[16] == most, "a histogram");
    cudaFree(x), cudaFree(bins);
}

// d[16, 8] = a[16, 16] b[16, 8], the fragments read by ldmatrix from shared memory that cp.async
// filled.
static __global__ void mma_kernel(float *d, const uint16_t *a, const uint16_t *b, int fp16,
                                  int wait) {
    SHARED __align__(16) uint16_t sa[16 * 16], sb[16 * 16];
    const int lane = threadIdx.x;
    uint32_t ra[4], rb[4];
    float c[4] = {0};
    cp_async16(sa + lane * 8, a + lane * 8), cp_async16(sb + lane * 8, b + lane * 8);
    cp_async_commit();
    if (wait) cp_async_wait<0>();
    else cp_async_wait<1>();
    __syncthreads();
    ldmatrix_x4(ra, sa + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4_trans(rb, sb + lane % 16 * 16 +
                              lane / 16 * 8); // b is [k][n], 16 columns of which 8 are used
    if (fp16) mma_m16n8k16_fp16(c, ra, rb);
    else mma_m16n8k16_bf16(c, ra, rb);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}
static void test_mma() {
    for (int fp16 = 0; fp16 < 2; fp16++) {
        std::vector<uint16_t> a(256), b(256);
        for (auto &x : a) x = fp16 ? cvt_fp16(random_float()) : cvt_bf16(random_float());
        for (auto &x : b) x = fp16 ? cvt_fp16(random_float()) : cvt_bf16(random_float());
        uint16_t *da = to_device(a), *db = to_device(b);
        float *d;
        cudaMalloc(&d, 128 * 4);
        CHECK(orders_agree([&] {
                  LAUNCH(mma_kernel, 1, 32, 0, NULL, d, da, db, fp16, 1);
                  return to_host(d, 128);
              }),
              "mma");
        const std::vector<float> got = to_host(d, 128);
        double worst = 0;
        for (int i = 0; i < 128; i++) {
            double want = 0;
            for (int k = 0; k < 16; k++)
                want += fp16 ? on_cpu::fp16_float(a[i / 8 * 16 + k]) *
                                   (double)on_cpu::fp16_float(b[k * 16 + i % 8])
                             : on_cpu::bf16_float(a[i / 8 * 16 + k]) *
                                   (double)on_cpu::bf16_float(b[k * 16 + i % 8]);
            worst = std::max(worst, fabs(got[i] - want));
        }
        CHECK(worst < 1e-5, "mma: off by %g", worst);
        caught("mma without cp.async's wait", "were never waited for",
               [&] { LAUNCH(mma_kernel, 1, 32, 0, NULL, d, da, db, fp16, 0); });
        cudaFree(da), cudaFree(db), cudaFree(d);
    }
}

// Two stages; the data of stage i + 1 comes while stage i is used. pending: how many groups may be
// under way.
template <int pending>
static __global__ void stages_kernel(float *out, const float *in, int stages) {
    SHARED __align__(16) float buffer[2][128];
    float sum = 0;
    cp_async16(&buffer[0][threadIdx.x * 4], in + threadIdx.x * 4), cp_async_commit();
    for (int s = 0; s < stages; s++) {
        if (s + 1 < stages)
            cp_async16(&buffer[(s + 1) % 2][threadIdx.x * 4], in + (s + 1) * 128 + threadIdx.x * 4);
        cp_async_commit();
        cp_async_wait<pending>();
        __syncthreads();
        sum += buffer[s % 2][127 - threadIdx.x];
        __syncthreads();
    }
    cp_async_wait<0>();
    out[threadIdx.x] = sum;
}
static void test_stages() {
    std::vector<float> a(5 * 128);
    for (float &x : a) x = random_float();
    float *in = to_device(a), *out;
    cudaMalloc(&out, 32 * 4);
    const auto matches = [&] {
        const std::vector<float> got = to_host(out, 32);
        bool right = true;
        for (int t = 0; t < 32; t++) {
            float want = 0;
            for (int s = 0; s < 5; s++) want += a[s * 128 + 127 - t];
            right = right && got[t] == want;
        }
        return right;
    };
    LAUNCH(stages_kernel<1>, 1, 32, 0, NULL, out, in, 5);
    CHECK(matches(), "stages of cp.async");
    LAUNCH(stages_kernel<2>, 1, 32, 0, NULL, out, in, 5); // waits for too few
    CHECK(!matches(), "a fault that must show: stages of cp.async, waiting for one group too few");
    cudaFree(in), cudaFree(out);
}

static __global__ void add_kernel(float *x, const float *y, float by, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += y[i] * by;
}
static void test_graph() {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float *pinned, *x, *y, by = 2;
    cudaStreamCreate(&stream);
    cudaMallocHost(&pinned, 64 * 4), cudaMalloc(&x, 64 * 4), cudaMalloc(&y, 64 * 4);
    cudaMemset(x, 0, 64 * 4);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    cudaMemcpyAsync(y, pinned, 64 * 4, cudaMemcpyHostToDevice, stream);
    LAUNCH(add_kernel, 1, 64, 0, stream, x, y, by, 64);
    cudaStreamEndCapture(stream, &graph), cudaGraphInstantiate(&exec, graph, 0);
    by = 100; // was taken by value
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < 64; i++) pinned[i] = (float)(round * i); // is read at every replay
        cudaGraphLaunch(exec, stream);
        cudaStreamSynchronize(stream);
    }
    const std::vector<float> got = to_host(x, 64);
    CHECK(got[0] == 0 && got[5] == 2 * 5 * 6 && got[63] == 2 * 63 * 6, "a graph: %g %g", got[5],
          got[63]);
    cudaGraphDestroy(graph), cudaGraphExecDestroy(exec);
    cudaFree(x), cudaFree(y), cudaFreeHost(pinned);
}

// ---- products
struct Product { // D[m, n] = A^T B: a is [m][k], b is [n][k]; or, with transposes off, [k][m] and
                 // [n][k]
    cudaDataType_t type_a, type_b, type_d;
    size_t M, N, K;
    bool ta = true, tb = false, bias = false, fast = false;
    float beta = 0;
    int mode_a = 0, mode_b = 0;
    size_t offset_a = 0; // in bytes, of a misaligned operand
    float worst = 0;     // error found, relative to the sum of absolute terms
    cublasStatus_t run();
};
static std::vector<uint8_t> random_numbers(cudaDataType_t type, size_t n) {
    std::vector<uint8_t> raw(n * (size_t)on_cpu::type_bytes(type));
    for (size_t i = 0; i < n; i++) {
        const float f = random_float();
        const uint16_t h = type == CUDA_R_16F ? cvt_fp16(f) : cvt_bf16(f);
        if (type == CUDA_R_32F) memcpy(&raw[4 * i], &f, 4);
        else if (on_cpu::type_bytes(type) == 2) memcpy(&raw[2 * i], &h, 2);
        else do
                raw[i] = (uint8_t)random_next();
            while (!isfinite(on_cpu::number(type, &raw[i], 0)));
    }
    return raw;
}
cublasStatus_t Product::run() {
    std::vector<uint8_t> a = random_numbers(type_a, M * K), b = random_numbers(type_b, N * K),
                         d = random_numbers(type_d, M * N);
    const cudaDataType_t bias_type =
        type_d == CUDA_R_32F && on_cpu::type_bytes(type_a) == 1 ? CUDA_R_16BF : type_d;
    const std::vector<uint8_t> biases = random_numbers(bias_type, M), before = d;
    std::vector<float> scale_a(M * K + 4), scale_b(N * K + 4);
    for (float &s : scale_a) s = 0.5f + fabsf(random_float());
    for (float &s : scale_b) s = 0.5f + fabsf(random_float());
    a.insert(a.end(), offset_a, 0);
    uint8_t *da = to_device(a) + offset_a, *db = to_device(b), *dd = to_device(d),
            *dbias = to_device(biases);
    float *dsa = to_device(scale_a), *dsb = to_device(scale_b), alpha = 1.5f;
    if (offset_a) a.erase(a.begin(), a.begin() + (long)offset_a);
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, ld;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    cublasLtCreate(&handle), cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t opa = ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                            opb = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &opa, sizeof(opa));
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &opb, sizeof(opb));
    const int8_t fast_now = fast;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast_now, 1);
    if (bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                       sizeof(epilogue));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &dbias,
                                       sizeof(dbias));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                       sizeof(bias_type));
    }
    const bool scaled = on_cpu::type_bytes(type_a) == 1;
    if (scaled) {
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &dsa,
                                       sizeof(dsa));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &dsb,
                                       sizeof(dsb));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode_a,
                                       sizeof(mode_a));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode_b,
                                       sizeof(mode_b));
    }
    cublasLtMatrixLayoutCreate(&la, type_a, ta ? K : M, ta ? M : K, (int64_t)(ta ? K : M));
    cublasLtMatrixLayoutCreate(&lb, type_b, tb ? N : K, tb ? K : N, (int64_t)(tb ? N : K));
    cublasLtMatrixLayoutCreate(&ld, type_d, M, N, (int64_t)M);
    cublasLtMatmulPreferenceCreate(&preference);
    int found;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, preference,
                                                           1, &result, &found);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmul(handle, desc, &alpha, da, la, db, lb, &beta, dd, ld, dd, ld,
                                &result.algo, NULL, 0, NULL);
    if (status == CUBLAS_STATUS_SUCCESS) {
        d = to_host(dd, d.size());
        const size_t blocks = (K + 127) / 128;
        worst = 0;
        for (size_t m = 0; m < M; m++)
            for (size_t n = 0; n < N; n++) {
                double want = 0, absolute = 0;
                for (size_t k = 0; k < K; k++) {
                    const double sa = !scaled       ? 1
                                      : mode_a == 3 ? scale_a[m]
                                      : mode_a == 4 ? scale_a[k / 128 * M + m]
                                      : mode_a == 5
                                          ? scale_a[m / 128 * ((blocks + 3) / 4 * 4) + k / 128]
                                          : scale_a[0];
                    const double sb = !scaled       ? 1
                                      : mode_b == 3 ? scale_b[n]
                                      : mode_b == 4 ? scale_b[k / 128 * N + n]
                                      : mode_b == 5
                                          ? scale_b[n / 128 * ((blocks + 3) / 4 * 4) + k / 128]
                                          : scale_b[0];
                    const double term =
                        (double)on_cpu::number(type_a, a.data(), ta ? m * K + k : k * M + m) *
                        on_cpu::number(type_b, b.data(), tb ? k * N + n : n * K + k) * sa * sb *
                        alpha;
                    want += term, absolute += fabs(term);
                }
                if (bias) want += on_cpu::number(bias_type, biases.data(), m);
                if (beta != 0) want += beta * on_cpu::number(type_d, before.data(), n * M + m);
                worst = std::max(worst,
                                 (float)(fabs(on_cpu::number(type_d, d.data(), n * M + m) - want) /
                                         (absolute + 1)));
            }
    }
    cudaFree(da - offset_a), cudaFree(db), cudaFree(dd), cudaFree(dbias), cudaFree(dsa),
        cudaFree(dsb);
    cublasLtMatmulDescDestroy(desc), cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t l : {la, lb, ld}) cublasLtMatrixLayoutDestroy(l);
    cublasLtDestroy(handle);
    return status;
}
static void test_products() {
    const cudaDataType_t e4m3 = CUDA_R_8F_E4M3, e5m2 = CUDA_R_8F_E5M2, bf16 = CUDA_R_16BF,
                         fp16 = CUDA_R_16F, fp32 = CUDA_R_32F;
    const auto right = [](const char *name, Product p) {
        const cublasStatus_t status = p.run();
        const float epsilon = p.type_d == CUDA_R_32F   ? 1e-6f
                              : p.type_d == CUDA_R_16F ? 0x1p-11f
                                                       : 0x1p-8f;
        CHECK(status == CUBLAS_STATUS_SUCCESS && p.worst < epsilon, "%s: %s (%s), off by %g", name,
              cublasLtGetStatusString(status), on_cpu::refusal.c_str(), p.worst);
    };
    const auto refused = [](const char *name, Product p) {
        CHECK(p.run() == CUBLAS_STATUS_NOT_SUPPORTED, "%s was not refused", name);
    };
    Product p = {e4m3, e4m3, bf16, 48, 32, 160};
    right("e4m3 x e4m3", p);
    p.bias = true, right("with a bias", p);
    p.fast = true, right("with fast accumulation", p);
    right("e4m3 x e5m2 into fp32", {e4m3, e5m2, fp32, 16, 64, 48});
    p = {e5m2, e4m3, fp32, 32, 16, 64}, p.beta = 1;
    right("e5m2 x e4m3, added to fp32", p);
    for (int mode : {3, 4}) {
        p = {e4m3, e4m3, bf16, 48, 32, 320}, p.mode_a = p.mode_b = mode;
        right("scales by row, by 1 x 128", p);
        p.fast = true;
        if (mode == 3) right("fast accumulation with scales by row", p);
        else refused("fast accumulation with scales along K", p);
    }
    p = {e4m3, e4m3, fp32, 144, 32, 272}, p.mode_a = 5, p.mode_b = 4, p.beta = 1;
    right("scales by 128 x 128 and 1 x 128", p);
    p.mode_b = 5, refused("two operands by 128 x 128", p);
    for (int t = 0; t < 4; t++) {
        p = {bf16, bf16, bf16, 17, 9, 33}, p.ta = t & 1, p.tb = t & 2;
        right("bf16, any transposition", p);
        p.type_a = p.type_b = fp16, p.type_d = fp32, p.beta = 1;
        right("fp16, added to fp32", p);
        p.type_a = p.type_b = p.type_d = fp32, p.bias = true;
        right("fp32 with a bias", p);
    }
    refused("e5m2 x e5m2", {e5m2, e5m2, bf16, 32, 32, 32});
    p = {e4m3, e4m3, bf16, 32, 32, 32}, p.ta = false, refused("fp8 with A not transposed", p);
    p.ta = p.tb = true, refused("fp8 with B transposed", p);
    refused("fp8 with K = 24", {e4m3, e4m3, bf16, 32, 32, 24});
    refused("fp8 with M = 40", {e4m3, e4m3, bf16, 40, 32, 32});
    refused("fp8 with N = 8", {e4m3, e4m3, bf16, 32, 8, 32});
    p = {e4m3, e4m3, bf16, 32, 32, 32}, p.offset_a = 8, refused("a misaligned fp8 operand", p);
    setenv("CUDA_ON_CPU_ARCH", "8.6", 1), refused("fp8 on sm_86", {e4m3, e4m3, bf16, 32, 32, 32});
    setenv("CUDA_ON_CPU_ARCH", "8.9", 1), right("fp8 on sm_89", {e4m3, e4m3, bf16, 32, 32, 32});
    p = {e4m3, e4m3, bf16, 32, 32, 32}, p.mode_a = p.mode_b = 3,
    refused("scales by row on sm_89", p);
    unsetenv("CUDA_ON_CPU_ARCH");
}

// ---- faults
template <bool barrier> static __global__ void reverse_kernel(float *out, const float *in) {
    SHARED float tile[128];
    tile[threadIdx.x] = in[threadIdx.x];
    if (barrier) __syncthreads();
    out[threadIdx.x] = tile[127 - threadIdx.x];
}
template <bool barrier>
static __global__ void neighbour_kernel(float *out,
                                        const float *in) { // between the lanes of one warp
    SHARED float line[32];
    float v = in[threadIdx.x];
    for (int i = 0; i < 4; i++) {
        line[threadIdx.x] = v;
        if (barrier) __syncwarp();
        v += 0.5f * line[(threadIdx.x + 1) % 32];
        __syncwarp();
    }
    out[threadIdx.x] = v;
}
static __global__ void between_blocks_kernel(float *x) { // block b reads what block b - 1 writes
    if (blockIdx.x > 0) x[blockIdx.x] += x[blockIdx.x - 1];
}
static __global__ void half_barrier_kernel(float *x) {
    if (threadIdx.x < 64) __syncthreads();
    x[threadIdx.x] = 1;
}
static __global__ void two_barriers_kernel(float *x) {
    if (threadIdx.x < 64) {
        x[threadIdx.x] = 1;
        __syncthreads();
    } else {
        __syncthreads();
    }
}
static __global__ void half_shuffle_kernel(float *x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}
static __global__ void barrier_against_shuffle_kernel(float *x) {
    if (threadIdx.x % 2) x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
    else __syncthreads();
}
static __global__ void outside_mask_kernel(float *x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], 16);
}
static __global__ void unwritten_kernel(float *out) {
    SHARED float tile[64];
    if (threadIdx.x % 2 == 0) tile[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
static __global__ void write_kernel(float *x, int i) { x[i] = 1; }
static __global__ void dynamic_kernel(float *x, int i) {
    DYNAMIC_SHARED(float, s);
    s[i] = 1;
    __syncthreads();
    x[0] = s[i];
}
static __global__ void
copy_kernel(float *x,
            const float *from) { // cp.async with too coarse an alignment, or from elsewhere
    SHARED __align__(16) float s[8];
    cp_async16(s, from), cp_async_commit(), cp_async_wait<0>();
    x[0] = s[0];
}
static void test_faults() {
    std::vector<float> a(128);
    for (float &x : a) x = random_float();
    float *in = to_device(a), *out;
    cudaMalloc(&out, 128 * 4);
    const auto agree = [&](void (*kernel)(float *, const float *), int threads) {
        return orders_agree([&] {
            LAUNCH(kernel, 1, threads, 0, NULL, out, in);
            return to_host(out, (size_t)threads);
        });
    };
    CHECK(agree(reverse_kernel<true>, 128), "a reversal");
    CHECK(!agree(reverse_kernel<false>, 128), "a fault that must show: no __syncthreads()");
    CHECK(agree(neighbour_kernel<true>, 32), "neighbours of a warp");
    CHECK(!agree(neighbour_kernel<false>, 32), "a fault that must show: no __syncwarp()");
    CHECK(!orders_agree([&] {
        float *x = to_device(a);
        LAUNCH(between_blocks_kernel, 8, 1, 0, NULL, x);
        const std::vector<float> got = to_host(x, 8);
        return cudaFree(x), got;
    }),
          "a fault that must show: blocks that depend on each other");
    LAUNCH(unwritten_kernel, 1, 64, 0, NULL, out);
    const std::vector<float> got = to_host(out, 64);
    CHECK(got[0] == 1 && (!ON_CPU_TLS_IS_SHARED || isnan(got[1])),
          "a fault that must show: shared memory that nobody wrote: %g", got[1]);
    cudaFree(out), cudaMalloc(&out, 128 * 4);
    CHECK(isnan(to_host(out, 1)[0]), "a fault that must show: device memory that nobody wrote");

    caught("a barrier of half the block", "kernel half_barrier_kernel",
           [&] { LAUNCH(half_barrier_kernel, 1, 128, 0, NULL, out); });
    caught("a barrier of half the block", "has ended",
           [&] { LAUNCH(half_barrier_kernel, 1, 128, 0, NULL, out); });
    caught("two barriers", "at that of line",
           [&] { LAUNCH(two_barriers_kernel, 1, 128, 0, NULL, out); });
    caught("a shuffle of half the warp", "missing: ffff0000",
           [&] { LAUNCH(half_shuffle_kernel, 1, 32, 0, NULL, out); });
    caught("a barrier against a shuffle", "not all lanes of the mask ffffffff reach",
           [&] { LAUNCH(barrier_against_shuffle_kernel, 1, 32, 0, NULL, out); });
    caught("a lane outside the mask", "which is not in the mask",
           [&] { LAUNCH(outside_mask_kernel, 1, 32, 0, NULL, out); });
#if ON_CPU_ASAN
    const char *behind = "AddressSanitizer", *before = behind, *touches = behind;
#else
    const char *behind = "kernel write_kernel", *before = "before",
               *touches = "the host touches device memory";
#endif
    caught("a write behind an allocation", behind,
           [&] { LAUNCH(write_kernel, 1, 1, 0, NULL, out, 128); });
    caught("a write before an allocation", before,
           [&] { LAUNCH(write_kernel, 1, 1, 0, NULL, out, -1); });
    caught("a write behind dynamic shared memory", "dynamic shared memory of 64 bytes",
           [&] { LAUNCH(dynamic_kernel, 1, 1, 64, NULL, out, 16); });
    caught("a kernel given the host's pointer", "the host's pointer",
           [&] { LAUNCH(write_kernel, 1, 1, 0, NULL, a.data(), 0); });
    caught("the host reads device memory", touches, [&] { a[0] = *(volatile float *)out; });
    caught("too much shared memory", "are allowed",
           [&] { LAUNCH(dynamic_kernel, 1, 1, 49 << 10, NULL, out, 0); });
    caught("too many threads", "a block of 2048",
           [&] { LAUNCH(write_kernel, 1, 2048, 0, NULL, out, 0); });
    caught("no blocks", "a grid of 0", [&] { LAUNCH(write_kernel, 0, 32, 0, NULL, out, 0); });
    caught("a misaligned cp.async", "not 16-byte aligned",
           [&] { LAUNCH(copy_kernel, 1, 1, 0, NULL, out, in + 1); });
    caught("a copy that is too long", "reach beyond",
           [&] { cudaMemcpy(out, a.data(), 129 * 4, cudaMemcpyHostToDevice); });
    caught("a copy of the wrong kind", "its kind is",
           [&] { cudaMemcpy(a.data(), out, 4, cudaMemcpyHostToDevice); });
    caught("a free of something else", "was not allocated", [&] { cudaFree(out + 1); });
    caught("a wait while capturing", "while a stream is captured", [&] {
        cudaStream_t stream;
        cudaStreamCreate(&stream), cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
        cudaStreamSynchronize(stream);
    });
    // A copy to the host that is not waited for has not happened.
    float *pinned;
    cudaMallocHost(&pinned, 4);
    cudaMemcpyAsync(pinned, in, 4, cudaMemcpyDeviceToHost);
    CHECK(isnan(pinned[0]), "a fault that must show: no wait for a copy");
    cudaDeviceSynchronize();
    CHECK(pinned[0] == a[0], "a copy to the host");
    cudaFreeHost(pinned), cudaFree(in), cudaFree(out);
    setenv("CUDA_ON_CPU_MEMORY", "1", 1);
    CHECK(cudaMalloc(&in, 2 << 20) == cudaErrorMemoryAllocation &&
              cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess,
          "out of memory");
    unsetenv("CUDA_ON_CPU_MEMORY");
}

// ---- speed, in millions of threads a second that each do one element: without a barrier, and a
// sum with six switches
static void measure() {
    const int n = 1 << 20;
    float *x, *y;
    cudaMalloc(&x, n * 4), cudaMalloc(&y, n * 4);
    const auto rate = [&](const std::function<void()> &work) {
        const double begin = on_cpu::milliseconds();
        work(), cudaDeviceSynchronize();
        return n * 1e-3 / (on_cpu::milliseconds() - begin);
    };
    const double plain = rate([&] { LAUNCH(add_kernel, n / 256, 256, 0, NULL, x, y, 1.0f, n); });
    const double sums = rate([&] { LAUNCH(sum_kernel, n / 256, 256, 32, NULL, y, x); });
    const double transposes = rate(
        [&] { LAUNCH(transpose_kernel, dim3(32, 32), dim3(32, 8), 0, NULL, y, x, 1024, 1024); });
    printf("million elements a second: %.1f without a barrier, %.1f transposed, %.1f summed with "
           "shuffles\n",
           plain, transposes, sums);
    cudaFree(x), cudaFree(y);
}

// Conversions: each result is a nearest code, an even one at a tie; what the PTX manual says of
// NaN, infinities and denormals.
static void test_conversions() {
    const struct {
        const char *name;
        int e, m;
        bool e4m3;
        unsigned largest, nan;
        unsigned (*convert)(float);
    } all[] = {
        {"e4m3", 4, 3, true, 0x7e, 0x7f, [](float f) { return cvt_e4m3x2(f, 0) & 0xffu; }},
        {"e5m2", 5, 2, false, 0x7b, 0x7f, [](float f) { return cvt_e5m2x2(f, 0) & 0xffu; }},
        {"fp16", 5, 10, false, 0x7c00, 0x7fff, [](float f) { return (unsigned)cvt_fp16(f); }},
        {"bf16", 8, 7, false, 0x7f80, 0x7fff, [](float f) { return (unsigned)cvt_bf16(f); }}};
    for (auto &t : all) {
        const unsigned sign = 1u << (t.e + t.m);
        const auto value = [&](unsigned code) {
            return (double)on_cpu::small_float(code, t.e, t.m, t.e4m3);
        };
        size_t wrong = 0;
        for (uint64_t u = 0; u < 1ull << 32; u += 65521) {
            const float f = on_cpu::bits<float>((uint32_t)u);
            const unsigned code = t.convert(f), c = code & ~sign;
            if (f != f) {
                wrong += code != t.nan;
                continue;
            }
            const double x = fabs((double)f), here = value(c);
            wrong += (code & sign) != (f < 0 || (f == 0 && u >> 31) ? sign : 0) && u << 1 != 0;
            if (c == t.largest)
                wrong += x < (value(c - 1) + (t.m > 3 ? ldexp(1, 1 << (t.e - 1)) : here)) /
                                 2; // Inf, or saturated
            else {                  // no neighbour is nearer; at a tie the even one
                const double up = value(c + 1) - x, down = c ? x - value(c - 1) : 1e300,
                             off = fabs(here - x);
                wrong += c > t.largest ||
                         (c + 1 < t.largest && (up < off || (up == off && c % 2))) || down < off ||
                         (down == off && c % 2);
            }
        }
        CHECK(wrong == 0, "%s: %zu of 65551 floats", t.name, wrong);
        for (unsigned c = wrong = 0; c + 1 < t.largest;
             c++) { // half way between two codes, and the floats beside that
            const float tie = (float)((value(c) + value(c + 1)) / 2);
            wrong += t.convert(tie) != c + c % 2 || t.convert(nextafterf(tie, 0)) != c ||
                     t.convert(nextafterf(tie, INFINITY)) != c + 1;
        }
        CHECK(wrong == 0, "%s: %zu ties", t.name, wrong);
        CHECK(t.convert(INFINITY) == t.largest && t.convert(-INFINITY) == (t.largest | sign),
              "%s: infinities", t.name);
        CHECK(t.convert(-NAN) == t.nan && t.convert(-0.0f) == sign, "%s: NaN, or -0", t.name);
    }
    CHECK(cvt_bf16(on_cpu::bits<float>(0x00010000)) == 1 &&
              cvt_bf16(on_cpu::bits<float>(0x00008001)) == 1,
          "bf16 keeps denormals");
    CHECK(on_cpu::bits<uint32_t>(denormal_flush(on_cpu::bits<float>(0x807fffff))) == 0x80000000,
          "a denormal is flushed");
}

int main() {
    test_conversions(), test_transpose(), test_sum(), test_lanes(), test_atomics(), test_mma(),
        test_stages(), test_graph(), test_products(), test_faults();
    measure();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
