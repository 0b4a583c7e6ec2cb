// SPDX-License-Identifier: Apache-2.0
// A GPU for tests: runs kernels compiled for the host, one fiber per thread, all on the calling thread.
//
// Blocks of a cluster run together, clusters one after the other in seeded order. A fiber runs until it has to wait for
// others; who runs next is seeded (`Machine::seed`: 0 lowest first, 1 highest first, others random priorities of warps
// that change now and then), so that one warp may run far ahead of another, as on a GPU, and a missing barrier becomes
// a wrong number. Shared memory starts as 0xff bytes (NaN). A bulk copy overwrites its target with 0xff at once and
// delivers later, in seeded order. Misuse that hardware would not forgive (divergent collectives, unaligned copies, an
// peer's memory that has not begun or has ended, a deadlock) ends the program with one line.
// Under AddressSanitizer every switch of stacks is announced, and every block's shared memory is an allocation of
// exactly its size. Test: csrc/tests/emulated/test_device.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace port::emulated {

struct Launch {
  int blocks = 1;   // a multiple of `cluster`
  int cluster = 1;  // blocks of a cluster
  int threads = 32;
  std::size_t shared_bytes = 0;
  unsigned seed = 0;
  int major = 9;  // compute capability
  // A planted fault: block barrier number `skip_barrier` of every thread (the first is 0) does nothing.
  int skip_barrier = -1;
  // Likewise for cluster barriers: neither arrives nor waits.
  int skip_cluster_barrier = -1;
  bool tolerant = false;  // misuse ends the launch, and is told of, instead of ending the program
};

struct Counts {
  const char* stopped = nullptr;  // by what misuse
  long switches = 0;
  int block_barriers = 0, cluster_barriers = 0;  // passed by the first thread of the last block
};

// Runs kernel() once per thread.
Counts launch(const Launch& launch, const std::function<void()>& kernel);

// What the running thread asks of the machine; intrinsics.h wraps these.
int thread_index();
int block_index();
int block_count();
int cluster_rank();
int compute_capability();  // major
unsigned char* shared_memory();

void sync_block();
void cluster_arrive();
void cluster_wait();
void* peer_shared(void* own, int rank);

// All 32 lanes give `size` bytes; when the last has come, combine(in, out) makes everybody's answer from everybody's
// question (arrays of 32 with a stride of kSlot bytes). `what` must be the same for all lanes.
constexpr std::size_t kSlot = 64;
using Combine = void (*)(const unsigned char* in, unsigned char* out);
void collective(const char* what, const void* in, std::size_t in_bytes, void* out, std::size_t out_bytes,
                Combine combine);

void init_barrier(std::uint64_t* barrier);
void bulk_copy(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier);
void wait_barrier(std::uint64_t* barrier, std::uint32_t parity);

}  // namespace port::emulated
