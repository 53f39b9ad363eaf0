// What the fake driver does beyond the contract (driver_test.cpp): faults, held streams, counts, and what a GPU would not forgive.
#include "transfer/cuda/fake/fake_driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "transfer/cuda/driver/driver_rigs_for_test.h"

namespace moonpool::transfer::cuda {
namespace {

using testing::HasSubstr;

class FakeDriverTest : public testing::Test {
 protected:
  static constexpr std::size_t kPage = 4096;
  // Pinned memory for copies, and a stream.
  void SetUp() override {
    pinned_ = *driver_->allocate_host(kPage);
    stream_ = *driver_->create_stream(0);
    address_ = *driver_->allocate(0, kPage);
  }
  Status copy_in(std::span<const std::byte> from) { return driver_->copy(0, address_, number_of(from.data()), from.size(), stream_); }

  std::unique_ptr<FakeDriver> driver_ =
      FakeDriver::create({.device_bytes = std::uint64_t{8} << 20, .pinned_bytes = std::uint64_t{1} << 20});
  std::span<std::byte> pinned_;
  Stream stream_{};
  std::uint64_t address_ = 0;
};

using FakeDriverDeathTest = FakeDriverTest;

TEST_F(FakeDriverDeathTest, TheHostCannotTouchDeviceMemory) {
  const auto read = [this] { return *reinterpret_cast<volatile const std::uint8_t*>(address_); };
  EXPECT_DEATH((void)read(), "");
}

TEST_F(FakeDriverDeathTest, AFaultOfAFunctionThatIsNotThereIsAMistakeOfTheTest) {
  EXPECT_DEATH(driver_->fail("registre_host", {ErrorCode::kInternal, "x"}), "no such fault");
  EXPECT_DEATH(driver_->fail("allocate", {ErrorCode::kInternal, "x"}, 0, /*late=*/true), "no such fault");
}

TEST_F(FakeDriverTest, HeldStreamsStartNothingAndGoOnWhereTheyWere) {
  const Bytes before = pattern(kPage, 1);
  driver_->poke(address_, before);
  std::ranges::copy(pattern(kPage, 2), pinned_.begin());
  driver_->hold_streams();
  const Event copied = *driver_->create_event(0);
  ASSERT_TRUE(copy_in(pinned_).ok());
  ASSERT_TRUE(driver_->record(0, copied, stream_).ok());
  EXPECT_FALSE(*driver_->done(0, copied));
  Bytes now(kPage);
  driver_->peek(address_, now);
  EXPECT_EQ(now, before);
  driver_->release_streams();
  ASSERT_TRUE(finish(*driver_, 0, stream_).ok());
  EXPECT_TRUE(*driver_->done(0, copied));
  driver_->peek(address_, now);
  EXPECT_EQ(now, pattern(kPage, 2));
}

TEST_F(FakeDriverTest, WorkThatWasQueuedBeforeTheHoldHasEndedWhenItReturns) {
  std::ranges::copy(pattern(kPage, 2), pinned_.begin());
  const Stream second = *driver_->create_stream(1);
  const Event copied = *driver_->create_event(0);
  const Event joined = *driver_->create_event(1);
  ASSERT_TRUE(copy_in(pinned_).ok());
  ASSERT_TRUE(driver_->record(0, copied, stream_).ok());
  ASSERT_TRUE(driver_->wait(1, second, copied).ok());
  ASSERT_TRUE(driver_->record(1, joined, second).ok());
  driver_->hold_streams();
  EXPECT_TRUE(*driver_->done(1, joined));
  driver_->hold_streams();  // once more is no mistake
  driver_->release_streams();
}

TEST_F(FakeDriverTest, ADestroyedDriverEndsHeldWork) {
  driver_->hold_streams();
  ASSERT_TRUE(copy_in(pinned_).ok());
  driver_.reset();
}

TEST_F(FakeDriverTest, AWaitIsForTheRecordBeforeIt) {
  const Event event = *driver_->create_event(0);
  const Stream waiting = *driver_->create_stream(0);
  ASSERT_TRUE(driver_->record(0, event, stream_).ok());
  ASSERT_TRUE(driver_->wait(0, waiting, event).ok());
  driver_->fail("copy", {ErrorCode::kInternal, "late"}, 0, /*late=*/true);
  ASSERT_TRUE(copy_in(pinned_).ok());
  ASSERT_TRUE(driver_->record(0, event, stream_).ok());  // of failed work, which the wait has nothing to do with
  EXPECT_FALSE(finish(*driver_, 0, stream_).ok());
  EXPECT_TRUE(finish(*driver_, 0, waiting).ok());
}

TEST_F(FakeDriverTest, AnErrorStaysWithItsStreamAndGoesToThoseThatWaitForIt) {
  const Stream joins = *driver_->create_stream(0);
  const Stream alone = *driver_->create_stream(0);
  const Event event = *driver_->create_event(0);
  driver_->poke(address_, pattern(kPage, 5));
  driver_->fail("copy", {ErrorCode::kInternal, "the first copy broke"}, 0, /*late=*/true);
  ASSERT_TRUE(copy_in(pinned_).ok());
  ASSERT_TRUE(copy_in(pinned_).ok());  // skipped
  ASSERT_TRUE(driver_->record(0, event, stream_).ok());
  ASSERT_TRUE(driver_->wait(0, joins, event).ok());
  for (const Stream broken : {stream_, joins, stream_}) EXPECT_EQ(finish(*driver_, 0, broken).message(), "the first copy broke");
  EXPECT_TRUE(finish(*driver_, 0, alone).ok());
  Bytes now(kPage);
  driver_->peek(address_, now);
  EXPECT_EQ(now, pattern(kPage, 5));
  driver_->destroy_stream(0, stream_);
  stream_ = *driver_->create_stream(0);
  ASSERT_TRUE(copy_in(pinned_).ok());
  EXPECT_TRUE(finish(*driver_, 0, stream_).ok());
}

TEST_F(FakeDriverTest, FaultsComeAtTheCallThatWasNamed) {
  driver_->fail("allocate", {ErrorCode::kNoAvailableHandle, "full"}, /*skip=*/1);
  EXPECT_TRUE(driver_->allocate(0, 1).ok());
  EXPECT_EQ(driver_->allocate(0, 1).status().message(), "full");
  EXPECT_TRUE(driver_->allocate(0, 1).ok());
  driver_->fail("launch", {ErrorCode::kInternal, "no launch"});
  EXPECT_EQ(driver_->launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, {}, stream_).message(), "no launch");
}

TEST_F(FakeDriverTest, ACopyOfMemoryThatIsNotPinnedIsAnErrorThatIsCounted) {
  const Bytes heap(kPage);
  ASSERT_TRUE(copy_in(heap).ok());
  const Status status = finish(*driver_, 0, stream_);
  EXPECT_THAT(status.message(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  EXPECT_EQ(driver_->counts().touched_unpinned, 1U);
}

TEST_F(FakeDriverTest, ACopyIntoFreedMemoryIsAnErrorOfAnotherKind) {
  driver_->hold_streams();
  ASSERT_TRUE(copy_in(pinned_).ok());
  driver_->free(0, address_);
  driver_->release_streams();
  EXPECT_THAT(finish(*driver_, 0, stream_).message(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  EXPECT_EQ(driver_->counts().touched_unpinned, 0U);
}

TEST_F(FakeDriverTest, ALaunchReachesAnotherDeviceOnlyAsAPeer) {
  const std::uint64_t there = *driver_->allocate(1, PiecesAndTables::kLength);
  const std::uint64_t here = *driver_->allocate(0, PiecesAndTables::kLength);
  driver_->poke(there, pattern(PiecesAndTables::kLength, 3));
  std::array<std::uint64_t, 3> pieces{there, there + PiecesAndTables::kEnds[0], there + PiecesAndTables::kEnds[1]};
  const PiecesAndTables tables(pinned_, pieces, here);
  const LaunchShape shape{.blocks = 2, .threads = 64};
  ASSERT_TRUE(driver_->launch(0, Kernel::kGather, shape, tables.arguments(), stream_).ok());
  EXPECT_THAT(finish(*driver_, 0, stream_).message(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  ASSERT_TRUE(driver_->enable_peer_access(0, 1).ok());
  const Stream fresh = *driver_->create_stream(0);
  ASSERT_TRUE(driver_->launch(0, Kernel::kGather, shape, tables.arguments(), fresh).ok());
  ASSERT_TRUE(finish(*driver_, 0, fresh).ok());
  Bytes now(PiecesAndTables::kLength);
  driver_->peek(here, now);
  EXPECT_EQ(now, pattern(PiecesAndTables::kLength, 3));
  EXPECT_EQ(driver_->counts().launches, 2U);
  EXPECT_EQ(driver_->counts().touched_unpinned, 0U);
}

TEST_F(FakeDriverTest, WithoutKernelsALaunchSaysSo) {
  const auto plain = FakeDriver::create({.kernels = false, .peer_access = false});
  const Status status = plain->launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, {}, Stream::kLegacyDefault);
  EXPECT_EQ(status.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(status.message(), HasSubstr("nvcc"));
  EXPECT_EQ(plain->enable_peer_access(0, 1).code(), ErrorCode::kNotSupported);
}

TEST_F(FakeDriverTest, PinnedMemoryHasALimitWithARemedy) {
  Bytes much(std::size_t{1} << 20);
  const Status refused = driver_->register_host(much);
  EXPECT_EQ(refused.code(), ErrorCode::kNoAvailableHandle);
  EXPECT_THAT(refused.message(), HasSubstr("memlock"));
  EXPECT_EQ(driver_->allocate_host(much.size()).code(), ErrorCode::kNoAvailableHandle);
  const std::span<std::byte> some(much.data(), much.size() - kPage);
  EXPECT_TRUE(driver_->register_host(some).ok());
  EXPECT_EQ(driver_->counts().pinned_bytes, std::uint64_t{1} << 20);
  driver_->unregister_host(some);
  EXPECT_EQ(driver_->counts().pinned_bytes, kPage);
  EXPECT_EQ(driver_->counts().registered, 1U);
  EXPECT_EQ(driver_->counts().unregistered, 1U);
}

TEST_F(FakeDriverTest, NeighboursThatArePinnedEachAreReachedAsOne) {
  Bytes memory(2 * kPage);
  const std::span<std::byte> all(memory);
  ASSERT_TRUE(driver_->register_host(all.first(kPage)).ok());
  ASSERT_TRUE(driver_->register_host(all.last(kPage)).ok());
  ASSERT_TRUE(copy_in(all.subspan(kPage / 2, kPage)).ok());
  EXPECT_TRUE(finish(*driver_, 0, stream_).ok());
  driver_->unregister_host(all.last(kPage));
  ASSERT_TRUE(copy_in(all.subspan(kPage / 2, kPage)).ok());
  EXPECT_FALSE(finish(*driver_, 0, stream_).ok());
}

TEST_F(FakeDriverTest, DeviceMemoryRunsOutAndComesBack) {
  std::vector<std::uint64_t> taken;
  while (true) {
    const auto address = driver_->allocate(0, std::uint64_t{1} << 20);
    if (!address.ok()) {
      EXPECT_EQ(address.code(), ErrorCode::kNoAvailableHandle);
      break;
    }
    taken.push_back(*address);
  }
  EXPECT_EQ(taken.size(), 7U);  // SetUp() has some of the eighth
  driver_->free(0, taken[3]);
  const auto again = driver_->allocate(0, std::uint64_t{1} << 20);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, taken[3]);
}

TEST_F(FakeDriverTest, AnotherProcessHasAddressesOfItsOwn) {
  const auto other = driver_->another_process();
  EXPECT_EQ(other->facts(1)->uuid, driver_->facts(1)->uuid);
  EXPECT_NE(other->facts(1)->uuid, FakeDriver::create()->facts(1)->uuid);
  EXPECT_FALSE(other->locate(address_));
  driver_->poke(address_, pattern(kPage, 9));
  const auto handle = driver_->export_ipc(0, address_);
  const auto opened = other->open_ipc(0, *handle);
  ASSERT_TRUE(opened.ok()) << opened.status().to_string();
  EXPECT_NE(*opened, address_);
  EXPECT_EQ(other->locate(*opened)->size, kPage);
  EXPECT_EQ(other->open_ipc(0, *handle).code(), ErrorCode::kInternal);  // once
  driver_->free(0, address_);                                           // the memory lives as long as it is open
  const std::uint64_t fresh = *driver_->allocate(0, kPage);
  driver_->poke(fresh, pattern(kPage, 10));
  Bytes there(kPage);
  other->peek(*opened, there);
  EXPECT_EQ(there, pattern(kPage, 9));
  other->close_ipc(0, *opened);
  EXPECT_FALSE(other->locate(*opened));
  EXPECT_FALSE(other->open_ipc(0, *handle).ok());
}

TEST_F(FakeDriverTest, HandlesOfStreamsAndEventsAreCountedAndChecked) {
  const auto before = driver_->counts().live_handles;
  const Stream stream = *driver_->create_stream(1);
  const Event event = *driver_->create_event(1);
  EXPECT_EQ(driver_->counts().live_handles, before + 2);
  EXPECT_THAT(driver_->record(0, event, stream_).message(), HasSubstr("CUDA_ERROR_INVALID_HANDLE"));  // an event of device 1
  EXPECT_FALSE(driver_->copy(0, address_, address_, 1, stream).ok());
  driver_->destroy_stream(1, stream);
  driver_->destroy_event(1, event);
  EXPECT_EQ(driver_->counts().live_handles, before);
  EXPECT_FALSE(driver_->done(1, event).ok());
  EXPECT_FALSE(driver_->copy(1, address_, address_, 1, stream).ok());
}

TEST_F(FakeDriverTest, UnpinningWaitsForTheCopyThatRuns) {
  // What the caller does next is to unmap the memory, which must not be under a copy's feet; later copies find it gone.
  for (int round = 0; round < 50; ++round) {
    auto memory = std::make_unique<SharedHostMemory>(std::size_t{1} << 18);
    ASSERT_TRUE(driver_->register_host(memory->get()).ok());
    const std::uint64_t target = *driver_->allocate(0, memory->get().size());
    const Stream stream = *driver_->create_stream(0);
    for (int copies = 0; copies < 4; ++copies) {
      ASSERT_TRUE(driver_->copy(0, target, number_of(memory->get().data()), memory->get().size(), stream).ok());
    }
    driver_->unregister_host(memory->get());
    memory.reset();
    (void)finish(*driver_, 0, stream);
    driver_->destroy_stream(0, stream);
    driver_->free(0, target);
  }
}

}  // namespace
}  // namespace moonpool::transfer::cuda
