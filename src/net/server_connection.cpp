#include "net/server_connection.h"

#include <sys/socket.h>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <cerrno>
#include <exception>

#include "base/logging.h"
#include "net/handshake_steps.h"
#include "net/lane_impl.h"
#include "net/socket.h"

namespace moonpool::net {
namespace asio = boost::asio;
namespace {

constexpr std::size_t kMessageStep = 1U << 20;
constexpr std::uint32_t kRequestsInARow = 64;

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

msghdr message_of(std::span<iovec> pieces) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  return message;
}

boost::asio::ip::tcp protocol_of(int fd) {
  return local_address_of(fd).storage.ss_family == AF_INET6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4();
}

// Runs Reply::sent exactly once, also when the coroutine's frame is destroyed half-way.
class SentGuard {
 public:
  explicit SentGuard(std::function<void()>& sent) : sent_(std::move(sent)) {}
  ~SentGuard() {
    if (sent_) sent_();
  }
  SentGuard(const SentGuard&) = delete;
  SentGuard& operator=(const SentGuard&) = delete;

 private:
  std::function<void()> sent_;
};

}  // namespace

bool LogLimit::allow(std::uint64_t& left_out) {
  const std::int64_t now = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::int64_t last = last_.load();
  if (now == last || !last_.compare_exchange_strong(last, now)) {
    left_out_.fetch_add(1);
    return false;
  }
  left_out = left_out_.exchange(0);
  return true;
}

