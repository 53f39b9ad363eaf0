// What every Nic has to do (nic.h), second part: refused keys, fencing, queue pairs and links that go. The first is
// nic_conformance_test.cpp.
#include <gtest/gtest.h>
#include <poll.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "transfer/rdma/nic_conformance_for_test.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::seconds;
using Outcome = Completion::Outcome;

TEST_P(NicConformanceTest, AKeyIsDeadOnceItsRegistrationIsGoneAndWhatFollowsIsFlushed) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto from = piece(0, 5'000);
  expect_done(*pair.user, write(1, 0, {&from, 1}));
  WorkRequest late = write(2, 10'000, {&from, 1});
  late.signalled = false;  // reported nevertheless, because it fails
  const WorkRequest later = write(3, 20'000, {&from, 1});
  remote_registration_.reset();
  const std::vector<std::byte> before = remote_;
  const std::array<WorkRequest, 2> both{late, later};
  ASSERT_TRUE(pair.user->post(both).ok());
  const auto all = completions(*pair.user, 2);
  EXPECT_EQ(all[0].id, 2U);
  expect_refused(all[0]);
  EXPECT_STRNE(all[0].reason, "");
  EXPECT_EQ(all[1].id, 3U);
  EXPECT_EQ(all[1].outcome, Outcome::kFlushed) << all[1].reason;
  EXPECT_EQ(remote_, before);
  expect_broken(*pair.user, later);
}

TEST_P(NicConformanceTest, AReadWithADeadKeyIsRefused) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto into = piece(0, 5'000);
  const WorkRequest request = read(2, 0, {&into, 1});
  remote_registration_.reset();
  const std::vector<std::byte> before = local_;
  const Completion completion = carry_out(*pair.user, request);
  expect_refused(completion);
  EXPECT_EQ(local_, before);
}

TEST_P(NicConformanceTest, BeyondTheRegistrationIsRefused) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto from = piece(0, 5'000);
  const std::vector<std::byte> before = remote_;
  const Completion completion = carry_out(*pair.user, write(2, kSize - 4'999, {&from, 1}));
  expect_refused(completion);
  EXPECT_TRUE(std::equal(remote_.begin(), remote_.end() - 5'000, before.begin()));
}

TEST_P(NicConformanceTest, MemoryThatIsNotServedIsRefusedToPeers) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  if (rig_->owner().info().read_needs_remote_write) GTEST_SKIP() << "on iWARP the destination of reads is open to peers";
  std::vector<std::byte> memory(kSize);
  const auto closed = registered(rig_->owner(), memory, Access::kLocal);
  ASSERT_TRUE(closed);
  const auto from = piece(0, 5'000);
  WorkRequest request = write(2, 0, {&from, 1});
  request.remote_address = reinterpret_cast<std::uint64_t>(memory.data());
  request.remote_key = closed->remote_key() != 0 ? closed->remote_key() : closed->local_key();
  const Completion completion = carry_out(*pair.user, request);
  expect_refused(completion);
  EXPECT_EQ(memory, std::vector<std::byte>(kSize));
}

TEST_P(NicConformanceTest, AWrongLocalKeyIsThisSidesMistake) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  auto from = piece(0, 5'000);
  from.address = reinterpret_cast<std::uint64_t>(this);
  const WorkRequest wrong = write(2, 0, {&from, 1});
  const std::vector<std::byte> before = remote_;
  const Status posted = pair.user->post({&wrong, 1});  // some tell at once
  if (posted.ok()) {
    const Completion completion = completions(*pair.user, 1)[0];
    EXPECT_EQ(completion.id, 2U);
    expect_refused(completion, Outcome::kLocal);
    expect_broken(*pair.user, wrong);
  } else {
    EXPECT_EQ(posted.code(), ErrorCode::kInternal);
  }
  EXPECT_EQ(remote_, before);
}

TEST_P(NicConformanceTest, OnceTheOwnersQueuePairIsGoneNoWriteArrives) {
  Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  std::vector<WorkRequest::Piece> pieces;
  for (std::size_t i = 0; i < 16; ++i) pieces.push_back(piece(i * 32'768, 32'768));
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < 16; ++i) requests.push_back(write(i, 500'000, {&pieces[i], 1}));  // over and over, different bytes
  Hammer hammer(*pair.user, requests);
  wait_for_rounds(hammer, 3);
  pair.owner.reset();
  const std::vector<std::byte> at_once = remote_;
  const Outcome outcome = hammer.join();
  EXPECT_TRUE(outcome == Outcome::kPath || outcome == Outcome::kRefused || hammer.post_was_refused()) << static_cast<int>(outcome);
  EXPECT_EQ(remote_, at_once) << "a byte arrived after the queue pair was destroyed";
}

TEST_P(NicConformanceTest, OnceTheRegistrationIsGoneNoWriteArrives) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  std::vector<WorkRequest::Piece> pieces;
  for (std::size_t i = 0; i < 16; ++i) pieces.push_back(piece(i * 32'768, 32'768));
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < 16; ++i) requests.push_back(write(i, 500'000, {&pieces[i], 1}));
  Hammer hammer(*pair.user, requests);
  wait_for_rounds(hammer, 3);
  remote_registration_.reset();
  const std::vector<std::byte> at_once = remote_;
  const Outcome outcome = hammer.join();
  const bool ended = outcome == Outcome::kPath || hammer.post_was_refused();
  EXPECT_TRUE(outcome == Outcome::kRefused || (ended && !rig_->refusal_is_told())) << static_cast<int>(outcome);
  EXPECT_EQ(remote_, at_once) << "a byte arrived after its memory's registration was gone";
}

TEST_P(NicConformanceTest, OnceTheUsersQueuePairIsGoneNoReadArrives) {
  for (int round = 0; round < 5; ++round) {
    Pair pair = this->pair();
    ASSERT_TRUE(pair.user);
    std::vector<WorkRequest::Piece> pieces;
    for (std::size_t i = 0; i < 16; ++i) pieces.push_back(piece(i * 65'536, 65'536));
    std::vector<WorkRequest> requests;
    for (std::size_t i = 0; i < 16; ++i) requests.push_back(read(i, i * 65'536, {&pieces[i], 1}));
    ASSERT_TRUE(pair.user->post(requests).ok());
    completions(*pair.user, 1 + static_cast<std::size_t>(round));  // in the middle
    pair.user.reset();
    fill(local_, 99 + static_cast<std::uint64_t>(round));
    const std::vector<std::byte> own = local_;
    pair.owner.reset();  // by now all its answers have gone out
    EXPECT_EQ(local_, own) << "a byte arrived after the queue pair was destroyed";
  }
}

TEST_P(NicConformanceTest, AUserLearnsThatTheOwnersQueuePairIsGone) {
  Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto from = piece(0, 100);
  expect_done(*pair.user, write(1, 0, {&from, 1}));
  pair.owner.reset();
  const WorkRequest request = write(2, 0, {&from, 1});
  if (!pair.user->post({&request, 1}).ok()) return;  // the connection's end has told it already
  const Outcome outcome = completions(*pair.user, 1)[0].outcome;
  EXPECT_TRUE(outcome == Outcome::kPath || outcome == Outcome::kRefused || outcome == Outcome::kFlushed) << static_cast<int>(outcome);
}

TEST_P(NicConformanceTest, TheEndOfTheOwnersQueuePairWakesASleeper) {
  Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto from = piece(0, 200'000);
  const WorkRequest request = write(1, 0, {&from, 1});
  ASSERT_TRUE(pair.user->post({&request, 1}).ok());
  pair.owner.reset();
  const Deadline deadline = Deadline::after(seconds(20));
  for (Outcome outcome = Outcome::kDone; outcome == Outcome::kDone;) {  // the first may have arrived
    Completion completion;
    ASSERT_TRUE(pair.user->arm().ok());
    while (pair.user->poll({&completion, 1}) == 0) {
      pollfd waiter{pair.user->event_fd(), POLLIN, 0};
      ASSERT_EQ(::poll(&waiter, 1, deadline.left_ms()), 1) << "slept on after the peer's end";
      pair.user->clear_event();
      ASSERT_TRUE(pair.user->arm().ok());
    }
    outcome = completion.outcome;
    EXPECT_TRUE(outcome == Outcome::kDone || outcome == Outcome::kPath || outcome == Outcome::kRefused) << static_cast<int>(outcome);
    if (outcome == Outcome::kDone && !pair.user->post({&request, 1}).ok()) return;
  }
  expect_broken(*pair.user, request);
}

TEST_P(NicConformanceTest, BreakOffFromAnotherThreadFlushesWhatIsOutstanding) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto from = piece(0, 30'000);
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < 16; ++i) requests.push_back(write(i, i * 30'000, {&from, 1}));
  Hammer hammer(*pair.user, requests);
  wait_for_rounds(hammer, 2);
  std::thread([&] { pair.user->break_off(); }).join();
  EXPECT_EQ(hammer.join(), Outcome::kFlushed);
  expect_broken(*pair.user, requests[0]);
  Completion none;
  EXPECT_EQ(pair.user->poll({&none, 1}), 0U);
  pair.user->break_off();  // repeating it is harmless
}

TEST_P(NicConformanceTest, BreakOffBeforeTheConnectionLeavesNothingToPost) {
  auto made = rig_->user().make_queue_pair(options());
  ASSERT_TRUE(made.ok()) << made.status().to_string();
  (*made)->break_off();
  const auto from = piece(0, 10);
  expect_broken(**made, write(1, 0, {&from, 1}));
}

TEST_P(NicConformanceTest, BreakOffWakesASleeper) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  ASSERT_TRUE(pair.user->arm().ok());
  std::vector<WorkRequest::Piece> pieces;
  std::vector<WorkRequest> requests;
  const auto all = piece(0, kSize);
  for (std::size_t i = 0; i < kWorkRequests; ++i) requests.push_back(write(i, 0, {&all, 1}));
  for (auto& request : requests) request.signalled = false;
  rig_->stall();
  ASSERT_TRUE(pair.user->post(requests).ok());
  std::thread breaker([&] { pair.user->break_off(); });
  pollfd waiter{pair.user->event_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&waiter, 1, 10'000), 1) << "what was flushed woke nobody";
  breaker.join();
  pair.user->clear_event();
  Completion completion;
  EXPECT_EQ(pair.user->poll({&completion, 1}), 1U);
  EXPECT_EQ(completion.outcome, Outcome::kFlushed);
}

TEST_P(NicConformanceTest, AConnectionToNobodyFailsInTime) {
  const auto gids = choose_gids(rig_->user().gids(), rig_->owner().gids());
  ASSERT_TRUE(gids.has_value());
  QueuePairAddress address;
  {
    QueuePairOptions passive = options();
    passive.role = Role::kPassive;
    passive.gid = gids->theirs;
    auto owner = rig_->owner().make_queue_pair(passive);
    ASSERT_TRUE(owner.ok()) << owner.status().to_string();
    address = (*owner)->address();
    address.gid = gids->theirs;
  }
  auto user = rig_->user().make_queue_pair(options());
  ASSERT_TRUE(user.ok()) << user.status().to_string();
  const Status connected = (*user)->connect(address, gids->ours);
  if (!connected.ok()) {  // told by rdma_cm
    EXPECT_EQ(connected.code(), ErrorCode::kUnavailable) << connected.to_string();
    return;
  }
  const auto from = piece(0, 100);
  EXPECT_EQ(carry_out(**user, write(1, 0, {&from, 1})).outcome, Outcome::kPath);
}

TEST_P(NicConformanceTest, ALinkThatGoesDownIsSeenAndComesBack) {
  if (!rig_->can_cut()) GTEST_SKIP() << "links are not to be cut here";
  struct Told {
    std::mutex mutex;
    std::condition_variable changed;
    int changes = 0;
    bool wait_for_change(int count) {
      std::unique_lock lock(mutex);
      return changed.wait_for(lock, seconds(10), [&] { return changes >= count; });
    }
  };
  const auto told = std::make_shared<Told>();
  rig_->owner().watch([told] {
    const std::lock_guard lock(told->mutex);
    ++told->changes;
    told->changed.notify_all();
  });
  const auto from = piece(0, 5'000);
  Pair before = this->pair();
  ASSERT_TRUE(before.user);
  expect_done(*before.user, write(1, 0, {&from, 1}));
  rig_->cut();
  EXPECT_TRUE(told->wait_for_change(1));
  EXPECT_FALSE(rig_->owner().up());
  if (rig_->traffic_needs_the_link()) {
    EXPECT_EQ(carry_out(*before.user, write(2, 0, {&from, 1})).outcome, Outcome::kPath);
  }
  // With rdma_cm the end of a connection is a message, and soft-RoCE (Linux 6.1) never connects again once such a message has met a link
  // that is down.
  if (!rig_->connection_manager()) before = {};
  rig_->mend();
  EXPECT_TRUE(told->wait_for_change(2));
  EXPECT_TRUE(rig_->owner().up());
  const Pair after = pair_within(seconds(20));
  ASSERT_TRUE(after.user);
  expect_done(*after.user, write(3, 0, {&from, 1}));
}

}  // namespace
}  // namespace moonpool::transfer::rdma
