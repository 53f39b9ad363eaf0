// The user's side of one session with an owner on this host: its connection, its ring, and the segments mapped so far.
//
// The connection is the session: it is closed by the destructor alone, and whoever copies from or into the owner's memory, or looks at a
// view of it, holds a reference to this object. So the owner never sees an end while this process still touches its memory. An exchange is
// one datagram each way, on the caller's thread, spinning for a learned time first (net/spin_policy.h); one at a time. Threads: any.
// Errors: kUnavailable (the owner has gone), kRpcTimeout, or what the owner answers.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/handshake_steps.h"
#include "net/spin_policy.h"
#include "transfer/shm/board.h"
#include "transfer/shm/shared_memory.h"
#include "transfer/shm/unix_socket.h"
#include "transfer/shm/write_ring.h"
#include "transfer/transport.h"
#include "wire.pb.h"

namespace moonpool::transfer {

// A mapped segment of the owner. Stays mapped as long as somebody holds it, whatever becomes of the link and the owner; its bytes belong to
// nobody without a pin or an announced write, which hold the link.
class MappedSegment {
 public:
  MappedSegment(SharedMemory memory, BoardPlace place);
  [[nodiscard]] MutableBytes bytes() const { return memory_.bytes(); }
  [[nodiscard]] const BoardPlace& place() const { return place_; }
  // Fills the page table for this range, at its first use: a fault per page would cost as much as copying it.
  void prepare(std::uint64_t offset, std::uint64_t length);

 private:
  static constexpr std::uint64_t kGranule = std::uint64_t{2} << 20;

  const SharedMemory memory_;
  const BoardPlace place_;
  std::unique_ptr<std::atomic<bool>[]> prepared_;  // by granule
};

// Extents pinned together; released by the destructor. Keeps the link, and the memory that they lie in.
class PeerLink;
class PinSet {
 public:
  PinSet(std::shared_ptr<PeerLink> link, std::shared_ptr<MappedSegment> segment, std::vector<std::uint64_t> pins)
      : link_(std::move(link)), segment_(std::move(segment)), pins_(std::move(pins)) {}
  PinSet(const PinSet&) = delete;
  PinSet& operator=(const PinSet&) = delete;
  ~PinSet();

 private:
  const std::shared_ptr<PeerLink> link_;
  const std::shared_ptr<MappedSegment> segment_;
  const std::vector<std::uint64_t> pins_;
};

class PeerLink : public std::enable_shared_from_this<PeerLink> {
 public:
  // Why not is a reason for people in the status's text: "other uid", "no common Unix socket namespace".
  [[nodiscard]] static Result<std::shared_ptr<PeerLink>> connect(const NodeId& peer, const net::Identity& self, Deadline deadline);
  ~PeerLink() = default;

  // Does not block: one system call.
  [[nodiscard]] bool alive();
  [[nodiscard]] WriteRing& ring() { return *ring_; }
  [[nodiscard]] BoardView board() const { return BoardView(reinterpret_cast<const BoardMemory*>(board_memory_.bytes().data())); }
  // The segment, mapped at its first use; those that have closed are let go on that occasion. kStaleIncarnation, kNotSupported (its memory
  // cannot be shared).
  [[nodiscard]] Result<std::shared_ptr<MappedSegment>> segment(const Incarnation& incarnation, Deadline deadline);

  struct PinWanted {
    ExtentRef extent;
    std::uint64_t first_chunk = 0;
    std::uint64_t chunk_count = 0;  // whose checksums are wanted
  };
  struct PinOutcome {
    Status status;
    std::uint64_t pin = 0;
    std::vector<std::uint64_t> checksums;
  };
  // One exchange per some hundred entries. Pins with an ok status are the caller's to release (PinSet).
  [[nodiscard]] std::vector<PinOutcome> pin(std::span<const PinWanted> wanted, Deadline deadline);
  void unpin(std::span<const std::uint64_t> pins);
  // Makes the owner look at the ring: waits until it has, or only tells it.
  [[nodiscard]] Status harvest(Deadline deadline);
  void nudge();
  // So much was written into the ring and the segments: tells the owner now and then, so that the ring does not run full and pages are
  // touched ahead of the writers.
  void note_written(std::uint64_t extents, std::uint64_t bytes);

 private:
  explicit PeerLink(net::UniqueFd fd) : fd_(std::move(fd)), buffer_(kMaxDatagram) {}
  Status shake_hands(const NodeId& peer, const net::Identity& self, Deadline deadline);
  Status open(Deadline deadline);
  Status exchange(wire::Method method, const google::protobuf::MessageLite* request, google::protobuf::MessageLite* reply,
                  std::span<net::UniqueFd> descriptors, Deadline deadline);
  Status send_locked(const std::string& frame, Deadline deadline);
  Result<Datagram> receive_locked(Deadline deadline);
  void pin_some(std::span<const PinWanted> wanted, std::span<PinOutcome> outcomes, Deadline deadline);
  Status ended() const;

  const net::UniqueFd fd_;
  const pid_t process_ = ::getpid();
  SharedMemory ring_memory_;
  SharedMemory board_memory_;
  std::unique_ptr<WriteRing> ring_;
  std::atomic<bool> ended_{false};
  std::atomic<std::uint64_t> next_pin_{1};
  std::atomic<std::uint64_t> unseen_extents_{0};  // by the owner, since the last nudge
  std::atomic<std::uint64_t> unseen_bytes_{0};

  std::timed_mutex exchange_mutex_;  // guards what follows, and the order of exchanges
  std::vector<std::byte> buffer_;
  net::SpinPolicy spin_;
  std::uint64_t last_request_ = 0;

  std::mutex unsent_mutex_;  // guards unsent_pins_: releases that did not fit into the socket
  std::vector<std::uint64_t> unsent_pins_;

  std::shared_mutex segments_mutex_;  // guards segments_
  std::unordered_map<Incarnation, std::shared_ptr<MappedSegment>> segments_;
};

}  // namespace moonpool::transfer
