#include "net/http_url.h"

#include <algorithm>
#include <cctype>

namespace moonpool::net {

namespace {

constexpr std::size_t kShownUrlLength = 200;

bool is_unreserved(unsigned char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool same_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

bool starts_with_scheme(std::string_view url, std::string_view scheme) {
  return url.size() >= scheme.size() && same_ignoring_case(url.substr(0, scheme.size()), scheme);
}

Result<QueryParams> parse_query(std::string_view query) {
  QueryParams params;
  while (!query.empty()) {
    const auto end = std::min(query.find('&'), query.size());
    const auto pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    if (pair.empty()) continue;
    const auto equals = std::min(pair.find('='), pair.size());
    auto name = percent_decode(pair.substr(0, equals), PlusSign::kSpace);
    auto value = percent_decode(pair.substr(std::min(equals + 1, pair.size())), PlusSign::kSpace);
    if (!name) return name.status();
    if (!value) return value.status();
    params.emplace_back(std::move(*name), std::move(*value));
  }
  return params;
}

}  // namespace

std::optional<std::string_view> find_header(const HttpHeaders& headers, std::string_view name) {
  for (const auto& [candidate, value] : headers) {
    if (same_ignoring_case(candidate, name)) return value;
  }
  return std::nullopt;
}

std::optional<std::string_view> find_param(const QueryParams& params, std::string_view name) {
  for (const auto& [candidate, value] : params) {
    if (candidate == name) return value;
  }
  return std::nullopt;
}

std::string percent_encode(std::string_view bytes) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 2);
  for (const char byte : bytes) {
    const auto c = static_cast<unsigned char>(byte);
    if (is_unreserved(c)) {
      text += byte;
    } else {
      text += {'%', kHex[c >> 4], kHex[c & 15]};
    }
  }
  return text;
}

Result<std::string> percent_decode(std::string_view text, PlusSign plus) {
  std::string bytes;
  bytes.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus == PlusSign::kSpace) {
      bytes += ' ';
    } else if (text[i] != '%') {
      bytes += text[i];
    } else {
      const int high = i + 2 < text.size() ? hex_value(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? hex_value(text[i + 2]) : -1;
      if (high < 0 || low < 0) {
        return Status(ErrorCode::kInvalidParams,
                      "a '%' at byte " + std::to_string(i) + " is not followed by two hex digits: write %25 for a '%'");
      }
      bytes += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return bytes;
}

Result<RequestTarget> parse_request_target(std::string_view target) {
  if (starts_with_scheme(target, "http://")) {
    target.remove_prefix(std::min(target.find_first_of("/?", 7), target.size()));
  }
  target = target.substr(0, target.find('#'));
  const auto question = std::min(target.find('?'), target.size());
  auto path = percent_decode(target.substr(0, question));
  if (!path) return path.status();
  auto query = parse_query(target.substr(std::min(question + 1, target.size())));
  if (!query) return query.status();
  if (path->empty()) *path = "/";
  return RequestTarget{std::move(*path), std::move(*query)};
}

Result<HttpUrl> parse_http_url(std::string_view url) {
  if (starts_with_scheme(url, "https://")) {
    return Status(ErrorCode::kNotSupported, redact_url(url) + ": https is not supported here: use http:// within the cluster");
  }
  if (!starts_with_scheme(url, "http://")) {
    return Status(ErrorCode::kInvalidParams, "'" + redact_url(url) + "' is not an http:// URL: write http://host:port/path");
  }
  const auto rest = url.substr(7);
  const auto authority = rest.substr(0, rest.find_first_of("/?#"));
  if (authority.find('@') != std::string_view::npos) {
    return Status(ErrorCode::kInvalidParams,
                  "'" + redact_url(url) + "' has a user name or password before '@', which is not supported: leave it out");
  }
  if (is_ambiguous_ipv6(authority)) {
    return Status(ErrorCode::kInvalidParams, "'" + redact_url(url) + "': an IPv6 address is written in brackets: http://[::1]:8080/path");
  }
  auto endpoint = Endpoint::parse(authority, 80);
  if (!endpoint) {
    return Status(ErrorCode::kInvalidParams, "'" + redact_url(url) + "': " + endpoint.status().message() +
                                                 ": write http://host:port/path (IPv6: http://[::1]:8080/path)");
  }
  const auto tail = rest.substr(authority.size());
  std::string target(tail.substr(0, tail.find('#')));
  if (std::any_of(target.begin(), target.end(), [](unsigned char c) { return c <= ' ' || c == 127; })) {
    return Status(ErrorCode::kInvalidParams, "'" + redact_url(url) + "' has a space or control character in it: write it as %20 and so on");
  }
  if (target.empty() || target.front() != '/') target.insert(0, 1, '/');
  return HttpUrl{std::move(*endpoint), std::move(target)};
}

bool is_ambiguous_ipv6(std::string_view authority) {
  return !authority.starts_with('[') && std::count(authority.begin(), authority.end(), ':') > 1;
}

std::string redact_url(std::string_view url) {
  std::string shown;
  if (const auto at = url.rfind('@'); at != std::string_view::npos) {
    const auto slashes = url.find("//");
    if (slashes < at) shown = url.substr(0, slashes + 2);
    shown += "***";
    url.remove_prefix(at);
  }
  shown += url.substr(0, kShownUrlLength + 1);
  if (shown.size() > kShownUrlLength) shown = shown.substr(0, kShownUrlLength) + "...";
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return shown;
}

}  // namespace moonpool::net
