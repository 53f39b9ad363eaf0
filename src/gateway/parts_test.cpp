// The gateway's small parts: names of instances, event streams, groups and their policy, command lines, secrets.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "gateway/admin.h"
#include "gateway/group.h"
#include "gateway/http_message.h"
#include "gateway/instance_name.h"
#include "gateway/latency.h"
#include "gateway/settings.h"
#include "gateway/sse.h"

namespace moonpool::gateway {
namespace {

std::string canonical(std::string_view text) {
  const auto name = InstanceName::parse(text);
  return name.ok() ? name->to_string() : "error";
}

TEST(InstanceNameTest, TakesHostNamesAndBothKindsOfAddress) {
  EXPECT_EQ(canonical("localhost:8100"), "localhost:8100");
  EXPECT_EQ(canonical("Node-1.example_x.org:1"), "node-1.example_x.org:1");
  EXPECT_EQ(canonical("10.0.0.2:65535"), "10.0.0.2:65535");
  EXPECT_EQ(canonical("[::1]:8100"), "[::1]:8100");
  EXPECT_EQ(canonical("[FD00:0:0::2]:8100"), "[fd00::2]:8100");
  EXPECT_EQ(InstanceName::parse("[FD00::2]:81").value().host(), "fd00::2");
  EXPECT_TRUE(InstanceName::parse("10.0.0.2:81").value().is_literal());
  EXPECT_FALSE(InstanceName::parse("localhost:81").value().is_literal());
}

TEST(InstanceNameTest, RefusesTheRestWithAReason) {
  for (const char* text :
       {"",      ":",        "localhost", "localhost:", "localhost:0", "localhost:65536", "localhost:+1", "localhost:8 1",
        ":8100", "::1:8100", "[::1:8100", "[::1]8100",  "[]:1",        "[10.0.0.1]:1",    "1.2.3:80",     "256.1.1.1:80",
        "a b:1", "a/b:1",    "-a:1",      "a..b:1",     "ftp://a:1",   "user@a:1",        "a\r\nX:1"}) {
    const auto name = InstanceName::parse(text);
    ASSERT_FALSE(name.ok()) << text;
    EXPECT_NE(name.status().message().find("host:port"), std::string::npos);
    EXPECT_EQ(name.status().message().find('\n'), std::string::npos);
  }
  EXPECT_FALSE(InstanceName::parse(std::string(300, 'a') + ":1").ok());
}

TEST(SseStreamTest, PassesWholeLinesAndSeesTheEnd) {
  SseStream events;
  EXPECT_EQ(events.feed("data: a\n\nda"), "data: a\n\n");
  EXPECT_EQ(events.feed("ta: b"), "");
  EXPECT_EQ(events.feed("\n\n"), "data: b\n\n");
  EXPECT_FALSE(events.done());
  EXPECT_EQ(events.feed("data: [DO"), "");
  EXPECT_FALSE(events.done());
  EXPECT_EQ(events.feed("NE]\r\n\r\n"), "data: [DONE]\r\n\r\n");
  EXPECT_TRUE(events.done());
}

TEST(SseStreamTest, KnowsTheLastEventOfAResponse) {
  SseStream events;
  EXPECT_NE(events.feed("event: response.output_text.delta\ndata: {}\n\n"), "");
  EXPECT_NE(events.feed("event: response.completed\n"), "");
  EXPECT_FALSE(events.done());  // its data is what makes it whole
  EXPECT_EQ(events.feed("data: {\"type\":\"resp"), "");
  EXPECT_FALSE(events.done());
  EXPECT_NE(events.feed("onse.completed\"}\n\n"), "");
  EXPECT_TRUE(events.done());
}

TEST(SseStreamTest, IsNotFooledByDoneWithinText) {
  SseStream events;
  EXPECT_EQ(events.feed("data: {\"text\":\"data: [DONE]\"}\n\n: data: [DONE]\n"), "data: {\"text\":\"data: [DONE]\"}\n\n: data: [DONE]\n");
  EXPECT_FALSE(events.done());
}

TEST(SseStreamTest, CountsEventsWithData) {
  SseStream events;
  EXPECT_EQ(events.data_events(), 0U);
  EXPECT_NE(events.feed(": a comment\n\nevent: x\ndata: 1\ndata: 2\n\n"), "");
  EXPECT_EQ(events.data_events(), 1U);
  EXPECT_NE(events.feed("data: 3\r\n\r\ndata: 4\n\ndata: "), "");
  EXPECT_EQ(events.data_events(), 3U);
  EXPECT_NE(events.feed("5\n\ndata: [DONE]\n\n"), "");
  EXPECT_EQ(events.data_events(), 4U);
  SseStream broken;
  EXPECT_EQ(broken.feed("data: 1\n\ndata: {\"error\":{}}\n\ndata: 2\n\n"), "data: 1\n\n");
  EXPECT_EQ(broken.data_events(), 1U);
}

TEST(SseStreamTest, TakesDoneWithoutALineEnd) {
  SseStream events;
  EXPECT_EQ(events.feed("data:[DONE]"), "");
  EXPECT_FALSE(events.done());
  EXPECT_EQ(events.finish(), "data:[DONE]");
  EXPECT_TRUE(events.done());
}

TEST(SseStreamTest, HoldsABoundedLine) {
  SseStream events;
  const std::string long_line = "data: " + std::string(SseStream::kLongestHeldLine + 10, 'x');
  EXPECT_EQ(events.feed(long_line), long_line);
  EXPECT_TRUE(events.mid_line());
  EXPECT_EQ(events.feed("data: [DONE]\n"), "data: [DONE]\n");  // the rest of the long line, no end
  EXPECT_FALSE(events.done());
  EXPECT_FALSE(events.mid_line());
}

std::shared_ptr<Instance> instance(const std::string& name, unsigned failures = 3) {
  return std::make_shared<Instance>(InstanceName::parse(name).value(), "decode",
                                    CircuitSettings{failures, std::chrono::milliseconds(50), std::chrono::milliseconds(50)});
}

const Status kBroken(ErrorCode::kUnavailable, "broken");

TEST(GroupTest, RoundRobinIsFair) {
  auto a = instance("a:1");
  auto b = instance("b:1");
  auto c = instance("c:1");
  Group group("decode", make_policy("round_robin").value());
  for (const auto& one : {a, b, c}) ASSERT_TRUE(group.add(one));
  std::map<std::string, int> count;
  for (int i = 0; i < 300; ++i) ++count[group.pick({}, {})->name().to_string()];
  EXPECT_EQ(count["a:1"], 100);
  EXPECT_EQ(count["b:1"], 100);
  EXPECT_EQ(count["c:1"], 100);
}

TEST(GroupTest, PassesOverUnhealthyOnesUntilNoOtherIsLeft) {
  auto a = instance("a:1", 1);
  auto b = instance("b:1", 1);
  Group group("decode", make_policy("round_robin").value());
  ASSERT_TRUE(group.add(a));
  ASSERT_TRUE(group.add(b));
  a->failed(kBroken);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(group.pick({}, {}), b);
  const InstanceList tried{b};
  EXPECT_EQ(group.pick({}, tried), a);
  b->failed(kBroken);
  EXPECT_NE(group.pick({}, {}), nullptr);
  const InstanceList both{a, b};
  EXPECT_EQ(group.pick({}, both), nullptr);
}

TEST(GroupTest, AddsAnInstanceOnce) {
  Group group("decode", make_policy("round_robin").value());
  EXPECT_EQ(group.pick({}, {}), nullptr);
  EXPECT_TRUE(group.add(instance("a:1")));
  EXPECT_FALSE(group.add(instance("A:1")));
  EXPECT_EQ(group.snapshot()->size(), 1U);
}

TEST(InstanceTest, OneFailureNeverEvictsAndOneSuccessBringsBack) {
  auto a = instance("a:1", 3);
  a->failed(kBroken);
  a->failed(kBroken);
  a->succeeded();
  a->failed(kBroken);
  a->failed(kBroken);
  EXPECT_TRUE(a->healthy());
  a->failed(kBroken);
  EXPECT_FALSE(a->healthy());
  EXPECT_EQ(a->last_error(), "broken");
  a->succeeded();
  EXPECT_TRUE(a->healthy());
  EXPECT_EQ(a->errors(), 5U);
}

TEST(LatencyTest, PercentilesBoundTheirSamplesFromAbove) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.percentile_ms(0.5), 0);
  for (int i = 0; i < 90; ++i) histogram.record(std::chrono::milliseconds(10));
  for (int i = 0; i < 10; ++i) histogram.record(std::chrono::seconds(1));
  EXPECT_GE(histogram.percentile_ms(0.5), 10);
  EXPECT_LE(histogram.percentile_ms(0.5), 15.1);
  EXPECT_GE(histogram.percentile_ms(0.99), 1000);
  EXPECT_LE(histogram.percentile_ms(0.99), 1510);
  EXPECT_NEAR(histogram.mean_ms(), 109, 0.1);
  EXPECT_NEAR(histogram.sum_s(), 10.9, 0.001);
}

