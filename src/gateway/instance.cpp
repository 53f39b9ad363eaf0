#include "gateway/instance.h"

#include "base/logging.h"

namespace moonpool::gateway {

std::string Instance::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

double Instance::last_error_age_s() const {
  const std::lock_guard lock(mutex_);
  if (last_error_.empty()) return -1;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - last_error_at_).count();
}

void Instance::answering() {
  if (circuit_.request_answering()) log::info("{} instance {} answers again", role_, name_.to_string());
}

void Instance::succeeded() {
  if (circuit_.request_succeeded()) log::info("{} instance {} is healthy again", role_, name_.to_string());
}

void Instance::failed(const Status& reason) {
  errors_.fetch_add(1, std::memory_order_relaxed);
  remember(reason);
  if (circuit_.request_failed()) {
    log::warning("{} instance {} is unhealthy after {} consecutive failures, the last: {}. It is probed until it answers", role_,
                 name_.to_string(), circuit_.failures(), reason.message());
  }
}

void Instance::probe_succeeded() { circuit_.check_succeeded(); }

void Instance::probe_failed(const Status& reason, bool first_look) {
  remember(reason);
  if (circuit_.check_failed(first_look)) {
    log::warning("{} instance {} does not answer: {}", role_, name_.to_string(), reason.message());
  }
}

void Instance::remember(const Status& reason) {
  const std::lock_guard lock(mutex_);
  last_error_ = reason.message();
  last_error_at_ = std::chrono::steady_clock::now();
}

}  // namespace moonpool::gateway
