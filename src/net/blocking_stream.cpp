#include "net/blocking_stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "net/socket.h"

namespace moonpool::net {
namespace {

msghdr message_of(std::span<iovec> pieces) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  return message;
}

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

IoOutcome BlockingStream::outcome_of(int error) const {
  if (aborted()) return {IoOutcome::Kind::kAborted, error};
  switch (error) {
    case 0:
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
      return {IoOutcome::Kind::kClosed, error};
    case ETIMEDOUT:  // keep-alive or retransmission gave up
    default:
      return {IoOutcome::Kind::kFailed, error};
  }
}

IoOutcome BlockingStream::connect(const SocketAddress& address, Deadline deadline) {
  UniqueFd fresh(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fresh) return outcome_of(errno);
  {
    const std::lock_guard lock(mutex_);
    fd_ = std::move(fresh);
  }
  // An abort() that came before the new descriptor was in place has not reached it.
  if (aborted()) return {IoOutcome::Kind::kAborted, 0};
  configure_connection(fd_.get());
  if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) == 0) return {};
  if (errno != EINPROGRESS) return outcome_of(errno);
  const IoOutcome waited = sleep_until_ready(POLLOUT, deadline, false);
  if (!waited.done()) return waited;
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  if (aborted()) return {IoOutcome::Kind::kAborted, error};
  return error == 0 ? IoOutcome{} : IoOutcome{IoOutcome::Kind::kFailed, error};
}

IoOutcome BlockingStream::sleep_until_ready(short events, Deadline deadline, bool watch_input) const {
  while (true) {
    if (aborted()) return {IoOutcome::Kind::kAborted, 0};
    const std::chrono::nanoseconds left = deadline.left();
    if (left == std::chrono::nanoseconds::zero()) return {IoOutcome::Kind::kDeadline, 0};
    timespec timeout{};
    timeout.tv_sec = left.count() / 1'000'000'000;
    timeout.tv_nsec = left.count() % 1'000'000'000;
    pollfd entry{fd_.get(), static_cast<short>(watch_input ? events | POLLIN : events), 0};
    const int ready = ::ppoll(&entry, 1, &timeout, nullptr);
    if (ready < 0 && errno != EINTR) return {IoOutcome::Kind::kFailed, errno};
    if (ready <= 0) continue;
    if (watch_input && (entry.revents & POLLIN) != 0) return {IoOutcome::Kind::kInput, 0};
    return {};
  }
}

// Calls `attempt` until it moves something, fails, or the time has come; returns its last answer, with its errno.
template <typename Attempt>
ssize_t BlockingStream::spin(const Attempt& attempt, Deadline::Clock::time_point end) const {
  const SpinPolicy::Turn turn;
  ssize_t moved = -1;
  errno = EAGAIN;
  while (moved < 0 && would_block(errno) && turn.granted() && Deadline::Clock::now() < end && !aborted()) {
    SpinPolicy::relax();
    moved = attempt();
  }
  return moved;
}

// Calls `attempt` (the bytes moved, or -1 with errno) until it moves something; 0 bytes is the peer's end of the stream.
template <typename Attempt>
IoOutcome BlockingStream::repeat(Direction direction, const Attempt& attempt, Deadline deadline, bool watch_input) {
  Deadline::Clock::time_point started{};
  const bool receiving = direction == Direction::kReceive;
  while (true) {
    ssize_t moved = attempt();
    if (receiving && moved < 0 && would_block(errno) && started == Deadline::Clock::time_point{}) {
      started = Deadline::Clock::now();
      moved = spin(attempt, std::min(started + spin_.budget(), deadline.time()));
    }
    if (moved > 0 || (moved == 0 && !receiving)) {
      if (receiving && started != Deadline::Clock::time_point{}) spin_.record(Deadline::Clock::now() - started);
      return aborted() ? IoOutcome{IoOutcome::Kind::kAborted, 0} : IoOutcome{};
    }
    if (moved == 0) return outcome_of(0);
    if (errno == EINTR) continue;
    if (!would_block(errno)) return outcome_of(errno);
    const IoOutcome waited = sleep_until_ready(receiving ? POLLIN : POLLOUT, deadline, watch_input);
    if (!waited.done()) return waited;
  }
}

IoOutcome BlockingStream::send(IovecCursor& cursor, Deadline deadline, bool watch_input) {
  while (cursor.left() > 0) {
    const auto attempt = [&] {
      const msghdr message = message_of(cursor.next());
      const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) cursor.advance(static_cast<std::size_t>(sent));
      return sent;
    };
    const IoOutcome outcome = repeat(Direction::kSend, attempt, deadline, watch_input);
    if (!outcome.done()) return outcome;
    if (cursor.left() > 0 && deadline.expired()) return {IoOutcome::Kind::kDeadline, 0};
  }
  return {};
}

IoOutcome BlockingStream::receive(IovecCursor& cursor, Deadline deadline) {
  while (cursor.left() > 0) {
    const auto attempt = [&] {
      msghdr message = message_of(cursor.next());
      const ssize_t got = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
      if (got > 0) cursor.advance(static_cast<std::size_t>(got));
      return got;
    };
    const IoOutcome outcome = repeat(Direction::kReceive, attempt, deadline, false);
    if (!outcome.done()) return outcome;
    if (cursor.left() > 0 && deadline.expired()) return {IoOutcome::Kind::kDeadline, 0};
  }
  return {};
}

IoOutcome BlockingStream::fill(ReadAhead& buffer, std::size_t wanted, Deadline deadline) {
  while (buffer.size() < wanted) {
    const std::span<std::byte> space = buffer.space(wanted);
    const auto attempt = [&] {
      const ssize_t got = ::recv(fd_.get(), space.data(), space.size(), MSG_DONTWAIT);
      if (got > 0) buffer.commit(static_cast<std::size_t>(got));
      return got;
    };
    const IoOutcome outcome = repeat(Direction::kReceive, attempt, deadline, false);
    if (!outcome.done()) return outcome;
    if (buffer.size() < wanted && deadline.expired()) return {IoOutcome::Kind::kDeadline, 0};
  }
  return {};
}

bool BlockingStream::quiet() const {
  if (aborted()) return false;
  char ignored;
  return ::recv(fd_.get(), &ignored, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && would_block(errno);
}

void BlockingStream::abort() {
  aborted_.store(true, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  if (fd_) static_cast<void>(::shutdown(fd_.get(), SHUT_RDWR));
}

}  // namespace moonpool::net
