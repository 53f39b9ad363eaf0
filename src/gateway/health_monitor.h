// The active half of an instance's health: probes those that are unhealthy, ever more slowly, until they answer; looks once at each that is
// new, and now and then at those that are well, so that a dead one is known before a request finds out.
//
// A new instance is usable from the start; the first look only finds out early (and logs) when it does not answer or serves another model.
// Threads: one executor. Ownership: its coroutine's; it ends when the gateway stops.
#pragma once

#include <memory>
#include <unordered_map>

#include "gateway/gateway_state.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class HealthMonitor : public std::enable_shared_from_this<HealthMonitor> {
 public:
  HealthMonitor(const Executor& executor, GatewayState& state, Resolver& resolver);

  void start();
  void stop();  // probes in progress are abandoned

 private:
  struct Watched {
    bool seen = false;     // had its first look
    bool running = false;  // a probe is under way
    bool healthy = true;   // at the last look
    std::chrono::milliseconds pause{0};
    Deadline::Clock::time_point next{};
  };

  [[nodiscard]] Task<void> run();
  // `reloaded`: the settings have changed since the last round, so a next probe comes within their times.
  void look_after(const Group& group, bool reloaded);
  [[nodiscard]] Task<void> probe(std::shared_ptr<Instance> instance, bool first_look);

  const Executor executor_;
  GatewayState& state_;
  UpstreamPool pool_;  // keeps nothing: a probe is a fresh connection
  Timer timer_;
  bool stopped_ = false;
  const Settings* settings_seen_ = nullptr;  // at the last round
  std::unordered_map<std::shared_ptr<Instance>, Watched> watched_;
};

}  // namespace moonpool::gateway
