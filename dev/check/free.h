// What only tests free, and their number of threads. Included after the trainer's file.
static void threads_set(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}
static void workspace_free(void) {
    free(workspace.packed_a), free(workspace.partial), free(workspace.thread);
    memset(&workspace, 0, sizeof(workspace));
}
#define TENSOR_FREE(role, name, ...) free(g->name);
static void gpt_free(Gpt *g) {
    GPT_TENSORS(TENSOR_FREE)
    free(g->scales);
    workspace_free();
    memset(g, 0, sizeof(*g));
}
