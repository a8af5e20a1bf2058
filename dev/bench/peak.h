// GFLOP/s of one thread in an instruction that touches no memory, in as many chains as a kernel
// has; pairs: vdpbf16ps, or AMX's tdpbf16ps where the sums are in tiles. Portable C has no such
// instruction: there it is the kernel itself. Included after the trainer's file.
static double peak_measure(int pairs) {
    const int n = LANES > 1 ? 400000 : 8000;
    float tile[MR * NR] = {0};
    const double t = seconds_now();
#if HAS_AMX
#define EACH_AMX_SUM(c, line, ignored) _tile_dpbf16ps(c, 4, 6)
    if (pairs && product_in_tiles) {
        amx_configure();
        for (int k = 0; k < n; k += 4) { EACH_AMX_TILE(EACH_AMX_SUM); }
        return 2e-9 * n * 16 * 16 * 32 / (seconds_now() - t);
    }
#endif
#if LANES > 1
    Vector c[MR][NR / LANES], x = vector_set1(1.2284f),
                              y = vector_set1(-0.7531f); // zeros would cost less power
    EACH_ROW EACH_VECTOR c[i][j] =
        vector_set1(i * NR + j); // all different, or a compiler would make one chain of two
    for (int k = 0; pairs && k < n; k++)
        EACH_ROW EACH_VECTOR c[i][j] = vector_fma_pairs(x, y, c[i][j]);
    for (int k = 0; !pairs && k < n; k++) EACH_ROW EACH_VECTOR c[i][j] = vector_fma(x, y, c[i][j]);
    __asm__ volatile("" : : "r"(memcpy(tile, c, sizeof(c))) : "memory"); // used, so computed
#else
    unit_t a[2 * MR] = {0}, b[2 * NR] = {0};
    for (int k = 0; k < n; k += 2) kernel_fp32(2, a, b, tile, 0);
#endif
    return 2e-9 * n * MR * NR * (pairs ? 2 : 1) / (seconds_now() - t);
}
