// What every transport has to do (transport.h). To add one: write a Rig for it and name it at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "net/server.h"
#include "transfer/checksum.h"
#include "transfer/fake_transport.h"
#include "transfer/local/local_transport.h"
#include "transfer/shm/owner_server.h"
#include "transfer/shm/shm_transport.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer {
namespace {

using std::chrono::seconds;

constexpr std::uint64_t kSegmentSize = std::uint64_t{64} << 20;
constexpr Term kTerm{3};

Deadline soon() { return Deadline::after(seconds(30)); }

// A transport and the owner that it reaches.
class Rig {
 public:
  virtual ~Rig() = default;
  virtual Transport& transport() = 0;
  Owner owner;
  Peer peer{NodeId::generate(), {"127.0.0.1", 1}};
};

class LocalRig : public Rig {
 public:
  Transport& transport() override { return transport_; }

 private:
  LocalTransport transport_{owner, peer.node};
};

class FakeRig : public Rig {
 public:
  FakeRig() { transport_.attach(peer.node, owner); }
  Transport& transport() override { return transport_; }

 private:
  FakeTransport transport_;
};

class TcpRig : public Rig {
 public:
  explicit TcpRig(std::size_t stripes) : stripes_(stripes) {
    owner.serve(server_);
    EXPECT_TRUE(server_.start().ok());
    peer.endpoint.port = server_.port();
  }
  ~TcpRig() override { server_.stop(); }
  Transport& transport() override { return transport_; }

 private:
  const std::size_t stripes_;
  net::Server server_{{peer.node, "", "test"}, {}};
  net::LanePool lanes_{{NodeId::generate(), "", "test"}};
  TcpTransport transport_{lanes_, true, stripes_};
};

class ShmRig : public Rig {
 public:
  ShmRig() { EXPECT_TRUE(server_.start().ok()); }
  ~ShmRig() override { server_.stop(); }
  Transport& transport() override { return transport_; }

 private:
  net::Identity identity_{peer.node, "the token", "test"};
  OwnerServer server_{owner, identity_};
  ShmTransport transport_{net::Identity{NodeId::generate(), "the token", "test"}};
};

struct Case {
  const char* name;
  std::function<std::unique_ptr<Rig>()> make;
};

std::vector<std::byte> random_bytes(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Cuts bytes into pieces of odd sizes, some of them empty.
template <typename Bytes, typename Source>
std::vector<Bytes> scatter(Source& source, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Bytes> pieces{Bytes(source).first(0)};
  for (std::size_t at = 0; at < source.size();) {
    const std::size_t size = std::min<std::size_t>(source.size() - at, random() % 100'001);
    pieces.push_back(Bytes(source).subspan(at, size));
    at += size;
  }
  pieces.push_back(Bytes(source).first(0));
  return pieces;
}

class TransportConformanceTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    rig_ = GetParam().make();
    ASSERT_TRUE(owner().adopt_term(kTerm, soon()).ok());
    auto mounted = owner().mount(kSegmentSize);
    ASSERT_TRUE(mounted.ok()) << mounted.status().to_string();
    incarnation_ = *mounted;
    ASSERT_TRUE(transport().reaches(rig_->peer));
  }

  Owner& owner() { return rig_->owner; }
  Transport& transport() { return rig_->transport(); }
  // Of a new grant each time.
  ExtentRef extent(std::uint64_t offset, std::uint64_t length) { return {incarnation_, offset, length, Version{kTerm, ++count_}}; }

  WriteOperation write(const ExtentRef& ref, std::span<const ConstBytes> source, Deadline deadline) {
    WriteOperation operation{ref, "the key", source, {}, 0};
    transport().write(rig_->peer, {&operation, 1}, deadline);
    return operation;
  }
  WriteOperation write(const ExtentRef& ref, const std::vector<std::byte>& data) {
    const ConstBytes piece(data);
    return write(ref, {&piece, 1}, soon());
  }
  Status read(const ExtentRef& ref, std::uint64_t start, std::vector<std::byte>& into, std::uint64_t checksum) {
    const MutableBytes piece(into);
    ReadOperation operation{ref, start, into.size(), {&piece, 1}, checksum, {}};
    transport().read(rig_->peer, {&operation, 1}, soon());
    return operation.status;
  }
  std::byte& owners_byte(std::uint64_t offset) { return *reinterpret_cast<std::byte*>(owner().segments()[0].base + offset); }

  std::unique_ptr<Rig> rig_;
  Incarnation incarnation_;
  std::atomic<std::uint64_t> count_{0};
};

TEST_P(TransportConformanceTest, EverySizeArrivesAsItWasSent) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{4095}, std::size_t{4096}, kChecksumChunk - 1, kChecksumChunk,
                                 kChecksumChunk + 1, std::size_t{16} << 20}) {
    const auto data = random_bytes(size, size);
    const auto ref = extent(count_ * (std::uint64_t{17} << 20) % (std::uint64_t{40} << 20), size);
    const auto written = write(ref, data);
    ASSERT_TRUE(written.status.ok()) << size << ": " << written.status.to_string();
    ASSERT_EQ(owner().catalogue(incarnation_).size(), 1U);
    const auto entry = owner().catalogue(incarnation_)[0];
    EXPECT_EQ(entry.checksum, written.checksum);
    EXPECT_EQ(entry.key, "the key");
    EXPECT_EQ(entry.version, ref.version);
    std::vector<std::byte> into(size);
    const Status status = read(ref, 0, into, written.checksum);
    ASSERT_TRUE(status.ok()) << size << ": " << status.to_string();
    EXPECT_EQ(into, data) << size;
    const RetirementOrder order{count_, ref};
    ASSERT_EQ(owner().retire({&order, 1}, soon()).size(), 1U);
  }
}

