// The groups of test_below8.c about linear layers and models. Included by it.

// Linear layers: split operands, and recipes of four bits

enum { LROWS = 72, IN = 96, OUT = 80, LMOST = IN * OUT };
typedef struct {
    Linear f;
    Fp8Scale scale[NOPERAND];
    stored_t *tensor[NOPERAND], *dx;
    float *y;
} Layer;
static size_t layer_rows(int which) { return which == OPERAND_W ? OUT : LROWS; }
// Runs a layer under a recipe, forward and backward. Products in `split` read second numbers.
static void layer_run(Layer *l, const char *words, int split) {
    ScalingRecipe recipes[NOPERAND];
    static const size_t columns[NOPERAND] = {IN, IN, OUT};
    static const double size[NOPERAND] = {1, 0.05, 1e-4};
    float *partial = TAKE(float, ceil_div(LROWS, ROWS) * OUT);
    memset(l, 0, sizeof(*l));
    recipe_parse(recipes, words, "test");
    l->f.in = IN;
    l->f.out = OUT;
    l->f.fp8 = ALL_PRODUCTS;
    l->f.split = split;
    l->f.signs = 0x00009c71;
    l->f.mixed = TAKE(stored_t, LROWS * IN);
    l->f.sums = TAKE(float, LROWS *IN);
    l->f.dw = TAKE(float, OUT *IN);
    l->f.first = 1;
    l->f.bias = TAKE(float, OUT);
    for (int i = 0; i < OUT; i++) ((float *)l->f.bias)[i] = (float)normal(60, i);
    for (int which = 0; which < NOPERAND; which++) {
        const size_t n = layer_rows(which) * columns[which];
        Operand *o = &l->f.operand[which];
        l->scale[which] = scale_make(recipes[which]);
        l->scale[which].random += which;
        l->tensor[which] = normal_stored(n, size[which], 50 + which);
        for (int way = 0; way < 2; way++) {
            o->bytes[way] =
                way && !recipe_blocks(&recipes[which]) ? o->bytes[0] : TAKE(uint8_t, 2 * n);
            o->inv[way] = TAKE(float, n);
        }
        o->scale = &l->scale[which];
        o->columns = columns[which];
    }
    l->f.operand[OPERAND_X].stored[OVER_COLUMNS] = l->tensor[OPERAND_X];
    operand_is(&l->f, OPERAND_DY, l->tensor[OPERAND_DY]);
    l->y = TAKE(float, LROWS *OUT);
    l->dx = TAKE(stored_t, LROWS * IN);
    operand_quantize(&l->f, OPERAND_W, l->tensor[OPERAND_W], OUT, OVER_COLUMNS, RECORD_STATS);
    linear_forward(&l->f, l->y, DTYPE_FP32, LROWS, RECORD_STATS);
    linear_backward(&l->f, l->dx, partial, LROWS, RECORD_STATS);
}
// An operand as one of its products reads it, [across K][K], from its bytes: part 0 or 1 of them;
// -1: the tensor as it is stored.
static double *layer_operand(const Layer *l, int which, int product, int part) {
    const Operand *o = &l->f.operand[which];
    const ScalingRecipe *r = &l->scale[which].recipe;
    const size_t rows = layer_rows(which), n = rows * o->columns;
    const int way = operand_product[which][1] == product;
    Wanted w = {l->tensor[which], rows, o->columns, 1, 1, 1, 0, .along_rows = way};
    const size_t K = way ? rows : o->columns;
    w.across = recipe_blocks(r) ? (size_t)r->across : n;
    w.along = recipe_blocks(r) ? (size_t)r->along : n;
    w.per_line = ceil_div(K, w.along);
    double *out = TAKE(double, n), unit = l->scale[which].scale_inv[way];
    uint32_t amax = 0;
    for (size_t i = 0; i < n; i++) amax = MAX(amax, magnitude_bits(l->tensor[which][i]));
    if (!way && recipe_blocks(r)) unit = 1 / wanted_tensor(bits_float(amax), r); // before any turn
    if (part == 1) unit *= r->format == DTYPE_E4M3 ? 0.0625 : 0.125;
    for (size_t i = 0; i < n; i++) {
        const int code = code_in_memory(o->bytes[way], MAX(part, 0) * n + i, r->format);
        const double inv = recipe_blocks(r) ? o->inv[way][wanted_block_of(&w, i)] : 1;
        const size_t row = i / o->columns, column = i % o->columns;
        out[way ? column * K + row : i] =
            part < 0 ? (double)float_from_stored(w.x[i]) : value_of(code, r->format) * inv * unit;
    }
    return out;
}
typedef struct {
    size_t M, N;
    double *whole, *parts, *found; // of stored numbers where an operand is split; of all parts
    double *first;                 // of the first parts only
    int splits;
} Product;
// out += a b^T
static void product_add(double *out, const double *a, const double *b, size_t M, size_t N,
                        size_t K) {
    for (size_t at = 0; at < M * N; at++)
        for (size_t k = 0; k < K; k++) out[at] += a[at / N * K + k] * b[at % N * K + k];
}
static Product layer_product(const Layer *l, int product) {
    const int a = product == FPROP ? OPERAND_X : OPERAND_DY;
    const int b = product == WGRAD ? OPERAND_X : OPERAND_W;
    const size_t M = product == WGRAD ? OUT : LROWS, N = product == FPROP ? OUT : IN;
    const size_t K = product == WGRAD ? LROWS : product == FPROP ? IN : OUT;
    const int on = l->f.split >> product & 1;
    const int sa = on && l->scale[a].recipe.split, sb = on && l->scale[b].recipe.split;
    Product p = {
        M,      N, TAKE(double, M *N), TAKE(double, M *N), TAKE(double, M *N), TAKE(double, M *N),
        sa + sb};
    double *a0 = layer_operand(l, a, product, 0), *b0 = layer_operand(l, b, product, 0);
    product_add(p.first, a0, b0, M, N, K);
    product_add(p.whole, layer_operand(l, a, product, sa ? -1 : 0),
                layer_operand(l, b, product, sb ? -1 : 0), M, N, K);
    product_add(p.parts, a0, b0, M, N, K);
    if (sb) product_add(p.parts, a0, layer_operand(l, b, product, 1), M, N, K);
    if (sa) product_add(p.parts, layer_operand(l, a, product, 1), b0, M, N, K);
    for (size_t i = 0; i < M * N; i++) {
        p.found[i] = product == FPROP   ? (double)l->y[i]
                     : product == DGRAD ? (double)float_from_stored(l->dx[i])
                                        : (double)l->f.dw[i];
        if (product == FPROP) p.found[i] -= (double)l->f.bias[i % OUT];
    }
    return p;
}
// Elements that are not their definition: beyond fp32's rounding of sums with K terms, and in dx
// bf16's.
static size_t product_differs(const Product *p, const double *want, int product) {
    double size = 0;
    size_t wrong = 0;
    for (size_t i = 0; i < p->M * p->N; i++) size = fmax(size, fabs(want[i]));
    for (size_t i = 0; i < p->M * p->N; i++) {
        const double unit = product == DGRAD ? 0x1p-8 * fabs(want[i]) : product == FPROP ? 1e-6 : 0;
        wrong += !(fabs(p->found[i] - want[i]) <= unit + 2e-6 * size);
    }
    return wrong;
}
static void test_layer_split(void) {
    static const struct {
        const char *words;
        int split;
    } list[] = {{"x:split+current", ALL_PRODUCTS},    {"w:split+current", ALL_PRODUCTS},
                {"dy:split+current", ALL_PRODUCTS},   {"split+current", ALL_PRODUCTS},
                {"split+current+e5m2", ALL_PRODUCTS}, {"mx+split", ALL_PRODUCTS},
                {"split+current", 1 << FPROP},        {"split+nvfp4+e4m3", 1 << WGRAD}};
    size_t caught = 0, splitting = 0;
    for (int i = 0; i < COUNT(list); i++) {
        const int first = block_count;
        Layer l;
        layer_run(&l, list[i].words, list[i].split);
        size_t wrong = 0;
        double gain = INFINITY;
        for (int product = 0; product < NPRODUCT; product++) {
            const Product p = layer_product(&l, product);
            const size_t n = p.M * p.N;
            wrong += product_differs(&p, p.parts, product);
            splitting += p.splits > 0;
            caught += p.splits && product_differs(&p, p.first, product) > 0;
            if (p.splits)
                gain = fmin(gain, alike(p.whole, p.found, n) - alike(p.whole, p.first, n));
        }
        check(!wrong && gain > 10,
              "split: %s, products %d: sums of the parts' products (%zu differ), %.1f dB gained",
              list[i].words, list[i].split, wrong, gain);
        take_end(first);
    }
    check_caught(splitting == 17 && caught == splitting, "a second number that is left out");
}
static void test_layer(void) {
    static const char *const words[] = {"nvfp4",
                                        "nvfp4+stochastic+hadamard",
                                        "mxfp4",
                                        "mxfp4+floor+stochastic+hadamard",
                                        "e2m1+current+stochastic",
                                        "nvfp4+dy:e5m2",
                                        "e2m1+dy:mx"};
    size_t caught = 0;
    for (int i = 0; i < COUNT(words); i++) {
        const int first = block_count;
        Layer l;
        layer_run(&l, words[i], 0);
        size_t wrong = 0;
        double least = INFINITY;
        for (int product = 0; product < NPRODUCT; product++) {
            Product p = layer_product(&l, product);
            const int a = product == FPROP ? OPERAND_X : OPERAND_DY,
                      b = product == WGRAD ? OPERAND_X : OPERAND_W;
            const size_t K = product == WGRAD ? LROWS : product == FPROP ? IN : OUT;
            double *stored = TAKE(double, p.M *p.N);
            product_add(stored, layer_operand(&l, a, product, -1),
                        layer_operand(&l, b, product, -1), p.M, p.N, K);
            wrong += product_differs(&p, p.parts, product);
            least = fmin(least, alike(stored, p.found, p.M * p.N));
            caught += product_differs(&p, stored, product) > 0;
        }
        check(!wrong && least > 8,
              "layer: %s: products of what the codes stand for (%zu differ), at least %.1f dB",
              words[i], wrong, least);
        take_end(first);
    }
    check_caught(caught == NPRODUCT * COUNT(words),
                 "a product of the numbers before they were quantized");
}

