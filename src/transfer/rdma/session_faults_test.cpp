// Sessions over simulated NICs that fail: in mid-transfer, on either side, all of them; coming back; deadlines, fences and ends.
#include "transfer/rdma/session_for_test.h"

namespace moonpool::transfer::rdma::test {
namespace {

using ::testing::HasSubstr;

class SessionFaultsTest : public SessionFixture {
 protected:
  // A transfer of 16 blocks under way on a thread of its own, held in one of user0's work requests until go_on().
  class Held {
   public:
    Held(SessionFaultsTest& test, PeerSession& session, Operation operation, Bytes& memory, Deadline deadline = soon())
        : gate_(test.fabric_.hold("user0", 3, 50'000)), thread_([&test, &session, operation, &memory, deadline, this] {
            status_ = test.move_in_blocks(session, operation, memory, 16, deadline);
          }) {
      EXPECT_TRUE(gate_->await_reached(soon()));
    }
    ~Held() { static_cast<void>(go_on()); }
    Status go_on() {
      gate_->open();
      return join();
    }
    Status join() {
      if (thread_.joinable()) thread_.join();
      return status_;
    }

   private:
    std::shared_ptr<SimulatedGate> gate_;
    Status status_;
    std::thread thread_;
  };
  void expect_moved_over_the_other(Operation operation, const Bytes& memory, const Status& status) {
    EXPECT_TRUE(status.ok()) << status.to_string();
    EXPECT_TRUE(arrived(memory)) << (operation == Operation::kRead ? "read" : "write");
    EXPECT_GE(counters().redone, 1U);
    EXPECT_EQ(counters().rails_lost, 1U);
    EXPECT_EQ(on("user0").queue_pairs, 0U) << "it is destroyed, not only unused";
  }
};

TEST_F(SessionFaultsTest, ACableCutInMidWriteCostsNothingButTime) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 1);
  Held held(*this, *session, Operation::kWrite, memory);
  fabric_.cut("user0", "owner0");
  expect_moved_over_the_other(Operation::kWrite, memory, held.go_on());
  EXPECT_EQ(session->take_broken(), std::vector<std::uint32_t>{1});
  EXPECT_TRUE(session->take_broken().empty());
}

TEST_F(SessionFaultsTest, ACableCutInMidReadCostsNothingButTime) {
  start();
  std::ranges::copy(random_bytes(8 * kMiB, 2), owner_->served.begin());
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 3);
  Held held(*this, *session, Operation::kRead, memory);
  fabric_.cut("user0", "owner0");
  expect_moved_over_the_other(Operation::kRead, memory, held.go_on());
}

TEST_F(SessionFaultsTest, APortOfOursThatGoesDownInMidTransferCostsNothingButTime) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 4);
  Held held(*this, *session, Operation::kWrite, memory);
  fabric_.set_port("user0", false);
  expect_moved_over_the_other(Operation::kWrite, memory, held.go_on());
}

TEST_F(SessionFaultsTest, APortOfThePeersThatGoesDownInMidTransferCostsNothingButTime) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 5);
  Held held(*this, *session, Operation::kWrite, memory);
  fabric_.set_port("owner0", false);
  expect_moved_over_the_other(Operation::kWrite, memory, held.go_on());
}

TEST_F(SessionFaultsTest, ThePeersNicMayFailAtAnyWorkRequest) {
  for (std::uint64_t n = 1; n <= 8; n += 3) {
    for (const auto operation : {Operation::kWrite, Operation::kRead}) {
      fabric_ = SimulatedFabric();
      memories_.clear();
      start();
      Bytes& memory = registered(4 * kMiB, 6 + n);
      if (operation == Operation::kRead) std::ranges::copy(random_bytes(4 * kMiB, n), owner_->served.begin());
      auto session = lease();
      fabric_.fail_at_work_request("owner0", n);
      expect_moved_over_the_other(operation, memory, move_in_blocks(*session, operation, memory, 16));
    }
  }
}

TEST_F(SessionFaultsTest, ThePeersNicMayFailAfterAnyByte) {
  for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{4097}, std::uint64_t{777'777}, 2 * kMiB - 1}) {
    fabric_ = SimulatedFabric();
    memories_.clear();
    start();
    Bytes& memory = registered(4 * kMiB, bytes);
    auto session = lease();
    fabric_.fail_after_bytes("owner0", bytes);
    expect_moved_over_the_other(Operation::kWrite, memory, move_in_blocks(*session, Operation::kWrite, memory, 16));
  }
}

