/*
The RNN family of "FP8 Formats for Deep Learning" (Micikevicius et al. 2022) at a laptop's size:

    make build/paper/lstm_fp8 && build/paper/lstm_fp8 --task lm

--task lm       A language model of bytes: embedding, LSTM layers, linear head.
--task numbers  GNMT in miniature: an LSTM encoder reads a number in words, an LSTM decoder with
                attention writes its digits.
--task dates    The same network writes a date of several notations as 1987-03-03.

Every weight's product is a linear layer of the trainer. W_x, W_h and W_c read FP8 bytes in the fp8
build, and with --fp8-head 1 the head does, too. By default the head is in BF16, as the trainer's.
Attention has no weights. Its products are in the stored type, as the trainer's.
Cell states and gates are fp32; states h, gradients and what products return have the stored type.
*/
#define PROGRAM "lstm_" PRECISION_NAME
#include "paper.h"
#include "pairs.h"

// Tokens are bytes: V of them with --task lm. A pair's characters are ASCII.
enum { PAD, BEGIN, END, ASCII = 128, BYTES = 256 };
enum { DEPTH_MAX = 4, HIDDEN_MAX = 1024 };
static struct {
    const char *task, *train, *val;
    long hidden, layers, time, test, fp8_head;
} asked = {"lm", "data/tales.d/train.txt", "data/tales.d/val.txt", 128, 1, 64, 2000, 0};
static const OptionRow own_options[] = {
    {"task", WORDS, &asked.task, 0, 0, "lm, numbers or dates"},
    {"train", WORDS, &asked.train, 0, 0, "lm: text to train on"},
    {"val", WORDS, &asked.val, 0, 0, "lm: text to test on"},
    {"time", WHOLE, &asked.time, 1, 1024, "lm: bytes in a window"},
    {"hidden", WHOLE, &asked.hidden, 1, HIDDEN_MAX, "size of a state h"},
    {"layers", WHOLE, &asked.layers, 1, DEPTH_MAX, "LSTM layers (of encoder and decoder each)"},
    {"fp8-head", WHOLE, &asked.fp8_head, 0, 1, "1: the head in FP8, too (fp8 build)"},
    {"test", WHOLE, &asked.test, 1, 1000000, "test examples at most"},
};
static size_t B, H, V; // sequences in a batch, size of a state, tokens

// ---- functions of one number, from the trainer's e^x
INLINE float sigmoid(float x) { return 1 / (1 + exp_fixed_order(-x)); }
INLINE float hyperbolic_tangent(float x) { return 2 * sigmoid(2 * x) - 1; }

// ---- LSTM. Row t * B + b of a matrix is position t of sequence b, so that the rows of a position
// are neighbours. For each position:
//   z = W_x x + bias + W_h h_before                  [B, 4H]: i, f, g, o, as PyTorch orders them
//   c = sigmoid(f) c_before + sigmoid(i) tanh(g)     [B, H]
//   h = sigmoid(o) tanh(c)                           [B, H]
typedef struct {
    Layer *input;     // W_x and bias: one call for all positions
    Layer *recurrent; // W_h: a call for each position, which reads h_before
    stored_t *z_x; // [T][B, 4H] the first two terms of z; in the backward pass, the gradient of z
    stored_t *z_h; // [B, 4H] the third
    float *gates;  // [T][B, 4H] after sigmoid and tanh
    float *cell;   // [T + 1][B, H]; the first is the state before the sequence
    stored_t *out; // [T][B, H] of h, for the next layer
    stored_t *dh;  // [B, H] the gradient of h that comes from the next position
    float *dc;     // [B, H] likewise of c
} Lstm;

// "enc_" "bias" "2": names of parameters.
static const char *name_made(const char *prefix, const char *what, int layer) {
    char *name = memory_allocate(32);
    snprintf(name, 32, "%s%s%d", prefix, what, layer);
    return name;
}
static Lstm lstm_add(size_t T, const char *prefix, int layer) {
    Lstm l = {0};
    const float spread = 1 / sqrtf((float)H);
    l.input = layer_add(name_made(prefix, "x", layer), name_made(prefix, "bias", layer), 1, T * B,
                        H, 4 * H, spread);
    l.recurrent = layer_add(name_made(prefix, "h", layer), NULL, T, B, H, 4 * H, spread);
    l.z_x = memory_allocate(T * B * 4 * H * sizeof(stored_t));
    l.z_h = memory_allocate(B * 4 * H * sizeof(stored_t));
    l.gates = memory_allocate(T * B * 4 * H * sizeof(float));
    l.cell = memory_allocate((T + 1) * B * H * sizeof(float));
    l.out = memory_allocate(T * B * H * sizeof(stored_t));
    l.dh = memory_allocate(B * H * sizeof(stored_t));
    l.dc = memory_allocate(B * H * sizeof(float));
    return l;
}

