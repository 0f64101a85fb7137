/* A fuzz target (tests/fuzz) on the same pseudo-random inputs everywhere, with any compiler:
 *   replay 2000    that many inputs */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state = 1;

static uint32_t next(void) { /* the high half of Knuth's MMIX generator */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

int main(int argc, char **argv) {
    const long runs = argc > 1 ? atol(argv[1]) : 1000;
    uint8_t data[512];
    for (long run = 0; run < runs; run++) {
        const size_t size = next() % (sizeof data + 1);
        const uint32_t range = run % 4 ? 256 : 200; /* every fourth: only what callers would do */
        for (size_t i = 0; i < size; i++) data[i] = (uint8_t)(next() % range);
        LLVMFuzzerTestOneInput(data, size);
    }
    return 0;
}
