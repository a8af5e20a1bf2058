/* glyphs.c: pictures of drawn glyphs for training a small classifier, made offline.

   A picture has 16 x 16 grey pixels and shows a glyph of one of 10 classes. A class is a few
   strokes of our own invention. Classes come in pairs that differ in little. Each picture draws the
   strokes of its class under a random affine map (rotation, scale, stretch, shear, shift). The
   points of the strokes are jittered. Width and grey are random. One to three foreign strokes are
   clutter. Noise is added last. The constants of section 1 and --noise set the difficulty.

   The pixels are the same bytes on every machine and with every compiler, because all arithmetic is
   done in integers. Randomness is counter-based, so picture i of a set depends on the seed, the set
   and i, and on nothing else.

   Build and run:
       cc -O2 -o data/glyphs data/glyphs.c
       data/glyphs --out data/glyphs.d         writes train.bin and test.bin
       data/glyphs --preview sheet.pgm         writes a picture of 10 x 20 pictures
       data/glyphs --selftest

   File format, all integers little-endian. data/digits.py writes the same:
       8 int32       20261129 (magic number), 1 (version), count, height, width, channels (1),
                     classes, 0
       uint64        checksum: FNV-1a 64 of everything after the header
       24 bytes      zeros; here the header ends, after 64 bytes
       count bytes   labels
       then          count * height * width bytes of pixels, 0 to 255, row by row from the top
 */

#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// ==== 1. constants and glyphs ===================================================================
#define HEADER_BYTES 64
#define SIZE         16 // height and width in pixels
#define PIXELS       (SIZE * SIZE)
#define CLASSES      10
#define SEGMENTS     8 // line segments of a drawn stroke

// Difficulty. Noise is the standard deviation in grey levels, jitter is in hundredths of a glyph.
#define NOISE        24
#define JITTER       5
#define CLUTTER_MAX  3
#define CLUTTER_GREY 200 // the brightest clutter; glyphs have 130 to 250

// A stroke is the parabola through three points: x and y, from the top left corner, in hundredths.
typedef struct Glyph {
    int strokes;
    signed char points[4][6];
} Glyph;

static const Glyph GLYPHS[CLASSES] = {
    // A hook, and one with a bar.
    {2, {{60, 5, 59, 38, 56, 68}, {56, 68, 42, 93, 20, 78}}},
    {3, {{60, 5, 59, 38, 56, 68}, {56, 68, 42, 93, 20, 78}, {36, 34, 58, 34, 82, 34}}},
    // A fork with two prongs, and one with three.
    {3, {{50, 95, 50, 76, 50, 54}, {50, 54, 24, 38, 14, 6}, {50, 54, 76, 38, 86, 6}}},
    {3, {{50, 95, 50, 50, 50, 6}, {50, 58, 24, 42, 14, 6}, {50, 58, 76, 42, 86, 6}}},
    // A loop on a stick, and one with a bar.
    {3, {{24, 28, 50, 4, 76, 28}, {24, 28, 50, 52, 76, 28}, {50, 52, 50, 74, 50, 96}}},
    {4,
     {{24, 28, 50, 4, 76, 28},
      {24, 28, 50, 52, 76, 28},
      {50, 52, 50, 74, 50, 96},
      {26, 75, 50, 75, 74, 75}}},
    // A bolt, and its mirror image.
    {3, {{16, 14, 50, 14, 84, 14}, {84, 14, 50, 50, 16, 86}, {16, 86, 50, 86, 84, 86}}},
    {3, {{16, 14, 50, 14, 84, 14}, {16, 14, 50, 50, 84, 86}, {16, 86, 50, 86, 84, 86}}},
    // A bowl with a crumb in it, and one with a lid.
    {2, {{10, 16, 50, 88, 90, 16}, {40, 30, 50, 30, 60, 30}}},
    {2, {{10, 16, 50, 88, 90, 16}, {10, 16, 50, 16, 90, 16}}},
};

