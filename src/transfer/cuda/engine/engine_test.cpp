// Transfer engines with device memory, each with a fake CUDA of its own: two processes that see the same devices.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <random>
#include <thread>

#include "base/sync_point.h"
#include "net/lane_pool.h"
#include "tests/support/test_support.h"
#include "transfer/checksum.h"
#include "transfer/cuda/engine/engine_rig_for_test.h"
#include "transfer/cuda/engine/served_moves.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST_F(CudaEngineTest, EachCombinationOfHostAndDeviceMemoryIsMovedBothWays) {
  for (const int here : {-1, 0, 1}) {
    for (const int there : {-1, 0, 1}) expect_both_ways(here, there);
  }
}

TEST_F(CudaEngineTest, WithoutKernelsToo) {
  FakeOptions options;
  options.kernels = false;
  start(options);
  for (const int here : {-1, 0}) {
    for (const int there : {-1, 0}) expect_both_ways(here, there);
  }
}

TEST_F(CudaEngineTest, BetweenDevicesOfOneHostNoByteGoesOverTheNetwork) {
  std::atomic<int> requests{0};
#ifdef MOONPOOL_SYNC_POINTS
  SyncPoints::instance().on("raw_service.write.admitted", [&] { ++requests; });
  SyncPoints::instance().on("raw_service.read.admitted", [&] { ++requests; });
#endif
  expect_both_ways(0, 0);
  expect_both_ways(0, 1);
  expect_both_ways(1, 0);
  EXPECT_EQ(requests, 0);
  EXPECT_EQ(direct_bytes(), 6 * kSize);
  EXPECT_EQ(staged_bytes(), 0U);
}

TEST_F(CudaEngineTest, WhereOneDeviceCannotReachTheOtherTheBytesGoByTheHost) {
  FakeOptions options;
  options.peer_access = false;
  start(options);
  expect_both_ways(0, 1);
  EXPECT_EQ(direct_bytes(), 0U);
  EXPECT_EQ(staged_bytes(), 2 * kSize);
  expect_both_ways(0, 0);
  EXPECT_EQ(direct_bytes(), 2 * kSize);
}

TEST_F(CudaEngineTest, MemoryThatCannotBeExportedOrOpenedGoesByTheHost) {
  there_->fake->fail("export_ipc", Status(ErrorCode::kNotSupported, "the memory is of a pool"));
  expect_both_ways(0, 0);
  EXPECT_EQ(direct_bytes(), 0U);
  here_->fake->fail("open_ipc", Status(ErrorCode::kInternal, "cuIpcOpenMemHandle: refused"));
  expect_both_ways(0, 0);
  EXPECT_EQ(direct_bytes(), 0U);
  EXPECT_EQ(staged_bytes(), 4 * kSize);
  expect_both_ways(0, 0);
  EXPECT_EQ(direct_bytes(), 2 * kSize);
}

TEST_F(CudaEngineTest, ManyPiecesOfAllKindsGoWhereTheyBelong) {
  constexpr std::size_t kPieces = 1500;
  constexpr std::size_t kPiece = 600;
  for (const Opcode opcode : {Opcode::kWrite, Opcode::kRead}) {
    const std::array<int, 3> kinds{-1, 0, 1};
    std::vector<std::unique_ptr<Buffer>> mine, theirs;
    std::vector<Memory> here, there;
    for (const int kind : kinds) {
      mine.push_back(std::make_unique<Buffer>(*here_, kind, kPieces * kPiece));
      theirs.push_back(std::make_unique<Buffer>(*there_, kind, kPieces * kPiece));
      here.push_back(random_bytes(kPieces * kPiece, 10 + static_cast<unsigned>(kind)));
      there.push_back(random_bytes(kPieces * kPiece, 20 + static_cast<unsigned>(kind)));
      mine.back()->set(here.back());
      theirs.back()->set(there.back());
    }
    // The i-th place of every buffer takes part once, against a place of a buffer of another kind.
    std::vector<std::size_t> order(kPieces);
    for (std::size_t i = 0; i < kPieces; ++i) order[i] = i;
    std::mt19937 random(5);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < kPieces; ++i) {
      for (std::size_t k = 0; k < kinds.size(); ++k) {
        const std::size_t other = (k + i) % kinds.size();
        const std::size_t length = i % 5 == 0 ? 0 : i % 3 == 0 ? 1 : kPiece;
        pieces.push_back({mine[k]->at(i * kPiece), theirs[other]->at(order[i] * kPiece), length});
        auto& to = opcode == Opcode::kWrite ? there[other] : here[k];
        auto& from = opcode == Opcode::kWrite ? here[k] : there[other];
        const std::size_t target = opcode == Opcode::kWrite ? order[i] * kPiece : i * kPiece;
        const std::size_t source = opcode == Opcode::kWrite ? i * kPiece : order[i] * kPiece;
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(source), length, to.begin() + static_cast<std::ptrdiff_t>(target));
      }
    }
    const Status status = transfer(opcode, pieces);
    ASSERT_TRUE(status.ok()) << status.to_string();
    for (std::size_t k = 0; k < kinds.size(); ++k) {
      EXPECT_TRUE(mine[k]->get() == here[k]) << kinds[k];
      EXPECT_TRUE(theirs[k]->get() == there[k]) << kinds[k];
    }
  }
}

