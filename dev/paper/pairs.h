/*
The pairs of dev/paper/lstm.c: a source and a target text, made from a whole number `key`. Included
after the trainer's file, whose random numbers it draws.
*/
#define TEXT_MAX 128
// Adds the words of n < 1000.
static void hundreds_write(char *to, int n) {
    static const char *const small[] = {"zero",    "one",     "two",       "three",    "four",
                                        "five",    "six",     "seven",     "eight",    "nine",
                                        "ten",     "eleven",  "twelve",    "thirteen", "fourteen",
                                        "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    static const char *const tens[] = {"",      "",      "twenty",  "thirty", "forty",
                                       "fifty", "sixty", "seventy", "eighty", "ninety"};
    const int rest = n % 100;
    if (n >= 100) sprintf(to + strlen(to), "%s hundred%s", small[n / 100], rest ? " and " : "");
    if (rest >= 20)
        sprintf(to + strlen(to), "%s%s%s", tens[rest / 10], rest % 10 ? "-" : "",
                rest % 10 ? small[rest % 10] : "");
    else if (rest || n == 0) strcat(to, small[rest]);
}
// "three hundred and seven thousand and twelve", "307012".
static void number_write(int key, int notation, char *source, char *target) {
    const int rest = key % 1000;
    (void)notation;
    *source = 0;
    if (key >= 1000) {
        hundreds_write(source, key / 1000);
        strcat(source, rest == 0 ? " thousand" : rest < 100 ? " thousand and " : " thousand ");
    }
    if (rest || key == 0) hundreds_write(source, rest);
    sprintf(target, "%d", key);
}
// "Tuesday, 03 March 1987" or another notation, "1987-03-03". key: days since 1900-01-01.
static void date_write(int key, int notation, char *source, char *target) {
    static const char *const formats[] = {"%A, %d %B %Y", "%B %d, %Y", "%d %b %Y", "%d.%m.%Y",
                                          "the %d of %B %Y"};
    const time_t seconds = ((time_t)key - 25567) * 86400; // since 1970
    struct tm date;
    gmtime_r(&seconds, &date);
    strftime(source, TEXT_MAX, formats[notation], &date);
    strftime(target, TEXT_MAX, "%Y-%m-%d", &date);
}
typedef struct {
    const char *name;
    int keys, notations;
    size_t source, target; // characters at most, the target's END included
    void (*write)(int key, int notation, char *source, char *target);
} Pairs;
static const Pairs pair_tasks[] = {{"numbers", 1000000, 1, 72, 7, number_write},
                                   {"dates", 73049, 5, 28, 11, date_write}};

// The pairs of a task, or NULL.
static const Pairs *pairs_of(const char *task) {
    for (int i = 0; i < COUNT(pair_tasks); i++)
        if (!strcmp(task, pair_tasks[i].name)) return &pair_tasks[i];
    return NULL;
}

// Pair number `index` of a seed. A tenth of the keys, by a hash, is for the test only.
static void pair_draw(const Pairs *pairs, uint64_t seed, uint64_t index, int test, char *source,
                      char *target) {
    uint64_t r = random_u64(seed, test, index);
    while ((mix64(r % pairs->keys) % 10 == 0) != test) r = mix64(r);
    pairs->write((int)(r % pairs->keys), (int)(mix64(r) % pairs->notations), source, target);
}
