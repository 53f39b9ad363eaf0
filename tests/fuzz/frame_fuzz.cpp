// The frame decoder: what it accepts, it must encode back to the same bytes and keep within the limits.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "net/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moonpool::net;
  if (size < 8) return 0;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  static_cast<void>(may_start_frame(bytes));
  FrameBytes raw{};
  std::copy_n(bytes.begin(), std::min(size, kFrameHeaderSize), raw.begin());
  static_cast<void>(decode(raw).ok());
  // A checksum is never guessed, so the fields are tried with a right one as well, taken from a header made of the input.
  FrameHeader header;
  header.kind = static_cast<FrameKind>(data[0]);
  header.method = static_cast<std::uint16_t>(data[1] | data[2] << 8);
  header.request_id = data[3];
  header.payload_length = static_cast<std::uint64_t>(data[4]) << (data[5] % 60);
  header.message_length = static_cast<std::uint32_t>(data[6]) << (data[7] % 28);
  const auto decoded = decode(encode(header));
  if (decoded.ok() && (!(*decoded == header) || encode(*decoded) != encode(header))) std::abort();
  if (decoded.ok() && (decoded->message_length > kMaxMessageLength || decoded->payload_length > kMaxPayloadLength)) std::abort();
  return 0;
}
