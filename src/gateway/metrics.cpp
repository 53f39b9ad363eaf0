#include "gateway/metrics.h"

#include <fmt/format.h>

#include <iterator>
#include <memory>
#include <vector>

namespace moonpool::gateway {

namespace {

constexpr double kFirstEdgeShownS = 0.001;
constexpr double kLastEdgeShownS = 450;

// name="value"; a value may come from outside.
std::string label(std::string_view name, std::string_view value) {
  std::string text(name);
  text += "=\"";
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return text + '"';
}

// Families one after another, each with its samples behind it. Names and help are the program's own and need no escapes.
class MetricsText {
 public:
  void gauge(std::string_view name, std::string_view help) { begin("gauge", name, help); }
  void counter(std::string_view name, std::string_view help) { begin("counter", std::string(name) + "_total", help); }
  void histogram(std::string_view name, std::string_view help) { begin("histogram", name, help); }

  // Of the family begun last. `labels` are whole, with commas between them.
  void sample(std::string_view labels, std::uint64_t value) {
    const std::string_view open = labels.empty() ? "" : "{";
    const std::string_view close = labels.empty() ? "" : "}";
    fmt::format_to(std::back_inserter(text_), "{}{}{}{} {}\n", name_, open, labels, close, value);
  }
  void sample(std::string_view labels, const std::atomic<std::uint64_t>& value) { sample(labels, value.load(std::memory_order_relaxed)); }
  void sample(std::string_view labels, const LatencyHistogram& histogram) {
    const auto out = [this] { return std::back_inserter(text_); };
    const std::string_view comma = labels.empty() ? "" : ",";
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
      count += histogram.in_bucket(i);
      const double edge = LatencyHistogram::upper_edge_s(i);
      if (edge < kFirstEdgeShownS || edge > kLastEdgeShownS) continue;
      fmt::format_to(out(), "{}_bucket{{{}{}le=\"{}\"}} {}\n", name_, labels, comma, edge, count);
    }
    fmt::format_to(out(), "{}_bucket{{{}{}le=\"+Inf\"}} {}\n", name_, labels, comma, count);
    const std::string_view open = labels.empty() ? "" : "{";
    const std::string_view close = labels.empty() ? "" : "}";
    fmt::format_to(out(), "{}_sum{}{}{} {}\n", name_, open, labels, close, histogram.sum_s());
    fmt::format_to(out(), "{}_count{}{}{} {}\n", name_, open, labels, close, count);
  }

  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  void begin(std::string_view kind, std::string_view name, std::string_view help) {
    name_ = "moonpool_gateway_";
    name_ += name;
    fmt::format_to(std::back_inserter(text_), "# HELP {0} {1}\n# TYPE {0} {2}\n", name_, help, kind);
  }

