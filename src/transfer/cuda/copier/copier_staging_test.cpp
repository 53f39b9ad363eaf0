// Launches whose bytes pass through memory of the device: which ones do, what they move, and what becomes of the memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <thread>

#include "transfer/cuda/copier/copier_rig_for_test.h"
#include "transfer/cuda/copier/device_staging.h"
#include "transfer/cuda/copier/launch_plan.h"

namespace moonpool::transfer::cuda {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kMiB = 1024 * kKiB;
constexpr std::uint64_t kBuffer = DeviceStaging::kBufferBytes;

class CopierStagingTest : public CopierRig {
 protected:
  // All launches are staged that can be.
  static Settings all_staged(std::uint64_t buffers = 6) {
    Settings settings;
    settings.least_staged = 0;
    settings.device_staging_bytes = buffers * kBuffer;
    return settings;
  }

  static constexpr std::uint64_t kPiece = 150 * kKiB;  // large, so that no table has to be copied

  // Jobs whose host memory lies in one region, `gap` bytes between one and the next.
  struct Batch {
    std::deque<Scattered> scattered;
    std::deque<std::vector<std::uint64_t>> sums;
    std::vector<CopyJob> jobs;
    MutableBytes memory;  // of all
  };
  Batch batch(int device, const std::vector<std::uint64_t>& lengths, std::size_t gap = 0, bool hashed = true) {
    Batch made;
    std::size_t size = 1;
    for (const auto length : lengths) size += length + gap;
    made.memory = host(size);
    std::size_t at = 1;  // from an odd address on
    for (const auto length : lengths) {
      const auto& scattered = made.scattered.emplace_back(pieces_of(device, length, kPiece, static_cast<std::uint32_t>(length)));
      made.jobs.push_back(job_of(scattered, made.memory.subspan(at, length), hashed ? &made.sums.emplace_back() : nullptr));
      at += length + gap;
    }
    return made;
  }

