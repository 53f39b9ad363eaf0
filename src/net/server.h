// The one listening port of a process: accepts lanes, shakes hands, and runs the handler of each request's method.
//
// A loop whose requests come densely looks for the next one for a moment before it sleeps (spin_policy.h).
//
// Asio with C++20 coroutines; `threads` threads, each with its own io_context; a connection lives on one of them, and a handler runs on the
// thread that read its request (so a handler must not block: it waits with co_await). One request at a time per connection, answered in
// order. The payload of a request is received by the handler, straight into place. A peer that stalls in the middle of a frame is dropped
// after `stall_timeout`; a stranger's bytes close its connection with one log line and nothing else.
//
// Threads: handle() and on_closed() before start(); the rest from any, but stop() never from a handler (it joins the threads).
// Lifetime: stop() (and the destructor) closes all connections and joins the threads; no handler runs afterwards, and those that still wait
// end by the destruction of their frames. What handlers refer to must outlive the server.
#pragma once

#include <boost/asio/awaitable.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "net/endpoint.h"
#include "net/handshake.h"
#include "net/lane.h"
#include "wire.pb.h"

namespace moonpool::net {

template <typename T>
using Task = boost::asio::awaitable<T>;

// One accepted connection. Handlers may keep the shared_ptr to fence its writer later.
class Session {
 public:
  virtual ~Session() = default;
  [[nodiscard]] virtual const NodeId& peer_node() const = 0;          // as it said in the handshake
  [[nodiscard]] virtual const std::string& peer_address() const = 0;  // "1.2.3.4:5678", for people
  // Closes the connection: receive() in flight fails soon. Any thread.
  virtual void abort() = 0;
};

// A request being served. Valid until its handler returns.
class Request {
 public:
  virtual ~Request() = default;
  [[nodiscard]] virtual wire::Method method() const = 0;
  [[nodiscard]] virtual ConstBytes message() const = 0;
  [[nodiscard]] virtual std::uint64_t payload_length() const = 0;
  [[nodiscard]] virtual Deadline deadline() const = 0;  // when the caller gives up
  [[nodiscard]] virtual const std::shared_ptr<Session>& session() const = 0;
  // The next bytes of the payload, into place. What a handler leaves unread is discarded after it.
  [[nodiscard]] virtual Task<Status> receive(std::span<const MutableBytes> pieces) = 0;
  [[nodiscard]] virtual Task<Status> discard(std::uint64_t length) = 0;

  // kProtocol when the message does not parse.
  [[nodiscard]] Status parse(google::protobuf::MessageLite& message) const;
  // The error for a message that does not parse.
  [[nodiscard]] Status malformed() const;
};

struct Reply {
  Reply() = default;
  Reply(Status error) : status(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  explicit Reply(const google::protobuf::MessageLite& answer) : message(answer.SerializeAsString()) {}

  Status status;                    // an error becomes an error frame, and the rest is ignored
  std::string message;              // serialised
  std::vector<ConstBytes> payload;  // sent after the message, straight from this memory
  // Runs once, on the connection's thread, when the payload has left or never will: releases what keeps it alive.
  std::function<void()> sent;
};

using Handler = std::function<Task<Reply>(Request&)>;
// For requests that can mostly be answered on the spot, without a coroutine: fills `reply`, which comes empty but keeps its message's
// memory from one request to the next, or returns the coroutine that will answer because something has to be waited for.
using QuickHandler = std::function<std::optional<Task<Reply>>(Request&, Reply& reply)>;

struct ServerOptions {
  std::string host = "127.0.0.1";  // bound exactly; "0.0.0.0" only when the user wrote it
  std::uint16_t port = 0;          // 0: the first free one from first_port to last_port, or any if those are 0 too
  std::uint16_t first_port = 0;
  std::uint16_t last_port = 0;
  std::size_t threads = 2;
  std::size_t max_connections = 4096;
  std::chrono::milliseconds handshake_timeout{5000};
  std::chrono::milliseconds stall_timeout{10000};
  std::chrono::milliseconds idle_timeout{0};  // 0: lanes may idle for ever (keep-alive finds dead peers)
};

class Server {
 public:
  Server(Identity self, ServerOptions options);
  ~Server();

  void handle(wire::Method method, Handler handler);
  void handle_quickly(wire::Method method, QuickHandler handler);
  // Called on the connection's thread after a session has ended, whatever the reason; several are called in the order of their adding.
  void on_closed(std::function<void(const Session&)> callback);
  // kUnavailable naming host:port and who may hold it when the port is in use.
  [[nodiscard]] Status start();
  void stop();
  [[nodiscard]] std::uint16_t port() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// For handlers that wait for a change of state. The pattern that cannot miss one:
//   const auto seen = event.epoch();  if (condition()) ...;  co_await event.wait(seen, deadline);
// Waiters on any server thread; notify_all() from any thread. A notification costs nothing while nobody waits.
class AsyncEvent {
 public:
  AsyncEvent();
  ~AsyncEvent();
  [[nodiscard]] std::uint64_t epoch() const;
  // True when notify_all() was called after epoch() returned `seen` (at once if it already was); false at the deadline.
  [[nodiscard]] Task<bool> wait(std::uint64_t seen, Deadline deadline);
  void notify_all();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace moonpool::net
