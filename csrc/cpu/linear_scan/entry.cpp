#include "../../checks/linear_scan.h"
#include "../entry.h"

NVSUBQ_ENTRIES(linear_scan, nvsubq_linear_scan_args)
