// What one session of a peer has pinned to read it (METHOD_SHM_PIN, METHOD_RDMA_PIN): extents by the numbers that the peer gave them, until
// it unpins them or its session ends.
//
// Every number of a request is checked before it is used. Threads: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_map>

#include "transfer/owner.h"
#include "wire.pb.h"

namespace moonpool::transfer {

class ReaderPins {
 public:
  static constexpr std::size_t kMaxPins = std::size_t{1} << 20;

  // `most_checksums`: of one answer.
  explicit ReaderPins(std::size_t most_checksums) : most_checksums_(most_checksums) {}

  // Each entry has its own outcome in the reply: kStaleIncarnation, kReplicaGone, kInvalidRead, kNotSupported (too many checksums for one
  // answer). kProtocol for a request that contradicts itself, kUnavailable for too many pins: then nothing is pinned but what was before,
  // or what came before the contradiction. `abort`, if given, is called when a segment pinned here closes (Owner::begin_read).
  [[nodiscard]] Status pin(Owner& owner, const wire::ShmPinRequest& request, wire::ShmPinReply& reply,
                           const std::function<void()>& abort = {});
  void unpin(const wire::ShmUnpinRequest& request);
  void clear() { pins_.clear(); }
  [[nodiscard]] std::size_t size() const { return pins_.size(); }

 private:
  const std::size_t most_checksums_;
  std::unordered_map<std::uint64_t, Owner::Pin> pins_;
};

}  // namespace moonpool::transfer