// One row of a position. `present` is 1, or 0 before the sequence begins: all gates are then
// 0, so that the state stays 0 and no gradient flows.
static void cell_forward(const Lstm *l, size_t t, size_t b, float present) {
    const size_t row = t * B + b;
    const stored_t *z_x = l->z_x + row * 4 * H, *z_h = l->z_h + b * 4 * H;
    float *z = l->gates + row * 4 * H, *i = z, *f = z + H, *g = z + 2 * H, *o = z + 3 * H;
    const float *before = l->cell + row * H;
    float *c = l->cell + (row + B) * H;
    stored_t *h = l->out + row * H;
    SIMD for (size_t j = 0; j < 4 * H; j++) z[j] =
        float_from_stored(z_x[j]) + float_from_stored(z_h[j]);
    SIMD for (size_t j = 0; j < H; j++) {
        i[j] = present * sigmoid(i[j]);
        f[j] = present * sigmoid(f[j]);
        g[j] = present * hyperbolic_tangent(g[j]);
        o[j] = present * sigmoid(o[j]);
        c[j] = f[j] * before[j] + i[j] * g[j];
        h[j] = stored_from_float(o[j] * hyperbolic_tangent(c[j]));
    }
    if (t + 1 < l->recurrent->calls)
        memcpy(l->recurrent->x + (row + B) * H, h, H * sizeof(stored_t));
}
// The gradient of z, and dc for the position before. dout [H]: of h from the next layer.
static void cell_backward(const Lstm *l, size_t t, size_t b, const stored_t *dout) {
    const size_t row = t * B + b;
    const float *i = l->gates + row * 4 * H, *f = i + H, *g = i + 2 * H, *o = i + 3 * H;
    const float *before = l->cell + row * H, *c = l->cell + (row + B) * H;
    const stored_t *dh = l->dh + b * H;
    stored_t *dz = l->z_x + row * 4 * H;
    float *dc = l->dc + b * H;
    SIMD for (size_t j = 0; j < H; j++) {
        const float d = float_from_stored(dout[j]) + float_from_stored(dh[j]);
        const float tanh_c = hyperbolic_tangent(c[j]);
        const float d_cell = dc[j] + d * o[j] * (1 - tanh_c * tanh_c);
        dz[j] = stored_from_float(d_cell * g[j] * i[j] * (1 - i[j]));
        dz[H + j] = stored_from_float(d_cell * before[j] * f[j] * (1 - f[j]));
        dz[2 * H + j] = stored_from_float(d_cell * i[j] * (1 - g[j] * g[j]));
        dz[3 * H + j] = stored_from_float(d * tanh_c * o[j] * (1 - o[j]));
        dc[j] = d_cell * f[j];
    }
}

// start [B]: the first position of each sequence.
static void lstm_forward(const Lstm *l, const int *start, size_t steps) {
    layer_forward(l->input, 0, l->z_x, STORED, steps * B);
    for (size_t t = 0; t < steps; t++) {
        layer_forward(l->recurrent, t, l->z_h, STORED, B);
        PARALLEL(static)
        for (size_t b = 0; b < B; b++) cell_forward(l, t, b, (int)t >= start[b] ? 1 : 0);
    }
}
// d [steps][B, H]: the gradient of the outputs, which becomes that of the inputs. dh and dc: of the
// state after the sequence, which become those of the state before it.
static void lstm_backward(const Lstm *l, stored_t *d, size_t steps) {
    for (size_t t = steps; t-- > 0;) {
        PARALLEL(static) for (size_t b = 0; b < B; b++) cell_backward(l, t, b, d + (t * B + b) * H);
        layer_backward(l->recurrent, t, l->dh, l->z_x + t * B * 4 * H, B);
    }
    layer_backward(l->input, 0, d, l->z_x, steps * B);
}

// ---- a stack: an embedding, then layers
typedef struct {
    size_t T;
    int *tokens, *start;  // [T][B]; [B]
    int embedding;        // number of the parameter [V, H]
    float *position;      // [H] zeros: no position has an embedding
    Lstm lstm[DEPTH_MAX]; // asked.layers of them
    stored_t *out, *d;    // [T][B, H] of the last layer; the gradient
} Stack;

