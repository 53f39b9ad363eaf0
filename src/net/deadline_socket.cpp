#include "net/deadline_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/error.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

namespace moonpool::net {

namespace {

// True once `fd` is ready (or failed, which the next system call reports); false at the deadline.
bool await(int fd, short events, Deadline deadline) {
  pollfd entry{fd, events, 0};
  for (;;) {
    const int ready = ::poll(&entry, 1, deadline.left_ms());
    if (ready > 0) return true;
    if (ready == 0 && deadline.expired()) return false;
    if (ready < 0 && errno != EINTR) return true;
  }
}

boost::system::error_code from_errno(int number) { return {number, boost::system::system_category()}; }

}  // namespace

Result<DeadlineSocket> DeadlineSocket::connect_to(const SocketAddress& address, Deadline deadline) {
  const int fd = ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status(ErrorCode::kUnavailable, std::string("cannot open a socket: ") + std::strerror(errno));
  DeadlineSocket socket(fd);
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address.storage), address.length) == 0) return socket;
  int error = errno;
  if (error == EINPROGRESS || error == EINTR) {
    if (!await(fd, POLLOUT, deadline)) return Status(ErrorCode::kRpcTimeout, "no answer to the connection attempt");
    socklen_t length = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0) return socket;
  }
  if (error == ETIMEDOUT) return Status(ErrorCode::kRpcTimeout, "no answer to the connection attempt");
  return Status(ErrorCode::kUnavailable, std::strerror(error));
}

Result<DeadlineSocket> DeadlineSocket::connect(const Endpoint& endpoint, Deadline deadline) {
  auto addresses = resolve(endpoint, deadline);
  if (!addresses) return addresses.status();
  Status last(ErrorCode::kUnavailable, "its name has no address");
  for (std::size_t i = 0; i < addresses->size(); ++i) {
    const auto share = deadline.left() / static_cast<std::int64_t>(addresses->size() - i);
    auto socket = connect_to((*addresses)[i], deadline.sooner(share));
    if (socket) return socket;
    last = socket.status();
  }
  return Status(last.code(),
                endpoint.to_string() + ": " + last.message() + ": check that the server runs there and that a firewall lets it through");
}

DeadlineSocket::DeadlineSocket(DeadlineSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)), deadline_(other.deadline_) {}

DeadlineSocket& DeadlineSocket::operator=(DeadlineSocket&& other) noexcept {
  std::swap(fd_, other.fd_);
  deadline_ = other.deadline_;
  return *this;
}

DeadlineSocket::~DeadlineSocket() {
  if (fd_ >= 0) ::close(fd_);
}

bool DeadlineSocket::quiet() const {
  pollfd entry{fd_, POLLIN | POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 0;
}

std::size_t DeadlineSocket::receive(boost::asio::mutable_buffer into, boost::system::error_code& error) {
  error = {};
  if (into.size() == 0) return 0;
  for (;;) {
    if (deadline_.expired()) {  // a peer that trickles bytes does not extend it
      error = boost::asio::error::timed_out;
      return 0;
    }
    const auto count = ::recv(fd_, into.data(), into.size(), 0);
    if (count > 0) return static_cast<std::size_t>(count);
    if (count == 0) {
      error = boost::asio::error::eof;
      return 0;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      error = from_errno(errno);
      return 0;
    }
    if (!await(fd_, POLLIN, deadline_)) {
      error = boost::asio::error::timed_out;
      return 0;
    }
  }
}

std::size_t DeadlineSocket::send(std::span<iovec> pieces, boost::system::error_code& error) {
  error = {};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  for (;;) {
    if (deadline_.expired()) {  // a peer that trickles bytes does not extend it
      error = boost::asio::error::timed_out;
      return 0;
    }
    const auto count = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      error = from_errno(errno);
      return 0;
    }
    if (!await(fd_, POLLOUT, deadline_)) {
      error = boost::asio::error::timed_out;
      return 0;
    }
  }
}

}  // namespace moonpool::net
