/*
Runs CUDA kernels as plain C++17 on a CPU, with neither a GPU nor a CUDA header, so that their logic
can be tested anywhere:

    g++ -x c++ -std=c++17 -O2 -ffp-contract=off -DCUDA_ON_CPU -include dev/cuda/on_cpu.h
train_gpt_fp8.cu

(with -Wno-unknown-pragmas if it unrolls by #pragma; -march=native makes fmaf an instruction.)

The threads of a block are fibres of one thread of the machine. They switch at barriers and at the
collectives of a warp, and nowhere else. Blocks, warps and lanes run in the order that
CUDA_ON_CPU_ORDER names: forward, backward or shuffled:SEED. A program that is free of races gives
the same bits in all of them.

What it checks
- __syncthreads(): that all threads of the block meet at the same one. Collectives: that every lane
of the mask comes.
- Shared memory is filled with 0xff (NaN) before each block, device memory when it is allocated:
what nobody wrote shows. Allocations and dynamic shared memory have red zones behind them. A copy by
cp.async lands at its wait, not before.
- The host cannot touch device memory (the pages are protected), nor can a launch pass the host's
pointers to a kernel.
- Work given to a stream runs when the host waits for it, so that a missing wait shows. A captured
graph holds the arguments by value, and is replayed.
- A product has to be one that cuBLASLt supports: FP8 only K-major (TN), sizes in 16s, aligned, no
E5M2 x E5M2, scale modes and types by architecture. It is then a loop in fp32, each sum in the C
file's order (see its section 4).
- Launch limits: threads, grid, shared memory (over 48 KiB only after cudaFuncSetAttribute).
What it cannot check: races inside one stretch between two barriers that give the same bits in every
order, races between streams that neither of their two orders shows (the default stream is the
first), bank conflicts, registers, anything about speed, PTX (but for conversions, which follow its
manual), or approximate functions (__expf is expf here).

on_cpu_api.h holds what kernels and the host call, on_cpu_blas.h cuBLASLt, on_cpu_cudnn.h cuDNN,
on_cpu_nccl.h NCCL, by MPI, on_cpu_test.cpp the tests.

    CUDA_ON_CPU_STREAMS=late                                   the order of two streams
    CUDA_ON_CPU_ARCH=9.0  _SMS=4  _DEVICES=1  _DRIVER=13000  _MEMORY=4096 (MiB)    what the device
says of itself CUDA_ON_CPU_NO_CODE=1                                      the program holds no code
for it CUDA_ON_CPU_LT_REFUSES=bias, fast, call or fp8             with blocks no bias, no fast sums,
a bias only until the call; no FP8 CUDA_ON_CPU_TRACE=FILE                                     begin
and duration (ns) and name of every kernel, as dev/bench/gpu_trace.cpp
*/
#pragma once
#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>
#include <link.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif !defined(__aarch64__)
#define ON_CPU_UCONTEXT // no switch of our own
#endif
#ifdef ON_CPU_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__ // gcc
#define ON_CPU_ASAN          1
#define ON_CPU_TLS_IS_SHARED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ON_CPU_ASAN          1
#define ON_CPU_TLS_IS_SHARED 0 // clang links ASan's own variables into the same block
#endif
#endif
#ifdef ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ON_CPU_SEAL(p, bytes)   ASAN_POISON_MEMORY_REGION(p, bytes)
#define ON_CPU_UNSEAL(p, bytes) ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#else
#define ON_CPU_ASAN             0
#define ON_CPU_TLS_IS_SHARED    1
#define ON_CPU_SEAL(p, bytes)   ((void)0)
#define ON_CPU_UNSEAL(p, bytes) ((void)0)
#endif

// ---- the language: qualifiers, vector types, built-in variables
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Shared memory: variables of the one thread that runs all kernels, which lie in one block that
// shared_poison() fills. Nothing else of the program may be thread_local.
#define SHARED                     static thread_local
#define DYNAMIC_SHARED(type, name) type *name = (type *)(void *)on_cpu::dynamic_shared
#define VECTOR_TYPES(X)                                                                            \
    X(int, int)                                                                                    \
    X(uint, unsigned)                                                                              \
    X(float, float) X(double, double) X(ushort, uint16_t) X(uchar, uint8_t) X(char, signed char)
