// Which of a host's devices a user's "device_name" means. Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace moonpool::transfer::rdma {

// "mlx5_0, mlx5_1" in order, without spaces; empty for "" and "auto": all that are up. kInvalidParams for a duplicate or an empty name.
[[nodiscard]] Result<std::vector<std::string>> parse_device_names(std::string_view setting);

struct KnownDevice {
  std::string name;
  std::string state;  // of its port: "active", "down", or why it cannot be used
  bool up = false;
};
// Positions in `known`, in the order of `names`; without names, those that are up. kInvalidParams names those that exist;
// kNotSupported when there is none, or none is up.
[[nodiscard]] Result<std::vector<std::size_t>> choose_devices(const std::vector<std::string>& names, const std::vector<KnownDevice>& known);

}  // namespace moonpool::transfer::rdma
