// What the two hops are told of each other under each --kv-transfer, over real sockets, and when no prefill is asked.
#include "gateway/kv_transfer.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

// What NixlConnector's prefill answers, as far as it matters here.
constexpr std::string_view kBlocks =
    R"({"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2,3]],"remote_engine_id":"e","remote_port":5600})";
constexpr std::string_view kWithOwn = R"({"prompt":"Tell","kv_transfer_params":{"mine":1},"max_tokens":4})";

class KvTransferTest : public GatewayTest {
 protected:
  static Settings settings_for(KvTransfer mode) {
    Settings settings = test_settings();
    settings.kv_transfer.mode = mode;
    return settings;
  }

  void start(KvTransfer mode, std::size_t prefill_count = 1, std::size_t decode_count = 1) {
    start_gateway(prefill_count, decode_count, settings_for(mode));
    Behaviour keeps;
    keeps.kv_transfer_params = kBlocks;
    for (const auto& one : prefill) one->set(keeps);
  }

  [[nodiscard]] std::string prefill_body(std::size_t which = 0) const { return prefill.at(0)->completions().at(which).body; }
  [[nodiscard]] std::string decode_body(std::size_t which = 0) const { return decode.at(0)->completions().at(which).body; }

  // decode[0] fails: what was tried there got `told`, and decode[1] got as many bodies that are `untold`, besides those that began there.
  void expect_told_once(const std::string& told, const std::function<bool(const std::string&)>& untold) const {
    const auto failed = decode[0]->completions();
    EXPECT_FALSE(failed.empty());
    for (const auto& request : failed) EXPECT_EQ(request.body, told);
    std::size_t without = 0;
    for (const auto& request : decode[1]->completions()) {
      if (request.body == told) continue;
      EXPECT_TRUE(untold(request.body)) << request.body;
      ++without;
    }
    EXPECT_EQ(without, failed.size());
  }
};

std::string with_params(std::string_view params, std::string_view rest) {
  return R"({"kv_transfer_params":)" + std::string(params) + "," + std::string(rest.substr(1));
}

// Every kind of field that a client may send: what is not named in the documentation comes to both hops as it was written.
TEST_F(KvTransferTest, EveryOtherFieldReachesBothHopsByteForByte) {
  start_gateway(1, 1);
  const std::string before =
      R"({ "model":"a-lora-adapter","messages":[{"role":"user","content":"h\u00e9llo \ud83d\ude00 \"{}\" )"
      "\xE4\xBD\xA0\xE5\xA5\xBD"
      R"("}],"n" : 2, "logprobs":true,"top_logprobs":5,"stop":["\n\n","}"],"tools":[{"type":"function","function":{"name":"f",)"
      R"("parameters":{"type":"object","properties":{"stream":{"type":"boolean"},"max_tokens":{"const":7}}}}}],"tool_choice":"auto",)"
      R"("response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"a":[1,2.50,1e3]}}},)";
  const std::string after = R"("priority":-3,"seed":18446744073709551615,"temperature":0.70,"logit_bias":{"50256":-100},)"
                            R"("unknown_field":{"nested":[null,{"x":"\\"}]},"kv_transfer_params":{"mine":true}})";
  const std::string body = before + R"("max_completion_tokens":77,"min_tokens":5,"stream":false,)" + after;
  const auto answer = TestClient(port()).post("/v1/chat/completions", body, "X-Request-Id: same\r\nX-data-parallel-rank: 3\r\n");
  EXPECT_EQ(answer.status, 200U) << answer.body;
  EXPECT_EQ(prefill_body(),
            R"({"max_tokens":1, )" + before.substr(2) + R"("max_completion_tokens":1,"min_tokens":1,"stream":false,)" + after);
  EXPECT_EQ(decode_body(), body);
  for (const auto& seen : {prefill[0]->completions().at(0), decode[0]->completions().at(0)}) {
    EXPECT_EQ(seen.fields.at("x-request-id"), "same");
    EXPECT_EQ(seen.fields.at("x-data-parallel-rank"), "3");
  }
  const std::string streamed = before + R"("max_tokens":9,"stream":true,"stream_options":{"include_usage":true},)" + after;
  EXPECT_EQ(TestClient(port()).post("/v1/chat/completions", streamed).status, 200U);
  EXPECT_EQ(prefill_body(1), before + R"("max_tokens":1,"stream":false,)" + after);
  EXPECT_EQ(decode_body(1), streamed);
}

