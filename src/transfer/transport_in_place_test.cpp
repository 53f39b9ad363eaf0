// What the transports have to do that have memory in common with their peers: extents filled where they lie, and views that their caller
// verifies (transport.h).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/transport_rigs_for_test.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

Deadline now() { return Deadline::after(nanoseconds(0)); }

// What an extent is filled with: its grant tells.
std::vector<std::byte> bytes_of(const ExtentRef& ref) { return random_bytes(ref.length, 1000 + ref.version.count); }

std::vector<std::uint64_t> checksums_of(ConstBytes bytes) {
  ChunkHasher hasher;
  hasher.update(bytes);
  return hasher.finish();
}

void fill_with(OpenExtent& extent, const std::vector<std::byte>& bytes) {
  ASSERT_EQ(extent.memory.size(), bytes.size());
  std::ranges::copy(bytes, extent.memory.begin());
  extent.checksums = checksums_of(bytes);
}

class TransportInPlaceTest : public TransportConformanceTest {
 protected:
  static constexpr std::uint64_t kSize = 2 * kChecksumChunk + 100;

  // Of extents one behind the other, from `offset` on.
  std::vector<WriteOperation> operations(std::size_t count, std::uint64_t size = kSize, std::uint64_t offset = 0) {
    std::vector<WriteOperation> list;
    for (std::size_t i = 0; i < count; ++i) list.push_back({extent(offset + i * size, size), "the key", {}, {}, 0});
    return list;
  }
  // Returns how often `fill` was called.
  std::size_t write_in_place(std::span<WriteOperation> operations, const Fill& fill, Deadline deadline = soon()) {
    std::size_t calls = 0;
    const Fill counted = [&](std::span<OpenExtent> extents) {
      ++calls;
      EXPECT_FALSE(extents.empty());
      fill(extents);
    };
    transport().write_in_place(rig_->peer, operations, counted, deadline);
    return calls;
  }
  // Fills all as bytes_of() says.
  static Fill as_it_should_be(std::span<WriteOperation> operations) {
    return [operations](std::span<OpenExtent> extents) {
      for (auto& extent : extents) fill_with(extent, bytes_of(operations[extent.operation].extent));
    };
  }
  void expect_readable(const WriteOperation& operation) {
    std::vector<std::byte> into(operation.extent.length);
    const Status status = read(operation.extent, 0, into, operation.checksum);
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_EQ(into, bytes_of(operation.extent));
  }
  RetirementOrder order_for(const WriteOperation& operation) { return {operation.extent.version.count, operation.extent}; }
  bool is_shm() { return transport().name() == "shm"; }
};

TEST_P(TransportInPlaceTest, EverySizeIsReadAsItWasFilled) {
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{4095}, kChecksumChunk - 1, kChecksumChunk, kChecksumChunk + 1, std::size_t{16} << 20}) {
    auto batch = operations(1, size, count_ % 2 * (std::uint64_t{17} << 20));
    EXPECT_EQ(write_in_place(batch, as_it_should_be(batch)), 1U);
    ASSERT_TRUE(batch[0].status.ok()) << size << ": " << batch[0].status.to_string();
    const auto entries = owner().catalogue(incarnation_);
    ASSERT_EQ(entries.size(), 1U);
    EXPECT_EQ(entries[0].checksum, batch[0].checksum);
    EXPECT_EQ(entries[0].checksum, root_of(checksums_of(bytes_of(batch[0].extent))));
    EXPECT_EQ(entries[0].key, "the key");
    EXPECT_EQ(entries[0].version, batch[0].extent.version);
    expect_readable(batch[0]);
    const auto order = order_for(batch[0]);
    ASSERT_EQ(owner().retire({&order, 1}, soon()).size(), 1U);
  }
}

