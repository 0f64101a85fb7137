/* The sentences of absgd_status, for the CPU and the CUDA library. */
#include "absgd.h"

const char *absgd_status_string(absgd_status status) {
    switch (status) {
        case ABSGD_OK: return "success";
        case ABSGD_NULL_POINTER: return "a required pointer is NULL";
        case ABSGD_INVALID_DTYPE: return "dtype is not one of absgd_dtype";
        case ABSGD_INVALID_SIZE:
            return "a size is negative or overflows, or begin and end do not satisfy "
                   "0 <= begin <= end <= size";
        case ABSGD_INVALID_HYPERPARAMETER: return "a hyper-parameter is outside its range";
        case ABSGD_TARGET_OUT_OF_RANGE:
            return "a target is neither ignore_index nor in [0, classes)";
        case ABSGD_CUDA_ERROR: return "a CUDA launch failed";
    }
    return "unknown status";
}
