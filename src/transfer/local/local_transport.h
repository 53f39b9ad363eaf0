// The path to segments of this very process: memory to memory, under the same rules as every other path (owner.h).
//
// A write copies chunk by chunk and hashes on the way (copy_and_hash.h); so does a read of whole chunks, while one of a part of a chunk
// hashes the chunk in the segment first. A view is a pin. A write in place holds the pins of its whole batch while its caller fills them.
// Threads: any. The owner must outlive it; views keep what they need of it.
#pragma once

#include "transfer/copy_and_hash.h"
#include "transfer/owner.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

class LocalTransport final : public Transport {
 public:
  // Serves peers whose node id is `self`. `verify` off: reads are not checked against checksums.
  LocalTransport(Owner& owner, const NodeId& self, bool verify = true) : owner_(owner), self_(self), verify_(verify) {}

  [[nodiscard]] std::string_view name() const override { return "local"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return peer.node == self_; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;
  void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) override;
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override;

 private:
  Status write_one(WriteOperation& operation, Stores stores, Deadline deadline);
  Status complete_filled(Owner::Pin pin, WriteOperation& operation, const OpenExtent& extent);
  Status read_one(const ReadOperation& operation, Stores stores, Deadline deadline);

  Owner& owner_;
  const NodeId self_;
  const bool verify_;
};

}  // namespace moonpool::transfer
