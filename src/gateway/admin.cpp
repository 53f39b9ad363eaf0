#include "gateway/admin.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <optional>

#include "base/logging.h"
#include "gateway/access.h"
#include "gateway/instance_check.h"
#include "gateway/resolver.h"

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

constexpr std::chrono::milliseconds kLookEvery{10};  // whether a draining instance is idle
constexpr double kLongestS = 1e6;

json::string text(std::string_view value) { return json::string(value.data(), value.size()); }

Reply refuse(unsigned status, std::string_view message) { return {status, openai_error(status, message)}; }

Reply done(std::string_view message, json::object more = {}) {
  json::object body{{"message", text(message)}};
  for (auto& [key, value] : more) body[key] = std::move(value);
  return {200, json::serialize(body)};
}

std::string_view name_of(AdminAction action) {
  if (action == AdminAction::kAdd) return "add";
  return action == AdminAction::kRemove ? "remove" : "role";
}

std::string_view hint_of(AdminAction action) {
  if (action == AdminAction::kAdd)
    return R"(. Send {"type": "prefill" or "decode", "instance": "host:port"}, perhaps "slow_start_s": seconds)";
  if (action == AdminAction::kRemove) {
    return R"(. Send {"instance": "host:port"}, perhaps "type": "prefill" or "decode", "drain": false, "deadline_s": seconds)";
  }
  return R"(. Send {"instance": "host:port", "type": "prefill" or "decode"}: the role that it is to have)";
}

struct Command {
  std::string type;  // empty when not given
  InstanceName instance;
  bool drain = true;
  std::optional<std::chrono::milliseconds> deadline;
  std::optional<std::chrono::milliseconds> slow_start;
};

// The member `key` as seconds; an empty optional when it is absent.
Result<std::optional<std::chrono::milliseconds>> seconds_of(const json::object& object, const char* key) {
  const auto* value = object.if_contains(key);
  if (value == nullptr) return std::optional<std::chrono::milliseconds>();
  boost::system::error_code error;
  const double seconds = value->is_number() ? value->to_number<double>(error) : -1;
  if (error || !(seconds >= 0 && seconds <= kLongestS)) {
    return Status(ErrorCode::kInvalidParams, "\"" + std::string(key) + "\" is no number of seconds from 0 to 1000000");
  }
  return std::optional(std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000)));
}

Result<Command> parse_command(AdminAction action, std::string_view body) {
  const auto wrong = [](const std::string& what) { return Status(ErrorCode::kInvalidParams, what); };
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(body.data(), body.size()), error);
  if (error) return wrong("the body is not valid JSON: " + error.message());
  const auto* object = document.if_object();
  if (object == nullptr) return wrong("the body is not a JSON object");
  const auto* type = object->if_contains("type");
  if (type == nullptr) type = object->if_contains("role");
  const auto* instance = object->if_contains("instance");
  const bool type_needed = action != AdminAction::kRemove;
  if ((type == nullptr && type_needed) || (type != nullptr && !type->is_string())) {
    return wrong("the field \"type\" is missing or no string");
  }
  if (instance == nullptr || !instance->is_string()) return wrong("the field \"instance\" is missing or no string");
  const std::string type_text = type == nullptr ? std::string() : std::string(type->get_string().data(), type->get_string().size());
  if (type != nullptr && type_text != "prefill" && type_text != "decode") return wrong("\"type\" is neither prefill nor decode");
  auto name = InstanceName::parse(std::string_view(instance->get_string().data(), instance->get_string().size()));
  if (!name.ok()) return name.status();
  Command command{type_text, std::move(name).value(), true, {}, {}};
  if (const auto* drain = object->if_contains("drain"); drain != nullptr) {
    if (!drain->is_bool()) return wrong("\"drain\" is neither true nor false");
    command.drain = drain->get_bool();
  }
  auto deadline = seconds_of(*object, "deadline_s");
  if (!deadline.ok()) return deadline.status();
  auto slow_start = seconds_of(*object, "slow_start_s");
  if (!slow_start.ok()) return slow_start.status();
  command.deadline = *deadline;
  command.slow_start = *slow_start;
  return command;
}

// The name as the settings mean it: the one that a group has, where it leaves open whether TLS is spoken there.
InstanceName meant_by(const GatewayState& state, AdminAction action, const Command& command) {
  const Settings& settings = state.settings();
  for (const Group* group : {&state.prefill, &state.decode}) {
    if (action == AdminAction::kAdd && group->role() != command.type) continue;
    if (auto name = settings.instance_of(group->role(), command.instance); group->contains(name)) return name;
  }
  return command.type.empty() ? command.instance : settings.instance_of(command.type, command.instance);
}

unsigned status_of(ErrorCode code) {
  if (code == ErrorCode::kInvalidParams) return 400;
  return code == ErrorCode::kRpcTimeout ? 504 : 502;
}

Task<Reply> add(GatewayState& state, UpstreamPool& pool, const RequestParser& request, const Command& command, Cancellation& cancellation) {
  const std::string name = command.instance.to_string();
  Group& group = state.group_of(command.type);
  const auto already = [&] { return done(name + " is in " + group.role() + "_instances already."); };
  if (const auto present = group.find(command.instance); present != nullptr) {
    if (!present->draining()) co_return already();
    present->set_draining(false);
    co_return done(name + " stays in " + group.role() + "_instances: its draining was called off.");
  }
  // The client's Authorization is the instance's, unless it was the admin key.
  std::string authorization;
  if (!request.headers.get("x-api-key").empty()) authorization = request.headers.get(http::field::authorization);
  if (authorization.empty()) authorization = state.upstream_authorization();
  auto checked = co_await check_instance(pool, command.instance, state.settings().model, authorization,
                                         Deadline::after(state.settings().timeouts.check), cancellation);
  if (!checked.ok() || !checked->verified) {
    const std::string reason = checked.ok() ? checked->remark : checked.status().message();
    co_return refuse(checked.ok() ? 502 : status_of(checked.code()), name + " was not added: " + reason);
  }
  const auto made = state.make_instance(command.instance, group, command.slow_start);
  made->probe_succeeded();  // the check was a success
  if (!group.add(made)) co_return already();
  co_return done("Added " + name + " to " + group.role() + "_instances.");
}

