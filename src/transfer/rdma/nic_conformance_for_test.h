// What the conformance tests of NICs share: two connected queue pairs with memory on both sides, and a writer that does not stop.
// Used by nic_conformance_test.cpp and nic_fencing_test.cpp, which together say what every Nic has to do (nic.h), and by nothing else.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/nic_rigs_for_test.h"

namespace moonpool::transfer::rdma {

inline constexpr std::size_t kSize = std::size_t{1} << 20;
inline constexpr std::uint32_t kWorkRequests = 64;

// Two queue pairs that are connected, the user's and the owner's.
struct Pair {
  std::unique_ptr<QueuePair> user;
  std::unique_ptr<QueuePair> owner;
};

class NicConformanceTest : public ::testing::TestWithParam<RigCase> {
 protected:
  void SetUp() override {
    auto made = GetParam().make();
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    rig_ = std::move(*made);
    if (!rig_) GTEST_SKIP() << GetParam().missing;
    fill(local_, 1);
    fill(remote_, 2);
    local_registration_ = registered(rig_->user(), local_, Access::kLocal);
    remote_registration_ = registered(rig_->owner(), remote_, Access::kServed);
  }

  static void fill(std::vector<std::byte>& bytes, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  }

  static std::unique_ptr<Registration> registered(Nic& nic, std::vector<std::byte>& memory, Access access) {
    auto made = nic.register_memory(memory, access);
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    return made.ok() ? std::move(*made) : nullptr;
  }

  QueuePairOptions options() {
    QueuePairOptions options;
    options.work_requests = kWorkRequests;
    options.connection_manager = rig_->connection_manager();
    options.ack_timeout = 12;  // 17 ms
    options.connect_timeout = std::chrono::seconds(20);
    return options;
  }

  Pair pair() {
    auto made = try_pair();
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    return made.ok() ? std::move(*made) : Pair();
  }

  Result<Pair> try_pair() {
    const auto gids = choose_gids(rig_->user().gids(), rig_->owner().gids());
    if (!gids) return Status(ErrorCode::kUnavailable, "no GIDs of the two NICs can meet");
    QueuePairOptions passive = options();
    passive.role = Role::kPassive;
    passive.gid = gids->theirs;
    auto user = rig_->user().make_queue_pair(options());
    if (!user.ok()) return user.status();
    auto owner = rig_->owner().make_queue_pair(passive);
    if (!owner.ok()) return owner.status();
    QueuePairAddress user_address = (*user)->address();
    user_address.gid = gids->ours;
    MOONPOOL_RETURN_IF_ERROR((*owner)->connect(user_address, gids->theirs));
    QueuePairAddress owner_address = (*owner)->address();
    owner_address.gid = gids->theirs;
    MOONPOOL_RETURN_IF_ERROR((*user)->connect(owner_address, gids->ours));
    return Pair{std::move(*user), std::move(*owner)};
  }

  // For a path that has just come back: neighbours have to be found again, and what was under way is sent again only after a while.
  Pair pair_within(std::chrono::seconds time) {
    const Deadline deadline = Deadline::after(time);
    for (;;) {
      auto made = try_pair();
      if (made.ok()) return std::move(*made);
      if (!deadline.expired()) continue;
      ADD_FAILURE() << "not within " << time.count() << " s: " << made.status().to_string();
      return {};
    }
  }

  WorkRequest::Piece piece(std::size_t offset, std::size_t length) const {
    return {reinterpret_cast<std::uint64_t>(local_.data() + offset), static_cast<std::uint32_t>(length), local_registration_->local_key()};
  }
  std::uint64_t remote_address(std::size_t offset) const { return reinterpret_cast<std::uint64_t>(remote_.data() + offset); }
  WorkRequest request(std::uint64_t id, WorkRequest::Operation operation, std::size_t remote_offset,
                      std::span<const WorkRequest::Piece> pieces) const {
    return {id, operation, true, remote_address(remote_offset), remote_registration_->remote_key(), pieces};
  }
  WorkRequest write(std::uint64_t id, std::size_t remote_offset, std::span<const WorkRequest::Piece> pieces) const {
    return request(id, WorkRequest::Operation::kWrite, remote_offset, pieces);
  }
  WorkRequest read(std::uint64_t id, std::size_t remote_offset, std::span<const WorkRequest::Piece> pieces) const {
    return request(id, WorkRequest::Operation::kRead, remote_offset, pieces);
  }

