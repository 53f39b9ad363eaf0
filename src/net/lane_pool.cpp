#include "net/lane_pool.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "net/lane_impl.h"

namespace moonpool::net {

class LanePool::Impl : public std::enable_shared_from_this<LanePool::Impl> {
 public:
  Impl(Identity self, LanePoolOptions options) : self_(std::move(self)), options_(options) {
    options_.lanes_per_peer = std::max<std::size_t>(1, options_.lanes_per_peer);
  }

  Result<Lease> acquire(const Endpoint& peer, Deadline deadline, bool fresh);
  void give_back(std::unique_ptr<Lane> lane);
  void drop(const Endpoint& peer);
  void close();

 private:
  struct IdleLane {
    std::unique_ptr<Lane> lane;
    Deadline::Clock::time_point since;
  };
  struct Peer {
    std::vector<IdleLane> idle;  // the most recently used last
    std::vector<Lane*> busy;     // on loan, or connecting
    std::condition_variable changed;
  };
  using Lanes = std::vector<std::unique_ptr<Lane>>;

  Result<std::unique_ptr<Lane>> open(const Endpoint& peer, std::unique_ptr<Lane> lane, Deadline deadline);
  void remove_busy(const Lane* lane);
  [[nodiscard]] Lanes take_expired();

  const Identity self_;
  LanePoolOptions options_;
  std::mutex mutex_;  // guards all below
  bool closed_ = false;
  Deadline::Clock::time_point next_sweep_{};
  std::unordered_map<Endpoint, Peer> peers_;  // never erased from: waiters hold references
};

Result<LanePool::Lease> LanePool::Impl::acquire(const Endpoint& peer, Deadline deadline, bool fresh) {
  const auto started = Deadline::Clock::now();
  Lanes expired;  // closed after the lock is gone
  std::unique_lock lock(mutex_);
  expired = take_expired();
  Peer& lanes = peers_[peer];
  while (true) {
    if (closed_) return Status(ErrorCode::kCancelled, "the connection to " + peer.to_string() + " was asked for after the pool was closed");
    if (!lanes.idle.empty()) {
      std::unique_ptr<Lane> lane = std::move(lanes.idle.back().lane);
      lanes.idle.pop_back();
      if (fresh || !lane->healthy()) {
        expired.push_back(std::move(lane));
        continue;
      }
      lanes.busy.push_back(lane.get());
      return Lease(shared_from_this(), std::move(lane), true);
    }
    if (lanes.busy.size() < options_.lanes_per_peer) break;
    if (deadline.expired()) {
      const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - started).count();
      return Status(ErrorCode::kRpcTimeout, "all " + std::to_string(options_.lanes_per_peer) + " lanes to " + peer.to_string() +
                                                " stayed busy for " + std::to_string(waited) +
                                                " ms: the peer is slow, or the pool too small");
    }
    // On the system clock, as in endpoint.cpp.
    lanes.changed.wait_until(lock, std::chrono::system_clock::now() + deadline.left());
  }
  std::unique_ptr<Lane> lane(new Lane(std::make_unique<Lane::Impl>(peer)));
  lanes.busy.push_back(lane.get());
  lock.unlock();
  auto opened = open(peer, std::move(lane), deadline);
  if (!opened.ok()) return opened.status();
  return Lease(shared_from_this(), std::move(opened).value(), false);
}

Result<std::unique_ptr<Lane>> LanePool::Impl::open(const Endpoint& peer, std::unique_ptr<Lane> lane, Deadline deadline) {
  Status status = lane->impl_->open(self_, deadline.sooner(options_.connect_timeout));
  if (status.ok()) return lane;
  const std::lock_guard lock(mutex_);
  remove_busy(lane.get());
  peers_[peer].changed.notify_one();
  return status;
}

void LanePool::Impl::remove_busy(const Lane* lane) {
  auto& busy = peers_[lane->peer()].busy;
  busy.erase(std::find(busy.begin(), busy.end(), lane));
}