TEST_F(SessionFaultsTest, StagedMemoryIsStagedAgain) {
  options_.staging_bytes = 2 * kMiB;
  start();
  auto session = lease();
  Bytes memory = random_bytes(4 * kMiB, 8);
  fabric_.fail_after_bytes("owner0", 700'000);
  expect_moved_over_the_other(Operation::kWrite, memory, move_in_blocks(*session, Operation::kWrite, memory, 16));
  Bytes got(memory.size());
  EXPECT_TRUE(move_in_blocks(*session, Operation::kRead, got, 16).ok());
  EXPECT_EQ(got, memory);
}

TEST_F(SessionFaultsTest, WithOneNicOfOursAnotherOneOfThePeersTakesOver) {
  user_nics_.pop_back();
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 9);
  fabric_.fail_after_bytes("owner0", 1'000'000);
  const Status status = move_in_blocks(*session, Operation::kWrite, memory, 16);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(counters().rails_opened, 2U);
  EXPECT_EQ(on("owner0").queue_pairs, 0U) << "the owner was told that the client's end is gone";
  EXPECT_EQ(on("owner1").queue_pairs, 1U);
}

TEST_F(SessionFaultsTest, WithAllNicsDownItIsUnavailableUntilOneIsUp) {
  start();
  {
    auto session = lease();
    Bytes& memory = registered(4 * kMiB, 10);
    Held held(*this, *session, Operation::kWrite, memory);
    fabric_.set_port("user0", false);
    fabric_.set_port("user1", false);
    const Status status = held.go_on();
    EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
    for (const auto& part : {owner_->endpoint().to_string(), std::string("user0"), std::string("user1"), std::string("port is down")}) {
      EXPECT_THAT(status.message(), HasSubstr(part));
    }
  }
  EXPECT_FALSE(pool_->promising(owner_->endpoint()));
  EXPECT_THAT(pool_->why_not(owner_->endpoint()), HasSubstr("up"));
  EXPECT_EQ(pool_->acquire(owner_->endpoint(), soon()).code(), ErrorCode::kUnavailable);
  fabric_.set_port("user1", true);
  EXPECT_TRUE(pool_->promising(owner_->endpoint()));
  EXPECT_EQ(pool_->why_not(owner_->endpoint()), "");
  auto session = lease();
  EXPECT_TRUE(move_in_blocks(*session, Operation::kWrite, *memories_[0], 16).ok());
  EXPECT_TRUE(arrived(*memories_[0]));
}

TEST_F(SessionFaultsTest, WithAllNicsOfThePeerDownItIsUnavailableForAWhile) {
  options_.come_back_after = milliseconds(300);
  start();
  Bytes& memory = registered(4 * kMiB, 11);
  {
    auto session = lease();
    Held held(*this, *session, Operation::kRead, memory);
    fabric_.set_port("owner0", false);
    fabric_.set_port("owner1", false);
    const Status status = held.go_on();
    EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("user0"));
    EXPECT_THAT(status.message(), HasSubstr("none of the owner's NICs has its port up"));
  }
  EXPECT_FALSE(pool_->promising(owner_->endpoint()));
  EXPECT_THAT(pool_->why_not(owner_->endpoint()), HasSubstr("user1"));
  fabric_.set_port("owner0", true);
  fabric_.set_port("owner1", true);
  EXPECT_TRUE(moonpool::test::wait_until([&] { return pool_->promising(owner_->endpoint()); }, soon()));
  EXPECT_TRUE(moonpool::test::wait_until(
      [&] {
        auto session = pool_->acquire(owner_->endpoint(), soon());
        return session.ok() && move_in_blocks(**session, Operation::kWrite, memory, 16).ok();
      },
      soon()));
  EXPECT_TRUE(arrived(memory));
}

TEST_F(SessionFaultsTest, APathThatIsWellAgainIsUsedAgain) {
  start();
  Bytes& memory = registered(4 * kMiB, 12);
  fabric_.cut("user0", "owner0");
  {
    auto session = lease();
    ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
  }
  fabric_.mend("user0", "owner0");
  EXPECT_TRUE(moonpool::test::wait_until(
      [&] {
        auto session = lease();
        const auto before = on("user0").bytes;
        EXPECT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
        return on("user0").bytes - before == 2 * kMiB;
      },
      soon()));
}

