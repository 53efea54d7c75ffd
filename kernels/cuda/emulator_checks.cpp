// What the emulator checks, and a GPU does not: every access of a kernel to memory.
//
// The kernel is compiled with -fsanitize=thread, by which the compiler puts a call before each load and
// store. The calls are meant for another tool, ThreadSanitizer, which is not linked: here are functions of
// their names.
#include "emulator_runtime.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

// ---- The sandbox: where the arguments of a launch lie
//
// Each gets a copy in a range of addresses of its own, far from all others, so that an address says which
// argument is meant, however far out of bounds it is. Nothing is written back after an error.

constexpr uint64_t SLOT = 1ull << 35, SLOTS = 32, PAGE = 1 << 16, KEPT = 64 << 20;
constexpr uint64_t FIRST = SLOT / 4 + PAGE;  // where an argument begins: before it is less room than after it

struct Region {  // one argument, or several that overlap
    char *begin = nullptr;
    uint64_t bytes = 0;
    bool writable = false;
    Cell *cells = nullptr;
    char *original = nullptr;
    std::vector<const Argument *> arguments;
};

struct Sandbox {
    char *base;
    Region regions[SLOTS];
    uint64_t committed[SLOTS] = {};  // bytes of the slot behind which there is memory
    std::vector<Cell> cells[SLOTS];
    uint64_t cleared = 0;  // the number of the launch before which the cells were last set to zero
};

static std::mutex sandboxes_mutex;
static std::vector<Sandbox *> sandboxes;  // not in use

static Sandbox *take_sandbox() {
    std::lock_guard<std::mutex> lock(sandboxes_mutex);
    if (sandboxes.empty()) {
        void *range = mmap(nullptr, SLOTS * SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) return nullptr;
        sandboxes.push_back(new Sandbox);
        sandboxes.back()->base = static_cast<char *>(range);
    }
    Sandbox *taken = sandboxes.back();
    sandboxes.pop_back();
    return taken;
}

// Seven bits of the launch's number are in every cell: those of more than 126 launches ago must be forgotten.
static bool outdated(uint64_t &cleared, uint64_t launch) {
    bool old = launch - cleared > 126;
    if (old) cleared = launch;
    return old;
}

bool check_begin_launch(Launch &launch) {
    launch.sandbox = take_sandbox();
    if (!launch.sandbox) return false;
    Sandbox &box = *launch.sandbox;
    std::vector<const Argument *> arguments;
    for (const Argument &a : launch.arguments)
        if (!(a.flags & (NONE | TABLE))) arguments.push_back(&a);
    std::sort(arguments.begin(), arguments.end(),
              [](const Argument *a, const Argument *b) { return a->data < b->data; });
    unsigned n = 0;
    for (const Argument *a : arguments) {
        Region *last = n ? &box.regions[n - 1] : nullptr;
        if (last && a->data < last->original + last->bytes) {
            last->bytes = std::max(last->bytes, uint64_t(a->data - last->original) + a->bytes);
        } else {
            last = &box.regions[n];
            last->arguments.clear();
            last->original = a->data;
            last->begin = box.base + n * SLOT + FIRST + a->offset % 512;
            last->bytes = a->bytes;
            last->writable = false;
            n++;
        }
        last->arguments.push_back(a);
        last->writable |= !(a->flags & CONST);
        *static_cast<char **>(launch.values[a->parameter]) = last->begin + (a->data - last->original);
    }
    if (outdated(box.cleared, launch.number))
        for (std::vector<Cell> &cells : box.cells) std::fill(cells.begin(), cells.end(), Cell());
    for (unsigned i = 0; i < SLOTS; i++) {
        Region &r = box.regions[i];
        if (i >= n) {
            r = Region();
            continue;
        }
        uint64_t needed = (r.bytes + 512 + PAGE - 1) / PAGE * PAGE;
        if (needed > box.committed[i]) {
            mprotect(box.base + i * SLOT + FIRST, needed, PROT_READ | PROT_WRITE);
            box.committed[i] = needed;
        }
        memcpy(r.begin, r.original, r.bytes);
        if (box.cells[i].size() < r.bytes / 4 + 2) box.cells[i].resize(r.bytes / 4 + 2);
        r.cells = box.cells[i].data();
    }
    return true;
}

