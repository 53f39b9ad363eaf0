#include "gateway/client_connection.h"

#include <boost/beast/http/error.hpp>

#include "base/logging.h"
#include "gateway/tls.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kHeadRead = std::size_t{8} * 1024;
constexpr std::size_t kBodyRead = std::size_t{64} * 1024;
constexpr std::size_t kPipelinedAtMost = std::size_t{64} * 1024;
constexpr std::size_t kDiscardAtMost = std::size_t{4} << 20;

ClientConnection::Received refuse(const boost::system::error_code& code, char first_byte) {
  if (first_byte == kTlsHandshake)
    return {false, 400, "this port speaks plain HTTP and was sent TLS: use http://, or start with --tls-cert"};
  if (code == http::error::header_limit)
    return {false, 431, "the request's head is too large: the limits are --max-header-bytes and 256 fields"};
  if (code == http::error::body_limit) return {false, 413, "the request's body is too large: the limit is --max-body-bytes"};
  if (code == http::error::bad_transfer_encoding) {
    return {false, 400, "the request's Transfer-Encoding has to be 'chunked', alone and without Content-Length"};
  }
  return {false, 400, "this is not an HTTP/1.1 request: " + code.message()};
}

}  // namespace

ClientConnection::ClientConnection(Socket socket, const Timeouts& timeouts)
    : timeouts_(&timeouts),
      stream_(std::move(socket)),
      arrival_(stream_.socket().get_executor()),
      write_watchdog_(stream_.socket().get_executor(), [this] { close(); }) {
  boost::system::error_code ignored;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
}

void ClientConnection::start_read(std::size_t bytes) {
  if (read_pending_ || ended_) return;
  if (incoming_bytes_ != bytes) {
    incoming_ = std::make_unique_for_overwrite<char[]>(bytes);
    incoming_bytes_ = bytes;
  }
  if (buffer_.size() == 0 && buffer_.capacity() > kPipelinedAtMost) buffer_.shrink_to_fit();
  read_pending_ = true;
  stream_.async_read_some(
      asio::buffer(incoming_.get(), incoming_bytes_),
      [self = shared_from_this()](const boost::system::error_code& error, std::size_t count) { self->on_read(error, count); });
}

void ClientConnection::on_read(const boost::system::error_code& error, std::size_t bytes) {
  read_pending_ = false;
  buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes), asio::buffer(incoming_.get(), bytes)));
  ended_ = ended_ || error;
  if (bytes != 0) idle_ = false;
  if (ended_ && work_ != nullptr) work_->cancel();
  // The next request was sent ahead: go on watching, up to what we are willing to hold.
  if (!ended_ && work_ != nullptr && buffer_.size() < kPipelinedAtMost) start_read(kHeadRead);
  arrival_.cancel();
}

Task<bool> ClientConnection::wait_for_bytes(Deadline deadline, std::size_t bytes) {
  const std::size_t before = buffer_.size();
  start_read(bytes);
  arrival_.expires_at(deadline.time());
  while (!ended_ && buffer_.size() == before && !deadline.expired()) co_await arrival_.async_wait(kAwait);
  co_return buffer_.size() > before;
}

