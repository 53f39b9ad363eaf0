#include "transfer/transfer_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <random>
#include <thread>

#include "base/sync_point.h"
#include "metadata/metadata_servers_for_test.h"
#include "metadata/open_metadata_store.h"
#include "net/server.h"
#include "tests/support/test_support.h"
#include "transfer/segment_directory.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

using Memory = std::vector<std::byte>;

std::uint64_t address_of(const Memory& memory, std::size_t offset = 0) { return reinterpret_cast<std::uint64_t>(memory.data()) + offset; }

Memory random_bytes(std::size_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  Memory bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

std::unique_ptr<TransferEngine> make_engine(const std::string& metadata_url = "P2PHANDSHAKE", const std::string& name = "127.0.0.1",
                                            milliseconds timeout = seconds(20)) {
  EngineOptions options;
  options.name = name;
  options.metadata_url = metadata_url;
  options.timeout = timeout;
  auto engine = TransferEngine::create(std::move(options));
  EXPECT_TRUE(engine.ok()) << engine.status().to_string();
  return engine.ok() ? std::move(*engine) : nullptr;
}

class TransferEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(here_, nullptr);
    ASSERT_NE(there_, nullptr);
    ASSERT_TRUE(here_->register_memory(address_of(mine_), mine_.size()).ok());
    ASSERT_TRUE(there_->register_memory(address_of(theirs_), theirs_.size()).ok());
  }
#ifdef MOONPOOL_SYNC_POINTS
  void TearDown() override { SyncPoints::instance().clear(); }
#endif
  Piece whole() { return {address_of(mine_), address_of(theirs_), mine_.size()}; }

  Memory mine_ = random_bytes(1'000'000, 1);
  Memory theirs_ = random_bytes(1'000'000, 2);
  std::unique_ptr<TransferEngine> here_ = make_engine();
  std::unique_ptr<TransferEngine> there_ = make_engine();
};

TEST_F(TransferEngineTest, AWriteAndAReadMoveTheBytes) {
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {whole()}).ok());
  EXPECT_EQ(theirs_, mine_);
  std::ranges::fill(mine_, std::byte{0});
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kRead, {whole()}).ok());
  EXPECT_EQ(theirs_, mine_);
}

TEST_F(TransferEngineTest, ManyPiecesGoWhereTheyBelong) {
  std::vector<Piece> pieces;
  std::vector<std::size_t> order(1000);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  for (std::size_t i = 0; i < order.size(); ++i)
    pieces.push_back({address_of(mine_, i * 1000), address_of(theirs_, order[i] * 1000), i % 7 == 0 ? 0U : 1000U});
  const auto before = theirs_;
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, pieces).ok());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto& expected = i % 7 == 0 ? before : mine_;
    const std::size_t from = i % 7 == 0 ? order[i] * 1000 : i * 1000;
    ASSERT_TRUE(std::equal(expected.begin() + static_cast<std::ptrdiff_t>(from),
                           expected.begin() + static_cast<std::ptrdiff_t>(from + 1000),
                           theirs_.begin() + static_cast<std::ptrdiff_t>(order[i] * 1000)));
  }
}

TEST_F(TransferEngineTest, ATransferLargerThanAFrameArrives) {
  const auto source = random_bytes(150'000'001, 5);
  Memory target(source.size());
  ASSERT_TRUE(here_->register_memory(address_of(source), source.size()).ok());
  ASSERT_TRUE(there_->register_memory(address_of(target), target.size()).ok());
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {{address_of(source), address_of(target), source.size()}}).ok());
  EXPECT_EQ(source, target);
}

