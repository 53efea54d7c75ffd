// What the two halves of the emulator's runtime share: emulator_runtime.cpp runs threads and blocks,
// emulator_checks.cpp looks at every access to memory.
#pragma once

#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER __builtin_return_address(0)  // in a function that kernels call: the place of the call

enum Collective { SYNCWARP, SHUFFLE, BALLOT, ANY, ALL };
enum Vote { SYNCTHREADS, SYNCTHREADS_COUNT, SYNCTHREADS_AND, SYNCTHREADS_OR };

constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned long STACK = 128 * 1024;    // bytes of a fiber's stack; its last page is a wall
constexpr unsigned SHARED = 227 * 1024;        // bytes of shared memory that a block can have (an H100)
constexpr unsigned STATIC_SHARED = 48 * 1024;  // and of those that are declared with their size
constexpr unsigned GAP = 256;                  // bytes between two shared arrays: they belong to nobody
constexpr unsigned ARENA = SHARED + 64 * GAP;

struct Index {
    unsigned x, y, z;
};

struct SharedArray {  // as emulator.h has it
    const char *name;
    unsigned bytes, alignment, item, rank, middle, inner;
};

struct Placed {  // a shared array and where it lies
    const SharedArray *array;
    char *begin, *end;
};

struct Copy {  // one that __pipeline_memcpy_async ordered and that has not arrived yet
    char *to;
    unsigned bytes;
    int group;
    char data[16];
    const void *place;
};

// An access to a word of memory: 64 bits, which are stored and loaded as a whole.
union Access {
    struct {
        uint64_t bytes : 4, atomic : 1, several : 2, thread : 10, time : 16, block : 24, launch : 7;
    };
    uint64_t bits;
};
constexpr int TIME_AT = 17, BLOCK_AT = 33, LAUNCH_AT = 57;  // in `bits`

struct Cell {  // the last write to a word of four bytes, the last read, and from where
    Access write, read;
    int32_t write_place, read_place;
};

enum State : uint8_t { UNSTARTED, RUNS, AT_BARRIER, IN_WARP, EXITED };

struct Thread {
    void *stack_pointer;
    char *stack;  // its lowest address
    Index index;
    uint64_t packed_index;
    State state;
    Access access;  // by this thread, at a time and of bytes to be filled in
    int collective, vote, line, source, group;
    unsigned mask;
    uint64_t value;
    const void *place;  // in the kernel: where it waits
    std::vector<Copy> copies;
};

struct Argument {  // what a pointer parameter was given, as Python hands it over
    const char *name;
    char *data;
    uint64_t bytes;   // from its first element to its last
    uint32_t item;    // bytes an element
    uint32_t offset;  // of the first element in its storage: a GPU's memory begins at a multiple of 512
    uint32_t flags;
    uint32_t parameter;
};
// The kernel must not write; None was given; not all elements in between are its own; its address is in a
// table.
enum Flag { CONST = 1, NONE = 2, GAPS = 4, TABLE = 8 };

struct Sandbox;

struct Launch {
    void (*kernel)(void **);
    void **values;
    Index grid, block;
    unsigned threads, dynamic_bytes;
    uint64_t blocks;
    uint64_t packed_grid, packed_block;
    bool checked;
    uint64_t number;
    std::vector<Argument> arguments;
    size_t
        tables;  // from here on they are not parameters, but what can be reached through a table of addresses
    Sandbox *sandbox = nullptr;
    std::atomic<uint64_t> next_block{0};
    std::atomic<uint64_t> failed_block{~0ull};  // the first that failed; those before it still run
    std::atomic<bool> fenced{false};            // some thread called __threadfence()
    std::mutex mutex;
    std::string error;
    int helpers = 0;  // OS threads that take blocks besides the one that launched
    std::condition_variable helper_left;
};

struct Worker {
    Launch *launch;
    Thread threads[MOST_THREADS];
    Thread *current;
    Thread *suspect;  // has read what nobody has written; whoever writes it later, without a barrier, is in a
                      // race
    uint64_t block_number, packed_block;
    Index block;
    void *scheduler;                           // where run_block() waits while fibers run
    unsigned started, exited, waiting;         // of the block's threads; waiting: at the barrier
    unsigned in_warp[MOST_THREADS / 32];       // the lanes of each warp that wait for others of it
    unsigned exited_lanes[MOST_THREADS / 32];  // and those that have returned
    unsigned ready[MOST_THREADS], head, tail;  // those that can go on: a ring
    char *stacks, *arena;
    unsigned arena_used;
    std::vector<Placed> arrays;  // of this launch; the first is the dynamic one
    const SharedArray *dynamic;

    // For the checks. Time goes on at every barrier, of the block or of a warp.
    uint32_t time, barrier_time;
    uint32_t warp_time[MOST_THREADS / 32];  // when all lanes of the warp last met
    std::vector<uint32_t> pair_time;        // when two lanes last met without the whole warp; [warp][a][b]
    uint8_t owner[ARENA / 4];               // of a word: its array, counted from 1
    uint8_t written[ARENA / 4];  // which of its bytes have a value; 0x80: an async copy is on its way
    std::vector<Cell> cells;     // of the arena
    uint64_t cells_launch = 0;   // when they were last cleared
    const char *statics_begin, *statics_end;  // of the kernel's own constants, what was met of them
    std::string fault;                        // what a signal was about, and where
    const void *fault_place;
    char signal_stack[32 * 1024];

    Worker();
    void release(unsigned thread) {
        threads[thread].state = RUNS;
        ready[tail++ % MOST_THREADS] = thread;
    }
    unsigned number(const Thread &t) const { return &t - threads; }
};

extern __thread Worker *worker __attribute__((tls_model("initial-exec")));
extern std::atomic<bool> interrupted;  // Ctrl-C

// The error of the current thread, or of the whole block; `fail` gives up the block. In the text,
// @(address:line) stands for a place in the kernel: Python finds the line, if it is 0, and its file.
void note(const std::string &error);
[[noreturn]] void fail(const void *place, const std::string &what);
[[noreturn]] void leave();
void give_way(bool newest_first);
std::string format(const char *text, ...) __attribute__((format(printf, 1, 2)));
std::string text_of(const Index &index);
std::string place(const void *address, int line = 0);

constexpr const char *TOO_DEEP =
    "needs more local memory than the emulator's stack for a thread has. Does a function call itself?";

// emulator_checks.cpp
bool check_begin_launch(Launch &launch);  // copies the arguments to where nothing else lies, if it can
void check_end_launch(Launch &launch);    // and back, if there was no error
void check_begin_block(Worker &w);
void check_placed(Worker &w, const Placed &placed);
void check_synced(Worker &w, unsigned first, unsigned lanes, bool whole_warp);
void check_barrier(Worker &w);
void check_atomic(const void *address, unsigned bytes, const void *place);
void check_copy_ordered(const Copy &copy, const char *from, unsigned bytes);
void check_copy_arrives(const Copy &copy);