TEST_F(SessionFaultsTest, APathThatStaysBrokenIsTriedEverMoreSeldom) {
  options_.come_back_after = milliseconds(20);
  start();
  Bytes& memory = registered(2 * kMiB, 13);
  fabric_.cut("user0", "owner0");
  fabric_.cut("user0", "owner1");
  const Deadline end = Deadline::after(milliseconds(400));
  while (!end.expired()) {
    auto session = lease();
    ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 2).ok());
  }
  // After 20, 40, 80, 160 ms: at most five failures, and the first.
  EXPECT_GE(counters().rails_lost, 2U);
  EXPECT_LE(counters().rails_lost, 6U);
}

TEST_F(SessionFaultsTest, APortThatComesUpIsUsedAtOnce) {
  options_.come_back_after = seconds(100);
  start();
  Bytes& memory = registered(4 * kMiB, 14);
  fabric_.set_port("user0", false);
  {
    auto session = lease();
    ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
    EXPECT_EQ(on("user0").bytes, 0U);
  }
  fabric_.set_port("user0", true);
  auto session = lease();
  ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
  EXPECT_EQ(on("user0").bytes, 2 * kMiB);
}

TEST_F(SessionFaultsTest, RailsThatMetInOneNicOfThePeersPartAgainWhenTheOtherIsBack) {
  start();
  fabric_.set_port("owner0", false);
  { auto session = lease(); }
  EXPECT_EQ(on("owner1").queue_pairs, 2U);
  fabric_.set_port("owner0", true);
  EXPECT_TRUE(moonpool::test::wait_until(
      [&] {
        { auto session = lease(); }
        return on("owner0").queue_pairs == 1 && on("owner1").queue_pairs == 1;
      },
      soon()))
      << on("owner0").queue_pairs << " " << on("owner1").queue_pairs;
  Bytes& memory = registered(4 * kMiB, 15);
  auto session = lease();
  ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
  EXPECT_TRUE(arrived(memory));
}

