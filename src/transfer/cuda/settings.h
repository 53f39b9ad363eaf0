// How device memory is moved. Environment variables, read once when the runtime starts; bad ones are said in the log and the default is
// taken.
#pragma once

#include <cstdint>

namespace moonpool::transfer::cuda {

struct Settings {
  // MOONPOOL_CUDA_SMS: multiprocessors that a launch may take; launches of one direction that overlap share them (copier.h).
  std::uint32_t multiprocessors = 16;
  // MOONPOOL_CUDA_STAGING: bytes of pinned memory per process for peers that are not reached by shared memory ("64MB").
  std::uint64_t staging_bytes = std::uint64_t{64} << 20;
  // MOONPOOL_CUDA_DEVICE_STAGING: bytes of memory of each device through which large copies go to and from the host ("256MB"); 0: none, the
  // kernels reach the host's memory themselves.
  std::uint64_t device_staging_bytes = std::uint64_t{256} << 20;
  // MOONPOOL_CUDA_GPUDIRECT: bytes of memory of each device by which NICs take and bring its data ("64MB"); 0: no GPUDirect RDMA, device
  // data goes to and from NICs by way of pinned host memory.
  std::uint64_t nic_ring_bytes = std::uint64_t{64} << 20;
  // MOONPOOL_CUDA_CHECKSUMS=0: device data goes in place without checksums of its own; the host computes them where the path needs them.
  bool checksums = true;
  // MOONPOOL_CUDA_DEFAULT_STREAM=0: work is not ordered after the legacy default stream; for engines that synchronise themselves.
  bool after_default_stream = true;

  std::uint64_t least_staged = std::uint64_t{4} << 20;  // bytes of a launch from which on it is staged; no variable, for tests

  [[nodiscard]] static Settings from_environment();
};

}  // namespace moonpool::transfer::cuda
