// The user's end of RDMA with one peer: queue pairs ("rails", one for each pair of NICs that serves) and the control lane over which they
// were agreed on. Moves blocks between this process's memory and what the peer serves; knows nothing of extents, grants or engines.
//
// A session is on loan to one caller at a time, who posts, polls and waits on its own thread. Blocks are spread over the rails that work: a
// small batch goes over the one nearest to its memory, a large one in stripes over all. What fails on a rail for the path's sake (cable,
// port, NIC) is carried out again over another one; the broken queue pair is destroyed first, so that nothing late of it arrives here, and
// is named to the peer before the peer trusts what was written (broken()). A rail comes back by itself, a while after its failure or when
// its port is up again. Without any rail left: kUnavailable, and TCP may take over. When the deadline passes, the session's queue pairs are
// destroyed before the call returns: no byte of the caller's memory is touched any more; the session is not used again.
//
// Costs, counted in Counters: no copy for registered memory, one work request for each contiguous run in the peer's memory and stripe (or
// as many as its local pieces need), one doorbell and one signalled completion for each rail and batch. Other memory goes through staging
// buffers, registered once.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "net/handshake.h"
#include "net/lane.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"
#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

// What it took so far, of one process. Read for status, and by tests that hold the cost model.
struct Counters {
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> work_requests{0};
  std::atomic<std::uint64_t> doorbells{0};     // calls of QueuePair::post
  std::atomic<std::uint64_t> completions{0};   // taken from completion queues
  std::atomic<std::uint64_t> staged_bytes{0};  // copied, because their memory is not registered
  std::atomic<std::uint64_t> redone{0};        // work requests that were carried out again over another rail
  std::atomic<std::uint64_t> rails_lost{0};
  std::atomic<std::uint64_t> rails_opened{0};
};

using ServedRanges = std::vector<ServedRange>;

struct Block {
  WorkRequest::Operation operation = WorkRequest::Operation::kWrite;
  const ServedRange* range = nullptr;  // the peer's, which holds all of the block
  std::uint64_t remote_address = 0;
  std::span<const MutableBytes> pieces;  // contiguous in the peer's memory; a write only reads them
  // Outcome: kUnavailable (no path left), kStaleIncarnation (the peer refuses these keys), kRpcTimeout, kInternal.
  Status status;
};

class PeerSession {
 public:
  virtual ~PeerSession() = default;
  // For requests of the loan's holder to the peer's server, where the session is bound to this connection.
  [[nodiscard]] virtual net::Lane& control() = 0;
  // What the peer serves under an incarnation; asked once (METHOD_RDMA_KEYS), then remembered until forget(). kStaleIncarnation when
  // nothing.
  [[nodiscard]] virtual Result<std::shared_ptr<const ServedRanges>> served(const Incarnation& incarnation, Deadline deadline) = 0;
  virtual void forget(const Incarnation& incarnation) = 0;
  // Each block gets its own outcome.
  virtual void move(std::span<Block> blocks, Deadline deadline) = 0;
  // Numbers of the rails that broke since the last call. The peer destroys its ends of them before it trusts what was written.
  [[nodiscard]] virtual std::vector<std::uint32_t> take_broken() = 0;
  // Destroys all queue pairs and closes the control lane; the session is not lent again.
  virtual void end() = 0;
};

// Sessions with all peers of a process: opened on demand, bounded per peer (Options::sessions_per_peer; further callers wait), reused.
class SessionPool {
 public:
  class Lease {
   public:
    Lease(Lease&&) noexcept = default;
    Lease& operator=(Lease&&) noexcept = default;
    PeerSession* operator->() const { return session_.get(); }
    PeerSession& operator*() const { return *session_; }

   private:
    friend class SessionPool;
    explicit Lease(std::shared_ptr<PeerSession> session) : session_(std::move(session)) {}
    std::shared_ptr<PeerSession> session_;  // its deleter gives it back
  };

  SessionPool(net::Identity self, std::shared_ptr<MemoryMap> memory, Options options);
  ~SessionPool();

  // kUnavailable or kNotSupported (the peer has no RDMA) with the reason for people, kRpcTimeout, kUnauthenticated.
  [[nodiscard]] Result<Lease> acquire(const net::Endpoint& peer, Deadline deadline);
  // Whether an attempt is worth it: false for a while after the peer said that it has no RDMA, or when no path to it was left.
  [[nodiscard]] bool promising(const net::Endpoint& peer) const;
  [[nodiscard]] std::string why_not(const net::Endpoint& peer) const;
  // Calls in flight end with kCancelled soon.
  void close();
  [[nodiscard]] const Counters& counters() const;
  [[nodiscard]] MemoryMap& memory() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::rdma
