/* The kernels behind the C ABI, each declared once for every level of isa.h. They trust their
 * arguments: dispatch.c has checked them; sigmoid_targets_fit: whether none is out of range. */
#ifndef ABSGD_KERNELS_H
#define ABSGD_KERNELS_H

#include "absgd_math.h"
#include "isa.h"

#define ABSGD_DECLARE(level)                                                                       \
    void absgd_batch_stats_v##level(absgd_dtype dtype, const void *losses, const uint8_t *mask,    \
                                    const void *weight, int64_t n, double lam,                     \
                                    absgd_stats *stats);                                           \
    void absgd_weights_v##level(absgd_dtype dtype, const void *losses, const uint8_t *mask,        \
                                const void *weight, int64_t n, double lam, absgd_weigher weigher,  \
                                void *weights, void *coefficients, double *capped);                \
    int absgd_batch_stats_large_v##level(absgd_dtype dtype, const void *losses,                    \
                                         const uint8_t *mask, const void *weight, int64_t n,       \
                                         double lam, absgd_stats *stats);                          \
    void absgd_weights_large_v##level(                                                             \
        absgd_dtype dtype, const void *losses, const uint8_t *mask, const void *weight, int64_t n, \
        double lam, absgd_weigher weigher, void *weights, void *coefficients, double *capped);     \
    void absgd_lam_sums_v##level(absgd_dtype dtype, const void *losses, const uint8_t *mask,       \
                                 const void *weight, int64_t n, double sign,                       \
                                 const absgd_lam_search *search, absgd_lam_row *row);              \
    int absgd_lam_sums_large_v##level(absgd_dtype dtype, const void *losses, const uint8_t *mask,  \
                                      const void *weight, int64_t n, double sign,                  \
                                      const absgd_lam_search *search, absgd_lam_row *row);         \
    void absgd_sgd_step_v##level(absgd_dtype dtype, const absgd_tensor *tensors,                   \
                                 const absgd_sgd_options *options, int looks_ahead, int64_t begin, \
                                 int64_t end);                                                     \
    void absgd_softmax_loss_forward_v##level(absgd_dtype dtype, const absgd_softmax_loss *spec,    \
                                             const void *logits, const int64_t *target,            \
                                             const void *soft_target, void *loss, void *saved,     \
                                             void *kept, int64_t begin, int64_t end);              \
    void absgd_softmax_loss_backward_v##level(                                                     \
        absgd_dtype dtype, const absgd_softmax_loss *spec, const void *logits,                     \
        const int64_t *target, const void *soft_target, const void *saved, const void *kept,       \
        const void *grad_loss, void *grad_logits, int64_t begin, int64_t end);                     \
    int absgd_sigmoid_targets_fit_v##level(absgd_dtype dtype, const absgd_sigmoid_loss *spec,      \
                                           const void *target, int64_t begin, int64_t end);        \
    void absgd_sigmoid_loss_forward_v##level(absgd_dtype dtype, const absgd_sigmoid_loss *spec,    \
                                             const void *logits, const void *target, void *loss,   \
                                             void *known, int64_t begin, int64_t end);             \
    void absgd_sigmoid_loss_backward_v##level(                                                     \
        absgd_dtype dtype, const absgd_sigmoid_loss *spec, const void *logits, const void *target, \
        const void *known, const void *grad_loss, void *grad_logits, int64_t begin, int64_t end);

#if !ABSGD_ONE_LEVEL
ABSGD_DECLARE(2)
ABSGD_DECLARE(3)
ABSGD_DECLARE(4)
#else
ABSGD_DECLARE(1)
#endif

#endif