void check_end_launch(Launch &launch) {
    Sandbox &box = *launch.sandbox;
    for (unsigned i = 0; i < SLOTS; i++) {
        Region &r = box.regions[i];
        if (r.writable && launch.error.empty() && !interrupted) memcpy(r.original, r.begin, r.bytes);
        if (r.bytes <= KEPT) continue;
        madvise(box.base + i * SLOT + FIRST, box.committed[i], MADV_DONTNEED);
        std::vector<Cell>().swap(box.cells[i]);
    }
    for (const Argument &a : launch.arguments)  // for a second run
        if (!(a.flags & TABLE)) *static_cast<char **>(launch.values[a.parameter]) = a.data;
    std::lock_guard<std::mutex> lock(sandboxes_mutex);
    sandboxes.push_back(&box);
}

// ---- Names

static std::string elements(const std::string &name, int64_t first, int64_t last) {
    std::string text = name + format("[%lld]", static_cast<long long>(first));
    return first == last ? text : text + " to " + name + format("[%lld]", static_cast<long long>(last));
}

static const Argument &argument_at(const Region &r,
                                   const char *address) {  // of those that overlap, the nearest
    int64_t at = address - r.begin;
    auto distance = [&](const Argument *a) {
        int64_t low = a->data - r.original, high = low + a->bytes;
        return at < low ? low - at : at >= high ? at - high + 1 : 0;
    };
    return **std::min_element(
        r.arguments.begin(), r.arguments.end(),
        [&](const Argument *a, const Argument *b) { return distance(a) < distance(b); });
}

static int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

static std::string global_name(const Region &r, const char *address, unsigned bytes) {
    const Argument &a = argument_at(r, address);
    int64_t offset = (address - r.begin) - (a.data - r.original);
    return elements(a.name, divide_down(offset, a.item), divide_down(offset + bytes - 1, a.item));
}

static std::string indices(const SharedArray &a, int64_t i) {
    using Number = long long;
    if (a.rank == 0) return i ? std::string(a.name) + format(" + %lld bytes", Number(i * a.item)) : a.name;
    int64_t row = divide_down(i, a.inner), column = i - row * a.inner;
    if (a.rank == 1) return std::string(a.name) + format("[%lld]", Number(i));
    if (a.rank == 2) return std::string(a.name) + format("[%lld][%lld]", Number(row), Number(column));
    int64_t slice = divide_down(row, a.middle);
    return std::string(a.name) +
           format("[%lld][%lld][%lld]", Number(slice), Number(row - slice * a.middle), Number(column));
}

// Of an address that belongs to no array: the array before it.
static std::string shared_name(const Worker &w, const char *address, const Placed **found = nullptr) {
    const Placed *its = &w.arrays[0];
    for (const Placed &placed : w.arrays)
        if (placed.begin <= address) its = &placed;
    if (found) *found = its;
    SharedArray array = *its->array;
    if (its == &w.arrays[0]) array.rank = 1, array.inner = 1;
    return indices(array, divide_down(address - its->begin, array.item));
}

static std::string count(uint64_t n, const char *verb) {
    return verb + std::to_string(n) + (n == 1 ? " element." : " elements.");
}

static std::string size_of(const SharedArray &a, uint64_t bytes) {
    uint64_t n = bytes / a.item;
    std::string shape =
        a.rank < 2    ? std::to_string(n)
        : a.rank == 2 ? format("%llu x %u", static_cast<unsigned long long>(n / a.inner), a.inner)
                      : format("%llu x %u x %u", static_cast<unsigned long long>(n / a.inner / a.middle),
                               a.middle, a.inner);
    return std::string(a.name) + " has " + shape + (n == 1 ? " element." : " elements.");
}

