// Device memory that NICs move themselves: on simulated NICs, which map the fake devices' dma-bufs. That they are a transport at all is
// told by transport_conformance_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "transfer/cuda/paths/device_world_for_test.h"

namespace moonpool::transfer::cuda {
namespace {

constexpr std::size_t kSize = 300'000;  // of an object
constexpr std::size_t kPiece = 10'000;

class GpuDirectTest : public ::testing::Test {
 protected:
  void SetUp() override { warm_up(world_); }
  ~GpuDirectTest() override { SyncPoints::instance().clear(); }

  // The first batch of a device goes by the host: it shows whether there are kernels.
  static void warm_up(World<RdmaRig>& world) {
    for (int device = 0; device < 2; ++device) {
      DeviceObjects small(world.driver(), device, 1, 4096, 4096);
      auto operations = world.writes(small, 1, 4096, kSegmentSize - 8192 - std::uint64_t(device) * 8192);
      world.write(operations);
      expect_ok(operations);
    }
    EXPECT_EQ(world.by_nic(), 0U);
  }
  static std::uint64_t bytes_of_nics(World<RdmaRig>& world) {
    return world.rig().fabric().counts("user0").bytes + world.rig().fabric().counts("user1").bytes;
  }
  static std::uint64_t dma_bufs(World<RdmaRig>& world) {
    return world.rig().fabric().counts("user0").dma_bufs + world.rig().fabric().counts("user1").dma_bufs;
  }

