// What the kernel tells of an RDMA device under /sys/class/infiniband, and where a process finds such devices at all.
//
// Only for people and for choosing by locality: everything may be empty. Threads: any.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace moonpool::transfer::rdma {

struct DeviceFacts {
  std::string driver;       // "mlx5_core"
  std::string pci_address;  // "0000:3b:00.0"
  std::int32_t numa_node = -1;
  std::string interface;  // the network interface that belongs to it
  std::string rate;       // of the port: "100 Gb/sec (4X EDR)"
};
// `guid` in host order: an iWARP device that has no interface of its own is found by it, because it is made of the MAC address.
[[nodiscard]] DeviceFacts device_facts(const std::string& device, std::uint32_t port, std::uint64_t guid, bool iwarp,
                                       const std::string& root = "/sys");

// The EUI-64 that is made of a MAC address ("02:11:22:33:44:55"); 0 when that is none.
[[nodiscard]] std::uint64_t eui64_of_mac(const std::string& mac);

// One line: why libibverbs sees no device, and what to do.
[[nodiscard]] std::string why_no_devices(const std::string& sys = "/sys", const std::string& dev = "/dev");

}  // namespace moonpool::transfer::rdma
