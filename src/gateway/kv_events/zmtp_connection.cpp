#include "gateway/kv_events/zmtp_connection.h"

#include <algorithm>
#include <boost/asio/write.hpp>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kReadBytes = std::size_t{64} * 1024;

}  // namespace

ZmtpConnection::ZmtpConnection(const Executor& executor, std::string name)
    : name_(std::move(name)),
      socket_(executor),
      watchdog_(executor,
                [this] {
                  expired_ = true;
                  boost::system::error_code ignored;
                  socket_.cancel(ignored);
                }),
      buffer_(kReadBytes, '\0') {}

void ZmtpConnection::close() {
  boost::system::error_code ignored;
  socket_.close(ignored);
}

void ZmtpConnection::abort() {
  aborted_ = true;
  close();
}

Status ZmtpConnection::failure(std::string_view operation, const boost::system::error_code& error, const TimeLimit& limit) const {
  const std::string where = std::string(operation) + " " + name_;
  if (aborted_) return Status(ErrorCode::kCancelled, where + " was called off");
  if (expired_) return Status(ErrorCode::kRpcTimeout, where + " took longer than " + limit.text());
  return Status(ErrorCode::kUnavailable, where + " failed: " + error.message());
}

Task<Status> ZmtpConnection::open(std::vector<Endpoint> endpoints, std::string socket_type, std::vector<std::string> peers,
                                  TimeLimit limit) {
  boost::system::error_code last;
  bool connected = false;
  for (std::size_t i = 0; i < endpoints.size() && !connected && !aborted_; ++i) {
    close();
    expired_ = false;
    watchdog_.arm(limit.deadline.sooner(limit.deadline.left() / static_cast<std::int64_t>(endpoints.size() - i)));
    const auto [error] = co_await socket_.async_connect(endpoints[i], kAwait);
    watchdog_.disarm();
    last = error;
    connected = !error && !expired_;
  }
  if (!connected || aborted_) co_return failure("connecting to the KV events of", last, limit);
  boost::system::error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  Status sent = co_await send(zmtp_greeting() + zmtp_ready(socket_type), limit);
  if (!sent.ok()) co_return sent;
  auto ready = co_await item(limit);
  if (!ready.ok()) {
    close();
    co_return ready.status();
  }
  const auto* command = std::get_if<ZmtpCommand>(&*ready);
  const std::string peer = command != nullptr && command->name == "READY" ? zmtp_socket_type(*command) : std::string();
  if (std::find(peers.begin(), peers.end(), peer) == peers.end()) {
    close();
    co_return Status(ErrorCode::kProtocol, name_ + " is " + (peer.empty() ? "no ZeroMQ socket" : "a " + peer.substr(0, 20)) + " where a " +
                                               peers[0] + " was expected");
  }
  co_return Status();
}

Task<Status> ZmtpConnection::send(std::string bytes, TimeLimit limit) {
  expired_ = false;
  watchdog_.arm(limit.deadline);
  const auto [error, written] = co_await asio::async_write(socket_, asio::buffer(bytes), kAwait);
  watchdog_.disarm();
  if (!error && !aborted_) co_return Status();
  Status status = failure("sending to the KV events of", error, limit);
  close();
  co_return status;
}

Task<Result<ZmtpReader::Item>> ZmtpConnection::item(TimeLimit limit) {
  for (;;) {
    auto next = reader_.next();
    if (!next.ok()) {
      close();
      co_return Status(next.code(), "the KV events of " + name_ + ": " + next.status().message());
    }
    if (*next) co_return std::move(**next);
    if (aborted_) co_return failure("reading the KV events of", {}, limit);
    expired_ = false;
    watchdog_.arm(limit.deadline);
    const auto [error, received] = co_await socket_.async_read_some(asio::buffer(buffer_), kAwait);
    watchdog_.disarm();
    if (received > 0) {
      heard_ = Deadline::Clock::now();
      reader_.feed(std::string_view(buffer_).substr(0, received));
      continue;
    }
    Status status = failure("reading the KV events of", error, limit);
    if (!expired_) close();
    co_return status;
  }
}

Task<Result<ZmtpMessage>> ZmtpConnection::receive(TimeLimit limit) {
  for (;;) {
    auto next = co_await item(limit);
    if (!next.ok()) co_return next.status();
    if (auto* message = std::get_if<ZmtpMessage>(&*next); message != nullptr) co_return std::move(*message);
    const auto& command = std::get<ZmtpCommand>(*next);
    if (command.name == "PING") {
      const Status sent = co_await send(zmtp_pong(command), limit);
      if (!sent.ok()) co_return Status(ErrorCode::kUnavailable, sent.message());
    } else if (command.name == "ERROR") {
      close();
      co_return Status(ErrorCode::kProtocol, name_ + " refused the connection: " + command.body.substr(0, 200));
    }
  }
}

}  // namespace moonpool::gateway
