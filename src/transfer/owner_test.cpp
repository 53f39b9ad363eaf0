// The owner's rules, and each race that we have reasoned about made to happen on purpose.
#include "transfer/owner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <latch>
#include <random>
#include <thread>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/checksum.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kSize = 8 << 20;

Deadline soon() { return Deadline::after(seconds(20)); }
Deadline now() { return Deadline::after(milliseconds(0)); }

class OwnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(owner_.adopt_term(Term{7}, soon()).ok());
    auto mounted = owner_.mount(kSize);
    ASSERT_TRUE(mounted.ok()) << mounted.status().to_string();
    incarnation_ = *mounted;
  }
#ifdef MOONPOOL_SYNC_POINTS
  void TearDown() override { SyncPoints::instance().clear(); }
#endif

  [[nodiscard]] ExtentRef extent(std::uint64_t offset, std::uint64_t length, std::uint64_t count, std::uint64_t term = 7) const {
    return {incarnation_, offset, length, Version{Term{term}, count}};
  }

  static std::vector<std::uint64_t> checksums_of(ConstBytes bytes) {
    ChunkHasher hasher;
    hasher.update(bytes);
    return hasher.finish();
  }

  // A whole write of one byte value.
  Status put(const ExtentRef& ref, std::byte value, std::string_view key = "key") {
    auto pin = owner_.begin_write(ref, [] {});
    if (!pin.ok()) return pin.status();
    const auto memory = pin->memory();
    std::ranges::fill(memory, value);
    const auto checksums = checksums_of(memory);
    return owner_.complete_write(std::move(*pin), key, checksums);
  }

  std::vector<std::uint64_t> retire(std::uint64_t sequence, const ExtentRef& ref, Deadline deadline) {
    const RetirementOrder order{sequence, ref};
    return owner_.retire({&order, 1}, deadline);
  }

  Owner owner_;
  Incarnation incarnation_;
};

using Sequences = std::vector<std::uint64_t>;

TEST_F(OwnerTest, ACompleteWriteIsInTheCatalogueAndReadable) {
  const auto ref = extent(4096, 2 * kChecksumChunk + 5, 1);
  ASSERT_TRUE(put(ref, std::byte{9}, "tenant\0k").ok());
  const auto entries = owner_.catalogue(incarnation_);
  ASSERT_EQ(entries.size(), 1U);
  EXPECT_EQ(entries[0].offset, 4096U);
  EXPECT_EQ(entries[0].version, ref.version);
  auto pin = owner_.begin_read(ref);
  ASSERT_TRUE(pin.ok()) << pin.status().to_string();
  EXPECT_EQ(pin->memory().size(), ref.length);
  EXPECT_EQ(pin->memory()[ref.length - 1], std::byte{9});
  EXPECT_EQ(pin->checksums().size(), 3U);
  EXPECT_EQ(root_of(pin->checksums()), entries[0].checksum);
  const auto status = owner_.segments();
  ASSERT_EQ(status.size(), 1U);
  EXPECT_EQ(status[0].extents, 1U);
  EXPECT_EQ(status[0].bytes, ref.length);
}

TEST_F(OwnerTest, NothingIsReadableBeforeItIsComplete) {
  const auto ref = extent(0, 100, 1);
  auto pin = owner_.begin_write(ref, [] {});
  ASSERT_TRUE(pin.ok());
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kReplicaGone);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(OwnerTest, AnAbandonedWriteLeavesNothingBehind) {
  const auto ref = extent(0, 100, 1);
  {
    ASSERT_TRUE(owner_.begin_write(ref, [] {}).ok());
  }
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_TRUE(put(ref, std::byte{1}).ok()) << "the same grant may try again";
}

TEST_F(OwnerTest, AnotherIncarnationIsRefused) {
  auto ref = extent(0, 100, 1);
  ref.incarnation = Incarnation::generate();
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kStaleIncarnation);
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kStaleIncarnation);
}

