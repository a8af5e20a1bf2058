// Included before the trainer's file, by tests of the memory plan.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h> // declares posix_memalign, before it is another name
#endif
// memory_allocate()'s calls are counted, to hold the memory plan to what is really taken.
static size_t bytes_allocated;
static int counting_memalign(void **p, size_t align, size_t bytes) {
    bytes_allocated += bytes;
    return posix_memalign(p, align, bytes);
}
#define posix_memalign counting_memalign
