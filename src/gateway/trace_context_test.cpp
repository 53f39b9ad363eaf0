// Which traceparent values are taken, and what the next hop is told.
#include "gateway/trace_context.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace moonpool::gateway {
namespace {

const std::string kTraceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kIds = kTraceId + "-00f067aa0ba902b7";

HeaderFields fields(const std::vector<std::pair<std::string, std::string>>& lines) {
  HeaderFields made;
  for (const auto& [name, value] : lines) made.add(http::field::unknown, name, value);
  return made;
}

TEST(TraceContextTest, TakesValidValues) {
  for (const std::string& text :
       {"00-" + kIds + "-00", "00-" + kIds + "-01", "00-" + kIds + "-ff", "01-" + kIds + "-00", "cc-" + kIds + "-01-",
        "fe-" + kIds + "-01-what-the-future-holds.", "00-" + std::string(31, '0') + "1-0000000000000001-00"}) {
    const auto context = TraceContext::parse(text);
    ASSERT_TRUE(context) << text;
    EXPECT_EQ(context->trace_id(), text.substr(3, 32));
    EXPECT_TRUE(context->came_with_request());
  }
}

TEST(TraceContextTest, PassesOnTheSampledFlagAlone) {
  for (const auto& [flags, expected] : std::vector<std::pair<std::string, std::string>>{
           {"00", "00"}, {"01", "01"}, {"02", "00"}, {"03", "01"}, {"fe", "00"}, {"ff", "01"}, {"0a", "00"}, {"0b", "01"}}) {
    const auto context = TraceContext::parse("00-" + kIds + "-" + flags);
    ASSERT_TRUE(context) << flags;
    EXPECT_EQ(context->sampled(), expected == "01");
    EXPECT_TRUE(context->hop_field().ends_with("-" + expected + "\r\n")) << context->hop_field();
  }
}

TEST(TraceContextTest, RefusesInvalidValues) {
  const std::string zero_parent = kTraceId + "-0000000000000000";
  const std::string zero_trace = std::string(32, '0') + "-00f067aa0ba902b7";
  std::string upper = "00-" + kIds + "-01";
  upper[5] = 'F';
  std::string upper_parent = "00-" + kIds + "-01";
  upper_parent[39] = 'F';
  for (const std::string& text : {std::string(),
                                  std::string("00"),
                                  "ff-" + kIds + "-01",
                                  "FE-" + kIds + "-01",
                                  "0g-" + kIds + "-01",
                                  "0-" + kIds + "-01",
                                  "000-" + kIds + "-01",
                                  "00-" + zero_parent + "-01",
                                  "00-" + zero_trace + "-01",
                                  upper,
                                  upper_parent,
                                  "00-" + kIds + "-0",
                                  "00-" + kIds + "-0A",
                                  "00-" + kIds + "-0x",
                                  "00-" + kIds,
                                  "00-" + kIds + "-01-",
                                  "00-" + kIds + "-01-more",
                                  "00-" + kIds + "-011",
                                  "01-" + kIds + "-011",
                                  "01-" + kIds + "-01.x",
                                  "00_" + kIds + "-01",
                                  "00-" + kTraceId + "_00f067aa0ba902b7-01",
                                  "00-" + kIds + "_01",
                                  "00-" + kTraceId.substr(1) + "-00f067aa0ba902b7-01",
                                  "00-" + kTraceId + "-0f067aa0ba902b7-01",
                                  " 00-" + kIds + "-01",
                                  "00-" + kIds + "-01 ",
                                  "00-" + std::string(10'000, 'a') + "-00f067aa0ba902b7-01",
                                  "00-" + kIds + "-01,00-" + kIds + "-01"}) {
    EXPECT_FALSE(TraceContext::parse(text)) << text;
  }
}

TEST(TraceContextTest, TakesOneHeaderInAnyCaseAndNoTwo) {
  const std::string valid = "00-" + kIds + "-01";
  EXPECT_EQ(TraceContext::of(fields({{"TraceParent", valid}}), false).trace_id(), kTraceId);
  for (const auto& lines : std::vector<std::vector<std::pair<std::string, std::string>>>{
           {}, {{"traceparent", valid}, {"traceparent", valid}}, {{"traceparent", ""}}, {{"traceparent", valid}, {"Traceparent", "x"}}}) {
    for (const bool sample : {false, true}) {
      const auto started = TraceContext::of(fields(lines), sample);
      EXPECT_NE(started.trace_id(), kTraceId);
      EXPECT_FALSE(started.came_with_request());
      EXPECT_EQ(started.sampled(), sample);
    }
  }
}

TEST(TraceContextTest, EveryIdIsNewAndValid) {
  std::set<std::string> traces;
  std::set<std::string> hops;
  for (int i = 0; i < 1000; ++i) {
    const auto context = TraceContext::start(false);
    traces.insert(std::string(context.trace_id()));
    const std::string line = context.hop_field();
    hops.insert(line.substr(line.find(context.trace_id()) + 33));
    ASSERT_TRUE(line.starts_with("traceparent: ") && line.ends_with("\r\n")) << line;
    const auto parsed = TraceContext::parse(std::string_view(line).substr(13, line.size() - 15));
    ASSERT_TRUE(parsed) << line;
    EXPECT_EQ(parsed->trace_id(), context.trace_id());
  }
  EXPECT_EQ(traces.size(), 1000U);
  EXPECT_EQ(hops.size(), 1000U);
}

}  // namespace
}  // namespace moonpool::gateway
