// Transfer engines over simulated NICs: what is one-sided, what it costs, and who takes over when it fails.
#include "transfer/rdma/raw_path.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/test_support.h"
#include "transfer/rdma/simulated_nic.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer {
namespace {

using rdma::SimulatedFabric;
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

// Where it is: the memory is registered.
void fill(Memory& memory, unsigned seed) { std::ranges::copy(random_bytes(memory.size(), seed), memory.begin()); }

class EngineOverRdmaTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kSize = 1'000'000;

  std::unique_ptr<TransferEngine> make_engine(const std::vector<std::string>& nics, const std::string& paths = "",
                                              const std::string& protocol = "rdma") {
    EngineOptions options;
    options.name = "127.0.0.1";
    options.metadata_url = "P2PHANDSHAKE";
    options.protocol = protocol;
    options.paths = paths;
    options.timeout = seconds(20);
    options.rdma.stripe_bytes = std::uint64_t{1} << 30;
    options.rdma.come_back_after = milliseconds(50);
    auto engine = TransferEngine::create(std::move(options), [&](const rdma::Options&) {
      std::vector<std::unique_ptr<rdma::Nic>> made;
      for (const auto& name : nics) made.push_back(fabric_.make_nic(name));
      return Result<std::shared_ptr<rdma::Devices>>(std::make_shared<rdma::Devices>(std::move(made)));
    });
    EXPECT_TRUE(engine.ok()) << engine.status().to_string();
    return engine.ok() ? std::move(*engine) : nullptr;
  }
  void SetUp() override {
    here_ = make_engine({"here0", "here1"}, "rdma");
    there_ = make_engine({"there0", "there1"}, "rdma");
    ASSERT_TRUE(here_ && there_);
    ASSERT_TRUE(here_->register_memory(address_of(mine_), mine_.size()).ok());
    ASSERT_TRUE(there_->register_memory(address_of(theirs_), theirs_.size()).ok());
  }
  Status move(Opcode opcode) { return here_->transfer(there_->session(), opcode, {whole()}); }
  Piece whole() { return {address_of(mine_), address_of(theirs_), mine_.size()}; }
  [[nodiscard]] std::uint64_t one_sided_bytes() const { return here_->rdma_counters()->bytes; }

  SimulatedFabric fabric_;
  Memory mine_ = random_bytes(kSize, 1);
  Memory theirs_ = random_bytes(kSize, 2);
  std::unique_ptr<TransferEngine> here_;
  std::unique_ptr<TransferEngine> there_;
};

TEST_F(EngineOverRdmaTest, AWriteAndAReadAreOneSided) {
  Status status = move(Opcode::kWrite);
  ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(theirs_, mine_);
  fill(theirs_, 3);
  status = move(Opcode::kRead);
  ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(theirs_, mine_);
  EXPECT_EQ(one_sided_bytes(), 2 * kSize);
  EXPECT_EQ(here_->rdma_counters()->staged_bytes, 0U);
}

TEST_F(EngineOverRdmaTest, NeighboursOnBothSidesAreOneWorkRequest) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < 100; ++i) pieces.push_back({address_of(mine_, i * 1000), address_of(theirs_, i * 1000), 1000});
  const std::uint64_t before = here_->rdma_counters()->work_requests;
  const std::uint64_t doorbells = here_->rdma_counters()->doorbells;
  const std::uint64_t completions = here_->rdma_counters()->completions;
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, pieces).ok());
  EXPECT_TRUE(std::equal(mine_.begin(), mine_.begin() + 100'000, theirs_.begin()));
  EXPECT_EQ(here_->rdma_counters()->work_requests - before, 1U);
  EXPECT_EQ(here_->rdma_counters()->doorbells - doorbells, 1U);
  EXPECT_EQ(here_->rdma_counters()->completions - completions, 1U);
}

TEST_F(EngineOverRdmaTest, NeighboursThereThatAreScatteredHereAreOneWorkRequestOfManyPieces) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < 20; ++i) pieces.push_back({address_of(mine_, i * 2000), address_of(theirs_, i * 1000), 1000});
  const std::uint64_t before = here_->rdma_counters()->work_requests;
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kRead, pieces).ok());
  for (const auto& piece : pieces) {
    EXPECT_TRUE(std::equal(mine_.begin() + static_cast<std::ptrdiff_t>(piece.local - address_of(mine_)),
                           mine_.begin() + static_cast<std::ptrdiff_t>(piece.local - address_of(mine_) + 1000),
                           theirs_.begin() + static_cast<std::ptrdiff_t>(piece.remote - address_of(theirs_))));
  }
  EXPECT_EQ(here_->rdma_counters()->work_requests - before, 1U);
}

