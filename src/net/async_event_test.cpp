#include <gtest/gtest.h>

#include "net/net_test_support.h"
#include "tests/support/test_support.h"

namespace moonpool::net::test {
namespace {

using moonpool::test::wait_until;

// METHOD_NODE_SYNC waits for the event until its caller gives up, and answers in PingReply.term: 1 notified, 0 not.
struct WaitingServer : TestServer {
  WaitingServer() {
    server.handle(wire::METHOD_NODE_SYNC, [this](Request& request) -> Task<Reply> {
      const std::uint64_t seen = event.epoch();
      ++waiting;
      const bool notified = co_await event.wait(seen, request.deadline().sooner(limit));
      wire::PingReply reply;
      reply.set_term(notified ? 1 : 0);
      co_return Reply(reply);
    });
  }
  ~WaitingServer() { server.stop(); }
  AsyncEvent event;
  milliseconds limit{60000};
  std::atomic<int> waiting{0};
};

Result<std::uint64_t> sync(Lane& lane) {
  wire::PingReply reply;
  if (Status status = lane.call(wire::METHOD_NODE_SYNC, wire::Empty(), reply, soon()); !status.ok()) return status;
  return reply.term();
}

TEST(AsyncEventTest, ANotificationWakesEveryWaiterOnEveryThread) {
  WaitingServer test;
  const std::uint16_t port = test.start();
  std::atomic<int> woken{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] {
      const auto result = sync(*lane_to(port));
      if (result.ok() && *result == 1) ++woken;
    });
  }
  EXPECT_TRUE(wait_until([&] { return test.waiting == 6; }, soon()));
  test.event.notify_all();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(woken, 6);
}

TEST(AsyncEventTest, WithoutANotificationTheWaitEndsAtItsDeadline) {
  WaitingServer test;
  test.limit = milliseconds(50);
  const auto lane = lane_to(test.start());
  const auto start = Deadline::Clock::now();
  const auto result = sync(*lane);
  ASSERT_TRUE(result.ok()) << result.status().to_string();
  EXPECT_EQ(*result, 0U);
  EXPECT_GE(since(start), milliseconds(50));
}

TEST(AsyncEventTest, ANotificationBetweenLookingAndWaitingIsNotMissed) {
  AsyncEvent event;
  TestServer test;
  test.server.handle(wire::METHOD_NODE_SYNC, [&](Request& request) -> Task<Reply> {
    const std::uint64_t seen = event.epoch();
    event.notify_all();
    wire::PingReply reply;
    reply.set_term(co_await event.wait(seen, request.deadline()) ? 1 : 0);
    co_return Reply(reply);
  });
  const auto result = sync(*lane_to(test.start()));
  ASSERT_TRUE(result.ok()) << result.status().to_string();
  EXPECT_EQ(*result, 1U);
  test.server.stop();
}

TEST(AsyncEventTest, NoNotificationIsLostInATightExchange) {
  WaitingServer test;
  const auto lane = lane_to(test.start());
  std::atomic<bool> stop{false};
  std::thread notifier([&] {
    for (int served = 0; !stop;) {
      if (test.waiting > served) {
        served = test.waiting;
        test.event.notify_all();
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 300; ++i) {
    const auto result = sync(*lane);
    ASSERT_TRUE(result.ok()) << result.status().to_string();
    ASSERT_EQ(*result, 1U);
  }
  stop = true;
  notifier.join();
}

TEST(AsyncEventTest, StoppingTheServerEndsHandlersThatWaitWhileOthersNotify) {
  for (int round = 0; round < 20; ++round) {
    WaitingServer test;
    const std::uint16_t port = test.start();
    std::vector<std::thread> clients;
    for (int i = 0; i < 4; ++i) {
      clients.emplace_back([&] {
        auto lane = Lane::connect({"127.0.0.1", port}, identity(), soon());
        while (lane.ok() && sync(**lane).ok()) {
        }
      });
    }
    EXPECT_TRUE(wait_until([&] { return test.waiting >= 4; }, soon()));
    std::atomic<bool> stop{false};
    std::thread notifier([&] {
      while (!stop) test.event.notify_all();
    });
    test.server.stop();
    stop = true;
    notifier.join();
    for (std::thread& client : clients) client.join();
  }
}

TEST(AsyncEventTest, AnEventMayGoBeforeItsLastWaiter) {
  ServerOptions options;
  options.threads = 1;  // so that the waiter has suspended when the next handler runs
  auto event = std::make_unique<AsyncEvent>();
  std::atomic<bool> waiting{false};
  TestServer test(options);
  test.server.handle(wire::METHOD_NODE_SYNC, [&](Request& request) -> Task<Reply> {
    waiting = true;
    const bool notified = co_await event->wait(event->epoch(), request.deadline().sooner(milliseconds(200)));
    wire::PingReply reply;
    reply.set_term(notified ? 1 : 0);
    co_return Reply(reply);
  });
  test.server.handle(wire::METHOD_REMOVE, [&](Request&) -> Task<Reply> {
    event.reset();
    co_return Reply(wire::Empty());
  });
  const std::uint16_t port = test.start();
  std::thread client([&] { EXPECT_EQ(*sync(*lane_to(port)), 0U); });
  EXPECT_TRUE(wait_until([&] { return waiting.load(); }, soon()));
  wire::Empty empty;
  EXPECT_TRUE(lane_to(port)->call(wire::METHOD_REMOVE, empty, empty, soon()).ok());
  client.join();
  test.server.stop();
}

}  // namespace
}  // namespace moonpool::net::test
