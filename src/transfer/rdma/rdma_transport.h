// The path to segments of other hosts over RDMA: payload one-sided, straight between the caller's pieces and the owner's memory, a few
// words over TCP (extent_batch.h says which, peer_session.h how the bytes go).
//
// A write announces its extents, hashes its source while the answer is under way, writes, and completes: the owner publishes what is
// complete, and nothing before. A read of whole objects says nothing to the owner at all and is held against the root checksum of the
// look-up; everything else, and what does not match, is pinned, read, verified by chunks and unpinned.
//
// One retry: when the session's control connection is lost in the middle (the owner fenced another write of the session, or was restarted),
// what has no outcome yet is done once more over another session. Bytes of the first attempt cannot hurt the second: our queue pairs are
// destroyed before, and the owner admits the same write only after it has destroyed its ends. What still fails for the path's sake is
// kUnavailable, so that TCP takes over.
//
// Device memory goes the same ways: a write's checksums come with it, a read is one-sided, of whole objects, and compared by the caller.
//
// Frames are large: no payload is in them, and each costs its exchanges. Threads: any. The pool must outlive it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "transfer/rdma/extent_batch.h"
#include "transfer/rdma/peer_session.h"
#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

class RdmaTransport final : public Transport {
 public:
  static constexpr std::uint64_t kFrameBytes = std::uint64_t{1} << 30;
  static constexpr std::size_t kFrameEntries = 4096;
  static constexpr std::uint64_t kFrameKeyBytes = std::uint64_t{16} << 20;

  // `verify` off: reads are not checked against checksums.
  explicit RdmaTransport(SessionPool& sessions, bool verify = true)
      : sessions_(sessions), check_(verify ? ReadCheck::kChecksums : ReadCheck::kNone) {}

  [[nodiscard]] std::string_view name() const override { return "rdma"; }
  // Never connects: what the last attempt came to, a look into a table.
  [[nodiscard]] bool reaches(const Peer& peer) const override;
  [[nodiscard]] std::string why_not(const Peer& peer) const override;
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override { read(peer, operations, check_, deadline); }
  // Of device memory in the sessions' MemoryMap.
  [[nodiscard]] bool moves_device_memory(const Peer&) const override { return true; }
  void write_device(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override {
    write(peer, operations, deadline);
  }
  void read_device(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override {
    read(peer, operations, ReadCheck::kByCaller, deadline);
  }

 private:
  void read(const Peer& peer, std::span<ReadOperation> operations, ReadCheck check, Deadline deadline);

  SessionPool& sessions_;
  const ReadCheck check_;
  std::atomic<std::uint64_t> next_pin_{1};
};

}  // namespace moonpool::transfer::rdma
