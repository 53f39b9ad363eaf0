#include "transfer/copy_and_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "transfer/checksum.h"

namespace moonpool::transfer {
namespace {

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Cuts `bytes` into pieces of `piece` bytes each, the last one shorter.
template <typename Bytes>
std::vector<Bytes> cut(Bytes bytes, std::size_t piece) {
  std::vector<Bytes> pieces;
  for (std::size_t at = 0; at < bytes.size(); at += piece) pieces.push_back(bytes.subspan(at, std::min(piece, bytes.size() - at)));
  return pieces;
}

class CopyAndHashTest : public ::testing::TestWithParam<Stores> {};

TEST_P(CopyAndHashTest, CopiesEveryByteAndGivesTheChunksChecksumWhateverThePieces) {
  const auto original = random_bytes(kChecksumChunk, 5);
  for (const std::size_t size : {std::size_t{1}, std::size_t{256}, std::size_t{257}, std::size_t{320}, std::size_t{8192}, std::size_t{9000},
                                 std::size_t{98304}, kChecksumChunk - 1, kChecksumChunk}) {
    for (const std::size_t piece :
         {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{1000}, std::size_t{1024}, std::size_t{98304}, kChecksumChunk}) {
      if (size / piece > 5000) continue;
      for (const std::size_t shift : {std::size_t{0}, std::size_t{8}}) {  // of the destination, from an aligned place
        const auto bytes = std::span<const std::byte>(original).first(size);
        std::vector<std::byte> storage(size + 256, std::byte{0xEE});
        const auto misaligned = reinterpret_cast<std::uintptr_t>(storage.data()) % 64;
        const MutableBytes target = std::span(storage).subspan(64 + (64 - misaligned) % 64 + shift, size);
        const std::string what =
            std::to_string(size) + " bytes in pieces of " + std::to_string(piece) + ", shifted by " + std::to_string(shift);

        const auto sources = cut<ConstBytes>(bytes, piece);
        PieceCursor<ConstBytes> source(sources);
        EXPECT_EQ(gather_chunk(source, target, GetParam()), checksum(bytes)) << what;
        EXPECT_TRUE(std::ranges::equal(target, bytes)) << what;

        std::ranges::fill(target, std::byte{0});
        const auto targets = cut<MutableBytes>(target, piece);
        PieceCursor<MutableBytes> destination(targets);
        EXPECT_EQ(scatter_chunk(bytes, destination, GetParam()), checksum(bytes)) << what;
        EXPECT_TRUE(std::ranges::equal(target, bytes)) << what;
        EXPECT_EQ(*(target.data() - 1), std::byte{0xEE}) << what;
        EXPECT_EQ(*(target.data() + size), std::byte{0xEE}) << what;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Both, CopyAndHashTest, ::testing::Values(Stores::kCached, Stores::kStreaming),
                         [](const auto& test) { return test.param == Stores::kCached ? "Cached" : "Streaming"; });

TEST(CopyAndHashTest, LargeCallsGoPastTheCaches) {
  std::vector<WriteOperation> writes(2);
  writes[0].extent.length = writes[1].extent.length = kStreamingWriteBytes / 2;
  EXPECT_EQ(stores_for(std::span<const WriteOperation>(writes)), Stores::kStreaming);
  writes[1].extent.length -= 1;
  EXPECT_EQ(stores_for(std::span<const WriteOperation>(writes)), Stores::kCached);
  std::vector<ReadOperation> reads(2);
  reads[0].length = reads[1].length = kStreamingReadBytes / 2;
  EXPECT_EQ(stores_for(std::span<const ReadOperation>(reads)), Stores::kStreaming);
  reads[1].length -= 1;
  EXPECT_EQ(stores_for(std::span<const ReadOperation>(reads)), Stores::kCached);
}

struct Extent {
  std::vector<std::byte> bytes = random_bytes(2 * kChecksumChunk + 1000, 9);
  std::vector<std::uint64_t> checksums;
  std::vector<std::byte> out;
  std::vector<MutableBytes> pieces;
  Extent() {
    for (std::size_t at = 0; at < bytes.size(); at += kChecksumChunk) {
      checksums.push_back(checksum(std::span(bytes).subspan(at, std::min(kChecksumChunk, bytes.size() - at))));
    }
  }
  ReadOperation operation(std::uint64_t start, std::uint64_t length) {
    out.assign(length, std::byte{0});
    pieces = {out};
    ReadOperation made;
    made.extent.length = bytes.size();
    made.start = start;
    made.length = length;
    made.checksum = root_of(checksums);
    made.destination = pieces;
    return made;
  }
  [[nodiscard]] PinnedRead pinned(std::uint64_t start) const {
    return {.path = "test", .memory = bytes, .checksums = std::span(checksums).subspan(start / kChecksumChunk), .verify = true};
  }
};

TEST(ReadPinnedTest, DeliversAnyRangeAndRefusesAChangedByteInAnyChunkItTouches) {
  Extent extent;
  const std::uint64_t size = extent.bytes.size();
  for (const auto& [start, length] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {0, size}, {1, size - 1}, {kChecksumChunk, kChecksumChunk}, {kChecksumChunk - 5, 10}, {size - 1, 1}}) {
    const auto operation = extent.operation(start, length);
    ASSERT_TRUE(read_pinned(extent.pinned(start), operation, Stores::kStreaming, Deadline::after(std::chrono::seconds(10))).ok());
    EXPECT_TRUE(std::ranges::equal(extent.out, std::span(extent.bytes).subspan(start, length)));
    const std::uint64_t place = (start + length - 1) / kChecksumChunk * kChecksumChunk;  // of the last chunk it touches
    extent.bytes[place] ^= std::byte{1};
    const Status refused = read_pinned(extent.pinned(start), operation, Stores::kStreaming, Deadline::after(std::chrono::seconds(10)));
    EXPECT_EQ(refused.code(), ErrorCode::kChecksumMismatch) << refused.to_string();
    extent.bytes[place] ^= std::byte{1};
  }
}

TEST(ReadPinnedTest, AnotherRootOrAPassedDeadlineIsAnError) {
  Extent extent;
  auto operation = extent.operation(0, extent.bytes.size());
  EXPECT_EQ(read_pinned(extent.pinned(0), operation, Stores::kCached, Deadline::after(std::chrono::seconds(0))).code(),
            ErrorCode::kRpcTimeout);
  operation.checksum += 1;
  EXPECT_EQ(read_pinned(extent.pinned(0), operation, Stores::kCached, Deadline::after(std::chrono::seconds(10))).code(),
            ErrorCode::kChecksumMismatch);
}

}  // namespace
}  // namespace moonpool::transfer