__attribute__((noreturn)) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("glyphs: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

// ==== 2. random numbers, as in train_gpt_fp8.c ==================================================
static uint64_t mix64(uint64_t z) { // splitmix64
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t counter) {
    return mix64(mix64(mix64(seed) ^ stream) ^ counter);
}

// The random numbers of one picture, in the order in which they are asked for.
typedef struct Random {
    uint64_t seed, stream, counter;
} Random;

static uint64_t random_next(Random *r) {
    uint64_t bits = random_u64(r->seed, r->stream, r->counter);
    r->counter++;
    return bits;
}

// Uniform from low to high, both included. No range here is above 2^23: the bias is below 2^-9.
static int64_t random_range(Random *r, int64_t low, int64_t high) {
    uint64_t bits = random_next(r) >> 32;
    return low + (int64_t)(bits * (uint64_t)(high - low + 1) >> 32);
}

// Bell-shaped with mean 0: the sum of eight random bytes, whose standard deviation is 209.
static int64_t random_bell(Random *r, int64_t deviation) {
    uint64_t bits = random_next(r);
    int64_t sum = -1020;
    for (int i = 0; i < 8; i++) sum += (int64_t)(bits >> 8 * i & 255);
    return sum * deviation / 209;
}

// ==== 3. drawing ================================================================================
#define ONE ((int64_t)65536) // a pixel, and the number 1

typedef struct Point {
    int64_t x, y;
} Point;

// From hundredths of a glyph, counted from its centre, to pixels; all in units of 1 / ONE.
typedef struct Map {
    int64_t xx, xy, yx, yy, x, y;
} Map;

typedef struct Pen {
    int64_t half_width, grey;
} Pen;

typedef struct Picture {
    int label, points, points_inside; // the points of the glyph's strokes, without clutter
    unsigned char ink[PIXELS], pixels[PIXELS];
} Picture;

// Rotation needs no sine: with h = tan(angle / 2) the cosine is (1 - h^2) / (1 + h^2) and the sine
// is 2 h / (1 + h^2). h is at most 0.2217, so the angle is at most 25 degrees.
static Map map_random(Random *r, int64_t shift) {
    int64_t h = random_range(r, -14529, 14529);
    int64_t h2 = h * h / ONE;
    int64_t cosine = (ONE - h2) * ONE / (ONE + h2);
    int64_t sine = 2 * h * ONE / (ONE + h2);
    int64_t scale = random_range(r, 6500, 8300); // 100 units are 9.9 to 12.7 pixels
    int64_t stretch = scale * random_range(r, 55000, 76000) / ONE;
    int64_t shear = random_range(r, -16000, 16000);
    Map map;
    map.xx = cosine * scale / ONE;
    map.yx = sine * scale / ONE;
    map.xy = map.xx * shear / ONE - sine * stretch / ONE;
    map.yy = map.yx * shear / ONE + cosine * stretch / ONE;
    map.x = SIZE * ONE / 2 + random_range(r, -shift, shift);
    map.y = SIZE * ONE / 2 + random_range(r, -shift, shift);
    return map;
}

static uint64_t square_root(uint64_t n) { // rounded down
    uint64_t root = 0;
    for (uint64_t bit = 1ull << 31; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= n) root += bit;
    return root;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    if (value < low) return low;
    return value > high ? high : value;
}

static int64_t distance_to_segment(Point p, Point a, Point b) {
    Point along = {b.x - a.x, b.y - a.y};
    Point off = {p.x - a.x, p.y - a.y};
    int64_t length2 = along.x * along.x + along.y * along.y;
    int64_t dot = clamp(off.x * along.x + off.y * along.y, 0, length2);
    int64_t t = length2 ? dot * ONE / length2 : 0;
    off.x -= along.x * t / ONE;
    off.y -= along.y * t / ONE;
    return (int64_t)square_root((uint64_t)(off.x * off.x + off.y * off.y));
}

// The pixel at this place, or the nearest one of the frame.
static int pixel_at(int64_t x) { return (int)clamp(x / ONE, 0, SIZE - 1); }

// Coverage falls from 1 to 0 over one pixel across the edge of the stroke. Inks do not add up.
static void segment_draw(Picture *picture, Point a, Point b, Pen pen) {
    int64_t reach = pen.half_width + ONE / 2;
    int top = pixel_at((a.y < b.y ? a.y : b.y) - reach);
    int bottom = pixel_at((a.y < b.y ? b.y : a.y) + reach);
    int left = pixel_at((a.x < b.x ? a.x : b.x) - reach);
    int right = pixel_at((a.x < b.x ? b.x : a.x) + reach);
    for (int y = top; y <= bottom; y++)
        for (int x = left; x <= right; x++) {
            Point centre = {x * ONE + ONE / 2, y * ONE + ONE / 2};
            int64_t coverage = clamp(reach - distance_to_segment(centre, a, b), 0, ONE);
            int64_t ink = pen.grey * coverage / ONE;
            unsigned char *old = &picture->ink[y * SIZE + x];
            if (ink > *old) *old = (unsigned char)ink;
        }
}

// Draws the parabola through three points. Returns how many of its points lie in the frame.
static int stroke_draw(Picture *picture, const Point p[3], const Map *map, Pen pen) {
    Point before = {0, 0};
    int inside = 0;
    for (int k = 0; k <= SEGMENTS; k++) {
        int64_t first = (8 - k) * (4 - k);
        int64_t middle = 2 * k * (8 - k);
        int64_t last = k * (k - 4);
        int64_t x = (first * p[0].x + middle * p[1].x + last * p[2].x) / 32;
        int64_t y = (first * p[0].y + middle * p[1].y + last * p[2].y) / 32;
        Point at = {map->x + (map->xx * x + map->xy * y) / ONE,
                    map->y + (map->yx * x + map->yy * y) / ONE};
        if (k) segment_draw(picture, before, at, pen);
        inside += at.x >= 0 && at.x < SIZE * ONE && at.y >= 0 && at.y < SIZE * ONE;
        before = at;
    }
    return inside;
}

static void glyph_points(Random *r, Point p[3], const signed char *hundredths) {
    for (int i = 0; i < 3; i++) {
        int64_t jitter_x = random_range(r, -JITTER * ONE, JITTER * ONE);
        int64_t jitter_y = random_range(r, -JITTER * ONE, JITTER * ONE);
        p[i].x = (hundredths[2 * i] - 50) * ONE + jitter_x;
        p[i].y = (hundredths[2 * i + 1] - 50) * ONE + jitter_y;
    }
}

// A stroke of any glyph, or one through random points, somewhere in the frame.
static void clutter_draw(Picture *picture, Random *r) {
    Point p[3];
    const Glyph *glyph = &GLYPHS[random_range(r, 0, CLASSES - 1)];
    glyph_points(r, p, glyph->points[random_range(r, 0, glyph->strokes - 1)]);
    if (random_range(r, 0, 1))
        for (int i = 0; i < 3; i++) {
            p[i].x = random_range(r, -40 * ONE, 40 * ONE);
            p[i].y = random_range(r, -40 * ONE, 40 * ONE);
        }
    Map map = map_random(r, 6 * ONE);
    Pen pen;
    pen.half_width = random_range(r, ONE / 4, ONE * 3 / 4);
    pen.grey = random_range(r, 60, CLUTTER_GREY);
    stroke_draw(picture, p, &map, pen);
}

// Picture `index` of set `set` (0 train, 1 test).
static void picture_draw(Picture *picture, uint64_t seed, uint64_t set, uint64_t index,
                         int64_t noise) {
    Random r = {random_u64(seed, set, index), 0, 0};
    memset(picture, 0, sizeof *picture);
    picture->label = (int)random_range(&r, 0, CLASSES - 1);
    const Glyph *glyph = &GLYPHS[picture->label];
    Map map = map_random(&r, ONE * 3 / 2);
    Pen pen;
    pen.half_width = random_range(&r, ONE / 3, ONE * 9 / 10);
    pen.grey = random_range(&r, 130, 250);
    for (int i = 0; i < glyph->strokes; i++) {
        Point p[3];
        glyph_points(&r, p, glyph->points[i]);
        picture->points_inside += stroke_draw(picture, p, &map, pen);
        picture->points += SEGMENTS + 1;
    }
    int64_t clutter = random_range(&r, 1, CLUTTER_MAX);
    for (int64_t i = 0; i < clutter; i++) clutter_draw(picture, &r);
    int64_t paper = random_range(&r, 0, 60);
    for (int i = 0; i < PIXELS; i++) {
        int64_t grey = paper + picture->ink[i] * (255 - paper) / 255;
        picture->pixels[i] = (unsigned char)clamp(grey + random_bell(&r, noise), 0, 255);
    }
}

// ==== 4. files ==================================================================================
typedef struct Config {
    const char *out, *preview;
    uint64_t train, test, seed, noise;
} Config;

static uint64_t fnv1a64(const unsigned char *data, size_t n) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++) hash = (hash ^ data[i]) * 0x100000001b3ull;
    return hash;
}