#define VECTOR_TYPE(name, T)                                                                       \
    struct alignas(2 * sizeof(T)) name##2 {                                                        \
        T x, y;                                                                                    \
    };                                                                                             \
    struct name##3 {                                                                               \
        T x, y, z;                                                                                 \
    };                                                                                             \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 {                              \
        T x, y, z, w;                                                                              \
    };                                                                                             \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                     \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                             \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR_TYPES(VECTOR_TYPE)
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace on_cpu {
// ---- errors: one line that names the kernel, block and thread, then exit status 99
struct Copy {
    void *to;
    const void *from;
    int group;
};
struct Thread {
    uint3 index;
    enum { READY, AT_BARRIER, AT_COLLECTIVE, DONE } state;
    void *sp;                                     // where it waits; NULL before it has begun
    int stack;                                    // of the pool
    int line;                                     // of the barrier it waits at
    unsigned mask;                                // of the collective it waits in,
    void (*combine)(void **lanes, unsigned mask); // what that does once all lanes are there,
    void *argument;                               // and this lane's part in it
    int groups;                                   // of cp.async: how many were committed
    std::vector<Copy> copies;                     // that have not landed
};
struct Kernel {
    const char *name, *file;
    int line;
    dim3 grid, block;
    size_t shared;
    std::function<void()> body; // runs it for one thread
};
inline Thread threads[1024], *self; // of the running block; self: NULL outside a kernel
inline const Kernel *kernel;        // that runs or is being launched
__attribute__((noreturn, format(printf, 1, 2))) inline void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "on_cpu: ");
    if (kernel) fprintf(stderr, "kernel %s (%s:%d)", kernel->name, kernel->file, kernel->line);
    if (self)
        fprintf(stderr, ", block %u,%u,%u, thread %u,%u,%u", blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x, threadIdx.y, threadIdx.z);
    fprintf(stderr, kernel ? ": " : "");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    _exit(99);
}
#define ON_CPU_EXPECT(condition, ...) ((condition) ? (void)0 : on_cpu::fail(__VA_ARGS__))
inline long setting(const char *name, long standard) {
    return getenv(name) ? atol(getenv(name)) : standard;
}

// ---- orders. A permutation of 0 .. n-1: ascending, descending, or another one at every call.
inline int order_kind; // 0 forward, 1 backward, 2 shuffled
inline uint64_t order_state;
inline void order_set(const char *order) {
    order_kind = !strcmp(order, "backward") ? 1 : !strncmp(order, "shuffled", 8) ? 2 : 0;
    ON_CPU_EXPECT(order_kind || !strcmp(order, "forward"),
                  "CUDA_ON_CPU_ORDER: expected forward, backward or shuffled:SEED");
    order_state = order_kind == 2 && order[8] ? strtoull(order + 9, NULL, 10) * 2 + 1 : 1;
}
inline const bool order_begun =
    (order_set(getenv("CUDA_ON_CPU_ORDER") ? getenv("CUDA_ON_CPU_ORDER") : "forward"), true);
inline void order_fill(unsigned *order, unsigned n) {
    for (unsigned i = 0; i < n; i++) order[i] = order_kind == 1 ? n - 1 - i : i;
    for (unsigned i = n; order_kind == 2 && i > 1; i--) {
        order_state = order_state * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(order_state >> 33) % i]);
    }
}

