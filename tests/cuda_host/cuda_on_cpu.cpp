/* Fibres, barriers and shuffles behind cuda_on_cpu.h.
 *
 * Compiled without ThreadSanitizer, whatever the tests are compiled with: the bookkeeping here is
 * shared by all fibres, and only what barriers promise shall count as order. Hence plain arrays, no
 * containers, whose instrumented copies the linker could choose. */
#include "cuda_on_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(CUDA_ON_CPU_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char *file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char *file, int line);
#else
#define AnnotateIgnoreWritesBegin(...)
#define AnnotateIgnoreWritesEnd(...)
#define __tsan_get_current_fiber() nullptr
#define __tsan_create_fiber(...) nullptr
#define __tsan_switch_to_fiber(...)
#define __tsan_acquire(mark) (void)(mark)
#define __tsan_release(mark) (void)(mark)
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(...)
#define __sanitizer_finish_switch_fiber(...)
#endif

namespace cuda_on_cpu {

int multiprocessors = 1;
int next_error = 0;
int launches = 0;
bool without_barriers = false;

namespace {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024; /* of a block */
#if defined(CUDA_ON_CPU_TSAN)     /* for which each has a clock of all others */
constexpr int MAX_FIBRES = 512;   /* alive at once */
#else
constexpr int MAX_FIBRES = 2048;
#endif
constexpr int MAX_VARIABLES = 16;    /* shared ones of a block */
constexpr size_t STACK = 256 * 1024; /* of a fibre; the largest kernel parameter is 32 KB */
constexpr unsigned NO_SYNC = 1;      /* for ThreadSanitizer: a switch is no synchronisation */

void complain(const char *what) {
    fprintf(stderr, "cuda_on_cpu: %s\n", what);
    exit(1); /* not abort: ctest takes a signal for a failure, whatever the sanitizer said before */
}

/* Threads that wait for each other, over and over. Two marks, used by turns, say to ThreadSanitizer
 * what the barrier orders: a thread that is already at the next barrier must not seem to have been
 * waited for by one that is still leaving this one. */
struct barrier {
    unsigned expected, arrived, generation;
    char marks[2];
};

struct warp {
    barrier meeting;
    int values[2][WARP]; /* by turns, so that one barrier an exchange is enough */
};

struct block {
    unsigned number;
    barrier meeting;
    warp warps[MAX_THREADS / WARP];
    struct {
        const void *key;
        void *memory;
    } shared[MAX_VARIABLES];
};

/* A place to come back to: swapcontext asks the kernel at each switch, and AddressSanitizer clears
 * what it knows of the whole stack; so contexts only begin a fibre. */
struct place {
    void *registers[5];
};

struct fibre {
    place at;
    char *stack;
    void *tsan;
    void *asan_stack; /* AddressSanitizer's, while the fibre is away */
    block *of;
    unsigned thread;
    const barrier *waits_at;
    unsigned generation; /* of that barrier, as it waits */
    bool has_begun, is_done;
};

struct grid {
    unsigned blocks, threads;
    bool cooperative;
    barrier meeting;
    void (*body)(void *);
    void *argument;
    char start_mark, end_mark;
};

fibre fibres[MAX_FIBRES];
block *blocks; /* those alive */
grid current;
fibre *running;
struct {
    place at;
    void *tsan, *asan_stack;
    const void *stack;
    size_t stack_size;
} scheduler; /* the thread that launched */
unsigned random_state = 1;

unsigned next_random() { return random_state = random_state * 1664525u + 1013904223u; }

/* ---- switching ---- */

/* In a function of its own, as __builtin_longjmp has to be. */
__attribute__((noinline, no_sanitize("address"))) void go_to(place *to) {
    __builtin_longjmp(to->registers, 1);
}

__attribute__((noinline, no_sanitize("address"))) void exchange_places(place *from, place *to) {
    if (!__builtin_setjmp(from->registers)) go_to(to);
}

void begin(fibre *f);

void resume(fibre *f) {
    running = f;
    __sanitizer_start_switch_fiber(&scheduler.asan_stack, f->stack, STACK);
    __tsan_switch_to_fiber(f->tsan, NO_SYNC);
    if (f->has_begun) {
        exchange_places(&scheduler.at, &f->at);
    } else {
        begin(f);
    }
    __sanitizer_finish_switch_fiber(scheduler.asan_stack, nullptr, nullptr);
    running = nullptr;
}

void suspend() {
    fibre *f = running;
    __sanitizer_start_switch_fiber(&f->asan_stack, scheduler.stack, scheduler.stack_size);
    __tsan_switch_to_fiber(scheduler.tsan, NO_SYNC);
    exchange_places(&f->at, &scheduler.at);
    __sanitizer_finish_switch_fiber(f->asan_stack, &scheduler.stack, &scheduler.stack_size);
}

/* One thread of the grid after the other. */
void fibre_main() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_size);
    for (fibre *f = running;;) {
        __tsan_acquire(&current.start_mark);
        current.body(current.argument);
        __tsan_release(&current.end_mark);
        f->is_done = true;
        suspend();
    }
}

