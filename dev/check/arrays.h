// Arrays for a check in Python: a line "name count", then the numbers as float32. read_arrays() of
// check_references.py reads them. Included after the trainer's file.
static void array_write(FILE *f, const char *prefix, const char *name, const float *x, size_t n) {
    fprintf(f, "%s%s %zu\n", prefix, name, n);
    fwrite(x, sizeof(float), n, f);
}
static void ints_write(FILE *f, const char *prefix, const char *name, const int *x, size_t n) {
    float *floats = (float *)memory_allocate(n * sizeof(float));
    for (size_t i = 0; i < n; i++) floats[i] = (float)x[i];
    array_write(f, prefix, name, floats, n);
    free(floats);
}