TEST_P(TransportConformanceTest, ALargeBatchArrivesWholeAndEachOperationHasItsOwnOutcome) {
  constexpr std::size_t kEach = std::size_t{5} << 20;
  constexpr std::size_t kCount = 7;
  constexpr std::size_t kStale = 4;
  std::vector<std::vector<std::byte>> data;
  std::vector<ConstBytes> sources;
  for (std::size_t i = 0; i < kCount; ++i) data.push_back(random_bytes(kEach + i, 100 + i));
  for (const auto& bytes : data) sources.emplace_back(bytes);
  std::vector<WriteOperation> writes;
  for (std::size_t i = 0; i < kCount; ++i) {
    auto ref = extent(i * (kEach + 4096), kEach + i);
    if (i == kStale) ref.incarnation = Incarnation::generate();
    writes.push_back({ref, "the key", {&sources[i], 1}, {}, 0});
  }
  transport().write(rig_->peer, writes, soon());
  for (std::size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(writes[i].status.ok(), i != kStale) << i << ": " << writes[i].status.to_string();
  }
  std::vector<std::vector<std::byte>> into(kCount, std::vector<std::byte>(kEach + kCount));
  std::vector<MutableBytes> destinations;
  for (std::size_t i = 0; i < kCount; ++i) destinations.push_back(MutableBytes(into[i]).first(kEach + i));
  std::vector<ReadOperation> reads;
  for (std::size_t i = 0; i < kCount; ++i) {
    reads.push_back({writes[i].extent, 0, kEach + i, {&destinations[i], 1}, writes[i].checksum, {}});
  }
  transport().read(rig_->peer, reads, soon());
  for (std::size_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(reads[i].status.ok(), i != kStale) << i << ": " << reads[i].status.to_string();
    if (i != kStale) {
      EXPECT_TRUE(std::ranges::equal(destinations[i], data[i])) << i;
    }
  }
}

