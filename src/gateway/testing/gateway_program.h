// The gateway as a process, with its log in a folder of its own.
#pragma once

#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {

class GatewayProgram {
 public:
  explicit GatewayProgram(std::vector<std::string> arguments, std::map<std::string, std::string> environment = {}) {
    test::ChildOptions options;
    options.argv = {MOONPOOL_GATEWAY_PROGRAM, "--model", "m", "--port", std::to_string(port), "--check-interval", "0.2"};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.environment = std::move(environment);
    options.log_file = folder.file("log");
    auto started = test::ChildProcess::start(options);
    if (!started.ok()) ADD_FAILURE() << started.status().message();
    if (!started.ok()) return;
    process.emplace(std::move(started).value());
    const bool up = test::wait_until([&] { return test::accepts_connections("127.0.0.1", port) || !process->running(); }, soon());
    EXPECT_TRUE(up && process->running()) << log();
  }

  [[nodiscard]] std::string log() const { return process->output(); }
  [[nodiscard]] bool logs(const std::string& text) const {
    return test::wait_until([&] { return log().find(text) != std::string::npos; }, soon());
  }
  // The state of an instance, empty when it is not there.
  [[nodiscard]] std::string state_of(const std::string& name) const {
    boost::system::error_code error;
    const auto document = boost::json::parse(TestClient(port).get("/instances").body, error);
    if (error || !document.is_object()) return {};
    for (const auto& one : document.at("instances").as_array()) {
      if (one.at("instance").as_string() == name) return std::string(one.at("state").as_string());
    }
    return {};
  }
  [[nodiscard]] bool has(const std::string& name) const { return !state_of(name).empty(); }
  [[nodiscard]] bool gets(const std::string& name) const {
    return test::wait_until([&] { return has(name); }, soon());
  }
  [[nodiscard]] bool loses(const std::string& name) const {
    return test::wait_until([&] { return !has(name); }, soon());
  }

  const std::uint16_t port = test::free_port();
  const test::TempDir folder;
  std::optional<test::ChildProcess> process;
};

// A file that is replaced as a whole, as a careful writer does: a half-written one is never seen.
inline void replace_file(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  std::filesystem::rename(path + ".new", path);
}

}  // namespace moonpool::gateway::testing
