// What a store's batch costs over RDMA, and its races, made on purpose with simulated NICs. What every transport has to do is in
// transport_conformance_test.cpp.
#include "transfer/rdma/rdma_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "net/lane_pool.h"
#include "tests/support/test_support.h"
#include "transfer/checksum.h"
#include "transfer/path_selector.h"
#include "transfer/rdma/pair_for_test.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Term kTerm{3};
constexpr std::uint64_t kSegment = std::uint64_t{64} << 20;
constexpr std::uint64_t kSize = 3 * kChecksumChunk;

Deadline soon() { return Deadline::after(seconds(30)); }

std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Runs something when a point is reached for the n-th time, once.
class At {
 public:
  At(const char* point, std::function<void()> what, int n = 1) : left_(n), what_(std::move(what)) {
    SyncPoints::instance().on(point, [this] {
      if (--left_ == 0) what_();
    });
  }
  [[nodiscard]] bool happened() const { return left_ <= 0; }

 private:
  std::atomic<int> left_;
  const std::function<void()> what_;
};

class RdmaTransportTest : public ::testing::Test {
 protected:
  explicit RdmaTransportTest(std::size_t nics = 2) : nics_(nics) {}
  void SetUp() override {
    ASSERT_TRUE(owner_.adopt_term(kTerm, soon()).ok());
    Options options;
    options.come_back_after = milliseconds(20);
    pair_ = std::make_unique<PairForTest>(owner_, peer_.node, simulated_devices(fabric_, "owner", nics_),
                                          simulated_devices(fabric_, "user", nics_), options);
    peer_.endpoint.port = pair_->port();
    transport_ = pair_->user().transport(true);
    mount();
  }
  void TearDown() override { SyncPoints::instance().clear(); }

  void mount() {
    incarnation_ = *owner_.mount(kSegment);
    const Status served = pair_->owner_end().wait_served(incarnation_, soon());
    ASSERT_TRUE(served.ok()) << served.to_string();
  }
  ExtentRef extent(std::uint64_t offset, std::uint64_t length = kSize) { return {incarnation_, offset, length, Version{kTerm, ++count_}}; }
  WriteOperation write(const ExtentRef& ref, const std::vector<std::byte>& data) {
    const ConstBytes piece(data);
    WriteOperation operation{ref, "key", {&piece, 1}, {}, 0};
    transport_->write(peer_, {&operation, 1}, soon());
    return operation;
  }
  Status read(const ExtentRef& ref, std::vector<std::byte>& into, std::uint64_t checksum, std::uint64_t start = 0) {
    const MutableBytes piece(into);
    ReadOperation operation{ref, start, into.size(), {&piece, 1}, checksum, {}};
    transport_->read(peer_, {&operation, 1}, soon());
    return operation.status;
  }
  std::size_t retire(const ExtentRef& ref, std::chrono::nanoseconds wait = seconds(20)) {
    const RetirementOrder order{ref.version.count, ref};
    return owner_.retire({&order, 1}, Deadline::after(wait)).size();
  }
  // By the owner itself, as a writer of this process has it.
  std::uint64_t write_locally(const ExtentRef& ref, const std::vector<std::byte>& data) {
    auto pin = owner_.begin_write(ref, [] {});
    EXPECT_TRUE(pin.ok()) << pin.status().to_string();
    std::ranges::copy(data, pin->memory().begin());
    ChunkHasher hasher;
    hasher.update(data);
    const auto checksums = hasher.finish();
    EXPECT_TRUE(owner_.complete_write(std::move(*pin), "key", checksums).ok());
    return root_of(checksums);
  }
  std::vector<std::byte> owners_bytes(const ExtentRef& ref) {
    const auto* const begin = reinterpret_cast<const std::byte*>(owner_.segments()[0].base + ref.offset);
    return {begin, begin + ref.length};
  }

  const std::size_t nics_;
  SimulatedFabric fabric_;
  Owner owner_;
  Peer peer_{NodeId::generate(), {"127.0.0.1", 1}};
  std::unique_ptr<PairForTest> pair_;
  std::unique_ptr<Transport> transport_;
  Incarnation incarnation_;
  std::uint64_t count_ = 0;
};