void SessionImpl::abort() {
  aborted_.store(true, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  if (fd_ >= 0) static_cast<void>(::shutdown(fd_, SHUT_RDWR));
}

void SessionImpl::detach() {
  const std::lock_guard lock(mutex_);
  fd_ = -1;
}

Status Request::parse(google::protobuf::MessageLite& into) const {
  const ConstBytes bytes = message();
  return into.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ? Status() : malformed();
}

Status Request::malformed() const {
  return Status(ErrorCode::kProtocol, "the message of " + operation_name(method()) + " from " + session()->peer_address() +
                                          " does not parse: is the peer another release?");
}

Connection::Connection(ServerLoop& loop, ServerShared& shared, UniqueFd fd, bool refuse)
    : loop_(loop), shared_(shared), socket_(loop.context()), refuse_(refuse) {
  session_impl_ = std::make_shared<SessionImpl>(fd.get(), address_text(peer_address_of(fd.get())));
  session_ = session_impl_;
  socket_.assign(protocol_of(fd.get()), fd.get());
  static_cast<void>(fd.release());
  loop_.add(this);
}

Connection::~Connection() {
  loop_.remove(this);
  session_impl_->detach();
  boost::system::error_code ignored;
  socket_.close(ignored);
  if (!refuse_) shared_.connections.fetch_sub(1);
  if (!shaken_) return;
  for (const auto& callback : shared_.on_closed) callback(*session_);
}

void Connection::drop_if_expired(Deadline::Clock::time_point now) {
  if (now < expiry_) return;
  never_expire();
  expired_ = true;
  log::debug("net: dropped {}: it stalled", session_->peer_address());
  session_impl_->abort();
}

void Connection::log_stranger(const std::string& what) {
  std::uint64_t left_out = 0;
  if (!shared_.stranger_lines.allow(left_out)) return;
  log::warning("net: closed the connection of {}: {}{}", session_->peer_address(), what,
               left_out == 0 ? std::string() : " (and " + std::to_string(left_out) + " more like it)");
}

// ------------------------------------------------------------------------------------------------ the life of a connection

Task<void> Connection::serve(std::unique_ptr<Connection> self) {
  Connection& connection = *self;
  connection.expire_after(connection.shared_.options.handshake_timeout);
  if (!co_await connection.shake_hands()) co_return;
  connection.shaken_ = true;
  connection.never_expire();
  for (std::uint32_t in_a_row = 1;; ++in_a_row) {
    // A peer that sends requests without waiting for their answers must not keep the loop from the others.
    if (in_a_row % kRequestsInARow == 0) co_await asio::post(connection.socket_.get_executor(), asio::use_awaitable);
    if (!connection.try_fill(kFrameHeaderSize) && !co_await connection.fill(kFrameHeaderSize, true)) co_return;
    if (!connection.take_header()) co_return;
    const std::size_t length = connection.header_.message_length;
    if (length <= ReadAhead::kSize && connection.try_fill(length)) {
      connection.message_ = connection.in_.take(length);
    } else if (!co_await connection.read_message(length)) {
      co_return;
    }
    connection.never_expire();
    auto waiting = connection.start_handler();
    if (!waiting && connection.payload_left_ == 0 && connection.try_send()) continue;
    if (!co_await connection.finish_request(std::move(waiting))) co_return;
  }
}

Task<bool> Connection::shake_hands() {
  ServerHandshake handshake(shared_.self);
  while (!handshake.done()) {
    if (!co_await read_header()) co_return false;
    if (header_.payload_length != 0 || header_.message_length > kMaxHandshakeLength) {
      log_stranger("an oversized frame in the handshake");
      co_return false;
    }
    if (!co_await read_message(header_.message_length)) co_return false;
    ServerHandshake::Answer answer = handshake.on_frame(header_, message_);
    if (refuse_ && answer.status.ok()) {
      FrameHeader error;
      error.kind = FrameKind::kError;
      const std::string most = std::to_string(shared_.options.max_connections);
      const Status full(ErrorCode::kUnavailable,
                        "the server has its most connections (" + most + "): close some, or raise its limit; then try again");
      co_await send_frame(make_frame(error, make_error_message(full)));
      co_return false;
    }
    const bool sent = co_await send_frame(answer.frame);
    if (!answer.status.ok()) log_stranger(answer.status.to_string());
    if (!sent || !answer.status.ok()) co_return false;
  }
  session_impl_->set_peer_node(handshake.peer_node());
  co_return true;
}

bool Connection::take_header() {
  auto header = decode(in_.take(kFrameHeaderSize).first<kFrameHeaderSize>());
  if (!header.ok()) {
    log_stranger(header.status().message());
    return false;
  }
  if (header->kind != FrameKind::kRequest) {
    log_stranger("a frame that is no request");
    return false;
  }
  header_ = *header;
  deadline_ = Deadline::after(std::chrono::milliseconds(header_.timeout_ms));
  payload_left_ = header_.payload_length;
  return true;
}

std::optional<Task<Reply>> Connection::start_handler() {
  reply_.status = Status();
  reply_.message.clear();
  reply_.payload.clear();
  reply_.sent = nullptr;
  const auto handler = shared_.handlers.find(header_.method);
  if (handler == shared_.handlers.end()) {
    reply_.status =
        Status(ErrorCode::kNotSupported, "this server does not serve " + operation_name(header_.method) + " (method number " +
                                             std::to_string(header_.method) + "): is it the right kind of server, and the right release?");
    return std::nullopt;
  }
  std::string what;
  try {
    if (handler->second.quick) return handler->second.quick(*this, reply_);
    return handler->second.waiting(*this);
  } catch (const std::exception& e) {
    what = e.what();
  } catch (...) {
    what = "an exception of unknown type";
  }
  reply_ = handler_threw(what);
  return std::nullopt;
}

Reply Connection::handler_threw(const std::string& what) const {
  log::error("net: the handler of {} for {} threw: {}", operation_name(header_.method), session_->peer_address(), what);
  return Reply(Status(ErrorCode::kInternal, "the handler of " + operation_name(header_.method) + " failed: " + what));
}

// The long way: a handler that waits, a payload that it left unread, a reply that does not fit the socket's buffer.
Task<bool> Connection::finish_request(std::optional<Task<Reply>> waiting) {
  const bool begun = out_.left() > 0;  // try_send() has sent the reply's beginning
  if (waiting) {
    std::string what;
    bool threw = true;
    try {
      reply_ = co_await std::move(*waiting);
      threw = false;
    } catch (const std::exception& e) {
      what = e.what();
    } catch (...) {
      what = "an exception of unknown type";
    }
    if (threw) reply_ = handler_threw(what);
  }
  const SentGuard guard(reply_.sent);
  if (!stream_lost_ && payload_left_ > 0) static_cast<void>(co_await discard(payload_left_));
  if (stream_lost_ || session_impl_->aborted()) co_return false;
  if (!begun) begin_reply();
  const bool sent = co_await send_out();
  never_expire();
  if (long_message_.capacity() > kMessageStep) std::vector<std::byte>().swap(long_message_);
  if (reply_.message.capacity() > kMessageStep) std::string().swap(reply_.message);
  co_return sent;
}

// ------------------------------------------------------------------------------------------------ sending

// The whole reply at once, if the socket takes it; what is left stays in `out_`.
bool Connection::try_send() {
  if (session_impl_->aborted() || reply_.sent || long_message_.capacity() > kMessageStep) return false;
  begin_reply();
  const msghdr message = message_of(out_.next());
  const ssize_t sent = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) out_.advance(static_cast<std::size_t>(sent));
  return out_.left() == 0;
}

