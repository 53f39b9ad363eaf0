#include "net/lane.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "net/lane_impl.h"
#include "net/socket.h"

namespace moonpool::net {
namespace {

// An early answer is already there when it is looked for; this bounds a peer that sends half of one.
constexpr std::chrono::milliseconds kEarlyAnswerTime{1000};
// A message's buffer grows as its bytes arrive, so that a stray length costs nothing; a larger one is given back afterwards.
constexpr std::size_t kMessageStep = 1U << 20;

std::uint32_t timeout_ms_of(Deadline deadline) { return static_cast<std::uint32_t>(std::max(1, deadline.left_ms())); }

}  // namespace

std::string operation_name(int method) {
  std::string name = wire::Method_IsValid(method) ? wire::Method_Name(static_cast<wire::Method>(method)) : std::string();
  if (name.starts_with("METHOD_")) {
    name.erase(0, 7);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return name;
  }
  return "method " + std::to_string(method);
}

// ------------------------------------------------------------------------------------------------ connecting

Status Lane::Impl::open(const Identity& self, Deadline deadline) {
  begin_operation("connect");
  const auto addresses = resolve(peer_, deadline);
  if (!addresses.ok()) return addresses.status();
  IoOutcome outcome;
  for (std::size_t i = 0; i < addresses->size(); ++i) {
    // An address that swallows packets must leave time for the ones after it.
    const Deadline bound = deadline.sooner(deadline.left() / static_cast<std::int64_t>(addresses->size() - i));
    outcome = stream_.connect((*addresses)[i], bound);
    if (outcome.done() || outcome.kind == IoOutcome::Kind::kAborted) break;
  }
  if (outcome.kind == IoOutcome::Kind::kFailed) {
    return Status(ErrorCode::kUnavailable, "cannot connect to " + peer_text_ + ": " + errno_text(outcome.error) + " after " +
                                               elapsed_text() + "; check that the peer runs and listens on this address");
  }
  if (!outcome.done()) return failure(outcome);
  return shake_hands(self, deadline);
}

Status Lane::Impl::shake_hands(const Identity& self, Deadline deadline) {
  begin_operation("handshake");
  ClientHandshake handshake(self, peer_text_);
  std::string outgoing = handshake.hello();
  while (!outgoing.empty()) {
    out_.clear();
    out_.add(std::as_bytes(std::span(outgoing)));
    if (const IoOutcome sent = stream_.send(out_, deadline, false); !sent.done()) return early_answer_or(failure(sent), deadline);
    const auto header = read_header(deadline);
    if (!header.ok()) return header.status();
    if (header->payload_length != 0 || header->message_length > kMaxHandshakeLength) {
      return broken(ErrorCode::kProtocol, peer_text_ + " sent an oversized frame in the handshake: is it a Moonpool server?");
    }
    const auto message = read_message(header->message_length, deadline);
    if (!message.ok()) return message.status();
    auto next = handshake.on_frame(*header, *message);
    if (!next.ok()) return broken(next.code(), next.status().message());
    outgoing = std::move(*next);
  }
  peer_node_ = handshake.peer_node();
  return Status();
}

// ------------------------------------------------------------------------------------------------ an exchange

template <typename Write>
Status Lane::Impl::send_request(wire::Method method, std::size_t size, const Write& write, std::uint64_t payload_length,
                                Deadline deadline) {
  if (state_ != State::kIdle) return broken(ErrorCode::kInternal, "a request on a lane to " + peer_text_ + " that is " + unusable_text());
  if (stream_.aborted()) return failure({IoOutcome::Kind::kAborted, 0});
  begin_operation(method);
  if (deadline.expired()) {
    // Nothing has left, so the lane stays good.
    return Status(ErrorCode::kRpcTimeout, operation_text() + " to " + peer_text_ + " was not sent: its deadline had already passed");
  }
  if (size > kMaxMessageLength || payload_length > kMaxPayloadLength) {
    return Status(ErrorCode::kInvalidParams, operation_text() + " to " + peer_text_ + " was not sent: its message of " +
                                                 std::to_string(size) + " bytes or payload of " + std::to_string(payload_length) +
                                                 " bytes is too large; split the batch");
  }
  FrameHeader header;
  header.kind = FrameKind::kRequest;
  header.method = static_cast<std::uint16_t>(method);
  header.request_id = ++request_id_;
  header.payload_length = payload_length;
  header.message_length = static_cast<std::uint32_t>(size);
  header.timeout_ms = timeout_ms_of(deadline);
  head_.resize(kFrameHeaderSize + size);
  const FrameBytes bytes = encode(header);
  std::copy(bytes.begin(), bytes.end(), head_.begin());
  write(head_.data() + kFrameHeaderSize);
  answer_started_ = false;
  payload_left_ = payload_length;
  head_pending_ = true;
  state_ = payload_length > 0 ? State::kSending : State::kAwaiting;
  return payload_length > 0 ? Status() : send_out({}, deadline);
}

Status Lane::Impl::send_payload(std::span<const ConstBytes> pieces, Deadline deadline) {
  std::uint64_t bytes = 0;
  for (const ConstBytes& piece : pieces) bytes += piece.size();
  if (bytes == 0 && state_ != State::kBroken) return Status();
  if (state_ != State::kSending || bytes > payload_left_) {
    return broken(ErrorCode::kInternal, operation_text() + " to " + peer_text_ + ": payload bytes beyond the announced length");
  }
  MOONPOOL_RETURN_IF_ERROR(send_out(pieces, deadline));
  payload_left_ -= bytes;
  if (payload_left_ == 0) state_ = State::kAwaiting;
  return Status();
}

Status Lane::Impl::send_out(std::span<const ConstBytes> pieces, Deadline deadline) {
  out_.clear();
  if (std::exchange(head_pending_, false)) out_.add(head_);
  out_.add_all(pieces);
  IoOutcome outcome = stream_.send(out_, deadline, true);
  if (outcome.kind == IoOutcome::Kind::kInput) {
    // The peer answers before it has everything: an error that ends the connection, or the connection's end.
    if (Status early = early_answer_or(Status(), deadline); !early.ok()) return early;
    outcome = stream_.send(out_, deadline, false);
  }
  if (head_.size() > kMessageStep) std::vector<std::byte>().swap(head_);
  if (outcome.done()) return Status();
  return outcome.kind == IoOutcome::Kind::kClosed ? early_answer_or(failure(outcome), deadline) : failure(outcome);
}

// Reads what the peer said before it stopped reading; `otherwise` when that is not an error frame.
Status Lane::Impl::early_answer_or(Status otherwise, Deadline deadline) {
  const bool must_fail = !otherwise.ok();
  const Deadline bound = deadline.sooner(kEarlyAnswerTime);
  if (!must_fail) {
    // Looked at without consuming: an ordinary response stays for receive_reply().
    const IoOutcome filled = stream_.fill(in_, kFrameHeaderSize, bound);
    if (!filled.done()) return failure(filled);
    const auto header = decode(in_.data().first<kFrameHeaderSize>());
    if (header.ok() && header->kind != FrameKind::kError) return Status();
  }
  const auto header = read_header(bound);
  if (!header.ok() || header->kind != FrameKind::kError)
    return must_fail ? otherwise : broken(ErrorCode::kProtocol, header.status().message());
  const auto message = read_message(std::min(header->message_length, kMaxMessageLength), bound);
  if (!message.ok()) return must_fail ? otherwise : message.status();
  const Status told = status_of_error_frame(*message);
  return broken(told.code(), told.message());
}

Result<Lane::Answer> Lane::Impl::receive_answer(Deadline deadline) {
  if (state_ != State::kAwaiting)
    return broken(ErrorCode::kInternal, "a reply was asked of a lane to " + peer_text_ + " that is " + unusable_text());
  const auto header = read_header(deadline);
  if (!header.ok()) return header.status();
  if (header->request_id != request_id_ && !(header->kind == FrameKind::kError && header->request_id == 0)) {
    return broken(ErrorCode::kProtocol, peer_text_ + " answered request " + std::to_string(header->request_id) + " instead of " +
                                            std::to_string(request_id_) + " (" + operation_text() + ")");
  }
  const auto message = read_message(header->message_length, deadline);
  if (!message.ok()) return message.status();
  if (header->kind == FrameKind::kError && header->payload_length == 0) {
    Status told = status_of_error_frame(*message);
    // An error outside any request (id 0) is the peer's farewell.
    if (header->request_id == 0) return broken(told.code(), told.message());
    state_ = State::kIdle;
    return told;
  }
  if (header->kind != FrameKind::kResponse || header->method != method_) {
    return broken(ErrorCode::kProtocol, peer_text_ + " sent a frame that is no answer to " + operation_text());
  }
  payload_left_ = header->payload_length;
  state_ = payload_left_ > 0 ? State::kReceiving : State::kIdle;
  return Answer{*message, payload_left_};
}

Status Lane::Impl::unparsable() {
  return broken(ErrorCode::kProtocol, "the answer of " + peer_text_ + " to " + operation_text() + " does not parse");
}

Status Lane::Impl::receive_payload(std::span<const MutableBytes> pieces, Deadline deadline) {
  pieces_in_.clear();
  pieces_in_.add_all(pieces);
  const std::uint64_t bytes = pieces_in_.left();
  if (bytes == 0 && state_ != State::kBroken) return Status();
  if (state_ != State::kReceiving || bytes > payload_left_) {
    return broken(ErrorCode::kInternal, operation_text() + " from " + peer_text_ + ": more payload was asked for than the answer has");
  }
  in_.drain_into(pieces_in_);
  if (const IoOutcome outcome = stream_.receive(pieces_in_, deadline); !outcome.done()) return failure(outcome);
  payload_left_ -= bytes;
  if (payload_left_ == 0) state_ = State::kIdle;
  return Status();
}

// ------------------------------------------------------------------------------------------------ reading frames

Result<FrameHeader> Lane::Impl::read_header(Deadline deadline) {
  const IoOutcome outcome = stream_.fill(in_, kFrameHeaderSize, deadline);
  answer_started_ = answer_started_ || in_.size() > 0;
  if (!outcome.done()) return failure(outcome);
  auto header = decode(in_.take(kFrameHeaderSize).first<kFrameHeaderSize>());
  if (!header.ok()) return broken(header.code(), peer_text_ + " sent " + header.status().message() + " (during " + operation_text() + ")");
  return header;
}

// Valid until the next read. Short messages stay in the read-ahead buffer, long ones get one of their own.
Result<ConstBytes> Lane::Impl::read_message(std::size_t length, Deadline deadline) {
  if (length <= ReadAhead::kSize) {
    if (const IoOutcome outcome = stream_.fill(in_, length, deadline); !outcome.done()) return failure(outcome);
    if (message_.capacity() > kMessageStep) std::vector<std::byte>().swap(message_);
    return in_.take(length);
  }
  message_.clear();
  while (message_.size() < length) {
    const std::size_t have = message_.size();
    message_.resize(std::min(length, std::max(2 * have, kMessageStep)));
    pieces_in_.clear();
    pieces_in_.add(std::span(message_).subspan(have));
    in_.drain_into(pieces_in_);
    if (const IoOutcome outcome = stream_.receive(pieces_in_, deadline); !outcome.done()) return failure(outcome);
  }
  return ConstBytes(message_);
}

// ------------------------------------------------------------------------------------------------ error texts

void Lane::Impl::begin_operation(wire::Method method) {
  begin_operation(nullptr);
  method_ = static_cast<std::uint16_t>(method);
}

void Lane::Impl::begin_operation(const char* step) {
  step_ = step;
  started_ = Deadline::Clock::now();
}

std::string Lane::Impl::operation_text() const { return step_ != nullptr ? step_ : operation_name(method_); }

std::string Lane::Impl::elapsed_text() const {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - started_).count()) + " ms";
}