void LanePool::Impl::give_back(std::unique_ptr<Lane> lane) {
  Lanes expired;
  const bool good = lane->impl_->idle() && !lane->impl_->aborted();
  const std::lock_guard lock(mutex_);
  remove_busy(lane.get());
  Peer& lanes = peers_[lane->peer()];
  lanes.changed.notify_one();
  if (good && !closed_) lanes.idle.push_back({std::move(lane), Deadline::Clock::now()});
  expired = take_expired();
}

// At most once a second: lanes that nobody has used for idle_timeout.
LanePool::Impl::Lanes LanePool::Impl::take_expired() {
  Lanes expired;
  const auto now = Deadline::Clock::now();
  if (now < next_sweep_) return expired;
  next_sweep_ = now + std::min<std::chrono::milliseconds>(std::chrono::seconds(1), options_.idle_timeout);
  for (auto& [endpoint, lanes] : peers_) {
    // The longest unused come first.
    auto end = lanes.idle.begin();
    for (; end != lanes.idle.end() && end->since + options_.idle_timeout <= now; ++end) expired.push_back(std::move(end->lane));
    lanes.idle.erase(lanes.idle.begin(), end);
  }
  return expired;
}

void LanePool::Impl::drop(const Endpoint& peer) {
  std::vector<IdleLane> idle;
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  idle.swap(found->second.idle);
  for (Lane* lane : found->second.busy) lane->abort();
}

void LanePool::Impl::close() {
  std::vector<IdleLane> idle;
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [endpoint, lanes] : peers_) {
    for (IdleLane& lane : lanes.idle) idle.push_back(std::move(lane));
    lanes.idle.clear();
    for (Lane* lane : lanes.busy) lane->abort();
    lanes.changed.notify_all();
  }
}

LanePool::Lease::Lease(std::shared_ptr<Impl> pool, std::unique_ptr<Lane> lane, bool reused)
    : pool_(std::move(pool)), lane_(std::move(lane)), reused_(reused) {}
LanePool::Lease::Lease(Lease&&) noexcept = default;
LanePool::Lease& LanePool::Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  give_back();
  pool_ = std::move(other.pool_);
  lane_ = std::move(other.lane_);
  reused_ = other.reused_;
  return *this;
}
LanePool::Lease::~Lease() { give_back(); }
void LanePool::Lease::give_back() {
  if (lane_) pool_->give_back(std::move(lane_));
}
Lane* LanePool::Lease::operator->() const { return lane_.get(); }
Lane& LanePool::Lease::operator*() const { return *lane_; }

LanePool::LanePool(Identity self, LanePoolOptions options) : impl_(std::make_shared<Impl>(std::move(self), options)) {}
LanePool::~LanePool() { close(); }

Result<LanePool::Lease> LanePool::acquire(const Endpoint& peer, Deadline deadline) { return impl_->acquire(peer, deadline, false); }

// `exchange(lane)` is repeated once, on a fresh lane, if the peer had closed the idle one under it.
template <typename Exchange>
Status LanePool::exchange(const Endpoint& peer, const Exchange& exchange, Deadline deadline) {
  Status status;
  {
    auto lease = impl_->acquire(peer, deadline, false);
    if (!lease.ok()) return lease.status();
    status = exchange(**lease);
    if (status.ok() || !lease->reused_ || !(*lease)->impl_->closed_before_answer()) return status;
  }
  auto lease = impl_->acquire(peer, deadline, true);
  if (!lease.ok()) return lease.status();
  return exchange(**lease);
}

Status LanePool::call(const Endpoint& peer, wire::Method method, const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite& reply, Deadline deadline) {
  return exchange(
      peer, [&](Lane& lane) { return lane.call(method, request, reply, deadline); }, deadline);
}

Status LanePool::call(const Endpoint& peer, wire::Method method, ConstBytes request, std::vector<std::byte>& reply, Deadline deadline) {
  const auto over = [&](Lane& lane) {
    const auto answer = lane.call(method, request, deadline);
    if (answer.ok()) reply.assign(answer->begin(), answer->end());
    return answer.status();
  };
  return exchange(peer, over, deadline);
}

void LanePool::drop(const Endpoint& peer) { impl_->drop(peer); }
void LanePool::close() { impl_->close(); }

}  // namespace moonpool::net
