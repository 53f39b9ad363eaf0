// The gateway's policies on a request trace: the time to first token under each of them, at several loads (trace_replay.h says what is real
// and what is simulated).
//
//   gateway_trace TRACE.jsonl [--policies round_robin,pool_aware] [--loads 1,2,3] [--modes pool,local] [--prefill 10] [--decode 6]
//                 [--json FILE] [--decode-first 0,512,2048]
//
// A load is how many times faster than recorded the trace runs. Mode `pool`: instances share a KV pool; `local`: each has its own cache
// alone. Requests of one timestamp are spread evenly until the next one, unless --as-recorded. Prints a Markdown table for each mode, and
// with --json one line of JSON for each replay, which bench/gateway_trace_plot.py draws. --decode-first compares thresholds below which a
// prompt goes to decode alone (in tokens, 4 bytes each), under each of the policies.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "trace_replay.h"

namespace moonpool::bench {
namespace {

struct Settings {
  std::string trace;
  std::vector<std::string> policies{gateway::policy_names().begin(), gateway::policy_names().end()};
  std::vector<double> loads{1, 1.5, 2, 2.5, 3, 3.5, 4};
  std::vector<std::string> modes{"pool", "local"};
  std::vector<std::uint64_t> decode_first;
  bool as_recorded = false;
  std::string json;
  ReplayOptions options;
};

void declare_flags(CLI::App& app, Settings& settings) {
  ReplayOptions& options = settings.options;
  const auto add = [&](const std::string& flag, auto& value, const std::string& text) {
    return app.add_option(flag, value, text)->capture_default_str();
  };
  add("trace", settings.trace, "JSON lines: timestamp (ms), input_length, output_length (tokens), hash_ids (512 tokens each)")->required();
  add("--policies", settings.policies, "Of " + gateway::policy_names_text())->delimiter(',');
  add("--decode-policy", options.decode_policy, "Decode's policy (default: the same as prefill's)");
  add("--loads", settings.loads, "How many times faster than recorded")->delimiter(',')->check(CLI::PositiveNumber);
  add("--modes", settings.modes, "pool, local")->delimiter(',')->check(CLI::IsMember({"pool", "local"}));
  add("--prefill", options.prefill, "Prefill instances")->check(CLI::Range(1, 1000));
  add("--decode", options.decode, "Decode instances; 0: the end of prefill is the first token")->check(CLI::Range(0, 1000));
  add("--prefill-speed", options.prefill_tokens_s, "Tokens/s of a prefill instance, attention aside")->check(CLI::PositiveNumber);
  add("--attention-tokens", options.attention_tokens, "Context at which a token's attention costs as much as all else; 0: none");
  add("--request-seconds", options.request_s, "What any prompt costs a prefill instance");
  add("--cache-tokens", options.cache_tokens, "KV memory of an instance, in tokens");
  add("--pool-tokens", options.pool_tokens, "The pool's, in tokens");
  add("--kv-bytes", options.kv_bytes, "Bytes of a token's KV")->check(CLI::PositiveNumber);
  add("--transfer-speed", options.transfer_bytes_s, "Bytes/s from the pool into an instance")->check(CLI::PositiveNumber);
  add("--decode-step", options.decode_step_s, "Seconds of a decode step");
  add("--prefix-index-bytes", options.policy_options.prefix_index_bytes, "As the gateway's flag");
  add("--pool-transfer-cost", options.policy_options.pool_transfer_cost, "As the gateway's flag");
  app.add_option("--decode-first", settings.decode_first, "Thresholds in tokens; 0: all prompts have a prefill")->delimiter(',');
  add("--chunk-tokens", options.chunk_tokens, "Of a prompt that decode computes, in one of its steps")->check(CLI::PositiveNumber);
  app.add_flag("--as-recorded", settings.as_recorded, "Keep equal timestamps: requests come in bursts");
  add("--json", settings.json, "File for a line of JSON per replay");
}

std::string text_of(const char* format, auto... values) {
  char text[512];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string json_of(const std::string& mode, const ReplayOptions& options, const ReplayResult& result) {
  std::string line = text_of(R"({"mode": "%s", "policy": "%s", "load": %g, "prefill": %zu, "decode": %zu, )", mode.c_str(),
                             options.policy.c_str(), options.load, options.prefill, options.decode);
  line += text_of(R"("ttft_mean_s": %.4f, "ttft_p50_s": %.4f, "ttft_p90_s": %.4f, "ttft_p99_s": %.4f, )", result.mean_s, result.p50_s,
                  result.p90_s, result.p99_s);
  line += text_of(R"("cached_share": %.4f, "pool_share": %.4f, "busy_share": %.4f, "imbalance": %.4f, "choice_ns": %.0f)",
                  result.cached_share, result.pool_share, result.busy_share, result.imbalance, result.choice_ns);
  line +=
      text_of(R"(, "tpot_p50_s": %.5f, "tpot_p90_s": %.5f, "tpot_p99_s": %.5f)", result.tpot_p50_s, result.tpot_p90_s, result.tpot_p99_s);
  if (options.decode_first_below_tokens) {
    line += text_of(R"(, "decode_first_below": %llu, "decode_first_share": %.4f)",
                    static_cast<unsigned long long>(*options.decode_first_below_tokens), result.decode_first_share);
  }
  if (result.expected_share > 0)
    line += text_of(R"(, "expected_share": %.4f, "right_share": %.4f)", result.expected_share, result.right_share);
  return line + "}";
}

void print_row(const ReplayOptions& options, const ReplayResult& result, double round_robin_p90_s) {
  const double saved = round_robin_p90_s > 0 ? 100 * (1 - result.p90_s / round_robin_p90_s) : 0;
  std::printf("| x%g | %s | %.2f | %.2f | %.2f | %.2f | %s | %.1f%% | %.1f%% | %.0f%% | %.2f | %.0f | %s |\n", options.load,
              options.policy.c_str(), result.mean_s, result.p50_s, result.p90_s, result.p99_s,
              round_robin_p90_s > 0 ? text_of("%+.0f%%", -saved).c_str() : "", 100 * result.cached_share, 100 * result.pool_share,
              100 * result.busy_share, result.imbalance, result.choice_ns,
              result.expected_share > 0 ? text_of("%.1f%%, %.1f%%", 100 * result.expected_share, 100 * result.right_share).c_str() : "");
  std::fflush(stdout);
}

ReplayOptions options_for(const Settings& settings, const std::string& mode, double load, const std::string& policy) {
  ReplayOptions options = settings.options;
  options.policy = policy;
  if (options.decode_policy.empty()) options.decode_policy = policy;
  options.load = load;
  options.pool = mode == "pool";
  return options;
}

// False when a policy is not known.
bool compare_decode_first(const Settings& settings, const std::vector<TraceRequest>& trace) {
  std::ofstream json;
  if (!settings.json.empty()) json.open(settings.json);
  for (const std::string& mode : settings.modes) {
    std::printf("\n%s, %zu prefill and %zu decode instances\n\n", mode == "pool" ? "With a shared pool" : "Without a pool",
                settings.options.prefill, settings.options.decode);
    std::printf("| load | policy | below, tokens | decode first | TTFT mean s | P50 | P90 | P99 | TPOT P50 ms | P90 | P99 |\n");
    std::printf("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (const double load : settings.loads) {
      for (const std::string& policy : settings.policies) {
        for (const std::uint64_t below : settings.decode_first) {
          ReplayOptions options = options_for(settings, mode, load, policy);
          options.decode_first_below_tokens = below;
          const auto result = replay(trace, options);
          if (!result.ok()) {
            std::fprintf(stderr, "%s\n", result.status().message().c_str());
            return false;
          }
          std::printf("| x%g | %s | %llu | %.1f%% | %.2f | %.2f | %.2f | %.2f | %.1f | %.1f | %.1f |\n", load, policy.c_str(),
                      static_cast<unsigned long long>(below), 100 * result->decode_first_share, result->mean_s, result->p50_s,
                      result->p90_s, result->p99_s, 1e3 * result->tpot_p50_s, 1e3 * result->tpot_p90_s, 1e3 * result->tpot_p99_s);
          std::fflush(stdout);
          if (json.is_open()) json << json_of(mode, options, *result) << std::endl;
        }
      }
    }
  }
  return true;
}

// False when a policy is not known.
bool replay_all(const Settings& settings, const std::vector<TraceRequest>& trace) {
  std::ofstream json;
  if (!settings.json.empty()) json.open(settings.json);
  for (const std::string& mode : settings.modes) {
    std::printf("\n%s, %zu prefill and %zu decode instances\n\n", mode == "pool" ? "With a shared pool" : "Without a pool",
                settings.options.prefill, settings.options.decode);
    std::printf(
        "| load | policy | TTFT mean s | P50 | P90 | P99 | P90 against round robin | own cache | pool | busy | busiest/mean | ns a choice "
        "| index expects, right |\n");
    std::printf("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (const double load : settings.loads) {
      double round_robin_p90_s = 0;
      for (const std::string& policy : settings.policies) {
        const ReplayOptions options = options_for(settings, mode, load, policy);
        const auto result = replay(trace, options);
        if (!result.ok()) {
          std::fprintf(stderr, "%s\n", result.status().message().c_str());
          return false;
        }
        print_row(options, *result, round_robin_p90_s);
        if (policy == "round_robin") round_robin_p90_s = result->p90_s;
        if (json.is_open()) json << json_of(mode, options, *result) << std::endl;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace moonpool::bench

int main(int argc, char** argv) {
  using namespace moonpool::bench;
  Settings settings;
  CLI::App app("The gateway's policies on a request trace, before simulated instances in virtual time");
  declare_flags(app, settings);
  CLI11_PARSE(app, argc, argv);
  const auto trace = read_trace(settings.trace, !settings.as_recorded);
  if (!trace.ok()) {
    std::fprintf(stderr, "%s\n", trace.status().message().c_str());
    return 1;
  }
  return (settings.decode_first.empty() ? replay_all : compare_decode_first)(settings, *trace) ? 0 : 1;
}
