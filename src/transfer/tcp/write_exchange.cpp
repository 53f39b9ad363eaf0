#include <algorithm>

#include "transfer/checksum.h"
#include "transfer/pieces.h"
#include "transfer/tcp/exchange.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer {

namespace {

using Frame = std::span<Outgoing<WriteOperation>>;

// Collects scattered memory and sends it in steps, each hashed while it is collected.
class HashingSender {
 public:
  HashingSender(net::Lane& lane, Deadline deadline) : lane_(lane), deadline_(deadline) {}

  // Appends the operation's chunk checksums to `checksums`.
  Status add(const WriteOperation& operation, std::vector<std::uint64_t>& checksums) {
    PieceCursor<ConstBytes> source(operation.source);
    for (std::uint64_t left = operation.extent.length; left > 0;) {
      const auto chunk = std::min<std::uint64_t>(left, kChecksumChunk);
      const std::size_t first = pending_.size();
      source.take(chunk, [&](ConstBytes part) { pending_.push_back(part); });
      checksums.push_back(checksum_of_pieces(std::span(pending_).subspan(first)));
      left -= chunk;
      bytes_ += chunk;
      if (bytes_ >= TcpTransport::kStep) MOONPOOL_RETURN_IF_ERROR(flush());
    }
    return {};
  }

  Status add_trailer(std::span<const std::uint64_t> checksums) {
    pending_.push_back(std::as_bytes(checksums));
    return flush();
  }

 private:
  Status flush() {
    Status status = lane_.send_payload(pending_, deadline_);
    pending_.clear();
    bytes_ = 0;
    return status;
  }

  net::Lane& lane_;
  const Deadline deadline_;
  std::vector<ConstBytes> pending_;
  std::uint64_t bytes_ = 0;
};

wire::WriteRequest request_for(Frame frame, std::uint64_t& payload) {
  wire::WriteRequest request;
  request.set_checksum_chunk(kChecksumChunk);
  IncarnationColumn incarnations;
  for (const auto& item : frame) {
    const auto& extent = item.operation->extent;
    incarnations.add(request, extent);
    request.add_length(extent.length);
    request.add_key(item.operation->key.data(), item.operation->key.size());
    payload += extent.length + chunks_of(extent.length) * sizeof(std::uint64_t);
  }
  incarnations.write_to(request);
  return request;
}

Status send(net::Lane& lane, Frame frame, std::vector<std::uint64_t>& checksums, Deadline deadline) {
  std::uint64_t payload = 0;
  const auto request = request_for(frame, payload);
  MOONPOOL_RETURN_IF_ERROR(lane.send_request(wire::METHOD_WRITE, request, payload, deadline));
  HashingSender sender(lane, deadline);
  for (const auto& item : frame) {
    const std::size_t first = checksums.size();
    MOONPOOL_RETURN_IF_ERROR(sender.add(*item.operation, checksums));
    item.operation->checksum = root_of(std::span(checksums).subspan(first));
  }
  return sender.add_trailer(checksums);
}

}  // namespace

ExchangeResult exchange_write(net::Lane& lane, Frame frame, Deadline deadline) {
  std::vector<std::uint64_t> checksums;
  if (Status sent = send(lane, frame, checksums, deadline); !sent.ok()) return {std::move(sent), false};
  wire::WriteReply reply;
  const auto payload = lane.receive_reply(reply, deadline);
  if (!payload.ok()) return {payload.status(), false};
  if (*payload != 0 || reply.status_size() != static_cast<int>(frame.size())) {
    lane.abort();
    return {Status(ErrorCode::kProtocol, "write to " + lane.peer().to_string() + ": the answer does not fit the request"), true};
  }
  for (std::size_t i = 0; i < frame.size(); ++i) {
    const auto number = reply.status(static_cast<int>(i));
    auto& operation = *frame[i].operation;
    operation.status = number == 0 ? Status() : refused(lane, "write", operation.extent, number);
    frame[i].settled = true;
  }
  return {Status(), true};
}

}  // namespace moonpool::transfer
