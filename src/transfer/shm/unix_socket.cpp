#include "transfer/shm/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace moonpool::transfer {

namespace {

constexpr int kBacklog = 128;

struct Address {
  sockaddr_un raw{};
  socklen_t size = 0;
};

Address abstract(const std::string& name) {
  Address address;
  address.raw.sun_family = AF_UNIX;
  const std::size_t length = std::min(name.size(), sizeof(address.raw.sun_path) - 1);
  std::copy_n(name.data(), length, address.raw.sun_path + 1);  // the zero byte in front makes it abstract
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return address;
}

Status failed(const char* step, int error) {
  return {ErrorCode::kUnavailable, std::string("unix socket: ") + step + ": " + std::strerror(error)};
}

net::UniqueFd make_socket() { return net::UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }

}  // namespace

std::string socket_name(const NodeId& node) { return "moonpool/" + node.to_string(); }

Result<net::UniqueFd> listen_on_name(const std::string& name) {
  net::UniqueFd fd = make_socket();
  if (!fd) return failed("socket", errno);
  const Address address = abstract(name);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.raw), address.size) != 0) return failed("bind", errno);
  if (::listen(fd.get(), kBacklog) != 0) return failed("listen", errno);
  return fd;
}

Result<net::UniqueFd> connect_to_name(const std::string& name) {
  net::UniqueFd fd = make_socket();
  if (!fd) return failed("socket", errno);
  const Address address = abstract(name);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.raw), address.size) != 0) return failed("connect", errno);
  return fd;
}

Result<PeerProcess> peer_of(int fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return failed("SO_PEERCRED", errno);
  return PeerProcess{credentials.pid, credentials.uid};
}

Datagram receive_datagram(int fd, std::span<std::byte> buffer) {
  iovec piece{buffer.data(), buffer.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int) * kMaxDescriptors)> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  Datagram datagram;
  ssize_t got = 0;
  do {
    got = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return datagram;
  datagram.kind = Datagram::Kind::kEnd;
  if (got <= 0) return datagram;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(part) + i * sizeof(int), sizeof received);
      net::UniqueFd owned(received);
      if (i < kMaxDescriptors) datagram.descriptors[i] = std::move(owned);
    }
  }
  datagram.kind = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ? Datagram::Kind::kBad : Datagram::Kind::kData;
  datagram.size = static_cast<std::size_t>(got);
  return datagram;
}

SendOutcome send_datagram(int fd, std::string_view frame, std::span<const int> descriptors) {
  iovec piece{const_cast<char*>(frame.data()), frame.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int) * kMaxDescriptors)> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!descriptors.empty() && descriptors.size() <= kMaxDescriptors) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(part), descriptors.data(), descriptors.size_bytes());
  }
  for (;;) {
    if (::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return SendOutcome::kSent;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? SendOutcome::kFull : SendOutcome::kEnd;
  }
}

}  // namespace moonpool::transfer