TEST_F(EngineOverRdmaTest, ScatteredPiecesGoWhereTheyBelong) {
  std::vector<Piece> pieces;
  std::vector<std::size_t> order(1000);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  for (std::size_t i = 0; i < order.size(); ++i) {
    pieces.push_back({address_of(mine_, i * 1000), address_of(theirs_, order[i] * 1000), i % 7 == 0 ? 0U : 1000U});
  }
  Memory expected = theirs_;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i % 7 != 0)
      std::copy_n(mine_.begin() + static_cast<std::ptrdiff_t>(i * 1000), 1000,
                  expected.begin() + static_cast<std::ptrdiff_t>(order[i] * 1000));
  }
  ASSERT_TRUE(here_->transfer(there_->session(), Opcode::kWrite, pieces).ok());
  EXPECT_EQ(theirs_, expected);
}

TEST_F(EngineOverRdmaTest, PiecesThatSpanTwoRegisteredRangesHereAreNotStaged) {
  // One allocation, registered in halves: neighbours, but no single registration holds both.
  Memory halves = random_bytes(8192, 4);
  ASSERT_TRUE(here_->register_memory(address_of(halves), 4096).ok());
  ASSERT_TRUE(here_->register_memory(address_of(halves, 4096), 4096).ok());
  ASSERT_TRUE(
      here_
          ->transfer(there_->session(), Opcode::kWrite,
                     {{address_of(halves, 4000), address_of(theirs_), 96}, {address_of(halves, 4096), address_of(theirs_, 96), 100}})
          .ok());
  EXPECT_TRUE(std::equal(halves.begin() + 4000, halves.begin() + 4196, theirs_.begin()));
  EXPECT_EQ(here_->rdma_counters()->staged_bytes, 0U);
  EXPECT_TRUE(here_->unregister_memory(address_of(halves)).ok());
  EXPECT_TRUE(here_->unregister_memory(address_of(halves, 4096)).ok());
}

TEST_F(EngineOverRdmaTest, MemoryThatThePeerRegistersLaterIsFound) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());  // its keys are known by now
  Memory more(5000);
  ASSERT_TRUE(there_->register_memory(address_of(more), more.size()).ok());
  const Status status = here_->transfer(there_->session(), Opcode::kWrite, {{address_of(mine_), address_of(more), more.size()}});
  ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(std::equal(more.begin(), more.end(), mine_.begin()));
}

TEST_F(EngineOverRdmaTest, MemoryThatIsRegisteredAnewHasNewKeysWhichAreAskedFor) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  ASSERT_TRUE(there_->unregister_memory(address_of(theirs_)).ok());
  ASSERT_TRUE(there_->register_memory(address_of(theirs_), theirs_.size()).ok());
  std::ranges::fill(theirs_, std::byte{0});
  Status status;
  // The refused key cost the rail, which comes back by itself.
  ASSERT_TRUE(test::wait_until([&] { return (status = move(Opcode::kWrite)).ok(); }, Deadline::after(seconds(10)))) << status.to_string();
  EXPECT_EQ(theirs_, mine_);
}

TEST_F(EngineOverRdmaTest, UnregisteredMemoryIsTouchedByNobodyAnyMore) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  ASSERT_TRUE(there_->unregister_memory(address_of(theirs_)).ok());
  const Memory before = random_bytes(kSize, 9);
  theirs_ = before;
  EXPECT_FALSE(move(Opcode::kWrite).ok());
  EXPECT_EQ(theirs_, before);
  EXPECT_EQ(fabric_.counts("there0").registered + fabric_.counts("there1").registered, 0U);
}