// -------------------------------------------------------------------------------------------------
// Models

static Run run;
static char text_path[] = "/tmp/test_below8_XXXXXX";
static void text_make(void) {
    const int fd = mkstemp(text_path);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    for (int i = 0; f && i < 400; i++) fprintf(f, "%d fish swam past %d boats.\n", i, i * 7 % 13);
    if (!f || fclose(f) != 0) fatal(EXIT_BAD_INPUT, "%s: %s", text_path, strerror(errno));
    run.train = dataset_open(text_path);
    dataset_windows(&run.train, "training", 40, 1);
}
static const Config run_config = {40, 256, 256, 2, 2, 48};
static const char *bf16_products = ""; // --bf16
static void model_make(const char *recipe, int recompute, const char *split) {
    Gpt *g = &run.g;
    memset(g, 0, sizeof(*g));
    g->config = run_config;
    g->B = 2;
    g->training = 1;
    g->recompute = recompute;
    g->seed = 3;
    recipe_parse(g->recipes, recipe, "test");
    products_parse("split", split, run_config.L, g->split);
    products_parse("bf16", bf16_products, run_config.L, g->bf16);
    workspace_free();
    gpt_allocate(g);
    gpt_init(g, 7);
    g->record = RECORD_STATS;
}
static void model_end(Gpt *g) {
    free(g->tokens);
    free(g->targets);
    gpt_free(g);
}
// Everything that three steps of two micro-batches leave, as one number; 0: not what they should.
static uint64_t three_steps(const char *recipe, int threads, int recompute) {
    Gpt *g = &run.g;
    uint64_t h = 0;
    int finite = 1;
    threads_set(threads);
    model_make(recipe, recompute, "fprop+dgrad+wgrad");
    const AdamW adamw = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f};
    for (long i = 0; i < 3; i++) {
        const Step step = {i, i + 1, 2, 0, 160, 1, adamw};
        const StepOutcome out = gpt_step(g, &step, &run);
        h = checksum(h, &out.loss, sizeof(double));
        finite &= !out.nonfinite;
    }
    const float *arrays[4] = {g->master, g->grad, g->m, g->v};
    for (int i = 0; i < 4; i++) h = checksum(h, arrays[i], g->param_count * 4);
    h = checksum(h, g->scales, g->scale_count * sizeof(Fp8Scale));
    finite &= g->scales[5].micro_batches == 6;
    model_end(g);
    return finite ? h : 0;
}
static const char *const model_recipes[] = {"nvfp4+stochastic+hadamard", "e2m1+stochastic", "mxfp4",
                                            "split", "mx+split+hadamard"};
