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
#include "gateway/http_endpoint.h"
#include "gateway/policy.h"

namespace moonpool::gateway {

namespace {

struct RawFlags {
  std::vector<std::string> prefill;
  std::vector<std::string> decode;
  std::string new_key;  // the name of one that is asked for
  std::vector<std::string> mooncake_bootstrap;
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

void add_overload(CLI::App& app, Overload& overload) {
  app.add_option("--max-concurrent-requests", overload.concurrent,
                 "Requests that instances work on at a time, the others wait (0: any number)")
      ->capture_default_str();
  app.add_option("--max-requests-per-instance", overload.per_instance, "The same, times the usable decode instances (0: any number)")
      ->capture_default_str();
  app.add_option("--queue-requests", overload.queue_requests, "Requests that wait at most")->capture_default_str();
  app.add_option("--queue-bytes", overload.queue_bytes, "Bytes of their bodies at most")->capture_default_str();
  add_seconds(app, "--queue-timeout", overload.queue_timeout, "A request waits at most");
}

void add_keys(CLI::App& app, Settings& settings, RawFlags& raw) {
  app.add_option("--keys-file", settings.keys_file, "JSON file {\"keys\": [...]} of API keys' digests; read again when it changes");
  app.add_option("--new-key", raw.new_key, "Print a fresh API key of this name and its entry for the keys file, then exit");
  app.add_flag("--protect-status", settings.protect_status, "/status, /metrics and /instances want a key of role monitor or admin");
  app.add_flag("--forward-authorization", settings.forward_authorization,
               "Send the client's Authorization on to instances although clients have keys");
}

// Of both groups; the configuration file can tell them apart.
void add_kv_events(CLI::App& app, Settings& settings) {
  const auto port = [&](const std::string& flag, std::uint16_t KvEventSource::*which, const std::string& help) {
    app.add_option_function<std::uint16_t>(
           flag, [&settings, which](const std::uint16_t& value) { settings.prefill_events.*which = settings.decode_events.*which = value; },
           help)
        ->default_str("0");
  };
  port("--kv-events-port", &KvEventSource::port,
       "Port of the instances' KV events (endpoint in vLLM's --kv-events-config): prefix_aware and pool_aware then know what each has; 0: "
       "off");
  port("--kv-events-replay-port", &KvEventSource::replay_port, "Port where missed events can be had (replay_endpoint); 0: none");
}

void add_kv_transfer(CLI::App& app, Settings& settings, RawFlags& raw) {
  add_choice<KvTransfer>(
      app, "--kv-transfer", settings.kv_transfer.mode, kv_transfer_words(),
      "How prefill's KV comes to decode: pool (nothing is said), nixl, mooncake (peer to peer), auto (as pool, but what a "
      "prefill answer says is passed on), none (no prefill hop)");
  app.add_option(
         "--mooncake-bootstrap", raw.mooncake_bootstrap,
         "--kv-transfer mooncake: port of the prefill instances' bootstrap servers (8998), and host:port=port of those that have another")
      ->delimiter(',');
  app.add_option("--decode-first-below", settings.decode_first_below,
                 "No prefill hop for a prompt of which decode has fewer bytes to compute (0: always prefill)")
      ->capture_default_str();
}

void add_tls(CLI::App& app, ServerTls& tls, UpstreamTls& upstream) {
  app.add_option("--tls-cert", tls.certificate, "Clients speak TLS: PEM file of the certificate and its chain; read again when it changes");
  app.add_option("--tls-key", tls.key, "PEM file of its private key (default: in the file of --tls-cert)");
  app.add_option("--tls-client-ca", tls.client_ca, "Clients have to show a certificate of one of the CAs in this PEM file");
  app.add_flag("--upstream-tls", upstream.all, "Instances speak TLS unless their name begins with http:// (those with https:// always do)");
  app.add_option("--upstream-ca", upstream.ca,
                 "PEM file of the CAs of the instances' certificates (default: those that the system trusts)");
  app.add_option("--upstream-cert", upstream.certificate, "PEM file of the certificate that instances are shown which ask for one");
  app.add_option("--upstream-key", upstream.key, "PEM file of its private key (default: in the file of --upstream-cert)");
  app.add_option("--upstream-server-name", upstream.server_name, "Name that every instance's certificate is for (default: its host)");
}

Status check_tls(const Settings& settings) {
  if (settings.tls.certificate.empty() && !(settings.tls.key.empty() && settings.tls.client_ca.empty())) {
    return Status(ErrorCode::kConfig, "--tls-key and --tls-client-ca need --tls-cert: the gateway's own certificate");
  }
  if (settings.upstream_tls.certificate.empty() && !settings.upstream_tls.key.empty()) {
    return Status(ErrorCode::kConfig, "--upstream-key needs --upstream-cert: the certificate that it is the key of");
  }
  return Status();
}

// Every flag can come from the environment: --connect-timeout from MOONPOOL_GATEWAY_CONNECT_TIMEOUT. The command line wins.
void name_environment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames().front() == "help" || option->get_lnames().front() == "new-key") continue;
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
  app.add_option("--prefill,-p", raw.prefill, "Prefill instances, host:port or https://host:port each")->delimiter(',');
  app.add_option("--decode,-d", raw.decode, "Decode instances, host:port or https://host:port each")->delimiter(',');
  app.add_option("--port", settings.port, "Port to listen on (0: any free one)")->capture_default_str();
  app.add_option("--host", settings.host, "Address to listen on; 0.0.0.0 or :: for every interface")->capture_default_str();
  app.add_option("--scheduling", settings.scheduling, "How an instance is chosen: " + policy_names_text())->capture_default_str();
  app.add_option("--prefill-policy", settings.prefill_policy, "The same, for prefill alone (default: --scheduling)");
  app.add_option("--decode-policy", settings.decode_policy, "The same, for decode alone (default: --scheduling)");
  app.add_option("--affinity-header", settings.policy_options.affinity_header,
                 "session_affinity: requests with the same value stay together (else those with the same \"user\")")
      ->capture_default_str();
  app.add_option("--prefix-index-bytes", settings.policy_options.prefix_index_bytes,
                 "prefix_aware, pool_aware: memory for each instance's prompts, 36 bytes for 256 of text")
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
  add_overload(app, settings.overload);
  add_keys(app, settings, raw);
  add_kv_events(app, settings);
  app.add_option("--otlp-endpoint", settings.otlp_endpoint,
                 "Send spans of sampled requests to this OTLP/HTTP collector, http://host:4318 (or OTEL_EXPORTER_OTLP_ENDPOINT)");
  app.add_option("--otlp-service-name", settings.service_name, "The spans' service.name (or OTEL_SERVICE_NAME)")->capture_default_str();
  add_kv_transfer(app, settings, raw);
  add_tls(app, settings.tls, settings.upstream_tls);
  name_environment(app);
}

struct Parsed {
  Settings settings;
  RawFlags raw;
  std::string help;  // when it was asked for
};

// OpenTelemetry's own variables, where no flag of ours says otherwise.
void take_otel_environment(Settings& settings) {
  if (const char* endpoint = std::getenv("OTEL_EXPORTER_OTLP_ENDPOINT"); endpoint != nullptr && *endpoint != '\0') {
    // Meant for all of a machine's programs: no reason not to start.
    if (const auto usable = parse_http_endpoint(endpoint); usable.ok()) {
      settings.otlp_endpoint = endpoint;
    } else {
      log::warning("OTEL_EXPORTER_OTLP_ENDPOINT is ignored: {}", usable.status().message());
    }
  }
  if (const char* name = std::getenv("OTEL_SERVICE_NAME"); name != nullptr && *name != '\0') settings.service_name = name;
}

// Where the API server of the cluster is that this process runs in.
Status find_kubernetes(Discovery& discovery) {
  for (KubernetesSource& source : discovery.kubernetes) {
    if (!source.server.empty()) continue;
    const char* host = std::getenv("KUBERNETES_SERVICE_HOST");
    const char* port = std::getenv("KUBERNETES_SERVICE_PORT");
    if (host == nullptr || *host == '\0') {
      return Status(ErrorCode::kConfig,
                    "\"kubernetes\": this process runs in no pod (KUBERNETES_SERVICE_HOST is not set): name the API "
                    "server, as in \"server\": \"http://127.0.0.1:8001\" for kubectl proxy");
    }
    const std::string address(host);
    source.server = "https://" + (address.find(':') == std::string::npos ? address : "[" + address + "]") + ":" +
                    (port == nullptr || *port == '\0' ? "443" : port);
  }
  return Status();
}

// The command line over `base`.
Result<Parsed> parse_over(Settings base, int argc, const char* const* argv) {
  Parsed parsed{std::move(base), {}, {}};
  CLI::App app{
      "HTTP gateway in front of prefill and decode groups of vLLM instances.\n"
      "Set ADMIN_API_KEY in the environment to allow POST /instances/add, /instances/remove and /instances/role, and\n"
      "MOONPOOL_GATEWAY_UPSTREAM_API_KEY to what the instances want as their --api-key.",
      "moonpool gateway"};
  declare_flags(app, parsed.settings, parsed.raw);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    parsed.help = app.help();
  } catch (const CLI::ParseError& error) {
    return Status(ErrorCode::kConfig, std::string(error.what()) + ". Run moonpool gateway --help for all flags");
  }
  // CLI11 2.4 and newer pass over a variable whose value is wrong, older ones refuse it.
  for (const CLI::Option* option : app.get_options()) {
    const char* value = option->get_envname().empty() ? nullptr : std::getenv(option->get_envname().c_str());
    if (value == nullptr || *value == '\0' || option->count() != 0 || !parsed.help.empty()) continue;
    return Status(ErrorCode::kConfig, option->get_envname() + "=" + value + " is no value for " + option->get_name() +
                                          ". Run moonpool gateway --help for all flags");
  }
  return parsed;
}

