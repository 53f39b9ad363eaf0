#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "transfer/rdma/peer_session.h"
#include "transfer/rdma/session.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr std::chrono::seconds kIdleTime{60};
constexpr std::chrono::seconds kConnectTime{2};
constexpr std::chrono::milliseconds kNoRdmaPause{30'000};  // a peer that said so is asked again after this time: it may have been restarted

}  // namespace

class SessionPool::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(net::Identity self, std::shared_ptr<MemoryMap> memory, Options options)
      : shared_(std::make_shared<SessionShared>(std::move(self), std::move(memory), std::move(options))) {}

  Result<std::shared_ptr<PeerSession>> acquire(const net::Endpoint& endpoint, Deadline deadline);
  bool promising(const net::Endpoint& endpoint) const;
  std::string why_not(const net::Endpoint& endpoint) const;
  void close();

  [[nodiscard]] SessionShared& shared() const { return *shared_; }

 private:
  using Time = Deadline::Clock::time_point;
  struct Idle {
    std::unique_ptr<Session> session;
    Time since;
  };
  struct Peer {
    std::shared_ptr<PeerPaths> paths;
    std::vector<Idle> idle;    // the last one was used last
    std::size_t sessions = 0;  // idle, lent and being opened
    std::size_t turn = 0;
    // Why it is not tried now, and until when.
    std::string why_not;
    Time again{};
    std::uint64_t generation = 0;  // a change of a port of ours ends it; 0: it does not
    std::uint32_t failures = 0;    // in a row
  };

  [[nodiscard]] bool barred(const Peer& peer) const;
  void bar(Peer& peer, const Status& why);
  Peer& peer_of(const net::Endpoint& endpoint);
  // Sessions that have been idle for long, taken out.
  std::vector<std::unique_ptr<Session>> take_stale();
  Result<std::unique_ptr<Session>> open(const net::Endpoint& endpoint, const std::shared_ptr<PeerPaths>& paths, std::size_t turn,
                                        Deadline deadline);
  Result<std::shared_ptr<PeerSession>> lend(const net::Endpoint& endpoint, std::unique_ptr<Session> session, Deadline deadline);
  void give_back(const net::Endpoint& endpoint, std::unique_ptr<Session> session);
  void dropped(const net::Endpoint& endpoint, const Status& why);

  const std::shared_ptr<SessionShared> shared_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::map<net::Endpoint, Peer> peers_;
  std::set<Session*> busy_;  // lent, or being prepared
  bool closed_ = false;
};

SessionPool::Impl::Peer& SessionPool::Impl::peer_of(const net::Endpoint& endpoint) {
  Peer& peer = peers_[endpoint];
  if (!peer.paths) {
    peer.paths = std::make_shared<PeerPaths>(endpoint.to_string(), shared_->memory->devices().size(), shared_->options.come_back_after);
  }
  return peer;
}

bool SessionPool::Impl::barred(const Peer& peer) const {
  if (peer.why_not.empty() || Deadline::Clock::now() >= peer.again) return false;
  return peer.generation == 0 || peer.generation == shared_->memory->devices().generation();
}

// Nothing is gained by an attempt for a while. (A peer that cannot be reached at all is not RDMA's to judge.)
void SessionPool::Impl::bar(Peer& peer, const Status& why) {
  const bool no_rdma = why.code() == ErrorCode::kNotSupported;
  peer.why_not = why.message();
  peer.generation = no_rdma ? 0 : shared_->memory->devices().generation();
  ++peer.failures;
  peer.again = Deadline::Clock::now() + (no_rdma ? kNoRdmaPause : pause_after(shared_->options.come_back_after, peer.failures));
}

bool SessionPool::Impl::promising(const net::Endpoint& endpoint) const {
  if (!shared_->memory->devices().any_up()) return false;
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(endpoint);
  return !closed_ && (found == peers_.end() || !barred(found->second));
}

std::string SessionPool::Impl::why_not(const net::Endpoint& endpoint) const {
  if (!shared_->memory->devices().any_up()) return "no RDMA device of this host has its port up";
  const std::lock_guard lock(mutex_);
  if (closed_) return "RDMA is closed";
  const auto found = peers_.find(endpoint);
  return found != peers_.end() && barred(found->second) ? found->second.why_not : std::string();
}

std::vector<std::unique_ptr<Session>> SessionPool::Impl::take_stale() {
  std::vector<std::unique_ptr<Session>> stale;
  const auto limit = Deadline::Clock::now() - kIdleTime;
  for (auto& [endpoint, peer] : peers_) {
    for (auto idle = peer.idle.begin(); idle != peer.idle.end();) {
      if (idle->since > limit) {
        ++idle;
        continue;
      }
      stale.push_back(std::move(idle->session));
      idle = peer.idle.erase(idle);
      --peer.sessions;
    }
  }
  if (!stale.empty()) changed_.notify_all();
  return stale;
}

