// The few socket calls that lane and server share, as Result<T>. All sockets are non-blocking and close-on-exec.
#pragma once

#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "net/endpoint.h"
#include "net/unique_fd.h"

namespace moonpool::net {

// "Connection refused (errno 111)".
[[nodiscard]] std::string errno_text(int error);
// "1.2.3.4:5678", "[::1]:5678".
[[nodiscard]] std::string address_text(const SocketAddress& address);
[[nodiscard]] SocketAddress peer_address_of(int fd);
[[nodiscard]] SocketAddress local_address_of(int fd);

// TCP_NODELAY, and keep-alive that finds a dead peer within about a minute.
void configure_connection(int fd);

// Why listen_on() failed: the step and its errno (EADDRINUSE: the port is taken).
struct ListenError {
  int error = 0;
  const char* step = "";
};
// A listening socket bound to exactly this address; an empty UniqueFd and `error` otherwise.
[[nodiscard]] UniqueFd listen_on(const SocketAddress& address, ListenError& error);

// The address with another port.
[[nodiscard]] SocketAddress with_port(SocketAddress address, std::uint16_t port);
[[nodiscard]] std::uint16_t port_of(const SocketAddress& address);

}  // namespace moonpool::net
