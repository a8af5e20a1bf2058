/*
Rung 1: three loops. c[m, n] = sum over k of a[m, k] b[n, k], from E4M3 bytes that are decoded
wherever they are used. This fixes the bits that every rung must give: one chain of fused
multiply-adds an output, the odd element of a pair first. What limits it: two look-ups and one
multiply-add at a time, each waiting for the one before.
*/
static void product_naive(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K) {
    const float *value = e4m3_value;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            const uint8_t *row = a + (size_t)m * K, *column = b + (size_t)n * K;
            float sum = 0;
            for (int k = 0; k < K; k += 2) {
                if (k + 1 < K) sum = fmaf(value[row[k + 1]], value[column[k + 1]], sum);
                sum = fmaf(value[row[k]], value[column[k]], sum);
            }
            c[(size_t)m * N + n] = sum;
        }
}