TEST_P(TransportInPlaceTest, TheExtentsOfABatchAreOpenAtOnceAndSayWhereTheyLie) {
  auto batch = operations(200, 1000);
  const auto calls = write_in_place(batch, [&](std::span<OpenExtent> extents) {
    ASSERT_EQ(extents.size(), batch.size());
    std::set<std::size_t> seen;
    for (auto& extent : extents) {
      ASSERT_TRUE(seen.insert(extent.operation).second);
      const ExtentRef& wanted = batch[extent.operation].extent;
      ASSERT_NE(extent.region.keeper, nullptr);
      EXPECT_EQ(extent.region.keeper, extents[0].region.keeper);
      EXPECT_EQ(extent.region.memory.data(), extents[0].region.memory.data());
      EXPECT_EQ(extent.region.memory.size(), owner().segments()[0].size);
      EXPECT_EQ(extent.memory.data(), extent.region.memory.data() + wanted.offset);
      fill_with(extent, bytes_of(wanted));
    }
  });
  EXPECT_EQ(calls, 1U);
  for (const auto& operation : batch) {
    ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
    expect_readable(operation);
  }
}

TEST_P(TransportInPlaceTest, ABatchOfThousandsIsFilledOnceEach) {
  auto batch = operations(5 * kRingSlots, 100);
  std::vector<int> filled(batch.size());
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    for (const auto& extent : extents) ++filled[extent.operation];
    as_it_should_be(batch)(extents);
  });
  EXPECT_THAT(filled, ::testing::Each(1));
  for (const auto& operation : batch) ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), batch.size());
  expect_readable(batch.front());
  expect_readable(batch.back());
}

TEST_P(TransportInPlaceTest, WhatCannotBeOpenedIsRefusedAloneAndSourcesAreNotLookedAt) {
  const auto data = random_bytes(100, 1);
  const ConstBytes piece(data);
  auto stale = extent(0, kSize);
  stale.incarnation = Incarnation::generate();
  auto old_term = extent(10 * kSize, kSize);
  old_term.version.term = Term{2};
  std::vector<WriteOperation> batch{
      {extent(0, kSize), "good", {}, {}, 0},
      {stale, "stale", {}, {}, 0},
      {extent(20 * kSize, 0), "empty", {}, {}, 0},
      {extent(kSegmentSize - 5, kSize), "outside", {}, {}, 0},
      {old_term, "old", {}, {}, 0},
      {extent(kSize / 2, kSize), "overlap", {}, {}, 0},
      {extent(30 * kSize, kSize), "good", {&piece, 1}, {}, 0},
  };
  EXPECT_EQ(write_in_place(batch, as_it_should_be(batch)), 1U);
  const std::vector<ErrorCode> expected{ErrorCode::kOk,
                                        ErrorCode::kStaleIncarnation,
                                        ErrorCode::kInvalidWrite,
                                        ErrorCode::kInvalidWrite,
                                        ErrorCode::kStaleTerm,
                                        ErrorCode::kInvalidWrite,
                                        ErrorCode::kOk};
  for (std::size_t i = 0; i < batch.size(); ++i) EXPECT_EQ(batch[i].status.code(), expected[i]) << i << batch[i].status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), 2U);
  expect_readable(batch[0]);
  expect_readable(batch[6]);
}

TEST_P(TransportInPlaceTest, FillIsNotCalledForNothing) {
  EXPECT_EQ(write_in_place({}, as_it_should_be({})), 0U);
  auto refused = operations(2);
  for (auto& operation : refused) operation.extent.version.term = Term{2};
  EXPECT_EQ(write_in_place(refused, as_it_should_be(refused)), 0U);
  for (const auto& operation : refused) EXPECT_EQ(operation.status.code(), ErrorCode::kStaleTerm);
}

TEST_P(TransportInPlaceTest, TheSameExtentTwiceInABatchIsWrittenOnce) {
  auto batch = operations(1);
  batch.push_back(batch[0]);
  EXPECT_EQ(write_in_place(batch, as_it_should_be(batch)), 1U);
  EXPECT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  EXPECT_EQ(batch[1].status.code(), ErrorCode::kInvalidWrite);
  expect_readable(batch[0]);
}

