// A plain TCP connection over loopback: blocking send and recv, TCP_NODELAY, no frame, no checksum. The limit that benchmarks compare with,
// so nothing here is of our own net module. What cannot be set up ends the process with a message: nothing could be measured then.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace moonpool::bench {

[[noreturn]] inline void plain_socket_failed(const char* step) {
  std::perror(step);
  std::exit(1);
}

inline sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

inline void set_no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

struct PlainListener {
  int fd = -1;
  std::uint16_t port = 0;
};

// On a free port.
inline PlainListener listen_plainly() {
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), length) != 0 || ::listen(fd, 64) != 0) plain_socket_failed("listen");
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) plain_socket_failed("getsockname");
  return {fd, ntohs(address.sin_port)};
}

inline int accept_plainly(const PlainListener& listener) {
  const int fd = ::accept(listener.fd, nullptr, nullptr);
  if (fd < 0) plain_socket_failed("accept");
  set_no_delay(fd);
  return fd;
}

inline int connect_plainly(std::uint16_t port) {
  const sockaddr_in address = loopback(port);
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) plain_socket_failed("connect");
  set_no_delay(fd);
  return fd;
}

// False when the peer has gone.
[[nodiscard]] inline bool send_all(int fd, const void* data, std::size_t size) {
  for (const auto* at = static_cast<const std::byte*>(data); size > 0;) {
    const ssize_t sent = ::send(fd, at, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

[[nodiscard]] inline bool receive_all(int fd, void* data, std::size_t size) {
  for (auto* at = static_cast<std::byte*>(data); size > 0;) {
    const ssize_t got = ::recv(fd, at, size, 0);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace moonpool::bench
