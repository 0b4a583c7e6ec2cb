// SPDX-License-Identifier: Apache-2.0
// The emulated GPU itself: warp-wide functions against their definition in the PTX ISA, barriers, clusters, bulk
// copies, and that a missing barrier shows.
#include <device/intrinsics.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "testing.h"

namespace {

using namespace port::device;
using port::emulated::Launch;
using port::emulated::launch;

Launch shape(int blocks, int threads, std::size_t shared_bytes, unsigned seed, int cluster = 1) {
  Launch l;
  l.blocks = blocks, l.threads = threads, l.shared_bytes = shared_bytes, l.seed = seed, l.cluster = cluster;
  return l;
}

// Every thread writes, then reads what its right neighbour wrote.
std::vector<float> neighbours(unsigned seed, int skip) {
  std::vector<float> out(128);
  Launch l = shape(1, 128, 128 * sizeof(float), seed);
  l.skip_barrier = skip;
  launch(l, [&] {
    auto* shared = reinterpret_cast<float*>(dynamic_shared());
    const int t = thread_index();
    shared[t] = static_cast<float>(t);
    sync_block();
    out[static_cast<std::size_t>(t)] = shared[(t + 1) % 128];
  });
  return out;
}

}  // namespace

TEST(shuffles_and_votes) {
  std::vector<float> across(64), from(64);
  std::vector<std::uint32_t> votes(64);
  for (unsigned seed = 0; seed < 4; ++seed) {
    launch(shape(1, 64, 0, seed), [&] {
      const auto t = static_cast<std::size_t>(thread_index());
      across[t] = shuffle_xor(static_cast<float>(t), 5);
      from[t] = shuffle_from(static_cast<float>(t), 3);
      votes[t] = ballot(t % 3 == 0);
    });
    for (std::size_t t = 0; t < 64; ++t) {
      CHECK(across[t] == static_cast<float>(t ^ 5u) && from[t] == (t < 32 ? 3.0f : 35.0f));
      for (std::size_t i = 0; i < 32; ++i) CHECK(((votes[t] >> i & 1u) == 1u) == ((t / 32 * 32 + i) % 3 == 0));
    }
  }
}

// a [16][16] from memory by load_matrices, b [8][16] likewise, against a plain product.
TEST(matrix_fragments) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> draw(-8, 8);
  float a[16][16], b[8][16], got[16][8];
  for (auto& row : a)
    for (float& v : row) v = static_cast<float>(draw(random));
  for (auto& row : b)
    for (float& v : row) v = static_cast<float>(draw(random));
  launch(shape(1, 32, 16 * 32 + 8 * 32, 3), [&] {
    auto* ah = reinterpret_cast<std::uint16_t*>(dynamic_shared());
    auto* bh = ah + 256;
    const int lane = thread_index();
    for (int i = lane; i < 256; i += 32) ah[i] = static_cast<std::uint16_t>(Half::pack(a[i / 16][i % 16], 0.0f));
    for (int i = lane; i < 128; i += 32) bh[i] = static_cast<std::uint16_t>(Half::pack(b[i / 16][i % 16], 0.0f));
    sync_warp();
    std::uint32_t fa[4], fb[2];
    load_matrices(fa, ah + (lane % 16) * 16 + lane / 16 * 8);
    load_matrices(fb, bh + lane % 8 * 16 + lane / 8 % 2 * 8);
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    Half::multiply(sum, fa, fb);
    const std::uint32_t turned = transpose_matrix(Half::pack(sum[0], sum[1]));  // rows 0..7, transposed
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) got[g + 8 * (i / 2)][2 * t + i % 2] = sum[i];
    got[2 * t][g] = Half::low(turned);  // the same values again
    got[2 * t + 1][g] = Half::high(turned);
  });
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float want = 0.0f;
      for (int k = 0; k < 16; ++k) want += a[i][k] * b[j][k];
      CHECK(got[i][j] == want);
    }
  }
}

TEST(sixteen_bit_floats) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float value = Half::low(bits);
    CHECK(Half::pack(value, 0.0f) == bits && Half::pack(0.0f, -value) == (bits | 0x8000u) << 16);
    const float next = Half::low(bits + 1);
    const float middle = 0.5f * (value + next);
    if (bits < 0x7bff) CHECK(Half::pack(middle, 0.0f) == (bits % 2 == 0 ? bits : bits + 1));  // to even
  }
  CHECK(Half::pack(1e6f, 0.0f) == 0x7c00 && std::isnan(Half::low(Half::pack(NAN, 0.0f))));
  CHECK(Bfloat::pack(1.0f, -2.0f) == 0xc0003f80u && Bfloat::high(0xc0003f80u) == -2.0f);
}

TEST(a_missing_barrier_shows) {
  bool differs = false;
  for (unsigned seed = 0; seed < 6; ++seed) {
    const std::vector<float> right = neighbours(seed, -1), wrong = neighbours(seed, 0);
    for (std::size_t t = 0; t < 128; ++t) {
      CHECK(right[t] == static_cast<float>((t + 1) % 128));
      differs = differs || !(wrong[t] == right[t]);
    }
  }
  CHECK(differs);
}

// Blocks of a cluster write into each other's memory; a bulk copy arrives when its barrier says so, in both phases.
TEST(clusters_and_bulk_copies) {
  alignas(16) float source[256];
  for (int i = 0; i < 256; ++i) source[i] = static_cast<float>(i);
  for (unsigned seed = 0; seed < 6; ++seed) {
    std::vector<float> copied(2 * 4 * 128), given(8);
    launch(shape(8, 64, 1024, seed, 4), [&] {
      auto* barrier = reinterpret_cast<CopyBarrier*>(dynamic_shared());
      auto* target = reinterpret_cast<float*>(dynamic_shared() + 16);
      auto* mail = reinterpret_cast<float*>(dynamic_shared() + 784);
      const int t = thread_index(), rank = cluster_rank();
      if (t == 0) init_barrier(barrier), make_barriers_visible();
      sync_block();
      for (std::uint32_t phase = 0; phase < 2; ++phase) {
        if (t == 0) bulk_copy(target, source + 64 * phase, 256, barrier);
        wait_barrier(barrier, phase);
        copied[static_cast<std::size_t>(block_index() * 128 + t) + 64 * phase] = target[t];
        sync_block();
      }
      if (t == 0) *peer_shared(mail, (rank + 1) % 4) = static_cast<float>(block_index());
      cluster_arrive();
      cluster_wait();
      if (t == 0) given[static_cast<std::size_t>(block_index())] = *mail;
      cluster_arrive();
      cluster_wait();
    });
    for (std::size_t i = 0; i < copied.size(); ++i) CHECK(copied[i] == static_cast<float>(i % 128));
    for (int b = 0; b < 8; ++b)
      CHECK(given[static_cast<std::size_t>(b)] == static_cast<float>(b / 4 * 4 + (b + 3) % 4));
  }
}

int main() { return port_test::run_tests(); }
