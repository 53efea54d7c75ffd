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

static const char *verb(bool write) { return write ? "writes " : "reads "; }

[[noreturn]] static void outside(const Region &r, const char *address, unsigned bytes, bool write,
                                 const void *place) {
    const Argument &a = argument_at(r, address);
    uint64_t n = a.bytes / a.item;
    fail(place, verb(write) + global_name(r, address, bytes) + "; " + a.name +
                    (a.flags & GAPS ? " spans " : " has ") + std::to_string(n) +
                    (n == 1 ? " element." : " elements."));
}

// ---- Races: two threads at the same bytes, at least one writes, and nothing puts one before the other

constexpr uint32_t END_OF_TIME = 0xffff;  // what happened then is taken to be ordered

static inline Access load(const Access &cell) {
    uint64_t bits = __atomic_load_n(reinterpret_cast<const uint64_t *>(&cell), __ATOMIC_RELAXED);
    Access access;
    memcpy(&access, &bits, 8);
    return access;
}
static inline void store(Access &cell, Access access) {
    uint64_t bits;
    memcpy(&bits, &access, 8);
    __atomic_store_n(reinterpret_cast<uint64_t *>(&cell), bits, __ATOMIC_RELAXED);
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

template <bool GLOBAL>
static inline bool conflict(const Worker &w, Access then, Access now) {
    if (then.launch != now.launch || !(then.bytes & now.bytes) || (then.atomic && now.atomic)) return false;
    if (then.several == BLOCKS || then.block != now.block) return GLOBAL && !w.launch->fenced;
    if (then.thread == now.thread && then.several == ONE) return false;
    return !ordered(w, then, now);
}

// A cell has room for one reader. If there was one that still matters, the entry stands for both.
template <bool GLOBAL>
static inline Access merged(const Worker &w, Access then, Access now) {
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

static inline int32_t from_kernel(const Worker &w,
                                  const void *place) {  // 32 bits are enough for a place in it
    return static_cast<const char *>(place) - reinterpret_cast<const char *>(w.launch->kernel);
}

template <bool GLOBAL>
[[noreturn]] static __attribute__((noinline)) void race(const Worker &w, Access then, Access now, bool wrote,
                                                        bool write, int32_t from, const std::string &name,
                                                        const void *where) {
    auto index = [](unsigned i, const Index &n) { return text_of({i % n.x, i / n.x % n.y, i / n.x / n.y}); };
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
    fail(where, verb(write) + name + ", which " + who + (wrote ? " wrote in " : " read in ") +
                    place(reinterpret_cast<const char *>(w.launch->kernel) + from) + ". " + between);
}

template <bool GLOBAL, class Name>
static inline void check_cell(const Worker &w, Cell &cell, Access now, bool write, const void *place,
                              Name name) {
    Access wrote = load(cell.write);
    if (__builtin_expect(conflict<GLOBAL>(w, wrote, now), 0))
        race<GLOBAL>(w, wrote, now, true, write, cell.write_place, name(), place);
    Access read = load(cell.read);
    if (!write) {
        store(cell.read, merged<GLOBAL>(w, read, now));
        __atomic_store_n(&cell.read_place, from_kernel(w, place), __ATOMIC_RELAXED);
        return;
    }
    if (__builtin_expect(conflict<GLOBAL>(w, read, now), 0))
        race<GLOBAL>(w, read, now, false, write, cell.read_place, name(), place);
    store(cell.write, now.atomic ? merged<GLOBAL>(w, wrote, now) : now);
    __atomic_store_n(&cell.write_place, from_kernel(w, place), __ATOMIC_RELAXED);
}

static inline Access access_now(const Worker &w, bool atomic) {
    return {w.launch->number & 127, w.block_number & 0xffffff, w.number(*w.current), w.time, 0, atomic, ONE};
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

static __attribute__((noinline)) void check_elsewhere(Worker &w, const char *address, unsigned bytes,
                                                      bool write, const void *place) {
    if (address >= w.statics_begin && address + bytes <= w.statics_end) return;
    const Argument *found = nullptr;  // of the tensors whose addresses the kernel has from a table, sorted
    for (size_t low = w.launch->tables, high = w.launch->arguments.size(); low < high;) {
        size_t middle = (low + high) / 2;
        const Argument &a = w.launch->arguments[middle];
        if (a.data <= address)
            found = &a, low = middle + 1;
        else
            high = middle;
    }
    if (found && address + bytes <= found->data + found->bytes) return;
    if (found && address < found->data + found->bytes + 64)
        fail(place, verb(write) +
                        elements(found->name, (address - found->data) / found->item,
                                 (address + bytes - 1 - found->data) / found->item) +
                        "; " + found->name + " has " + std::to_string(found->bytes / found->item) +
                        " elements.");
    std::string what =
        verb(write) + format("the address 0x%llx, ", reinterpret_cast<unsigned long long>(address));
    if (uint64_t(address) < SLOT)
        for (const Argument &a : w.launch->arguments)
            if (a.flags & NONE) fail(place, what + "through a null pointer: " + a.name + " is None.");
    if (uint64_t(address) < 65536) fail(place, what + "through a null pointer.");
    if (address >= w.stacks && address < w.stacks + STACK * MOST_THREADS)
        fail(place, what + "a local variable of another thread.");
    Dl_info kernel, its;
    if (!dladdr(reinterpret_cast<void *>(w.launch->kernel), &kernel) || !dladdr(address, &its) ||
        kernel.dli_fbase != its.dli_fbase)
        fail(place, what + "which belongs to no argument and to no array of the kernel.");
    bool first = !w.statics_begin;
    w.statics_begin = first ? address : std::min(w.statics_begin, address);
    w.statics_end = first ? address + bytes : std::max(w.statics_end, address + bytes);
}

static __attribute__((noinline)) void check_global(Worker &w, Region &r, const char *address, unsigned bytes,
                                                   bool write, bool atomic, const void *place) {
    uint64_t offset = address - r.begin;
    if (offset >= r.bytes || bytes > r.bytes - offset) {
        if (r.arguments.empty()) check_elsewhere(w, address, bytes, write, place);
        outside(r, address, bytes, write, place);
    }
    if (write && !r.writable)
        fail(place, "writes " + global_name(r, address, bytes) + ", through a pointer to const.");
    if (w.launch->blocks >= 1 << 24) return;
    auto name = [&] { return global_name(r, address, bytes); };
    Access now = access_now(w, atomic);
    uint64_t lead = reinterpret_cast<uint64_t>(r.begin) & 3;
    for (uint64_t at = offset + lead, end = at + bytes; at < end;) {
        unsigned first = at & 3, size = std::min(uint64_t(4 - first), end - at);
        now.bytes = ((1u << size) - 1) << first;
        check_cell<true>(w, r.cells[at / 4], now, write, place, name);
        at += size;
    }
}

static inline void check_shared(Worker &w, const char *address, unsigned bytes, bool write, bool atomic,
                                const void *place) {
    unsigned at = address - w.arena, owner = w.owner[at / 4];
    if (__builtin_expect(!owner || address + bytes > w.arrays[owner - 1].end, 0)) {
        const Placed *its;
        std::string name = shared_name(w, address, &its);
        if (its == &w.arrays[0] && w.launch->dynamic_bytes == 0)
            fail(place, verb(write) + name + "; the launch asked for no dynamic shared memory.");
        fail(place, verb(write) + name + "; " + size_of(*its->array, its->end - its->begin));
    }
    auto name = [&] { return shared_name(w, address); };
    Access now = access_now(w, atomic);
    for (unsigned end = at + bytes; at < end;) {
        unsigned first = at & 3, size = std::min(4 - first, end - at), mask = ((1u << size) - 1) << first;
        uint8_t &written = w.written[at / 4];
        Cell &cell = w.cells[at / 4];
        if (__builtin_expect(written & 0x80, 0))
            fail(place, verb(write) + name() + " before the copy that " +
                            ::place(reinterpret_cast<const char *>(w.launch->kernel) + cell.write_place) +
                            " began has arrived: __pipeline_wait_prior must come first.");
        if (__builtin_expect((!write || atomic) && (written & mask) != mask, 0)) {
            if (!w.suspect) w.suspect = w.current;
            give_way(false);  // until nobody else can go on
            w.suspect = nullptr;
            if ((written & mask) != mask)
                fail(place, "reads " + name() + ", to which no thread has written.");
        }
        now.bytes = mask;
        check_cell<false>(w, cell, now, write, place, name);
        if (write) written |= mask;
        at += size;
    }
}

static inline __attribute__((always_inline)) void check(const void *pointer, unsigned bytes, bool write,
                                                        bool atomic, bool aligned, const void *place) {
    Worker *w = worker;
    if (!w || !w->current) return;  // the library is being loaded
    if (__builtin_expect(interrupted.load(std::memory_order_relaxed), 0)) leave();
    const char *address = static_cast<const char *>(pointer);
    uint64_t offset = address - w->launch->sandbox->base;
    bool global = offset < SLOTS * SLOT, shared = uint64_t(address - w->arena) < ARENA;
    if (__builtin_expect(aligned && reinterpret_cast<uint64_t>(address) % bytes != 0, 0) &&
        (global || shared))
        fail(place, verb(write) + format("%u bytes at ", bytes) +
                        (shared ? shared_name(*w, address)
                                : global_name(w->launch->sandbox->regions[offset / SLOT], address, 1)) +
                        format(": the address must be a multiple of %u bytes.", bytes));
    if (global)
        check_global(*w, w->launch->sandbox->regions[offset / SLOT], address, bytes, write, atomic, place);
    else if (shared)
        check_shared(*w, address, bytes, write, atomic, place);
    else if (uint64_t(address - w->current->stack) >= STACK)
        check_elsewhere(*w, address, bytes, write, place);
}

void check_access(const void *address, unsigned bytes, bool write, bool atomic, const void *place) {
    check(address, bytes, write, atomic, true, place);
}

void check_copy_ordered(const Copy &copy) {
    check(copy.to, copy.bytes, true, false, true, copy.place);
    Worker &w = *worker;
    unsigned at = copy.to - w.arena;
    if (at >= ARENA) fail(copy.place, "__pipeline_memcpy_async copies into shared memory only.");
    memset(w.written + at / 4, 0x80, copy.bytes / 4);
}

void check_copy_arrives(const Copy &copy) {
    memset(worker->written + (copy.to - worker->arena) / 4, 0, copy.bytes / 4);
    check(copy.to, copy.bytes, true, false, true, copy.place);
}

// ---- What the compiler calls

#define HOOK(name, bytes, write, aligned) \
    EXPORT void name(void *address) { check(address, bytes, write, false, aligned, CALLER); }
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
EXPORT void __tsan_read_range(void *address, unsigned long bytes) {
    check(address, bytes, false, false, false, CALLER);
}
EXPORT void __tsan_write_range(void *address, unsigned long bytes) {
    check(address, bytes, true, false, false, CALLER);
}
EXPORT void *__tsan_memset(void *to, int value, unsigned long bytes) {
    if (bytes) check(to, bytes, true, false, false, CALLER);
    return memset(to, value, bytes);
}
EXPORT void *__tsan_memcpy(void *to, const void *from, unsigned long bytes) {
    if (bytes) check(from, bytes, false, false, false, CALLER), check(to, bytes, true, false, false, CALLER);
    return memcpy(to, from, bytes);
}
EXPORT void *__tsan_memmove(void *to, const void *from, unsigned long bytes) {
    if (bytes) check(from, bytes, false, false, false, CALLER), check(to, bytes, true, false, false, CALLER);
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