const char* Lane::Impl::unusable_text() const {
  switch (state_) {
    case State::kIdle:
      return "idle";
    case State::kSending:
      return "still sending a payload";
    case State::kAwaiting:
      return "waiting for an answer";
    case State::kReceiving:
      return "still receiving a payload";
    case State::kBroken:
      return "broken by an earlier error: drop it and take another";
  }
  return "in an unknown state";
}

Status Lane::Impl::broken(ErrorCode code, std::string text) {
  state_ = State::kBroken;
  return Status(code, std::move(text));
}

Status Lane::Impl::failure(IoOutcome outcome) {
  const std::string what = operation_text() + " to " + peer_text_;
  switch (outcome.kind) {
    case IoOutcome::Kind::kDeadline:
      return broken(ErrorCode::kRpcTimeout, what + " got no further within its deadline, " + elapsed_text() +
                                                " after it began: the peer is overloaded, stopped or unreachable");
    case IoOutcome::Kind::kAborted:
      return broken(ErrorCode::kCancelled, what + " was cancelled after " + elapsed_text());
    case IoOutcome::Kind::kClosed:
      closed_by_peer_ = true;
      return broken(ErrorCode::kUnavailable, what + ": the peer closed the connection after " + elapsed_text() +
                                                 (outcome.error != 0 ? " (" + errno_text(outcome.error) + ")" : std::string()) +
                                                 "; it may have been restarted: try again");
    default:
      return broken(ErrorCode::kUnavailable, what + " failed after " + elapsed_text() + ": " + errno_text(outcome.error) +
                                                 "; check the network and that the peer runs");
  }
}

