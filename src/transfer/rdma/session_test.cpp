// Sessions over simulated NICs that work: what a batch costs, over which NICs its bytes go, staging, the pool's bounds.
#include "transfer/rdma/numa.h"
#include "transfer/rdma/session_for_test.h"

namespace moonpool::transfer::rdma::test {
namespace {

class SessionTest : public SessionFixture {};

TEST_F(SessionTest, BytesGoThereAndBackOverBothNics) {
  start();
  auto session = lease();
  const Bytes& sent = registered(3 * kMiB + 77, 1);
  ASSERT_TRUE(move(*session, Operation::kWrite, 1000, *memories_[0]).ok());
  EXPECT_TRUE(arrived(sent, 1000));
  Bytes& got = registered(sent.size(), 2);
  ASSERT_TRUE(move(*session, Operation::kRead, 1000, got).ok());
  EXPECT_EQ(got, sent);
  EXPECT_EQ(counters().bytes, 2 * sent.size());
  EXPECT_EQ(counters().staged_bytes, 0U);
  EXPECT_EQ(counters().redone, 0U);
  EXPECT_EQ(on("user0").bytes + on("user1").bytes, 2 * sent.size());
  EXPECT_GT(on("user0").bytes, sent.size() * 9 / 10) << "half of each direction";
  EXPECT_GT(on("user1").bytes, sent.size() * 9 / 10);
}

// A vLLM batch: 24 blocks, each of 30 pieces that lie far from each other.
struct VllmBatch {
  static constexpr std::size_t kBlocks = 24;
  static constexpr std::size_t kLayers = 30;
  static constexpr std::size_t kPiece = 8 * kKiB;
  explicit VllmBatch(MutableBytes cache) {
    for (std::size_t block = 0; block < kBlocks; ++block) {
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        pieces.push_back(cache.subspan((layer * kBlocks + (kBlocks - 1 - block)) * kPiece, kPiece));
      }
    }
  }
  [[nodiscard]] std::span<const MutableBytes> of(std::size_t block) const { return std::span(pieces).subspan(block * kLayers, kLayers); }
  std::vector<MutableBytes> pieces;
};

TEST_F(SessionTest, AVllmBatchCostsOneWorkRequestABlockAndOneDoorbellAndCompletionANic) {
  constexpr std::size_t kBlock = VllmBatch::kLayers * VllmBatch::kPiece;
  start(VllmBatch::kBlocks * kBlock);
  auto session = lease();
  Bytes& cache = registered(VllmBatch::kBlocks * kBlock, 3);
  const VllmBatch batch(cache);
  const auto known = keys(*session);
  for (const auto operation : {Operation::kWrite, Operation::kRead}) {
    const Bytes before = cache;
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < VllmBatch::kBlocks; ++i) blocks.push_back(block(operation, known->at(0), i * kBlock, batch.of(i)));
    session->move(blocks, soon());
    for (const auto& one : blocks) ASSERT_TRUE(one.status.ok()) << one.status.to_string();
    if (operation == Operation::kWrite) {
      for (std::size_t i = 0; i < VllmBatch::kBlocks * VllmBatch::kLayers; ++i) {
        ASSERT_TRUE(std::ranges::equal(batch.pieces[i], std::span(owner_->served).subspan(i * VllmBatch::kPiece, VllmBatch::kPiece))) << i;
      }
      std::ranges::fill(cache, std::byte{0});
    } else {
      EXPECT_NE(cache, before);
      for (std::size_t i = 0; i < VllmBatch::kBlocks * VllmBatch::kLayers; ++i) {
        ASSERT_TRUE(std::ranges::equal(batch.pieces[i], std::span(owner_->served).subspan(i * VllmBatch::kPiece, VllmBatch::kPiece))) << i;
      }
    }
  }
  EXPECT_EQ(counters().work_requests, 2 * VllmBatch::kBlocks);
  EXPECT_EQ(counters().doorbells, 2 * 2U);
  EXPECT_EQ(counters().completions, 2 * 2U);
  EXPECT_EQ(counters().staged_bytes, 0U);
  EXPECT_EQ(on("user0").work_requests, VllmBatch::kBlocks);
  EXPECT_EQ(on("user1").work_requests, VllmBatch::kBlocks);
  EXPECT_EQ(on("user0").registrations, 1U) << "the cache, once";
  EXPECT_EQ(counters().rails_opened, 2U);
}

