// GET /metrics: the text is what Prometheus' format 0.0.4 allows, and the numbers are what happened.
#include "gateway/metrics.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

using Labels = std::map<std::string, std::string>;

// A reader that refuses what the format does not allow, and what it allows and we never write (time stamps, comments, blank lines).
class Scrape {
 public:
  explicit Scrape(std::string_view text) {
    if (!text.ends_with('\n')) fail("the last line has no end");
    while (!text.empty() && problem_.empty()) {
      const std::size_t end = text.find('\n');
      read_line(text.substr(0, end));
      text.remove_prefix(end + 1);
    }
    if (problem_.empty()) end_family();
  }

  [[nodiscard]] const std::string& problem() const { return problem_; }  // empty: there is none
  // NaN where there is no such series.
  [[nodiscard]] double value(const std::string& name, const Labels& labels = {}) const {
    const auto found = values_.find({"moonpool_gateway_" + name, labels});
    return found == values_.end() ? std::numeric_limits<double>::quiet_NaN() : found->second;
  }

 private:
  using Series = std::pair<std::string, Labels>;
  struct Buckets {
    double edge = -std::numeric_limits<double>::infinity();
    double count = 0;
  };

  void fail(std::string_view what) {
    if (problem_.empty()) problem_ = what;
  }

  static bool is_name(std::string_view text, bool of_label) {
    const auto is_letter = [&](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c == ':' && !of_label); };
    if (text.empty() || !is_letter(text[0])) return false;
    for (const char c : text) {
      if (!is_letter(c) && !(c >= '0' && c <= '9')) return false;
    }
    return true;
  }

  static std::string_view take_word(std::string_view& line) {
    const std::size_t end = std::min(line.find(' '), line.size());
    const std::string_view word = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
    return word;
  }

  void read_line(std::string_view line) {
    if (line.starts_with("# HELP ")) return read_help(line.substr(7));
    if (line.starts_with("# TYPE ")) return read_type(line.substr(7));
    if (family_.empty() || kind_.empty()) return fail("a sample before HELP and TYPE: " + std::string(line));
    read_sample(line);
  }

  void read_help(std::string_view line) {
    if (!family_.empty()) end_family();
    const std::string_view name = take_word(line);
    if (!is_name(name, false) || line.empty()) return fail("HELP without name or text");
    if (!families_.insert(std::string(name)).second) return fail("a family twice: " + std::string(name));
    family_ = name;
    kind_.clear();
  }

  void read_type(std::string_view line) {
    const std::string_view name = take_word(line);
    if (name != family_ || !kind_.empty()) return fail("TYPE that does not follow its HELP: " + std::string(name));
    if (line != "counter" && line != "gauge" && line != "histogram") return fail("an unknown type: " + std::string(line));
    if ((line == "counter") != name.ends_with("_total")) return fail("only counters end in _total: " + std::string(name));
    kind_ = line;
  }

  void read_sample(std::string_view line) {
    const std::string whole(line);
    const std::size_t name_end = std::min(line.find_first_of("{ "), line.size());
    const std::string name(line.substr(0, name_end));
    line.remove_prefix(name_end);
    Labels labels;
    if (!is_name(name, false)) return fail("no name: " + whole);
    if (line.starts_with('{') && !take_labels(line, labels)) return fail("wrong labels: " + whole);
    if (line.size() < 2 || line[0] != ' ') return fail("no value: " + whole);
    const std::string number(line.substr(1));
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    if (number.find(' ') != std::string::npos || *end != '\0') return fail("no number: " + whole);
    if (!values_.insert({{name, labels}, value}).second) return fail("a series twice: " + whole);
    if (kind_ == "histogram") return read_histogram_sample(name, labels, value);
    if (name != family_) return fail("a sample of another family: " + whole);
    if (kind_ == "counter" && !(value >= 0 && value == std::floor(value))) fail("a counter that counts nothing whole: " + whole);
  }

  static bool take_labels(std::string_view& line, Labels& labels) {
    do {
      line.remove_prefix(1);  // { or ,
      const std::size_t equals = line.find("=\"");
      if (equals == std::string_view::npos || !is_name(line.substr(0, equals), true)) return false;
      const std::string name(line.substr(0, equals));
      line.remove_prefix(equals + 2);
      std::string value;
      while (!line.empty() && line[0] != '"') {
        char c = line[0];
        if (c == '\\') {
          if (line.size() < 2 || std::string_view("\\\"n").find(line[1]) == std::string_view::npos) return false;
          c = line[1] == 'n' ? '\n' : line[1];
          line.remove_prefix(1);
        }
        value += c;
        line.remove_prefix(1);
      }
      if (line.empty() || !labels.emplace(name, value).second) return false;
      line.remove_prefix(1);
    } while (line.starts_with(','));
    if (!line.starts_with('}')) return false;
    line.remove_prefix(1);
    return true;
  }

  void read_histogram_sample(const std::string& name, Labels labels, double value) {
    if (name == family_ + "_sum" || name == family_ + "_count") {
      if (labels.contains("le")) fail("le in a sum or count of " + family_);
      return;
    }
    if (name != family_ + "_bucket" || !labels.contains("le")) return fail("no part of a histogram: " + name);
    char* end = nullptr;
    const std::string edge_text = labels.extract("le").mapped();
    const double edge = std::strtod(edge_text.c_str(), &end);
    Buckets& buckets = buckets_[labels];
    if (*end != '\0' || !(edge > buckets.edge)) return fail("edges that do not rise in " + family_ + ": " + edge_text);
    if (value < buckets.count) return fail("buckets that are not cumulative in " + family_);
    buckets = {edge, value};
  }

  void end_family() {
    for (const auto& [labels, buckets] : buckets_) {
      if (!std::isinf(buckets.edge)) fail("no +Inf bucket in " + family_);
      const auto count = values_.find({family_ + "_count", labels});
      if (count == values_.end() || count->second != buckets.count) fail("the count is not the +Inf bucket of " + family_);
      if (values_.find({family_ + "_sum", labels}) == values_.end()) fail("no sum in " + family_);
    }
    if (kind_.empty()) fail("HELP without TYPE: " + family_);
    buckets_.clear();
  }

  std::string problem_;
  std::set<std::string> families_;
  std::string family_;  // the one in progress
  std::string kind_;
  std::map<Labels, Buckets> buckets_;  // of the family in progress
  std::map<Series, double> values_;
};

