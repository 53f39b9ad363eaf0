// All that a gateway is told at its start, parsed once and passed down; no other code reads flags or the environment.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "gateway/api_keys.h"
#include "gateway/circuit_breaker.h"
#include "gateway/continuation.h"
#include "gateway/instance_name.h"
#include "gateway/kv_transfer.h"
#include "gateway/policy.h"
#include "gateway/tls_settings.h"

namespace moonpool::gateway {

struct Timeouts {
  std::chrono::milliseconds connect{5'000};          // name resolution and connection to one instance
  std::chrono::milliseconds prefill{600'000};        // one prefill hop, whole
  std::chrono::milliseconds first_byte{600'000};     // decode: until the first byte of its answer's body
  std::chrono::milliseconds between_bytes{300'000};  // decode: silence within an answer
  std::chrono::milliseconds request{3'600'000};      // a request, all hops and retries
  std::chrono::milliseconds client_header{30'000};   // a client sends its request's head
  std::chrono::milliseconds client_body{300'000};    // and its body
  std::chrono::milliseconds client_idle{75'000};     // keep-alive between two requests
  std::chrono::milliseconds client_write{60'000};    // a client takes what it is sent
  std::chrono::milliseconds upstream_idle{4'000};    // a pooled connection's age at most: uvicorn closes idle ones after 5 s
  std::chrono::milliseconds check{5'000};            // a health probe, and the check before an instance is added
  std::chrono::milliseconds drain{30'000};           // running requests at SIGTERM, or of an instance that leaves

  friend bool operator==(const Timeouts&, const Timeouts&) = default;
};

struct Limits {
  std::uint32_t header_bytes = 64 * 1024;
  std::uint64_t body_bytes = std::uint64_t{64} << 20;
  std::size_t buffered_answer_bytes = std::size_t{64} << 20;  // a non-streamed answer is held whole up to this, and can be retried
  std::size_t client_connections = 20'000;
  std::size_t idle_upstream_connections = 256;  // per instance and thread

  friend bool operator==(const Limits&, const Limits&) = default;
};

// See retry.h for what the budget is.
struct Retries {
  double budget_share = 0.2;               // of the requests of the last ten seconds
  double budget_always = 10;               // a second, whatever the traffic
  std::chrono::milliseconds first{10};     // pause before the first retry; it doubles with each further one
  std::chrono::milliseconds longest{250};  // up to this
};

struct Health {
  CircuitSettings circuit;                        // when an instance counts as unhealthy, and for how long
  std::chrono::milliseconds check_every{10'000};  // active checks of healthy instances; 0: none, requests alone tell
  std::chrono::milliseconds first_probe{500};
  std::chrono::milliseconds slowest_probe{10'000};
  std::chrono::milliseconds slow_start{30'000};  // of an instance that is added later, until it gets a full share
};

// How much is let through to the instances at a time, and what waits in front of them. All are there from a reload on.
struct Overload {
  std::size_t concurrent = 0;    // requests that instances work on at a time; 0: any number
  std::size_t per_instance = 0;  // the same, for each usable decode instance; 0: any number
  std::size_t queue_requests = 1000;
  std::size_t queue_bytes = std::size_t{256} << 20;  // bodies of waiting requests
  std::chrono::milliseconds queue_timeout{30'000};

  friend bool operator==(const Overload&, const Overload&) = default;
};

// Where instances of a group are looked up again and again, besides the fixed ones. A look-up that fails changes nothing.
struct DnsSource {
  InstanceName name;  // every address of its host is an instance, with its port
  std::chrono::milliseconds interval{10'000};
};
struct SrvSource {
  std::string name;    // "_vllm._tcp.decode.example": each target of the lowest priority is an instance
  std::string server;  // the name server to ask, an IPv4 address with port; empty: the system's
  std::chrono::milliseconds interval{10'000};
};
struct EtcdSource {
  InstanceName server;  // etcd's client port, which speaks its v3 JSON gateway
  std::string prefix;   // each key below it is an instance (etcd_instances.h)
  std::chrono::milliseconds interval{2'000};
};
struct KubernetesSource {
  std::string service;                        // its ready endpoints are the instances
  std::string name_space;                     // empty: that of the gateway's own pod
  std::string port;                           // name or number of the service's port; empty: the only one
  std::string label_selector;                 // further labels that an EndpointSlice must have; empty: none
  std::string server;                         // "http://127.0.0.1:8001"; empty: the cluster that the gateway runs in
  std::string credentials;                    // folder with token, ca.crt and namespace; empty: where a pod finds them
  std::chrono::milliseconds interval{2'000};  // pause after a failure
};
struct Discovery {
  std::vector<DnsSource> dns;
  std::vector<SrvSource> srv;
  std::vector<EtcdSource> etcd;
  std::vector<KubernetesSource> kubernetes;
};

// Where the instances of a group publish their KV events (vLLM's --kv-events-config), each at its own host.
struct KvEventSource {
  std::uint16_t port = 0;         // the endpoint's; 0: events are not followed
  std::uint16_t replay_port = 0;  // the replay_endpoint's; 0: none
  std::string topic;              // what topics begin with; empty: all

  [[nodiscard]] bool is_on() const { return port != 0; }
  friend bool operator==(const KvEventSource&, const KvEventSource&) = default;
};

struct Settings {
  std::string model;
  std::vector<InstanceName> prefill;
  std::vector<InstanceName> decode;
  Discovery prefill_discovery;
  Discovery decode_discovery;
  std::string config_file;  // empty: none
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;                 // 0: any free port
  std::string scheduling{default_policy()};  // the policy of a group that names none
  std::string prefill_policy;
  std::string decode_policy;
  PolicyOptions policy_options;
  KvTransferSettings kv_transfer;
  std::size_t decode_first_below = 0;  // bytes of a prompt that decode does not know: with fewer, no prefill hop; 0: never
  unsigned threads = 0;                // 0: one per core
  unsigned attempts = 3;               // instances tried at most for one hop of one request
  bool access_log = false;
  bool sample_traces = false;  // traces that start here say that they are sampled
  std::string log_level = "info";
  std::string otlp_endpoint;                      // "http://host:4318": where spans of sampled requests go; empty: nowhere
  std::string service_name = "moonpool-gateway";  // as the spans name it
  Timeouts timeouts;
  Limits limits;
  Health health;
  Retries retries;
  ContinueStreams continue_streams = ContinueStreams::kGreedy;
  ContinueMarker continue_marker = ContinueMarker::kComment;
  ServerTls tls;
  UpstreamTls upstream_tls;
  std::optional<bool> prefill_tls;  // where a group differs from upstream_tls.all
  std::optional<bool> decode_tls;
  KvEventSource prefill_events;
  KvEventSource decode_events;

  [[nodiscard]] const std::string& policy_of(std::string_view role) const {
    const std::string& own = role == "prefill" ? prefill_policy : decode_policy;
    return own.empty() ? scheduling : own;
  }
  // The instance of that group that is meant by `name`, which may leave open whether it speaks TLS.
  [[nodiscard]] InstanceName instance_of(std::string_view role, const InstanceName& name) const {
    const std::optional<bool>& own = role == "prefill" ? prefill_tls : decode_tls;
    return own.value_or(upstream_tls.all) ? name.secured() : name;
  }

  KeyRing keys;                        // of the file, of the keys' own file, and of ADMIN_API_KEY
  std::string keys_file;               // empty: none
  bool protect_status = false;         // /status, /metrics and /instances want a key
  bool forward_authorization = false;  // the client's Authorization goes on to instances although it was a key of ours
  std::string upstream_api_key;        // from MOONPOOL_GATEWAY_UPSTREAM_API_KEY: what instances are sent. Never logged.
  Overload overload;

  [[nodiscard]] const KvEventSource& events_of(std::string_view role) const { return role == "prefill" ? prefill_events : decode_events; }
};

// Flags, the environment variables that stand for flags (MOONPOOL_GATEWAY_<FLAG>), the file that --config names (flags win, lists of
// instances add up), ADMIN_API_KEY and MOONPOOL_GATEWAY_UPSTREAM_API_KEY. Reads the files: called again, it gives what the same command
// line means now. No value when the caller only asked for a text (help, a new key), which `help` then holds.
struct ParsedCommandLine {
  std::optional<Settings> settings;
  std::string help;
};
[[nodiscard]] Result<ParsedCommandLine> parse_command_line(int argc, const char* const* argv);

}  // namespace moonpool::gateway
