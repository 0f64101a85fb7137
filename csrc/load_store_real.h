/* Reading and writing elements of any dtype as `real`; included once for each arithmetic type by
 * the loops that use it. The dtype is a constant in each call. */

ABSGD_INLINE real REAL(load)(absgd_dtype dtype, const void *x, int64_t i) {
    switch (dtype) {
        case ABSGD_FLOAT16: return (real)absgd_f16_load(((const absgd_f16 *)x)[i]);
        case ABSGD_BFLOAT16: return (real)absgd_bf16_load(((const absgd_bf16 *)x)[i]);
        default: return ((const real *)x)[i];
    }
}

ABSGD_INLINE void REAL(store)(absgd_dtype dtype, void *x, int64_t i, real value) {
    switch (dtype) {
        case ABSGD_FLOAT16: ((absgd_f16 *)x)[i] = absgd_f16_store((float)value); break;
        case ABSGD_BFLOAT16: ((absgd_bf16 *)x)[i] = absgd_bf16_store((float)value); break;
        default: ((real *)x)[i] = value; break;
    }
}
