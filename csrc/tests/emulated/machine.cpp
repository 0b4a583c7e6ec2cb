// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "fiber.h"

namespace port::emulated {
namespace {

constexpr std::size_t kStackBytes = 96 << 10;
constexpr int kLanes = 32;

[[noreturn]] void stop(const char* what);

struct Block;
struct Warp;

struct Fiber {
  explicit Fiber(void (*entry)()) : stack(kStackBytes, entry) {}
  Stack stack;
  int thread = 0;
  Block* block = nullptr;
  Warp* warp = nullptr;
  std::uint64_t ticket = 0;  // generation of the cluster barrier that it has arrived at
  int block_barriers = 0, cluster_barriers = 0;
  bool done = false;
};

// Threads that wait until the last of them has come.
struct Gate {
  int arrived = 0;
  std::vector<Fiber*> waiting;
};

struct Warp {
  std::vector<Fiber*> runnable;
  unsigned priority = 0;
  Gate gate;
  const char* what = nullptr;
  alignas(16) unsigned char in[kLanes * kSlot], out[kLanes * kSlot];
};

struct Free {
  void operator()(unsigned char* p) const { std::free(p); }
};

struct Block {
  int index = 0, rank = 0, running = 0;
  bool begun = false;
  std::unique_ptr<unsigned char, Free> shared;
  std::vector<Warp> warps;
  Gate gate;
};

struct CopyState {
  int pending = 1;
  long bytes = 0;
  std::uint32_t phase = 0;
  std::vector<Fiber*> waiting;
};

struct Copy {
  void* to;
  std::vector<unsigned char> data;
  std::uint64_t* barrier;
};

struct Machine {
  Launch launch;
  const std::function<void()>* kernel = nullptr;
  std::mt19937 random;
  Stack main;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;
  std::vector<Warp*> warps;
  Fiber* current = nullptr;
  int running = 0;
  int cluster_arrived = 0;
  std::uint64_t cluster_generation = 0;
  std::vector<Fiber*> cluster_waiting;
  std::map<std::uint64_t*, CopyState> barriers;
  std::vector<Copy> copies;
  Counts counts;
};

Machine* machine = nullptr;

void stop(const char* what) {
  if (machine && machine->launch.tolerant && machine->current) {
    machine->counts.stopped = what;
    Fiber* self = machine->current;
    machine->current = nullptr;
    Stack::change(self->stack, machine->main, true);  // nobody comes back to any fiber of this launch
  }
  std::printf("emulated GPU: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

void make_runnable(Fiber* fiber) { fiber->warp->runnable.push_back(fiber); }

void wake(std::vector<Fiber*>& waiting) {
  for (Fiber* fiber : waiting) make_runnable(fiber);
  waiting.clear();
}

void end_phase_if_due(CopyState& state) {
  if (state.pending > 0 || state.bytes != 0) return;
  state.pending = 1;
  ++state.phase;
  wake(state.waiting);
}

void deliver_one() {
  const std::size_t which = machine->random() % machine->copies.size();
  Copy copy = std::move(machine->copies[which]);
  machine->copies.erase(machine->copies.begin() + static_cast<std::ptrdiff_t>(which));
  std::memcpy(copy.to, copy.data.data(), copy.data.size());
  CopyState& state = machine->barriers.at(copy.barrier);
  state.bytes -= static_cast<long>(copy.data.size());
  end_phase_if_due(state);
}

void draw_priorities() {
  for (Warp* warp : machine->warps) warp->priority = static_cast<unsigned>(machine->random());
}

Fiber* pick() {
  Machine& m = *machine;
  ++m.counts.switches;
  if (!m.copies.empty() && m.random() % 512 == 0) deliver_one();
  if (m.launch.seed > 1 && m.random() % 2048 == 0) draw_priorities();
  for (;;) {
    Warp* best = nullptr;
    for (Warp* warp : m.warps) {
      if (!warp->runnable.empty() && (!best || warp->priority > best->priority)) best = warp;
    }
    if (best) {
      auto& list = best->runnable;
      std::size_t which;
      if (m.launch.seed > 1) {
        which = m.random() % list.size();
      } else {
        const auto before = [](const Fiber* a, const Fiber* b) { return a->thread < b->thread; };
        const auto it = m.launch.seed == 0 ? std::min_element(list.begin(), list.end(), before)
                                           : std::max_element(list.begin(), list.end(), before);
        which = static_cast<std::size_t>(it - list.begin());
      }
      Fiber* fiber = list[which];
      list[which] = list.back();
      list.pop_back();
      return fiber;
    }
    if (m.copies.empty()) stop("deadlock: every thread waits for another");
    deliver_one();
  }
}

// The running fiber cannot go on: whoever wakes it has it in a list.
void block_current() {
  Fiber* self = machine->current;
  Fiber* next = pick();
  if (next == self) return;
  machine->current = next;
  Stack::change(self->stack, next->stack, false);
}

void run_fiber() {
  Stack::begin(machine->current->stack);
  machine->current->block->begun = true;
  (*machine->kernel)();
  Machine& m = *machine;
  Fiber* self = m.current;
  self->done = true;
  --self->block->running;
  if (--m.running == 0) {
    m.current = nullptr;
    Stack::change(self->stack, m.main, true);
  }
  Fiber* next = pick();
  m.current = next;
  Stack::change(self->stack, next->stack, true);
  std::abort();
}

void run_cluster(int first) {
  Machine& m = *machine;
  const int threads = m.launch.threads, warps = (threads + kLanes - 1) / kLanes;
  m.blocks = std::vector<Block>(static_cast<std::size_t>(m.launch.cluster));
  m.warps.clear();
  m.barriers.clear();
  m.copies.clear();
  m.cluster_arrived = 0;
  std::size_t used = 0;
  for (int b = 0; b < m.launch.cluster; ++b) {
    Block& block = m.blocks[static_cast<std::size_t>(b)];
    block.index = first + b;
    block.rank = b;
    block.running = threads;
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<std::size_t>(m.launch.shared_bytes, 1)) != 0) stop("out of memory");
    block.shared.reset(static_cast<unsigned char*>(memory));
    std::memset(block.shared.get(), 0xff, m.launch.shared_bytes);
    block.warps = std::vector<Warp>(static_cast<std::size_t>(warps));
    for (Warp& warp : block.warps) {
      std::memset(warp.out, 0xff, sizeof warp.out);
      m.warps.push_back(&warp);
    }
    for (int t = 0; t < threads; ++t, ++used) {
      if (used == m.fibers.size()) m.fibers.push_back(std::make_unique<Fiber>(&run_fiber));
      Fiber& fiber = *m.fibers[used];
      fiber.stack.rewind();
      fiber.thread = t;
      fiber.block = &block;
      fiber.warp = &block.warps[static_cast<std::size_t>(t / kLanes)];
      fiber.ticket = 0;
      fiber.block_barriers = fiber.cluster_barriers = 0;
      fiber.done = false;
      make_runnable(&fiber);
    }
  }
  for (std::size_t i = 0; i < m.warps.size(); ++i) {
    const auto order = static_cast<unsigned>(i);
    m.warps[i]->priority = m.launch.seed == 0 ? 1000000u - order : order;
  }
  if (m.launch.seed > 1) draw_priorities();
  m.running = static_cast<int>(used);
  m.current = pick();
  Stack::change(m.main, m.current->stack, false);
  if (m.counts.stopped) return;
  m.counts.block_barriers = m.fibers[used - static_cast<std::size_t>(threads)]->block_barriers;
  m.counts.cluster_barriers = m.fibers[used - static_cast<std::size_t>(threads)]->cluster_barriers;
  if (m.copies.empty()) return;
  if (!m.launch.tolerant) stop("a block ended before its bulk copies had arrived");
  m.counts.stopped = "a block ended before its bulk copies had arrived";
}

}  // namespace

Counts launch(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.blocks % launch.cluster != 0 || launch.threads % kLanes != 0)
    stop("a launch of parts of clusters or warps");
  static Machine the_machine;  // its fibers are used again
  machine = &the_machine;
  machine->launch = launch;
  machine->kernel = &kernel;
  machine->random.seed(launch.seed);
  machine->counts = {};
  std::vector<int> order;
  for (int first = 0; first < launch.blocks; first += launch.cluster) order.push_back(first);
  if (launch.seed > 0) std::shuffle(order.begin(), order.end(), machine->random);
  for (const int first : order) {
    if (!machine->counts.stopped) run_cluster(first);
  }
  return machine->counts;
}

