// Transfer engines whose NICs reach device memory: two processes with fake devices and simulated NICs. Whether their devices reach each
// other (CUDA IPC) is told apart by FakeOptions::peer_access and exports that are refused.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/cuda/engine/engine_rig_for_test.h"
#include "transfer/rdma/pair_for_test.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class EngineGpuDirectTest : public CudaEngineTest {
 protected:
  void SetUp() override { start_with_nics({}); }
  // Engines with two NICs each. `ipc` off: devices of the two are out of each other's reach but for NICs.
  void start_with_nics(const FakeOptions& options, bool ipc = false, const rdma::SimulatedNicSettings& nics = {}) {
    there_.reset();
    here_.reset();
    auto driver = FakeDriver::create(options);
    auto other = driver->another_process();
    if (!ipc) {
      for (int i = 0; i < 100; ++i) other->fail("export_ipc", Status(ErrorCode::kNotSupported, "the memory is of a pool"), i);
    }
    here_ = std::make_unique<Process>(std::move(driver), seconds(30), devices("here", nics));
    there_ = std::make_unique<Process>(std::move(other), seconds(30), devices("there", nics));
  }
  std::shared_ptr<rdma::Devices> devices(const std::string& side, const rdma::SimulatedNicSettings& settings) {
    std::vector<std::unique_ptr<rdma::Nic>> nics;
    for (const char* number : {"0", "1"}) nics.push_back(fabric_.make_nic(side + number, settings));
    return std::make_shared<rdma::Devices>(std::move(nics));
  }
  [[nodiscard]] std::uint64_t by_nic() const { return here_->engine->device_counters().gpudirect_bytes; }
  [[nodiscard]] std::uint64_t bytes_of_nics() const { return fabric_.counts("here0").bytes + fabric_.counts("here1").bytes; }
  [[nodiscard]] std::uint64_t dma_bufs(const std::string& side) const {
    return fabric_.counts(side + "0").dma_bufs + fabric_.counts(side + "1").dma_bufs;
  }

  rdma::SimulatedFabric fabric_;
};

TEST_F(EngineGpuDirectTest, DeviceMemoryAtEitherEndIsMovedByTheNicsBothWays) {
  for (const int here : {-1, 0, 1}) {
    for (const int there : {-1, 0, 1}) expect_both_ways(here, there);
  }
  EXPECT_EQ(by_nic(), 8 * 2 * kSize) << "all but host to host";
  EXPECT_EQ(bytes_of_nics(), 9 * 2 * kSize);
  EXPECT_EQ(staged_bytes(), 0U);
  EXPECT_EQ(here_->engine->rdma_counters()->staged_bytes, 0U) << "nothing was copied for the NICs either";
}

TEST_F(EngineGpuDirectTest, ABufferIsRegisteredOnEveryNicForItselfAndForPeersUntilItIsGone) {
  {
    const Buffer buffer(*here_, 0);
    EXPECT_EQ(dma_bufs("here"), 2U * 2U);
  }
  EXPECT_EQ(dma_bufs("here"), 0U);
}

TEST_F(EngineGpuDirectTest, DevicesThatReachEachOtherDoWithoutNics) {
  start_with_nics({}, /*ipc=*/true);
  expect_both_ways(0, 1);
  EXPECT_EQ(direct_bytes(), 2 * kSize);
  EXPECT_EQ(bytes_of_nics(), 0U);
  expect_both_ways(0, -1);
  EXPECT_EQ(by_nic(), 2 * kSize);
}

TEST_F(EngineGpuDirectTest, ManyPiecesOfAllKindsGoWhereTheyBelong) {
  constexpr std::size_t kPieces = 900;
  constexpr std::size_t kPiece = 1000;
  std::vector<std::unique_ptr<Buffer>> mine, theirs;
  std::vector<Memory> here, there;
  for (const int kind : {-1, 0, 1}) {
    mine.push_back(std::make_unique<Buffer>(*here_, kind, kPieces * kPiece));
    theirs.push_back(std::make_unique<Buffer>(*there_, kind, kPieces * kPiece));
    here.push_back(random_bytes(kPieces * kPiece, 10 + unsigned(kind)));
    there.push_back(random_bytes(kPieces * kPiece, 20 + unsigned(kind)));
    mine.back()->set(here.back());
    theirs.back()->set(there.back());
  }
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < kPieces; ++i) {
    const std::size_t from = i % 3;
    const std::size_t to = i / 3 % 3;
    const std::size_t target = kPieces - 1 - i;
    pieces.push_back({mine[from]->at(i * kPiece), theirs[to]->at(target * kPiece), kPiece});
    std::copy_n(here[from].begin() + std::ptrdiff_t(i * kPiece), kPiece, there[to].begin() + std::ptrdiff_t(target * kPiece));
  }
  const Status status = transfer(Opcode::kWrite, pieces);
  ASSERT_TRUE(status.ok()) << status.to_string();
  for (std::size_t kind = 0; kind < 3; ++kind) EXPECT_TRUE(theirs[kind]->get() == there[kind]) << kind;
  EXPECT_EQ(staged_bytes(), 0U);
}

