// Opening a CUDA driver library by its file name: libcuda.so.1 for loaded_driver.h, others for tests. Threads: any.
#pragma once

#include <memory>
#include <span>

#include "transfer/cuda/driver/cuda_api.h"
#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

// The functions of the library, which stays loaded for ever. kNotSupported with the first one that is missing.
[[nodiscard]] Result<api::Functions> load_functions(const char* file);
// A driver over them, after cuInit. `image` is what kernel_image() gives, and outlives the driver.
[[nodiscard]] Result<std::unique_ptr<Driver>> start_driver(const api::Functions& functions, std::span<const std::byte> image);

}  // namespace moonpool::transfer::cuda
