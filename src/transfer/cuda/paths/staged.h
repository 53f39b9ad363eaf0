// Device memory to and from peers without common memory, by way of pinned memory (device_paths.h).
//
// The operations are cut into windows of kWindowsOfRing-th of the staging ring, whole operations each; a larger one is a window by itself.
// Writes: while a window is on the wire the next one is copied from the device. Reads: while a window is on the wire the one before it is
// copied to the device. A caller waits for memory only while it holds none, so callers cannot lock each other out; where the ring is busy
// windows go one after the other. Host pieces of an operation stay where they are: the path below gets them beside the staged ones.
//
// Operations have been checked; each gets its own status, but for an error of the device, which all of its window get.
// Threads: the caller's.
#pragma once

#include <cstdint>
#include <span>

#include "transfer/cuda/paths/device_operations.h"

namespace moonpool::transfer::cuda {

inline constexpr std::uint64_t kWindowsOfRing = 4;

void write_staged(const DeviceWay& way, std::span<WriteOperation> operations, std::span<const DeviceOperation> chosen);
void read_staged(const DeviceWay& way, std::span<ReadOperation> operations, std::span<const DeviceOperation> chosen);

}  // namespace moonpool::transfer::cuda
