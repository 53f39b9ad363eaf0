// The races and failures that only a network has. What every path does is in transport_conformance_test.cpp.
#include "transfer/tcp/extent_service.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <latch>
#include <thread>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/checksum.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() { return Deadline::after(seconds(30)); }
Deadline now() { return Deadline::after(milliseconds(0)); }

class ExtentServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(owner_.adopt_term(Term{1}, soon()).ok());
    incarnation_ = *owner_.mount(std::uint64_t{64} << 20);
    owner_.serve(server_);
    ASSERT_TRUE(server_.start().ok());
    peer_.endpoint = {"127.0.0.1", server_.port()};
  }
  void TearDown() override {
#ifdef MOONPOOL_SYNC_POINTS
    SyncPoints::instance().clear();
#endif
    lanes_.close();
    server_.stop();
  }

  ExtentRef extent(std::uint64_t offset, std::uint64_t count, std::uint64_t term = 1) {
    return {incarnation_, offset, data_.size(), Version{Term{term}, count}};
  }
  WriteOperation write(const ExtentRef& ref, Deadline deadline = soon()) {
    const ConstBytes piece(data_);
    WriteOperation operation{ref, "key", {&piece, 1}, {}, 0};
    transport_.write(peer_, {&operation, 1}, deadline);
    return operation;
  }
  Status read(const ExtentRef& ref, std::vector<std::byte>& into, std::uint64_t checksum, Deadline deadline = soon()) {
    const MutableBytes piece(into);
    ReadOperation operation{ref, 0, into.size(), {&piece, 1}, checksum, {}};
    transport_.read(peer_, {&operation, 1}, deadline);
    return operation.status;
  }
  std::vector<std::uint64_t> retire(std::uint64_t sequence, const ExtentRef& ref, Deadline deadline) {
    const RetirementOrder order{sequence, ref};
    return owner_.retire({&order, 1}, deadline);
  }

  Owner owner_;
  Incarnation incarnation_;
  net::Server server_{{NodeId::generate(), "", "test"}, {}};
  net::LanePool lanes_{{NodeId::generate(), "", "test"}};
  TcpTransport transport_{lanes_};
  Peer peer_{NodeId::generate(), {}};
  std::vector<std::byte> data_ = std::vector<std::byte>(5'000'000, std::byte{7});
};

TEST_F(ExtentServiceTest, AWriteSentTwiceUnderOneGrantIsOneUnlessItsBytesDiffer) {
  const auto ref = extent(0, 1);
  const auto first = write(ref);
  ASSERT_TRUE(first.status.ok()) << first.status.to_string();
  const auto second = write(ref);
  EXPECT_TRUE(second.status.ok()) << second.status.to_string();
  EXPECT_EQ(second.checksum, first.checksum);
  data_[10] = std::byte{8};
  EXPECT_EQ(write(ref).status.code(), ErrorCode::kInvalidWrite);
  EXPECT_EQ(owner_.catalogue(incarnation_).at(0).checksum, first.checksum);
}

TEST_F(ExtentServiceTest, APeerThatIsNotThereIsUnavailable) {
  server_.stop();
  const auto written = write(extent(0, 1));
  EXPECT_EQ(written.status.code(), ErrorCode::kUnavailable);
  EXPECT_NE(written.status.message().find(peer_.endpoint.to_string()), std::string::npos);
}

TEST_F(ExtentServiceTest, APeerThatTakesNothingIsATimeoutThatHoldsTheDeadline) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener, 4), 0);  // the kernel accepts, nobody answers
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), 0);
  peer_.endpoint.port = ntohs(address.sin_port);
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(write(extent(0, 1), Deadline::after(milliseconds(200))).status.code(), ErrorCode::kRpcTimeout);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(3));
  ::close(listener);
}

#ifdef MOONPOOL_SYNC_POINTS

