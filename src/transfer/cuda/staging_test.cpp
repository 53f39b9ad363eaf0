#include "transfer/cuda/staging.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/cuda/fake/fake_driver.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

Deadline soon() { return Deadline::after(seconds(60)); }
Deadline at_once() { return Deadline::after(milliseconds(0)); }

class StagingTest : public ::testing::Test {
 protected:
  void start(std::uint64_t bytes = 4 * kMiB, const FakeOptions& options = {}) {
    driver_ = FakeDriver::create(options);
    regions_ = std::make_unique<HostRegions>(*driver_);
    Settings settings;
    settings.staging_bytes = bytes;
    staging_ = std::make_unique<Staging>(*driver_, *regions_, settings);
  }

  Staging::Lease lease(std::uint64_t size) {
    auto result = staging_->acquire(size, at_once());
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    if (!result) return {};
    EXPECT_EQ(result->memory().size(), size);
    return std::move(result).value();
  }

  bool free_now(std::uint64_t size) {
    const auto result = staging_->try_acquire(size);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    return result && result->memory().size() == size;
  }

  std::unique_ptr<FakeDriver> driver_;
  std::unique_ptr<HostRegions> regions_;
  std::unique_ptr<Staging> staging_;
};

TEST_F(StagingTest, TheRingIsMadeAtItsFirstUseAndItsLeasesArePinned) {
  start();
  EXPECT_EQ(staging_->capacity(), 4 * kMiB);
  EXPECT_EQ(driver_->counts().pinned_bytes, 0U);
  {
    const auto one = lease(100'000);
    const auto two = lease(1);
    EXPECT_EQ(driver_->counts().pinned_bytes, 4 * kMiB);
    EXPECT_TRUE(regions_->device_address(0, one.memory()).has_value());
    EXPECT_TRUE(regions_->device_address(1, two.memory()).has_value());
    const bool apart = one.memory().data() + one.memory().size() <= two.memory().data() || two.memory().data() + 1 <= one.memory().data();
    EXPECT_TRUE(apart);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(two.memory().data()) % 4096, 0U);
  }
  EXPECT_TRUE(lease(0).memory().empty());
  EXPECT_TRUE(free_now(4 * kMiB)) << "what ended is whole again";
  const auto* const memory = lease(1).memory().data();
  staging_.reset();
  EXPECT_EQ(driver_->counts().pinned_bytes, 0U);
  EXPECT_FALSE(regions_->device_address(0, {memory, 1}).has_value());
}

TEST_F(StagingTest, LeasesEndInAnyOrderAndTheRingWrapsAround) {
  start();
  std::vector<Staging::Lease> leases;
  for (int i = 0; i < 4; ++i) leases.push_back(lease(kMiB));
  EXPECT_FALSE(free_now(1));
  leases[2] = {};
  leases[0] = {};
  EXPECT_TRUE(free_now(kMiB));
  EXPECT_FALSE(free_now(2 * kMiB)) << "the free parts do not touch";
  leases[1] = {};
  EXPECT_TRUE(free_now(3 * kMiB)) << "now they do";
  // One that is held for long does not keep the others from going round and round.
  const auto* const held = leases[3].memory().data();
  for (int i = 0; i < 20; ++i) {
    const auto one = lease(kMiB + 5);
    const auto two = lease(kMiB);
    EXPECT_NE(one.memory().data(), held);
    EXPECT_NE(two.memory().data(), held);
  }
  leases.clear();
  EXPECT_TRUE(free_now(4 * kMiB));
}

TEST_F(StagingTest, ALeaseMovesAndIsGivenBackOnce) {
  start();
  auto one = lease(3 * kMiB);
  auto two = std::move(one);
  EXPECT_TRUE(one.memory().empty());  // NOLINT(bugprone-use-after-move): what is left is what is tested
  EXPECT_FALSE(free_now(2 * kMiB));
  two = lease(kMiB);
  EXPECT_TRUE(free_now(3 * kMiB));
  EXPECT_FALSE(free_now(4 * kMiB));
}

#ifdef MOONPOOL_SYNC_POINTS
TEST_F(StagingTest, WaitersAreServedInTheirOrder) {
  start();
  auto all = lease(4 * kMiB);
  std::atomic<int> waiting{0};
  SyncPoints::instance().on("cuda.staging.waits", [&] { ++waiting; });
  std::mutex mutex;
  std::vector<int> order;
  const auto served = [&] {
    const std::lock_guard lock(mutex);
    return order;
  };
  std::atomic<bool> give_back{false};
  std::vector<std::thread> waiters;
  // The first one wants more than the others: it is not overtaken by them although they would fit sooner. The last one would fit beside
  // it, but comes after one that does not.
  const std::vector<std::uint64_t> sizes = {3 * kMiB, kMiB / 2, kMiB, kMiB / 4};
  for (int i = 0; i < 4; ++i) {
    waiters.emplace_back([&, i] {
      const auto result = staging_->acquire(sizes[static_cast<std::size_t>(i)], soon());
      ASSERT_TRUE(result.ok());
      {
        const std::lock_guard lock(mutex);
        order.push_back(i);
      }
      EXPECT_TRUE(test::wait_until([&] { return give_back.load(); }, soon()));
    });
    ASSERT_TRUE(test::wait_until([&] { return waiting == i + 1; }, soon()));
  }
  SyncPoints::instance().clear();
  all = {};
  EXPECT_TRUE(test::wait_until([&] { return served().size() == 2; }, soon()));
  EXPECT_FALSE(free_now(kMiB / 4)) << "who comes now comes after the last";
  EXPECT_FALSE(test::wait_until([&] { return served().size() > 2; }, Deadline::after(milliseconds(50))));
  auto first = served();
  std::ranges::sort(first);
  EXPECT_EQ(first, (std::vector{0, 1}));
  give_back = true;
  for (auto& waiter : waiters) waiter.join();
  EXPECT_TRUE(free_now(4 * kMiB));
}
#endif

