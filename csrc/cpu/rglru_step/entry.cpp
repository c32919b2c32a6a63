#include "../../checks/rglru_step.h"
#include "../step_entry.h"

NVSUBQ_STEP_ENTRIES(rglru_step, nvsubq_rglru_step_args)
