// One thread of a Server with its io_context, the connections that live on it, and the clock that drops those which stall.
//
// Threads: everything here belongs to the loop's own thread, but context() for posting. The context is destroyed on that thread too, so
// that the frames of handlers that still wait end where they ran.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <unordered_set>

#include "base/deadline.h"
#include "net/spin_policy.h"

namespace moonpool::net {

class Connection;

// A caller that spins comes back within some ten microseconds when it comes back at once, and within some fifty when it copies a small
// put's bytes in between. A longer look would keep the core from whoever the caller turns to next.
inline constexpr std::chrono::microseconds kServerSpin{60};

class ServerLoop {
 public:
  // `tick`: how often deadlines are looked at; a connection is dropped at most this much late.
  explicit ServerLoop(std::chrono::milliseconds tick);

  [[nodiscard]] boost::asio::io_context& context() { return *context_; }
  // Until context().stop().
  void run();
  // On the loop's thread, after every loop of the server has left run().
  void destroy();

  void add(Connection* connection) { connections_.insert(connection); }
  void remove(Connection* connection) { connections_.erase(connection); }
  // For bytes that nobody wants.
  [[nodiscard]] std::span<std::byte> scratch() { return scratch_; }

 private:
  void arm_tick();
  void run_next();

  const std::chrono::milliseconds tick_;
  SpinPolicy spin_{kServerSpin};
  std::unordered_set<Connection*> connections_;
  std::array<std::byte, 64 * 1024> scratch_;
  std::unique_ptr<boost::asio::io_context> context_;  // before the timer, after what its frames use when they end
  std::optional<boost::asio::steady_timer> timer_;
};

}  // namespace moonpool::net
