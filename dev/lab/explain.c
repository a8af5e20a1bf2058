/*
Prints, for every matrix product of a training step, its shape, the operands as the product reads
them, their formats, scales and bytes, and which function makes these bytes:

    make build/lab/explain && build/lab/explain [the trainer's options]
    build/lab/explain -e d2 --recipe deepseek --bf16 last+0.qkv.fprop

The operands are the ones that gpt_linear() and operand() hand to matmul(): what is printed is what
is computed. Layers in a row that --bf16 and --split treat alike stand together. "x2" are both
numbers of a split operand; "E4M3" behind a block is its scale, beside one fp32 scale of the tensor.
Attention's products, over all heads, are not in FP8; the probabilities p and the gradients ds of
the scores are never whole in memory, so that their bytes are not counted.
*/
#define TESTING
#include "../../train_gpt_fp8.c"

static const char *const line = "%-7s %-7s %-7s %8zu%8zu%8zu  %-7s %-7s %-25s %10zu  %s\n";

// One word of a recipe as text: the one that sets this field of it, or "".
static void recipe_word_text(const ScalingRecipe *r, size_t field, char *out) {
    char along[16];
    int value;
    memcpy(&value, (const char *)r + field, sizeof(value));
    *out = 0;
    snprintf(along, sizeof(along), r->along == INT_MAX ? "all" : "%d", r->along);
    if (field == SETS(margin)) sprintf(out, "margin=%d", r->margin);
    else if (field == SETS(rule) && recipe_blocks(r)) sprintf(out, "block=%dx%s", r->across, along);
    else
        for (int n = 0; n < COUNT(recipe_words); n++) {
            const RecipeWord *w = &recipe_words[n];
            if (w->sets != field || w->value != value) continue;
            if (!*w->argument) strcpy(out, w->word);
            else if (r->number == floorf(r->number)) sprintf(out, "%s=%.0f", w->word, r->number);
            else { // the shortest text that reads back as the same float
                int digits = 1;
                do sprintf(out, "%s=%.*g", w->word, digits, r->number);
                while (strtof(strchr(out, '=') + 1, NULL) != r->number && digits++ < 9);
            }
        }
}
// The recipe of each operand, in the words of --recipe and in those of --help recipe.
static void recipes_print(const Gpt *g) {
    static const size_t fields[] = {SETS(format),     SETS(rule),     SETS(rounding), SETS(margin),
                                    SETS(stochastic), SETS(hadamard), SETS(split)};
    for (int i = 0; i < NOPERAND; i++) {
        const ScalingRecipe *r = &g->recipes[i];
        printf("%s\n", operand_name[i]);
        for (int k = 0; k < COUNT(fields); k++) {
            char word[64];
            recipe_word_text(r, fields[k], word);
            const size_t length = strcspn(word, "=");
            for (int n = 0; n < COUNT(recipe_words) && length; n++)
                if (!strncmp(word, recipe_words[n].word, length) && !recipe_words[n].word[length])
                    printf("  %-16s %s\n", word, recipe_words[n].help);
        }
    }
}

// How an operand is scaled, from the matrix that the product reads.
static void scale_text(const Linear *f, int which, const Matrix *m, size_t rows, size_t K,
                       char *out) {
    const Fp8Scale *s = f->operand[which].scale;
    if (dtype_size[m->dtype] != 1) strcpy(out, "none");
    else if (m->inv)
        sprintf(out, "own amax of %zu x %zu%s", MIN(m->across, rows), MIN(m->along, K),
                s->recipe.rounding == ROUNDING_TWO_LEVEL ? ", E4M3" : "");
    else if (s->recipe.rule == SCALING_CONSTANT && !f->bias && which == OPERAND_DY)
        strcpy(out, "of the loss scale"); // the head's: gpt_forward() sets it
    else recipe_word_text(&s->recipe, SETS(rule), out);
}

// Which function makes its bytes, and what else that function does.
static void maker_text(const Linear *f, int which, int product, int recomputed, char *out) {
    static const char *const makers[] = {"linear_forward()", "gpt_refresh_weights(), once a step",
                                         "linear_backward()"};
    const Fp8Scale *s = f->operand[which].scale;
    strcpy(out, "stored so");
    if (!linear_in_fp8(f, product)) return;
    strcpy(out, makers[which]);
    if (recomputed && which == OPERAND_X && product == WGRAD)
        strcat(out, ", again in the backward pass");
    if (product == WGRAD && s->recipe.hadamard) strcat(out, ", Hadamard transform");
    if (s->recipe.stochastic) strcat(out, ", stochastic");
}