std::string place(const void *address, int line) {  // as it stands in the file of the library
    Dl_info its{};
    if (!dladdr(address, &its)) return "a place unknown";
    int64_t offset = static_cast<const char *>(address) - static_cast<const char *>(its.dli_fbase);
    return format("@(0x%llx:%d)", static_cast<unsigned long long>(offset), line);
}

// One load or store of a kernel.
struct Touch {
    const char *address;
    unsigned bytes;
    bool write, atomic;
    const void *place;  // in the kernel
};

static Region &region(const Worker &w, const char *address) {
    return w.launch->sandbox->regions[(address - w.launch->sandbox->base) / SLOT];
}

static std::string verb(const Touch &t) { return t.write ? "writes " : "reads "; }

static std::string name(const Worker &w, const Touch &t) {
    if (uint64_t(t.address - w.arena) < ARENA) return shared_name(w, t.address);
    return global_name(region(w, t.address), t.address, t.bytes);
}

// ---- Races: two threads at the same bytes, at least one writes, and nothing puts one before the other

constexpr uint32_t END_OF_TIME = 0xffff;  // what happened then is taken to be ordered

static inline Access load(const Access &cell) {
    return {.bits = __atomic_load_n(&cell.bits, __ATOMIC_RELAXED)};
}
static inline void store(Access &cell, Access access) {
    __atomic_store_n(&cell.bits, access.bits, __ATOMIC_RELAXED);
}

enum Several {
    ONE,
    LANES,
    WARPS,
    BLOCKS
};  // whom an entry stands for: a thread, several of its warp, its block, all

// Whether an access of another thread of this block came before all that this thread does now.
static inline bool ordered(const Worker &w, Access then, Access now) {
    if (then.time < w.barrier_time || then.time == END_OF_TIME) return true;
    unsigned warp = now.thread / 32;
    if (then.several == WARPS || then.thread / 32 != warp) return false;
    if (then.time < w.warp_time[warp]) return true;
    return !w.pair_time.empty() &&
           then.time < w.pair_time[(warp * 32 + then.thread % 32) * 32 + now.thread % 32];
}

// What most accesses are, without looking closely: of an earlier launch, or of this thread, or before a
// barrier.
template <bool GLOBAL>
static inline bool settled(const Worker &w, Access then, Access now) {
    uint64_t differ = then.bits ^ now.bits;
    if (differ >> BLOCK_AT) return !GLOBAL || differ >> LAUNCH_AT;
    return then.time < w.barrier_time || !(differ >> 5 & 0xfff);
}

template <bool GLOBAL>
static __attribute__((noinline)) bool conflict(const Worker &w, Access then, Access now) {
    if (then.launch != now.launch || !(then.bytes & now.bytes) || (then.atomic && now.atomic)) return false;
    if (then.several == BLOCKS || then.block != now.block) return GLOBAL && !w.launch->fenced;
    if (then.thread == now.thread && then.several == ONE) return false;
    return !ordered(w, then, now);
}

// A cell has room for one reader. If there was one that still matters, the entry stands for both.
template <bool GLOBAL>
static __attribute__((noinline)) Access merged(const Worker &w, Access then, Access now) {
    if (then.launch != now.launch || !(then.bytes & now.bytes) || then.atomic != now.atomic) return now;
    if (then.several == BLOCKS || then.block != now.block) {
        if (GLOBAL) now.several = BLOCKS, now.bytes &= then.bytes;
        return now;
    }
    if ((then.thread == now.thread && then.several == ONE) || ordered(w, then, now)) return now;
    now.several = then.several == WARPS || then.thread / 32 != now.thread / 32 ? WARPS : LANES;
    now.thread = then.thread;
    now.bytes &= then.bytes;
    return now;
}

