#include "transfer/tcp/extent_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/extent_columns.h"

namespace moonpool::transfer {

namespace {

using net::Reply;
using net::Request;
using net::Task;

Status contradiction(const Request& request, const std::string& what) {
  return {ErrorCode::kProtocol, std::string(request.method() == wire::METHOD_WRITE ? "write" : "read") + " from " +
                                    request.session()->peer_address() + ": " + what};
}

// Names the peer in an error about the message's columns.
Status about(const Request& request, Status status) {
  return status.code() == ErrorCode::kProtocol ? contradiction(request, status.message()) : status;
}

// ---------------------------------------------------------------- write

Status check_write(const Request& request, const wire::WriteRequest& message) {
  MOONPOOL_RETURN_IF_ERROR(about(request, check_columns(message)));
  if (message.length_size() != message.segment_size() || message.key_size() != message.segment_size()) {
    return contradiction(request, "its columns differ in length");
  }
  if (message.checksum_chunk() != kChecksumChunk) {
    return contradiction(request, "checksums per " + std::to_string(message.checksum_chunk()) + " bytes are not what this release speaks");
  }
  std::uint64_t left = request.payload_length();
  for (const auto length : message.length()) {
    const std::uint64_t trailer = chunks_of(length) * sizeof(std::uint64_t);
    if (length > left || trailer > left - length) return contradiction(request, "its payload is shorter than its entries");
    left -= length + trailer;
  }
  return left == 0 ? Status() : contradiction(request, "its payload is longer than its entries");
}

struct IncomingExtent {
  ExtentRef extent;
  std::optional<Owner::Pin> pin;  // empty: refused, or complete already
  Status status;
  // Of the trailer. Stays empty for refused entries, whose trailer is drained; kept for one that is complete already, to be compared.
  std::vector<std::uint64_t> checksums;
};

bool already_complete(const IncomingExtent& entry) { return entry.status.code() == ErrorCode::kObjectAlreadyExists; }

std::vector<IncomingExtent> admit(Owner& owner, const Request& request, const wire::WriteRequest& message,
                                  const std::vector<Incarnation>& incarnations) {
  std::vector<IncomingExtent> entries(static_cast<std::size_t>(message.segment_size()));
  for (int i = 0; i < message.segment_size(); ++i) {
    auto& entry = entries[static_cast<std::size_t>(i)];
    entry.extent = extent_of(message, incarnations, i);
    entry.extent.length = message.length(i);
    auto pin = owner.begin_write(entry.extent, [session = request.session()] { session->abort(); });
    entry.status = pin.status();
    if (pin.ok()) entry.pin = std::move(*pin);
    if (pin.ok() || already_complete(entry)) entry.checksums.resize(chunks_of(entry.extent.length));
  }
  return entries;
}

enum class Part { kData, kTrailer };

// The data of all entries in order, or their checksums: runs of wanted ones with one call, the rest drained.
Task<Status> receive_entries(Request& request, std::vector<IncomingExtent>& entries, Part part) {
  std::vector<MutableBytes> run;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    auto& entry = entries[i];
    const bool wanted = part == Part::kData ? entry.pin.has_value() : !entry.checksums.empty();
    if (wanted) run.push_back(part == Part::kData ? entry.pin->memory() : std::as_writable_bytes(std::span(entry.checksums)));
    if (!run.empty() && (!wanted || i + 1 == entries.size())) {
      if (Status status = co_await request.receive(run); !status.ok()) co_return status;
      run.clear();
    }
    if (!wanted) {
      const std::uint64_t length = part == Part::kData ? entry.extent.length : chunks_of(entry.extent.length) * sizeof(std::uint64_t);
      if (Status status = co_await request.discard(length); !status.ok()) co_return status;
    }
  }
  co_return Status();
}

// The outcome of an entry whose bytes have all arrived.
Status conclude(Owner& owner, IncomingExtent& entry, const std::string& key) {
  if (entry.pin) return owner.complete_write(std::move(*entry.pin), key, entry.checksums);
  if (!already_complete(entry)) return entry.status;
  return owner.confirm_write(entry.extent, entry.checksums);
}

// ---------------------------------------------------------------- read

// What a reply keeps alive until it has left.
using Pins = std::vector<Owner::Pin>;

Status check_read(const Request& request, const wire::ReadRequest& message) {
  MOONPOOL_RETURN_IF_ERROR(about(request, check_columns(message)));
  if (message.range_start_size() != message.segment_size() || message.range_length_size() != message.segment_size()) {
    return contradiction(request, "its columns differ in length");
  }
  return request.payload_length() == 0 ? Status() : contradiction(request, "it has a payload");
}

Status check_range(std::uint64_t start, std::uint64_t length, std::uint64_t extent_length) {
  const bool inside = start <= extent_length && length <= extent_length - start && length > 0;
  const bool aligned = start % kChecksumChunk == 0 && (length % kChecksumChunk == 0 || start + length == extent_length);
  if (inside && aligned) return {};
  return {ErrorCode::kInvalidRead, "the range is not made of whole chunks of the extent"};
}

}  // namespace

