#include "transfer/rdma/extent_service.h"

#include <utility>
#include <vector>

#include "base/sync_point.h"

namespace moonpool::transfer::rdma {

using net::Reply;
using net::Request;
using net::Task;

// The sessions that have used the store's methods, until their queue pairs are gone.
class ExtentService::Table {
 public:
  std::shared_ptr<ExtentSession> find(const ServedSession* served) {
    const std::scoped_lock lock(mutex_);
    const auto found = sessions_.find(served);
    return found == sessions_.end() ? nullptr : found->second;
  }
  void add(const ServedSession* served, std::shared_ptr<ExtentSession> extents) {
    const std::scoped_lock lock(mutex_);
    sessions_.insert_or_assign(served, std::move(extents));
  }
  void end(const ServedSession* served) {
    std::shared_ptr<ExtentSession> extents;
    {
      const std::scoped_lock lock(mutex_);
      const auto found = sessions_.find(served);
      if (found == sessions_.end()) return;
      extents = std::move(found->second);
      sessions_.erase(found);
    }
    extents->end();
  }

 private:
  std::mutex mutex_;  // guards sessions_
  std::unordered_map<const ServedSession*, std::shared_ptr<ExtentSession>> sessions_;
};

ExtentService::ExtentService(Owner& owner, SessionService& sessions)
    : owner_(owner), sessions_(sessions), table_(std::make_shared<Table>()) {}

ExtentService::~ExtentService() { stop(); }

void ExtentService::stop() { jobs_->stop(); }

void ExtentService::serve(net::Server& server) {
  server.handle(wire::METHOD_RDMA_BEGIN, [this](Request& request) { return begin(request); });
  server.handle(wire::METHOD_RDMA_COMPLETE, [this](Request& request) { return complete(request); });
  server.handle(wire::METHOD_RDMA_PIN, [this](Request& request) { return pin(request); });
  server.handle(wire::METHOD_RDMA_UNPIN, [this](Request& request) { return unpin(request); });
}

// One connection's requests come one after the other, so nobody adds the same session twice.
Result<ExtentService::Session> ExtentService::session_of(const Request& request) {
  auto served = sessions_.session_of(request);
  if (served == nullptr) {
    return Status(ErrorCode::kProtocol, "rdma: the connection of " + request.session()->peer_address() + " has no session (any more)");
  }
  auto extents = table_->find(served.get());
  if (extents == nullptr) {
    auto fence = [jobs = jobs_, session = std::weak_ptr(served)] {
      jobs->post([session] {
        if (const auto alive = session.lock(); alive != nullptr) alive->fence();
      });
    };
    extents = std::make_shared<ExtentSession>(owner_, std::move(fence));
    table_->add(served.get(), extents);
    served->at_end([table = table_, key = served.get()] { table->end(key); });
  }
  return Session{std::move(served), std::move(extents)};
}

Task<Reply> ExtentService::begin(Request& request) {
  wire::RdmaBeginRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  const auto session = session_of(request);
  if (!session.ok()) co_return session.status();
  const auto reply = co_await session->extents->begin(message, request.deadline());
  if (!reply.ok()) co_return reply.status();
  co_return Reply(*reply);
}

Task<Reply> ExtentService::complete(Request& request) {
  wire::RdmaCompleteRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  const auto session = session_of(request);
  if (!session.ok()) co_return session.status();
  if (Status status = session->extents->check(message); !status.ok()) co_return status;
  if (message.broken_size() > 0) {
    std::vector<std::uint32_t> broken(message.broken().begin(), message.broken().end());
    // A name each: g++ 12 destroys temporaries of a co_await expression twice.
    auto destroy = sessions_.destroy(session->served, std::move(broken), request.deadline());
    const Status destroyed = co_await std::move(destroy);
    if (!destroyed.ok()) co_return destroyed;
  }
  MOONPOOL_SYNC_POINT("rdma.complete.rails_destroyed");
  const auto reply = session->extents->complete(message);
  if (!reply.ok()) co_return reply.status();
  co_return Reply(*reply);
}

Task<Reply> ExtentService::pin(Request& request) {
  wire::ShmPinRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  const auto session = session_of(request);
  if (!session.ok()) co_return session.status();
  const auto reply = session->extents->pin(message);
  if (!reply.ok()) co_return reply.status();
  MOONPOOL_SYNC_POINT("rdma.pinned");
  co_return Reply(*reply);
}

Task<Reply> ExtentService::unpin(Request& request) {
  wire::ShmUnpinRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  const auto session = session_of(request);
  if (!session.ok()) co_return session.status();
  session->extents->unpin(message);
  co_return Reply(wire::Empty());
}

}  // namespace moonpool::transfer::rdma