static inline int32_t from_kernel(const Worker &w, const void *place) {  // a place in it, in 32 bits
    return static_cast<const char *>(place) - reinterpret_cast<const char *>(w.launch->kernel);
}
static const void *in_kernel(const Worker &w, int32_t place) {
    return reinterpret_cast<const char *>(w.launch->kernel) + place;
}

template <bool GLOBAL>
[[noreturn]] static __attribute__((noinline)) void race(const Worker &w, const Touch &t, Access then,
                                                        bool wrote, int32_t from) {
    auto index = [](unsigned i, const Index &n) { return text_of({i % n.x, i / n.x % n.y, i / n.x / n.y}); };
    Access now = w.current->access;
    bool other_block = GLOBAL && then.block != now.block;
    std::string who = then.several && then.thread == now.thread
                          ? "another thread"
                          : "thread " + index(then.thread, w.launch->block);
    if (other_block) who = "block " + index(then.block, w.launch->grid) + ", " + who;
    if (then.several == BLOCKS) who = "another block";
    const char *between = other_block || then.several == BLOCKS ? "Blocks run in any order."
                          : GLOBAL ? "There is no __syncthreads between, nor is it an atomic."
                          : then.thread / 32 == now.thread / 32 && then.several != WARPS
                              ? "There is no __syncwarp or __syncthreads between."
                              : "There is no __syncthreads between.";
    fail(t.place, verb(t) + name(w, t) + ", which " + who + (wrote ? " wrote in " : " read in ") +
                      place(in_kernel(w, from)) + ". " + between);
}

template <bool GLOBAL>
static inline void check_cell(const Worker &w, const Touch &t, Cell &cell, Access now) {
    Access wrote = load(cell.write), read = load(cell.read);
    if (!settled<GLOBAL>(w, wrote, now) && conflict<GLOBAL>(w, wrote, now))
        race<GLOBAL>(w, t, wrote, true, cell.write_place);
    if (!t.write) {
        if (settled<GLOBAL>(w, read, now))
            read = now;
        else if ((read.bits ^ now.bits) >> TIME_AT == 0 && read.bytes == now.bytes && !now.atomic &&
                 (read.several == WARPS || (read.several == LANES && read.thread / 32 == now.thread / 32)))
            return;  // one reader more
        else
            read = merged<GLOBAL>(w, read, now);
        store(cell.read, read);
        __atomic_store_n(&cell.read_place, from_kernel(w, t.place), __ATOMIC_RELAXED);
        return;
    }
    if (!settled<GLOBAL>(w, read, now) && conflict<GLOBAL>(w, read, now))
        race<GLOBAL>(w, t, read, false, cell.read_place);
    store(cell.write, now.atomic ? merged<GLOBAL>(w, wrote, now) : now);
    __atomic_store_n(&cell.write_place, from_kernel(w, t.place), __ATOMIC_RELAXED);
}

void check_begin_block(Worker &w) {
    memset(w.written, 0, (w.arena_used + 3) / 4);
    memset(w.warp_time, 0, sizeof w.warp_time);
    std::fill(w.pair_time.begin(), w.pair_time.end(), 0);
    w.time = 1, w.barrier_time = 0;
    if (w.cells.empty()) w.cells.resize(ARENA / 4);
    if (outdated(w.cells_launch, w.launch->number)) memset(w.cells.data(), 0, w.cells.size() * sizeof(Cell));
}

void check_placed(Worker &w, const Placed &placed) {
    if (w.arrays.size() == 1) memset(w.owner, 0, sizeof w.owner), w.statics_begin = w.statics_end = nullptr;
    unsigned first = (placed.begin - w.arena) / 4, last = (placed.end - w.arena + 3) / 4;
    memset(w.owner + first, w.arrays.size(), last - first);
    memset(w.written + first, 0, last - first);
}

static void tick(Worker &w) { w.time = std::min(w.time + 1, END_OF_TIME); }

