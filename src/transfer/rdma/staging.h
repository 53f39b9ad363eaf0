// Registered memory through which go the bytes of memory that the user has not registered: one area of a process, cut into slices of 1 MiB.
//
// Allocated and registered at the first use; when the whole of it cannot be (memlock), half of it is tried, and so on down to one slice.
// Threads: any. Ownership: the session pool's; all slices are back before it goes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/rdma/memory_map.h"

namespace moonpool::transfer::rdma {

class Staging {
 public:
  static constexpr std::uint64_t kSlice = std::uint64_t{1} << 20;

  Staging(std::shared_ptr<MemoryMap> memory, std::uint64_t bytes);
  ~Staging();

  // Repeating it is cheap. kUnavailable with the reason when no memory can be registered.
  [[nodiscard]] Status prepare();
  // How it is registered; null before prepare() has succeeded.
  [[nodiscard]] std::shared_ptr<const RegisteredRange> range() const;
  // The memory of a free slice; empty when there is none now.
  [[nodiscard]] MutableBytes try_take();
  void give_back(MutableBytes slice);
  // False at the deadline, or when closed.
  [[nodiscard]] bool wait_for_one(Deadline deadline);
  void close();

 private:
  Status allocate_locked(std::uint64_t bytes);

  const std::shared_ptr<MemoryMap> memory_;
  const std::uint64_t wanted_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable freed_;
  MutableBytes area_;
  std::shared_ptr<const RegisteredRange> range_;
  std::vector<MutableBytes> free_;
  bool closed_ = false;
};

}  // namespace moonpool::transfer::rdma
