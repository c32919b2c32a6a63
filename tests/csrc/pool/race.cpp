// The thread pool under ThreadSanitizer: several callers at once, calls of all sizes, a fork in between.
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/pool.h"

namespace {

std::atomic<int64_t> shared_out{0};  // tasks that another thread than the caller ran

struct Work {
  std::vector<int64_t> done;            // by task: plain memory, which only its task may touch
  std::vector<int64_t> taken;           // by slot: scratch memory, which one thread has at a time
};

void task(void* context, int64_t i, int64_t slot) {
  Work& w = *static_cast<Work*>(context);
  w.done[size_t(i)] += i + 1;
  for (volatile int spin = 0; spin < 3000; spin = spin + 1) {  // long enough for a worker to wake
  }
  if (slot) shared_out.fetch_add(1, std::memory_order_relaxed);  // relaxed: it orders nothing for the sanitizer
  ++w.taken[size_t(slot)];
}

// Each task once, and what the tasks wrote is seen by the caller.
bool once(int64_t threads, int64_t tasks) {
  Work w{std::vector<int64_t>(size_t(tasks)), std::vector<int64_t>(size_t(threads))};
  nvsubq::run_tasks(threads, tasks, task, &w);
  int64_t taken = 0;
  for (int64_t n : w.taken) taken += n;
  bool well = taken == tasks;
  for (int64_t i = 0; i < tasks; ++i) well = well && w.done[size_t(i)] == i + 1;
  return well;
}

bool many(int rounds) {
  for (int r = 0; r < rounds; ++r)
    if (!once(1 + r % 5, r % 41)) return false;
  return true;
}

bool several_callers(int rounds) {
  std::vector<int> well(4);
  std::vector<std::thread> callers;
  for (int& w : well) callers.emplace_back([&w, rounds] { w = many(rounds); });
  for (std::thread& caller : callers) caller.join();
  for (int w : well)
    if (!w) return false;
  return true;
}

bool in_a_child() {
  const pid_t child = fork();
  if (child == 0) _exit(many(50) ? 0 : 1);
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main(int argc, char**) {
  const int rounds = argc > 1 ? 300 : 3000;
  if (!(many(rounds) && several_callers(rounds) && many(rounds))) {
    printf("pool: a task was lost, or run twice\n");
    return 1;
  }
#if !defined(__SANITIZE_THREAD__)  // its runtime starts no threads in a forked child
  if (!in_a_child()) {
    printf("pool: a forked child cannot use it\n");
    return 1;
  }
#else
  (void)in_a_child;
#endif
  if (!shared_out) {
    printf("pool: no worker ever took a task\n");
    return 1;
  }
  printf("pool: all is well, workers ran %lld tasks\n", (long long)shared_out);
  return 0;
}