// ------------------------------------------------------------------------------------------------ the public face

Lane::Lane(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Lane::~Lane() = default;

Result<std::unique_ptr<Lane>> Lane::connect(const Endpoint& peer, const Identity& self, Deadline deadline) {
  std::unique_ptr<Lane> lane(new Lane(std::make_unique<Impl>(peer)));
  MOONPOOL_RETURN_IF_ERROR(lane->impl_->open(self, deadline));
  return lane;
}

Status Lane::call(wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply,
                  Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(send_request(method, request, 0, deadline));
  const auto payload = receive_reply(reply, deadline);
  if (!payload.ok()) return payload.status();
  return *payload == 0 ? Status() : impl_->broken(ErrorCode::kProtocol, impl_->peer_text() + " sent a payload that nobody asked for");
}

Result<ConstBytes> Lane::call(wire::Method method, ConstBytes message, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(send_request(method, message, 0, deadline));
  const auto answer = receive_answer(deadline);
  if (!answer.ok()) return answer.status();
  if (answer->payload_length == 0) return answer->message;
  return impl_->broken(ErrorCode::kProtocol, impl_->peer_text() + " sent a payload that nobody asked for");
}

Status Lane::send_request(wire::Method method, const google::protobuf::MessageLite& request, std::uint64_t payload_length,
                          Deadline deadline) {
  const auto write = [&](std::byte* at) { request.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(at)); };
  return impl_->send_request(method, request.ByteSizeLong(), write, payload_length, deadline);
}
Status Lane::send_request(wire::Method method, ConstBytes message, std::uint64_t payload_length, Deadline deadline) {
  const auto write = [&](std::byte* at) { std::copy(message.begin(), message.end(), at); };
  return impl_->send_request(method, message.size(), write, payload_length, deadline);
}
Status Lane::send_payload(std::span<const ConstBytes> pieces, Deadline deadline) { return impl_->send_payload(pieces, deadline); }
Result<std::uint64_t> Lane::receive_reply(google::protobuf::MessageLite& reply, Deadline deadline) {
  const auto answer = impl_->receive_answer(deadline);
  if (!answer.ok()) return answer.status();
  if (!reply.ParseFromArray(answer->message.data(), static_cast<int>(answer->message.size()))) return impl_->unparsable();
  return answer->payload_length;
}
Result<Lane::Answer> Lane::receive_answer(Deadline deadline) { return impl_->receive_answer(deadline); }
Status Lane::receive_payload(std::span<const MutableBytes> pieces, Deadline deadline) { return impl_->receive_payload(pieces, deadline); }
bool Lane::healthy() const { return impl_->healthy(); }
void Lane::abort() { impl_->abort(); }
const Endpoint& Lane::peer() const { return impl_->peer(); }
const NodeId& Lane::peer_node() const { return impl_->peer_node(); }

}  // namespace moonpool::net