TEST_P(TransportInPlaceTest, AnErrorOrAWrongNumberOfChecksumsIsOfThatWriteAlone) {
  auto batch = operations(5);
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    as_it_should_be(batch)(extents);
    for (auto& extent : extents) {
      if (extent.operation == 1) extent.status = Status(ErrorCode::kTransferFail, "the device is gone");
      if (extent.operation == 2) extent.checksums.pop_back();
      if (extent.operation == 3) extent.checksums.resize(100'000, 7);
    }
  });
  EXPECT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  EXPECT_EQ(batch[1].status.code(), ErrorCode::kTransferFail);
  EXPECT_EQ(batch[1].status.message(), "the device is gone");
  EXPECT_EQ(batch[2].status.code(), ErrorCode::kInvalidWrite);
  EXPECT_EQ(batch[3].status.code(), ErrorCode::kInvalidWrite);
  EXPECT_TRUE(batch[4].status.ok()) << batch[4].status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), 2U);
  expect_readable(batch[0]);
  expect_readable(batch[4]);
  auto again = operations(3, kSize, kSize);
  write_in_place(again, as_it_should_be(again));
  for (const auto& operation : again) ASSERT_TRUE(operation.status.ok()) << "its place is free: " << operation.status.to_string();
}

TEST_P(TransportInPlaceTest, ARetirementInMidFillIsAcknowledgedWhenNothingIsTouchedAnyMore) {
  auto batch = operations(3);
  const auto order = order_for(batch[1]);
  std::atomic<bool> touched{true};
  std::future<std::size_t> acknowledged;
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    EXPECT_TRUE(owner().retire({&order, 1}, now()).empty()) << "its memory is still being written";
    acknowledged = std::async(std::launch::async, [&] {
      const std::size_t complete = owner().retire({}, soon()).size();
      EXPECT_FALSE(touched);
      return complete;
    });
    as_it_should_be(batch)(extents);
    touched = false;
  });
  EXPECT_EQ(acknowledged.get(), 1U);
  EXPECT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  EXPECT_EQ(batch[1].status.code(), ErrorCode::kStaleTerm) << batch[1].status.to_string();
  EXPECT_TRUE(batch[2].status.ok()) << batch[2].status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), 2U);
  const auto data = random_bytes(kSize, 1);
  EXPECT_TRUE(write(extent(kSize, kSize), data).status.ok()) << "its place is free";
}

TEST_P(TransportInPlaceTest, ANewTermInMidFillWaitsForItsEndAndTakesNothingOfTheOldOne) {
  auto batch = operations(2);
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    EXPECT_EQ(owner().adopt_term(Term{4}, now()).code(), ErrorCode::kRpcTimeout);
    as_it_should_be(batch)(extents);
  });
  for (const auto& operation : batch) EXPECT_EQ(operation.status.code(), ErrorCode::kStaleTerm) << operation.status.to_string();
  EXPECT_TRUE(owner().adopt_term(Term{4}, soon()).ok());
  EXPECT_TRUE(owner().catalogue(incarnation_).empty());
}

TEST_P(TransportInPlaceTest, GrantsThatGrowTooOldInMidFillAreNotPublished) {
  auto batch = operations(2);
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    owner().set_oldest_grant(batch[1].extent.version);
    as_it_should_be(batch)(extents);
  });
  EXPECT_EQ(batch[0].status.code(), ErrorCode::kStaleTerm) << batch[0].status.to_string();
  EXPECT_TRUE(batch[1].status.ok()) << batch[1].status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), 1U);
}

TEST_P(TransportInPlaceTest, AnUnmountInMidFillWaitsForItsEnd) {
  auto batch = operations(2);
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    EXPECT_EQ(owner().unmount(incarnation_, now()).code(), ErrorCode::kRpcTimeout);
    as_it_should_be(batch)(extents);
  });
  for (const auto& operation : batch) EXPECT_EQ(operation.status.code(), ErrorCode::kStaleTerm) << operation.status.to_string();
  EXPECT_TRUE(owner().unmount(incarnation_, soon()).ok());
}