TEST(LatencyTest, EverySampleLiesBelowTheEdgeOfItsBucket) {
  for (std::uint64_t us = 1; us < 10'000'000'000; us = us * 5 / 4 + 1) {
    LatencyHistogram histogram;
    histogram.record(std::chrono::microseconds(us), 3);
    EXPECT_EQ(histogram.count(), 3U);
    std::size_t bucket = 0;
    while (histogram.in_bucket(bucket) == 0) ++bucket;
    const double seconds = static_cast<double>(us) / 1e6;
    EXPECT_LT(seconds, LatencyHistogram::upper_edge_s(bucket)) << us;
    if (bucket > 0) {
      EXPECT_GE(seconds, LatencyHistogram::upper_edge_s(bucket - 1)) << us;
    }
  }
}

TEST(HttpMessageTest, ForwardsWhatConcernsTheInstanceAlone) {
  HeaderFields fields;
  fields.add(http::field::host, "Host", "gateway");
  fields.add(http::field::authorization, "Authorization", "Bearer t");
  fields.add(http::field::connection, "Connection", "keep-alive, X-Private");
  fields.add(http::field::unknown, "X-Private", "1");
  fields.add(http::field::unknown, "X-API-Key", "admin");
  fields.add(http::field::unknown, "traceparent", "00-1-2-01");
  fields.add(http::field::content_length, "Content-Length", "3");
  fields.add(http::field::te, "TE", "trailers");
  fields.add(http::field::unknown, "tracestate", "a=1");
  fields.add(http::field::unknown, "Tracestate", "b=2");
  EXPECT_EQ(forwarded_request_fields(fields, "id1", true),
            "Authorization: Bearer t\r\ntracestate: a=1\r\nTracestate: b=2\r\nX-Request-Id: id1\r\n");
  EXPECT_EQ(forwarded_request_fields(fields, "id1", false), "Authorization: Bearer t\r\nX-Request-Id: id1\r\n");
  EXPECT_EQ(upstream_request_head("GET", "/x", "a:1", "A: 1\r\n", 0, "B: 2\r\n"), "GET /x HTTP/1.1\r\nHost: a:1\r\nA: 1\r\nB: 2\r\n\r\n");
}

