/*
Rung 4, decode while packing: only a block of each matrix exists decoded: 64 rows of a, and one
panel of 16 columns of b, small enough for the L2 cache. Nothing is ever held whole in fp32: that is
why a product of FP8 bytes needs no fp32, bf16 or transposed copy of its operands. What limits it:
as rung 3, a load of b's line for each multiply-add, each of which waits for the one before.
*/
static void product_decode_while_packing(float *c, const uint8_t *a, const uint8_t *b, int M, int N,
                                         int K) {
    float *block = (float *)memory_allocate((size_t)64 * K * sizeof(float));
    float *panel = (float *)memory_allocate((size_t)K * 16 * sizeof(float));
    for (int m0 = 0; m0 < M; m0 += 64) {
        const int rows = MIN(M - m0, 64);
        for (size_t i = 0; i < (size_t)rows * K; i++) block[i] = e4m3_value[a[(size_t)m0 * K + i]];
        for (int p = 0; p < N; p += 16) {
            const int columns = MIN(N - p, 16);
            memset(panel, 0, (size_t)K * 16 * sizeof(float));
            for (int j = 0; j < columns; j++)
                for (int k = 0; k < K; k++)
                    panel[k * 16 + j] = e4m3_value[b[(size_t)(p + j) * K + k]];
            for (int m = 0; m < rows; m++) {
                float sums[16] = {0};
                for (int pair = 0; pair < K; pair += 2)
                    for (int k = MIN(pair + 1, K - 1); k >= pair; k--) {
                        const float s = block[(size_t)m * K + k];
                        for (int j = 0; j < 16; j++) sums[j] = fmaf(s, panel[k * 16 + j], sums[j]);
                    }
                memcpy(c + (size_t)(m0 + m) * N + p, sums, columns * sizeof(float));
            }
        }
    }
    free(block), free(panel);
}
