#include "../../checks/conv1d.h"
#include "../entry.h"

NVSUBQ_ENTRIES(conv1d, nvsubq_conv1d_args)
