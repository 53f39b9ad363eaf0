// Copies between two places in device memory that one device of this process reaches: its own, a peer device's, or another process's that
// is mapped here (ipc_mappings.h).
//
// Pieces of at least kLargeCopy go to the copy engines, one asynchronous copy each; all others are one launch of the copier's kernel.
// Without access of the device to the other's memory the driver copies each piece (by way of the host, if it must).
// Threads: one. What is in flight ends before the destructor does.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "transfer/cuda/runtime.h"
#include "transfer/opcode.h"

namespace moonpool::transfer::cuda {

// Waits until all before the event's record() has ended. After the deadline it goes on waiting and says kRpcTimeout when it is over.
[[nodiscard]] Status wait_for(Driver& driver, int device, Event event, Deadline deadline);

// Streams with an event each, kept for the next copy. Threads: any. Lifetime: what was taken is given back before its end.
class CopyStreams {
 public:
  struct Pair {
    Stream stream{};
    Event event{};
  };
  // The driver is the same in all calls.
  [[nodiscard]] Result<Pair> take(Driver& driver, int device);
  void give_back(int device, Pair pair);
  // In place of give_back(), after an error of its work.
  static void drop(Driver& driver, int device, Pair pair);
  ~CopyStreams();

 private:
  std::mutex mutex_;  // guards what follows
  Driver* driver_ = nullptr;
  std::multimap<int, Pair> idle_;
};

class DirectCopy {
 public:
  static constexpr std::uint64_t kLargeCopy = std::uint64_t{1} << 20;

  DirectCopy(Runtime& runtime, CopyStreams& streams, int device) : runtime_(runtime), streams_(streams), device_(device) {}
  ~DirectCopy();
  DirectCopy(const DirectCopy&) = delete;
  DirectCopy& operator=(const DirectCopy&) = delete;

  // Addresses on the device (local) and in one other place (remote).
  struct Batch {
    std::span<const Piece> pieces;
    std::uint64_t offset = 0;  // what to add to the remote ones to reach them
  };
  // Once. `reachable`: kernels of the device may touch the other places. The pieces need not stay.
  [[nodiscard]] Status start(Opcode opcode, std::span<const Batch> batches, Stream after, bool reachable);
  [[nodiscard]] Status wait(Deadline deadline);

 private:
  Status start_large(Opcode opcode, std::span<const Batch> batches, std::uint64_t least, Stream after);
  Status start_small(Opcode opcode, std::span<const Batch> batches, std::size_t count, std::uint64_t least, Stream after);

  Runtime& runtime_;
  CopyStreams& streams_;
  const int device_;
  std::vector<AddressRange> job_pieces_;
  std::vector<CopyJob> jobs_;
  std::optional<CopyStreams::Pair> stream_;  // in use
  std::unique_ptr<Copier::Ticket> ticket_;
};

}  // namespace moonpool::transfer::cuda
