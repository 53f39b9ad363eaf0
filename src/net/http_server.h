// A small HTTP/1.1 server for control-plane endpoints: the master's admin page, the metadata service. The gateway has its own.
//
// One io_context, `threads` threads, a coroutine a connection. The handler is a plain function, called on a server thread; it may block
// (within a deadline of its own), and then holds that thread: with 2 threads a slow request does not stop /health. Bytes that are not HTTP
// get a 400 and a close; too large a header 431, too large a body 413; an idle or trickling peer is dropped after `idle_timeout`; above
// `max_connections` a newcomer gets 503. A handler that throws makes a 500.
// Binds to exactly the host given, to every address that its name has ("localhost": 127.0.0.1 and ::1); "::" does not include IPv4.
// Threads: start, stop, port from any. Lifetime: stop() (and the destructor) closes everything and joins the threads, waiting for handlers
// that run; afterwards no handler is called, so what it refers to must outlive the server.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "net/http_message.h"

namespace moonpool::net {

using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: the kernel picks one, see port()
  std::size_t threads = 2;
  std::uint32_t max_header_bytes = 32U << 10;
  std::uint64_t max_body_bytes = 16U << 20;
  std::size_t max_connections = 512;
  std::chrono::milliseconds idle_timeout{30000};    // for one whole request to arrive, and for one response to leave
  std::chrono::milliseconds resolve_timeout{5000};  // for the host's name at the start
};

class HttpServer {
 public:
  // kUnavailable if it cannot bind: the text says which host:port, why, and what to do.
  [[nodiscard]] static Result<std::unique_ptr<HttpServer>> start(const HttpServerOptions& options, HttpHandler handler);
  ~HttpServer();

  [[nodiscard]] std::uint16_t port() const;
  void stop();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::net
