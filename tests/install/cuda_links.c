/* Links with absgd::cuda; runs without a card, for its arguments are refused before any launch. */
#include <absgd_cuda.h>

int main(void) {
    return absgd_dot_cuda(ABSGD_FLOAT32, 0, 0, 0, -1, 0, 0) == ABSGD_INVALID_SIZE ? 0 : 1;
}