TEST(ScrapeTest, IsStrict) {
  const std::string head = "# HELP a_total x\n# TYPE a_total counter\n";
  EXPECT_EQ(Scrape(head + "a_total 1\na_total{b=\"\\\\\\\"\\n\"} 2\n").problem(), "");
  for (const std::string& text :
       {std::string(),
        head + "a_total 1",
        std::string("a_total 1\n"),
        head + "a_total -1\n",
        head + "a_total 1.5\n",
        head + "b_total 1\n",
        head + "a_total 1\na_total 1\n",
        head + "a_total{} 1\n",
        head + "a_total{b=\"1\",} 1\n",
        head + "a_total{b=\"1\",b=\"2\"} 1\n",
        head + "a_total{b=\"\\x\"} 1\n",
        head + "a_total{b=\"1\" 1\n",
        head + "a_total{b=1} 1\n",
        head + "a_total  1\n",
        head + "\n",
        head + "a_total 1 2\n",
        head + head,
        std::string("# HELP a x\n# TYPE a counter\na 1\n"),
        std::string("# TYPE a gauge\na 1\n"),
        std::string("# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n"),
        std::string("# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n"),
        std::string("# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 1\n")}) {
    EXPECT_NE(Scrape(text).problem(), "") << text;
  }
}

class MetricsTest : public GatewayTest {
 protected:
  [[nodiscard]] Scrape scrape() const {
    const auto answer = TestClient(port()).get("/metrics");
    EXPECT_EQ(answer.status, 200U);
    EXPECT_EQ(answer.fields.at("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    Scrape read(answer.body);
    EXPECT_EQ(read.problem(), "") << answer.body;
    return read;
  }
  [[nodiscard]] double outcome(const std::string& name) const { return scrape().value("requests_total", {{"outcome", name}}); }
  static Labels labels_of(const UpstreamSimulator& one, const std::string& role, Labels more = {}) {
    more.insert({{"instance", one.name()}, {"role", role}});
    return more;
  }
  static Behaviour failing(Fault fault, unsigned status = 500) {
    Behaviour behaviour;
    behaviour.fault = fault;
    behaviour.status = status;
    return behaviour;
  }
};

TEST_F(MetricsTest, EveryOutcomeIsCountedOnce) {
  start_gateway(1, 1);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_TRUE(complete(kStreamed).complete);
  decode[0]->set_next(failing(Fault::kStatus, 422));
  EXPECT_EQ(complete(kPlain).status, 422U);
  decode[0]->set_next(failing(Fault::kStatus, 500));
  EXPECT_EQ(complete(kPlain).status, 500U);
  decode[0]->set_next(failing(Fault::kCloseInStream));
  EXPECT_FALSE(complete(kStreamed).complete);
  EXPECT_EQ(complete(R"({"prompt":)").status, 400U);
  decode[0]->hold_tokens();
  TestClient leaving(port());
  ASSERT_TRUE(leaving.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == 7; }, soon()));
  leaving.close();
  ASSERT_TRUE(test::wait_until([&] { return outcome("client_gone") == 1; }, soon()));

