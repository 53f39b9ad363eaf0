// Spans of sampled requests, as a collector gets them.
#include <gtest/gtest.h>

#include <condition_variable>

#include "gateway/testing/gateway_program.h"
#include "gateway/testing/stub_server.h"

namespace moonpool::gateway::testing {
namespace {

namespace json = boost::json;

constexpr std::string_view kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr std::string_view kSampled = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
constexpr std::string_view kNotSampled = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";

// Keeps what it was posted; answers as told, 200 by itself.
class Collector {
 public:
  void answer_next(std::string answer) {
    const std::lock_guard lock(mutex_);
    next_.push_back(std::move(answer));
  }
  [[nodiscard]] std::vector<StubRequest> posts() const {
    const std::lock_guard lock(mutex_);
    return posts_;
  }
  [[nodiscard]] std::string url() const { return "http://127.0.0.1:" + std::to_string(server_.port()); }
  // All spans so far, from the answers that were taken.
  [[nodiscard]] std::vector<json::object> spans() const {
    std::vector<json::object> all;
    for (const auto& post : posts()) {
      boost::system::error_code error;
      const auto document = json::parse(post.body, error);
      EXPECT_FALSE(error) << post.body;
      for (const auto& span : document.at("resourceSpans").at(0).at("scopeSpans").at(0).at("spans").as_array())
        all.push_back(span.as_object());
    }
    return all;
  }
  [[nodiscard]] bool gets(std::size_t count) const {
    return test::wait_until([&] { return spans().size() >= count; }, soon());
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> next_;
  std::vector<StubRequest> posts_;
  StubServer server_{[this](const StubRequest& request, const StubServer::Send& send) {
    std::string answer = StubServer::answer(200, "{}");
    {
      const std::lock_guard lock(mutex_);
      posts_.push_back(request);
      if (!next_.empty()) {
        answer = next_.front();
        next_.erase(next_.begin());
      }
    }
    send(answer);
  }};
};

std::string text(const json::object& span, const char* field) {
  return span.contains(field) ? std::string(span.at(field).as_string()) : std::string();
}

// The attribute as text, whatever its type.
std::string attribute(const json::object& span, const std::string& key) {
  for (const auto& one : span.at("attributes").as_array()) {
    if (one.at("key").as_string() != key) continue;
    const auto& value = one.at("value").as_object();
    for (const char* kind : {"stringValue", "intValue"}) {
      if (value.contains(kind)) return std::string(value.at(kind).as_string());
    }
    return std::to_string(value.at("doubleValue").to_number<double>());
  }
  return {};
}

class OtlpTest : public GatewayTest {
 protected:
  void start(std::size_t prefill_count, std::size_t decode_count, Settings settings = test_settings()) {
    settings.otlp_endpoint = collector.url();
    start_gateway(prefill_count, decode_count, std::move(settings));
  }
  [[nodiscard]] std::string metric(const std::string& name) const {
    const std::string body = TestClient(port()).get("/metrics").body;
    const std::size_t at = body.find("\n" + name + " ");
    return at == std::string::npos ? std::string() : body.substr(at + name.size() + 2, body.find('\n', at + 1) - at - name.size() - 2);
  }
  [[nodiscard]] std::string dropped() const { return metric(R"(moonpool_gateway_spans_total{outcome="dropped"})"); }
  [[nodiscard]] std::string exported() const { return metric(R"(moonpool_gateway_spans_total{outcome="exported"})"); }
  Collector collector;
};

TEST_F(OtlpTest, ARequestAndEachTryOfItsHopsAreSpansAboveTheInstances) {
  start(1, 2);
  Behaviour broken;
  broken.fault = Fault::kStatus;
  broken.status = 500;
  EXPECT_EQ(complete(kPlain, kNotSampled).status, 200U);
  decode[0]->set_next(broken);  // round robin: one of the two requests meets it
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  ASSERT_TRUE(collector.gets(9));
  const auto post = collector.posts().at(0);
  EXPECT_EQ(post.method + " " + post.target, "POST /v1/traces");
  EXPECT_EQ(post.fields.at("content-type"), "application/json");
  EXPECT_NE(post.body.find(R"({"key":"service.name","value":{"stringValue":"moonpool-gateway"}})"), std::string::npos);
  const auto spans = collector.spans();
  EXPECT_EQ(spans.size(), 9U);  // each: request, queue, prefill, decode; one of them: a second decode
  std::map<std::string, json::object> servers;
  for (const auto& span : spans) {
    EXPECT_EQ(text(span, "traceId"), kTrace);
    EXPECT_LE(std::stoll(text(span, "startTimeUnixNano")), std::stoll(text(span, "endTimeUnixNano")));
    if (span.at("kind").to_number<int>() != 2) continue;
    servers[text(span, "spanId")] = span;
    EXPECT_EQ(text(span, "name"), "POST /v1/completions");
    EXPECT_EQ(text(span, "parentSpanId"), "00f067aa0ba902b7");
    EXPECT_EQ(attribute(span, "http.request.method"), "POST");
    EXPECT_EQ(attribute(span, "url.path"), "/v1/completions");
    EXPECT_EQ(attribute(span, "http.response.status_code"), "200");
    EXPECT_EQ(attribute(span, "gen_ai.request.model"), "m");
    EXPECT_FALSE(attribute(span, "moonpool.first_byte_ms").empty());
  }
  EXPECT_EQ(servers.size(), 2U);
  std::map<std::string, std::string> instance_of;  // by the parent-id that it was sent
  for (const auto* group : {&prefill, &decode}) {
    for (const auto& one : *group) {
      for (const auto& seen : one->completions()) instance_of[seen.fields.at("traceparent").substr(36, 16)] = std::to_string(one->port());
    }
  }
  int failed = 0;
  int hops = 0;
  for (const auto& span : spans) {
    if (span.at("kind").to_number<int>() == 2) continue;
    EXPECT_TRUE(servers.contains(text(span, "parentSpanId")));
    if (span.at("kind").to_number<int>() == 1) {
      EXPECT_EQ(text(span, "name"), "queue");
      continue;
    }
    ++hops;
    EXPECT_EQ(instance_of[text(span, "spanId")], attribute(span, "server.port"));
    EXPECT_TRUE(text(span, "name") == "prefill" || text(span, "name") == "decode");
    if (!span.at("status").as_object().contains("code")) continue;
    ++failed;
    EXPECT_EQ(attribute(span, "http.response.status_code"), "500");
    EXPECT_EQ(span.at("status").at("code").to_number<int>(), 2);
  }
  EXPECT_EQ(hops, 5);
  EXPECT_EQ(failed, 1);
  EXPECT_TRUE(test::wait_until([&] { return exported() == "9"; }, soon()));
  EXPECT_EQ(dropped(), "0");
}

TEST_F(OtlpTest, ABatchThatIsPutOffIsSentOnceMoreAndThenDropped) {
  start(0, 1);
  collector.answer_next(StubServer::answer(503, "", "Retry-After: 0\r\n"));
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return exported() == "3"; }, soon()));
  EXPECT_EQ(collector.posts().size(), 2U);
  EXPECT_EQ(collector.posts().at(0).body, collector.posts().at(1).body);
  EXPECT_EQ(dropped(), "0");
  collector.answer_next(StubServer::answer(503, "", "Retry-After: 0\r\n"));
  collector.answer_next(StubServer::answer(503, "", "Retry-After: 0\r\n"));
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return dropped() == "3"; }, soon()));
  EXPECT_EQ(collector.posts().size(), 4U);
  collector.answer_next(StubServer::answer(400, ""));
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return dropped() == "6"; }, soon()));
  collector.answer_next(StubServer::answer(200, R"({"partialSuccess":{"rejectedSpans":"2","errorMessage":"no"}})"));
  EXPECT_EQ(complete(kPlain, kSampled).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return dropped() == "8" && exported() == "4"; }, soon()));
}

