// host:port, where host is a DNS name, an IPv4 address or an IPv6 address ("[::1]:50051" in text).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/socket.h>

#include "base/deadline.h"
#include "base/result.h"

namespace moonpool::net {

struct Endpoint {
  std::string host;  // without brackets
  std::uint16_t port = 0;

  // "h:p", "1.2.3.4:p", "[v6]:p"; a text without a port takes `default_port` (0: then a port is required). kInvalidParams otherwise.
  [[nodiscard]] static Result<Endpoint> parse(std::string_view text, std::uint16_t default_port = 0);
  [[nodiscard]] std::string to_string() const;
  auto operator<=>(const Endpoint&) const = default;
};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

// All addresses of the endpoint, in the resolver's order. kUnavailable naming the host when it does not resolve within the deadline.
[[nodiscard]] Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, Deadline deadline);

}  // namespace moonpool::net

template <>
struct std::hash<moonpool::net::Endpoint> {
  std::size_t operator()(const moonpool::net::Endpoint& e) const noexcept { return std::hash<std::string>{}(e.host) * 31 + e.port; }
};
