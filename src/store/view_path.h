// Looks at objects where they lie: one GetReplicas, one pin per owner that shares memory with this process (or is this process), verified
// once, without a copy.
//
// Whatever cannot be viewed (another host's, gone meanwhile, a copy that failed) is read into fresh memory by GetPath, with all its
// patience. So are batches so small that a copy costs less than the exchange and the bookkeeping of a pin (kWorthAPin): they are read
// straight from where the look-up found them. Threads: any; the caller's own.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "store/client.h"
#include "store/get_path.h"
#include "transfer/transport.h"

namespace moonpool::store {

class ViewPath {
 public:
  // Bytes of one owner's objects in a batch. A pin costs an exchange of some 20 us, in which 256 KiB are copied.
  static constexpr std::uint64_t kWorthAPin = std::uint64_t{256} * 1024;

  // All outlive it.
  ViewPath(NodeId self, const GetPath& gets, transfer::Transport& paths) : self_(self), gets_(gets), paths_(paths) {}

  [[nodiscard]] std::vector<Result<View>> view(std::span<const std::string_view> keys, Deadline deadline) const;

 private:
  class Call;

  const NodeId self_;
  const GetPath& gets_;
  transfer::Transport& paths_;
};

}  // namespace moonpool::store
