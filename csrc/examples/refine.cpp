// SPDX-License-Identifier: Apache-2.0
// Repairs the occluded joints of poses: refine MODEL.safetensors POSES.txt
// POSES.txt holds `x y confidence` for joint after joint, pose after pose. Test: tests/test_cpp.py.
#include <cstdio>
#include <fstream>
#include <vector>

#include "port/port.hpp"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: refine MODEL.safetensors POSES.txt\n");
    return 2;
  }
  try {
    const auto model = port::Model::load(argv[1]);
    const port::Refiner refiner(model);

    std::vector<float> joints, confidence;  // [B][N][2], [B][N]
    std::ifstream file(argv[2]);
    for (float x, y, c; file >> x >> y >> c;) {
      joints.insert(joints.end(), {x, y});
      confidence.push_back(c);
    }
    const std::size_t n = static_cast<std::size_t>(model->joints());
    if (confidence.empty() || confidence.size() % n != 0) {
      std::fprintf(stderr, "%s: expected a multiple of %zu lines 'x y confidence', got %zu\n", argv[2], n,
                   confidence.size());
      return 2;
    }

    std::vector<float> refined(joints.size());
    std::vector<std::uint8_t> mask(confidence.size());
    const auto batch = static_cast<std::int64_t>(confidence.size() / n);
    refiner.refine(joints.data(), confidence.data(), batch, model->threshold(), {refined.data(), nullptr, mask.data()});

    for (std::size_t i = 0; i < confidence.size(); ++i) {
      std::printf("%-24s %10.4f %10.4f -> %10.4f %10.4f %s\n", model->joint_names()[i % n].c_str(), joints[2 * i],
                  joints[2 * i + 1], refined[2 * i], refined[2 * i + 1], mask[i] ? "rebuilt" : "kept");
    }
  } catch (const port::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
