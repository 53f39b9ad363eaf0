// The memory of one segment: mapped by us and touched ahead, or lent by the caller.
//
// What we map can be shared with other processes (a sealed memfd, shm/shared_memory.h), unless the kernel refuses that; then it is
// anonymous. The first touch of a page costs as much as six copies of it, so a mapping is populated in the background from its start to its
// end (MADV_POPULATE_WRITE in steps of kTouchStep, by a thread of low priority that this object owns). Transparent huge pages are turned
// off: their first touch was measured seven times slower. Pages from the host's reserve of huge ones (vm.nr_hugepages) are another matter:
// a NIC needs 512 times fewer translations for them, so a segment for RDMA takes them where there are enough, and is touched whole by then,
// which registration would do anyway. Destruction stops the thread within one step and unmaps. Threads: any; the memory
// itself is shared, its users agree among themselves (catalogue.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "base/result.h"
#include "transfer/shm/shared_memory.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

enum class HugePages : std::uint8_t {
  kNever,
  kIfReserved,  // else ordinary ones, without a word
};

class SegmentMemory {
 public:
  static constexpr std::size_t kTouchStep = std::size_t{8} << 20;
  static constexpr std::size_t kTouchAhead = std::size_t{512} << 20;

  // Rounded up to pages. kInternal naming the size and the limit when memory cannot be had; kInvalidParams for 0.
  [[nodiscard]] static Result<std::shared_ptr<SegmentMemory>> map(std::uint64_t size, HugePages huge_pages = HugePages::kNever);
  // The caller's memory: neither touched nor unmapped by us.
  [[nodiscard]] static std::shared_ptr<SegmentMemory> lend(MutableBytes memory);
  ~SegmentMemory();
  SegmentMemory(const SegmentMemory&) = delete;
  SegmentMemory& operator=(const SegmentMemory&) = delete;

  [[nodiscard]] MutableBytes bytes() const { return bytes_; }
  // To be sent to a peer; -1 when this memory cannot be shared.
  [[nodiscard]] int fd() const { return shared_.fd(); }
  // By a caller, who frees it.
  [[nodiscard]] bool lent() const { return !mapped_; }
  [[nodiscard]] bool huge() const { return huge_; }
  // The background touch has reached what was asked for, with its lead (or was never needed).
  [[nodiscard]] bool touched() const { return touched_.load(std::memory_order_acquire) >= wanted_.load(std::memory_order_acquire); }
  // Bytes up to `end` are about to be written: keeps the lead. Two atomic loads when there is nothing to do.
  void want(std::size_t end);
  // Gives the whole pages of this range back to the system, in all processes that share them, and touches nothing any more. For memory that
  // is about to go, but for what some still look at.
  void discard(std::uint64_t offset, std::uint64_t length);

 private:
  void stop_touching();
  SegmentMemory(SharedMemory shared, MutableBytes bytes, bool mapped, bool huge);
  void touch();

  SharedMemory shared_;  // owns the mapping, unless it is anonymous or lent
  MutableBytes bytes_;
  bool mapped_;
  bool huge_;
  std::atomic<bool> stop_{false};
  std::atomic<std::size_t> wanted_{0};   // the toucher works up to here; grows only
  std::atomic<std::size_t> touched_{0};  // and has worked up to here
  std::thread toucher_;
};

}  // namespace moonpool::transfer
