// Connections to instances: one exchange at a time over each, kept alive in a bounded pool between exchanges.
//
// Every step has a deadline; when it passes, or when the request is cancelled, the socket is closed, which the instance sees at once (that
// is how a client's disconnect stops the work there). A connection goes back to the pool only after a complete answer that allows it. A
// pooled connection may have been closed by the instance meanwhile. If it fails before a single byte of an answer, the request is sent once
// more over a fresh one; that is no failure of the instance, but the rest of its pool is dropped as stale too.
// Threads: a pool and its connections belong to one executor. Ownership: a connection is its exchange's, or the pool's when idle.
#pragma once

#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "gateway/cancellation.h"
#include "gateway/http_message.h"
#include "gateway/instance_name.h"
#include "gateway/io.h"
#include "gateway/resolver.h"
#include "gateway/stream.h"
#include "gateway/time_limit.h"
#include "gateway/watchdog.h"

namespace moonpool::gateway {

class UpstreamConnection final : public Abortable {
 public:
  UpstreamConnection(const Executor& executor, const InstanceName& name);

  // With a context also the TLS handshake, in which the instance has to prove that it is `server_name`.
  [[nodiscard]] Task<Status> connect(std::vector<Endpoint> endpoints, TimeLimit limit, TlsContext tls = nullptr,
                                     std::string server_name = {});
  // Sends head and body; both have to live until this returns.
  [[nodiscard]] Task<Status> send(std::string_view head, std::string_view body, TimeLimit limit);
  // Reads once and feeds the parser. kUnavailable when the instance closed the connection in the middle of an answer.
  [[nodiscard]] Task<Status> read(ResponseParser& parser, TimeLimit limit);
  // Feeds the parser what was read and not used yet.
  [[nodiscard]] Status feed(ResponseParser& parser);

  void abort() override;  // closes; the wait in progress ends with kCancelled
  // Also: the instance has neither closed it nor sent what nobody asked for, which would be taken for the next request's answer.
  [[nodiscard]] bool still_quiet() { return !stream_.has_unread(); }
  [[nodiscard]] bool reusable() const { return stream_.is_open() && buffer_.size() == 0; }
  [[nodiscard]] const InstanceName& name() const { return name_; }

  bool reused = false;                          // came from the pool
  bool got_bytes = false;                       // of the current answer
  Deadline::Clock::time_point idle_since = {};  // set by the pool

 private:
  enum class Ended { kNo, kDeadline, kAborted };
  [[nodiscard]] Status failure(std::string_view operation, const boost::system::error_code& error, const TimeLimit& limit) const;
  [[nodiscard]] std::string_view reading(const ResponseParser& parser) const;  // the operation, for a failure
  void close(Ended why);

  const InstanceName name_;
  Stream stream_;
  boost::beast::flat_buffer buffer_;
  Watchdog watchdog_;
  Ended ended_ = Ended::kNo;
};

struct UpstreamRequest {
  std::string head;  // whole, as upstream_request_head() writes it
  std::string_view body;
};

// What a hop allows its exchange.
struct ExchangeDeadlines {
  Patience connect;
  TimeLimit header;  // until the answer's head is there
};

// A request that was sent and whose answer's head has arrived; the rest is read by its user.
struct Exchange {
  std::unique_ptr<UpstreamConnection> connection;
  ResponseParser answer;
};

class UpstreamPool {
 public:
  UpstreamPool(const Executor& executor, Resolver& resolver, std::chrono::nanoseconds idle_at_most, std::size_t connections_at_most,
               const TlsKeeper& tls);

  [[nodiscard]] Task<Result<std::unique_ptr<Exchange>>> open(const InstanceName& name, const UpstreamRequest& request,
                                                             ExchangeDeadlines deadlines, Cancellation& cancellation);
  // Takes the connection back when its answer was complete and both sides keep it alive; closes it otherwise.
  void release(std::unique_ptr<Exchange> exchange);
  // Holds for what is idle now, too.
  void set_limits(std::chrono::nanoseconds idle_at_most, std::size_t connections_at_most);
  // Closes what was idle for too long; called about once a second.
  void sweep();
  void clear() { idle_.clear(); }
  [[nodiscard]] std::size_t idle_connections() const;

 private:
  using Connections = std::vector<std::unique_ptr<UpstreamConnection>>;

  [[nodiscard]] std::unique_ptr<UpstreamConnection> take_idle(const InstanceName& name);
  [[nodiscard]] Task<Result<std::unique_ptr<UpstreamConnection>>> connect(const InstanceName& name, TimeLimit limit,
                                                                          Cancellation& cancellation);
  [[nodiscard]] static Task<Result<std::unique_ptr<Exchange>>> converse(std::unique_ptr<UpstreamConnection>& connection,
                                                                        const UpstreamRequest& request, TimeLimit limit,
                                                                        Cancellation& cancellation);

  Executor executor_;
  Resolver& resolver_;
  const TlsKeeper& tls_;
  std::chrono::nanoseconds idle_at_most_;
  std::size_t connections_at_most_;
  std::unordered_map<std::string, Connections> idle_;  // by name, the one used last at the back
};

// Reads the rest of an answer into its parser's body. kBufferOverflow beyond `bytes_at_most`; what was read stays in the body.
[[nodiscard]] Task<Status> read_whole(Exchange& exchange, std::size_t bytes_at_most, Patience between_bytes, TimeLimit limit,
                                      Cancellation& cancellation);

}  // namespace moonpool::gateway
