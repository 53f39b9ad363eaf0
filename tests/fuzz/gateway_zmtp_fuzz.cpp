// Any bytes as what a ZeroMQ peer sends, in pieces of any size: no crash, nothing beyond the limits, and what comes out can be sent again.
#include <algorithm>
#include <cstdlib>

#include "gateway/kv_events/zmtp.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  if (size < 2) return 0;
  const std::size_t step = 1 + data[0];
  const bool with_greeting = (data[1] & 1) != 0;  // else none but the luckiest would get behind it
  std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  ZmtpReader reader;
  if (with_greeting) reader.feed(zmtp_greeting());
  while (!bytes.empty()) {
    reader.feed(bytes.substr(0, step));
    bytes.remove_prefix(std::min(step, bytes.size()));
    for (;;) {
      const auto item = reader.next();
      if (!item.ok()) return 0;
      if (!*item) break;
      if (const auto* command = std::get_if<ZmtpCommand>(&**item); command != nullptr) {
        static_cast<void>(zmtp_socket_type(*command));
        if (zmtp_pong(*command).size() > 32) std::abort();
        continue;
      }
      const auto& message = std::get<ZmtpMessage>(**item);
      if (message.empty() || message.size() > kZmtpFramesAtMost) std::abort();
      ZmtpReader again;
      again.feed(zmtp_greeting() + zmtp_message(message));
      const auto same = again.next();
      if (!same.ok() || !*same || std::get<ZmtpMessage>(**same) != message) std::abort();
    }
  }
  return 0;
}