Task<ClientConnection::Received> ClientConnection::read_request(RequestParser& request, const std::function<bool()>& wants_body) {
  enum class Phase { kIdle, kHead, kBody } phase = Phase::kIdle;
  Deadline deadline = Deadline::after(timeouts_->client_idle);
  idle_ = buffer_.size() == 0;
  for (;;) {
    if (buffer_.size() != 0) {
      boost::system::error_code error;
      const asio::const_buffer bytes = buffer_.data();
      const char first_byte = *static_cast<const char*>(bytes.data());
      buffer_.consume(request.put(bytes, error));
      if (error && error != http::error::need_more) co_return refuse(error, first_byte);
      if (request.is_done()) co_return Received{true, 0, {}};
      if (phase == Phase::kIdle) {
        phase = Phase::kHead;
        deadline = Deadline::after(timeouts_->client_header);
      }
    }
    if (request.is_header_done() && phase != Phase::kBody) {
      phase = Phase::kBody;
      if (!wants_body()) co_return Received{};
      deadline = Deadline::after(timeouts_->client_body);
      if (request.expects_continue()) {
        const bool told = co_await write("HTTP/1.1 100 Continue\r\n\r\n");
        if (!told) co_return Received{};
      }
    }
    std::size_t bytes = kHeadRead;
    if (phase == Phase::kBody && request.content_length_remaining().value_or(kBodyRead) > kHeadRead) bytes = kBodyRead;
    const bool arrived = co_await wait_for_bytes(deadline, bytes);
    if (arrived) continue;
    if (phase == Phase::kIdle || ended_) co_return Received{};
    co_return Received{false, 408, "the request did not arrive within its time"};
  }
}

Task<bool> ClientConnection::secure(TlsContext context) {
  write_watchdog_.arm(Deadline::after(timeouts_->client_header));
  idle_ = true;
  const auto [error] = co_await stream_.socket().async_wait(asio::socket_base::wait_read, kAwait);
  idle_ = false;
  char first = 0;
  const bool spoke = !error && ::recv(stream_.socket().native_handle(), &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
  if (!spoke) co_return false;
  if (first >= 'A' && first <= 'Z') {
    // A method's first letter, not a handshake's first byte.
    const std::string body = openai_error(400, "this port speaks TLS and was sent plain HTTP: use https:// in the address");
    const std::string head = own_response_head(400, "application/json", {Framing::kLength, body.size(), false, {}});
    static_cast<void>(co_await write(head, body));
    co_await close_gently();
    co_return false;
  }
  const Status status = co_await stream_.secure_as_server(std::move(context));
  write_watchdog_.disarm();
  if (status.ok()) co_return true;
  log::info("no TLS with {}: {}", peer(), ended_ ? "the handshake took longer than --client-header-timeout" : status.message());
  co_return false;
}

Task<bool> ClientConnection::write(std::string_view head, std::string_view body, std::string_view tail) {
  if (!stream_.is_open()) co_return false;
  const std::array<asio::const_buffer, 3> buffers{asio::buffer(head), asio::buffer(body), asio::buffer(tail)};
  write_watchdog_.arm(Deadline::after(timeouts_->client_write));
  const auto [error, sent] = co_await stream_.async_write(buffers, kAwait);
  write_watchdog_.disarm();
  co_return !error;
}

void ClientConnection::watch(Cancellation& work) {
  work_ = &work;
  if (ended_) work.cancel();
  if (buffer_.size() < kPipelinedAtMost) start_read(kHeadRead);
}

Task<void> ClientConnection::close_gently() {
  if (stream_.is_open()) stream_.shutdown_send(shared_from_this());
  const Deadline deadline = Deadline::after(std::chrono::seconds(1));
  std::size_t discarded = 0;
  while (!ended_ && discarded < kDiscardAtMost && !deadline.expired()) {
    discarded += buffer_.size();
    buffer_.consume(buffer_.size());
    co_await wait_for_bytes(deadline, kBodyRead);
  }
  close();
}

void ClientConnection::close() {
  ended_ = true;
  stream_.close();
  arrival_.cancel();
  if (work_ != nullptr) work_->cancel();
}

void ClientConnection::interrupt() {
  interrupted_ = true;
  if (work_ != nullptr) {
    work_->cancel();
  } else {
    close();
  }
}

void ClientConnection::close_if_idle() {
  if (idle_) close();
}

std::string ClientConnection::peer() const {
  boost::system::error_code error;
  const auto endpoint = stream_.socket().remote_endpoint(error);
  if (error) return "a client";
  const std::string address = endpoint.address().to_string();
  return (endpoint.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(endpoint.port());
}

}  // namespace moonpool::gateway