TEST_F(OwnerTest, RangesOutsideTheSegmentAreRefused) {
  for (const auto& [offset, length] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {kSize, 1}, {0, kSize + 1}, {kSize - 10, 11}, {~0ULL, 2}, {5, ~0ULL}, {~0ULL, ~0ULL}, {0, 0}, {kSize, 0}}) {
    EXPECT_EQ(owner_.begin_write(extent(offset, length, 1), [] {}).code(), ErrorCode::kInvalidWrite) << offset << "+" << length;
  }
  EXPECT_TRUE(put(extent(kSize - 10, 10, 1), std::byte{1}).ok());
  EXPECT_TRUE(put(extent(0, kSize - 10, 2), std::byte{1}).ok());
}

TEST_F(OwnerTest, OverlappingExtentsAreRefusedWhateverStateTheOlderOneIsIn) {
  ASSERT_TRUE(put(extent(4096, 4096, 1), std::byte{1}).ok());
  auto writing = owner_.begin_write(extent(16384, 4096, 2), [] {});
  ASSERT_TRUE(writing.ok());
  for (const std::uint64_t around : {4096ULL, 16384ULL}) {
    EXPECT_EQ(owner_.begin_write(extent(around, 4096, 9), [] {}).code(), ErrorCode::kInvalidWrite);
    EXPECT_EQ(owner_.begin_write(extent(around - 1, 2, 9), [] {}).code(), ErrorCode::kInvalidWrite);
    EXPECT_EQ(owner_.begin_write(extent(around + 4095, 2, 9), [] {}).code(), ErrorCode::kInvalidWrite);
    EXPECT_EQ(owner_.begin_write(extent(around + 100, 2, 9), [] {}).code(), ErrorCode::kInvalidWrite);
    EXPECT_EQ(owner_.begin_write(extent(around - 100, 5000, 9), [] {}).code(), ErrorCode::kInvalidWrite);
    EXPECT_TRUE(owner_.begin_write(extent(around - 1, 1, 9), [] {}).ok()) << "touching is not overlapping";
    EXPECT_TRUE(owner_.begin_write(extent(around + 4096, 1, 9), [] {}).ok());
  }
}

TEST_F(OwnerTest, OneGrantIsWrittenOnceAndItsRetryIsTold) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kObjectAlreadyExists);
}

TEST_F(OwnerTest, ASecondAttemptUnderTheSameGrantStopsTheFirst) {
  const auto ref = extent(0, 100, 1);
  int aborted = 0;
  auto first = owner_.begin_write(ref, [&] { ++aborted; });
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(aborted, 1);
  EXPECT_TRUE(first->cancelled());
  const std::vector<std::uint64_t> checksums{1};
  EXPECT_EQ(owner_.complete_write(std::move(*first), "key", checksums).code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(put(ref, std::byte{2}).ok());
}

TEST_F(OwnerTest, GrantsOfOtherTermsAreRefused) {
  EXPECT_EQ(owner_.begin_write(extent(0, 100, 1, 6), [] {}).code(), ErrorCode::kStaleTerm);
  EXPECT_EQ(owner_.begin_write(extent(0, 100, 1, 8), [] {}).code(), ErrorCode::kStaleTerm);
  EXPECT_EQ(owner_.adopt_term(Term{6}, soon()).code(), ErrorCode::kStaleTerm);
  EXPECT_EQ(owner_.term(), Term{7});
}

TEST_F(OwnerTest, AWrongNumberOfChecksumsIsRefused) {
  auto pin = owner_.begin_write(extent(0, kChecksumChunk + 1, 1), [] {});
  ASSERT_TRUE(pin.ok());
  const std::vector<std::uint64_t> one{1};
  EXPECT_EQ(owner_.complete_write(std::move(*pin), "key", one).code(), ErrorCode::kInvalidWrite);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(OwnerTest, AReadNamesVersionAndLength) {
  ASSERT_TRUE(put(extent(0, 100, 1), std::byte{1}).ok());
  EXPECT_EQ(owner_.begin_read(extent(0, 100, 2)).code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(owner_.begin_read(extent(1, 99, 1)).code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(owner_.begin_read(extent(0, 99, 1)).code(), ErrorCode::kInvalidRead);
  EXPECT_TRUE(owner_.begin_read(extent(0, 0, 1)).ok());
}

TEST_F(OwnerTest, ARetiredExtentIsGoneAndItsRangeCanBeUsedAgain) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  EXPECT_EQ(retire(11, ref, soon()), Sequences{11});
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kReplicaGone);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_EQ(owner_.segments()[0].bytes, 0U);
  EXPECT_EQ(retire(11, ref, soon()), Sequences{11}) << "repeating is harmless";
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kStaleTerm) << "its own grant is gone";
  EXPECT_TRUE(put(extent(0, 100, 2), std::byte{2}).ok());
  EXPECT_EQ(retire(12, ref, soon()), Sequences{12});
  EXPECT_TRUE(owner_.begin_read(extent(0, 100, 2)).ok()) << "a late retirement of the old version leaves the new one alone";
}

TEST_F(OwnerTest, ARetirementThatOvertakesItsWriteRefusesIt) {
  const auto ref = extent(0, 100, 1);
  EXPECT_EQ(retire(1, ref, soon()), Sequences{1});
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kStaleTerm);
  owner_.set_oldest_grant(Version{Term{7}, 5});
  EXPECT_EQ(owner_.begin_write(ref, [] {}).code(), ErrorCode::kStaleTerm) << "forgotten, but older than the oldest live grant";
}