class OneNicTest : public RdmaTransportTest {
 protected:
  OneNicTest() : RdmaTransportTest(1) {}
};

// ---------------------------------------------------------------- costs

// A vLLM batch: 24 blocks of 30 pieces, out of memory and into memory that the user has registered.
TEST_F(RdmaTransportTest, AStoresBatchIsMovedWithoutACopyAndWithTheFewestWords) {
  constexpr std::size_t kBlocks = 24;
  constexpr std::size_t kPieces = 30;
  constexpr std::size_t kPiece = 24 * 1024;
  constexpr std::size_t kBlock = kPieces * kPiece;
  auto data = pattern(kBlocks * kBlock, 1);
  std::vector<std::byte> into(data.size());
  ASSERT_TRUE(pair_->user().memory().add_local(data).ok());
  ASSERT_TRUE(pair_->user().memory().add_local(into).ok());
  // What is done once for a peer: a session, the keys of its segment.
  const auto first = extent(0, 100);
  ASSERT_TRUE(write(first, pattern(100, 2)).status.ok());
  ASSERT_EQ(retire(first), 1U);

  std::vector<ConstBytes> sources;
  std::vector<MutableBytes> destinations;
  for (std::size_t at = 0; at < data.size(); at += kPiece) {
    sources.push_back(ConstBytes(data).subspan(at, kPiece));
    destinations.push_back(MutableBytes(into).subspan(at, kPiece));
  }
  std::atomic<int> begins{0};
  std::atomic<int> completes{0};
  std::atomic<int> pins{0};
  SyncPoints::instance().on("rdma.begin.admitted", [&] { ++begins; });
  SyncPoints::instance().on("rdma.complete.rails_destroyed", [&] { ++completes; });
  SyncPoints::instance().on("rdma.pinned", [&] { ++pins; });
  const Counters& now = pair_->counters();
  const auto staged = now.staged_bytes.load();
  auto requests = now.work_requests.load();
  auto doorbells = now.doorbells.load();
  auto completions = now.completions.load();

  std::vector<WriteOperation> writes;
  for (std::size_t i = 0; i < kBlocks; ++i) {
    writes.push_back({extent(i * kBlock, kBlock), "k", std::span(sources).subspan(i * kPieces, kPieces), {}, 0});
  }
  transport_->write(peer_, writes, soon());
  std::vector<ReadOperation> reads;
  for (std::size_t i = 0; i < kBlocks; ++i) {
    ASSERT_TRUE(writes[i].status.ok()) << writes[i].status.to_string();
    reads.push_back({writes[i].extent, 0, kBlock, std::span(destinations).subspan(i * kPieces, kPieces), writes[i].checksum, {}});
  }
  EXPECT_EQ(begins, 1);
  EXPECT_EQ(completes, 1);
  EXPECT_EQ(now.staged_bytes - staged, 0U);
  EXPECT_EQ(now.work_requests - requests, kBlocks);
  EXPECT_EQ(now.doorbells - doorbells, nics_);
  EXPECT_EQ(now.completions - completions, nics_);

  requests = now.work_requests;
  doorbells = now.doorbells;
  completions = now.completions;
  transport_->read(peer_, reads, soon());
  for (const auto& operation : reads) ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
  EXPECT_TRUE(into == data);
  EXPECT_EQ(begins, 1);
  EXPECT_EQ(completes, 1);
  EXPECT_EQ(pins, 0);
  EXPECT_EQ(now.staged_bytes - staged, 0U);
  EXPECT_EQ(now.work_requests - requests, kBlocks);
  EXPECT_EQ(now.doorbells - doorbells, nics_);
  EXPECT_EQ(now.completions - completions, nics_);
  for (auto* const memory : {&data, &into}) ASSERT_TRUE(pair_->user().memory().remove_local(memory->data(), soon()).ok());
}