TEST_F(CudaEngineTest, AnEngineMovesWithinItselfBetweenAllKindsOfMemory) {
  for (const bool peer_access : {true, false}) {
    FakeOptions options;
    options.peer_access = peer_access;
    start(options);
    for (const int from : {-1, 0, 1}) {
      for (const int to : {-1, 0, 1}) {
        for (const Opcode opcode : {Opcode::kWrite, Opcode::kRead}) {
          Buffer source(*here_, from);
          Buffer target(*here_, to);
          const auto bytes = random_bytes(kSize, 3);
          source.set(bytes);
          const Piece piece = opcode == Opcode::kWrite ? Piece{source.at(), target.at(), kSize} : Piece{target.at(), source.at(), kSize};
          const Status status = here_->engine->transfer(here_->engine->session(), opcode, {piece});
          ASSERT_TRUE(status.ok()) << status.to_string();
          EXPECT_TRUE(target.get() == bytes) << from << " to " << to;
        }
      }
    }
  }
}

TEST_F(CudaEngineTest, PiecesOutsideRegisteredDeviceMemoryAreRefused) {
  Buffer mine(*here_, 0);
  Buffer theirs(*there_, 0);
  const auto before = random_bytes(kSize, 4);
  theirs.set(before);
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(), theirs.at(), 10}, {mine.at(), theirs.at(kSize - 1), 2}}).code(),
            ErrorCode::kInvalidParams);
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(kSize - 1), theirs.at(), 2}}).code(), ErrorCode::kInvalidParams);
  EXPECT_TRUE(theirs.get() == before);
  EXPECT_EQ(here_->engine->register_memory(mine.at(1), 10).code(), ErrorCode::kSegmentAlreadyExists);
}

TEST_F(CudaEngineTest, ARangeRegisteredAnewIsOpenedAnew) {
  Buffer mine(*here_, 0);
  const auto bytes = random_bytes(kSize, 1);
  mine.set(bytes);
  auto theirs = std::make_unique<Buffer>(*there_, 0);
  ASSERT_TRUE(transfer(Opcode::kWrite, {{mine.at(), theirs->at(), kSize}}).ok());
  ASSERT_TRUE(there_->engine->unregister_memory(theirs->at()).ok());
  ASSERT_TRUE(there_->engine->register_memory(theirs->at(), kSize).ok());
  theirs->set(Memory(kSize));
  const Status status = transfer(Opcode::kWrite, {{mine.at(), theirs->at(), kSize}});
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(theirs->get() == bytes);
  ASSERT_TRUE(there_->engine->unregister_memory(theirs->at()).ok());
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(), theirs->at(), kSize}}).code(), ErrorCode::kInvalidParams);
}

