// Many threads, one coordinator, and a check that no byte is ever held twice or lost. Meant for ThreadSanitizer.
#include <atomic>
#include <random>
#include <thread>

#include "master/coordinator.h"
#include "master/coordinator_test_support.h"

namespace moonpool::master {
namespace {

using test::kStart;
using test::kWall;
using test::TestNode;

constexpr int kKeys = 200;
constexpr std::uint64_t kSegment = 1 << 20;

class Worker {
 public:
  Worker(Coordinator& master, int number, std::atomic<bool>& stop)
      : master_(master),
        node_(master, "w" + std::to_string(number) + ":1", static_cast<std::uint32_t>(number + 1)),
        stop_(stop),
        random_(static_cast<unsigned>(number)) {}

  void join(TimeMs now) {
    ASSERT_TRUE(node_.join(now).ok());
    ASSERT_TRUE(node_.mount(kSegment, now).ok());
  }
  void run() {
    while (!stop_) step(now_ms());
  }
  // In the future: orders whose answer was dropped on the floor are due again.
  void obey(TimeMs later) { node_.obey(now_ms() + later); }

 private:
  void step(TimeMs now) {
    const auto key = "k" + std::to_string(random_() % kKeys);
    switch (random_() % 12) {
      case 0:
      case 1:
      case 2:
      case 3:
        put(key, now);
        break;
      case 4:
        static_cast<void>(node_.exists(key, now));
        break;
      case 5:
        static_cast<void>(node_.get(key, now));
        break;
      case 6:
        remove(key, now);
        break;
      case 7:
        static_cast<void>(master_.table().evict(random_() % 65536, now, true));
        break;
      case 8:
        master_.sweep(now);
        break;
      case 9:
      case 10:
        node_.obey(now);
        break;
      default:
        leave_sometimes(now);
    }
  }
  void put(const std::string& key, TimeMs now) {
    const auto grant = node_.start(key, 1 + random_() % 30'000, now,
                                   {.upsert = random_() % 2 == 0,
                                    .soft_pin = random_() % 4 == 0,
                                    .replicas = 1 + static_cast<std::uint32_t>(random_() % 2),
                                    .group = random_() % 4 == 0 ? "g" + std::to_string(random_() % 5) : ""});
    if (grant.status != 0) return;
    if (random_() % 8 == 0) {
      static_cast<void>(node_.revoke(key, grant, now));
    } else if (random_() % 16 != 0) {
      static_cast<void>(node_.commit(key, grant, now, static_cast<std::uint32_t>(random_())));
    }
  }
  void remove(const std::string& key, TimeMs now) {
    wire::RemoveRequest request;
    request.add_key(key);
    request.set_force(random_() % 2 == 0);
    std::vector<std::string> keys;
    static_cast<void>(master_.remove(request, keys, now));
  }
  void leave_sometimes(TimeMs now) {
    if (random_() % 50 != 0) return;
    wire::DeregisterNodeRequest good_bye;
    good_bye.set_node_id(node_.id().to_bytes());
    EXPECT_TRUE(master_.deregister(good_bye).ok());
    join(now);
  }

  Coordinator& master_;
  TestNode node_;
  std::atomic<bool>& stop_;
  std::mt19937_64 random_;
};

TEST(StressTest, NoByteIsHeldTwiceOrLostWhateverHappensAtOnce) {
  auto config = test::quick_config();
  config.lease_ttl = std::chrono::milliseconds(1);
  config.put_timeout = std::chrono::milliseconds(20);
  Coordinator master(config, now_ms(), kWall);
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < 4; ++i) {
    workers.push_back(std::make_unique<Worker>(master, i, stop));
    workers.back()->join(now_ms());
  }
  for (int round = 0; round < 6; ++round) {
    stop = false;
    std::vector<std::thread> threads;
    threads.reserve(workers.size());
    for (auto& worker : workers) threads.emplace_back([&worker] { worker->run(); });
    const auto until = Deadline::after(std::chrono::milliseconds(200));
    while (!until.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    stop = true;
    for (auto& thread : threads) thread.join();
    test::check_invariants(master);
    ASSERT_FALSE(::testing::Test::HasFatalFailure());
    if (round == 3) master.table().evict(~0ULL, now_ms() + 1000, true);
  }
  // Everything goes, everything is acknowledged: all of the memory is free again.
  master.sweep(now_ms() + 1000);
  wire::RemoveMatchingRequest all;
  all.set_all(true);
  all.set_force(true);
  auto purge = master.begin_remove_matching(all, now_ms());
  ASSERT_TRUE(purge.ok());
  for (std::size_t s = 0; s < ObjectTable::kShards; ++s) ASSERT_TRUE(master.remove_matching(*purge, s, now_ms()).ok());
  const auto barrier = master.barrier();
  for (const TimeMs later : {10'000, 20'000}) {
    for (auto& worker : workers) worker->obey(later);
  }
  EXPECT_TRUE(master.over(barrier));
  const auto segments = master.membership().segments();
  for (const auto& segment : *segments) {
    EXPECT_EQ(segment->used(), 0U);
    EXPECT_EQ(segment->quarantine(), 0U);
    EXPECT_EQ(segment->allocations(), 0U);
  }
}

}  // namespace
}  // namespace moonpool::master