  // Polls until `count` completions have come or ten seconds have passed.
  static std::vector<Completion> completions(QueuePair& queue_pair, std::size_t count) {
    std::vector<Completion> all;
    const Deadline deadline = Deadline::after(std::chrono::seconds(10));
    while (all.size() < count && !deadline.expired()) {
      std::array<Completion, 8> some;
      const std::size_t got = queue_pair.poll(std::span(some).first(std::min(some.size(), count - all.size())));
      all.insert(all.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(got));
      if (got == 0) std::this_thread::yield();
    }
    EXPECT_EQ(all.size(), count);
    all.resize(count);
    return all;
  }
  // Posts one signalled request and waits for its outcome.
  static Completion carry_out(QueuePair& queue_pair, const WorkRequest& request) {
    const Status status = queue_pair.post({&request, 1});
    EXPECT_TRUE(status.ok()) << status.to_string();
    if (!status.ok()) return {request.id, Completion::Outcome::kFlushed, "not posted"};
    const Completion completion = completions(queue_pair, 1)[0];
    EXPECT_EQ(completion.id, request.id);
    return completion;
  }
  static void expect_done(QueuePair& queue_pair, const WorkRequest& request) {
    const Completion completion = carry_out(queue_pair, request);
    EXPECT_EQ(completion.outcome, Completion::Outcome::kDone) << completion.reason;
  }
  // By the peer's NIC (kRefused) or by this side's (kLocal).
  void expect_refused(const Completion& completion, Completion::Outcome by = Completion::Outcome::kRefused) {
    if (completion.outcome == Completion::Outcome::kPath && !rig_->refusal_is_told()) return;
    EXPECT_EQ(completion.outcome, by) << completion.reason;
  }
  // The queue pair takes nothing any more.
  static void expect_broken(QueuePair& queue_pair, const WorkRequest& request) {
    EXPECT_EQ(queue_pair.post({&request, 1}).code(), ErrorCode::kUnavailable);
  }
  bool same(std::size_t local_offset, std::size_t remote_offset, std::size_t length) const {
    return std::equal(local_.begin() + static_cast<std::ptrdiff_t>(local_offset),
                      local_.begin() + static_cast<std::ptrdiff_t>(local_offset + length),
                      remote_.begin() + static_cast<std::ptrdiff_t>(remote_offset));
  }

  std::unique_ptr<Rig> rig_;
  std::vector<std::byte> local_ = std::vector<std::byte>(kSize);
  std::vector<std::byte> remote_ = std::vector<std::byte>(kSize);
  std::unique_ptr<Registration> local_registration_;
  std::unique_ptr<Registration> remote_registration_;
};

// A writer that never stops by itself. Its failures are what ends it.
class Hammer {
 public:
  Hammer(QueuePair& queue_pair, std::vector<WorkRequest> requests)
      : queue_pair_(queue_pair), requests_(std::move(requests)), thread_([this] { run(); }) {}
  ~Hammer() { join(); }
  // After the first failure, with all that was outstanding reported.
  Completion::Outcome join() {
    if (thread_.joinable()) thread_.join();
    return outcome_;
  }
  // After join(): nothing was outstanding when the queue pair broke, so that only this told of it.
  [[nodiscard]] bool post_was_refused() const { return post_was_refused_; }
  [[nodiscard]] std::uint64_t rounds() const { return rounds_; }

 private:
  void run() {
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    while (!deadline.expired()) {
      if (!queue_pair_.post(requests_).ok()) {
        outcome_ = Completion::Outcome::kFlushed;
        post_was_refused_ = true;
        return;
      }
      for (std::size_t reported = 0; reported < requests_.size() && !deadline.expired();) {
        Completion completion;
        if (queue_pair_.poll({&completion, 1}) == 0) continue;
        ++reported;
        if (completion.outcome != Completion::Outcome::kDone && outcome_ == Completion::Outcome::kDone) outcome_ = completion.outcome;
      }
      if (outcome_ != Completion::Outcome::kDone) return;
      ++rounds_;
    }
  }

  QueuePair& queue_pair_;
  const std::vector<WorkRequest> requests_;
  std::atomic<std::uint64_t> rounds_{0};
  Completion::Outcome outcome_ = Completion::Outcome::kDone;
  bool post_was_refused_ = false;
  std::thread thread_;
};

inline void wait_for_rounds(const Hammer& hammer, std::uint64_t rounds) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(20));
  while (hammer.rounds() < rounds && !deadline.expired()) std::this_thread::yield();
  EXPECT_GE(hammer.rounds(), rounds);
}

}  // namespace moonpool::transfer::rdma
