/*
The trainer's own encoding of texts, for dev/check/tokenizer_check.py:

  tokenizer_dump TOKENIZER.bin VOCABULARY TEXT OUT.i32

VOCABULARY is the tokenizer's number of tokens. TEXT holds texts that end in a zero byte each. OUT
gets, for each, the number of tokens and the tokens, int32.
*/
#define TESTING
#include "../../train_gpt_fp8.c"

int main(int argc, char **argv) {
    EXPECT(argc == 5, "usage: tokenizer_dump TOKENIZER.bin VOCABULARY TEXT OUT.i32");
    const Tokenizer tokenizer = tokenizer_open(argv[1], atoi(argv[2]));
    FILE *in = fopen(argv[3], "rb"), *out = fopen(argv[4], "wb");
    EXPECT(in && out, "%s or %s: cannot open", argv[3], argv[4]);
    fseek(in, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(in);
    rewind(in);
    char *text = (char *)memory_allocate(bytes + 1);
    int *tokens = (int *)memory_allocate((2 * bytes + 1) * sizeof(int));
    EXPECT(fread(text, 1, bytes, in) == bytes, "%s: cannot read", argv[3]);
    for (char *p = text; p < text + bytes; p += strlen(p) + 1) {
        const int n = tokenizer_encode(&tokenizer, p, tokens);
        fwrite(&n, sizeof(n), 1, out);
        fwrite(tokens, sizeof(int), (size_t)n, out);
    }
    fclose(in), fclose(out);
    return 0;
}
