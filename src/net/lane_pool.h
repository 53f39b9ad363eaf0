// Lanes to all peers of a process: made on demand, reused, bounded per peer (never one connection per request).
//
// acquire() hands out an idle lane, makes a new one while there are fewer than `lanes_per_peer`, and otherwise waits for one to come
// back, within the deadline. A lane that came back broken is dropped. Idle lanes are closed after `idle_timeout`,
// looked at whenever the pool is used. A lane that turns out to have been closed by a restarted peer is replaced before it is handed out.
// Threads: any. Lifetime: outlives its leases; close() makes all calls in flight return kCancelled and further acquire() fail.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include "net/lane.h"

namespace moonpool::net {

struct LanePoolOptions {
  std::size_t lanes_per_peer = 4;
  std::chrono::milliseconds connect_timeout{3000};  // the bound of one connection attempt within the call's deadline
  std::chrono::milliseconds idle_timeout{60000};
};

class LanePool {
  class Impl;

 public:
  // A lane on loan; returns it on destruction. Move-only.
  class Lease {
   public:
    Lease(Lease&&) noexcept;
    Lease& operator=(Lease&&) noexcept;
    ~Lease();
    Lane* operator->() const;
    Lane& operator*() const;

   private:
    friend class LanePool;
    Lease(std::shared_ptr<Impl> pool, std::unique_ptr<Lane> lane, bool reused);
    void give_back();
    std::shared_ptr<Impl> pool_;
    std::unique_ptr<Lane> lane_;  // empty once moved from
    bool reused_ = false;         // it had been idle
  };

  LanePool(Identity self, LanePoolOptions options = {});
  ~LanePool();

  [[nodiscard]] Result<Lease> acquire(const Endpoint& peer, Deadline deadline);
  // acquire + Lane::call. An idle lane that fails before any byte of the answer arrived because the peer had closed it is retried once on
  // a fresh lane; nothing else is.
  [[nodiscard]] Status call(const Endpoint& peer, wire::Method method, const google::protobuf::MessageLite& request,
                            google::protobuf::MessageLite& reply, Deadline deadline);
  // The same with encoded messages (lean_codec.h): `reply` receives the answer's bytes, and keeps its memory from one call to the next.
  [[nodiscard]] Status call(const Endpoint& peer, wire::Method method, ConstBytes request, std::vector<std::byte>& reply,
                            Deadline deadline);
  // Closes idle lanes to this peer and aborts those in use (the peer is fenced or was replaced).
  void drop(const Endpoint& peer);
  void close();

 private:
  template <typename Exchange>
  Status exchange(const Endpoint& peer, const Exchange& exchange, Deadline deadline);
  std::shared_ptr<Impl> impl_;
};

}  // namespace moonpool::net