#ifdef MOONPOOL_SYNC_POINTS
TEST_F(CudaEngineTest, PiecesOfManyRangesThatAlternateArriveInTheirPlaces) {
  constexpr std::uint64_t kBlock = 512;
  constexpr std::uint64_t kBlocks = 64;
  constexpr std::size_t kLayers = 5;
  std::vector<std::unique_ptr<Buffer>> mine, theirs;
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    mine.push_back(std::make_unique<Buffer>(*here_, 0, kBlocks * kBlock));
    theirs.push_back(std::make_unique<Buffer>(*there_, 1, kBlocks * kBlock));
  }
  std::mt19937 random(3);
  std::vector<std::uint64_t> from(kBlocks), to(kBlocks);
  for (std::uint64_t i = 0; i < kBlocks; ++i) from[i] = to[i] = i;
  std::shuffle(from.begin(), from.end(), random);
  std::shuffle(to.begin() + kBlocks / 2, to.end(), random);
  std::vector<Piece> pieces;
  std::vector<Memory> sent, expected(kLayers, Memory(kBlocks * kBlock));
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    sent.push_back(random_bytes(kBlocks * kBlock, unsigned(layer)));
    mine[layer]->set(sent[layer]);
    theirs[layer]->set(expected[layer]);
  }
  for (std::uint64_t i = 0; i < kBlocks; ++i) {
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      if (i > 40 && random() % 4 == 0) continue;  // out of step
      const std::size_t other = kLayers - 1 - layer;
      pieces.push_back({mine[layer]->at(from[i] * kBlock), theirs[other]->at(to[i] * kBlock), kBlock});
      std::copy_n(sent[layer].begin() + std::ptrdiff_t(from[i] * kBlock), kBlock, expected[other].begin() + std::ptrdiff_t(to[i] * kBlock));
    }
    pieces.push_back({1, 1, 0});
  }
  const Status status = transfer(Opcode::kWrite, pieces);
  ASSERT_TRUE(status.ok()) << status.to_string();
  for (std::size_t layer = 0; layer < kLayers; ++layer) EXPECT_TRUE(theirs[layer]->get() == expected[layer]) << layer;
  EXPECT_GT(direct_bytes(), 0U);
  EXPECT_EQ(staged_bytes(), 0U);
}

TEST_F(CudaEngineTest, NeighboursAtBothEndsAreOneCopy) {
  Buffer mine(*here_, 0);
  Buffer theirs(*there_, 1);
  const auto bytes = random_bytes(kSize, 1);
  mine.set(bytes);
  std::vector<Piece> pieces;
  constexpr std::uint64_t kPiece = kSize / 300;
  for (std::uint64_t at = 0; at < kSize; at += kPiece) pieces.push_back({mine.at(at), theirs.at(at), std::min(kPiece, kSize - at)});
  ASSERT_GE(kSize, DirectCopy::kLargeCopy);
  const auto before = here_->fake->counts();
  ASSERT_TRUE(transfer(Opcode::kWrite, pieces).ok());
  EXPECT_TRUE(theirs.get() == bytes);
  EXPECT_EQ(here_->fake->counts().copies - before.copies, 1U);
  EXPECT_EQ(here_->fake->counts().launches - before.launches, 0U);
}

TEST_F(CudaEngineTest, MorePiecesThanALaunchHasArriveInTheirPlaces) {
  Buffer mine(*here_, 0);
  Buffer theirs(*there_, 1);
  const auto bytes = random_bytes(kSize, 1);
  mine.set(bytes);
  constexpr std::size_t kCount = 3 * DirectCopy::kLaunchPieces + 1;
  constexpr std::uint64_t kPiece = 24;
  static_assert(kCount * kPiece <= kSize);
  std::vector<Piece> pieces;
  Memory expected(kSize);
  theirs.set(expected);
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const std::uint64_t from = i * 7919 % kCount * kPiece;  // a prime: no two are the same
    const std::uint64_t to = (kCount - 1 - i) * kPiece;
    pieces.push_back({mine.at(from), theirs.at(to), kPiece});
    std::copy_n(bytes.begin() + std::ptrdiff_t(from), kPiece, expected.begin() + std::ptrdiff_t(to));
  }
  const auto before = here_->fake->counts();
  const Status status = transfer(Opcode::kWrite, pieces);
  ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(theirs.get() == expected);
  EXPECT_EQ(here_->fake->counts().launches - before.launches, 4U);
  theirs.set(Memory(kSize));
  mine.set(bytes);
  ASSERT_TRUE(transfer(Opcode::kRead, pieces).ok());
  const auto read = mine.get();
  EXPECT_TRUE(std::all_of(read.begin(), read.begin() + kCount * kPiece, [](std::byte b) { return b == std::byte{0}; }));
}

