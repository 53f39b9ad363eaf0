// What a Server promises about its port, its limits and its end, tried with real lanes and with bare sockets.
#include <gtest/gtest.h>

#include <set>

#include "net/net_test_support.h"
#include "tests/support/test_support.h"

namespace moonpool::net::test {
namespace {

using moonpool::test::free_port;
using moonpool::test::wait_until;

const FrameHeader kPingHeader{.kind = FrameKind::kRequest, .method = wire::METHOD_PING, .request_id = 1, .timeout_ms = 60000};

TEST(ServerTest, AFixedPortIsBoundAndASecondServerIsToldWhoMayHoldIt) {
  const std::uint16_t port = free_port();
  ServerOptions options;
  options.port = port;
  TestServer first(options);
  EXPECT_EQ(first.start(), port);
  TestServer second(options);
  const Status status = second.server.start();
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:" + std::to_string(port)), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("ss -ltnp"), std::string::npos) << status.message();
}

TEST(ServerTest, ARangeGivesItsFirstFreePortAndAnErrorWhenThereIsNone) {
  const std::uint16_t first = free_port();
  ServerOptions options;
  options.first_port = first;
  options.last_port = static_cast<std::uint16_t>(first + 2);
  std::vector<std::unique_ptr<TestServer>> servers;
  std::set<std::uint16_t> ports;
  Status status;
  while (status.ok() && servers.size() < 4) {
    servers.push_back(std::make_unique<TestServer>(options));
    status = servers.back()->server.start();
    EXPECT_TRUE(!status.ok() || ports.insert(servers.back()->server.port()).second);
  }
  ASSERT_FALSE(ports.empty());
  EXPECT_GE(*ports.begin(), first);
  EXPECT_LE(*ports.rbegin(), first + 2);
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable) << "three ports cannot serve four servers";
  EXPECT_NE(status.message().find(std::to_string(first + 2)), std::string::npos) << status.message();
}

TEST(ServerTest, AHostThatIsNotOursOrDoesNotResolveIsAClearError) {
  ServerOptions options;
  options.host = "192.0.2.1";
  const Status foreign = TestServer(options).server.start();
  EXPECT_EQ(foreign.code(), ErrorCode::kUnavailable);
  EXPECT_NE(foreign.message().find("not one of this host's"), std::string::npos) << foreign.message();
}

TEST(ServerTest, Ipv6IsServedLikeIpv4) {
  ServerOptions options;
  options.host = "::1";
  TestServer test(options);
  const std::uint16_t port = test.start();
  auto lane = Lane::connect({"::1", port}, identity(), soon());
  ASSERT_TRUE(lane.ok()) << lane.status().to_string();
  EXPECT_TRUE(ping(**lane).ok());
}

TEST(ServerTest, AStrangersBytesCloseTheirConnectionAtOnceAndNothingElse) {
  TestServer test;
  const std::uint16_t port = test.start();
  const auto lane = lane_to(port);
  for (const std::string& bytes : {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(1, '\0'), std::string(100'000, '\xFF'),
                                   std::string("MPL0"), std::string("MPL1") + std::string(36, 'x')}) {
    const RawSocket stranger = RawSocket::connect(port);
    const auto start = Deadline::Clock::now();
    stranger.send(bytes);
    EXPECT_TRUE(stranger.ended()) << "no byte may come back";
    EXPECT_LT(since(start), seconds(4)) << "long before the handshake's time is over";
  }
  EXPECT_TRUE(ping(*lane).ok());
  EXPECT_TRUE(ping(*lane_to(port)).ok());
}

TEST(ServerTest, GarbageAfterTheHandshakeEndsTheConnection) {
  TestServer test;
  const std::uint16_t port = test.start();
  const RawSocket peer = shaken_socket(port);
  ASSERT_TRUE(peer.send(std::string(kFrameHeaderSize, 'g')));
  EXPECT_TRUE(peer.ended());
  const RawSocket response = shaken_socket(port);
  ASSERT_TRUE(response.send(make_frame({.kind = FrameKind::kResponse, .request_id = 1}, {})));
  EXPECT_TRUE(response.ended());
  EXPECT_TRUE(ping(*lane_to(port)).ok());
}

TEST(ServerTest, APeerThatIsSilentInTheHandshakeIsDroppedAtItsDeadline) {
  ServerOptions options;
  options.handshake_timeout = milliseconds(100);
  TestServer test(options);
  const std::uint16_t port = test.start();
  const RawSocket silent = RawSocket::connect(port);
  const RawSocket half = RawSocket::connect(port);
  ASSERT_TRUE(half.send("MPL1"));
  EXPECT_TRUE(silent.ended());
  EXPECT_TRUE(half.ended());
}

TEST(ServerTest, APeerThatStallsInAFrameIsDroppedAndAnIdleOneIsNot) {
  ServerOptions options;
  options.stall_timeout = milliseconds(100);
  std::atomic<bool> done{false};
  TestServer test(options);
  Status received;
  test.server.handle(wire::METHOD_WRITE, [&](Request& request) -> Task<Reply> {
    std::vector<std::byte> data(request.payload_length());
    const std::vector<MutableBytes> pieces{data};
    received = co_await request.receive(pieces);
    done = true;
    co_return Reply(received);
  });
  const std::uint16_t port = test.start();
  const auto idle = lane_to(port);
  const RawSocket in_header = shaken_socket(port);
  ASSERT_TRUE(in_header.send("MPL1"));
  EXPECT_TRUE(in_header.ended());
  const RawSocket in_payload = shaken_socket(port);
  FrameHeader header = kPingHeader;
  header.method = wire::METHOD_WRITE;
  header.payload_length = 1000;
  ASSERT_TRUE(in_payload.send(make_frame(header, {}) + std::string(10, 'x')));
  EXPECT_TRUE(in_payload.ended());
  ASSERT_TRUE(wait_until([&] { return done.load(); }, soon()));
  EXPECT_EQ(received.code(), ErrorCode::kRpcTimeout) << received.to_string();
  EXPECT_TRUE(ping(*idle).ok());
}

TEST(ServerTest, AReaderThatStopsReadingIsDroppedAndItsReplyIsReleasedOnce) {
  ServerOptions options;
  options.stall_timeout = milliseconds(100);
  const std::vector<std::byte> large(64U << 20);
  std::atomic<int> sent{0};
  TestServer test(options);
  test.server.handle(wire::METHOD_READ, [&](Request&) -> Task<Reply> {
    Reply reply{wire::ReadReply()};
    reply.payload = {large};
    reply.sent = [&] { ++sent; };
    co_return reply;
  });
  const std::uint16_t port = test.start();
  const RawSocket peer = shaken_socket(port);
  FrameHeader header = kPingHeader;
  header.method = wire::METHOD_READ;
  ASSERT_TRUE(peer.send(make_frame(header, {})));
  EXPECT_TRUE(wait_until([&] { return sent == 1; }, soon()));
  test.server.stop();
  EXPECT_EQ(sent, 1);
}

TEST(ServerTest, ALaneMayIdlePastTheTimesForHandshakesAndStalls) {
  ServerOptions options;
  options.handshake_timeout = milliseconds(250);  // on a busy machine too the handshake itself is quicker
  options.stall_timeout = milliseconds(250);
  TestServer test(options);
  const auto lane = lane_to(test.start());
  const auto start = Deadline::Clock::now();
  EXPECT_FALSE(wait_until([&] { return !lane->healthy(); }, Deadline::after(milliseconds(600)))) << since(start).count() << " ms";
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ServerTest, AnIdleLaneIsClosedWhereThatWasAskedFor) {
  ServerOptions options;
  options.idle_timeout = milliseconds(50);
  TestServer test(options);
  const auto lane = lane_to(test.start());
  EXPECT_TRUE(wait_until([&] { return !lane->healthy(); }, soon()));
}

TEST(ServerTest, BeyondItsConnectionsAServerSaysSoAndServesThoseItHas) {
  ServerOptions options;
  options.max_connections = 2;
  TestServer test(options);
  const std::uint16_t port = test.start();
  const auto first = lane_to(port);
  auto second = lane_to(port);
  const auto third = Lane::connect({"127.0.0.1", port}, identity(), soon());
  EXPECT_EQ(third.code(), ErrorCode::kUnavailable);
  EXPECT_NE(third.status().message().find("most connections (2)"), std::string::npos) << third.status().message();
  EXPECT_TRUE(ping(*first).ok());
  second.reset();
  EXPECT_TRUE(wait_until(
      [&] {
        return Lane::connect({"127.0.0.1", port}, identity(), soon()).ok();
      },
      soon()))
      << "a place that was left is free again";
}

TEST(ServerTest, EndedSessionsAreReportedOnceAndStrangersNever) {
  std::atomic<int> closed{0};
  TestServer test;
  test.server.on_closed([&](const Session&) { ++closed; });
  const std::uint16_t port = test.start();
  { const RawSocket stranger = RawSocket::connect(port); }
  lane_to(port).reset();
  EXPECT_TRUE(wait_until([&] { return closed == 1; }, soon()));
  const auto open = lane_to(port);
  test.server.stop();
  EXPECT_EQ(closed, 2) << "stop() ends the sessions that are left";
}

TEST(ServerTest, AnAbortedSessionsReceiveFailsEvenThoughItsBytesHaveArrived) {
  std::atomic<bool> done{false};
  TestServer test;
  Status received;
  std::shared_ptr<Session> kept;
  test.server.handle(wire::METHOD_WRITE, [&](Request& request) -> Task<Reply> {
    kept = request.session();
    kept->abort();
    std::vector<std::byte> data(request.payload_length());
    const std::vector<MutableBytes> pieces{data};
    received = co_await request.receive(pieces);
    done = true;
    co_return Reply(wire::WriteReply());
  });
  const RawSocket peer = shaken_socket(test.start());
  FrameHeader header = kPingHeader;
  header.method = wire::METHOD_WRITE;
  header.payload_length = 100;
  ASSERT_TRUE(peer.send(make_frame(header, {}) + std::string(100, 'x')));
  ASSERT_TRUE(wait_until([&] { return done.load(); }, soon()));
  EXPECT_EQ(received.code(), ErrorCode::kCancelled);
  test.server.stop();
  kept->abort();  // harmless after the server's end
  EXPECT_FALSE(kept->peer_address().empty());
}

TEST(ServerTest, StopMayBeCalledOftenAndFromManyThreads) {
  TestServer test;
  const std::uint16_t port = test.start();
  const auto lane = lane_to(port);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { test.server.stop(); });
  for (std::thread& thread : threads) thread.join();
  test.server.stop();
  EXPECT_EQ(ping(*lane).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(Lane::connect({"127.0.0.1", port}, identity(), soon()).code(), ErrorCode::kUnavailable);
}

TEST(ServerTest, AServerThatNeverStartedStops) {
  TestServer test;
  test.server.stop();
}

TEST(ServerTest, ManyClientsOnManyThreadsGetTheirOwnAnswers) {
  TestServer test;
  test.server.handle(wire::METHOD_NOTIFY, [](Request& request) -> Task<Reply> {
    wire::NotifyRequest note;
    if (Status status = request.parse(note); !status.ok()) co_return Reply(status);
    co_return Reply(note);
  });
  const std::uint16_t port = test.start();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([port, t] {
      const auto lane = lane_to(port);
      for (int i = 0; i < 50; ++i) {
        wire::NotifyRequest request;
        request.set_text(std::to_string(t) + "." + std::to_string(i));
        wire::NotifyRequest reply;
        ASSERT_TRUE(lane->call(wire::METHOD_NOTIFY, request, reply, soon()).ok());
        ASSERT_EQ(reply.text(), request.text());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace moonpool::net::test
