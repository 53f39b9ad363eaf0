// Keeps the groups as the settings and the discovery say: adds who is listed, drains who is no longer.
//
// Only differences between one list and the next count: an instance that an administrator added stays, one that an administrator removed
// stays away until its source drops it and lists it again. A look-up that fails changes nothing (a name server that is down must not empty
// a group). Threads: apply() and stop() on its executor. Ownership: its coroutines'; they end when the gateway stops.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gateway/gateway_state.h"
#include "gateway/resolver.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class Membership : public std::enable_shared_from_this<Membership> {
 public:
  // The groups hold the fixed instances of state.settings already.
  Membership(const Executor& executor, GatewayState& state, Resolver& resolver);

  void start();
  // Goes over to new settings: instances, sources, policies and slow start; all other differences are named in the log as waiting for a
  // restart.
  void apply(Settings settings);
  void stop() { ++generation_; }

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
  [[nodiscard]] Task<void> follow_dns(Watched& watched, std::size_t which, DnsSource source);
  [[nodiscard]] Task<void> follow_etcd(Watched& watched, std::size_t which, EtcdSource source);
  [[nodiscard]] Task<Result<Names>> ask_etcd(const EtcdSource& source);
  void found(Watched& watched, std::size_t which, const std::string& source, Result<Names> names, std::string& last_error);
  void reconcile(Watched& watched);

  const Executor executor_;
  GatewayState& state_;
  Resolver& resolver_;
  UpstreamPool pool_;  // keeps nothing
  Settings settings_;  // those in force
  Watched prefill_;
  Watched decode_;
  std::uint64_t generation_ = 0;  // of the settings: followers of an older one end
};

}  // namespace moonpool::gateway
