// A request and a response of HTTP/1.1 as plain values, shared by http_server.h and http_client.h.
//
// Threads: values, no shared state.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moonpool::net {

// Names are compared without regard to case; a name may occur more than once.
using HttpHeaders = std::vector<std::pair<std::string, std::string>>;
// Decoded, in the order of the query string; a name may occur more than once.
using QueryParams = std::vector<std::pair<std::string, std::string>>;

// The value of the first header of that name.
[[nodiscard]] std::optional<std::string_view> find_header(const HttpHeaders& headers, std::string_view name);
[[nodiscard]] std::optional<std::string_view> find_param(const QueryParams& params, std::string_view name);

struct HttpRequest {
  std::string method;  // "GET", as sent
  std::string path;    // decoded, without the query: "/metadata"
  QueryParams query;
  HttpHeaders headers;
  std::string body{};
  std::string peer;  // "1.2.3.4:5678", for log lines
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body{};
  HttpHeaders headers{};  // besides Content-Type and Content-Length
};

}  // namespace moonpool::net
