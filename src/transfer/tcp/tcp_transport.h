// The path to segments of other processes over TCP: the client side of tcp/extent_service.h.
//
// A batch is one WRITE or READ frame per peer (split only beyond kFrameBytes), on one lane, worked by the caller's thread: scattered memory
// goes out and comes in by scatter/gather, without staging. A large batch is striped: cut into as many runs of operations as there are
// cores and lanes to spare, each with a lane and a thread of its own, since one core copies slower than a network of 100 Gbit/s carries. A
// writer hashes a step (kStep) just before it sends it; a reader verifies a step just after it arrived. A step is one chunk: it stays in
// the second-level cache together with the kernel's copy of it, and while it is hashed the far end still finds work in the socket's
// buffers. Ranges of any alignment are read as the chunks that cover them, the surplus going to scratch. A lane that broke in the middle of
// a frame is dropped by the pool.
//
// One retry: when the peer closes the lane before any of its answer has arrived (it was restarted, or fenced another write on that lane),
// the frame is sent once more over a fresh lane; the owner takes a write that arrives twice as one (extent_service.cpp).
// Threads: any. The pool must outlive it.
#pragma once

#include <atomic>
#include <cstddef>
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
  // Striping: what a stripe has to carry at least to be worth its thread, and the cores of this machine that stand for one (the caller's,
  // its peer's, and those of whoever else works here).
  static constexpr std::uint64_t kStripeBytes = std::uint64_t{8} << 20;
  static constexpr unsigned kCoresPerStripe = 4;
  static constexpr std::size_t kMaxStripes = 4;
  // Stripes of one batch while no other is under way; 1 on up to seven cores.
  [[nodiscard]] static std::size_t stripes_of_this_machine();

  // `verify` off: reads are not checked against checksums.
  explicit TcpTransport(net::LanePool& lanes, bool verify = true, std::size_t stripes = stripes_of_this_machine())
      : lanes_(lanes), verify_(verify), stripes_(stripes) {}

  [[nodiscard]] std::string_view name() const override { return "tcp"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return peer.endpoint.port != 0; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;

 private:
  net::LanePool& lanes_;
  const bool verify_;
  const std::size_t stripes_;
  std::atomic<std::size_t> batches_{0};  // under way
};

}  // namespace moonpool::transfer