// Those of the keys' own file, and of the environment: kept out of the command line, which others can see.
Status add_secrets(Settings& settings) {
  if (!settings.keys_file.empty()) {
    auto keys = read_keys_file(settings.keys_file, std::move(settings.keys));
    if (!keys.ok()) return keys.status();
    settings.keys = std::move(keys).value();
  }
  if (const char* key = std::getenv("ADMIN_API_KEY"); key != nullptr && *key != '\0') {
    ApiKey admin;
    admin.name = "ADMIN_API_KEY";
    admin.digest = digest_of(key);
    admin.role = KeyRole::kAdmin;
    MOONPOOL_RETURN_IF_ERROR(settings.keys.add(std::move(admin)));
  }
  if (const char* key = std::getenv("MOONPOOL_GATEWAY_UPSTREAM_API_KEY"); key != nullptr) settings.upstream_api_key = key;
  for (const char c : settings.upstream_api_key) {
    if (c <= ' ' || c >= 0x7F) return Status(ErrorCode::kConfig, "MOONPOOL_GATEWAY_UPSTREAM_API_KEY holds what no HTTP header can carry");
  }
  return Status();
}

void add_missing(std::vector<InstanceName>& names, const std::vector<InstanceName>& more) {
  for (const auto& name : more) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
}

}  // namespace

