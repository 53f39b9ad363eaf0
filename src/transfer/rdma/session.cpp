#include "transfer/rdma/session.h"

#include <algorithm>
#include <utility>

namespace moonpool::transfer::rdma {

namespace {

Result<std::shared_ptr<const ServedRanges>> ranges_of(const wire::RdmaKeysReply& reply, const std::string& peer) {
  auto ranges = std::make_shared<ServedRanges>();
  std::uint64_t end = 0;  // of the one before
  for (const auto& message : reply.range()) {
    const bool sane = message.address() >= end && message.length() > 0 && message.address() + message.length() > message.address() &&
                      message.remote_key_size() > 0;
    if (!sane) return Status(ErrorCode::kProtocol, "RDMA: the ranges that " + peer + " says it serves make no sense");
    end = message.address() + message.length();
    ranges->push_back({message.address(), message.length(), {message.remote_key().begin(), message.remote_key().end()}});
  }
  if (ranges->empty()) return Status(ErrorCode::kStaleIncarnation, peer + " serves nothing by RDMA under this incarnation");
  return std::shared_ptr<const ServedRanges>(std::move(ranges));
}

}  // namespace

Session::Session(std::shared_ptr<SessionShared> shared, std::shared_ptr<PeerPaths> paths, std::unique_ptr<net::Lane> lane, std::size_t turn)
    : shared_(std::move(shared)),
      paths_(std::move(paths)),
      lane_(std::move(lane)),
      turn_(turn),
      rails_(shared_->memory, shared_->options, paths_, shared_->counters),
      spin_(shared_->options.spin_time) {}

Session::~Session() { rails_.destroy_all(); }

Status Session::prepare(Deadline deadline) {
  if (!lane_->healthy()) return {ErrorCode::kUnavailable, "the RDMA session with " + paths_->peer() + " was ended by the peer"};
  rails_.lose_those_down();
  MOONPOOL_RETURN_IF_ERROR(rails_.open_missing(*lane_, deadline));
  if (cancelled_.load()) return {ErrorCode::kCancelled, "RDMA to " + paths_->peer() + " was cancelled"};
  if (has_rails()) return {};
  const std::string trouble = paths_->trouble(shared_->memory->devices());
  return {ErrorCode::kUnavailable, "no RDMA path to " + paths_->peer() + (trouble.empty() ? std::string() : " (" + trouble + ")")};
}

bool Session::usable() const { return !ended_ && !cancelled_.load() && lane_->healthy(); }

void Session::cancel() {
  cancelled_.store(true);
  lane_->abort();
  rails_.break_off_all();
}

Result<std::shared_ptr<const ServedRanges>> Session::served(const Incarnation& incarnation, Deadline deadline) {
  if (auto known = paths_->served(incarnation)) return known;
  wire::RdmaKeysRequest request;
  request.set_incarnation(incarnation.to_bytes());
  wire::RdmaKeysReply reply;
  MOONPOOL_RETURN_IF_ERROR(lane_->call(wire::METHOD_RDMA_KEYS, request, reply, deadline));
  auto ranges = ranges_of(reply, paths_->peer());
  if (ranges.ok()) paths_->remember(incarnation, *ranges);
  return ranges;
}

void Session::move(std::span<Block> blocks, Deadline deadline) {
  if (ended_) {
    for (Block& block : blocks) block.status = Status(ErrorCode::kUnavailable, "the RDMA session with " + paths_->peer() + " has ended");
    return;
  }
  rails_.lose_those_down();
  const BatchContext context{
      *shared_->memory, shared_->options, shared_->counters, shared_->staging, rails_, *lane_, spin_, cancelled_, turn_};
  Batch batch(context, blocks, deadline);
  if (!batch.run()) end();
}

void Session::end() {
  ended_ = true;
  rails_.destroy_all();
  lane_->abort();
}

}  // namespace moonpool::transfer::rdma
