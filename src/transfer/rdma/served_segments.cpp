#include "transfer/rdma/served_segments.h"

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/segment_memory.h"

namespace moonpool::transfer::rdma {

void ServedSegments::start() {
  thread_ = std::thread([this] { run(); });
  owner_.listen(shared_from_this());
}

void ServedSegments::stop() {
  if (!thread_.joinable()) return;
  owner_.forget(*this);
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  for (const auto& [incarnation, outcome] : outcomes_) memory_->revoke(incarnation);
  outcomes_.clear();
}

Status ServedSegments::wait_served(const Incarnation& incarnation, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto known = [&] { return stopping_ || outcomes_.contains(incarnation) || owner_.memory_of(incarnation) == nullptr; };
  if (!changed_.wait_until(lock, deadline.time(), known)) {
    return {ErrorCode::kRpcTimeout, "rdma: the segment's memory was not registered with the NICs in time: give it longer, or lend less"};
  }
  const auto found = outcomes_.find(incarnation);
  return found == outcomes_.end() ? Status(ErrorCode::kStaleIncarnation, "rdma: the segment is not mounted (any more)") : found->second;
}

void ServedSegments::announce_open(const Incarnation& incarnation) {
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_) return;
    waiting_.push_back(incarnation);
  }
  changed_.notify_all();
}

void ServedSegments::announce_closed(const Incarnation& incarnation) {
  {
    const std::scoped_lock lock(mutex_);
    std::erase(waiting_, incarnation);
    outcomes_.erase(incarnation);
  }
  memory_->revoke(incarnation);
  changed_.notify_all();
}

void ServedSegments::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const Incarnation incarnation = waiting_.front();
    waiting_.pop_front();
    lock.unlock();
    const Status outcome = serve(incarnation);
    lock.lock();
    // Asked again under the lock: a closing that was announced before finds no memory here, a later one takes the outcome out again.
    if (owner_.memory_of(incarnation) != nullptr) {
      outcomes_.emplace(incarnation, outcome);
    } else {
      lock.unlock();
      memory_->revoke(incarnation);
      lock.lock();
    }
    changed_.notify_all();
  }
}

Status ServedSegments::serve(const Incarnation& incarnation) {
  const auto memory = owner_.memory_of(incarnation);  // keeps it mapped
  if (memory == nullptr) return {};
  MOONPOOL_SYNC_POINT("served_segments.serve");
  Status status = memory_->serve(incarnation, memory->bytes());
  MOONPOOL_SYNC_POINT("served_segments.served");
  if (!status.ok()) log::warning("peers use tcp for the segment {}: {}", incarnation.to_string(), status.to_string());
  return status;
}

}  // namespace moonpool::transfer::rdma
