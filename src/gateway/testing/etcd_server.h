// A real etcd on free ports, whose keys a test puts and deletes over its JSON gateway.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "gateway/etcd_instances.h"
#include "gateway/testing/test_client.h"
#include "tests/support/test_support.h"

namespace moonpool::gateway::testing {

class EtcdServer {
 public:
  EtcdServer() { start(); }

  void start() {
    const auto path = test::find_program("etcd", "etcd-server");
    ASSERT_TRUE(path.ok()) << path.status().message();
    const std::string client = "http://127.0.0.1:" + std::to_string(port);
    const std::string peer = "http://127.0.0.1:" + std::to_string(peer_port_);
    test::ChildOptions options;
    options.argv = {path.value(),
                    "--data-dir",
                    folder_.file("data"),
                    "--listen-client-urls",
                    client,
                    "--advertise-client-urls",
                    client,
                    "--listen-peer-urls",
                    peer,
                    "--initial-advertise-peer-urls",
                    peer,
                    "--initial-cluster",
                    "default=" + peer};
    options.log_file = folder_.file("log");
    auto child = test::ChildProcess::start(options);
    ASSERT_TRUE(child.ok()) << child.status().message();
    process_.emplace(std::move(child).value());
    const auto answers = [&] { return post("/v3/kv/range", etcd_range_request("/ready")).status == 200U; };
    ASSERT_TRUE(test::wait_until(answers, Deadline::after(std::chrono::seconds(40)))) << process_->output();
  }
  void kill() { process_->kill(); }

  void put(const std::string& key, const std::string& value) const {
    EXPECT_EQ(post("/v3/kv/put", R"({"key":")" + base64(key) + R"(","value":")" + base64(value) + "\"}").status, 200U);
  }
  void remove(const std::string& key) const { EXPECT_EQ(post("/v3/kv/deleterange", R"({"key":")" + base64(key) + "\"}").status, 200U); }

  const std::uint16_t port = test::free_port();

 private:
  ClientAnswer post(const std::string& path, const std::string& body) const { return TestClient(port).post(path, body); }
  static std::string base64(const std::string& text) {
    const std::string request = etcd_range_request(text);  // as a request's key is written
    return request.substr(8, request.find('"', 8) - 8);
  }

  const std::uint16_t peer_port_ = test::free_port();
  const test::TempDir folder_;
  std::optional<test::ChildProcess> process_;
};

}  // namespace moonpool::gateway::testing
