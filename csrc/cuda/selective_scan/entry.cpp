#include "../../checks/selective_scan.h"

#include "../entry.h"

NVSUBQ_ENTRIES(selective_scan, nvsubq_selective_scan_args)
