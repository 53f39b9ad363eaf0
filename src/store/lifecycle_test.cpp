// How a client comes and goes: every way in which setup can fail, and what close leaves behind (nothing).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "base/sync_point.h"
#include "metadata/open_metadata_store.h"
#include "store/client.h"
#include "store/testing/pool.h"
#include "store/testing/scripted_master.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using testing::pattern;
using testing::Pool;

std::size_t threads_of_this_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<std::size_t>(std::distance(begin(tasks), end(tasks)));
}

class LifecycleTest : public ::testing::Test {
 protected:
  // TSan starts a thread of its own with the first one.
  void SetUp() override {
    std::thread([] {}).join();
  }
  // Resolving may leave a thread for a moment.
  static ::testing::AssertionResult left_nothing(std::size_t threads_before) {
    if (test::wait_until([&] { return threads_of_this_process() <= threads_before; }, Deadline::after(seconds(10))))
      return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << threads_of_this_process() << " threads, " << threads_before << " before";
  }
  static Status error_of(ClientOptions options) {
    const std::size_t before = threads_of_this_process();
    const auto start = Deadline::Clock::now();
    const auto client = Client::create(options);
    EXPECT_LT(Deadline::Clock::now() - start, options.setup_timeout + seconds(4));
    EXPECT_FALSE(client.ok());
    EXPECT_TRUE(left_nothing(before));
    return client.status();
  }
};

TEST_F(LifecycleTest, AnUnreachableMasterIsNamedWithTheWayToStartOne) {
  auto options = testing::test_client_options(test::free_port());
  options.setup_timeout = milliseconds(500);
  const std::uint16_t port = test::free_port();
  options.local_hostname = "127.0.0.1:" + std::to_string(port);
  const Status status = error_of(options);
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr(options.master_address));
  EXPECT_THAT(status.message(), HasSubstr("moonpool master --port"));
  EXPECT_FALSE(test::accepts_connections("127.0.0.1", port)) << "the port is free again";
}

TEST_F(LifecycleTest, AMasterThatStartsLateIsWaitedFor) {
  const std::uint16_t port = test::free_port();
  testing::ScriptedMaster master(port);
  master.accept_nodes();
  Result<std::unique_ptr<Client>> client = Status{ErrorCode::kInternal, "not tried"};
  std::jthread creator([&] { client = Client::create(testing::test_client_options(port)); });
  ASSERT_TRUE(master.start().ok());
  creator.join();
  EXPECT_TRUE(client.ok()) << client.status().to_string();
  client = Status{ErrorCode::kInternal, "gone"};
}

TEST_F(LifecycleTest, AWrongTokenIsSaidToBeWrong) {
  auto config = testing::test_master_config();
  config.cluster_token = "right";
  const Pool pool(config);
  for (const char* token : {"wrong", ""}) {
    auto options = pool.options();
    options.cluster_token = token;
    const Status status = error_of(options);
    EXPECT_EQ(status.code(), ErrorCode::kUnauthenticated) << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr("token"));
    EXPECT_THAT(status.message(), ::testing::Not(HasSubstr("right")));
  }
  auto options = pool.options();
  options.cluster_token = "right";
  const auto client = pool.client(options);
  const auto other = pool.client(options);
  EXPECT_EQ(testing::put_one(*client, "k", pattern("k", 1, 1000)), 0);
  EXPECT_TRUE(*testing::get_fresh(*other, "k") == pattern("k", 1, 1000)) << "the token holds between nodes too";
}

TEST_F(LifecycleTest, BadSettingsAreNamed) {
  const Pool pool;
  struct Case {
    std::string part;  // of the error's text
    ErrorCode code;
    std::function<void(ClientOptions&)> spoil;
  };
  const std::vector<Case> cases = {
      {"192.0.2.1", ErrorCode::kInvalidParams, [](auto& o) { o.local_hostname = "192.0.2.1"; }},
      {"no-such-host.invalid", ErrorCode::kInvalidParams, [](auto& o) { o.local_hostname = "no-such-host.invalid"; }},
      {"local_hostname", ErrorCode::kInvalidParams, [](auto& o) { o.local_hostname = ""; }},
      {"\"protocol\": \"tcp\"", ErrorCode::kInvalidParams, [](auto& o) { o.protocol = "nvlink"; }},
      {"carrier-pigeon", ErrorCode::kInvalidParams, [](auto& o) { o.protocol = "carrier-pigeon"; }},
      {"master_server_address", ErrorCode::kInvalidParams, [](auto& o) { o.master_address = ""; }},
      {"nonsense", ErrorCode::kInvalidParams, [](auto& o) { o.master_address = "nonsense:port"; }},
      {"gopher", ErrorCode::kConfig, [](auto& o) { o.metadata_server = "gopher://x"; }},
      {std::to_string(pool.port()), ErrorCode::kUnavailable,
       [&](auto& o) { o.local_hostname = "127.0.0.1:" + std::to_string(pool.port()); }},
  };
  for (const auto& [part, code, spoil] : cases) {
    auto options = pool.options();
    spoil(options);
    const Status status = error_of(options);
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr(part));
  }
}

TEST_F(LifecycleTest, AnUnreachableMetadataServerIsNamed) {
  const Pool pool;
  auto options = pool.options();
  const std::string address = "127.0.0.1:" + std::to_string(test::free_port());
  options.metadata_server = "http://" + address + "/metadata";
  options.setup_timeout = milliseconds(1000);
  const Status status = error_of(options);
  EXPECT_EQ(status.code(), ErrorCode::kMetadataFail) << status.to_string();
  EXPECT_THAT(status.message(), HasSubstr(address));
}

