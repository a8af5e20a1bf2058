/*
Trains a small residual network on pictures: the convolutional networks of "FP8 Formats for Deep
Learning" (Micikevicius et al. 2022, table 2) at a size for a laptop.

    make build/paper/cnn_fp8 data/glyphs.d/train.bin
    build/paper/cnn_fp8 --seed 1                 # also cnn_fp16, cnn_bf16, cnn_fp32
    build/paper/cnn_fp8 --help

A convolution is a linear layer over patches: im2col() copies the k x k pixels around each output
pixel into a row of the layer's input. So all three products of every convolution read FP8 bytes.
The first layer and the last are in FP8, too, as in the paper's image networks. Batch normalization
(Ioffe and Szegedy 2015), ReLU, pooling and the loss are computed in fp32 from stored tensors (bf16,
or fp16 in that build).

The network (He et al. 2016): a 3 x 3 convolution, then stages of one residual block with 1, 2 and 4
times as many channels. The later stages halve the side. Global average pooling and a linear layer
give the logits. A tensor of N pictures is [N, side, side, channels]: a row is a pixel.
*/
#ifndef PROGRAM
#define PROGRAM "cnn_" PRECISION_NAME
#endif
#include "paper.h"

// ---- pictures: a file of data/glyphs.c or data/digits.py
#define PICTURE_MAGIC 20261129
typedef struct {
    int32_t magic, version, count, height, width, channels, classes, zero;
    uint64_t checksum; // FNV-1a of all bytes after the header
    uint64_t reserved[3];
} PictureHeader;
typedef struct {
    int count, side, classes;
    uint8_t *labels, *pixels; // [count], [count, side, side]
} Pictures;

static Pictures pictures_read(const char *path) {
    const File f = file_open(path, 0);
    PictureHeader h = {0};
    memcpy(&h, f.header, sizeof(h));
    file_expect(path, "a picture file's magic number", h.magic, PICTURE_MAGIC, PICTURE_MAGIC);
    file_expect(path, "version", h.version, 1, 1);
    file_expect(path, "a number of pictures", h.count, 1, 10000000);
    file_expect(path, "a height", h.height, 4, 64);
    file_expect(path, "a width", h.width, h.height, h.height);
    file_expect(path, "a number of channels", h.channels, 1, 1);
    file_expect(path, "a number of classes", h.classes, 2, 256);
    const size_t picture = (size_t)h.height * h.width, body = h.count * (picture + 1);
    file_expect(path, "a size in bytes", f.bytes, sizeof(h) + body, sizeof(h) + body);
    Pictures p = {h.count, h.height, h.classes, memory_allocate(body), NULL};
    p.pixels = p.labels + h.count;
    file_read(&f, sizeof(h), p.labels, body);
    uint64_t sum = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < body; i++) sum = (sum ^ p.labels[i]) * 0x100000001b3ull;
    EXPECT(sum == h.checksum, "%s: damaged: its checksum does not fit; make it again", path);
    for (int i = 0; i < h.count; i++) file_expect(path, "a label", p.labels[i], 0, h.classes - 1);
    close(f.fd);
    return p;
}

// ---- a convolution, its batch normalization, an addition and a ReLU
#define CHANNELS_MAX        512
#define BATCH_NORM_EPS      1e-5f
#define BATCH_NORM_MOMENTUM 0.1f // the newest batch's weight in the running averages
typedef struct {
    Layer *layer;
    int kernel, stride, side, channels; // side, channels: of the input
    int out_side, out_channels;
    int norm, relu;            // number of the normalization's weight (its bias is next)
    stored_t *y, *out;         // [N, out_side, out_side, out_channels] before and after the rest
    float *mean, *rstd;        // [out_channels] of the batch, or, when testing, the averages
    float *run_mean, *run_var; // [out_channels] running averages
    float *partial;            // [2][ceil(rows / ROWS)][out_channels] sums by blocks of rows
} Conv;

