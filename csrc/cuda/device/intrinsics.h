// SPDX-License-Identifier: Apache-2.0
// Every PTX instruction and CUDA intrinsic that the kernels use, and nothing else: one thin function each. The kernels
// include <device/intrinsics.h>; csrc/tests/emulated/device/intrinsics.h has the same names for the host, so that the
// same kernel sources run where there is no GPU. Clusters and bulk copies do nothing before 9.0.
// Test: csrc/tests/emulated/test_device.cpp.
#pragma once

#include <math.h>
#include <stdint.h>

#define PORT_DEVICE __device__ __forceinline__
#define PORT_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__(threads, blocks_per_sm)
#define PORT_GRID_CONSTANT const __grid_constant__
#define PORT_CONSTANT __constant__
#define PORT_UNROLL _Pragma("unroll")
#define PORT_LOOP _Pragma("unroll 1")  // where the compiler would make code longer for nothing

// Clusters, bulk copies and programmatic launch: compute capability 9.0 and later.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define PORT_HAS_CLUSTERS 1
#else
#define PORT_HAS_CLUSTERS 0
#endif

namespace port::device {

// ── Where a thread is ────────────────────────────────────────────────────────────────────────────────────────────────
PORT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PORT_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
PORT_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
PORT_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char port_shared[];
  return port_shared;
}

// ── Block and warp ───────────────────────────────────────────────────────────────────────────────────────────────────
PORT_DEVICE void sync_block() { __syncthreads(); }
PORT_DEVICE void sync_warp() { __syncwarp(); }
PORT_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
PORT_DEVICE int shuffle_xor(int value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
PORT_DEVICE float shuffle_from(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
PORT_DEVICE uint32_t ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// ── Numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────
PORT_DEVICE float exp2_approx(float x) {  // relative error below 2^-22; 0 far below
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PORT_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // never fused with a sum
PORT_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
PORT_DEVICE int first_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }  // bits != 0
PORT_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }

// The 16-bit floats as their bits. Both round to nearest even.
struct Half {
  static PORT_DEVICE uint32_t pack(float low, float high) {
    uint32_t pair;
    asm("{ .reg .b16 lo, hi;\n cvt.rn.f16.f32 lo, %1;\n cvt.rn.f16.f32 hi, %2;\n mov.b32 %0, {lo, hi}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
  }
  static PORT_DEVICE float low(uint32_t pair) {
    float value;
    asm("{ .reg .b16 lo, hi;\n mov.b32 {lo, hi}, %1;\n cvt.f32.f16 %0, lo; }" : "=f"(value) : "r"(pair));
    return value;
  }
  static PORT_DEVICE float high(uint32_t pair) {
    float value;
    asm("{ .reg .b16 lo, hi;\n mov.b32 {lo, hi}, %1;\n cvt.f32.f16 %0, hi; }" : "=f"(value) : "r"(pair));
    return value;
  }
  // sum += a b: a [16][16], b [16][8] in the fragments of mma.m16n8k16. Before 8.0, as two products of depth 8.
  static PORT_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    PORT_UNROLL
    for (int half = 0; half < 2; ++half) {
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                   : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
  }
};

struct Bfloat {
  static PORT_DEVICE uint32_t pack(float low, float high) {
    uint32_t pair = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(low), "f"(high));
#endif
    return pair;
  }
  static PORT_DEVICE float low(uint32_t pair) { return __uint_as_float(pair << 16); }
  static PORT_DEVICE float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
  static PORT_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
  }
};

// ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────
struct Words {  // 16 bytes
  uint32_t w[4];
};

// 16 aligned bytes of global memory that nobody writes meanwhile. Streamed: read once, kept out of the L1 cache, and
// volatile, so that it stays behind wait_for_previous_kernel() (.nc promises more than that). Constant: never written
// while kernels run.
PORT_DEVICE Words load_streamed(const void* from) {
  Words v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(__cvta_generic_to_global(from)));
  return v;
}
PORT_DEVICE Words load_constant(const void* from) {
  Words v;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
PORT_DEVICE Words load_shared(const void* from) {
  Words v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
  return v;
}

// Four (two) 8x8 matrices of 16-bit values from shared memory. Lane i gives the address of row i % 8 of matrix i / 8;
// lane i receives of each the values 2 (i % 4) and 2 (i % 4) + 1 of row i / 4.
PORT_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
PORT_DEVICE void load_matrices(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
// The 8x8 matrix that a warp holds in that way, transposed.
PORT_DEVICE uint32_t transpose_matrix(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// Whether a block's shared memory has room for a copy of the weights that it works with: not the 99 KB of 12.x.
// csrc/cuda/plan.cpp plans by the same rule.
PORT_DEVICE bool weights_are_copied() {
#if PORT_HAS_CLUSTERS
  return __CUDA_ARCH__ < 1200;
#else
  return false;
#endif
}

// ── Cluster: blocks that see each other's shared memory ──────────────────────────────────────────────────────────────
#if PORT_HAS_CLUSTERS
PORT_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// Arrive releases what the thread wrote; wait acquires what all threads of the cluster wrote before they arrived. Both
// want the warp together (.aligned).
PORT_DEVICE void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
PORT_DEVICE void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address of block `rank`'s copy of what `own` is here. For plain loads and stores.
template <typename T>
PORT_DEVICE T* peer_shared(T* own, int rank) {
  uint64_t peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(reinterpret_cast<uint64_t>(own)), "r"(rank));
  return reinterpret_cast<T*>(peer);
}

// ── Bulk copies that report to a barrier in shared memory ────────────────────────────────────────────────────────────
using CopyBarrier = uint64_t;
PORT_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// One thread, then make_barriers_visible() by it; a block barrier before anybody else touches it.
PORT_DEVICE void init_barrier(CopyBarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
PORT_DEVICE void make_barriers_visible() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // to the copy engine
}
// Ordinary accesses to shared memory before it come before bulk copies after it (by this thread, or after a barrier).
PORT_DEVICE void fence_bulk_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// By one thread: `bytes`, a multiple of 16, from global to shared memory, both on 16 bytes. Ends the barrier's phase.
PORT_DEVICE void bulk_copy(void* to, const void* from, uint32_t bytes, CopyBarrier* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// Until the phase of that parity (0 for the first) has ended.
PORT_DEVICE void wait_barrier(CopyBarrier* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred ended;\n mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n selp.u32 %0, 1, 0, ended; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}
#else  // nothing launches a cluster there
using CopyBarrier = uint64_t;
PORT_DEVICE int cluster_rank() { return 0; }
PORT_DEVICE void cluster_arrive() {}
PORT_DEVICE void cluster_wait() {}
template <typename T>
PORT_DEVICE T* peer_shared(T* own, int) {
  return own;
}
PORT_DEVICE void init_barrier(CopyBarrier*) {}
PORT_DEVICE void make_barriers_visible() {}
PORT_DEVICE void fence_bulk_copies() {}
PORT_DEVICE void bulk_copy(void*, const void*, uint32_t, CopyBarrier*) {}
PORT_DEVICE void wait_barrier(CopyBarrier*, uint32_t) {}
#endif

// ── Launches that overlap with the kernel before them ────────────────────────────────────────────────────────────────
PORT_DEVICE void wait_for_previous_kernel() {  // before anything that it may have written is read, or it may read
#if PORT_HAS_CLUSTERS
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PORT_DEVICE void allow_next_kernel() {
#if PORT_HAS_CLUSTERS
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace port::device