TEST_F(RdmaTransportTest, ARangeIsPinnedForAsLongAsItIsReadAndNoLonger) {
  const auto data = pattern(kSize, 3);
  const auto ref = extent(0);
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok()) << written.status.to_string();
  std::size_t retired = 1;
  const At meanwhile("rdma.read.pinned", [&] { retired = retire(ref, milliseconds(10)); });
  std::vector<std::byte> into(1000);
  const Status status = read(ref, into, written.checksum, 777);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(meanwhile.happened());
  EXPECT_EQ(retired, 0U) << "somebody is reading it";
  EXPECT_TRUE(std::equal(into.begin(), into.end(), data.begin() + 777));
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
}

// ---------------------------------------------------------------- readers against eviction and reuse

TEST_F(OneNicTest, ASlowReadOfSpaceThatIsReusedIsNeverWrong) {
  std::mt19937_64 random(7);
  int gone = 0;
  std::uint64_t seed = 100;
  auto data = pattern(kSize, seed);
  auto ref = extent(0);
  std::uint64_t checksum = write(ref, data).checksum;
  for (int round = 0; round < 60; ++round) {
    // Held in the midst of the bytes, or, now and then, not at all.
    const auto gate = round % 6 == 5 ? nullptr : fabric_.hold("user0", 1, random() % kSize);
    std::vector<std::byte> into(kSize);
    Status outcome;
    std::thread reader([&] { outcome = read(ref, into, checksum); });
    if (gate != nullptr) {
      ASSERT_TRUE(gate->await_reached(soon()));
    }
    ASSERT_EQ(retire(ref), 1U) << "a read that nobody was told of holds nobody up";
    const auto next = pattern(kSize, ++seed);
    const auto next_ref = extent(0);
    const auto next_checksum = write_locally(next_ref, next);
    if (gate != nullptr) gate->open();
    reader.join();
    if (outcome.ok()) {
      ASSERT_TRUE(into == data) << "round " << round;
    } else {
      ASSERT_EQ(outcome.code(), ErrorCode::kReplicaGone) << outcome.to_string();
      ++gone;
    }
    data = next;
    ref = next_ref;
    checksum = next_checksum;
  }
  EXPECT_GT(gone, 0);
  std::vector<std::byte> into(kSize);
  EXPECT_TRUE(read(ref, into, checksum).ok());
  EXPECT_TRUE(into == data);
}

TEST_F(OneNicTest, ReadersAndReuseRacedFreelyNeverDeliverAWrongByte) {
  constexpr std::uint64_t kSmall = 20'000;
  struct Object {
    ExtentRef ref;
    std::uint64_t checksum = 0;
    std::uint64_t seed = 0;
  };
  std::mutex mutex;
  std::uint64_t seed = 1;
  Object current{extent(0, kSmall), 0, seed};
  current.checksum = write_locally(current.ref, pattern(kSmall, seed));
  std::atomic<bool> over{false};
  std::atomic<int> right{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&] {
      std::vector<std::byte> into(kSmall);
      while (!over) {
        Object object;
        {
          const std::scoped_lock lock(mutex);
          object = current;
        }
        const Status status = read(object.ref, into, object.checksum);
        if (status.ok()) {
          ASSERT_TRUE(into == pattern(kSmall, object.seed));
          ++right;
        } else {
          ASSERT_EQ(status.code(), ErrorCode::kReplicaGone) << status.to_string();
        }
      }
    });
  }
  for (int round = 0; round < 300 || right == 0; ++round) {
    Object next{extent(0, kSmall), 0, ++seed};
    ASSERT_EQ(retire(current.ref), 1U);
    next.checksum = write_locally(next.ref, pattern(kSmall, seed));
    const std::scoped_lock lock(mutex);
    current = next;
  }
  over = true;
  for (auto& reader : readers) reader.join();
}

