// kill -9 and SIGSTOP of the pool's processes, and what their clients see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <fstream>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "store/client.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::ChildProcess;
using testing::pattern;

// SIGSTOP takes effect some time after kill(2) has returned. The state is the field behind the name in parentheses.
bool is_stopped(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');
  return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] == 'T';
}

class ProcessFaultsTest : public ::testing::Test {
 protected:
  [[nodiscard]] ChildProcess start(const std::string& what, std::vector<std::string> flags) {
    std::vector<std::string> argv = {POOL_PROCESS, what};
    argv.insert(argv.end(), flags.begin(), flags.end());
    auto child = ChildProcess::start({.argv = argv, .log_file = folder_.file(what + ".log")});
    if (!child.ok()) {
      ADD_FAILURE() << child.status().to_string();
      std::abort();
    }
    return std::move(child).value();
  }
  void start_master() {
    master_.emplace(start("master", {"--port", std::to_string(master_port_), "--metrics_port", std::to_string(metrics_port_),
                                     "--client_ttl", time_to_live_}));
    ASSERT_TRUE(test::wait_until([&] { return test::accepts_connections("127.0.0.1", master_port_); }, Deadline::after(seconds(30))))
        << master_->output();
  }
  [[nodiscard]] ChildProcess start_node(std::uint16_t port) {
    auto node = start("node", {"--port", std::to_string(port), "--master_server_address", "127.0.0.1:" + std::to_string(master_port_),
                               "--global_segment_size", "64 MB"});
    const std::string sign = "node 127.0.0.1:" + std::to_string(port) + " lends";
    const auto seen = [&] { return occurrences(node.output(), sign); };
    const std::size_t before = lives_[port]++;
    EXPECT_TRUE(test::wait_until([&] { return seen() > before; }, Deadline::after(seconds(30)))) << node.output();
    return node;
  }
  static std::size_t occurrences(const std::string& text, const std::string& part) {
    std::size_t count = 0;
    for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
    return count;
  }
  [[nodiscard]] std::unique_ptr<Client> client(std::uint64_t segment_size = 0, milliseconds timeout = seconds(10),
                                               const char* paths = "") const {
    auto options = testing::test_client_options(master_port_, segment_size);
    options.paths = paths;
    options.operation_timeout = timeout;
    auto made = Client::create(options);
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    return std::move(made).value();
  }
  static ReplicaPolicy prefer(std::uint16_t port, std::uint32_t replicas = 1) {
    ReplicaPolicy policy;
    policy.replica_num = replicas;
    policy.preferred_segments = {"127.0.0.1:" + std::to_string(port)};
    return policy;
  }

  test::TempDir folder_;
  const std::uint16_t master_port_ = test::free_port();
  const std::uint16_t metrics_port_ = test::free_port();
  std::string time_to_live_ = "2";
  std::map<std::uint16_t, std::size_t> lives_;
  std::optional<ChildProcess> master_;
};

