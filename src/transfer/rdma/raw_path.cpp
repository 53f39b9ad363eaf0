#include "transfer/rdma/raw_path.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace moonpool::transfer::rdma {

namespace {

constexpr std::size_t kMostRemembered = 4096;

// Blocks of a transfer, and the local pieces that they point into.
struct Plan {
  std::vector<MutableBytes> pieces;
  std::vector<Block> blocks;
};

const ServedRange* range_of(const ServedRanges& ranges, const Piece& piece) {
  const auto after = std::ranges::upper_bound(ranges, piece.remote, {}, &ServedRange::address);
  if (after == ranges.begin()) return nullptr;
  const ServedRange& range = *std::prev(after);
  const std::uint64_t offset = piece.remote - range.address;
  const bool inside = offset <= range.length && piece.length <= range.length - offset;
  return inside ? &range : nullptr;
}

// Merges what is contiguous. Local pieces are merged within one registered range only: a piece that spans two of them could not be posted.
class Planner {
 public:
  Planner(const MemoryMap& memory, Opcode opcode, std::size_t pieces)
      : memory_(memory), operation_(opcode == Opcode::kWrite ? WorkRequest::Operation::kWrite : WorkRequest::Operation::kRead) {
    plan_.pieces.reserve(pieces);
    counts_.reserve(pieces);
  }

  void add(const Piece& piece, const ServedRange* range) {
    const MutableBytes local = bytes_at({piece.local, piece.length});
    const bool follows = !plan_.blocks.empty() && plan_.blocks.back().range == range && remote_end_ == piece.remote;
    if (!follows) {
      plan_.blocks.push_back({operation_, range, piece.remote, {}, {}});
      counts_.push_back(0);
    }
    MutableBytes* const last = counts_.back() == 0 ? nullptr : &plan_.pieces.back();
    if (last != nullptr && last->data() + last->size() == local.data() && registered_together(local)) {
      *last = {last->data(), last->size() + local.size()};
    } else {
      plan_.pieces.push_back(local);
      ++counts_.back();
    }
    remote_end_ = piece.remote + piece.length;
  }

  Plan finish() && {
    std::size_t first = 0;
    for (std::size_t i = 0; i < plan_.blocks.size(); ++i) {
      plan_.blocks[i].pieces = std::span(plan_.pieces).subspan(first, counts_[i]);
      first += counts_[i];
    }
    return std::move(plan_);  // a moved vector keeps its memory
  }

 private:
  bool registered_together(MutableBytes local) {
    const auto inside = [&] {
      return local_ != nullptr && local.data() >= local_->memory.data() &&
             local.data() + local.size() <= local_->memory.data() + local_->memory.size();
    };
    const MutableBytes last = plan_.pieces.back();
    const bool known = local_ != nullptr && last.data() >= local_->memory.data() &&
                       last.data() + last.size() <= local_->memory.data() + local_->memory.size();
    if (!known) local_ = memory_.local(last);
    return inside();
  }

  const MemoryMap& memory_;
  const WorkRequest::Operation operation_;
  Plan plan_;
  std::vector<std::size_t> counts_;  // local pieces of each block
  std::uint64_t remote_end_ = 0;     // of the last block
  std::shared_ptr<const RegisteredRange> local_;
};

Status not_served(const RemoteSegment& peer) {
  return {ErrorCode::kStaleIncarnation, peer.endpoint.to_string() + " does not serve this memory by RDMA (any more)"};
}

}  // namespace

RawPath::RawPath(std::shared_ptr<Devices> devices, const net::Identity& self, const Incarnation& incarnation, const Options& options)
    : incarnation_(incarnation),
      memory_(std::make_shared<MemoryMap>(std::move(devices))),
      service_(memory_, options),
      sessions_(self, memory_, options) {}

RawPath::~RawPath() {
  cancel();
  stop();
}

void RawPath::stop() { service_.stop(); }

void RawPath::serve(net::Server& server) {
  service_.serve(server);
  server.handle(wire::METHOD_RDMA_COMPLETE, [this](net::Request& request) { return complete(request); });
}

