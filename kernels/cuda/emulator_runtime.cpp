// The emulator's runtime: blocks, threads, barriers, shuffles, shared memory.
//
// Every OS thread (a `Worker`) takes one block after the other. The threads of its block are fibers: each has
// a stack, and gives way to another only where it has to wait, at a barrier or a shuffle. A switch stores the
// registers on one stack and loads them from another: some nanoseconds, no system call.
#include "emulator_runtime.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <thread>

__thread Worker *worker;
std::atomic<bool> interrupted;

// ---- Fibers

// emulated_switch(&mine, other): keep on the stack what a function must preserve, note the stack's top in
// `mine`, and go on where `other` was noted.
extern "C" void emulated_switch(void **mine, void *other);
#ifdef __APPLE__
#define SWITCH "_emulated_switch"
#else
#define SWITCH "emulated_switch"
#endif
#if defined(__x86_64__)
asm(".text\n .globl " SWITCH "\n" SWITCH
    ":\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
constexpr int SAVED = 6;  // of the words that it loads, the one to which it returns
#elif defined(__aarch64__)
asm(".text\n .globl " SWITCH "\n .p2align 2\n" SWITCH
    ":\n"
    "sub sp, sp, #160\n"
    "stp x29, x30, [sp]\n stp x19, x20, [sp, #16]\n stp x21, x22, [sp, #32]\n stp x23, x24, [sp, #48]\n"
    "stp x25, x26, [sp, #64]\n stp x27, x28, [sp, #80]\n stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    "ldp x29, x30, [sp]\n ldp x19, x20, [sp, #16]\n ldp x21, x22, [sp, #32]\n ldp x23, x24, [sp, #48]\n"
    "ldp x25, x26, [sp, #64]\n ldp x27, x28, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n ret\n");
constexpr int SAVED = 1;  // x30
#else
#error "The emulator knows the registers of x86-64 and of 64-bit ARM processors only."
#endif

static void run_threads();

static void *new_fiber(unsigned number) {
    char *stack = worker->stacks + number * STACK;
    char *top = stack + STACK - number % 64 * 320;       // not all in the same few lines of the cache
    void **frame = reinterpret_cast<void **>(top) - 24;  // a multiple of 16 below, as a call needs it
    memset(frame, 0, 24 * sizeof(void *));
    frame[SAVED] = reinterpret_cast<void *>(run_threads);
    return frame;
}

[[noreturn]] void leave() {  // give up the block
    void *forgotten;
    emulated_switch(&forgotten, worker->scheduler);
    __builtin_unreachable();
}

// Somebody else's turn: a thread that can go on, or one that has not begun. The current one comes back here
// when `release` has put it among those that can go on, and its turn comes. If nobody can, there may be a
// suspect, who wants to know what everybody else does; else run_block() finds out why.
void give_way(bool newest_first) {
    Worker &w = *worker;
    Thread &me = *w.current;
    if (interrupted || w.block_number > w.launch->failed_block) leave();
    bool unstarted = w.started < w.launch->threads;
    Thread *next = nullptr;
    if (w.head != w.tail && !(newest_first && unstarted))
        next = &w.threads[w.ready[w.head++ % MOST_THREADS]];
    else if (!unstarted)
        next = w.suspect;
    if (next == &me) return;
    void *where = next ? next->stack_pointer : unstarted ? new_fiber(w.started) : w.scheduler;
    if (next) w.current = next;
    emulated_switch(&me.stack_pointer, where);
}

// What a fiber does: run threads to their ends, one after the other, until all of the block have begun.
static void run_threads() {
    Worker &w = *worker;
    const Launch &launch = *w.launch;
    char *stack = w.stacks + w.started * STACK;
    do {
        unsigned i = w.started++;
        Thread &t = *(w.current = &w.threads[i]);
        t.index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                   i / launch.block.x / launch.block.y};
        t.packed_index = t.index.x | uint64_t(t.index.y) << 32 | uint64_t(t.index.z) << 48;
        t.state = RUNS;
        t.access = {{0, 0, 0, i, 0, w.block_number & 0xffffff, launch.number & 127}};
        t.stack = stack;
        t.group = 0;
        t.copies.clear();
        launch.kernel(launch.values);
        t.state = EXITED;
        w.exited_lanes[i / 32] |= 1u << i % 32;
        w.exited++;
    } while (w.head == w.tail && w.started < launch.threads);
    give_way(false);
    __builtin_unreachable();
}

static void explain_waiting();

static void run_block(uint64_t number) {
    Worker &w = *worker;
    const Launch &launch = *w.launch;
    w.block_number = number;
    w.block = {unsigned(number % launch.grid.x), unsigned(number / launch.grid.x % launch.grid.y),
               unsigned(number / launch.grid.x / launch.grid.y)};
    w.packed_block = w.block.x | uint64_t(w.block.y) << 32 | uint64_t(w.block.z) << 48;
    w.started = w.exited = w.waiting = w.head = w.tail = 0;
    for (unsigned i = 0; i < launch.threads; i++) w.threads[i].state = UNSTARTED;
    memset(w.in_warp, 0, sizeof w.in_warp);
    memset(w.exited_lanes, 0, sizeof w.exited_lanes);
    memset(w.arena, 0xff, w.arena_used);  // not a number, in every format
    if (launch.checked) check_begin_block(w);
    w.current = w.suspect = nullptr;
    emulated_switch(&w.scheduler, new_fiber(0));
    if (w.exited < launch.threads && !interrupted && number <= launch.failed_block) explain_waiting();
}

// ---- Errors

std::string format(const char *text, ...) {
    char buffer[1024];
    va_list values;
    va_start(values, text);
    vsnprintf(buffer, sizeof buffer, text, values);
    va_end(values);
    return buffer;
}
std::string text_of(const Index &i) { return format("(%u, %u, %u)", i.x, i.y, i.z); }

void note(const std::string &error) {  // blocks begin in order: in the end the first one's error is told
    Launch &launch = *worker->launch;
    std::lock_guard<std::mutex> lock(launch.mutex);
    if (worker->block_number >= launch.failed_block) return;
    launch.failed_block = worker->block_number;
    launch.error = "block " + text_of(worker->block) + error;
}

void fail(const void *where, const std::string &what) {
    note(", thread " + text_of(worker->current->index) + ", " + place(where) + ": " + what);
    leave();
}

// ---- Waiting for each other

static const char *const COLLECTIVES[] = {"__syncwarp", "a shuffle", "__ballot_sync", "__any_sync",
                                          "__all_sync"};

// Who waits where, when not all threads came to the same barrier: one phrase for all that are in the same
// state.
static void explain_waiting() {
    Worker &w = *worker;
    struct Group {
        const Thread *first;
        unsigned others;
    };
    std::vector<Group> groups;
    const Thread *begin = w.threads, *end = begin + w.launch->threads;
    const Thread *in_warp = std::find_if(begin, end, [](const Thread &t) { return t.state == IN_WARP; });
    if (in_warp != end) {  // the others of its warp are those for whom it waits
        begin += (in_warp - begin) / 32 * 32;
        end = std::min(begin + 32, end);
    }
    for (; begin < end; begin++) {
        const Thread &t = *begin;
        auto same = [&](const Group &g) {
            const Thread &f = *g.first;
            return f.state == t.state && (t.state == EXITED || (f.line == t.line && f.mask == t.mask));
        };
        auto found = std::find_if(groups.begin(), groups.end(), same);
        if (found == groups.end())
            groups.push_back({&t, 0});
        else
            found->others++;
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group &a, const Group &b) {
        return (a.first->state == EXITED) < (b.first->state == EXITED);
    });
    std::string text;
    for (const Group &g : groups) {
        const Thread &t = *g.first;
        bool many = g.others > 0;
        text += (text.empty() ? ": thread " : "; thread ") + text_of(t.index);
        if (many) text += format(" and %u more", g.others);
        if (t.state == AT_BARRIER)
            text += (many ? " wait at __syncthreads in " : " waits at __syncthreads in ") +
                    place(t.place, t.line);
        else if (t.state == IN_WARP)
            text += format(many ? " wait in %s with mask 0x%x in " : " waits in %s with mask 0x%x in ",
                           COLLECTIVES[t.collective], t.mask) +
                    place(t.place);
        else
            text += many ? " have returned" : " has returned";
    }
    note(text + ". All must come to the same one.");
}

