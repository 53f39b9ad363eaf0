// The contract of metadata_store.h, checked on every implementation; the servers are the real ones.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "metadata/embedded_store.h"
#include "metadata/metadata_servers_for_test.h"
#include "metadata/open_metadata_store.h"
#include "tests/support/test_support.h"

namespace moonpool::metadata {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

Deadline soon() { return Deadline::after(seconds(20)); }

std::string every_byte() {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  return bytes;
}

// One server of each kind for the whole run, started when first asked for.
class Servers {
 public:
  static ServerForTest* get(const std::string& kind) {
    auto& server = all()[kind];
    if (!server) {
      auto made = make_server_for_test(kind);
      const auto status = made->start();
      EXPECT_TRUE(status.ok()) << status.to_string();
      if (!status.ok()) return nullptr;
      server = std::move(made);
    }
    return server.get();
  }
  static void stop_all() { all().clear(); }

 private:
  static std::map<std::string, std::unique_ptr<ServerForTest>>& all() {
    static std::map<std::string, std::unique_ptr<ServerForTest>> servers;
    return servers;
  }
};

class StopServers : public ::testing::Environment {
 public:
  void TearDown() override { Servers::stop_all(); }
};
const auto* const kStopServers = ::testing::AddGlobalTestEnvironment(new StopServers);

class MetadataConformanceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "embedded") {
      store_ = std::make_unique<EmbeddedStore>();
      return;
    }
    server_ = Servers::get(GetParam());
    ASSERT_NE(server_, nullptr);
    store_ = server_->open();
    ASSERT_NE(store_, nullptr);
  }
  void expect_round_trip(const std::string& key, const std::string& value) {
    const auto put = store_->put(key, value, soon());
    ASSERT_TRUE(put.ok()) << put.to_string();
    const auto got = store_->get(key, soon());
    ASSERT_TRUE(got.ok()) << got.status().to_string();
    EXPECT_EQ(*got, value) << key;
  }

  ServerForTest* server_ = nullptr;
  std::unique_ptr<MetadataStore> store_;
};

TEST_P(MetadataConformanceTest, GivesBackWhatWasPut) {
  expect_round_trip("mooncake/ram/10.0.0.1:12345", R"({"name":"10.0.0.1:12345","protocol":"tcp"})");
}

TEST_P(MetadataConformanceTest, ValuesAreArbitraryBytes) {
  expect_round_trip("binary", every_byte());
  expect_round_trip("empty", "");
  expect_round_trip("nul", std::string(3, '\0'));
  expect_round_trip("line breaks", "\r\n\r\nHTTP/1.1 200 OK\r\n$-1\r\n");
}

TEST_P(MetadataConformanceTest, KeysAreArbitraryBytes) {
  for (const std::string key :
       {"a/b//c/", "/", "with space", "größe-日本語", "100%", "%41", "a&b=c", "x?y=z#w", "a+b", "\"quoted\\\"", "{}"}) {
    expect_round_trip(key, "value of " + key);
  }
  expect_round_trip(every_byte(), "binary key");
  expect_round_trip(std::string(kMaxKeyBytes, 'k'), "longest key");
  expect_round_trip(std::string(kMaxKeyBytes, '\xE4'), "longest key, every byte of it percent-encoded");
  EXPECT_EQ(*store_->get("%41", soon()), "value of %41");
  EXPECT_EQ(store_->get("A", soon()).code(), ErrorCode::kObjectNotFound);
}

TEST_P(MetadataConformanceTest, TakesTheLargestValue) {
  std::string value(kMaxValueBytes, '\0');
  for (std::size_t i = 0; i < value.size(); ++i) value[i] = static_cast<char>(i * 2654435761U >> 13);
  expect_round_trip("large", value);
  expect_round_trip("large", "small again");
}

TEST_P(MetadataConformanceTest, APutOverwrites) {
  expect_round_trip("overwritten", "first");
  expect_round_trip("overwritten", "second, which is longer");
  expect_round_trip("overwritten", "");
}

TEST_P(MetadataConformanceTest, AMissingKeyIsNotFound) {
  const auto missing = store_->get("never put", soon());
  EXPECT_EQ(missing.code(), ErrorCode::kObjectNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("never put"));
  EXPECT_EQ(store_->remove("never put", soon()).code(), ErrorCode::kObjectNotFound);
}

