#include "master/allocator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <deque>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace moonpool::master {
namespace {

TEST(ExtentAllocatorTest, AHoleOfExactlyTheRightSizeIsUsed) {
  ExtentAllocator allocator(4 * 5000 * 256);
  allocator.seal();
  std::vector<std::uint64_t> taken;
  for (int i = 0; i < 4; ++i) {
    const auto offset = allocator.allocate(5000 * 256);
    ASSERT_TRUE(offset.has_value()) << i;
    taken.push_back(*offset);
  }
  EXPECT_FALSE(allocator.allocate(1).has_value());
  EXPECT_TRUE(allocator.free(taken[2]));
  EXPECT_EQ(allocator.allocate(5000 * 256 - 255), taken[2]);
  EXPECT_TRUE(allocator.consistent());
}

// A segment of extents of these sizes, in granules, with nothing free.
class Laid {
 public:
  explicit Laid(const std::vector<std::uint64_t>& sizes) : allocator(256 * std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0})) {
    for (const auto size : sizes) {
      offsets_.push_back(end_ * 256);
      EXPECT_TRUE(allocator.allocate_at(end_ * 256, size * 256));
      end_ += size;
    }
    allocator.seal();
  }
  void free(std::size_t which) { EXPECT_TRUE(allocator.free(offsets_[which])); }
  [[nodiscard]] std::uint64_t offset(std::size_t which) const { return offsets_[which]; }

  ExtentAllocator allocator;

 private:
  std::vector<std::uint64_t> offsets_;
  std::uint64_t end_ = 0;
};

TEST(ExtentAllocatorTest, TheSmallestHoleThatFitsIsTakenAndLargerOnesAreLeftWhole) {
  Laid laid({9000, 1, 5200, 1, 5005, 1, 5000, 1, 4980, 1});
  for (const std::size_t hole : {6U, 0U, 2U, 8U, 4U}) laid.free(hole);
  EXPECT_EQ(laid.allocator.allocate(4990 * 256), laid.offset(6));
  EXPECT_EQ(laid.allocator.allocate(5001 * 256), laid.offset(4));
  EXPECT_EQ(laid.allocator.allocate(5100 * 256), laid.offset(2));
  EXPECT_EQ(laid.allocator.allocate(9000 * 256), laid.offset(0));
  EXPECT_TRUE(laid.allocator.consistent());
}

TEST(ExtentAllocatorTest, TheOnlyHoleThatFitsIsFoundBehindManyOfItsClassThatDoNot) {
  std::vector<std::uint64_t> sizes{5010, 1};
  for (int i = 0; i < 20; ++i) sizes.insert(sizes.end(), {5000, 1});
  Laid laid(sizes);
  for (std::size_t hole = 0; hole < sizes.size(); hole += 2) laid.free(hole);
  EXPECT_EQ(laid.allocator.allocate(5005 * 256), laid.offset(0));
}

TEST(ExtentAllocatorTest, FourKibibyteObjectsWasteNothing) {
  ExtentAllocator allocator(1 << 20);
  allocator.seal();
  int count = 0;
  while (allocator.allocate(4096).has_value()) ++count;
  EXPECT_EQ(count, 256);
  EXPECT_EQ(allocator.free_bytes(), 0U);
}

TEST(ExtentAllocatorTest, RefusesWhatIsNotThereAndWhatIsTaken) {
  ExtentAllocator allocator(1000);  // three granules
  EXPECT_EQ(allocator.capacity(), 768U);
  EXPECT_TRUE(allocator.allocate_at(256, 10));
  EXPECT_FALSE(allocator.allocate_at(256, 10));
  EXPECT_FALSE(allocator.allocate_at(0, 300)) << "overlaps";
  EXPECT_FALSE(allocator.allocate_at(512, 257)) << "outside";
  EXPECT_FALSE(allocator.allocate_at(100, 10)) << "not at a granule";
  EXPECT_FALSE(allocator.allocate_at(~0ULL - 255, 512)) << "wraps";
  EXPECT_TRUE(allocator.allocate_at(512, 256));
  EXPECT_FALSE(allocator.free(0));
  EXPECT_FALSE(allocator.free(257));
  EXPECT_FALSE(allocator.free(~0ULL));
  EXPECT_TRUE(allocator.free(256));
  EXPECT_FALSE(allocator.free(256));
  EXPECT_TRUE(allocator.consistent());
}