TEST_F(OneNicTest, ASegmentThatIsRemountedDuringAReadIsStaleAndNeverWrong) {
  const auto data = pattern(kSize, 4);
  const auto ref = extent(0);
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok()) << written.status.to_string();
  const auto gate = fabric_.hold("user0", 1, kSize / 2);
  std::vector<std::byte> into(kSize);
  Status outcome;
  std::thread reader([&] { outcome = read(ref, into, written.checksum); });
  ASSERT_TRUE(gate->await_reached(soon()));
  const auto fresh = owner_.remount(incarnation_, soon());
  ASSERT_TRUE(fresh.ok()) << fresh.status().to_string();
  gate->open();
  reader.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleIncarnation) << outcome.to_string();
  incarnation_ = *fresh;
  ASSERT_TRUE(pair_->owner_end().wait_served(incarnation_, soon()).ok());
  EXPECT_TRUE(write(extent(0), data).status.ok()) << "the path is fine afterwards";
}

// ---------------------------------------------------------------- writers that are fenced

TEST_F(OneNicTest, AFencedWriterCannotChangeMemoryAnyMore) {
  const auto doomed = extent(0);
  const auto gate = fabric_.hold("user0", 1, kSize / 3);
  Status outcome;
  std::thread writer([&] { outcome = write(doomed, pattern(kSize, 5)).status; });
  ASSERT_TRUE(gate->await_reached(soon()));
  ASSERT_EQ(retire(doomed), 1U) << "its queue pair is gone, so it need not be waited for";
  const auto data = pattern(kSize, 6);
  const auto ref = extent(0);
  const auto checksum = write_locally(ref, data);
  gate->open();
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleTerm) << outcome.to_string();
  EXPECT_TRUE(owners_bytes(ref) == data);
  std::vector<std::byte> into(kSize);
  EXPECT_TRUE(read(ref, into, checksum).ok());
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 1U);
}

TEST_F(OneNicTest, ANewTermFencesTheWritersOfTheOldOne) {
  const auto doomed = extent(0);
  const auto gate = fabric_.hold("user0", 1, 4096);
  Status outcome;
  std::thread writer([&] { outcome = write(doomed, pattern(kSize, 5)).status; });
  ASSERT_TRUE(gate->await_reached(soon()));
  EXPECT_TRUE(owner_.adopt_term(Term{4}, soon()).ok());
  const auto before = owners_bytes(doomed);
  gate->open();
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleTerm) << outcome.to_string();
  EXPECT_TRUE(owners_bytes(doomed) == before);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(OneNicTest, AClosingSegmentFencesItsWriters) {
  const auto doomed = extent(0);
  const auto gate = fabric_.hold("user0", 1, 4096);
  Status outcome;
  std::thread writer([&] { outcome = write(doomed, pattern(kSize, 5)).status; });
  ASSERT_TRUE(gate->await_reached(soon()));
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  gate->open();
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleIncarnation) << outcome.to_string();
}

// One of a batch is retired after all its bytes were written: its session is fenced, and the others are written anew over another one.
TEST_F(RdmaTransportTest, ASessionThatDiesBetweenWritingAndCompletingCostsItsNeighboursNothing) {
  const auto data = pattern(kSize, 8);
  const ConstBytes piece(data);
  std::vector<WriteOperation> batch;
  for (std::uint64_t i = 0; i < 4; ++i) batch.push_back({extent(i * kSize), "key", {&piece, 1}, {}, 0});
  const At fence("rdma.write.moved", [&] { EXPECT_EQ(retire(batch[2].extent), 1U); });
  transport_->write(peer_, batch, soon());
  ASSERT_TRUE(fence.happened());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const auto expected = i == 2 ? ErrorCode::kStaleTerm : ErrorCode::kOk;
    EXPECT_EQ(batch[i].status.code(), expected) << i << ": " << batch[i].status.to_string();
    std::vector<std::byte> into(kSize);
    if (i == 2) continue;
    EXPECT_TRUE(read(batch[i].extent, into, batch[i].checksum).ok());
    EXPECT_TRUE(into == data);
  }
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 3U);
}

TEST_F(RdmaTransportTest, AWriteThatIsRepeatedIsOneAndOtherBytesAreRefused) {
  const auto data = pattern(kSize, 9);
  const auto ref = extent(0);
  const auto first = write(ref, data);
  ASSERT_TRUE(first.status.ok()) << first.status.to_string();
  const auto again = write(ref, data);
  EXPECT_TRUE(again.status.ok()) << again.status.to_string();
  EXPECT_EQ(again.checksum, first.checksum);
  EXPECT_EQ(write(ref, pattern(kSize, 10)).status.code(), ErrorCode::kInvalidWrite);
  EXPECT_TRUE(owners_bytes(ref) == data);
}