  std::string text_;
  std::string name_;
};

struct ShownInstance {
  std::shared_ptr<const Instance> instance;
  std::string labels;
};

std::vector<ShownInstance> shown_instances(const GatewayState& state) {
  std::vector<ShownInstance> shown;
  for (const Group* group : {&state.prefill, &state.decode}) {
    const auto list = group->snapshot();  // held: the group may replace its list meanwhile
    for (const auto& instance : *list) {
      shown.push_back({instance, label("instance", instance->name().to_string()) + "," + label("role", group->role())});
    }
  }
  return shown;
}

void write_state(MetricsText& out, const std::vector<ShownInstance>& all) {
  out.gauge("instance_up", "1 when the instance is given requests as far as its health goes, 0 while it is unhealthy");
  for (const auto& one : all) out.sample(one.labels, std::uint64_t{one.instance->healthy()});
  out.gauge("instance_state", "1 for the state that the instance is in, 0 for the others");
  for (const auto& one : all) {
    const std::string_view now = one.instance->state();
    for (const std::string_view state : Instance::kStateNames) {
      out.sample(one.labels + "," + label("state", state), std::uint64_t{state == now});
    }
  }
  out.gauge("instance_in_flight", "Requests that the instance works on");
  for (const auto& one : all) out.sample(one.labels, one.instance->in_flight());
}

void write_traffic(MetricsText& out, const std::vector<ShownInstance>& all) {
  out.counter("instance_requests", "Requests sent to the instance");
  for (const auto& one : all) out.sample(one.labels, one.instance->requests());
  out.counter("instance_errors", "Failures of the instance's own, by cause");
  for (const auto& one : all) {
    for (std::size_t i = 0; i < Instance::kCauseNames.size(); ++i) {
      out.sample(one.labels + "," + label("cause", Instance::kCauseNames[i]), one.instance->errors_by(static_cast<Instance::Cause>(i)));
    }
  }
  out.histogram("instance_first_byte_seconds", "From sending a request to the first byte of the instance's answer");
  for (const auto& one : all) out.sample(one.labels, one.instance->first_byte);
  out.histogram("instance_request_seconds", "From sending a request to the last byte of the instance's answer, whole answers alone");
  for (const auto& one : all) out.sample(one.labels, one.instance->total);
  out.histogram("instance_inter_token_seconds", "Between two data events of a stream; events that arrived together lie 0 apart");
  for (const auto& one : all) out.sample(one.labels, one.instance->between_events);
}

// Of instances whose KV events are followed.
void write_events(MetricsText& out, std::vector<ShownInstance> all) {
  std::erase_if(all, [](const auto& one) { return one.instance->live_blocks() == nullptr; });
  if (all.empty()) return;
  out.gauge("instance_kv_events_connected", "1 while the instance's KV events are received");
  for (const auto& one : all) out.sample(one.labels, std::uint64_t{one.instance->live_blocks()->is_connected()});
  out.gauge("instance_kv_blocks", "Blocks that the instance has in its KV cache, as far as its events told");
  for (const auto& one : all) out.sample(one.labels, one.instance->live_blocks()->blocks());
  out.counter("instance_kv_event_batches", "Batches of KV events received from the instance");
  for (const auto& one : all) out.sample(one.labels, one.instance->live_blocks()->batches());
  out.counter("instance_kv_event_gaps", "Times that batches of KV events were missing");
  for (const auto& one : all) out.sample(one.labels, one.instance->live_blocks()->gaps());
}

void write_requests(MetricsText& out, const Counters& counters) {
  out.counter("completions", "Completions received");
  out.sample({}, counters.requests);
  out.counter("requests", "Requests by how they ended, those of the gateway's own endpoints left out");
  out.sample(label("outcome", "answered"), counters.answered);
  out.sample(label("outcome", "failed"), counters.failed);
  out.sample(label("outcome", "cut"), counters.cut);
  out.sample(label("outcome", "client_gone"), counters.client_gone);
  out.sample(label("outcome", "bad_request"), counters.bad_requests);
  out.counter("retries", "Hops sent to another instance after a failure");
  out.sample({}, counters.retries);
  out.counter("retries_refused", "Retries not made because the retry budget was used up");
  out.sample({}, counters.retries_refused);
  out.counter("continued", "Streams that went on at another instance");
  out.sample({}, counters.continued);
  out.counter("prefill_given_up", "Completions sent to decode although no prefill instance had done its part");
  out.sample({}, counters.prefill_given_up);
  out.counter("decode_first", "Completions sent to decode alone, because there was little to prefill");
  out.sample({}, counters.decode_first);
  out.counter("kv_handed_over", "Completions whose decode was told where a prefill instance keeps their KV");
  out.sample({}, counters.kv_handed_over);
  out.counter("kv_not_taken", "Of these, whose decode answered with an error: asked again without it");
  out.sample({}, counters.kv_not_taken);
  out.counter("unauthorized", "Requests refused for their key, or for the lack of one");
  out.sample({}, counters.unauthorized);
  out.gauge("client_connections", "Connections of clients, open now");
  out.sample({}, counters.client_connections);
  out.counter("spans", "Spans of sampled requests, by whether the OTLP collector took them");
  out.sample(label("outcome", "exported"), counters.spans_exported);
  out.sample(label("outcome", "dropped"), counters.spans_dropped);
  out.histogram("first_byte_seconds", "From a completion's arrival to the first byte of its answer, errors left out");
  out.sample({}, counters.first_byte);
}

void write_admission(MetricsText& out, const Admission& admission) {
  const auto now = admission.snapshot();
  out.gauge("running_requests", "Requests that were let through to the instances and have not ended");
  out.sample({}, now.running);
  out.gauge("queue_requests", "Requests that wait for a place");
  out.sample({}, now.waiting);
  out.gauge("queue_bytes", "Bytes of the bodies of waiting requests");
  out.sample({}, now.waiting_bytes);
  out.histogram("queue_wait_seconds", "How long requests waited that were let through, those that did not wait included");
  out.sample({}, admission.waits);
  out.counter("shed", "Requests refused, or given up waiting, by cause");
  for (std::size_t i = 0; i < kShedCauses; ++i) {
    out.sample(label("cause", name_of(static_cast<Shed>(i))), admission.shed(static_cast<Shed>(i)));
  }
  out.counter("key_requests", "Requests of each key by what became of them; key - stands for those without one");
  for (const auto& key : now.keys) {
    const std::string labels = label("key", key.name) + ",";
    out.sample(labels + label("outcome", "started"), key.started);
    out.sample(labels + label("outcome", "rate_limited"), key.rate_limited);
    out.sample(labels + label("outcome", "shed"), key.shed);
  }
  out.counter("key_tokens", "Tokens of each key's requests that have ended, of prompt and answer");
  for (const auto& key : now.keys) out.sample(label("key", key.name), key.tokens);
}

}  // namespace

std::string metrics_text(const GatewayState& state) {
  MetricsText out;
  out.gauge("info", "1; what this gateway serves and how it chooses instances");
  out.sample(label("model", state.settings().model) + "," + label("prefill_policy", state.prefill.policy_name()) + "," +
                 label("decode_policy", state.decode.policy_name()),
             std::uint64_t{1});
  write_requests(out, state.counters);
  if (state.admission.active()) write_admission(out, state.admission);
  out.histogram("hop_seconds", "Time of a request's hop with all its tries, however it ended");
  for (const Group* group : {&state.prefill, &state.decode}) out.sample(label("hop", group->role()), group->hops);
  const auto instances = shown_instances(state);
  write_state(out, instances);
  write_traffic(out, instances);
  write_events(out, instances);
  return out.take();
}

}  // namespace moonpool::gateway
