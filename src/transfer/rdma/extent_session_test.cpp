// The owner's rules for RDMA writers and readers, message by message. What moves bytes is in rdma_transport_test.cpp.
#include "transfer/rdma/extent_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstring>
#include <exception>
#include <optional>
#include <thread>

#include "transfer/checksum.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;

constexpr Term kTerm{3};
constexpr std::uint64_t kLength = kChecksumChunk + 5;

Deadline soon() { return Deadline::after(seconds(20)); }

template <typename T>
net::Task<void> keep(net::Task<T> task, std::optional<T>& outcome) {
  outcome.emplace(co_await std::move(task));
}

template <typename T>
T run(net::Task<T> task) {
  boost::asio::io_context context;
  std::optional<T> outcome;
  boost::asio::co_spawn(context, keep(std::move(task), outcome), [](const std::exception_ptr& thrown) {
    if (thrown) std::rethrow_exception(thrown);
  });
  context.run();
  return std::move(*outcome);
}

class ExtentSessionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(owner_.adopt_term(kTerm, soon()).ok());
    incarnation_ = *owner_.mount(std::uint64_t{8} << 20);
  }

  ExtentRef extent(std::uint64_t offset) { return {incarnation_, offset, kLength, Version{kTerm, ++count_}}; }

  static wire::RdmaBeginRequest beginning(std::span<const ExtentRef> extents) {
    wire::RdmaBeginRequest request;
    for (const auto& one : extents) {
      request.add_segment(static_cast<std::uint32_t>(request.incarnation_size()));
      request.add_incarnation(one.incarnation.to_bytes());
      request.add_offset(one.offset);
      request.add_length(one.length);
      request.add_version_term(one.version.term.value);
      request.add_version_count(one.version.count);
    }
    return request;
  }
  static Result<wire::RdmaBeginReply> begin(ExtentSession& session, const ExtentRef& one) {
    return run(session.begin(beginning({&one, 1}), soon()));
  }
  // Of two chunks, as `extent` has.
  static wire::RdmaCompleteRequest completion(std::uint64_t ticket, std::uint64_t checksum = 7) {
    wire::RdmaCompleteRequest request;
    request.add_ticket(ticket);
    request.add_key("key");
    request.add_failed(false);
    request.add_checksum(checksum);
    request.add_checksum(checksum);
    request.set_checksum_chunk(kChecksumChunk);
    return request;
  }
  static std::int32_t number(ErrorCode code) { return Status(code, "").number(); }
  std::size_t retire(const ExtentRef& ref) {
    const RetirementOrder order{ref.version.count, ref};
    return owner_.retire({&order, 1}, Deadline::after(milliseconds(5))).size();
  }

  Owner owner_;
  Incarnation incarnation_;
  std::uint64_t count_ = 0;
  std::atomic<int> fences_{0};
  ExtentSession session_{owner_, [this] { ++fences_; }};
  ExtentSession other_{owner_, [this] { ++fences_; }};
};

TEST_F(ExtentSessionTest, AnAnnouncedExtentIsPublishedWhenItIsComplete) {
  const auto ref = extent(0);
  const auto begun = begin(session_, ref);
  ASSERT_TRUE(begun.ok());
  ASSERT_THAT(begun->status(), ElementsAre(0));
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  const auto done = session_.complete(completion(begun->ticket(0)));
  ASSERT_TRUE(done.ok());
  EXPECT_THAT(done->status(), ElementsAre(0));
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 1U);
  EXPECT_EQ(session_.complete(completion(begun->ticket(0))).code(), ErrorCode::kProtocol) << "a ticket is good once";
}

TEST_F(ExtentSessionTest, EachEntryHasItsOwnOutcome) {
  auto stale = extent(0);
  stale.incarnation = Incarnation::generate();
  auto old = extent(0);
  old.version.term = Term{2};
  auto outside = extent((std::uint64_t{8} << 20) - 1);
  const std::vector<ExtentRef> all{extent(0), stale, old, outside, extent(100), extent(std::uint64_t{1} << 20)};
  const auto begun = run(session_.begin(beginning(all), soon()));
  ASSERT_TRUE(begun.ok());
  EXPECT_THAT(begun->status(), ElementsAre(0, number(ErrorCode::kStaleIncarnation), number(ErrorCode::kStaleTerm),
                                           number(ErrorCode::kInvalidWrite), number(ErrorCode::kInvalidWrite), 0));
  EXPECT_EQ(begun->ticket(1), 0U);
}