TEST_F(ExtentServiceTest, ARetirementDuringAWriteAbortsItAndIsAcknowledgedWhenItsConnectionIsGone) {
  std::latch admitted(1);
  std::latch go(1);
  SyncPoints::instance().on("extent_service.write.admitted", [&] {
    admitted.count_down();
    go.wait();
  });
  const auto ref = extent(0, 1);
  Status written;
  std::thread writer([&] { written = write(ref).status; });
  admitted.wait();
  EXPECT_TRUE(retire(5, ref, now()).empty()) << "its writer still has the memory";
  SyncPoints::instance().clear();
  go.count_down();
  EXPECT_EQ(retire(5, ref, soon()).size(), 1U);
  writer.join();
  EXPECT_FALSE(written.ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  EXPECT_TRUE(write(extent(0, 2)).status.ok()) << "the range is free again";
}

TEST_F(ExtentServiceTest, AWriteWhoseGrantWasRetiredAfterItsDataArrivedIsRefused) {
  const auto ref = extent(0, 1);
  SyncPoints::instance().on("owner.complete_write.before_publish", [&] { EXPECT_TRUE(retire(5, ref, now()).empty()); });
  const auto written = write(ref);
  EXPECT_FALSE(written.status.ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  SyncPoints::instance().clear();
  EXPECT_EQ(retire(5, ref, soon()).size(), 1U);
}

TEST_F(ExtentServiceTest, AHigherTermStopsWritesOnTheWire) {
  std::latch admitted(1);
  std::latch go(1);
  SyncPoints::instance().on("extent_service.write.admitted", [&] {
    admitted.count_down();
    go.wait();
  });
  std::latch cancelled(1);
  SyncPoints::instance().on("owner.adopt_term.cancelled", [&] { cancelled.count_down(); });
  Status written;
  std::thread writer([&] { written = write(extent(0, 1)).status; });
  admitted.wait();
  auto adopted = std::async(std::launch::async, [&] { return owner_.adopt_term(Term{2}, soon()); });
  cancelled.wait();
  SyncPoints::instance().clear();
  go.count_down();
  EXPECT_TRUE(adopted.get().ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  writer.join();
  EXPECT_FALSE(written.ok());
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty()) << "also not afterwards";
  EXPECT_TRUE(write(extent(0, 1, 2)).status.ok());
}

TEST_F(ExtentServiceTest, ARetirementWaitsForAReaderThatIsBeingSentTo) {
  const auto ref = extent(0, 1);
  const auto written = write(ref);
  ASSERT_TRUE(written.status.ok());
  std::latch pinned(1);
  std::latch go(1);
  SyncPoints::instance().on("extent_service.read.pinned", [&] {
    pinned.count_down();
    go.wait();
  });
  std::vector<std::byte> into(data_.size());
  Status status;
  std::thread reader([&] { status = read(ref, into, written.checksum); });
  pinned.wait();
  EXPECT_TRUE(retire(5, ref, now()).empty());
  EXPECT_EQ(owner_.begin_write(extent(0, 2), [] {}).code(), ErrorCode::kInvalidWrite) << "its range is not used before it has left";
  go.count_down();
  EXPECT_EQ(retire(5, ref, soon()).size(), 1U);
  reader.join();
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(into, data_);
}

TEST_F(ExtentServiceTest, UnmountingEndsAReaderThatDoesNotRead) {
  const auto ref = extent(0, 1);
  const auto written = write(ref);
  ASSERT_TRUE(written.status.ok());
  // A lane that asks for much more than the sockets' buffers hold, and takes none of it.
  auto lane = lanes_.acquire(peer_.endpoint, soon());
  ASSERT_TRUE(lane.ok());
  std::latch pinned(1);
  SyncPoints::instance().on("extent_service.read.pinned", [&] { pinned.count_down(); });
  wire::ReadRequest request;
  request.add_incarnation(incarnation_.to_bytes());
  for (int i = 0; i < 20; ++i) {
    request.add_segment(0);
    request.add_offset(ref.offset);
    request.add_version_term(1);
    request.add_version_count(1);
    request.add_range_start(0);
    request.add_range_length(data_.size());
  }
  ASSERT_TRUE((*lane)->send_request(wire::METHOD_READ, request, 0, soon()).ok());
  pinned.wait();
  const auto start = Deadline::Clock::now();
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  EXPECT_LT(Deadline::Clock::now() - start, seconds(5)) << "well before the server's own time for stalled peers";
}

TEST_F(ExtentServiceTest, APeerThatDiesInTheMiddleFailsTheRestOfTheBatchAndItsLaneIsDropped) {
  std::latch admitted(1);
  std::latch go(1);
  SyncPoints::instance().on("extent_service.write.admitted", [&] {
    admitted.count_down();
    go.wait();
  });
  Status written;
  std::thread writer([&] { written = write(extent(0, 1)).status; });
  admitted.wait();
  SyncPoints::instance().clear();
  std::thread killer([&] {
    go.count_down();
    server_.stop();
  });
  killer.join();
  writer.join();
  // Either the server had taken all of it before it stopped, or the error names the peer.
  if (!written.ok()) {
    EXPECT_EQ(written.code(), ErrorCode::kUnavailable) << written.to_string();
    EXPECT_NE(written.message().find(peer_.endpoint.to_string()), std::string::npos);
  }
  net::ServerOptions options;
  options.port = peer_.endpoint.port;
  net::Server successor{{NodeId::generate(), "", "test"}, options};
  owner_.serve(successor);
  ASSERT_TRUE(successor.start().ok());
  EXPECT_TRUE(write(extent(std::uint64_t{32} << 20, 2)).status.ok()) << "a fresh lane is made";
  successor.stop();
}

TEST_F(ExtentServiceTest, AStoppedPeerHoldsTheDeadlineAndNothingIsWrittenToTheReadersMemoryAfterwards) {
  const auto ref = extent(0, 1);
  const auto written = write(ref);
  ASSERT_TRUE(written.status.ok());
  std::latch go(1);
  SyncPoints::instance().on("extent_service.read.pinned", [&] { go.wait(); });
  std::vector<std::byte> into(data_.size(), std::byte{1});
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(read(ref, into, written.checksum, Deadline::after(milliseconds(200))).code(), ErrorCode::kRpcTimeout);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(3));
  SyncPoints::instance().clear();
  go.count_down();
  EXPECT_EQ(into[0], std::byte{1});
  EXPECT_TRUE(read(ref, into, written.checksum).ok()) << "the late answer is not taken for another's";
  EXPECT_EQ(into, data_);
}

#endif

}  // namespace
}  // namespace moonpool::transfer
