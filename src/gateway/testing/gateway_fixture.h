// A gateway in this process in front of simulated instances, and what its tests ask of it again and again.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gateway/gateway.h"
#include "gateway/testing/test_client.h"
#include "gateway/testing/upstream_simulator.h"
#include "tests/support/test_support.h"

namespace moonpool::gateway::testing {

inline constexpr std::string_view kPlain = R"({"model":"m","prompt":"Tell","max_tokens":4})";
inline constexpr std::string_view kStreamed = R"({"model":"m","prompt":"Tell","max_tokens":4,"stream":true})";
inline constexpr std::string_view kWholeText = "Once upon a time";

using Simulators = std::vector<std::unique_ptr<UpstreamSimulator>>;

inline Deadline soon() { return Deadline::after(std::chrono::seconds(20)); }

class GatewayTest : public ::testing::Test {
 protected:
  static Simulators simulators(std::size_t count) {
    Simulators made;
    for (std::size_t i = 0; i < count; ++i) made.push_back(std::make_unique<UpstreamSimulator>());
    return made;
  }

  // Time-outs short enough for a test, long enough for a sanitizer; the first probe comes at once, others soon.
  static Settings test_settings() {
    Settings settings;
    settings.model = "m";
    settings.scheduling = "round_robin";  // tests count who got what
    settings.port = 0;
    settings.threads = 2;
    EXPECT_TRUE(settings.keys.add(key_of("administrator", "top-secret-key", KeyRole::kAdmin)).ok());
    settings.health.first_probe = std::chrono::milliseconds(50);
    settings.health.circuit.first_open = std::chrono::milliseconds(50);
    settings.timeouts.drain = std::chrono::seconds(5);
    return settings;
  }

  static ApiKey key_of(const std::string& name, std::string_view secret, KeyRole role = KeyRole::kClient) {
    ApiKey key;
    key.name = name;
    key.digest = digest_of(secret);
    key.role = role;
    return key;
  }

  void start_gateway(std::size_t prefill_count, std::size_t decode_count, Settings settings = test_settings()) {
    prefill = simulators(prefill_count);
    decode = simulators(decode_count);
    for (const auto& one : prefill) settings.prefill.push_back(InstanceName::parse(one->name()).value());
    for (const auto& one : decode) settings.decode.push_back(InstanceName::parse(one->name()).value());
    auto started = Gateway::start(std::move(settings));
    ASSERT_TRUE(started.ok()) << started.status().message();
    gateway = std::move(started).value();
    // The monitor's first look at each is over: from here on the counts of a test are its own.
    const auto looked_at = [](const auto& one) { return one->all().size() >= 2; };
    ASSERT_TRUE(test::wait_until(
        [&] { return std::all_of(prefill.begin(), prefill.end(), looked_at) && std::all_of(decode.begin(), decode.end(), looked_at); },
        soon()));
  }

  [[nodiscard]] std::uint16_t port() const { return gateway->port(); }

  ClientAnswer complete(std::string_view body, std::string_view fields = {}) const {
    return TestClient(port()).post("/v1/completions", body, fields);
  }

  [[nodiscard]] boost::json::value status() const {
    boost::system::error_code error;
    return boost::json::parse(TestClient(port()).get("/status").body, error);
  }

  [[nodiscard]] std::int64_t counter(const char* name) const { return status().at("counters").at(name).to_number<std::int64_t>(); }

  [[nodiscard]] boost::json::value instance_status(const std::string& name) const {
    const auto document = status();  // a range-for would not keep it alive
    for (const auto& one : document.at("instances").as_array()) {
      if (one.at("instance").as_string() == name) return one;
    }
    return {};
  }

  [[nodiscard]] bool is_healthy(const UpstreamSimulator& one) const {
    return instance_status(one.name()).at("state").as_string() == "healthy";
  }

  static std::string message_of(const ClientAnswer& answer) {
    boost::system::error_code error;
    const auto document = boost::json::parse(answer.body, error);
    if (error || !document.is_object() || !document.get_object().contains("error")) return "no error: " + answer.body;
    return std::string(document.at("error").at("message").as_string());
  }

  Simulators prefill;
  Simulators decode;
  std::unique_ptr<Gateway> gateway;
};

}  // namespace moonpool::gateway::testing
