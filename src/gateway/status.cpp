#include "gateway/status.h"

#include <fmt/format.h>

#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

json::string text(std::string_view value) { return json::string(value.data(), value.size()); }

json::object latency(const LatencyHistogram& histogram) {
  return {{"count", histogram.count()},
          {"mean_ms", histogram.mean_ms()},
          {"p50_ms", histogram.percentile_ms(0.5)},
          {"p90_ms", histogram.percentile_ms(0.9)},
          {"p99_ms", histogram.percentile_ms(0.99)}};
}

json::value describe_events(const LiveBlocks* live) {
  if (live == nullptr) return nullptr;
  const bool connected = live->is_connected();
  return json::object{
      {"connected", connected},   {"whole", live->is_whole()},
      {"blocks", live->blocks()}, {"batches", live->batches()},
      {"gaps", live->gaps()},     {"why_not_connected", connected ? json::value(nullptr) : json::value(text(live->why_not_connected()))}};
}

json::object describe(const Instance& instance) {
  const double error_age = instance.last_error_age_s();
  json::object causes;
  for (std::size_t i = 0; i < Instance::kCauseNames.size(); ++i) {
    const auto name = Instance::kCauseNames[i];
    causes[json::string_view(name.data(), name.size())] = instance.errors_by(static_cast<Instance::Cause>(i));
  }
  return {{"instance", text(instance.name().to_string())},
          {"type", text(instance.role())},
          {"state", text(instance.state())},
          {"circuit", text(instance.circuit())},
          {"weight", instance.weight()},
          {"in_flight", instance.in_flight()},
          {"requests", instance.requests()},
          {"errors", instance.errors()},
          {"errors_by_cause", std::move(causes)},
          {"consecutive_failures", instance.consecutive_failures()},
          {"last_error", error_age < 0 ? json::value(nullptr) : json::value(text(instance.last_error()))},
          {"last_error_age_s", error_age < 0 ? json::value(nullptr) : json::value(error_age)},
          {"first_byte_latency", latency(instance.first_byte)},
          {"latency", latency(instance.total)},
          {"inter_token_latency", latency(instance.between_events)},
          {"kv_events", describe_events(instance.live_blocks().get())}};
}

json::array describe_instances(const GatewayState& state) {
  json::array all;
  for (const Group* group : {&state.prefill, &state.decode}) {
    const auto list = group->snapshot();  // held: the group may replace its list meanwhile
    for (const auto& instance : *list) all.push_back(describe(*instance));
  }
  return all;
}

std::size_t usable_in(const Group& group) {
  std::size_t count = 0;
  const auto list = group.snapshot();
  for (const auto& instance : *list) count += instance->healthy() && !instance->draining() ? 1 : 0;
  return count;
}

json::object describe(const Counters& counters) {
  return {{"requests", counters.requests.load()},
          {"answered", counters.answered.load()},
          {"failed", counters.failed.load()},
          {"cut", counters.cut.load()},
          {"client_gone", counters.client_gone.load()},
          {"bad_requests", counters.bad_requests.load()},
          {"unauthorized", counters.unauthorized.load()},
          {"retries", counters.retries.load()},
          {"retries_refused", counters.retries_refused.load()},
          {"continued", counters.continued.load()},
          {"prefill_given_up", counters.prefill_given_up.load()},
          {"decode_first", counters.decode_first.load()},
          {"kv_handed_over", counters.kv_handed_over.load()},
          {"kv_not_taken", counters.kv_not_taken.load()},
          {"client_connections", counters.client_connections.load()}};
}

json::object describe(const Admission& admission) {
  const auto now = admission.snapshot();
  json::object shed;
  for (std::size_t i = 0; i < kShedCauses; ++i) {
    const auto cause = static_cast<Shed>(i);
    const auto name = name_of(cause);
    shed[json::string_view(name.data(), name.size())] = admission.shed(cause);
  }
  json::array keys;
  for (const auto& key : now.keys) {
    keys.push_back(json::object{{"key", text(key.name)},
                                {"started", key.started},
                                {"tokens", key.tokens},
                                {"rate_limited", key.rate_limited},
                                {"shed", key.shed},
                                {"waiting", key.waiting}});
  }
  json::value wait;
  if (now.estimated_wait) wait = std::chrono::duration<double>(*now.estimated_wait).count();
  return {{"running", now.running},
          {"running_at_most", now.running_at_most},
          {"waiting", now.waiting},
          {"waiting_bytes", now.waiting_bytes},
          {"estimated_wait_s", std::move(wait)},
          {"waits", latency(admission.waits)},
          {"shed", std::move(shed)},
          {"keys", std::move(keys)}};
}

double uptime_s(const GatewayState& state) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - state.started).count();
}

Reply status_as_json(const GatewayState& state) {
  json::object reply{{"model", text(state.settings().model)},
                     {"scheduling", text(state.decode.policy_name())},
                     {"prefill_policy", text(state.prefill.policy_name())},
                     {"decode_policy", text(state.decode.policy_name())},
                     {"uptime_s", uptime_s(state)}};
  for (const Group* group : {&state.prefill, &state.decode}) {
    const auto list = group->snapshot();
    json::array names;
    for (const auto& instance : *list) names.push_back(text(instance->name().to_string()));
    reply[group->role() + "_node_count"] = list->size();
    reply[group->role() + "_nodes"] = std::move(names);
  }
  reply["instances"] = describe_instances(state);
  reply["counters"] = describe(state.counters);
  if (state.admission.active()) reply["queue"] = describe(state.admission);
  return {200, json::serialize(reply)};
}

