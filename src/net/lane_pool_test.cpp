#include "net/lane_pool.h"

#include <gtest/gtest.h>

#include <latch>
#include <set>

#include "net/net_test_support.h"
#include "tests/support/test_support.h"

namespace moonpool::net::test {
namespace {

using moonpool::test::free_port;
using moonpool::test::wait_until;

Status pool_ping(LanePool& pool, const Endpoint& peer, Deadline deadline = soon()) {
  wire::PingReply reply;
  return pool.call(peer, wire::METHOD_PING, wire::Empty(), reply, deadline);
}

TEST(LanePoolTest, LanesAreReused) {
  std::atomic<int> closed{0};
  TestServer test;
  test.server.on_closed([&](const Session&) { ++closed; });
  const Endpoint peer{"127.0.0.1", test.start()};
  LanePool pool(identity());
  const Lane* first = nullptr;
  for (int i = 0; i < 20; ++i) {
    auto lease = pool.acquire(peer, soon());
    ASSERT_TRUE(lease.ok()) << lease.status().to_string();
    if (first == nullptr) first = &**lease;
    EXPECT_EQ(&**lease, first);
    EXPECT_TRUE(ping(**lease).ok());
  }
  EXPECT_EQ(closed, 0);
}

TEST(LanePoolTest, ManyThreadsShareABoundedNumberOfLanes) {
  std::mutex mutex;
  std::set<const Session*> sessions;
  std::atomic<int> done{0};
  TestServer test;
  test.server.handle(wire::METHOD_NOTIFY, [&](Request& request) -> Task<Reply> {
    const std::lock_guard lock(mutex);
    sessions.insert(request.session().get());
    co_return Reply(wire::Empty());
  });
  const Endpoint peer{"127.0.0.1", test.start()};
  LanePool pool(identity(), {.lanes_per_peer = 3});
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 30; ++i) {
        wire::Empty reply;
        if (pool.call(peer, wire::METHOD_NOTIFY, wire::NotifyRequest(), reply, soon()).ok()) ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, 16 * 30);
  EXPECT_LE(sessions.size(), 3U);
}

TEST(LanePoolTest, WaitingForALaneEndsAtTheDeadlineOrWhenOneComesBack) {
  TestServer test;
  const Endpoint peer{"127.0.0.1", test.start()};
  LanePool pool(identity(), {.lanes_per_peer = 1});
  auto held = std::make_unique<Result<LanePool::Lease>>(pool.acquire(peer, soon()));
  ASSERT_TRUE(held->ok());
  const auto refused = pool.acquire(peer, Deadline::after(milliseconds(50)));
  EXPECT_EQ(refused.code(), ErrorCode::kRpcTimeout);
  EXPECT_NE(refused.status().message().find(peer.to_string()), std::string::npos) << refused.status().message();
  std::thread waiter([&] { EXPECT_TRUE(pool_ping(pool, peer).ok()); });
  held.reset();
  waiter.join();
}

TEST(LanePoolTest, ARestartedServerIsReachedWithoutAnErrorAndWithoutARetryByTheCaller) {
  ServerOptions options;
  options.port = free_port();
  const Endpoint peer{"127.0.0.1", options.port};
  LanePool pool(identity());
  for (int life = 0; life < 3; ++life) {
    TestServer test(options);
    test.start();
    // Two idle lanes of each life, so that both the check before lending and the retry have something to find.
    {
      const auto first = pool.acquire(peer, soon());
      const auto second = pool.acquire(peer, soon());
      ASSERT_TRUE(first.ok() && second.ok());
    }
    const Status status = pool_ping(pool, peer);
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
}

TEST(LanePoolTest, AnIdleLaneThatThePeerClosesUnderTheRequestIsReplacedOnce) {
  const RawListener listener;
  LanePool pool(identity());
  const Endpoint peer{"127.0.0.1", listener.port()};
  const std::string answer = [] {
    wire::PingReply reply;
    reply.set_term(7);
    return make_frame({.kind = FrameKind::kResponse, .method = wire::METHOD_PING, .request_id = 1}, reply.SerializeAsString());
  }();
  std::thread server([&] {
    std::string message;
    RawSocket first = listener.accept_lane();
    EXPECT_TRUE(first.read_frame(message).ok());
    EXPECT_TRUE(first.send(answer));
    // The second request is read and not answered, as by a process that is killed just then.
    EXPECT_TRUE(first.read_frame(message).ok());
    first.close();
    const RawSocket second = listener.accept_lane();
    EXPECT_TRUE(second.read_frame(message).ok());
    EXPECT_TRUE(second.send(answer));
    EXPECT_TRUE(second.ended());
  });
  EXPECT_TRUE(pool_ping(pool, peer).ok());
  const Status status = pool_ping(pool, peer);
  EXPECT_TRUE(status.ok()) << status.to_string();
  pool.close();
  server.join();
}

TEST(LanePoolTest, APeerThatIsDownIsUnavailableAndReachedOnceItIsBack) {
  ServerOptions options;
  options.port = free_port();
  const Endpoint peer{"127.0.0.1", options.port};
  LanePool pool(identity(), {.lanes_per_peer = 1});
  EXPECT_EQ(pool_ping(pool, peer).code(), ErrorCode::kUnavailable);
  TestServer test(options);
  test.start();
  EXPECT_TRUE(pool_ping(pool, peer).ok());
}

TEST(LanePoolTest, ASilentPeerCostsNoMoreThanTheConnectTimeout) {
  const RawListener listener;
  LanePool pool(identity(), {.connect_timeout = milliseconds(50)});
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(pool_ping(pool, {"127.0.0.1", listener.port()}).code(), ErrorCode::kRpcTimeout);
  EXPECT_LT(since(start), seconds(10));
}

TEST(LanePoolTest, LanesUnusedForTheIdleTimeAreClosedWhileThePoolIsInUse) {
  std::atomic<int> closed{0};
  TestServer used;
  TestServer unused;
  unused.server.on_closed([&](const Session&) { ++closed; });
  const Endpoint used_peer{"127.0.0.1", used.start()};
  LanePool pool(identity(), {.idle_timeout = milliseconds(20)});
  EXPECT_TRUE(pool_ping(pool, {"127.0.0.1", unused.start()}).ok());
  EXPECT_TRUE(wait_until([&] { return pool_ping(pool, used_peer).ok() && closed == 1; }, soon()));
}

TEST(LanePoolTest, CloseCancelsCallsInFlightAndFurtherOnes) {
  const RawListener listener;  // never answers, not even the handshake
  const Endpoint peer{"127.0.0.1", listener.port()};
  LanePool pool(identity(), {.lanes_per_peer = 1, .connect_timeout = seconds(20)});
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] { EXPECT_EQ(pool_ping(pool, peer).code(), ErrorCode::kCancelled); });
  }
  const RawSocket connecting = listener.accept();
  const auto start = Deadline::Clock::now();
  pool.close();
  for (std::thread& caller : callers) caller.join();
  EXPECT_LT(since(start), seconds(10));
  EXPECT_EQ(pool_ping(pool, peer).code(), ErrorCode::kCancelled);
}

TEST(LanePoolTest, DropAbortsTheLanesOfOnePeerOnly) {
  const RawListener listener;
  TestServer other;
  const Endpoint peer{"127.0.0.1", listener.port()};
  const Endpoint other_peer{"127.0.0.1", other.start()};
  LanePool pool(identity());
  EXPECT_TRUE(pool_ping(pool, other_peer).ok());
  std::thread caller([&] { EXPECT_EQ(pool_ping(pool, peer).code(), ErrorCode::kCancelled); });
  const RawSocket socket = listener.accept_lane();
  std::string message;
  EXPECT_TRUE(socket.read_frame(message).ok());
  pool.drop(peer);
  caller.join();
  EXPECT_TRUE(pool_ping(pool, other_peer).ok());
}

TEST(LanePoolTest, ALeaseMayOutliveThePool) {
  TestServer test;
  auto pool = std::make_unique<LanePool>(identity());
  auto lease = pool->acquire({"127.0.0.1", test.start()}, soon());
  ASSERT_TRUE(lease.ok());
  pool.reset();
  EXPECT_FALSE(ping(**lease).ok());
}

}  // namespace
}  // namespace moonpool::net::test
