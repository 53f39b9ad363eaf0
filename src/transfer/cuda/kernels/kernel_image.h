// The compiled kernels, as this build carries them: a fatbin with machine code for several generations of GPUs and PTX for later ones, for
// cuModuleLoadData. Its functions: moonpool_gather, moonpool_scatter, moonpool_gather_hash, moonpool_scatter_hash (piece_kernels.h).
#pragma once

#include <cstddef>
#include <span>

namespace moonpool::transfer::cuda {

// Empty in a build without nvcc. Aligned to 16 bytes, there as long as the process.
[[nodiscard]] std::span<const std::byte> kernel_image();

}  // namespace moonpool::transfer::cuda
