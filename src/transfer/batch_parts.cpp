#include "transfer/batch_parts.h"

#include <string>

#include "transfer/checksum.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

Status refused(const net::Lane& lane, const char* operation, const ExtentRef& extent, std::int32_t number) {
  const auto code = static_cast<ErrorCode>(number);
  return {code, std::string(operation) + " of " + std::to_string(extent.length) + " bytes at offset " + std::to_string(extent.offset) +
                    " was refused by " + lane.peer().to_string() + ": " + std::string(name_of(code))};
}

std::uint32_t IncarnationColumn::index_of(const Incarnation& incarnation) {
  const auto index = static_cast<std::size_t>(std::ranges::find(known_, incarnation) - known_.begin());
  if (index == known_.size()) known_.push_back(incarnation);
  return static_cast<std::uint32_t>(index);
}

CoveringRange covering_range(const ReadOperation& operation) {
  const std::uint64_t start = operation.start / kChecksumChunk * kChecksumChunk;
  const std::uint64_t end = operation.start + operation.length;
  const std::uint64_t tail = (kChecksumChunk - end % kChecksumChunk) % kChecksumChunk;
  return {start, std::min(tail, operation.extent.length - end) + end - start};
}

std::vector<Outgoing<WriteOperation>> select(std::span<WriteOperation> operations) {
  std::vector<Outgoing<WriteOperation>> selected;
  selected.reserve(operations.size());
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (operation.status.ok()) selected.push_back({&operation});
  }
  return selected;
}

std::vector<Outgoing<ReadOperation>> select(std::span<ReadOperation> operations) {
  std::vector<Outgoing<ReadOperation>> selected;
  selected.reserve(operations.size());
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (operation.status.ok() && operation.length > 0) selected.push_back({&operation});
  }
  return selected;
}

FrameSize size_of(const WriteOperation& operation) { return {1, operation.extent.length, operation.key.size()}; }
FrameSize size_of(const ReadOperation& operation) { return {1, covering_range(operation).length, 0}; }

}  // namespace moonpool::transfer