static void stack_add(Stack *s, size_t T, const char *embedding, const char *prefix) {
    EXPECT(T * B * MAX(H, V) <= 1 << 24,
           "options --batch, --time and --hidden: together too large");
    s->T = T;
    s->tokens = memory_allocate(T * B * sizeof(int));
    s->start = memory_allocate(B * sizeof(int));
    s->embedding = param_add(embedding, V, H, 1, 0);
    s->position = memory_allocate(H * sizeof(float));
    s->d = memory_allocate(T * B * H * sizeof(stored_t));
    for (int l = 0; l < asked.layers; l++) s->lstm[l] = lstm_add(T, prefix, l + 1);
    s->out = s->lstm[asked.layers - 1].out;
}
static void stack_forward(const Stack *s, size_t steps) {
    const size_t size = steps * B * H * sizeof(stored_t);
    encoder_forward(s->lstm[0].input->x, s->tokens, param_weights(s->embedding), s->position,
                    (int)(steps * B), 1, 0, (int)H);
    for (int l = 0; l < asked.layers; l++) {
        if (l > 0) memcpy(s->lstm[l].input->x, s->lstm[l - 1].out, size);
        lstm_forward(&s->lstm[l], s->start, steps);
    }
}
// From s->d, the gradient of s->out.
static void stack_backward(const Stack *s, size_t steps) {
    for (int l = (int)asked.layers - 1; l >= 0; l--) lstm_backward(&s->lstm[l], s->d, steps);
    float unused[HIDDEN_MAX] = {0}; // the gradient of s->position
    encoder_backward(param_gradient(s->embedding), unused, s->d, s->tokens, (int)(steps * B), 1,
                     (int)H);
}

// ---- the network: the language model is a decoder without an encoder
static Stack encoder, decoder;
static int has_encoder;
static size_t train_steps;                   // positions of the decoder in a training batch
static Layer *combine, *head;                // [H, 2H]: W_c; [V, H]
static int *targets;                         // [T][B] of the decoder; -1: not counted
static float *logits, *losses;               // [T][B, V]; [T][B]
static stored_t *dlogits, *dhead, *dcombine; // [T][B, V]; of head->x and combine->x
// Of attention: probabilities [B][T, S] for S source positions, the gradient of one sequence's
// scores [T, S], fp32 numbers of one sequence.
static stored_t *probabilities, *dscores;
static float *scratch;

// ---- attention (Luong et al. 2015, "dot", without input feeding): decoder position t has
//   context = sum over s of p[t, s] e[s],  p[t] = softmax over s of h[t] e[s]
//   attended = tanh(W_c [context; h])
// where e are the encoder's outputs from the first one that counts. No decoder state depends on
// attention, so that all positions are computed at once.

// Positions from `first` on of sequence b of x, as rows; x is [T][B, width].
static Matrix sequence(const stored_t *x, size_t width, size_t b, size_t first) {
    return matrix(x + (first * B + b) * width, STORED, B * width, 1);
}
static Matrix sequence_rows(const stored_t *x) { return matrix(x, STORED, encoder.T, 1); }
static Matrix transposed(Matrix m) { return matrix(m.data, m.dtype, m.k_stride, m.row_stride); }
static Output floats(float *to, size_t width, int accumulate) {
    return output(to, DTYPE_FP32, width, 1, NULL, accumulate);
}

