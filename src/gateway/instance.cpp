#include "gateway/instance.h"

#include <algorithm>

#include "base/logging.h"

namespace moonpool::gateway {

namespace {

Instance::Cause cause_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUnavailable:
      return Instance::Cause::kUnreachable;
    case ErrorCode::kRpcFail:
      return Instance::Cause::kServerError;
    case ErrorCode::kRpcTimeout:
      return Instance::Cause::kTimeout;
    case ErrorCode::kProtocol:
      return Instance::Cause::kProtocol;
    default:
      return Instance::Cause::kOther;
  }
}

}  // namespace

std::string_view Instance::state() const {
  if (draining()) return "draining";
  if (!healthy()) return "unhealthy";
  if (!heard_of_.load(std::memory_order_relaxed)) return "starting";
  return weight() < 1 ? "slow-start" : "healthy";
}

double Instance::weight() const {
  constexpr double kLowest = 0.1;
  if (!slow_.load(std::memory_order_relaxed)) return 1;
  const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - created_) / slow_start_;
  if (passed < 1) return std::max(kLowest, passed);
  slow_.store(false, std::memory_order_relaxed);
  return 1;
}

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
  if (!heard_of_.load(std::memory_order_relaxed)) heard_of_.store(true, std::memory_order_relaxed);
  if (circuit_.request_succeeded()) log::info("{} instance {} is healthy again", role_, name_.to_string());
}

void Instance::failed(const Status& reason) {
  errors_.fetch_add(1, std::memory_order_relaxed);
  errors_by_cause_[static_cast<std::size_t>(cause_of(reason.code()))].fetch_add(1, std::memory_order_relaxed);
  remember(reason);
  if (circuit_.request_failed()) {
    log::warning("{} instance {} is unhealthy after {} consecutive failures, the last: {}. It is probed until it answers", role_,
                 name_.to_string(), circuit_.failures(), reason.message());
  }
}

void Instance::probe_succeeded() {
  heard_of_.store(true, std::memory_order_relaxed);
  circuit_.check_succeeded();
}

void Instance::probe_failed(const Status& reason, bool first_look) {
  remember(reason);
  if (circuit_.check_failed(first_look)) {
    log::warning("{} instance {} does not answer: {}", role_, name_.to_string(), reason.message());
  }
}

void Instance::remember(const Status& reason) {
  heard_of_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  last_error_ = reason.message();
  last_error_at_ = std::chrono::steady_clock::now();
}

}  // namespace moonpool::gateway
