// A connection's bytes: a plain socket, or TLS over it.
//
// Cost: a plain stream is its socket and a null pointer; each call looks at that pointer once and is then the socket's own call. Over TLS a
// write's small parts are copied together, so that head and body leave in one record and one system call, up to 16 KiB each.
// An end without close_notify, as after a reset, reads as an error (ssl::error::stream_truncated), never as asio::error::eof: nobody
// between the two can make an answer look finished. close() is abrupt in both cases. One read and one write may be pending at a time.
// Threads: the socket's executor. Not to be destroyed or secured while an operation is pending.
#pragma once

#include <algorithm>
#include <array>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <memory>
#include <string>
#include <utility>

#include "gateway/io.h"
#include "gateway/tls.h"

namespace moonpool::gateway {

class Stream {
 public:
  explicit Stream(Socket socket) : socket_(std::move(socket)) {}
  explicit Stream(const Executor& executor) : socket_(executor) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The transport: to connect it, for its options and addresses.
  [[nodiscard]] Socket& socket() { return socket_; }
  [[nodiscard]] const Socket& socket() const { return socket_; }
  [[nodiscard]] bool is_open() const { return socket_.is_open(); }
  [[nodiscard]] bool is_secure() const { return tls_ != nullptr; }

  template <typename Buffers, typename Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    if (tls_ != nullptr) [[unlikely]]
      return tls_->layer.async_read_some(buffers, std::forward<Token>(token));
    return socket_.async_read_some(buffers, std::forward<Token>(token));
  }

  // All of it.
  template <std::size_t count, typename Token>
  auto async_write(const std::array<asio::const_buffer, count>& buffers, Token&& token) {
    if (tls_ != nullptr) [[unlikely]]
      return asio::async_write(tls_->layer, tls_->joined(buffers), std::forward<Token>(token));
    return asio::async_write(socket_, buffers, std::forward<Token>(token));
  }

  // The client's side of a TLS handshake, over a connected socket, or the server's. `host` is what the other's certificate has to be for,
  // and what is asked for by SNI. An error is explained for a person (tls.h); afterwards the stream is of no use.
  [[nodiscard]] Task<Status> secure_as_client(TlsContext context, std::string host);
  [[nodiscard]] Task<Status> secure_as_server(TlsContext context);

  // What an operation's error means. With TLS that is more than its text.
  [[nodiscard]] std::string explain(const boost::system::error_code& error) const;

  // Tells the other side that nothing more will be sent. `owner` holds the stream for as long as that takes.
  void shutdown_send(std::shared_ptr<void> owner);
  // Pending operations end with errors.
  void close();
  // Closed, and plain again. With no operation pending.
  void start_over();
  // Whether the other side has sent something, or closed, since the last read; without waiting. An idle connection that has is of no use.
  [[nodiscard]] bool has_unread();

 private:
  static constexpr std::size_t kRecordBytes = std::size_t{16} * 1024;

  struct Tls {
    Tls(Socket& socket, SSL* session) : layer(socket, session) {}

    // The same bytes, of which the first 16 KiB lie together.
    template <std::size_t count>
    std::array<asio::const_buffer, count + 1> joined(const std::array<asio::const_buffer, count>& buffers) {
      std::array<asio::const_buffer, count + 1> all;
      outgoing.clear();
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t part = std::min(buffers[i].size(), kRecordBytes - outgoing.size());
        outgoing.append(static_cast<const char*>(buffers[i].data()), part);
        all[i + 1] = buffers[i] + part;
      }
      all[0] = asio::buffer(outgoing);
      return all;
    }

    asio::ssl::stream<Socket&> layer;
    std::string outgoing;  // the write's that is pending
  };

  [[nodiscard]] Task<Status> handshake(TlsContext context, const std::string& host, bool as_client);

  Socket socket_;
  std::unique_ptr<Tls> tls_;
};

}  // namespace moonpool::gateway