TEST_F(CudaEngineTest, ARangeRegisteredAnewInPartsIsOpenedAnew) {
  Buffer mine(*here_, 0);
  const auto bytes = random_bytes(kSize, 1);
  mine.set(bytes);
  auto theirs = std::make_unique<Buffer>(*there_, 0);
  const std::uint64_t half = kSize / 2;
  // Not neighbours here, so two pieces.
  const std::vector<Piece> pieces{{mine.at(half), theirs->at(), half}, {mine.at(), theirs->at(half), half}};
  ASSERT_TRUE(transfer(Opcode::kWrite, pieces).ok());
  ASSERT_TRUE(there_->engine->unregister_memory(theirs->at()).ok());
  ASSERT_TRUE(there_->engine->register_memory(theirs->at(), half).ok());
  ASSERT_TRUE(there_->engine->register_memory(theirs->at(half), kSize - half).ok());
  theirs->set(Memory(kSize));
  const Status status = transfer(Opcode::kWrite, pieces);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(std::equal(bytes.begin() + std::ptrdiff_t(half), bytes.begin() + std::ptrdiff_t(2 * half), theirs->get().begin()));
  ASSERT_TRUE(there_->engine->unregister_memory(theirs->at(half)).ok());
  EXPECT_EQ(transfer(Opcode::kWrite, pieces).code(), ErrorCode::kInvalidParams);
}

TEST_F(CudaEngineTest, UnregisteringWaitsForAPeersCopyAndRefusesLaterOnes) {
  Buffer mine(*here_, 0);
  Buffer theirs(*there_, 0);
  const auto bytes = random_bytes(kSize, 1);
  mine.set(bytes);
  std::latch held(1);
  std::latch go(1);
  SyncPoints::instance().on("engine_moves.direct.held", [&] {
    held.count_down();
    go.wait();
  });
  Status moved;
  std::thread writer([&] { moved = transfer(Opcode::kWrite, {{mine.at(), theirs.at(), kSize}}); });
  held.wait();
  std::atomic<bool> unregistered{false};
  std::thread remover([&] {
    EXPECT_TRUE(there_->engine->unregister_memory(theirs.at()).ok());
    unregistered = true;
  });
  const auto refused = [&] {
    return there_->engine->transfer(there_->engine->session(), Opcode::kRead, {{theirs.at(), theirs.at(), 1}}).code() ==
           ErrorCode::kInvalidParams;
  };
  EXPECT_TRUE(test::wait_until(refused, Deadline::after(seconds(20))));
  EXPECT_FALSE(unregistered);
  go.count_down();
  writer.join();
  remover.join();
  EXPECT_TRUE(moved.ok()) << moved.to_string();
  EXPECT_TRUE(theirs.get() == bytes);
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(), theirs.at(), kSize}}).code(), ErrorCode::kInvalidParams);
}
#endif

// A peer of our own making.
class HoldTest : public CudaEngineTest {
 protected:
  void SetUp() override {
    CudaEngineTest::SetUp();
    device_ = std::make_unique<Buffer>(*there_, 0);
    host_ = std::make_unique<Buffer>(*there_, -1);
    lane_ = connect();
    ASSERT_NE(lane_, nullptr);
    ASSERT_TRUE(lane_->call(wire::METHOD_DESCRIBE, wire::Empty(), descriptor_, soon()).ok());
    ASSERT_EQ(descriptor_.device_buffer_size(), 1);
    EXPECT_EQ(descriptor_.buffer_location(0), "cuda:0");
  }
  void TearDown() override {
    lane_.reset();  // and with it its holds
    device_.reset();
    host_.reset();
    CudaEngineTest::TearDown();
  }
  static Deadline soon() { return Deadline::after(seconds(20)); }
  std::unique_ptr<net::Lane> connect() {
    const net::Identity identity{NodeId::generate(), "", "test"};
    auto lane = net::Lane::connect({"127.0.0.1", there_->engine->port()}, identity, soon());
    EXPECT_TRUE(lane.ok()) << lane.status().to_string();
    return lane.ok() ? std::move(*lane) : nullptr;
  }
  wire::DeviceHoldRequest request() {
    wire::DeviceHoldRequest request;
    request.set_incarnation(descriptor_.incarnation());
    request.add_registration(descriptor_.device_buffer(0).registration());
    request.add_address(device_->at());
    request.add_length(kSize);
    return request;
  }
  Result<std::uint64_t> hold(const wire::DeviceHoldRequest& request) {
    wire::DeviceHoldReply reply;
    Status status = lane_->call(wire::METHOD_DEVICE_HOLD, request, reply, soon());
    if (!status.ok()) return status;
    return reply.hold();
  }
  Status release(std::uint64_t number) {
    wire::DeviceReleaseRequest request;
    request.set_hold(number);
    wire::Empty reply;
    return lane_->call(wire::METHOD_DEVICE_RELEASE, request, reply, soon());
  }