static void little_endian(unsigned char *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) out[i] = (unsigned char)(value >> 8 * i);
}

static unsigned char *room_for(size_t bytes) {
    unsigned char *room = calloc(bytes, 1);
    if (!room) die("no memory for %zu bytes", bytes);
    return room;
}

// Readers never see half a file: it gets its name when it is complete. What is no regular file,
// such as a device, is written as it is.
static void file_save(const char *path, const void *data, size_t n) {
    char temporary[4096];
    struct stat status;
    int direct = !stat(path, &status) && !S_ISREG(status.st_mode);
    const char *suffix = direct ? "" : ".tmp";
    int length = snprintf(temporary, sizeof temporary, "%s%s", path, suffix);
    if (length >= (int)sizeof temporary) die("the name of a file is too long");
    if (!direct) remove(temporary); // never followed: it may be a link
    FILE *file = fopen(temporary, direct ? "wb" : "wbx");
    if (!file) die("cannot write %s: %s", temporary, strerror(errno));
    int written = fwrite(data, 1, n, file) == n && !fflush(file);
    int error = errno;
    fclose(file);
    if (!written && !direct) remove(temporary);
    if (!written) die("cannot write %s: %s", path, strerror(error));
    if (!direct && rename(temporary, path)) die("cannot rename %s: %s", temporary, strerror(errno));
}

