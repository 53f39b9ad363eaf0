#include "gateway/settings.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <map>

#include "base/logging.h"
#include "gateway/config_file.h"
#include "gateway/policy.h"

namespace moonpool::gateway {

namespace {

struct RawFlags {
  std::vector<std::string> prefill;
  std::vector<std::string> decode;
};

// A time-out in seconds on the command line, milliseconds inside.
void add_seconds(CLI::App& app, const std::string& flag, std::chrono::milliseconds& target, const std::string& help) {
  app.add_option_function<double>(
         flag, [&target](const double& seconds) { target = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000)); }, help)
      ->default_str(fmt::format("{} s", static_cast<double>(target.count()) / 1000))
      ->check(CLI::Range(0.001, 1e7));
}

void add_timeouts(CLI::App& app, Timeouts& timeouts) {
  add_seconds(app, "--connect-timeout", timeouts.connect, "Resolve and connect to an instance");
  add_seconds(app, "--prefill-timeout", timeouts.prefill, "One prefill hop");
  add_seconds(app, "--first-byte-timeout", timeouts.first_byte, "Decode, until the first byte of its answer");
  add_seconds(app, "--between-bytes-timeout", timeouts.between_bytes, "Decode, silence within an answer");
  add_seconds(app, "--request-timeout", timeouts.request, "A request with all its hops and retries");
  add_seconds(app, "--client-header-timeout", timeouts.client_header, "A client sends its request's head");
  add_seconds(app, "--client-body-timeout", timeouts.client_body, "A client sends its request's body");
  add_seconds(app, "--client-idle-timeout", timeouts.client_idle, "A client's connection between two requests");
  add_seconds(app, "--client-write-timeout", timeouts.client_write, "A client takes what it is sent");
  add_seconds(app, "--upstream-idle-timeout", timeouts.upstream_idle, "An unused connection to an instance is kept this long");
  add_seconds(app, "--check-timeout", timeouts.check, "A health probe, the check of an added instance");
  add_seconds(app, "--drain-timeout", timeouts.drain, "Running requests, after SIGTERM");
}

void add_retries(CLI::App& app, Retries& retries) {
  app.add_option("--retry-budget", retries.budget_share, "Retries at most, as a share of the requests of the last 10 s")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--retry-always", retries.budget_always, "Retries a second that are allowed whatever the share says")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  add_seconds(app, "--retry-pause", retries.first, "Pause before the first retry; doubles with each further one, jittered");
  add_seconds(app, "--retry-pause-longest", retries.longest, "Pause before a retry at most");
}

// A word out of a few, shown by its name.
template <typename Choice>
void add_choice(CLI::App& app, const std::string& flag, Choice& target, const std::map<std::string, Choice>& words,
                const std::string& help) {
  std::vector<std::string> names;
  std::string standing;
  for (const auto& [word, choice] : words) {
    names.push_back(word);
    if (choice == target) standing = word;
  }
  app.add_option_function<std::string>(
         flag, [&target, words](const std::string& word) { target = words.at(word); }, help)
      ->check(CLI::IsMember(names))
      ->default_str(standing);
}

void add_health(CLI::App& app, Health& health) {
  add_seconds(app, "--open-time", health.circuit.first_open, "An unhealthy instance is passed over at least this long; doubles, jittered");
  add_seconds(app, "--open-time-longest", health.circuit.longest_open, "The same, at most");
  app.add_option_function<double>(
         "--check-interval",
         [&health](const double& seconds) { health.check_every = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000)); },
         "Active checks of healthy instances; 0: none")
      ->default_str("10 s")
      ->check(CLI::Range(0.0, 1e7));
}

void add_continuation(CLI::App& app, Settings& settings) {
  using Streams = ContinueStreams;
  using Marker = ContinueMarker;
  add_choice<Streams>(
      app, "--continue-streams", settings.continue_streams,
      {{"off", Streams::kOff}, {"greedy", Streams::kGreedy}, {"always", Streams::kAlways}},
      "Streams that go on at another instance when theirs dies: those at temperature 0 whose events count their tokens, all, none");
  add_choice<Marker>(app, "--continue-marker", settings.continue_marker,
                     {{"off", Marker::kOff}, {"comment", Marker::kComment}, {"event", Marker::kEvent}},
                     "How such a stream says so: an SSE comment, an event named continued, not at all");
}

// Every flag can come from the environment: --connect-timeout from MOONPOOL_GATEWAY_CONNECT_TIMEOUT. The command line wins.
void name_environment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames().front() == "help") continue;
    std::string name = "MOONPOOL_GATEWAY_" + option->get_lnames().front();
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
    option->envname(name);
  }
}

Result<std::vector<InstanceName>> parse_names(const std::vector<std::string>& texts, const std::string& flag) {
  std::vector<InstanceName> names;
  for (const std::string& text : texts) {
    auto name = InstanceName::parse(text);
    if (!name.ok()) return Status(ErrorCode::kConfig, flag + ": " + name.status().message());
    if (std::find(names.begin(), names.end(), *name) == names.end()) names.push_back(std::move(name).value());
  }
  return names;
}