TEST(ExtentAllocatorTest, AnEmptySegmentAndAHugeOneHold) {
  ExtentAllocator empty(100);
  EXPECT_FALSE(empty.allocate(1).has_value());
  EXPECT_TRUE(empty.consistent());
  ExtentAllocator huge(1ULL << 44);
  huge.seal();
  const auto offset = huge.allocate(1ULL << 43);
  ASSERT_TRUE(offset.has_value());
  EXPECT_TRUE(huge.allocate((1ULL << 43) - (1ULL << 20)).has_value());
  EXPECT_FALSE(huge.allocate(1ULL << 43).has_value());
  EXPECT_FALSE(huge.allocate(~0ULL).has_value());
  EXPECT_TRUE(huge.free(*offset));
  EXPECT_TRUE(huge.consistent());
}

// Against a naive model: no two extents overlap, counters agree, a request fails only when no hole of the model fits it with the
// allocator's bounded search, and when all is freed one block of the whole size is left.
TEST(ExtentAllocatorTest, AgreesWithANaiveModelUnderRandomWork) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 random(seed);
    constexpr std::uint64_t kCapacity = 1 << 20;
    ExtentAllocator allocator(kCapacity);
    const bool rebuild_first = seed % 2 == 0;
    std::map<std::uint64_t, std::uint64_t> model;  // offset -> rounded length
    const auto overlaps = [&](std::uint64_t offset, std::uint64_t length) {
      auto next = model.lower_bound(offset);
      if (next != model.end() && next->first < offset + length) return true;
      return next != model.begin() && std::prev(next)->first + std::prev(next)->second > offset;
    };
    if (rebuild_first) {
      for (int i = 0; i < 300; ++i) {
        const auto offset = random() % (kCapacity / 256) * 256;
        const auto length = 1 + random() % 8000;
        const bool fits = offset + length <= kCapacity && !overlaps(offset, allocator.rounded(length));
        ASSERT_EQ(allocator.allocate_at(offset, length), fits);
        if (fits) model[offset] = allocator.rounded(length);
      }
      ASSERT_TRUE(allocator.consistent());
    }
    allocator.seal();
    for (int step = 0; step < 4000; ++step) {
      if (random() % 5 < 3) {
        const auto length = random() % 10 == 0 ? 1 + random() % 200000 : 1 + random() % 9000;
        const auto offset = allocator.allocate(length);
        if (offset.has_value()) {
          ASSERT_FALSE(overlaps(*offset, allocator.rounded(length)));
          ASSERT_LE(*offset + length, kCapacity);
          model[*offset] = allocator.rounded(length);
        } else {
          std::uint64_t largest = 0;
          std::uint64_t end = 0;
          for (const auto& [start, size] : model) {
            largest = std::max(largest, start - end);
            end = start + size;
          }
          largest = std::max(largest, kCapacity - end);
          ASSERT_LT(largest, allocator.rounded(length)) << "seed " << seed << " step " << step;
        }
      } else if (!model.empty()) {
        auto victim = std::next(model.begin(), static_cast<std::ptrdiff_t>(random() % model.size()));
        ASSERT_TRUE(allocator.free(victim->first));
        model.erase(victim);
      }
      if (step % 97 == 0) {
        ASSERT_TRUE(allocator.consistent());
      }
    }
    std::uint64_t used = 0;
    for (const auto& [start, size] : model) used += size;
    ASSERT_EQ(allocator.used(), used);
    for (const auto& [start, size] : model) ASSERT_TRUE(allocator.free(start));
    ASSERT_TRUE(allocator.consistent());
    ASSERT_EQ(allocator.allocate(kCapacity), 0U) << "everything coalesced";
  }
}

