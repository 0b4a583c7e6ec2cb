// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "half.h"
#include "json.h"
#include "port/port.hpp"

namespace port {
namespace {

using json::Value;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorCode::kModelFile, message); }

struct Entry {
  std::string name;
  std::vector<std::size_t> shape;
  std::size_t item_bytes = 0, count = 1, begin = 0, end = 0;
};

std::size_t whole(const Value& value, const std::string& name) {
  if (!value.is(Value::Kind::kNumber) || !value.integral || value.integer < 0) {
    fail("tensor " + name + ": expected whole numbers in its shape and data_offsets");
  }
  return static_cast<std::size_t>(value.integer);
}

Entry read_entry(const std::string& name, const Value& value, std::size_t data_bytes) {
  const Value* dtype = value.find("dtype");
  const Value* shape = value.find("shape");
  const Value* offsets = value.find("data_offsets");
  if (!dtype || !shape || !offsets || !shape->is(Value::Kind::kArray) || !offsets->is(Value::Kind::kArray) ||
      offsets->items.size() != 2) {
    fail("tensor " + name + ": expected dtype, shape and two data_offsets");
  }
  Entry entry;
  entry.name = name;
  entry.item_bytes = dtype->text == "F32" ? 4 : dtype->text == "F16" ? 2 : 0;
  if (entry.item_bytes == 0) fail("tensor " + name + ": expected dtype F32 or F16, got '" + dtype->text + "'");
  entry.begin = whole(offsets->items[0], name);
  entry.end = whole(offsets->items[1], name);
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail("tensor " + name + ": its data_offsets lie outside the file: truncated or damaged");
  }
  for (const Value& item : shape->items) {
    const std::size_t dimension = whole(item, name);
    // Against overflow: no tensor has more values than the file has bytes.
    if (dimension != 0 && entry.count > data_bytes / dimension) fail("tensor " + name + ": larger than the file");
    entry.count *= dimension;
    entry.shape.push_back(dimension);
  }
  if (entry.count * entry.item_bytes != entry.end - entry.begin) {
    fail("tensor " + name + ": its data_offsets do not fit its shape and dtype");
  }
  return entry;
}

Tensor read_values(const Entry& entry, const unsigned char* data) {
  Tensor tensor{entry.shape, std::vector<float>(entry.count)};
  if (entry.count == 0) return tensor;
  const unsigned char* source = data + entry.begin;  // of any alignment
  if (entry.item_bytes == 4) {
    std::memcpy(tensor.values.data(), source, entry.count * 4);
  } else {
    for (std::size_t i = 0; i < entry.count; ++i) {
      std::uint16_t half;
      std::memcpy(&half, source + 2 * i, 2);
      tensor.values[i] = half_to_float(half);
    }
  }
  if (!std::all_of(tensor.values.begin(), tensor.values.end(), [](float v) { return std::isfinite(v); })) {
    fail(entry.name + " holds NaN or infinity: training diverged or the file is damaged");
  }
  return tensor;
}

}  // namespace

Safetensors parse_safetensors(const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (size < 8) fail("expected a safetensors file, got fewer than 8 bytes: download or export it again");
  std::uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | bytes[i];
  if (header_bytes < 2 || header_bytes > std::min<std::uint64_t>(kMaxHeaderBytes, size - 8)) {
    fail("header of " + std::to_string(header_bytes) + " bytes does not fit the file: truncated or not safetensors");
  }
  const std::size_t start = 8 + static_cast<std::size_t>(header_bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes) + 8, start - 8);
  const Value header = json::parse(text, json::Dialect::kStrict);
  if (!header.is(Value::Kind::kObject)) fail("expected its header to be a JSON object");

  Safetensors file;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.members) {
    if (name != "__metadata__") {
      entries.push_back(read_entry(name, value, size - start));
      continue;
    }
    for (const auto& [key, item] : value.members) {
      if (!item.is(Value::Kind::kString)) fail("expected its metadata to be strings");
      file.metadata[key] = item.text;
    }
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::size_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) fail("tensor " + entry.name + ": its data_offsets overlap or leave a hole");
    covered = entry.end;
  }
  if (covered != size - start) fail("its tensors do not cover the file: damaged, or bytes were appended");
  for (const Entry& entry : entries) file.tensors[entry.name] = read_values(entry, bytes + start);
  return file;
}

}  // namespace port