void check_barrier(Worker &w) {
    tick(w);
    w.barrier_time = w.time;
}

void check_synced(Worker &w, unsigned first, unsigned lanes, bool whole_warp) {
    tick(w);
    if (whole_warp) {
        w.warp_time[first / 32] = w.time;
        return;
    }
    if (w.pair_time.empty()) w.pair_time.resize(MOST_THREADS * 32);
    for (unsigned a = 0; a < 32; a++)
        for (unsigned b = 0; b < 32; b++)
            if (lanes >> a & lanes >> b & 1) w.pair_time[(first + a) * 32 + b] = w.time;
}

// ---- One access

static __attribute__((noinline)) void check_elsewhere(Worker &w, const Touch &t) {
    if (t.address >= w.statics_begin && t.address + t.bytes <= w.statics_end) return;
    const std::vector<Argument> &all = w.launch->arguments;
    auto later = [](const char *address, const Argument &a) { return address < a.data; };
    auto behind = std::upper_bound(all.begin() + w.launch->tables, all.end(), t.address, later);
    if (behind != all.begin() + w.launch->tables) {  // a tensor that is reached through a table of addresses
        const Argument &a = behind[-1];
        if (t.address + t.bytes <= a.data + a.bytes) return;
        if (t.address < a.data + a.bytes + 64)
            fail(t.place, verb(t) +
                              elements(a.name, (t.address - a.data) / a.item,
                                       (t.address + t.bytes - 1 - a.data) / a.item) +
                              "; " + a.name + count(a.bytes / a.item, " has "));
    }
    uint64_t address = reinterpret_cast<uint64_t>(t.address);
    std::string what = verb(t) + format("the address 0x%llx, ", static_cast<unsigned long long>(address));
    for (const Argument &a : all)
        if (a.flags & NONE && address < SLOT)
            fail(t.place, what + "through a null pointer: " + a.name + " is None.");
    if (address < 65536) fail(t.place, what + "through a null pointer.");
    if (uint64_t(t.address - w.stacks) < STACK * MOST_THREADS)
        fail(t.place, what + "a local variable of another thread.");
    Dl_info kernel, its;
    if (!dladdr(in_kernel(w, 0), &kernel) || !dladdr(t.address, &its) || kernel.dli_fbase != its.dli_fbase)
        fail(t.place, what + "which belongs to no argument and to no array of the kernel.");
    if (!w.statics_begin) w.statics_begin = t.address;
    w.statics_begin = std::min(w.statics_begin, t.address);
    w.statics_end = std::max(w.statics_end, t.address + t.bytes);
}

[[noreturn]] static __attribute__((noinline)) void misaligned(Worker &w, const Touch &t) {
    fail(t.place, verb(t) + format("%u bytes at ", t.bytes) +
                      name(w, {t.address, 1, t.write, t.atomic, t.place}) +
                      format(": the address must be a multiple of %u bytes.", t.bytes));
}

[[noreturn]] static __attribute__((noinline)) void outside_global(Worker &w, const Touch &t) {
    Region &r = region(w, t.address);
    if (r.arguments.empty()) check_elsewhere(w, t);
    const Argument &a = argument_at(r, t.address);
    fail(t.place, verb(t) + name(w, t) + "; " + a.name +
                      count(a.bytes / a.item, a.flags & GAPS ? " spans " : " has "));
}

[[noreturn]] static __attribute__((noinline)) void outside_shared(Worker &w, const Touch &t) {
    const Placed *its;
    std::string text = verb(t) + shared_name(w, t.address, &its) + "; ";
    bool none = its == &w.arrays[0] && w.launch->dynamic_bytes == 0;
    fail(t.place, text + (none ? "the launch asked for no dynamic shared memory."
                               : size_of(*its->array, its->end - its->begin)));
}