enum class Victims { kOldest, kOfTheOldestQuarter, kAny };

const char* to_string(Victims victims) {
  if (victims == Victims::kOldest) return "oldest out first";
  return victims == Victims::kAny ? "anything out" : "one of the oldest quarter out";
}

// The pool's steady state: it is full, and every new object pushes out old ones until it fits. What is free at that moment and still not
// usable is what fragmentation costs.
double lost_to_fragmentation(std::uint64_t capacity, const std::vector<std::uint64_t>& sizes, Victims victims, unsigned seed) {
  ExtentAllocator allocator(capacity);
  allocator.seal();
  std::mt19937_64 random(seed);
  std::deque<std::uint64_t> held;
  double lost = 0;
  std::uint64_t failures = 0;
  std::uint64_t turned_over = 0;
  while (turned_over < 8 * capacity) {
    const auto size = sizes[random() % sizes.size()];
    auto offset = allocator.allocate(size);
    if (!offset) {
      // The first two turns fill the pool and bring it into its steady state.
      if (turned_over > 2 * capacity) {
        lost += static_cast<double>(allocator.free_bytes()) / static_cast<double>(capacity);
        ++failures;
      }
      while (!offset) {
        const auto among = victims == Victims::kAny ? held.size() : std::min(held.size(), 1 + held.size() / 4);
        const auto victim = victims == Victims::kOldest ? 0 : random() % among;
        EXPECT_TRUE(allocator.free(held[victim]));
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(victim));
        offset = allocator.allocate(size);
      }
    }
    held.push_back(*offset);
    turned_over += size;
  }
  EXPECT_GT(failures, 0U);
  return lost / static_cast<double>(failures);
}

std::vector<std::uint64_t> log_uniform(double least, double most) {
  std::vector<std::uint64_t> sizes;
  for (int i = 0; i < 4096; ++i) sizes.push_back(static_cast<std::uint64_t>(least * std::pow(most / least, i / 4096.0)));
  return sizes;
}

TEST(ExtentAllocatorTest, AFullPoolLosesAtMostOneTwentiethToFragmentation) {
  constexpr std::uint64_t kKiB = 1024;
  // Thousands of objects each: the fewer there are, the fewer holes there are to choose from, and the more is lost.
  struct Mix {
    const char* name;
    std::uint64_t capacity;
    std::vector<std::uint64_t> sizes;
  };
  const std::vector<Mix> mixes{
      {"small objects", 256U << 20, {4 * kKiB, 4 * kKiB + 1, 5000, 6 * kKiB, 8 * kKiB, 12345, 16 * kKiB}},
      {"blocks of several models", 2U << 30, {96 * kKiB, 160 * kKiB, 2880 * kKiB, 1152 * kKiB, 768 * kKiB}},
      {"4 KiB to 1 MiB", 2U << 30, {4 * kKiB, 16 * kKiB, 40000, 64 * kKiB, 100 * kKiB, 256 * kKiB, 700000, 1024 * kKiB}},
      {"log-uniform 4 KiB to 1 MiB", 3U << 30, log_uniform(4 * kKiB, 1024 * kKiB)},
  };
  for (const auto& [name, capacity, sizes] : mixes) {
    for (const auto victims : {Victims::kOldest, Victims::kOfTheOldestQuarter, Victims::kAny}) {
      const double lost = lost_to_fragmentation(capacity, sizes, victims, 11);
      std::printf("%s, %s: %.2f%% of a full pool lost\n", name, to_string(victims), 100 * lost);
      EXPECT_LE(lost, 0.05) << name << ", " << to_string(victims);
    }
  }
}

}  // namespace
}  // namespace moonpool::master