TEST_F(OwnerTest, OrdersForUnknownIncarnationsAreCompleteAtOnce) {
  auto ref = extent(0, 100, 1);
  ref.incarnation = Incarnation::generate();
  EXPECT_EQ(retire(3, ref, now()), Sequences{3});
}

TEST_F(OwnerTest, ARetirementWaitsForTheWriterWhoseWriteIsNeverPublished) {
  const auto ref = extent(0, 100, 1);
  std::atomic<int> aborted{0};
  auto pin = owner_.begin_write(ref, [&] { ++aborted; });
  ASSERT_TRUE(pin.ok());
  EXPECT_EQ(retire(5, ref, now()), Sequences{}) << "the writer still touches the memory";
  EXPECT_EQ(aborted, 1);
  EXPECT_TRUE(pin->cancelled());
  const auto other = extent(4096, 100, 2);
  EXPECT_EQ(retire(6, other, now()), Sequences{6}) << "others do not wait for it";
  const std::vector<std::uint64_t> checksums{1};
  EXPECT_EQ(owner_.complete_write(std::move(*pin), "key", checksums).code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_EQ(owner_.retire({}, soon()), Sequences{5}) << "the old order is complete now";
  EXPECT_EQ(aborted, 1);
}

TEST_F(OwnerTest, ARetirementWaitsForReadersAndItsRangeStaysClosedUntilThen) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  auto reader = owner_.begin_read(ref);
  auto second = owner_.begin_read(ref);
  ASSERT_TRUE(reader.ok() && second.ok());
  EXPECT_EQ(retire(5, ref, now()), Sequences{});
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kReplicaGone) << "nobody new enters";
  EXPECT_EQ(owner_.begin_write(extent(50, 100, 2), [] {}).code(), ErrorCode::kInvalidWrite);
  EXPECT_EQ(reader->memory()[0], std::byte{1});
  { const auto gone = std::move(*reader); }
  EXPECT_EQ(owner_.retire({}, now()), Sequences{}) << "one reader is left";
  std::promise<Sequences> acknowledged;
  std::thread waiter([&] { acknowledged.set_value(owner_.retire({}, soon())); });
  { const auto gone = std::move(*second); }
  EXPECT_EQ(acknowledged.get_future().get(), Sequences{5});
  waiter.join();
  EXPECT_TRUE(put(extent(50, 100, 2), std::byte{2}).ok());
}

