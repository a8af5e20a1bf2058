/*
A stand-in for NCCL over MPI, for on_cpu.h, which includes this file if USE_NCCL is defined: what
train_gpt_fp8.cu calls of it, so that `mpirun -np N` trains with N processes on a CPU. As NCCL's,
the calls are work of a stream, which begins when the host waits, and what stands in a group goes
together: sends and receives wait for each other only at its end.

What it checks: that all processes have the same id, which one of them made, and GPUs of their own;
that buffers are the device's and hold so many bytes; that sizes of a send and its receive agree;
that all processes capture a call in a graph, or none.
CUDA_ON_CPU_GPU=N makes the GPU that a process chose N of its machine, as a wrong launcher would.
*/
#pragma once
#define OMPI_SKIP_MPICXX 1
#include <limits.h>
#include <mpi.h>

typedef enum { ncclSuccess = 0, ncclInvalidArgument = 4, ncclInvalidUsage = 5 } ncclResult_t;
typedef enum { ncclUint8 = 1, ncclUint32 = 3 } ncclDataType_t;
typedef enum { ncclSum, ncclProd, ncclMax } ncclRedOp_t;
#define NCCL_UNIQUE_ID_BYTES 128
typedef struct {
    char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;
typedef struct OnCpuComm {
    int rank, size;
} * ncclComm_t;

namespace on_cpu {
inline std::string nccl_error;
inline ncclResult_t nccl_fail(ncclResult_t r, const std::string &why) {
    return nccl_error = why, r;
}
struct Transfer { // of a stream
    enum { BCAST, MAX, SEND, RECV } kind;
    void *data;
    size_t count;
    int peer;
    int captured; // in a graph: then in all processes
};
inline std::vector<Transfer> group;
inline int group_depth;
inline const void *group_stream;
inline const char captured_by_some[] = "captured in a graph by some processes only";
inline void transfers_run(const std::vector<Transfer> &all) {
    std::vector<MPI_Request> requests;
    std::vector<MPI_Status> statuses;
    std::vector<size_t> expected; // bytes; of a send 0
    for (const Transfer &t : all) {
        const int bytes = (int)t.count;
        int either[2] = {t.captured, !t.captured};
        if (t.kind == Transfer::BCAST || t.kind == Transfer::MAX) {
            MPI_Allreduce(MPI_IN_PLACE, either, 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
            ON_CPU_EXPECT(!either[0] || !either[1], "NCCL: %s", captured_by_some);
        }
        if (t.kind == Transfer::BCAST) MPI_Bcast(t.data, bytes, MPI_BYTE, t.peer, MPI_COMM_WORLD);
        if (t.kind == Transfer::MAX)
            MPI_Allreduce(MPI_IN_PLACE, t.data, bytes, MPI_UINT32_T, MPI_MAX, MPI_COMM_WORLD);
        if (t.kind != Transfer::SEND && t.kind != Transfer::RECV) continue;
        requests.push_back(MPI_REQUEST_NULL);
        expected.push_back(t.kind == Transfer::RECV ? t.count : 0);
        if (t.kind == Transfer::SEND)
            MPI_Isend(t.data, bytes, MPI_BYTE, t.peer, t.captured, MPI_COMM_WORLD,
                      &requests.back());
        else
            MPI_Irecv(t.data, bytes, MPI_BYTE, t.peer, MPI_ANY_TAG, MPI_COMM_WORLD,
                      &requests.back());
    }
    statuses.resize(requests.size());
    MPI_Waitall((int)requests.size(), requests.data(), statuses.data());
    for (size_t i = 0; i < requests.size(); i++) {
        int bytes = 0;
        if (!expected[i]) continue;
        ON_CPU_EXPECT(statuses[i].MPI_TAG == all[0].captured, "NCCL: %s", captured_by_some);
        MPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
        ON_CPU_EXPECT((size_t)bytes == expected[i], "ncclRecv: %d bytes came, expected %zu", bytes,
                      expected[i]);
    }
}
inline ncclResult_t group_submit() {
    std::vector<Transfer> all;
    all.swap(group);
    submit(group_stream, [all] { transfers_run(all); });
    return ncclSuccess;
}
inline ncclResult_t transfer(Transfer t, size_t width, const void *stream) {
    ON_CPU_EXPECT(in_device(t.data), "NCCL: %p is not the device's", t.data);
    ON_CPU_EXPECT(t.count * width <= INT_MAX, "NCCL's stand-in moves at most 2 GiB at once");
    range_check(t.data, t.count * width, "NCCL");
    ON_CPU_EXPECT(group.empty() || group_stream == stream, "NCCL: a group of two streams");
    t.captured = capture != NULL;
    group.push_back(t), group_stream = stream;
    return group_depth ? ncclSuccess : group_submit();
}
inline void nccl_finalize() { MPI_Finalize(); }
inline void nccl_begin() { // a program built without USE_MPI
    int begun;
    MPI_Initialized(&begun);
    if (begun) return;
    MPI_Init(NULL, NULL);
    atexit(nccl_finalize);
}
} // namespace on_cpu

inline const char *ncclGetErrorString(ncclResult_t r) {
    return r == ncclSuccess           ? "no error"
           : r == ncclInvalidArgument ? "invalid argument"
                                      : "invalid usage";
}
inline const char *ncclGetLastError(ncclComm_t) { return on_cpu::nccl_error.c_str(); }
inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof(*id));
    snprintf(id->internal, sizeof(id->internal), "%d %llu", (int)getpid(),
             (unsigned long long)on_cpu::nanoseconds());
    return ncclSuccess;
}
inline ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank) {
    int mpi_rank, mpi_size, device;
    on_cpu::nccl_begin();
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank), MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    if (mpi_rank != rank || mpi_size != size)
        return on_cpu::nccl_fail(ncclInvalidArgument, "ranks are not mpirun's");
    cudaGetDevice(&device);
    device = (int)on_cpu::setting("CUDA_ON_CPU_GPU", device);
    std::vector<int> devices(size);
    std::vector<ncclUniqueId> ids(size);
    MPI_Allgather(&device, 1, MPI_INT, devices.data(), 1, MPI_INT, MPI_COMM_WORLD);
    MPI_Allgather(&id, sizeof(id), MPI_BYTE, ids.data(), sizeof(id), MPI_BYTE, MPI_COMM_WORLD);
    for (int q = 0; q < size; q++) {
        if (memcmp(&ids[q], &id, sizeof(id)))
            return on_cpu::nccl_fail(ncclInvalidUsage, "ids differ");
        if (q != rank && devices[q] == device)
            return on_cpu::nccl_fail(ncclInvalidUsage,
                                     "Duplicate GPU detected : rank " + std::to_string(rank) +
                                         " and rank " + std::to_string(q) +
                                         " both on CUDA device " + std::to_string(device));
    }
    *comm = new OnCpuComm{rank, size};
    return ncclSuccess;
}
inline ncclResult_t ncclGroupStart() { return on_cpu::group_depth++, ncclSuccess; }
inline ncclResult_t ncclGroupEnd() {
    return --on_cpu::group_depth || on_cpu::group.empty() ? ncclSuccess : on_cpu::group_submit();
}
inline ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                                  int root, ncclComm_t, cudaStream_t s) {
    ON_CPU_EXPECT(from == to && type == ncclUint8, "ncclBroadcast: bytes in place only");
    return on_cpu::transfer({on_cpu::Transfer::BCAST, to, count, root, 0}, 1, s);
}
inline ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                                  ncclRedOp_t op, ncclComm_t, cudaStream_t s) {
    ON_CPU_EXPECT(from == to && type == ncclUint32 && op == ncclMax,
                  "ncclAllReduce: the maximum of uint32 in place only");
    return on_cpu::transfer({on_cpu::Transfer::MAX, to, count, 0, 0}, 4, s);
}
inline ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int to,
                             ncclComm_t, cudaStream_t s) {
    ON_CPU_EXPECT(type == ncclUint8, "ncclSend: bytes only");
    return on_cpu::transfer({on_cpu::Transfer::SEND, (void *)(uintptr_t)from, count, to, 0}, 1, s);
}
inline ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int from, ncclComm_t,
                             cudaStream_t s) {
    ON_CPU_EXPECT(type == ncclUint8, "ncclRecv: bytes only");
    return on_cpu::transfer({on_cpu::Transfer::RECV, to, count, from, 0}, 1, s);
}
