#include "metadata/metadata_servers_for_test.h"

#include <gtest/gtest.h>

#include <fstream>
#include <optional>

#include "metadata/embedded_store.h"
#include "metadata/metadata_http_service.h"
#include "metadata/open_metadata_store.h"
#include "net/http_server.h"
#include "net/http_url.h"
#include "tests/support/test_support.h"

namespace moonpool::metadata {

namespace {

using std::chrono::seconds;
using test::ChildProcess;

std::string local(std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); }

std::unique_ptr<MetadataStore> open_or_fail(const std::string& url) {
  auto store = open_metadata_store(url);
  EXPECT_TRUE(store.ok()) << store.status().to_string();
  return store ? std::move(store).value() : nullptr;
}

class HttpServerForTest final : public ServerForTest {
 public:
  Status start() override {
    auto server = net::HttpServer::start({.port = port_}, MetadataHttpService(store_));
    if (!server) return server.status();
    server_ = std::move(*server);
    port_ = server_->port();
    return {};
  }
  void kill() override { server_.reset(); }
  std::unique_ptr<MetadataStore> open() override { return open_or_fail(url_for_test("http", port_)); }
  std::string endpoint() const override { return local(port_); }

 private:
  EmbeddedStore store_;
  std::uint16_t port_ = test::free_port();
  std::unique_ptr<net::HttpServer> server_;
};

// What etcd and Redis have in common: a child process that answers after a while.
class ProcessForTest : public ServerForTest {
 public:
  Status start() override {
    auto path = test::find_program(program_, package_);
    if (!path) return path.status();
    auto arguments = this->arguments();
    arguments.insert(arguments.begin(), *path);
    auto child = ChildProcess::start({.argv = arguments, .log_file = folder_.file("log"), .working_directory = folder_.path().string()});
    if (!child) return child.status();
    child_.emplace(std::move(*child));
    const auto store = open();
    const auto answers = [&] { return !child_->running() || check_reachable(*store, Deadline::after(seconds(2))).ok(); };
    if (test::wait_until(answers, Deadline::after(seconds(30))) && child_->running()) return {};
    return {ErrorCode::kUnavailable, program_ + " did not come up; its log ends: " + tail(child_->output())};
  }
  void kill() override { child_->kill(); }
  std::string endpoint() const override { return local(port_); }

 protected:
  ProcessForTest(std::string program, std::string package) : program_(std::move(program)), package_(std::move(package)) {}
  [[nodiscard]] virtual std::vector<std::string> arguments() const = 0;

  const test::TempDir folder_;
  const std::uint16_t port_ = test::free_port();

 private:
  static std::string tail(const std::string& log) { return log.substr(log.size() - std::min<std::size_t>(log.size(), 2000)); }

  const std::string program_;
  const std::string package_;
  std::optional<ChildProcess> child_;
};

class EtcdForTest final : public ProcessForTest {
 public:
  explicit EtcdForTest(bool first_is_dead) : ProcessForTest("etcd", "etcd-server"), first_is_dead_(first_is_dead) {}
  std::unique_ptr<MetadataStore> open() override {
    return open_or_fail(first_is_dead_ ? "etcd://" + local(dead_port_) + "," + local(port_) : url_for_test("etcd", port_));
  }

 protected:
  std::vector<std::string> arguments() const override {
    const auto client = "http://" + local(port_);
    const auto peer = "http://" + local(peer_port_);
    return {"--data-dir",
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
  }

 private:
  const bool first_is_dead_;
  const std::uint16_t peer_port_ = test::free_port();
  const std::uint16_t dead_port_ = test::free_port();
};

class RedisForTest final : public ProcessForTest {
 public:
  explicit RedisForTest(bool with_password) : ProcessForTest("redis-server", "redis-server"), with_password_(with_password) {}
  std::unique_ptr<MetadataStore> open() override {
    return open_or_fail(url_for_test(with_password_ ? "redis_with_password" : "redis", port_));
  }

 protected:
  std::vector<std::string> arguments() const override {
    // In a file rather than on the command line, so that no process list shows the password.
    std::ofstream file(folder_.file("redis.conf"));
    file << "bind 127.0.0.1\nport " << port_ << "\nsave \"\"\n";
    if (with_password_) file << "requirepass \"" << kPasswordForTest << "\"\n";
    return {folder_.file("redis.conf")};
  }

 private:
  const bool with_password_;
};

}  // namespace

std::unique_ptr<ServerForTest> make_server_for_test(const std::string& kind) {
  if (kind == "http") return std::make_unique<HttpServerForTest>();
  if (kind == "etcd" || kind == "etcd_second_of_two") return std::make_unique<EtcdForTest>(kind != "etcd");
  return std::make_unique<RedisForTest>(kind != "redis");
}

std::string url_for_test(const std::string& kind, std::uint16_t port) {
  if (kind == "http") return "http://" + local(port) + "/metadata";
  if (kind == "redis") return "redis://" + local(port);
  if (kind == "redis_with_password") return "redis://:" + net::percent_encode(kPasswordForTest) + "@" + local(port) + "/3";
  return "etcd://" + local(port);
}

}  // namespace moonpool::metadata
