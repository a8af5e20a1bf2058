// Makes train_gpt_fp8.c's functions reachable from dev/cuda/test_cuda.cu: see reference.h.
#ifndef REFERENCE_MAIN
#define REFERENCE_MAIN ref_main
#define REFERENCE_FUNCTIONS
#endif
#define main REFERENCE_MAIN
int main(int argc, char **argv);
#include "../../train_gpt_fp8.c"
#ifdef REFERENCE_FUNCTIONS
#include "../check/free.h"
#include "reference.h"

size_t ref_size(RefSize what) {
    const size_t sizes[] = {sizeof(Fp8Scale), sizeof(ScalingRecipe),
                            sizeof(Fp8Stats), sizeof(Options),
                            sizeof(Config),   CHUNK,
                            HEAD_ROWS,        ROWS,
                            NUMERICS_VERSION};
    return sizes[what];
}
void ref_begin(int T, int hs) {
    AttentionBuffers w;
#ifdef _OPENMP
    omp_set_num_threads(1); // the tensors are small, and other programs may run
#endif
    if (workspace.threads) workspace_free();
    else machine_init(0);
    workspace_init(1 << 20, attention_buffers(&w, NULL, T, hs));
}

uint32_t ref_encode(float f, int dtype) { return fp8_encode(f, (Dtype)dtype); }
float ref_decode(uint8_t code, int dtype) { return fp8_decode(code, (Dtype)dtype); }
uint32_t ref_stored_bits(float f) {
    const stored_t s = stored_from_float(f);
    uint32_t bits = 0;
    memcpy(&bits, &s, sizeof(s));
    return bits;
}
float ref_stored_value(uint32_t bits) {
    stored_t s;
    memcpy(&s, &bits, sizeof(s));
    return float_from_stored(s);
}
float ref_exp(float x) { return exp_fixed_order(x); }
float ref_gelu_sigmoid(float x) { return gelu_sigmoid(x); }
float ref_quantize(uint8_t *q, const void *x, size_t n, void *scale, int record) {
    return quantize(q, x, n, scale, (Record)record);
}
void ref_quantize_blocks(uint8_t *q, float *inv, const void *x, size_t rows, size_t columns,
                         int along_rows, void *scale, int record) {
    quantize_blocks(q, inv, x, rows, columns, along_rows, scale, (Record)record);
}
void ref_scale_advance(void *scale) { scale_advance(scale); }
float ref_scale_from_amax(float amax, float keep, const void *recipe) {
    return scale_from_amax(amax, keep, recipe);
}

void ref_encoder_forward(void *x, const int *tokens, const float *wte, const float *wpe, int B,
                         int n, int pos, int C) {
    encoder_forward(x, tokens, wte, wpe, B, n, pos, C);
}
void ref_encoder_backward(float *dwte, float *dwpe, const void *dx, const int *tokens, int B, int T,
                          int C) {
    encoder_backward(dwte, dwpe, dx, tokens, B, T, C);
}
void ref_residual_layernorm_forward(void *residual, void *normed, float *mean, float *rstd,
                                    const void *a, const void *b, const float *weight,
                                    const float *bias, size_t rows, size_t C) {
    if (!b) memcpy(residual, a, rows * C * sizeof(stored_t)); // there the trainer's is a
    residual_layernorm_forward(residual, normed, mean, rstd, a, b, weight, bias, rows, C);
}
void ref_layernorm_backward(void *dresidual, float *dweight, float *dbias, const void *dout,
                            const void *x, const float *mean, const float *rstd,
                            const float *weight, size_t rows, size_t C) {
    float *partial = memory_allocate(2 * ceil_div(rows, ROWS) * C * sizeof(float));
    layernorm_backward(dresidual, dweight, dbias, dout, x, mean, rstd, weight, partial, rows, C);
    free(partial);
}
void ref_gelu_forward(void *out, const void *x, size_t n) { gelu_forward(out, x, n); }
void ref_gelu_backward(void *d, const void *x, size_t n) { gelu_backward(d, x, n); }
void ref_attention_forward(void *out, const void *qkv, int B, int n, int pos, int C, int NH) {
    attention_forward(out, qkv, B, n, pos, C, NH);
}
void ref_attention_backward(void *dqkv, const void *dout, const void *qkv, int B, int T, int C,
                            int NH) {
    attention_backward(dqkv, dout, qkv, B, T, C, NH);
}
// The bias gradient of linear_backward(): with one input channel of zeros, it is all that is left
// of it.
void ref_bias_backward(float *dbias, const void *dy, size_t rows, size_t out) {
    const size_t blocks = ceil_div(rows, ROWS);
    stored_t *x = memory_allocate(rows * sizeof(stored_t)),
             *dx = memory_allocate(rows * sizeof(stored_t));
    stored_t *w = memory_allocate(out * sizeof(stored_t));
    float *dw = memory_allocate(out * sizeof(float)),
          *partial = memory_allocate(blocks * out * sizeof(float));
    Linear f = {.dw = dw, .dbias = dbias, .in = 1, .out = out};
    f.operand[OPERAND_X].columns = f.operand[OPERAND_W].columns = 1;
    f.operand[OPERAND_DY].columns = out;
    operand_is(&f, OPERAND_X, x);
    operand_is(&f, OPERAND_W, w);
    operand_is(&f, OPERAND_DY, dy);
    linear_backward(&f, dx, partial, rows, RECORD_NONE);
    free(x), free(dx), free(w), free(dw), free(partial);
}
void ref_classifier(float *losses, void *dlogits, float *logits, const int *targets, int rows,
                    int V, int Vp, float dscale) {
    classifier(losses, dlogits, logits, targets, rows, V, Vp, dscale);
}
double ref_gradient_norm(const float *grad, size_t n, float scale) {
    static Gpt g;
    memset(&g, 0, sizeof(g));
    g.grad = (float *)(uintptr_t)grad;
    g.param_count = n;
    return gradient_norm(&g, scale);
}
// All parameters but one matrix are empty: adamw_update() on w alone. hyper: lr, beta1, beta2, eps,
// weight decay.
void ref_adamw(float *w, float *m, float *v, const float *grad, size_t n, const float hyper[5],
               float grad_scale, long t) {
    static Gpt g;
    const AdamW o = {hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]};
    memset(&g, 0, sizeof(g));
    g.params[WTE] = (ParamSpec){"w", 1, n, 1, 1, 0, 0, 0, 0, 0, 0};
    g.param_count = n;
    slices_make(&g);
    g.master = w, g.m = m, g.v = v, g.grad = (float *)(uintptr_t)grad;
    adamw_update(&g, &o, grad_scale, t);
}
float ref_schedule_lr(int kind, float lr, float final, long step, long warmup, long steps) {
    return schedule_lr((Schedule)kind, lr, final, step, warmup, steps);
}
void ref_batch(const char *pattern, int T, uint64_t seed, uint64_t first, int *tokens, int *targets,
               int B) {
    Dataset d = dataset_open(pattern);
    dataset_windows(&d, "test", T, 1);
    dataset_batch(&d, seed, first, tokens, targets, B, T);
}
size_t ref_option(int index, const char **name, int *scope) {
    if (index >= 0 && index < OPTION_COUNT)
        *name = option_specs[index].name, *scope = option_specs[index].scope;
    return OPTION_COUNT;
}
char *ref_options_lines(int argc, char **argv) {
    int given[OPTION_COUNT] = {0};
    const Options o = options_parse(argc, argv, given);
    return options_lines(&o);
}

