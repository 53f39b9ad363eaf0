// Copies between two places in device memory that one device of this process reaches: its own, a peer device's, or another process's that
// is mapped here (ipc_mappings.h).
//
// Pieces of at least kLargeCopy go to the copy engines, one asynchronous copy each; all others to the copier's kernel, kLaunchPieces a
// launch, one launch at a time (two would share the multiprocessors that copies may take): the device copies while the host lists the next
// ones, in memory that stays small enough to be used again. 65536 pieces in one launch took the host twice as long, most of it for fresh
// pages. Without access of the device to the other's memory the driver copies each piece (by way of the host, if it must). Threads: one.
// What is in flight ends before the destructor does.
#pragma once

#include <array>
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
  static constexpr std::size_t kLaunchPieces = 2048;

  DirectCopy(Runtime& runtime, CopyStreams& streams, int device) : runtime_(runtime), streams_(streams), device_(device) {}
  ~DirectCopy();
  DirectCopy(const DirectCopy&) = delete;
  DirectCopy& operator=(const DirectCopy&) = delete;

  // Addresses on the device (local) and in one other place (remote).
  struct Batch {
    std::span<const Piece> pieces;
    std::uint64_t offset = 0;  // what to add to the remote ones to reach them
  };
  // Once. `reachable`: kernels of the device may touch the other places. Waits for the device only where there are more pieces than one
  // launch has, and says kRpcTimeout when that was too late. The pieces need not stay.
  [[nodiscard]] Status start(Opcode opcode, std::span<const Batch> batches, Stream after, bool reachable, Deadline deadline);
  [[nodiscard]] Status wait(Deadline deadline);

 private:
  Status start_large(Opcode opcode, std::span<const Batch> batches, std::uint64_t least, Stream after);
  // What a launch is told, and the launch once it is queued.
  struct List {
    std::vector<AddressRange> pieces;
    std::vector<CopyJob> jobs;
    std::unique_ptr<Copier::Ticket> ticket;
    void clear(std::size_t room);
    void add(int device, std::uint64_t local, std::uint64_t remote, std::uint64_t length);
  };
  Status start_small(Opcode opcode, std::span<const Batch> batches, std::size_t count, std::uint64_t least, Stream after,
                     Deadline deadline);
  Status submit(Opcode opcode, std::size_t list, Stream after, Deadline deadline);
  Status wait(List& list, Deadline deadline);
  void put_away(std::optional<CopyStreams::Pair>& pair, const Status& status);

  Runtime& runtime_;
  CopyStreams& streams_;
  const int device_;
  std::optional<CopyStreams::Pair> stream_;  // of large copies, in use
  std::optional<CopyStreams::Pair> idle_;    // what launches but the first come after
  std::array<List, 2> lists_;
};

}  // namespace moonpool::transfer::cuda
