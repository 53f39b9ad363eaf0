// Follows the KV events of every instance of the groups whose events are on, so that live_blocks.h says what each has.
//
// vLLM numbers its batches from 0 and publishes them over ZeroMQ (PUB); with a replay port (ROUTER) it can be asked for those since a
// number, as many as it keeps (buffer_steps). On every connection: subscribe, forget all, ask for everything since 0. When that begins with
// 0, or there is nothing yet, all is known ("whole"). A gap in the numbers is asked for; what cannot be had is a reason to forget. A
// connection that is silent gets PINGs; one that fails is made again with pauses that double. An instance that leaves is let go within a
// tick. Threads: one executor (start, stop there too, or before it runs). Ownership: its coroutines'; they end when the gateway stops.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "gateway/gateway_state.h"
#include "gateway/kv_events/live_blocks.h"
#include "gateway/kv_events/zmtp_connection.h"
#include "gateway/resolver.h"

namespace moonpool::gateway {

class KvEventFollower : public std::enable_shared_from_this<KvEventFollower> {
 public:
  KvEventFollower(const Executor& executor, GatewayState& state, Resolver& resolver);

  void start();
  void stop();

 private:
  // One instance that is followed.
  struct Followed {
    std::shared_ptr<Instance> instance;
    KvEventSource source;
    Cancellation cancellation;
    std::optional<std::uint64_t> next;  // the number of the batch that comes next; nullopt: any

    [[nodiscard]] LiveBlocks& live() const { return *instance->live_blocks(); }
    [[nodiscard]] std::string name() const { return instance->name().to_string(); }
  };

  [[nodiscard]] Task<void> run();
  void look_after(const Group& group);
  [[nodiscard]] Task<void> follow(std::shared_ptr<Followed> one);
  // One connection from beginning to end; its reason.
  [[nodiscard]] Task<Status> listen(Followed& one);
  // Asks for all batches from one.next on. What stays unknown after it shows in the numbers that follow.
  [[nodiscard]] Task<Status> replay(Followed& one);
  [[nodiscard]] Task<Status> replay_round(Followed& one, TimeLimit limit, std::uint64_t from);
  [[nodiscard]] Task<Status> take(Followed& one, const ZmtpMessage& message);
  static void apply(Followed& one, std::uint64_t number, std::string_view payload);
  [[nodiscard]] Task<Status> connect(ZmtpConnection& connection, Followed& one, std::uint16_t port, std::string socket_type,
                                     std::vector<std::string> peers);

  const Executor executor_;
  GatewayState& state_;
  Resolver& resolver_;
  Timer timer_;
  bool stopped_ = false;
  std::unordered_map<const Instance*, std::shared_ptr<Followed>> followed_;
};

}  // namespace moonpool::gateway