TEST_F(OwnerTest, WhatOnlyReadersHoldUpIsWithdrawnAndReportedWithoutItsKey) {
  const auto read = extent(0, 100, 1);
  const auto written = extent(4096, 100, 2);
  ASSERT_TRUE(put(read, std::byte{1}).ok());
  auto reader = owner_.begin_read(read);
  auto writer = owner_.begin_write(written, [] {});
  ASSERT_TRUE(reader.ok() && writer.ok());
  EXPECT_EQ(retire(5, read, now()), Sequences{});
  EXPECT_EQ(retire(6, written, now()), Sequences{});
  EXPECT_EQ(owner_.withdrawn(), Sequences{5}) << "a writer has to leave first";
  // A new master has to hear that the space is not free, and must not bring the object back.
  ASSERT_EQ(owner_.catalogue(incarnation_).size(), 1U);
  EXPECT_EQ(owner_.catalogue(incarnation_)[0].key, "");
  EXPECT_EQ(owner_.catalogue(incarnation_)[0].length, 100U);
  EXPECT_EQ(owner_.catalogue(incarnation_)[0].version, read.version);
  { const auto gone = std::move(*reader); }
  { const auto gone = std::move(*writer); }
  EXPECT_EQ(owner_.withdrawn(), Sequences{});
  EXPECT_EQ(owner_.retire({}, now()), (Sequences{5, 6}));
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(OwnerTest, NewRetirementsDoNotWaitForThoseThatAReaderHoldsUp) {
  const auto viewed = extent(0, 100, 1);
  const auto other = extent(4096, 100, 2);
  ASSERT_TRUE(put(viewed, std::byte{1}).ok() && put(other, std::byte{2}).ok());
  auto reader = owner_.begin_read(viewed);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(retire(5, viewed, now()), Sequences{});
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(retire(6, other, soon()), Sequences{6});
  EXPECT_LT(Deadline::Clock::now() - start, seconds(5));
}

TEST_F(OwnerTest, SettingTheOldestGrantStopsOlderWriters) {
  bool aborted = false;
  auto pin = owner_.begin_write(extent(0, 100, 1), [&] { aborted = true; });
  auto live = owner_.begin_write(extent(4096, 100, 5), [] {});
  ASSERT_TRUE(pin.ok() && live.ok());
  owner_.set_oldest_grant(Version{Term{7}, 5});
  EXPECT_TRUE(aborted);
  EXPECT_FALSE(live->cancelled());
  const std::vector<std::uint64_t> checksums{1};
  EXPECT_EQ(owner_.complete_write(std::move(*pin), "key", checksums).code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.complete_write(std::move(*live), "key", checksums).ok());
}

TEST_F(OwnerTest, UnmountRefusesNewAccessAbortsOldAndWaitsForIt) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  int reader_aborts = 0;
  int writer_aborts = 0;
  auto reader = owner_.begin_read(ref, [&] { ++reader_aborts; });
  auto writer = owner_.begin_write(extent(4096, 100, 2), [&] { ++writer_aborts; });
  ASSERT_TRUE(reader.ok() && writer.ok());
  EXPECT_EQ(owner_.unmount(incarnation_, now()).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(reader_aborts, 1);
  EXPECT_EQ(writer_aborts, 1);
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kStaleIncarnation);
  EXPECT_EQ(reader->memory()[99], std::byte{1}) << "still mapped while pinned";
  const std::vector<std::uint64_t> checksums{1};
  EXPECT_EQ(owner_.complete_write(std::move(*writer), "key", checksums).code(), ErrorCode::kStaleIncarnation);
  { const auto gone = std::move(*reader); }
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  EXPECT_EQ(owner_.unmount(incarnation_, soon()).code(), ErrorCode::kStaleIncarnation);
  EXPECT_TRUE(owner_.segments().empty());
}

TEST_F(OwnerTest, AnUnmountDoesNotWaitForReadersOfMappedMemoryWhichStaysWhileTheyDo) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  auto reader = owner_.begin_read(ref);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(owner_.unmount(incarnation_, now()).ok());
  EXPECT_EQ(reader->memory()[99], std::byte{1});
}

