// SPDX-License-Identifier: Apache-2.0
// What the kernels run: PORT folded and packed, as plain structs of offsets into one arena. network_fold.cpp fills it.
// Holds no STL type: the files compiled for one instruction set include this and simd.h only.
// Test: csrc/tests/test_network.cpp.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace port {

constexpr int kPanel = 32;       // columns of a weight panel; the last panel of a matrix may have 16
constexpr int kLane = 16;        // every row of a buffer is padded to this many floats
constexpr int kJointSlots = 32;  // N

// Byte offset into the arena. 0 is never used and says "none".
using Offset = uint32_t;

// Right-hand side of a product: [k][cols], panel after panel, each panel [k][32] row-major (bf16: [k/2][32][2]).
struct Matrix {
  Offset data = 0;
  int32_t k = 0;     // bf16: a multiple of 2
  int32_t cols = 0;  // a multiple of kLane
  int32_t bf16 = 0;
};

// The graph: for each of `count` powers the sparse rows of H_j, [count][N] rows, and H_j 1.
struct Hops {
  int32_t count = 0;
  Offset start = 0;  // int32 [count * N + 1]
  Offset index = 0;  // int32 [nonzeros]
  Offset value = 0;  // float [nonzeros]
};

// How one head makes its queries, transposed: Q^T[d] = Y^T[select[d]] + (Y[:, rest] q)^T[d].
struct HeadPlan {
  Matrix key;
  Matrix query;
  Matrix value;       // absent where Values::kShared
  Offset select = 0;  // int32 [score_width], or none: no identity part
  Offset rest = 0;    // int32 [query.k] (fp32 only), or none: all columns of Y in order
};

// Where the values of attention come from.
enum class Values : int32_t {
  kDirect,  // W_O folded into W_V: D wide, summed into the residual stream
  kConcat,  // head_dim wide, then the out product
  kShared,  // Y itself for every head, then W_V W_O as the out product
};

struct LayerPlan {
  int32_t width = 0;   // channels of x, the normalised input: D, or the embedding's rank in the first layer
  int32_t x_ld = 0;    // width padded
  int32_t y_cols = 0;  // hops * width + hops: Y = [H_1 x, ..., H_J x, H_1 1, ..., H_J 1]
  int32_t y_ld = 0;
  int32_t score_width = 0;
  int32_t score_ld = 0;
  int32_t value_ld = 0;  // padded width of one head's values
  Values values = Values::kDirect;
  Offset heads = 0;  // HeadPlan [heads]
  Offset tail = 0;   // float [N][y_ld - hops * width], the constant columns of Y
  Matrix out;
  Offset out_bias = 0;  // float [d_ld]
  Matrix fc1, fc2;
  Offset fc1_bias = 0;  // float [hidden_ld]
  Offset fc2_bias = 0;  // float [d_ld]
};

struct Plan {
  const unsigned char* arena = nullptr;
  size_t arena_bytes = 0;
  size_t workspace_bytes = 0;
  int32_t joints = 0;     // N
  int32_t joints_ld = 0;  // N padded to the vector width of the kernels
  int32_t channels = 0;   // input channels, 2 or 3
  int32_t d = 0;          // D
  int32_t d_ld = 0;
  int32_t hidden_ld = 0;
  int32_t se_ld = 0;
  int32_t heads = 0;
  int32_t layers = 0;
  int32_t bf16 = 0;  // some product is bf16
  int32_t mask_embedding = 0;
  int32_t residual = 0;
  int32_t outputs = 2;         // rows of the head: 3 with log sigma
  int32_t low_rank_first = 0;  // layer 0 works on the embedding's factors instead of on D channels
  int32_t rank = 0;            // columns of U, the embedding's factors
  float eps = 0;
  Hops hops;
  Matrix embed;      // [rank][D]
  Offset layer = 0;  // LayerPlan [layers]
  Matrix se1, se2;
  Offset se1_bias = 0, se2_bias = 0;
  Offset out_weight = 0;  // float [outputs][d_ld]
  Offset out_bias = 0;    // float [outputs]
  int32_t max_y_ld = 0, max_score_width = 0, max_score_ld = 0, max_value_ld = 0;

  template <typename T>
  const T* at(Offset offset) const {
    return reinterpret_cast<const T*>(arena + offset);
  }
};

// Scratch memory of one pose, in the order of first use. Every buffer starts on a cache line.
struct Workspace {
  float* u;        // [N][rank padded]
  float* z;        // [N][d_ld] residual stream
  float* x;        // [N][d_ld or rank padded] normalised
  float* y;        // [joints_ld][max_y_ld]
  float* yt;       // [max_y_ld][joints_ld]
  float* t;        // [joints_ld][max_score_ld]
  float* qt;       // [max_score_width][joints_ld]
  float* key;      // [N][max_score_ld]
  float* p;        // [heads * N][joints_ld] attention, transposed: p[h * N + m][n]
  float* v;        // [heads * N][max_value_ld]
  float* o;        // [N][heads * max_value_ld]
  float* h;        // [N + 1][hidden_ld]
  float* last;     // [N + 1][d_ld]
  float* small;    // [se_ld + (1 + outputs) d_ld] squeeze, gate, gated output weights
  uint16_t* half;  // [N + 1][widest row] bf16 copy of a left-hand side
};

// Lays the buffers out from `base` (64-byte aligned; null to count only) and returns their total bytes.
inline size_t lay_out(const Plan& plan, unsigned char* base, Workspace* w) {
  ptrdiff_t used = 0;
  const auto take = [&](ptrdiff_t bytes) {
    unsigned char* at = base ? base + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return at;
  };
  const auto floats = [&](ptrdiff_t count) { return reinterpret_cast<float*>(take(count * 4)); };
  const auto larger = [](ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; };
  const ptrdiff_t n = plan.joints, ld = plan.joints_ld, heads = plan.heads, d_ld = plan.d_ld;
  const ptrdiff_t rank_ld = (plan.rank + kLane - 1) / kLane * kLane;
  const ptrdiff_t widest = larger(larger(plan.max_y_ld, plan.hidden_ld), larger(d_ld, heads * plan.max_value_ld));
  w->u = floats(n * rank_ld);
  w->z = floats(n * d_ld);
  w->x = floats(n * larger(d_ld, rank_ld));
  w->y = floats(ld * plan.max_y_ld);
  w->yt = floats(plan.max_y_ld * ld);
  w->t = floats(ld * plan.max_score_ld);
  w->qt = floats(plan.max_score_width * ld);
  w->key = floats(n * plan.max_score_ld);
  w->p = floats(heads * n * ld);
  w->v = floats(heads * n * plan.max_value_ld);
  w->o = floats(n * heads * plan.max_value_ld);
  w->h = floats((n + 1) * plan.hidden_ld);
  w->last = floats((n + 1) * d_ld);
  w->small = floats(plan.se_ld + (1 + plan.outputs) * d_ld);
  w->half = reinterpret_cast<uint16_t*>(take(plan.bf16 ? (n + 1) * widest * 2 : 0));
  return static_cast<size_t>(used);
}

// One per instruction set. `needed`, `mask`, `inputs`, `outputs`, `log_std` as in network.h.
using ForwardFn = void (*)(const Plan& plan, const float* inputs, const uint8_t* mask, const uint8_t* needed,
                           int64_t batch, float* outputs, float* log_std, void* workspace);

// Null where this build or compiler lacks the instruction set.
ForwardFn generic_forward();
ForwardFn avx2_forward();
ForwardFn avx512_forward();
ForwardFn avx512_bf16_forward();

}  // namespace port