// One row of the table for people.
using Row = std::array<std::string, 13>;

const Row kTitles{"role",           "instance",       "state",      "load share",      "in flight",       "requests",  "errors",
                  "first byte p50", "first byte p99", "answer p50", "inter-token p50", "inter-token p99", "last error"};

Row row_of(const Instance& instance) {
  const auto ms = [](const LatencyHistogram& histogram, double share) {
    return histogram.count() == 0 ? std::string("-") : fmt::format("{:.1f} ms", histogram.percentile_ms(share));
  };
  const double age = instance.last_error_age_s();
  return {instance.role(),
          instance.name().to_string(),
          std::string(instance.state()),
          fmt::format("{:.0f}%", instance.weight() * 100),
          std::to_string(instance.in_flight()),
          std::to_string(instance.requests()),
          std::to_string(instance.errors()),
          ms(instance.first_byte, 0.5),
          ms(instance.first_byte, 0.99),
          ms(instance.total, 0.5),
          ms(instance.between_events, 0.5),
          ms(instance.between_events, 0.99),
          age < 0 ? "-" : fmt::format("{:.0f} s ago: {}", age, instance.last_error())};
}

std::vector<Row> table_of(const GatewayState& state) {
  std::vector<Row> rows{kTitles};
  for (const Group* group : {&state.prefill, &state.decode}) {
    const auto list = group->snapshot();
    for (const auto& instance : *list) rows.push_back(row_of(*instance));
  }
  return rows;
}

std::string summary(const GatewayState& state) {
  const Counters& counters = state.counters;
  std::string queue;
  if (state.admission.active()) {
    const auto now = state.admission.snapshot();
    queue = fmt::format(" Running {}, waiting {}.", now.running, now.waiting);
  }
  return fmt::format(
      "{}, up {:.0f} s. Policies: prefill {}, decode {}. Requests {}, answered {}, failed {}, cut {}, retries {}, clients {}.{}",
      state.settings().model, uptime_s(state), state.prefill.policy_name(), state.decode.policy_name(), counters.requests.load(),
      counters.answered.load(), counters.failed.load(), counters.cut.load(), counters.retries.load(), counters.client_connections.load(),
      queue);
}

Reply status_as_text(const GatewayState& state) {
  const auto rows = table_of(state);
  std::array<std::size_t, std::tuple_size_v<Row>> widths{};
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string body = summary(state) + "\n\n";
  for (const Row& row : rows) {
    for (std::size_t i = 0; i + 1 < row.size(); ++i) body += fmt::format("{:<{}}  ", row[i], widths[i]);
    body += row.back() + "\n";
  }
  return {200, std::move(body), "text/plain; charset=utf-8"};
}

// Names and errors come from outside.
std::string escaped(std::string_view raw) {
  std::string safe;
  for (const char c : raw) {
    if (c == '<' || c == '>' || c == '&' || c == '"') {
      safe += fmt::format("&#{};", static_cast<int>(c));
    } else {
      safe += c;
    }
  }
  return safe;
}

Reply status_as_html(const GatewayState& state) {
  std::string body =
      "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>Moonpool gateway</title>"
      "<style>body{font:14px sans-serif}td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ccc}</style><p>" +
      escaped(summary(state)) + "</p><table>";
  std::string_view cell = "th";
  for (const Row& row : table_of(state)) {
    body += "<tr>";
    for (const auto& value : row) body += fmt::format("<{0}>{1}</{0}>", cell, escaped(value));
    body += "</tr>\n";
    cell = "td";
  }
  return {200, body + "</table>\n", "text/html; charset=utf-8"};
}

std::string_view wanted_format(const RequestParser& request) {
  const std::string_view target = request.target;
  const std::size_t mark = target.find('?');
  if (mark != std::string_view::npos) {
    const std::string query = "&" + std::string(target.substr(mark + 1)) + "&";
    for (const std::string_view format : {"json", "text", "html"}) {
      if (query.find("&format=" + std::string(format) + "&") != std::string::npos) return format;
    }
  }
  return request.headers.get(http::field::accept).find("text/html") != std::string_view::npos ? "html" : "json";
}

}  // namespace

Reply health_reply(const GatewayState& state) {
  const auto prefill = usable_in(state.prefill);
  const auto decode = usable_in(state.decode);
  const bool whole = decode > 0 && (prefill > 0 || state.prefill.empty());
  return {200,
          json::serialize(json::object{{"status", whole ? "ok" : "degraded"}, {"prefill_healthy", prefill}, {"decode_healthy", decode}})};
}

Reply ready_reply(const GatewayState& state) {
  if (usable_in(state.decode) == 0) return {503, openai_error(503, "no decode instance is healthy: see /status")};
  return {200, R"({"status":"ready"})"};
}

Reply status_reply(const GatewayState& state, const RequestParser& request) {
  const std::string_view format = wanted_format(request);
  if (format == "text") return status_as_text(state);
  return format == "html" ? status_as_html(state) : status_as_json(state);
}

Reply instances_reply(const GatewayState& state) { return {200, json::serialize(json::object{{"instances", describe_instances(state)}})}; }

}  // namespace moonpool::gateway
