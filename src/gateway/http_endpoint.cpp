#include "gateway/http_endpoint.h"

#include <algorithm>

namespace moonpool::gateway {

Result<HttpEndpoint> parse_http_endpoint(std::string_view url) {
  const auto wrong = [](const std::string& what) {
    return Status(ErrorCode::kConfig, what + ": write http://host:port or https://host:port");
  };
  const bool tls = url.starts_with("https://");
  if (!tls && !url.starts_with("http://")) return wrong("no http:// or https:// at its beginning");
  url.remove_prefix(tls ? 8 : 7);
  const std::size_t slash = std::min(url.find('/'), url.size());
  std::string authority(url.substr(0, slash));
  std::string path(url.substr(slash));
  while (path.ends_with('/')) path.pop_back();
  for (const char c : path) {
    if (c <= ' ' || c >= 0x7F || c == '?' || c == '#') return wrong("a path cannot have a query, spaces or control characters");
  }
  const std::size_t colon = authority.rfind(':');
  const bool has_port = colon != std::string::npos && authority.find(']', colon) == std::string::npos;
  if (!has_port) authority += tls ? ":443" : ":80";
  auto name = InstanceName::parse((tls ? "https://" : "http://") + authority);
  if (!name.ok()) return Status(ErrorCode::kConfig, name.status().message());
  return HttpEndpoint{std::move(name).value(), std::move(path)};
}

}  // namespace moonpool::gateway