[[noreturn]] static __attribute__((noinline)) void on_its_way(Worker &w, const Touch &t, const Cell &cell) {
    fail(t.place, verb(t) + name(w, t) + " before the copy that " + place(in_kernel(w, cell.write_place)) +
                      " began has arrived: __pipeline_wait_prior must come first.");
}

// Nobody has written what this thread reads. Perhaps somebody will, before a barrier: then that is the bug.
static __attribute__((noinline)) void unwritten(Worker &w, const Touch &t, const uint8_t &written,
                                                unsigned mask) {
    if (!w.suspect) w.suspect = w.current;
    give_way(false);  // until nobody else can go on
    w.suspect = nullptr;
    if ((written & mask) != mask) fail(t.place, "reads " + name(w, t) + ", to which no thread has written.");
}

#define INLINE static inline __attribute__((always_inline))

// Every word of four bytes that is touched, and which of its bytes.
template <class Word>
INLINE void each_word(uint64_t at, unsigned bytes, bool aligned, Word word) {
    if (aligned && bytes >= 4) {
        for (unsigned i = 0; i < bytes; i += 4) word((at + i) / 4, 15u);
        return;
    }
    for (uint64_t end = at + bytes; at < end;) {
        unsigned first = at & 3, size = std::min(uint64_t(4 - first), end - at);
        word(at / 4, ((1u << size) - 1) << first);
        at += size;
    }
}

INLINE void check_global(Worker &w, const Touch &t, bool aligned, Access now) {
    Region &r = region(w, t.address);
    uint64_t offset = t.address - r.begin;
    if (__builtin_expect(offset >= r.bytes || t.bytes > r.bytes - offset, 0)) outside_global(w, t);
    if (t.write && !r.writable) fail(t.place, "writes " + name(w, t) + ", through a pointer to const.");
    if (w.launch->blocks >= 1 << 24) return;
    each_word(offset + (reinterpret_cast<uint64_t>(r.begin) & 3), t.bytes, aligned,
              [&](uint64_t i, unsigned mask) {
                  now.bytes = mask;
                  check_cell<true>(w, t, r.cells[i], now);
              });
}

INLINE void check_shared(Worker &w, const Touch &t, bool aligned, Access now) {
    unsigned at = t.address - w.arena, owner = w.owner[at / 4];
    if (__builtin_expect(!owner || t.address + t.bytes > w.arrays[owner - 1].end, 0)) outside_shared(w, t);
    each_word(at, t.bytes, aligned, [&](uint64_t i, unsigned mask) {
        uint8_t &written = w.written[i];
        if (__builtin_expect(written & 0x80, 0)) on_its_way(w, t, w.cells[i]);
        if (__builtin_expect((!t.write || t.atomic) && (written & mask) != mask, 0))
            unwritten(w, t, written, mask);
        now.bytes = mask;
        check_cell<false>(w, t, w.cells[i], now);
        if (t.write) written |= mask;
    });
}

INLINE void check(Touch t, bool aligned) {
    // The stack of a thread begins at a multiple of its size: own local variables differ in the low bits
    // only.
    uint64_t address = reinterpret_cast<uint64_t>(t.address);
    if ((address ^ reinterpret_cast<uint64_t>(__builtin_frame_address(0))) < STACK) return;
    Worker *worker_now = worker;
    if (!worker_now || !worker_now->current) return;  // the library is being loaded
    Worker &w = *worker_now;
    if (__builtin_expect(interrupted.load(std::memory_order_relaxed), 0)) leave();
    Access now = w.current->access;
    now.bits |= uint64_t(w.time) << TIME_AT | uint64_t(t.atomic) << 4;
    bool global = uint64_t(t.address - w.launch->sandbox->base) < SLOTS * SLOT;
    bool shared = uint64_t(t.address - w.arena) < ARENA;
    if (__builtin_expect(aligned && address % t.bytes != 0 && (global || shared), 0)) misaligned(w, t);
    if (global)
        check_global(w, t, aligned, now);
    else if (shared)
        check_shared(w, t, aligned, now);
    else
        check_elsewhere(w, t);
}

