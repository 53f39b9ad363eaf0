#include "store/standing.h"

#include <random>

#include "store/timed_wait.h"

namespace moonpool::store {

void Standing::set_registered(Term term) {
  {
    const std::scoped_lock lock(mutex_);
    registered_ = true;
    final_ = false;
    term_ = term;
    ++registrations_;
  }
  changed_.notify_all();
}

void Standing::set_unregistered(Status reason, bool final_error) {
  {
    const std::scoped_lock lock(mutex_);
    registered_ = false;
    final_ = final_error;
    reason_ = std::move(reason);
  }
  changed_.notify_all();
}

void Standing::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
}

bool Standing::registered() const {
  const std::scoped_lock lock(mutex_);
  return registered_;
}

bool Standing::stopped() const {
  const std::scoped_lock lock(mutex_);
  return stopped_;
}

Term Standing::term() const {
  const std::scoped_lock lock(mutex_);
  return term_;
}

Status Standing::wait_registered(Deadline deadline) const {
  std::unique_lock lock(mutex_);
  wait_until(changed_, lock, deadline, [this] { return registered_ || stopped_ || final_; });
  if (registered_) return {};
  if (stopped_) return {ErrorCode::kCancelled, "the store client is closed"};
  return reason_;
}

bool Standing::pause(std::chrono::nanoseconds pause) const {
  std::unique_lock lock(mutex_);
  const std::uint64_t seen = registrations_;
  wait_until(changed_, lock, Deadline::after(pause), [&] { return stopped_ || registrations_ != seen; });
  return !stopped_;
}

std::chrono::nanoseconds jittered(std::chrono::nanoseconds base) {
  thread_local std::minstd_rand random{std::random_device{}()};
  return base + std::chrono::nanoseconds(std::uniform_int_distribution<std::int64_t>(0, base.count())(random));
}

}  // namespace moonpool::store
