// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/device/intrinsics.h for the host, for tests: the same names, done by machine.h. Warp-wide functions are
// collective over 32 fibers. Test: csrc/tests/emulated/test_device.cpp.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "machine.h"

#define PORT_DEVICE inline
#define PORT_KERNEL(threads, blocks_per_sm) inline void
#define PORT_GRID_CONSTANT const
#define PORT_CONSTANT
#define PORT_UNROLL
#define PORT_LOOP
#define PORT_HAS_CLUSTERS 1

namespace port::device {

inline int thread_index() { return emulated::thread_index(); }
inline int block_index() { return emulated::block_index(); }
inline int block_count() { return emulated::block_count(); }
inline unsigned char* dynamic_shared() { return emulated::shared_memory(); }
inline int lane_of_thread() { return emulated::thread_index() % 32; }

inline void sync_block() { emulated::sync_block(); }
inline void sync_warp() {
  emulated::collective("sync_warp", nullptr, 0, nullptr, 0, [](const unsigned char*, unsigned char*) {});
}

template <typename T>
T slot(const unsigned char* slots, int lane) {
  T value;
  memcpy(&value, slots + static_cast<size_t>(lane) * emulated::kSlot, sizeof value);
  return value;
}
template <typename T>
void put(unsigned char* slots, int lane, const T& value) {
  memcpy(slots + static_cast<size_t>(lane) * emulated::kSlot, &value, sizeof value);
}

template <typename T>
struct Question {
  T value;
  int lane;
};

template <typename T>
T shuffle(const char* what, T value, int source) {
  const Question<T> question{value, source};
  T answer;
  emulated::collective(what, &question, sizeof question, &answer, sizeof answer,
                       [](const unsigned char* in, unsigned char* out) {
                         for (int i = 0; i < 32; ++i) {
                           const int from = slot<Question<T>>(in, i).lane & 31;
                           put(out, i, slot<Question<T>>(in, from).value);
                         }
                       });
  return answer;
}
inline float shuffle_xor(float value, int lanes) { return shuffle("shuffle_xor", value, lane_of_thread() ^ lanes); }
inline int shuffle_xor(int value, int lanes) { return shuffle("shuffle_xor", value, lane_of_thread() ^ lanes); }
inline float shuffle_from(float value, int lane) { return shuffle("shuffle_from", value, lane); }
inline uint32_t ballot(bool value) {
  const uint32_t bit = value ? 1u : 0u;
  uint32_t answer;
  emulated::collective("ballot", &bit, sizeof bit, &answer, sizeof answer,
                       [](const unsigned char* in, unsigned char* out) {
                         uint32_t bits = 0;
                         for (int i = 0; i < 32; ++i) bits |= slot<uint32_t>(in, i) << i;
                         for (int i = 0; i < 32; ++i) put(out, i, bits);
                       });
  return answer;
}

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;  // as .ftz; NaN stays
}
inline float product(float a, float b) {
  volatile float rounded = a * b;  // no compiler fuses it with a sum
  return rounded;
}
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int first_bit(uint32_t bits) { return __builtin_ctz(bits); }
inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// Two 16-bit floats; Format has encode and decode.
template <typename Format>
struct Pair {
  static uint32_t pack(float low, float high) {
    return Format::encode(low) | static_cast<uint32_t>(Format::encode(high)) << 16;
  }
  static float low(uint32_t pair) { return Format::decode(static_cast<uint16_t>(pair & 0xffffu)); }
  static float high(uint32_t pair) { return Format::decode(static_cast<uint16_t>(pair >> 16)); }

