// SPDX-License-Identifier: Apache-2.0
// JSON for model files: small, strict, and safe on hostile text. Test: csrc/tests/test_json.cpp.
//
// Accepts and rejects what Python's json.loads and the safetensors library do (both read the same files), with these
// limits: kMaxDepth levels, kMaxValues values, kMaxNumberLength characters in a number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace port::json {

constexpr int kMaxDepth = 128;
constexpr std::size_t kMaxValues = 200000;  // a value takes about 150 bytes: 30 MB at most
constexpr std::size_t kMaxNumberLength = 4300;

struct Value {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  bool integral = false;     // a number written without fraction and exponent
  double number = 0.0;       // also of booleans: 0 or 1, as in Python
  std::int64_t integer = 0;  // of integral numbers and booleans, saturated
  std::string text;          // UTF-8
  std::vector<Value> items;
  std::map<std::string, Value> members;  // a repeated key: the last one wins

  bool is(Kind k) const { return kind == k; }
  // Member by name, or null. `this` may be of any kind.
  const Value* find(const std::string& key) const;
};

enum class Dialect {
  kStrict,  // as safetensors: valid UTF-8, no lone surrogates, no NaN, finite numbers
  kPython   // as json.loads of a str: NaN, Infinity, -Infinity and lone surrogates are read
};

// Throws port::Error(kModelFile) with the byte where it went wrong.
Value parse(std::string_view text, Dialect dialect);

}  // namespace port::json
