#include "transfer/segment_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "tests/support/test_support.h"

namespace moonpool::transfer {
namespace {

using std::chrono::seconds;

std::size_t resident_pages(MutableBytes bytes) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> map((bytes.size() + page - 1) / page);
  EXPECT_EQ(::mincore(bytes.data(), bytes.size(), map.data()), 0);
  std::size_t count = 0;
  for (const auto flags : map) count += flags & 1U;
  return count;
}

TEST(SegmentMemoryTest, IsRoundedUpToPagesAndTouchedAhead) {
  auto memory = SegmentMemory::map(20'000'001);
  ASSERT_TRUE(memory.ok()) << memory.status().to_string();
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto bytes = (*memory)->bytes();
  EXPECT_EQ(bytes.size() % page, 0U);
  EXPECT_GE(bytes.size(), 20'000'001U);
  ASSERT_TRUE(test::wait_until([&] { return (*memory)->touched(); }, Deadline::after(seconds(30))));
  EXPECT_EQ(resident_pages(bytes), bytes.size() / page);
}

TEST(SegmentMemoryTest, WritesDuringTheTouchSurvive) {
  auto memory = SegmentMemory::map(64 << 20);
  ASSERT_TRUE(memory.ok());
  const auto bytes = (*memory)->bytes();
  for (std::size_t at = 0; at < bytes.size(); at += 4096) bytes[at] = std::byte{7};
  ASSERT_TRUE(test::wait_until([&] { return (*memory)->touched(); }, Deadline::after(seconds(30))));
  for (std::size_t at = 0; at < bytes.size(); at += 4096) ASSERT_EQ(bytes[at], std::byte{7});
}

TEST(SegmentMemoryTest, DestructionDoesNotWaitForTheTouchOfALargeMapping) {
  // Larger than can be touched in the bound below, and mostly never touched.
  auto memory = SegmentMemory::map(std::uint64_t{8} << 30);
  ASSERT_TRUE(memory.ok()) << memory.status().to_string();
  const auto start = Deadline::Clock::now();
  *memory = nullptr;
  EXPECT_LT(Deadline::Clock::now() - start, seconds(1));
}

TEST(SegmentMemoryTest, IsTouchedOnlyALeadBeyondWhatIsWanted) {
  constexpr std::size_t kLead = SegmentMemory::kTouchAhead;
  auto memory = SegmentMemory::map(4 * kLead);
  ASSERT_TRUE(memory.ok());
  ASSERT_TRUE(test::wait_until([&] { return (*memory)->touched(); }, Deadline::after(seconds(60))));
  EXPECT_EQ(resident_pages((*memory)->bytes()), kLead / 4096);
  (*memory)->want(4096);
  ASSERT_TRUE(test::wait_until([&] { return (*memory)->touched(); }, Deadline::after(seconds(60))));
  const auto pages = resident_pages((*memory)->bytes());
  EXPECT_GT(pages, kLead / 4096);
  EXPECT_LT(pages, 2 * kLead / 4096);
}

TEST(SegmentMemoryTest, AskingForTooMuchNamesTheSizeAndWhatIsThere) {
  const auto memory = SegmentMemory::map(std::uint64_t{1} << 52);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.code(), ErrorCode::kInternal);
  EXPECT_NE(memory.status().message().find("4503599627370496"), std::string::npos);
  EXPECT_NE(memory.status().message().find("available"), std::string::npos);
  EXPECT_EQ(SegmentMemory::map(~0ULL).code(), ErrorCode::kInternal);
  EXPECT_EQ(SegmentMemory::map(0).code(), ErrorCode::kInvalidParams);
}

TEST(SegmentMemoryTest, LentMemoryIsLeftAlone) {
  std::vector<std::byte> mine(10000, std::byte{3});
  {
    const auto memory = SegmentMemory::lend(mine);
    EXPECT_TRUE(memory->touched());
    EXPECT_EQ(memory->bytes().data(), mine.data());
  }
  EXPECT_EQ(mine[9999], std::byte{3});
}

}  // namespace
}  // namespace moonpool::transfer
