/* Per-sample sigmoid losses: binary cross-entropy and sigmoid focal.
 *
 * Elements are independent, so that any layout is one flat array to them, walked in tiles whose
 * values stay in registers and the first-level cache. Forward: logits and targets are read once;
 * the mean over a sample's elements is taken on the way, a tile's sum in the arithmetic type, the
 * sample's in double. Backward: both are read once more and the gradient is written; the
 * exponentials are taken again. */
#include "exp.h"
#include "half.h"
#include "kernels.h"
#include "log_f32.h"

enum { TILE = 256 }; /* elements */

/* The arguments of a call, as the functions below pass them on. */
typedef struct loss_call {
    absgd_sigmoid_loss spec;
    const void *logits, *target;
} loss_call;

static int64_t elements_of_sample(const absgd_sigmoid_loss *spec) {
    return spec->classes * spec->inner;
}

#define REAL(name) name##_f32
#define real float
#define EXP absgd_exp_nonpositive_f32
#define LOG absgd_log_f32
#define LOG1P absgd_log1p_unit_f32
#include "sigmoid_loss_math.h"
#include "sigmoid_loss_real.h"
#undef REAL
#undef real

#define REAL(name) name##_f64
#define real double
#define EXP absgd_exp_nonpositive_f64
#define LOG absgd_log_f64
#define LOG1P absgd_log1p_f64
#include "sigmoid_loss_math.h"
#include "sigmoid_loss_real.h"

int ABSGD_KERNEL(absgd_sigmoid_targets_fit)(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                            const void *target, int64_t begin, int64_t end) {
    const int64_t size = spec->per_sample ? elements_of_sample(spec) : 1;
    return dtype == ABSGD_FLOAT64
               ? targets_fit_f64(target, spec->ignore_index, begin * size, end * size)
               : targets_fit_f32(target, spec->ignore_index, begin * size, end * size);
}

/* dtype and focus are constants in each call, so that the loops hold no switch. */
#define FOR_EACH_DTYPE(CASE)                                                                       \
    switch (dtype) {                                                                               \
        CASE(ABSGD_FLOAT32, f32)                                                                   \
        CASE(ABSGD_FLOAT64, f64)                                                                   \
        CASE(ABSGD_FLOAT16, f32)                                                                   \
        CASE(ABSGD_BFLOAT16, f32)                                                                  \
    }
#define FOR_EACH_FOCUS(name, call)                                                                 \
    case name:                                                                                     \
        switch (absgd_sigmoid_focus(spec)) {                                                       \
            case ABSGD_NO_FOCUS: call(name, ABSGD_NO_FOCUS); break;                                \
            case ABSGD_FOCUS_SQUARED: call(name, ABSGD_FOCUS_SQUARED); break;                      \
            case ABSGD_FOCUS: call(name, ABSGD_FOCUS); break;                                      \
        }                                                                                          \
        break;

void ABSGD_KERNEL(absgd_sigmoid_loss_forward)(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                              const void *logits, const void *target, void *loss,
                                              void *known, int64_t begin, int64_t end) {
    const loss_call call = {*spec, logits, target};
#define FORWARD_f32(name, focus) forward_f32(name, focus, &call, loss, known, begin, end)
#define FORWARD_f64(name, focus) forward_f64(name, focus, &call, loss, known, begin, end)
#define CASE(name, suffix) FOR_EACH_FOCUS(name, FORWARD_##suffix)
    FOR_EACH_DTYPE(CASE)
#undef CASE
}

void ABSGD_KERNEL(absgd_sigmoid_loss_backward)(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                               const void *logits, const void *target,
                                               const void *known, const void *grad_loss,
                                               void *grad_logits, int64_t begin, int64_t end) {
    const loss_call call = {*spec, logits, target};
#define BACKWARD_f32(name, focus)                                                                  \
    backward_f32(name, focus, &call, known, grad_loss, grad_logits, begin, end)
#define BACKWARD_f64(name, focus)                                                                  \
    backward_f64(name, focus, &call, known, grad_loss, grad_logits, begin, end)
#define CASE(name, suffix) FOR_EACH_FOCUS(name, BACKWARD_##suffix)
    FOR_EACH_DTYPE(CASE)
#undef CASE
}
