// The path to segments of other processes of this host and uid: memory to memory.
//
// A write announces its extents in the session's ring, asks the board, copies and hashes chunk by chunk while in cache, and says complete:
// no word with the owner (write_ring.h). A read of a whole object copies and hashes in one go and compares the root checksum that the
// master gave with the look-up: right bytes are right whoever owns the memory by now, and anything else is read again under a pin of the
// owner's. Ranges, and reads that are not verified, are always pinned: one exchange, and a release that nobody waits for. A view is a pin
// and one pass of hashing. A write in place is a write whose groups its caller fills.
//
// Which peers: those whose abstract Unix socket answers and whose process has our uid. A session is made at first use and again after it
// broke; a peer that cannot be reached is asked again after kAskAgain. Threads: any. Sessions outlive this object while views do.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/handshake.h"
#include "transfer/shm/peer_link.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

class ShmTransport final : public Transport {
 public:
  static constexpr std::chrono::milliseconds kConnectTimeout{500};
  static constexpr std::chrono::seconds kAskAgain{10};

  // `verify` off: reads are not checked against checksums.
  explicit ShmTransport(net::Identity self, bool verify = true) : self_(std::move(self)), verify_(verify) {}

  [[nodiscard]] std::string_view name() const override { return "shm"; }
  // Connects at first; later a look into a table.
  [[nodiscard]] bool reaches(const Peer& peer) const override { return link_to(peer) != nullptr; }
  [[nodiscard]] std::string why_not(const Peer& peer) const override;
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;
  void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) override;
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override;

 private:
  struct Known {
    std::shared_ptr<PeerLink> link;  // null: not reached
    std::string reason;
    Deadline ask_again = Deadline::at({});
  };
  std::shared_ptr<PeerLink> link_to(const Peer& peer) const;
  Known connect(const Peer& peer) const;

  const net::Identity self_;
  const bool verify_;
  mutable std::shared_mutex mutex_;  // guards known_
  mutable std::unordered_map<NodeId, Known> known_;
  mutable std::mutex connect_mutex_;  // one connection attempt at a time
};

}  // namespace moonpool::transfer
