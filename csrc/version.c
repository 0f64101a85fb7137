/* The version that was linked, which can be newer than the header's. */
#include "absgd.h"

int32_t absgd_version(void) { return ABSGD_VERSION; }
