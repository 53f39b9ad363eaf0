// One TCP connection driven by the caller's own thread: non-blocking calls first, then a bounded spin, then poll(2), all within a Deadline.
//
// Says only what happened (IoOutcome); Lane makes a sentence of it. Threads: one at a time; abort() from any. The descriptor lives until
// destruction, so an abort never meets a reused number.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>

#include "base/deadline.h"
#include "net/endpoint.h"
#include "net/io_pieces.h"
#include "net/spin_policy.h"
#include "net/unique_fd.h"

namespace moonpool::net {

struct IoOutcome {
  enum class Kind {
    kDone,
    kDeadline,
    kClosed,   // by the peer; `error` is the errno, 0 for an orderly end
    kFailed,   // any other errno
    kAborted,  // by abort()
    kInput,    // send() only: the peer has sent something before it had everything from us
  };
  Kind kind = Kind::kDone;
  int error = 0;
  [[nodiscard]] bool done() const { return kind == Kind::kDone; }
};

class BlockingStream {
 public:
  BlockingStream() = default;
  ~BlockingStream() = default;

  // May be called again after a failure, for the next address.
  [[nodiscard]] IoOutcome connect(const SocketAddress& address, Deadline deadline);
  // Sends all that is left in the cursor. With `watch_input` it stops with kInput when it would have to wait and bytes have arrived.
  [[nodiscard]] IoOutcome send(IovecCursor& cursor, Deadline deadline, bool watch_input);
  // Fills all that is left in the cursor.
  [[nodiscard]] IoOutcome receive(IovecCursor& cursor, Deadline deadline);
  // Receives until `buffer` holds at least `wanted` bytes (at most ReadAhead::kSize); may take more than that.
  [[nodiscard]] IoOutcome fill(ReadAhead& buffer, std::size_t wanted, Deadline deadline);

  // Whether the connection is open with nothing to read: what an idle lane has to be. Does not block.
  [[nodiscard]] bool quiet() const;
  void abort();
  [[nodiscard]] bool aborted() const { return aborted_.load(std::memory_order_acquire); }

 private:
  enum class Direction { kReceive, kSend };
  template <typename Attempt>
  IoOutcome repeat(Direction direction, const Attempt& attempt, Deadline deadline, bool watch_input);
  template <typename Attempt>
  ssize_t spin(const Attempt& attempt, Deadline::Clock::time_point end) const;
  IoOutcome sleep_until_ready(short events, Deadline deadline, bool watch_input) const;
  [[nodiscard]] IoOutcome outcome_of(int error) const;

  std::mutex mutex_;  // guards the replacement of fd_ in connect() against abort()
  UniqueFd fd_;
  std::atomic<bool> aborted_{false};
  SpinPolicy spin_;
};

}  // namespace moonpool::net
