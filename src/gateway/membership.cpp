#include "gateway/membership.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "base/logging.h"
#include "gateway/admin.h"
#include "gateway/etcd_instances.h"
#include "gateway/kubernetes_watch.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kEtcdAnswerAtMost = std::size_t{4} << 20;

bool holds(const std::vector<InstanceName>& names, const InstanceName& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

InstanceName name_of(const Endpoint& endpoint, const InstanceName& looked_up) {
  const std::string address = endpoint.address().to_string();
  // An address always parses.
  return InstanceName::parse((looked_up.is_secure() ? "https://" : "") + (endpoint.address().is_v6() ? "[" + address + "]" : address) +
                             ":" + std::to_string(endpoint.port()))
      .value();
}

// What this process took at its start and cannot take anew.
void keep_until_restart(const Settings& before, Settings& next) {
  std::string changed;
  const auto keep = [&changed](const char* name, const auto& was, auto& is) {
    if (is == was) return;
    changed += (changed.empty() ? "" : ", ") + std::string(name);
    is = was;
  };
  keep("host", before.host, next.host);
  keep("port", before.port, next.port);
  keep("threads", before.threads, next.threads);
  keep("prefill's kv_events", before.prefill_events, next.prefill_events);
  keep("decode's kv_events", before.decode_events, next.decode_events);
  keep("otlp_endpoint", before.otlp_endpoint, next.otlp_endpoint);
  keep("otlp_service_name", before.service_name, next.service_name);
  if (!changed.empty()) log::warning("changed in the configuration, but taken at the next start alone: {}", changed);
}

}  // namespace

Membership::Membership(const Executor& executor, GatewayState& state, Resolver& resolver)
    : executor_(executor),
      state_(state),
      resolver_(resolver),
      pool_(executor, resolver, std::chrono::seconds(0), 0, state.tls),
      prefill_(state.prefill),
      decode_(state.decode) {}

void Membership::start() {
  prefill_.listed = prefill_.fixed = settings().prefill;
  decode_.listed = decode_.fixed = settings().decode;
  start_sources(prefill_, settings().prefill_discovery);
  start_sources(decode_, settings().decode_discovery);
}

void Membership::stop() {
  ++generation_;
  end_watches();
}

void Membership::end_watches() {
  for (const auto& watch : watches_) watch->cancel();
  watches_.clear();
}

void Membership::apply(Settings next) {
  const Settings& before = settings();  // stays good
  keep_until_restart(before, next);
  state_.replace_settings(std::move(next));
  const Settings& now = settings();
  state_.admission.configure(now);
  if (before.log_level != now.log_level) log::configure("gateway", now.log_level);
  if (before.model != now.model) log::info("the model is now {}", now.model);
  state_.retry_budget.set(now.retries.budget_share, now.retries.budget_always);
  for (Group* group : {&state_.prefill, &state_.decode}) {
    const auto list = group->snapshot();  // held: the group may replace its list meanwhile
    for (const auto& instance : *list) instance->set_circuit(now.health.circuit);
  }
  use_policies(before, now);
  ++generation_;
  end_watches();
  prefill_.fixed = now.prefill;
  decode_.fixed = now.decode;
  start_sources(prefill_, now.prefill_discovery);
  start_sources(decode_, now.decode_discovery);
  reconcile(prefill_);
  reconcile(decode_);
}

void Membership::use_policies(const Settings& before, const Settings& now) {
  for (const std::string_view role : {"prefill", "decode"}) {
    const bool options_changed = !(before.policy_options == now.policy_options);
    if (before.policy_of(role) == now.policy_of(role) && !options_changed) continue;
    auto policy = make_policy(now.policy_of(role), now.policy_options);
    if (!policy.ok()) {
      log::error("the {} policy stays as it is: {}", role, policy.status().message());
      continue;
    }
    state_.group_of(role).set_policy(std::move(policy).value());
    log::info("{} policy is now {}", role, now.policy_of(role));
  }
}

void Membership::start_sources(Watched& watched, const Discovery& discovery) {
  // Until a source has answered once, what is listed because of the sources before stays.
  Names before;
  for (const auto& names : watched.found) before.insert(before.end(), names.begin(), names.end());
  watched.found.assign(discovery.dns.size() + discovery.srv.size() + discovery.etcd.size() + discovery.kubernetes.size(), before);
  std::size_t which = 0;
  for (const DnsSource& source : discovery.dns) {
    start_following(watched, which++, source.name.to_string(), source.interval, [this, source] { return ask_dns(source.name); });
  }
  for (const SrvSource& source : discovery.srv) {
    start_following(watched, which++, source.name, source.interval, [this, source] { return ask_srv(source); });
  }
  for (const EtcdSource& source : discovery.etcd) {
    start_following(watched, which++, "etcd at " + source.server.to_string(), source.interval, [this, source] { return ask_etcd(source); });
  }
  for (const KubernetesSource& source : discovery.kubernetes) {
    asio::co_spawn(
        executor_, [self = shared_from_this(), &watched, which, source] { return self->follow_kubernetes(watched, which, source); },
        asio::detached);
    ++which;
  }
}

