// Keeps the groups as the settings and the discovery say: adds who is listed, drains who is no longer.
//
// Only differences between one list and the next count: an instance that an administrator added stays, one that an administrator removed
// stays away until its source drops it and lists it again. A look-up that fails changes nothing (a name server that is down must not empty
// a group). Threads: apply() and stop() on its executor. Ownership: its coroutines'; they end when the gateway stops.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gateway/gateway_state.h"
#include "gateway/resolver.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class Membership : public std::enable_shared_from_this<Membership> {
 public:
  // The groups hold the fixed instances of state.settings() already.
  Membership(const Executor& executor, GatewayState& state, Resolver& resolver);

  void start();
  // Goes over to new settings, which hold for requests from now on. What needs a restart (host, port, threads, where spans go) stays as it
  // was, and the log names it.
  void apply(Settings settings);
  void stop();

 private:
  using Names = std::vector<InstanceName>;
  struct Watched {
    explicit Watched(Group& the_group) : group(the_group) {}
    Group& group;
    Names listed;              // as last acted upon
    Names fixed;               // of the settings
    std::vector<Names> found;  // by each source
  };

  void start_sources(Watched& watched, const Discovery& discovery);
  using Ask = std::function<Task<Result<Names>>()>;
  void use_policies(const Settings& before, const Settings& now);
  void end_watches();
  // Asks, and asks again after each interval, until the settings change.
  void start_following(Watched& watched, std::size_t which, std::string source, std::chrono::milliseconds interval, Ask ask);
  [[nodiscard]] Task<void> follow(Watched& watched, std::size_t which, std::string source, std::chrono::milliseconds interval, Ask ask);
  [[nodiscard]] Task<void> follow_kubernetes(Watched& watched, std::size_t which, KubernetesSource source);
  [[nodiscard]] Task<Result<Names>> ask_dns(InstanceName name);
  [[nodiscard]] Task<Result<Names>> ask_srv(SrvSource source);
  [[nodiscard]] Task<Result<Names>> ask_etcd(EtcdSource source);
  [[nodiscard]] const Settings& settings() const { return state_.settings(); }
  void found(Watched& watched, std::size_t which, const std::string& source, Result<Names> names, std::string& last_error);
  void reconcile(Watched& watched);

  const Executor executor_;
  GatewayState& state_;
  Resolver& resolver_;
  UpstreamPool pool_;  // keeps nothing
  Watched prefill_;
  Watched decode_;
  std::uint64_t generation_ = 0;                        // of the settings: followers of an older one end
  std::vector<std::shared_ptr<Cancellation>> watches_;  // of the followers that wait for long
};

}  // namespace moonpool::gateway