TEST_P(TransportConformanceTest, ScatteredPiecesIncludingEmptyOnesArriveInPlace) {
  const std::size_t size = 5 * kChecksumChunk + 12345;
  const auto data = random_bytes(size, 1);
  const auto ref = extent(4096, size);
  const auto source = scatter<ConstBytes>(data, 2);
  const auto written = write(ref, source, soon());
  ASSERT_TRUE(written.status.ok()) << written.status.to_string();
  std::vector<std::byte> into(size);
  const auto destination = scatter<MutableBytes>(into, 3);
  ReadOperation operation{ref, 0, size, destination, written.checksum, {}};
  transport().read(rig_->peer, {&operation, 1}, soon());
  ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
  EXPECT_EQ(into, data);
}

TEST_P(TransportConformanceTest, RangesOfEveryAlignmentAreRead) {
  const std::size_t size = 3 * kChecksumChunk + 777;
  const auto data = random_bytes(size, 5);
  const auto ref = extent(0, size);
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok());
  const std::vector<std::size_t> edges{
      0,        1,   kChecksumChunk - 1, kChecksumChunk, kChecksumChunk + 1, 2 * kChecksumChunk, 3 * kChecksumChunk - 5, 3 * kChecksumChunk,
      size - 1, size};
  std::vector<ReadOperation> batch;
  std::vector<std::vector<std::byte>> buffers;
  std::vector<MutableBytes> pieces;
  buffers.reserve(edges.size() * edges.size());
  pieces.reserve(edges.size() * edges.size());
  for (const auto from : edges) {
    for (const auto to : edges) {
      if (to < from) continue;
      buffers.emplace_back(to - from);
      pieces.emplace_back(buffers.back());
      batch.push_back({ref, from, to - from, {&pieces.back(), 1}, written.checksum, {}});
    }
  }
  transport().read(rig_->peer, batch, soon());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    ASSERT_TRUE(batch[i].status.ok()) << batch[i].start << "+" << batch[i].length << ": " << batch[i].status.to_string();
    EXPECT_TRUE(std::equal(buffers[i].begin(), buffers[i].end(), data.begin() + static_cast<std::ptrdiff_t>(batch[i].start)));
  }
}

TEST_P(TransportConformanceTest, ABatchOfBlocksOfManyPiecesArrives) {
  constexpr std::size_t kExtents = 24;
  constexpr std::size_t kPieces = 30;
  constexpr std::size_t kPiece = 24 * 1024;
  constexpr std::size_t kExtent = kPieces * kPiece;
  const auto data = random_bytes(kExtents * kExtent, 9);
  std::vector<std::byte> into(data.size());
  std::vector<ConstBytes> sources;
  std::vector<MutableBytes> destinations;
  for (std::size_t at = 0; at < data.size(); at += kPiece) {
    sources.push_back(ConstBytes(data).subspan(at, kPiece));
    destinations.push_back(MutableBytes(into).subspan(at, kPiece));
  }
  std::vector<WriteOperation> writes;
  std::vector<ReadOperation> reads;
  for (std::size_t i = 0; i < kExtents; ++i) {
    writes.push_back({extent(i * kExtent, kExtent), "k", std::span(sources).subspan(i * kPieces, kPieces), {}, 0});
  }
  transport().write(rig_->peer, writes, soon());
  for (std::size_t i = 0; i < kExtents; ++i) {
    ASSERT_TRUE(writes[i].status.ok()) << writes[i].status.to_string();
    reads.push_back({writes[i].extent, 0, kExtent, std::span(destinations).subspan(i * kPieces, kPieces), writes[i].checksum, {}});
  }
  transport().read(rig_->peer, reads, soon());
  for (const auto& operation : reads) ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
  EXPECT_EQ(into, data);
}