void check_atomic(const void *address, unsigned bytes, const void *place) {
    check({static_cast<const char *>(address), bytes, true, true, place}, true);
}

void check_copy_ordered(const Copy &copy, const char *from, unsigned bytes) {
    Worker &w = *worker;
    Touch read{from, copy.bytes, false, false, copy.place};
    if (reinterpret_cast<uint64_t>(from) % copy.bytes) misaligned(w, read);
    read.bytes = bytes;
    if (bytes) check(read, false);
    unsigned at = copy.to - w.arena;
    if (at >= ARENA) fail(copy.place, "__pipeline_memcpy_async copies into shared memory only.");
    check({copy.to, copy.bytes, true, false, copy.place}, true);
    memset(w.written + at / 4, 0x80, copy.bytes / 4);
}

void check_copy_arrives(const Copy &copy) {
    memset(worker->written + (copy.to - worker->arena) / 4, 0, copy.bytes / 4);
    check({copy.to, copy.bytes, true, false, copy.place}, true);
}

// ---- What the compiler calls

#define HOOK(name, bytes, write, aligned) \
    EXPORT void name(const char *address) { check({address, bytes, write, false, CALLER}, aligned); }
#define HOOKS(bytes)                                        \
    HOOK(__tsan_read##bytes, bytes, false, true)            \
    HOOK(__tsan_write##bytes, bytes, true, true)            \
    HOOK(__tsan_unaligned_read##bytes, bytes, false, false) \
    HOOK(__tsan_unaligned_write##bytes, bytes, true, false)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

static void check_range(const void *address, unsigned long bytes, bool write, const void *place) {
    if (bytes) check({static_cast<const char *>(address), unsigned(bytes), write, false, place}, false);
}
EXPORT void __tsan_read_range(void *address, unsigned long bytes) {
    check_range(address, bytes, false, CALLER);
}
EXPORT void __tsan_write_range(void *address, unsigned long bytes) {
    check_range(address, bytes, true, CALLER);
}
EXPORT void *__tsan_memset(void *to, int value, unsigned long bytes) {
    check_range(to, bytes, true, CALLER);
    return memset(to, value, bytes);
}
EXPORT void *__tsan_memcpy(void *to, const void *from, unsigned long bytes) {
    check_range(from, bytes, false, CALLER), check_range(to, bytes, true, CALLER);
    return memcpy(to, from, bytes);
}
EXPORT void *__tsan_memmove(void *to, const void *from, unsigned long bytes) {
    check_range(from, bytes, false, CALLER), check_range(to, bytes, true, CALLER);
    return memmove(to, from, bytes);
}
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_exit() {}
EXPORT void __tsan_func_entry(void *) {
    char here;
    if (worker && worker->current && &here < worker->current->stack + STACK / 4) fail(CALLER, TOO_DEEP);
}

// -fsanitize=bounds and integer-divide-by-zero; the compiler knows the sizes of arrays.

struct SourceLocation {
    const char *file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct OutOfBounds {
    SourceLocation location;
    const Type *array, *index;
};

EXPORT void __ubsan_handle_out_of_bounds(const OutOfBounds *what, uint64_t index) {
    unsigned bits = 1u << (what->index->info >> 1);
    int64_t value = what->index->info & 1 && bits == 32 ? int32_t(index) : int64_t(index);
    std::string type = what->array->name;  // 'float [33]', or 'Name' (aka 'float[33]')
    type = type.substr(0, type.rfind('\''));
    type = type.substr(type.rfind('\'') + 1);
    type.erase(std::remove(type.begin(), type.end(), ' '), type.end());
    fail(CALLER,
         format("index %lld is out of bounds of an array %s.", static_cast<long long>(value), type.c_str()));
}
EXPORT void __ubsan_handle_divrem_overflow(const void *, uint64_t, uint64_t) {
    fail(CALLER, "divides by zero.");
}
