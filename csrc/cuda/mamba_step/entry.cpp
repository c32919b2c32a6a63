#include "../entry.h"

#include "../../checks/mamba_step.h"

NVSUBQ_STEP_ENTRIES(mamba_step, nvsubq_mamba_step_args)
