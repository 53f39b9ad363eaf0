#include "transfer/rdma/hash_together.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "transfer/checksum.h"

namespace moonpool::transfer::rdma {
namespace {

TEST(HashTogetherTest, AnyNumberOfThreadsFindsWhatOneHasherFinds) {
  std::mt19937_64 random(1);
  std::vector<std::byte> memory(40'000'000);
  for (auto& b : memory) b = static_cast<std::byte>(random());
  const std::vector<std::size_t> lengths{1, kChecksumChunk, 20'000'000, kChecksumChunk + 1, 12'345'678};
  for (const std::size_t threads : {1U, 2U, 3U, 4U}) {
    std::vector<std::vector<ConstBytes>> pieces(lengths.size());
    std::vector<std::vector<std::uint64_t>> found(lengths.size());
    std::vector<Hashing<ConstBytes>> all;
    std::size_t at = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      for (std::size_t used = 0; used < lengths[i];) {
        const std::size_t size = std::min<std::size_t>(lengths[i] - used, random() % 150'000);
        pieces[i].push_back(ConstBytes(memory).subspan(at + used, size));
        used += size;
      }
      found[i].resize(chunks_of(lengths[i]));
      all.push_back({pieces[i], lengths[i], found[i]});
      at += lengths[i];
    }
    hash_together(all, threads);
    at = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      ChunkHasher hasher;
      hasher.update(ConstBytes(memory).subspan(at, lengths[i]));
      EXPECT_EQ(found[i], hasher.finish()) << "extent " << i << ", threads " << threads;
      at += lengths[i];
    }
  }
}

TEST(HashTogetherTest, NothingIsHashedOfNothing) { hash_together(std::span<const Hashing<MutableBytes>>(), 4); }

}  // namespace
}  // namespace moonpool::transfer::rdma
