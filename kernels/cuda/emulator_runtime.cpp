// The emulator's runtime: blocks, threads, barriers, shared memory.
//
// Every OS thread (a `Worker`) takes one block after the other. The threads of its block are fibers: each has a
// stack and gives way to another only where it has to wait, at a barrier or a shuffle. A switch stores the
// registers on one stack and loads them from another: some nanoseconds, no system call.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Collective { SYNCWARP, SHUFFLE, BALLOT, ANY, ALL };
enum Vote { SYNCTHREADS, SYNCTHREADS_COUNT, SYNCTHREADS_AND, SYNCTHREADS_OR };

struct Index {
    unsigned x, y, z;
};
struct SharedArray {
    const char *name;
    unsigned bytes, alignment;
};

// switch_stack(&mine, other): keep the registers that a function must preserve, and go on where `other` stopped.
extern "C" void emulated_switch(void **mine, void *other);
#ifdef __APPLE__
#define SYMBOL(name) "_" name
#else
#define SYMBOL(name) name
#endif
#if defined(__x86_64__)
asm(".text\n.globl " SYMBOL("emulated_switch") "\n" SYMBOL("emulated_switch") ":\n"
    "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "movq %rsp, (%rdi); movq %rsi, %rsp\n"
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
    "ret\n");
#elif defined(__aarch64__)
asm(".text\n.globl " SYMBOL("emulated_switch") "\n.p2align 2\n" SYMBOL("emulated_switch") ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n ret\n");
#else
#error "The emulator knows the registers of x86-64 and 64-bit ARM processors only."
#endif

constexpr int MOST_THREADS = 1024;
constexpr size_t STACK = 64 * 1024, ARENA = 256 * 1024, STATIC_LIMIT = 48 * 1024;

enum State : uint8_t { RUNS, AT_BARRIER, IN_WARP, EXITED };

struct Copy {  // one that __pipeline_memcpy_async ordered and that has not arrived yet
    void *to;
    unsigned bytes;
    int group;
    char data[16];
};

struct Thread {
    void *stack_pointer;
    Index index;
    State state;
    int collective, vote, line, source;
    unsigned mask;
    uint64_t value;
    int group;
    std::vector<Copy> copies;
};

struct Launch {
    void (*kernel)(void **);
    void **values;
    Index grid, block;
    unsigned threads, dynamic_bytes;
    uint64_t blocks;
    std::atomic<uint64_t> next_block{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::string error;  // of the thread that failed first
};

struct Worker {
    Launch *launch;
    Thread threads[MOST_THREADS];
    Thread *current;
    Index block;
    void *scheduler;                   // where run_block() waits while fibers run
    unsigned started, exited;          // of the block's threads
    unsigned waiting;                  // at the barrier
    unsigned ready[MOST_THREADS], head, tail;  // those that can go on: a ring
    char *stacks, *arena;
    size_t arena_used;
    std::vector<std::pair<const SharedArray *, char *>> arrays;

    Worker() {
        stacks = (char *)mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        arena = (char *)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    }
    void release(unsigned thread) {
        threads[thread].state = RUNS;
        ready[tail++ % MOST_THREADS] = thread;
    }
};

static thread_local Worker *worker __attribute__((tls_model("initial-exec")));

static std::string where(const Worker &w, const Thread &t) {
    char text[160];
    snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", w.block.x, w.block.y, w.block.z,
             t.index.x, t.index.y, t.index.z);
    return text;
}

[[noreturn]] static void leave() {  // give up the whole block
    void *forgotten;
    emulated_switch(&forgotten, worker->scheduler);
    __builtin_unreachable();
}

static void note(const std::string &error) {
    Launch &launch = *worker->launch;
    std::lock_guard<std::mutex> lock(launch.mutex);
    if (launch.error.empty()) launch.error = error;
    launch.stop = true;
}

[[noreturn]] static void fail(const std::string &what) {
    note(where(*worker, *worker->current) + ": " + what);
    leave();
}

// ---- Fibers

static void fiber();

// Somebody else's turn. A thread that has not begun gets a stack of its own; if none is left and nobody can go
// on, the scheduler finds out why.
static void yield_to_next() {
    Worker &w = *worker;
    void **mine = &w.current->stack_pointer;
    if (w.launch->stop.load(std::memory_order_relaxed)) leave();
    if (w.head != w.tail) {
        w.current = &w.threads[w.ready[w.head++ % MOST_THREADS]];
        emulated_switch(mine, w.current->stack_pointer);
    } else if (w.started < w.launch->threads) {
        char *top = w.stacks + (w.started + 1) * STACK;
        void **frame = (void **)top - 24;  // what emulated_switch pops: registers, then where to go
        memset(frame, 0, 24 * sizeof(void *));
#if defined(__x86_64__)
        frame[6] = (void *)fiber;
#else
        frame[11] = (void *)fiber;  // x30
#endif
        emulated_switch(mine, frame);
    } else {
        emulated_switch(mine, w.scheduler);
    }
}

static void check_waiting();

// A fiber runs threads to their end, one after the other on the same stack, until all of the block have begun.
static void fiber() {
    Worker &w = *worker;
    const Launch &launch = *w.launch;
    while (w.started < launch.threads) {
        unsigned i = w.started++;
        w.current = &w.threads[i];
        Thread &t = *w.current;
        t.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        t.state = RUNS;
        t.group = 0;
        t.copies.clear();
        launch.kernel(launch.values);
        w.current->state = EXITED;
        w.exited++;
        if (w.head != w.tail) break;
    }
    yield_to_next();
    __builtin_unreachable();
}

static void run_block(uint64_t number) {
    Worker &w = *worker;
    const Launch &launch = *w.launch;
    w.block = {unsigned(number % launch.grid.x), unsigned(number / launch.grid.x % launch.grid.y),
               unsigned(number / launch.grid.x / launch.grid.y)};
    w.started = w.exited = w.waiting = w.head = w.tail = 0;
    w.arrays.clear();
    w.arena_used = (launch.dynamic_bytes + 127) / 128 * 128;
    Thread start;  // stands for this function, from which the first fiber is entered
    w.current = &start;
    void **frame = (void **)(w.stacks + STACK) - 24;
    memset(frame, 0, 24 * sizeof(void *));
#if defined(__x86_64__)
    frame[6] = (void *)fiber;
#else
    frame[11] = (void *)fiber;
#endif
    emulated_switch(&w.scheduler, frame);
    if (w.exited < launch.threads && !launch.stop) check_waiting();
}

// ---- Waiting for each other

static void check_waiting() {
    Worker &w = *worker;
    std::string text;
    int shown = 0;
    for (unsigned i = 0; i < w.launch->threads && shown < 1; i++)
        if (w.threads[i].state != EXITED) text = where(w, w.threads[i]), shown++;
    note(text + ": waits at a barrier or shuffle that the others do not reach.");
}

EXPORT int emulated_syncthreads(int vote, int predicate, int line) {
    Worker &w = *worker;
    Thread &t = *w.current;
    t.vote = vote, t.line = line, t.value = predicate;
    t.state = AT_BARRIER;
    if (++w.waiting == w.launch->threads) {
        unsigned yes = 0;
        for (unsigned i = 0; i < w.launch->threads; i++) yes += w.threads[i].value;
        unsigned n = w.launch->threads;
        int answer = vote == SYNCTHREADS_COUNT ? yes : vote == SYNCTHREADS_AND ? yes == n : yes > 0;
        w.waiting = 0;
        for (unsigned i = 0; i < n; i++) {
            w.threads[i].value = answer;
            if (&w.threads[i] != &t) w.release(i);
        }
        t.state = RUNS;
        return answer;
    }
    yield_to_next();
    return w.threads[&t - w.threads].value;
}

EXPORT uint64_t emulated_warp(int collective, unsigned mask, uint64_t value, int source) {
    Worker &w = *worker;
    Thread &t = *w.current;
    unsigned first = (&t - w.threads) & ~31u, lanes = w.launch->threads - first;
    unsigned wanted = lanes < 32 ? mask & ((1u << lanes) - 1) : mask;
    t.collective = collective, t.mask = mask, t.value = value, t.source = source;
    t.state = IN_WARP;
    Thread *warp = w.threads + first;
    unsigned here = 0, votes = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (wanted >> lane & 1 && first + lane < w.started && warp[lane].state == IN_WARP &&
            warp[lane].mask == mask && warp[lane].collective == collective) {
            here |= 1u << lane;
            if (warp[lane].value) votes |= 1u << lane;
        }
    if (here != wanted) {
        yield_to_next();
        return t.value;
    }
    uint64_t values[32];
    for (unsigned lane = 0; lane < 32; lane++) values[lane] = warp[lane].value;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(wanted >> lane & 1)) continue;
        Thread &its = warp[lane];
        switch (collective) {
            case SHUFFLE: its.value = values[its.source & 31]; break;
            case BALLOT: its.value = votes; break;
            case ANY: its.value = votes != 0; break;
            case ALL: its.value = votes == wanted; break;
        }
        if (&its != &t) w.release(first + lane);
    }
    t.state = RUNS;
    return t.value;
}

