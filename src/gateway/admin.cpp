#include "gateway/admin.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "base/logging.h"
#include "gateway/instance_check.h"

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

json::string text(std::string_view value) { return json::string(value.data(), value.size()); }

Reply refuse(unsigned status, std::string_view message) { return {status, openai_error(status, message)}; }

json::object latency(const LatencyHistogram& histogram) {
  return {{"count", histogram.count()},
          {"mean_ms", histogram.mean_ms()},
          {"p50_ms", histogram.percentile_ms(0.5)},
          {"p90_ms", histogram.percentile_ms(0.9)},
          {"p99_ms", histogram.percentile_ms(0.99)}};
}

json::object describe(const Instance& instance) {
  const double error_age = instance.last_error_age_s();
  return {{"instance", text(instance.name().to_string())},
          {"state", instance.healthy() ? "healthy" : "unhealthy"},
          {"circuit", text(instance.circuit())},
          {"in_flight", instance.in_flight()},
          {"requests", instance.requests()},
          {"errors", instance.errors()},
          {"consecutive_failures", instance.consecutive_failures()},
          {"last_error", error_age < 0 ? json::value(nullptr) : json::value(text(instance.last_error()))},
          {"last_error_age_s", error_age < 0 ? json::value(nullptr) : json::value(error_age)},
          {"first_byte_latency", latency(instance.first_byte)},
          {"latency", latency(instance.total)}};
}

std::size_t healthy_in(const Group& group) {
  std::size_t count = 0;
  const auto list = group.snapshot();  // held: the group may replace its list meanwhile
  for (const auto& instance : *list) count += instance->healthy() ? 1 : 0;
  return count;
}

json::object describe(const Counters& counters) {
  return {{"requests", counters.requests.load()},
          {"answered", counters.answered.load()},
          {"failed", counters.failed.load()},
          {"cut", counters.cut.load()},
          {"client_gone", counters.client_gone.load()},
          {"bad_requests", counters.bad_requests.load()},
          {"retries", counters.retries.load()},
          {"retries_refused", counters.retries_refused.load()},
          {"continued", counters.continued.load()},
          {"prefill_given_up", counters.prefill_given_up.load()},
          {"client_connections", counters.client_connections.load()}};
}

struct Addition {
  std::string type;
  InstanceName instance;
};

Result<Addition> parse_addition(std::string_view body) {
  constexpr auto kHint = R"(. Send {"type": "prefill" or "decode", "instance": "host:port"})";
  const auto wrong = [&](const std::string& what) { return Status(ErrorCode::kInvalidParams, what + kHint); };
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(body.data(), body.size()), error);
  if (error) return wrong("the body is not valid JSON: " + error.message());
  const auto* object = document.if_object();
  if (object == nullptr) return wrong("the body is not a JSON object");
  const auto* type = object->if_contains("type");
  const auto* instance = object->if_contains("instance");
  if (type == nullptr || !type->is_string()) return wrong("the field \"type\" is missing or no string");
  if (instance == nullptr || !instance->is_string()) return wrong("the field \"instance\" is missing or no string");
  const std::string type_text(type->get_string().data(), type->get_string().size());
  if (type_text != "prefill" && type_text != "decode") return wrong("\"type\" is neither prefill nor decode");
  auto name = InstanceName::parse(std::string_view(instance->get_string().data(), instance->get_string().size()));
  if (!name.ok()) return name.status();
  return Addition{type_text, std::move(name).value()};
}

// Empty when the request may administer.
std::optional<Reply> unauthorized(const GatewayState& state, const RequestParser& request) {
  const std::string& expected = state.settings.admin_api_key;
  if (expected.empty()) {
    return refuse(
        403,
        "adding instances is disabled: start the gateway with ADMIN_API_KEY set in its environment, and send the same key in X-API-Key");
  }
  const std::string_view given = request.headers.get("x-api-key");
  if (given.empty())
    return refuse(401, "the header X-API-Key is missing: it has to carry the key that the gateway was started with in ADMIN_API_KEY");
  if (!same_secret(given, expected))
    return refuse(403, "the key in X-API-Key is not the one that the gateway was started with in ADMIN_API_KEY");
  return std::nullopt;
}

