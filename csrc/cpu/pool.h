// Runs the tasks of one call on several threads.
#ifndef NVSUBQ_CPU_POOL_H
#define NVSUBQ_CPU_POOL_H

#include <stdint.h>

namespace nvsubq {

// Called for each task 0 .. tasks-1 once; `slot` < threads names the scratch memory that is this task's alone.
using Task = void (*)(void* context, int64_t task, int64_t slot);

// Which thread takes a task never changes a result: a task must depend on nothing but its number.
void run_tasks(int64_t threads, int64_t tasks, Task task, void* context);

}  // namespace nvsubq
#endif
