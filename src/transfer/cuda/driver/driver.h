// What Moonpool asks of CUDA: the driver API (https://docs.nvidia.com/cuda/cuda-driver-api/) as a thin interface, with the device named in
// every call.
//
// Two implementations: loaded_driver.h calls libcuda.so.1, opened at run time; fake_driver.h is host memory with streams of its own, so
// that everything above is tested where there is no GPU. driver_test.cpp says what both have to do.
//
// The primary context of a device (the one that PyTorch and vLLM use) is retained at its first use and current for the length of each call
// alone; the caller's own current context is as it was afterwards. Device numbers are those of the process, so CUDA_VISIBLE_DEVICES holds.
// Addresses are unified ones (UVA). Handles belong to who made them. Nothing here waits for a whole device. Threads: any.
// Errors: kInternal naming the CUDA call, its error's name and text, and the device; kNotSupported where the device cannot;
// kNoAvailableHandle for CUDA_ERROR_OUT_OF_MEMORY.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "net/unique_fd.h"
#include "transfer/cuda/kernels/piece_kernels.h"

namespace moonpool::transfer::cuda {

// A CUstream or CUevent. 0 as a stream is the legacy default stream, which PyTorch uses unless told otherwise.
enum class Stream : std::uintptr_t { kLegacyDefault = 0 };
enum class Event : std::uintptr_t {};
// A CUipcMemHandle: names an allocation to other processes of the host.
using IpcHandle = std::array<std::byte, 64>;

struct DeviceFacts {
  std::string name;        // "NVIDIA H100 80GB HBM3"
  std::string pci_bus_id;  // "0000:1b:00.0"
  std::string uuid;        // 16 bytes, the same in every process of the host
  int multiprocessors = 0;
  int compute_major = 0, compute_minor = 0;
  std::string no_dma_buf{};  // why NICs cannot reach its memory, for people; empty: export_dma_buf() may work
};

// An allocation in device memory.
struct DeviceMemory {
  int device = 0;
  std::uint64_t base = 0;  // of the whole allocation
  std::uint64_t size = 0;
};

// Blocks and threads of a launch.
struct LaunchShape {
  std::uint32_t blocks = 1;
  std::uint32_t threads = 1;
};

class Driver {
 public:
  virtual ~Driver() = default;

  [[nodiscard]] virtual int device_count() const = 0;
  [[nodiscard]] virtual Result<DeviceFacts> facts(int device) = 0;
  // Nullopt: host memory, pinned or managed memory included, or an address that CUDA does not know. About 0.2 us.
  [[nodiscard]] virtual std::optional<DeviceMemory> locate(std::uint64_t address) const = 0;

  // Streams are non-blocking: they have no order with the legacy default stream but by events.
  [[nodiscard]] virtual Result<Stream> create_stream(int device) = 0;
  virtual void destroy_stream(int device, Stream stream) = 0;
  // Events carry no times.
  [[nodiscard]] virtual Result<Event> create_event(int device) = 0;
  virtual void destroy_event(int device, Event event) = 0;
  [[nodiscard]] virtual Status record(int device, Event event, Stream stream) = 0;
  // Later work of `stream` waits for the event, also one of another device's stream.
  [[nodiscard]] virtual Status wait(int device, Stream stream, Event event) = 0;
  // Whether all before the event's last record() has ended. An error of that work (a bad address) comes out here.
  [[nodiscard]] virtual Result<bool> done(int device, Event event) = 0;

  [[nodiscard]] virtual Result<std::uint64_t> allocate(int device, std::uint64_t size) = 0;
  virtual void free(int device, std::uint64_t address) = 0;
  // Pinned host memory, which all devices reach at the same address.
  [[nodiscard]] virtual Result<std::span<std::byte>> allocate_host(std::uint64_t size) = 0;
  virtual void free_host(std::span<std::byte> memory) = 0;
  // Pins memory of this process for all devices. It may be shared memory of other processes. Errors: kNoAvailableHandle when a limit
  // (memlock, the driver's) refuses it; kSegmentAlreadyExists when some of it is pinned already.
  [[nodiscard]] virtual Status register_host(std::span<std::byte> memory) = 0;
  // Must not be called while a device uses it. Quiet when it is not registered.
  virtual void unregister_host(std::span<std::byte> memory) = 0;
  // Where `device` sees an address of pinned memory.
  [[nodiscard]] virtual Result<std::uint64_t> device_address(int device, const std::byte* pinned) = 0;

  // Between any two memories; memory that is not pinned makes it slow and synchronous.
  [[nodiscard]] virtual Status copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size, Stream stream) = 0;
  // kNotSupported with the reason when this build has no kernels (no nvcc) or none that the device can run.
  [[nodiscard]] virtual Status launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments,
                                      Stream stream) = 0;

  [[nodiscard]] virtual Result<IpcHandle> export_ipc(int device, std::uint64_t base) = 0;
  // Maps another process's allocation. Once per handle and process; close_ipc() unmaps it.
  [[nodiscard]] virtual Result<std::uint64_t> open_ipc(int device, const IpcHandle& handle) = 0;
  virtual void close_ipc(int device, std::uint64_t address) = 0;
  // Kernels and copies of `device` may reach memory of `peer` afterwards. Once more is no mistake. kNotSupported when they cannot.
  [[nodiscard]] virtual Status enable_peer_access(int device, int peer) = 0;
  // A file for ibv_reg_dmabuf_mr, whose buffer begins at the file's position (0 but for the fake's). `address` and `size` are multiples of
  // the host's page size, and lie in one allocation but for its last page.
  [[nodiscard]] virtual Result<net::UniqueFd> export_dma_buf(int device, std::uint64_t address, std::uint64_t size) = 0;
};

}  // namespace moonpool::transfer::cuda