EXPORT unsigned emulated_activemask() {
    Worker &w = *worker;
    unsigned first = (w.current - w.threads) & ~31u, mask = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < w.launch->threads; lane++)
        if (first + lane >= w.started || w.threads[first + lane].state != EXITED) mask |= 1u << lane;
    return mask;
}

// ---- Where a thread is

EXPORT Index emulated_threadIdx() { return worker->current->index; }
EXPORT Index emulated_blockIdx() { return worker->block; }
EXPORT Index emulated_blockDim() { return worker->launch->block; }
EXPORT Index emulated_gridDim() { return worker->launch->grid; }

// ---- Memory

EXPORT void *emulated_shared(const SharedArray *array) {
    Worker &w = *worker;
    for (auto &[known, address] : w.arrays)
        if (known == array) return address;
    size_t begin = (w.arena_used + array->alignment - 1) / array->alignment * array->alignment;
    w.arena_used = begin + array->bytes;
    if (w.arena_used > STATIC_LIMIT + w.launch->dynamic_bytes)
        fail("__shared__ arrays of the kernel take more than 48 KiB.");
    memset(w.arena + begin, 0xff, array->bytes);
    w.arrays.emplace_back(array, w.arena + begin);
    return w.arena + begin;
}

EXPORT void *emulated_dynamic_shared(const char *) { return worker->arena; }

