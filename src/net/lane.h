// A lane: one connection from a client to a peer's server, after the handshake, used by one thread at a time.
//
// The caller's own thread does the socket work (a hand-over between threads costs as much as the network): it writes the request,
// then reads the answer, scatter/gather, straight from and into the caller's memory. A lane carries one request at a time. After any
// error or expired deadline in the middle of a frame the lane is broken and must be dropped: the stream's position is unknown.
// LanePool (lane_pool.h) owns lanes, bounds their number per peer and hands them out.
//
// Threads: one at a time; abort() may be called from any. Errors: kUnavailable (cannot connect, peer closed), kRpcTimeout (deadline; the
// text names peer, operation and time waited), kProtocol, kUnauthenticated, or the peer's own error frame as its code and text.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "net/endpoint.h"
#include "net/frame.h"
#include "net/handshake.h"
#include "wire.pb.h"

namespace moonpool::net {

using ConstBytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

class Lane {
 public:
  // Resolves, connects (TCP_NODELAY, keep-alive) and shakes hands.
  [[nodiscard]] static Result<std::unique_ptr<Lane>> connect(const Endpoint& peer, const Identity& self, Deadline deadline);
  ~Lane();

  // A whole exchange without payload bytes. `reply` is parsed from the answer.
  [[nodiscard]] Status call(wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply,
                            Deadline deadline);

  // The same in steps, for payloads. Order: send_request, send_payload* (exactly payload_length bytes in all), receive_reply,
  // receive_payload* (exactly the returned number of bytes in all).
  // send_request may hold back the head to send it with the first payload bytes in one system call.
  [[nodiscard]] Status send_request(wire::Method method, const google::protobuf::MessageLite& request, std::uint64_t payload_length,
                                    Deadline deadline);
  [[nodiscard]] Status send_payload(std::span<const ConstBytes> pieces, Deadline deadline);
  // Returns the payload length of the answer. An error frame becomes its Status (the lane stays usable then).
  [[nodiscard]] Result<std::uint64_t> receive_reply(google::protobuf::MessageLite& reply, Deadline deadline);
  // The same two steps for a message that is encoded already and an answer that its receiver parses (lean_codec.h). The answer's bytes are
  // valid until the next exchange begins; a receiver that cannot parse them calls abort(), because the peer is not to be trusted.
  struct Answer {
    ConstBytes message;
    std::uint64_t payload_length = 0;
  };
  [[nodiscard]] Status send_request(wire::Method method, ConstBytes message, std::uint64_t payload_length, Deadline deadline);
  [[nodiscard]] Result<Answer> receive_answer(Deadline deadline);
  [[nodiscard]] Result<ConstBytes> call(wire::Method method, ConstBytes message, Deadline deadline);
  [[nodiscard]] Status receive_payload(std::span<const MutableBytes> pieces, Deadline deadline);

  // False once the stream is unusable, or the peer has closed an idle lane (checked without blocking).
  [[nodiscard]] bool healthy() const;
  // Makes a blocked call on another thread return kCancelled soon. Any thread.
  void abort();
  [[nodiscard]] const Endpoint& peer() const;
  [[nodiscard]] const NodeId& peer_node() const;

 private:
  class Impl;
  friend class LanePool;  // aborts lanes that are still connecting
  explicit Lane(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::net