  void gather(const Batch& of) {
    std::ranges::fill(of.memory, std::byte{0xEE});
    const Status status = run(Direction::kGather, of.jobs);
    ASSERT_TRUE(status.ok()) << status.to_string();
    expect_gathered(of);
  }
  static void expect_gathered(const Batch& of) {
    const std::byte* end = of.memory.data();
    for (std::size_t i = 0; i < of.jobs.size(); ++i) {
      const auto expected = of.scattered[i].bytes();
      const auto memory = of.jobs[i].contiguous;
      EXPECT_TRUE(std::ranges::equal(memory, expected)) << i;
      if (!of.sums.empty()) {
        EXPECT_EQ(of.sums[i], checksums_of(expected)) << i;
      }
      EXPECT_TRUE(std::all_of(end, static_cast<const std::byte*>(memory.data()), [](std::byte one) { return one == std::byte{0xEE}; }))
          << i;
      end = memory.data() + memory.size();
    }
  }
  // The device's memory is as it was, in the end.
  void scatter(Batch& of) {
    std::ranges::copy(random_bytes(of.memory.size(), 99), of.memory.begin());
    for (auto& sums : of.sums) std::ranges::fill(sums, 7);
    const Status status = run(Direction::kScatter, of.jobs);
    ASSERT_TRUE(status.ok()) << status.to_string();
    for (std::size_t i = 0; i < of.jobs.size(); ++i) {
      EXPECT_EQ(peek(of.scattered[i]), of.scattered[i].image_with(of.jobs[i].contiguous)) << i;
      if (!of.sums.empty()) {
        EXPECT_EQ(of.sums[i], checksums_of(of.jobs[i].contiguous)) << i;
      }
      driver_->poke(of.scattered[i].base, of.scattered[i].image);
    }
  }
  // Both ways, with so many of the driver's copies a launch, 0 for a launch that is not staged.
  void expect_moved(Batch&& of, std::uint64_t copies) { expect_moved(of, copies); }
  void expect_moved(Batch& of, std::uint64_t copies) {
    const auto before = driver_->counts();
    const auto staged = copier_->counters().staged;
    gather(of);
    EXPECT_EQ(driver_->counts().copies, before.copies + copies);
    EXPECT_EQ(copier_->counters().staged, staged + (copies > 0 ? 1 : 0));
    scatter(of);
    EXPECT_EQ(driver_->counts().copies, before.copies + 2 * copies);
    EXPECT_EQ(copier_->counters().staged, staged + (copies > 0 ? 2 : 0));
    EXPECT_EQ(driver_->counts().launches, before.launches + 2);
    if (copies == 0) {
      EXPECT_EQ(driver_->counts().allocations, before.allocations);
    }
  }
};

TEST_F(CopierStagingTest, JobsWhoseHostMemoryTouchesAreOneCopy) {
  start({}, all_staged());
  expect_moved(batch(0, {kMiB, 512 * kKiB + 48, 700 * kKiB + 7}), 1);
  expect_moved(batch(1, {3 * kMiB + 240}), 1);
  EXPECT_EQ(copier_->counters().copies, 0U) << "those are of pieces";
}

TEST_F(CopierStagingTest, JobsWhoseHostMemoryDoesNotTouchAreACopyEach) {
  start({}, all_staged());
  expect_moved(batch(0, {kMiB, kMiB, kMiB}, 1), 3);
}

TEST_F(CopierStagingTest, WhatWouldNotBeAlignedInTheDevicesMemoryIsACopyOfItsOwn) {
  start({}, all_staged());
  expect_moved(batch(0, {kMiB + 5, kMiB, 512 * kKiB + 1, 512 * kKiB + 241}), 3);
}

TEST_F(CopierStagingTest, WithoutChecksumsTheBytesAreRightAsWell) {
  start({}, all_staged());
  expect_moved(batch(0, {kMiB + 16, kMiB + 3}, 0, false), 1);
}

TEST_F(CopierStagingTest, EachDeviceStagesItsOwn) {
  start({}, all_staged());
  const auto first = batch(0, {kMiB + 1});
  const auto second = batch(1, {2 * kMiB + 100});
  const std::vector jobs = {first.jobs[0], second.jobs[0]};
  const auto allocations = driver_->counts().allocations;
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  expect_gathered(first);
  expect_gathered(second);
  EXPECT_EQ(copier_->counters().staged, 2U);
  EXPECT_EQ(driver_->counts().copies, 2U);
  EXPECT_EQ(driver_->counts().allocations, allocations + 2);
}

TEST_F(CopierStagingTest, ALargeTableIsCopiedAsWell) {
  start({}, all_staged());
  const auto scattered = scatter_out(0, std::vector<std::size_t>(1000, 4096), 3);
  std::vector<std::uint64_t> sums;
  const std::vector jobs = {job_of(scattered, host(scattered.length), &sums)};
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, scattered.bytes()));
  EXPECT_EQ(sums, checksums_of(scattered.bytes()));
  EXPECT_EQ(driver_->counts().copies, 2U);
  EXPECT_EQ(copier_->counters().staged, 1U);
}

TEST_F(CopierStagingTest, SmallLaunchesReachTheHostsMemoryThemselves) {
  start();  // from 4 MiB on
  expect_moved(batch(0, {4 * kMiB - 1}), 0);
  expect_moved(batch(0, {4 * kMiB}), 1);
}

TEST_F(CopierStagingTest, LaunchesThatABufferHasNoRoomForAreNotStaged) {
  start({}, all_staged());
  expect_moved(batch(0, {kBuffer + 1}), 0);
  expect_moved(batch(0, {kBuffer}), 1);
}

TEST_F(CopierStagingTest, CopiesThatWouldBeTooSmallAreNotMade) {
  start({}, all_staged());
  expect_moved(batch(0, std::vector<std::uint64_t>(12, 250 * kKiB), 1), 0);
  expect_moved(batch(0, std::vector<std::uint64_t>(12, 250 * kKiB)), 1);
}

