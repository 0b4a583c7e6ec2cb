// SPDX-License-Identifier: Apache-2.0
// What kernels are launched with: plain data for host and device alike. Pointers are the device's.
// Legend: B poses, N joints, H x W heatmap, D width, L layers, J hop matrices.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define PORT_BOTH __host__ __device__ __forceinline__
#else
#define PORT_BOTH inline
#endif

namespace port::kernels {

constexpr int kLanes = 32;
constexpr int kMaxJoints = 32;
constexpr float kMissing = 1e6f;                           // pixels; kMaxCoordinate of model.h
constexpr float kLeastScale = 1e-3f;                       // pixels; kMinScale of model.h
constexpr float kLeastLogStd = -7.0f, kMostLogStd = 0.0f;  // kLogStdLow and kLogStdHigh of model.h

enum class Pixel : int32_t { kFloat, kHalf, kBfloat };
enum class MapCodec : int32_t { kSoftargmax, kSoftargmaxSum, kArgmax };

// Heatmaps [B][N][H][W]; strides in elements, w has stride 1.
struct Maps {
  const void* data;
  int64_t stride_b, stride_n, stride_h;
  int32_t height, width;
  Pixel pixel;
  MapCodec codec;
  float factor;  // softargmax: temperature * log2(e)
};

struct Results {
  float* joints;      // [B][N][2]
  float* confidence;  // [B][N] or null
  uint8_t* mask;      // [B][N] or null
  int32_t* words;     // [B][N] or null: the mask for layers of engines, whose tensors have no bytes
  float* std;         // [B][N] or null; null for networks without a variance
};

struct DecodeParams {
  Maps maps;
  Results out;
  int64_t count;  // maps: B * N
  int32_t joints;
  float threshold;
};

// decode_peaks: the largest pixel and a step within it.
enum class PeakRule : int32_t { kMsra, kDark, kUdp };
constexpr int kTaps = 64;  // of the widest blur, 63, and a zero

struct PeakParams {
  Maps maps;
  Results out;
  int64_t count;  // maps: B * N
  int32_t joints;
  float threshold;
  PeakRule rule;
  int32_t blur;       // kDark, kUdp: pixels to a side, odd, 9 to 63
  int32_t together;   // a block's warps share a map; else a warp takes a map
  float taps[kTaps];  // of the blur, and zeros
};

// SimCC vectors [B][N][bins] as maps of one row.
struct SimccParams {
  Maps axes[2];  // x, y
  Results out;
  int64_t count;  // joints: B * N
  int32_t joints;
  float threshold, split_ratio;
  int32_t mean;      // of the two maxima, else the lesser
  int32_t together;  // as above
};

// What stands around the network; LineSettings of line.h in floats.
struct LineRules {
  int32_t min_visible, max_masked;
  int32_t paper_frame, root, axis;
  int32_t refine_all, zero_masked;
  float frame_width, frame_height;
  float fusion, confidence_divisor;
  float std_scale;  // of sigma in frame units; in the paper's frame in pixels already
};

// One network in one blob of device memory; offsets in bytes from its start, all on 16 bytes. csrc/cuda/pack.cpp fills
// it and says what lies where.
struct Network {
  const unsigned char* blob;
  int32_t joints, channels, rank, hops, layers;
  int32_t width, width_ld;  // D, and padded to 16
  int32_t heads, head_ld;   // heads, and a head's dimension padded to 16
  int32_t slots;            // groups into which heads and hidden units fall: head h is in slot h % slots
  int32_t hidden_tiles;     // of 16 hidden units, per slot
  int32_t se_width;
  int32_t mask_embedding, residual;
  float eps;
  // Of a layer and slot, its share; shares of one layer lie side by side, layer after layer.
  uint32_t shares, share_bytes;
  uint32_t qk, value, fc1, fc2, qk_bias, value_bias, fc1_bias;  // from the start of a share
  uint32_t tables;                                              // hops as sparse rows, row sums: layout.h
  uint32_t hop_entries;
  uint32_t embed;               // float [rank][width_ld]
  uint32_t out_bias, fc2_bias;  // float [layers][width_ld]
  uint32_t se1, se1_bias;       // float [se_width][width_ld], [se_width]
  uint32_t se2, se2_bias;       // float [se_width][width_ld], [width_ld]; times -log2(e)
  uint32_t head, head_bias;     // float [2][width_ld], [2]; with a variance a third row, log sigma
};

// How shared memory is laid out, in bytes from its start; csrc/cuda/kernels/layout.h fills it.
struct Layout {
  uint32_t table, ring, stage_bytes;  // of the block
  uint32_t poses, pose_bytes;         // of each pose; the rest counts from the pose's start
  uint32_t z, y, qk, p, partial, partial_bytes;
  uint32_t total;
};

struct LineParams {
  Network net;
  LineRules rules;
  Layout layout;
  Maps maps;                // maps.data null: from joints and confidence
  const float* joints;      // [B][N][2]
  const float* confidence;  // [B][N]
  const float* affine;      // [B][2][3] or null
  Results out;
  int64_t batch;
  float threshold;
  const float* threshold_at;  // null, or what is read in its place when the kernel runs
  int32_t blocks;             // of a cluster; 1: none
  int32_t heads_at_once;      // of a block, between two barriers
  int32_t stages;             // layers whose weights are in shared memory at a time (clusters); 0: none
};

}  // namespace port::kernels