TEST_F(SessionFaultsTest, QueuePairsThatCannotBeMadeAreDoneWithout) {
  start();
  fabric_.refuse_queue_pairs("user0", true);
  fabric_.refuse_queue_pairs("owner0", true);  // the one that user1 would meet
  Bytes& memory = registered(kMiB / 2, 16);
  const auto refused = pool_->acquire(owner_->endpoint(), soon());
  EXPECT_EQ(refused.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(refused.status().message(), HasSubstr("user0 cannot make more queue pairs"));
  EXPECT_THAT(refused.status().message(), HasSubstr("owner0 cannot make more queue pairs"));
  fabric_.refuse_queue_pairs("owner0", false);
  ASSERT_TRUE(moonpool::test::wait_until([&] { return pool_->promising(owner_->endpoint()); }, soon()));
  ASSERT_TRUE(moonpool::test::wait_until([&] { return pool_->acquire(owner_->endpoint(), soon()).ok(); }, soon()));
  auto session = lease();
  EXPECT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
}

// ---------------------------------------------------------------- keys that are dead

TEST_F(SessionFaultsTest, BlocksWithDeadKeysAreStaleAndTheirNeighboursArrive) {
  for (const bool one_nic : {false, true}) {
    fabric_ = SimulatedFabric();
    memories_.clear();
    if (one_nic) user_nics_.pop_back();
    start();
    Bytes other(kMiB);
    const Incarnation doomed = Incarnation::generate();
    ASSERT_TRUE(owner_host_->memory->serve(doomed, other).ok());
    auto session = lease();
    Bytes& memory = registered(2 * kMiB, 17);
    const auto known = keys(*session);
    const auto dead = session->served(doomed, soon());
    ASSERT_TRUE(dead.ok());
    owner_host_->memory->revoke(doomed);
    std::vector<MutableBytes> pieces;
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < 16; ++i) pieces.push_back(std::span(memory).subspan(i * 100'000, 100'000));
    for (std::size_t i = 0; i < 16; ++i) {
      blocks.push_back(i % 4 == 1 ? block(Operation::kWrite, (*dead)->at(0), 0, {&pieces[i], 1})
                                  : block(Operation::kWrite, known->at(0), i * 100'000, {&pieces[i], 1}));
    }
    session->move(blocks, soon());
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(blocks[i].status.code(), i % 4 == 1 ? ErrorCode::kStaleIncarnation : ErrorCode::kOk) << blocks[i].status.to_string();
      const bool right = std::ranges::equal(pieces[i], std::span(owner_->served).subspan(i * 100'000, 100'000));
      EXPECT_TRUE(right || i % 4 == 1) << i;
    }
    EXPECT_EQ(other, Bytes(kMiB)) << "not a byte under a dead key";
    EXPECT_TRUE(pool_->promising(owner_->endpoint())) << "the paths are well";
    EXPECT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
    EXPECT_TRUE(arrived(memory));
  }
}

// There a dead key cannot be told from a failed path (nic.h).
TEST_F(SessionFaultsTest, OnIwarpADeadKeyIsUnavailableIsAskedForAnewAndDoesNoMoreHarm) {
  user_nics_ = {{"user0", {.iwarp = true}}, {"user1", {.iwarp = true}}};
  owner_nics_ = {{"owner0", {.iwarp = true}}, {"owner1", {.iwarp = true}}};
  start();
  Bytes other(kMiB);
  const Incarnation doomed = Incarnation::generate();
  ASSERT_TRUE(owner_host_->memory->serve(doomed, other).ok());
  Bytes& memory = registered(2 * kMiB, 27);
  {
    auto session = lease();
    const auto known = keys(*session);
    const auto dead = session->served(doomed, soon());
    ASSERT_TRUE(dead.ok());
    owner_host_->memory->revoke(doomed);
    std::vector<MutableBytes> pieces;
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < 16; ++i) pieces.push_back(std::span(memory).subspan(i * 100'000, 100'000));
    for (std::size_t i = 0; i < 16; ++i) {
      blocks.push_back(i == 5 ? block(Operation::kWrite, (*dead)->at(0), 0, {&pieces[i], 1})
                              : block(Operation::kWrite, known->at(0), i * 100'000, {&pieces[i], 1}));
    }
    session->move(blocks, soon());
    for (std::size_t i = 0; i < 16; ++i) {
      const bool right = std::ranges::equal(pieces[i], std::span(owner_->served).subspan(i * 100'000, 100'000));
      if (blocks[i].status.ok()) {
        EXPECT_TRUE(right && i != 5) << i;
      } else {
        EXPECT_EQ(blocks[i].status.code(), ErrorCode::kUnavailable) << blocks[i].status.to_string();
      }
    }
    EXPECT_EQ(blocks[5].status.code(), ErrorCode::kUnavailable);
    EXPECT_TRUE(blocks[0].status.ok()) << "it was carried out before";
    EXPECT_EQ(other, Bytes(kMiB)) << "not a byte under a dead key";
    EXPECT_LE(counters().rails_lost, 4U) << "each path once, and once over those that were opened instead";
  }
  ASSERT_TRUE(moonpool::test::wait_until([&] { return pool_->promising(owner_->endpoint()); }, soon()));
  auto session = lease();
  EXPECT_EQ(session->served(doomed, soon()).code(), ErrorCode::kStaleIncarnation) << "the dead key was remembered";
  EXPECT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
  EXPECT_TRUE(arrived(memory));
}

// ---------------------------------------------------------------- deadlines and ends

TEST_F(SessionFaultsTest, AfterTheDeadlineNoByteOfTheDestinationChanges) {
  start();
  std::ranges::copy(random_bytes(8 * kMiB, 18), owner_->served.begin());
  Bytes& memory = registered(4 * kMiB, 19);
  {
    auto session = lease();
    Held held(*this, *session, Operation::kRead, memory, Deadline::after(milliseconds(300)));
    const Status status = held.join();
    EXPECT_EQ(status.code(), ErrorCode::kRpcTimeout);
    for (const auto& part : {owner_->endpoint().to_string(), std::string("read"), std::to_string(4 * kMiB), std::string(" ms")}) {
      EXPECT_THAT(status.message(), HasSubstr(part));
    }
    EXPECT_EQ(on("user0").queue_pairs + on("user1").queue_pairs, 0U) << "destroyed before the call returns";
    const Bytes at_once = memory;
    static_cast<void>(held.go_on());
    EXPECT_TRUE(moonpool::test::wait_until([&] { return on("owner0").queue_pairs + on("owner1").queue_pairs == 0; }, soon()));
    EXPECT_EQ(memory, at_once);
  }
  EXPECT_TRUE(pool_->promising(owner_->endpoint()));
  auto session = lease();
  EXPECT_TRUE(move_in_blocks(*session, Operation::kRead, memory, 16).ok());
  EXPECT_TRUE(arrived(memory));
}

TEST_F(SessionFaultsTest, AnExpiredDeadlineSendsNothing) {
  start();
  auto session = lease();
  Bytes& memory = registered(1000, 20);
  static_cast<void>(keys(*session));
  EXPECT_EQ(move(*session, Operation::kWrite, 0, memory, Deadline::after(milliseconds(-1))).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(counters().work_requests, 0U);
  EXPECT_TRUE(move(*session, Operation::kWrite, 0, memory).ok()) << "the session is as good as before";
}

TEST_F(SessionFaultsTest, AStalledPeerIsGivenUpWhateverTheWayOfWaiting) {
  for (const auto waiting : {Waiting::kPoll, Waiting::kEvent}) {
    options_.waiting = waiting;
    fabric_ = SimulatedFabric();
    memories_.clear();
    start();
    auto session = lease();
    Bytes& memory = registered(4 * kMiB, 21);
    Held held(*this, *session, Operation::kWrite, memory, Deadline::after(milliseconds(300)));
    EXPECT_EQ(held.join().code(), ErrorCode::kRpcTimeout);
  }
}

TEST_F(SessionFaultsTest, ANicThatReportsNothingIsLeftForAnotherLongBeforeTheDeadline) {
  for (const auto waiting : {Waiting::kPoll, Waiting::kEvent}) {
    options_.waiting = waiting;
    options_.ack_timeout = 1;
    fabric_ = SimulatedFabric();
    memories_.clear();
    start();
    auto session = lease();
    Bytes& memory = registered(4 * kMiB, 23);
    Held held(*this, *session, Operation::kWrite, memory);
    expect_moved_over_the_other(Operation::kWrite, memory, held.join());
  }
}

TEST_F(SessionFaultsTest, TheOwnersEndOfAConnectionEndsItsRails) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 22);
  std::atomic<int> ended{0};
  const auto served = owner_->session_of(*session);
  ASSERT_TRUE(served);
  served->at_end([&] { ++ended; });
  Held held(*this, *session, Operation::kWrite, memory);
  owner_->server().stop();
  EXPECT_TRUE(moonpool::test::wait_until([&] { return ended == 1; }, soon()));
  EXPECT_EQ(on("owner0").queue_pairs + on("owner1").queue_pairs, 0U) << "gone before at_end()";
  EXPECT_EQ(owner_->closed, 1) << "the other callback was told as well";
  const Bytes at_once = owner_->served;
  const Status status = held.go_on();
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable) << status.to_string();
  EXPECT_EQ(owner_->served, at_once);
  bool late = false;
  served->at_end([&] { late = true; });
  EXPECT_TRUE(late) << "at once when it has ended already";
  EXPECT_EQ(ended, 1);
}

