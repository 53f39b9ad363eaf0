// Device memory to and from peers without common memory, by way of a ring (device_paths.h): pinned memory of the host, or, for peers that
// NICs reach, memory of the device that the NICs reach as well (GPUDirect RDMA, nic_rings.h).
//
// The operations are cut into windows of kWindowsOfRing-th of the ring, whole operations each; a larger one is a window by itself.
// Writes: while a window is on the wire the next one is copied from the device. Reads: while a window is on the wire the one before it is
// copied to the device. A caller waits for memory only while it holds none, so callers cannot lock each other out; where the ring is busy
// windows go one after the other. Host pieces of an operation stay where they are: the path below gets them beside the staged ones.
//
// By NIC the checksums are the device's: given to the path with a write, compared here after a read. What cannot be had so (the path broke,
// the extent may be another object's by now) is what these functions return, and goes by pinned memory.
//
// Operations have been checked; each gets its own status, but for an error of the device, which all of its window get.
// Threads: the caller's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/cuda/paths/device_operations.h"
#include "transfer/cuda/staging.h"

namespace moonpool::transfer::cuda {

inline constexpr std::uint64_t kWindowsOfRing = 4;

void write_staged(const DeviceWay& way, std::span<WriteOperation> operations, std::span<const DeviceOperation> chosen);
void read_staged(const DeviceWay& way, std::span<ReadOperation> operations, std::span<const DeviceOperation> chosen);

// All of the ring's device, of whole extents that are no larger than it, and that the device hashes to their last byte. The rest is what
// has no outcome yet.
[[nodiscard]] std::vector<DeviceOperation> write_by_nic(const DeviceWay& way, Staging& ring, std::span<WriteOperation> operations,
                                                        std::span<const DeviceOperation> chosen);
[[nodiscard]] std::vector<DeviceOperation> read_by_nic(const DeviceWay& way, Staging& ring, std::span<ReadOperation> operations,
                                                       std::span<const DeviceOperation> chosen);

}  // namespace moonpool::transfer::cuda
