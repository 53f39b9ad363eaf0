// The frame: 40 bytes in front of every message and its payload, in both directions.
//
//   offset size field
//        0    4 magic "MPL1"
//        4    1 wire version (1)
//        5    1 kind (FrameKind)
//        6    2 method (wire::Method)
//        8    8 request id: chosen by the caller, returned in the answer
//       16    8 payload length in bytes (raw bytes that follow the message)
//       24    4 message length in bytes (a Protobuf message of proto/wire.proto)
//       28    4 time-out in milliseconds: how long the caller will wait; the server bounds its own waits by it
//       32    8 XXH3-64 of bytes 0-31: a stray byte is found before its length is believed
//
// All integers little endian. Cost: one 32-byte hash. The decoder accepts no unknown kind, version or oversized length.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace moonpool::net {

inline constexpr std::size_t kFrameHeaderSize = 40;
inline constexpr std::uint8_t kWireVersion = 1;
inline constexpr std::uint32_t kMaxMessageLength = 64U << 20;
inline constexpr std::uint64_t kMaxPayloadLength = 1ULL << 42;
inline constexpr std::uint32_t kMaxHandshakeLength = 4096;

enum class FrameKind : std::uint8_t { kHello = 1, kRequest = 2, kResponse = 3, kError = 4 };

struct FrameHeader {
  FrameKind kind = FrameKind::kRequest;
  std::uint16_t method = 0;
  std::uint64_t request_id = 0;
  std::uint64_t payload_length = 0;
  std::uint32_t message_length = 0;
  std::uint32_t timeout_ms = 0;

  bool operator==(const FrameHeader&) const = default;
};

using FrameBytes = std::array<std::byte, kFrameHeaderSize>;

[[nodiscard]] FrameBytes encode(const FrameHeader& header);
// kProtocol for anything that is not a whole, sane header of a version that we speak; the text says what was found instead.
[[nodiscard]] Result<FrameHeader> decode(std::span<const std::byte, kFrameHeaderSize> bytes);
// False as soon as these first bytes of a stream cannot become a frame: a stranger is known before it has sent a whole header.
[[nodiscard]] bool may_start_frame(std::span<const std::byte> bytes);

}  // namespace moonpool::net