TEST_P(TransportConformanceTest, OneBadEntryLeavesTheOthersAlone) {
  const auto data = random_bytes(100'000, 4);
  const ConstBytes piece(data);
  const std::span<const ConstBytes> source(&piece, 1);
  // Of other bytes: a path may deliver bytes that are the right ones by their checksum, whichever version has them.
  const auto other_data = random_bytes(100'000, 5);
  const ConstBytes other_piece(other_data);
  const std::span<const ConstBytes> other_source(&other_piece, 1);
  auto stale = extent(0, data.size());
  stale.incarnation = Incarnation::generate();
  auto old_term = extent(300'000, data.size());
  old_term.version.term = Term{2};
  std::vector<WriteOperation> writes{
      {extent(0, data.size()), "good", source, {}, 0},
      {stale, "stale", source, {}, 0},
      {extent(kSegmentSize - 5, data.size()), "outside", source, {}, 0},
      {old_term, "old", source, {}, 0},
      {extent(50'000, data.size()), "overlap", source, {}, 0},
      {extent(600'000, data.size() + 1), "source too short", source, {}, 0},
      {extent(900'000, data.size()), "good", other_source, {}, 0},
  };
  transport().write(rig_->peer, writes, soon());
  const std::vector<ErrorCode> expected{ErrorCode::kOk,        ErrorCode::kStaleIncarnation, ErrorCode::kInvalidWrite,
                                        ErrorCode::kStaleTerm, ErrorCode::kInvalidWrite,     ErrorCode::kInvalidParams,
                                        ErrorCode::kOk};
  for (std::size_t i = 0; i < writes.size(); ++i) EXPECT_EQ(writes[i].status.code(), expected[i]) << i << writes[i].status.to_string();
  EXPECT_EQ(owner().catalogue(incarnation_).size(), 2U);

  std::vector<std::byte> into(3 * data.size());
  std::vector<MutableBytes> pieces;
  for (std::size_t i = 0; i < 3; ++i) pieces.push_back(MutableBytes(into).subspan(i * data.size(), data.size()));
  auto gone = writes[6].extent;
  gone.version.count += 100;
  std::vector<ReadOperation> reads{
      {writes[0].extent, 0, data.size(), std::span(pieces).subspan(0, 1), writes[0].checksum, {}},
      {stale, 0, data.size(), std::span(pieces).subspan(1, 1), writes[0].checksum, {}},
      {gone, 0, data.size(), std::span(pieces).subspan(1, 1), writes[0].checksum, {}},
      {writes[0].extent, 1, data.size(), std::span(pieces).subspan(1, 1), writes[0].checksum, {}},
      {writes[6].extent, 0, data.size(), std::span(pieces).subspan(2, 1), writes[6].checksum, {}},
  };
  transport().read(rig_->peer, reads, soon());
  const std::vector<ErrorCode> outcomes{ErrorCode::kOk, ErrorCode::kStaleIncarnation, ErrorCode::kReplicaGone, ErrorCode::kInvalidRead,
                                        ErrorCode::kOk};
  for (std::size_t i = 0; i < reads.size(); ++i) EXPECT_EQ(reads[i].status.code(), outcomes[i]) << i << reads[i].status.to_string();
  EXPECT_TRUE(std::ranges::equal(pieces[0], data));
  EXPECT_TRUE(std::ranges::equal(pieces[2], other_data));
}

TEST_P(TransportConformanceTest, ARetiredVersionIsGoneAndAnOldMountingNeverReadsNewBytes) {
  const auto data = random_bytes(1000, 4);
  const auto ref = extent(0, data.size());
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok());
  const RetirementOrder order{1, ref};
  ASSERT_EQ(owner().retire({&order, 1}, soon()).size(), 1U);
  std::vector<std::byte> into(data.size());
  EXPECT_EQ(read(ref, 0, into, written.checksum).code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(write(ref, data).status.code(), ErrorCode::kStaleTerm);
  const auto newer = extent(0, data.size());
  ASSERT_TRUE(write(newer, data).status.ok());
  ASSERT_TRUE(owner().remount(incarnation_, soon()).ok());
  EXPECT_EQ(read(newer, 0, into, written.checksum).code(), ErrorCode::kStaleIncarnation);
}

TEST_P(TransportConformanceTest, AFlippedByteIsAMismatchForWholeAndRangeAndSpoilsNothingElse) {
  const std::size_t size = 4 * kChecksumChunk;
  const auto data = random_bytes(size, 6);
  const auto ref = extent(4096, size);
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok());
  owners_byte(4096 + 2 * kChecksumChunk + 99) ^= std::byte{4};
  std::vector<std::byte> whole(size);
  EXPECT_EQ(read(ref, 0, whole, written.checksum).code(), ErrorCode::kChecksumMismatch);
  std::vector<std::byte> part(10);
  EXPECT_EQ(read(ref, 2 * kChecksumChunk, part, written.checksum).code(), ErrorCode::kChecksumMismatch) << "another byte of the same chunk";
  EXPECT_TRUE(read(ref, kChecksumChunk + 5, part, written.checksum).ok()) << "a chunk that is whole";
  EXPECT_TRUE(std::equal(part.begin(), part.end(), data.begin() + kChecksumChunk + 5));
  owners_byte(4096 + 2 * kChecksumChunk + 99) ^= std::byte{4};
  EXPECT_TRUE(read(ref, 0, whole, written.checksum).ok());
  EXPECT_EQ(whole, data);
}

TEST_P(TransportConformanceTest, AnotherObjectsBytesAreAMismatch) {
  const auto data = random_bytes(2 * kChecksumChunk, 6);
  const auto ref = extent(0, data.size());
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok());
  std::vector<std::byte> into(data.size());
  EXPECT_EQ(read(ref, 0, into, written.checksum + 1).code(), ErrorCode::kChecksumMismatch);
}

TEST_P(TransportConformanceTest, AnEmptyRangeIsReadWithoutAByte) {
  const auto data = random_bytes(10, 6);
  const auto ref = extent(0, data.size());
  const auto written = write(ref, data);
  std::vector<std::byte> into;
  EXPECT_TRUE(read(ref, 10, into, written.checksum).ok());
  EXPECT_EQ(read(ref, 11, into, written.checksum).code(), ErrorCode::kInvalidRead);
  transport().read(rig_->peer, {}, soon());
  transport().write(rig_->peer, {}, soon());
}

TEST_P(TransportConformanceTest, AnExpiredDeadlineIsATimeout) {
  const auto data = random_bytes(1000, 6);
  const auto ref = extent(0, data.size());
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok());
  const ConstBytes piece(data);
  const auto late = Deadline::after(std::chrono::nanoseconds(0));
  EXPECT_EQ(write(extent(4096, data.size()), {&piece, 1}, late).status.code(), ErrorCode::kRpcTimeout);
  std::vector<std::byte> into(data.size());
  const MutableBytes target(into);
  ReadOperation operation{ref, 0, into.size(), {&target, 1}, written.checksum, {}};
  transport().read(rig_->peer, {&operation, 1}, late);
  EXPECT_EQ(operation.status.code(), ErrorCode::kRpcTimeout);
  EXPECT_TRUE(read(ref, 0, into, written.checksum).ok()) << "the path is fine afterwards";
}

TEST_P(TransportConformanceTest, SixteenThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 8; ++round) {
        const auto data = random_bytes(200'000 + static_cast<std::size_t>(t), static_cast<std::uint64_t>(t * 100 + round));
        const auto ref = extent(static_cast<std::uint64_t>(t * 8 + round) << 18, data.size());
        const auto written = write(ref, data);
        ASSERT_TRUE(written.status.ok()) << written.status.to_string();
        std::vector<std::byte> into(data.size());
        const Status status = read(ref, 0, into, written.checksum);
        ASSERT_TRUE(status.ok()) << status.to_string();
        if (into == data) ++good;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 16 * 8);
}

INSTANTIATE_TEST_SUITE_P(AllTransports, TransportConformanceTest,
                         ::testing::Values(Case{"local", [] { return std::make_unique<LocalRig>(); }},
                                           Case{"shm", [] { return std::make_unique<ShmRig>(); }},
                                           Case{"fake", [] { return std::make_unique<FakeRig>(); }},
                                           Case{"tcp", [] { return std::make_unique<TcpRig>(1); }},
                                           Case{"tcp_striped", [] { return std::make_unique<TcpRig>(3); }}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace moonpool::transfer
