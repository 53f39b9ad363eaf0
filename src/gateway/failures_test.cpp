// Every failure at every stage, in both hops, streamed and not: what the client sees is what the contract says.
//
// The outcomes are also the table in docs/gateway-failures.md: with MOONPOOL_WRITE_DOCS set this test writes the file, without it checks
// that the file is what it would write.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

enum class Request { kPlain, kStream, kGreedyStream, kGreedyChat };

struct Stage {
  const char* name;
  Point point;
};
constexpr Stage kStages[] = {{"connect", Point::kAccepted},
                             {"request sent", Point::kRequestRead},
                             {"within the head", Point::kInHead},
                             {"before the first token", Point::kHeadSent},
                             {"between tokens", Point::kBetweenTokens},
                             {"within a token", Point::kInToken},
                             {"before [DONE]", Point::kBeforeFinish},
                             {"before the last chunk", Point::kBeforeLastChunk},
                             {"within the body", Point::kInBody}};

enum class Failure { kRefused, kClose, kReset, kStall, kMalformed, k500, k503, kEngineError };
constexpr std::pair<Failure, const char*> kFailures[] = {
    {Failure::kRefused, "refused"},     {Failure::kClose, "close"}, {Failure::kReset, "reset"}, {Failure::kStall, "stall"},
    {Failure::kMalformed, "malformed"}, {Failure::k500, "500"},     {Failure::k503, "503"},     {Failure::kEngineError, "error event"}};

struct Cell {
  bool prefill;
  Request request;
  Stage stage;
  Failure failure;
};

bool is_stream(Request request) { return request != Request::kPlain; }
bool may_continue(Request request) { return request == Request::kGreedyStream || request == Request::kGreedyChat; }

bool is_mid_stream(Point point) { return point == Point::kBetweenTokens || point == Point::kInToken; }

// Whether a cell exists: a connection is refused before it is one, a status is a whole answer.
bool makes_sense(const Cell& cell) {
  const Point point = cell.stage.point;
  const bool streamed = !cell.prefill && is_stream(cell.request);
  const bool of_streams = is_mid_stream(point) || point == Point::kBeforeFinish || point == Point::kBeforeLastChunk;
  if (of_streams && !streamed) return false;
  if (point == Point::kInBody && streamed) return false;
  switch (cell.failure) {
    case Failure::kRefused:
      return point == Point::kAccepted;
    case Failure::k500:
    case Failure::k503:
      return point == Point::kRequestRead;
    case Failure::kMalformed:
      // Within a length or a chunk all bytes are good HTTP.
      return point != Point::kAccepted && point != Point::kInToken && (streamed || point != Point::kHeadSent);
    case Failure::kEngineError:
      return streamed && (point == Point::kHeadSent || is_mid_stream(point)) && point != Point::kInToken;
    default:
      return true;
  }
}

// The contract, in words of its own.
std::string expected(const Cell& cell, bool all) {
  const Point point = cell.stage.point;
  if (cell.prefill || point == Point::kBeforeLastChunk) return "answered";
  const bool begun = is_mid_stream(point) || point == Point::kBeforeFinish;
  if (begun && !may_continue(cell.request)) return "error event";
  if (point == Point::kBeforeFinish) return "answered";
  if (begun) return all ? "error event" : "continued";
  if (!all) return "answered";
  switch (cell.failure) {
    case Failure::kStall:
      return "504";
    case Failure::k500:
      return "500";
    case Failure::k503:
      return "503";
    default:
      return "502";
  }
}

const std::vector<std::string> kTokens = {"Once", " upon", " a", " time", " there", " was", " a", " king"};

std::string target(Request request) { return request == Request::kGreedyChat ? "/v1/chat/completions" : "/v1/completions"; }

