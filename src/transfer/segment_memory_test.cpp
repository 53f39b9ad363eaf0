#include "transfer/segment_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
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
  const auto time_to_end = [] {
    // Larger than can be touched in that time, and mostly never touched.
    auto memory = SegmentMemory::map(std::uint64_t{8} << 30);
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    const auto start = Deadline::Clock::now();
    if (memory.ok()) *memory = nullptr;
    return Deadline::Clock::now() - start;
  };
  EXPECT_TRUE(test::takes_less_than(seconds(1), time_to_end));
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

std::uint64_t free_huge_pages() {
  std::ifstream file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  std::uint64_t count = 0;
  file >> count;
  return count;
}

// What /proc/self/smaps says of the mapping that begins at `address`.
std::uint64_t kernel_page_kib(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  std::ostringstream begin;
  begin << std::hex << reinterpret_cast<std::uintptr_t>(address) << '-';
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with(begin.str())) inside = true;
    if (inside && line.starts_with("KernelPageSize:")) return std::stoull(line.substr(15));
  }
  return 0;
}

constexpr std::size_t kHugePage = std::size_t{2} << 20;

TEST(SegmentMemoryTest, HugePagesAreUsedWhereTheHostHasReservedThemAndReturnedToIt) {
  const auto before = free_huge_pages();
  if (before < 16) GTEST_SKIP() << "this host has " << before << " huge pages of 2 MiB free; 16 are needed (sysctl vm.nr_hugepages=64)";
  {
    auto memory = SegmentMemory::map(16 * kHugePage - 5000, HugePages::kIfReserved);
    ASSERT_TRUE(memory.ok()) << memory.status().to_string();
    const auto bytes = (*memory)->bytes();
    EXPECT_TRUE((*memory)->huge());
    EXPECT_TRUE((*memory)->touched());
    EXPECT_EQ(bytes.size(), 16 * kHugePage);
    EXPECT_EQ(kernel_page_kib(bytes.data()), 2048U);
    EXPECT_EQ(free_huge_pages(), before - 16);
    bytes.front() = std::byte{1};
    bytes.back() = std::byte{2};
    // A peer maps the same pages, and need not know that they are huge: not even when it wants fewer bytes than there are.
    {
      auto peer = SharedMemory::map(net::UniqueFd(::dup((*memory)->fd())), bytes.size() - 100, SharedMemory::Access::kReadWrite);
      ASSERT_TRUE(peer.ok()) << peer.status().to_string();
      EXPECT_EQ(peer->bytes().front(), std::byte{1});
      const void* const mapped = peer->bytes().data();
      EXPECT_EQ(kernel_page_kib(mapped), 2048U);
      *peer = SharedMemory();
      EXPECT_EQ(kernel_page_kib(mapped), 0U) << "still mapped";
    }
    (*memory)->want(bytes.size());
    (*memory)->discard(kHugePage / 2, 4 * kHugePage);
    EXPECT_EQ(bytes.front(), std::byte{1});
    EXPECT_EQ(bytes.back(), std::byte{2});
    EXPECT_EQ(free_huge_pages(), before - 13) << "three whole ones lie in that range";
  }
  EXPECT_EQ(free_huge_pages(), before);
}

TEST(SegmentMemoryTest, WithoutEnoughHugePagesASegmentHasOrdinaryOnes) {
  const auto free = free_huge_pages();
  auto memory = SegmentMemory::map((free + 1) * kHugePage, HugePages::kIfReserved);
  ASSERT_TRUE(memory.ok()) << memory.status().to_string();
  EXPECT_FALSE((*memory)->huge());
  EXPECT_EQ(free_huge_pages(), free);
  (*memory)->bytes().back() = std::byte{1};
}

TEST(SegmentMemoryTest, HugePagesAreNotWastedOnSmallSegmentsNorUsedUnasked) {
  auto small = SegmentMemory::map(kHugePage + 4096, HugePages::kIfReserved);
  ASSERT_TRUE(small.ok());
  EXPECT_FALSE((*small)->huge());
  auto unasked = SegmentMemory::map(8 * kHugePage);
  ASSERT_TRUE(unasked.ok());
  EXPECT_FALSE((*unasked)->huge());
  const auto impossible = SegmentMemory::map(~0ULL, HugePages::kIfReserved);
  EXPECT_EQ(impossible.code(), ErrorCode::kInternal);
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
