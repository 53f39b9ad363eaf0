#include "transfer/local/local_transport.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/copy_and_hash.h"
#include "transfer/open_extents.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

void LocalTransport::write(const Peer&, std::span<WriteOperation> operations, Deadline deadline) {
  const Stores stores = stores_for(std::span<const WriteOperation>(operations));
  for (auto& operation : operations) operation.status = write_one(operation, stores, deadline);
}

void LocalTransport::read(const Peer&, std::span<ReadOperation> operations, Deadline deadline) {
  const Stores stores = stores_for(std::span<const ReadOperation>(operations));
  for (auto& operation : operations) operation.status = read_one(operation, stores, deadline);
}

Status LocalTransport::write_one(WriteOperation& operation, Stores stores, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_operation(operation));
  auto pin = owner_.begin_write(operation.extent, [] {});
  if (!pin.ok()) return pin.status();
  const MutableBytes memory = pin->memory();
  PieceCursor<ConstBytes> source(operation.source);
  std::vector<std::uint64_t> checksums;
  checksums.reserve(chunks_of(memory.size()));
  for (std::size_t at = 0; at < memory.size(); at += kChecksumChunk) {
    if (pin->cancelled()) return {ErrorCode::kStaleTerm, "local write: the grant was retired while its bytes were copied"};
    if (deadline.expired()) {
      return {ErrorCode::kRpcTimeout, "local write: the deadline passed before all bytes were copied"};
    }
    checksums.push_back(gather_chunk(source, memory.subspan(at, std::min(kChecksumChunk, memory.size() - at)), stores));
    MOONPOOL_SYNC_POINT("local_transport.write.chunk_copied");
  }
  operation.checksum = root_of(checksums);
  return owner_.complete_write(std::move(*pin), operation.key, checksums);
}

Status LocalTransport::read_one(const ReadOperation& operation, Stores stores, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_operation(operation));
  const auto pin = owner_.begin_read(operation.extent);
  if (!pin.ok()) return pin.status();
  const auto checksums = pin->checksums().subspan(operation.start / kChecksumChunk);
  return read_pinned({.path = "local", .memory = pin->memory(), .checksums = checksums, .verify = verify_}, operation, stores, deadline);
}

void LocalTransport::view(const Peer&, std::span<ViewOperation> operations, Deadline deadline) {
  for (auto& operation : operations) {
    auto pin = owner_.begin_read(operation.extent);
    operation.status = pin.status();
    if (!pin.ok()) continue;
    operation.region = pin->region();
    operation.bytes = pin->memory();
    operation.pin = std::make_shared<Owner::Pin>(std::move(*pin));
    if (verify_ && operation.verified) verify_view(operation, deadline);
  }
}

// Nothing to call when the writes have to stop: bytes may be under way from elsewhere, and the pins stay until `fill` knows that they are
// not.
void LocalTransport::write_in_place(const Peer&, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) {
  struct Wanted {
    WriteOperation* operation = nullptr;
  };
  std::vector<Wanted> batch;
  batch.reserve(operations.size());
  for (auto& operation : operations) {
    operation.status = check_extent(operation.extent);
    if (operation.status.ok()) batch.push_back({&operation});
  }
  refuse_overlaps(batch);
  std::vector<Owner::Pin> pins;  // of `extents`, in their order; released when fill throws
  std::vector<OpenExtent> extents;
  pins.reserve(batch.size());
  extents.reserve(batch.size());
  for (const auto& [operation] : batch) {
    if (deadline.expired()) {
      operation->status = Status(ErrorCode::kRpcTimeout, "local write in place: the deadline passed before the extent was opened");
      continue;
    }
    auto pin = owner_.begin_write(operation->extent, [] {});
    operation->status = pin.status();
    if (!pin.ok()) continue;
    extents.push_back({static_cast<std::size_t>(operation - operations.data()), pin->memory(), pin->region(), {}, {}});
    pins.push_back(std::move(*pin));
  }
  if (extents.empty()) return;
  fill(extents);
  for (std::size_t i = 0; i < extents.size(); ++i) {
    WriteOperation& operation = operations[extents[i].operation];
    operation.status = complete_filled(std::move(pins[i]), operation, extents[i]);
  }
}

Status LocalTransport::complete_filled(Owner::Pin pin, WriteOperation& operation, const OpenExtent& extent) {
  MOONPOOL_RETURN_IF_ERROR(check_filled(extent));
  if (pin.cancelled()) return {ErrorCode::kStaleTerm, "local write in place: the grant was retired while its extent was filled"};
  operation.checksum = root_of(extent.checksums);
  return owner_.complete_write(std::move(pin), operation.key, extent.checksums);
}

}  // namespace moonpool::transfer