// names: of the convolution's weight, and of the normalization's weight and bias.
static Conv conv_make(const char *const names[3], int kernel, int stride, int side, int channels,
                      int out_channels, int relu) {
    Conv c = {.kernel = kernel, .stride = stride, .side = side, .channels = channels, .relu = relu};
    c.out_side = side / stride;
    c.out_channels = out_channels;
    const size_t rows = settings.batch * c.out_side * c.out_side, in = kernel * kernel * channels;
    // He initialization: a uniform distribution with the variance 2 / in.
    c.layer = layer_add(names[0], NULL, 1, rows, in, out_channels, sqrtf(6.0f / in));
    c.norm = param_add(names[1], out_channels, 1, 0, 1);
    param_add(names[2], out_channels, 1, 0, 0);
    c.y = memory_allocate(rows * out_channels * sizeof(stored_t));
    c.out = memory_allocate(rows * out_channels * sizeof(stored_t));
    float **const vectors[] = {&c.mean, &c.rstd, &c.run_mean, &c.run_var};
    for (int i = 0; i < COUNT(vectors); i++)
        *vectors[i] = memory_allocate(out_channels * sizeof(float));
    for (int i = 0; i < out_channels; i++) c.run_var[i] = 1;
    c.partial = memory_allocate(2 * ceil_div(rows, ROWS) * out_channels * sizeof(float));
    return c;
}
static size_t conv_rows(const Conv *c, int N) { return (size_t)N * c->out_side * c->out_side; }

// patches [N, out_side, out_side][kernel, kernel, channels]; pixels beyond the edge are zero.
static void im2col(const Conv *c, stored_t *patches, const stored_t *x, int N) {
    const int pad = c->kernel / 2, C = c->channels, patch = c->kernel * c->kernel * C;
    PARALLEL(static) for (size_t row = 0; row < conv_rows(c, N); row++) {
        const int left = (int)(row % c->out_side) * c->stride - pad;
        const int top = (int)(row / c->out_side % c->out_side) * c->stride - pad;
        const size_t picture = row / c->out_side / c->out_side;
        stored_t *to = patches + row * patch;
        for (int i = top; i < top + c->kernel; i++)
            for (int j = left; j < left + c->kernel; j++, to += C) {
                const int inside = i >= 0 && j >= 0 && i < c->side && j < c->side;
                const size_t pixel = (picture * c->side + i) * c->side + j;
                if (inside) memcpy(to, x + pixel * C, C * sizeof(stored_t));
                else memset(to, 0, C * sizeof(stored_t));
            }
    }
}
// The transpose of im2col(): dx of a pixel is the sum over the patches that it is part of. add: dx
// already holds another gradient.
static void col2im(const Conv *c, stored_t *dx, const stored_t *dpatches, int N, int add) {
    const int pad = c->kernel / 2, C = c->channels, patch = c->kernel * c->kernel * C;
    PARALLEL(static) for (size_t pixel = 0; pixel < (size_t)N * c->side * c->side; pixel++) {
        const int column = (int)(pixel % c->side), line = (int)(pixel / c->side % c->side);
        const size_t picture = pixel / c->side / c->side;
        float sum[CHANNELS_MAX];
        memset(sum, 0, C * sizeof(float));
        for (int i = 0; i < c->kernel; i++)
            for (int j = 0; j < c->kernel; j++) {
                const int top = line + pad - i, left = column + pad - j; // of the patch, in steps
                if (top < 0 || left < 0 || top % c->stride || left % c->stride) continue;
                if (top / c->stride >= c->out_side || left / c->stride >= c->out_side) continue;
                const size_t row =
                    (picture * c->out_side + top / c->stride) * c->out_side + left / c->stride;
                const stored_t *from = dpatches + row * patch + (i * c->kernel + j) * C;
                SIMD for (int k = 0; k < C; k++) sum[k] += float_from_stored(from[k]);
            }
        stored_t *to = dx + pixel * C;
        SIMD for (int k = 0; k < C; k++) to[k] =
            stored_from_float(add ? float_from_stored(to[k]) + sum[k] : sum[k]);
    }
}

