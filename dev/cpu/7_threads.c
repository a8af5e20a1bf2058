/*
Rung 7, threads: the trainer's matmul(). All threads pack a together, once; each packs its own
columns of b into its L2 cache and lets them meet all of a, panel by panel. K is cut into blocks
that keep a panel of a in L1; the chains lie in memory between them.
*/
static void product_threads(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K) {
    matmul(output(c, DTYPE_FP32, (size_t)N, 1, NULL, 0), matrix(a, DTYPE_E4M3, (size_t)K, 1),
           matrix(b, DTYPE_E4M3, (size_t)K, 1), M, N, K);
}
