#include "transfer/tcp/raw_client.h"

#include <algorithm>
#include <string>
#include <vector>

namespace moonpool::transfer {

namespace {

// Pieces cut so that each frame's worth is consecutive: frames are runs of them.
std::vector<std::vector<Piece>> frames_of(std::span<const Piece> pieces) {
  std::vector<std::vector<Piece>> frames;
  std::uint64_t bytes = kRawFrameBytes;  // of the last frame; full at first, so that one is opened
  for (Piece piece : pieces) {
    while (piece.length > 0) {
      if (bytes >= kRawFrameBytes || frames.back().size() >= kRawFramePieces) {
        frames.emplace_back();
        bytes = 0;
      }
      const std::uint64_t part = std::min(piece.length, kRawFrameBytes - bytes);
      frames.back().push_back({piece.local, piece.remote, part});
      piece.local += part;
      piece.remote += part;
      piece.length -= part;
      bytes += part;
    }
  }
  return frames;
}

std::vector<MutableBytes> local_of(std::span<const Piece> frame) {
  std::vector<MutableBytes> local;
  local.reserve(frame.size());
  for (const auto& piece : frame) local.push_back(bytes_at({piece.local, piece.length}));
  return local;
}

std::uint64_t total_of(std::span<const Piece> frame) {
  std::uint64_t total = 0;
  for (const auto& piece : frame) total += piece.length;
  return total;
}

}  // namespace

Status begin_raw(net::Lane& lane, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> frame, Deadline deadline) {
  wire::RawRequest request;
  request.set_incarnation(peer.incarnation.to_bytes());
  for (const auto& piece : frame) {
    request.add_address(piece.remote);
    request.add_length(piece.length);
  }
  if (opcode == Opcode::kRead) return lane.send_request(wire::METHOD_RAW_READ, request, 0, deadline);
  MOONPOOL_RETURN_IF_ERROR(lane.send_request(wire::METHOD_RAW_WRITE, request, total_of(frame), deadline));
  const auto local = local_of(frame);
  return lane.send_payload(std::vector<ConstBytes>(local.begin(), local.end()), deadline);
}

RawOutcome finish_raw(net::Lane& lane, Opcode opcode, std::span<const Piece> frame, Deadline deadline) {
  const bool writing = opcode == Opcode::kWrite;
  wire::Empty reply;
  const auto payload = lane.receive_reply(reply, deadline);
  if (!payload.ok()) return {payload.status(), false};
  if (*payload != (writing ? 0 : total_of(frame))) {
    lane.abort();
    return {Status(ErrorCode::kProtocol, "transfer with " + lane.peer().to_string() + ": the answer does not fit the request"), true};
  }
  return {writing ? Status() : lane.receive_payload(local_of(frame), deadline), true};
}

Status move_raw(net::LanePool& lanes, const RemoteSegment& peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline) {
  for (const auto& frame : frames_of(pieces)) {
    for (const bool again : {true, false}) {
      auto lane = lanes.acquire(peer.endpoint, deadline);
      if (!lane.ok()) return lane.status();
      RawOutcome result{begin_raw(**lane, peer, opcode, frame, deadline), false};
      if (result.status.ok()) result = finish_raw(**lane, opcode, frame, deadline);
      if (result.status.ok()) break;
      // A lane that its peer had closed meanwhile: the same bytes go to the same place once more.
      const bool lost = result.status.code() == ErrorCode::kUnavailable && !result.answered;
      if (!lost || !again) return result.status;
    }
  }
  return {};
}

}  // namespace moonpool::transfer
