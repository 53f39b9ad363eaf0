// RDMA of a transfer engine: its registered memory on the NICs, for itself and for peers, and transfers that are one-sided.
//
// Pieces that are contiguous in the peer's memory become one block, and one work request where they are contiguous here as well (a batch of
// 128 neighbours of 64 KiB is one write). A one-sided write bypasses the peer's CPU; its completion comes when the bytes are in the peer's
// memory, and only then does move() return, so a notification that is sent afterwards cannot overtake them. Rails that broke during a write
// are named to the peer, which destroys its ends before move() returns: nothing late of them arrives over what is written next.
//
// Memory of devices that the NICs reach (GPUDirect RDMA) is moved as the host's is. Device memory that was not added must not be in a
// piece.
//
// Whatever fails for the path's sake, and memory that the peer does not (any more) serve by RDMA, is kUnavailable: over TCP the peer's own
// CPU checks the request and says what is wrong. Registered memory costs a registration for each NIC and use (ours, and the peers'), so
// twice its size of locked memory. Threads: any. Ownership: the engine's, outlives its server.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "base/deadline.h"
#include "net/server.h"
#include "transfer/opcode.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/options.h"
#include "transfer/rdma/peer_session.h"
#include "transfer/rdma/session_service.h"
#include "transfer/segment_directory.h"

namespace moonpool::transfer::rdma {

class RawPath {
 public:
  // `incarnation` is the engine's, under which its memory is served.
  RawPath(std::shared_ptr<Devices> devices, const net::Identity& self, const Incarnation& incarnation, const Options& options);
  ~RawPath();

  // Before the server's start.
  void serve(net::Server& server);
  // All or nothing. `device`: it is a device's memory. Errors as MemoryMap's.
  Status add(MutableBytes memory, const DmaBuf* device = nullptr);
  // Peers' access ends before it returns, whatever they do; it waits for nobody. Harmless for memory that is not registered.
  void revoke(const void* address);
  // The rest of it: our own transfers are waited for.
  Status remove(const void* address, Deadline deadline);

  // Whether move() is worth an attempt; if not, why.
  [[nodiscard]] bool promising(const net::Endpoint& peer) const { return sessions_.promising(peer); }
  [[nodiscard]] std::string why_not(const net::Endpoint& peer) const { return sessions_.why_not(peer); }
  // After an error any part of the pieces may have been moved; none moves any more.
  [[nodiscard]] Status move(const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline);

  // Transfers under way end with kCancelled soon.
  void cancel() { sessions_.close(); }
  // Peers' queue pairs are gone when it returns.
  void stop();
  [[nodiscard]] const Counters& counters() const { return sessions_.counters(); }
  [[nodiscard]] Devices& devices() const { return memory_->devices(); }

 private:
  [[nodiscard]] Status attempt(PeerSession& session, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces,
                               Deadline deadline);
  void forget_other_processes_keys(PeerSession& session, const Incarnation& incarnation);
  [[nodiscard]] Status name_broken(PeerSession& session, Deadline deadline);
  net::Task<net::Reply> complete(net::Request& request);

  const Incarnation incarnation_;
  const std::shared_ptr<MemoryMap> memory_;
  SessionService service_;
  SessionPool sessions_;
  std::mutex mutex_;                       // guards told_by_
  std::map<Incarnation, NodeId> told_by_;  // which process told us the keys of an incarnation
};

}  // namespace moonpool::transfer::rdma