EXPORT int emulated_syncthreads(int vote, int predicate, int line) {
    Worker &w = *worker;
    Thread &t = *w.current;
    unsigned n = w.launch->threads, yes = 0;
    t.line = line, t.value = predicate, t.mask = 0, t.place = CALLER;
    t.state = AT_BARRIER;
    if (++w.waiting < n) {
        give_way(false);
        return t.value;
    }
    for (unsigned i = 0; i < n; i++) {
        yes += w.threads[i].value;
        if (w.launch->checked && w.threads[i].line != line) {
            explain_waiting();
            leave();
        }
    }
    w.waiting = 0;
    for (unsigned i = 0; i < n; i++) {
        w.threads[i].value = vote == SYNCTHREADS_COUNT ? yes : vote == SYNCTHREADS_AND ? yes == n : yes > 0;
        w.release(i);
    }
    if (w.launch->checked) check_barrier(w);
    give_way(false);
    return t.value;
}

// Lanes wait until all of the mask have come; the last one hands out the results.
EXPORT uint64_t emulated_warp(int collective, unsigned mask, uint64_t value, int source) {
    Worker &w = *worker;
    Thread &t = *w.current;
    unsigned first = w.number(t) & ~31u, lanes = std::min(w.launch->threads - first, 32u);
    unsigned all = lanes < 32 ? (1u << lanes) - 1 : ~0u, wanted = mask & all,
             lane_of_mine = w.number(t) - first;
    unsigned &in_warp = w.in_warp[first / 32], exited = w.exited_lanes[first / 32], votes = 0;
    Thread *warp = w.threads + first;
    t.collective = collective, t.mask = mask, t.value = value, t.source = source, t.line = 0,
    t.place = CALLER;
    t.state = IN_WARP;
    in_warp |= 1u << lane_of_mine;
    if (!(wanted >> lane_of_mine & 1))
        fail(CALLER, format("calls %s with mask 0x%x, in which its own lane, %u, is not.",
                            COLLECTIVES[collective], mask, lane_of_mine));
    if (exited & wanted) {
        unsigned lane = __builtin_ctz(exited & wanted);
        fail(CALLER,
             format("waits in %s with mask 0x%x for lane %u, thread ", COLLECTIVES[collective], mask, lane) +
                 text_of(warp[lane].index) + ", which has returned.");
    }
    bool all_came = (in_warp & wanted) == wanted;
    for (unsigned lane = 0; lane < lanes && all_came; lane++) {
        if (!(wanted >> lane & 1)) continue;
        all_came = warp[lane].mask == mask && warp[lane].collective == collective;
        votes |= unsigned(warp[lane].value != 0) << lane;
    }
    if (!all_came) {
        give_way(false);
        return t.value;
    }
    in_warp &= ~wanted;
    uint64_t values[32];
    for (unsigned lane = 0; lane < lanes; lane++) values[lane] = warp[lane].value;
    for (unsigned lane = 0; lane < lanes; lane++) {
        if (!(wanted >> lane & 1)) continue;
        Thread &its = warp[lane];
        if (collective == BALLOT) its.value = votes;
        if (collective == ANY) its.value = votes != 0;
        if (collective == ALL) its.value = votes == wanted;
        if (collective == SHUFFLE) {
            if (!(wanted >> (its.source & 31) & 1)) {
                w.current = &its;
                fail(its.place,
                     format("takes the value of lane %d, which is not in this shuffle: the mask is 0x%x, "
                            "and the warp has %u threads.",
                            its.source & 31, mask, lanes));
            }
            its.value = values[its.source & 31];
        }
        w.release(first + lane);
    }
    if (collective == SYNCWARP && w.launch->checked) check_synced(w, first, wanted, wanted == all);
    give_way(false);
    return t.value;
}

