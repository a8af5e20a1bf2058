/*
One forward pass of a model file on given tokens, with every intermediate, for
dev/check/nano_check.py. fp32 build only.

    nano_check MODEL TOKENS RESULT

TOKENS: int32 B, n, then B * n token ids. RESULT: float32 arrays, each a line "name count" and its
bytes. The model file is read here, not by the trainer's reader, so that a fault there cannot hide.
*/
#define TESTING
#ifndef PRECISION
#define PRECISION 3
#endif
#include "../../train_gpt_fp8.c"
#if PRECISION != PRECISION_FP32
#error "nano_check compares fp32 intermediates: compile it with -DPRECISION=3"
#endif

static void read_exactly(void *to, size_t bytes, FILE *f, const char *path) {
    if (fread(to, 1, bytes, f) != bytes)
        fatal(EXIT_BAD_INPUT, "%s: shorter than it should be", path);
}

static FILE *open_or_fail(const char *path, const char *mode) {
    FILE *f = fopen(path, mode);
    if (!f) fatal(EXIT_BAD_INPUT, "%s: %s", path, strerror(errno));
    return f;
}

static void array_write(FILE *f, const char *name, int layer, const float *x, size_t n) {
    fprintf(f, "%s.%d %zu\n", name, layer, n);
    fwrite(x, 4, n, f);
}

int main(int argc, char **argv) {
    if (argc != 4) fatal(EXIT_BAD_INPUT, "usage: nano_check MODEL TOKENS RESULT");
    machine_init(0);
    int32_t header[256], shape[2];
    FILE *tokens_file = open_or_fail(argv[2], "rb"), *model_file = open_or_fail(argv[1], "rb");
    read_exactly(header, sizeof(header), model_file, argv[1]);
    read_exactly(shape, sizeof(shape), tokens_file, argv[2]);
    if (header[0] != 20240326 || header[1] != 3)
        fatal(EXIT_BAD_INPUT, "%s: not a version 3 model file", argv[1]);
    Gpt g;
    memset(&g, 0, sizeof(g));
    g.config.T = header[2], g.config.V = header[3], g.config.L = header[4], g.config.NH = header[5];
    g.config.C = header[6], g.config.Vp = header[7], g.B = shape[0];
    gpt_allocate(&g);
    read_exactly(g.master, g.param_count * 4, model_file, argv[1]);
    const size_t rows = (size_t)shape[0] * (size_t)shape[1], R = (size_t)g.B * (size_t)g.config.T,
                 C = (size_t)g.config.C;
    int *tokens = (int *)memory_allocate(rows * sizeof(int));
    read_exactly(tokens, rows * sizeof(int), tokens_file, argv[2]);
    fclose(model_file), fclose(tokens_file);

    gpt_forward_blocks(&g, tokens, shape[0], shape[1], 0);
    FILE *f = open_or_fail(argv[3], "wb");
    for (int l = 0; l < g.config.L; l++) {
        const size_t at = (size_t)l * R * C;
        array_write(f, "x", l, g.residual + 2 * at, rows * C);
        array_write(f, "ln1", l, g.ln1 + at, rows * C);
        array_write(f, "qkv", l, g.qkv + 3 * at, rows * 3 * C);
        array_write(f, "y", l, g.att + at, rows * C);
        array_write(f, "attnResid", l, g.residual + 2 * at + R * C, rows * C);
        array_write(f, "ln2", l, g.ln2 + at, rows * C);
        array_write(f, "fc", l, g.fc + 4 * at, rows * 4 * C);
        array_write(f, "gelu", l, g.gelu + 4 * at, rows * 4 * C);
        array_write(f, "block", l, g.residual + 2 * at + 2 * R * C, rows * C);
    }
    // Reused in every layer: the last one's is left.
    array_write(f, "mlp", g.config.L - 1, g.y, rows * C);
    array_write(f, "ln_f", 0, g.lnf, rows * C);
    if (fflush(f) != 0 || ferror(f)) fatal(EXIT_BAD_INPUT, "%s: %s", argv[3], strerror(errno));
    fclose(f);
    free(tokens);
    return 0;
}