int thread_index() { return machine->current->thread; }
int block_index() { return machine->current->block->index; }
int block_count() { return machine->launch.blocks; }
int cluster_rank() { return machine->current->block->rank; }
int compute_capability() { return machine->launch.major; }
unsigned char* shared_memory() { return machine->current->block->shared.get(); }

void sync_block() {
  Fiber* self = machine->current;
  Gate& gate = self->block->gate;
  if (self->block_barriers++ == machine->launch.skip_barrier) return;
  if (++gate.arrived == machine->launch.threads) {
    gate.arrived = 0;
    wake(gate.waiting);
    make_runnable(self);  // whoever comes last has no right to go on first
  } else {
    gate.waiting.push_back(self);
  }
  block_current();
}

void cluster_arrive() {
  Machine& m = *machine;
  if (m.current->cluster_barriers == m.launch.skip_cluster_barrier) return;
  m.current->ticket = m.cluster_generation;
  if (++m.cluster_arrived == m.launch.cluster * m.launch.threads) {
    m.cluster_arrived = 0;
    ++m.cluster_generation;
    wake(m.cluster_waiting);
  }
}

void cluster_wait() {
  Machine& m = *machine;
  if (m.current->cluster_barriers++ == m.launch.skip_cluster_barrier) return;
  if (m.cluster_generation > m.current->ticket) {
    make_runnable(m.current);
  } else {
    m.cluster_waiting.push_back(m.current);
  }
  block_current();
}

