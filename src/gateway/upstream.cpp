#include "gateway/upstream.h"

#include <algorithm>
#include <array>
#include <boost/beast/http/error.hpp>

#include "gateway/tls.h"

namespace moonpool::gateway {

namespace {

constexpr int kInformationalAtMost = 16;  // 1xx answers before one proper
// A head or a few events; a body of known length comes in larger pieces.
constexpr std::size_t kReadBytes = std::size_t{4} * 1024;
constexpr std::size_t kBodyReadBytes = std::size_t{64} * 1024;

std::size_t bytes_to_read(const ResponseParser& parser) {
  if (!parser.is_header_done() || parser.is_event_stream()) return kReadBytes;
  const auto left = parser.content_length_remaining();
  return left ? std::clamp<std::size_t>(*left, kReadBytes, kBodyReadBytes) : kBodyReadBytes;
}

// Each address gets its share of the time that is left, so that one that swallows packets does not use up all of it.
Deadline share_of(Deadline whole, std::size_t addresses_left) {
  return whole.sooner(whole.left() / static_cast<std::int64_t>(std::max<std::size_t>(1, addresses_left)));
}

}  // namespace

UpstreamConnection::UpstreamConnection(const Executor& executor, const InstanceName& name)
    : name_(name), stream_(executor), watchdog_(executor, [this] { close(Ended::kDeadline); }) {}

void UpstreamConnection::close(Ended why) {
  if (ended_ == Ended::kNo) ended_ = why;
  stream_.close();
}

void UpstreamConnection::abort() { close(Ended::kAborted); }

Status UpstreamConnection::failure(std::string_view operation, const boost::system::error_code& error, const TimeLimit& limit) const {
  const std::string where = std::string(operation) + " " + name_.to_string();
  if (ended_ == Ended::kAborted) return Status(ErrorCode::kCancelled, where + ": the client went away");
  if (ended_ == Ended::kDeadline) return Status(ErrorCode::kRpcTimeout, where + " took longer than " + limit.text());
  return Status(ErrorCode::kUnavailable, where + " failed: " + stream_.explain(error));
}

Task<Status> UpstreamConnection::connect(std::vector<Endpoint> endpoints, TimeLimit limit, TlsContext tls, std::string server_name) {
  boost::system::error_code last;
  Status not_secured;
  for (std::size_t i = 0; i < endpoints.size(); ++i) {
    if (ended_ == Ended::kAborted) break;
    ended_ = Ended::kNo;
    stream_.start_over();
    watchdog_.arm(share_of(limit.deadline, endpoints.size() - i));
    const auto [error] = co_await stream_.socket().async_connect(endpoints[i], kAwait);
    not_secured = Status();
    if (!error && ended_ == Ended::kNo) {
      boost::system::error_code ignored;
      stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
      if (tls != nullptr) not_secured = co_await stream_.secure_as_client(tls, server_name);
    }
    watchdog_.disarm();
    if (!error && not_secured.ok() && ended_ == Ended::kNo) co_return Status();
    last = error;
  }
  if (!not_secured.ok() && ended_ == Ended::kNo) {
    co_return Status(not_secured.code(), "no TLS with " + name_.to_string() + ": " + not_secured.message());
  }
  co_return failure("connecting to", last, limit);
}

Task<Status> UpstreamConnection::send(std::string_view head, std::string_view body, TimeLimit limit) {
  if (ended_ != Ended::kNo) co_return failure("sending the request to", asio::error::operation_aborted, limit);
  const std::array<asio::const_buffer, 2> buffers{asio::buffer(head), asio::buffer(body)};
  got_bytes = false;
  watchdog_.arm(limit.deadline);
  const auto [error, sent] = co_await stream_.async_write(buffers, kAwait);
  watchdog_.disarm();
  if (error || ended_ != Ended::kNo) co_return failure("sending the request to", error, limit);
  co_return Status();
}

std::string_view UpstreamConnection::reading(const ResponseParser& parser) const {
  if (!got_bytes) return "waiting for the answer of";
  return parser.is_header_done() ? "reading the answer of" : "reading the answer's head of";
}

Task<Status> UpstreamConnection::read(ResponseParser& parser, TimeLimit limit) {
  if (ended_ != Ended::kNo) co_return failure(reading(parser), asio::error::operation_aborted, limit);
  watchdog_.arm(limit.deadline);
  const auto [error, received] = co_await stream_.async_read_some(buffer_.prepare(bytes_to_read(parser)), kAwait);
  watchdog_.disarm();
  if (ended_ != Ended::kNo) co_return failure(reading(parser), error, limit);
  if (error == asio::error::eof) {
    if (got_bytes && parser.is_header_done() && parser.need_eof()) {
      boost::system::error_code parse_error;
      parser.put_eof(parse_error);
      close(Ended::kNo);
      if (!parse_error) co_return Status();
    }
    co_return Status(ErrorCode::kUnavailable, name_.to_string() + (got_bytes ? " closed the connection within its answer"
                                                                             : " closed the connection without an answer"));
  }
  if (error) co_return failure(reading(parser), error, limit);
  buffer_.commit(received);
  got_bytes = true;
  co_return feed(parser);
}

Status UpstreamConnection::feed(ResponseParser& parser) {
  while (buffer_.size() != 0 && !parser.is_done()) {
    boost::system::error_code error;
    const asio::const_buffer bytes = buffer_.data();
    const char first_byte = *static_cast<const char*>(bytes.data());
    const std::size_t used = parser.put(bytes, error);
    buffer_.consume(used);
    if (error == http::error::need_more) return Status();
    if (error && (first_byte == kTlsAlert || first_byte == kTlsHandshake) && !parser.is_header_done()) {
      return Status(ErrorCode::kProtocol,
                    name_.to_string() + " speaks TLS: name it https://" + std::string(name_.authority()) + ", or pass --upstream-tls");
    }
    if (error) {
      return Status(ErrorCode::kProtocol,
                    name_.to_string() + " answered what is not HTTP: " + error.message() + ". Is it a vLLM instance's HTTP port?");
    }
    if (used == 0) return Status();
  }
  return Status();
}

UpstreamPool::UpstreamPool(const Executor& executor, Resolver& resolver, std::chrono::nanoseconds idle_at_most,
                           std::size_t connections_at_most, const TlsKeeper& tls)
    : executor_(executor), resolver_(resolver), tls_(tls), idle_at_most_(idle_at_most), connections_at_most_(connections_at_most) {}

std::unique_ptr<UpstreamConnection> UpstreamPool::take_idle(const InstanceName& name) {
  const auto found = idle_.find(name.to_string());
  if (found == idle_.end()) return nullptr;
  while (!found->second.empty()) {
    auto connection = std::move(found->second.back());
    found->second.pop_back();
    // The back is the youngest: when it is too old, all are.
    if (connection->idle_since + idle_at_most_ < Deadline::Clock::now()) {
      found->second.clear();
      return nullptr;
    }
    if (!connection->still_quiet()) continue;
    connection->reused = true;
    return connection;
  }
  return nullptr;
}

Task<Result<std::unique_ptr<UpstreamConnection>>> UpstreamPool::connect(const InstanceName& name, TimeLimit limit,
                                                                        Cancellation& cancellation) {
  auto endpoints = co_await resolver_.resolve(name, limit, cancellation);
  if (!endpoints.ok()) co_return endpoints.status();
  auto connection = std::make_unique<UpstreamConnection>(executor_, name);
  const Cancellation::Scope scope(cancellation, *connection);
  TlsKeeper::Upstream tls;
  if (name.is_secure()) {
    tls = tls_.upstream();
    if (tls.server_name.empty()) tls.server_name = name.host();
  }
  Status status = co_await connection->connect(std::move(endpoints).value(), limit, std::move(tls.context), std::move(tls.server_name));
  if (!status.ok()) co_return status;
  co_return std::move(connection);
}

Task<Result<std::unique_ptr<Exchange>>> UpstreamPool::converse(std::unique_ptr<UpstreamConnection>& connection,
                                                               const UpstreamRequest& request, TimeLimit limit,
                                                               Cancellation& cancellation) {
  const Cancellation::Scope scope(cancellation, *connection);
  const Status sent = co_await connection->send(request.head, request.body, limit);
  if (!sent.ok() && sent.code() != ErrorCode::kUnavailable) co_return sent;
  // Even when sending failed, an answer may lie ready: an instance that refuses a large body answers and closes.
  auto exchange = std::make_unique<Exchange>();
  int informational = 0;
  while (!exchange->answer.is_header_done()) {
    Status status = co_await connection->read(exchange->answer, limit);
    // 1xx: the answer proper follows, perhaps among the same bytes.
    while (status.ok() && exchange->answer.is_header_done() && exchange->answer.status < 200) {
      if (exchange->answer.status == 101 || ++informational > kInformationalAtMost) {
        status = Status(ErrorCode::kProtocol, connection->name().to_string() + " goes on answering 1xx, or changes the protocol");
      } else {
        exchange->answer = ResponseParser();
        status = connection->feed(exchange->answer);
      }
    }
    // Over TLS the reason why sending failed comes as an alert.
    if (!status.ok()) co_return sent.ok() || connection->name().is_secure() ? status : sent;
  }
  exchange->connection = std::move(connection);
  co_return std::move(exchange);
}

Task<Result<std::unique_ptr<Exchange>>> UpstreamPool::open(const InstanceName& name, const UpstreamRequest& request,
                                                           ExchangeDeadlines deadlines, Cancellation& cancellation) {
  if (auto pooled = take_idle(name); pooled != nullptr) {
    auto exchange = co_await converse(pooled, request, deadlines.header, cancellation);
    if (exchange.ok()) co_return std::move(exchange);
    const bool stale = exchange.code() == ErrorCode::kUnavailable && !pooled->got_bytes;
    if (!stale) co_return exchange.status();
    idle_.erase(name.to_string());
  }
  auto connection = co_await connect(name, deadlines.header.sooner(deadlines.connect), cancellation);
  if (!connection.ok()) co_return connection.status();
  auto fresh = std::move(connection).value();
  co_return co_await converse(fresh, request, deadlines.header, cancellation);
}

void UpstreamPool::release(std::unique_ptr<Exchange> exchange) {
  if (!exchange->answer.is_done() || !exchange->answer.keep_alive() || !exchange->connection->reusable()) return;
  auto& connections = idle_[exchange->connection->name().to_string()];
  if (connections.size() >= connections_at_most_) return;
  exchange->connection->idle_since = Deadline::Clock::now();
  connections.push_back(std::move(exchange->connection));
}

void UpstreamPool::set_limits(std::chrono::nanoseconds idle_at_most, std::size_t connections_at_most) {
  idle_at_most_ = idle_at_most;
  connections_at_most_ = connections_at_most;
}

void UpstreamPool::sweep() {
  const auto oldest = Deadline::Clock::now() - idle_at_most_;
  for (auto& [name, connections] : idle_) {
    std::erase_if(connections, [&](const auto& connection) { return connection->idle_since < oldest; });
  }
  std::erase_if(idle_, [](const auto& entry) { return entry.second.empty(); });
}

std::size_t UpstreamPool::idle_connections() const {
  std::size_t count = 0;
  for (const auto& [name, connections] : idle_) count += connections.size();
  return count;
}

Task<Status> read_whole(Exchange& exchange, std::size_t bytes_at_most, Patience between_bytes, TimeLimit limit,
                        Cancellation& cancellation) {
  const Cancellation::Scope scope(cancellation, *exchange.connection);
  while (!exchange.answer.is_done()) {
    if (exchange.answer.body.size() > bytes_at_most) {
      co_return Status(ErrorCode::kBufferOverflow, "the answer is longer than " + std::to_string(bytes_at_most) + " bytes");
    }
    const Status status = co_await exchange.connection->read(exchange.answer, limit.sooner(between_bytes));
    if (!status.ok()) co_return status;
  }
  co_return Status();
}

}  // namespace moonpool::gateway