TEST_F(OwnerTest, AnUnmountWaitsForReadersOfLentMemory) {
  std::vector<std::byte> mine(1000);
  incarnation_ = *owner_.mount(mine);
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  auto reader = owner_.begin_read(ref);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(owner_.unmount(incarnation_, now()).code(), ErrorCode::kRpcTimeout);
  { const auto gone = std::move(*reader); }
  EXPECT_TRUE(owner_.unmount(incarnation_, now()).ok());
}

TEST_F(OwnerTest, RemountGivesTheSameMemoryEmptyUnderANewNameOnceReadersHaveLeft) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  const auto base = owner_.segments()[0].base;
  std::latch closed(1);
  auto reader = owner_.begin_read(ref, [&] { closed.count_down(); });
  ASSERT_TRUE(reader.ok());
  auto remounted = std::async(std::launch::async, [&] { return owner_.remount(incarnation_, soon()); });
  closed.wait();
  EXPECT_EQ(remounted.wait_for(milliseconds(20)), std::future_status::timeout) << "the reader is still there";
  { const auto gone = std::move(*reader); }
  const auto fresh = remounted.get();
  ASSERT_TRUE(fresh.ok()) << fresh.status().to_string();
  EXPECT_NE(*fresh, incarnation_);
  EXPECT_EQ(owner_.segments()[0].base, base);
  EXPECT_EQ(owner_.segments()[0].extents, 0U);
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kStaleIncarnation) << "an old description never reads new bytes";
  incarnation_ = *fresh;
  EXPECT_TRUE(put(extent(0, 100, 3), std::byte{3}).ok()) << "the new mounting follows the current term";
}

TEST_F(OwnerTest, ARemountLeavesViewsTheirBytesAndGoesOnWithOtherMemory) {
  const std::uint64_t page = 4096;
  const auto viewed = extent(page + 10, 5 * page, 1);
  const auto retired = extent(20 * page, 100, 2);
  ASSERT_TRUE(put(viewed, std::byte{1}).ok() && put(retired, std::byte{2}).ok() && put(extent(40 * page, 100, 3), std::byte{3}).ok());
  const auto* const old = reinterpret_cast<const std::byte*>(owner_.segments()[0].base);
  const auto size = owner_.segments()[0].size;
  auto view = owner_.begin_read(viewed);
  auto leaving = owner_.begin_read(retired);
  ASSERT_TRUE(view.ok() && leaving.ok());
  EXPECT_EQ(retire(7, retired, now()), Sequences{});
  const auto fresh = owner_.remount(incarnation_, soon());
  ASSERT_TRUE(fresh.ok()) << fresh.status().to_string();
  EXPECT_EQ(owner_.segments()[0].size, size);
  EXPECT_NE(reinterpret_cast<const std::byte*>(owner_.segments()[0].base), old);
  EXPECT_EQ(owner_.begin_read(viewed).code(), ErrorCode::kStaleIncarnation);
  incarnation_ = *fresh;
  for (const auto& ref : {extent(page + 10, 5 * page, 4), extent(20 * page, 100, 5)}) EXPECT_TRUE(put(ref, std::byte{9}).ok());
  EXPECT_TRUE(std::ranges::all_of(view->memory(), [](std::byte b) { return b == std::byte{1}; }));
  EXPECT_TRUE(std::ranges::all_of(leaving->memory(), [](std::byte b) { return b == std::byte{2}; }));
  EXPECT_EQ(old[40 * page], std::byte{0}) << "what nobody looks at was given back";
}

