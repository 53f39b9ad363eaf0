// Walking through scattered memory: a range of an extent is spread over the caller's pieces of any size, zero included.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/checksum.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

template <typename Bytes>
[[nodiscard]] std::uint64_t total_size(std::span<const Bytes> pieces) {
  std::uint64_t total = 0;
  for (const auto& piece : pieces) total += piece.size();
  return total;
}

// Cuts a list of pieces into consecutive runs. The pieces must outlive it; taking more than is left gives what is left.
template <typename Bytes>
class PieceCursor {
 public:
  explicit PieceCursor(std::span<const Bytes> pieces) : pieces_(pieces) {}

  // Calls use(Bytes) for the next `length` bytes, never with an empty piece.
  template <typename Use>
  void take(std::uint64_t length, const Use& use) {
    while (length > 0 && index_ < pieces_.size()) {
      const auto rest = pieces_[index_].subspan(used_);
      const auto part = rest.first(static_cast<std::size_t>(std::min<std::uint64_t>(length, rest.size())));
      if (!part.empty()) use(part);
      length -= part.size();
      used_ += part.size();
      if (used_ == pieces_[index_].size()) {
        ++index_;
        used_ = 0;
      }
    }
  }

 private:
  std::span<const Bytes> pieces_;
  std::size_t index_ = 0;
  std::size_t used_ = 0;
};

// What every transport refuses before it touches memory or network.
[[nodiscard]] inline Status check_extent(const ExtentRef& extent) {
  return extent.length == 0 ? Status(ErrorCode::kInvalidWrite, "an extent of 0 bytes cannot be written") : Status();
}

[[nodiscard]] inline Status check_operation(const WriteOperation& operation) {
  if (const auto total = total_size(operation.source); total != operation.extent.length) {
    return {ErrorCode::kInvalidParams,
            "the source has " + std::to_string(total) + " bytes, the extent " + std::to_string(operation.extent.length)};
  }
  if (!operation.checksums.empty() && operation.checksums.size() != chunks_of(operation.extent.length)) {
    return {ErrorCode::kInvalidParams, "the write brings " + std::to_string(operation.checksums.size()) + " checksums, the extent has " +
                                           std::to_string(chunks_of(operation.extent.length)) + " chunks"};
  }
  return check_extent(operation.extent);
}

[[nodiscard]] inline Status check_operation(const ReadOperation& operation) {
  if (operation.start > operation.extent.length || operation.length > operation.extent.length - operation.start) {
    return {ErrorCode::kInvalidRead, std::to_string(operation.length) + " bytes from " + std::to_string(operation.start) +
                                         " are not inside the extent of " + std::to_string(operation.extent.length) + " bytes"};
  }
  if (const auto total = total_size(operation.destination); total != operation.length) {
    return {ErrorCode::kInvalidParams,
            "the destination has " + std::to_string(total) + " bytes, the range " + std::to_string(operation.length)};
  }
  return {};
}

}  // namespace moonpool::transfer
