/*
What a model file says of tokens, for dev/check/test_hf.py:

    build/eval/logits_fp32 MODEL TOKENS.i32 LOGITS.f32

TOKENS.i32: n token ids, int32, a sequence from position 0 on. LOGITS.f32: n rows of V logits,
float32, without the padded vocabulary.
*/
#define TESTING
#include "../../train_gpt_fp8.c"

// Reads the ids of a file; n: how many.
static int *tokens_read(const char *path, const Config *c, int *n) {
    FILE *f = fopen(path, "rb");
    EXPECT(f, "%s: %s", path, strerror(errno));
    int *tokens = memory_allocate((size_t)c->T * sizeof(int));
    *n = (int)fread(tokens, sizeof(int), (size_t)c->T, f);
    EXPECT(*n > 0 && fgetc(f) == EOF, "%s: expected 1 to %d tokens, as the model has positions",
           path, c->T);
    for (int i = 0; i < *n; i++)
        EXPECT(tokens[i] >= 0 && tokens[i] < c->V, "%s: token %d: expected 0 to %d, found %d", path,
               i, c->V - 1, tokens[i]);
    fclose(f);
    return tokens;
}

int main(int argc, char **argv) {
    EXPECT(argc == 4, "usage: logits MODEL TOKENS.i32 LOGITS.f32");
    machine_init(0);
    Gpt g;
    memset(&g, 0, sizeof(g));
    uint64_t sum;
    int n;
    const File model = file_open(argv[1], 0);
    g.config = model_check(&model, &sum);
    g.B = 1;
    recipe_parse(g.recipes, "delayed", "logits");
    int *tokens = tokens_read(argv[2], &g.config, &n);
    gpt_allocate(&g);
    model_load(&g, &model);
    FILE *f = fopen(argv[3], "wb");
    EXPECT(f, "%s: %s", argv[3], strerror(errno));
    gpt_forward_blocks(&g, tokens, 1, n, 0);
    for (int row = 0; row < n; row++) {
        head_forward(&g, g.logits, (size_t)row, 1);
        fwrite(g.logits, sizeof(float), (size_t)g.config.V, f);
    }
    EXPECT(fclose(f) == 0, "%s: %s", argv[3], strerror(errno));
    free(tokens);
    return EXIT_DONE;
}
