// The RDMA ports and other PCI devices of a host, as sysfs describes them: facts, without an opinion (rdma_checks.h has those).
//
// Needs no library, no device file and no rights, so it tells something also where libibverbs is missing. Threads: any; pure but for files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/doctor/host_files.h"

namespace moonpool::cli::doctor {

struct PortGid {
  std::uint32_t index = 0;
  std::string value;      // "::ffff:10.0.0.1", "fe80::..."
  std::string kind;       // "RoCE v2", "IB/RoCE v1", as the kernel names it; empty when it does not say
  std::string interface;  // "eth0"; empty when it does not say
  bool ipv4 = false;      // it stands for an IPv4 address
  bool link_local = false;
  [[nodiscard]] bool roce_v2() const { return kind == "RoCE v2"; }
};

struct RdmaPort {
  std::string device;  // "mlx5_0"
  std::uint32_t port = 1;
  bool active = false;
  std::string state;       // "ACTIVE", "DOWN"
  std::string physical;    // "LinkUp", "Disabled", "Polling"
  std::string rate;        // "100 Gb/sec (4X EDR)"
  std::string link_layer;  // "Ethernet", "InfiniBand"
  bool iwarp = false;
  std::string driver;  // "mlx5_core"; for virtual devices the interface's kind is not told
  std::string pci_address;
  std::int32_t numa_node = -1;
  std::string interface;
  std::optional<std::int64_t> interface_mtu;
  std::vector<PortGid> gids;
  std::string device_file;  // "/dev/infiniband/uverbs0"; empty when ib_uverbs does not know it
  bool usable = false;      // this process may open that
  [[nodiscard]] bool ethernet() const { return link_layer == "Ethernet"; }
  [[nodiscard]] std::string name() const { return device + " port " + std::to_string(port); }
};

// Ordered by device name and port.
[[nodiscard]] std::vector<RdmaPort> read_rdma_ports(const HostFiles& host);

// The largest payload of a RoCE packet on an interface with this MTU: 256 to 4096 bytes; 0 when not even 256 fit.
[[nodiscard]] std::uint32_t roce_mtu(std::int64_t interface_mtu);

struct PciDevice {
  std::string address;  // "0000:3b:00.0"
  std::uint32_t pci_class = 0;
  std::uint32_t vendor = 0;
  std::uint32_t device = 0;
  std::int32_t numa_node = -1;
  std::string driver;
  [[nodiscard]] bool display() const { return pci_class >> 16 == 0x03; }
  [[nodiscard]] bool network() const { return pci_class >> 16 == 0x02; }
};

[[nodiscard]] std::vector<PciDevice> read_pci_devices(const HostFiles& host);

}  // namespace moonpool::cli::doctor