Result<ParsedCommandLine> parse_command_line(int argc, const char* const* argv) {
  ParsedCommandLine parsed;
  Settings defaults;
  take_otel_environment(defaults);
  auto first = parse_over(defaults, argc, argv);
  if (!first.ok()) return first.status();
  if (!first->help.empty()) {
    parsed.help = std::move(first->help);
    return parsed;
  }
  if (!first->raw.new_key.empty()) {
    auto text = new_key_text(first->raw.new_key);
    if (!text.ok()) return text.status();
    parsed.help = std::move(text).value();
    return parsed;
  }
  if (!first->settings.config_file.empty()) {
    auto from_file = read_config_file(first->settings.config_file, std::move(defaults));
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
  if (auto endpoint = parse_http_endpoint(settings.otlp_endpoint); !settings.otlp_endpoint.empty() && !endpoint.ok()) {
    return Status(ErrorCode::kConfig, "--otlp-endpoint " + settings.otlp_endpoint + ": " + endpoint.status().message());
  }
  for (Discovery* discovery : {&settings.prefill_discovery, &settings.decode_discovery})
    MOONPOOL_RETURN_IF_ERROR(find_kubernetes(*discovery));
  for (const std::string& text : raw.mooncake_bootstrap) {
    if (Status status = set_mooncake_port(settings.kv_transfer, text); !status.ok()) {
      return Status(ErrorCode::kConfig, "--mooncake-bootstrap: " + status.message());
    }
  }
  add_missing(settings.prefill, *prefill);
  add_missing(settings.decode, *decode);
  MOONPOOL_RETURN_IF_ERROR(add_secrets(settings));
  MOONPOOL_RETURN_IF_ERROR(check_tls(settings));
  for (auto& name : settings.prefill) name = settings.instance_of("prefill", name);
  for (auto& name : settings.decode) name = settings.instance_of("decode", name);
  parsed.settings = std::move(settings);
  return parsed;
}

}  // namespace moonpool::gateway
