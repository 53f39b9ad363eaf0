// One frame of RdmaTransport over one session: what is said to the owner, and when, around the one-sided work.
//
// Each function sets the status of every operation that has an outcome of its own; the returned Status is of the path, and those without an
// outcome have met it. After an error of the path the session is ended: its queue pairs are gone, so no byte of the caller's memory is
// touched any more, and what it had announced or pinned is released by the owner.
//
// Costs: a write takes two exchanges, whatever the number of extents, and hashes while the first is under way. A read of whole objects
// takes none; one that has to pin takes two. Threads: the caller's, with the session on loan to it.
#pragma once

#include <cstdint>
#include <span>

#include "transfer/batch_parts.h"
#include "transfer/rdma/peer_session.h"
#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

[[nodiscard]] Status write_batch(PeerSession& session, std::span<Outgoing<WriteOperation>> frame, Deadline deadline);

enum class ReadCheck : std::uint8_t {
  kChecksums,
  kNone,      // whatever lies there under a pin
  kByCaller,  // whatever arrives of whole extents, without a word to the owner: what cannot be had so is kUnavailable
};

struct ReadRules {
  ReadCheck check = ReadCheck::kChecksums;
  std::uint64_t first_pin = 1;  // of as many numbers as the frame has operations, never used in this session before
};
[[nodiscard]] Status read_batch(PeerSession& session, std::span<Outgoing<ReadOperation>> frame, const ReadRules& rules, Deadline deadline);

// An exchange over the session's control lane. kUnavailable when that is lost already (the owner has fenced the session, or has ended).
[[nodiscard]] Status call(PeerSession& session, wire::Method method, const google::protobuf::MessageLite& request,
                          google::protobuf::MessageLite& reply, Deadline deadline);

// The range of the peer's memory that holds an extent, by what the peer serves under its incarnation; null when none holds all of it. A
// segment of the store is one range, whose start is the segment's.
[[nodiscard]] const ServedRange* range_of(const ServedRanges& ranges, const ExtentRef& extent);

}  // namespace moonpool::transfer::rdma