TEST_P(MetadataConformanceTest, ARemovedKeyIsGone) {
  expect_round_trip("removed", "value");
  EXPECT_TRUE(store_->remove("removed", soon()).ok());
  EXPECT_EQ(store_->get("removed", soon()).code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(store_->remove("removed", soon()).code(), ErrorCode::kObjectNotFound);
  expect_round_trip("removed", "back");
}

TEST_P(MetadataConformanceTest, RefusesWhatIsBeyondTheLimits) {
  const std::string long_key(kMaxKeyBytes + 1, 'k');
  for (const auto& key : {std::string(), long_key}) {
    EXPECT_EQ(store_->get(key, soon()).code(), ErrorCode::kInvalidKey);
    EXPECT_EQ(store_->put(key, "v", soon()).code(), ErrorCode::kInvalidKey);
    EXPECT_EQ(store_->remove(key, soon()).code(), ErrorCode::kInvalidKey);
  }
  EXPECT_THAT(store_->get(long_key, soon()).status().message(), HasSubstr("4096"));
  EXPECT_EQ(store_->put("k", std::string(kMaxValueBytes + 1, 'v'), soon()).code(), ErrorCode::kInvalidParams);
}

TEST_P(MetadataConformanceTest, SaysThatItIsReachable) { EXPECT_TRUE(check_reachable(*store_, soon()).ok()); }

TEST_P(MetadataConformanceTest, ServesThreadsConcurrently) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto key = "thread " + std::to_string(t) + "/" + std::to_string(i);
        expect_round_trip(key, key + " value");
        const auto shared = store_->put("shared", key, soon());
        EXPECT_TRUE(shared.ok()) << shared.to_string();
        const auto removed = store_->remove(key, soon());
        EXPECT_TRUE(removed.ok()) << removed.to_string();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(*store_->get("shared", soon()), HasSubstr("/19"));
}

INSTANTIATE_TEST_SUITE_P(Stores, MetadataConformanceTest,
                         ::testing::Values("embedded", "http", "etcd", "etcd_second_of_two", "redis", "redis_with_password"),
                         [](const auto& info) { return info.param; });

// What only a store that lives elsewhere can be asked.
class RemoteMetadataConformanceTest : public MetadataConformanceTest {};

TEST_P(RemoteMetadataConformanceTest, AKilledServerIsAnErrorAndARestartedOneIsUsedAgain) {
  expect_round_trip("before", "value");
  for (int round = 0; round < 2; ++round) {
    server_->kill();
    const auto start = Deadline::Clock::now();
    const auto failed = store_->put("during", "value", Deadline::after(seconds(2)));
    EXPECT_LT(Deadline::Clock::now() - start, seconds(4));
    ASSERT_EQ(failed.code(), ErrorCode::kMetadataFail);
    EXPECT_THAT(failed.message(), HasSubstr(server_->endpoint()));
    EXPECT_THAT(failed.message(), HasSubstr("put of 'during' failed after"));
    EXPECT_THAT(failed.message(), HasSubstr("check"));
    EXPECT_THAT(failed.message(), Not(HasSubstr(kPasswordForTest)));
    EXPECT_FALSE(check_reachable(*store_, Deadline::after(seconds(2))).ok());
    const auto restarted = server_->start();
    ASSERT_TRUE(restarted.ok()) << restarted.to_string();
    expect_round_trip("after", "value");
  }
}

TEST_P(RemoteMetadataConformanceTest, AConnectionThatDiedWhileIdleIsReplacedUnnoticed) {
  expect_round_trip("idle", "value");
  server_->kill();
  ASSERT_TRUE(server_->start().ok());
  const auto put = store_->put("idle", "again", soon());
  EXPECT_TRUE(put.ok()) << put.to_string();
}

INSTANTIATE_TEST_SUITE_P(Stores, RemoteMetadataConformanceTest,
                         ::testing::Values("http", "etcd", "etcd_second_of_two", "redis", "redis_with_password"),
                         [](const auto& info) { return info.param; });

// A listening socket that never answers: the kernel accepts connections, nobody reads them.
class SilentServer {
 public:
  SilentServer() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(fd_, 64), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
  }
  ~SilentServer() { ::close(fd_); }
  SilentServer(const SilentServer&) = delete;
  SilentServer& operator=(const SilentServer&) = delete;
  [[nodiscard]] std::uint16_t port() const { return port_; }

 private:
  const int fd_;
  std::uint16_t port_ = 0;
};

class SilentMetadataServerTest : public ::testing::TestWithParam<std::string> {};