TEST_F(TransferEngineTest, AnAddressOutsideRegisteredMemoryIsRefusedOnBothSidesBeforeAByteMoves) {
  const auto before = theirs_;
  const auto remote =
      here_->transfer(there_->session(), Opcode::kWrite, {whole(), {address_of(mine_), address_of(theirs_, theirs_.size() - 1), 2}});
  EXPECT_EQ(remote.code(), ErrorCode::kInvalidParams);
  EXPECT_NE(remote.message().find(there_->session()), std::string::npos);
  const auto local = here_->transfer(there_->session(), Opcode::kWrite, {whole(), {address_of(mine_) - 1, address_of(theirs_), 2}});
  EXPECT_EQ(local.code(), ErrorCode::kInvalidParams);
  EXPECT_NE(local.message().find("local"), std::string::npos);
  EXPECT_EQ(here_->transfer(there_->session(), Opcode::kRead, {{address_of(mine_), ~0ULL - 5, 100}}).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(here_->transfer(there_->session(), Opcode::kRead, {{address_of(mine_), address_of(theirs_), ~0ULL}}).code(),
            ErrorCode::kInvalidParams);
  EXPECT_EQ(theirs_, before);
}

TEST_F(TransferEngineTest, ThePeerChecksTooWhenWhatWeKnowOfItIsOld) {
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {whole()}).ok());
  ASSERT_TRUE(there_->unregister_memory(address_of(theirs_)).ok());
  std::ranges::fill(mine_, std::byte{0});
  const auto before = theirs_;
  EXPECT_EQ(here_->transfer(there_->session(), Opcode::kWrite, {whole()}).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(theirs_, before);
}

TEST_F(TransferEngineTest, MemoryRegisteredLaterIsFound) {
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {whole()}).ok());
  Memory more(5000);
  ASSERT_TRUE(there_->register_memory(address_of(more), more.size()).ok());
  EXPECT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {{address_of(mine_), address_of(more), more.size()}}).ok());
  EXPECT_TRUE(std::equal(more.begin(), more.end(), mine_.begin()));
}