std::string body(Request request) {
  switch (request) {
    case Request::kPlain:
      return R"({"model":"m","prompt":"Tell","max_tokens":8})";
    case Request::kStream:
      return R"({"model":"m","prompt":"Tell","max_tokens":8,"stream":true,"temperature":0.7})";
    case Request::kGreedyStream:
      return R"({"model":"m","prompt":"Tell","max_tokens":8,"stream":true,"temperature":0,"return_token_ids":true,"stream_options":{"include_usage":false}})";
    case Request::kGreedyChat:
      return R"({"model":"m","messages":[{"role":"user","content":"Tell"}],"max_tokens":8,"stream":true,"temperature":0.0,"return_token_ids":true})";
  }
  return {};
}

const char* name_of(Request request) {
  switch (request) {
    case Request::kPlain:
      return "plain";
    case Request::kStream:
      return "stream";
    case Request::kGreedyStream:
      return "stream, temperature 0";
    case Request::kGreedyChat:
      return "chat stream, temperature 0";
  }
  return "";
}

class FailuresTest : public GatewayTest {
 protected:
  void start() {
    Settings settings = test_settings();
    settings.timeouts.prefill = settings.timeouts.first_byte = settings.timeouts.between_bytes = kStallDeadline;
    settings.timeouts.upstream_idle = std::chrono::milliseconds(1);  // every hop is a fresh connection
    settings.retries = {0, 1e6, std::chrono::milliseconds(1), std::chrono::milliseconds(1)};
    settings.health.circuit.failures_to_open = 1'000'000;  // no cell hides behind the one before
    settings.health.check_every = std::chrono::milliseconds(0);
    start_gateway(2, 2, settings);
    healthy_.tokens = kTokens;
    for (const Simulators* group : {&prefill, &decode}) {
      for (const auto& one : *group) one->set(healthy_);
    }
  }

  void break_one(UpstreamSimulator& instance, const Cell& cell) const {
    if (cell.failure == Failure::kRefused) return instance.stop();
    Behaviour broken = healthy_;
    broken.point = cell.stage.point;
    if (cell.failure == Failure::kReset) broken.how = How::kReset;
    if (cell.failure == Failure::kStall) broken.how = How::kStall;
    if (cell.failure == Failure::kMalformed) broken.how = How::kMalformed;
    broken.error_event = cell.failure == Failure::kEngineError;
    if (cell.failure == Failure::k500 || cell.failure == Failure::k503) {
      broken.fault = Fault::kStatus;
      broken.status = cell.failure == Failure::k500 ? 500 : 503;
      broken.point = Point::kNowhere;
    }
    instance.set(broken);
  }

  void mend(UpstreamSimulator& instance, const Cell& cell) const {
    if (cell.failure == Failure::kRefused) instance.start();
    instance.set(healthy_);
  }

  // What one request comes to; every property that holds for all outcomes is checked here.
  std::string outcome(const Cell& cell) const {
    const auto answer = TestClient(port()).post(target(cell.request), body(cell.request));
    if (answer.status != 200) {
      EXPECT_TRUE(answer.complete);
      const std::string message = message_of(answer);
      if (answer.status == 502 || answer.status == 504) {
        EXPECT_TRUE(message.find(decode[0]->name()) != std::string::npos || message.find(decode[1]->name()) != std::string::npos)
            << message;
        EXPECT_NE(message.find("Send the request again"), std::string::npos) << message;
        EXPECT_EQ(answer.status == 504, message.find("took longer than 0.400 s (--") != std::string::npos) << message;
      }
      return std::to_string(answer.status);
    }
    if (!is_stream(cell.request)) {
      EXPECT_TRUE(answer.complete);
      EXPECT_NE(answer.body.find(whole_text()), std::string::npos) << answer.body;
      return "answered";
    }
    return stream_outcome(cell, answer);
  }

