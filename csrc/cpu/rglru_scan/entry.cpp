#include "../../checks/rglru_scan.h"
#include "../entry.h"

NVSUBQ_ENTRIES(rglru_scan, nvsubq_rglru_scan_args)