Result<std::shared_ptr<PeerSession>> SessionPool::Impl::acquire(const net::Endpoint& endpoint, Deadline deadline) {
  const auto begun = Deadline::Clock::now();
  std::vector<std::unique_ptr<Session>> stale;  // closed without the mutex, as are broken ones
  for (;;) {
    std::unique_ptr<Session> session;
    std::shared_ptr<PeerPaths> paths;
    std::size_t turn = 0;
    {
      std::unique_lock lock(mutex_);
      stale = take_stale();
      Peer& peer = peer_of(endpoint);
      for (;;) {
        if (closed_) return Status(ErrorCode::kCancelled, "RDMA is closed");
        if (barred(peer)) return Status(peer.generation == 0 ? ErrorCode::kNotSupported : ErrorCode::kUnavailable, peer.why_not);
        if (!peer.idle.empty() || peer.sessions < std::max(1U, shared_->options.sessions_per_peer)) break;
        // On the system clock: ThreadSanitizer does not know the call that waits on the steady one.
        const auto until = std::chrono::system_clock::now() + std::min<std::chrono::nanoseconds>(deadline.left(), std::chrono::hours(1));
        if (changed_.wait_until(lock, until) == std::cv_status::timeout && deadline.expired()) {
          const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - begun);
          return Status(ErrorCode::kRpcTimeout, "all " + std::to_string(peer.sessions) + " RDMA sessions with " + endpoint.to_string() +
                                                    " were busy for " + std::to_string(waited.count()) + " ms");
        }
      }
      paths = peer.paths;
      if (!peer.idle.empty()) {
        session = std::move(peer.idle.back().session);
        peer.idle.pop_back();
      } else {
        ++peer.sessions;
        turn = peer.turn++;
      }
    }
    if (session) {
      auto lent = lend(endpoint, std::move(session), deadline);
      // An idle one may have died; only a new one tells whether the peer has.
      if (lent.ok() || lent.code() == ErrorCode::kCancelled || deadline.expired()) return lent;
      continue;
    }
    auto opened = open(endpoint, paths, turn, deadline);
    if (!opened.ok()) {
      dropped(endpoint, opened.status());
      return opened.status();
    }
    return lend(endpoint, std::move(*opened), deadline);
  }
}

Result<std::unique_ptr<Session>> SessionPool::Impl::open(const net::Endpoint& endpoint, const std::shared_ptr<PeerPaths>& paths,
                                                         std::size_t turn, Deadline deadline) {
  auto lane = net::Lane::connect(endpoint, shared_->self, deadline.sooner(kConnectTime));
  if (!lane.ok()) return lane.status();
  return std::make_unique<Session>(shared_, paths, std::move(*lane), turn);
}

Result<std::shared_ptr<PeerSession>> SessionPool::Impl::lend(const net::Endpoint& endpoint, std::unique_ptr<Session> session,
                                                             Deadline deadline) {
  Status status;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) status = Status(ErrorCode::kCancelled, "RDMA is closed");
    busy_.insert(session.get());
  }
  if (status.ok()) status = session->prepare(deadline);
  if (!status.ok()) {
    const std::lock_guard lock(mutex_);
    busy_.erase(session.get());
    Peer& peer = peers_[endpoint];
    --peer.sessions;
    if (status.code() == ErrorCode::kNotSupported || (status.code() == ErrorCode::kUnavailable && session->without_path()))
      bar(peer, status);
    changed_.notify_all();
    return status;
  }
  return std::shared_ptr<PeerSession>(session.release(), [impl = shared_from_this(), endpoint](PeerSession* lent) {
    impl->give_back(endpoint, std::unique_ptr<Session>(static_cast<Session*>(lent)));
  });
}

void SessionPool::Impl::dropped(const net::Endpoint& endpoint, const Status& why) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[endpoint];
  --peer.sessions;
  if (why.code() == ErrorCode::kNotSupported) bar(peer, why);
  changed_.notify_all();
}

void SessionPool::Impl::give_back(const net::Endpoint& endpoint, std::unique_ptr<Session> session) {
  const bool usable = session->usable();
  const bool has_rails = session->has_rails();
  std::unique_ptr<Session> closed;  // without the mutex
  const std::lock_guard lock(mutex_);
  busy_.erase(session.get());
  Peer& peer = peers_[endpoint];
  const std::string trouble = peer.paths->trouble(shared_->memory->devices());
  if (has_rails) {
    peer.why_not.clear();
    peer.failures = 0;
  } else if (usable && !trouble.empty()) {
    bar(peer, Status(ErrorCode::kUnavailable, "no RDMA path to " + endpoint.to_string() + " is left (" + trouble + ")"));
  }
  if (usable && !closed_) {
    peer.idle.push_back({std::move(session), Deadline::Clock::now()});
  } else {
    closed = std::move(session);
    --peer.sessions;
  }
  changed_.notify_all();
}

void SessionPool::Impl::close() {
  std::vector<Idle> idle;  // closed without the mutex
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (Session* session : busy_) session->cancel();
    for (auto& [endpoint, peer] : peers_) {
      peer.sessions -= peer.idle.size();
      std::ranges::move(peer.idle, std::back_inserter(idle));
      peer.idle.clear();
    }
    changed_.notify_all();
  }
  shared_->staging.close();
}

SessionPool::SessionPool(net::Identity self, std::shared_ptr<MemoryMap> memory, Options options)
    : impl_(std::make_shared<Impl>(std::move(self), std::move(memory), std::move(options))) {}
SessionPool::~SessionPool() { impl_->close(); }

Result<SessionPool::Lease> SessionPool::acquire(const net::Endpoint& peer, Deadline deadline) {
  auto session = impl_->acquire(peer, deadline);
  if (!session.ok()) return session.status();
  return Lease(std::move(*session));
}

bool SessionPool::promising(const net::Endpoint& peer) const { return impl_->promising(peer); }
std::string SessionPool::why_not(const net::Endpoint& peer) const { return impl_->why_not(peer); }
void SessionPool::close() { impl_->close(); }
const Counters& SessionPool::counters() const { return impl_->shared().counters; }
MemoryMap& SessionPool::memory() const { return *impl_->shared().memory; }

}  // namespace moonpool::transfer::rdma