static void test_model_bits(void) {
    uint64_t h[COUNT(model_recipes)];
    for (int i = 0; i < COUNT(model_recipes); i++) {
        const char *words = model_recipes[i];
        h[i] = three_steps(words, 1, 0);
        check(h[i] && three_steps(words, 2, 0) == h[i] && three_steps(words, 3, 0) == h[i],
              "model: %s: 1, 2 and 3 threads give the same bits", words);
        check(three_steps(words, 2, 1) == h[i], "model: %s: --recompute gives the same bits",
              words);
    }
    check_caught(h[0] != three_steps("nvfp4+hadamard", 1, 0) &&
                     h[2] != three_steps("mxfp4+floor", 1, 0),
                 "rounding to nearest, and another rule of scales,");
    threads_set(2);
}
// The kept bytes of the first input, made twice of the same tokens, by micro-batch 0 and `other`.
static int kept_differs(const char *recipe, int other) {
    Gpt *g = &run.g;
    int tokens[80];
    const size_t n = 80 * 48 / 2, weights = 12 * 48 * 48 / 2;
    for (int i = 0; i < 80; i++) tokens[i] = 32 + i;
    model_make(recipe, 0, "fprop");
    gpt_forward_blocks(g, tokens, 2, 40, 0);
    uint8_t *kept = memcpy(TAKE(uint8_t, n), g->ln1, n);
    uint8_t *made = memcpy(TAKE(uint8_t, weights), g->weights, weights);
    for (int i = 0; i < g->scale_count; i++) g->scales[i].micro_batches = other;
    gpt_forward_blocks(g, tokens, 2, 40, 0);
    const int differs = memcmp(kept, g->ln1, n) != 0,
              again = memcmp(made, g->weights, weights) != 0;
    model_end(g);
    return again ? -1 : differs; // weights: once a step
}
// Pairs of a model's operands that have the same random numbers.
static size_t randoms_same(void) {
    size_t same = 0;
    model_make("e2m1+stochastic", 0, "fprop");
    for (int i = 0; i < run.g.scale_count; i++)
        for (int k = 0; k < i; k++) same += run.g.scales[i].random == run.g.scales[k].random;
    model_end(&run.g);
    return same;
}
// How like a model's gradient is to that of all products in bf16, in dB.
static double gradient_alike(const char *recipe) {
    Gpt *g = &run.g;
    double *gradient[2];
    for (int way = 0; way < 2; way++) {
        bf16_products = way ? "" : "fprop+dgrad+wgrad";
        model_make(recipe, 0, "fprop+dgrad+wgrad");
        dataset_batch(&run.train, 1, 0, g->tokens, g->targets, 2, 40);
        g->first = 1;
        gpt_forward(g, g->tokens, g->targets, 2, 40, 1);
        gpt_backward(g, g->tokens, 2, 40);
        gradient[way] = TAKE(double, g->param_count);
        for (size_t i = 0; i < g->param_count; i++) gradient[way][i] = (double)g->grad[i];
        model_end(g);
    }
    return alike(gradient[0], gradient[1], param_specs(g->params, &run_config));
}
static int cache_differs(const char *recipe) {
    Gpt *g = &run.g;
    int tokens[40], wrong = 0;
    float *cached = TAKE(float, 40 * 256);
    for (int i = 0; i < 40; i++) tokens[i] = (int)(uniform(90, i) * 256);
    model_make(recipe, 0, "fprop");
    g->record = RECORD_NONE;
    for (int t = 0; t < 40; t++) gpt_logits(g, cached + t * 256, tokens + t, 1, t);
    for (int t = 0; t < 40; t++) {
        float whole[256];
        gpt_logits(g, whole, tokens, t + 1, 0);
        wrong += memcmp(whole, cached + t * 256, sizeof(whole)) != 0;
    }
    model_end(g);
    return wrong;
}
static void test_model_promises(void) {
    static const double least[COUNT(model_recipes)] = {14, 12, 16, 45, 45};
    for (int i = 0; i < COUNT(model_recipes); i++) {
        const double like = gradient_alike(model_recipes[i]);
        check(like > least[i], "model: %s: the gradient is like bf16's (%.1f dB)", model_recipes[i],
              like);
    }
    check(kept_differs("e2m1+stochastic", 1) == 1 && kept_differs("e2m1+stochastic", 0) == 0,
          "model: micro-batches round x by other random numbers, weights by one a step");
    check_none(randoms_same(), "model: each operand has random numbers of its own, %s", "pairs");
    check_caught(kept_differs("e2m1", 1) == 0, "rounding to nearest in micro-batches");
    check(!cache_differs("mxfp4") && !cache_differs("mxfp4+split+e4m3"),
          "model: a KV cache gives a whole prefix's bits under mxfp4, and split in blocks");
    check_caught(cache_differs("nvfp4") > 0,
                 "nvfp4's own amax of a tensor, which leaks through positions,");
}
static void test_model_memory(void) {
    size_t kept[2];
    Gpt *g = &run.g;
    for (int i = 0; i < COUNT(model_recipes); i++)
        for (int recompute = 0; recompute < 2; recompute++) {
            bytes_allocated = 0;
            model_make(model_recipes[i], recompute, "first.qkv.fprop");
            memory_taken = 0;
            const size_t not_allocated = PROGRAM_BYTES + ((size_t)thread_count() << 15);
            const double plan = (double)(memory_plan(g).total - not_allocated),
                         more = (double)bytes_allocated - plan;
            // Some 45 tensors are rounded up to 64 bytes, each thread's slice to a page.
            check(fabs(more) < 45 * 128 + 3 * 4200,
                  "model: memory plan of %s%s: %.0f bytes, %.0f more taken", model_recipes[i],
                  recompute ? ", --recompute" : "", plan, more);
            model_end(g);
        }
    for (int i = 0; i < 2; i++) {
        model_make(i ? "mxfp4" : "mx", 0, "fprop");
        kept[i] = memory_plan(g).part[KEPT];
        model_end(g);
    }
    // ln1, att, ln2 and gelu of two layers have 7 x 48 channels and 80 rows.
    check(kept[0] - kept[1] == 2 * 7 * 48 * 80 / 2,
          "model: operands of E2M1 take half a byte: %zu bytes less", kept[0] - kept[1]);
    check_caught(kept[0] != kept[1], "the same plan for eight bits and four");
}
