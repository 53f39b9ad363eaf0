#include "store/node_address.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/endpoint.h"

namespace moonpool::store {

namespace {

// Whether a socket can be bound to it: true for the addresses of this machine's interfaces only.
int bind_error(net::SocketAddress address) {
  const int socket = ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) return errno;
  const int error = ::bind(socket, reinterpret_cast<const sockaddr*>(&address.storage), address.length) == 0 ? 0 : errno;
  ::close(socket);
  return error;
}

}  // namespace

Result<NodeAddress> parse_node_address(std::string_view text) {
  const auto invalid = [&](std::string_view why) -> Status {
    return {ErrorCode::kInvalidParams,
            fmt::format("local_hostname \"{}\": {}; give this machine's name or address as host, host:port or [IPv6]:port", text, why)};
  };
  if (text.empty()) return invalid("it is empty");
  const auto colons = std::count(text.begin(), text.end(), ':');
  std::string host(text);
  std::uint16_t port = 0;
  const bool bare_v6 = colons > 1 && text.front() != '[';
  if (bare_v6) {
    // the whole text is the host
  } else if (text.front() == '[' && text.back() == ']') {
    host = std::string(text.substr(1, text.size() - 2));
  } else if (colons > 0) {
    auto endpoint = net::Endpoint::parse(text);
    if (!endpoint) return invalid(endpoint.status().message());
    host = endpoint->host;
    port = endpoint->port;
  }
  if (host.empty()) return invalid("it names no host");
  if (host == "0.0.0.0" || host == "::" || host == "*") return invalid("peers cannot connect to it");
  return NodeAddress{std::move(host), port};
}

Status check_is_ours(const NodeAddress& address, Deadline deadline) {
  // Port 0 throughout: this asks about the address; the server reports a port that is in use.
  const auto addresses = net::resolve({address.host, 0}, deadline);
  if (!addresses) {
    return {ErrorCode::kInvalidParams,
            fmt::format("local_hostname \"{}\" does not resolve: {}", address.host, addresses.status().message())};
  }
  int error = EADDRNOTAVAIL;
  for (const auto& one : *addresses) {
    error = bind_error(one);
    if (error == 0) return {};
  }
  return {ErrorCode::kInvalidParams,
          fmt::format("local_hostname \"{}\" is not an address of this machine ({}); `ip address` lists those that are", address.host,
                      std::strerror(error))};
}

}  // namespace moonpool::store
