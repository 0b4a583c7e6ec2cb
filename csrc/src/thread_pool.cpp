// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace port {
namespace {

constexpr auto kSpin = std::chrono::microseconds(20);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : owner_(getpid()), signals_(std::make_unique<Signals>()) {
  workers_.reserve(static_cast<std::size_t>(std::max(threads, 1) - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
  } catch (...) {
    // The destructor does not run for a half-made object, and a joinable thread must not be destroyed.
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    generation_.fetch_add(1);
    signals_->wake.notify_all();
    for (std::thread& thread : workers_) thread.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() != owner_) {  // the threads stayed in the parent
    for (std::thread& thread : workers_) thread.detach();
    static_cast<void>(signals_.release());
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  signals_->wake.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::run(std::int64_t count, int limit, Work work, void* context) {
  const std::int64_t helpers =
      std::min<std::int64_t>({static_cast<std::int64_t>(workers_.size()), count - 1, limit - 1});
  // The process is asked first: a lock held by another thread at the fork is never released in the child.
  if (helpers < 1 || getpid() != owner_ || !busy_.try_lock()) {
    for (std::int64_t i = 0; i < count; ++i) work(context, i);
    return;
  }
  const std::lock_guard<std::mutex> busy(busy_, std::adopt_lock);
  Job job{work, context, count, {}, {}};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_ = &job;
    places_ = static_cast<int>(helpers);
    generation_.fetch_add(1);
  }
  if (helpers == static_cast<std::int64_t>(workers_.size())) {
    signals_->wake.notify_all();
  } else {
    for (std::int64_t i = 0; i < helpers; ++i) signals_->wake.notify_one();
  }
  drain(job);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // whoever wakes now finds nothing
    signals_->left.wait(lock, [this] { return inside_ == 0; });
  }
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::drain(Job& job) {
  try {
    for (std::int64_t i; (i = job.next.fetch_add(1)) < job.count;) job.work(job.context, i);
  } catch (...) {
    job.next.store(job.count);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!job.error) job.error = std::current_exception();
  }
}

void ThreadPool::worker() {
  std::uint64_t seen = 0;
  while (true) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (generation_.load() == seen && std::chrono::steady_clock::now() < deadline) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    signals_->wake.wait(lock, [&] { return stop_ || generation_.load() != seen; });
    if (stop_) return;
    seen = generation_.load();
    if (job_ == nullptr || places_ == 0) continue;
    --places_;
    ++inside_;
    Job& job = *job_;
    lock.unlock();
    drain(job);
    lock.lock();
    if (--inside_ == 0) signals_->left.notify_one();
  }
}

}  // namespace port
