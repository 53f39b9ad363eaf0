#include "net/frame.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

namespace moonpool::net {
namespace {

static_assert(std::endian::native == std::endian::little, "the frame is written and read as the machine's own integers");

constexpr std::uint32_t kMagic = 0x314C504D;  // "MPL1"
constexpr std::size_t kHashedSize = 32;

template <typename T>
void put(FrameBytes& bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

template <typename T>
T get(std::span<const std::byte, kFrameHeaderSize> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// The first bytes as a person would recognise them ("GET / HT" of a browser).
std::string printable(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    const auto c = std::to_integer<unsigned char>(b);
    text += c >= 0x20 && c < 0x7F ? static_cast<char>(c) : '.';
  }
  return text;
}

Status refuse(std::string text) { return Status(ErrorCode::kProtocol, std::move(text)); }

}  // namespace

FrameBytes encode(const FrameHeader& header) {
  FrameBytes bytes;
  put(bytes, 0, kMagic);
  put(bytes, 4, kWireVersion);
  put(bytes, 5, header.kind);
  put(bytes, 6, header.method);
  put(bytes, 8, header.request_id);
  put(bytes, 16, header.payload_length);
  put(bytes, 24, header.message_length);
  put(bytes, 28, header.timeout_ms);
  put(bytes, kHashedSize, static_cast<std::uint64_t>(XXH3_64bits(bytes.data(), kHashedSize)));
  return bytes;
}

Result<FrameHeader> decode(std::span<const std::byte, kFrameHeaderSize> bytes) {
  if (get<std::uint32_t>(bytes, 0) != kMagic) return refuse("not a Moonpool frame: it starts with \"" + printable(bytes.first(8)) + "\"");
  if (get<std::uint64_t>(bytes, kHashedSize) != XXH3_64bits(bytes.data(), kHashedSize)) {
    return refuse("a frame header whose checksum does not match: bytes were lost or changed on the way");
  }
  if (const auto version = get<std::uint8_t>(bytes, 4); version != kWireVersion) {
    return refuse("a frame of wire version " + std::to_string(version) + ", and this build speaks version " + std::to_string(kWireVersion));
  }
  const auto kind = get<std::uint8_t>(bytes, 5);
  if (kind < static_cast<std::uint8_t>(FrameKind::kHello) || kind > static_cast<std::uint8_t>(FrameKind::kError)) {
    return refuse("a frame of unknown kind " + std::to_string(kind));
  }
  FrameHeader header;
  header.kind = static_cast<FrameKind>(kind);
  header.method = get<std::uint16_t>(bytes, 6);
  header.request_id = get<std::uint64_t>(bytes, 8);
  header.payload_length = get<std::uint64_t>(bytes, 16);
  header.message_length = get<std::uint32_t>(bytes, 24);
  header.timeout_ms = get<std::uint32_t>(bytes, 28);
  if (header.message_length > kMaxMessageLength) {
    return refuse("a frame with a message of " + std::to_string(header.message_length) + " bytes; at most " +
                  std::to_string(kMaxMessageLength) + " are allowed");
  }
  if (header.payload_length > kMaxPayloadLength) {
    return refuse("a frame with a payload of " + std::to_string(header.payload_length) + " bytes; at most " +
                  std::to_string(kMaxPayloadLength) + " are allowed");
  }
  return header;
}

bool may_start_frame(std::span<const std::byte> bytes) {
  return std::memcmp(bytes.data(), &kMagic, std::min(bytes.size(), sizeof kMagic)) == 0;
}

}  // namespace moonpool::net
