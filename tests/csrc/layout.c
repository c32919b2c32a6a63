/* The header and its layout as C99 has them. */
#include "layout.h"

int layout_as_c(void);
int layout_as_c(void) { return (int)sizeof(nvsubq_selective_scan_args); }