// Mean and 1 / standard deviation of every channel of y over the batch, and the running averages.
static void norm_statistics(Conv *c, size_t rows) {
    const size_t C = c->out_channels, blocks = ceil_div(rows, ROWS);
    memset(c->mean, 0, C * sizeof(float));
    memset(c->rstd, 0, C * sizeof(float));
    column_sums(c->mean, c->y, c->partial, rows, C);
    for (size_t k = 0; k < C; k++) c->mean[k] /= (float)rows;
    PARALLEL(static) for (size_t b = 0; b < blocks; b++) {
        float *sum = c->partial + b * C;
        memset(sum, 0, C * sizeof(float));
        for (size_t row = b * ROWS; row < MIN(rows, (b + 1) * ROWS); row++)
            SIMD for (size_t k = 0; k < C; k++) {
                const float d = float_from_stored(c->y[row * C + k]) - c->mean[k];
                sum[k] += d * d;
            }
    }
    column_sums_finish(c->rstd, c->partial, blocks, C);
    for (size_t k = 0; k < C; k++) {
        const float squares = c->rstd[k], keep = 1 - BATCH_NORM_MOMENTUM;
        c->rstd[k] = 1 / sqrtf(squares / (float)rows + BATCH_NORM_EPS);
        c->run_mean[k] = keep * c->run_mean[k] + BATCH_NORM_MOMENTUM * c->mean[k];
        c->run_var[k] =
            keep * c->run_var[k] + BATCH_NORM_MOMENTUM * (squares / (float)MAX(rows - 1, 1));
    }
}

// c->out = relu(norm(convolution of x) + added); added may be NULL. train: by the batch's own
// statistics, else by the running averages.
static const stored_t *conv_forward(Conv *c, const stored_t *x, const stored_t *added, int N,
                                    int train) {
    const size_t C = c->out_channels, rows = conv_rows(c, N);
    const float *weight = param_weights(c->norm), *bias = param_weights(c->norm + 1);
    im2col(c, c->layer->x, x, N);
    layer_forward(c->layer, 0, c->y, STORED, rows);
    if (train) norm_statistics(c, rows);
    for (size_t k = 0; !train && k < C; k++) {
        c->mean[k] = c->run_mean[k];
        c->rstd[k] = 1 / sqrtf(c->run_var[k] + BATCH_NORM_EPS);
    }
    PARALLEL(static) for (size_t row = 0; row < rows; row++) {
        const stored_t *y = c->y + row * C, *a = added ? added + row * C : NULL;
        stored_t *out = c->out + row * C;
        SIMD for (size_t k = 0; k < C; k++) {
            float f = (float_from_stored(y[k]) - c->mean[k]) * c->rstd[k] * weight[k] + bias[k];
            if (a) f += float_from_stored(a[k]);
            out[k] = stored_from_float(c->relu && !(f > 0) && f == f ? 0 : f); // a NaN stays one
        }
    }
    return c->out;
}

