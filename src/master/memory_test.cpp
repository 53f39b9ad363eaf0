// What an object costs the master in memory, beyond its key.
#include <malloc.h>

#include <cstdio>

#include "master/coordinator.h"
#include "master/coordinator_test_support.h"

namespace moonpool::master {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

std::size_t allocated_bytes() {
  const auto info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST(MasterMemoryTest, AnObjectCostsLessThan200BytesBeyondItsKey) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's allocator does not tell";
  constexpr std::size_t kObjects = 400'000;
  constexpr std::size_t kBatch = 400;
  constexpr std::size_t kKeyLength = 40;
  Coordinator master(test::quick_config(), test::kStart, test::kWall);
  test::TestNode node(master, "n:1");
  ASSERT_TRUE(node.join(test::kStart).ok());
  ASSERT_TRUE(node.mount(kObjects * 8192, test::kStart).ok());
  const auto before = allocated_bytes();
  for (std::size_t first = 0; first < kObjects; first += kBatch) {
    std::vector<std::string> keys;
    for (std::size_t i = first; i < first + kBatch; ++i) {
      const auto number = std::to_string(i);
      keys.push_back(std::string(kKeyLength - number.size(), 'k') + number);
    }
    const std::string id = node.id().to_bytes();
    lean::PutStartRequest start;
    start.node_id = id;
    start.replica_num = 1;
    start.key.assign(keys.begin(), keys.end());
    start.size.assign(kBatch, 4096);
    auto batch = master.begin_put(start, test::kStart);
    ASSERT_TRUE(batch.ok());
    ASSERT_TRUE(master.try_put(*batch, test::kStart).ok());
    const auto granted = master.put_reply(*batch);
    lean::PutCommitRequest commit;
    commit.node_id = id;
    commit.term = granted.term;
    commit.key = start.key;
    commit.version_count = granted.version_count;
    commit.checksum.assign(kBatch, {7});
    commit.written.assign(kBatch, 1);
    const auto committed = master.commit(commit, test::kStart);
    ASSERT_TRUE(committed.ok());
    ASSERT_EQ(committed->status, std::vector<std::int32_t>(kBatch, 0));
  }
  ASSERT_EQ(master.table().totals().objects, kObjects);
  const double each = static_cast<double>(allocated_bytes() - before) / static_cast<double>(kObjects) - kKeyLength;
  std::printf("%.0f bytes an object beyond its key\n", each);
  EXPECT_LT(each, 200);
}

}  // namespace
}  // namespace moonpool::master