TEST_F(SessionTest, MorePiecesThanANicTakesCostMoreWorkRequests) {
  for (auto& [name, settings] : user_nics_) settings.max_pieces = 16;
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 4);
  std::vector<MutableBytes> pieces;
  for (std::size_t i = 0; i < 33; ++i) pieces.push_back(std::span(memory).subspan((32 - i) * 1000, 999));
  const auto known = keys(*session);
  Block one = block(Operation::kWrite, known->at(0), 5, pieces);
  session->move({&one, 1}, soon());
  ASSERT_TRUE(one.status.ok()) << one.status.to_string();
  EXPECT_EQ(counters().work_requests, 3U) << "16 + 16 + 1 pieces";
  EXPECT_EQ(counters().doorbells, 1U);
  for (std::size_t i = 0; i < 33; ++i) EXPECT_TRUE(std::ranges::equal(pieces[i], std::span(owner_->served).subspan(5 + i * 999, 999)));
}

TEST_F(SessionTest, PiecesThatFollowEachOtherAreOne) {
  start();
  auto session = lease();
  Bytes& memory = registered(kMiB, 4);
  std::vector<MutableBytes> pieces;
  for (std::size_t i = 0; i < 100; ++i) pieces.push_back(std::span(memory).subspan(i * 1000, 1000));
  const auto known = keys(*session);
  Block one = block(Operation::kRead, known->at(0), 5, pieces);
  session->move({&one, 1}, soon());
  ASSERT_TRUE(one.status.ok()) << one.status.to_string();
  EXPECT_EQ(counters().work_requests, 1U);
}

TEST_F(SessionTest, AMessageLongerThanTheNicsLongestIsSplit) {
  for (auto& [name, settings] : user_nics_) settings.max_message = 100'000;
  start();
  auto session = lease();
  Bytes& memory = registered(900'001, 5);
  ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(counters().work_requests, 10U);
  EXPECT_EQ(counters().doorbells, 1U);
}

TEST_F(SessionTest, ALongerChainThanTheQueueGoesInHalves) {
  options_.work_requests = 8;
  options_.stripe_bytes = 1U << 30;
  start();
  auto session = lease();
  Bytes& memory = registered(100 * 64, 6);
  std::ranges::reverse(memory);
  ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 100).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(counters().work_requests, 100U);
  EXPECT_LE(counters().doorbells, 1 + 92U / 4 + 1);
  EXPECT_GE(counters().completions, 100U / 4);
  EXPECT_LE(counters().completions, 100U / 4 + 2) << "a signal for each half of the queue";
}

TEST_F(SessionTest, ASmallBatchGoesOverTheNicNearestToItsMemory) {
  const Bytes probe = random_bytes(kMiB, 7);
  const std::int32_t node = numa_node_of(probe);
  if (node < 0) GTEST_SKIP() << "this kernel does not tell on which node memory lies";
  user_nics_[0].second.numa_node = node + 1;
  user_nics_[1].second.numa_node = node;
  start();
  auto first = lease();
  auto second = lease();
  Bytes& memory = registered(100'000, 7);
  for (auto* session : {&*first, &*second}) ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_EQ(on("user0").work_requests, 0U);
  EXPECT_EQ(on("user1").work_requests, 2U);
}

TEST_F(SessionTest, EquallyNearNicsTakeTurnsBySession) {
  start();
  auto first = lease();
  auto second = lease();
  Bytes& memory = registered(100'000, 8);
  for (auto* session : {&*first, &*second}) ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_EQ(on("user0").work_requests, 1U);
  EXPECT_EQ(on("user1").work_requests, 1U);
}

TEST_F(SessionTest, EachNicMeetsTheOneOfItsNetwork) {
  user_nics_ = {{"user0", {.network = 0}}, {"user1", {.network = 1}}};
  owner_nics_ = {{"owner0", {.network = 1}}, {"owner1", {.network = 0}}};
  start();
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 9);
  ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(counters().rails_lost, 0U);
  EXPECT_EQ(on("user0").bytes, 2 * kMiB);
  EXPECT_EQ(on("owner0").queue_pairs, 1U);
  EXPECT_EQ(on("owner1").queue_pairs, 1U);
}

TEST_F(SessionTest, NicsThatAreConnectedByTicketsWork) {
  user_nics_ = {{"user0", {.iwarp = true}}, {"user1", {.iwarp = true}}};
  owner_nics_ = {{"owner0", {.iwarp = true}}, {"owner1", {.iwarp = true}}};
  start();
  auto session = lease();
  Bytes& memory = registered(3 * kMiB, 10);
  ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
  std::vector<MutableBytes> pieces{std::span(memory).subspan(5000, 70), std::span(memory).subspan(0, 4000)};
  const auto known = keys(*session);
  Block one = block(Operation::kRead, known->at(0), 0, pieces);
  session->move({&one, 1}, soon());
  ASSERT_TRUE(one.status.ok()) << one.status.to_string();
  EXPECT_TRUE(std::ranges::equal(pieces[1], std::span(owner_->served).subspan(70, 4000)));
}

TEST_F(SessionTest, MoreNicsThanThePeerHasAreUsedAll) {
  owner_nics_.pop_back();
  start();
  auto session = lease();
  Bytes& memory = registered(2 * kMiB, 11);
  ASSERT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(on("user0").bytes, kMiB);
  EXPECT_EQ(on("user1").bytes, kMiB);
}

TEST_F(SessionTest, EveryWayOfWaitingWorks) {
  for (const auto waiting : {Waiting::kAdaptive, Waiting::kPoll, Waiting::kEvent}) {
    options_.waiting = waiting;
    fabric_ = SimulatedFabric();
    start();
    auto session = lease();
    memories_.clear();
    Bytes& memory = registered(2 * kMiB, 12);
    ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 16).ok());
    EXPECT_TRUE(arrived(memory));
  }
}

