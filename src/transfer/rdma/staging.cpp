#include "transfer/rdma/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

#include "base/logging.h"

namespace moonpool::transfer::rdma {

Staging::Staging(std::shared_ptr<MemoryMap> memory, std::uint64_t bytes)
    : memory_(std::move(memory)), wanted_(std::max(bytes / kSlice, std::uint64_t{1}) * kSlice) {}

Staging::~Staging() {
  if (area_.empty()) return;
  range_.reset();
  static_cast<void>(memory_->remove_local(area_.data(), Deadline::after(std::chrono::seconds(1))));
  ::munmap(area_.data(), area_.size());
}

Status Staging::allocate_locked(std::uint64_t bytes) {
  void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    return {ErrorCode::kUnavailable,
            "no memory for RDMA's staging buffers of " + std::to_string(bytes) + " bytes: " + std::strerror(errno)};
  }
  const MutableBytes area(static_cast<std::byte*>(address), bytes);
  Status status = memory_->add_local(area);
  if (!status.ok()) {
    ::munmap(address, bytes);
    return status;
  }
  area_ = area;
  range_ = memory_->local(area);
  for (std::uint64_t at = bytes; at > 0; at -= kSlice) free_.push_back(area.subspan(at - kSlice, kSlice));
  return {};
}

Status Staging::prepare() {
  const std::lock_guard lock(mutex_);
  if (range_) return {};
  Status first;
  for (std::uint64_t bytes = wanted_; bytes >= kSlice; bytes = bytes / 2 / kSlice * kSlice) {
    const Status status = allocate_locked(bytes);
    if (status.ok()) {
      if (bytes < wanted_) log::warning("rdma: only {} of {} bytes for staging could be registered: {}", bytes, wanted_, first.message());
      return {};
    }
    if (first.ok()) first = status;
  }
  return {ErrorCode::kUnavailable, "memory that is not registered cannot go by RDMA: " + first.message()};
}

std::shared_ptr<const RegisteredRange> Staging::range() const {
  const std::lock_guard lock(mutex_);
  return range_;
}

MutableBytes Staging::try_take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) return {};
  const MutableBytes slice = free_.back();
  free_.pop_back();
  return slice;
}

void Staging::give_back(MutableBytes slice) {
  const std::lock_guard lock(mutex_);
  free_.push_back(slice);
  freed_.notify_one();
}

bool Staging::wait_for_one(Deadline deadline) {
  std::unique_lock lock(mutex_);
  // On the system clock: ThreadSanitizer does not know the call that waits on the steady one.
  const auto until = std::chrono::system_clock::now() + std::min<std::chrono::nanoseconds>(deadline.left(), std::chrono::hours(1));
  return freed_.wait_until(lock, until, [this] { return closed_ || !free_.empty(); }) && !closed_;
}

void Staging::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  freed_.notify_all();
}

}  // namespace moonpool::transfer::rdma
