#include "gateway/stream.h"

#include <sys/socket.h>

namespace moonpool::gateway {

Task<Status> Stream::secure_as_client(TlsContext context, std::string host) {
  co_return co_await handshake(std::move(context), host, true);
}

Task<Status> Stream::secure_as_server(TlsContext context) {
  const std::string any;
  co_return co_await handshake(std::move(context), any, false);
}

Task<Status> Stream::handshake(TlsContext context, const std::string& host, bool as_client) {
  auto session = make_tls_session(context, host);
  if (!session.ok()) co_return session.status();
  tls_ = std::make_unique<Tls>(socket_, session.value());
  const auto type = as_client ? asio::ssl::stream_base::client : asio::ssl::stream_base::server;
  const auto [error] = co_await tls_->layer.async_handshake(type, kAwait);
  if (!error) co_return Status();
  co_return Status(ErrorCode::kUnavailable, explain_tls(error, tls_->layer.native_handle()));
}

std::string Stream::explain(const boost::system::error_code& error) const {
  return tls_ == nullptr ? error.message() : explain_tls(error, tls_->layer.native_handle());
}

void Stream::shutdown_send(std::shared_ptr<void> owner) {
  if (tls_ != nullptr) {
    // It goes on to wait for the other side's answer, which the pending read takes or close() ends.
    return tls_->layer.async_shutdown([owner = std::move(owner)](const boost::system::error_code&) {});
  }
  boost::system::error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

void Stream::close() {
  boost::system::error_code ignored;
  socket_.close(ignored);
}

void Stream::start_over() {
  close();
  tls_.reset();
}

bool Stream::has_unread() {
  if (tls_ != nullptr && tls_holds_input(tls_->layer.native_handle())) return true;
  char byte = 0;
  return ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

}  // namespace moonpool::gateway