TEST_F(EngineGpuDirectTest, NicsThatTakeNoDmaBufsLeaveItToStaging) {
  start_with_nics({}, false, {.dma_buf = false});
  for (const int here : {-1, 0}) {
    for (const int there : {-1, 0}) expect_both_ways(here, there);
  }
  EXPECT_EQ(by_nic(), 0U);
  EXPECT_EQ(staged_bytes(), 2 * 2 * kSize) << "of this side";
}

TEST_F(EngineGpuDirectTest, ADriverThatExportsNothingLeavesItToStaging) {
  start_with_nics({.dma_buf = false});
  expect_both_ways(0, 1);
  expect_both_ways(1, -1);
  EXPECT_EQ(by_nic(), 0U);
  EXPECT_EQ(dma_bufs("here") + dma_bufs("there"), 0U);
}

TEST_F(EngineGpuDirectTest, OneEndThatNicsDoNotReachIsEnoughForStaging) {
  there_->fake->fail("export_dma_buf", Status(ErrorCode::kInternal, "cuMemGetHandleForAddressRange: refused"));
  expect_both_ways(0, 0);
  EXPECT_EQ(by_nic(), 0U);
  EXPECT_EQ(staged_bytes(), 2 * kSize);
  expect_both_ways(0, 0);
  EXPECT_EQ(by_nic(), 2 * kSize) << "the next buffer could be exported";
}

TEST_F(EngineGpuDirectTest, WhenAllNicsFailOnTheWayTheHostTakesOver) {
  for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{1'000'000}}) {
    start_with_nics({});
    for (const char* const nic : {"there0", "there1"}) fabric_.fail_after_bytes(nic, bytes);
    expect_both_ways(0, 1);
    EXPECT_GT(staged_bytes(), 0U);
    for (const char* const nic : {"there0", "there1"}) fabric_.revive(nic);
  }
}

TEST_F(EngineGpuDirectTest, OneNicThatFailsIsReplacedByTheOther) {
  fabric_.fail_after_bytes("there0", 500'000);
  expect_both_ways(0, 1);
  EXPECT_EQ(by_nic(), 2 * kSize);
  EXPECT_EQ(staged_bytes(), 0U);
}

TEST_F(EngineGpuDirectTest, ATransferComesAfterTheWorkOfItsDevicesDefaultStream) {
  Buffer mine(*here_, 0, 1000);
  Buffer theirs(*there_, 1, 1000);
  Buffer source(*here_, 0, 1000);
  const auto bytes = random_bytes(1000, 1);
  source.set(bytes);
  here_->fake->hold_streams();
  ASSERT_TRUE(here_->fake->copy(0, mine.at(), source.at(), 1000, Stream::kLegacyDefault).ok());
  std::atomic<bool> ended{false};
  std::thread writer([&] {
    const Status status = transfer(Opcode::kWrite, {{mine.at(), theirs.at(), 1000}});
    EXPECT_TRUE(status.ok()) << status.to_string();
    ended = true;
  });
  std::this_thread::sleep_for(milliseconds(50));  // nothing tells that a NIC has not begun
  EXPECT_EQ(bytes_of_nics(), 0U);
  EXPECT_FALSE(ended);
  here_->fake->release_streams();
  writer.join();
  EXPECT_TRUE(theirs.get() == bytes);
  EXPECT_EQ(by_nic(), 1000U);
}

TEST_F(EngineGpuDirectTest, OfUnregisteredMemoryNoByteMovesAnyMore) {
  Buffer mine(*here_, 0);
  auto theirs = std::make_unique<Buffer>(*there_, 1);
  mine.set(random_bytes(kSize, 1));
  const auto before = random_bytes(kSize, 2);
  const std::uint64_t target = theirs->at();
  ASSERT_TRUE(transfer(Opcode::kWrite, {{mine.at(), target, kSize}}).ok());
  const auto gate = fabric_.hold("here0", 1, 4096);
  std::thread writer([&] { (void)transfer(Opcode::kWrite, {{mine.at(), target, kSize}}); });
  const bool held = gate->await_reached(Deadline::after(seconds(20)));
  const Status gone = there_->engine->unregister_memory(target);
  EXPECT_TRUE(gone.ok()) << gone.to_string();
  there_->fake->poke(target, before);  // its owner has other use for it
  gate->open();
  writer.join();
  EXPECT_TRUE(held);
  EXPECT_TRUE(theirs->get() == before);
}

}  // namespace
}  // namespace moonpool::transfer::cuda
