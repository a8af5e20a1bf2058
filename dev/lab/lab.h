// What the laboratory's programs share that take a trained model apart: options, data, and a
// forward pass with parts of their own. Included after the trainer's file.

// Reads MODEL and then options -LETTER VALUE. values[i] is the text of the value of letters[i].
static void lab_options(int argc, char **argv, const char *letters, const char *usage,
                        const char **values) {
    EXPECT(argc > 1 && argv[1][0] != '-', "usage: " PROGRAM " MODEL %s", usage);
    for (int i = 2; i < argc; i += 2) {
        const char *at =
            argv[i][0] == '-' && argv[i][1] && !argv[i][2] ? strchr(letters, argv[i][1]) : NULL;
        EXPECT(at && i + 1 < argc, "option '%s': expected %s", argv[i], usage);
        values[at - letters] = argv[i + 1];
    }
}
static long lab_number(const char *text, const char *option, long min, long max) {
    char *end;
    const long n = strtol(text, &end, 10);
    EXPECT(end != text && !*end && n >= min && n <= max,
           "option %s: expected a number of %ld to %ld, found '%s'", option, min, max, text);
    return n;
}

// Opens and checks a model, and takes T of its positions; 0: all.
static File lab_model(Gpt *g, const char *path, long T) {
    uint64_t sum;
    const File model = file_open(path, 0);
    g->config = model_check(&model, &sum);
    EXPECT(T <= g->config.T, "%s has %d positions, fewer than -t %ld", path, g->config.T, T);
    if (T) g->config.T = T;
    return model;
}
static Dataset lab_data(const Gpt *g, const char *path, const char *role) {
    Dataset set = dataset_open(path);
    EXPECT(set.V == g->config.V, "%s: expected a vocabulary of %d, as the model has, found %d",
           path, g->config.V, set.V);
    dataset_windows(&set, role, g->config.T, 1);
    return set;
}

// The parts that a program puts in: the layernorm before attention (0) or the MLP (1) of layer l,
// of the residual stream after y is added to it; linear layer i; attention.
static void lab_layernorm(int l, int second, const stored_t *y, stored_t *normed, size_t rows);
static void lab_linear(int l, int i, stored_t *y, const stored_t *x, size_t rows);
static void lab_attention(int l, stored_t *out, stored_t *qkv, int B);

// The sum of the losses of B rows of T tokens, as gpt_forward() computes it.
static double lab_forward(Gpt *g, const int *tokens, const int *targets, int B) {
    const Config *c = &g->config;
    const size_t C = c->C, R = (size_t)g->B * c->T, rows = (size_t)B * c->T;
    gpt_refresh_weights(g);
    encoder_forward(g->residual, tokens, g->master, gpt_param(g, g->master, WPE, 0), B, c->T, 0, C);
    for (int l = 0; l < c->L; l++) {
        stored_t *qkv = g->qkv + l * R * 3 * C, *fc = g->fc + l * R * 4 * C;
        stored_t *const in[NLIN] = {gpt_input(g, l, LIN_QKV), gpt_input(g, l, LIN_ATTPROJ),
                                    gpt_input(g, l, LIN_FC), gpt_input(g, l, LIN_FCPROJ)};
        lab_layernorm(l, 0, l ? g->y : NULL, in[LIN_QKV], rows);
        lab_linear(l, LIN_QKV, qkv, in[LIN_QKV], rows);
        lab_attention(l, in[LIN_ATTPROJ], qkv, B);
        lab_linear(l, LIN_ATTPROJ, g->y, in[LIN_ATTPROJ], rows);
        lab_layernorm(l, 1, g->y, in[LIN_FC], rows);
        lab_linear(l, LIN_FC, fc, in[LIN_FC], rows);
        gelu_forward(in[LIN_FCPROJ], fc, rows * 4 * C);
        lab_linear(l, LIN_FCPROJ, g->y, in[LIN_FCPROJ], rows);
    }
    gpt_layernorm_forward(g, 2 * c->L, g->y, g->lnf, rows);
    double sum = 0;
    for (size_t row = 0; row < rows; row += HEAD_ROWS) {
        const size_t slab = MIN(rows - row, HEAD_ROWS);
        head_forward(g, g->logits, row, slab);
        classifier(g->losses + row, NULL, g->logits, targets + row, slab, c->V, c->Vp, 0);
    }
    for (size_t row = 0; row < rows; row++) sum += g->losses[row];
    return sum;
}
