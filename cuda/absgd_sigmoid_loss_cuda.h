/* The sigmoid losses of the C ABI on CUDA; see absgd_cuda.h for what holds of every function. */
#ifndef ABSGD_SIGMOID_LOSS_CUDA_H
#define ABSGD_SIGMOID_LOSS_CUDA_H

#include "absgd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As absgd_sigmoid_loss_forward and _backward, for all samples; weight and pos_weight are on the
 * device. A target out of range, which the host cannot see, gives a NaN loss and gradient. A
 * sample's losses are summed in the arithmetic type, where the CPU takes double. *grad_factor, of
 * that type, multiplies all of grad_loss; NULL: 1. */
ABSGD_API absgd_status absgd_sigmoid_loss_forward_cuda(absgd_dtype dtype,
                                                       const absgd_sigmoid_loss *spec,
                                                       const void *logits, const void *target,
                                                       void *loss, void *known, void *stream);

ABSGD_API absgd_status absgd_sigmoid_loss_backward_cuda(absgd_dtype dtype,
                                                        const absgd_sigmoid_loss *spec,
                                                        const void *logits, const void *target,
                                                        const void *known, const void *grad_loss,
                                                        const void *grad_factor, void *grad_logits,
                                                        void *stream);

#ifdef __cplusplus
}
#endif
#endif
