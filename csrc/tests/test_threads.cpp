// SPDX-License-Identifier: Apache-2.0
// The pool and the promises made on it: every index once, errors come back, many callers, forks, and no allocation.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "model_file.h"
#include "testing.h"
#include "thread_pool.h"

namespace {
std::atomic<long> allocations{0};
}  // namespace

// Inlined, free() stands beside new, which is what it is here for.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

// Counted in the whole program; memory comes from malloc so that sanitizers keep seeing it.
void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t align) {
  ++allocations;
  const auto step = static_cast<std::size_t>(align);
  if (void* memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using namespace port_test;

namespace {

constexpr int kJoints = 7;

struct Poses {
  std::vector<float> joints, confidence, out_joints, out_confidence;
  std::vector<std::uint8_t> mask;
  std::int64_t batch;

  explicit Poses(std::int64_t size) : batch(size) {
    std::mt19937 random(2);
    std::uniform_real_distribution<float> unit(0.0f, 1.0f);
    for (std::int64_t i = 0; i < size * kJoints; ++i) {
      joints.insert(joints.end(), {200.0f * unit(random), 200.0f * unit(random)});
      confidence.push_back(unit(random));
    }
    out_joints = joints, out_confidence = confidence;
    mask.resize(confidence.size());
  }
  port::Output out() { return {out_joints.data(), out_confidence.data(), mask.data()}; }
  void refine(const port::Refiner& refiner) { refiner.refine(joints.data(), confidence.data(), batch, 0.3f, out()); }
};

void count(void* context, std::int64_t index) { ++static_cast<std::atomic<int>*>(context)[index]; }

port::Refiner make_refiner(int threads) {
  port::Options options;
  options.threads = threads;
  options.min_visible = 2;
  return port::Refiner(random_model(), options);
}

}  // namespace

TEST(every_index_once) {
  for (const int threads : {1, 2, 7}) {
    port::ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const int size : {0, 1, 2, 3, 100}) {
      for (int round = 0; round < 200; ++round) {
        std::vector<std::atomic<int>> seen(100);
        pool.run(size, 1 + round % 8, &count, seen.data());
        for (int i = 0; i < 100; ++i) CHECK(seen[static_cast<std::size_t>(i)] == (i < size ? 1 : 0));
      }
    }
  }
}

TEST(sleeping_workers_wake) {
  port::ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::vector<std::atomic<int>> seen(9);
    pool.run(9, 3, &count, seen.data());
    for (const auto& times : seen) CHECK(times == 1);
  }
}

TEST(exceptions_come_back_to_the_caller) {
  port::ThreadPool pool(4);
  for (int round = 0; round < 100; ++round) {
    bool caught = false;
    try {
      pool.run(
          50, 4,
          [](void*, std::int64_t i) {
            if (i == 20) throw std::runtime_error("no");
          },
          nullptr);
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "no";
    }
    CHECK(caught);
    std::vector<std::atomic<int>> seen(10);
    pool.run(10, 4, &count, seen.data());
    for (const auto& times : seen) CHECK(times == 1);
  }
}

TEST(many_callers_on_one_refiner) {
  const port::Refiner refiner = make_refiner(3);
  Poses want(50);
  want.refine(refiner);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 6; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        Poses poses(50);
        poses.refine(refiner);
        wrong += poses.out_joints != want.out_joints || poses.mask != want.mask;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(nothing_is_allocated_per_call) {
  const std::vector<float> maps(static_cast<std::size_t>(40 * kJoints * 16 * 16), 0.5f);
  const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, 40, kJoints, 16, 16);
  for (const int threads : {1, 3}) {
    const port::Refiner refiner = make_refiner(threads);
    Poses poses(40);
    const auto calls = [&] {
      poses.refine(refiner);
      refiner.run(view, nullptr, 0.3f, poses.out());
    };
    const long at_start = allocations;
    for (int round = 0; round < 50; ++round) calls();
    CHECK_CASE(allocations == at_start, std::to_string(threads) + " threads");  // not even in the first call
    port::decode(view, port::Codec::kSoftargmax, 40.0f, 0.3f, poses.out());
    const long warm = allocations;
    for (int round = 0; round < 50; ++round) port::decode(view, port::Codec::kSoftargmax, 40.0f, 0.3f, poses.out());
    CHECK(allocations == warm);
  }
}

TEST(a_forked_child_computes_alone) {
  const port::Refiner refiner = make_refiner(3);
  Poses want(40);
  want.refine(refiner);
  const pid_t child = fork();
  if (child == 0) {
    Poses poses(40);
    poses.refine(refiner);
    {
      port::Refiner other = make_refiner(1);
    }
    _exit(poses.out_joints == want.out_joints ? 0 : 1);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  const pid_t second = fork();
  if (second == 0) {
    auto* leaving = new port::Refiner(make_refiner(2));
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      delete leaving;  // its threads are in another process
      _exit(0);
    }
    int inner = -1;
    waitpid(grandchild, &inner, 0);
    delete leaving;
    _exit(WIFEXITED(inner) && WEXITSTATUS(inner) == 0 ? 0 : 1);
  }
  CHECK(second > 0 && waitpid(second, &status, 0) == second && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main() { return run_tests(); }
