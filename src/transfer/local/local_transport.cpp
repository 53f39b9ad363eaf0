#include "transfer/local/local_transport.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/copy_and_hash.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

namespace {

Status out_of_time(const char* operation) {
  return {ErrorCode::kRpcTimeout, std::string("local ") + operation + ": the deadline passed before all bytes were copied"};
}

}  // namespace

void LocalTransport::write(const Peer&, std::span<WriteOperation> operations, Deadline deadline) {
  for (auto& operation : operations) operation.status = write_one(operation, deadline);
}

void LocalTransport::read(const Peer&, std::span<ReadOperation> operations, Deadline deadline) {
  for (auto& operation : operations) operation.status = read_one(operation, deadline);
}

Status LocalTransport::write_one(WriteOperation& operation, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_operation(operation));
  auto pin = owner_.begin_write(operation.extent, [] {});
  if (!pin.ok()) return pin.status();
  const MutableBytes memory = pin->memory();
  PieceCursor<ConstBytes> source(operation.source);
  std::vector<std::uint64_t> checksums;
  checksums.reserve(chunks_of(memory.size()));
  for (std::size_t at = 0; at < memory.size(); at += kChecksumChunk) {
    if (pin->cancelled()) return {ErrorCode::kStaleTerm, "local write: the grant was retired while its bytes were copied"};
    if (deadline.expired()) return out_of_time("write");
    checksums.push_back(gather_chunk(source, memory.subspan(at, std::min(kChecksumChunk, memory.size() - at))));
    MOONPOOL_SYNC_POINT("local_transport.write.chunk_copied");
  }
  operation.checksum = root_of(checksums);
  return owner_.complete_write(std::move(*pin), operation.key, checksums);
}

Status LocalTransport::read_one(const ReadOperation& operation, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_operation(operation));
  const auto pin = owner_.begin_read(operation.extent);
  if (!pin.ok()) return pin.status();
  const ConstBytes memory = pin->memory();
  const auto checksums = pin->checksums();
  if (verify_ && operation.length == memory.size() && root_of(checksums) != operation.checksum) {
    return {ErrorCode::kChecksumMismatch, "local read: the extent is not the one that the master describes (root checksum)"};
  }
  PieceCursor<MutableBytes> destination(operation.destination);
  const std::uint64_t end = operation.start + operation.length;
  for (std::uint64_t at = operation.start; at < end;) {
    if (deadline.expired()) return out_of_time("read");
    const std::uint64_t index = at / kChecksumChunk;
    const auto chunk =
        memory.subspan(index * kChecksumChunk, std::min<std::uint64_t>(kChecksumChunk, memory.size() - index * kChecksumChunk));
    const std::uint64_t stop = std::min<std::uint64_t>(end, index * kChecksumChunk + chunk.size());
    const bool whole = at == index * kChecksumChunk && stop == at + chunk.size();
    if (verify_) {
      const std::uint64_t found = whole ? scatter_chunk(chunk, destination) : transfer::checksum(chunk);
      if (found != checksums[index]) {
        return {ErrorCode::kChecksumMismatch,
                "local read: the segment's memory changed since it was written (chunk " + std::to_string(index) + ")"};
      }
    }
    if (!verify_ || !whole) {
      const std::byte* from = memory.data() + at;
      destination.take(stop - at, [&](MutableBytes part) {
        std::memcpy(part.data(), from, part.size());
        from += part.size();
      });
    }
    at = stop;
    MOONPOOL_SYNC_POINT("local_transport.read.chunk_copied");
  }
  return {};
}

void LocalTransport::view(const Peer&, std::span<ViewOperation> operations, Deadline deadline) {
  for (auto& operation : operations) {
    auto pin = owner_.begin_read(operation.extent);
    operation.status = pin.status();
    if (!pin.ok()) continue;
    operation.bytes = pin->memory();
    operation.pin = std::make_shared<Owner::Pin>(std::move(*pin));
    if (verify_) verify_view(operation, deadline);
  }
}

}  // namespace moonpool::transfer