// ---------------------------------------------------------------- memory that is not registered

TEST_F(SessionTest, UnregisteredMemoryIsStagedInSteps) {
  options_.staging_bytes = 2 * kMiB;
  start();
  auto session = lease();
  const Bytes sent = random_bytes(5 * kMiB + 123, 20);
  Bytes source = sent;
  ASSERT_TRUE(move(*session, Operation::kWrite, 7, source).ok());
  EXPECT_TRUE(arrived(sent, 7));
  Bytes got(sent.size());
  ASSERT_TRUE(move(*session, Operation::kRead, 7, got).ok());
  EXPECT_EQ(got, sent);
  EXPECT_EQ(counters().staged_bytes, 2 * sent.size());
  EXPECT_EQ(on("user0").registrations, 1U) << "the staging memory, once";
}

TEST_F(SessionTest, OnlyThePiecesThatAreNotRegisteredAreStaged) {
  start();
  auto session = lease();
  Bytes& known_memory = registered(100'000, 21);
  Bytes unknown = random_bytes(50'000, 22);
  const std::array<MutableBytes, 3> pieces{std::span(known_memory).first(40'000), MutableBytes(unknown),
                                           std::span(known_memory).subspan(60'000)};
  const auto known = keys(*session);
  Block one = block(Operation::kWrite, known->at(0), 0, pieces);
  session->move({&one, 1}, soon());
  ASSERT_TRUE(one.status.ok()) << one.status.to_string();
  EXPECT_EQ(counters().staged_bytes, unknown.size());
  EXPECT_EQ(counters().work_requests, 3U);
  std::size_t at = 0;
  for (const auto& piece : pieces) {
    EXPECT_TRUE(std::ranges::equal(piece, std::span(owner_->served).subspan(at, piece.size())));
    at += piece.size();
  }
}

TEST_F(SessionTest, SmallUnregisteredBlocksShareASliceAndADoorbell) {
  start();
  auto session = lease();
  Bytes memory = random_bytes(std::size_t{100} * 1000, 23);
  ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 100).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(counters().work_requests, 100U);
  EXPECT_EQ(counters().doorbells, 1U);
}

TEST_F(SessionTest, SessionsShareTheStagingMemory) {
  options_.staging_bytes = kMiB;  // one slice
  start(16 * kMiB);
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      auto session = lease();
      const Bytes sent = random_bytes(2 * kMiB + 5, 30 + i);
      Bytes source = sent;
      Bytes got(sent.size());
      const bool fine =
          move(*session, Operation::kWrite, i * 4 * kMiB, source).ok() && move(*session, Operation::kRead, i * 4 * kMiB, got).ok();
      if (fine && got == sent) ++right;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 4);
}

TEST_F(SessionTest, WithoutRegisteredMemoryTheReasonIsTold) {
  start();
  fabric_.refuse_registrations("user0", true);
  fabric_.refuse_registrations("user1", true);
  auto session = lease();
  Bytes memory(1000);
  const Status status = move(*session, Operation::kWrite, 0, memory);
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("memlock"));
  fabric_.refuse_registrations("user0", false);
  fabric_.refuse_registrations("user1", false);
  EXPECT_TRUE(move(*session, Operation::kWrite, 0, memory).ok());
}

TEST_F(SessionTest, MemoryThatOneNicCannotRegisterGoesOverTheOther) {
  start();
  fabric_.refuse_registrations("user0", true);
  auto session = lease();
  Bytes& memory = registered(4 * kMiB, 24);
  ASSERT_TRUE(move_in_blocks(*session, Operation::kWrite, memory, 8).ok());
  EXPECT_TRUE(arrived(memory));
  EXPECT_EQ(on("user0").bytes, 0U);
}

// ---------------------------------------------------------------- blocks that make no sense

TEST_F(SessionTest, ABlockOutsideItsRangeIsRefusedAndItsNeighboursAreNot) {
  start();
  auto session = lease();
  Bytes& memory = registered(1000, 25);
  const MutableBytes piece(memory);
  const auto known = keys(*session);
  std::array<Block, 4> blocks{block(Operation::kWrite, known->at(0), 0, {&piece, 1}),
                              block(Operation::kWrite, known->at(0), 8 * kMiB - 999, {&piece, 1}), Block{},
                              block(Operation::kWrite, known->at(0), 77, {})};
  blocks[2].pieces = {&piece, 1};
  session->move(blocks, soon());
  EXPECT_TRUE(blocks[0].status.ok());
  EXPECT_EQ(blocks[1].status.code(), ErrorCode::kInternal);
  EXPECT_EQ(blocks[2].status.code(), ErrorCode::kInternal);
  EXPECT_TRUE(blocks[3].status.ok()) << "nothing to do";
  EXPECT_EQ(counters().work_requests, 1U);
}

// ---------------------------------------------------------------- the pool

TEST_F(SessionTest, SessionsAreReusedAndBounded) {
  options_.sessions_per_peer = 2;
  start();
  { auto session = lease(); }
  {
    auto one = lease();
    auto two = lease();
    EXPECT_EQ(counters().rails_opened, 4U);
    const auto none = pool_->acquire(owner_->endpoint(), Deadline::after(milliseconds(30)));
    EXPECT_EQ(none.code(), ErrorCode::kRpcTimeout);
    EXPECT_THAT(none.status().message(), ::testing::HasSubstr(owner_->endpoint().to_string()));
    std::thread waiting([&] { auto three = lease(); });
    { const auto given_back = std::move(one); }
    waiting.join();
  }
  EXPECT_EQ(counters().rails_opened, 4U) << "the third used one of the two";
  EXPECT_EQ(on("owner0").queue_pairs, 2U);
}

TEST_F(SessionTest, KeysAreAskedForOnce) {
  start();
  auto session = lease();
  const auto known = keys(*session);
  ASSERT_EQ(known->size(), 1U);
  EXPECT_EQ(known->at(0).length, owner_->served.size());
  EXPECT_EQ(known->at(0).remote_keys.size(), 2U);
  owner_host_->memory->revoke(owner_->incarnation);
  EXPECT_EQ(keys(*session), known);
  session->forget(owner_->incarnation);
  EXPECT_EQ(session->served(owner_->incarnation, soon()).code(), ErrorCode::kStaleIncarnation);
}

TEST_F(SessionTest, ASessionThatWasEndedIsNotLentAgain) {
  start();
  {
    auto session = lease();
    Bytes& memory = registered(1000, 26);
    session->end();
    EXPECT_EQ(on("user0").queue_pairs, 0U);
    const auto known =
        std::make_shared<ServedRanges>(ServedRanges{{reinterpret_cast<std::uint64_t>(owner_->served.data()), 8 * kMiB, {1, 1}}});
    const MutableBytes piece(memory);
    Block one = block(Operation::kWrite, known->at(0), 0, {&piece, 1});
    session->move({&one, 1}, soon());
    EXPECT_EQ(one.status.code(), ErrorCode::kUnavailable);
  }
  EXPECT_TRUE(moonpool::test::wait_until([&] { return on("owner0").queue_pairs == 0; }, soon())) << "the owner destroys its ends";
  auto session = lease();
  EXPECT_TRUE(move(*session, Operation::kWrite, 0, *memories_[0]).ok());
}

}  // namespace
}  // namespace moonpool::transfer::rdma::test
