// A ZeroMQ connection to one instance: connects, greets, sends, receives, each within a deadline (zmtp.h has the protocol).
//
// A PING of the peer is answered here. A receive that runs out of time leaves the connection as it is, so that its user can send a PING and
// go on waiting; all other failures close it. Threads: its executor's. Ownership: its user's coroutine.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/cancellation.h"
#include "gateway/io.h"
#include "gateway/kv_events/zmtp.h"
#include "gateway/time_limit.h"
#include "gateway/watchdog.h"

namespace moonpool::gateway {

class ZmtpConnection final : public Abortable {
 public:
  // `name` is for errors.
  ZmtpConnection(const Executor& executor, std::string name);

  // `socket_type` is ours, the peer has to be one of `peers`.
  [[nodiscard]] Task<Status> open(std::vector<Endpoint> endpoints, std::string socket_type, std::vector<std::string> peers,
                                  TimeLimit limit);
  [[nodiscard]] Task<Status> send(std::string bytes, TimeLimit limit);
  // The next message. kRpcTimeout: none came, and there may be one later. A PONG counts as heard() and is no message.
  [[nodiscard]] Task<Result<ZmtpMessage>> receive(TimeLimit limit);
  // When the peer last said anything.
  [[nodiscard]] Deadline::Clock::time_point heard() const { return heard_; }

  void abort() override;  // closes; the wait in progress ends with kCancelled

 private:
  [[nodiscard]] Task<Result<ZmtpReader::Item>> item(TimeLimit limit);
  [[nodiscard]] Status failure(std::string_view operation, const boost::system::error_code& error, const TimeLimit& limit) const;
  void close();

  const std::string name_;
  Socket socket_;
  Watchdog watchdog_;
  ZmtpReader reader_;
  std::string buffer_;
  bool expired_ = false;  // the wait that just ended took too long
  bool aborted_ = false;
  Deadline::Clock::time_point heard_ = Deadline::Clock::now();
};

}  // namespace moonpool::gateway
