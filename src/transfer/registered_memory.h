// The memory that a transfer engine's user has registered: ranges of addresses of this process that peers may read and write.
//
// Whoever moves bytes holds the ranges first; hold() checks every piece before it gives anything, and unregistering waits until the holds
// of that range are gone. So a byte is never moved outside registered memory, nor into memory that its owner has taken back. Cost: a tree
// lookup per piece under one mutex, which is never held while bytes move. Threads: any. Outlives its holds.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

struct AddressRange {
  std::uint64_t address = 0;
  std::uint64_t length = 0;
};

class RegisteredMemory {
 public:
  struct Region {
    std::uint64_t address = 0;
    std::uint64_t length = 0;
    std::string location;
    std::uint64_t order = 0;  // of registration
    std::uint64_t holds = 0;
  };

  // Keeps the regions of a transfer registered. Move-only.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept = default;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { release(); }

   private:
    friend class RegisteredMemory;
    void release();
    RegisteredMemory* memory_ = nullptr;
    std::vector<std::shared_ptr<Region>> regions_;  // empty once moved from
  };

  // kInvalidParams for a null, empty or overflowing range; kSegmentAlreadyExists for an overlap.
  Status add(std::uint64_t address, std::uint64_t length, std::string_view location);
  // Refuses new holds at once and waits for the old ones. kInvalidParams when no region begins there; kRpcTimeout when a transfer did not
  // end in time.
  Status remove(std::uint64_t address, Deadline deadline);
  // kInvalidParams naming the first piece that is not inside one region. Pieces of length 0 are ignored.
  [[nodiscard]] Result<Hold> hold(std::span<const AddressRange> pieces);
  // In the order of registration.
  [[nodiscard]] std::vector<Region> regions() const;

 private:
  std::shared_ptr<Region> region_of(const AddressRange& piece) const;

  mutable std::mutex mutex_;  // guards all below, and the regions' holds
  std::condition_variable released_;
  std::map<std::uint64_t, std::shared_ptr<Region>> regions_;  // by address
  std::uint64_t registered_ = 0;
};

[[nodiscard]] inline MutableBytes bytes_at(const AddressRange& range) {
  return {reinterpret_cast<std::byte*>(range.address),
          static_cast<std::size_t>(range.length)};  // NOLINT(performance-no-int-to-ptr): addresses come as integers
}

}  // namespace moonpool::transfer
