// SPDX-License-Identifier: Apache-2.0
// Stacks that one thread switches between. Written by hand for x86-64, where it takes nanoseconds; elsewhere ucontext.
// AddressSanitizer is told of every switch. Test: csrc/tests/emulated/test_device.cpp.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define PORT_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PORT_FIBER_ASAN 1
#endif
#endif

#ifdef PORT_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace port::emulated {

class Stack {
 public:
  // The thread's own stack.
  Stack() = default;
  // A stack that will run entry(), which must not return, when it is first switched to.
  Stack(std::size_t bytes, void (*entry)());
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes it run entry() from the start once more.
  void rewind();

  // Leaves `from` for `to`; comes back when somebody switches to `from`. last: `from` will not be switched to again
  // before it is rewound.
  static void change(Stack& from, Stack& to, bool last);
  // To be called first thing by entry().
  static void begin(Stack& self);

 private:
  void (*entry_)() = nullptr;
  unsigned char* memory_ = nullptr;
  std::size_t bytes_ = 0;
#if defined(__x86_64__)
  void* top_ = nullptr;  // saved stack pointer
#else
  ucontext_t context_;
#endif
#ifdef PORT_FIBER_ASAN
  void* fake_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  Stack* came_from_ = nullptr;
#endif
};

}  // namespace port::emulated
