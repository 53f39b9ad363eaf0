// What a Lane does with peers that are silent, dead, slow or wrong: an error within the deadline that names peer, operation and time.
#include "net/lane.h"

#include <gtest/gtest.h>

#include "net/net_test_support.h"
#include "tests/support/test_support.h"

namespace moonpool::net::test {
namespace {

using moonpool::test::free_port;

constexpr milliseconds kShort{100};

// The error of a call that must end at its short deadline.
void expect_deadline(const Status& status, const char* operation, std::uint16_t port, Deadline::Clock::time_point start) {
  EXPECT_EQ(status.code(), ErrorCode::kRpcTimeout) << status.to_string();
  EXPECT_NE(status.message().find(operation), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("127.0.0.1:" + std::to_string(port)), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(" ms"), std::string::npos) << status.message();
  EXPECT_GE(since(start) + milliseconds(1), kShort);
  EXPECT_LT(since(start), seconds(10));
}

std::unique_ptr<Lane> connect_to(const RawListener& listener, RawSocket& accepted) {
  std::thread peer([&] { accepted = listener.accept_lane(); });
  auto lane = lane_to(listener.port());
  peer.join();
  return lane;
}

TEST(LaneTest, NobodyListeningIsUnavailableAtOnceAndNamesThePeer) {
  const std::uint16_t port = free_port();
  const auto lane = Lane::connect({"127.0.0.1", port}, identity(), soon());
  EXPECT_EQ(lane.code(), ErrorCode::kUnavailable);
  EXPECT_NE(lane.status().message().find("127.0.0.1:" + std::to_string(port)), std::string::npos) << lane.status().message();
  EXPECT_NE(lane.status().message().find("refused"), std::string::npos) << lane.status().message();
}

TEST(LaneTest, AConnectionThatTheNetworkSwallowsEndsAtTheDeadline) {
  // A listener whose queue of unaccepted connections is full answers no further attempt.
  RawListener listener;
  std::vector<UniqueFd> waiting;
  const auto address = with_port((*resolve({"127.0.0.1", 1}, soon()))[0], listener.port());
  for (int i = 0; i < 64; ++i) {
    waiting.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    static_cast<void>(::connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length));
  }
  const auto start = Deadline::Clock::now();
  const auto lane = Lane::connect({"127.0.0.1", listener.port()}, identity(), Deadline::after(kShort));
  expect_deadline(lane.status(), "connect", listener.port(), start);
}

TEST(LaneTest, ASilentPeerEndsTheHandshakeAtTheDeadline) {
  const RawListener listener;
  const auto start = Deadline::Clock::now();
  const auto lane = Lane::connect({"127.0.0.1", listener.port()}, identity(), Deadline::after(kShort));
  expect_deadline(lane.status(), "handshake", listener.port(), start);
}

TEST(LaneTest, APeerThatReadsButNeverAnswersEndsTheCallAtTheDeadline) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  const auto start = Deadline::Clock::now();
  expect_deadline(ping(*lane, Deadline::after(kShort)), "ping", listener.port(), start);
  EXPECT_FALSE(lane->healthy()) << "the answer may still come: the stream's position is lost";
}

TEST(LaneTest, APeerThatStopsReadingEndsTheSendAtTheDeadline) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  const std::vector<std::byte> large(64U << 20);
  const auto start = Deadline::Clock::now();
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), large.size(), Deadline::after(kShort)).ok());
  expect_deadline(lane->send_payload(std::vector<ConstBytes>{large}, Deadline::after(kShort)), "write", listener.port(), start);
}

TEST(LaneTest, APayloadThatStopsHalfWayEndsTheReceiveAtTheDeadline) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  ASSERT_TRUE(lane->send_request(wire::METHOD_READ, wire::ReadRequest(), 0, soon()).ok());
  const FrameHeader answer{.kind = FrameKind::kResponse, .method = wire::METHOD_READ, .request_id = 1, .payload_length = 1000};
  ASSERT_TRUE(peer.send(make_frame(answer, {}) + std::string(10, 'x')));
  wire::ReadReply reply;
  const auto length = lane->receive_reply(reply, soon());
  ASSERT_TRUE(length.ok()) << length.status().to_string();
  std::vector<std::byte> data(1000);
  const auto start = Deadline::Clock::now();
  expect_deadline(lane->receive_payload(std::vector<MutableBytes>{data}, Deadline::after(kShort)), "read", listener.port(), start);
  EXPECT_EQ(as_text(std::span(data).first(10)), std::string(10, 'x'));
}