  std::unique_ptr<Buffer> device_, host_;
  std::unique_ptr<net::Lane> lane_;
  wire::EngineDescriptor descriptor_;
};

TEST_F(HoldTest, AHoldIsCheckedAsATransferIs) {
  auto stale = request();
  stale.set_incarnation(Incarnation::generate().to_bytes());
  EXPECT_EQ(hold(stale).code(), ErrorCode::kStaleIncarnation);
  auto outside = request();
  outside.set_length(0, kSize + 1);
  EXPECT_EQ(hold(outside).code(), ErrorCode::kInvalidParams);
  auto other = request();
  other.set_registration(0, other.registration(0) + 7);
  EXPECT_EQ(hold(other).code(), ErrorCode::kStaleIncarnation);
  auto ragged = request();
  ragged.add_length(1);
  EXPECT_EQ(hold(ragged).code(), ErrorCode::kProtocol);
  auto host = request();
  host.set_address(0, host_->at());
  EXPECT_EQ(hold(host).code(), ErrorCode::kStaleIncarnation);
  EXPECT_EQ(release(1).code(), ErrorCode::kObjectNotFound);
  const auto held = hold(request());
  ASSERT_TRUE(held.ok()) << held.status().to_string();
  EXPECT_TRUE(release(*held).ok());
  EXPECT_EQ(release(*held).code(), ErrorCode::kObjectNotFound);
  std::size_t count = 0;
  while (count <= ServedMoves::kMostHolds && hold(request()).ok()) ++count;
  EXPECT_EQ(count, ServedMoves::kMostHolds);
}

TEST_F(HoldTest, AHoldEndsWithItsConnection) {
  ASSERT_TRUE(hold(request()).ok());
  std::atomic<bool> unregistered{false};
  std::thread remover([&] {
    EXPECT_TRUE(there_->engine->unregister_memory(device_->at()).ok());
    unregistered = true;
  });
  const auto refused = [&] { return hold(request()).code() == ErrorCode::kInvalidParams; };
  EXPECT_TRUE(test::wait_until(refused, soon()));
  EXPECT_FALSE(unregistered);
  lane_.reset();  // as when its process dies
  remover.join();
  EXPECT_TRUE(unregistered);
}

TEST_F(HoldTest, AnEngineThatGoesWaitsForItsPeersGpus) {
  const auto held = hold(request());
  ASSERT_TRUE(held.ok());
  std::atomic<bool> gone{false};
  std::thread closer([&] {
    there_->engine.reset();
    gone = true;
  });
  const auto refused = [&] {
    const auto another = hold(request());
    if (another.ok()) {
      EXPECT_TRUE(release(*another).ok());
    }
    return another.code() == ErrorCode::kUnavailable;
  };
  EXPECT_TRUE(test::wait_until(refused, soon()));
  EXPECT_FALSE(gone);
  EXPECT_TRUE(release(*held).ok());
  closer.join();
}

TEST_F(HoldTest, AHoldComesAfterWhatItsOwnerHasQueued) {
  there_->fake->hold_streams();
  const auto other = there_->fake->allocate(0, 4096);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(there_->fake->copy(0, device_->at(), *other, 4096, Stream::kLegacyDefault).ok());
  std::atomic<bool> held{false};
  std::thread holder([&] {
    EXPECT_TRUE(hold(request()).ok());
    held = true;
  });
  // Another request is answered meanwhile, by the same threads.
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(here_->engine->probe(there_->engine->session()).ok());
  EXPECT_FALSE(held);
  there_->fake->release_streams();
  holder.join();
  there_->fake->free(0, *other);
}