Task<Reply> handle_write(Owner& owner, Request& request) {
  wire::WriteRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  if (Status status = check_write(request, message); !status.ok()) co_return status;
  const auto incarnations = incarnations_of(message.incarnation());
  if (!incarnations.ok()) co_return about(request, incarnations.status());

  auto entries = admit(owner, request, message, *incarnations);
  MOONPOOL_SYNC_POINT("extent_service.write.admitted");
  if (Status status = co_await receive_entries(request, entries, Part::kData); !status.ok()) co_return status;
  MOONPOOL_SYNC_POINT("extent_service.write.data_received");
  if (Status status = co_await receive_entries(request, entries, Part::kTrailer); !status.ok()) co_return status;

  wire::WriteReply reply;
  for (int i = 0; i < message.key_size(); ++i) {
    reply.add_status(conclude(owner, entries[static_cast<std::size_t>(i)], message.key(i)).number());
  }
  co_return Reply(reply);
}

Task<Reply> handle_read(Owner& owner, Request& request) {
  wire::ReadRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  if (Status status = check_read(request, message); !status.ok()) co_return status;
  const auto incarnations = incarnations_of(message.incarnation());
  if (!incarnations.ok()) co_return about(request, incarnations.status());

  Reply reply;
  wire::ReadReply answer;
  answer.set_checksum_chunk(kChecksumChunk);
  const auto pins = std::make_shared<Pins>();
  std::vector<bool> hooked(incarnations->size());  // one abort hook per segment and request is enough
  std::uint64_t total = 0;
  for (int i = 0; i < message.segment_size(); ++i) {
    const std::uint32_t segment = message.segment(i);
    std::function<void()> abort;
    if (!hooked[segment]) abort = [session = request.session()] { session->abort(); };
    auto pin = owner.begin_read(extent_of(message, *incarnations, i), std::move(abort));
    Status status = pin.ok() ? check_range(message.range_start(i), message.range_length(i), pin->memory().size()) : pin.status();
    answer.add_status(status.number());
    if (!status.ok()) continue;
    hooked[segment] = true;
    total += message.range_length(i);
    if (total > kMaxReadPayload)
      co_return Status(ErrorCode::kInvalidParams, "the ranges asked for are too many for one frame: split the batch");
    const auto chunks = pin->checksums().subspan(message.range_start(i) / kChecksumChunk, chunks_of(message.range_length(i)));
    answer.mutable_checksum()->Add(chunks.begin(), chunks.end());
    reply.payload.push_back(pin->memory().subspan(message.range_start(i), message.range_length(i)));
    pins->push_back(std::move(*pin));
  }
  reply.message = answer.SerializeAsString();
  reply.sent = [pins] { pins->clear(); };
  MOONPOOL_SYNC_POINT("extent_service.read.pinned");
  co_return reply;
}

void Owner::serve(net::Server& server) {
  server.handle(wire::METHOD_WRITE, [this](Request& request) { return handle_write(*this, request); });
  server.handle(wire::METHOD_READ, [this](Request& request) { return handle_read(*this, request); });
}

}  // namespace moonpool::transfer
