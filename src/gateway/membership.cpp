#include "gateway/membership.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "base/logging.h"
#include "gateway/admin.h"
#include "gateway/etcd_instances.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kEtcdAnswerAtMost = std::size_t{4} << 20;

bool holds(const std::vector<InstanceName>& names, const InstanceName& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

InstanceName name_of(const Endpoint& endpoint) {
  const std::string address = endpoint.address().to_string();
  // An address always parses.
  return InstanceName::parse((endpoint.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(endpoint.port())).value();
}

}  // namespace

Membership::Membership(const Executor& executor, GatewayState& state, Resolver& resolver)
    : executor_(executor),
      state_(state),
      resolver_(resolver),
      pool_(executor, resolver, std::chrono::seconds(0), 0),
      settings_(state.settings),
      prefill_(state.prefill),
      decode_(state.decode) {}

void Membership::start() {
  prefill_.listed = prefill_.fixed = settings_.prefill;
  decode_.listed = decode_.fixed = settings_.decode;
  start_sources(prefill_, settings_.prefill_discovery);
  start_sources(decode_, settings_.decode_discovery);
}

void Membership::apply(Settings settings) {
  ++generation_;
  const Settings before = std::exchange(settings_, std::move(settings));
  for (const std::string_view role : {"prefill", "decode"}) {
    const bool options_changed = !(before.policy_options == settings_.policy_options);
    if (before.policy_of(role) == settings_.policy_of(role) && !options_changed) continue;
    auto policy = make_policy(settings_.policy_of(role), settings_.policy_options);
    if (!policy.ok()) {
      log::error("the {} policy stays as it is: {}", role, policy.status().message());
      continue;
    }
    state_.group_of(role).set_policy(std::move(policy).value());
    log::info("{} policy is now {}", role, settings_.policy_of(role));
  }
  if (!(before.timeouts == settings_.timeouts && before.limits == settings_.limits && before.attempts == settings_.attempts &&
        before.model == settings_.model && before.health.circuit.failures_to_open == settings_.health.circuit.failures_to_open &&
        before.health.first_probe == settings_.health.first_probe && before.health.slowest_probe == settings_.health.slowest_probe)) {
    log::warning("model, time-outs, limits or health checks have changed in the configuration: these take effect at the next start");
  }
  prefill_.fixed = settings_.prefill;
  decode_.fixed = settings_.decode;
  start_sources(prefill_, settings_.prefill_discovery);
  start_sources(decode_, settings_.decode_discovery);
  reconcile(prefill_);
  reconcile(decode_);
}

void Membership::start_sources(Watched& watched, const Discovery& discovery) {
  // Until a source has answered once, what is listed because of the sources before stays.
  const std::size_t sources = discovery.dns.size() + discovery.etcd.size();
  Names before;
  for (const auto& names : watched.found) before.insert(before.end(), names.begin(), names.end());
  watched.found.assign(sources, before);
  std::size_t which = 0;
  for (const DnsSource& source : discovery.dns) {
    asio::co_spawn(
        executor_, [self = shared_from_this(), &watched, which, source] { return self->follow_dns(watched, which, source); },
        asio::detached);
    ++which;
  }
  for (const EtcdSource& source : discovery.etcd) {
    asio::co_spawn(
        executor_, [self = shared_from_this(), &watched, which, source] { return self->follow_etcd(watched, which, source); },
        asio::detached);
    ++which;
  }
}

Task<void> Membership::follow_dns(Watched& watched, std::size_t which, DnsSource source) {
  const auto self = shared_from_this();
  const std::uint64_t generation = generation_;
  Timer timer(executor_);
  Cancellation never;
  std::string last_error;
  while (generation == generation_ && !state_.stopping) {
    auto endpoints = co_await resolver_.resolve(source.name, Deadline::after(settings_.timeouts.check), never);
    if (generation != generation_) co_return;
    Names names;
    if (endpoints.ok()) {
      for (const auto& endpoint : *endpoints) {
        if (auto name = name_of(endpoint); !holds(names, name)) names.push_back(std::move(name));
      }
    }
    found(watched, which, source.name.to_string(), endpoints.ok() ? Result<Names>(std::move(names)) : Result<Names>(endpoints.status()),
          last_error);
    timer.expires_after(source.interval);
    co_await timer.async_wait(kAwait);
  }
}

Task<void> Membership::follow_etcd(Watched& watched, std::size_t which, EtcdSource source) {
  const auto self = shared_from_this();
  const std::uint64_t generation = generation_;
  Timer timer(executor_);
  std::string last_error;
  while (generation == generation_ && !state_.stopping) {
    auto names = co_await ask_etcd(source);
    if (generation != generation_) co_return;
    found(watched, which, "etcd at " + source.server.to_string(), std::move(names), last_error);
    timer.expires_after(source.interval);
    co_await timer.async_wait(kAwait);
  }
}

Task<Result<Membership::Names>> Membership::ask_etcd(const EtcdSource& source) {
  const Deadline deadline = Deadline::after(settings_.timeouts.check);
  Cancellation never;
  const std::string body = etcd_range_request(source.prefix);
  const UpstreamRequest request{
      upstream_request_head("POST", "/v3/kv/range", source.server.to_string(), "Content-Type: application/json\r\n", body.size()), body};
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
    } else if (group.add(state_.make_instance(name, group, settings_.health.slow_start))) {
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
        [self = shared_from_this(), &group, gone, deadline = Deadline::after(settings_.timeouts.drain)] {
          return drain_and_remove(self->state_, group, gone, deadline);
        },
        asio::detached);
  }
}

}  // namespace moonpool::gateway