TEST_F(HoldTest, ChecksumsCoverDeviceMemoryToo) {
  const auto bytes = random_bytes(kSize, 8);
  device_->set(bytes);
  wire::RawRequest message;
  message.set_incarnation(descriptor_.incarnation());
  message.set_checksum(true);
  message.add_address(device_->at());
  message.add_length(1'000'000);
  ASSERT_TRUE(lane_->send_request(wire::METHOD_RAW_READ, message, 0, soon()).ok());
  wire::Empty reply;
  const auto payload = lane_->receive_reply(reply, soon());
  ASSERT_TRUE(payload.ok()) << payload.status().to_string();
  ASSERT_EQ(*payload, 1'000'008U);
  Memory got(1'000'000);
  std::uint64_t sum = 0;
  const std::array<MutableBytes, 2> parts{MutableBytes(got), std::as_writable_bytes(std::span(&sum, 1))};
  ASSERT_TRUE(lane_->receive_payload(parts, soon()).ok());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), bytes.begin()));
  const ConstBytes whole(got);
  EXPECT_EQ(sum, checksum_of_pieces({&whole, 1}));

  for (const bool right : {true, false}) {
    const auto fresh = random_bytes(1'000'000, right ? 9 : 10);
    const ConstBytes sent(fresh);
    const std::uint64_t trailer = checksum_of_pieces({&sent, 1}) + (right ? 0 : 1);
    ASSERT_TRUE(lane_->send_request(wire::METHOD_RAW_WRITE, message, 1'000'008, soon()).ok());
    const std::array<ConstBytes, 2> out{sent, std::as_bytes(std::span(&trailer, 1))};
    ASSERT_TRUE(lane_->send_payload(out, soon()).ok());
    const auto answer = lane_->receive_reply(reply, soon());
    EXPECT_EQ(answer.code(), right ? ErrorCode::kOk : ErrorCode::kChecksumMismatch) << answer.status().to_string();
    if (right) {
      const auto now = device_->get();
      EXPECT_TRUE(std::equal(fresh.begin(), fresh.end(), now.begin()));
    }
  }
}

TEST_F(HoldTest, AReadThatDoesNotFitStagingMemoryIsRefusedWithTheLimit) {
  wire::RawRequest message;
  message.set_incarnation(descriptor_.incarnation());
  for (int i = 0; i < 2; ++i) {
    message.add_address(device_->at());
    message.add_length(kSize);
  }
  wire::Empty reply;
  const Status status = lane_->call(wire::METHOD_RAW_READ, message, reply, soon());
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_NE(status.message().find("4194304"), std::string::npos) << status.message();
}

TEST_F(CudaEngineTest, WithoutPinnedMemoryTheErrorSaysSoAndHostMemoryStillMoves) {
  FakeOptions options;
  options.pinned_bytes = 64 << 10;
  start(options);
  Buffer device(*here_, 0);
  Buffer host(*here_, -1);
  Buffer far_device(*there_, 0);
  Buffer far_host(*there_, -1);
  const auto local = transfer(Opcode::kWrite, {{device.at(), far_host.at(), kSize}});
  EXPECT_EQ(local.code(), ErrorCode::kNoAvailableHandle) << local.to_string();
  const auto remote = transfer(Opcode::kWrite, {{host.at(), far_device.at(), kSize}});
  EXPECT_EQ(remote.code(), ErrorCode::kNoAvailableHandle) << remote.to_string();
  const auto back = transfer(Opcode::kRead, {{host.at(), far_device.at(), kSize}});
  EXPECT_EQ(back.code(), ErrorCode::kNoAvailableHandle) << back.to_string();
  EXPECT_TRUE(transfer(Opcode::kWrite, {{host.at(), far_host.at(), kSize}}).ok());
  EXPECT_TRUE(transfer(Opcode::kWrite, {{device.at(), far_device.at(), kSize}}).ok()) << "that one is direct";
}