static void attend(size_t steps) {
    const size_t S = encoder.T;
    for (size_t b = 0; b < B; b++) {
        const size_t first = encoder.start[b], n = S - first;
        const Matrix h = sequence(decoder.out, H, b, 0), e = sequence(encoder.out, H, b, first);
        stored_t *p = probabilities + b * decoder.T * S;
        matmul(floats(scratch, S, 0), h, e, steps, n, H);
        PARALLEL(static) for (size_t t = 0; t < steps; t++) {
            float *row = scratch + t * S, max;
            const float inverse = 1 / softmax_row(row, (int)n, (int)n, &max);
            SIMD for (size_t s = 0; s < n; s++) row[s] *= inverse;
            store_row(p + t * S, row, n);
        }
        matmul(output(combine->x + b * 2 * H, STORED, B * 2 * H, 1, NULL, 0), sequence_rows(p),
               transposed(e), steps, H, n);
    }
    PARALLEL(static)
    for (size_t row = 0; row < steps * B; row++)
        memcpy(combine->x + row * 2 * H + H, decoder.out + row * H, H * sizeof(stored_t));
}
// decoder.d and encoder.d of dcombine.
//   dp = dcontext e^T;  dscores = p (dp - sum over s of p dp)
//   dh += dscores e;    de = dscores^T h + p^T dcontext
static void attend_backward(void) {
    const size_t S = encoder.T, T = decoder.T;
    memset(encoder.d, 0, S * B * H * sizeof(stored_t));
    for (size_t b = 0; b < B; b++) {
        const size_t first = encoder.start[b], n = S - first;
        const Matrix h = sequence(decoder.out, H, b, 0), e = sequence(encoder.out, H, b, first);
        const Matrix dcontext = sequence(dcombine, 2 * H, b, 0), ds = sequence_rows(dscores);
        const stored_t *p = probabilities + b * T * S;
        matmul(floats(scratch, S, 0), dcontext, e, T, n, H);
        PARALLEL(static) for (size_t t = 0; t < T; t++) {
            float *dp = scratch + t * S, dot;
            const stored_t *pt = p + t * S;
            STRIPED_SUM(dot, s, n, float_from_stored(pt[s]) * dp[s]);
            SIMD for (size_t s = 0; s < n; s++) dp[s] = float_from_stored(pt[s]) * (dp[s] - dot);
            store_row(dscores + t * S, dp, n);
        }
        matmul(floats(scratch, H, 0), ds, transposed(e), T, H, n);
        for (size_t t = 0; t < T; t++) {
            const stored_t *dh = dcombine + (t * B + b) * 2 * H + H;
            SIMD for (size_t j = 0; j < H; j++) scratch[t * H + j] += float_from_stored(dh[j]);
            store_row(decoder.d + (t * B + b) * H, scratch + t * H, H);
        }
        matmul(floats(scratch, H, 0), transposed(ds), transposed(h), n, H, T);
        matmul(floats(scratch, H, 1), transposed(sequence_rows(p)), transposed(dcontext), n, H, T);
        for (size_t s = 0; s < n; s++)
            store_row(encoder.d + ((first + s) * B + b) * H, scratch + s * H, H);
    }
}

// Reads the sources. The state after them is the decoder's before its first position.
static void encode(void) {
    stack_forward(&encoder, encoder.T);
    for (int l = 0; l < asked.layers; l++) {
        const Lstm *from = &encoder.lstm[l], *to = &decoder.lstm[l];
        memcpy(to->cell, from->cell + encoder.T * B * H, B * H * sizeof(float));
        memcpy(to->recurrent->x, from->out + (encoder.T - 1) * B * H, B * H * sizeof(stored_t));
    }
}
// The logits of the decoder's first positions.
static void decode(size_t steps) {
    stack_forward(&decoder, steps);
    if (has_encoder) {
        attend(steps);
        layer_forward(combine, 0, head->x, STORED, steps * B);
        PARALLEL_SIMD for (size_t k = 0; k < steps * B * H; k++) head->x[k] =
            stored_from_float(hyperbolic_tangent(float_from_stored(head->x[k])));
    } else memcpy(head->x, decoder.out, steps * B * H * sizeof(stored_t));
    layer_forward(head, 0, logits, DTYPE_FP32, steps * B);
}
static void backward(size_t steps) {
    const size_t rows = steps * B;
    for (int l = 0; l < asked.layers; l++) {
        memset(decoder.lstm[l].dh, 0, B * H * sizeof(stored_t));
        memset(decoder.lstm[l].dc, 0, B * H * sizeof(float));
    }
    layer_backward(head, 0, has_encoder ? dhead : decoder.d, dlogits, rows);
    if (has_encoder) {
        PARALLEL_SIMD for (size_t k = 0; k < rows * H; k++) {
            const float y = float_from_stored(head->x[k]);
            dhead[k] = stored_from_float(float_from_stored(dhead[k]) * (1 - y * y));
        }
        layer_backward(combine, 0, dcombine, dhead, rows);
        attend_backward();
    }
    stack_backward(&decoder, steps);
    if (!has_encoder) return;
    for (int l = 0; l < asked.layers; l++) {
        memcpy(encoder.lstm[l].dh, decoder.lstm[l].dh, B * H * sizeof(stored_t));
        memcpy(encoder.lstm[l].dc, decoder.lstm[l].dc, B * H * sizeof(float));
    }
    stack_backward(&encoder, encoder.T);
}

