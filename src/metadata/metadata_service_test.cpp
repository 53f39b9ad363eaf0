#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "metadata/embedded_store.h"
#include "metadata/http_metadata_server.h"
#include "metadata/metadata_http_service.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "tests/support/test_support.h"

namespace moonpool::metadata {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(seconds(10)); }

class MetadataHttpServiceTest : public ::testing::Test {
 protected:
  net::HttpResponse ask(const std::string& method, const std::string& target, const std::string& body = {}) {
    const auto url = "http://127.0.0.1:" + std::to_string(server_.value()->port()) + target;
    auto response = client_.request(method, url, body, {}, soon());
    EXPECT_TRUE(response.ok()) << response.status().to_string();
    return response ? *response : net::HttpResponse{};
  }

  EmbeddedStore store_{1000};
  Result<std::unique_ptr<net::HttpServer>> server_ = net::HttpServer::start({}, MetadataHttpService(store_));
  net::HttpClient client_;
};

TEST_F(MetadataHttpServiceTest, SpeaksAsEnginesExpect) {
  EXPECT_EQ(ask("GET", "/metadata?key=a").status, 404);
  EXPECT_EQ(ask("GET", "/metadata?key=a").body, "metadata not found");
  EXPECT_EQ(ask("PUT", "/metadata?key=a%2Fb%20c", "value").status, 200);
  EXPECT_EQ(ask("GET", "/metadata?key=a/b+c").body, "value");
  EXPECT_EQ(ask("DELETE", "/metadata?key=a%2Fb%20c").status, 200);
  EXPECT_EQ(ask("DELETE", "/metadata?key=a%2Fb%20c").status, 404);
  EXPECT_EQ(ask("GET", "/health").status, 200);
}

TEST_F(MetadataHttpServiceTest, RefusesWhatItCannotServeAndSaysWhy) {
  EXPECT_EQ(ask("GET", "/metadata").status, 400);
  EXPECT_EQ(ask("PUT", "/metadata?key=", "x").status, 400);
  EXPECT_THAT(ask("GET", "/metadata?kee=a").body, HasSubstr("'key' is missing"));
  EXPECT_EQ(ask("POST", "/metadata?key=a", "x").status, 405);
  EXPECT_EQ(ask("GET", "/elsewhere").status, 404);
  EXPECT_EQ(ask("GET", "/metadata?key=%f").status, 400);
  EXPECT_EQ(ask("PUT", "/metadata?key=" + std::string(kMaxKeyBytes + 1, 'k'), "x").status, 400);
  const auto full = ask("PUT", "/metadata?key=a", std::string(2000, 'x'));
  EXPECT_EQ(full.status, 503);
  EXPECT_THAT(full.body, HasSubstr("is full"));
  EXPECT_EQ(ask("PUT", "/metadata?key=a", std::string(500, 'x')).status, 200);
}

TEST(EmbeddedStoreTest, RemovedAndOverwrittenBytesAreFreeAgain) {
  EmbeddedStore store(1000);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(store.put("key", std::string(900, 'x'), soon()).ok());
    ASSERT_TRUE(store.put("key", std::string(100, 'x'), soon()).ok());
    ASSERT_TRUE(store.put("other", std::string(800, 'x'), soon()).ok());
    ASSERT_TRUE(store.remove("other", soon()).ok());
  }
  EXPECT_EQ(store.put("other", std::string(900, 'x'), soon()).code(), ErrorCode::kMetadataFail);
}

// In a process of its own (this program, started again with the flag below), as it blocks signals and runs until one comes.
constexpr const char* kRunServer = "--run-metadata-server";

int run_child(int argc, char** argv) {
  std::vector<char*> arguments{argv[0]};
  for (int i = 2; i < argc; ++i) arguments.push_back(argv[i]);
  return run_http_metadata_server(static_cast<int>(arguments.size()), arguments.data());
}

Result<test::ChildProcess> start_server(const test::TempDir& folder, std::vector<std::string> flags) {
  flags.insert(flags.begin(), {"/proc/self/exe", kRunServer});
  return test::ChildProcess::start({.argv = flags, .log_file = folder.file("log")});
}

TEST(HttpMetadataServerTest, ServesUntilASignalAndSaysWhere) {
  const test::TempDir folder;
  const auto port = std::to_string(test::free_port());
  auto server = start_server(folder, {"--host", "localhost", "-port=" + port});
  ASSERT_TRUE(server.ok());
  net::HttpClient client;
  const auto url = "http://localhost:" + port;
  ASSERT_TRUE(test::wait_until([&] { return client.get(url + "/health", soon()).ok(); }, soon())) << server->output();
  EXPECT_EQ(client.request("PUT", url + "/metadata?key=k", "v", {}, soon())->status, 200);
  const auto says_where = [&] { return server->output().find("http://localhost:" + port + "/metadata") != std::string::npos; };
  EXPECT_TRUE(test::wait_until(says_where, soon())) << server->output();  // it may serve a moment before it says so
  server->signal(SIGTERM);
  EXPECT_EQ(server->wait(soon()), 0);
}

TEST(HttpMetadataServerTest, ABadFlagAndATakenPortAreErrors) {
  const test::TempDir folder;
  EmbeddedStore store;
  const auto taken = net::HttpServer::start({}, MetadataHttpService(store));
  auto second = start_server(folder, {"--port", std::to_string(taken.value()->port())});
  EXPECT_EQ(second->wait(soon()), 1);
  EXPECT_THAT(second->output(), HasSubstr("choose another port"));
  for (const char* flag : {"--port=70000", "--prot=1", "stray"}) EXPECT_EQ(start_server(folder, {flag})->wait(soon()), 2) << flag;
  EXPECT_EQ(start_server(folder, {"--help"})->wait(soon()), 0);
}

}  // namespace
}  // namespace moonpool::metadata

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == moonpool::metadata::kRunServer) return moonpool::metadata::run_child(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