TEST(HttpMessageTest, ErrorsHaveOpenAiShape) {
  EXPECT_EQ(openai_error(503, "a \"b\""), R"({"error":{"message":"a \"b\"","type":"service_unavailable_error","param":null,"code":503}})");
}

Result<ParsedCommandLine> parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "gateway");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

TEST(CommandLineTest, TakesTheGuidesCommandLines) {
  ::setenv("ADMIN_API_KEY", "xxxxxxxx", 1);
  const auto first = parse({"--model", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "--prefill", "localhost:8100", "localhost:8101", "--decode",
                            "localhost:8200", "localhost:8201", "--port", "8000"});
  const auto second = parse({"-m", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "-p", "localhost:8100", "localhost:8101", "-d", "localhost:8200",
                             "localhost:8201", "--port", "8000", "--scheduling", "round_robin"});
  ::unsetenv("ADMIN_API_KEY");
  for (const auto* parsed : {&first, &second}) {
    ASSERT_TRUE(parsed->ok()) << parsed->status().message();
    const Settings& settings = *parsed->value().settings;
    EXPECT_EQ(settings.model, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4");
    ASSERT_EQ(settings.prefill.size(), 2U);
    EXPECT_EQ(settings.prefill[1].to_string(), "localhost:8101");
    ASSERT_EQ(settings.decode.size(), 2U);
    EXPECT_EQ(settings.decode[0].to_string(), "localhost:8200");
    EXPECT_EQ(settings.port, 8000);
    EXPECT_EQ(settings.host, "127.0.0.1");
    EXPECT_EQ(settings.scheduling, parsed == &first ? default_policy() : "round_robin");
    ASSERT_NE(settings.keys.find("xxxxxxxx"), nullptr);
    EXPECT_EQ(settings.keys.find("xxxxxxxx")->role, KeyRole::kAdmin);
    EXPECT_EQ(settings.keys.find("xxxxxxx"), nullptr);
  }
}

TEST(CommandLineTest, SaysWhatIsWrong) {
  const std::vector<std::pair<std::vector<const char*>, std::string>> cases{
      {{}, "--model"},
      {{"-m", "m", "-p", "nowhere"}, "--prefill: 'nowhere'"},
      {{"-m", "m", "--port", "70000"}, "70000"},
      {{"-m", "m", "--scheduling", "best"}, "round_robin"},
      {{"-m", "m", "--preefill", "a:1"}, "preefill"},
      {{"-m", "m", "--connect-timeout", "-1"}, "connect-timeout"},
  };
  for (const auto& [arguments, expected] : cases) {
    const auto parsed = parse(arguments);
    ASSERT_FALSE(parsed.ok());
    EXPECT_NE(parsed.status().message().find(expected), std::string::npos) << parsed.status().message();
  }
}

TEST(CommandLineTest, EveryFlagHasAnEnvironmentVariableAndWinsOverIt) {
  ::setenv("MOONPOOL_GATEWAY_CONNECT_TIMEOUT", "0.5", 1);
  ::setenv("MOONPOOL_GATEWAY_BETWEEN_BYTES_TIMEOUT", "7", 1);
  ::setenv("MOONPOOL_GATEWAY_CONTINUE_STREAMS", "always", 1);
  const auto parsed = parse({"-m", "m", "--connect-timeout", "0.25", "--continue-marker", "event"});
  ::setenv("MOONPOOL_GATEWAY_CONTINUE_STREAMS", "sometimes", 1);
  const auto wrong = parse({"-m", "m"});
  for (const char* name :
       {"MOONPOOL_GATEWAY_CONNECT_TIMEOUT", "MOONPOOL_GATEWAY_BETWEEN_BYTES_TIMEOUT", "MOONPOOL_GATEWAY_CONTINUE_STREAMS"}) {
    ::unsetenv(name);
  }
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(parsed->settings->timeouts.connect, std::chrono::milliseconds(250));
  EXPECT_EQ(parsed->settings->timeouts.between_bytes, std::chrono::seconds(7));
  EXPECT_EQ(parsed->settings->continue_streams, ContinueStreams::kAlways);
  EXPECT_EQ(parsed->settings->continue_marker, ContinueMarker::kEvent);
  EXPECT_FALSE(wrong.ok());
}

TEST(CommandLineTest, TimeoutsAreInSeconds) {
  const auto parsed = parse({"-m", "m", "--connect-timeout", "0.25", "--drain-timeout", "3"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->settings->timeouts.connect, std::chrono::milliseconds(250));
  EXPECT_EQ(parsed->settings->timeouts.drain, std::chrono::seconds(3));
  EXPECT_FALSE(parse({"--help"}).value().settings.has_value());
}

}  // namespace
}  // namespace moonpool::gateway
