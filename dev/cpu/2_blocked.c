/*
Rung 2, blocked: 4 x 4 outputs are computed at once, so every byte that is read serves four
multiply-adds, and sixteen chains run side by side: none waits for its own last result. Edges fall
back to rung 1's loop. What limits it: still one number at a time, and a look-up for each.
*/
static void product_blocked(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K) {
    const float *value = e4m3_value;
    for (int m = 0; m < M; m += 4)
        for (int n = 0; n < N; n += 4) {
            float sums[4][4] = {{0}};
            const int rows = MIN(M - m, 4), columns = MIN(N - n, 4);
            for (int pair = 0; pair < K; pair += 2)
                for (int k = MIN(pair + 1, K - 1); k >= pair; k--) {
                    float x[4] = {0}, y[4] = {0};
                    for (int i = 0; i < rows; i++) x[i] = value[a[(size_t)(m + i) * K + k]];
                    for (int j = 0; j < columns; j++) y[j] = value[b[(size_t)(n + j) * K + k]];
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
                }
            for (int i = 0; i < rows; i++)
                memcpy(c + (size_t)(m + i) * N + n, sums[i], columns * sizeof(float));
        }
}
