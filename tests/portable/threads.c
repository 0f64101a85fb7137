/* A fuzz target (tests/fuzz) from several threads at once, for ThreadSanitizer: calls that write to
 * different memory share nothing.
 *   threads 500    that many pseudo-random inputs in each */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { THREADS = 4 };
static long runs = 500;
#ifdef PLANTED /* a race, to see that it is reported */
static int shared;
#define RACE() shared++
#else
#define RACE() (void)0
#endif

static uint32_t next(uint64_t *state) { /* the high half of Knuth's MMIX generator */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

static void *run(void *seed) {
    uint64_t state = *(uint64_t *)seed;
    uint8_t data[512];
    for (long i = 0; i < runs; i++) {
        const size_t size = next(&state) % (sizeof data + 1);
        for (size_t k = 0; k < size; k++) data[k] = (uint8_t)(next(&state) % 200);
        LLVMFuzzerTestOneInput(data, size);
        RACE();
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1) runs = atol(argv[1]);
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS];
    for (int t = 0; t < THREADS; t++) {
        seeds[t] = (uint64_t)t + 1;
        if (pthread_create(&threads[t], NULL, run, &seeds[t])) return 1;
    }
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
    return 0;
}
