#include "transfer/rdma/rdma_transport.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "transfer/batch_parts.h"
#include "transfer/rdma/extent_batch.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr FrameSize kMostInFrame{RdmaTransport::kFrameEntries, RdmaTransport::kFrameBytes, RdmaTransport::kFrameKeyBytes};

// A session, or why there is none. Half of the time that is left is for TCP.
Result<SessionPool::Lease> acquire(SessionPool& sessions, const Peer& peer, Deadline deadline) {
  auto session = sessions.acquire(peer.endpoint, deadline.sooner(deadline.left() / 2));
  if (session.code() != ErrorCode::kRpcTimeout || deadline.expired()) return session;
  return Status(ErrorCode::kUnavailable, session.status().message());
}

// Frame after frame over one session. `move(session, frame)` carries out what is not settled yet. Once the path has failed, the rest fails
// with it rather than waiting for it again.
template <typename Operation, typename Move>
void run(SessionPool& sessions, const Peer& peer, std::span<Operation> operations, const Move& move, Deadline deadline) {
  auto selected = select(operations);
  auto rest = std::span(selected);
  std::optional<SessionPool::Lease> session;
  Status path;
  while (!rest.empty() && path.ok()) {
    const auto frame = next_frame(rest, kMostInFrame);
    for (const bool again : {true, false}) {
      if (!session) {
        auto fresh = acquire(sessions, peer, deadline);
        path = fresh.status();
        if (!path.ok()) break;
        session.emplace(std::move(*fresh));
      }
      path = move(**session, frame);
      if (path.ok()) break;
      session.reset();  // it has ended
      if (std::ranges::all_of(frame, [](const auto& item) { return item.settled; })) path = Status();
      if (path.code() != ErrorCode::kUnavailable || !again) break;
    }
    rest = rest.subspan(frame.size());
  }
  if (path.ok()) return;
  for (auto& item : selected) {
    if (!item.settled) item.operation->status = path;
  }
}

}  // namespace

bool RdmaTransport::reaches(const Peer& peer) const { return peer.endpoint.port != 0 && sessions_.promising(peer.endpoint); }

std::string RdmaTransport::why_not(const Peer& peer) const { return sessions_.why_not(peer.endpoint); }

void RdmaTransport::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  run(
      sessions_, peer, operations,
      [&](PeerSession& session, std::span<Outgoing<WriteOperation>> frame) {
        std::vector<Outgoing<WriteOperation>> open;  // what a first attempt has left
        std::ranges::copy_if(frame, std::back_inserter(open), [](const auto& item) { return !item.settled; });
        const Status path = write_batch(session, open, deadline);
        std::size_t next = 0;
        for (auto& item : frame) {
          if (!item.settled) item.settled = open[next++].settled;
        }
        return path;
      },
      deadline);
}

void RdmaTransport::read(const Peer& peer, std::span<ReadOperation> operations, ReadCheck check, Deadline deadline) {
  run(
      sessions_, peer, operations,
      [&](PeerSession& session, std::span<Outgoing<ReadOperation>> frame) {
        return read_batch(session, frame, {check, next_pin_.fetch_add(frame.size())}, deadline);
      },
      deadline);
}

}  // namespace moonpool::transfer::rdma
