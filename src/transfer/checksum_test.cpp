#include "transfer/checksum.h"

#include <gtest/gtest.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <random>

#include "transfer/checksum_kernel.h"

namespace moonpool::transfer {
namespace {

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed = 1) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

TEST(ChecksumTest, ChunksAreCountedWithoutOverflow) {
  EXPECT_EQ(chunks_of(0), 0U);
  EXPECT_EQ(chunks_of(1), 1U);
  EXPECT_EQ(chunks_of(kChecksumChunk), 1U);
  EXPECT_EQ(chunks_of(kChecksumChunk + 1), 2U);
  EXPECT_EQ(chunks_of(~0ULL), (~0ULL / kChecksumChunk) + 1);
}

TEST(ChecksumTest, EveryInstructionSetGivesTheLibrarysValue) {
  const auto bytes = random_bytes(700'001);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{16}, std::size_t{239}, std::size_t{241}, std::size_t{4096}, bytes.size()}) {
    const auto expected = XXH3_64bits(bytes.data(), size);
    EXPECT_EQ(checksum(std::span(bytes).first(size)), expected);
    EXPECT_EQ(kPortableKernel.hash(bytes.data(), size), expected);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
      EXPECT_EQ(kAvx2Kernel.hash(bytes.data(), size), expected);
    }
    if (__builtin_cpu_supports("avx512f")) {
      EXPECT_EQ(kAvx512Kernel.hash(bytes.data(), size), expected);
    }
#endif
  }
}

TEST(ChecksumTest, EveryInstructionSetStreamsTheSameValueFromAnyStripeOn) {
  const auto bytes = random_bytes(5000);
  std::vector<const ChecksumKernel*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) kernels.push_back(&kAvx2Kernel);
  if (__builtin_cpu_supports("avx512f")) kernels.push_back(&kAvx512Kernel);
#endif
  for (const auto* kernel : kernels) {
    for (const std::size_t first : {std::size_t{0}, std::size_t{64}, std::size_t{1024}, std::size_t{1088}, std::size_t{2048}}) {
      alignas(64) std::array<std::byte, 4096> copy{};
      XXH3_state_t state;
      kernel->reset(&state);
      kernel->stream(&state, copy.data(), bytes.data(), first);
      kernel->stream(&state, copy.data() + first, bytes.data() + first, 4096 - first);
      kernel->update(&state, bytes.data() + 4096, bytes.size() - 4096);
      EXPECT_EQ(kernel->digest(&state), XXH3_64bits(bytes.data(), bytes.size())) << "after " << first;
      EXPECT_EQ(std::memcmp(copy.data(), bytes.data(), copy.size()), 0);
    }
  }
}

TEST(ChecksumTest, TheRootOfOneChunkIsItsChecksumAndOfMoreTheirHash) {
  const std::vector<std::uint64_t> one{42};
  EXPECT_EQ(root_of(one), 42U);
  const std::vector<std::uint64_t> two{42, 43};
  EXPECT_EQ(root_of(two), XXH3_64bits(two.data(), 16));
}

TEST(ChecksumTest, AScatteredChunkHasTheChecksumOfTheWhole) {
  const auto bytes = random_bytes(200'000);
  const auto all = std::span(bytes);
  const std::vector<std::span<const std::byte>> pieces{all.first(1), all.subspan(1, 0), all.subspan(1, 98304), all.subspan(98305)};
  EXPECT_EQ(checksum_of_pieces(pieces), checksum(all));
  EXPECT_EQ(checksum_of_pieces(std::span(pieces).first(1)), checksum(all.first(1)));
}

TEST(ChunkHasherTest, PiecesOfAnySizeGiveTheChecksumsOfTheWhole) {
  const auto bytes = random_bytes(3 * kChecksumChunk + 17);
  std::vector<std::uint64_t> expected;
  for (std::size_t at = 0; at < bytes.size(); at += kChecksumChunk) {
    expected.push_back(checksum(std::span(bytes).subspan(at, std::min(kChecksumChunk, bytes.size() - at))));
  }
  std::mt19937 random(7);
  ChunkHasher hasher;
  for (const std::size_t largest : {std::size_t{1000}, std::size_t{98304}, kChecksumChunk, bytes.size()}) {
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t step = std::min<std::size_t>(random() % (largest + 1), bytes.size() - at);
      hasher.update(std::span(bytes).subspan(at, step));
      at += step;
    }
    EXPECT_EQ(hasher.finish(), expected) << "pieces up to " << largest;
  }
  EXPECT_TRUE(hasher.finish().empty());
}

}  // namespace
}  // namespace moonpool::transfer
