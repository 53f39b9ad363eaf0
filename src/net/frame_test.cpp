#include "net/frame.h"

#include <gtest/gtest.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <limits>

namespace moonpool::net {
namespace {

FrameHeader sample() {
  return {.kind = FrameKind::kResponse,
          .method = 0xBEEF,
          .request_id = std::numeric_limits<std::uint64_t>::max(),
          .payload_length = kMaxPayloadLength,
          .message_length = kMaxMessageLength,
          .timeout_ms = 4'000'000'000U};
}

// As a sender with other limits would write it: the checksum is right.
FrameBytes with_field(std::size_t offset, std::uint64_t value, std::size_t size) {
  FrameBytes bytes = encode(sample());
  std::memcpy(bytes.data() + offset, &value, size);
  const std::uint64_t hash = XXH3_64bits(bytes.data(), 32);
  std::memcpy(bytes.data() + 32, &hash, sizeof hash);
  return bytes;
}

TEST(FrameTest, EveryFieldSurvivesTheRoundTrip) {
  for (const FrameKind kind : {FrameKind::kHello, FrameKind::kRequest, FrameKind::kResponse, FrameKind::kError}) {
    FrameHeader header = sample();
    header.kind = kind;
    const auto decoded = decode(encode(header));
    ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
    EXPECT_EQ(*decoded, header);
  }
}

TEST(FrameTest, AnySingleChangedBitIsFound) {
  for (std::size_t bit = 0; bit < kFrameHeaderSize * 8; ++bit) {
    FrameBytes bytes = encode(sample());
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(decode(bytes).code(), ErrorCode::kProtocol) << "bit " << bit;
  }
}

TEST(FrameTest, FieldsOutOfRangeAreRefusedInSpiteOfARightChecksum) {
  EXPECT_EQ(decode(with_field(0, 0x12345678, 4)).code(), ErrorCode::kProtocol);
  EXPECT_NE(decode(with_field(4, 2, 1)).status().message().find("version 2"), std::string::npos);
  EXPECT_NE(decode(with_field(5, 0, 1)).status().message().find("kind 0"), std::string::npos);
  EXPECT_NE(decode(with_field(5, 5, 1)).status().message().find("kind 5"), std::string::npos);
  EXPECT_EQ(decode(with_field(16, kMaxPayloadLength + 1, 8)).code(), ErrorCode::kProtocol);
  EXPECT_EQ(decode(with_field(24, kMaxMessageLength + 1, 4)).code(), ErrorCode::kProtocol);
  EXPECT_TRUE(decode(with_field(24, 0, 4)).ok());
}

TEST(FrameTest, AnotherProtocolIsNamedByItsFirstBytes) {
  FrameBytes bytes{};
  std::memcpy(bytes.data(), "GET /metrics HTTP/1.1\r\n", 23);
  EXPECT_NE(decode(bytes).status().message().find("GET /met"), std::string::npos);
  EXPECT_FALSE(may_start_frame(std::span(bytes).first(1)));
  const FrameBytes ours = encode(sample());
  EXPECT_TRUE(may_start_frame(std::span(ours).first(3)));
}

}  // namespace
}  // namespace moonpool::net
