// The owner's side of one session with a process that shares this owner's memory: what it has announced in its ring, what it has pinned,
// and the answers to its frames. No socket here: owner_server.h has the thread and the socket, tests and fuzzers call this directly.
//
// Nothing in the ring or in a frame is trusted beyond what its peer could do anyway (it holds the memory): every number is read once and
// checked before it is used, and what the owner's rules refuse does not enter the catalogue.
// Threads: on_frame(), end() on the server's thread; harvest() from any. A pin dies with the session, so does an announcement whose process
// has ended. Must not outlive the owner; the board is kept.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "net/handshake_steps.h"
#include "transfer/owner.h"
#include "transfer/reader_pins.h"
#include "transfer/shm/board.h"
#include "transfer/shm/shared_memory.h"
#include "transfer/shm/unix_socket.h"
#include "transfer/shm/write_ring.h"

namespace moonpool::transfer {

class OwnerSession {
 public:
  // `self` outlives it.
  OwnerSession(Owner& owner, std::shared_ptr<Board> board, const net::Identity& self);
  ~OwnerSession();  // as end()

  struct Answer {
    std::string frame;             // empty: nothing is sent
    std::vector<int> descriptors;  // borrowed, until the frame has been sent
    std::shared_ptr<void> keep;    // keeps them open
    bool close = false;            // after it
  };
  [[nodiscard]] Answer on_frame(std::span<const std::byte> datagram);
  // True once the handshake has succeeded.
  [[nodiscard]] bool known() const { return handshake_.done(); }
  [[nodiscard]] const NodeId& peer_node() const { return handshake_.peer_node(); }

  // Takes what is new in the ring into the owner's catalogue.
  void harvest();
  // A write of its peer's is announced and not settled: whoever closes the connection like this did not mean to.
  [[nodiscard]] bool writing();
  // The peer's process has ended, or has said that its copies have: what was complete is kept, all else is let go.
  void end();

 private:
  struct Ring {
    SharedMemory shared;
    [[nodiscard]] RingMemory& memory() const { return *reinterpret_cast<RingMemory*>(shared.bytes().data()); }
  };

  Answer serve(const net::FrameHeader& header, std::span<const std::byte> message);
  Answer open(const net::FrameHeader& header);
  Answer segment(const net::FrameHeader& header, std::span<const std::byte> message);
  Answer pin(const net::FrameHeader& header, std::span<const std::byte> message);
  void unpin(std::span<const std::byte> message);
  void look_at(std::uint64_t number);
  void free_slot(std::uint64_t number);
  bool admit(std::uint64_t number);
  void publish(std::uint64_t number);

  Owner& owner_;
  const std::shared_ptr<Board> board_;
  net::ServerHandshake handshake_;
  ReaderPins pins_;  // the server thread's own

  std::mutex mutex_;  // guards what follows; held while the owner's methods are called
  std::shared_ptr<Ring> ring_;
  std::uint64_t tail_ = 0;  // the oldest slot that was not freed here
  // Freed out of turn, from tail_ on. Not read from the ring: a slot that is freed may be announced anew at once.
  std::bitset<kRingSlots> freed_;
  std::array<std::optional<Owner::Pin>, kRingSlots> writers_;  // by slot: what is admitted
  bool ended_ = false;
};

}  // namespace moonpool::transfer