TEST_F(TransferEngineTest, RegistrationRefusesNullEmptyAndOverlap) {
  EXPECT_EQ(here_->register_memory(0, 10).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(here_->register_memory(4096, 0).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(here_->register_memory(~0ULL, 10).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(here_->register_memory(address_of(mine_, 10), 10).code(), ErrorCode::kSegmentAlreadyExists);
  EXPECT_EQ(here_->register_memory(address_of(mine_) - 5, 6).code(), ErrorCode::kSegmentAlreadyExists);
  EXPECT_EQ(here_->unregister_memory(address_of(mine_, 1)).code(), ErrorCode::kInvalidParams);
  EXPECT_TRUE(here_->unregister_memory(address_of(mine_)).ok());
  EXPECT_TRUE(here_->register_memory(address_of(mine_, 10), 10).ok());
}

TEST_F(TransferEngineTest, AnEngineReachesItself) {
  ASSERT_TRUE(here_->transfer(here_->session(), Opcode::kWrite, {{address_of(mine_), address_of(mine_, 500'000), 1000}}).ok());
  EXPECT_TRUE(std::equal(mine_.begin(), mine_.begin() + 1000, mine_.begin() + 500'000));
}

TEST_F(TransferEngineTest, BackgroundTransfersEndAndAreForgotten) {
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 20; ++i) {
    const auto offset = static_cast<std::size_t>(i) * 50'000;
    auto id = here_->submit(there_->session(), Opcode::kWrite, {{address_of(mine_, offset), address_of(theirs_, offset), 50'000}});
    ASSERT_TRUE(id.ok());
    EXPECT_NE(*id, 0U);
    ids.push_back(*id);
  }
  for (const auto id : ids) {
    EXPECT_TRUE(test::wait_until([&] { return here_->state(id).value() != TransferState::kPending; }, Deadline::after(seconds(20))));
    EXPECT_EQ(here_->state(id).value(), TransferState::kDone);
    EXPECT_TRUE(here_->wait(id).ok());
    EXPECT_EQ(here_->state(id).code(), ErrorCode::kInvalidParams);
  }
  EXPECT_EQ(mine_, theirs_);
  const auto bad = here_->submit(there_->session(), Opcode::kWrite, {{address_of(mine_), 1, 1}});
  ASSERT_TRUE(bad.ok());
  EXPECT_EQ(here_->wait(*bad).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(here_->wait(*bad).code(), ErrorCode::kInvalidParams) << "forgotten";
}

TEST_F(TransferEngineTest, NotificationsArriveAlsoWithATransfer) {
  ASSERT_TRUE(here_->notify(there_->session(), {"a", "first"}).ok());
  const Notification second{"b", "second"};
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {whole()}, &second).ok());
  const auto all = there_->take_notifications();
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0].message, "first");
  EXPECT_EQ(all[1].name, "b");
  EXPECT_TRUE(there_->take_notifications().empty());
}

TEST_F(TransferEngineTest, ProbeAndFirstBuffer) {
  EXPECT_TRUE(here_->probe(there_->session()).ok());
  EXPECT_EQ(here_->first_buffer(there_->session()).value(), address_of(theirs_));
  const auto empty = make_engine();
  EXPECT_EQ(here_->first_buffer(empty->session()).code(), ErrorCode::kSegmentNotFound);
}

TEST_F(TransferEngineTest, APeerThatIsGoneIsAnErrorThatNamesItAndItsSuccessorIsNotMistakenForIt) {
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, {whole()}).ok());
  const auto session = there_->session();
  there_.reset();
  const auto gone = here_->transfer(session, Opcode::kWrite, {whole()});
  EXPECT_EQ(gone.code(), ErrorCode::kUnavailable);
  EXPECT_NE(gone.message().find(session), std::string::npos) << gone.message();
  EXPECT_FALSE(here_->probe(session).ok());
  const auto successor = make_engine("P2PHANDSHAKE", session);
  ASSERT_EQ(successor->session(), session);
  EXPECT_EQ(here_->transfer(session, Opcode::kWrite, {whole()}).code(), ErrorCode::kInvalidParams) << "it has registered nothing";
  ASSERT_TRUE(successor->register_memory(address_of(theirs_), theirs_.size()).ok());
  EXPECT_TRUE(here_->transfer(session, Opcode::kWrite, {whole()}).ok());
}

TEST_F(TransferEngineTest, ATakenPortIsReplacedByAFreeOne) {
  const auto other = make_engine("P2PHANDSHAKE", there_->session());
  ASSERT_NE(other, nullptr);
  EXPECT_NE(other->port(), there_->port());
  EXPECT_EQ(other->session(), "127.0.0.1:" + std::to_string(other->port()));
  EXPECT_GE(other->port(), 12300);
  EXPECT_LE(other->port(), 14300);
  EXPECT_TRUE(here_->probe(other->session()).ok());
}

TEST(TransferEngineCreateTest, BadOptionsAreNamed) {
  const auto error_of = [](std::string name, std::string url, std::string protocol) {
    EngineOptions options;
    options.name = std::move(name);
    options.metadata_url = std::move(url);
    options.protocol = std::move(protocol);
    const auto engine = TransferEngine::create(std::move(options));
    EXPECT_FALSE(engine.ok());
    return engine.status();
  };
  const auto unknown = error_of("127.0.0.1", "P2PHANDSHAKE", "nvlink");
  EXPECT_EQ(unknown.code(), ErrorCode::kNotSupported);
  EXPECT_NE(unknown.message().find("\"tcp\" or \"rdma\""), std::string::npos);
  EXPECT_EQ(error_of("bad name!", "P2PHANDSHAKE", "tcp").code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(error_of("127.0.0.1", "ftp://x", "tcp").code(), ErrorCode::kConfig);
  const auto foreign = error_of("192.0.2.1", "P2PHANDSHAKE", "tcp");
  EXPECT_EQ(foreign.code(), ErrorCode::kUnavailable);
  EXPECT_NE(foreign.message().find("not one of this host's"), std::string::npos) << foreign.message();
  const auto unreachable = error_of("127.0.0.1", "redis://127.0.0.1:" + std::to_string(test::free_port()), "tcp");
  EXPECT_EQ(unreachable.code(), ErrorCode::kMetadataFail);
}

#ifdef MOONPOOL_SYNC_POINTS
TEST_F(TransferEngineTest, UnregisteringWaitsForATransferThatIsUnderWay) {
  std::latch admitted(1);
  std::latch go(1);
  SyncPoints::instance().on("raw_service.write.admitted", [&] {
    admitted.count_down();
    go.wait();
  });
  Status moved;
  std::thread writer([&] { moved = here_->transfer(there_->session(), Opcode::kWrite, {whole()}); });
  admitted.wait();
  std::atomic<bool> unregistered{false};
  std::thread remover([&] {
    EXPECT_TRUE(there_->unregister_memory(address_of(theirs_)).ok());
    unregistered = true;
  });
  // A second one cannot be seen waiting, so what is seen is that new transfers are refused while the first still runs.
  EXPECT_TRUE(test::wait_until(
      [&] {
        return there_->transfer(there_->session(), Opcode::kRead, {{address_of(theirs_), address_of(theirs_), 1}}).code() ==
               ErrorCode::kInvalidParams;
      },
      Deadline::after(seconds(20))));
  EXPECT_FALSE(unregistered);
  go.count_down();
  writer.join();
  remover.join();
  EXPECT_TRUE(moved.ok()) << moved.to_string();
  EXPECT_EQ(mine_, theirs_);
}

TEST_F(TransferEngineTest, APeerThatStopsIsATimeoutWithinTheEnginesTime) {
  const auto impatient = make_engine("P2PHANDSHAKE", "127.0.0.1", milliseconds(300));
  ASSERT_TRUE(impatient->register_memory(address_of(mine_), mine_.size()).ok());
  ASSERT_TRUE(impatient->probe(there_->session()).ok());
  std::latch go(1);
  SyncPoints::instance().on("raw_service.read.admitted", [&] { go.wait(); });
  const auto start = Deadline::Clock::now();
  const auto status = impatient->transfer(there_->session(), Opcode::kRead, {whole()});
  EXPECT_EQ(status.code(), ErrorCode::kRpcTimeout) << status.to_string();
  EXPECT_LT(Deadline::Clock::now() - start, seconds(5));
  go.count_down();
  there_.reset();  // its thread has left the latch before that goes
}
#endif

class TransferEngineMetadataTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TransferEngineMetadataTest, PeersFindEachOtherByNameAndLeaveNothingBehind) {
  const auto server = metadata::make_server_for_test(GetParam());
  ASSERT_TRUE(server->start().ok());
  const auto port = static_cast<std::uint16_t>(std::stoi(server->endpoint().substr(server->endpoint().rfind(':') + 1)));
  const auto url = metadata::url_for_test(GetParam(), port);
  Memory mine = random_bytes(10'000, 1);
  Memory theirs(10'000);
  std::string session;
  {
    const auto here = make_engine(url);
    const auto there = make_engine(url, "localhost");
    ASSERT_TRUE(here != nullptr && there != nullptr);
    session = there->session();
    ASSERT_TRUE(here->register_memory(address_of(mine), mine.size()).ok());
    EXPECT_EQ(here->transfer("nobody:1", Opcode::kRead, {{address_of(mine), 1, 1}}).code(), ErrorCode::kSegmentNotFound);
    ASSERT_TRUE(there->register_memory(address_of(theirs), theirs.size()).ok());
    for (const auto& name : {session, std::string("localhost")}) {
      const auto status = here->transfer(name, Opcode::kWrite, {{address_of(mine), address_of(theirs), mine.size()}});
      EXPECT_TRUE(status.ok()) << name << ": " << status.to_string();
    }
    EXPECT_EQ(mine, theirs);
  }
  auto store = server->open();
  for (const auto& name : {session, std::string("localhost")}) {
    EXPECT_EQ(store->get(std::string(kSegmentKeyPrefix) + name, Deadline::after(seconds(5))).code(), ErrorCode::kObjectNotFound) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(RealServers, TransferEngineMetadataTest, ::testing::Values("http", "etcd", "redis", "redis_with_password"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace moonpool::transfer
