/* Includes FORMULAS, a header of csrc/, in float and in double, as namespaces f32 and f64: where
 * both are used, the arguments choose. The header undefines what it uses of EXP, LOG and LOG1P. */
#define REAL(name) name

namespace f32 {
#define real float
#define EXP expf
#define LOG logf
#define LOG1P log1pf
#include FORMULAS
#undef real
#undef LOG1P
} // namespace f32

namespace f64 {
#define real double
#define EXP exp
#define LOG log
#define LOG1P log1p
#include FORMULAS
#undef real
#undef LOG1P
} // namespace f64

#undef REAL
#undef FORMULAS