TEST_F(LifecycleTest, IsPublishedInTheMetadataServerWhileItLives) {
  auto config = testing::test_master_config();
  config.enable_http_metadata_server = true;
  config.http_metadata_server_port = 0;
  Pool pool(config);
  auto options = pool.options();
  options.metadata_server = "http://127.0.0.1:" + std::to_string(pool.master().metadata_port()) + "/metadata";
  auto metadata = metadata::open_metadata_store(options.metadata_server);
  ASSERT_TRUE(metadata.ok()) << metadata.status().to_string();
  auto client = pool.client(options);
  const std::string key = "moonpool/segment/" + client->hostname();
  const auto value = (*metadata)->get(key, Deadline::after(seconds(5)));
  ASSERT_TRUE(value.ok()) << value.status().to_string();
  wire::EngineDescriptor descriptor;
  ASSERT_TRUE(descriptor.ParseFromString(*value));
  EXPECT_EQ(descriptor.name(), client->hostname());
  EXPECT_EQ(descriptor.buffer_length_size(), 1);
  client->close();
  EXPECT_EQ((*metadata)->get(key, Deadline::after(seconds(5))).code(), ErrorCode::kObjectNotFound);
}

TEST_F(LifecycleTest, TakesAPortOfTheUsualRangeAndTellsItsName) {
  const Pool pool;
  const auto client = pool.client();
  const auto colon = client->hostname().rfind(':');
  EXPECT_EQ(client->hostname().substr(0, colon), "127.0.0.1");
  const int port = std::stoi(client->hostname().substr(colon + 1));
  EXPECT_GE(port, 12300);
  EXPECT_LE(port, 14300);
}

TEST_F(LifecycleTest, ACloseDropsTheSegmentAndTheThreads) {
  const Pool pool;
  const auto reader = pool.client(std::uint64_t{0});
  const std::size_t before = threads_of_this_process();
  auto writer = pool.client();
  ASSERT_EQ(testing::put_one(*writer, "k", pattern("k", 1, 1000)), 0);
  writer->close();
  EXPECT_EQ(testing::exist_one(*reader, "k"), 0);
  EXPECT_TRUE(left_nothing(before));
}

TEST_F(LifecycleTest, CallsAfterAFirstAndASecondCloseAreRefused) {
  const Pool pool;
  const auto client = pool.client();
  client->close();
  client->close();
  const std::string_view key = "k";
  testing::Bytes room(10);
  EXPECT_EQ(testing::put_one(*client, key, room), -600);
  EXPECT_EQ(testing::get_one(*client, key, room), -600);
  EXPECT_EQ(testing::get_fresh(*client, key).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(testing::exist_one(*client, key), -600);
  EXPECT_EQ(testing::remove_one(*client, key), -600);
  EXPECT_EQ(client->remove_all(true).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(client->sizes({&key, 1}).at(0).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(client->replicas({&key, 1}).at(0).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(client->ping().code(), ErrorCode::kInvalidParams);
}

TEST_F(LifecycleTest, TheSamePortCanBeTakenAgain) {
  const Pool pool;
  auto options = pool.options();
  options.local_hostname = "127.0.0.1:" + std::to_string(test::free_port());
  for (int life = 0; life < 3; ++life) {
    const auto client = pool.client(options);
    EXPECT_EQ(testing::exist_one(*client, "k"), 0) << "what an earlier life held is gone";
    EXPECT_EQ(testing::put_one(*client, "k", pattern("k", 1, 1000)), 0);
    EXPECT_EQ(testing::exist_one(*client, "k"), 1);
  }
}

TEST_F(LifecycleTest, ACloseEndsTheCallsThatWait) {
  std::atomic<bool> asked{false};
  std::atomic<bool> release{false};
  testing::ScriptedMaster master;
  master.accept_nodes();
  master.on(wire::METHOD_EXIST, [&](net::Request&) -> net::Reply {
    asked = true;
    static_cast<void>(test::wait_until([&] { return release.load(); }, Deadline::after(seconds(60))));
    return Status{ErrorCode::kRecovering, "not yet"};
  });
  ASSERT_TRUE(master.start().ok());
  auto options = testing::test_client_options(master.port());
  options.operation_timeout = seconds(60);
  auto client = Client::create(options);
  ASSERT_TRUE(client.ok()) << client.status().to_string();
  std::atomic<int> result{1};
  std::jthread caller([&] { result = testing::exist_one(**client, "k"); });
  ASSERT_TRUE(test::wait_until([&] { return asked.load(); }, Deadline::after(seconds(20))));
  const auto start = Deadline::Clock::now();
  std::jthread closer([&] { (*client)->close(); });
  caller.join();
  EXPECT_EQ(result, static_cast<int>(ErrorCode::kIllegalClient));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(20));
  release = true;
}

TEST_F(LifecycleTest, AMasterThatIsAwayIsAnErrorWithinTheDeadline) {
  Pool pool;
  auto options = pool.options();
  options.operation_timeout = milliseconds(300);
  const auto client = pool.client(options);
  pool.stop_master();
  testing::Bytes value = pattern("k", 1, 1000);
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(testing::put_one(*client, "k", value), -900);
  EXPECT_EQ(testing::get_one(*client, "k", value), -900);
  EXPECT_EQ(testing::exist_one(*client, "k"), -900);
  EXPECT_EQ(testing::remove_one(*client, "k"), -900);
  EXPECT_EQ(client->remove_all(true).code(), ErrorCode::kRpcFail);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(8));
}

}  // namespace
}  // namespace moonpool::store