// In place: d [rows, C] is the gradient of out, then that of y. `masked` may be NULL; it gets the
// gradient behind the ReLU, which is also that of `added`. With s the sum over rows,
//   dy = weight rstd (d - s(d) / rows - norm s(d norm) / rows);  dbias = s(d);  dweight = s(d norm)
static void norm_backward(Conv *c, stored_t *d, stored_t *masked, size_t rows) {
    const size_t C = c->out_channels, blocks = ceil_div(rows, ROWS);
    float *dweight = param_gradient(c->norm), *dbias = param_gradient(c->norm + 1);
    const float *weight = param_weights(c->norm);
#define NORMED(y, k) ((float_from_stored((y)[k]) - mean[k]) * rstd[k])
    const float *mean = c->mean, *rstd = c->rstd;
    PARALLEL(static) for (size_t b = 0; b < blocks; b++) {
        float *dw = c->partial + b * C, *db = c->partial + (blocks + b) * C;
        memset(dw, 0, C * sizeof(float));
        memset(db, 0, C * sizeof(float));
        for (size_t row = b * ROWS; row < MIN(rows, (b + 1) * ROWS); row++) {
            const stored_t *y = c->y + row * C, *out = c->out + row * C;
            stored_t *dy = d + row * C;
            for (size_t k = 0; c->relu && k < C; k++)
                dy[k] = float_from_stored(out[k]) == 0 ? 0 : dy[k];
            if (masked) memcpy(masked + row * C, dy, C * sizeof(stored_t));
            SIMD for (size_t k = 0; k < C; k++) {
                const float f = float_from_stored(dy[k]);
                dw[k] += f * NORMED(y, k);
                db[k] += f;
            }
        }
    }
    column_sums_finish(dweight, c->partial, blocks, C);
    column_sums_finish(dbias, c->partial + blocks * C, blocks, C);
    PARALLEL(static) for (size_t row = 0; row < rows; row++) {
        const stored_t *y = c->y + row * C;
        stored_t *dy = d + row * C;
        SIMD for (size_t k = 0; k < C; k++) {
            const float centred = float_from_stored(dy[k]) - dbias[k] / (float)rows;
            const float f = centred - NORMED(y, k) * (dweight[k] / (float)rows);
            dy[k] = stored_from_float(f * (weight[k] * rstd[k]));
        }
    }
}

// ---- the network
#define STAGES 3
typedef struct {
    Conv first, second, shortcut; // shortcut: 1 x 1, only where the block changes the shape
} Block;
static struct {
    const char *data;
    long channels; // of the first stage
    Pictures train, test;
    Conv stem;
    Block blocks[STAGES];
    Layer *head;
    stored_t *x;               // [N, side, side, 1]
    stored_t *d[3], *dpatches; // gradients of outputs of convolutions, and of patches
    stored_t *dpool, *dlogits; // [N, channels], [N, classes]
    float *logits, *losses;    // [N, classes], [N]
    int *targets;              // [N]
} cnn = {.data = "data/glyphs.d", .channels = 16};

static void cnn_make(void) {
    static const char *const stem[] = {"stem", "stem.norm", "stem.bias"};
    static const char *const names[STAGES][3][3] = {
        {{"1.conv1", "1.norm1", "1.bias1"}, {"1.conv2", "1.norm2", "1.bias2"}, {0}},
        {{"2.conv1", "2.norm1", "2.bias1"},
         {"2.conv2", "2.norm2", "2.bias2"},
         {"2.conv3", "2.norm3", "2.bias3"}},
        {{"3.conv1", "3.norm1", "3.bias1"},
         {"3.conv2", "3.norm2", "3.bias2"},
         {"3.conv3", "3.norm3", "3.bias3"}}};
    const int N = settings.batch, C = cnn.channels, classes = cnn.train.classes;
    int side = cnn.train.side, from = C;
    cnn.stem = conv_make(stem, 3, 1, side, 1, C, 1);
    for (int s = 0; s < STAGES; s++) {
        Block *b = &cnn.blocks[s];
        const int stride = s ? 2 : 1, to = C << s;
        b->first = conv_make(names[s][0], 3, stride, side, from, to, 1);
        b->second = conv_make(names[s][1], 3, 1, side / stride, to, to, 1);
        if (s > 0) b->shortcut = conv_make(names[s][2], 1, stride, side, from, to, 0);
        side /= stride;
        from = to;
    }
    cnn.head = layer_add("head", "head.bias", 1, N, from, classes, 1 / sqrtf(from));
    const size_t largest = (size_t)N * cnn.train.side * cnn.train.side * C * sizeof(stored_t);
    cnn.x = memory_allocate(largest / C);
    for (int i = 0; i < COUNT(cnn.d); i++) cnn.d[i] = memory_allocate(largest);
    cnn.dpatches = memory_allocate(9 * largest);
    cnn.dpool = memory_allocate(N * from * sizeof(stored_t));
    cnn.dlogits = memory_allocate(N * classes * sizeof(stored_t));
    cnn.logits = memory_allocate(N * classes * sizeof(float));
    cnn.losses = memory_allocate(N * sizeof(float));
    cnn.targets = memory_allocate(N * sizeof(int));
}
static const Conv *last_conv(void) { return &cnn.blocks[STAGES - 1].second; }

