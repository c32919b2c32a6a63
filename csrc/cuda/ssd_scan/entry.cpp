#include "../../checks/ssd_scan.h"

#include "../entry.h"

NVSUBQ_ENTRIES(ssd_scan, nvsubq_ssd_scan_args)
