#include "../../checks/mamba_step.h"
#include "../step_entry.h"

NVSUBQ_STEP_ENTRIES(mamba_step, nvsubq_mamba_step_args)