  // Each was counted after its client had its answer.
  const std::map<std::string, double> outcomes{{"answered", 4}, {"failed", 1}, {"cut", 1}, {"client_gone", 1}, {"bad_request", 1}};
  ASSERT_TRUE(test::wait_until(
      [&] {
        const Scrape now = scrape();
        return std::all_of(outcomes.begin(), outcomes.end(),
                           [&](const auto& one) {
                             return now.value("requests_total", {{"outcome", one.first}}) == one.second;
                           }) &&
               now.value("first_byte_seconds_count") == 4;
      },
      soon()));
  const Scrape all = scrape();
  EXPECT_EQ(all.value("completions_total"), 8);
  EXPECT_EQ(all.value("retries_total"), 0);
  EXPECT_EQ(all.value("retries_refused_total"), 0);
  EXPECT_EQ(all.value("continued_total"), 0);
  EXPECT_EQ(all.value("prefill_given_up_total"), 0);
  EXPECT_GE(all.value("client_connections"), 1);
  EXPECT_EQ(all.value("info", {{"model", "m"}, {"prefill_policy", "round_robin"}, {"decode_policy", "round_robin"}}), 1);
  for (const char* role : {"prefill", "decode"}) {
    const bool decoding = std::string_view(role) == "decode";
    const UpstreamSimulator& one = decoding ? *decode[0] : *prefill[0];
    const Labels labels = labels_of(one, role);
    EXPECT_EQ(all.value("instance_up", labels), 1);
    EXPECT_EQ(all.value("instance_state", labels_of(one, role, {{"state", "healthy"}})), 1);
    EXPECT_EQ(all.value("instance_state", labels_of(one, role, {{"state", "draining"}})), 0);
    EXPECT_EQ(all.value("instance_in_flight", labels), 0);
    EXPECT_EQ(all.value("instance_requests_total", labels), 7);
    EXPECT_EQ(all.value("instance_errors_total", labels_of(one, role, {{"cause", "server_error"}})), decoding ? 1 : 0);
    EXPECT_EQ(all.value("instance_errors_total", labels_of(one, role, {{"cause", "unreachable"}})), decoding ? 1 : 0);
    EXPECT_EQ(all.value("instance_errors_total", labels_of(one, role, {{"cause", "timeout"}})), 0);
    EXPECT_EQ(all.value("instance_first_byte_seconds_count", labels), decoding ? 5 : 7);  // neither 500 nor the one that was left
    EXPECT_EQ(all.value("instance_request_seconds_count", labels), decoding ? 4 : 7);
    EXPECT_EQ(all.value("instance_inter_token_seconds_count", labels), decoding ? 3 + 1 : 0);  // 4 tokens, and 2 of the cut stream
    EXPECT_EQ(all.value("hop_seconds_count", {{"hop", role}}), 7);
  }
}