/* Enters fibre_main on the fibre's stack. */
__attribute__((noinline, no_sanitize("address"))) void begin(fibre *f) {
    f->has_begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = f->stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fibre_main, 0);
    if (!__builtin_setjmp(scheduler.at.registers)) setcontext(&context);
}

void wait(barrier *b) {
    const unsigned generation = b->generation;
    char *mark = &b->marks[generation % 2];
    __tsan_release(mark);
    if (++b->arrived == b->expected) {
        b->arrived = 0;
        b->generation++;
    } else {
        running->waits_at = b;
        running->generation = generation;
        suspend();
        running->waits_at = nullptr;
    }
    __tsan_acquire(mark);
}

bool can_run(const fibre *f) {
    return !f->is_done && (!f->waits_at || f->waits_at->generation != f->generation);
}

/* ---- a launch ---- */

void start(fibre *f, block *of, unsigned thread) {
    if (!f->stack) {
        f->stack = static_cast<char *>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (f->stack == MAP_FAILED) complain("no memory for a stack");
        f->tsan = __tsan_create_fiber(0); /* as slow as a thread's start, so it is kept */
    }
    f->of = of;
    f->thread = thread;
    f->waits_at = nullptr;
    f->is_done = false;
}

/* Runs blocks [first, first + n) to their end. */
void run_blocks(unsigned first, unsigned n) {
    const unsigned n_fibres = n * current.threads;
    blocks = static_cast<block *>(calloc(n, sizeof(block)));
    for (unsigned b = 0; b < n; b++) {
        blocks[b].number = first + b;
        blocks[b].meeting.expected = current.threads;
        for (unsigned t = 0; t < current.threads; t++) {
            blocks[b].warps[t / WARP].meeting.expected++;
            start(&fibres[b * current.threads + t], &blocks[b], t);
        }
    }
    for (unsigned done = 0; done < n_fibres;) {
        bool progressed = false;
        const unsigned offset = next_random() >> 8;
        const bool backwards = next_random() >> 31;
        for (unsigned i = 0; i < n_fibres; i++) {
            fibre *f = &fibres[((backwards ? n_fibres - 1 - i : i) + offset) % n_fibres];
            if (!can_run(f)) continue;
            resume(f);
            progressed = true;
            done += f->is_done;
        }
        if (!progressed) complain("a barrier or shuffle was not reached by all of its threads");
    }
    __tsan_acquire(&current.end_mark);
    for (unsigned b = 0; b < n; b++) {
        for (auto &variable : blocks[b].shared) free(variable.memory);
    }
    free(blocks);
}

} // namespace

int run(unsigned n_blocks, unsigned n_threads, bool cooperative, void (*body)(void *),
        void *argument) {
    launches++;
    if (next_error) {
        const int error = next_error;
        next_error = 0;
        return error;
    }
    if (n_threads == 0 || n_threads > MAX_THREADS || n_blocks == 0) {
        return cudaErrorInvalidConfiguration;
    }
    const unsigned at_once = MAX_FIBRES / n_threads;
    if (cooperative && n_blocks > at_once) return cudaErrorCooperativeLaunchTooLarge;
    current = grid{n_blocks, n_threads, cooperative, {n_blocks * n_threads, 0, 0, {}},
                   body,     argument,  0,           0};
    scheduler.tsan = __tsan_get_current_fiber();
    __tsan_release(&current.start_mark);
    for (unsigned first = 0; first < n_blocks; first += at_once) {
        run_blocks(first, n_blocks - first < at_once ? n_blocks - first : at_once);
    }
    return cudaSuccess;
}

/* ---- what kernels call ---- */

unsigned thread_number() { return running->thread; }
unsigned block_number() { return running->of->number; }
unsigned block_size() { return current.threads; }
unsigned grid_size() { return current.blocks; }

void sync_block() {
    if (!without_barriers) wait(&running->of->meeting);
}

void sync_grid() {
    if (!current.cooperative) complain("a grid barrier in a launch that is not cooperative");
    wait(&current.meeting);
}

int exchange(unsigned mask, int value, int source_lane) {
    warp *w = &running->of->warps[running->thread / WARP];
    if (mask != 0xffffffffu || w->meeting.expected != WARP) {
        complain("a shuffle of less than a whole warp");
    }
    int *values = w->values[w->meeting.generation % 2];
    values[running->thread % WARP] = value;
    wait(&w->meeting);
    return values[source_lane];
}

void *shared_memory(const void *key, size_t size) {
    for (auto &variable : running->of->shared) {
        if (!variable.key) {
            variable.key = key;
            AnnotateIgnoreWritesBegin(__FILE__, __LINE__); /* it was there before the block began */
            variable.memory = malloc(size);
            AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
            for (size_t i = 0; i < size; i++) static_cast<char *>(variable.memory)[i] = -1;
        }
        if (variable.key == key) return variable.memory;
    }
    complain("more shared variables than MAX_VARIABLES");
    return nullptr;
}

} // namespace cuda_on_cpu
