// What the paths of common memory share when a caller fills extents where they lie (Transport::write_in_place).
//
// Threads: the caller's.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "transfer/checksum.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

// Two extents of one batch must not overlap when both are written at once: the later one is refused and leaves the batch, which is ordered
// by segment and offset afterwards. An Item has its `operation`.
template <typename Item>
void refuse_overlaps(std::vector<Item>& batch) {
  std::ranges::stable_sort(batch, {}, [](const Item& item) {
    const ExtentRef& extent = item.operation->extent;
    return std::pair(extent.incarnation, extent.offset);
  });
  const ExtentRef* last = nullptr;
  std::erase_if(batch, [&](const Item& item) {
    const ExtentRef& extent = item.operation->extent;
    if (last != nullptr && last->incarnation == extent.incarnation && extent.offset - last->offset < last->length) {
      item.operation->status =
          Status(ErrorCode::kInvalidWrite, "the extent at offset " + std::to_string(extent.offset) + " overlaps another one of its batch");
      return true;
    }
    last = &extent;
    return false;
  });
}

// Ok when the caller has filled it and said what with; otherwise the write is given up with this.
[[nodiscard]] inline Status check_filled(const OpenExtent& extent) {
  if (!extent.status.ok()) return extent.status;
  if (extent.checksums.size() == chunks_of(extent.memory.size())) return {};
  return {ErrorCode::kInvalidWrite, std::to_string(extent.checksums.size()) + " checksums came with an extent of " +
                                        std::to_string(chunks_of(extent.memory.size())) + " chunks"};
}

}  // namespace moonpool::transfer