TEST_F(KvTransferTest, BothHopsOfARequestWithoutAnIdGetTheSameOne) {
  start(KvTransfer::kNixl);
  EXPECT_EQ(complete(kPlain).status, 200U);
  const std::string id = prefill[0]->completions().at(0).fields.at("x-request-id");
  EXPECT_FALSE(id.empty());
  EXPECT_EQ(decode[0]->completions().at(0).fields.at("x-request-id"), id);
}

TEST_F(KvTransferTest, PoolPassesTheClientsParamsAndLeavesTheAnswersAlone) {
  start(KvTransfer::kPool);
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_EQ(prefill_body(), R"({"prompt":"Tell","kv_transfer_params":{"mine":1},"max_tokens":1})");
  EXPECT_EQ(decode_body(), kWithOwn);
  EXPECT_EQ(counter("kv_handed_over"), 0);
}

TEST_F(KvTransferTest, AutoAsksForNothingAndPassesOnWhatComes) {
  start(KvTransfer::kAuto);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(prefill_body(), R"({"model":"m","prompt":"Tell","max_tokens":1})");
  EXPECT_EQ(decode_body(), with_params(kBlocks, kPlain));
  EXPECT_EQ(counter("kv_handed_over"), 1);
  prefill[0]->set({});
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_EQ(decode_body(1), kWithOwn);
}

TEST_F(KvTransferTest, NixlAsksPrefillToKeepTheBlocksAndTellsDecodeWhere) {
  start(KvTransfer::kNixl);
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_EQ(prefill_body(), with_params(kNixlPrefillParams, R"({"prompt":"Tell","max_tokens":1})"));
  EXPECT_EQ(decode_body(), with_params(kBlocks, R"({"prompt":"Tell","max_tokens":4})"));
  EXPECT_EQ(counter("kv_handed_over"), 1);
}

TEST_F(KvTransferTest, WithoutAPrefillDecodeIsToldOfNoBlocks) {
  start(KvTransfer::kNixl);
  prefill[0]->stop();
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_EQ(decode_body(), R"({"prompt":"Tell","max_tokens":4})");
  EXPECT_EQ(counter("prefill_given_up"), 1);
}

TEST_F(KvTransferTest, ADecodeInstanceThatCannotTakeTheBlocksComputesThePromptAndIsNotBlamed) {
  start(KvTransfer::kNixl);
  Behaviour cannot;
  cannot.fault = Fault::kStatus;
  decode[0]->set_next(cannot);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode_body(0), with_params(kBlocks, kPlain));
  EXPECT_EQ(decode_body(1), kPlain);
  EXPECT_EQ(counter("kv_not_taken"), 1);
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), 0);

  Behaviour ends_with_an_error = cannot;
  ends_with_an_error.fault = Fault::kCloseInStream;
  ends_with_an_error.error_event = true;
  ends_with_an_error.tokens_before_fault = 0;
  decode[0]->set_next(ends_with_an_error);
  const auto streamed = complete(R"({"prompt":"Tell","max_tokens":4,"stream":true})");
  EXPECT_NE(streamed.body.find("data: [DONE]"), std::string::npos) << streamed.body;
  EXPECT_EQ(streamed.body.find("error"), std::string::npos) << streamed.body;
  EXPECT_EQ(counter("kv_not_taken"), 2);
}

TEST_F(KvTransferTest, ADecodeInstanceThatFailsWithoutTheBlocksTooIsNotAskedAThirdTime) {
  start(KvTransfer::kNixl);
  Behaviour broken;
  broken.fault = Fault::kStatus;
  decode[0]->set(broken);
  EXPECT_EQ(complete(kPlain).status, 500U);
  EXPECT_EQ(decode[0]->completions().size(), 2U);
  EXPECT_EQ(counter("kv_not_taken"), 1);
}

TEST_F(KvTransferTest, TheSecondDecodeInstanceIsNotToldOfTheSameBlocks) {
  for (const KvTransfer mode : {KvTransfer::kNixl, KvTransfer::kAuto}) {
    gateway.reset();
    start(mode, 1, 2);
    Behaviour broken;
    broken.fault = Fault::kStatus;
    broken.status = 503;
    decode[0]->set(broken);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
    expect_told_once(with_params(kBlocks, kPlain), [](const std::string& body) { return body == kPlain; });
  }
}