  World<RdmaRig> world_;
};

TEST_F(GpuDirectTest, NoByteOfAnObjectPassesThroughTheHost) {
  constexpr std::size_t kCount = 30;  // more than the ring holds at once
  const auto staged = world_.staged();
  const auto moved = bytes_of_nics(world_);
  round_trip(world_, kCount, kSize, kPiece, 1);
  EXPECT_EQ(world_.by_nic(), 2 * kCount * kSize);
  EXPECT_EQ(world_.staged(), staged);
  EXPECT_EQ(bytes_of_nics(world_) - moved, 2 * kCount * kSize);
  EXPECT_EQ(dma_bufs(world_), 4U) << "a ring a device, on each of two NICs";
}

TEST_F(GpuDirectTest, ManyPiecesAreOneWorkRequestAndAWindowIsOneLaunch) {
  DeviceObjects from(world_.driver(), 0, 3, kSize, 100);
  auto writes = world_.writes(from, 3, kSize);
  const auto launches = world_.runtime().copier().counters().launches;
  const auto requests = [&] {
    return world_.rig().fabric().counts("user0").work_requests + world_.rig().fabric().counts("user1").work_requests;
  };
  const auto before = requests();
  world_.write(writes);
  expect_ok(writes);
  EXPECT_EQ(world_.runtime().copier().counters().launches, launches + 1);
  EXPECT_LE(requests() - before, 2U * 3U) << "an extent, in stripes over two NICs at most";
}

TEST_F(GpuDirectTest, WhatADeviceCannotHashToTheEndOrTheRingCannotHoldIsStaged) {
  for (const std::size_t size : {std::size_t{kChecksumChunk + 7}, std::size_t(kRing + 1)}) {
    const auto staged = world_.staged();
    round_trip(world_, 1, size, 50'000, size);
    EXPECT_EQ(world_.staged(), staged + 2 * size);
  }
  EXPECT_EQ(world_.by_nic(), 0U);
}

TEST_F(GpuDirectTest, PartsOfAnExtentAreStagedAndRight) {
  DeviceObjects from(world_.driver(), 0, 1, kSize, kPiece);
  const auto value = random_bytes(kSize, 1);
  from.set(0, value);
  auto writes = world_.writes(from, 1, kSize);
  world_.write(writes);
  expect_ok(writes);
  DeviceObjects to(world_.driver(), 1, 1, 1000, 1000);
  std::vector<ReadOperation> reads{{writes[0].extent, 5000, 1000, to.pieces(0), writes[0].checksum, {}}};
  const auto staged = world_.staged();
  world_.read(reads);
  expect_ok(reads);
  EXPECT_EQ(world_.staged(), staged + 1000);
  EXPECT_TRUE(std::ranges::equal(to.get(0), ConstBytes(value).subspan(5000, 1000)));
}

TEST_F(GpuDirectTest, BytesThatAreNotTheObjectsNeverComeAsItsOwn) {
  DeviceObjects from(world_.driver(), 0, 2, kSize, kPiece);
  from.set(0, random_bytes(kSize, 1));
  from.set(1, random_bytes(kSize, 2));
  auto writes = world_.writes(from, 2, kSize);
  world_.write(writes);
  expect_ok(writes);
  world_.owners_byte(kSize / 2) ^= std::byte{1};
  DeviceObjects to(world_.driver(), 0, 2, kSize, kSize);
  auto reads = world_.reads(writes, to);
  world_.read(reads);
  EXPECT_EQ(reads[0].status.code(), ErrorCode::kChecksumMismatch) << reads[0].status.to_string();
  EXPECT_TRUE(reads[1].status.ok()) << reads[1].status.to_string();
  EXPECT_EQ(to.get(1), from.get(1));
}

TEST_F(GpuDirectTest, AnExtentThatWasGivenAwayIsGone) {
  DeviceObjects from(world_.driver(), 0, 2, kSize, kPiece);
  from.set(0, random_bytes(kSize, 1));
  from.set(1, random_bytes(kSize, 2));
  auto first = world_.writes(from, 1, kSize);
  world_.write(first);
  expect_ok(first);
  const std::vector<RetirementOrder> orders{{1, first[0].extent}};
  ASSERT_EQ(world_.owner().retire(orders, soon()).size(), 1U);
  std::vector<WriteOperation> second{{world_.extent(0, kSize), "other", from.sources(1), {}, 0}};
  world_.write(second);
  expect_ok(second);
  DeviceObjects to(world_.driver(), 0, 1, kSize, kSize);
  auto reads = world_.reads(first, to);
  world_.read(reads);
  EXPECT_EQ(reads[0].status.code(), ErrorCode::kReplicaGone) << reads[0].status.to_string();
}

TEST_F(GpuDirectTest, WhenTheNicsFailOnTheWayTheBytesGoByAnotherOrTheErrorIsClear) {
  for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{100'000}, std::uint64_t{500'000}}) {
    World<RdmaRig> world;
    warm_up(world);
    world.rig().fabric().fail_after_bytes("owner0", bytes);
    world.rig().fabric().fail_after_bytes("owner1", bytes);
    DeviceObjects from(world.driver(), 0, 4, kSize, kPiece);
    for (std::size_t i = 0; i < 4; ++i) from.set(i, random_bytes(kSize, i));
    auto writes = world.writes(from, 4, kSize);
    world.write(writes);
    for (auto& write : writes) EXPECT_TRUE(write.status.ok() || write.status.code() == ErrorCode::kUnavailable) << write.status.to_string();
    world.rig().fabric().revive("owner0");
    world.rig().fabric().revive("owner1");
    std::vector<WriteOperation> written;
    for (auto& write : writes) {
      if (write.status.ok()) written.push_back(write);
    }
    DeviceObjects to(world.driver(), 1, 4, kSize, kPiece);
    auto reads = world.reads(written, to);
    world.read(reads);
    for (std::size_t i = 0; i < reads.size(); ++i) {
      if (!reads[i].status.ok()) continue;  // paths are tried again after a while
      EXPECT_EQ(root_checksum(to.get(i)), written[i].checksum) << i;
    }
  }
}

TEST_F(GpuDirectTest, OneNicThatFailsIsReplacedByTheOther) {
  DeviceObjects from(world_.driver(), 0, 8, kSize, kPiece);
  for (std::size_t i = 0; i < 8; ++i) from.set(i, random_bytes(kSize, i));
  world_.rig().fabric().fail_after_bytes("owner0", 700'000);
  auto writes = world_.writes(from, 8, kSize);
  world_.write(writes);
  expect_ok(writes);
  DeviceObjects to(world_.driver(), 1, 8, kSize, kPiece);
  auto reads = world_.reads(writes, to);
  world_.read(reads);
  expect_ok(reads);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(to.get(i), from.get(i)) << i;
  EXPECT_EQ(world_.by_nic(), 16 * kSize);
}

TEST_F(GpuDirectTest, AnErrorOfTheDeviceIsThatOfItsWindow) {
  DeviceObjects from(world_.driver(), 0, 1, kSize, kPiece);
  world_.driver().fail("launch", {ErrorCode::kInternal, "cuLaunchKernel: broken"}, 0, /*late=*/true);
  auto writes = world_.writes(from, 1, kSize);
  world_.write(writes);
  EXPECT_EQ(writes[0].status.code(), ErrorCode::kInternal);
  EXPECT_THAT(writes[0].status.message(), ::testing::HasSubstr("broken"));
  round_trip(world_, 1, kSize, kPiece, 3);
}

TEST_F(GpuDirectTest, ManyThreadsShareTheRings) {
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (std::size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      DeviceObjects from(world_.driver(), int(thread % 2), 6, kSize, kPiece);
      DeviceObjects to(world_.driver(), int(thread % 2), 6, kSize, 77'777);
      for (std::size_t i = 0; i < 6; ++i) from.set(i, random_bytes(kSize, thread * 10 + i));
      auto writes = world_.writes(from, 6, kSize, thread * 6 * kSize);
      world_.write(writes);
      auto reads = world_.reads(writes, to);
      world_.read(reads);
      for (std::size_t i = 0; i < 6; ++i) right += reads[i].status.ok() && to.get(i) == from.get(i) ? 1 : 0;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 24);
}

// Data of devices arrives all the same, by way of the host.
void expect_staged(World<RdmaRig>& world) {
  round_trip(world, 3, kSize, kPiece, 1);
  round_trip(world, 3, kSize, kPiece, 2);
  EXPECT_EQ(world.by_nic(), 0U);
  EXPECT_EQ(world.staged(), 12 * kSize);
  EXPECT_EQ(world.rig().fabric().counts("user0").dma_bufs, 0U);
}

TEST(WithoutGpuDirectTest, ADriverThatExportsNothing) {
  World<RdmaRig> world({.dma_buf = false});
  expect_staged(world);
}

TEST(WithoutGpuDirectTest, AnExportThatIsRefused) {
  World<RdmaRig> world;
  for (int i = 0; i < 50; ++i) world.driver().fail("export_dma_buf", {ErrorCode::kNotSupported, "not of this kind"}, i);
  expect_staged(world);
}

TEST(WithoutGpuDirectTest, NoMemoryLeftOnTheDevice) {
  World<RdmaRig> world({}, [] {
    auto settings = test_settings(kRing);
    settings.nic_ring_bytes = std::uint64_t{1} << 40;
    settings.device_staging_bytes = 0;
    return settings;
  }());
  round_trip(world, 3, kSize, kPiece, 1);
  round_trip(world, 3, kSize, kPiece, 2);
  EXPECT_GT(world.by_nic(), 0U) << "a smaller ring";
}

TEST(WithoutGpuDirectTest, SwitchedOff) {
  World<RdmaRig> world({}, [] {
    auto settings = test_settings(kRing);
    settings.nic_ring_bytes = 0;
    return settings;
  }());
  expect_staged(world);
}

TEST(WithoutGpuDirectTest, DevicesWithoutKernels) {
  World<RdmaRig> world({.kernels = false});
  expect_staged(world);
}

TEST(WithoutGpuDirectTest, ReadsThatAreNotToBeVerified) {
  World<RdmaRig> world({}, test_settings(kRing), /*verify=*/false);
  round_trip(world, 2, kSize, kPiece, 1);
  const auto staged = world.staged();
  round_trip(world, 2, kSize, kPiece, 2);
  EXPECT_EQ(world.by_nic(), 2 * kSize) << "writes";
  EXPECT_EQ(world.staged(), staged + 2 * kSize) << "reads";
}

}  // namespace
}  // namespace moonpool::transfer::cuda
