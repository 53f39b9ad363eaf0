#include "transfer/tcp/raw_lanes.h"

namespace moonpool::transfer {

Status RawLanes::begin(std::span<const Piece> frame) {
  const std::size_t index = begun_ % slots_.size();
  Slot& slot = slots_[index];
  slot.frame = frame;
  if (!slot.lane || !(*slot.lane)->healthy()) {
    slot.lane.reset();
    auto lane = pools_[index]->acquire(peer_.endpoint, deadline_);
    if (!lane.ok()) return lane.status();
    slot.lane = std::move(*lane);
  }
  slot.begun = begin_raw(**slot.lane, peer_, opcode_, frame, deadline_);
  if (!slot.begun.ok() && slot.begun.code() != ErrorCode::kUnavailable) return slot.begun;
  ++begun_;
  return {};
}

Status RawLanes::finish() {
  const std::size_t index = finished_++ % slots_.size();
  Slot& slot = slots_[index];
  RawOutcome outcome{slot.begun, false};
  if (outcome.status.ok()) outcome = finish_raw(**slot.lane, opcode_, slot.frame, deadline_);
  if (outcome.status.code() != ErrorCode::kUnavailable || outcome.answered) return outcome.status;
  return once_more(slot, *pools_[index]);
}

Status RawLanes::once_more(Slot& slot, net::LanePool& pool) {
  slot.lane.reset();
  auto lane = pool.acquire(peer_.endpoint, deadline_);
  if (!lane.ok()) return lane.status();
  slot.lane = std::move(*lane);
  MOONPOOL_RETURN_IF_ERROR(begin_raw(**slot.lane, peer_, opcode_, slot.frame, deadline_));
  return finish_raw(**slot.lane, opcode_, slot.frame, deadline_).status;
}

}  // namespace moonpool::transfer