TEST_P(TransportInPlaceTest, AFillThatThrowsLeavesNothingBehind) {
  auto batch = operations(kRingSlots / 4 + 50, 1000);
  std::set<std::size_t> filled;
  const auto fill = [&](std::span<OpenExtent> extents) {
    as_it_should_be(batch)(extents);
    if (std::ranges::any_of(extents, [&](const auto& extent) { return extent.operation + 1 == batch.size(); })) {
      throw std::runtime_error("out of memory");
    }
    for (const auto& extent : extents) filled.insert(extent.operation);
  };
  EXPECT_THROW(write_in_place(batch, fill), std::runtime_error);
  EXPECT_EQ(owner().catalogue(incarnation_).size(), filled.size()) << "what an earlier call has filled is complete";
  std::vector<RetirementOrder> orders;
  for (const auto& operation : batch) orders.push_back(order_for(operation));
  EXPECT_EQ(owner().retire(orders, now()).size(), batch.size()) << "nobody has to be waited for";
  auto again = operations(batch.size(), 1000);
  write_in_place(again, as_it_should_be(again));
  for (const auto& operation : again) ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
}

TEST_P(TransportInPlaceTest, NothingIsOpenedAfterTheDeadline) {
  auto batch = operations(3);
  EXPECT_EQ(write_in_place(batch, as_it_should_be(batch), now()), 0U);
  for (const auto& operation : batch) EXPECT_EQ(operation.status.code(), ErrorCode::kRpcTimeout) << operation.status.to_string();
  EXPECT_EQ(write_in_place(batch, as_it_should_be(batch)), 1U);
  for (const auto& operation : batch) EXPECT_TRUE(operation.status.ok()) << operation.status.to_string();
}

TEST_P(TransportInPlaceTest, WhatIsFilledWhenTheDeadlinePassesIsComplete) {
  auto first = operations(1);
  write_in_place(first, as_it_should_be(first));  // the path is ready
  auto batch = operations(2, kSize, kSize);
  const auto deadline = Deadline::after(milliseconds(500));
  const auto calls = write_in_place(
      batch,
      [&](std::span<OpenExtent> extents) {
        as_it_should_be(batch)(extents);
        while (!deadline.expired()) std::this_thread::yield();
      },
      deadline);
  EXPECT_EQ(calls, 1U);
  for (const auto& operation : batch) {
    ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
    expect_readable(operation);
  }
}

TEST_P(TransportInPlaceTest, WritersOfBothKindsWorkSideBySide) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 8;
  constexpr std::size_t kBatch = 6;
  constexpr std::uint64_t kEach = 100'000;
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        const auto place = static_cast<std::uint64_t>(t * kRounds + round) * kBatch * kEach;
        auto batch = operations(kBatch, kEach, place);
        std::vector<std::vector<std::byte>> data;
        std::vector<ConstBytes> sources;
        for (const auto& operation : batch) data.push_back(bytes_of(operation.extent));
        for (const auto& bytes : data) sources.emplace_back(bytes);
        if (t % 2 == 0) {
          write_in_place(batch, as_it_should_be(batch));
        } else {
          for (std::size_t i = 0; i < kBatch; ++i) batch[i].source = {&sources[i], 1};
          transport().write(rig_->peer, batch, soon());
        }
        for (const auto& operation : batch) {
          ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
          expect_readable(operation);
          ++good;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, kThreads * kRounds * static_cast<int>(kBatch));
}

// Retirements come at any moment of a write in place; what was acknowledged is not touched any more.
TEST_P(TransportInPlaceTest, RetirementsAtAnyMomentNeverLetAPlaceBeWrittenTwiceAtOnce) {
  std::atomic<int> inside{0};
  std::atomic<bool> overlapped{false};
  int complete = 0;
  for (int round = 0; round < 200; ++round) {
    auto doomed = operations(1, 5000);
    std::thread writer([&] {
      write_in_place(doomed, [&](std::span<OpenExtent> extents) {
        if (inside.fetch_add(1) != 0) overlapped = true;
        as_it_should_be(doomed)(extents);
        --inside;
      });
    });
    const auto order = order_for(doomed[0]);
    ASSERT_EQ(owner().retire({&order, 1}, soon()).size(), 1U);
    auto next = operations(1, 5000);
    write_in_place(next, [&](std::span<OpenExtent> extents) {
      if (inside.fetch_add(1) != 0) overlapped = true;
      as_it_should_be(next)(extents);
      --inside;
    });
    writer.join();
    ASSERT_TRUE(next[0].status.ok()) << next[0].status.to_string();
    expect_readable(next[0]);
    complete += doomed[0].status.ok() ? 1 : 0;
    const auto cleared = order_for(next[0]);
    ASSERT_EQ(owner().retire({&cleared, 1}, soon()).size(), 1U);
  }
  EXPECT_FALSE(overlapped);
  RecordProperty("complete_before_they_were_retired", complete);
}