// cnn.x and cnn.targets of the N pictures of a set that index[] names. A pixel's 8 bits are exact.
static void pictures_load(const Pictures *set, const size_t *index, int N) {
    const size_t pixels = (size_t)set->side * set->side;
    for (int n = 0; n < N; n++) {
        cnn.targets[n] = set->labels[index[n]];
        for (size_t i = 0; i < pixels; i++)
            cnn.x[n * pixels + i] =
                stored_from_float((set->pixels[index[n] * pixels + i] - 128) / 64.0f);
    }
}

// The logits of the N pictures in cnn.x. A block computes relu(second(first(x)) + x). Where shapes
// differ, shortcut(x) replaces the last x.
static void cnn_forward(int N, int train) {
    const stored_t *x = conv_forward(&cnn.stem, cnn.x, NULL, N, train);
    for (int s = 0; s < STAGES; s++) {
        Block *b = &cnn.blocks[s];
        const stored_t *inner = conv_forward(&b->first, x, NULL, N, train);
        if (b->shortcut.layer) x = conv_forward(&b->shortcut, x, NULL, N, train);
        x = conv_forward(&b->second, inner, x, N, train);
    }
    const int C = last_conv()->out_channels, pixels = (int)conv_rows(last_conv(), 1);
    PARALLEL(static) for (int at = 0; at < N * C; at++) { // global average pooling
        float sum = 0;
        for (int i = 0; i < pixels; i++)
            sum += float_from_stored(x[(at / C * pixels + i) * C + at % C]);
        cnn.head->x[at] = stored_from_float(sum / (float)pixels);
    }
    layer_forward(cnn.head, 0, cnn.logits, DTYPE_FP32, N);
}

// d: the gradient of a convolution's output, overwritten; masked: see norm_backward(). dx gets that
// of its input, or grows by it where add is set.
static void conv_backward(Conv *c, stored_t *dx, stored_t *d, stored_t *masked, int N, int add) {
    norm_backward(c, d, masked, conv_rows(c, N));
    layer_backward(c->layer, 0, cnn.dpatches, d, conv_rows(c, N));
    if (dx) col2im(c, dx, cnn.dpatches, N, add);
}
static void cnn_backward(int N) {
    stored_t *d = cnn.d[0], *added = cnn.d[1], *inner = cnn.d[2];
    const int C = last_conv()->out_channels, pixels = (int)conv_rows(last_conv(), 1);
    layer_backward(cnn.head, 0, cnn.dpool, cnn.dlogits, N);
    PARALLEL(static) for (int at = 0; at < N * pixels * C; at++) {
        const float f = float_from_stored(cnn.dpool[at / C / pixels * C + at % C]);
        d[at] = stored_from_float(f / (float)pixels);
    }
    for (int s = STAGES - 1; s >= 0; s--) {
        Block *b = &cnn.blocks[s];
        conv_backward(&b->second, inner, d, added, N, 0);
        if (b->shortcut.layer) {
            conv_backward(&b->first, d, inner, NULL, N, 0);
            conv_backward(&b->shortcut, d, added, NULL, N, 1);
            continue;
        }
        conv_backward(&b->first, added, inner, NULL, N, 1);
        stored_t *sum = added;
        added = d;
        d = sum;
    }
    conv_backward(&cnn.stem, NULL, d, NULL, N, 0);
}

