#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace nvsubq {
namespace {

struct Job {
  Task task;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  void take_all(int64_t slot) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i, slot);
  }
};

// Workers sleep on a condition variable and never spin. The caller works too; when nothing is left to take it
// withdraws the job, so it waits for workers that hold a task, never for one that has yet to wake.
class Pool {
 public:
  std::atomic<bool> busy{false};

  void run(int64_t threads, Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(threads - 1);
      job_ = &job;
      open_ = threads - 1;
    }
    wake_.notify_all();
    job.take_all(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  void grow(int64_t workers) {
    try {
      for (; workers_ < workers; ++workers_) std::thread(&Pool::work, this).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are share the work.
    }
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && open_ > 0; });
      Job* job = job_;
      const int64_t slot = open_--;
      ++inside_;
      lock.unlock();
      job->take_all(slot);
      lock.lock();
      if (--inside_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int64_t open_ = 0, inside_ = 0, workers_ = 0;
};

// Never destroyed: its threads may still sleep on it when the process ends. A forked child has none of the
// threads, so there it is dropped, unlocked or not, and made anew on the next call.
std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  (void)registered;
  Pool* found = the_pool.load();
  if (!found) {
    Pool* made = new Pool;
    if (the_pool.compare_exchange_strong(found, made)) return made;
    delete made;
  }
  return found;
}

}  // namespace

void run_tasks(int64_t threads, int64_t tasks, Task task, void* context) {
  Job job{task, context, tasks};
  if (threads > tasks) threads = tasks;
  if (threads > 1) {
    Pool* shared = pool();
    if (!shared->busy.exchange(true)) {
      shared->run(threads, job);
      shared->busy.store(false);
      return;
    }
  }
  job.take_all(0);  // one thread was asked for, or another Python thread has the pool
}

}  // namespace nvsubq
