#include "gateway/health_monitor.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <random>
#include <utility>

#include "base/logging.h"
#include "gateway/instance_check.h"

namespace moonpool::gateway {

namespace {

constexpr std::chrono::milliseconds kTick{50};

std::chrono::milliseconds jittered(std::chrono::milliseconds pause) {
  static thread_local std::minstd_rand random{std::random_device{}()};
  return pause * std::uniform_int_distribution<int>(80, 120)(random) / 100;
}

// Those that get requests: the healthy ones, or all while none is.
std::size_t working(const Group& group) {
  const auto list = group.snapshot();
  const auto healthy = std::count_if(list->begin(), list->end(), [](const auto& one) { return one->healthy() && !one->draining(); });
  return healthy != 0 ? static_cast<std::size_t>(healthy) : list->size();
}

}  // namespace

HealthMonitor::HealthMonitor(const Executor& executor, GatewayState& state, Resolver& resolver)
    : executor_(executor), state_(state), pool_(executor, resolver, std::chrono::seconds(0), 0, state.tls), timer_(executor) {}

void HealthMonitor::start() {
  asio::co_spawn(
      executor_, [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void HealthMonitor::stop() {
  stopped_ = true;
  timer_.cancel();
}

Task<void> HealthMonitor::run() {
  const auto self = shared_from_this();
  while (!stopped_) {
    const Settings* const settings = &state_.settings();
    const bool reloaded = std::exchange(settings_seen_, settings) != settings;
    look_after(state_.prefill, reloaded);
    look_after(state_.decode, reloaded);
    if (state_.admission.active()) state_.admission.set_instances(working(state_.decode.empty() ? state_.prefill : state_.decode));
    // Those that have left their group and work on nothing any more.
    std::erase_if(watched_, [](const auto& entry) { return entry.first.use_count() == 1 && !entry.second.running; });
    timer_.expires_after(kTick);
    co_await timer_.async_wait(kAwait);
  }
}

void HealthMonitor::look_after(const Group& group, bool reloaded) {
  const auto now = Deadline::Clock::now();
  const auto list = group.snapshot();  // held: the group may replace its list meanwhile
  for (const auto& instance : *list) {
    Watched& watched = watched_[instance];
    const bool first_look = !watched.seen;
    if (watched.running) continue;
    const bool healthy = instance->healthy();
    if (!first_look && (watched.next == Deadline::Clock::time_point{} || watched.healthy != healthy)) {
      watched.pause = state_.settings().health.first_probe;
      watched.next = now + jittered(healthy ? state_.settings().health.check_every : watched.pause);
    } else if (reloaded) {
      const auto& health = state_.settings().health;
      watched.pause = std::clamp(watched.pause, health.first_probe, std::max(health.first_probe, health.slowest_probe));
      watched.next = std::min(watched.next, now + jittered(healthy ? health.check_every : watched.pause));
    }
    watched.healthy = healthy;
    if (healthy && !first_look && state_.settings().health.check_every.count() == 0) continue;
    if (!first_look && now < watched.next) continue;
    watched.seen = true;
    watched.running = true;
    asio::co_spawn(
        executor_, [self = shared_from_this(), instance, first_look] { return self->probe(instance, first_look); }, asio::detached);
  }
}

Task<void> HealthMonitor::probe(std::shared_ptr<Instance> instance, bool first_look) {
  const auto self = shared_from_this();
  Cancellation never;
  const std::string authorization = state_.upstream_authorization();
  auto checked = co_await check_instance(pool_, instance->name(), state_.settings().model, authorization,
                                         Deadline::after(state_.settings().timeouts.check), never);
  Watched& watched = watched_[instance];
  watched.running = false;
  const auto& health = state_.settings().health;
  if (checked.ok()) {
    if (first_look && checked->verified) log::info("{} instance {} answers", instance->role(), instance->name().to_string());
    if (first_look && !checked->verified) log::warning("{} instance: {}", instance->role(), checked->remark);
    instance->probe_succeeded();
    watched.next = Deadline::Clock::now() + jittered(instance->healthy() ? health.check_every : health.first_probe);
    co_return;
  }
  instance->probe_failed(checked.status(), first_look);
  watched.pause = std::clamp(watched.pause * 2, health.first_probe, std::max(health.first_probe, health.slowest_probe));
  watched.next = Deadline::Clock::now() + jittered(watched.pause);
}

}  // namespace moonpool::gateway
