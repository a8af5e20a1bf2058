/*
How long each kernel of a program took on the GPU, without changing the program: the CUDA driver
loads this at start.

    g++ -O2 -shared -fPIC -I$CUDA_HOME/include dev/bench/gpu_trace.cpp -L$CUDA_HOME/lib -lcupti -o
build/gpu/gpu_trace.so CUDA_INJECTION64_PATH=build/gpu/gpu_trace.so GPU_TRACE_FILE=trace.tsv
./train_gpt_fp8cu ...

At the program's end GPU_TRACE_FILE has a row for each kernel, copy and fill, in no order: when it
began and how long it took, in nanoseconds, and its name. Kernels inside CUDA graphs are seen one by
one. Needs no hardware counters, unlike ncu. A traced program's own step times are not to be
believed, only the times of the kernels are.
*/
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include <cuda.h>
#include <cupti.h>

struct Row {
    uint64_t begin, end;
    const std::string *name;
};
static std::vector<Row>
    *rows; // made at start and never freed: records may come while the program ends
static std::map<std::string, int> *names;
static std::mutex *lock;

static void add(const std::string &name, uint64_t begin, uint64_t end) {
    rows->push_back({begin, end, &names->emplace(name, 0).first->first});
}
static std::string demangled(const char *name) {
    int status = 0;
    char *text = abi::__cxa_demangle(name, NULL, NULL, &status);
    std::string out = text ? text : name;
    free(text);
    std::replace(out.begin(), out.end(), '\t', ' ');
    return out;
}

static void CUPTIAPI buffer_requested(uint8_t **buffer, size_t *size, size_t *records) {
    *size = 4 << 20, *records = 0;
    if (posix_memalign((void **)buffer, 8, *size)) *buffer = NULL, *size = 0;
}
static void CUPTIAPI buffer_completed(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
    static std::map<const char *, std::string> readable; // CUPTI keeps one string a kernel
    const std::lock_guard<std::mutex> held(*lock);
    CUpti_Activity *record = NULL;
    while (valid && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const CUpti_ActivityKernel10 *k = (const CUpti_ActivityKernel10 *)
                record; // name, start and end lie where they always lay
            std::string &name = readable[k->name];
            if (name.empty()) name = demangled(k->name);
            add(name, k->start, k->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const CUpti_ActivityMemcpy6 *c = (const CUpti_ActivityMemcpy6 *)record;
            add(c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD ? "[copy on the device]"
                                                               : "[copy from or to the host]",
                c->start, c->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            const CUpti_ActivityMemset4 *m = (const CUpti_ActivityMemset4 *)record;
            add("[fill]", m->start, m->end);
        }
    }
    free(buffer);
}

static void trace_write() {
    const char *path = getenv("GPU_TRACE_FILE");
    cuptiActivityFlushAll(1);
    FILE *f = path ? fopen(path, "w") : NULL;
    if (!f) return;
    const std::lock_guard<std::mutex> held(*lock);
    for (const Row &row : *rows)
        fprintf(f, "%llu\t%llu\t%s\n", (unsigned long long)row.begin,
                (unsigned long long)(row.end - row.begin), row.name->c_str());
    fclose(f);
}

extern "C" int InitializeInjection(void) {
    rows = new std::vector<Row>, names = new std::map<std::string, int>, lock = new std::mutex;
    bool ok = cuptiActivityRegisterCallbacks(buffer_requested, buffer_completed) == CUPTI_SUCCESS;
    for (CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                    CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
        ok = ok && cuptiActivityEnable(kind) == CUPTI_SUCCESS;
    if (ok) atexit(trace_write);
    else fprintf(stderr, "gpu_trace: CUPTI refused; nothing is traced\n");
    return 1;
}
