/*
What one attention head looks at, and what FP8 makes of it: a table for build/lesson/picture.

    make build/lesson/head && build/lesson/head MODEL -j TEXT > TABLE.tsv

MODEL was trained in BF16. Its first head of the first block reads the first story of TEXT. Panel 0
of the table holds the attention probabilities. Panels 1 and 2 hold what is added to them when x and
w of the qkv product are rounded to E4M3, and when x is rounded to E5M2 instead. Every tensor has
one scale, from its amax.
*/
#undef PRECISION
#define PRECISION 2
#define TESTING
#define PROGRAM "head"
#include "../../train_gpt_fp8.c"
#include "../lab/lab.h"

enum { TOKENS = 24 };
static Gpt head;
static void lab_layernorm(int l, int second, const stored_t *y, stored_t *normed, size_t rows) {
    gpt_layernorm_forward(&head, 2 * l + second, y, normed, rows);
}
static void lab_linear(int l, int i, stored_t *y, const stored_t *x, size_t rows) {
    (void)x; // gpt_input() holds it
    gpt_linear_forward(&head, l, i, y, rows);
}
static void lab_attention(int l, stored_t *out, stored_t *qkv, int B) {
    (void)l;
    attention_forward(out, qkv, B, head.config.T, 0, head.config.C, head.config.NH);
}

// y = the qkv product of the first block with x and w as bytes of these formats.
static void head_product(stored_t *y, Dtype x_format, Dtype w_format) {
    const size_t C = head.config.C, T = head.config.T;
    const Linear f = gpt_linear(&head, 0, LIN_QKV);
    uint8_t *x = (uint8_t *)memory_allocate(T * C), *w = (uint8_t *)memory_allocate(3 * C * C);
    Fp8Scale x_scale = {.recipe = {.rule = SCALING_CURRENT, .format = x_format}};
    Fp8Scale w_scale = {.recipe = {.rule = SCALING_CURRENT, .format = w_format}};
    float inverse = quantize(x, gpt_input(&head, 0, LIN_QKV), T * C, &x_scale, RECORD_NONE);
    inverse *=
        quantize(w, f.operand[OPERAND_W].stored[OVER_COLUMNS], 3 * C * C, &w_scale, RECORD_NONE);
    matmul(output(y, STORED, 3 * C, inverse, f.bias, 0), matrix(x, x_format, C, 1),
           matrix(w, w_format, C, 1), T, 3 * C, C);
    free(x);
    free(w);
}

// p [TOKENS][TOKENS]: the probabilities of the first head; NAN where a key is in the future.
static void head_probabilities(double p[TOKENS][TOKENS], const stored_t *qkv) {
    const size_t C = head.config.C;
    const int size = head.config.C / head.config.NH;
    for (int i = 0; i < TOKENS; i++) {
        float logits[TOKENS], top;
        for (int j = 0; j <= i; j++) {
            float sum = 0;
            for (int c = 0; c < size; c++)
                sum += float_from_stored(qkv[i * 3 * C + c]) *
                       float_from_stored(qkv[j * 3 * C + C + c]);
            logits[j] = sum / sqrtf((float)size);
        }
        const float sum = softmax_row(logits, i + 1, i + 1, &top);
        for (int j = 0; j < TOKENS; j++) p[i][j] = j <= i ? logits[j] / sum : NAN;
    }
}

// One panel a block of rows; `most` [3] are the largest values.
static void table_print(double p[3][TOKENS][TOKENS], const int *tokens, const double *most) {
    printf("# picture\theat\n# title\tAttention probabilities of one head, and what rounding adds\n"
           "# x\tColumns are keys, rows are queries: the first bytes of a story\n"
           "# panels\tBF16 | E4M3 less BF16 | x in E5M2, less BF16\n# tokens\t");
    for (int i = 0; i < TOKENS; i++) putchar(tokens[i] < ' ' ? ' ' : tokens[i]);
    printf("\n# y\tDarkest: 0.5 or more in BF16, a change of %.3f. Largest change: %.3f in E4M3, "
           "%.3f in E5M2\npanel",
           MAX(most[1], most[2]), most[1], most[2]);
    for (int j = 0; j < TOKENS; j++) printf("\tkey%d", j);
    for (int row = 0; row < 3 * TOKENS; row++) {
        printf("\n%d", row / TOKENS);
        for (int j = 0; j < TOKENS; j++) {
            const double value = p[row / TOKENS][row % TOKENS][j];
            if (isnan(value)) printf("\t-");
            else printf("\t%.6f", value);
        }
    }
    printf("\n");
}

int main(int argc, char **argv) {
    const char *values[] = {NULL};
    lab_options(argc, argv, "j", "-j TEXT", values);
    EXPECT(values[0], "expected -j TEXT");
    const File model = lab_model(&head, argv[1], 256);
    Dataset set = lab_data(&head, values[0], "validation");
    head.B = 1;
    const ValidationSet v = validation_open(&set, head.config.T, 1);
    machine_init(0);
    gpt_allocate(&head);
    model_load(&head, &model);
    lab_forward(&head, v.tokens, v.targets, 1);
    static double p[3][TOKENS][TOKENS];
    head_probabilities(p[0], head.qkv);
    head_product(head.qkv, DTYPE_E4M3, DTYPE_E4M3);
    head_probabilities(p[1], head.qkv);
    head_product(head.qkv, DTYPE_E5M2, DTYPE_E4M3);
    head_probabilities(p[2], head.qkv);
    double most[3] = {0};
    for (int panel = 0; panel < 3; panel++)
        for (int i = 0; i < TOKENS; i++)
            for (int j = 0; j <= i; j++) {
                p[panel][i][j] -= panel ? p[0][i][j] : 0;
                most[panel] = MAX(most[panel], fabs(p[panel][i][j]));
            }
    table_print(p, v.tokens, most);
    EXPECT(!fflush(stdout), "cannot write the table: %s", strerror(errno));
    return 0;
}
