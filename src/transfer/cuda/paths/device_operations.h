// Which operations of a batch have pieces in device memory, and their pieces as the copier wants them.
//
// Threads: the caller's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/runtime.h"
#include "transfer/of_the_path.h"
#include "transfer/registered_memory.h"
#include "transfer/transport.h"

namespace moonpool::transfer::cuda {

// Where memory is, besides the numbers of devices.
inline constexpr int kHostMemory = -1;
inline constexpr int kSeveralMemories = -2;  // several devices', or a device's and the host's

struct DeviceOperation {
  std::size_t index = 0;  // in its batch
  int device = 0;         // or kSeveralMemories
};

// What the ways to a peer, in place and staged, have in common.
struct DeviceWay {
  Runtime& runtime;
  Transport& paths;
  const Peer& peer;
  Deadline deadline;
  std::atomic<std::uint64_t>& bytes;  // counts what went this way
};

[[nodiscard]] inline std::span<const ConstBytes> pieces_of(const WriteOperation& operation) { return operation.source; }
[[nodiscard]] inline std::span<const MutableBytes> pieces_of(const ReadOperation& operation) { return operation.destination; }

// Empty pieces are nowhere; an operation of nothing else is the host's.
template <typename Bytes>
[[nodiscard]] int memory_of(Runtime::LookUp& look_up, std::span<const Bytes> pieces) {
  look_up.begin_row();
  bool first = true;
  int memory = kHostMemory;
  for (const auto& piece : pieces) {
    if (piece.empty()) continue;
    const int found = look_up.device_of(piece.data()).value_or(kHostMemory);
    if (!first && found != memory) return kSeveralMemories;
    memory = found;
    first = false;
  }
  return memory;
}

// Appends the pieces that are not empty.
template <typename Bytes>
void add_ranges(std::span<const Bytes> pieces, std::vector<AddressRange>& ranges) {
  for (const auto& piece : pieces) {
    if (!piece.empty()) ranges.push_back({reinterpret_cast<std::uint64_t>(piece.data()), piece.size()});
  }
}

[[nodiscard]] inline Status prefixed(std::string_view what, const Status& status) {
  return status.ok() ? Status() : Status(status.code(), std::string(what) + ": " + status.message());
}

}  // namespace moonpool::transfer::cuda
