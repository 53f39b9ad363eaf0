#include "transfer/rdma/session_service.h"

#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/rdma/job_thread.h"
#include "transfer/rdma/served_rails.h"

namespace moonpool::transfer::rdma {

namespace {

// A client has Options::sessions_per_peer of them; this bounds what a peer can take whose options are others.
constexpr std::size_t kMaxSessionsPerPeer = 64;

}  // namespace

class SessionService::Impl {
 public:
  Impl(std::shared_ptr<MemoryMap> memory, Options options) : memory_(std::move(memory)), options_(std::move(options)) {}
  ~Impl() { stop(); }

  void serve(net::Server& server) {
    server.handle(wire::METHOD_RDMA_OPEN, [this](net::Request& request) { return open(request); });
    server.handle_quickly(wire::METHOD_RDMA_KEYS, [this](net::Request& request, net::Reply& reply) -> std::optional<net::Task<net::Reply>> {
      answer_keys(request, reply);
      return std::nullopt;
    });
    server.on_closed([this](const net::Session& connection) { closed(connection); });
  }

  std::shared_ptr<ServedRails> session_of(const net::Session& connection) const {
    const std::lock_guard lock(mutex_);
    const auto found = sessions_.find(&connection);
    return found == sessions_.end() ? nullptr : found->second;
  }

  net::Task<Status> destroy(std::shared_ptr<ServedSession> session, std::vector<std::uint32_t> rails, Deadline deadline);
  void stop();

 private:
  net::Task<net::Reply> open(net::Request& request);
  void answer_keys(const net::Request& request, net::Reply& reply) const;
  Result<std::shared_ptr<ServedRails>> session_for(const net::Request& request);
  void closed(const net::Session& connection);

  const std::shared_ptr<MemoryMap> memory_;
  const Options options_;

  mutable std::mutex mutex_;  // guards what follows
  std::unordered_map<const net::Session*, std::shared_ptr<ServedRails>> sessions_;
  std::unordered_map<NodeId, std::size_t> per_peer_;
  bool stopped_ = false;
  JobThread jobs_;  // makes and destroys queue pairs
};

Result<std::shared_ptr<ServedRails>> SessionService::Impl::session_for(const net::Request& request) {
  const auto& connection = request.session();
  const std::lock_guard lock(mutex_);
  if (stopped_) return Status(ErrorCode::kUnavailable, "RDMA is being stopped");
  if (const auto found = sessions_.find(connection.get()); found != sessions_.end()) return found->second;
  auto& count = per_peer_[connection->peer_node()];
  if (count >= kMaxSessionsPerPeer) {
    return Status(ErrorCode::kUnavailable, "this peer has its most RDMA sessions (" + std::to_string(kMaxSessionsPerPeer) + ")");
  }
  ++count;
  auto session = std::make_shared<ServedRails>(memory_, options_, connection);
  sessions_.emplace(connection.get(), session);
  return session;
}

// What the jobs below refer to outlives their handlers, whose server may stop. A name each for what is awaited: g++ 12 destroys temporaries
// of a co_await expression twice.
net::Task<net::Reply> SessionService::Impl::open(net::Request& request) {
  struct Opening {
    wire::RdmaOpenRequest request;
    std::shared_ptr<ServedRails> session;
    Result<wire::RdmaOpenReply> reply = Status(ErrorCode::kCancelled, "RDMA is being stopped");
  };
  const auto opening = std::make_shared<Opening>();
  if (Status status = request.parse(opening->request); !status.ok()) co_return status;
  auto session = session_for(request);
  if (!session.ok()) co_return session.status();
  opening->session = std::move(*session);
  std::function<void()> make = [opening] {
    MOONPOOL_SYNC_POINT("rdma.session_service.open");
    opening->reply = opening->session->open(opening->request);
  };
  auto run = jobs_.run(std::move(make), request.deadline());
  const bool made = co_await std::move(run);
  if (!made) co_return Status(ErrorCode::kRpcTimeout, "the owner's queue pairs were not made in time");
  if (!opening->reply.ok()) co_return opening->reply.status();
  co_return net::Reply(*opening->reply);
}

net::Task<Status> SessionService::Impl::destroy(std::shared_ptr<ServedSession> session, std::vector<std::uint32_t> rails,
                                                Deadline deadline) {
  std::function<void()> destroy = [session = std::move(session), rails = std::move(rails)] { session->destroy(rails); };
  auto run = jobs_.run(std::move(destroy), deadline);
  const bool destroyed = co_await std::move(run);
  co_return destroyed ? Status() : Status(ErrorCode::kRpcTimeout, "rdma: the owner's ends of the broken rails were not destroyed in time");
}

void SessionService::Impl::answer_keys(const net::Request& request, net::Reply& reply) const {
  wire::RdmaKeysRequest message;
  reply.status = request.parse(message);
  if (!reply.status.ok()) return;
  const auto keys = keys_of(*memory_, message);
  reply.status = keys.status();
  if (keys.ok()) reply.message = keys->SerializeAsString();
}

// On the connection's thread, which must not wait for NICs.
void SessionService::Impl::closed(const net::Session& connection) {
  std::shared_ptr<ServedRails> session;
  {
    const std::lock_guard lock(mutex_);
    const auto found = sessions_.find(&connection);
    if (found == sessions_.end()) return;
    session = std::move(found->second);
    sessions_.erase(found);
    if (const auto count = per_peer_.find(connection.peer_node()); --count->second == 0) per_peer_.erase(count);
  }
  jobs_.post([session] { session->end(); });
}

void SessionService::Impl::stop() {
  std::vector<std::shared_ptr<ServedRails>> sessions;
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
    for (const auto& [connection, session] : sessions_) sessions.push_back(session);
  }
  jobs_.stop();
  for (const auto& session : sessions) session->fence();
}

SessionService::SessionService(std::shared_ptr<MemoryMap> memory, Options options)
    : impl_(std::make_unique<Impl>(std::move(memory), std::move(options))) {}
SessionService::~SessionService() = default;
void SessionService::serve(net::Server& server) { impl_->serve(server); }
std::shared_ptr<ServedSession> SessionService::session_of(const net::Request& request) const {
  return impl_->session_of(*request.session());
}
net::Task<Status> SessionService::destroy(std::shared_ptr<ServedSession> session, std::vector<std::uint32_t> rails, Deadline deadline) {
  return impl_->destroy(std::move(session), std::move(rails), deadline);
}
void SessionService::stop() { impl_->stop(); }

}  // namespace moonpool::transfer::rdma