TEST_F(CopierStagingTest, SettingsMayLeaveItOut) {
  for (const auto bytes : {std::uint64_t{0}, kBuffer - 1}) {
    auto settings = all_staged();
    settings.device_staging_bytes = bytes;
    copier_.reset();
    start({}, settings);
    expect_moved(batch(0, {2 * kMiB}), 0);
  }
}

TEST_F(CopierStagingTest, BetweenDevicesNothingIsStaged) {
  start({}, all_staged());
  ASSERT_TRUE(driver_->enable_peer_access(0, 1).ok());
  const auto scattered = pieces_of(0, 2 * kMiB, kPiece, 8);
  CopyJob job = job_of(scattered, {}, nullptr);
  job.device_address = allocate(1, scattered.length);
  ASSERT_TRUE(run(Direction::kGather, {&job, 1}).ok());
  std::vector<std::byte> arrived(scattered.length);
  driver_->peek(job.device_address, arrived);
  EXPECT_EQ(arrived, scattered.bytes());
  EXPECT_EQ(copier_->counters().staged, 0U);
  EXPECT_EQ(driver_->counts().copies, 0U);
}

TEST_F(CopierStagingTest, WithoutKernelsNothingIsStaged) {
  for (const auto direction : {Direction::kScatter, Direction::kGather}) {  // the first one finds out that there are none
    FakeOptions options;
    options.kernels = false;
    copier_.reset();
    start(options, all_staged());
    auto moved = batch(0, {kMiB + 5, kMiB});
    for (int i = 0; i < 2; ++i) direction == Direction::kGather ? gather(moved) : scatter(moved);
    EXPECT_EQ(copier_->counters().staged, 0U);
  }
}

TEST_F(CopierStagingTest, WithoutMemoryOnTheDeviceCopiesGoWithoutAndItIsNotAskedForAtOnce) {
  start({}, all_staged());
  auto moved = batch(0, {2 * kMiB + 7, kMiB});
  ::testing::internal::CaptureStderr();
  driver_->fail("allocate", {ErrorCode::kNoAvailableHandle, "CUDA_ERROR_OUT_OF_MEMORY"});
  expect_moved(moved, 0);
  expect_moved(moved, 0);
  static_cast<void>(::testing::internal::GetCapturedStderr());
  expect_moved(batch(1, {2 * kMiB}), 1);  // another device has some
}

TEST_F(CopierStagingTest, ABufferIsUsedAgainAndGoneAtTheEnd) {
  start({}, all_staged());
  auto moved = batch(0, {2 * kMiB + 7});
  const auto before = driver_->counts();
  for (int i = 0; i < 3; ++i) expect_moved(moved, 1);
  EXPECT_EQ(driver_->counts().allocations, before.allocations + 1);
  EXPECT_EQ(driver_->counts().frees, before.frees);
  copier_.reset();
  EXPECT_EQ(driver_->counts().frees, before.frees + 1);
}

TEST_F(CopierStagingTest, ABufferWhoseWorkFailedIsNotUsedAgain) {
  start({}, all_staged());
  const auto moved = batch(0, {2 * kMiB, kMiB}, 1);
  struct Fault {
    const char* function;
    int skip;
    bool late;
  };
  for (const auto direction : {Direction::kGather, Direction::kScatter}) {
    for (const auto& fault :
         {Fault{"copy", 0, true}, Fault{"copy", 1, true}, Fault{"copy", 1, false}, Fault{"launch", 0, true}, Fault{"launch", 0, false}}) {
      gather(moved);  // there is a buffer
      const auto before = driver_->counts();
      driver_->fail(fault.function, {ErrorCode::kInternal, "a fault"}, fault.skip, fault.late);
      const Status status = run(direction, moved.jobs);
      EXPECT_EQ(status.code(), ErrorCode::kInternal) << fault.function << fault.skip << fault.late;
      EXPECT_THAT(status.message(), HasSubstr("a fault"));
      EXPECT_EQ(driver_->counts().frees, before.frees + 1) << fault.function << fault.skip << fault.late;
      for (const auto& scattered : moved.scattered) driver_->poke(scattered.base, scattered.image);
      const auto staged = copier_->counters().staged;
      gather(moved);
      EXPECT_EQ(copier_->counters().staged, staged + 1);
      EXPECT_EQ(driver_->counts().allocations, before.allocations + 1);
    }
  }
}

