#include "python/bindings/fork_guard.h"

#include <pthread.h>

#include <atomic>

namespace moonpool::python {

namespace {
std::atomic<std::uint64_t> generation{0};
const int registered = pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });
}  // namespace

std::uint64_t fork_generation() {
  static_cast<void>(registered);
  return generation.load(std::memory_order_relaxed);
}

}  // namespace moonpool::python