EXPORT unsigned emulated_activemask() {  // as if no two lanes had parted
    Worker &w = *worker;
    unsigned first = w.number(*w.current) & ~31u, mask = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < w.launch->threads; lane++)
        mask |= unsigned(w.threads[first + lane].state != EXITED) << lane;
    return mask;
}

EXPORT uint64_t emulated_threadIdx() { return worker->current->packed_index; }
EXPORT uint64_t emulated_blockIdx() { return worker->packed_block; }
EXPORT uint64_t emulated_blockDim() { return worker->launch->packed_block; }
EXPORT uint64_t emulated_gridDim() { return worker->launch->packed_grid; }

// ---- Shared memory: the dynamic part first, then every array where its declaration is first met

static char *place_array(const SharedArray *array, const void *place) {
    unsigned alignment = std::max(array->alignment, 16u);
    Worker &w = *worker;
    unsigned begin = (w.arena_used + alignment - 1) / alignment * alignment;
    unsigned arrays = begin + array->bytes - (w.launch->dynamic_bytes + GAP * w.arrays.size());
    if (arrays > STATIC_SHARED)
        fail(place,
             format("%s and the __shared__ arrays before it take %u bytes; a block has at most %u. More is "
                    "possible as extern __shared__, with its size in the launch.",
                    array->name, arrays, STATIC_SHARED));
    if (arrays + w.launch->dynamic_bytes > SHARED || begin + array->bytes > ARENA)
        fail(place,
             format("%s, the __shared__ arrays before it and the %u bytes of the launch are more than a "
                    "block has, %u bytes.",
                    array->name, w.launch->dynamic_bytes, SHARED));
    Placed placed{array, w.arena + begin, w.arena + begin + array->bytes};
    memset(placed.begin, 0xff, array->bytes);
    w.arena_used = begin + array->bytes + GAP;
    w.arrays.push_back(placed);
    if (w.launch->checked) check_placed(w, placed);
    return placed.begin;
}

