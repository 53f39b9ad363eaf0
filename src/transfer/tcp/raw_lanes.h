// Frames of one transfer on two lanes in turn: while one is answered, the next is on its way.
//
// The first lane comes from the pool that all transfers use, the second from one of its own, always in this order, so transfers that wait
// for lanes do not block each other. A frame whose lane turns out to be closed is sent once more on a fresh one. Threads: one. Lifetime:
// frames and their memory stay as they are until finish() has returned for them, or this object is gone.
#pragma once

#include <array>
#include <optional>
#include <span>

#include "net/lane_pool.h"
#include "transfer/tcp/raw_client.h"

namespace moonpool::transfer {

class RawLanes {
 public:
  RawLanes(net::LanePool& first, net::LanePool& second, const RemoteSegment& peer, Opcode opcode, Deadline deadline)
      : pools_{&first, &second}, peer_(peer), opcode_(opcode), deadline_(deadline) {}

  [[nodiscard]] std::size_t under_way() const { return begun_ - finished_; }
  // At most two may be under way.
  [[nodiscard]] Status begin(std::span<const Piece> frame);
  // Of the oldest.
  [[nodiscard]] Status finish();

 private:
  struct Slot {
    std::optional<net::LanePool::Lease> lane;
    std::span<const Piece> frame;
    Status begun;
  };
  Status once_more(Slot& slot, net::LanePool& pool);

  const std::array<net::LanePool*, 2> pools_;
  const RemoteSegment& peer_;
  const Opcode opcode_;
  const Deadline deadline_;
  std::array<Slot, 2> slots_;
  std::size_t begun_ = 0;
  std::size_t finished_ = 0;
};

}  // namespace moonpool::transfer