TEST_F(StagingTest, ALargeRequestIsNotStarvedBySmallOnes) {
  start();
  auto first = lease(2 * kMiB);
  auto second = lease(2 * kMiB);
  std::atomic<bool> served{false};
  std::thread large([&] {
    const auto result = staging_->acquire(4 * kMiB, soon());
    EXPECT_TRUE(result.ok());
    served = true;
  });
  first = {};
  // As soon as it waits, nobody else gets what is free.
  EXPECT_TRUE(test::wait_until([&] { return !free_now(kMiB); }, soon()));
  EXPECT_FALSE(served);
  second = {};
  large.join();
  EXPECT_TRUE(free_now(4 * kMiB));
}

TEST_F(StagingTest, AWaitEndsAtItsDeadlineAndLetsLaterOnesThrough) {
  start();
  const auto held = lease(3 * kMiB);
  std::atomic<bool> small_served{false};
  std::thread large([&] { EXPECT_EQ(staging_->acquire(2 * kMiB, Deadline::after(milliseconds(300))).code(), ErrorCode::kRpcTimeout); });
  EXPECT_TRUE(test::wait_until([&] { return !free_now(kMiB); }, soon()));
  std::thread small([&] {
    EXPECT_TRUE(staging_->acquire(kMiB, soon()).ok());
    small_served = true;
  });
  large.join();
  small.join();
  EXPECT_TRUE(small_served);
  EXPECT_TRUE(free_now(kMiB));
}

TEST_F(StagingTest, WhatIsLargerThanTheRingGetsMemoryOfItsOwn) {
  start();
  {
    const auto large = lease(5 * kMiB);
    EXPECT_TRUE(regions_->device_address(0, large.memory()).has_value());
    EXPECT_EQ(driver_->counts().pinned_bytes, 5 * kMiB) << "the ring is not needed for it";
    const auto small = lease(kMiB);
    EXPECT_EQ(driver_->counts().pinned_bytes, 9 * kMiB);
  }
  EXPECT_EQ(driver_->counts().pinned_bytes, 4 * kMiB);
  driver_->fail("allocate_host", {ErrorCode::kNoAvailableHandle, "CUDA_ERROR_OUT_OF_MEMORY"});
  EXPECT_EQ(staging_->acquire(5 * kMiB, soon()).code(), ErrorCode::kNoAvailableHandle);
  EXPECT_TRUE(free_now(4 * kMiB));
}

TEST_F(StagingTest, ARingThatCannotBePinnedIsMadeSmaller) {
  FakeOptions options;
  options.pinned_bytes = 3 * kMiB;
  start(4 * kMiB, options);
  const auto one = lease(kMiB);
  EXPECT_EQ(staging_->capacity(), 2 * kMiB);
  EXPECT_TRUE(free_now(kMiB));
  EXPECT_EQ(staging_->acquire(2 * kMiB, at_once()).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(staging_->acquire(3 * kMiB, at_once()).code(), ErrorCode::kNoAvailableHandle);
}

TEST_F(StagingTest, WithoutAnyPinnedMemoryTheReasonIsTheAnswer) {
  FakeOptions options;
  options.pinned_bytes = 4096;
  start(4 * kMiB, options);
  EXPECT_EQ(staging_->acquire(kMiB, soon()).code(), ErrorCode::kNoAvailableHandle);
  EXPECT_EQ(staging_->try_acquire(kMiB).code(), ErrorCode::kNoAvailableHandle);
}

TEST_F(StagingTest, ManyCallersNeverShareAByte) {
  start(2 * kMiB);
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int round = 0; round < 200; ++round) {
        const std::uint64_t size = 1 + random() % (kMiB + kMiB / 2);
        auto result = random() % 4 == 0 ? staging_->try_acquire(size) : staging_->acquire(size, soon());
        ASSERT_TRUE(result.ok()) << result.status().to_string();
        const auto memory = result->memory();
        if (memory.empty()) continue;
        // Ends are what neighbours would touch.
        const auto mark = static_cast<std::byte>(t * 40 + round % 40);
        memory.front() = memory.back() = memory[memory.size() / 2] = mark;
        std::this_thread::yield();
        ASSERT_EQ(memory.front(), mark);
        ASSERT_EQ(memory[memory.size() / 2], mark);
        ASSERT_EQ(memory.back(), mark);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(free_now(2 * kMiB));
}

}  // namespace
}  // namespace moonpool::transfer::cuda