// ---- fibres: on_cpu_switch(&save, to) puts the registers that a callee keeps on the stack, and
// its end into save; then the same backwards from `to`. It is opaque, so that no compiler keeps
// shared memory in registers across it.
#ifdef ON_CPU_UCONTEXT
inline void context_switch(void **save, void *to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)to);
}
inline void (*volatile on_cpu_switch)(void **, void *) = context_switch;
inline void *context_make(char *stack, size_t bytes, void (*entry)()) {
    ucontext_t *u = (ucontext_t *)(void *)stack; // at the far end
    getcontext(u);
    u->uc_stack.ss_sp = stack + 4096, u->uc_stack.ss_size = bytes - 4096, u->uc_link = NULL;
    makecontext(u, entry, 0);
    return u;
}
#else
extern "C" void on_cpu_switch(void **save, void *to);
#ifdef __x86_64__
enum { FRAME = 8, ENTRY = 6 }; // words of a saved frame, and which of them is the address to go to
__asm__(
    ".text\n.p2align 4\non_cpu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\npopq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#else
enum { FRAME = 20, ENTRY = 11 };
// clang-format off
#define ON_CPU_ALL_REGISTERS(op) \
    op " x19, x20, [sp]\n" op " x21, x22, [sp, #16]\n" op " x23, x24, [sp, #32]\n" op " x25, x26, [sp, #48]\n" \
    op " x27, x28, [sp, #64]\n" op " x29, x30, [sp, #80]\n" op " d8, d9, [sp, #96]\n" op " d10, d11, [sp, #112]\n" \
    op " d12, d13, [sp, #128]\n" op " d14, d15, [sp, #144]\n"
__asm__(".text\n.p2align 4\non_cpu_switch:\nsub sp, sp, #160\n" ON_CPU_ALL_REGISTERS("stp")
        "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n" ON_CPU_ALL_REGISTERS("ldp") "add sp, sp, #160\nret\n");
// clang-format on
#endif
inline void *context_make(char *stack, size_t bytes, void (*entry)()) {
    void **sp = (void **)(void *)(stack + bytes) - FRAME;
    memset((void *)sp, 0, FRAME * sizeof(void *));
    sp[ENTRY] = (void *)entry;
    return sp;
}
#endif
// The pool of stacks. Their size is not a power of two, so that their tops lie in different sets of
// the cache.
inline constexpr size_t STACK = (ON_CPU_ASAN ? 1 << 18 : 1 << 16) + 576;
inline char *stacks;
inline int stack_count;
inline std::vector<int> stacks_free;
inline char *stack_at(int i) { return stacks + (size_t)i * STACK; }
inline uint64_t *stack_canary(int i) { return (uint64_t *)(void *)(stack_at(i) + 4096); }
inline void stack_take(Thread *t, void (*entry)()) {
    if (!stacks) {
        stacks = (char *)mmap(NULL, 1024 * STACK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ON_CPU_EXPECT(stacks != MAP_FAILED, "no memory for the stacks");
    }
    if (stacks_free.empty()) stacks_free.push_back(stack_count++);
    t->stack = stacks_free.back(), stacks_free.pop_back();
    ON_CPU_UNSEAL(stack_at(t->stack), STACK);
    t->sp = context_make(stack_at(t->stack), STACK, entry);
    *stack_canary(t->stack) = 0x5afe57ac;
}

// The warp that runs: its lanes in their order, and those of them that can go on.
inline struct {
    unsigned first, lanes, at[32], position[32];
    unsigned ready, waiting; // ready: a bit a position; waiting in a collective: a bit a lane
    void *scheduler;         // where run_warp() waits
    const void *main_stack;
    size_t main_bytes;
} warp;
inline void thread_enter(Thread *t) { self = t, threadIdx = t->index; }
inline Thread *thread_next() {
    if (!warp.ready) return NULL;
    const unsigned p = (unsigned)__builtin_ctz(warp.ready);
    warp.ready &= warp.ready - 1;
    return &threads[warp.first + warp.at[p]];
}
void fibre_main();
// Leaves the running fibre for thread `next`, or for run_warp() where there is none. ends: nobody
// will come back.
inline void fibre_leave(void **save, Thread *next, [[maybe_unused]] bool ends) {
    if (next && !next->sp) stack_take(next, fibre_main);
    if (next) thread_enter(next);
#if ON_CPU_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(ends ? NULL : &fake,
                                   next ? stack_at(next->stack) : warp.main_stack,
                                   next ? STACK : warp.main_bytes);
#endif
    on_cpu_switch(save, next ? next->sp : warp.scheduler);
#if ON_CPU_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}
inline void thread_wait() { fibre_leave(&self->sp, thread_next(), false); }
// Runs a thread; at its end, on the same stack, the next one that has not begun: without barriers,
// a plain loop over threads.
inline void fibre_main() {
#if ON_CPU_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(NULL, &stack, &bytes);
    if (!warp.main_stack)
        warp.main_stack = stack, warp.main_bytes = bytes; // the first fibre is begun by run_warp()
#endif
    for (;;) {
        kernel->body();
        ON_CPU_EXPECT(self->copies.empty(), "cp.async: %zu copies were never waited for",
                      self->copies.size());
        ON_CPU_EXPECT(*stack_canary(self->stack) == 0x5afe57ac,
                      "its local variables need more than %zu bytes of stack", STACK);
        self->state = Thread::DONE;
        const int mine = self->stack;
        Thread *next = thread_next();
        if (!next || next->sp) {
            void *unused;
            stacks_free.push_back(mine);
            fibre_leave(&unused, next, true);
        }
        next->stack = mine, next->sp = stacks; // not NULL: it has begun
        thread_enter(next);
    }
}

// Runs the lanes of a warp until each of them has ended or waits at a barrier of the block.
inline void run_warp(unsigned w, unsigned count) {
    warp.first = 32 * w, warp.lanes = std::min(count - warp.first, 32u);
    order_fill(warp.at, warp.lanes);
    for (unsigned p = 0; p < warp.lanes; p++) warp.position[warp.at[p]] = p;
    warp.waiting = 0;
    warp.ready = warp.lanes == 32 ? ~0u : (1u << warp.lanes) - 1;
    for (unsigned p = 0; p < warp.lanes; p++)
        if (threads[warp.first + p].state == Thread::DONE) warp.ready &= ~(1u << warp.position[p]);
    if (Thread *next = thread_next()) fibre_leave(&warp.scheduler, next, false);
    for (unsigned l = 0; l < warp.lanes; l++) {
        Thread *t = &threads[warp.first + l];
        if (t->state != Thread::AT_COLLECTIVE) continue;
        unsigned missing = t->mask & ~(1u << l);
        for (unsigned i = 0; i < warp.lanes; i++)
            if (threads[warp.first + i].state == Thread::AT_COLLECTIVE &&
                threads[warp.first + i].combine == t->combine)
                missing &= ~(1u << i);
        thread_enter(t);
        fail("not all lanes of the mask %08x reach the collective it waits in (missing: %08x)",
             t->mask, missing);
    }
}
inline uint64_t threads_run; // in all
void shared_poison(size_t dynamic);
inline void run_block(const Kernel &k) {
    const unsigned count = k.block.x * k.block.y * k.block.z, warps = (count + 31) / 32;
    unsigned order[32];
    shared_poison(k.shared);
    for (unsigned i = 0; i < count; i++) {
        Thread *t = &threads[i];
        t->index = {i % k.block.x, i / k.block.x % k.block.y, i / k.block.x / k.block.y};
        t->state = Thread::READY, t->sp = NULL, t->groups = 0, t->copies.clear();
    }
    for (bool done = false; !done;) {
        order_fill(order, warps);
        for (unsigned i = 0; i < warps; i++) run_warp(order[i], count);
        Thread *waits = NULL, *ended = NULL;
        for (unsigned i = 0; i < count; i++) {
            Thread *t = &threads[i];
            if (t->state == Thread::DONE) ended = t;
            else if (waits && t->line != waits->line) {
                thread_enter(t);
                fail("waits at the __syncthreads() of line %d, thread %u at that of line %d",
                     t->line, (unsigned)(waits - threads), waits->line);
            } else waits = t, t->state = Thread::READY;
        }
        if (waits && ended) {
            thread_enter(waits);
            fail("waits at the __syncthreads() of line %d, but thread %u has ended", waits->line,
                 (unsigned)(ended - threads));
        }
        done = !waits;
    }
    self = NULL, threads_run += count;
}

// ---- barriers and collectives. The last lane to arrive does the work for all.
inline void barrier(int line) {
    ON_CPU_EXPECT(self, "__syncthreads() outside a kernel");
    self->state = Thread::AT_BARRIER, self->line = line;
    thread_wait();
}
inline unsigned lane_id() { return (unsigned)(self - threads) - warp.first; }
inline void collective(unsigned mask, void (*combine)(void **, unsigned), void *argument) {
    void *lanes[32];
    mask &= warp.lanes == 32 ? ~0u : (1u << warp.lanes) - 1;
    ON_CPU_EXPECT(mask >> lane_id() & 1,
                  "calls a collective whose mask %08x leaves its own lane out", mask);
    self->state = Thread::AT_COLLECTIVE, self->mask = mask, self->combine = combine,
    self->argument = argument;
    warp.waiting |= 1u << lane_id();
    if ((warp.waiting & mask) != mask) return thread_wait();
    for (unsigned l = 0; l < warp.lanes; l++) {
        const Thread *t = &threads[warp.first + l];
        lanes[l] = t->argument;
        if (mask >> l & 1 && (t->combine != combine || t->mask != mask)) return thread_wait();
    }
    combine(lanes, mask);
    for (unsigned l = 0; l < warp.lanes; l++)
        if (mask >> l & 1)
            threads[warp.first + l].state = Thread::READY, warp.ready |= 1u << warp.position[l];
    warp.waiting &= ~mask;
    warp.ready &= ~(1u << warp.position[lane_id()]); // this one goes on at once
}
// ---- shared memory
inline constexpr size_t SHARED_MAX = 227 << 10, ZONE = 256; // of a block; of a red zone
alignas(1024) inline char dynamic_shared[SHARED_MAX + ZONE];
inline char *tls_begin;
inline size_t tls_bytes;
inline int tls_find(dl_phdr_info *info, size_t, void *) { // the first is the program itself
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            tls_begin = (char *)info->dlpi_tls_data, tls_bytes = info->dlpi_phdr[i].p_memsz;
    return 1;
}
inline const int tls_found = dl_iterate_phdr(tls_find, NULL);
inline void shared_poison(size_t dynamic) {
    if (ON_CPU_TLS_IS_SHARED && tls_bytes) memset(tls_begin, 0xff, tls_bytes);
    memset(dynamic_shared, 0xff, dynamic), memset(dynamic_shared + dynamic, 0xa5, ZONE);
}
inline bool in_shared(const void *p, size_t bytes) {
    const char *at = (const char *)p;
    return (at >= dynamic_shared && at + bytes <= dynamic_shared + kernel->shared) ||
           (at >= tls_begin && at + bytes <= tls_begin + tls_bytes);
}
inline void zone_check(const char *zone, const char *where, const char *what, size_t bytes) {
    static const std::string clean(ZONE, (char)0xa5);
    size_t i = 0;
    if (!memcmp(zone, clean.data(), ZONE)) return;
    while (zone[i] == clean[i]) i++;
    fail("something was written %s of %s of %zu bytes (byte %zu of its red zone)", where, what,
         bytes, i);
}

// ---- device memory: one range of addresses, closed to the host. Each allocation has red zones on
// both sides.
inline std::map<char *, size_t> allocations; // with their bytes
inline std::map<const char *, size_t> pinned;
inline char *device;
inline size_t device_end, device_used; // of the range ever used; bytes now allocated
// Huge pages: to open and close few is fast.
inline constexpr size_t DEVICE_RANGE = (size_t)16 << 30, PAGE = 2 << 20;
inline bool in_device(const void *p) {
    return device && (const char *)p >= device && (const char *)p < device + DEVICE_RANGE;
}
inline bool in_pinned(const void *p) {
    auto at = pinned.upper_bound((const char *)p);
    return at != pinned.begin() && (--at, (const char *)p < at->first + at->second);
}
inline int device_open_depth;
inline void device_open(bool open) {
    device_open_depth += open ? 1 : -1;
    if (device_end && device_open_depth == (open ? 1 : 0))
        mprotect(device, device_end, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
// p .. p + bytes must lie in one allocation where p is a device's address.
inline void range_check(const void *p, size_t bytes, const char *what) {
    if (!in_device(p) || bytes == 0) return;
    auto at = allocations.upper_bound((char *)const_cast<void *>(p));
    ON_CPU_EXPECT(at != allocations.begin(), "%s: %p is not in an allocation", what, p);
    --at;
    ON_CPU_EXPECT((const char *)p + bytes <= at->first + at->second,
                  "%s: %zu bytes at %p reach beyond their allocation of %zu bytes", what, bytes, p,
                  at->second);
}
inline void device_check() { // needs open memory; ASan finds it at once
    for (auto &a : allocations) {
        if (ON_CPU_ASAN) continue;
        zone_check(a.first - ZONE, "before the beginning", "an allocation", a.second);
        zone_check(a.first + a.second, "behind the end", "an allocation", a.second);
    }
}
inline void on_fault(int, siginfo_t *info, void *) {
    if (in_device(info->si_addr) && !self)
        fail("the host touches device memory at %p", info->si_addr);
    fail("a fault at address %p", info->si_addr);
}
inline void *device_allocate(size_t bytes) {
    if (device_used + bytes > (size_t)setting("CUDA_ON_CPU_MEMORY", 4096) << 20) return NULL;
    if (!device) {
        device = (char *)mmap(NULL, DEVICE_RANGE + PAGE, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ON_CPU_EXPECT(device != MAP_FAILED, "no address space for device memory");
        device += PAGE - (uintptr_t)device % PAGE;
        madvise(device, DEVICE_RANGE, MADV_HUGEPAGE);
        struct sigaction action = {};
        action.sa_sigaction = on_fault, action.sa_flags = SA_SIGINFO;
        if (!ON_CPU_ASAN) sigaction(SIGSEGV, &action, NULL);
    }
    char *p = device + ZONE; // first fit
    for (auto &a : allocations) {
        if (p + bytes + 2 * ZONE <= a.first) break;
        p = device + (((size_t)(a.first - device) + a.second + ZONE + 255) & ~(size_t)255) + ZONE;
    }
    const size_t end = ((size_t)(p - device) + bytes + ZONE + PAGE - 1) / PAGE * PAGE;
    ON_CPU_EXPECT(end <= DEVICE_RANGE, "device memory is too fragmented");
    device_end = std::max(device_end, end);
    device_open(true), mprotect(device, device_end, PROT_READ | PROT_WRITE);
    ON_CPU_UNSEAL(p - ZONE, bytes + 2 * ZONE);
    memset(p, 0xff, bytes), memset(p - ZONE, 0xa5, ZONE), memset(p + bytes, 0xa5, ZONE);
    ON_CPU_SEAL(p - ZONE, ZONE), ON_CPU_SEAL(p + bytes, ZONE);
    device_open(false);
    allocations[p] = bytes, device_used += bytes;
    return p;
}

// ---- streams: work waits until the host does. FTZ and DAZ are on in kernels and products, as with
// -ftz=true. Of two streams the second goes as late as it may, or, with CUDA_ON_CPU_STREAMS=early,
// as early: so a wait that is missing between them shows.
typedef std::shared_ptr<bool> Flag; // whether an event's record was reached
struct Op {
    std::function<void()> work;
    Flag waits, reaches;
};
enum { STREAMS = 2 };
inline std::deque<Op> queues[STREAMS];
struct Graph {
    std::vector<std::pair<int, Op>> work;
    std::map<Flag, size_t> records; // of a capture: how much work its stream had then
    int origin;
    size_t count[STREAMS];
    bool taken[STREAMS], joined[STREAMS];
};
inline Graph *capture; // where work goes while a stream is captured
inline int stream_index(const void *stream) { return stream ? (int)(uintptr_t)stream - 1 : 0; }
inline void submit(const void *stream, Op op) {
    const int i = stream_index(stream);
    if (!capture) return queues[i].push_back(std::move(op));
    ON_CPU_EXPECT(capture->taken[i],
                  "work for stream %d, which the capture of stream %d has not reached", i,
                  capture->origin);
    ON_CPU_EXPECT(stream, "work for the default stream while another is captured");
    if (op.reaches) capture->records[op.reaches] = capture->count[i];
    else capture->count[i]++, capture->joined[i] = false;
    capture->work.push_back({i, std::move(op)});
}
inline void submit(const void *stream, std::function<void()> work) {
    submit(stream, Op{std::move(work), {}, {}});
}
inline void stream_wait(const void *stream, const Flag &flag) {
    const int i = stream_index(stream);
    if (!flag) return; // never recorded
    if (capture) {
        ON_CPU_EXPECT(capture->records.count(flag),
                      "cudaStreamWaitEvent: the event was recorded outside of the capture");
        capture->taken[i] = true;
        for (int from = 0; i == capture->origin && from < STREAMS; from++)
            for (auto &w : capture->work)
                if (w.first == from && w.second.reaches == flag)
                    capture->joined[from] |= capture->records[flag] == capture->count[from];
    }
    submit(stream, Op{[] {}, flag, {}});
    if (capture) capture->joined[i] = i == capture->origin;
}
inline void graph_launch(const Graph *g) {
    std::map<Flag, Flag> again; // this launch's flags
    for (auto &w : g->work) {
        Op op = w.second;
        for (Flag *f : {&op.waits, &op.reaches})
            if (*f) *f = again.count(*f) ? again[*f] : again[*f] = std::make_shared<bool>(false);
        queues[w.first].push_back(op);
    }
}
#if defined(__x86_64__)
enum { FLUSH = 0x8040 };
inline uint64_t float_mode() { return _mm_getcsr(); }
inline void float_mode_set(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { FLUSH = 1 << 24 };
inline uint64_t float_mode() {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
inline void float_mode_set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
enum { FLUSH = 0 };
inline uint64_t float_mode() { return 0; }
inline void float_mode_set(uint64_t) {}
#endif
// Runs what a stream has, or all have, and what that waits for; or until an event is reached.
inline void drain(const char *caller, int stream = STREAMS, const Flag &until = {}) {
    ON_CPU_EXPECT(!capture, "%s() while a stream is captured", caller);
    ON_CPU_EXPECT(!self, "%s() inside a kernel", caller);
    static const char *order = getenv("CUDA_ON_CPU_STREAMS");
    const int early = order && !strcmp(order, "early");
    const auto busy = [&](int i) {
        return !(until && *until) && !queues[i].empty() && (stream == i || stream == STREAMS);
    };
    if (!busy(0) && !busy(1)) return;
    device_open(true);
    const uint64_t mode = float_mode();
    float_mode_set(mode | FLUSH);
    while (busy(0) || busy(1)) {
        int i = early;
        const auto stuck = [&] {
            return queues[i].empty() || (queues[i][0].waits && !*queues[i][0].waits);
        };
        if (stuck()) i = !i;
        ON_CPU_EXPECT(!stuck(), "%s(): a stream waits for an event that nothing records", caller);
        const Op op = queues[i].front();
        queues[i].pop_front();
        op.work();
        if (op.reaches) *op.reaches = true;
    }
    float_mode_set(mode);
    device_check();
    device_open(false);
}
inline FILE *trace_file =
    getenv("CUDA_ON_CPU_TRACE") ? fopen(getenv("CUDA_ON_CPU_TRACE"), "w") : NULL;
inline uint64_t nanoseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}
inline int kernel_architecture; // as architecture() says when a kernel begins
int architecture();
inline void run_kernel(const Kernel &k) {
    kernel_architecture = architecture();
    const uint64_t begin = trace_file ? nanoseconds() : 0;
    const unsigned blocks = k.grid.x * k.grid.y * k.grid.z;
    std::vector<unsigned> order(blocks);
    kernel = &k, blockDim = k.block, gridDim = k.grid;
    order_fill(order.data(), blocks);
    for (unsigned b : order) {
        blockIdx = {b % k.grid.x, b / k.grid.x % k.grid.y, b / k.grid.x / k.grid.y};
        run_block(k);
        zone_check(dynamic_shared + k.shared, "behind the end", "dynamic shared memory", k.shared);
    }
    device_check(); // so that the kernel that wrote there is named
    kernel = NULL;
    if (trace_file)
        fprintf(trace_file, "%llu\t%llu\t%s\n", (unsigned long long)begin,
                (unsigned long long)(nanoseconds() - begin), k.name),
            fflush(trace_file);
}
} // namespace on_cpu

#include "on_cpu_api.h"
#include "on_cpu_blas.h"
#include "on_cpu_cudnn.h"
#ifdef USE_NCCL
#include "on_cpu_nccl.h"
#endif