TEST_F(SessionFaultsTest, AfterAFenceNoByteOfTheWriterArrives) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 23);
  const auto served = owner_->session_of(*session);
  ASSERT_TRUE(served);
  std::atomic<int> ended{0};
  served->at_end([&] { ++ended; });
  Held held(*this, *session, Operation::kWrite, memory);
  served->fence();
  EXPECT_EQ(on("owner0").queue_pairs + on("owner1").queue_pairs, 0U);
  const Bytes at_once = owner_->served;
  EXPECT_EQ(held.go_on().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(owner_->served, at_once);
  served->fence();
  EXPECT_TRUE(moonpool::test::wait_until([&] { return ended == 1; }, soon()));
  { const auto given_back = std::move(session); }
  auto another = lease();
  EXPECT_TRUE(move_in_blocks(*another, Operation::kWrite, memory, 16).ok());
}

TEST_F(SessionFaultsTest, ARailThatTheOwnerDestroyedIsDoneWithout) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 24);
  const auto served = owner_->session_of(*session);
  ASSERT_TRUE(served);
  served->destroy({});
  EXPECT_EQ(on("owner0").queue_pairs + on("owner1").queue_pairs, 2U);
  const std::array<std::uint32_t, 2> rails{1, 999};
  served->destroy(rails);
  EXPECT_EQ(on("owner0").queue_pairs + on("owner1").queue_pairs, 1U);
  served->destroy(rails);
  EXPECT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
  EXPECT_TRUE(arrived(memory));
}

