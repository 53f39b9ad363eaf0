// What every Nic has to do (nic.h): here what it moves, completes and reports, in nic_fencing_test.cpp how work and connections end. To add
// one: write a Rig for it (nic_rigs_for_test.h).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "net/unique_fd.h"
#include "transfer/rdma/nic_conformance_for_test.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::seconds;
using Outcome = Completion::Outcome;

TEST_P(NicConformanceTest, SaysWhatItIs) {
  for (Nic* nic : {&rig_->user(), &rig_->owner()}) {
    const NicInfo& info = nic->info();
    EXPECT_FALSE(info.name.empty());
    EXPECT_TRUE(nic->up());
    EXPECT_GE(info.max_work_requests, kWorkRequests);
    EXPECT_GE(info.max_pieces, 1U);
    EXPECT_GE(info.max_read_pieces, 1U);
    EXPECT_GE(info.max_reads_out, 1U);
    EXPECT_GE(info.max_reads_in, 1U);
    EXPECT_GE(info.mtu, 256U);
    EXPECT_FALSE(nic->gids().empty());
    EXPECT_EQ(nic->gids().size(), info.gids.size());
  }
}

TEST_P(NicConformanceTest, AWriteArrivesAndTouchesNothingElse) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const std::vector<std::byte> before = remote_;
  const auto from = piece(1001, 70'003);
  expect_done(*pair.user, write(7, 333, {&from, 1}));
  EXPECT_TRUE(same(1001, 333, 70'003));
  EXPECT_TRUE(std::equal(remote_.begin(), remote_.begin() + 333, before.begin()));
  EXPECT_TRUE(std::equal(remote_.begin() + 333 + 70'003, remote_.end(), before.begin() + 333 + 70'003));
}

TEST_P(NicConformanceTest, AReadBringsThePeersBytesAndTouchesNothingElse) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const std::vector<std::byte> before = local_;
  const auto into = piece(4097, 70'003);
  expect_done(*pair.user, read(8, 12'345, {&into, 1}));
  EXPECT_TRUE(same(4097, 12'345, 70'003));
  EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + 4097, before.begin()));
  EXPECT_TRUE(std::equal(local_.begin() + 4097 + 70'003, local_.end(), before.begin() + 4097 + 70'003));
}

TEST_P(NicConformanceTest, AMessageOfTheWholeMemoryArrivesInBothDirections) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto all = piece(0, kSize);
  expect_done(*pair.user, write(1, 0, {&all, 1}));
  EXPECT_TRUE(same(0, 0, kSize));
  fill(remote_, 5);
  expect_done(*pair.user, read(2, 0, {&all, 1}));
  EXPECT_TRUE(same(0, 0, kSize));
}

TEST_P(NicConformanceTest, AWriteGathersItsPieces) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  std::vector<WorkRequest::Piece> pieces;
  const std::size_t count = std::min<std::size_t>(rig_->user().info().max_pieces, 30);
  for (std::size_t i = 0; i < count; ++i) pieces.push_back(piece((count - i) * 9'001, 1'000 + i));
  expect_done(*pair.user, write(1, 77, pieces));
  std::size_t at = 77;
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_TRUE(same((count - i) * 9'001, at, 1'000 + i)) << i;
    at += 1'000 + i;
  }
}

TEST_P(NicConformanceTest, AReadScattersIntoItsPieces) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  std::vector<WorkRequest::Piece> pieces;
  const std::size_t count = std::min<std::size_t>(rig_->user().info().max_read_pieces, 30);
  for (std::size_t i = 0; i < count; ++i) pieces.push_back(piece((count - i) * 9'001, 1'000 + i));
  expect_done(*pair.user, read(1, 77, pieces));
  std::size_t at = 77;
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_TRUE(same((count - i) * 9'001, at, 1'000 + i)) << i;
    at += 1'000 + i;
  }
}

TEST_P(NicConformanceTest, WorkIsCarriedOutAndReportedInOrder) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  std::vector<WorkRequest::Piece> pieces;
  for (std::size_t i = 0; i < 20; ++i) pieces.push_back(piece(i * 10'000, 5'000));
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < 20; ++i) requests.push_back(write(100 + i, 0, {&pieces[i], 1}));  // all to one place
  for (const auto& one : requests) ASSERT_TRUE(pair.user->post({&one, 1}).ok());
  const auto all = completions(*pair.user, requests.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].id, 100 + i);
    EXPECT_EQ(all[i].outcome, Outcome::kDone) << all[i].reason;
  }
  EXPECT_TRUE(same(19 * 10'000, 0, 5'000)) << "the last one wins";
}

