// SPDX-License-Identifier: Apache-2.0
// The test framework: TEST(name) { CHECK(...); }, and run_tests() as the body of main.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "port/port.hpp"

namespace port_test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void report(const char* file, int line, const std::string& what) {
  std::printf("%s:%d: %s\n", file, line, what.c_str());
  ++failures;
}

inline int run_tests() {
  for (const Test& test : tests()) {
    const int before = failures;
    try {
      test.body();
    } catch (const std::exception& error) {
      report(test.name, 0, std::string("unexpected exception: ") + error.what());
    }
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
  }
  std::printf("%zu tests, %d failed checks\n", tests().size(), failures);
  return failures == 0 && !tests().empty() ? 0 : 1;
}

}  // namespace port_test

#define TEST(name)                                                               \
  static void test_##name();                                                     \
  static const port_test::Registration registration_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) port_test::report(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

// Like CHECK, with a text that says which case it was.
#define CHECK_CASE(condition, text)                                                                                 \
  do {                                                                                                              \
    if (!(condition)) port_test::report(__FILE__, __LINE__, std::string("not true: " #condition " for ") + (text)); \
  } while (false)

// The expression throws a one-line port::Error of that code whose message holds `part`.
#define CHECK_ERROR(code_wanted, part, expression)                                             \
  do {                                                                                         \
    try {                                                                                      \
      static_cast<void>(expression);                                                           \
      port_test::report(__FILE__, __LINE__, "no error from " #expression);                     \
    } catch (const port::Error& error) {                                                       \
      const std::string message = error.what();                                                \
      if (error.code() != (code_wanted) || message.find(part) == std::string::npos ||          \
          message.find('\n') != std::string::npos) {                                           \
        port_test::report(__FILE__, __LINE__, "wrong error from " #expression ": " + message); \
      }                                                                                        \
    }                                                                                          \
  } while (false)