TEST_F(RdmaTransportTest, AnOwnerThatRestartsServesNoOldBytesAndIsFoundAgain) {
  const auto data = pattern(kSize, 11);
  const auto old = extent(0);
  const auto written = write(old, data);
  ASSERT_TRUE(written.status.ok()) << written.status.to_string();
  // Between the bytes and the word that they are complete: nothing of the owner's process is left then.
  const auto lost = extent(kSize);
  const At restart("rdma.write.moved", [&] {
    pair_->stop_owner();
    ASSERT_TRUE(owner_.unmount(incarnation_, soon()).ok());
    pair_->start_owner();
    mount();
  });
  EXPECT_EQ(write(lost, data).status.code(), ErrorCode::kStaleIncarnation);
  ASSERT_TRUE(restart.happened());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  std::vector<std::byte> into(kSize);
  EXPECT_EQ(read(old, into, written.checksum).code(), ErrorCode::kStaleIncarnation);
  const auto fresh = extent(0);
  const auto anew = write(fresh, data);
  EXPECT_TRUE(anew.status.ok()) << anew.status.to_string();
  const Status back = read(fresh, into, anew.checksum);
  EXPECT_TRUE(back.ok()) << back.to_string();
  EXPECT_TRUE(into == data);
}

// ---------------------------------------------------------------- rails and NICs that fail

// Whatever is late on a broken rail must not arrive after the extent was published: the owner's end of it is gone before.
TEST_F(RdmaTransportTest, ABrokenRailIsGoneAtTheOwnerBeforeWhatItCarriedIsPublished) {
  const auto data = pattern(std::size_t{8} << 20, 12);
  const auto ref = extent(0, data.size());
  ASSERT_TRUE(write(extent(std::uint64_t{32} << 20, 100), pattern(100, 1)).status.ok());
  ASSERT_EQ(fabric_.counts("owner0").queue_pairs, 1U);
  const auto published = owner_.catalogue(incarnation_).size();
  fabric_.fail_after_bytes("owner0", 100'000);
  std::uint64_t left = 9;
  std::size_t visible = 9;
  const At complete("rdma.complete.rails_destroyed", [&] {
    left = fabric_.counts("owner0").queue_pairs;
    visible = owner_.catalogue(incarnation_).size();
  });
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok()) << written.status.to_string();
  EXPECT_TRUE(complete.happened());
  EXPECT_EQ(left, 0U);
  EXPECT_EQ(visible, published);
  EXPECT_GT(pair_->counters().redone, 0U);
  std::vector<std::byte> into(data.size());
  EXPECT_TRUE(read(ref, into, written.checksum).ok());
  EXPECT_TRUE(into == data);
}