void declare_flags(CLI::App& app, Settings& settings, RawFlags& raw) {
  app.add_option("--model,-m", settings.model, "Name of the model that the instances serve");
  app.add_option("--config", settings.config_file, "JSON file of groups, policies, time-outs and limits; read again when it changes");
  app.add_option("--prefill,-p", raw.prefill, "Prefill instances, host:port each")->delimiter(',');
  app.add_option("--decode,-d", raw.decode, "Decode instances, host:port each")->delimiter(',');
  app.add_option("--port", settings.port, "Port to listen on (0: any free one)")->capture_default_str();
  app.add_option("--host", settings.host, "Address to listen on; 0.0.0.0 or :: for every interface")->capture_default_str();
  app.add_option("--scheduling", settings.scheduling, "How an instance is chosen: " + policy_names_text())->capture_default_str();
  app.add_option("--prefill-policy", settings.prefill_policy, "The same, for prefill alone (default: --scheduling)");
  app.add_option("--decode-policy", settings.decode_policy, "The same, for decode alone (default: --scheduling)");
  app.add_option("--affinity-header", settings.policy_options.affinity_header,
                 "session_affinity: requests with the same value stay together (else those with the same \"user\")")
      ->capture_default_str();
  app.add_option("--prefix-index-bytes", settings.policy_options.prefix_index_bytes,
                 "prefix_aware, pool_aware: memory for each instance's prompts, 32 bytes for 256 of text")
      ->check(CLI::Range(std::size_t{1024}, std::size_t{1} << 36))
      ->capture_default_str();
  app.add_option("--pool-transfer-cost", settings.policy_options.pool_transfer_cost,
                 "pool_aware: loading a prompt from the pool, as a share of computing it")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--threads", settings.threads, "Threads (0: one per core)")->check(CLI::Range(0, 1024));
  app.add_option("--attempts", settings.attempts, "Instances tried at most for one hop of a request")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--unhealthy-after", settings.health.circuit.failures_to_open, "Consecutive failures that take an instance out")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--max-header-bytes", settings.limits.header_bytes, "A request's head at most")->capture_default_str();
  app.add_option("--max-body-bytes", settings.limits.body_bytes, "A request's body at most")->capture_default_str();
  app.add_option("--max-buffered-bytes", settings.limits.buffered_answer_bytes, "A non-streamed answer is held whole up to this size")
      ->capture_default_str();
  app.add_option("--max-connections", settings.limits.client_connections, "Client connections at most")->capture_default_str();
  app.add_flag("--access-log", settings.access_log, "Log every request at level info (else debug; failed ones always)");
  app.add_flag("--sample-traces", settings.sample_traces, "Traces that start here (no valid traceparent) are marked as sampled");
  app.add_option("--log-level", settings.log_level, "trace, debug, info, warning, error, off")->capture_default_str();
  app.add_option_function<double>(
         "--slow-start",
         [&settings](const double& seconds) {
           settings.health.slow_start = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
         },
         "An added instance's load grows to a full share within this time (0: at once)")
      ->default_str("30 s")
      ->check(CLI::Range(0.0, 1e6));
  add_timeouts(app, settings.timeouts);
  add_retries(app, settings.retries);
  add_health(app, settings.health);
  add_continuation(app, settings);
  name_environment(app);
}

struct Parsed {
  Settings settings;
  RawFlags raw;
  std::string help;  // when it was asked for
};

// The command line over `base`.
Result<Parsed> parse_over(Settings base, int argc, const char* const* argv) {
  Parsed parsed{std::move(base), {}, {}};
  CLI::App app{
      "HTTP gateway in front of prefill and decode groups of vLLM instances.\n"
      "Set ADMIN_API_KEY in the environment to allow POST /instances/add, /instances/remove and /instances/role.",
      "moonpool gateway"};
  declare_flags(app, parsed.settings, parsed.raw);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    parsed.help = app.help();
  } catch (const CLI::ParseError& error) {
    return Status(ErrorCode::kConfig, std::string(error.what()) + ". Run moonpool gateway --help for all flags");
  }
  return parsed;
}

void add_missing(std::vector<InstanceName>& names, const std::vector<InstanceName>& more) {
  for (const auto& name : more) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
}

}  // namespace

Result<ParsedCommandLine> parse_command_line(int argc, const char* const* argv) {
  ParsedCommandLine parsed;
  auto first = parse_over(Settings(), argc, argv);
  if (!first.ok()) return first.status();
  if (!first->help.empty()) {
    parsed.help = std::move(first->help);
    return parsed;
  }
  if (!first->settings.config_file.empty()) {
    auto from_file = read_config_file(first->settings.config_file, Settings());
    if (!from_file.ok()) return from_file.status();
    first = parse_over(std::move(from_file).value(), argc, argv);  // flags win
    if (!first.ok()) return first.status();
  }
  Settings settings = std::move(first->settings);
  const RawFlags& raw = first->raw;
  if (settings.model.empty()) return Status(ErrorCode::kConfig, "--model is required (or \"model\" in the file of --config)");
  auto prefill = parse_names(raw.prefill, "--prefill");
  if (!prefill.ok()) return prefill.status();
  auto decode = parse_names(raw.decode, "--decode");
  if (!decode.ok()) return decode.status();
  for (const auto& [flag, name] : {std::pair("--scheduling ", settings.scheduling), std::pair("--prefill-policy ", settings.prefill_policy),
                                   std::pair("--decode-policy ", settings.decode_policy)}) {
    if (name.empty()) continue;
    if (auto policy = make_policy(name, settings.policy_options); !policy.ok()) {
      return Status(ErrorCode::kConfig, flag + name + ": " + policy.status().message());
    }
  }
  add_missing(settings.prefill, *prefill);
  add_missing(settings.decode, *decode);
  if (const char* key = std::getenv("ADMIN_API_KEY"); key != nullptr) settings.admin_api_key = key;
  parsed.settings = std::move(settings);
  return parsed;
}

}  // namespace moonpool::gateway
