// Device memory straight into and out of extents that lie in memory of this process (device_paths.h): one launch for all that the path has
// opened at a time.
//
// Both return the operations that have to be staged, without an outcome: their peer has no memory in common with this process, its segment
// is not pinned (yet; it is wanted from now on), or the copier cannot. The others have theirs. Every operation lies on one device and has
// been checked. Threads: the caller's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/cuda/paths/device_operations.h"

namespace moonpool::transfer::cuda {

[[nodiscard]] std::vector<DeviceOperation> write_in_place(const DeviceWay& way, std::span<WriteOperation> operations,
                                                          std::span<const DeviceOperation> chosen);
// Whole extents alone. `verify` off: they are not compared with their checksums.
[[nodiscard]] std::vector<DeviceOperation> read_in_place(const DeviceWay& way, std::span<ReadOperation> operations,
                                                         std::span<const DeviceOperation> chosen, bool verify);

}  // namespace moonpool::transfer::cuda