  std::string stream_outcome(const Cell& cell, const ClientAnswer& answer) const {
    std::string text;
    std::map<std::string, int> ids;
    int roles = 0;
    int finishes = 0;
    bool done = false;
    bool failed = false;
    std::istringstream lines(answer.body);
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("data: ")) continue;
      EXPECT_FALSE(done || failed) << "something follows the end: " << answer.body;
      if (line == "data: [DONE]") {
        done = true;
        continue;
      }
      boost::system::error_code error;
      const auto event = boost::json::parse(line.substr(6), error);
      EXPECT_FALSE(error) << line;
      if (error) continue;
      if (event.get_object().contains("error")) {
        failed = true;
        EXPECT_EQ(event.at("error").at("code").to_number<int>(), 502);
        const std::string message(event.at("error").at("message").as_string());
        EXPECT_NE(message.find("127.0.0.1:"), std::string::npos) << message;
        continue;
      }
      ++ids[std::string(event.at("id").as_string())];
      const auto& choice = event.at("choices").at(0);
      finishes += choice.at("finish_reason").is_null() ? 0 : 1;
      const auto& holder = cell.request == Request::kGreedyChat ? choice.at("delta") : choice;
      roles += holder.get_object().contains("role") ? 1 : 0;
      const auto* piece = holder.get_object().if_contains(cell.request == Request::kGreedyChat ? "content" : "text");
      if (piece != nullptr) text += piece->as_string().c_str();
    }
    EXPECT_EQ(ids.size(), 1U) << answer.body;
    if (cell.request == Request::kGreedyChat) {
      EXPECT_EQ(roles, 1) << answer.body;
    }
    EXPECT_NE(done, failed) << answer.body;
    EXPECT_EQ(answer.complete, done) << answer.body;
    if (failed) {
      EXPECT_TRUE(whole_text().starts_with(text)) << text;
      return "error event";
    }
    EXPECT_EQ(text, whole_text());
    EXPECT_EQ(finishes, 1);
    return answer.body.find("\n: continued by another instance") != std::string::npos ? "continued" : "answered";
  }

  static std::string whole_text() {
    std::string text;
    for (const auto& token : kTokens) text += token;
    return text;
  }

  void check(const Cell& cell) {
    const Simulators& group = cell.prefill ? prefill : decode;
    // One fails: of two requests, one goes to it first; the other must not notice.
    break_one(*group[0], cell);
    std::string seen = "answered";
    for (int i = 0; i < 2; ++i) {
      const std::string one = outcome(cell);
      if (one != "answered") seen = one;
    }
    compare(cell, seen, false);
    break_one(*group[1], cell);
    compare(cell, outcome(cell), true);
    for (const auto& one : group) mend(*one, cell);
  }

  static void compare(const Cell& cell, const std::string& seen, bool all) {
    const std::string wanted = expected(cell, all);
    // These may overtake the tokens before them: then nothing was sent to the client yet, and it is an ordinary retry.
    const bool may_overtake = cell.failure == Failure::kReset || cell.failure == Failure::kMalformed;
    const bool overtaken = may_overtake && seen == expected({cell.prefill, cell.request, kStages[3], cell.failure}, all);
    EXPECT_TRUE(seen == wanted || overtaken) << (all ? "all fail: " : "one fails: ") << seen << ", not " << wanted;
  }

  static constexpr std::chrono::milliseconds kStallDeadline{400};
  Behaviour healthy_;
};

std::string table_cell(const Cell& cell) {
  if (!makes_sense(cell)) return "";
  const std::string one = expected(cell, false);
  const std::string all = expected(cell, true);
  return one == all ? one : one + "; all: " + all;
}

constexpr const char* kIntroduction =
    R"(# What a client sees when an instance fails

Generated by `src/gateway/failures_test.cpp`, which provokes each cell over real sockets and fails when it is not so. To write it anew after a
change: `MOONPOOL_WRITE_DOCS=1 gateway_failures_test`.