TEST_F(CopierStagingTest, ABufferThatNothingWasQueuedForIsKept) {
  start({}, all_staged());
  const auto moved = batch(0, {2 * kMiB});
  gather(moved);
  const auto before = driver_->counts();
  driver_->fail("record", {ErrorCode::kInternal, "a fault"});
  EXPECT_EQ(run(Direction::kGather, moved.jobs).code(), ErrorCode::kInternal);
  gather(moved);
  EXPECT_EQ(driver_->counts().frees, before.frees);
  EXPECT_EQ(driver_->counts().allocations, before.allocations);
}

TEST_F(CopierStagingTest, LaunchesThatFindNoBufferGoWithout) {
  constexpr std::size_t kBuffers = 2;
  start({}, all_staged(kBuffers));
  std::deque<Batch> batches;
  for (std::uint64_t i = 0; i < 5; ++i) batches.push_back(batch(0, {kMiB + i}));
  const auto allocations = driver_->counts().allocations;
  std::vector<std::unique_ptr<Copier::Ticket>> tickets;
  driver_->hold_streams();
  for (const auto& one : batches) {
    auto ticket = copier_->submit(Direction::kGather, one.jobs, Stream::kLegacyDefault);
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    tickets.push_back(std::move(ticket).value());
  }
  EXPECT_EQ(copier_->counters().staged, kBuffers);
  driver_->release_streams();
  for (const auto& ticket : tickets) EXPECT_TRUE(copier_->wait(*ticket, soon()).ok());
  for (const auto& one : batches) expect_gathered(one);
  EXPECT_EQ(driver_->counts().allocations, allocations + kBuffers);
}

TEST_F(CopierStagingTest, StagedLaunchesMayHaveAllMultiprocessorsHoweverManyThereAre) {
  start({}, all_staged());
  std::deque<Batch> batches;  // each to memory of its own
  for (int i = 0; i < 3; ++i) batches.push_back(batch(0, {2 * kMiB}));
  std::vector<std::unique_ptr<Copier::Ticket>> tickets;
  driver_->hold_streams();
  for (const auto& moved : batches) {
    auto ticket = copier_->submit(Direction::kGather, moved.jobs, Stream::kLegacyDefault);
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    tickets.push_back(std::move(ticket).value());
    EXPECT_EQ(driver_->counts().last_blocks, 4U);
  }
  driver_->release_streams();
  for (const auto& ticket : tickets) EXPECT_TRUE(copier_->wait(*ticket, soon()).ok());
}

