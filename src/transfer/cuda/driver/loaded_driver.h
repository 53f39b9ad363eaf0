// The CUDA driver of this machine, libcuda.so.1, opened at run time.
#pragma once

#include <memory>

#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

// Whether somebody in this process has loaded libcuda.so.1 (a user of device memory has).
[[nodiscard]] bool driver_is_loaded();
// kNotSupported naming what is missing: the library, a function (a driver that is too old), a device, a permission.
[[nodiscard]] Result<std::unique_ptr<Driver>> open_driver();

}  // namespace moonpool::transfer::cuda