// Puts the frame of `reply_` into `out_`.
void Connection::begin_reply() {
  FrameHeader answer;
  answer.kind = FrameKind::kResponse;
  answer.method = header_.method;
  answer.request_id = header_.request_id;
  std::size_t payload = 0;
  for (const ConstBytes& piece : reply_.payload) payload += piece.size();
  if (reply_.status.ok() && (reply_.message.size() > kMaxMessageLength || payload > kMaxPayloadLength)) {
    reply_.status =
        Status(ErrorCode::kInternal, "the answer to " + operation_name(header_.method) + " is too large (" +
                                         std::to_string(reply_.message.size()) + " + " + std::to_string(payload) + " bytes): ask for less");
  }
  if (!reply_.status.ok()) {
    answer.kind = FrameKind::kError;
    reply_.message = make_error_message(reply_.status);
    reply_.payload.clear();
    payload = 0;
  }
  answer.message_length = static_cast<std::uint32_t>(reply_.message.size());
  answer.payload_length = payload;
  reply_head_ = encode(answer);
  out_.clear();
  out_.add(reply_head_);
  out_.add(std::as_bytes(std::span(reply_.message)));
  out_.add_all(reply_.payload);
}

Task<bool> Connection::send_frame(const std::string& frame) {
  out_.clear();
  out_.add(std::as_bytes(std::span(frame)));
  co_return co_await send_out();
}

Task<bool> Connection::send_out() {
  while (out_.left() > 0) {
    const msghdr message = message_of(out_.next());
    const ssize_t sent = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      out_.advance(static_cast<std::size_t>(sent));
      if (shaken_) never_expire();
      continue;
    }
    if (errno == EINTR) continue;
    if (!would_block(errno)) co_return false;
    if (shaken_ && expiry_ == Deadline::Clock::time_point::max()) expire_after(shared_.options.stall_timeout);
    if (!co_await wait(Socket::wait_write)) co_return false;
  }
  co_return true;
}

// ------------------------------------------------------------------------------------------------ receiving

Task<bool> Connection::wait(Socket::wait_type what) {
  boost::system::error_code error;
  co_await socket_.async_wait(what, asio::redirect_error(asio::use_awaitable, error));
  co_return !error && !session_impl_->aborted();
}

bool Connection::try_fill(std::size_t wanted) {
  while (in_.size() < wanted && !session_impl_->aborted()) {
    const std::span<std::byte> space = in_.space(wanted);
    const ssize_t got = ::recv(fd(), space.data(), space.size(), MSG_DONTWAIT);
    if (got <= 0) return false;  // fill() finds out why
    in_.commit(static_cast<std::size_t>(got));
  }
  return in_.size() >= wanted;
}

// Until at least `wanted` bytes are there. `idle`: the peer owes us nothing yet.
Task<bool> Connection::fill(std::size_t wanted, bool idle) {
  while (in_.size() < wanted) {
    if (session_impl_->aborted()) co_return false;
    const std::span<std::byte> space = in_.space(wanted);
    const ssize_t got = ::recv(fd(), space.data(), space.size(), MSG_DONTWAIT);
    if (got > 0) {
      in_.commit(static_cast<std::size_t>(got));
      if (shaken_) never_expire();
      continue;
    }
    if (got == 0) co_return false;
    if (errno == EINTR) continue;
    if (!would_block(errno)) co_return false;
    if (shaken_) {
      const auto bound = idle && in_.size() == 0 ? shared_.options.idle_timeout : shared_.options.stall_timeout;
      if (bound.count() > 0) expire_after(bound);
    }
    if (!co_await wait(Socket::wait_read)) co_return false;
  }
  co_return true;
}