TEST_F(OtlpTest, TextsFromOutsideNeverBreakTheJson) {
  start(0, 1);
  TestClient client(port());
  const std::string model = R"({"model":"a\"b\u00e9)"
                            "\xff\xc3"
                            R"("})";  // half a character, which no JSON may hold
  EXPECT_TRUE(client.post("/v1/%ff%22", model, kSampled).complete);
  ASSERT_TRUE(collector.gets(3));
  EXPECT_EQ(collector.spans().size(), 3U);
}

TEST_F(OtlpTest, ACollectorThatIsAwayCostsARequestNothing) {
  Settings settings = test_settings();
  settings.otlp_endpoint = "http://127.0.0.1:" + std::to_string(test::free_port());
  settings.sample_traces = true;
  start_gateway(0, 1, settings);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return std::stoi("0" + dropped()) >= 60; }, soon()));
  EXPECT_EQ(exported(), "0");
}

TEST(OtlpProcessTest, OpenTelemetrysOwnVariablesNameTheCollectorAndAStopSendsWhatIsLeft) {
  Collector collector;
  UpstreamSimulator instance;
  GatewayProgram gateway({"--decode", instance.name(), "--sample-traces"},
                         {{"OTEL_EXPORTER_OTLP_ENDPOINT", collector.url() + "/otlp/"}, {"OTEL_SERVICE_NAME", "front door"}});
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  gateway.process->signal(SIGTERM);
  EXPECT_EQ(gateway.process->wait(soon()), 0);
  ASSERT_TRUE(collector.gets(3));
  EXPECT_EQ(collector.posts().at(0).target, "/otlp/v1/traces");
  EXPECT_NE(collector.posts().at(0).body.find("front door"), std::string::npos);
  for (const auto& span : collector.spans()) EXPECT_TRUE(text(span, "parentSpanId").empty() == (span.at("kind").to_number<int>() == 2));
}

}  // namespace
}  // namespace moonpool::gateway::testing