// ---- training
// The mean loss of the N pictures that are loaded; with loss_scale not 0 also dlogits.
static double cnn_loss(int N, float loss_scale) {
    const int classes = cnn.train.classes;
    double sum = 0;
    classifier(cnn.losses, loss_scale != 0 ? cnn.dlogits : NULL, cnn.logits, cnn.targets, N,
               classes, classes, loss_scale / (float)N);
    for (int n = 0; n < N; n++) sum += cnn.losses[n];
    return sum / N;
}
// Loads the batch of a step. The pictures are shuffled anew for every epoch. A batch may lie in two
// epochs.
static void batch_load(long step) {
    const int N = settings.batch, count = cnn.train.count;
    size_t index[4096];
    for (int n = 0; n < N; n++) {
        const uint64_t i = step * (uint64_t)N + n;
        index[n] = permute(i % count, count, mix64(settings.seed ^ mix64(i / count)));
    }
    pictures_load(&cnn.train, index, N);
}
static double cnn_batch(long step, float loss_scale) {
    const int N = settings.batch;
    batch_load(step);
    cnn_forward(N, 1);
    const double loss = cnn_loss(N, loss_scale);
    cnn_backward(N);
    return loss;
}
static void cnn_test(double *loss, double *accuracy) {
    const int classes = cnn.train.classes;
    double sum = 0;
    int right = 0;
    for (int at = 0, N; at < cnn.test.count; at += N) {
        size_t index[4096];
        N = MIN(cnn.test.count - at, settings.batch);
        for (int n = 0; n < N; n++) index[n] = at + n;
        pictures_load(&cnn.test, index, N);
        cnn_forward(N, 0);
        for (int n = 0; n < N; n++)
            right += sample_token(cnn.logits + n * classes, classes, 0, 0) == cnn.targets[n];
        sum += cnn_loss(N, 0) * N;
    }
    *loss = sum / cnn.test.count;
    *accuracy = 100.0 * right / cnn.test.count;
}

// For dev/check/paper_check.py: pictures and labels of every step's batch.
static void cnn_dump(FILE *f) {
    const size_t N = settings.batch, pixels = N * cnn.train.side * cnn.train.side;
    float *x = memory_allocate(pixels * sizeof(float));
    for (long step = 0; step < settings.steps; step++) {
        char name[32];
        batch_load(step);
        for (size_t i = 0; i < pixels; i++) x[i] = float_from_stored(cnn.x[i]);
        snprintf(name, sizeof(name), "%ld", step);
        array_write(f, "pictures.", name, x, pixels);
        ints_write(f, "labels.", name, cnn.targets, N);
    }
    free(x);
}

int main(int argc, char **argv) {
    const OptionRow own[] = {
        {"data", WORDS, &cnn.data, 0, 0, "directory of train.bin and test.bin"},
        {"channels", WHOLE, &cnn.channels, 1, CHANNELS_MAX / 4, "of the first stage"},
    };
    const Task task = {cnn_batch, cnn_test, cnn_dump, "a picture"};
    char path[4096];
    settings_read(argc, argv, own, COUNT(own));
    snprintf(path, sizeof(path), "%s/train.bin", cnn.data);
    cnn.train = pictures_read(path);
    snprintf(path, sizeof(path), "%s/test.bin", cnn.data);
    cnn.test = pictures_read(path);
    EXPECT(cnn.train.side == cnn.test.side && cnn.train.classes == cnn.test.classes,
           "%s: pictures of %d classes with a side of %d, but train.bin has %d and %d", path,
           cnn.test.classes, cnn.test.side, cnn.train.classes, cnn.train.side);
    EXPECT(cnn.train.side % 4 == 0, "%s: expected a side that 4 divides, found %d", path,
           cnn.train.side);
    cnn_make();
    net_allocate();
    return net_run(&task);
}
