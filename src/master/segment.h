// One mounting of one segment: its allocator, and the extents that are on their way out of it.
//
// An extent has one of three states: free, used (an object or a put in flight holds it), or retired: told to the owner, not yet
// acknowledged, not reusable ("quarantine", counted in bytes). retire() hands it to the owner's outbox; the acknowledgement frees it.
// A fenced segment gives out nothing and takes nothing back: the whole of it is gone, whoever still refers to it finds alive() false.
// Threads: any. Lock order: a shard's mutex, then the outbox's, then the segment's. Ownership: shared; the object table refers to a
// segment by plain pointer, which is good until fence() has been followed by a sweep of the table (Directory keeps it until then).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "base/ids.h"
#include "master/allocator.h"
#include "master/types.h"

namespace moonpool::master {

class Outbox;
class RetirementTicket;

struct SegmentDescription {
  Incarnation incarnation;
  std::string name;
  std::string host;
  std::uint32_t port = 0;
  std::uint64_t size = 0;
  std::uint64_t base = 0;
  std::string protocol;
  NodeId node;
};

class Segment : public std::enable_shared_from_this<Segment> {
 public:
  Segment(SegmentDescription description, std::shared_ptr<Outbox> outbox);

  [[nodiscard]] const SegmentDescription& description() const { return description_; }
  // The description as an encoded wire::SegmentInfo, as replies carry it.
  [[nodiscard]] const std::string& encoded() const { return encoded_; }
  [[nodiscard]] bool alive() const { return alive_.load(std::memory_order_acquire); }
  // Alive, and its owner's process is connected (METHOD_ATTEND): what look-ups show and puts are placed on.
  [[nodiscard]] bool reachable() const { return present_.load(std::memory_order_acquire) && alive(); }
  void set_present(bool present) { present_.store(present, std::memory_order_release); }
  // Whether the whole catalogue has been reported; nothing is allocated before.
  [[nodiscard]] bool ready() const { return ready_.load(std::memory_order_acquire); }
  void set_ready();
  void fence();

  [[nodiscard]] std::optional<std::uint64_t> allocate(std::uint64_t length);
  // While the catalogue is being reported.
  [[nodiscard]] bool allocate_at(std::uint64_t offset, std::uint64_t length);
  // Orders the owner to let go of it. `holds_space`: false for an extent whose space belongs to another one. The ticket, if any, is
  // completed by the acknowledgement or by the fence.
  void retire(std::uint64_t offset, std::uint64_t length, Version version, const std::shared_ptr<RetirementTicket>& ticket,
              bool holds_space = true);
  // What an earlier reign retired and the owner could not acknowledge yet; while the catalogue is being reported.
  void retire_again(std::uint64_t offset, std::uint64_t length, Version version);
  // The acknowledgements of retired extents that hold space.
  struct Extent {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
  };
  void release(std::span<const Extent> extents);

  [[nodiscard]] std::uint64_t capacity() const { return capacity_; }
  [[nodiscard]] std::uint64_t used() const { return used_.load(std::memory_order_relaxed); }  // including quarantine
  [[nodiscard]] std::uint64_t quarantine() const { return quarantine_.load(std::memory_order_relaxed); }
  // Of the quarantine: held up by readers, who may take their time.
  [[nodiscard]] std::uint64_t viewed() const { return viewed_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t free_bytes() const { return capacity_ - used(); }
  [[nodiscard]] std::uint64_t rounded(std::uint64_t length) const {
    return (length / granule_ + (length % granule_ != 0 ? 1 : 0)) * granule_;
  }
  // For tests and checks.
  [[nodiscard]] std::size_t allocations() const;
  [[nodiscard]] bool consistent() const;

 private:
  friend class Outbox;
  const SegmentDescription description_;
  const std::string encoded_;
  const std::shared_ptr<Outbox> outbox_;
  const std::uint64_t capacity_;
  const std::uint64_t granule_;
  std::atomic<bool> alive_{true};
  std::atomic<bool> present_{true};
  std::atomic<bool> ready_{false};
  std::atomic<std::uint64_t> used_{0};
  std::atomic<std::uint64_t> quarantine_{0};
  std::atomic<std::uint64_t> viewed_{0};
  mutable std::mutex mutex_;  // guards allocator_
  ExtentAllocator allocator_;
};

}  // namespace moonpool::master
