// What `moonpool doctor` thinks of the host's RDMA ports and GPUs. Pure functions over facts.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cli/doctor/finding.h"
#include "cli/doctor/rdma_devices.h"

namespace moonpool::cli::doctor {

// What the configuration asks for.
struct RdmaWish {
  bool wanted = false;               // "protocol": "rdma"
  std::vector<std::string> devices;  // "device_name"; empty: all that are up
};

// A finding per port that is, or would be, used; one per named device that does not exist. With `wanted`, what keeps a named device from
// working is an error; without, everything is at most a warning.
[[nodiscard]] Findings check_rdma_ports(std::span<const RdmaPort> ports, std::span<const PciDevice> pci, const RdmaWish& wish);
// Where the GPUs are, and whether a used NIC is near each of them.
[[nodiscard]] Findings check_gpus(std::span<const PciDevice> pci, std::span<const RdmaPort> ports);

}  // namespace moonpool::cli::doctor