TEST(LaneTest, ADeadlineThatHasPassedSendsNothingAndSparesTheLane) {
  TestServer test;
  const auto lane = lane_to(test.start());
  EXPECT_EQ(ping(*lane, Deadline::after(milliseconds(-1))).code(), ErrorCode::kRpcTimeout);
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(LaneTest, APeerThatDiesInTheMiddleIsUnavailable) {
  const RawListener listener;
  for (const bool hard : {false, true}) {
    RawSocket peer{UniqueFd()};
    const auto lane = connect_to(listener, peer);
    std::thread killer([&] {
      std::string message;
      EXPECT_TRUE(peer.read_frame(message).ok());
      EXPECT_TRUE(peer.send("MPL1"));
      hard ? peer.reset() : peer.close();
    });
    const Status status = ping(*lane);
    EXPECT_EQ(status.code(), ErrorCode::kUnavailable) << status.to_string();
    EXPECT_NE(status.message().find("closed the connection"), std::string::npos) << status.message();
    killer.join();
  }
}

TEST(LaneTest, APeerThatDiesWhileWeSendIsUnavailable) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  const std::vector<std::byte> large(64U << 20);
  std::thread killer([&] {
    EXPECT_EQ(peer.read(100'000).size(), 100'000U);
    peer.reset();
  });
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), large.size(), soon()).ok());
  EXPECT_EQ(lane->send_payload(std::vector<ConstBytes>{large}, soon()).code(), ErrorCode::kUnavailable);
  killer.join();
}

// The peer answers a long write with an error after a few bytes. It then closes, or just stops reading.
void error_while_sending(bool close) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  const std::vector<std::byte> large(64U << 20);
  std::thread server([&] {
    EXPECT_EQ(peer.read(100'000).size(), 100'000U);
    const Status refused(ErrorCode::kStaleTerm, "this grant was retired");
    EXPECT_TRUE(
        peer.send(make_frame({.kind = FrameKind::kError, .method = wire::METHOD_WRITE, .request_id = 1}, make_error_message(refused))));
    if (close) peer.close();
  });
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), large.size(), soon()).ok());
  const Status status = lane->send_payload(std::vector<ConstBytes>{large}, soon());
  EXPECT_EQ(status.code(), ErrorCode::kStaleTerm) << status.to_string();
  EXPECT_EQ(status.message(), "this grant was retired");
  EXPECT_FALSE(lane->healthy());
  server.join();
}

TEST(LaneTest, AnErrorFrameWhileWeSendIsReadInsteadOfADeadlock) { error_while_sending(false); }
TEST(LaneTest, AnErrorFrameFromAPeerThatThenClosesIsRead) { error_while_sending(true); }

TEST(LaneTest, AbortEndsABlockedCallSoon) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  std::thread aborter([&] {
    std::string message;
    EXPECT_TRUE(peer.read_frame(message).ok());
    lane->abort();
  });
  EXPECT_EQ(ping(*lane).code(), ErrorCode::kCancelled);
  aborter.join();
  EXPECT_EQ(lane->send_request(wire::METHOD_PING, wire::Empty(), 0, soon()).code(), ErrorCode::kInternal) << "the lane is broken";
}

TEST(LaneTest, GarbageAndAnswersToOtherRequestsAreProtocolErrors) {
  const RawListener listener;
  const FrameHeader other_request{.kind = FrameKind::kResponse, .method = wire::METHOD_PING, .request_id = 2};
  const FrameHeader other_method{.kind = FrameKind::kResponse, .method = wire::METHOD_READ, .request_id = 1};
  const FrameHeader a_request{.kind = FrameKind::kRequest, .method = wire::METHOD_PING, .request_id = 1};
  for (const std::string& bytes :
       {std::string(40, 'g'), make_frame(other_request, {}), make_frame(other_method, {}), make_frame(a_request, {}),
        make_frame({.kind = FrameKind::kResponse, .method = wire::METHOD_PING, .request_id = 1}, "\xFF\xFF\xFF")}) {
    RawSocket peer{UniqueFd()};
    const auto lane = connect_to(listener, peer);
    ASSERT_TRUE(peer.send(bytes));
    const Status status = ping(*lane);
    EXPECT_EQ(status.code(), ErrorCode::kProtocol) << status.to_string();
    EXPECT_FALSE(lane->healthy());
  }
}

TEST(LaneTest, AnIdleLaneWhosePeerClosedIsNotHealthy) {
  const RawListener listener;
  RawSocket peer{UniqueFd()};
  const auto lane = connect_to(listener, peer);
  EXPECT_TRUE(lane->healthy());
  peer.close();
  EXPECT_TRUE(moonpool::test::wait_until([&] { return !lane->healthy(); }, soon()));
}

}  // namespace
}  // namespace moonpool::net::test
