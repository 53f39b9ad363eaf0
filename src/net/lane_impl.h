// The inside of a Lane, for lane.cpp and for LanePool, which has to abort lanes that are still connecting. Not for anybody else.
#pragma once

#include <string>
#include <vector>

#include "net/blocking_stream.h"
#include "net/handshake_steps.h"
#include "net/lane.h"

namespace moonpool::net {

// "get_replicas", or "method 99" for a number that this build does not know.
[[nodiscard]] std::string operation_name(int method);

class Lane::Impl {
 public:
  explicit Impl(Endpoint peer) : peer_(std::move(peer)), peer_text_(peer_.to_string()) {}

  [[nodiscard]] Status open(const Identity& self, Deadline deadline);
  // `write(destination)` puts the `size` bytes of the message there.
  template <typename Write>
  [[nodiscard]] Status send_request(wire::Method method, std::size_t size, const Write& write, std::uint64_t payload_length,
                                    Deadline deadline);
  [[nodiscard]] Status send_payload(std::span<const ConstBytes> pieces, Deadline deadline);
  [[nodiscard]] Result<Answer> receive_answer(Deadline deadline);
  // The peer's answer makes no sense to whoever asked.
  [[nodiscard]] Status unparsable();
  [[nodiscard]] Status receive_payload(std::span<const MutableBytes> pieces, Deadline deadline);

  [[nodiscard]] bool healthy() const { return state_ == State::kIdle && in_.size() == 0 && stream_.quiet(); }
  void abort() { stream_.abort(); }
  [[nodiscard]] bool aborted() const { return stream_.aborted(); }
  [[nodiscard]] const Endpoint& peer() const { return peer_; }
  [[nodiscard]] const std::string& peer_text() const { return peer_text_; }
  [[nodiscard]] const NodeId& peer_node() const { return peer_node_; }
  // Between two exchanges, with nothing of either left.
  [[nodiscard]] bool idle() const { return state_ == State::kIdle; }
  // The last exchange failed because the peer had closed the connection, and not a byte of its answer had arrived.
  [[nodiscard]] bool closed_before_answer() const { return closed_by_peer_ && !answer_started_; }
  // Makes the lane unusable and returns the reason.
  Status broken(ErrorCode code, std::string text);

 private:
  enum class State { kIdle, kSending, kAwaiting, kReceiving, kBroken };

  Status shake_hands(const Identity& self, Deadline deadline);
  Status send_out(std::span<const ConstBytes> pieces, Deadline deadline);
  Status early_answer_or(Status otherwise, Deadline deadline);
  Result<FrameHeader> read_header(Deadline deadline);
  Result<ConstBytes> read_message(std::size_t length, Deadline deadline);

  void begin_operation(wire::Method method);
  void begin_operation(const char* step);
  [[nodiscard]] std::string operation_text() const;
  [[nodiscard]] std::string elapsed_text() const;
  [[nodiscard]] const char* unusable_text() const;
  Status failure(IoOutcome outcome);

  const Endpoint peer_;
  const std::string peer_text_;
  NodeId peer_node_;
  BlockingStream stream_;

  State state_ = State::kIdle;
  std::uint64_t request_id_ = 0;
  std::uint16_t method_ = 0;
  std::uint64_t payload_left_ = 0;  // of the direction that state_ is about
  bool head_pending_ = false;       // head_ waits for the first payload bytes
  bool answer_started_ = false;
  bool closed_by_peer_ = false;
  const char* step_ = nullptr;  // what goes on, when it is not a method
  Deadline::Clock::time_point started_{};

  // Reused from one exchange to the next.
  std::vector<std::byte> head_;     // header and message going out
  std::vector<std::byte> message_;  // a message coming in that is longer than the read-ahead buffer
  ReadAhead in_;
  IovecCursor out_;
  IovecCursor pieces_in_;
};

}  // namespace moonpool::net
