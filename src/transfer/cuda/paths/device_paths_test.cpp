// Device memory through the paths: in place, staged, and what becomes of errors, time-outs and retirements on the way. That these are
// transports at all is told by transport_conformance_test.cpp, which runs over them as well.
#include "transfer/cuda/paths/device_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/cuda/paths/device_world_for_test.h"
#include "transfer/cuda/paths/staged.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

template <typename SomeRig>
class CommonMemoryTest : public ::testing::Test {};
using RigsWithCommonMemory = ::testing::Types<LocalRig, ShmRig>;
TYPED_TEST_SUITE(CommonMemoryTest, RigsWithCommonMemory);

TYPED_TEST(CommonMemoryTest, SegmentsAreStagedUntilTheyArePinnedAndThenWrittenAndReadInPlaceByOneLaunch) {
  constexpr std::size_t kCount = 6;
  constexpr std::size_t kSize = 700'001;
  World<TypeParam> world;
  round_trip(world, kCount, kSize, 40'000, 1);
  EXPECT_GE(world.staged(), kSize) << "the segment was not pinned yet, for its first extent at least";
  EXPECT_EQ(world.staged() + world.in_place(), 2 * kCount * kSize);
  ASSERT_TRUE(world.runtime().regions().wait_settled(soon()));
  const auto staged = world.staged();
  const auto in_place = world.in_place();
  const auto launches = world.driver().counts().launches;
  round_trip(world, kCount, kSize, 40'000, 2);
  EXPECT_EQ(world.staged(), staged);
  EXPECT_EQ(world.in_place(), in_place + 2 * kCount * kSize);
  EXPECT_EQ(world.driver().counts().launches, launches + 2);
  EXPECT_EQ(world.driver().counts().touched_unpinned, 0U);
}

TYPED_TEST(CommonMemoryTest, AChangedByteInTheSegmentIsFoundOnTheWayToTheDeviceAndSpoilsNothingElse) {
  constexpr std::size_t kSize = 3 * kChecksumChunk + 5;
  World<TypeParam> world;
  world.pin();
  DeviceObjects from(world.driver(), 0, 2, kSize, 100'000);
  for (std::size_t i = 0; i < 2; ++i) from.set(i, random_bytes(kSize, i));
  auto writes = world.writes(from, 2, kSize);
  world.write(writes);
  expect_ok(writes);
  world.owners_byte(kSize + 2 * kChecksumChunk + 7) ^= std::byte{8};
  DeviceObjects to(world.driver(), 0, 2, kSize, 50'000);
  auto reads = world.reads(writes, to);
  const auto before = world.in_place();
  world.read(reads);
  EXPECT_TRUE(reads[0].status.ok()) << reads[0].status.to_string();
  EXPECT_EQ(reads[1].status.code(), ErrorCode::kChecksumMismatch);
  EXPECT_THAT(reads[1].status.message(), HasSubstr("changed since it was written (chunk 2)")) << "its owner's checksums say where";
  EXPECT_EQ(to.get(0), random_bytes(kSize, 0));
  EXPECT_EQ(world.in_place(), before + kSize) << "only what went well";
  world.owners_byte(kSize + 2 * kChecksumChunk + 7) ^= std::byte{8};
  reads[0].checksum += 1;
  world.read(reads);
  EXPECT_EQ(reads[0].status.code(), ErrorCode::kChecksumMismatch) << "not the object that was asked for";
  EXPECT_TRUE(reads[1].status.ok()) << reads[1].status.to_string();
}

TYPED_TEST(CommonMemoryTest, OperationsOfSeveralDevicesGoInPlaceWithALaunchEach) {
  constexpr std::size_t kSize = 300'000;
  World<TypeParam> world;
  world.pin();
  DeviceObjects first(world.driver(), 0, 1, kSize, 10'000);
  DeviceObjects second(world.driver(), 1, 1, kSize, 10'000);
  first.set(0, random_bytes(kSize, 1));
  second.set(0, random_bytes(kSize, 2));
  std::vector<WriteOperation> writes{{world.extent(0, kSize), "a", first.sources(0), {}, 0},
                                     {world.extent(kSize, kSize), "b", second.sources(0), {}, 0}};
  const auto launches = world.driver().counts().launches;
  const auto in_place = world.in_place();
  world.write(writes);
  expect_ok(writes);
  EXPECT_EQ(world.driver().counts().launches, launches + 2);
  EXPECT_EQ(world.in_place(), in_place + 2 * kSize);
  EXPECT_EQ(writes[0].checksum, root_checksum(random_bytes(kSize, 1)));
  EXPECT_EQ(writes[1].checksum, root_checksum(random_bytes(kSize, 2)));
}

TYPED_TEST(CommonMemoryTest, WithoutKernelsAndWithoutTheirChecksumsBytesAndChecksumsAreRightAllTheSame) {
  for (const bool kernels : {false, true}) {
    auto settings = test_settings(kRing);
    settings.checksums = !kernels;
    World<TypeParam> world({.kernels = kernels}, settings);
    world.pin();
    const auto staged = world.staged();
    round_trip(world, 3, 600'000, 70'000, 5);
    EXPECT_EQ(world.staged(), staged);
    DeviceObjects object(world.driver(), 0, 1, 300'000, 300'000);
    object.set(0, random_bytes(300'000, 1));
    auto writes = world.writes(object, 1, 300'000, 4 * kMiB);
    world.write(writes);
    expect_ok(writes);
    world.owners_byte(4 * kMiB + 3) ^= std::byte{1};
    auto reads = world.reads(writes, object);
    world.read(reads);
    EXPECT_EQ(reads[0].status.code(), ErrorCode::kChecksumMismatch) << (kernels ? "hashed by the host" : "copied without a kernel");
  }
}

TYPED_TEST(CommonMemoryTest, AnErrorOfTheDeviceEndsItsBatchWithTheTruthAndNothingBecomesVisible) {
  constexpr std::size_t kSize = 400'000;
  World<TypeParam> world;
  world.pin();
  const auto before = world.owner().catalogue(world.incarnation()).size();
  DeviceObjects objects(world.driver(), 0, 2, kSize, 50'000);
  for (std::size_t i = 0; i < 2; ++i) objects.set(i, random_bytes(kSize, i));
  for (const bool late : {false, true}) {
    world.driver().fail("launch", {ErrorCode::kInternal, "the fake device is out of order"}, 0, late);
    auto writes = world.writes(objects, 2, kSize);
    world.write(writes);
    expect_all(writes, ErrorCode::kInternal);
    EXPECT_THAT(writes[0].status.message(), HasSubstr("out of order"));
    EXPECT_EQ(world.owner().catalogue(world.incarnation()).size(), before);
  }
  auto writes = world.writes(objects, 2, kSize);
  world.write(writes);
  expect_ok(writes);
  for (const bool late : {false, true}) {
    world.driver().fail("launch", {ErrorCode::kInternal, "the fake device is out of order"}, 0, late);
    auto reads = world.reads(writes, objects);
    world.read(reads);
    expect_all(reads, ErrorCode::kInternal);
  }
  auto reads = world.reads(writes, objects);
  world.read(reads);
  expect_ok(reads);
}

TYPED_TEST(CommonMemoryTest, AfterTheDeadlineACallComesBackWhenTheDeviceHasEnded) {
  constexpr std::size_t kSize = 100'000;
  World<TypeParam> world;
  world.pin();
  const auto before = world.owner().catalogue(world.incarnation()).size();
  DeviceObjects object(world.driver(), 0, 1, kSize, kSize);
  object.set(0, random_bytes(kSize, 1));
  auto writes = world.writes(object, 1, kSize);
  const auto deadline = Deadline::after(milliseconds(100));
  std::atomic<bool> back{false};
  world.driver().hold_streams();
  std::thread caller([&] {
    world.write(writes, deadline);
    back = true;
  });
  EXPECT_TRUE(test::wait_until([&] { return deadline.expired(); }, soon()));
  EXPECT_FALSE(back) << "the device may still write";
  world.driver().release_streams();
  caller.join();
  expect_all(writes, ErrorCode::kRpcTimeout);
  EXPECT_EQ(world.owner().catalogue(world.incarnation()).size(), before);
  auto again = world.writes(object, 1, kSize);
  world.write(again);
  expect_ok(again);
}

TYPED_TEST(CommonMemoryTest, WhatIsRetiredWhileTheDeviceWritesIsStaleAndAcknowledgedOnlyAfterwards) {
  constexpr std::size_t kSize = 100'000;
  World<TypeParam> world;
  world.pin();
  DeviceObjects object(world.driver(), 0, 1, kSize, kSize);
  object.set(0, random_bytes(kSize, 1));
  auto writes = world.writes(object, 1, kSize);
  const auto launches = world.driver().counts().launches;
  world.driver().hold_streams();
  std::thread caller([&] { world.write(writes); });
  EXPECT_TRUE(test::wait_until([&] { return world.driver().counts().launches > launches; }, soon()));
  const RetirementOrder order{77, writes[0].extent};
  EXPECT_TRUE(world.owner().retire({&order, 1}, Deadline::after(milliseconds(50))).empty()) << "the device may still write there";
  world.driver().release_streams();
  caller.join();
  expect_all(writes, ErrorCode::kStaleTerm);
  bool acknowledged = false;
  EXPECT_TRUE(test::wait_until(
      [&] {
        const auto done = world.owner().retire({}, Deadline::after(milliseconds(10)));
        acknowledged = acknowledged || std::ranges::find(done, 77U) != done.end();
        return acknowledged;
      },
      soon()));
}

#ifdef MOONPOOL_SYNC_POINTS
// Gets in place of extents that are shared with another process: whether their owner is asked, and that nobody gets another object's bytes.
class SharedExtentsTest : public ::testing::Test {
 protected:
  ~SharedExtentsTest() override { SyncPoints::instance().clear(); }

  // The device's kernels are known from here on, and its memory is pinned.
  void start(const FakeOptions& options = {}, const Settings& settings = test_settings(kRing)) {
    world_ = std::make_unique<World<ShmRig>>(options, settings);
    for (int i = 0; i < 2; ++i) world_->pin();
    SyncPoints::instance().on("owner_session.pinned", [this] { ++asked_; });
    asked_ = 0;
  }
  // An object of the device's in the segment, of random bytes.
  std::vector<WriteOperation> put(DeviceObjects& object, std::size_t size) {
    object.set(0, random_bytes(size, size));
    auto writes = world_->writes(object, 1, size);
    world_->write(writes);
    expect_ok(writes);
    return writes;
  }
  // Once, when the next get has queued its launch, which has not begun: the extent is retired and, if nobody holds it, another object's.
  void give_away_meanwhile(const ExtentRef& extent) {
    world_->driver().hold_streams();
    SyncPoints::instance().on("cuda.in_place.queued", [this, extent] {
      SyncPoints::instance().on("cuda.in_place.queued", [] {});
      const RetirementOrder order{77, extent};
      given_away_ = !world_->owner().retire({&order, 1}, Deadline::after(milliseconds(50))).empty();
      if (given_away_) {
        const auto others = random_bytes(extent.length, 4711);
        const ConstBytes piece(others);
        WriteOperation write{world_->extent(extent.offset, extent.length), "other", {&piece, 1}, {}, 0};
        world_->rig().transport().write(world_->rig().peer, {&write, 1}, soon());
        EXPECT_TRUE(write.status.ok()) << write.status.to_string();
      }
      world_->driver().release_streams();
    });
  }

  std::unique_ptr<World<ShmRig>> world_;
  std::atomic<int> asked_{0};
  std::atomic<bool> given_away_{false};
};

TEST_F(SharedExtentsTest, AGetWhoseBytesTheDeviceHashesAsksNobody) {
  start();
  for (const std::size_t size : {3 * kChecksumChunk, kChecksumChunk + 241, std::size_t{241}}) {
    DeviceObjects object(world_->driver(), 0, 1, size, 50'000);
    const auto writes = put(object, size);
    DeviceObjects to(world_->driver(), 0, 1, size, 30'000);
    auto reads = World<ShmRig>::reads(writes, to);
    const auto in_place = world_->in_place();
    world_->read(reads);
    expect_ok(reads);
    EXPECT_EQ(to.get(0), random_bytes(size, size));
    EXPECT_EQ(world_->in_place(), in_place + size);
    EXPECT_EQ(asked_, 0) << size;
    const RetirementOrder order{5, writes[0].extent};
    EXPECT_EQ(world_->owner().retire({&order, 1}, soon()).size(), 1U);
  }
}

TEST_F(SharedExtentsTest, AnExtentThatIsGivenAwayMeanwhileIsGoneForItsReader) {
  start();
  constexpr std::size_t kSize = 2 * kChecksumChunk;
  DeviceObjects object(world_->driver(), 0, 1, kSize, 50'000);
  const auto writes = put(object, kSize);
  auto reads = World<ShmRig>::reads(writes, object);
  const auto in_place = world_->in_place();
  give_away_meanwhile(writes[0].extent);
  world_->read(reads);
  EXPECT_TRUE(given_away_);
  expect_all(reads, ErrorCode::kReplicaGone);
  EXPECT_EQ(asked_, 1) << "by the staged read";
  EXPECT_EQ(world_->in_place(), in_place);
}

// Checksums that the host computes are of what lies there before the device has read it, so that an extent must not be given away between.
TEST_F(SharedExtentsTest, AnExtentThatTheHostHashesIsNotGivenAwayMeanwhile) {
  struct Case {
    std::size_t size;
    bool kernels;
    bool checksums;
  };
  for (const auto& [size, kernels, checksums] : {Case{200, true, true}, Case{kChecksumChunk + 240, true, true},
                                                 Case{kChecksumChunk, false, true}, Case{kChecksumChunk, true, false}}) {
    auto settings = test_settings(kRing);
    settings.checksums = checksums;
    start({.kernels = kernels}, settings);
    DeviceObjects object(world_->driver(), 0, 1, size, 50'000);
    const auto writes = put(object, size);
    DeviceObjects to(world_->driver(), 0, 1, size, 50'000);
    auto reads = World<ShmRig>::reads(writes, to);
    give_away_meanwhile(writes[0].extent);
    world_->read(reads);
    EXPECT_FALSE(given_away_) << size << kernels << checksums;
    EXPECT_EQ(asked_, 1) << size << kernels << checksums;
    expect_ok(reads);
    EXPECT_TRUE(to.get(0) == random_bytes(size, size)) << size << kernels << checksums;
    EXPECT_EQ(world_->owner().retire({}, soon()).size(), 1U);
  }
}
#endif

class OneLaneRig : public TcpRig {
 public:
  OneLaneRig() : TcpRig(1) {}
};

TEST(DevicePathsTest, DataForATcpPeerIsStagedInWindowsOfItsRing) {
  World<OneLaneRig> world;
  constexpr std::size_t kCount = 12;
  constexpr std::size_t kSize = 600'001;
  round_trip(world, kCount, kSize, 33'333, 1);
  EXPECT_EQ(world.in_place(), 0U);
  EXPECT_EQ(world.staged(), 2 * kCount * kSize);
  EXPECT_GT(world.driver().counts().launches, 2 * kCount * kSize / (kRing / 4)) << "windows";
  round_trip(world, 2, kRing + 12'345, 500'000, 2);
  EXPECT_EQ(world.driver().counts().touched_unpinned, 0U);
}

// A local path that has no memory in common with anybody, as far as its users can tell, and lets them look at what is on the wire.
class Wire final : public Transport {
 public:
  using Look = std::function<void(std::size_t batch, std::span<const std::uint64_t> lengths)>;
  explicit Wire(Transport& real) : real_(real) {}
  void on_batch(Look look) { look_ = std::move(look); }
  [[nodiscard]] std::size_t batches() const { return batches_; }
  [[nodiscard]] const void* last() const { return last_; }

  [[nodiscard]] std::string_view name() const override { return "wire"; }
  [[nodiscard]] bool reaches(const Peer&) const override { return true; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override {
    look(operations);
    real_.write(peer, operations, deadline);
  }
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override {
    look(operations);
    real_.read(peer, operations, deadline);
  }

 private:
  template <typename Operation>
  void look(std::span<Operation> operations) {
    last_ = operations.data();
    std::vector<std::uint64_t> lengths;
    for (const auto& operation : operations) lengths.push_back(operation.extent.length);
    const auto batch = batches_++;
    if (look_) look_(batch, lengths);
  }

  Transport& real_;
  Look look_;
  std::atomic<std::size_t> batches_{0};
  std::atomic<const void*> last_{nullptr};
};

class WireRig : public Rig {
 public:
  WireRig() { fake_.attach(peer.node, owner); }
  Transport& transport() override { return wire_; }
  Wire& wire() { return wire_; }
  FakeTransport& fake() { return fake_; }

 private:
  FakeTransport fake_;
  Wire wire_{fake_};
};

constexpr std::size_t kWindow = kRing / kWindowsOfRing;

TEST(StagedTest, WhileAWindowIsOnTheWireTheNextOneIsCopied) {
  constexpr std::size_t kCount = 4;
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, kCount, kWindow, 100'000);
  for (std::size_t i = 0; i < kCount; ++i) objects.set(i, random_bytes(kWindow, i));
  // Whoever moves a window waits for the launch of the one after it, which could not come if that had to wait for him.
  world.rig().wire().on_batch([&](std::size_t batch, std::span<const std::uint64_t> lengths) {
    EXPECT_EQ(lengths.size(), 1U);
    const auto launches = std::min(batch + 2, kCount);
    EXPECT_TRUE(test::wait_until([&] { return world.driver().counts().launches >= launches; }, soon())) << batch;
    EXPECT_EQ(world.driver().counts().launches, launches) << "not more than one ahead";
  });
  auto writes = world.writes(objects, kCount, kWindow);
  world.write(writes);
  expect_ok(writes);
  EXPECT_EQ(world.rig().wire().batches(), kCount);
}

TEST(StagedTest, WhileAWindowIsReadFromTheWireTheOneBeforeItGoesToTheDevice) {
  constexpr std::size_t kCount = 4;
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, kCount, kWindow, 100'000);
  for (std::size_t i = 0; i < kCount; ++i) objects.set(i, random_bytes(kWindow, i));
  auto writes = world.writes(objects, kCount, kWindow);
  world.write(writes);
  expect_ok(writes);
  const auto launches = world.driver().counts().launches;
  const auto batches = world.rig().wire().batches();
  world.rig().wire().on_batch([&](std::size_t batch, std::span<const std::uint64_t>) {
    const auto before = batch - batches;  // windows that have been read
    EXPECT_EQ(world.driver().counts().launches, launches + before);
  });
  DeviceObjects into(world.driver(), 1, kCount, kWindow, 77'777);
  auto reads = world.reads(writes, into);
  world.read(reads);
  expect_ok(reads);
  for (std::size_t i = 0; i < kCount; ++i) EXPECT_EQ(into.get(i), random_bytes(kWindow, i));
  EXPECT_EQ(world.driver().counts().launches, launches + kCount);
}

TEST(StagedTest, ALateErrorOfADeviceIsThatOfItsWindowAndTheOthersGoOn) {
  constexpr std::size_t kCount = 3;
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, kCount, kWindow, 100'000);
  for (std::size_t i = 0; i < kCount; ++i) objects.set(i, random_bytes(kWindow, i));
  world.driver().fail("launch", {ErrorCode::kInternal, "the fake device is out of order"}, 1, true);
  auto writes = world.writes(objects, kCount, kWindow);
  world.write(writes);
  EXPECT_TRUE(writes[0].status.ok()) << writes[0].status.to_string();
  EXPECT_EQ(writes[1].status.code(), ErrorCode::kInternal);
  EXPECT_THAT(writes[1].status.message(), HasSubstr("out of order"));
  EXPECT_TRUE(writes[2].status.ok()) << writes[2].status.to_string();
  EXPECT_EQ(world.rig().wire().batches(), 2U) << "what did not leave the device goes nowhere";
  EXPECT_EQ(world.owner().catalogue(world.incarnation()).size(), 2U);
  std::vector<ReadOperation> reads;
  for (const auto i : {0U, 2U}) reads.push_back({writes[i].extent, 0, kWindow, objects.pieces(i), writes[i].checksum, {}});
  world.driver().fail("launch", {ErrorCode::kInternal, "the fake device is out of order"}, 0, true);
  world.read(reads);
  EXPECT_EQ(reads[0].status.code(), ErrorCode::kInternal);
  EXPECT_TRUE(reads[1].status.ok()) << reads[1].status.to_string();
}

TEST(StagedTest, EachOperationOfAWindowKeepsItsOwnStatus) {
  constexpr std::size_t kSize = 10'000;
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, 3, kSize, 4096);
  for (std::size_t i = 0; i < 3; ++i) objects.set(i, random_bytes(kSize, i));
  world.rig().fake().set_faults(world.rig().peer.node, {.truncate = 1});
  auto writes = world.writes(objects, 3, kSize);
  world.write(writes);
  EXPECT_TRUE(writes[0].status.ok()) << writes[0].status.to_string();
  EXPECT_EQ(writes[1].status.code(), ErrorCode::kTransferFail);
  EXPECT_EQ(writes[2].status.code(), ErrorCode::kTransferFail);
  EXPECT_EQ(world.staged(), kSize);
  world.rig().fake().set_faults(world.rig().peer.node, {.lose = 1, .lost_writes_happen = true});
  auto reads = world.reads(std::span(writes).first(1), objects);
  world.read(reads);
  expect_all(reads, ErrorCode::kRpcTimeout);
  world.rig().fake().set_faults(world.rig().peer.node, {.corrupt = 1});
  world.read(reads);
  expect_all(reads, ErrorCode::kChecksumMismatch);
  world.rig().fake().set_faults(world.rig().peer.node, {.dead = true});
  world.read(reads);
  expect_all(reads, ErrorCode::kUnavailable);
  world.rig().fake().set_faults(world.rig().peer.node, {});
  world.read(reads);
  expect_ok(reads);
}

TEST(StagedTest, OperationsInSeveralMemoriesArriveAndTheirHostPiecesAreNotStaged) {
  World<WireRig> world;
  constexpr std::size_t kPiece = 30'000;
  constexpr std::size_t kPieces = 9;
  const auto data = random_bytes(kPiece * kPieces, 3);
  std::vector<std::byte> into(data.size());
  // Device 0, device 1, host, and so on; two in a row are one run.
  const auto place = [](std::size_t, std::size_t piece) { return static_cast<int>(piece / 2 % 3) - 1; };
  std::size_t on_devices = 0;
  std::vector<ConstBytes> source;
  std::vector<MutableBytes> destination;
  for (std::size_t i = 0; i < kPieces; ++i) {
    source.push_back(ConstBytes(data).subspan(i * kPiece, kPiece));
    destination.push_back(MutableBytes(into).subspan(i * kPiece, kPiece));
    if (place(0, i) >= 0) on_devices += kPiece;
  }
  OnDevices transport(world.driver(), world.paths(), place);
  std::vector<WriteOperation> writes{{world.extent(0, data.size()), "key", source, {}, 0}};
  transport.write(world.rig().peer, writes, soon());
  expect_ok(writes);
  EXPECT_EQ(world.staged(), on_devices);
  EXPECT_EQ(writes[0].checksum, root_checksum(data));
  std::vector<ReadOperation> reads{{writes[0].extent, 0, data.size(), destination, writes[0].checksum, {}}};
  transport.read(world.rig().peer, reads, soon());
  expect_ok(reads);
  EXPECT_EQ(into, data);
  EXPECT_EQ(world.staged(), 2 * on_devices);
}

TEST(StagedTest, ADeadlineThatPassesWhileTheDeviceIsBusyKeepsTheWindowFromTheWire) {
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, 2, kWindow, 100'000);
  auto writes = world.writes(objects, 2, kWindow);
  const auto deadline = Deadline::after(milliseconds(100));
  world.driver().hold_streams();
  std::thread caller([&] { world.write(writes, deadline); });
  EXPECT_TRUE(test::wait_until([&] { return deadline.expired(); }, soon()));
  world.driver().release_streams();
  caller.join();
  expect_all(writes, ErrorCode::kRpcTimeout);
  EXPECT_EQ(world.rig().wire().batches(), 0U);
}

TEST(StagedTest, AReadThatIsLateReturnsWhenItsDestinationIsTouchedNoMore) {
  World<WireRig> world;
  DeviceObjects objects(world.driver(), 0, 1, kWindow, 100'000);
  objects.set(0, random_bytes(kWindow, 1));
  auto writes = world.writes(objects, 1, kWindow);
  world.write(writes);
  expect_ok(writes);
  auto reads = world.reads(writes, objects);
  const auto deadline = Deadline::after(milliseconds(200));
  std::atomic<bool> back{false};
  world.driver().hold_streams();
  std::thread caller([&] {
    world.read(reads, deadline);
    back = true;
  });
  EXPECT_TRUE(test::wait_until([&] { return deadline.expired(); }, soon()));
  EXPECT_FALSE(back);
  world.driver().release_streams();
  caller.join();
  expect_all(reads, ErrorCode::kRpcTimeout);
}

TEST(StagedTest, CallersThatShareARingOfOneWindowAtATimeAllComeThrough) {
  World<WireRig> world({}, test_settings(std::uint64_t{256} << 10));
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (std::size_t t = 0; t < 8; ++t) {
    callers.emplace_back([&, t] {
      constexpr std::size_t kSize = 200'000;  // more than a window, so that no two fit
      DeviceObjects objects(world.driver(), static_cast<int>(t % 2), 4, kSize, 20'000);
      std::vector<WriteOperation> writes;
      for (std::size_t i = 0; i < 4; ++i) {
        objects.set(i, random_bytes(kSize, t * 4 + i));
        writes.push_back({world.extent((t * 4 + i) * kSize, kSize), "key", objects.sources(i), {}, 0});
      }
      world.write(writes);
      expect_ok(writes);
      auto reads = world.reads(writes, objects);
      world.read(reads);
      expect_ok(reads);
      for (std::size_t i = 0; i < 4; ++i) good += objects.get(i) == random_bytes(kSize, t * 4 + i) ? 1 : 0;
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(good, 32);
}

TEST(StagedTest, WithoutPinnedMemoryTheErrorSaysSoAndHostMemoryIsNotConcerned) {
  World<WireRig> world({.pinned_bytes = 64 << 10});
  DeviceObjects object(world.driver(), 0, 1, 10'000, 10'000);
  const auto data = random_bytes(10'000, 1);
  const ConstBytes host(data);
  std::vector<WriteOperation> writes{{world.extent(0, 10'000), "device", object.sources(0), {}, 0},
                                     {world.extent(10'000, 10'000), "host", {&host, 1}, {}, 0}};
  world.write(writes);
  EXPECT_EQ(writes[0].status.code(), ErrorCode::kNoAvailableHandle) << writes[0].status.to_string();
  EXPECT_THAT(writes[0].status.message(), HasSubstr("staging"));
  EXPECT_TRUE(writes[1].status.ok()) << writes[1].status.to_string();
  std::vector<ReadOperation> reads{{writes[1].extent, 0, 10'000, object.pieces(0), writes[1].checksum, {}}};
  world.read(reads);
  EXPECT_EQ(reads[0].status.code(), ErrorCode::kNoAvailableHandle) << reads[0].status.to_string();
}

TEST(DevicePathsTest, HostMemoryPassesThroughAsItIs) {
  World<WireRig> world;
  const auto data = random_bytes(1000, 1);
  std::vector<std::byte> into(1000);
  const ConstBytes source(data);
  const MutableBytes destination(into);
  std::vector<WriteOperation> writes{{world.extent(0, 1000), "key", {&source, 1}, {}, 0}};
  world.write(writes);
  expect_ok(writes);
  EXPECT_EQ(world.rig().wire().last(), writes.data()) << "the very batch";
  std::vector<ReadOperation> reads{{writes[0].extent, 0, 1000, {&destination, 1}, writes[0].checksum, {}}};
  world.read(reads);
  expect_ok(reads);
  EXPECT_EQ(world.rig().wire().last(), reads.data());
  EXPECT_EQ(into, data);
  EXPECT_EQ(world.driver().counts().launches, 0U);
  EXPECT_EQ(world.driver().counts().pinned_bytes, 0U) << "nothing is pinned for nobody";

  DevicePaths without(world.rig().transport(), true, [] { return static_cast<Runtime*>(nullptr); });
  without.read(world.rig().peer, reads, soon());
  expect_ok(reads);
  EXPECT_EQ(world.rig().wire().last(), reads.data());
}

TEST(DevicePathsTest, WithVerificationOffDevicesGetWhatLiesThereAsTheHostDoes) {
  World<LocalRig> world({}, test_settings(kRing), false);
  world.pin();
  DeviceObjects object(world.driver(), 0, 1, 50'000, 50'000);
  object.set(0, random_bytes(50'000, 1));
  auto writes = world.writes(object, 1, 50'000);
  world.write(writes);
  expect_ok(writes);
  auto reads = world.reads(writes, object);
  reads[0].checksum += 1;
  const auto before = world.in_place();
  world.read(reads);
  expect_ok(reads);
  EXPECT_EQ(world.in_place(), before + 50'000);
}

TEST(DevicePathsTest, WrongOperationsOnDevicesAreRefusedBeforeAnythingIsTouched) {
  World<LocalRig> world;
  DeviceObjects object(world.driver(), 0, 1, 1000, 1000);
  std::vector<WriteOperation> writes{{world.extent(0, 999), "too much", object.sources(0), {}, 0}};
  world.write(writes);
  expect_all(writes, ErrorCode::kInvalidParams);
  std::vector<ReadOperation> reads{{world.extent(0, 1000), 1, 1000, object.pieces(0), 0, {}}};
  world.read(reads);
  expect_all(reads, ErrorCode::kInvalidRead);
  EXPECT_EQ(world.driver().counts().launches, 0U);
  EXPECT_EQ(world.driver().counts().pinned_bytes, 0U);
}

}  // namespace
}  // namespace moonpool::transfer::cuda