TEST_F(MetricsTest, RetriesContinuationsAndSkippedPrefillsAreCounted) {
  start_gateway(1, 2);
  prefill[0]->stop();
  Behaviour dies;
  dies.point = Point::kBetweenTokens;
  decode[0]->set(dies);
  double asked = 0;
  while (decode[0]->completions().empty() && asked < 4) {
    EXPECT_TRUE(complete(R"({"prompt":"Tell","max_tokens":4,"stream":true,"temperature":0,"return_token_ids":true})").complete);
    ++asked;
  }
  ASSERT_EQ(decode[0]->completions().size(), 1U);
  ASSERT_TRUE(test::wait_until([&] { return outcome("answered") == asked; }, soon()));
  const Scrape all = scrape();
  EXPECT_EQ(all.value("continued_total"), 1);
  EXPECT_EQ(all.value("retries_total"), 1);
  EXPECT_EQ(all.value("prefill_given_up_total"), asked);
  EXPECT_EQ(all.value("instance_inter_token_seconds_count", labels_of(*decode[0], "decode")), 1);
  EXPECT_GE(all.value("instance_errors_total", labels_of(*prefill[0], "prefill", {{"cause", "unreachable"}})), 1);
}

TEST_F(MetricsTest, RefusedRetriesAreCounted) {
  Settings settings = test_settings();
  settings.retries.budget_share = 0;
  settings.retries.budget_always = 0;
  start_gateway(0, 2, settings);
  for (const auto& one : decode) one->set_next(failing(Fault::kStatus, 503));
  EXPECT_EQ(complete(kPlain).status, 503U);
  ASSERT_TRUE(test::wait_until([&] { return outcome("failed") == 1; }, soon()));
  EXPECT_EQ(scrape().value("retries_refused_total"), 1);
  EXPECT_EQ(scrape().value("retries_total"), 0);
}

TEST_F(MetricsTest, GapsBetweenTokensAreTheirTimes) {
  using Clock = std::chrono::steady_clock;
  start_gateway(0, 1);
  TestClient client(port());
  decode[0]->hold_tokens();
  ASSERT_TRUE(client.send_request("POST", "/v1/completions", kStreamed));
  Clock::time_point first_seen;
  Clock::time_point last_released;
  for (int i = 0; i < 4; ++i) {
    last_released = Clock::now();
    decode[0]->release_tokens(1);
    if (i == 0) {
      ASSERT_EQ(client.read_head().status, 200U);
    }
    ASSERT_TRUE(client.read_chunk().has_value());
    if (i == 0) first_seen = Clock::now();
  }
  while (client.read_chunk()) {
  }
  EXPECT_FALSE(client.ended_badly());
  const Labels labels = labels_of(*decode[0], "decode");
  ASSERT_TRUE(test::wait_until([&] { return scrape().value("instance_request_seconds_count", labels) == 1; }, soon()));
  const Scrape all = scrape();
  EXPECT_EQ(all.value("instance_inter_token_seconds_count", labels), 3);
  // The first token was there before its client saw it, the last one not before it was released; each gap is rounded to 1 us.
  const double at_least = std::chrono::duration<double>(last_released - first_seen).count();
  EXPECT_GE(all.value("instance_inter_token_seconds_sum", labels) + 4e-6, at_least);
  EXPECT_LE(all.value("instance_inter_token_seconds_sum", labels), all.value("instance_request_seconds_sum", labels));
  EXPECT_EQ(instance_status(decode[0]->name()).at("inter_token_latency").at("count").to_number<int>(), 3);
  EXPECT_NE(TestClient(port()).get("/status?format=text").body.find("inter-token p50"), std::string::npos);
}

TEST(MetricsTextTest, EscapesLabelValues) {
  Settings settings;
  settings.model = "a\"b\\c\nd";
  const GatewayState state(settings, make_policy("round_robin").value(), make_policy("least_load").value());
  const std::string text = metrics_text(state);
  EXPECT_NE(text.find(R"(model="a\"b\\c\nd")"), std::string::npos) << text;
  const Scrape read(text);
  EXPECT_EQ(read.problem(), "") << text;
  EXPECT_EQ(read.value("info", {{"model", settings.model}, {"prefill_policy", "round_robin"}, {"decode_policy", "least_load"}}), 1);
}

}  // namespace
}  // namespace moonpool::gateway::testing
