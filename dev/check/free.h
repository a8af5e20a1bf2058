// What only tests free. Included after the trainer's file.
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