TEST_F(CudaEngineTest, AnErrorOfTheDevicesOwnIsTheTransfersAndTheNextOneWorks) {
  const Status broken(ErrorCode::kInternal, "cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS");
  struct Case {
    int here, there;
    Process* whose;
    Opcode opcode;
  };
  for (const Case& c : {Case{0, -1, here_.get(), Opcode::kWrite}, Case{0, -1, here_.get(), Opcode::kRead},
                        Case{-1, 0, there_.get(), Opcode::kWrite}, Case{-1, 0, there_.get(), Opcode::kRead}}) {
    for (const bool late : {false, true}) {
      Buffer mine(*here_, c.here);
      Buffer theirs(*there_, c.there);
      c.whose->fake->fail("launch", broken, 0, late);
      const auto status = transfer(c.opcode, {{mine.at(), theirs.at(), kSize}});
      EXPECT_EQ(status.code(), ErrorCode::kInternal) << status.to_string();
      EXPECT_NE(status.message().find("ILLEGAL_ADDRESS"), std::string::npos) << status.message();
      const auto next = transfer(c.opcode, {{mine.at(), theirs.at(), kSize}});
      EXPECT_TRUE(next.ok()) << next.to_string();
    }
  }
  // Direct: a copy engine's error, and a kernel's.
  Buffer mine(*here_, 0);
  Buffer theirs(*there_, 0);
  here_->fake->fail("copy", broken, 0, true);
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(), theirs.at(), kSize}}).code(), ErrorCode::kInternal);
  here_->fake->fail("launch", broken, 0, true);
  EXPECT_EQ(transfer(Opcode::kRead, {{mine.at(), theirs.at(), 1000}}).code(), ErrorCode::kInternal);
  const auto next = transfer(Opcode::kWrite, {{mine.at(), theirs.at(), kSize}});
  EXPECT_TRUE(next.ok()) << next.to_string();
  EXPECT_TRUE(there_->engine->unregister_memory(theirs.at()).ok()) << "nothing holds it any more";
}

TEST_F(CudaEngineTest, ADeviceThatDoesNotGetToItIsATimeout) {
  start({}, milliseconds(300));
  Buffer mine(*here_, 0);
  Buffer host(*here_, -1);
  Buffer theirs(*there_, 0);
  Buffer far_host(*there_, -1);
  // The peer's: its memory stays registered until its device is done, and its server goes on serving.
  there_->fake->hold_streams();
  EXPECT_EQ(transfer(Opcode::kWrite, {{host.at(), theirs.at(), kSize}}).code(), ErrorCode::kRpcTimeout);
  EXPECT_TRUE(here_->engine->probe(there_->engine->session()).ok());
  there_->fake->release_streams();
  const auto again = [&] { return transfer(Opcode::kRead, {{host.at(), theirs.at(), 1000}}).ok(); };
  EXPECT_TRUE(test::wait_until(again, Deadline::after(seconds(20))));
  EXPECT_TRUE(there_->engine->unregister_memory(theirs.at()).ok());
  ASSERT_TRUE(there_->engine->register_memory(theirs.at(), kSize).ok());
  // Ours: the call returns when the device has let go of the memory.
  here_->fake->hold_streams();
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(600));  // longer than the transfer may take
    here_->fake->release_streams();
  });
  EXPECT_EQ(transfer(Opcode::kWrite, {{mine.at(), far_host.at(), kSize}}).code(), ErrorCode::kRpcTimeout);
  later.join();
}

TEST_F(CudaEngineTest, ATransferComesAfterTheWorkOnItsStream) {
  Buffer mine(*here_, 1);
  Buffer theirs(*there_, -1);
  Buffer their_device(*there_, 0);
  Buffer source(*here_, 1);
  unsigned seed = 30;
  const auto session = there_->engine->session();
  const auto stream = here_->fake->create_stream(1);
  ASSERT_TRUE(stream.ok());
  for (const Stream after : {*stream, Stream::kLegacyDefault}) {
    for (Buffer* target : {&theirs, &their_device}) {
      const auto bytes = random_bytes(kSize, ++seed);
      source.set(bytes);
      mine.set(Memory(kSize));
      here_->fake->hold_streams();
      ASSERT_TRUE(here_->fake->copy(1, mine.at(), source.at(), kSize, after).ok());
      std::atomic<bool> moved{false};
      std::thread mover([&] {
        const Status status = here_->engine->transfer_after(after, session, Opcode::kWrite, {{mine.at(), target->at(), kSize}});
        EXPECT_TRUE(status.ok()) << status.to_string();
        moved = true;
      });
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(here_->engine->probe(session).ok());
      EXPECT_FALSE(moved);
      here_->fake->release_streams();
      mover.join();
      EXPECT_TRUE(target->get() == bytes);
    }
  }
  here_->fake->destroy_stream(1, *stream);
}