// Of an engine it only ends rails: it has no extents that could be announced.
net::Task<net::Reply> RawPath::complete(net::Request& request) {
  wire::RdmaCompleteRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  auto session = service_.session_of(request);
  if (session == nullptr || message.ticket_size() > 0) {
    co_return Status(ErrorCode::kProtocol, "rdma: " + request.session()->peer_address() + " completes what it has not begun");
  }
  std::vector<std::uint32_t> broken(message.broken().begin(), message.broken().end());
  // A name each: g++ 12 destroys temporaries of a co_await expression twice.
  auto destroy = service_.destroy(std::move(session), std::move(broken), request.deadline());
  const Status destroyed = co_await std::move(destroy);
  if (!destroyed.ok()) co_return destroyed;
  co_return net::Reply(wire::RdmaCompleteReply());
}

Status RawPath::name_broken(PeerSession& session, Deadline deadline) {
  const auto broken = session.take_broken();
  if (broken.empty()) return {};
  wire::RdmaCompleteRequest request;
  for (const auto rail : broken) request.add_broken(rail);
  wire::RdmaCompleteReply reply;
  Status status = session.control().call(wire::METHOD_RDMA_COMPLETE, request, reply, deadline);
  if (!status.ok()) session.end();  // with the connection, the peer's ends of all rails
  return status;
}

Status RawPath::add(MutableBytes memory, const DmaBuf* device) {
  MOONPOOL_RETURN_IF_ERROR(memory_->add_local(memory, device));
  Status served = memory_->serve(incarnation_, memory, device);
  if (!served.ok()) (void)memory_->remove_local(memory.data(), Deadline::after(std::chrono::seconds(1)));  // nobody knows of it yet
  return served;
}

void RawPath::revoke(const void* address) { memory_->revoke(incarnation_, address); }

Status RawPath::remove(const void* address, Deadline deadline) {
  revoke(address);
  return memory_->remove_local(address, deadline);
}

Status RawPath::move(const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline) {
  // What is said here of the path is no verdict on the transfer, unless there is no time left for another.
  const auto verdict = [&](const Status& status) {
    const bool over = status.code() == ErrorCode::kCancelled || status.code() == ErrorCode::kInternal || deadline.expired();
    return status.ok() || over ? status : Status(ErrorCode::kUnavailable, status.message());
  };
  auto session = sessions_.acquire(peer.endpoint, deadline);
  if (!session.ok()) return verdict(session.status());
  for (const bool again : {true, false}) {
    Status status = attempt(**session, peer, opcode, pieces, deadline);
    if (status.code() != ErrorCode::kStaleIncarnation || !again) return verdict(status);
    // Its memory was registered anew, or more of it, since we asked for the keys.
    (*session)->forget(peer.incarnation);
  }
  return {ErrorCode::kInternal, "not reached"};
}

// A peer that was restarted at the same address may have the same keys for other memory: keys are good for the process that told them
// alone.
void RawPath::forget_other_processes_keys(PeerSession& session, const Incarnation& incarnation) {
  const NodeId& process = session.control().peer_node();
  const std::scoped_lock lock(mutex_);
  if (told_by_.size() >= kMostRemembered) told_by_.clear();  // costs one question for each that is still in use
  auto& told_by = told_by_[incarnation];
  if (told_by == process) return;
  session.forget(incarnation);
  told_by = process;
}

Status RawPath::attempt(PeerSession& session, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline) {
  forget_other_processes_keys(session, peer.incarnation);
  const auto served = session.served(peer.incarnation, deadline);
  if (!served.ok()) return served.status();
  Planner planner(*memory_, opcode, pieces.size());
  for (const auto& piece : pieces) {
    if (piece.length == 0) continue;
    const ServedRange* const range = range_of(**served, piece);
    if (range == nullptr) return not_served(peer);
    planner.add(piece, range);
  }
  Plan plan = std::move(planner).finish();
  session.move(plan.blocks, deadline);
  // What the peer refuses is asked for anew; anything else first.
  Status worst;
  for (auto& block : plan.blocks) {
    if (block.status.ok()) continue;
    if (worst.ok() || worst.code() == ErrorCode::kStaleIncarnation) worst = std::move(block.status);
  }
  const Status named = name_broken(session, deadline);
  return worst.ok() && opcode == Opcode::kWrite ? named : worst;
}

}  // namespace moonpool::transfer::rdma
