#include "../entry.h"

#include "../../checks/s5_step.h"

NVSUBQ_STEP_ENTRIES(s5_step, nvsubq_s5_step_args)
