// URLs and query strings: percent coding, the target of a request, absolute http:// URLs.
//
// Every function takes bytes from outside: any input gives a value or an error, never more than its own length in memory (fuzzed by
// tests/fuzz/http_url_fuzz.cpp). Errors quote no more than redact_url() lets through. Threads: pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "net/endpoint.h"
#include "net/http_message.h"

namespace moonpool::net {

// Everything but letters, digits and "-._~" becomes %XX.
[[nodiscard]] std::string percent_encode(std::string_view bytes);

enum class PlusSign { kLiteral, kSpace };  // '+' means a space in a query string only
// kInvalidParams for a '%' without two hex digits after it.
[[nodiscard]] Result<std::string> percent_decode(std::string_view text, PlusSign plus = PlusSign::kLiteral);

struct RequestTarget {
  std::string path;  // decoded
  QueryParams query;
};
// "/metadata?key=a%2Fb&x=1", the origin form that clients send, or the absolute form that proxies send.
[[nodiscard]] Result<RequestTarget> parse_request_target(std::string_view target);

struct HttpUrl {
  Endpoint endpoint;
  std::string target;  // path and query as written; "/" where there is none
};
// "http://host[:port][/path][?query]", host a name, an IPv4 address or a bracketed IPv6 address. https:// is kNotSupported; user names and
// passwords in it are refused.
[[nodiscard]] Result<HttpUrl> parse_http_url(std::string_view url);

// "fd00::1:2379": is the last part a port or not? Such text needs brackets wherever a port may be left out.
[[nodiscard]] bool is_ambiguous_ipv6(std::string_view authority);

// The URL with all that stands between "//" (or the start) and the last '@' replaced by "***", control characters by '?', cut to a length
// fit for a log line. What every error text about a URL goes through.
[[nodiscard]] std::string redact_url(std::string_view url);

}  // namespace moonpool::net