TEST_F(OwnerTest, AKeeperOfARegionIsWaitedForByNobodyAndTheMemoryStaysMappedForIt) {
  const auto region_of = [this](const ExtentRef& ref) {
    const auto writer = owner_.begin_write(ref, [] {});
    EXPECT_TRUE(writer.ok()) << writer.status().to_string();
    return writer->region();
  };
  const auto keeper = region_of(extent(0, 100, 1));
  ASSERT_NE(keeper.keeper, nullptr);
  EXPECT_EQ(keeper.memory.size(), owner_.segments()[0].size);
  const auto same = owner_.remount(incarnation_, now());
  ASSERT_TRUE(same.ok()) << same.status().to_string();
  incarnation_ = *same;
  EXPECT_EQ(region_of(extent(0, 100, 2)).keeper, keeper.keeper) << "the same memory goes on";
  ASSERT_TRUE(put(extent(8192, 100, 3), std::byte{3}).ok());
  {
    const auto view = owner_.begin_read(extent(8192, 100, 3));
    ASSERT_TRUE(view.ok());
    const auto other = owner_.remount(incarnation_, soon());
    ASSERT_TRUE(other.ok()) << other.status().to_string();
    incarnation_ = *other;
    EXPECT_NE(region_of(extent(0, 100, 4)).keeper, keeper.keeper) << "other memory goes on for the sake of a view";
    EXPECT_GT(keeper.keeper.use_count(), 1);
  }
  EXPECT_EQ(keeper.keeper.use_count(), 1) << "its last user can tell";
  EXPECT_EQ(keeper.memory[8192 + 99], std::byte{3});
  EXPECT_TRUE(owner_.unmount(incarnation_, now()).ok());
  std::vector<std::byte> mine(1000);
  incarnation_ = *owner_.mount(mine);
  EXPECT_EQ(region_of(extent(0, 100, 5)).keeper, nullptr) << "what is lent cannot be kept";
  EXPECT_TRUE(owner_.unmount(incarnation_, now()).ok());
}

TEST_F(OwnerTest, LentMemoryIsServedInPlace) {
  std::vector<std::byte> mine(1000);
  const auto lent = owner_.mount(mine);
  ASSERT_TRUE(lent.ok());
  incarnation_ = *lent;
  ASSERT_TRUE(put(extent(10, 20, 1), std::byte{4}).ok());
  EXPECT_EQ(mine[29], std::byte{4});
  EXPECT_EQ(mine[30], std::byte{0});
  EXPECT_TRUE(owner_.unmount(*lent, soon()).ok());
  EXPECT_EQ(owner_.mount(MutableBytes{}).code(), ErrorCode::kInvalidParams);
}

TEST_F(OwnerTest, AHigherTermVoidsRetirementsOfTheOldMaster) {
  const auto ref = extent(0, 100, 1);
  ASSERT_TRUE(put(ref, std::byte{1}).ok());
  auto reader = owner_.begin_read(ref);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(retire(5, ref, now()), Sequences{});
  ASSERT_TRUE(owner_.adopt_term(Term{8}, soon()).ok()) << "readers do not hold up a new reign";
  { const auto gone = std::move(*reader); }
  EXPECT_EQ(owner_.retire({}, now()), Sequences{}) << "sequence 5 of the new master is another order";
}

#ifdef MOONPOOL_SYNC_POINTS

