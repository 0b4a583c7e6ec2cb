// SPDX-License-Identifier: Apache-2.0
// The JSON reader: values, escapes, the two dialects, and text made to hurt it.
#include <cmath>
#include <string>

#include "json.h"
#include "testing.h"

namespace {

using port::json::Dialect;
using port::json::parse;
using port::json::Value;
constexpr auto kBroken = port::ErrorCode::kModelFile;

Value strict(const std::string& text) { return parse(text, Dialect::kStrict); }
Value python(const std::string& text) { return parse(text, Dialect::kPython); }

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

}  // namespace

TEST(values) {
  const Value v = strict(" {\"a\": [1, -2.5e1, true, false, null, \"x\"], \"b\": {}, \"c\": []}\r\n\t ");
  const Value* a = v.find("a");
  CHECK(a && a->items.size() == 6);
  CHECK(a->items[0].integral && a->items[0].integer == 1 && a->items[0].number == 1.0);
  CHECK(!a->items[1].integral && a->items[1].number == -25.0);
  CHECK(a->items[2].boolean && a->items[2].integer == 1 && !a->items[3].boolean);
  CHECK(a->items[4].is(Value::Kind::kNull) && a->items[5].text == "x");
  CHECK(v.find("b")->is(Value::Kind::kObject) && v.find("c")->is(Value::Kind::kArray));
  CHECK(v.find("none") == nullptr && a->find("a") == nullptr);
  CHECK(strict("{\"k\": 1, \"k\": 2}").find("k")->integer == 2);
}

TEST(strings_and_escapes) {
  CHECK(strict(R"("\"\\\/\b\f\n\r\t")").text == "\"\\/\b\f\n\r\t");
  CHECK(strict(R"("\u0041\u00e9\u20AC\ud83d\ude00")").text == "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(strict("\"\xC3\xA9\xF0\x9F\x98\x80\"").text == "\xC3\xA9\xF0\x9F\x98\x80");
  CHECK(strict(R"("a\u0000b")").text == std::string("a\0b", 3));
  for (const char* text : {R"("\x")", R"("\u12")", R"("\u12g4")", R"("open)", R"("open\)", "\"\n\"", "\"\x01\""}) {
    CHECK_ERROR(kBroken, "byte", strict(text));
    CHECK_ERROR(kBroken, "byte", python(text));
  }
}

TEST(numbers) {
  for (const char* text : {"01", "+1", "1.", ".5", "1e", "1e+", "-", "0x10", "1_000", "--1", "Infinit", "nan"}) {
    CHECK_ERROR(kBroken, "byte", strict(text));
    CHECK_ERROR(kBroken, "byte", python(text));
  }
  CHECK(strict("123456789012345678901234567890").integral);
  CHECK(strict("123456789012345678901234567890").integer == INT64_MAX);
  CHECK(strict("-123456789012345678901234567890").integer == INT64_MIN);
  CHECK(strict("1e-400").number == 0.0);
  CHECK(std::isinf(python("1e400").number) && python("-1e400").number < 0);
  CHECK_ERROR(kBroken, "range", strict("1e400"));
  CHECK(std::isnan(python("NaN").number) && std::isinf(python("Infinity").number) && python("-Infinity").number < 0);
  for (const char* text : {"NaN", "Infinity", "-Infinity"}) CHECK_ERROR(kBroken, "byte", strict(text));
  CHECK_ERROR(kBroken, "too long", strict("1" + repeated("0", 5000)));
}

TEST(structure) {
  for (const char* text :
       {"",           " ",     "{",     "}",   "[",     "]",   "[1,]",  "[,1]", "[1 2]", "{\"a\"}",   "{\"a\":}",
        "{\"a\":1,}", "{a:1}", "{1:2}", "1 2", "{} {}", "tru", "nulll", "'a'",  "[1}",   "{\"a\":1]", "//x\n1"}) {
    CHECK_ERROR(kBroken, "byte", strict(text));
    CHECK_ERROR(kBroken, "byte", python(text));
  }
  CHECK_ERROR(kBroken, "byte", strict(std::string("1\0", 2)));
}

TEST(hostile_text) {
  for (const char* open : {"[", "{\"a\":", "[[{\"a\":["}) {
    CHECK_ERROR(kBroken, "deeply", strict(repeated(open, 100000)));
  }
  CHECK(strict(repeated("[", 100) + repeated("]", 100)).is(Value::Kind::kArray));
  CHECK_ERROR(kBroken, "too many", strict("[" + repeated("1,", 300000) + "1]"));
  const char* bad_utf8[] = {"\"\x80\"",         "\"\xC0\xAF\"",     "\"\xC3\"",
                            "\"\xE0\x80\x80\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\"",
                            "\"\xF8\x88\x80\"", "\"\xFF\"",         "\"\xE2\x82"};
  for (const char* text : bad_utf8) CHECK_ERROR(kBroken, "UTF-8", strict(text));
  CHECK_ERROR(kBroken, "byte", strict("\xEF\xBB\xBF{}"));
  for (const char* text : {R"("\ud800")", R"("\udc00")", R"("\ud800\ud800")", R"("\ud800A")"}) {
    CHECK_ERROR(kBroken, "surrogate", strict(text));
    CHECK(!python(text).text.empty());
  }
}

int main() { return port_test::run_tests(); }
