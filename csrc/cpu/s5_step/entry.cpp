#include "../../checks/s5_step.h"
#include "../step_entry.h"

NVSUBQ_STEP_ENTRIES(s5_step, nvsubq_s5_step_args)