TEST_F(EngineOverRdmaTest, AWriteInItsMidstIsCutOffWhenItsTargetIsUnregistered) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  const auto left = fabric_.hold("here0", 1, 100'000);
  const auto right = fabric_.hold("here1", 1, 100'000);
  auto writing = std::async(std::launch::async, [&] { return move(Opcode::kWrite); });
  ASSERT_TRUE(test::wait_until(
      [&] { return left->await_reached(Deadline::after(milliseconds(1))) || right->await_reached(Deadline::after(milliseconds(1))); },
      Deadline::after(seconds(10))));
  ASSERT_TRUE(there_->unregister_memory(address_of(theirs_)).ok());
  const Memory before = random_bytes(kSize, 9);
  theirs_ = before;
  left->open();
  right->open();
  EXPECT_FALSE(writing.get().ok());
  EXPECT_EQ(theirs_, before);
}

TEST_F(EngineOverRdmaTest, ANotificationComesAfterTheBytesOfItsWrite) {
  for (int i = 0; i < 20; ++i) {
    fill(mine_, 100 + static_cast<unsigned>(i));
    auto writing = std::async(std::launch::async, [&] {
      const Notification note{"name", "written"};
      return here_->transfer(there_->session(), Opcode::kWrite, {whole()}, &note);
    });
    ASSERT_TRUE(test::wait_until([&] { return !there_->take_notifications().empty(); }, Deadline::after(seconds(20))));
    ASSERT_EQ(theirs_, mine_);
    ASSERT_TRUE(writing.get().ok());
  }
}

TEST_F(EngineOverRdmaTest, TransfersInTheBackgroundAreOneSidedToo) {
  std::vector<std::uint64_t> ids;
  for (std::size_t i = 0; i < 10; ++i) {
    const auto id =
        here_->submit(there_->session(), Opcode::kWrite, {{address_of(mine_, i * 100'000), address_of(theirs_, i * 100'000), 100'000}});
    ASSERT_TRUE(id.ok());
    ids.push_back(*id);
  }
  for (const auto id : ids) EXPECT_TRUE(here_->wait(id).ok());
  EXPECT_EQ(theirs_, mine_);
  EXPECT_EQ(one_sided_bytes(), kSize);
}

TEST_F(EngineOverRdmaTest, ANicThatFailsInMidTransferIsReplacedAndItsPeerEndIsDestroyed) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  const auto before = fabric_.counts("there0").queue_pairs + fabric_.counts("there1").queue_pairs;
  fill(mine_, 7);
  fabric_.fail_after_bytes("there0", 10'000);
  fabric_.fail_after_bytes("there1", 10'000);
  auto writing = std::async(std::launch::async, [&] { return move(Opcode::kWrite); });
  ASSERT_TRUE(test::wait_until([&] { return here_->rdma_counters()->rails_lost > 0; }, Deadline::after(seconds(10))));
  fabric_.revive("there0");
  fabric_.revive("there1");
  const Status status = writing.get();
  if (!status.ok()) {  // both had failed before one was well again
    EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
    ASSERT_TRUE(test::wait_until([&] { return move(Opcode::kWrite).ok(); }, Deadline::after(seconds(10))));
  }
  EXPECT_EQ(theirs_, mine_);
  EXPECT_TRUE(test::wait_until([&] { return fabric_.counts("there0").queue_pairs + fabric_.counts("there1").queue_pairs <= before; },
                               Deadline::after(seconds(10))));
}

TEST_F(EngineOverRdmaTest, AddressesOutsideRegisteredMemoryAreRefusedBeforeAByteMoves) {
  const Memory before = theirs_;
  const auto remote =
      here_->transfer(there_->session(), Opcode::kWrite, {whole(), {address_of(mine_), address_of(theirs_, theirs_.size() - 1), 2}});
  EXPECT_EQ(remote.code(), ErrorCode::kInvalidParams) << remote.to_string();
  const auto local = here_->transfer(there_->session(), Opcode::kWrite, {whole(), {address_of(mine_) - 1, address_of(theirs_), 2}});
  EXPECT_EQ(local.code(), ErrorCode::kInvalidParams) << local.to_string();
  EXPECT_EQ(theirs_, before);
}

TEST_F(EngineOverRdmaTest, APeerThatWasRestartedIsFoundAgain) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  const std::string name = there_->session();
  there_.reset();
  EXPECT_EQ(fabric_.counts("there0").registered, 0U);
  EngineOptions options;
  options.name = name;
  options.metadata_url = "P2PHANDSHAKE";
  options.protocol = "rdma";
  auto again = TransferEngine::create(std::move(options), [&](const rdma::Options&) {
    std::vector<std::unique_ptr<rdma::Nic>> made;
    made.push_back(fabric_.make_nic("again"));
    return Result<std::shared_ptr<rdma::Devices>>(std::make_shared<rdma::Devices>(std::move(made)));
  });
  ASSERT_TRUE(again.ok()) << again.status().to_string();
  ASSERT_EQ((*again)->session(), name);
  Memory fresh(kSize);
  ASSERT_TRUE((*again)->register_memory(address_of(fresh), fresh.size()).ok());
  Status status;
  ASSERT_TRUE(test::wait_until(
      [&] {
        return (status = here_->transfer(name, Opcode::kWrite, {{address_of(mine_), address_of(fresh), kSize}})).ok();
      },
      Deadline::after(seconds(10))))
      << status.to_string();
  EXPECT_EQ(fresh, mine_);
}

TEST_F(EngineOverRdmaTest, MemoryThatNoNicCanRegisterIsAnErrorWithItsReasonAndIsNotRegistered) {
  fabric_.refuse_registrations("here0", true);
  fabric_.refuse_registrations("here1", true);
  Memory more(5000);
  const Status refused = here_->register_memory(address_of(more), more.size());
  EXPECT_EQ(refused.code(), ErrorCode::kUnavailable) << refused.to_string();
  EXPECT_NE(refused.message().find("here0"), std::string::npos) << refused.message();
  EXPECT_EQ(here_->unregister_memory(address_of(more)).code(), ErrorCode::kInvalidParams);
  fabric_.refuse_registrations("here1", false);
  EXPECT_TRUE(here_->register_memory(address_of(more), more.size()).ok()) << "one NIC is enough";
  EXPECT_TRUE(here_->unregister_memory(address_of(more)).ok());
}

TEST_F(EngineOverRdmaTest, WithoutAPathLeftTcpTakesOverOnlyWhereItMay) {
  ASSERT_TRUE(move(Opcode::kWrite).ok());
  auto flexible = make_engine({"flexible"});
  ASSERT_TRUE(flexible->register_memory(address_of(mine_), mine_.size()).ok());
  for (const char* nic : {"there0", "there1"}) fabric_.set_port(nic, false);
  fill(theirs_, 5);
  const Status strict = move(Opcode::kWrite);
  EXPECT_EQ(strict.code(), ErrorCode::kUnavailable) << strict.to_string();
  EXPECT_NE(strict.message().find(there_->session()), std::string::npos) << strict.message();
  const Status status = flexible->transfer(there_->session(), Opcode::kWrite, {whole()});
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(theirs_, mine_);
  EXPECT_EQ(flexible->rdma_counters()->bytes, 0U);
  // And back again, by itself.
  for (const char* nic : {"there0", "there1"}) fabric_.set_port(nic, true);
  EXPECT_TRUE(test::wait_until(
      [&] { return flexible->transfer(there_->session(), Opcode::kWrite, {whole()}).ok() && flexible->rdma_counters()->bytes > 0; },
      Deadline::after(seconds(10))));
}

TEST_F(EngineOverRdmaTest, APeerWithTcpAloneIsReachedOverTcp) {
  auto flexible = make_engine({"flexible"});
  auto plain = make_engine({}, "", "tcp");
  Memory target(kSize);
  ASSERT_TRUE(flexible->register_memory(address_of(mine_), mine_.size()).ok());
  ASSERT_TRUE(plain->register_memory(address_of(target), target.size()).ok());
  const Status status = flexible->transfer(plain->session(), Opcode::kWrite, {{address_of(mine_), address_of(target), kSize}});
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(target, mine_);
  EXPECT_TRUE(plain->nics().empty());
  EXPECT_EQ(plain->rdma_counters(), nullptr);
  const Status strict = here_->transfer(plain->session(), Opcode::kWrite, {{address_of(mine_), address_of(target), kSize}});
  EXPECT_EQ(strict.code(), ErrorCode::kUnavailable) << strict.to_string();
  // The other way as well: an engine without RDMA reaches one that has it.
  ASSERT_TRUE(plain->transfer(there_->session(), Opcode::kWrite, {{address_of(target), address_of(theirs_), kSize}}).ok());
  EXPECT_EQ(theirs_, target);
}

TEST_F(EngineOverRdmaTest, ItsNicsAreReported) {
  const auto nics = here_->nics();
  ASSERT_EQ(nics.size(), 2U);
  EXPECT_EQ(nics[0].name, "here0");
  EXPECT_EQ(nics[1].name, "here1");
}

TEST(EngineOverRdmaCreateTest, PathsAndDevicesAreCheckedWhenItIsMade) {
  const auto create = [](const std::string& paths, const TransferEngine::OpenDevices& open) {
    EngineOptions options;
    options.name = "127.0.0.1";
    options.metadata_url = "P2PHANDSHAKE";
    options.protocol = "rdma";
    options.rdma.device_names = "mlx5_9";
    options.paths = paths;
    return TransferEngine::create(std::move(options), open).status();
  };
  std::string asked;
  const auto none = [&](const rdma::Options& options) {
    asked = options.device_names;
    return Result<std::shared_ptr<rdma::Devices>>(ErrorCode::kNotSupported, "this host has no RDMA device: use tcp");
  };
  const Status missing = create("", none);
  EXPECT_EQ(missing.code(), ErrorCode::kNotSupported);
  EXPECT_NE(missing.message().find("no RDMA device"), std::string::npos) << missing.message();
  EXPECT_EQ(asked, "mlx5_9");
  asked.clear();
  EXPECT_EQ(create("local,shm", none).code(), ErrorCode::kInvalidParams);
  EXPECT_TRUE(create("shm,tcp", none).ok()) << "RDMA is left out on purpose, with a warning";
  EXPECT_EQ(asked, "") << "no device is opened for nothing";
}

}  // namespace
}  // namespace moonpool::transfer
