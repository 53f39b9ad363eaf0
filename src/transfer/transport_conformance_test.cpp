// What every transport has to do (transport.h). To add one: write a Rig for it (transport_rigs_for_test.h) and name it at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/cuda/device_rig_for_test.h"
#include "transfer/transport_rigs_for_test.h"

namespace moonpool::transfer {
namespace {

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
      EXPECT_EQ(std::memcmp(destinations[i].data(), data[i].data(), data[i].size()), 0) << i;
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
  const Status right_after = read(ref, 0, into, written.checksum);
  if (rig_->reads_unasked() && right_after.ok()) {
    EXPECT_EQ(into, data);
  } else {
    EXPECT_EQ(right_after.code(), ErrorCode::kReplicaGone);
  }
  std::vector<std::byte> part(100);
  EXPECT_EQ(read(ref, 7, part, written.checksum).code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(write(ref, data).status.code(), ErrorCode::kStaleTerm);
  const auto newer = extent(0, data.size());
  ASSERT_TRUE(write(newer, random_bytes(data.size(), 5)).status.ok());
  EXPECT_EQ(read(ref, 0, into, written.checksum).code(), ErrorCode::kReplicaGone);
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

TEST_P(TransportConformanceTest, APathWithoutCommonMemoryRefusesToWriteInPlaceAndToView) {
  if (rig_->writes_in_place()) GTEST_SKIP() << "transport_in_place_test.cpp";
  const auto data = random_bytes(1000, 8);
  const auto ref = extent(0, data.size());
  WriteOperation operation{ref, "the key", {}, {}, 0};
  bool called = false;
  transport().write_in_place(
      rig_->peer, {&operation, 1}, [&](std::span<OpenExtent>) { called = true; }, soon());
  EXPECT_EQ(operation.status.code(), ErrorCode::kNotSupported);
  EXPECT_FALSE(called);
  const auto written = write(ref, data);
  ASSERT_TRUE(written.status.ok()) << written.status.to_string() << ": the grant was not used up";
  ViewOperation view;
  view.extent = ref;
  view.checksum = written.checksum;
  transport().view(rig_->peer, {&view, 1}, soon());
  EXPECT_EQ(view.status.code(), ErrorCode::kNotSupported);
}

// Paths for device memory in front of others.
void add_device_paths(std::vector<Case>& cases) {
  using cuda::DeviceRig;
  const auto one = [](std::size_t, std::size_t) { return 0; };
  const auto two = [](std::size_t operation, std::size_t) { return static_cast<int>(operation % 2); };
  const auto all = [](std::size_t operation, std::size_t piece) { return static_cast<int>((operation + piece) % 3) - 1; };
  cases.push_back({"devices_local", [=] { return std::make_unique<DeviceRig<LocalRig>>(one, cuda::FakeOptions{}); }});
  cases.push_back({"devices_shm", [=] { return std::make_unique<DeviceRig<ShmRig>>(two, cuda::FakeOptions{}); }});
  cases.push_back({"devices_and_host_shm", [=] { return std::make_unique<DeviceRig<ShmRig>>(all, cuda::FakeOptions{}); }});
  cases.push_back(
      {"devices_shm_without_kernels", [=] { return std::make_unique<DeviceRig<ShmRig>>(one, cuda::FakeOptions{.kernels = false}); }});
  cases.push_back({"devices_tcp", [=] { return std::make_unique<DeviceRig<TcpRig>>(two, cuda::FakeOptions{}, 1); }});
  cases.push_back({"devices_and_host_tcp", [=] { return std::make_unique<DeviceRig<TcpRig>>(all, cuda::FakeOptions{}, 3); }});
  cases.push_back({"devices_gpudirect", [=] { return std::make_unique<DeviceRig<RdmaRig>>(two, cuda::FakeOptions{}); }});
  cases.push_back({"devices_rdma_staged", [=] { return std::make_unique<DeviceRig<RdmaRig>>(one, cuda::FakeOptions{.dma_buf = false}); }});
}

std::vector<Case> all_transports() {
  std::vector<Case> cases{
      {"local", [] { return std::make_unique<LocalRig>(); }},      {"shm", [] { return std::make_unique<ShmRig>(); }},
      {"fake", [] { return std::make_unique<FakeRig>(); }},        {"tcp", [] { return std::make_unique<TcpRig>(1); }},
      {"tcp_striped", [] { return std::make_unique<TcpRig>(3); }}, {"rdma_simulated", [] { return std::make_unique<RdmaRig>(); }}};
  add_device_paths(cases);
  // Names as in "device_name", on a machine that has an RDMA device.
  if (const char* const names = std::getenv("MOONPOOL_TEST_RDMA_DEVICES"); names != nullptr) {
    cases.push_back({"rdma_devices", [names = std::string(names)]() -> std::unique_ptr<Rig> {
                       rdma::Options options;
                       options.device_names = names;
                       auto devices = rdma::Devices::open(options);
                       EXPECT_TRUE(devices.ok()) << devices.status().to_string();
                       if (!devices.ok()) return nullptr;
                       return std::make_unique<RdmaRig>(*devices);
                     }});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(AllTransports, TransportConformanceTest, ::testing::ValuesIn(all_transports()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace moonpool::transfer