unsigned status_of(ErrorCode code) {
  if (code == ErrorCode::kInvalidParams) return 400;
  return code == ErrorCode::kRpcTimeout ? 504 : 502;
}

}  // namespace

bool same_secret(std::string_view given, std::string_view expected) {
  unsigned char difference = given.size() == expected.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const auto other = expected.empty() ? '\0' : expected[i % expected.size()];
    difference = static_cast<unsigned char>(difference | (static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(other)));
  }
  return static_cast<volatile unsigned char&>(difference) == 0;
}

Reply health_reply(const GatewayState& state) {
  const auto prefill = healthy_in(state.prefill);
  const auto decode = healthy_in(state.decode);
  const bool whole = decode > 0 && (prefill > 0 || state.prefill.empty());
  return {200,
          json::serialize(json::object{{"status", whole ? "ok" : "degraded"}, {"prefill_healthy", prefill}, {"decode_healthy", decode}})};
}

Reply ready_reply(const GatewayState& state) {
  if (healthy_in(state.decode) == 0) return refuse(503, "no decode instance is healthy: see /status");
  return {200, R"({"status":"ready"})"};
}

Reply status_reply(const GatewayState& state) {
  json::object reply{{"model", text(state.settings.model)},
                     {"scheduling", text(state.decode.policy_name())},
                     {"uptime_s", std::chrono::duration<double>(std::chrono::steady_clock::now() - state.started).count()}};
  json::array all;
  for (const Group* group : {&state.prefill, &state.decode}) {
    const auto list = group->snapshot();
    json::array names;
    for (const auto& instance : *list) {
      names.push_back(text(instance->name().to_string()));
      json::object one = describe(*instance);
      one["type"] = text(group->role());
      all.push_back(std::move(one));
    }
    reply[group->role() + "_node_count"] = list->size();
    reply[group->role() + "_nodes"] = std::move(names);
  }
  reply["instances"] = std::move(all);
  reply["counters"] = describe(state.counters);
  return {200, json::serialize(reply)};
}

Task<Reply> add_instance(GatewayState& state, UpstreamPool& pool, const RequestParser& request, std::string peer,
                         Cancellation& cancellation) {
  if (auto refusal = unauthorized(state, request)) {
    log::warning("{} may not add an instance: HTTP {}", peer, refusal->status);
    co_return std::move(*refusal);
  }
  auto addition = parse_addition(request.body);
  if (!addition.ok()) co_return refuse(400, addition.status().message());
  const std::string name = addition->instance.to_string();
  Group& group = addition->type == "prefill" ? state.prefill : state.decode;
  const auto already = [&] {
    return json::serialize(json::object{{"message", text(name + " is in " + group.role() + "_instances already.")}});
  };
  if (group.contains(addition->instance)) co_return Reply{200, already()};

  auto checked = co_await check_instance(pool, addition->instance, state.settings.model, request.headers.get(http::field::authorization),
                                         Deadline::after(state.settings.timeouts.check), cancellation);
  if (!checked.ok() || !checked->verified) {
    const std::string reason = checked.ok() ? checked->remark : checked.status().message();
    log::warning("{} wanted to add the {} instance {}, which was refused: {}", peer, group.role(), name, reason);
    co_return refuse(checked.ok() ? 502 : status_of(checked.code()), name + " was not added: " + reason);
  }
  if (!group.add(state.make_instance(addition->instance, group))) co_return Reply{200, already()};
  log::info("{} added the {} instance {}", peer, group.role(), name);
  co_return Reply{200, json::serialize(json::object{{"message", text("Added " + name + " to " + group.role() + "_instances.")}})};
}

}  // namespace moonpool::gateway