EXPORT void *emulated_shared(const SharedArray *array) {
    for (const Placed &placed : worker->arrays)
        if (placed.array == array) return placed.begin;
    return place_array(array, CALLER);
}

EXPORT void *emulated_dynamic_shared(const SharedArray *array) {
    worker->arrays[0].array = array;
    return worker->arena;
}

EXPORT void emulated_copy_async(char *to, const char *from, unsigned bytes, unsigned zeros) {
    Thread &t = *worker->current;
    Copy copy{to, bytes, t.group, {}, CALLER};
    if (bytes != 4 && bytes != 8 && bytes != 16)
        fail(CALLER, format("__pipeline_memcpy_async copies 4, 8 or 16 bytes, not %u.", bytes));
    if (zeros > bytes) zeros = bytes;
    if (worker->launch->checked) check_copy_ordered(copy, from, bytes - zeros);
    memcpy(copy.data, from, bytes - zeros);
    t.copies.push_back(copy);
}
EXPORT void emulated_commit() { worker->current->group++; }
EXPORT void emulated_wait_prior(int n) {  // all but the last n groups arrive
    Thread &t = *worker->current;
    auto waits = [&](const Copy &copy) {
        if (copy.group >= t.group - n) return true;
        if (worker->launch->checked) check_copy_arrives(copy);
        memcpy(copy.to, copy.data, copy.bytes);
        return false;
    };
    t.copies.erase(std::stable_partition(t.copies.begin(), t.copies.end(), waits), t.copies.end());
}

// ---- Atomics

// A thread whose atomic has changed nothing may be waiting for another one, which must get its turn.
static void others_turn(bool changed) {
    if (changed) return;
    worker->release(worker->number(*worker->current));
    give_way(true);
}

