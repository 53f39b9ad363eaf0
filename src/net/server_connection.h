// The server's side of one connection: a coroutine that shakes hands, then reads a request, runs its handler and sends the reply, again and
// again.
//
// A request that is there already and has a quick handler is read, answered and sent without another coroutine or allocation.
// Every transfer is tried at once with a non-blocking call and waits only when that would block; the wait is bounded by an expiry time that
// the loop's tick looks at, so a wait costs no timer. A Session outlives its connection when a handler keeps it: it holds the descriptor's
// number, not the socket. Threads: the loop's own, but Session::abort().
#pragma once

#include <boost/asio/ip/tcp.hpp>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "net/frame.h"
#include "net/io_pieces.h"
#include "net/server.h"
#include "net/server_loop.h"
#include "net/unique_fd.h"

namespace moonpool::net {

// At most one log line per second for events that strangers can cause; the next line says how many were left out.
class LogLimit {
 public:
  // Whether to log now; `left_out` is then how many were not since the last time.
  [[nodiscard]] bool allow(std::uint64_t& left_out);

 private:
  std::atomic<std::int64_t> last_{-1};  // in seconds of the steady clock
  std::atomic<std::uint64_t> left_out_{0};
};

// How a method is served: one of the two is set.
struct MethodHandler {
  Handler waiting;
  QuickHandler quick;
};

// What all connections of a server share. Constant once it runs, but for the atomics.
struct ServerShared {
  Identity self;
  ServerOptions options;
  std::unordered_map<int, MethodHandler> handlers;
  std::vector<std::function<void(const Session&)>> on_closed;
  std::atomic<std::size_t> connections{0};
  LogLimit stranger_lines;
};

class SessionImpl final : public Session {
 public:
  SessionImpl(int fd, std::string address) : address_(std::move(address)), fd_(fd) {}
  [[nodiscard]] const NodeId& peer_node() const override { return node_; }
  [[nodiscard]] const std::string& peer_address() const override { return address_; }
  void abort() override;

  void set_peer_node(const NodeId& node) { node_ = node; }  // once, before any handler sees the session
  [[nodiscard]] bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  void detach();  // the descriptor is about to be closed

 private:
  NodeId node_;
  const std::string address_;
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;  // guards fd_
  int fd_;
};

class Connection final : public Request {
 public:
  // `refuse`: shake hands only to say that there are too many connections.
  Connection(ServerLoop& loop, ServerShared& shared, UniqueFd fd, bool refuse);
  ~Connection() override;

  // The whole life of the connection; `self` keeps it alive for that long.
  static Task<void> serve(std::unique_ptr<Connection> self);
  void drop_if_expired(Deadline::Clock::time_point now);

  [[nodiscard]] wire::Method method() const override { return static_cast<wire::Method>(header_.method); }
  [[nodiscard]] ConstBytes message() const override { return message_; }
  [[nodiscard]] std::uint64_t payload_length() const override { return header_.payload_length; }
  [[nodiscard]] Deadline deadline() const override { return deadline_; }
  [[nodiscard]] const std::shared_ptr<Session>& session() const override { return session_; }
  [[nodiscard]] Task<Status> receive(std::span<const MutableBytes> pieces) override;
  [[nodiscard]] Task<Status> discard(std::uint64_t length) override;

 private:
  using Socket = boost::asio::ip::tcp::socket;

  Task<bool> shake_hands();
  // What has arrived is enough for `wanted` bytes; does not wait.
  bool try_fill(std::size_t wanted);
  bool take_header();
  Task<bool> finish_request(std::optional<Task<Reply>> waiting);
  // Runs the handler of the request; what it returns has to be awaited by finish_request().
  std::optional<Task<Reply>> start_handler();
  [[nodiscard]] Reply handler_threw(const std::string& what) const;
  void begin_reply();
  bool try_send();
  Task<bool> send_frame(const std::string& frame);
  Task<bool> send_out();
  Task<bool> read_header();
  Task<bool> read_message(std::size_t length);
  Task<bool> fill(std::size_t wanted, bool idle);
  Task<bool> receive_into_pieces();
  Task<bool> wait(Socket::wait_type what);

  void expire_after(std::chrono::milliseconds time) { expiry_ = Deadline::Clock::now() + time; }
  void never_expire() { expiry_ = Deadline::Clock::time_point::max(); }
  void log_stranger(const std::string& what);
  [[nodiscard]] Status receive_failure() const;
  int fd() { return socket_.native_handle(); }

  ServerLoop& loop_;
  ServerShared& shared_;
  Socket socket_;
  const bool refuse_;
  bool shaken_ = false;
  bool expired_ = false;
  Deadline::Clock::time_point expiry_ = Deadline::Clock::time_point::max();
  std::shared_ptr<SessionImpl> session_impl_;
  std::shared_ptr<Session> session_;

  // The request being served.
  FrameHeader header_;
  ConstBytes message_;
  Deadline deadline_ = Deadline::at({});
  std::uint64_t payload_left_ = 0;
  bool stream_lost_ = false;  // its position is unknown: nothing more can be said on it
  Reply reply_;
  FrameBytes reply_head_{};

  // Reused from one request to the next.
  std::vector<std::byte> long_message_;  // a message longer than the read-ahead buffer
  ReadAhead in_;
  IovecCursor pieces_in_;
  IovecCursor out_;
};

}  // namespace moonpool::net
