#include "transfer/tcp/raw_service.h"

#include <memory>
#include <string>
#include <utility>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/cuda/engine/served_moves.h"

namespace moonpool::transfer {

namespace {

using net::Reply;
using net::Request;
using net::Task;

constexpr std::uint64_t kChecksumSize = sizeof(std::uint64_t);

// A request whose memory is held.
struct Admitted {
  RegisteredMemory::Hold hold;
  std::vector<MutableBytes> pieces;  // empty when some are device memory
  std::vector<AddressRange> ranges;
  std::uint64_t total = 0;
  bool checksum = false;

  [[nodiscard]] bool with_devices() const { return !hold.with_devices().empty(); }
};

std::shared_ptr<cuda::ServedMoves::Admitted> for_devices(Admitted admitted) {
  auto shared = std::make_shared<cuda::ServedMoves::Admitted>();
  *shared = {std::move(admitted.hold), std::move(admitted.ranges), admitted.total, admitted.checksum};
  return shared;
}

Result<Admitted> admit(RawService& service, const Request& request) {
  wire::RawRequest message;
  MOONPOOL_RETURN_IF_ERROR(request.parse(message));
  if (Incarnation::from_bytes(message.incarnation()) != service.incarnation) {
    return Status(ErrorCode::kStaleIncarnation,
                  "this engine is not the one whose addresses are used (it was restarted): ask for its memory again");
  }
  const auto count = static_cast<std::size_t>(message.address_size());
  if (message.length_size() != message.address_size() || count > kMaxPiecesPerFrame) {
    return Status(ErrorCode::kProtocol,
                  "transfer from " + request.session()->peer_address() + ": its columns differ in length or are too long");
  }
  Admitted admitted;
  admitted.checksum = message.checksum();
  std::vector<AddressRange> ranges;
  ranges.reserve(count);
  for (int i = 0; i < message.address_size(); ++i) {
    ranges.push_back({message.address(i), message.length(i)});
    if (message.length(i) > net::kMaxPayloadLength - admitted.total) {
      return Status(ErrorCode::kInvalidParams, "a transfer of more than " + std::to_string(net::kMaxPayloadLength) + " bytes: split it");
    }
    admitted.total += message.length(i);
  }
  auto hold = service.memory.hold(ranges);
  if (!hold.ok()) return hold.status();
  admitted.hold = std::move(*hold);
  if (admitted.with_devices()) {
    admitted.ranges = std::move(ranges);
    return admitted;
  }
  admitted.pieces.reserve(count);
  for (const auto& range : ranges) admitted.pieces.push_back(bytes_at(range));
  return admitted;
}

std::uint64_t checksum_of(const std::vector<MutableBytes>& pieces) {
  const std::vector<ConstBytes> constant(pieces.begin(), pieces.end());
  return checksum_of_pieces(constant);
}

}  // namespace

Task<Reply> handle_raw_write(RawService& service, Request& request) {
  auto admitted = admit(service, request);
  if (!admitted.ok()) co_return admitted.status();
  if (request.payload_length() != admitted->total + (admitted->checksum ? kChecksumSize : 0)) {
    co_return Status(ErrorCode::kProtocol,
                     "write from " + request.session()->peer_address() + ": its payload is not as long as its pieces");
  }
  MOONPOOL_SYNC_POINT("raw_service.write.admitted");
  if (admitted->with_devices()) {
    auto write = service.devices->write(request, for_devices(std::move(*admitted)));
    co_return co_await std::move(write);
  }
  if (Status status = co_await request.receive(admitted->pieces); !status.ok()) co_return status;
  if (admitted->checksum) {
    std::uint64_t expected = 0;
    const MutableBytes trailer = std::as_writable_bytes(std::span(&expected, 1));
    if (Status status = co_await request.receive({&trailer, 1}); !status.ok()) co_return status;
    if (expected != checksum_of(admitted->pieces))
      co_return Status(ErrorCode::kChecksumMismatch, "the bytes that arrived are not those that were sent");
  }
  co_return Reply(wire::Empty());
}

Task<Reply> handle_raw_read(RawService& service, Request& request) {
  auto admitted = admit(service, request);
  if (!admitted.ok()) co_return admitted.status();
  if (request.payload_length() != 0) {
    co_return Status(ErrorCode::kProtocol, "read from " + request.session()->peer_address() + ": it has a payload");
  }
  if (admitted->with_devices()) {
    auto read = service.devices->read(request, for_devices(std::move(*admitted)));
    co_return co_await std::move(read);
  }
  Reply reply{wire::Empty()};
  reply.payload.assign(admitted->pieces.begin(), admitted->pieces.end());
  struct Kept {
    RegisteredMemory::Hold hold;
    std::uint64_t checksum = 0;
  };
  const auto kept = std::make_shared<Kept>();
  kept->hold = std::move(admitted->hold);
  if (admitted->checksum) {
    kept->checksum = checksum_of(admitted->pieces);
    reply.payload.push_back(std::as_bytes(std::span(&kept->checksum, 1)));
  }
  reply.sent = [kept] { kept->hold = {}; };
  MOONPOOL_SYNC_POINT("raw_service.read.admitted");
  co_return reply;
}

Task<Reply> handle_notify(RawService& service, Request& request) {
  wire::NotifyRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  service.notifications.push({message.name(), message.text()});
  co_return Reply(wire::Empty());
}

void serve(RawService& service, net::Server& server) {
  server.handle(wire::METHOD_RAW_WRITE, [&service](Request& request) { return handle_raw_write(service, request); });
  server.handle(wire::METHOD_RAW_READ, [&service](Request& request) { return handle_raw_read(service, request); });
  server.handle(wire::METHOD_NOTIFY, [&service](Request& request) { return handle_notify(service, request); });
  server.handle(wire::METHOD_DESCRIBE, [&service](Request&) -> Task<Reply> { co_return Reply(service.describe()); });
  if (service.devices != nullptr) service.devices->serve(server);
  server.handle(wire::METHOD_PROBE, [](Request&) -> Task<Reply> { co_return Reply(wire::Empty()); });
}

}  // namespace moonpool::transfer