TEST_F(ExtentSessionTest, AGivenUpExtentIsFreeAndUnknown) {
  const auto ref = extent(0);
  const auto begun = begin(session_, ref);
  auto request = completion(begun->ticket(0));
  request.set_failed(0, true);
  request.clear_checksum();
  ASSERT_TRUE(session_.complete(request).ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_THAT(begin(session_, extent(0))->status(), ElementsAre(0));
}

TEST_F(ExtentSessionTest, ARetirementFencesTheSessionAndWaitsForItsEnd) {
  const auto ref = extent(0);
  ASSERT_TRUE(begin(session_, ref).ok());
  EXPECT_EQ(retire(ref), 0U);
  EXPECT_EQ(fences_, 1);
  session_.end();
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
  EXPECT_EQ(begin(session_, extent(0)).code(), ErrorCode::kUnavailable);
}

TEST_F(ExtentSessionTest, AWriterThatDidNotSeeItsAnswerIsToldSuccessForTheSameBytesAlone) {
  const auto ref = extent(0);
  ASSERT_TRUE(session_.complete(completion(begin(session_, ref)->ticket(0))).ok());
  for (const bool same : {true, false}) {
    const auto again = begin(other_, ref);
    ASSERT_TRUE(again.ok());
    EXPECT_THAT(again->status(), ElementsAre(number(ErrorCode::kObjectAlreadyExists)));
    ASSERT_NE(again->ticket(0), 0U);
    const auto done = other_.complete(completion(again->ticket(0), same ? 7 : 8));
    ASSERT_TRUE(done.ok());
    EXPECT_THAT(done->status(), ElementsAre(same ? 0 : number(ErrorCode::kInvalidWrite)));
  }
}

TEST_F(ExtentSessionTest, ASecondAttemptIsAdmittedOnceTheFirstHasLeft) {
  const auto ref = extent(0);
  ASSERT_TRUE(begin(session_, ref).ok());
  std::thread leaving([&] {
    while (fences_ == 0) std::this_thread::yield();
    session_.end();
  });
  const auto again = begin(other_, ref);
  leaving.join();
  ASSERT_TRUE(again.ok());
  EXPECT_THAT(again->status(), ElementsAre(0));
}

TEST_F(ExtentSessionTest, ASecondAttemptWhoseFirstDoesNotLeaveIsAskedToTryAgain) {
  const auto ref = extent(0);
  ASSERT_TRUE(begin(session_, ref).ok());
  EXPECT_THAT(begin(other_, ref)->status(), ElementsAre(number(ErrorCode::kUnavailable)));
}

TEST_F(ExtentSessionTest, ContradictionsAreRefusedAsAWholeAndCostNoTicket) {
  const auto begun = begin(session_, extent(0));
  const auto ticket = begun->ticket(0);
  auto twice = completion(ticket);
  twice.MergeFrom(completion(ticket));
  auto few = completion(ticket);
  few.clear_checksum();
  auto many = completion(ticket);
  many.add_checksum(1);
  auto keyless = completion(ticket);
  keyless.clear_key();
  auto other_chunks = completion(ticket);
  other_chunks.set_checksum_chunk(4096);
  for (const auto& request : {twice, few, many, keyless, other_chunks, completion(ticket + 1)}) {
    EXPECT_EQ(session_.check(request).code(), ErrorCode::kProtocol);
    EXPECT_EQ(session_.complete(request).code(), ErrorCode::kProtocol);
  }
  EXPECT_TRUE(session_.complete(completion(ticket)).ok());

  auto columns = beginning(std::vector{extent(std::uint64_t{1} << 20)});
  columns.add_length(1);
  EXPECT_EQ(run(session_.begin(columns, soon())).code(), ErrorCode::kProtocol);
  auto nowhere = beginning(std::vector{extent(std::uint64_t{1} << 20)});
  nowhere.set_segment(0, 1);
  EXPECT_EQ(run(session_.begin(nowhere, soon())).code(), ErrorCode::kProtocol);
}

TEST_F(ExtentSessionTest, ASessionAnnouncesABoundedNumberOfWrites) {
  std::vector<ExtentRef> many;
  for (std::uint64_t i = 0; i < ExtentSession::kMaxTickets; ++i) many.push_back({incarnation_, i, 1, Version{kTerm, ++count_}});
  ASSERT_TRUE(run(session_.begin(beginning(many), soon())).ok());
  EXPECT_EQ(begin(session_, extent(std::uint64_t{1} << 20)).code(), ErrorCode::kUnavailable);
}

TEST_F(ExtentSessionTest, PinsHoldExtentsUntilTheyAreUnpinnedOrTheSessionEnds) {
  std::vector<ExtentRef> refs{extent(0), extent(std::uint64_t{1} << 20)};
  for (const auto& ref : refs) ASSERT_TRUE(session_.complete(completion(begin(session_, ref)->ticket(0))).ok());
  wire::ShmPinRequest request;
  request.set_first_pin(10);
  request.add_incarnation(incarnation_.to_bytes());
  for (const auto& ref : refs) {
    request.add_segment(0);
    request.add_offset(ref.offset);
    request.add_length(ref.length);
    request.add_version_term(ref.version.term.value);
    request.add_version_count(ref.version.count);
    request.add_first_chunk(0);
    request.add_chunk_count(2);
  }
  const auto pinned = other_.pin(request);
  ASSERT_TRUE(pinned.ok());
  EXPECT_THAT(pinned->status(), ElementsAre(0, 0));
  EXPECT_THAT(pinned->checksum(), ElementsAre(7, 7, 7, 7));
  EXPECT_EQ(retire(refs[0]), 0U);
  wire::ShmUnpinRequest unpin;
  unpin.add_pin(10);
  other_.unpin(unpin);
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
  EXPECT_EQ(retire(refs[1]), 0U);
  other_.end();
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
  EXPECT_EQ(other_.pin(request).code(), ErrorCode::kUnavailable);
}

TEST_F(ExtentSessionTest, AClosingSegmentFencesThoseWhoReadIt) {
  const auto ref = extent(0);
  ASSERT_TRUE(session_.complete(completion(begin(session_, ref)->ticket(0))).ok());
  wire::ShmPinRequest request;
  request.add_incarnation(incarnation_.to_bytes());
  request.add_segment(0);
  request.add_offset(0);
  request.add_length(kLength);
  request.add_version_term(ref.version.term.value);
  request.add_version_count(ref.version.count);
  request.add_first_chunk(0);
  request.add_chunk_count(0);
  ASSERT_TRUE(other_.pin(request).ok());
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok()) << "memory that we mapped does not wait for its readers";
  EXPECT_EQ(fences_, 1);
}

}  // namespace
}  // namespace moonpool::transfer::rdma
