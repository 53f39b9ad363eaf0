// The store's part of one RDMA session at the owner: which extents its peer has announced to write, which it has pinned to read. No queue
// pair and no socket here: extent_service.h has the methods, tests and fuzzers call this directly.
//
// A peer writes one-sided, so nobody sees its bytes come. It may write what it has announced (begin) until it says that it is done
// (complete) or its session ends. The owner's rules can end it earlier: the abort hook of each announced write has the session fenced,
// which destroys its queue pairs and only then calls end(), where the pins are dropped. So a retirement, a new term and an unmounting wait
// until nothing of that peer can arrive any more. One retired write ends its whole session, with all that it has under way: that is rare,
// and the peer's transport begins anew.
//
// Every number of a request is checked before it is used. Threads: any; one request of a session is served at a time, end() comes from any.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "net/server.h"
#include "transfer/owner.h"
#include "transfer/reader_pins.h"
#include "wire.pb.h"

namespace moonpool::transfer::rdma {

class ExtentSession {
 public:
  static constexpr std::size_t kMaxTickets = 65536;
  // Of one answer to METHOD_RDMA_PIN: those of an extent of 64 GiB.
  static constexpr std::size_t kMaxPinChecksums = std::size_t{1} << 18;
  // How long begin() waits for an earlier attempt at the same write to be stopped.
  static constexpr std::chrono::milliseconds kPatience{500};

  // `fence` has the session fenced by another thread, and does not block. Both may be used until end() has returned.
  ExtentSession(Owner& owner, std::function<void()> fence);

  // An error is of the whole request: kProtocol for one that contradicts itself, kUnavailable for too many tickets or an ended session.
  // An entry that is complete already (kObjectAlreadyExists) has a ticket too: nothing may be written, complete() compares its checksums.
  [[nodiscard]] net::Task<Result<wire::RdmaBeginReply>> begin(const wire::RdmaBeginRequest& request, Deadline deadline);
  // Whether complete() would take the request, before broken rails are destroyed for its sake.
  [[nodiscard]] Status check(const wire::RdmaCompleteRequest& request);
  [[nodiscard]] Result<wire::RdmaCompleteReply> complete(const wire::RdmaCompleteRequest& request);
  [[nodiscard]] Result<wire::ShmPinReply> pin(const wire::ShmPinRequest& request);
  void unpin(const wire::ShmUnpinRequest& request);

  // Nothing of the peer arrives any more: lets everything go.
  void end();

 private:
  struct Writer {
    ExtentRef extent;
    std::optional<Owner::Pin> pin;  // empty: it is complete already
  };
  [[nodiscard]] Status check_locked(const wire::RdmaCompleteRequest& request) const;
  [[nodiscard]] Result<Writer> take(std::uint64_t ticket);

  Owner& owner_;
  const std::function<void()> fence_;
  std::mutex mutex_;  // guards what follows; not held while the owner's methods are called, but for pins
  bool ended_ = false;
  std::uint64_t last_ticket_ = 0;
  std::unordered_map<std::uint64_t, Writer> writers_;  // by ticket
  ReaderPins pins_{kMaxPinChecksums};
};

}  // namespace moonpool::transfer::rdma