template <class Word>
static Word update(void *address, Word (*function)(Word, Word), Word value, const void *place) {
    if (worker->launch->checked) check_atomic(address, sizeof(Word), place);
    Word *word = static_cast<Word *>(address), old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, function(old, value), true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    others_turn(function(old, value) != old);
    return old;
}
template <class Word>
static Word exchange_if(void *address, Word compare, Word value, const void *place) {
    if (worker->launch->checked) check_atomic(address, sizeof(Word), place);
    others_turn(__atomic_compare_exchange_n(static_cast<Word *>(address), &compare, value, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return compare;
}
EXPORT uint32_t emulated_atomic32(void *p, uint32_t (*f)(uint32_t, uint32_t), uint32_t v) {
    return update(p, f, v, CALLER);
}
EXPORT uint64_t emulated_atomic64(void *p, uint64_t (*f)(uint64_t, uint64_t), uint64_t v) {
    return update(p, f, v, CALLER);
}
EXPORT uint32_t emulated_atomic_cas32(void *p, uint32_t compare, uint32_t v) {
    return exchange_if(p, compare, v, CALLER);
}
EXPORT uint64_t emulated_atomic_cas64(void *p, uint64_t compare, uint64_t v) {
    return exchange_if(p, compare, v, CALLER);
}
EXPORT void emulated_threadfence() { worker->launch->fenced = true; }

// ---- What a kernel says

EXPORT void emulated_fail(const char *what) { fail(CALLER, what); }

static std::mutex printing;
static std::string printed;

EXPORT int emulated_printf(const char *text, ...) {
    char line[1024];
    va_list values;
    va_start(values, text);
    int n = vsnprintf(line, sizeof line, text, values);
    va_end(values);
    std::lock_guard<std::mutex> lock(printing);
    printed += line;
    return n;
}
EXPORT int emulated_printed(char *text, int size) {  // Python takes it, piece by piece
    std::lock_guard<std::mutex> lock(printing);
    size_t n = std::min(printed.size(), size_t(size));
    memcpy(text, printed.data(), n);
    printed.erase(0, n);
    return n;
}

// ---- A launch

static std::mutex idle_mutex;
static std::vector<Worker *> idle;  // with their stacks, for the next launch

Worker::Worker() {
    auto memory = [](uint64_t bytes) {
        return static_cast<char *>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0));
    };
    stacks = memory(STACK * (MOST_THREADS + 1));
    stacks += -reinterpret_cast<uint64_t>(stacks) % STACK;  // so that an address says whose stack it is on
    for (unsigned i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * STACK, 4096, PROT_NONE);
    arena = memory(ARENA);
}

static void work(Launch *launch, int helpers);

static void help(Launch *launch) {
    work(launch, 0);
    std::lock_guard<std::mutex> lock(launch->mutex);
    launch->helpers--;
    launch->helper_left.notify_one();
}

// Take blocks until there are none. A launch that takes longer than it takes to start threads gets `helpers`.
static void work(Launch *launch, int helpers) {
    {
        std::lock_guard<std::mutex> lock(idle_mutex);
        if (idle.empty()) idle.push_back(new Worker());
        worker = idle.back();
        idle.pop_back();
    }
    Worker &w = *worker;
    static const SharedArray unnamed{"the dynamic shared memory", 0, 16, 1, 1, 1, 1};
    w.launch = launch;
    w.arrays.assign(1, {&unnamed, w.arena, w.arena + launch->dynamic_bytes});
    w.arena_used = launch->dynamic_bytes + GAP;
    if (launch->checked) check_placed(w, w.arrays[0]);
    stack_t before, during{};
    during.ss_sp = w.signal_stack, during.ss_size = sizeof w.signal_stack;
    sigaltstack(&during, &before);

    std::vector<std::thread> others;
    auto begin = std::chrono::steady_clock::now();
    while (!interrupted) {
        uint64_t block = launch->next_block++;
        if (block >= launch->blocks || block > launch->failed_block) break;
        run_block(block);
        uint64_t left = launch->blocks - block - 1;
        if (helpers && left && std::chrono::steady_clock::now() - begin > std::chrono::microseconds(100))
            for (left = std::min(left, uint64_t(helpers)), helpers = 0; left; left--) {
                std::lock_guard<std::mutex> lock(launch->mutex);
                launch->helpers++;
                others.emplace_back(help, launch);
            }
    }
    w.current = nullptr;
    sigaltstack(&before, nullptr);
    for (std::unique_lock<std::mutex> lock(launch->mutex); launch->helpers && !others.empty();)
        if (launch->helper_left.wait_for(lock, std::chrono::milliseconds(20)) == std::cv_status::timeout &&
            interrupted)
            for (std::thread &other : others) pthread_kill(other.native_handle(), SIGINT);
    for (std::thread &other : others) other.join();
    std::lock_guard<std::mutex> lock(idle_mutex);
    idle.push_back(&w);
    worker = nullptr;
}

// While kernels run, Ctrl-C stops them, and a fault is the error of the thread that made it. A handler
// changes where the thread goes on: after_signal(), on the stack of the fiber, which is given up.

[[noreturn]] static void after_signal() {
    Worker &w = *worker;
    if (w.fault.empty()) leave();
    std::string told;
    told.swap(w.fault);
    fail(w.fault_place, told);
}