// The sum of the losses of the decoder's first positions, and how many targets count. With a loss
// scale, also the gradients of their mean.
static double losses_sum(size_t steps, float loss_scale, size_t *counted) {
    const size_t rows = steps * B;
    double sum = 0;
    *counted = 0;
    for (size_t row = 0; row < rows; row++) *counted += targets[row] >= 0;
    classifier(losses, loss_scale > 0 ? dlogits : NULL, logits, targets, (int)rows, (int)V, (int)V,
               loss_scale / (float)*counted);
    for (size_t row = 0; row < rows; row++) sum += losses[row];
    if (loss_scale > 0) backward(steps);
    return sum;
}
static int best_token(size_t row) { return sample_token(logits + row * V, (int)V, 0, 0); }

// ---- the language model
static Dataset train_text;
static ValidationSet test_rows;

// Reads windows [B, time] into the decoder's tokens and targets [time][B]. Every window begins with
// the state 0: backpropagation through time is truncated there.
static void lm_fill(long step) {
    const size_t T = asked.time;
    int *windows = memory_allocate(2 * B * T * sizeof(int));
    dataset_batch(&train_text, settings.seed, (uint64_t)step * B, windows, windows + B * T, (int)B,
                  (int)T);
    for (size_t k = 0; k < B * T; k++) {
        decoder.tokens[k % T * B + k / T] = windows[k];
        targets[k % T * B + k / T] = windows[B * T + k];
    }
    free(windows);
}
// The mean over the bytes of the test rows, and the share of bytes whose prediction was the most
// probable one. Where the data has the surprisal of every story, rows are whole stories and the
// loss has a floor.
static void lm_test(double *loss, double *accuracy) {
    const ValidationSet *v = &test_rows;
    size_t right = 0, counted;
    *loss = 0;
    for (size_t first = 0; first < (size_t)v->rows; first += B) {
        for (size_t k = 0; k < v->T * B; k++) {
            const size_t t = k / B, row = first + k % B;
            const size_t at = MIN(row, (size_t)v->rows - 1) * v->T + t;
            decoder.tokens[k] = v->tokens[at];
            targets[k] = row < (size_t)v->rows ? v->targets[at] : -1;
        }
        decode(v->T);
        for (size_t k = 0; k < v->T * B; k++)
            right += targets[k] >= 0 && best_token(k) == targets[k];
        *loss += losses_sum(v->T, 0, &counted);
    }
    *loss /= v->counted;
    *accuracy = 100.0 * right / v->counted;
    if (v->floor > 0) printf("floor of the test rows: %.6f nats a byte\n", v->floor);
}
static void lm_open(void) {
    enum { TEST_TIME = 256 };
    train_text = dataset_open(asked.train);
    Dataset test_text = dataset_open(asked.val);
    EXPECT(train_text.V == BYTES && test_text.V == BYTES,
           "options --train and --val: expected texts");
    dataset_windows(&train_text, "training", (int)asked.time, 1);
    dataset_windows(&test_text, "test", TEST_TIME, 0);
    test_rows = validation_open(&test_text, TEST_TIME, asked.test);
    V = BYTES;
    stack_add(&decoder, MAX(asked.time, TEST_TIME), "embedding", "");
    train_steps = asked.time;
}

// ---- pairs of a source and a target (pairs.h)
static const Pairs *pairs;