// The group that the command means, or why it cannot be told.
Result<Group*> group_with(GatewayState& state, const Command& command) {
  const std::string name = command.instance.to_string();
  if (!command.type.empty()) {
    Group& group = state.group_of(command.type);
    if (group.contains(command.instance)) return &group;
    return Status(ErrorCode::kObjectNotFound, name + " is no " + group.role() + " instance: see /instances");
  }
  const bool prefill = state.prefill.contains(command.instance);
  const bool decode = state.decode.contains(command.instance);
  if (prefill && decode) return Status(ErrorCode::kInvalidParams, name + " is in both groups: \"type\" has to say which is meant");
  if (!prefill && !decode) return Status(ErrorCode::kObjectNotFound, name + " is in no group: see /instances");
  return prefill ? &state.prefill : &state.decode;
}

Task<Reply> remove(GatewayState& state, const Command& command, Cancellation& cancellation) {
  const auto found = group_with(state, command);
  if (!found.ok()) co_return refuse(found.code() == ErrorCode::kObjectNotFound ? 404 : 400, found.status().message());
  Group& group = **found;
  const auto instance = group.find(command.instance);
  if (instance == nullptr) co_return refuse(404, command.instance.to_string() + " has just left its group");
  const std::string name = command.instance.to_string();
  if (!command.drain) {
    static_cast<void>(group.remove(instance));
  } else {
    instance->set_draining(true);
    const auto deadline = Deadline::after(command.deadline.value_or(state.settings().timeouts.drain));
    // On its own: it has to end also when this client does not wait for it.
    const auto executor = co_await asio::this_coro::executor;
    asio::co_spawn(
        executor, [&state, &group, instance, deadline] { return drain_and_remove(state, group, instance, deadline); }, asio::detached);
    while (group.find(command.instance) == instance && instance->draining() && !cancellation.cancelled()) {
      co_await pause(kLookEvery, cancellation);
    }
    if (!instance->draining()) co_return refuse(409, name + " was not removed: its draining was called off");
  }
  const auto left = instance->in_flight();
  co_return done("Removed " + name + " from " + group.role() + "_instances.", {{"drained", left == 0}, {"still_running", left}});
}

Reply set_role(GatewayState& state, const Command& command) {
  const std::string name = command.instance.to_string();
  Group& to = state.group_of(command.type);
  Group& from = command.type == "prefill" ? state.decode : state.prefill;
  const auto instance = from.find(command.instance);
  if (instance == nullptr) {
    if (to.contains(command.instance)) return done(name + " is in " + to.role() + "_instances already.");
    return refuse(404, name + " is in no group: see /instances");
  }
  // Into the new group first: there is no moment in which the instance serves neither.
  const auto made = state.make_instance(command.instance, to, command.slow_start);
  if (instance->healthy()) made->probe_succeeded();
  static_cast<void>(to.add(made));
  static_cast<void>(from.remove(instance));
  return done("Moved " + name + " from " + from.role() + "_instances to " + to.role() + "_instances.",
              {{"still_running", instance->in_flight()}});
}

}  // namespace

Task<void> drain_and_remove(GatewayState& state, Group& group, std::shared_ptr<Instance> instance, Deadline deadline) {
  Timer timer(co_await asio::this_coro::executor);
  while (instance->draining() && instance->in_flight() > 0 && !deadline.expired() && !state.stopping) {
    timer.expires_after(kLookEvery);
    co_await timer.async_wait(kAwait);
  }
  if (!instance->draining() || !group.remove(instance)) co_return;
  log::info("{} instance {} has left with {} requests still running", group.role(), instance->name().to_string(), instance->in_flight());
}

Task<Reply> administer(AdminAction action, GatewayState& state, UpstreamPool& pool, const RequestParser& request, std::string peer,
                       Cancellation& cancellation) {
  const auto audit = [&](std::string_view by, const Command* command, const Reply& reply) {
    log::logger().log(reply.status < 300 ? spdlog::level::info : spdlog::level::warn,
                      "audit: from={} by={} action={} instance={} type={} result={} {}", peer, by, name_of(action),
                      command == nullptr ? "-" : command->instance.to_string(),
                      command == nullptr || command->type.empty() ? "-" : command->type, reply.status, reply.body);
  };
  auto access = admin_access(state, request);
  if (access.refusal) {
    state.counters.unauthorized.fetch_add(1, std::memory_order_relaxed);
    audit("unauthorized", nullptr, *access.refusal);
    co_return std::move(*access.refusal);
  }
  const std::string& who = access.key->name;
  auto command = parse_command(action, request.body);
  Reply reply;
  if (!command.ok()) {
    reply = refuse(400, command.status().message() + std::string(hint_of(action)));
    audit(who, nullptr, reply);
    co_return reply;
  }
  command->instance = meant_by(state, action, *command);
  if (action == AdminAction::kAdd) {
    reply = co_await add(state, pool, request, *command, cancellation);
  } else if (action == AdminAction::kRemove) {
    reply = co_await remove(state, *command, cancellation);
  } else {
    reply = set_role(state, *command);
  }
  audit(who, &*command, reply);
  co_return reply;
}

}  // namespace moonpool::gateway