static void on_signal(int signal, siginfo_t *about, void *context) {
    auto &machine = static_cast<ucontext_t *>(context)->uc_mcontext;
#if defined(__APPLE__) && defined(__x86_64__)
    auto &at = machine->__ss.__rip, &stack_pointer = machine->__ss.__rsp;
#elif defined(__APPLE__)
    auto &at = machine->__ss.__pc, &stack_pointer = machine->__ss.__sp;
#elif defined(__x86_64__)
    auto &at = machine.gregs[REG_RIP], &stack_pointer = machine.gregs[REG_RSP];
#else
    auto &at = machine.pc, &stack_pointer = machine.sp;
#endif
    if (signal == SIGINT) interrupted = true;
    Worker *w = worker;
    if (!w || !w->current) {
        struct sigaction usual{};
        usual.sa_handler = SIG_DFL;
        if (signal != SIGINT) sigaction(signal, &usual, nullptr);  // the fault comes again, and is Python's
        return;
    }
    char *address = static_cast<char *>(about->si_addr), *stack = w->current->stack;
    w->fault_place = reinterpret_cast<void *>(at + 1);  // as if it were the place to which a call returns
    if (signal == SIGINT) {
        Dl_info its, kernel;  // elsewhere, in malloc for one, a thread cannot be torn out
        if (!dladdr(w->fault_place, &its) || !dladdr(reinterpret_cast<void *>(w->launch->kernel), &kernel) ||
            its.dli_fbase != kernel.dli_fbase)
            return;
    } else if (signal == SIGFPE) {
        w->fault = "divides by zero.";
    } else if (address >= stack - STACK && address < stack + STACK / 8) {
        w->fault = TOO_DEEP;
    } else {
        w->fault = format("touches the address 0x%llx, where there is nothing.",
                          reinterpret_cast<unsigned long long>(address));
    }
    at = reinterpret_cast<uint64_t>(after_signal);
    stack_pointer =
        reinterpret_cast<uint64_t>(stack + STACK - 256 - (SAVED == 6 ? 8 : 0));  // as after a call
}

static const int SIGNALS[] = {SIGINT, SIGSEGV, SIGBUS, SIGFPE};
static std::mutex signals_mutex;
static int running;
static struct sigaction usual[4];

static void take_signals(bool take) {  // the first launch takes them, the last one gives them back
    std::lock_guard<std::mutex> lock(signals_mutex);
    if (take ? running++ : --running) return;
    if (take) interrupted = false;
    struct sigaction ours{};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], take ? &ours : &usual[i], take ? &usual[i] : nullptr);
}

// Runs all blocks, and copies the error's text: its length, 0 for none, or -1 after Ctrl-C.
EXPORT int emulated_launch(void (*kernel)(void **), void **values, const Argument *arguments, int n_arguments,
                           int n_reachable, const unsigned *grid, const unsigned *block,
                           unsigned dynamic_bytes, int workers, int checked, char *error, int size) {
    static std::atomic<uint64_t> launches;
    std::string told;
    take_signals(true);
    while (true) {
        Launch launch;
        launch.kernel = kernel;
        launch.values = values;
        launch.arguments.assign(arguments, arguments + n_arguments);
        launch.tables = n_arguments - n_reachable;
        launch.grid = {grid[0], grid[1], grid[2]};
        launch.block = {block[0], block[1], block[2]};
        launch.packed_grid = grid[0] | uint64_t(grid[1]) << 32 | uint64_t(grid[2]) << 48;
        launch.packed_block = block[0] | uint64_t(block[1]) << 32 | uint64_t(block[2]) << 48;
        launch.threads = block[0] * block[1] * block[2];
        launch.blocks = uint64_t(grid[0]) * grid[1] * grid[2];
        launch.dynamic_bytes = dynamic_bytes;
        launch.checked = checked;
        launch.number = ++launches;
        size_t before = printed.size();
        if (checked && !check_begin_launch(launch)) {
            told = "no addresses are left to keep arguments apart (is there a limit, ulimit -v?).";
            break;
        }
        work(&launch, workers - 1);
        if (checked) check_end_launch(launch);
        if (told.empty() || !launch.error.empty()) told = launch.error;
        if (launch.error.empty() || !checked || workers == 1 || interrupted) break;
        // Which of two blocks is caught in a race depends on who is faster. The arguments are as they were:
        // once more, one block after the other, and the error is the same every time.
        workers = 1;
        printed.resize(before);
    }
    take_signals(false);
    return interrupted ? -1 : snprintf(error, size, "%s", told.c_str());
}
