/*
Times the product of two versions of the trainer against each other: both are in one process and
are called in turn, so that a machine whose speed drifts slows both. Each version is a library.

    FLAGS="$(make -s flags) -fopenmp -march=native -mprefer-vector-width=512"
    cc $FLAGS -shared -fPIC -DLIBRARY="\"$PWD/OLD.c\"" dev/bench/paired.c -o old.so -lm
    cc $FLAGS -shared -fPIC -DLIBRARY="\"$PWD/train_gpt_fp8.c\"" dev/bench/paired.c -o new.so -lm
    cc $FLAGS dev/bench/paired.c -o build/paired -ldl
    build/paired ./old.so ./new.so [SECONDS]

Prints for each instruction and shape the medians in GFLOP/s and the median of the ratios of
neighbours, old time / new time. Operands are FP8 bytes, packing is included, and the output is
written, not added to.
*/
#ifdef LIBRARY
#define TESTING
#include LIBRARY

static Output product_out;
static Matrix product_a, product_b;
static size_t product_m, product_n, product_k;

// Bytes of a matrix [rows, k], or of its transpose, of numbers between 2^-3 and 2.
static Matrix matrix_random(size_t rows, size_t k, int across) {
    unsigned char *data = (unsigned char *)memory_allocate(rows * k);
    for (size_t i = 0; i < rows * k; i++) {
        const uint64_t bits = random_u64(1, rows, i);
        data[i] = (unsigned char)((bits & 0x80) | (0x20 + (bits & 31)));
    }
    return across ? matrix(data, DTYPE_E4M3, 1, rows) : matrix(data, DTYPE_E4M3, k, 1);
}
// Kind 0, 1 and 2: fprop, dgrad and wgrad of a layer with `rows` tokens. Whether this CPU has that
// instruction: 0 fp32 multiply-adds, 1 vdpbf16ps, 2 AMX.
int paired_setup(int instruction, int kind, size_t rows, size_t out, size_t in) {
    static int ready;
    if (!ready) machine_init(1), workspace_init(4096 * 4096, 4096);
    ready = 1;
    if ((instruction == 1 && !HAS_PAIRS) || (instruction == 2 && !(HAS_AMX && AMX_PERMITTED())))
        return 0;
    product_in_tiles = instruction == 2;
    product_uses_pairs = instruction > 0;
    product_m = kind == 2 ? out : rows;
    product_n = kind == 0 ? out : in;
    product_k = kind == 0 ? in : kind == 1 ? out : rows;
    free((void *)(uintptr_t)product_a.data);
    free((void *)(uintptr_t)product_b.data);
    free(product_out.data);
    product_a = matrix_random(product_m, product_k, kind == 2);
    product_b = matrix_random(product_n, product_k, kind > 0);
    product_out = output(memory_allocate(product_m * product_n * 4),
                         kind == 2 ? DTYPE_FP32 : STORED, product_n, 1, NULL, 0);
    return 1;
}
double paired_seconds(void) {
    const double begin = seconds_now();
    matmul(product_out, product_a, product_b, product_m, product_n, product_k);
    return seconds_now() - begin;
}

#else
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { CALLS_MAX = 20000 };
typedef struct {
    int (*setup)(int instruction, int kind, size_t rows, size_t out, size_t in);
    double (*seconds)(void);
    double times[CALLS_MAX];
} Version;

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof(double), compare_doubles);
    return values[n / 2];
}

int main(int argc, char **argv) {
    static const char *const instructions[] = {"fp32 FMA", "vdpbf16ps", "AMX"}, *const kinds[] = {
                                                                                    "fprop",
                                                                                    "dgrad",
                                                                                    "wgrad"};
    static const size_t shapes[][3] = {{1024, 768, 768}, {1024, 3072, 768}, {1024, 384, 384},
                                       {1024, 256, 256}, {1000, 770, 770},  {1021, 1009, 997},
                                       {512, 50304, 768}}; // tokens, outputs, inputs
    static Version versions[2];
    static double ratios[CALLS_MAX];
    if (argc < 3) {
        fprintf(stderr, "usage: %s OLD.so NEW.so [SECONDS]\n", argv[0]);
        return 2;
    }
    for (int v = 0; v < 2; v++) {
        void *library = dlopen(argv[1 + v], RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 2;
        }
        *(void **)&versions[v].setup = dlsym(library, "paired_setup");
        *(void **)&versions[v].seconds = dlsym(library, "paired_seconds");
    }
    const double limit = argc > 3 ? atof(argv[3]) : 0.5;
    printf("| instruction | product | tokens x outputs x inputs | old, GFLOP/s | new | ratio |\n"
           "|---|---|---|---|---|---|\n");
    for (int instruction = 0; instruction < 3; instruction++)
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
            for (int kind = 0; kind < 3; kind++) {
                const size_t *z = shapes[s];
                int n = 0, there = 1;
                double sum = 0;
                for (int v = 0; v < 2; v++)
                    there &= versions[v].setup(instruction, kind, z[0], z[1], z[2]);
                for (int v = 0; there && v < 2; v++) versions[v].seconds();
                for (; there && n < CALLS_MAX && (sum < limit || n < 9); n++) {
                    // Each goes first in every second turn.
                    for (int i = 0; i < 2; i++) {
                        Version *version = &versions[(n + i) % 2];
                        version->times[n] = version->seconds();
                        sum += version->times[n];
                    }
                    ratios[n] = versions[0].times[n] / versions[1].times[n];
                }
                if (!there) continue;
                const double giga = 2e-9 * (double)z[0] * (double)z[1] * (double)z[2];
                printf("| %s | %s | %zu x %zu x %zu | %.0f | %.0f | %.2f |\n",
                       instructions[instruction], kinds[kind], z[0], z[1], z[2],
                       giga / median(versions[0].times, n), giga / median(versions[1].times, n),
                       median(ratios, n));
                fflush(stdout);
            }
    return 0;
}
#endif