TEST_F(SessionFaultsTest, CloseCancelsWhatIsInFlight) {
  options_.sessions_per_peer = 1;
  start();
  {
    auto session = lease();
    Bytes& memory = registered(4 * kMiB, 25);
    Held held(*this, *session, Operation::kWrite, memory);
    ErrorCode waiting_code = ErrorCode::kOk;
    std::thread waiting([&] { waiting_code = pool_->acquire(owner_->endpoint(), soon()).code(); });
    pool_->close();
    waiting.join();
    EXPECT_EQ(waiting_code, ErrorCode::kCancelled);
    EXPECT_EQ(held.join().code(), ErrorCode::kCancelled);
    EXPECT_EQ(on("user0").queue_pairs + on("user1").queue_pairs, 0U);
  }
  EXPECT_EQ(pool_->acquire(owner_->endpoint(), soon()).code(), ErrorCode::kCancelled);
  EXPECT_FALSE(pool_->promising(owner_->endpoint()));
}

TEST_F(SessionFaultsTest, ServiceStopFencesAll) {
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 26);
  Held held(*this, *session, Operation::kWrite, memory);
  owner_->service().stop();
  EXPECT_EQ(on("owner0").queue_pairs + on("owner1").queue_pairs, 0U);
  const Bytes at_once = owner_->served;
  EXPECT_EQ(held.go_on().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(owner_->served, at_once);
}

TEST_F(SessionFaultsTest, APeerWithoutRdmaIsAskedOnce) {
  start();
  auto plain = std::make_unique<net::Server>(net::Identity{NodeId::generate(), "", "plain"}, net::ServerOptions{});
  ASSERT_TRUE(plain->start().ok());
  const net::Endpoint endpoint{"127.0.0.1", plain->port()};
  EXPECT_TRUE(pool_->promising(endpoint));
  EXPECT_EQ(pool_->acquire(endpoint, soon()).code(), ErrorCode::kNotSupported);
  EXPECT_FALSE(pool_->promising(endpoint));
  EXPECT_NE(pool_->why_not(endpoint), "");
  plain.reset();
  EXPECT_EQ(pool_->acquire(endpoint, soon()).code(), ErrorCode::kNotSupported) << "it was not connected to again";
}

TEST_F(SessionFaultsTest, ARestartedPeerGetsANewSession) {
  start();
  Bytes& memory = registered(kMiB / 2, 27);
  { auto session = lease(); }
  owner_->server().stop();
  owner_ = nullptr;
  owner_ = std::make_unique<OwnerNode>(owner_host_->memory, options_, 8 * kMiB);
  auto session = lease();
  EXPECT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
}

TEST_F(SessionFaultsTest, WhatSucceedsIsRightWhileLinksComeAndGo) {
  options_.come_back_after = milliseconds(5);
  options_.staging_bytes = 4 * kMiB;
  constexpr std::uint64_t kShare = 2 * kMiB;
  start(3 * kShare);
  std::atomic<bool> stop{false};
  std::thread saboteur([&] {
    std::mt19937 random(1);
    const std::array<std::string, 4> nics{"user0", "user1", "owner0", "owner1"};
    while (!stop) {
      const auto& nic = nics[random() % 4];
      fabric_.set_port(nic, false);
      fabric_.fail_after_bytes(nics[random() % 4], random() % kMiB);
      std::this_thread::yield();
      fabric_.set_port(nic, true);
      for (const auto& one : nics) fabric_.revive(one);
    }
  });
  std::atomic<int> successes{0};
  std::vector<std::thread> users;
  for (std::uint64_t user = 0; user < 3; ++user) {
    users.emplace_back([&, user] {
      const Deadline end = Deadline::after(milliseconds(700));
      const Deadline patience = soon();  // a slow machine gets nothing through at first
      for (std::uint64_t round = 0; !end.expired() || (successes == 0 && !patience.expired()); ++round) {
        auto session = pool_->acquire(owner_->endpoint(), soon());
        if (!session.ok()) continue;
        Bytes sent = random_bytes(kMiB + round, user * 1000 + round);
        Bytes got(sent.size());
        if (round % 2 == 0) static_cast<void>(user_->memory->add_local(sent));
        const bool written = move(**session, Operation::kWrite, user * kShare, sent).ok();
        const bool read = written && move(**session, Operation::kRead, user * kShare, got).ok();
        if (read) {
          EXPECT_EQ(got, sent);
          ++successes;
        }
        if (round % 2 == 0) {
          EXPECT_TRUE(user_->memory->remove_local(sent.data(), soon()).ok());
        }
      }
    });
  }
  for (auto& user : users) user.join();
  stop = true;
  saboteur.join();
  EXPECT_GT(successes, 0);
}

}  // namespace
}  // namespace moonpool::transfer::rdma::test
