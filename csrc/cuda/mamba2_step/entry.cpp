#include "../entry.h"

#include "../../checks/mamba2_step.h"

NVSUBQ_STEP_ENTRIES(mamba2_step, nvsubq_mamba2_step_args)