TEST_F(KvTransferTest, AContinuedStreamIsNotToldOfTheSameBlocks) {
  for (const std::size_t sent : {std::size_t{0}, std::size_t{2}}) {
    gateway.reset();
    start(KvTransfer::kNixl, 1, 2);
    Behaviour dies;
    dies.fault = Fault::kCloseInStream;
    dies.tokens_before_fault = sent;
    decode[0]->set(dies);
    const std::string_view body =
        R"({"prompt":"Tell","temperature":0,"max_tokens":4,"stream":true,"return_token_ids":true,"kv_transfer_params":{"mine":1}})";
    for (int i = 0; i < 2; ++i) {
      const auto answer = complete(body);
      EXPECT_NE(answer.body.find("data: [DONE]"), std::string::npos) << answer.body;
    }
    const std::string first = R"({"prompt":"Tell","temperature":0,"max_tokens":4,"stream":true,"return_token_ids":true})";
    expect_told_once(with_params(kBlocks, first),
                     [](const std::string& next) { return next.find("kv_transfer_params") == std::string::npos; });
  }
}

TEST_F(KvTransferTest, SeveralSequencesShareNoBlocks) {
  start(KvTransfer::kNixl);
  const std::string_view two_prompts = R"({"prompt":["a","b"],"max_tokens":4})";
  EXPECT_EQ(complete(two_prompts).status, 200U);
  EXPECT_EQ(complete(R"({"prompt":"a","n":2,"max_tokens":4})").status, 200U);
  EXPECT_TRUE(prefill[0]->completions().empty());
  EXPECT_EQ(decode_body(), two_prompts);
  gateway.reset();
  start(KvTransfer::kAuto);
  EXPECT_EQ(complete(two_prompts).status, 200U);
  EXPECT_EQ(prefill[0]->completions().size(), 1U);
  EXPECT_EQ(decode_body(), two_prompts);
}

TEST_F(KvTransferTest, NoneMakesNoPrefillHop) {
  start(KvTransfer::kNone);
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_TRUE(prefill[0]->completions().empty());
  EXPECT_EQ(decode_body(), kWithOwn);
  EXPECT_EQ(counter("prefill_given_up"), 0);
}

// ---- MooncakeConnector ------------------------------------------------------------------------------------------------------------------

class MooncakeTest : public KvTransferTest {
 protected:
  // Every prefill instance has the same bootstrap server, which names one engine or several.
  void start_mooncake(const std::string& page, std::size_t decode_count = 1) {
    bootstrap.set_page("/query", page);
    Settings settings = settings_for(KvTransfer::kMooncake);
    settings.kv_transfer.mooncake_port = bootstrap.port();
    start_gateway(1, decode_count, settings);
  }

  [[nodiscard]] static boost::json::value params_of(const std::string& body) { return boost::json::parse(body).at("kv_transfer_params"); }
  [[nodiscard]] static std::string text_of(const boost::json::value& value) { return std::string(value.as_string()); }

  UpstreamSimulator bootstrap;
};

constexpr const char* kOneEngine = R"({"0":{"engine_id":"e-\"1\"","worker_addr":{"0":{"0":"tcp://h:1"}}}})";

TEST_F(MooncakeTest, BothHopsNameOneTransferAndDecodeTheEngine) {
  start_mooncake(kOneEngine);
  EXPECT_EQ(complete(kWithOwn, "X-Request-Id: r\r\n").status, 200U);
  EXPECT_EQ(complete(kWithOwn, "X-Request-Id: r\r\n").status, 200U);
  std::set<std::string> transfers;
  for (std::size_t i = 0; i < 2; ++i) {
    const auto asked = params_of(prefill_body(i));
    const auto told = params_of(decode_body(i));
    EXPECT_EQ(asked.as_object().size(), 3U);
    EXPECT_TRUE(asked.at("do_remote_decode").as_bool());
    EXPECT_FALSE(asked.at("do_remote_prefill").as_bool());
    EXPECT_TRUE(told.at("do_remote_prefill").as_bool());
    EXPECT_FALSE(told.at("do_remote_decode").as_bool());
    EXPECT_EQ(text_of(told.at("transfer_id")), text_of(asked.at("transfer_id")));
    EXPECT_EQ(text_of(told.at("remote_engine_id")), "e-\"1\"");
    EXPECT_EQ(text_of(told.at("remote_bootstrap_addr")), "http://" + bootstrap.name());
    EXPECT_TRUE(transfers.insert(text_of(told.at("transfer_id"))).second) << "one request id, two transfers";
    EXPECT_FALSE(prefill[0]->completions()[i].fields.contains("x-data-parallel-rank"));
  }
  EXPECT_TRUE(decode_body().ends_with(R"(,"prompt":"Tell","max_tokens":4})")) << decode_body();
  std::size_t queries = 0;
  for (const auto& seen : bootstrap.all()) queries += seen.target == "/query" ? 1 : 0;
  EXPECT_EQ(queries, 1U) << "its answer is remembered";
}

