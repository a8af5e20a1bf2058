/* How fast processes exchange bytes here, for dev/bench/scale.py --measure:

    mpicc -O2 dev/bench/links.c -o links && mpirun -np 2 links

As the trainer does it (section 17): `trade`, in which every process sends a message to every other;
and broadcasts of one message after another, each process the root in turn. Buffers are as large as
a gradient, so that little of them lies in a cache. Prints, tab-separated: link, processes, kind,
bytes of a message, microseconds of one trade or broadcast (the median of rounds).
*/
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA = 64 << 20, ROUNDS = 15, EACH = 16, PROCESSES = 64 };
static int rank, size;

static void trade(const char *sent, char *got, int bytes) {
    MPI_Request requests[2 * PROCESSES];
    int n = 0;
    for (int i = 1; i < size; i++) {
        const int to = (rank + i) % size, from = (rank + size - i) % size;
        MPI_Irecv(got + (size_t)from * bytes, bytes, MPI_BYTE, from, 0, MPI_COMM_WORLD,
                  &requests[n++]);
        MPI_Isend(sent + (size_t)to * bytes, bytes, MPI_BYTE, to, 0, MPI_COMM_WORLD,
                  &requests[n++]);
    }
    MPI_Waitall(n, requests, MPI_STATUSES_IGNORE);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *kind, char *arena, char *got, int bytes) {
    double us[ROUNDS];
    size_t at = 0;
    for (int round = 0; round < ROUNDS; round++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = MPI_Wtime();
        for (int i = 0; i < EACH; i++) {
            if (kind[0] == 't') trade(arena + at, got, bytes);
            else MPI_Bcast(arena + at, bytes, MPI_BYTE, i % size, MPI_COMM_WORLD);
            at += (size_t)bytes * size;
            if (at + (size_t)bytes * size > ARENA) at = 0;
        }
        MPI_Barrier(MPI_COMM_WORLD);
        us[round] = 1e6 * (MPI_Wtime() - begin) / EACH;
    }
    qsort(us, ROUNDS, sizeof(*us), ascending);
    if (!rank) printf("link\t%d\t%s\t%d\t%.3f\n", size, kind, bytes, us[ROUNDS / 2]);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    char *arena = malloc(ARENA), *got = malloc(ARENA);
    if (size < 2 || size > PROCESSES || !arena || !got) {
        fprintf(stderr, "links: 2 to %d processes, found %d\n", PROCESSES, size);
        return 2;
    }
    memset(arena, 1, ARENA);
    memset(got, 1, ARENA);
    for (int bytes = 8; bytes <= 512 << 10; bytes *= 16) measure("trade", arena, got, bytes);
    for (int bytes = 8; bytes <= 512 << 10; bytes *= 16) measure("broadcast", arena, got, bytes);
    free(arena);
    free(got);
    MPI_Finalize();
    return 0;
}
