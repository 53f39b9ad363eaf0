#include "transfer/cuda/engine/peer_hold.h"

#include <chrono>

namespace moonpool::transfer::cuda {

namespace {

constexpr std::chrono::seconds kReleaseTime{2};  // also after the transfer's own time has passed

}  // namespace

Result<PeerHold> PeerHold::take(net::LanePool& lanes, const RemoteSegment& peer, std::span<const Part> parts, Deadline deadline) {
  wire::DeviceHoldRequest request;
  request.set_incarnation(peer.incarnation.to_bytes());
  for (const auto& part : parts) {
    request.add_registration(part.registration);
    request.add_address(part.range.address);
    request.add_length(part.range.length);
  }
  for (const bool again : {true, false}) {
    auto lane = lanes.acquire(peer.endpoint, deadline);
    if (!lane.ok()) return lane.status();
    wire::DeviceHoldReply reply;
    Status held = (*lane)->call(wire::METHOD_DEVICE_HOLD, request, reply, deadline);
    if (held.ok()) return PeerHold(std::move(*lane), reply.hold());
    // An idle lane that the peer had closed: nothing is held there.
    if (held.code() != ErrorCode::kUnavailable || !again) return held;
  }
  return Status(ErrorCode::kInternal, "not reached");
}

Status PeerHold::release() {
  wire::DeviceReleaseRequest request;
  request.set_hold(number_);
  wire::Empty reply;
  const Status released = lane_->call(wire::METHOD_DEVICE_RELEASE, request, reply, Deadline::after(kReleaseTime));
  if (released.ok()) return {};
  lane_->abort();
  return {ErrorCode::kTransferFail,
          "the hold of " + lane_->peer().to_string() + "'s device memory ended before the copy may have: " + released.message()};
}

}  // namespace moonpool::transfer::cuda
