// Both sides of the handshake as state machines over whole frames: no socket, so that every peer, old or hostile, can be tried in a test.
//
// The order: Hello (client), HelloReply (server); when the server has a token also Prove (client) and an empty response (server).
// Hello, HelloReply and Prove are frames of kind kHello. Threads: none; each object belongs to one connection attempt.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "net/frame.h"
#include "net/handshake.h"

namespace moonpool::net {

inline constexpr std::uint64_t kOfferedFeatures = kFeatureNone;

// A whole frame of kind `kind` around a serialised message.
[[nodiscard]] std::string make_frame(FrameHeader header, const std::string& message);
// The message of an error frame, as the Status it carries; never ok.
[[nodiscard]] Status status_of_error_frame(std::span<const std::byte> message);
[[nodiscard]] std::string make_error_message(const Status& status);

class ClientHandshake {
 public:
  // `peer` is the server's name in error texts.
  ClientHandshake(const Identity& self, std::string peer);

  [[nodiscard]] std::string hello() const;
  // Takes the server's next frame; returns what to send next (empty: nothing).
  [[nodiscard]] Result<std::string> on_frame(const FrameHeader& header, std::span<const std::byte> message);
  [[nodiscard]] bool done() const { return state_ == State::kDone; }
  [[nodiscard]] const NodeId& peer_node() const { return peer_node_; }
  // What the server calls itself, known as soon as its reply was read, also when the handshake fails after that.
  [[nodiscard]] const std::string& peer_product() const { return peer_product_; }
  [[nodiscard]] std::uint64_t features() const { return features_; }

 private:
  enum class State { kAwaitingReply, kAwaitingVerdict, kDone };
  Result<std::string> on_reply(std::span<const std::byte> message);

  const Identity& self_;
  const std::string peer_;
  const std::string nonce_;
  State state_ = State::kAwaitingReply;
  NodeId peer_node_;
  std::string peer_product_;
  std::uint64_t features_ = 0;
};

class ServerHandshake {
 public:
  explicit ServerHandshake(const Identity& self);

  // What to send, and whether the connection has to be closed after it (an error's frame is in `frame` as well).
  struct Answer {
    std::string frame;
    Status status;
  };
  [[nodiscard]] Answer on_frame(const FrameHeader& header, std::span<const std::byte> message);
  [[nodiscard]] bool done() const { return state_ == State::kDone; }
  [[nodiscard]] const NodeId& peer_node() const { return peer_node_; }

 private:
  enum class State { kAwaitingHello, kAwaitingProof, kDone };
  Answer on_hello(std::span<const std::byte> message);
  Answer on_proof(std::span<const std::byte> message);

  const Identity& self_;
  State state_ = State::kAwaitingHello;
  std::string client_nonce_;
  std::string server_nonce_;
  NodeId peer_node_;
};

}  // namespace moonpool::net
