// The memory that a transfer engine's user has registered: ranges of addresses of this process that peers may read and write.
//
// Whoever moves bytes holds the ranges first; hold() checks every piece before it gives anything, and unregistering waits until the holds
// of that range are gone. So a byte is never moved outside registered memory, nor into memory that its owner has taken back. Cost: some 2
// ns a piece under one mutex (range_memo.h), which is never held while bytes move. Threads: any. Outlives its holds.
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
#include "transfer/opcode.h"
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
  bool by_nic = false;           // the NICs of its process reach it (GPUDirect RDMA), for itself and for peers
};

class RegisteredMemory {
 public:
  struct Region {
    std::uint64_t address = 0;
    std::uint64_t length = 0;
    std::string location;
    std::uint64_t order = 0;  // of registration; no two have the same
    std::uint64_t holds = 0;
    std::uint64_t last_hold = 0;               // the last one that counts in holds, by its number
    std::shared_ptr<const DevicePlace> place;  // null: host memory
  };
  // Consecutive pieces in one region (those of length 0 are in any). Its address, order and place may be read while the hold lives.
  struct Run {
    const Region* region = nullptr;
    std::size_t end = 0;  // the first piece behind it
  };
  // Goes along pieces whose runs these are.
  class Walk {
   public:
    explicit Walk(std::span<const Run> runs) : runs_(runs) {}
    // Of pieces in ascending order. Null where there are no runs.
    [[nodiscard]] const Region* at(std::size_t piece) {
      if (runs_.empty()) return nullptr;
      while (runs_[run_].end <= piece) ++run_;
      return runs_[run_].region;
    }

   private:
    std::span<const Run> runs_;
    std::size_t run_ = 0;
  };

  // Keeps the regions of a transfer registered. Move-only.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept = default;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { release(); }
    // The regions of all pieces. Empty when all are host memory.
    [[nodiscard]] std::span<const Run> with_devices() const { return runs_; }

   private:
    friend class RegisteredMemory;
    void release();
    RegisteredMemory* memory_ = nullptr;
    std::vector<std::shared_ptr<Region>> regions_;  // each once; empty once moved from
    std::vector<Run> runs_;
  };

  // kInvalidParams for a null, empty or overflowing range; kSegmentAlreadyExists for an overlap.
  Status add(std::uint64_t address, std::uint64_t length, std::string_view location, std::shared_ptr<const DevicePlace> place = nullptr);
  // Refuses new holds at once and waits for the old ones. kInvalidParams when no region begins there; kRpcTimeout when a transfer did not
  // end in time.
  Status remove(std::uint64_t address, Deadline deadline);
  // kInvalidParams naming the first piece that is not inside one region. Pieces of length 0 are ignored.
  [[nodiscard]] Result<Hold> hold(std::span<const AddressRange> pieces);
  // Of a transfer's pieces, the ends in this process, or those that are `remote` where that is this process too.
  enum class End : std::uint8_t { kLocal, kRemote };
  [[nodiscard]] Result<Hold> hold(std::span<const Piece> pieces, End end);
  // Of a region of device memory that begins there; else null.
  [[nodiscard]] std::shared_ptr<const DevicePlace> place_of(std::uint64_t address) const;
  // In the order of registration.
  [[nodiscard]] std::vector<Region> regions() const;

 private:
  template <typename RangeOf>
  Result<Hold> hold_each(std::size_t count, RangeOf range_of);
  Region* region_of(const AddressRange& piece) const;

  mutable std::mutex mutex_;  // guards all below, and the regions' holds
  std::condition_variable released_;
  std::map<std::uint64_t, std::shared_ptr<Region>> regions_;  // by address
  std::uint64_t registered_ = 0;
  std::uint64_t held_ = 0;        // holds given or refused so far
  std::uint64_t on_devices_ = 0;  // regions in regions_ that have a place
};

[[nodiscard]] inline MutableBytes bytes_at(const AddressRange& range) {
  return {reinterpret_cast<std::byte*>(range.address),
          static_cast<std::size_t>(range.length)};  // NOLINT(performance-no-int-to-ptr): addresses come as integers
}

}  // namespace moonpool::transfer