TEST_F(CopierStagingTest, CallersAtTheSameTimeShareTheBuffers) {
  constexpr std::size_t kBuffers = 2;
  constexpr std::size_t kCallers = 5;
  constexpr int kRounds = 4;
  start({}, all_staged(kBuffers));
  std::deque<Batch> batches;
  for (std::uint64_t i = 0; i < kCallers; ++i) batches.push_back(batch(0, {512 * kKiB, 300 * kKiB + i}, i % 2));
  const auto allocations = driver_->counts().allocations;
  std::vector<std::thread> callers;
  for (auto& mine : batches) {
    callers.emplace_back([this, &mine] {
      for (int i = 0; i < kRounds; ++i) {
        gather(mine);
        scatter(mine);
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(copier_->counters().launches, kCallers * kRounds * 2);
  EXPECT_GE(copier_->counters().staged, kBuffers);
  EXPECT_LE(driver_->counts().allocations, allocations + kBuffers);
  EXPECT_EQ(driver_->counts().touched_unpinned, 0U);
}

// ---------------------------------------------------------------- what is planned

class PlanStagingTest : public ::testing::Test {
 protected:
  using Copy = std::array<std::uint64_t, 3>;  // host, staged at, length

  void add(std::uint64_t host, std::uint64_t length, const HostRegions::Use& region) {
    CopyJob job;
    job.length = length;
    Part part;
    part.job = job;
    part.contiguous = host;
    part.use = region;
    launch_.add(std::move(part));
  }
  std::vector<Copy> copies() const {
    std::vector<Copy> all;
    for (const auto& copy : launch_.copies) all.push_back({copy.host, copy.staged_at, copy.length});
    return all;
  }
  std::vector<std::uint64_t> places() const {
    std::vector<std::uint64_t> all;
    for (const auto& part : launch_.parts) all.push_back(part.staged_at);
    return all;
  }

  static constexpr std::uint64_t kHost = 0x10003;
  const HostRegions::Use region_ = std::make_shared<char>();
  const HostRegions::Use other_ = std::make_shared<char>();
  Launch launch_;
};

TEST_F(PlanStagingTest, NeighboursOfARegionAreOneCopyAsLongAsEachIsAligned) {
  add(kHost, kMiB, region_);
  add(kHost + kMiB, kMiB + 3, region_);
  add(kHost + 2 * kMiB + 3, kMiB, region_);
  add(kHost + 4 * kMiB, kMiB, region_);
  ASSERT_TRUE(launch_.plan_staging(0));
  EXPECT_EQ(places(), (std::vector<std::uint64_t>{0, kMiB, 2 * kMiB + 16, 3 * kMiB + 16}));
  EXPECT_EQ(copies(), (std::vector<Copy>{
                          {kHost, 0, 2 * kMiB + 3}, {kHost + 2 * kMiB + 3, 2 * kMiB + 16, kMiB}, {kHost + 4 * kMiB, 3 * kMiB + 16, kMiB}}));
}

TEST_F(PlanStagingTest, NeighboursAreOneCopyInWhicheverOrderTheJobsCome) {
  add(kHost + 2 * kMiB, kMiB, region_);
  add(kHost, kMiB, region_);
  add(kHost + kMiB, kMiB, region_);
  ASSERT_TRUE(launch_.plan_staging(0));
  EXPECT_EQ(places(), (std::vector<std::uint64_t>{2 * kMiB, 0, kMiB}));
  EXPECT_EQ(copies(), (std::vector<Copy>{{kHost, 0, 3 * kMiB}}));
}

TEST_F(PlanStagingTest, ACopyDoesNotReachFromOneRegionIntoTheNext) {
  add(kHost, kMiB, region_);
  add(kHost + kMiB, kMiB, other_);
  ASSERT_TRUE(launch_.plan_staging(0));
  EXPECT_EQ(copies().size(), 2U);
}

TEST_F(PlanStagingTest, WhatAlignmentAddsHasToFitAsWell) {
  add(kHost, kBuffer / 2 - 8, region_);
  add(kHost + kBuffer, kBuffer / 2 + 4, region_);
  EXPECT_FALSE(launch_.plan_staging(0)) << "its bytes alone would fit";
  EXPECT_TRUE(launch_.copies.empty());
}

TEST_F(PlanStagingTest, ItHasToPay) {
  add(kHost, 256 * kKiB - 1, region_);
  EXPECT_FALSE(launch_.plan_staging(0)) << "too small a copy";
  EXPECT_TRUE(launch_.copies.empty());
  add(kHost + kMiB, 256 * kKiB + 1, region_);
  EXPECT_FALSE(launch_.plan_staging(512 * kKiB + 1)) << "too small a launch";
  EXPECT_TRUE(launch_.plan_staging(512 * kKiB));
}

}  // namespace
}  // namespace moonpool::transfer::cuda
