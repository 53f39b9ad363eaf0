// The program as a user calls it, beside a real master of the same program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <fstream>

#include "base/version.h"
#include "tests/support/test_support.h"

namespace moonpool::cli {
namespace {

using std::chrono::seconds;
using test::ChildProcess;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

struct Answer {
  int status = -1;
  std::string text;
};

class DoctorProgram : public testing::Test {
 protected:
  void SetUp() override {
    // A Python of an environment in which all is well, whatever this host has.
    std::ofstream(folder_.file("python3")) << "#!/bin/sh\necho '{\"version\": \"3.11.2\", \"executable\": \"python3\", \"moonpool\": \""
                                           << version() << "\", \"vllm\": \"0.11.0\", \"module_file\": \"store.py\"}'\n";
    ::chmod(folder_.file("python3").c_str(), 0755);
  }

  Answer doctor(std::vector<std::string> arguments, std::map<std::string, std::string> environment = {}) const {
    const std::string log = folder_.file("doctor" + std::to_string(++runs_));
    arguments.insert(arguments.begin(), {MOONPOOL_PROGRAM, "doctor"});
    environment.insert(
        {{"MOONPOOL_PYTHON", folder_.file("python3")}, {"PYTHONHASHSEED", "0"}, {"MOONCAKE_CONFIG_PATH", ""}, {"MOONCAKE_MASTER", ""}});
    auto child = ChildProcess::start({.argv = arguments, .environment = environment, .log_file = log});
    if (!child) return {-1, child.status().to_string()};
    const auto status = child->wait(Deadline::after(seconds(60)));
    return {status.value_or(-1), child->output()};
  }

  Result<ChildProcess> start_master(std::uint16_t port, const std::string& token) const {
    auto child = ChildProcess::start({.argv = {MOONPOOL_PROGRAM, "master", "--port", std::to_string(port), "--metrics_port", "0"},
                                      .environment = {{"MOONPOOL_CLUSTER_TOKEN", token}},
                                      .log_file = folder_.file("master.log")});
    if (!child) return child;
    const auto listens = [&] { return test::accepts_connections("127.0.0.1", port); };
    if (!test::wait_until(listens, Deadline::after(seconds(30)))) return Status(ErrorCode::kUnavailable, child->output());
    return child;
  }

  const test::TempDir folder_;
  mutable int runs_ = 0;
};

TEST_F(DoctorProgram, WithoutAnythingToAskLooksAtTheHostAndEndsWell) {
  const Answer answer = doctor({});
  EXPECT_EQ(answer.status, 0) << answer.text;
  EXPECT_THAT(answer.text, AllOf(HasSubstr("moonpool " + std::string(version())), HasSubstr("Python 3.11.2"), HasSubstr("vLLM 0.11.0"),
                                 HasSubstr("doctor: 0 errors"), Not(HasSubstr("\033"))));
}

TEST_F(DoctorProgram, AsksARealMasterWithTheRightAndTheWrongToken) {
  const std::uint16_t port = test::free_port();
  const auto master = start_master(port, "s3cret");
  ASSERT_TRUE(master.ok()) << master.status().to_string();
  const std::string address = "127.0.0.1:" + std::to_string(port);
  const Answer right = doctor({"--master", address, "--json"}, {{"MOONPOOL_CLUSTER_TOKEN", "s3cret"}});
  EXPECT_EQ(right.status, 0) << right.text;
  boost::system::error_code bad;
  const auto document = boost::json::parse(right.text, bad);
  ASSERT_FALSE(bad) << right.text;
  EXPECT_EQ(document.at("counts").at("error").to_number<int>(), 0);
  EXPECT_THAT(right.text, AllOf(HasSubstr("accepts the cluster token"), HasSubstr("moonpool (pid"), Not(HasSubstr("s3cret"))));
  const Answer wrong = doctor({"--master", address}, {{"MOONPOOL_CLUSTER_TOKEN", "other-secret"}});
  EXPECT_EQ(wrong.status, 1) << wrong.text;
  EXPECT_THAT(wrong.text, AllOf(HasSubstr("does not know this process's cluster token"), Not(HasSubstr("other-secret"))));
}

TEST_F(DoctorProgram, AConfigurationWhoseServersAreAwayIsAnErrorForEachAndEndsInTime) {
  const std::string nowhere = "127.0.0.1:" + std::to_string(test::free_port());
  std::ofstream(folder_.file("mooncake.json")) << R"({"local_hostname": "127.0.0.1", "metadata_server": "etcd://)" << nowhere
                                               << R"(", "protocol": "tcp", "master_server_address": "no-such-host.invalid:50001"})";
  const auto start = Deadline::Clock::now();
  const Answer answer = doctor({"--timeout", "5"}, {{"MOONCAKE_CONFIG_PATH", folder_.file("mooncake.json")}});
  EXPECT_EQ(answer.status, 1);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(30));
  EXPECT_THAT(answer.text, AllOf(HasSubstr("etcd at " + nowhere), HasSubstr("no-such-host.invalid")));
}

TEST_F(DoctorProgram, AWrongCommandLineIsStatusTwo) {
  EXPECT_EQ(doctor({"--mater", "x"}).status, 2);
  EXPECT_EQ(doctor({"--timeout", "-1"}).status, 2);
  const Answer help = doctor({"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.text, AllOf(HasSubstr("--metadata-server"), HasSubstr("Exit status")));
}

}  // namespace
}  // namespace moonpool::cli
