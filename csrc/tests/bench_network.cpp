// SPDX-License-Identifier: Apache-2.0
// Microbenchmark of the network alone, one thread, on the paper's model with random weights; not a test:
// built with them as bench_network. Prints microseconds a pose (median and least) per instruction set, precision and
// batch, and the FLOP/s of the paper's equations as written and of the products that are really done, with the latter's
// share of a peak that is measured between the runs on the same core. `cold`: 96 MiB are written between calls. Usage:
// bench_network [joints]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "network.h"
#include "network_fold.h"
#include "network_reference.h"

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// FLOP/s of independent multiply-adds in registers, the best of a few short runs; 0 where it is not written.
#if defined(__x86_64__)
#define PORT_PEAK(name, isa, type, operand, step, flop)                                                               \
  __attribute__((target(isa))) double name() {                                                                        \
    type a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{};                                                            \
    const auto x = operand;                                                                                           \
    double best = 0.0;                                                                                                \
    for (int run = 0; run < 4; ++run) {                                                                               \
      const double start = seconds();                                                                                 \
      for (int n = 0; n < 20000; ++n) {                                                                               \
        a = step(a, x), b = step(b, x), c = step(c, x), d = step(d, x), e = step(e, x);                               \
        f = step(f, x), g = step(g, x), h = step(h, x), i = step(i, x), j = step(j, x);                               \
        __asm__ volatile(""                                                                                           \
                         : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i), "+v"(j)); \
      }                                                                                                               \
      best = std::max(best, 20000.0 * 10 * flop / (seconds() - start));                                               \
    }                                                                                                                 \
    return best;                                                                                                      \
  }
#define PORT_STEP8(sum, x) _mm256_fmadd_ps(x, x, sum)
#define PORT_STEP16(sum, x) _mm512_fmadd_ps(x, x, sum)
#define PORT_STEP32(sum, x) _mm512_dpbf16_ps(sum, x, x)
PORT_PEAK(peak_avx2, "avx2,fma", __m256, _mm256_set1_ps(0.5f), PORT_STEP8, 16)
PORT_PEAK(peak_avx512, "avx512f", __m512, _mm512_set1_ps(0.5f), PORT_STEP16, 32)
PORT_PEAK(peak_bf16, "avx512f,avx512bf16", __m512, (__m512bh)_mm512_set1_epi16(0x3f00), PORT_STEP32, 64)
#endif

double peak(port::Isa isa, port::Precision precision) {
#if defined(__x86_64__)
  if (precision == port::Precision::kBfloat16) return peak_bf16();
  if (isa == port::Isa::kAvx512) return peak_avx512();
  if (isa == port::Isa::kAvx2) return peak_avx2();
#endif
  (void)isa, (void)precision;
  return 0.0;
}

// Multiply-adds a pose, times two: of eqs. (4)-(11) as written, and of the folded network without padding. Products
// with the hop matrices, which are sparse, are left out of both.
double flop_as_written(const port::ModelSpec& spec) {
  const port::NetworkConfig& c = spec.config;
  const double n = spec.joints(), d = c.width, inner = c.inner(), hops = static_cast<double>(c.hops.size());
  const double layer = 3 * hops * n * d * inner + 2 * n * n * inner + n * inner * d + 2 * n * d * c.mlp_width();
  return 2.0 * (c.layers * layer + hops * n * c.input_channels * d + 2 * n * d);
}

double flop_folded(const port::ModelSpec& spec, const port::FoldedNetwork& net) {
  const double n = spec.joints(), d = spec.config.width;
  double total = n * net.rank * d;
  for (const port::FoldedLayer& layer : net.layers) {
    for (const port::FoldedHead& head : layer.heads) {
      total += n * static_cast<double>(head.key.values.size() + head.query.values.size() + head.value.values.size());
      const double value_width = layer.values == port::Values::kShared ? layer.y_cols : head.value.cols;
      total += n * n * (layer.score_width + value_width);
    }
    for (const port::Dense& out : layer.out) total += n * static_cast<double>(out.values.size());
    total += n * static_cast<double>(layer.fc1.values.size() + layer.fc2.values.size());
  }
  return 2.0 * total;
}

struct Aligned {
  explicit Aligned(std::size_t bytes) : data(::operator new[](bytes, std::align_val_t{64})) {}
  ~Aligned() { ::operator delete[](data, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  void* data;
};

}  // namespace

int main(int argc, char** argv) {
  const port::ModelSpec spec = port_test::make_spec(argc > 1 ? std::atoi(argv[1]) : 21);
  const port::Tensors tensors = port_test::make_tensors(spec);
  const double written = flop_as_written(spec);
  std::printf("%d joints: %.1f MFLOP a pose as written\n", spec.joints(), written * 1e-6);
  std::vector<unsigned char> sweep(96u << 20, 1);
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (int kind = 0; kind < 4; ++kind) {
    const auto isa = static_cast<port::Isa>(std::min(kind, 2));
    const port::Precision precision = kind == 3 ? port::Precision::kBfloat16 : port::Precision::kFloat32;
    if (!port::isa_available(isa) || (kind == 3 && !port::bf16_available())) continue;
    const double folded =
        flop_folded(spec, port::fold(spec, tensors, kind != 3 ? port::Folding::kExact : port::Folding::kRounded));
    double start = seconds();
    const auto network = port::make_network(spec, tensors, isa, precision);
    std::printf("%s %s: folded and packed in %.1f ms to %.2f MB, %.1f MFLOP a pose\n", port::isa_name(isa),
                kind == 3 ? "bf16" : "fp32", (seconds() - start) * 1e3,
                static_cast<double>(network->weight_bytes()) * 1e-6, folded * 1e-6);
    const Aligned workspace(network->workspace_bytes());
    for (const int batch : {-1, 1, 8, 64, 256}) {  // -1: one pose, cold
      const int poses = std::abs(batch);
      const auto count = static_cast<std::size_t>(poses * spec.joints());
      std::vector<float> inputs(count * 2), outputs(count * 2);
      for (float& v : inputs) v = normal(generator);
      std::vector<std::uint8_t> mask(count);
      for (auto& m : mask) m = generator() % 10 < 3;
      std::vector<double> times;
      double best_peak = 0.0;
      const double end = seconds() + 0.5;
      while (seconds() < end) {
        for (int i = 0; i < (batch < 0 ? 1 : std::max(1, 64 / batch)); ++i) {
          if (batch < 0) {
            for (std::size_t at = 0; at < sweep.size(); at += 64) ++sweep[at];
          }
          start = seconds();
          network->forward(inputs.data(), mask.data(), mask.data(), poses, outputs.data(), nullptr, workspace.data);
          times.push_back((seconds() - start) / poses);
        }
        best_peak = std::max(best_peak, peak(isa, precision));
      }
      std::sort(times.begin(), times.end());
      const double median = times[times.size() / 2], least = times[0];
      std::printf("  B=%-3d %s  %7.1f us (least %7.1f)  %6.1f GFLOP/s as written, %6.1f done", poses,
                  batch < 0 ? "cold" : "warm", median * 1e6, least * 1e6, written / median * 1e-9,
                  folded / median * 1e-9);
      if (best_peak > 0.0) std::printf(" = %2.0f %% of %.0f", 100.0 * folded / median / best_peak, best_peak * 1e-9);
      std::printf("\n");
    }
  }
  return 0;
}
