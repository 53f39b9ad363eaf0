// A blocking HTTP/1.1 client for control-plane requests: metadata, admin endpoints, etcd's JSON gateway.
//
// The caller's thread does the socket work, all of it (name, connect, write, read) under the one Deadline of the call. Connections are kept
// for reuse, at most `max_idle_connections` in all; one that its server has closed in the meantime is replaced without the caller noticing,
// when repeating the request cannot hurt (GET, HEAD, PUT, DELETE, and POST if `repeat_posts`).
// Any status is a response, also 404 and 500; an error means that there was no whole response: kRpcTimeout, kUnavailable, kProtocol,
// kBufferOverflow (larger than `max_body_bytes`), kInvalidParams (the URL). Its text names method, URL, time waited and what to do.
// Not for the hot path, nor for TLS. Threads: any, concurrently. Owns its connections.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"
#include "net/http_message.h"

namespace moonpool::net {

struct HttpClientOptions {
  std::size_t max_idle_connections = 4;
  std::uint64_t max_body_bytes = 64U << 20;
  bool repeat_posts = false;  // the server's POSTs are idempotent, as etcd's are here
};

class HttpClient {
 public:
  explicit HttpClient(HttpClientOptions options = {});
  ~HttpClient();
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;

  // `url` as in parse_http_url(). A Content-Type for the body, if wanted, is one of the headers; Host and Content-Length are set here.
  [[nodiscard]] Result<HttpResponse> request(std::string_view method, std::string_view url, std::string_view body,
                                             const HttpHeaders& headers, Deadline deadline);
  [[nodiscard]] Result<HttpResponse> get(std::string_view url, Deadline deadline);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::net
