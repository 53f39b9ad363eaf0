// Holds the C++ object behind a Python object whose life is open() ... close(), and can start over.
//
// A call takes its own reference, so close() from another thread never pulls the object from under it. In a forked child the parent's
// object is unusable and cannot be destroyed either (joining threads that do not exist would hang): it is abandoned on purpose. Threads:
// all methods from any thread, the interpreter lock not held (open and close may wait for each other).
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "base/result.h"
#include "python/bindings/fork_guard.h"

namespace moonpool::python {

template <typename T>
class Handle {
 public:
  Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { abandon_if_forked(); }

  // Null when closed, or in a child of the process that opened it.
  [[nodiscard]] std::shared_ptr<T> get() const {
    if (generation_ != fork_generation()) return nullptr;
    const std::lock_guard lock(mutex_);
    return object_;
  }

  // `make` returns Result<std::unique_ptr<T>>. kInvalidParams when something is open already.
  template <typename Make>
  Status open(Make&& make) {
    abandon_if_forked();
    const std::lock_guard transition(transition_);
    if (get() != nullptr) return Status(ErrorCode::kInvalidParams, "it is set up already: call close() first");
    auto made = std::forward<Make>(make)();
    if (!made.ok()) return made.status();
    const std::lock_guard lock(mutex_);
    object_ = std::move(made).value();
    return {};
  }

  // Takes the object out; null when nothing is open. Its last user destroys it.
  [[nodiscard]] std::shared_ptr<T> take() {
    abandon_if_forked();
    const std::lock_guard transition(transition_);
    const std::lock_guard lock(mutex_);
    return std::exchange(object_, nullptr);
  }

 private:
  void abandon_if_forked() {
    if (generation_ == fork_generation()) return;
    static_cast<void>(new std::shared_ptr<T>(std::move(object_)));
    object_ = nullptr;
    generation_ = fork_generation();
  }

  std::uint64_t generation_ = fork_generation();
  std::mutex transition_;  // one open or close at a time
  mutable std::mutex mutex_;
  std::shared_ptr<T> object_;
};

}  // namespace moonpool::python
