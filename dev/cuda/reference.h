/*
What dev/cuda/test_cuda.cu compares the CUDA file with: functions of train_gpt_fp8.c, which
dev/cuda/reference.c makes reachable from another object. Structs that both files define (Fp8Scale,
ScalingRecipe) pass as void *; ref_size() says how large they are over there. `stored` is the stored
type of the build. Built with another PRECISION and -DREFERENCE_MAIN=ref_main_bf16 and the like,
reference.c gives the whole program alone.
*/
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
int ref_main(int argc, char **argv);
int ref_main_fp8(int argc, char **argv);
int ref_main_fp16(int argc, char **argv);
int ref_main_bf16(int argc, char **argv);
int ref_main_fp32(int argc, char **argv);

typedef enum {
    REF_SCALE,
    REF_RECIPE,
    REF_STATS,
    REF_OPTIONS,
    REF_CONFIG,
    REF_CHUNK,
    REF_HEAD_ROWS,
    REF_ROWS,
    REF_NUMERICS
} RefSize;
size_t ref_size(RefSize what);
// Denormal mode, tables, working memory for attention of T positions and heads of hs.
void ref_begin(int T, int hs);

uint32_t ref_encode(float f, int dtype);
float ref_decode(uint8_t code, int dtype);
uint32_t ref_stored_bits(float f); // the stored type's bits, and back
float ref_stored_value(uint32_t bits);
float ref_exp(float x);
float ref_gelu_sigmoid(float x);
float ref_quantize(uint8_t *q, const void *x, size_t n, void *scale, int record);
void ref_quantize_blocks(uint8_t *q, float *inv, const void *x, size_t rows, size_t columns,
                         int along_rows, void *scale, int record);
void ref_scale_advance(void *scale);
float ref_scale_from_amax(float amax, float keep, const void *recipe);

void ref_encoder_forward(void *x, const int *tokens, const float *wte, const float *wpe, int B,
                         int n, int pos, int C);
void ref_encoder_backward(float *dwte, float *dwpe, const void *dx, const int *tokens, int B, int T,
                          int C);
void ref_residual_layernorm_forward(void *residual, void *normed, float *mean, float *rstd,
                                    const void *a, const void *b, const float *weight,
                                    const float *bias, size_t rows, size_t C);
void ref_layernorm_backward(void *dresidual, float *dweight, float *dbias, const void *dout,
                            const void *x, const float *mean, const float *rstd,
                            const float *weight, size_t rows, size_t C);
void ref_gelu_forward(void *out, const void *x, size_t n);
void ref_gelu_backward(void *d, const void *x, size_t n);
void ref_attention_forward(void *out, const void *qkv, int B, int n, int pos, int C, int NH);
void ref_attention_backward(void *dqkv, const void *dout, const void *qkv, int B, int T, int C,
                            int NH);
void ref_bias_backward(float *dbias, const void *dy, size_t rows, size_t out);
void ref_classifier(float *losses, void *dlogits, float *logits, const int *targets, int rows,
                    int V, int Vp, float dscale);
double ref_gradient_norm(const float *grad, size_t n, float scale);
void ref_adamw(float *w, float *m, float *v, const float *grad, size_t n, const float hyper[5],
               float grad_scale, long t);
float ref_schedule_lr(int kind, float lr, float final, long step, long warmup, long steps);
void ref_batch(const char *pattern, int T, uint64_t seed, uint64_t first, int *tokens, int *targets,
               int B);
size_t ref_option(int index, const char **name, int *scope); // how many there are
char *ref_options_lines(int argc, char **argv);

// A model made from a command line's options, its weights from --seed.
void *ref_gpt_new(int argc, char **argv, int V);
void ref_gpt_free(void *g);
double ref_gpt_forward(void *g, const int *tokens, const int *targets, int B, int n,
                       float grad_scale);
void ref_gpt_backward(void *g, const int *tokens, int B, int n);
void ref_gpt_record(void *g, int record);
void ref_gpt_advance(void *g);
void ref_gpt_adamw(void *g, const float hyper[5], float grad_scale, long t);
void ref_gpt_encode(void *g);
void *ref_gpt_tensor(void *g, const char *name, size_t *bytes); // by its name in GPT_TENSORS
void *ref_gpt_scales(void *g, int *count);
size_t ref_gpt_param(void *g, int id, const char **name, size_t *count); // offset in floats
uint64_t ref_model_save(void *g, const char *path);
#ifdef __cplusplus
}
#endif