void *ref_gpt_new(int argc, char **argv, int V) {
    int given[OPTION_COUNT] = {0};
    Gpt *g = memory_allocate(sizeof(Gpt));
    const Options o = options_parse(argc, argv, given);
    options_recipes(&o, g);
    g->config = options_config(&o, options_depth(&o), V);
    options_products(&o, g);
    g->B = o.batch, g->training = 1, g->recompute = o.recompute;
    g->fp8_moments = o.fp8_moments, g->seed = o.seed;
    g->shards = o.shards, g->grad_comm = o.grad_comm;
    if (workspace.threads) workspace_free();
    else machine_init(0);
    gpt_allocate(g), gpt_init(g, o.seed);
    return g;
}
void ref_gpt_free(void *g) { gpt_free(g), free(g); }
double ref_gpt_forward(void *g, const int *tokens, const int *targets, int B, int n,
                       float grad_scale) {
    return gpt_forward(g, tokens, targets, B, n, grad_scale);
}
void ref_gpt_backward(void *g, const int *tokens, int B, int n) {
    gpt_backward(g, tokens, B, n);
    for (int i = 0; i < ((Gpt *)g)->scale_count; i++) ((Gpt *)g)->scales[i].micro_batches++;
}
void ref_gpt_record(void *g, int record) { ((Gpt *)g)->record = (Record)record; }
void ref_gpt_advance(void *g) {
    for (int i = 0; i < ((Gpt *)g)->scale_count; i++) scale_advance(&((Gpt *)g)->scales[i]);
}
void ref_gpt_adamw(void *g, const float hyper[5], float grad_scale, long t) {
    const AdamW o = {hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]};
    adamw_update(g, &o, grad_scale, t);
}
void ref_gpt_encode(void *g) { // g->grad as it is sent
    float *inv = memory_allocate(TENSORS((Gpt *)g) * sizeof(float));
    gradient_encode(g, inv);
    free(inv);
}
#define TENSOR_FIND(role, field, layers, count, life)                                              \
    if (!strcmp(name, #field)) {                                                                   \
        *bytes = (layers) * (count)*role_size(STORAGE_##role, PRECISION);                          \
        return g->field;                                                                           \
    }
void *ref_gpt_tensor(void *p, const char *name, size_t *bytes) {
    const Gpt *g = p;
    const Config *c = &g->config;
    const size_t R = (size_t)g->B * c->T, C = c->C, L = c->L, Vp = c->Vp, slab = MIN(R, HEAD_ROWS),
                 t = 1;
    const size_t fp8 = IS_FP8, head8 = fp8 && g->fp8_head, copies = PRECISION != PRECISION_FP32;
    const size_t kept_layers = g->recompute ? 1 : L;
    const size_t w16_layers = fp8 * layers_in_bf16(g, c->L, READ_W),
                 x16_layers = fp8 * t * layers_in_bf16(g, c->L, 1 << WGRAD);
    GPT_TENSORS(TENSOR_FIND)
    return NULL;
}
void *ref_gpt_scales(void *g, int *count) {
    *count = ((Gpt *)g)->scale_count;
    return ((Gpt *)g)->scales;
}
size_t ref_gpt_param(void *g, int id, const char **name, size_t *count) {
    const ParamSpec *s = &((Gpt *)g)->params[id];
    *name = s->name, *count = s->layers * s->rows * s->cols;
    return s->offset;
}
uint64_t ref_model_save(void *g, const char *path) {
    const Directory here = {AT_FDCWD, "."};
    return model_save(g, &here, path);
}
#endif
