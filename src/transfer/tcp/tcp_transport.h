// The path to segments of other processes over TCP: the client side of tcp/extent_service.h.
//
// A batch is one WRITE or READ frame per peer (split only beyond kFrameBytes), on one lane, worked by the caller's thread: scattered memory
// goes out and comes in by scatter/gather, without staging. A writer hashes a step (kStep) just before it sends it; a reader verifies a
// step just after it arrived. A step is one chunk: it stays in the second-level cache together with the kernel's copy of it, and while it
// is hashed the far end still finds work in the socket's buffers. Ranges of any alignment are read as the chunks that cover them, the
// surplus going to scratch. A lane that broke in the middle of a frame is dropped by the pool.
//
// One retry: when the peer closes the lane before any of its answer has arrived (it was restarted, or fenced another write on that lane),
// the frame is sent once more over a fresh lane; the owner takes a write that arrives twice as one (extent_service.cpp).
// Threads: any. The pool must outlive it.
#pragma once

#include <cstdint>
#include <span>

#include "net/lane_pool.h"
#include "transfer/checksum.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

class TcpTransport final : public Transport {
 public:
  static constexpr std::uint64_t kFrameBytes = std::uint64_t{128} << 20;
  static constexpr std::size_t kFrameEntries = 4096;
  static constexpr std::uint64_t kFrameKeyBytes = std::uint64_t{16} << 20;
  static constexpr std::uint64_t kStep = kChecksumChunk;

  // `verify` off: reads are not checked against checksums.
  explicit TcpTransport(net::LanePool& lanes, bool verify = true) : lanes_(lanes), verify_(verify) {}

  [[nodiscard]] std::string_view name() const override { return "tcp"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return peer.endpoint.port != 0; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;

 private:
  net::LanePool& lanes_;
  const bool verify_;
};

}  // namespace moonpool::transfer
