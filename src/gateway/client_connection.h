// A client's connection: reads requests, writes answers, and notices at any time that the client went away.
//
// One read is always pending, also while an answer is being made: it is what sees the client's close (or the next pipelined request, which
// waits in the buffer, bounded). A client that shuts down its sending side counts as gone. Every wait has a deadline.
// Threads: its executor's. Ownership: shared between the session's coroutine and the pending read.
#pragma once

#include <array>
#include <boost/beast/core/flat_buffer.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "gateway/cancellation.h"
#include "gateway/http_message.h"
#include "gateway/io.h"
#include "gateway/settings.h"
#include "gateway/stream.h"
#include "gateway/watchdog.h"

namespace moonpool::gateway {

class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  ClientConnection(Socket socket, const Timeouts& timeouts);
  // From the next wait on. They have to outlive the connection.
  void set_timeouts(const Timeouts& timeouts) { timeouts_ = &timeouts; }

  // What came of waiting for a request: one (status 0, got true), the end of the connection, or what is wrong with the bytes.
  struct Received {
    bool got = false;
    unsigned error_status = 0;  // to answer with before closing; 0: just close
    std::string error;
  };
  // `wants_body` is asked once the head is there and the body is not: false ends the reading, and nothing of the body is taken.
  [[nodiscard]] Task<Received> read_request(RequestParser& request, const std::function<bool()>& wants_body);

  // The TLS handshake, before anything else. False when there was none (the log says why): the connection is closed.
  [[nodiscard]] Task<bool> secure(TlsContext context);

  // False when the client is gone or takes nothing within its deadline.
  [[nodiscard]] Task<bool> write(std::string_view head, std::string_view body = {}, std::string_view tail = {});

  // Until unwatch(), the client's close cancels `work`.
  void watch(Cancellation& work);
  void unwatch() { work_ = nullptr; }

  // Closes so that what was written last still arrives, though the client may be sending: ours is closed first, then what comes is
  // thrown away for a moment.
  [[nodiscard]] Task<void> close_gently();
  void close();
  // The gateway stops: what is done for the client ends now, as if the client had left, though it can still be told so.
  void interrupt();
  [[nodiscard]] bool interrupted() const { return interrupted_; }
  // Closes unless a request is being read or answered.
  void close_if_idle();
  [[nodiscard]] std::string peer() const;

 private:
  void start_read(std::size_t bytes);
  void on_read(const boost::system::error_code& error, std::size_t bytes);
  // True when bytes arrived, false at the end of the connection or of the time.
  [[nodiscard]] Task<bool> wait_for_bytes(Deadline deadline, std::size_t bytes);

  const Timeouts* timeouts_;
  Stream stream_;
  std::unique_ptr<char[]> incoming_;  // the pending read's alone; never filled beforehand, so what no read reached takes no memory
  std::size_t incoming_bytes_ = 0;
  boost::beast::flat_buffer buffer_;  // received, not parsed yet
  Timer arrival_;                     // the reader's alarm clock, rung early by on_read
  Watchdog write_watchdog_;
  Cancellation* work_ = nullptr;
  bool read_pending_ = false;
  bool ended_ = false;
  bool interrupted_ = false;
  bool idle_ = false;  // between two requests, nothing received of the next
};

}  // namespace moonpool::gateway
