// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
// Saves what a called function must preserve, then continues on the other stack.
extern "C" void port_switch_stacks(void** save, void* load);
asm(R"(
.text
.globl port_switch_stacks
.type port_switch_stacks, @function
port_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size port_switch_stacks, .-port_switch_stacks
.section .note.GNU-stack,"",@progbits
.text
)");
#endif

namespace port::emulated {

Stack::Stack(std::size_t bytes, void (*entry)())
    : entry_(entry), memory_(static_cast<unsigned char*>(std::malloc(bytes))), bytes_(bytes) {
  if (!memory_) std::abort();
#ifdef PORT_FIBER_ASAN
  bottom_ = memory_;
  size_ = bytes;
#endif
  rewind();
}

Stack::~Stack() { std::free(memory_); }

void Stack::rewind() {
#ifdef PORT_FIBER_ASAN
  __asan_unpoison_memory_region(memory_, bytes_);  // frames that were left without returning
#endif
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(memory_ + bytes_) / 16 * 16);
  *--top = nullptr;                              // where entry() would return to; keeps the stack on 16 bytes
  *--top = reinterpret_cast<void*>(entry_);      // port_switch_stacks returns to it
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
#endif
}

void Stack::change(Stack& from, Stack& to, bool last) {
#ifdef PORT_FIBER_ASAN
  to.came_from_ = &from;
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_, to.bottom_, to.size_);
#else
  static_cast<void>(last);
#endif
#if defined(__x86_64__)
  port_switch_stacks(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#ifdef PORT_FIBER_ASAN
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(from.fake_, &bottom, &size);
  if (!from.came_from_->bottom_) from.came_from_->bottom_ = bottom, from.came_from_->size_ = size;
#endif
}

void Stack::begin(Stack& self) {
#ifdef PORT_FIBER_ASAN
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!self.came_from_->bottom_) self.came_from_->bottom_ = bottom, self.came_from_->size_ = size;
#else
  static_cast<void>(self);
#endif
}

}  // namespace port::emulated
