// The client side of tcp/raw_service.h: moves pieces of this process's memory from or to one peer's registered memory.
//
// Pieces are cut and grouped into frames of at most kRawFrameBytes, one after the other on one lane, by scatter/gather from the caller's
// thread. Both sides' addresses are checked by the callers before. Threads: any.
#pragma once

#include "net/lane_pool.h"
#include "transfer/segment_directory.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer {

inline constexpr std::uint64_t kRawFrameBytes = std::uint64_t{64} << 20;
inline constexpr std::size_t kRawFramePieces = 16384;

// One frame in two steps, so that frames may be under way on several lanes: the request with a write's payload, then the answer with a
// read's. `answered`: the peer has said something, so trying again would change nothing.
struct RawOutcome {
  Status status;
  bool answered = false;
};
[[nodiscard]] Status begin_raw(net::Lane& lane, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> frame, Deadline deadline);
[[nodiscard]] RawOutcome finish_raw(net::Lane& lane, Opcode opcode, std::span<const Piece> frame, Deadline deadline);

// After an error any part of the pieces may have been moved.
[[nodiscard]] Status move_raw(net::LanePool& lanes, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces,
                              Deadline deadline);

}  // namespace moonpool::transfer
