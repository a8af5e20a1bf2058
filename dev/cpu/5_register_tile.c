/*
Rung 5, a register tile: MR rows of a against NR columns of b, whose MR x NR sums stay in registers
for the whole of K. A line of b is loaded once for MR rows, a number of a is broadcast once for NR
columns: 24 multiply-adds for 14 loads with AVX-512. This is the trainer's own kernel; here it meets
a, packed once, and one panel of b after the other. What limits it: one core; and a CPU with
vdpbf16ps may have twice the speed to give.
*/
static void tiles(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K, int pairs) {
    const int before = product_uses_pairs;
    product_uses_pairs = pairs;
    const int units = units_of(K);
    const Matrix rows = matrix(a, DTYPE_E4M3, (size_t)K, 1),
                 columns = matrix(b, DTYPE_E4M3, (size_t)K, 1);
    unit_t *packed_a = (unit_t *)memory_allocate(round_up(M, MR) * units * 4 + 4096);
    unit_t *packed_b = (unit_t *)memory_allocate((size_t)units * NR * 4 + 4096);
    float tile[MR * NR] __attribute__((aligned(64)));
    pack_a(packed_a, rows, 0, M, 0, K);
    for (int n = 0; n < N; n += NR) {
        pack_b(packed_b, columns, n, MIN(N - n, NR), 0, K);
        for (int m = 0; m < M; m += MR) {
            kernel(units, packed_a + (size_t)m * units, packed_b, tile, 1);
            for (int i = 0; i < MIN(M - m, MR); i++)
                memcpy(c + (size_t)(m + i) * N + n, tile + i * NR, MIN(N - n, NR) * 4);
        }
    }
    free(packed_a), free(packed_b);
    product_uses_pairs = before;
}
static void product_register_tile(float *c, const uint8_t *a, const uint8_t *b, int M, int N,
                                  int K) {
    tiles(c, a, b, M, N, K, 0);
}