void* peer_shared(void* own, int rank) {
  const auto offset = static_cast<unsigned char*>(own) - shared_memory();
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(machine->launch.shared_bytes)) {
    stop("peer_shared: not an address of this block's shared memory");
  }
  if (rank < 0 || rank >= machine->launch.cluster) stop("peer_shared: no such block in the cluster");
  Block& peer = machine->blocks[static_cast<std::size_t>(rank)];
  if (!peer.begun) stop("peer_shared: that block has not begun");
  if (peer.running < machine->launch.threads) stop("peer_shared: threads of that block have ended already");
  return peer.shared.get() + offset;
}

void collective(const char* what, const void* in, std::size_t in_bytes, void* out, std::size_t out_bytes,
                Combine combine) {
  Fiber* self = machine->current;
  Warp& warp = *self->warp;
  const auto lane = static_cast<std::size_t>(self->thread % kLanes);
  if (warp.gate.arrived == 0) warp.what = what;
  if (warp.what != what) stop("lanes of one warp are in different collective operations");
  if (in_bytes) std::memcpy(warp.in + lane * kSlot, in, in_bytes);
  if (++warp.gate.arrived == kLanes) {
    warp.gate.arrived = 0;
    combine(warp.in, warp.out);
    wake(warp.gate.waiting);
    make_runnable(self);
  } else {
    warp.gate.waiting.push_back(self);
  }
  block_current();
  if (out_bytes) std::memcpy(out, warp.out + lane * kSlot, out_bytes);
}

void init_barrier(std::uint64_t* barrier) { machine->barriers[barrier] = CopyState{}; }

void bulk_copy(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  if (!aligned(to) || !aligned(from) || bytes % 16 != 0 || bytes == 0) stop("bulk_copy: not on 16 bytes");
  if (bytes >= 1u << 20) stop("bulk_copy: more bytes than a barrier can count");
  const auto found = machine->barriers.find(barrier);
  if (found == machine->barriers.end()) stop("bulk_copy: the barrier was not made");
  const auto* data = static_cast<const unsigned char*>(from);
  found->second.bytes += bytes;
  if (--found->second.pending < 0) stop("bulk_copy: the barrier's phase has not ended");
  machine->copies.push_back({to, std::vector<unsigned char>(data, data + bytes), barrier});
  std::memset(to, 0xff, bytes);
}

void wait_barrier(std::uint64_t* barrier, std::uint32_t parity) {
  const auto found = machine->barriers.find(barrier);
  if (found == machine->barriers.end()) stop("wait_barrier: the barrier was not made");
  while (found->second.phase % 2 == parity) {
    found->second.waiting.push_back(machine->current);
    block_current();
  }
}

}  // namespace port::emulated
