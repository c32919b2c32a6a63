#include "../entry.h"

#include "../../checks/rglru_step.h"

NVSUBQ_STEP_ENTRIES(rglru_step, nvsubq_rglru_step_args)
