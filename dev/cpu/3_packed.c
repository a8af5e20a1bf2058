/*
Rung 3, packed: both matrices are decoded to fp32 once, and b is laid out in panels of 16 columns,
[k][16], in the order in which it will be read. The inner loop runs along a panel's line: one vector
of numbers, one broadcast of a. What limits it: 8 bytes an element instead of 1 have to come from
memory, and every multiply-add loads its line of b again.
*/
static void product_packed(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K) {
    const int panels = (N + 15) / 16;
    float *x = (float *)memory_allocate((size_t)M * K * sizeof(float));
    float *packed = (float *)memory_allocate((size_t)panels * K * 16 * sizeof(float));
    for (size_t i = 0; i < (size_t)M * K; i++) x[i] = e4m3_value[a[i]];
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++)
            packed[((size_t)(n / 16) * K + k) * 16 + n % 16] = e4m3_value[b[(size_t)n * K + k]];
    for (int p = 0; p < panels; p++)
        for (int m = 0; m < M; m++) {
            float sums[16] = {0};
            for (int pair = 0; pair < K; pair += 2)
                for (int k = MIN(pair + 1, K - 1); k >= pair; k--) {
                    const float s = x[(size_t)m * K + k], *line = packed + ((size_t)p * K + k) * 16;
                    for (int j = 0; j < 16; j++) sums[j] = fmaf(s, line[j], sums[j]);
                }
            memcpy(c + (size_t)m * N + p * 16, sums, MIN(N - p * 16, 16) * sizeof(float));
        }
    free(x), free(packed);
}