TEST_P(TransportInPlaceTest, AKeeperHoldsUpNobodyAndKeepsTheMemoryMapped) {
  auto batch = operations(1);
  Region region;
  write_in_place(batch, [&](std::span<OpenExtent> extents) {
    region = extents[0].region;
    as_it_should_be(batch)(extents);
  });
  ASSERT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  const auto remounted = owner().remount(incarnation_, now());
  ASSERT_TRUE(remounted.ok()) << remounted.status().to_string();
  EXPECT_TRUE(owner().unmount(*remounted, now()).ok());
  rig_.reset();
  EXPECT_TRUE(std::ranges::equal(region.memory.first(kSize), bytes_of(batch[0].extent)));
  EXPECT_EQ(region.keeper.use_count(), 1) << "it is unmapped with us";
}

TEST_P(TransportInPlaceTest, LentMemoryHasNoRegion) {
  std::vector<std::byte> memory(4 * kSize);
  const auto lent = owner().mount(MutableBytes(memory));
  ASSERT_TRUE(lent.ok()) << lent.status().to_string();
  incarnation_ = *lent;
  auto batch = operations(1);
  const auto calls = write_in_place(batch, [&](std::span<OpenExtent> extents) {
    EXPECT_TRUE(extents[0].region.memory.empty());
    EXPECT_EQ(extents[0].region.keeper, nullptr);
    EXPECT_EQ(extents[0].memory.data(), memory.data());
    as_it_should_be(batch)(extents);
  });
  EXPECT_EQ(calls, is_shm() ? 0U : 1U);
  EXPECT_EQ(batch[0].status.code(), is_shm() ? ErrorCode::kNotSupported : ErrorCode::kOk) << batch[0].status.to_string();
  EXPECT_TRUE(owner().unmount(incarnation_, soon()).ok());
}

TEST_P(TransportInPlaceTest, AViewSaysWhereItLiesAndIsHashedOnlyIfItsCallerDoesNot) {
  if (transport().name() == "fake") GTEST_SKIP() << "it has no views";
  auto batch = operations(1);
  write_in_place(batch, as_it_should_be(batch));
  ASSERT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  const auto view = [&](bool verified) {
    ViewOperation operation;
    operation.extent = batch[0].extent;
    operation.checksum = batch[0].checksum;
    operation.verified = verified;
    transport().view(rig_->peer, {&operation, 1}, soon());
    return operation;
  };
  for (const bool verified : {true, false}) {
    const auto seen = view(verified);
    ASSERT_TRUE(seen.status.ok()) << seen.status.to_string();
    EXPECT_TRUE(std::ranges::equal(seen.bytes, bytes_of(batch[0].extent)));
    ASSERT_NE(seen.region.keeper, nullptr);
    EXPECT_EQ(seen.region.memory.size(), owner().segments()[0].size);
    EXPECT_EQ(seen.bytes.data(), seen.region.memory.data() + batch[0].extent.offset);
  }
  owners_byte(kChecksumChunk + 5) ^= std::byte{1};
  const auto unverified = view(false);
  ASSERT_TRUE(unverified.status.ok()) << unverified.status.to_string();
  EXPECT_NE(root_of(checksums_of(unverified.bytes)), batch[0].checksum) << "left to its caller";
  EXPECT_NE(unverified.pin, nullptr);
  const auto verified = view(true);
  EXPECT_EQ(verified.status.code(), ErrorCode::kChecksumMismatch);
  EXPECT_EQ(verified.pin, nullptr);
  EXPECT_EQ(verified.region.keeper, nullptr);
}

INSTANTIATE_TEST_SUITE_P(CommonMemory, TransportInPlaceTest,
                         ::testing::Values(Case{"local", [] { return std::make_unique<LocalRig>(); }},
                                           Case{"shm", [] { return std::make_unique<ShmRig>(); }},
                                           Case{"fake", [] { return std::make_unique<FakeRig>(); }}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace moonpool::transfer