EXPORT void emulated_copy_async(void *to, const void *from, unsigned bytes, unsigned zeros) {
    Copy copy{to, bytes, worker->current->group, {}};
    memcpy(copy.data, from, bytes - zeros);
    worker->current->copies.push_back(copy);
}
EXPORT void emulated_commit() { worker->current->group++; }
EXPORT void emulated_wait_prior(int n) {
    Thread &t = *worker->current;
    size_t kept = 0;
    for (Copy &copy : t.copies)
        if (copy.group < t.group - n)
            memcpy(copy.to, copy.data, copy.bytes);
        else
            t.copies[kept++] = copy;
    t.copies.resize(kept);
}

EXPORT void emulated_threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class Word>
static Word update(void *address, Word (*function)(Word, Word), Word value) {
    Word old = __atomic_load_n((Word *)address, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n((Word *)address, &old, function(old, value), true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class Word>
static Word exchange_if(void *address, Word compare, Word value) {
    __atomic_compare_exchange_n((Word *)address, &compare, value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    Worker &w = *worker;
    w.release(w.current - w.threads);  // a thread that waits for another one's value must let it run
    yield_to_next();
    return compare;
}
EXPORT uint32_t emulated_atomic32(void *p, uint32_t (*f)(uint32_t, uint32_t), uint32_t v) { return update(p, f, v); }
EXPORT uint64_t emulated_atomic64(void *p, uint64_t (*f)(uint64_t, uint64_t), uint64_t v) { return update(p, f, v); }
EXPORT uint32_t emulated_atomic_cas32(void *p, uint32_t compare, uint32_t v) { return exchange_if(p, compare, v); }
EXPORT uint64_t emulated_atomic_cas64(void *p, uint64_t compare, uint64_t v) { return exchange_if(p, compare, v); }

EXPORT void emulated_fail(const char *message) { fail(message); }
static std::mutex printing;
static std::string printed;
EXPORT int emulated_printf(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::lock_guard<std::mutex> lock(printing);
    printed += text;
    return n;
}
EXPORT const char *emulated_printed() {  // and forget it
    static std::string last;
    last.swap(printed);
    printed.clear();
    return last.c_str();
}

// ---- A launch

static std::mutex idle_mutex;
static std::vector<Worker *> idle;  // kept with their stacks for the next launch

static void work(Launch *launch) {
    {
        std::lock_guard<std::mutex> lock(idle_mutex);
        if (idle.empty()) idle.push_back(new Worker);
        worker = idle.back();
        idle.pop_back();
    }
    worker->launch = launch;
    for (uint64_t block; !launch->stop && (block = launch->next_block++) < launch->blocks;) run_block(block);
    std::lock_guard<std::mutex> lock(idle_mutex);
    idle.push_back(worker);
}

// -> the number of characters of the error's text, 0 if there is none
EXPORT int emulated_launch(void (*kernel)(void **), void **values, const unsigned *grid, const unsigned *block,
                           unsigned dynamic_bytes, int workers, char *error, int size) {
    Launch launch;
    launch.kernel = kernel;
    launch.values = values;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.threads = block[0] * block[1] * block[2];
    launch.blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    launch.dynamic_bytes = dynamic_bytes;
    std::vector<std::thread> others;
    for (uint64_t i = 1; i < uint64_t(workers) && i < launch.blocks; i++) others.emplace_back(work, &launch);
    work(&launch);
    for (std::thread &other : others) other.join();
    return snprintf(error, size, "%s", launch.error.c_str());
}