TEST_F(CudaEngineTest, HostMemoryThatAStreamWritesIsSentAfterIt) {
  Buffer source(*here_, 1);
  Buffer theirs(*there_, -1);
  const auto pinned = here_->fake->allocate_host(kSize);
  ASSERT_TRUE(pinned.ok());
  const auto address = reinterpret_cast<std::uint64_t>(pinned->data());
  ASSERT_TRUE(here_->engine->register_memory(address, kSize).ok());
  const auto stream = here_->fake->create_stream(1);
  ASSERT_TRUE(stream.ok());
  const auto bytes = random_bytes(kSize, 40);
  source.set(bytes);
  here_->fake->hold_streams();
  ASSERT_TRUE(here_->fake->copy(1, address, source.at(), kSize, *stream).ok());
  std::thread mover([&] {
    const Status status =
        here_->engine->transfer_after(*stream, there_->engine->session(), Opcode::kWrite, {{address, theirs.at(), kSize}});
    EXPECT_TRUE(status.ok()) << status.to_string();
  });
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(here_->engine->probe(there_->engine->session()).ok());
  here_->fake->release_streams();
  mover.join();
  EXPECT_TRUE(theirs.get() == bytes);
  here_->fake->destroy_stream(1, *stream);
  ASSERT_TRUE(here_->engine->unregister_memory(address).ok());
  here_->fake->free_host(*pinned);
}

TEST_F(CudaEngineTest, ManyTransfersAtOnceBetweenTwoEnginesEnd) {
  Buffer mine(*here_, 0);
  Buffer host(*here_, -1);
  Buffer theirs(*there_, 0);
  Buffer far_host(*there_, -1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      const auto part = kSize / 6;
      const auto offset = static_cast<std::uint64_t>(t) * part;
      for (int i = 0; i < 4; ++i) {
        Status status;
        if (t % 3 == 0) {
          status = transfer(i % 2 == 0 ? Opcode::kWrite : Opcode::kRead, {{mine.at(offset), far_host.at(offset), part}});
        } else if (t % 3 == 1) {
          status = there_->engine->transfer(here_->engine->session(), i % 2 == 0 ? Opcode::kWrite : Opcode::kRead,
                                            {{theirs.at(offset), host.at(offset), part}});
        } else {
          status = transfer(i % 2 == 0 ? Opcode::kWrite : Opcode::kRead, {{mine.at(offset), theirs.at(offset), part}});
        }
        EXPECT_TRUE(status.ok()) << status.to_string();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(CudaEngineDescriptorTest, DeviceMemoryThatIsNotRegisteredIsNoDescription) {
  wire::EngineDescriptor descriptor;
  descriptor.set_incarnation(Incarnation::generate().to_bytes());
  descriptor.set_host("127.0.0.1");
  descriptor.set_port(1);
  descriptor.add_buffer_address(4096);
  descriptor.add_buffer_length(100);
  descriptor.add_buffer_address(5000);
  descriptor.add_buffer_length(100);
  auto& buffer = *descriptor.add_device_buffer();
  buffer.set_buffer(1);
  buffer.set_registration(7);
  const auto segment = parse_descriptor(descriptor, "peer");
  ASSERT_TRUE(segment.ok());
  ASSERT_NE(segment->range_of({4096, 1}), nullptr);
  EXPECT_FALSE(segment->range_of({4096, 1})->place);
  ASSERT_NE(segment->range_of({5099, 1}), nullptr);
  EXPECT_TRUE(segment->range_of({5099, 1})->place);
  EXPECT_EQ(segment->range_of({5099, 1})->registration, 7U);
  EXPECT_EQ(segment->range_of({5100, 1}), nullptr);
  buffer.set_buffer(2);
  EXPECT_EQ(parse_descriptor(descriptor, "peer").code(), ErrorCode::kProtocol);
}

TEST(CudaEngineWithoutCudaTest, HostMemoryMovesAndAStreamIsRefused) {
  EngineOptions options;
  options.name = "127.0.0.1";
  options.metadata_url = "P2PHANDSHAKE";
  auto engine = TransferEngine::create(options, {}, [] { return nullptr; });
  ASSERT_TRUE(engine.ok());
  Memory memory(1000);
  const auto address = reinterpret_cast<std::uint64_t>(memory.data());
  ASSERT_TRUE((*engine)->register_memory(address, 1000).ok());
  const std::vector<Piece> pieces{{address, address + 500, 100}};
  EXPECT_TRUE((*engine)->transfer((*engine)->session(), Opcode::kWrite, pieces).ok());
  EXPECT_EQ((*engine)->transfer_after(Stream::kLegacyDefault, (*engine)->session(), Opcode::kWrite, pieces).code(),
            ErrorCode::kNotSupported);
}

}  // namespace
}  // namespace moonpool::transfer::cuda