static void set_write(const Config *config, const char *name, uint64_t set, uint64_t count) {
    size_t bytes = HEADER_BYTES + count * (1 + PIXELS);
    unsigned char *file = room_for(bytes);
    unsigned char *labels = file + HEADER_BYTES;
    const uint64_t fields[8] = {20261129, 1, count, SIZE, SIZE, 1, CLASSES, 0};
    char path[4000];
    for (uint64_t i = 0; i < count; i++) {
        Picture picture;
        picture_draw(&picture, config->seed, set, i, (int64_t)config->noise);
        labels[i] = (unsigned char)picture.label;
        memcpy(labels + count + i * PIXELS, picture.pixels, PIXELS);
    }
    uint64_t checksum = fnv1a64(labels, bytes - HEADER_BYTES);
    for (int i = 0; i < 8; i++) little_endian(file + 4 * i, fields[i], 4);
    little_endian(file + 32, checksum, 8);
    int length = snprintf(path, sizeof path, "%s/%s", config->out, name);
    if (length >= (int)sizeof path) die("--out is too long");
    file_save(path, file, bytes);
    printf("%s: %" PRIu64 " pictures, checksum %016" PRIx64 "\n", path, count, checksum);
    free(file);
}

// The first training pictures of each class, a row a class, as a PGM file.
static int preview_write(const Config *config) {
    const size_t width = 20 * SIZE;
    unsigned char *sheet = room_for(64 + CLASSES * SIZE * width);
    int head = sprintf((char *)sheet, "P5\n%zu %d\n255\n", width, CLASSES * SIZE);
    int filled[CLASSES] = {0};
    int left = CLASSES * 20;
    for (uint64_t i = 0; left > 0; i++) {
        Picture picture;
        picture_draw(&picture, config->seed, 0, i, (int64_t)config->noise);
        int column = filled[picture.label];
        if (column == 20) continue;
        filled[picture.label]++;
        left--;
        for (int y = 0; y < SIZE; y++) {
            size_t at = (size_t)(picture.label * SIZE + y) * width + (size_t)(column * SIZE);
            memcpy(sheet + head + at, picture.pixels + y * SIZE, SIZE);
        }
    }
    file_save(config->preview, sheet, (size_t)head + CLASSES * SIZE * width);
    free(sheet);
    return 0;
}

// ==== 5. self-test ==============================================================================
#define TEST_PICTURES 20000
// What the first 100 training pictures of seed 1 hash to, on every machine.
#define TEST_HASH 0x3709541a6ab3feb7ull

static int failed;

static void check(int ok, const char *what) {
    printf("%s %s\n", ok ? "ok  " : "FAIL", what);
    failed += !ok;
}