TEST_F(RdmaTransportTest, WithoutAnyPathTcpTakesOverAndTheReasonIsShown) {
  net::LanePool lanes({NodeId::generate(), "the token", "test"});
  PathSelector paths;
  paths.add(pair_->user().transport(true));
  paths.add(std::make_unique<TcpTransport>(lanes));
  const auto data = pattern(std::size_t{4} << 20, 13);
  const ConstBytes piece(data);
  const auto put = [&](std::uint64_t offset) {
    WriteOperation operation{extent(offset, data.size()), "key", {&piece, 1}, {}, 0};
    paths.write(peer_, {&operation, 1}, soon());
    return operation;
  };
  const auto carried = [&](std::string_view path) {
    for (const auto& use : paths.use()) {
      if (use.path == path) return use.bytes_written;
    }
    return std::uint64_t{0};
  };
  ASSERT_TRUE(put(0).status.ok());
  EXPECT_EQ(carried("rdma"), data.size());
  EXPECT_EQ(carried("tcp"), 0U);

  // In the midst of a write.
  fabric_.fail_after_bytes("owner0", 200'000);
  fabric_.fail_after_bytes("owner1", 300'000);
  const auto second = put(std::uint64_t{8} << 20);
  EXPECT_TRUE(second.status.ok()) << second.status.to_string();
  EXPECT_EQ(carried("tcp"), data.size());
  std::vector<std::byte> into(data.size());
  const MutableBytes target(into);
  ReadOperation back{second.extent, 0, into.size(), {&target, 1}, second.checksum, {}};
  paths.read(peer_, {&back, 1}, soon());
  EXPECT_TRUE(back.status.ok()) << back.status.to_string();
  EXPECT_TRUE(into == data);
  // Shown until the next attempt is due.
  EXPECT_TRUE(test::wait_until(
      [&] {
        paths.read(peer_, {&back, 1}, soon());
        const auto use = paths.use();
        return back.status.ok() && use.back().path == "tcp" && use.back().reason.find("RDMA") != std::string::npos;
      },
      Deadline::after(seconds(10))));

  fabric_.revive("owner0");
  fabric_.revive("owner1");
  const auto before = carried("rdma");
  EXPECT_TRUE(test::wait_until(
      [&] {
        const auto again = put(std::uint64_t{16} << 20);
        retire(again.extent);
        return again.status.ok() && carried("rdma") > before;
      },
      Deadline::after(seconds(10))))
      << "it comes back by itself";
}

TEST_F(RdmaTransportTest, APeerWithoutRdmaIsLeftToOtherPathsAfterOneAttempt) {
  net::Server plain({NodeId::generate(), "the token", "test"}, {});
  owner_.serve(plain);
  ASSERT_TRUE(plain.start().ok());
  const Peer old{NodeId::generate(), {"127.0.0.1", plain.port()}};
  ASSERT_TRUE(transport_->reaches(old));
  const auto data = pattern(100, 1);
  const ConstBytes piece(data);
  WriteOperation operation{extent(0, 100), "key", {&piece, 1}, {}, 0};
  transport_->write(old, {&operation, 1}, soon());
  EXPECT_EQ(operation.status.code(), ErrorCode::kNotSupported) << operation.status.to_string();
  EXPECT_FALSE(transport_->reaches(old));
  EXPECT_FALSE(transport_->why_not(old).empty());
  plain.stop();
}

TEST_F(RdmaTransportTest, ASegmentThatIsNotRegisteredIsLeftToOtherPaths) {
  for (const auto* const nic : {"owner0", "owner1"}) fabric_.refuse_registrations(nic, true);
  incarnation_ = *owner_.mount(kSegment);
  EXPECT_EQ(pair_->owner_end().wait_served(incarnation_, soon()).code(), ErrorCode::kUnavailable);
  const auto ref = extent(0);
  EXPECT_EQ(write(ref, pattern(kSize, 1)).status.code(), ErrorCode::kUnavailable);
  const auto data = pattern(kSize, 14);
  const auto checksum = write_locally(ref, data);
  std::vector<std::byte> into(kSize);
  EXPECT_EQ(read(ref, into, checksum).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(retire(ref), 1U) << "what was announced and pinned was let go";
}

TEST_F(OneNicTest, ADeadlineEndsAHeldWriteAndItsSpaceIsFreeAgain) {
  const auto ref = extent(0);
  const auto data = pattern(kSize, 15);
  const ConstBytes piece(data);
  const auto gate = fabric_.hold("user0", 1, 4096);
  WriteOperation operation{ref, "key", {&piece, 1}, {}, 0};
  transport_->write(peer_, {&operation, 1}, Deadline::after(milliseconds(300)));
  EXPECT_EQ(operation.status.code(), ErrorCode::kRpcTimeout) << operation.status.to_string();
  EXPECT_EQ(retire(ref), 1U);
  const auto next = extent(0);
  const auto fresh = pattern(kSize, 16);
  write_locally(next, fresh);
  gate->open();
  EXPECT_TRUE(owners_bytes(next) == fresh);
}

}  // namespace
}  // namespace moonpool::transfer::rdma