void Membership::start_following(Watched& watched, std::size_t which, std::string source, std::chrono::milliseconds interval, Ask ask) {
  asio::co_spawn(
      executor_,
      [self = shared_from_this(), &watched, which, source = std::move(source), interval, ask = std::move(ask)] {
        return self->follow(watched, which, source, interval, ask);
      },
      asio::detached);
}

Task<void> Membership::follow(Watched& watched, std::size_t which, std::string source, std::chrono::milliseconds interval, Ask ask) {
  const auto self = shared_from_this();
  const std::uint64_t generation = generation_;
  Timer timer(executor_);
  std::string last_error;
  while (generation == generation_ && !state_.stopping) {
    auto names = co_await ask();
    if (generation != generation_) co_return;
    found(watched, which, source, std::move(names), last_error);
    timer.expires_after(interval);
    co_await timer.async_wait(kAwait);
  }
}

Task<void> Membership::follow_kubernetes(Watched& watched, std::size_t which, KubernetesSource source) {
  const auto self = shared_from_this();
  const auto cancellation = std::make_shared<Cancellation>();
  const std::uint64_t generation = generation_;
  watches_.push_back(cancellation);
  const std::string title = "service " + source.service + " of " + source.server;
  std::string last_error;
  KubernetesWatch watch(executor_, resolver_, std::move(source), [&](Result<Names> names) {
    if (generation == generation_) found(watched, which, title, std::move(names), last_error);
  });
  co_await watch.run(settings().timeouts.check, *cancellation);
}

Task<Result<Membership::Names>> Membership::ask_dns(InstanceName name) {
  Cancellation never;
  auto endpoints = co_await resolver_.resolve(name, Deadline::after(settings().timeouts.check), never);
  if (!endpoints.ok()) co_return endpoints.status();
  Names names;
  for (const auto& endpoint : *endpoints) {
    if (auto one = name_of(endpoint, name); !holds(names, one)) names.push_back(std::move(one));
  }
  co_return names;
}

Task<Result<Membership::Names>> Membership::ask_srv(SrvSource source) {
  Cancellation never;
  co_return co_await resolver_.services(source.name, source.server, Deadline::after(settings().timeouts.check), never);
}

Task<Result<Membership::Names>> Membership::ask_etcd(EtcdSource source) {
  const Deadline deadline = Deadline::after(settings().timeouts.check);
  Cancellation never;
  const std::string body = etcd_range_request(source.prefix);
  const UpstreamRequest request{
      upstream_request_head("POST", "/v3/kv/range", source.server.authority(), "Content-Type: application/json\r\n", body.size()), body};
  auto opened = co_await pool_.open(source.server, request, {deadline.left(), deadline}, never);
  if (!opened.ok()) co_return opened.status();
  auto exchange = std::move(opened).value();
  const Status status = co_await read_whole(*exchange, kEtcdAnswerAtMost, deadline.left(), deadline, never);
  if (!status.ok()) co_return status;
  if (exchange->answer.status != 200) {
    co_return Status(ErrorCode::kMetadataFail, "HTTP " + std::to_string(exchange->answer.status) + " to POST /v3/kv/range");
  }
  auto parsed = parse_etcd_instances(exchange->answer.body, source.prefix);
  if (!parsed.ok()) co_return parsed.status();
  if (parsed->unusable != 0) log::debug("{} keys below {} in etcd name no instance", parsed->unusable, source.prefix);
  co_return std::move(parsed->names);
}

void Membership::found(Watched& watched, std::size_t which, const std::string& source, Result<Names> names, std::string& last_error) {
  if (!names.ok()) {
    // Once for each new reason, not once an interval.
    if (names.status().message() != last_error) {
      log::warning("{} instances cannot be looked up, those known stay: {}: {}", watched.group.role(), source, names.status().message());
    }
    last_error = names.status().message();
    return;
  }
  last_error.clear();
  watched.found[which] = std::move(names).value();
  for (auto& name : watched.found[which]) name = settings().instance_of(watched.group.role(), name);
  reconcile(watched);
}

void Membership::reconcile(Watched& watched) {
  Names listed = watched.fixed;
  for (const Names& names : watched.found) {
    for (const auto& name : names) {
      if (!holds(listed, name)) listed.push_back(name);
    }
  }
  const Names before = std::exchange(watched.listed, listed);
  Group& group = watched.group;
  for (const auto& name : listed) {
    if (holds(before, name)) continue;
    if (const auto present = group.find(name); present != nullptr) {
      present->set_draining(false);
    } else if (group.add(state_.make_instance(name, group, settings().health.slow_start))) {
      log::info("{} instance {} is listed now", group.role(), name.to_string());
    }
  }
  for (const auto& name : before) {
    const auto gone = holds(listed, name) ? nullptr : group.find(name);
    if (gone == nullptr) continue;
    log::info("{} instance {} is no longer listed: it is drained", group.role(), name.to_string());
    gone->set_draining(true);
    asio::co_spawn(
        executor_,
        [self = shared_from_this(), &group, gone, deadline = Deadline::after(settings().timeouts.drain)] {
          return drain_and_remove(self->state_, group, gone, deadline);
        },
        asio::detached);
  }
}

}  // namespace moonpool::gateway