  struct Operands {
    float sum[4];
    uint32_t a[4], b[2];
  };
  static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Operands operands;
    memcpy(operands.sum, sum, sizeof sum);
    memcpy(operands.a, a, sizeof a);
    memcpy(operands.b, b, sizeof b);
    emulated::collective("mma", &operands, sizeof operands, sum, sizeof sum, &combine);
  }
  // PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
  static void combine(const unsigned char* in, unsigned char* out) {
    float a[16][16], b[8][16];
    for (int lane = 0; lane < 32; ++lane) {
      const Operands o = slot<Operands>(in, lane);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), k = 2 * t + 8 * (i / 2);
        a[row][k] = low(o.a[i]);
        a[row][k + 1] = high(o.a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        b[g][2 * t + 8 * i] = low(o.b[i]);
        b[g][2 * t + 8 * i + 1] = high(o.b[i]);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const Operands o = slot<Operands>(in, lane);
      float sum[4];
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), col = 2 * (lane % 4) + i % 2;
        float total = 0.0f;
        for (int k = 0; k < 16; ++k) total += a[row][k] * b[col][k];
        sum[i] = o.sum[i] + total;
      }
      put(out, lane, sum);
    }
  }
};

struct HalfFormat {
  static float decode(uint16_t half) { return table()[half]; }
  static uint16_t encode(float value);
  static const float* table();
};
struct BfloatFormat {
  static float decode(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }
  static uint16_t encode(float value) {
    if (value != value) return 0x7fff;
    const uint32_t bits = float_to_bits(value);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};
using Half = Pair<HalfFormat>;
using Bfloat = Pair<BfloatFormat>;

struct Words {
  uint32_t w[4];
};
inline Words load_words(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) __builtin_trap();
  Words v;
  memcpy(&v, from, sizeof v);
  return v;
}
inline Words load_streamed(const void* from) { return load_words(from); }
inline Words load_constant(const void* from) { return load_words(from); }
inline Words load_shared(const void* from) { return load_words(from); }

template <int kCount>
void load_matrices_of(const char* what, uint32_t (&to)[kCount], const void* row) {
  if (lane_of_thread() < 8 * kCount && reinterpret_cast<uintptr_t>(row) % 16 != 0) __builtin_trap();
  emulated::collective(what, &row, sizeof row, to, sizeof to, [](const unsigned char* in, unsigned char* out) {
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t words[kCount];
      for (int i = 0; i < kCount; ++i) {
        memcpy(&words[i], static_cast<const char*>(slot<const void*>(in, 8 * i + lane / 4)) + 4 * (lane % 4), 4);
      }
      put(out, lane, words);
    }
  });
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { load_matrices_of("load_matrices x4", to, row); }
inline void load_matrices(uint32_t (&to)[2], const void* row) { load_matrices_of("load_matrices x2", to, row); }
inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t answer;
  emulated::collective(
      "transpose_matrix", &pair, sizeof pair, &answer, sizeof answer, [](const unsigned char* in, unsigned char* out) {
        uint16_t m[8][8];
        for (int lane = 0; lane < 32; ++lane) {
          const uint32_t word = slot<uint32_t>(in, lane);
          m[lane / 4][2 * (lane % 4)] = static_cast<uint16_t>(word & 0xffffu);
          m[lane / 4][2 * (lane % 4) + 1] = static_cast<uint16_t>(word >> 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
          const int row = lane / 4, col = 2 * (lane % 4);
          put(out, lane, static_cast<uint32_t>(m[col][row] | static_cast<uint32_t>(m[col + 1][row]) << 16));
        }
      });
  return answer;
}

inline bool weights_are_copied() { return emulated::compute_capability() < 12; }
inline int cluster_rank() { return emulated::cluster_rank(); }
inline void cluster_arrive() { emulated::cluster_arrive(); }
inline void cluster_wait() { emulated::cluster_wait(); }
template <typename T>
T* peer_shared(T* own, int rank) {
  return static_cast<T*>(emulated::peer_shared(own, rank));
}

using CopyBarrier = uint64_t;
inline void init_barrier(CopyBarrier* barrier) { emulated::init_barrier(barrier); }
inline void make_barriers_visible() {}
inline void fence_bulk_copies() {}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, CopyBarrier* barrier) {
  emulated::bulk_copy(to, from, bytes, barrier);
}
inline void wait_barrier(CopyBarrier* barrier, uint32_t parity) { emulated::wait_barrier(barrier, parity); }

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

}  // namespace port::device