// Fills sequence b. The source is right-aligned in its positions, the target left-aligned.
static void pair_fill(size_t b, uint64_t seed, uint64_t index, int test) {
    char source[TEXT_MAX], target[TEXT_MAX];
    pair_draw(pairs, seed, index, test, source, target);
    const size_t n = strlen(source), start = encoder.T - n, length = strlen(target);
    encoder.start[b] = (int)start;
    for (size_t s = 0; s < encoder.T; s++)
        encoder.tokens[s * B + b] = s < start ? PAD : source[s - start];
    for (size_t t = 0; t < decoder.T; t++) {
        decoder.tokens[t * B + b] = t == 0 ? BEGIN : t <= length ? target[t - 1] : PAD;
        targets[t * B + b] = t < length ? target[t] : t == length ? END : -1;
    }
}
static void pairs_fill(long step) {
    for (size_t b = 0; b < B; b++) pair_fill(b, settings.seed, (uint64_t)step * B + b, 0);
}
// The loss of the test examples, given the target's earlier characters, and the share that greedy
// decoding gets exactly right, given only its own. The decoder then runs anew from its first
// position for each character, which changes nothing of what it wrote before.
static void pairs_test(double *loss, double *accuracy) {
    const size_t examples = asked.test;
    size_t right = 0, all = 0, counted;
    *loss = 0;
    for (size_t first = 0; first < examples; first += B) {
        for (size_t b = 0; b < B; b++) pair_fill(b, 1, first + b, 1);
        for (size_t k = 0; k < decoder.T * B; k++)
            if (first + k % B >= examples) targets[k] = -1;
        encode();
        decode(decoder.T);
        *loss += losses_sum(decoder.T, 0, &counted);
        all += counted;
        int *wrong = memory_allocate(B * sizeof(int));
        for (size_t t = 0; t < decoder.T; t++) {
            decode(t + 1);
            for (size_t b = 0; b < B; b++) {
                const int best = best_token(t * B + b), target = targets[t * B + b];
                wrong[b] |= target >= 0 && best != target;
                if (t + 1 < decoder.T) decoder.tokens[(t + 1) * B + b] = best;
            }
        }
        for (size_t b = 0; b < B && first + b < examples; b++) right += !wrong[b];
        free(wrong);
    }
    *loss /= all;
    *accuracy = 100.0 * right / examples;
}
static void pairs_open(void) {
    pairs = pairs_of(asked.task);
    EXPECT(pairs, "option --task: expected lm, numbers or dates, found '%s'", asked.task);
    has_encoder = 1;
    V = ASCII;
    stack_add(&encoder, pairs->source, "source", "enc_");
    stack_add(&decoder, pairs->target, "target", "dec_");
    train_steps = decoder.T;
    const size_t T = pairs->target, S = pairs->source;
    combine = layer_add("combine", NULL, 1, T * B, 2 * H, H, 1 / sqrtf(2.0f * H));
    dhead = memory_allocate(T * B * H * sizeof(stored_t));
    dcombine = memory_allocate(T * B * 2 * H * sizeof(stored_t));
    probabilities = memory_allocate(B * T * S * sizeof(stored_t));
    dscores = memory_allocate(T * S * sizeof(stored_t));
    scratch = memory_allocate(MAX(T, S) * MAX(S, H) * sizeof(float));
}

// ---- the program
static void batch_fill(long step) {
    if (has_encoder) pairs_fill(step);
    else lm_fill(step);
}
static double batch(long step, float loss_scale) {
    size_t counted;
    batch_fill(step);
    if (has_encoder) encode();
    decode(train_steps);
    const double sum = losses_sum(train_steps, loss_scale, &counted);
    return sum / counted;
}
// For dev/check/paper_check.py: the tokens of all --steps batches.
static void batches_dump(FILE *f) {
    for (long step = 0; step < settings.steps; step++) {
        char name[32];
        batch_fill(step);
        snprintf(name, sizeof(name), "%ld", step);
        if (has_encoder) ints_write(f, "source.", name, encoder.tokens, encoder.T * B);
        if (has_encoder) ints_write(f, "start.", name, encoder.start, B);
        ints_write(f, "tokens.", name, decoder.tokens, train_steps * B);
        ints_write(f, "targets.", name, targets, train_steps * B);
    }
}
int main(int argc, char **argv) {
    settings.steps = 1500;
    settings.batch = 32;
    settings.lr = 5e-3;
    settings_read(argc, argv, own_options, COUNT(own_options));
    B = settings.batch;
    H = asked.hidden;
    const int is_lm = !strcmp(asked.task, "lm");
    if (is_lm) lm_open();
    else pairs_open();
    const size_t rows = decoder.T * B;
    head = layer_add("head", "head_bias", 1, rows, H, V, 1 / sqrtf((float)H));
    if (!asked.fp8_head) head->fp8 = 0;
    targets = memory_allocate(rows * sizeof(int));
    losses = memory_allocate(rows * sizeof(float));
    logits = memory_allocate(rows * V * sizeof(float));
    dlogits = memory_allocate(rows * V * sizeof(stored_t));
    net_allocate();
    for (int l = 0; l < asked.layers; l++) // forget gates begin open
        for (size_t j = H; j < 2 * H; j++) {
            if (has_encoder) param_weights(encoder.lstm[l].input->bias)[j] = 1;
            param_weights(decoder.lstm[l].input->bias)[j] = 1;
        }
    // Gates and tanh leave their linear range, so that the check sees all of their derivatives.
    for (size_t k = 0; settings.check && k < net.g.param_count; k++) net.g.master[k] *= 3;
    const Task task = is_lm ? (Task){batch, lm_test, batches_dump, "a byte"}
                            : (Task){batch, pairs_test, batches_dump, "a character"};
    return net_run(&task);
}
