// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <locale>
#include <sstream>
#include <utility>

#include "port/port.hpp"

namespace port::json {
namespace {

class Parser {
 public:
  Parser(std::string_view text, Dialect dialect) : text_(text), strict_(dialect == Dialect::kStrict) {}

  Value document() {
    if (strict_) check_utf8();
    Value value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) fail("text after the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(ErrorCode::kModelFile, std::string(what) + " at byte " + std::to_string(at_) + " of its JSON");
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Value parse_value(int depth) {
    if (depth > kMaxDepth) fail("nested too deeply");
    if (++values_ > kMaxValues) fail("too many values");
    skip_space();
    Value value;
    switch (peek()) {
      case '{':
        parse_object(value, depth);
        return value;
      case '[':
        parse_array(value, depth);
        return value;
      case '"':
        value.kind = Value::Kind::kString;
        value.text = parse_string();
        return value;
      default:
        break;
    }
    if (take("null")) return value;
    if (take("true") || take("false")) {
      value.kind = Value::Kind::kBool;
      value.boolean = text_[at_ - 2] == 'u';  // tr-u-e, fal-s-e
      value.number = value.boolean ? 1.0 : 0.0;
      value.integer = value.boolean ? 1 : 0;
      return value;
    }
    parse_number(value);
    return value;
  }

  void parse_object(Value& value, int depth) {
    value.kind = Value::Kind::kObject;
    ++at_;
    skip_space();
    if (take("}")) return;
    while (true) {
      skip_space();
      if (peek() != '"') fail("expected a key");
      std::string key = parse_string();
      skip_space();
      if (!take(":")) fail("expected ':'");
      value.members.insert_or_assign(std::move(key), parse_value(depth + 1));
      skip_space();
      if (take("}")) return;
      if (!take(",")) fail("expected ',' or '}'");
    }
  }

  void parse_array(Value& value, int depth) {
    value.kind = Value::Kind::kArray;
    ++at_;
    skip_space();
    if (take("]")) return;
    while (true) {
      value.items.push_back(parse_value(depth + 1));
      skip_space();
      if (take("]")) return;
      if (!take(",")) fail("expected ',' or ']'");
    }
  }

  unsigned parse_hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("expected four hexadecimal digits");
      code = code * 16 + static_cast<unsigned>(digit);
    }
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    const auto byte = [&out](unsigned b) { out.push_back(static_cast<char>(b)); };
    if (code < 0x80) {
      byte(code);
    } else if (code < 0x800) {
      byte(0xC0 | code >> 6), byte(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      byte(0xE0 | code >> 12), byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F));
    } else {
      byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 0x3F)), byte(0x80 | (code >> 6 & 0x3F));
      byte(0x80 | (code & 0x3F));
    }
  }

  void parse_escape(std::string& out) {
    ++at_;
    const char c = peek();
    if (at_ >= text_.size()) fail("text ends inside a string");
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out.push_back(c);
        return;
      case 'b':
        out.push_back('\b');
        return;
      case 'f':
        out.push_back('\f');
        return;
      case 'n':
        out.push_back('\n');
        return;
      case 'r':
        out.push_back('\r');
        return;
      case 't':
        out.push_back('\t');
        return;
      case 'u':
        break;
      default:
        fail("unknown escape");
    }
    unsigned code = parse_hex4();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t second = at_;
      at_ += 2;
      const unsigned low = parse_hex4();
      if (low >= 0xDC00 && low < 0xE000) {
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ = second;
      }
    }
    if (strict_ && code >= 0xD800 && code < 0xE000) fail("half of a surrogate pair");
    append_utf8(out, code);
  }

  std::string parse_string() {
    std::string out;
    ++at_;
    while (true) {
      const std::size_t start = at_;
      while (at_ < text_.size() && peek() != '"' && peek() != '\\' && static_cast<unsigned char>(peek()) >= 0x20) ++at_;
      out.append(text_.substr(start, at_ - start));
      if (at_ >= text_.size()) fail("text ends inside a string");
      if (take("\"")) return out;
      if (peek() != '\\') fail("control character inside a string");
      parse_escape(out);
    }
  }

  bool digits() {
    const std::size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  void parse_number(Value& value) {
    value.kind = Value::Kind::kNumber;
    if (!strict_) {
      const bool negative = take("-Infinity");
      if (negative || take("Infinity")) {
        value.number = negative ? -HUGE_VAL : HUGE_VAL;
        return;
      }
      if (take("NaN")) {
        value.number = std::numeric_limits<double>::quiet_NaN();
        return;
      }
    }
    const std::size_t start = at_;
    const bool negative = take("-");
    if (!take("0") && !digits()) fail("expected a value");
    value.integral = true;
    if (take(".")) {
      value.integral = false;
      if (!digits()) fail("expected a digit");
    }
    if (peek() == 'e' || peek() == 'E') {
      value.integral = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) fail("expected a digit");
    }
    if (at_ - start > kMaxNumberLength) fail("number too long");
    const std::string word(text_.substr(start, at_ - start));
    value.number = to_double(word);
    if (strict_ && !std::isfinite(value.number)) fail("number out of range");
    if (value.integral) {
      value.integer = std::strtoll(word.c_str(), nullptr, 10);
      if (strict_ && negative && value.integer == 0) value.integral = false;  // safetensors reads -0 as a float
    }
  }

  static double to_double(const std::string& word) {
    std::istringstream stream(word);
    stream.imbue(std::locale::classic());  // strtod would read "0.5" as 0 where the locale has decimal commas
    double number = 0.0;
    stream >> number;
    return stream ? number : word[0] == '-' ? -HUGE_VAL : HUGE_VAL;
  }

  void check_utf8() {
    const auto byte = [this](std::size_t i) { return i < text_.size() ? static_cast<unsigned char>(text_[i]) : 0u; };
    while (at_ < text_.size()) {
      const unsigned lead = byte(at_);
      const std::size_t length = lead < 0x80   ? 1
                                 : lead < 0xC2 ? 0
                                 : lead < 0xE0 ? 2
                                 : lead < 0xF0 ? 3
                                 : lead < 0xF5 ? 4
                                               : 0;
      bool good = length > 0;
      for (std::size_t i = 1; i < length; ++i) good = good && (byte(at_ + i) & 0xC0) == 0x80;
      const unsigned next = byte(at_ + 1);
      good = good && !(lead == 0xE0 && next < 0xA0) && !(lead == 0xED && next >= 0xA0);  // overlong, surrogate
      good = good && !(lead == 0xF0 && next < 0x90) && !(lead == 0xF4 && next >= 0x90);  // overlong, above U+10FFFF
      if (!good) fail("not UTF-8");
      at_ += length;
    }
    at_ = 0;
  }

  std::string_view text_;
  std::size_t at_ = 0, values_ = 0;
  bool strict_;
};

}  // namespace

const Value* Value::find(const std::string& key) const {
  const auto found = members.find(key);
  return found == members.end() ? nullptr : &found->second;
}

Value parse(std::string_view text, Dialect dialect) { return Parser(text, dialect).document(); }

}  // namespace port::json