Two instances are in the hop that fails. A cell says what the client sees when one of them fails and, after "all:", when both do.
**answered**: a normal, whole answer. **continued**: the whole answer too; the part behind the failure was made by the other instance and a
comment in the stream says so. **error event**: the stream ends with `data: {"error": ...}` and without `[DONE]`, and the connection closes
without the last chunk. A number: that HTTP status with an error that names instance, operation and reason. Failures: the connection is
*refused*, *closed* or *reset* at that stage; *stall*: nothing comes any more and the deadline passes; *malformed*: bytes that are not HTTP;
*500*, *503*: that answer; *error event*: vLLM's own report that its engine died.

)";

// One hop and kind of request, with a gateway and instances of its own: most of a cell's time is spent waiting, so all run side by side.
class Bench : public FailuresTest {
 public:
  Bench(bool in_prefill, Request request) : in_prefill_(in_prefill), request_(request) { start(); }

  void run() {
    for (const Stage& stage : kStages) {
      bool any = false;
      std::string row = std::string("| ") + name_of(request_) + " | " + stage.name + " |";
      for (const auto& [failure, name] : kFailures) {
        const Cell cell{in_prefill_, request_, stage, failure};
        row += " " + table_cell(cell) + " |";
        if (!makes_sense(cell)) continue;
        any = true;
        SCOPED_TRACE(std::string(in_prefill_ ? "prefill, " : "decode, ") + name_of(request_) + ", " + stage.name + ", " + name);
        check(cell);
      }
      if (any) rows += row + "\n";
    }
  }
  [[nodiscard]] bool in_prefill() const { return in_prefill_; }

  std::string rows;  // of the table

 private:
  void TestBody() override {}

  const bool in_prefill_;
  const Request request_;
};

TEST(FailureTableTest, EveryCellIsAsTheContractSaysAndTheDocumentShowsIt) {
  std::vector<std::unique_ptr<Bench>> benches;
  for (const Request request : {Request::kPlain, Request::kStream}) benches.push_back(std::make_unique<Bench>(true, request));
  for (const Request request : {Request::kPlain, Request::kStream, Request::kGreedyStream, Request::kGreedyChat}) {
    benches.push_back(std::make_unique<Bench>(false, request));
  }
  std::vector<std::thread> threads;
  for (const auto& bench : benches) threads.emplace_back([&bench] { bench->run(); });
  for (auto& thread : threads) thread.join();
  std::string table = kIntroduction;
  for (const bool in_prefill : {true, false}) {
    table += in_prefill ? "## In the prefill hop\n\n" : "\n## In the decode hop\n\n";
    table += "| request | stage |";
    for (const auto& [failure, name] : kFailures) table.append(" ").append(name).append(" |");
    table += "\n| --- | --- |";
    for (std::size_t i = 0; i < std::size(kFailures); ++i) table += " --- |";
    table += "\n";
    for (const auto& bench : benches) table += bench->in_prefill() == in_prefill ? bench->rows : "";
  }
  if (std::getenv("MOONPOOL_WRITE_DOCS") != nullptr) {
    std::ofstream(MOONPOOL_FAILURES_DOCUMENT) << table;
    return;
  }
  std::ifstream file(MOONPOOL_FAILURES_DOCUMENT);
  std::ostringstream written;
  written << file.rdbuf();
  EXPECT_EQ(written.str(), table) << "docs/gateway-failures.md is not what this test shows: run it with MOONPOOL_WRITE_DOCS=1";
}

TEST_F(FailuresTest, AnAnswerCutAtAnyByteIsNeverSeenAsWhole) {
  start();
  for (const Request request : {Request::kPlain, Request::kStream, Request::kGreedyChat}) {
    for (std::size_t byte = 0; byte < 700; byte += 23) {
      SCOPED_TRACE(std::string(name_of(request)) + " at byte " + std::to_string(byte));
      Behaviour broken = healthy_;
      broken.point = Point::kByte;
      broken.byte = byte;
      for (const auto& one : decode) one->set(broken);
      const std::string seen = outcome({false, request, kStages[0], Failure::kClose});
      EXPECT_NE(seen, "continued");  // both are cut
    }
  }
}

}  // namespace
}  // namespace moonpool::gateway::testing