Task<bool> Connection::read_header() {
  // Until the handshake is over, what cannot become a frame is found before forty bytes of it have come.
  bool whole = true;
  for (std::size_t wanted = 1; whole && !shaken_ && wanted <= 4; ++wanted) {
    whole = co_await fill(wanted, true);
    whole = whole && may_start_frame(in_.data());
  }
  if (whole) whole = co_await fill(kFrameHeaderSize, true);
  if (!whole) {
    if (!shaken_ && in_.size() > 0) {
      log_stranger(may_start_frame(in_.data()) ? "it did not complete its handshake" : "its bytes are not Moonpool's protocol");
    }
    co_return false;
  }
  auto header = decode(in_.take(kFrameHeaderSize).first<kFrameHeaderSize>());
  if (!header.ok()) {
    log_stranger(header.status().message());
    co_return false;
  }
  header_ = *header;
  co_return true;
}

Task<bool> Connection::read_message(std::size_t length) {
  if (length <= ReadAhead::kSize) {
    if (!co_await fill(length, false)) co_return false;
    message_ = in_.take(length);
    co_return true;
  }
  long_message_.clear();
  while (long_message_.size() < length) {
    const std::size_t have = long_message_.size();
    long_message_.resize(std::min(length, std::max(2 * have, kMessageStep)));
    pieces_in_.clear();
    pieces_in_.add(std::span(long_message_).subspan(have));
    if (!co_await receive_into_pieces()) co_return false;
  }
  message_ = long_message_;
  co_return true;
}

Task<bool> Connection::receive_into_pieces() {
  if (session_impl_->aborted()) co_return false;
  in_.drain_into(pieces_in_);
  while (pieces_in_.left() > 0) {
    // Bytes that arrived before an abort could still be read after it, and must not be.
    if (session_impl_->aborted()) co_return false;
    msghdr message = message_of(pieces_in_.next());
    const ssize_t got = ::recvmsg(fd(), &message, MSG_DONTWAIT);
    if (got > 0) {
      pieces_in_.advance(static_cast<std::size_t>(got));
      never_expire();
      continue;
    }
    if (got == 0) co_return false;
    if (errno == EINTR) continue;
    if (!would_block(errno)) co_return false;
    if (expiry_ == Deadline::Clock::time_point::max()) expire_after(shared_.options.stall_timeout);
    if (!co_await wait(Socket::wait_read)) co_return false;
  }
  co_return true;
}

Status Connection::receive_failure() const {
  const std::string what = operation_name(header_.method) + " from " + session_->peer_address() + ": ";
  if (expired_) {
    return Status(ErrorCode::kRpcTimeout, what + "its payload stalled for " + std::to_string(shared_.options.stall_timeout.count()) +
                                              " ms, so its connection was dropped");
  }
  if (session_impl_->aborted()) return Status(ErrorCode::kCancelled, what + "its session was ended");
  return Status(ErrorCode::kUnavailable, what + "the connection ended in the middle of its payload");
}

Task<Status> Connection::receive(std::span<const MutableBytes> pieces) {
  pieces_in_.clear();
  pieces_in_.add_all(pieces);
  const std::uint64_t bytes = pieces_in_.left();
  if (stream_lost_) co_return receive_failure();
  if (bytes > payload_left_) {
    co_return Status(ErrorCode::kInvalidParams, operation_name(header_.method) + " from " + session_->peer_address() + ": " +
                                                    std::to_string(bytes) + " payload bytes are needed, and only " +
                                                    std::to_string(payload_left_) + " are left");
  }
  if (!co_await receive_into_pieces()) {
    stream_lost_ = true;
    co_return receive_failure();
  }
  never_expire();
  payload_left_ -= bytes;
  co_return Status();
}

Task<Status> Connection::discard(std::uint64_t length) {
  if (length > payload_left_) {
    co_return Status(ErrorCode::kInvalidParams, operation_name(header_.method) + ": more is discarded than the payload has left");
  }
  while (length > 0) {
    const std::array<MutableBytes, 1> piece{
        loop_.scratch().first(static_cast<std::size_t>(std::min<std::uint64_t>(length, loop_.scratch().size())))};
    Status status = co_await receive(piece);
    if (!status.ok()) co_return status;
    length -= piece[0].size();
  }
  co_return Status();
}

}  // namespace moonpool::net
