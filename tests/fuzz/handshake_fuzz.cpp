// The handshake of both sides and the request's messages, fed with bytes. A side that has a token must never finish a handshake with a peer
// that does not know it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "net/handshake_steps.h"
#include "wire.pb.h"

namespace {

using namespace moonpool;
using namespace moonpool::net;

// Frames cut out of the input: one byte of kind, one of length, then the message.
template <typename Step>
void feed(std::span<const std::byte> input, const Step& step) {
  while (input.size() >= 2) {
    FrameHeader header;
    header.kind = static_cast<FrameKind>(1 + std::to_integer<unsigned>(input[0]) % 4);
    const std::size_t length = std::min<std::size_t>(std::to_integer<std::size_t>(input[1]), input.size() - 2);
    header.message_length = static_cast<std::uint32_t>(length);
    if (!step(header, input.subspan(2, length))) return;
    input = input.subspan(2 + length);
  }
}

template <typename Message>
void parse(std::span<const std::byte> bytes) {
  Message message;
  static_cast<void>(message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  for (const char* token : {"", "token"}) {
    const Identity self{.node_id = NodeId(1, 2), .token = token};
    ServerHandshake server(self);
    feed(input, [&](const FrameHeader& header, std::span<const std::byte> message) {
      const auto answer = server.on_frame(header, message);
      return answer.status.ok() && !server.done();
    });
    ClientHandshake client(self, "peer");
    feed(input, [&](const FrameHeader& header, std::span<const std::byte> message) {
      return client.on_frame(header, message).ok() && !client.done();
    });
    if (!self.token.empty() && (server.done() || client.done())) std::abort();
  }
  static_cast<void>(status_of_error_frame(input));
  parse<wire::WriteRequest>(input);
  parse<wire::ReadRequest>(input);
  parse<wire::PutStartRequest>(input);
  parse<wire::MountSegmentRequest>(input);
  parse<wire::NodeSyncReply>(input);
  return 0;
}