TEST_P(SilentMetadataServerTest, IsAnErrorAtTheDeadline) {
  const SilentServer silent;
  const auto store = open_metadata_store(url_for_test(GetParam(), silent.port()));
  ASSERT_TRUE(store.ok()) << store.status().to_string();
  for (int round = 0; round < 2; ++round) {
    const auto start = Deadline::Clock::now();
    const auto got = store.value()->get("key", Deadline::after(milliseconds(300)));
    const auto waited = Deadline::Clock::now() - start;
    ASSERT_EQ(got.code(), ErrorCode::kMetadataFail);
    EXPECT_THAT(got.status().message(), HasSubstr("127.0.0.1:" + std::to_string(silent.port())));
    EXPECT_THAT(got.status().message(), HasSubstr("get of 'key' failed after"));
    EXPECT_GE(waited, milliseconds(300));
    EXPECT_LT(waited, seconds(3));
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, SilentMetadataServerTest, ::testing::Values("http", "etcd", "redis", "redis_with_password"),
                         [](const auto& info) { return info.param; });

TEST(EtcdFailoverTest, ASilentEndpointDoesNotUseUpTheCall) {
  auto* etcd = Servers::get("etcd");
  ASSERT_NE(etcd, nullptr);
  const SilentServer silent;
  const auto second_call = [&] {
    const auto store = open_metadata_store("etcd://127.0.0.1:" + std::to_string(silent.port()) + "," + etcd->endpoint());
    EXPECT_TRUE(store.ok()) << store.status().to_string();
    if (!store.ok()) return Deadline::Clock::duration::max();
    const auto first = store.value()->put("failover", "value", Deadline::after(milliseconds(4000)));
    EXPECT_TRUE(first.ok()) << first.to_string();
    const auto start = Deadline::Clock::now();
    EXPECT_TRUE(store.value()->get("failover", Deadline::after(seconds(10))).ok());
    return Deadline::Clock::now() - start;
  };
  EXPECT_TRUE(test::takes_less_than(milliseconds(1500), second_call)) << "the endpoint that answered is remembered";
}

TEST(EtcdFailoverTest, AllDeadNamesEachEndpoint) {
  const auto one = std::to_string(test::free_port());
  const auto two = std::to_string(test::free_port());
  const auto store = open_metadata_store("127.0.0.1:" + one + ",127.0.0.1:" + two);
  ASSERT_TRUE(store.ok()) << store.status().to_string();
  const auto failed = store.value()->get("key", soon());
  EXPECT_EQ(failed.code(), ErrorCode::kMetadataFail);
  EXPECT_THAT(failed.status().message(), HasSubstr("http://127.0.0.1:" + one));
  EXPECT_THAT(failed.status().message(), HasSubstr("http://127.0.0.1:" + two));
}

TEST(RedisLoginTest, AWrongPasswordOrNoneSaysWhatToDoAndShowsNoPassword) {
  auto* redis = Servers::get("redis_with_password");
  ASSERT_NE(redis, nullptr);
  const auto wrong = open_metadata_store("redis://:hunter2@" + redis->endpoint());
  const auto refused = wrong.value()->get("key", soon());
  EXPECT_EQ(refused.code(), ErrorCode::kMetadataFail);
  EXPECT_THAT(refused.status().message(), HasSubstr("check user and password"));
  EXPECT_THAT(refused.status().message(), Not(HasSubstr("hunter2")));
  const auto none = open_metadata_store("redis://" + redis->endpoint());
  EXPECT_THAT(none.value()->get("key", soon()).status().message(), HasSubstr("wants a password"));
}

TEST(RedisLoginTest, ADatabaseThatDoesNotExistIsNamed) {
  auto* redis = Servers::get("redis");
  ASSERT_NE(redis, nullptr);
  const auto store = open_metadata_store("redis://" + redis->endpoint() + "/99999");
  EXPECT_THAT(store.value()->get("key", soon()).status().message(), HasSubstr("refused database 99999"));
}

TEST(RedisStoreTest, DatabasesAreApart) {
  auto* redis = Servers::get("redis");
  ASSERT_NE(redis, nullptr);
  const auto zero = open_metadata_store("redis://" + redis->endpoint());
  const auto four = open_metadata_store("redis://" + redis->endpoint() + "/4");
  ASSERT_TRUE(four.value()->put("apart", "in four", soon()).ok());
  EXPECT_EQ(zero.value()->get("apart", soon()).code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(*four.value()->get("apart", soon()), "in four");
}

}  // namespace
}  // namespace moonpool::metadata