TEST_P(NicConformanceTest, AChainIsReportedOnceWhenItsLastIsSignalled) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  // Twice the queue's length, so that unsignalled work gives its room back.
  for (std::size_t round = 0; round < 8; ++round) {
    std::vector<WorkRequest::Piece> pieces;
    for (std::size_t i = 0; i < 16; ++i) pieces.push_back(piece((round * 16 + i) * 2'000, 1'999));
    std::vector<WorkRequest> chain;
    for (std::size_t i = 0; i < 16; ++i) chain.push_back(write(i, (round * 16 + i) * 2'000, {&pieces[i], 1}));
    for (auto& one : chain) one.signalled = false;
    chain.back().signalled = true;
    ASSERT_TRUE(pair.user->post(chain).ok());
    const Completion completion = completions(*pair.user, 1)[0];
    EXPECT_EQ(completion.id, 15U);
    EXPECT_EQ(completion.outcome, Outcome::kDone) << completion.reason;
    for (std::size_t i = 0; i < 16; ++i) EXPECT_TRUE(same((round * 16 + i) * 2'000, (round * 16 + i) * 2'000, 1'999)) << i;
  }
  Completion none;
  EXPECT_EQ(pair.user->poll({&none, 1}), 0U);
}

TEST_P(NicConformanceTest, TooMuchAtOnceIsRefusedAsAWhole) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const std::vector<std::byte> before = remote_;
  const auto from = piece(0, 100);
  std::vector<WorkRequest> chain;
  for (std::size_t i = 0; i <= kWorkRequests; ++i) chain.push_back(write(i, i * 100, {&from, 1}));
  EXPECT_EQ(pair.user->post(chain).code(), ErrorCode::kInternal);
  Completion none;
  EXPECT_EQ(pair.user->poll({&none, 1}), 0U);
  EXPECT_EQ(remote_, before);
  chain.pop_back();
  ASSERT_TRUE(pair.user->post(chain).ok());
  for (const auto& completion : completions(*pair.user, kWorkRequests)) EXPECT_EQ(completion.outcome, Outcome::kDone);
}

TEST_P(NicConformanceTest, ACompletionWakesASleeper) {
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  for (int round = 0; round < 3; ++round) {
    const auto from = piece(0, 200'000);
    const WorkRequest request = write(1, 0, {&from, 1});
    ASSERT_TRUE(pair.user->post({&request, 1}).ok());
    Completion completion;
    const Deadline deadline = Deadline::after(seconds(10));
    std::size_t got = 0;
    while (got == 0 && !deadline.expired()) {
      ASSERT_TRUE(pair.user->arm().ok());
      got = pair.user->poll({&completion, 1});
      if (got != 0) break;
      pollfd waiter{pair.user->event_fd(), POLLIN, 0};
      ASSERT_EQ(::poll(&waiter, 1, deadline.left_ms()), 1) << "slept on after the completion";
      pair.user->clear_event();
      got = pair.user->poll({&completion, 1});
    }
    ASSERT_EQ(got, 1U);
    EXPECT_EQ(completion.outcome, Outcome::kDone) << completion.reason;
  }
}

// Addresses without access, and the bytes behind them in a file: as a GPU's memory is to its host.
class DeviceOfPages {
 public:
  DeviceOfPages() : file_(::memfd_create("nic_conformance", MFD_CLOEXEC)) {
    EXPECT_EQ(::ftruncate(file_.get(), kSize), 0);
    addresses_ = ::mmap(nullptr, kSize, PROT_NONE, MAP_SHARED, file_.get(), 0);
    bytes_ = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    EXPECT_TRUE(addresses_ != MAP_FAILED && bytes_ != MAP_FAILED);
  }
  ~DeviceOfPages() {
    ::munmap(addresses_, kSize);
    ::munmap(bytes_, kSize);
  }
  DeviceOfPages(const DeviceOfPages&) = delete;
  DeviceOfPages& operator=(const DeviceOfPages&) = delete;

  [[nodiscard]] MutableBytes part(std::size_t offset, std::size_t length) const {
    return {static_cast<std::byte*>(addresses_) + offset, length};
  }
  [[nodiscard]] std::byte* bytes(std::size_t offset) const { return static_cast<std::byte*>(bytes_) + offset; }
  [[nodiscard]] DmaBuf buffer(std::size_t offset) const { return {.file = file_.get(), .offset = offset}; }

 private:
  net::UniqueFd file_;
  void* addresses_ = nullptr;
  void* bytes_ = nullptr;
};

TEST_P(NicConformanceTest, MemoryOfADeviceIsReadAndWrittenOrRefusedWithTheReason) {
  constexpr std::size_t kOffset = 5'000;  // within a page
  constexpr std::size_t kLength = 300'000;
  const DeviceOfPages mine, theirs;
  auto local = rig_->user().register_dma_buf(mine.part(kOffset, kLength), mine.buffer(kOffset), Access::kLocal);
  auto served = rig_->owner().register_dma_buf(theirs.part(kOffset, kLength), theirs.buffer(kOffset), Access::kServed);
  if (!rig_->takes_dma_bufs()) {
    for (const auto* const made : {&local, &served}) {
      EXPECT_TRUE(made->code() == ErrorCode::kNotSupported || made->code() == ErrorCode::kUnavailable) << made->status().to_string();
      EXPECT_THAT(made->status().message(), ::testing::HasSubstr("cannot register"));
    }
    return;
  }
  ASSERT_TRUE(local.ok() && served.ok()) << local.status().to_string() << served.status().to_string();
  std::copy_n(local_.begin(), kLength, mine.bytes(kOffset));
  const Pair pair = this->pair();
  ASSERT_TRUE(pair.user);
  const auto address_of = [](const MutableBytes& memory) { return reinterpret_cast<std::uint64_t>(memory.data()); };
  const WorkRequest::Piece first{address_of(mine.part(kOffset, kLength)), kLength, (*local)->local_key()};
  WorkRequest to_device = write(1, 0, {&first, 1});
  to_device.remote_address = address_of(theirs.part(kOffset, kLength));
  to_device.remote_key = (*served)->remote_key();
  WorkRequest::Piece back = first;
  back.length = 1'000;
  WorkRequest from_device = to_device;
  from_device.id = 2;
  from_device.operation = WorkRequest::Operation::kRead;
  from_device.remote_address += 7'000;
  from_device.pieces = {&back, 1};
  for (const auto& request : {to_device, from_device}) {
    ASSERT_TRUE(pair.user->post({&request, 1}).ok());
    const Completion completion = completions(*pair.user, 1)[0];
    EXPECT_EQ(completion.outcome, Outcome::kDone) << completion.reason;
  }
  EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + kLength, theirs.bytes(kOffset)));
  EXPECT_TRUE(std::equal(local_.begin() + 7'000, local_.begin() + 8'000, mine.bytes(kOffset)));
  EXPECT_TRUE(std::equal(local_.begin() + 1'000, local_.begin() + kLength, mine.bytes(kOffset + 1'000)));
}

TEST_P(NicConformanceTest, ManyQueuePairsWorkAtOnce) {
  std::vector<Pair> pairs;
  for (int i = 0; i < 8; ++i) pairs.push_back(pair());
  std::vector<WorkRequest::Piece> pieces;
  for (std::size_t i = 0; i < pairs.size(); ++i) pieces.push_back(piece(i * 100'000, 100'000));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    ASSERT_TRUE(pairs[i].user);
    const WorkRequest request = write(i, i * 100'000, {&pieces[i], 1});
    ASSERT_TRUE(pairs[i].user->post({&request, 1}).ok());
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) EXPECT_EQ(completions(*pairs[i].user, 1)[0].outcome, Outcome::kDone);
  EXPECT_TRUE(same(0, 0, 800'000));
}

INSTANTIATE_TEST_SUITE_P(Nics, NicConformanceTest, ::testing::ValuesIn(rig_cases()),
                         [](const ::testing::TestParamInfo<RigCase>& info) { return info.param.name; });

}  // namespace
}  // namespace moonpool::transfer::rdma
