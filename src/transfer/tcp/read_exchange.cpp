#include <algorithm>
#include <memory>
#include <string>

#include "transfer/checksum.h"
#include "transfer/pieces.h"
#include "transfer/tcp/exchange.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer {

namespace {

using Item = Outgoing<ReadOperation>;
using Frame = std::span<Item>;

// Receives chunks in steps, straight into place, and verifies each step while it is in cache.
class VerifyingReceiver {
 public:
  VerifyingReceiver(net::Lane& lane, bool verify, Deadline deadline) : lane_(lane), verify_(verify), deadline_(deadline) {}

  // The covering chunks of one operation; `checksums` are theirs.
  Status add(Item& item, std::span<const std::uint64_t> checksums) {
    const auto& operation = *item.operation;
    const auto covering = covering_range(operation);
    PieceCursor<MutableBytes> destination(operation.destination);
    const std::uint64_t end = covering.start + covering.length;
    std::size_t index = 0;
    for (std::uint64_t at = covering.start; at < end; ++index) {
      const std::uint64_t stop = std::min<std::uint64_t>(at + kChecksumChunk, end);
      Chunk chunk{&item, parts_.size(), 0, checksums[index], stop == end};
      // Of the chunk's bytes those before and after the wanted range go to scratch.
      const std::uint64_t from = std::clamp(operation.start, at, stop);
      const std::uint64_t to = std::clamp(operation.start + operation.length, at, stop);
      to_scratch(from - at);
      destination.take(to - from, [&](MutableBytes part) { parts_.push_back(part); });
      to_scratch(stop - to);
      chunk.parts = parts_.size() - chunk.first_part;
      chunks_.push_back(chunk);
      bytes_ += stop - at;
      at = stop;
      if (bytes_ >= TcpTransport::kStep) MOONPOOL_RETURN_IF_ERROR(flush());
    }
    return {};
  }

  Status flush() {
    MOONPOOL_RETURN_IF_ERROR(lane_.receive_payload(parts_, deadline_));
    std::vector<ConstBytes> received(parts_.begin(), parts_.end());
    for (const auto& chunk : chunks_) {
      Item& item = *chunk.item;
      if (verify_ && !item.settled && checksum_of_pieces(std::span(received).subspan(chunk.first_part, chunk.parts)) != chunk.expected) {
        settle(item, Status(ErrorCode::kChecksumMismatch, "read from " + lane_.peer().to_string() + ": the bytes of the extent at offset " +
                                                              std::to_string(item.operation->extent.offset) +
                                                              " are not those that were written"));
      }
      if (chunk.last && !item.settled) settle(item, Status());
    }
    parts_.clear();
    chunks_.clear();
    bytes_ = 0;
    scratch_used_ = 0;
    return {};
  }

  static void settle(Item& item, Status status) {
    item.operation->status = std::move(status);
    item.settled = true;
  }

 private:
  struct Chunk {
    Item* item = nullptr;
    std::size_t first_part = 0;
    std::size_t parts = 0;
    std::uint64_t expected = 0;
    bool last = false;  // of its operation
  };

  void to_scratch(std::uint64_t length) {
    if (length == 0) return;
    // A step has less than kStep bytes before its last chunk, and of those less is surplus.
    constexpr std::size_t kScratch = TcpTransport::kStep + kChecksumChunk;
    if (scratch_ == nullptr) scratch_ = std::make_unique_for_overwrite<std::byte[]>(kScratch);
    parts_.push_back(MutableBytes(scratch_.get() + scratch_used_, length));
    scratch_used_ += length;
  }

  net::Lane& lane_;
  const bool verify_;
  const Deadline deadline_;
  std::vector<MutableBytes> parts_;
  std::vector<Chunk> chunks_;
  std::uint64_t bytes_ = 0;
  std::unique_ptr<std::byte[]> scratch_;
  std::size_t scratch_used_ = 0;
};

wire::ReadRequest request_for(Frame frame) {
  wire::ReadRequest request;
  IncarnationColumn incarnations;
  for (const auto& item : frame) {
    const auto& extent = item.operation->extent;
    const auto covering = covering_range(*item.operation);
    incarnations.add(request, extent);
    request.add_range_start(covering.start);
    request.add_range_length(covering.length);
  }
  incarnations.write_to(request);
  return request;
}

// The answer's columns and payload are what its statuses say.
bool fits(const wire::ReadReply& reply, Frame frame, std::uint64_t payload) {
  if (reply.status_size() != static_cast<int>(frame.size())) return false;
  std::uint64_t bytes = 0;
  std::uint64_t chunks = 0;
  for (std::size_t i = 0; i < frame.size(); ++i) {
    if (reply.status(static_cast<int>(i)) != 0) continue;
    const auto length = covering_range(*frame[i].operation).length;
    bytes += length;
    chunks += chunks_of(length);
  }
  if (bytes == 0) return payload == 0;
  return bytes == payload && reply.checksum_chunk() == kChecksumChunk && static_cast<std::uint64_t>(reply.checksum_size()) == chunks;
}

// The whole extent's chunks have the root that the master knows.
bool root_holds(const ReadOperation& operation, std::span<const std::uint64_t> checksums) {
  return operation.length != operation.extent.length || root_of(checksums) == operation.checksum;
}

}  // namespace

ExchangeResult exchange_read(net::Lane& lane, Frame frame, bool verify, Deadline deadline) {
  if (Status sent = lane.send_request(wire::METHOD_READ, request_for(frame), 0, deadline); !sent.ok()) return {std::move(sent), false};
  wire::ReadReply reply;
  const auto payload = lane.receive_reply(reply, deadline);
  if (!payload.ok()) return {payload.status(), false};
  if (!fits(reply, frame, *payload)) {
    lane.abort();  // the stream's position is unknown
    return {Status(ErrorCode::kProtocol, "read from " + lane.peer().to_string() + ": the answer does not fit the request"), true};
  }
  const std::vector<std::uint64_t> checksums(reply.checksum().begin(), reply.checksum().end());
  VerifyingReceiver receiver(lane, verify, deadline);
  std::size_t used = 0;
  for (std::size_t i = 0; i < frame.size(); ++i) {
    auto& item = frame[i];
    if (const auto number = reply.status(static_cast<int>(i)); number != 0) {
      VerifyingReceiver::settle(item, refused(lane, "read", item.operation->extent, number));
      continue;
    }
    const std::size_t chunks = chunks_of(covering_range(*item.operation).length);
    const auto its = std::span(checksums).subspan(used, chunks);
    used += chunks;
    if (verify && !root_holds(*item.operation, its)) {
      // Received all the same, to keep the stream's position, and counted as failed.
      VerifyingReceiver::settle(
          item, Status(ErrorCode::kChecksumMismatch,
                       "read from " + lane.peer().to_string() + ": the extent is not the one that the master describes (root checksum)"));
    }
    if (Status status = receiver.add(item, its); !status.ok()) return {std::move(status), true};
  }
  return {receiver.flush(), true};
}

}  // namespace moonpool::transfer
