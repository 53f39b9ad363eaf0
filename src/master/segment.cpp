#include "master/segment.h"

#include <utility>

#include "master/retirement.h"
#include "net/object_messages.h"

namespace moonpool::master {

namespace {
std::string encode(const SegmentDescription& description) {
  const auto incarnation = description.incarnation.to_bytes();
  const auto node = description.node.to_bytes();
  const net::lean::SegmentInfo info{incarnation,      description.name, description.host,     description.port,
                                    description.size, description.base, description.protocol, node};
  std::string bytes;
  net::lean::write(info, bytes);
  return bytes;
}
}  // namespace

Segment::Segment(SegmentDescription description, std::shared_ptr<Outbox> outbox)
    : description_(std::move(description)),
      encoded_(encode(description_)),
      outbox_(std::move(outbox)),
      capacity_(ExtentAllocator(description_.size).capacity()),
      granule_(ExtentAllocator(description_.size).granule()),
      allocator_(description_.size) {}

void Segment::set_ready() {
  {
    const std::scoped_lock lock(mutex_);
    allocator_.seal();
  }
  ready_.store(true, std::memory_order_release);
}

void Segment::fence() {
  {
    const std::scoped_lock lock(mutex_);
    alive_.store(false, std::memory_order_release);
    allocator_ = ExtentAllocator(0);
    used_ = 0;
    quarantine_ = 0;
  }
  outbox_->drop(*this);
}

std::optional<std::uint64_t> Segment::allocate(std::uint64_t length) {
  if (!ready()) return std::nullopt;
  const std::scoped_lock lock(mutex_);
  if (!alive()) return std::nullopt;
  const auto offset = allocator_.allocate(length);
  used_.store(allocator_.used(), std::memory_order_relaxed);
  return offset;
}

bool Segment::allocate_at(std::uint64_t offset, std::uint64_t length) {
  const std::scoped_lock lock(mutex_);
  if (!alive() || !allocator_.allocate_at(offset, length)) return false;
  used_.store(allocator_.used(), std::memory_order_relaxed);
  return true;
}

void Segment::retire(std::uint64_t offset, std::uint64_t length, Version version, const std::shared_ptr<RetirementTicket>& ticket,
                     bool holds_space) {
  outbox_->add(*this, Retirement{0, nullptr, offset, length, version, ticket, holds_space, 0});
}

void Segment::retire_again(std::uint64_t offset, std::uint64_t length, Version version) {
  const bool holds_space = allocate_at(offset, length);
  retire(offset, length, version, nullptr, holds_space);
}

void Segment::release(std::span<const Extent> extents) {
  const std::scoped_lock lock(mutex_);
  if (!alive()) return;
  std::uint64_t released = 0;
  for (const auto& [offset, length] : extents) {
    allocator_.free(offset);
    released += rounded(length);
  }
  used_.store(allocator_.used(), std::memory_order_relaxed);
  quarantine_.fetch_sub(released, std::memory_order_relaxed);
}

std::size_t Segment::allocations() const {
  const std::scoped_lock lock(mutex_);
  return allocator_.allocations();
}

bool Segment::consistent() const {
  const std::scoped_lock lock(mutex_);
  return allocator_.consistent();
}

}  // namespace moonpool::master