TEST_F(MooncakeTest, DataParallelRanksTakeTurnsUnlessTheClientNamesOne) {
  start_mooncake(R"({"0":{"engine_id":"e0"},"1":{"engine_id":"e1"}})");
  std::map<std::string, std::string> engine_of_rank;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(complete(kPlain).status, 200U);
    engine_of_rank[prefill[0]->completions().back().fields.at("x-data-parallel-rank")] =
        text_of(params_of(decode[0]->completions().back().body).at("remote_engine_id"));
    EXPECT_FALSE(decode[0]->completions().back().fields.contains("x-data-parallel-rank"));
  }
  EXPECT_EQ(engine_of_rank, (std::map<std::string, std::string>{{"0", "e0"}, {"1", "e1"}}));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(complete(kPlain, "X-data-parallel-rank: 1\r\n").status, 200U);
    EXPECT_EQ(prefill[0]->completions().back().fields.at("x-data-parallel-rank"), "1");
    EXPECT_EQ(text_of(params_of(decode[0]->completions().back().body).at("remote_engine_id")), "e1");
  }
}

TEST_F(MooncakeTest, ATransferThatWillNotComeIsNotWaitedFor) {
  start_mooncake(kOneEngine);
  Behaviour stops;
  stops.finish_reason = "stop";  // the first token ended it: its blocks are gone
  prefill[0]->set(stops);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode_body(), kPlain);
}

TEST_F(MooncakeTest, WithoutItsBootstrapServerAnInstanceHasFailed) {
  start_mooncake("{}");
  EXPECT_EQ(complete(kWithOwn).status, 200U);
  EXPECT_TRUE(prefill[0]->completions().empty());
  EXPECT_EQ(decode_body(), R"({"prompt":"Tell","max_tokens":4})");
  const std::string error(instance_status(prefill[0]->name()).at("last_error").as_string());
  EXPECT_NE(error.find("--mooncake-bootstrap"), std::string::npos) << error;
  EXPECT_EQ(counter("prefill_given_up"), 1);
}

TEST(KvTransferSettingsTest, PortsAreForAllOrForOne) {
  KvTransferSettings settings;
  EXPECT_TRUE(set_mooncake_port(settings, "9000").ok());
  EXPECT_TRUE(set_mooncake_port(settings, "A:8101=9001").ok());
  EXPECT_EQ(settings.mooncake_port_of(InstanceName::parse("a:8101").value()), 9001);
  EXPECT_EQ(settings.mooncake_port_of(InstanceName::parse("a:8100").value()), 9000);
  for (const char* wrong : {"", "0", "x", "70000", "a:1=", "a=5", "a:1=b:2", "=5", "-1"}) {
    EXPECT_FALSE(set_mooncake_port(settings, wrong).ok()) << wrong;
  }
}

// ---- decode first -----------------------------------------------------------------------------------------------------------------------

TEST_F(KvTransferTest, LittleToPrefillGoesToDecodeAtOnce) {
  Settings settings = test_settings();
  settings.decode_first_below = 100;
  start_gateway(1, 1, settings);
  const std::string long_prompt = R"({"prompt":")" + std::string(200, 'a') + R"(","max_tokens":4})";
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(complete(long_prompt).status, 200U);
  EXPECT_EQ(complete(long_prompt).status, 200U);  // round_robin remembers no prompt: all of it counts
  EXPECT_EQ(prefill[0]->completions().size(), 2U);
  EXPECT_EQ(decode[0]->completions().size(), 3U);
  EXPECT_EQ(counter("decode_first"), 1);
  EXPECT_EQ(counter("prefill_given_up"), 0);
  EXPECT_NE(TestClient(port()).get("/metrics").body.find("moonpool_gateway_decode_first_total 1\n"), std::string::npos);
}

TEST_F(KvTransferTest, WhatDecodeHasSeenIsNotToPrefill) {
  Settings settings = test_settings();
  settings.decode_first_below = 600;
  settings.decode_policy = "prefix_aware";
  start_gateway(1, 1, settings);
  const std::string start_of_chat(4096, 'a');
  const auto ask = [&](const std::string& more) {
    EXPECT_EQ(complete(R"({"prompt":")" + start_of_chat + more + R"(","max_tokens":4})").status, 200U);
  };
  ask("");
  ask(std::string(100, 'b'));
  EXPECT_EQ(prefill[0]->completions().size(), 1U);
  ask(std::string(1000, 'c'));
  EXPECT_EQ(prefill[0]->completions().size(), 2U);
  EXPECT_EQ(counter("decode_first"), 1);
}

}  // namespace
}  // namespace moonpool::gateway::testing
