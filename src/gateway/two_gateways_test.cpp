// Two gateways side by side in front of the same instances: nothing is shared but what both discover, and neither misses the other.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "gateway/testing/etcd_server.h"
#include "gateway/testing/gateway_program.h"

namespace moonpool::gateway::testing {
namespace {

// Clients that ask one gateway again and again.
class Traffic {
 public:
  Traffic(std::uint16_t port, int clients) {
    for (int i = 0; i < clients; ++i) {
      threads_.emplace_back([this, port] {
        TestClient kept(port);
        while (!stop_) {
          const auto answer = kept.post("/v1/completions", kStreamed);
          const bool good = answer.status == 200 && answer.complete && answer.body.find("[DONE]") != std::string::npos;
          ++(good ? answered : failed);
          if (!good) return;
        }
      });
    }
  }
  ~Traffic() { end(); }
  void end() {
    stop_ = true;
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }
  [[nodiscard]] bool goes_on() const {
    const int target = answered + 50;
    return test::wait_until([&] { return answered >= target || failed > 0; }, soon()) && failed == 0;
  }

  std::atomic<int> answered{0};
  std::atomic<int> failed{0};

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

TEST(TwoGatewaysTest, OneThatIsKilledTakesNothingWithItAndBothFollowTheSameInstances) {
  EtcdServer etcd;
  UpstreamSimulator one;
  UpstreamSimulator two;
  UpstreamSimulator three;
  Behaviour paced;
  paced.decode_tokens_per_s = 400;
  for (auto* instance : {&one, &two, &three}) instance->set(paced);
  etcd.put("/decode/1", one.name());
  etcd.put("/decode/2", two.name());
  const test::TempDir folder;
  const std::string file = folder.file("gateway.json");
  replace_file(file, R"({"groups": {"decode": {"etcd": {"server": "127.0.0.1:)" + std::to_string(etcd.port) +
                         R"(", "prefix": "/decode/", "interval_s": 0.05}}}})");
  GatewayProgram first({"--config", file, "--scheduling", "power_of_two"});
  GatewayProgram second({"--config", file, "--scheduling", "least_load"});
  for (const auto* gateway : {&first, &second}) EXPECT_TRUE(gateway->gets(one.name()) && gateway->gets(two.name())) << gateway->log();
  {
    Traffic doomed(first.port, 3);
    Traffic traffic(second.port, 3);
    EXPECT_TRUE(doomed.goes_on() && traffic.goes_on());
    // Each counts its own requests alone.
    for (const auto* gateway : {&first, &second}) {
      boost::system::error_code error;
      const auto status = boost::json::parse(TestClient(gateway->port).get("/status").body, error);
      for (const auto& instance : status.at("instances").as_array()) EXPECT_LE(instance.at("in_flight").to_number<int>(), 3);
    }
    etcd.put("/decode/3", three.name());
    EXPECT_TRUE(first.gets(three.name()) && second.gets(three.name()));
    EXPECT_TRUE(doomed.goes_on() && traffic.goes_on());

    first.process->kill();
    EXPECT_TRUE(test::wait_until([&] { return doomed.failed == 3; }, soon()));  // its own clients alone
    EXPECT_TRUE(traffic.goes_on());
    etcd.remove("/decode/1");
    EXPECT_TRUE(second.loses(one.name()));
    EXPECT_TRUE(traffic.goes_on());
    traffic.end();
    EXPECT_EQ(traffic.failed, 0);
  }
  EXPECT_FALSE(three.completions().empty());
  second.process->signal(SIGTERM);
  EXPECT_EQ(second.process->wait(soon()), 0);
}

}  // namespace
}  // namespace moonpool::gateway::testing
