// ZeroMQ's wire protocol, the part that a subscriber and a client of a ROUTER need: ZMTP 3.0 (rfc.zeromq.org/spec/23) without security
// (mechanism NULL), and the heartbeats of 3.1 (spec 37).
//
// Own, because Debian's static libzmq needs Kerberos, NORM, PGM and sodium, for some two hundred lines of protocol. As 3.0 we subscribe by
// a message that begins with 1, which every later publisher understands. Bytes from outside: a frame and a message are bounded, anything
// that is no ZMTP ends the reading (tests/fuzz/gateway_zmtp_fuzz.cpp). No I/O. Threads: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

inline constexpr std::size_t kZmtpFrameAtMost = std::size_t{16} << 20;
inline constexpr std::size_t kZmtpFramesAtMost = 8;  // of one message

using ZmtpMessage = std::vector<std::string>;  // its frames

struct ZmtpCommand {
  std::string name;
  std::string body;
};

// What both sides begin with, whole.
[[nodiscard]] std::string zmtp_greeting();
[[nodiscard]] std::string zmtp_ready(std::string_view socket_type);
[[nodiscard]] std::string zmtp_message(const ZmtpMessage& message);
[[nodiscard]] std::string zmtp_subscription(std::string_view topic);
[[nodiscard]] std::string zmtp_ping();
// The answer to a PING.
[[nodiscard]] std::string zmtp_pong(const ZmtpCommand& ping);
// The socket type that a READY command names; empty when it names none.
[[nodiscard]] std::string zmtp_socket_type(const ZmtpCommand& ready);

// Takes what was received, gives what it holds: first the peer's greeting, which is checked and not returned, then commands and messages.
class ZmtpReader {
 public:
  using Item = std::variant<ZmtpCommand, ZmtpMessage>;

  void feed(std::string_view bytes) { bytes_.append(bytes); }
  // nullopt: more bytes are needed. kProtocol: the peer speaks something else, or more than we take; there is no going on.
  [[nodiscard]] Result<std::optional<Item>> next();

 private:
  [[nodiscard]] Result<bool> take_greeting();

  std::string bytes_;
  std::size_t at_ = 0;
  bool greeted_ = false;
  ZmtpMessage message_;  // the frames so far
  std::size_t message_bytes_ = 0;
};

}  // namespace moonpool::gateway
