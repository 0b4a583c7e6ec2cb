// SPDX-License-Identifier: Apache-2.0
// Threads that share one call's work. Test: csrc/tests/test_threads.cpp.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace port {

// `threads` - 1 workers; the caller of run() is the last one. Workers look for work for about 20 us after a call and
// then sleep in the kernel. Nothing is allocated after the constructor.
class ThreadPool {
 public:
  using Work = void (*)(void* context, std::int64_t index);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(context, i) for every i < count, in any order, on at most `limit` threads, and returns when all are
  // done. A caller that finds the workers busy with another call, or that is a forked child, does everything itself.
  // The first exception that `work` throws is thrown again here; what had not begun by then is left out.
  void run(std::int64_t count, int limit, Work work, void* context);

 private:
  struct Job {
    Work work;
    void* context;
    std::int64_t count;
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;  // guarded by mutex_
  };

  // Behind a pointer: a forked child must leave it behind, because destroying a condition variable waits for the
  // threads that sleep on it, and those stayed in the parent.
  struct Signals {
    std::condition_variable wake, left;
  };

  void worker();
  void drain(Job& job);

  std::vector<std::thread> workers_;
  const long owner_;  // process that has the threads
  std::mutex busy_;   // held by the caller whose job runs
  std::mutex mutex_;  // guards what follows
  std::unique_ptr<Signals> signals_;
  Job* job_ = nullptr;
  int places_ = 0;  // workers that may still join the job
  int inside_ = 0;  // workers in it
  bool stop_ = false;
  std::atomic<std::uint64_t> generation_{0};
};

}  // namespace port
