// What RDMA hardware this host shows to this process, used or not: for `moonpool doctor` and for error messages.
//
// Opens each device for a moment; registers nothing. Threads: any.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer::rdma {

struct ListedDevice {
  NicInfo info;          // as much of it as could be read; the name always
  std::string firmware;  // the driver's own words; may be empty
  std::string state;     // of the port: "active", "down", "init", "armed", "defer"; "unknown" when it could not be asked
  std::string rate;      // "100 Gb/sec (4X EDR)"; empty when the driver does not say
  bool usable = false;   // Devices::open() would take it for these options
  std::string reason;    // why not, and what to do about it; empty when usable
};

// By name. kNotSupported when libibverbs is missing or cannot be used (one line with the remedy); empty when it sees no device:
// no_devices_text() says what to look at then.
[[nodiscard]] Result<std::vector<ListedDevice>> list_devices(const Options& options);

// One line: why this process sees no device (no hardware or driver, no uverbs module, /dev/infiniband not in the container) and the remedy.
[[nodiscard]] std::string no_devices_text();

}  // namespace moonpool::transfer::rdma