TEST_F(OwnerTest, RetiringWhileAWriteIsAboutToBePublishedIsAcknowledgedOnlyAfterItWasRefused) {
  const auto ref = extent(0, 100, 1);
  std::latch at_publish(1);
  std::latch marked(1);
  SyncPoints::instance().on("owner.complete_write.before_publish", [&] {
    at_publish.count_down();
    marked.wait();
  });
  SyncPoints::instance().on("owner.retire.marked", [&] { marked.count_down(); });
  std::atomic<bool> writer_left{false};
  Status written;
  std::thread writer([&] {
    written = put(ref, std::byte{1});
    writer_left = true;
  });
  at_publish.wait();
  EXPECT_EQ(retire(5, ref, soon()), Sequences{5});
  writer.join();
  EXPECT_TRUE(writer_left);
  EXPECT_EQ(written.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_EQ(owner_.begin_read(ref).code(), ErrorCode::kReplicaGone);
}

TEST_F(OwnerTest, AdoptingATermWaitsForWritesInFlightAndNoneOfThemIsPublishedAfterwards) {
  const auto ref = extent(0, 100, 1);
  std::latch at_publish(1);
  std::latch cancelled(1);
  SyncPoints::instance().on("owner.complete_write.before_publish", [&] {
    at_publish.count_down();
    cancelled.wait();
  });
  SyncPoints::instance().on("owner.adopt_term.cancelled", [&] { cancelled.count_down(); });
  Status written;
  std::thread writer([&] { written = put(ref, std::byte{1}); });
  at_publish.wait();
  EXPECT_TRUE(owner_.adopt_term(Term{8}, soon()).ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty()) << "the snapshot after the adoption is final";
  writer.join();
  EXPECT_EQ(written.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(OwnerTest, AnAdoptionThatTimedOutIsAdoptedAndSucceedsWhenTheWriterHasLeft) {
  auto pin = owner_.begin_write(extent(0, 100, 1), [] {});
  ASSERT_TRUE(pin.ok());
  EXPECT_EQ(owner_.adopt_term(Term{8}, now()).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(owner_.term(), Term{8});
  EXPECT_EQ(owner_.begin_write(extent(4096, 100, 2, 7), [] {}).code(), ErrorCode::kStaleTerm);
  { const auto gone = std::move(*pin); }
  EXPECT_TRUE(owner_.adopt_term(Term{8}, soon()).ok());
  EXPECT_TRUE(put(extent(0, 100, 1, 8), std::byte{1}).ok());
}

TEST_F(OwnerTest, ASegmentMountedDuringAnAdoptionFollowsTheNewTerm) {
  Result<Incarnation> late(ErrorCode::kInternal, "not mounted");
  SyncPoints::instance().on("owner.adopt_term.cancelled", [&] { late = owner_.mount(4096); });
  ASSERT_TRUE(owner_.adopt_term(Term{8}, soon()).ok());
  ASSERT_TRUE(late.ok());
  incarnation_ = *late;
  EXPECT_EQ(owner_.begin_write(extent(0, 100, 1, 7), [] {}).code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.begin_write(extent(0, 100, 1, 8), [] {}).ok());
}

TEST_F(OwnerTest, AWriteAdmittedJustBeforeAnUnmountIsAbortedByIt) {
  std::atomic<bool> aborted{false};
  std::thread unmounting;
  SyncPoints::instance().on("owner.begin_write.admitted", [&] {
    unmounting = std::thread([&] { EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok()); });
    EXPECT_TRUE(test::wait_until([&] { return aborted.load(); }, soon()));
  });
  {
    const auto pin = owner_.begin_write(extent(0, 100, 1), [&] { aborted = true; });
    ASSERT_TRUE(pin.ok());
    EXPECT_TRUE(pin->cancelled());
  }
  unmounting.join();
}

#endif

// Readers, writers and the master's orders against each other: no reader ever sees anything but the bytes of its version.
TEST_F(OwnerTest, ReadersNeverSeeBytesOfAnotherVersionWhileRangesAreReused) {
  constexpr std::uint64_t kSlots = 4;
  constexpr std::uint64_t kLength = 10000;
  std::atomic<std::uint64_t> newest[kSlots] = {};
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> good_reads{0};
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      std::mt19937 random(static_cast<unsigned>(r));
      while (!stop) {
        const std::uint64_t slot = random() % kSlots;
        const std::uint64_t count = newest[slot];
        if (count == 0) continue;
        const auto pin = owner_.begin_read(extent(slot * 16384, kLength, count));
        if (!pin.ok()) continue;
        const auto value = static_cast<std::byte>(count);
        ASSERT_TRUE(std::ranges::all_of(pin->memory(), [&](std::byte b) { return b == value; }));
        ++good_reads;
      }
    });
  }
  std::uint64_t sequence = 0;
  for (std::uint64_t count = 1; count <= 400 || good_reads < 50; ++count) {
    const std::uint64_t slot = count % kSlots;
    if (const std::uint64_t old = newest[slot]; old != 0) {
      ++sequence;
      EXPECT_EQ(retire(sequence, extent(slot * 16384, kLength, old), soon()), Sequences{sequence});
    }
    ASSERT_TRUE(put(extent(slot * 16384, kLength, count), static_cast<std::byte>(count)).ok());
    newest[slot] = count;
    owner_.set_oldest_grant(Version{Term{7}, count});
  }
  stop = true;
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace moonpool::transfer