// Six lines: three products of two operands each.
static void linear_print(const Linear *f, const char *layer, const char *name, size_t rows,
                         int recomputed) {
    static const char *const formats[] = {"fp32", "bf16", "fp16", "E4M3", "E5M2", "E2M1"};
    for (int p = 0; p < NPRODUCT; p++) {
        const size_t M = p == WGRAD ? f->out : rows, N = p == FPROP ? f->out : f->in;
        const size_t K = p == FPROP ? f->in : p == DGRAD ? f->out : rows;
        for (int side = 0; side < 2; side++) {
            const int which = product_operands[p][side];
            const Matrix m = operand(f, which, p, rows, 0);
            const size_t across = side ? N : M;
            const int numbers = 1 + linear_splits(f, which, p);
            char format[16], scale[64], made[96];
            sprintf(format, "%s%s", formats[m.dtype], numbers > 1 ? " x2" : "");
            scale_text(f, which, &m, across, K, scale);
            maker_text(f, which, p, recomputed, made);
            printf(line, layer, name, product_name[p], M, N, K, operand_name[which], format, scale,
                   across * K * numbers * dtype_size[m.dtype] / (m.dtype == DTYPE_E2M1 ? 2 : 1),
                   made);
        }
    }
}

static void attention_print(const Gpt *g, size_t B) {
    static const struct {
        const char *name, *operands, *maker;
        int over_keys, whole; // its columns are keys; operands that lie in memory
    } products[] = {{"scores", "q, k", "qkv's fprop", 1, 2},
                    {"att", "p, v", "softmax of scores; qkv's fprop", 0, 1},
                    {"dp", "datt, v", "attproj's dgrad; qkv's fprop", 1, 2},
                    {"dv", "p, datt", "scores again; attproj's dgrad", 0, 1},
                    {"dq", "ds, k", "softmax's backward pass; qkv's fprop", 0, 1},
                    {"dk", "ds, q", "softmax's backward pass; qkv's fprop", 0, 1}};
    const size_t C = g->config.C, T = g->config.T, hs = C / g->config.NH;
    for (int i = 0; i < COUNT(products); i++)
        printf(line, "all", "heads", products[i].name, T, products[i].over_keys ? T : hs,
               products[i].over_keys ? hs : T, products[i].operands, "bf16", "none",
               B * C * T * products[i].whole * 2, products[i].maker);
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    Gpt *g = &r->g;
    r->o = options_parse(argc, argv, r->given);
    run_open(r);
    const size_t B = g->B, rows = B * g->config.T;
    g->B = 1; // where things lie does not depend on it
    g->training = 1;
    memory_check(g);
    machine_init(r->o.sum_order);
    gpt_allocate(g);
    options_loss_scale(&r->o, g);
    recipes_print(g);
    printf("loss scale: %g%s\n", g->loss_scale,
           gpt_scales_loss(g) ? " at first; an overflow halves it, 1000 good steps double it" : "");
    printf("\nlayer   matrix  product        M       N       K  operand format  scale              "
           "            "
           "bytes  made by\n");
    for (int l = 0, next; l < g->config.L; l = next) {
        char layer[32];
        next = l + 1;
        while (next < g->config.L && !memcmp(g->bf16[next], g->bf16[l], NLIN) &&
               !memcmp(g->split[next], g->split[l], NLIN))
            next++;
        snprintf(layer, sizeof(layer), next > l + 1 ? "%d-%d" : "%d", l, next - 1);
        for (int i = 0; i < NLIN; i++) {
            const Linear f = gpt_linear(g, l, i);
            linear_print(&f, layer, linear_name[i], rows, g->recompute && i != LIN_ATTPROJ);
        }
    }
    const Linear head = gpt_head(g, 0);
    linear_print(&head, "-", linear_name[NLIN], rows, 0);
    attention_print(g, B);
    char order[32];
    option_word(&option_specs[option_index("sum-order")], r->o.sum_order, order);
    printf(
        "\nSums are fp32, in the order of --sum-order %s; the head's are in slabs of %d rows.\n"
        "fprop and dgrad write bf16 (the head's fprop fp32), wgrad adds to fp32. A rule that\n"
        "remembers steps takes the tensor's own amax in the first one. train_gpt_fp8cu sums FP8\n"
        "fprop with Hopper's shorter accumulator, as Transformer Engine does, but for blocks of "
        "128.\n",
        order, HEAD_ROWS);
    return EXIT_DONE;
}
