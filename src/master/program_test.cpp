// The program as users start it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "net/http_client.h"
#include "tests/support/test_support.h"

namespace moonpool::master {
namespace {

using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(std::chrono::seconds(20)); }

class ProgramTest : public ::testing::Test {
 protected:
  test::ChildProcess run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), MOONPOOL_MASTER_BIN);
    auto child =
        test::ChildProcess::start({.argv = arguments, .environment = {{"MOONPOOL_CLUSTER_TOKEN", "hush"}}, .log_file = folder.file("log")});
    EXPECT_TRUE(child.ok()) << child.status().to_string();
    return std::move(*child);
  }
  test::TempDir folder;
};

TEST_F(ProgramTest, ServesUntilASignalAndExitsCleanly) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const auto port = std::to_string(test::free_port());
    const auto pages = std::to_string(test::free_port());
    auto child = run({"--port", port, "--metrics_port=" + pages, "-enable_ha"});
    net::HttpClient client;
    EXPECT_TRUE(test::wait_until(
        [&] {
          const auto health = client.get("http://127.0.0.1:" + pages + "/health", Deadline::after(std::chrono::seconds(1)));
          return health.ok() && health->body == "OK";
        },
        soon()))
        << child.output();
    EXPECT_TRUE(
        test::wait_until([&] { return test::accepts_connections("127.0.0.1", static_cast<std::uint16_t>(std::stoi(port))); }, soon()));
    child.signal(signal);
    EXPECT_EQ(child.wait(soon()), 0) << child.output();
    EXPECT_THAT(child.output(), HasSubstr("--rpc_address")) << "says how to be reached from elsewhere";
    EXPECT_THAT(child.output(), HasSubstr("elected leader")) << "warns of a missing feature";
    EXPECT_THAT(child.output(), ::testing::Not(HasSubstr("hush")));
  }
}

TEST_F(ProgramTest, AWrongFlagOrAPortInUseEndsItWithOneAndAReason) {
  auto wrong = run({"--prot=1"});
  EXPECT_EQ(wrong.wait(soon()), 1);
  EXPECT_THAT(wrong.output(), HasSubstr("did you mean --port"));
  const auto pages = std::to_string(test::free_port());
  auto first = run({"--port=0", "--metrics_port=" + pages});
  EXPECT_TRUE(
      test::wait_until([&] { return test::accepts_connections("127.0.0.1", static_cast<std::uint16_t>(std::stoi(pages))); }, soon()));
  auto second = run({"--port=0", "--metrics_port=" + pages});
  EXPECT_EQ(second.wait(soon()), 1);
  EXPECT_THAT(second.output(), HasSubstr(pages));
  EXPECT_THAT(second.output(), HasSubstr("--metrics_port"));
}

}  // namespace
}  // namespace moonpool::master