TEST_F(ProcessFaultsTest, AMasterThatIsKilledAndStartedAgainLosesNothing) {
  start_master();
  const std::uint16_t port = test::free_port();
  const auto node = start_node(port);
  const auto lender = client(std::uint64_t{64} << 20);
  const auto user = client();
  for (int i = 0; i < 64; ++i) {
    const std::string key = "object " + std::to_string(i);
    ASSERT_EQ(testing::put_one(*user, key, pattern(key, 1, 200'000)), 0);
  }
  for (int i = 0; i < 64; i += 8) ASSERT_EQ(testing::remove_one(*user, "object " + std::to_string(i), true), 0);

  // A writer goes on all the while.
  std::atomic<bool> stop{false};
  std::atomic<int> late{0};
  std::atomic<int> puts{0};
  std::mutex mutex;
  std::vector<std::string> committed;
  std::jthread writer([&] {
    for (int i = 0; !stop && i < 400; ++i) {
      const std::string key = "stream " + std::to_string(i);
      const auto start = Deadline::Clock::now();
      const auto code = testing::put_one(*lender, key, pattern(key, 1, 100'000));
      if (Deadline::Clock::now() - start > seconds(12)) ++late;
      ++puts;
      const std::scoped_lock lock(mutex);
      if (code == 0) committed.push_back(key);
    }
  });
  ASSERT_TRUE(test::wait_until([&] { return puts > 5; }, Deadline::after(seconds(30))));
  master_->kill();
  start_master();
  const auto back = Deadline::Clock::now();
  for (int i = 0; i < 64; ++i) {
    const std::string key = "object " + std::to_string(i);
    const auto got = testing::get_fresh(*user, key);
    if (i % 8 == 0) {
      EXPECT_EQ(got.code(), ErrorCode::kObjectNotFound) << key;
    } else {
      ASSERT_TRUE(got.ok()) << key << ": " << got.status().to_string();
      EXPECT_TRUE(*got == pattern(key, 1, 200'000)) << key;
    }
  }
  const auto took = std::chrono::duration_cast<milliseconds>(Deadline::Clock::now() - back);
  std::printf("all objects were read %d ms after the new master listened\n", static_cast<int>(took.count()));
  EXPECT_LT(took, seconds(10));  // 2 s where the machine is ours; the sanitizers take longer
  const int seen = puts;
  EXPECT_TRUE(test::wait_until([&] { return puts > seen + 5 || puts >= 400; }, Deadline::after(seconds(30))));
  stop = true;
  writer.join();
  EXPECT_EQ(late, 0);
  for (const auto& key : committed) {
    const auto got = testing::get_fresh(*user, key);
    ASSERT_TRUE(got.ok()) << key << ": " << got.status().to_string();
    EXPECT_TRUE(*got == pattern(key, 1, 100'000)) << key;
  }
}

TEST_F(ProcessFaultsTest, AStorageNodeThatIsKilledAndStartedOnItsPortMissesAndNeverLies) {
  start_master();
  const std::uint16_t port = test::free_port();
  auto node = start_node(port);
  const auto user = client();
  for (int i = 0; i < 20; ++i) {
    const std::string key = "object " + std::to_string(i);
    ASSERT_EQ(testing::put_one(*user, key, pattern(key, 1, 100'000)), 0);
  }
  node.kill();
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(testing::get_fresh(*user, "object " + std::to_string(i)).ok());
  node = start_node(port);
  for (int i = 0; i < 20; ++i) {
    const auto got = testing::get_fresh(*user, "object " + std::to_string(i));
    EXPECT_EQ(got.code(), ErrorCode::kObjectNotFound) << i << ": " << got.status().to_string();
  }
  // The same keys can be put anew, over the same memory addresses and port.
  for (int i = 0; i < 20; ++i) {
    const std::string key = "object " + std::to_string(i);
    ASSERT_EQ(testing::put_one(*user, key, pattern(key, 2, 100'000)), 0);
    EXPECT_TRUE(*testing::get_fresh(*user, key) == pattern(key, 2, 100'000));
  }
}

TEST_F(ProcessFaultsTest, WhatAKilledNodeHeldIsAMissAtOnceAndNotOnlyAfterItsTimeToLive) {
  time_to_live_ = "60";
  start_master();
  auto node = start_node(test::free_port());
  const auto user = client();
  ASSERT_EQ(testing::put_one(*user, "k", pattern("k", 1, 100'000)), 0);
  node.kill();
  EXPECT_TRUE(test::wait_until([&] { return testing::exist_one(*user, "k") == 0; }, Deadline::after(seconds(5))));
  EXPECT_EQ(testing::get_fresh(*user, "k").code(), ErrorCode::kObjectNotFound);
}

TEST_F(ProcessFaultsTest, TheOtherReplicaServesWhenOneNodeIsKilled) {
  start_master();
  const std::uint16_t first = test::free_port();
  auto doomed = start_node(first);
  const auto other = start_node(test::free_port());
  const auto user = client();
  ReplicaPolicy two;
  two.replica_num = 2;
  for (int i = 0; i < 10; ++i) {
    const std::string key = "object " + std::to_string(i);
    ASSERT_EQ(testing::put_one(*user, key, pattern(key, 1, 100'000), two), 0);
    const std::string_view view = key;
    ASSERT_EQ(user->replicas({&view, 1}).at(0)->size(), 2U);
  }
  doomed.kill();
  for (int i = 0; i < 10; ++i) {
    const std::string key = "object " + std::to_string(i);
    const auto got = testing::get_fresh(*user, key);
    ASSERT_TRUE(got.ok()) << got.status().to_string();
    EXPECT_TRUE(*got == pattern(key, 1, 100'000));
  }
}

TEST_F(ProcessFaultsTest, AStoppedOwnerCostsNoMoreThanTheDeadline) {
  start_master();
  auto node = start_node(test::free_port());
  const auto user = client(0, milliseconds(1000), "tcp");
  const auto neighbour = client(0, milliseconds(1000));  // shares memory with the node, and needs no word of it
  // A new master answers "recovering" for as long as this client waits.
  ASSERT_TRUE(test::wait_until([&] { return testing::put_one(*user, "k", pattern("k", 1, 100'000)) == 0; }, Deadline::after(seconds(20))));
  node.signal(SIGSTOP);
  ASSERT_TRUE(test::wait_until([&] { return is_stopped(node.pid()); }, Deadline::after(seconds(10))));
  if (const auto seen = testing::get_fresh(*neighbour, "k"); seen.ok()) {
    EXPECT_TRUE(*seen == pattern("k", 1, 100'000));
  }
  auto start = Deadline::Clock::now();
  const auto got = testing::get_fresh(*user, "k");
  EXPECT_LT(Deadline::Clock::now() - start, milliseconds(3000));
  EXPECT_FALSE(got.ok());
  start = Deadline::Clock::now();
  EXPECT_LT(testing::put_one(*user, "other", pattern("other", 1, 100'000)), 0);
  EXPECT_LT(Deadline::Clock::now() - start, milliseconds(3000));
  node.signal(SIGCONT);
  // It was silent for a while: whether the master gave it up or not, it serves again, without a wrong byte.
  EXPECT_TRUE(
      test::wait_until([&] { return testing::put_one(*user, "after", pattern("after", 1, 1000)) == 0; }, Deadline::after(seconds(30))));
  const auto again = testing::get_fresh(*user, "k");
  if (again.ok()) {
    EXPECT_TRUE(*again == pattern("k", 1, 100'000));
  }
}

TEST_F(ProcessFaultsTest, ANodeThatWasGivenUpComesBackEmptyAndUseful) {
  start_master();
  auto node = start_node(test::free_port());
  const auto user = client();
  ASSERT_EQ(testing::put_one(*user, "k", pattern("k", 1, 1000)), 0);
  node.signal(SIGSTOP);
  EXPECT_TRUE(test::wait_until([&] { return testing::exist_one(*user, "k") == 0; }, Deadline::after(seconds(30))))
      << "expired after its time to live";
  node.signal(SIGCONT);
  EXPECT_TRUE(test::wait_until([&] { return testing::put_one(*user, "k", pattern("k", 2, 1000)) == 0; }, Deadline::after(seconds(30))));
  EXPECT_TRUE(*testing::get_fresh(*user, "k") == pattern("k", 2, 1000));
}

TEST_F(ProcessFaultsTest, ANodeEndsInOrderOnSigterm) {
  start_master();
  auto node = start_node(test::free_port());
  const auto user = client();
  ASSERT_EQ(testing::put_one(*user, "k", pattern("k", 1, 1000)), 0);
  node.signal(SIGTERM);
  EXPECT_EQ(node.wait(Deadline::after(seconds(20))), 0) << node.output();
  EXPECT_EQ(testing::exist_one(*user, "k"), 0) << "its segment left the pool at once";
}

TEST_F(ProcessFaultsTest, ANodeWithAWrongFlagOrWithoutAMasterSaysSo) {
  auto wrong = start("node", {"--globl_segment_size=1"});
  EXPECT_EQ(wrong.wait(Deadline::after(seconds(20))), 2);
  EXPECT_THAT(wrong.output(), ::testing::HasSubstr("--global_segment_size"));
  auto alone = start("node", {"--port", std::to_string(test::free_port()), "--global_segment_size", "1 MB", "--master_server_address",
                              "127.0.0.1:" + std::to_string(master_port_)});
  EXPECT_EQ(alone.wait(Deadline::after(seconds(30))), 1);
  EXPECT_THAT(alone.output(), ::testing::HasSubstr("moonpool master --port"));
}

}  // namespace
}  // namespace moonpool::store
