/* One element of the momentum step, included by absgd_math.h for each arithmetic type STEP_REAL, as
 * STEP(). w, g and v are of that type, has_momentum and fresh as in absgd_tensor, the rest as in
 * absgd_sgd_options, converted to it. */
typedef struct STEP(_constants) {
    STEP_REAL lr, momentum, one_minus_dampening, weight_decay, grad_factor;
    int nesterov, polyak;
} STEP(_constants);

ABSGD_FN STEP(_constants) STEP(_prepare)(const absgd_sgd_options *o) {
    STEP(_constants) k;
    k.lr = (STEP_REAL)o->lr;
    k.momentum = (STEP_REAL)o->momentum;
    k.one_minus_dampening = (STEP_REAL)(1.0 - o->dampening);
    k.weight_decay = (STEP_REAL)o->weight_decay;
    k.grad_factor = (STEP_REAL)absgd_grad_factor(o->maximize, o->grad_scale);
    k.nesterov = o->nesterov;
    k.polyak = o->polyak;
    return k;
}

ABSGD_FN STEP_REAL STEP()(STEP_REAL w, STEP_REAL g, STEP_REAL *v, int has_momentum, int fresh,
                          STEP(_constants) k) {
    g = k.grad_factor * g + k.weight_decay * w;
    if (!has_momentum) return w - k.lr * g;
    if (k.polyak) {
        *v = fresh ? -k.lr * g : k.momentum * *v - k.lr * g;
        return w + *v;
    }
    *v = fresh ? g : k.momentum * *v + k.one_minus_dampening * g;
    return w - k.lr * (k.nesterov ? g + k.momentum * *v : *v);
}

#undef STEP_REAL
#undef STEP
