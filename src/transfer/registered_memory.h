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

// Where a registered range of device memory is, and how other processes of the host open it (cuda/engine_moves.h).
struct DevicePlace {
  int device = 0;
  std::string uuid;              // of the device
  std::string ipc_handle;        // of the allocation; empty: it cannot be exported
  std::uint64_t ipc_offset = 0;  // of the range in it
  std::string no_ipc;            // why it cannot
};

class RegisteredMemory {
 public:
  struct Region {
    std::uint64_t address = 0;
    std::uint64_t length = 0;
    std::string location;
    std::uint64_t order = 0;  // of registration; no two have the same
    std::uint64_t holds = 0;
    std::shared_ptr<const DevicePlace> place;  // null: host memory
  };

  // Keeps the regions of a transfer registered. Move-only.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept = default;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { release(); }
    // Per piece, the region that it is in (null for one of length 0), whose address, order and place may be read while the hold lives.
    // Empty when all pieces are host memory.
    [[nodiscard]] std::span<const Region* const> with_devices() const { return of_pieces_; }

   private:
    friend class RegisteredMemory;
    void release();
    RegisteredMemory* memory_ = nullptr;
    std::vector<std::shared_ptr<Region>> regions_;  // empty once moved from
    std::vector<const Region*> of_pieces_;
  };

  // kInvalidParams for a null, empty or overflowing range; kSegmentAlreadyExists for an overlap.
  Status add(std::uint64_t address, std::uint64_t length, std::string_view location, std::shared_ptr<const DevicePlace> place = nullptr);
  // Refuses new holds at once and waits for the old ones. kInvalidParams when no region begins there; kRpcTimeout when a transfer did not
  // end in time.
  Status remove(std::uint64_t address, Deadline deadline);
  // kInvalidParams naming the first piece that is not inside one region. Pieces of length 0 are ignored.
  [[nodiscard]] Result<Hold> hold(std::span<const AddressRange> pieces);
  // Whether a region of device memory begins there.
  [[nodiscard]] bool is_on_device(std::uint64_t address) const;
  // In the order of registration.
  [[nodiscard]] std::vector<Region> regions() const;

 private:
  std::shared_ptr<Region> region_of(const AddressRange& piece) const;

  mutable std::mutex mutex_;  // guards all below, and the regions' holds
  std::condition_variable released_;
  std::map<std::uint64_t, std::shared_ptr<Region>> regions_;  // by address
  std::uint64_t registered_ = 0;
  std::uint64_t on_devices_ = 0;  // regions in regions_ that have a place
};

[[nodiscard]] inline MutableBytes bytes_at(const AddressRange& range) {
  return {reinterpret_cast<std::byte*>(range.address),
          static_cast<std::size_t>(range.length)};  // NOLINT(performance-no-int-to-ptr): addresses come as integers
}

}  // namespace moonpool::transfer