static void test_classes(void) {
    int seen[CLASSES] = {0};
    int points[CLASSES] = {0};
    int inside[CLASSES] = {0};
    int even = 1;
    int framed = 1;
    for (uint64_t i = 0; i < TEST_PICTURES; i++) {
        Picture picture;
        picture_draw(&picture, 1, 0, i, NOISE);
        seen[picture.label]++;
        points[picture.label] += picture.points;
        inside[picture.label] += picture.points_inside;
    }
    for (int c = 0; c < CLASSES; c++) {
        // The standard deviation of a class's count is 42.
        even &= abs(seen[c] - TEST_PICTURES / CLASSES) < 200;
        framed &= 100 * inside[c] > 98 * points[c];
    }
    check(even, "every class appears about equally often");
    check(framed, "98% of the points of every class lie in the frame");
}

static int selftest(void) {
    unsigned char hundred[100 * (1 + PIXELS)];
    Picture a, b;
    test_classes();
    for (uint64_t i = 0; i < 100; i++) {
        picture_draw(&a, 1, 0, i, NOISE);
        hundred[i] = (unsigned char)a.label;
        memcpy(hundred + 100 + i * PIXELS, a.pixels, PIXELS);
    }
    uint64_t hash = fnv1a64(hundred, sizeof hundred);
    printf("     the first 100 pictures have the hash %016" PRIx64 "\n", hash);
    check(hash == TEST_HASH, "this is the known hash");
    picture_draw(&b, 1, 0, 99, NOISE);
    check(!memcmp(&a, &b, sizeof a), "the same index gives the same picture");
    for (int k = 0; k < 3; k++) {
        picture_draw(&b, k == 0 ? 2 : 1, k == 1, k == 2 ? 98 : 99, NOISE);
        check(memcmp(a.pixels, b.pixels, PIXELS), "another seed, set or index: another picture");
    }
    check(square_root(99) == 9 && square_root(1ull << 40) == 1 << 20, "square roots");
    return failed > 0;
}

// ==== 6. options and main =======================================================================
static const char USAGE[] =
    "usage: glyphs [options]\n"
    "Writes train.bin and test.bin: labelled pictures of glyphs.\n"
    "  --out DIR       directory to write into, made if missing (data/glyphs.d)\n"
    "  --train N       pictures in train.bin (20000)\n"
    "  --test N        pictures in test.bin (10000)\n"
    "  --seed S        seed of all pictures (1)\n"
    "  --noise N       standard deviation of the noise, in grey levels (24)\n"
    "  --preview FILE  write a sheet of 10 x 20 pictures as PGM, and nothing else\n"
    "  --selftest      check the generator; write nothing\n"
    "  --help          this text";

static uint64_t number_parse(const char *name, const char *text, uint64_t low, uint64_t high) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < low || value > high)
        die("%s takes a number from %" PRIu64 " to %" PRIu64 ", not \"%s\"", name, low, high, text);
    return value;
}

int main(int argc, char **argv) {
    Config config = {"data/glyphs.d", NULL, 20000, 10000, 1, NOISE};
    signal(SIGXFSZ, SIG_IGN); // a limit on the size of files is then an error like any other
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i];
        const char *value = argv[i + 1];
        if (!strcmp(name, "--selftest")) return selftest();
        if (!strcmp(name, "--help")) return puts(USAGE) < 0;
        if (strncmp(name, "--", 2)) die("unexpected argument \"%s\"; see --help", name);
        if (!value) die("%s is unknown or lacks a value; see --help", name);
        if (!strcmp(name, "--out")) config.out = value;
        else if (!strcmp(name, "--preview")) config.preview = value;
        else if (!strcmp(name, "--train")) config.train = number_parse(name, value, 1, 1000000);
        else if (!strcmp(name, "--test")) config.test = number_parse(name, value, 1, 1000000);
        else if (!strcmp(name, "--seed")) config.seed = number_parse(name, value, 0, UINT64_MAX);
        else if (!strcmp(name, "--noise")) config.noise = number_parse(name, value, 0, 100);
        else die("unknown option %s; see --help", name);
    }
    if (!config.out[0]) die("--out is empty");
    if (config.preview) return preview_write(&config);
    if (mkdir(config.out, 0777) && errno != EEXIST)
        die("cannot make %s: %s", config.out, strerror(errno));
    set_write(&config, "test.bin", 1, config.test);
    set_write(&config, "train.bin", 0, config.train);
    return 0;
}
