/*
Rung 6, pairs of bf16: FP8 is decoded to bf16, half as wide, and vdpbf16ps multiplies two pairs and
adds both products in the order of our chain, so the bits do not change. A Zen 5 does twice the work
a cycle this way; a Sapphire Rapids half of fp32's. What limits it: one core.
*/
static void product_pairs(float *c, const uint8_t *a, const uint8_t *b, int M, int N, int K) {
    tiles(c, a, b, M, N, K, 1);
}
