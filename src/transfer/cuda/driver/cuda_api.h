// The part of the CUDA driver API that Moonpool calls, declared by us so that no build needs CUDA's headers. Names of functions are those
// that libcuda.so.1 exports: with _v2 where the ABI has changed, and never with _ptsz, whose stream 0 is one of each thread and not the
// legacy default stream. Numbers and shapes: https://docs.nvidia.com/cuda/cuda-driver-api/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moonpool::transfer::cuda::api {

enum class Result : int {  // CUresult
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kStubLibrary = 34,
  kCallRequiresNewerDriver = 36,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kAlreadyMapped = 208,
  kNoBinaryForGpu = 209,
  kPeerAccessUnsupported = 217,
  kInvalidPtx = 218,
  kJitCompilerNotFound = 221,
  kUnsupportedPtxVersion = 222,
  kJitCompilationDisabled = 223,
  kOperatingSystem = 304,
  kInvalidHandle = 400,
  kNotReady = 600,
  kIllegalAddress = 700,
  kPeerAccessAlreadyEnabled = 704,
  kTooManyPeers = 711,
  kHostMemoryAlreadyRegistered = 712,
  kHostMemoryNotRegistered = 713,
  kNotPermitted = 800,
  kNotSupported = 801,
  kSystemNotReady = 802,
  kSystemDriverMismatch = 803,
  kCompatNotSupportedOnDevice = 804,
  kUnknown = 999,
};

using Device = int;                   // CUdevice
using DevicePointer = std::uint64_t;  // CUdeviceptr
struct ContextOpaque;
struct ModuleOpaque;
struct FunctionOpaque;
struct StreamOpaque;
struct EventOpaque;
using Context = ContextOpaque*;
using Module = ModuleOpaque*;
using Function = FunctionOpaque*;
using Stream = StreamOpaque*;  // null: the legacy default stream
using Event = EventOpaque*;
struct Uuid {
  char bytes[16];
};
struct IpcMemoryHandle {  // passed by value
  char reserved[64];
};

// CUdevice_attribute
inline constexpr int kMultiprocessorCount = 16;
inline constexpr int kComputeCapabilityMajor = 75;
inline constexpr int kComputeCapabilityMinor = 76;
inline constexpr int kRdmaWritesOrdering = 118;  // GPU_DIRECT_RDMA_WRITES_ORDERING
inline constexpr int kDmaBufSupported = 124;
inline constexpr int kRdmaWritesOrderedForOwner = 100;  // CUGPUDirectRDMAWritesOrdering, or more
// CUpointer_attribute
inline constexpr int kMemoryType = 2;  // unsigned int
inline constexpr int kDevicePointer = 3;
inline constexpr int kIsManaged = 8;  // a boolean
inline constexpr int kDeviceOrdinal = 9;
inline constexpr int kRangeStart = 11;
inline constexpr int kRangeSize = 12;
inline constexpr unsigned kMemoryTypeHost = 1;  // CUmemorytype
inline constexpr unsigned kMemoryTypeDevice = 2;
// Flags
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr int kMostUrgent = -1000;  // a stream's priority; the driver takes the nearest that the device has
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kHostPortable = 1;  // of cuMemHostAlloc and cuMemHostRegister
inline constexpr unsigned kHostDeviceMap = 2;
inline constexpr unsigned kIpcLazyEnablePeerAccess = 1;
inline constexpr int kDmaBufHandle = 1;        // CUmemRangeHandleType
inline constexpr int kCaptureModeRelaxed = 2;  // CUstreamCaptureMode

// The functions of one opened library, by their exported names in load_functions() (loaded_driver.cpp). The last may be null: drivers
// before CUDA 11.7 have no dma-buf.
struct Functions {
  Result (*init)(unsigned flags) = nullptr;
  Result (*get_error_name)(Result error, const char** name) = nullptr;
  Result (*get_error_string)(Result error, const char** text) = nullptr;
  Result (*device_get_count)(int* count) = nullptr;
  Result (*device_get)(Device* device, int ordinal) = nullptr;
  Result (*device_get_name)(char* name, int room, Device device) = nullptr;
  Result (*device_get_attribute)(int* value, int attribute, Device device) = nullptr;
  Result (*device_get_pci_bus_id)(char* id, int room, Device device) = nullptr;
  Result (*device_get_uuid)(Uuid* uuid, Device device) = nullptr;
  Result (*primary_context_retain)(Context* context, Device device) = nullptr;
  Result (*primary_context_release)(Device device) = nullptr;
  Result (*primary_context_get_state)(Device device, unsigned* flags, int* active) = nullptr;
  Result (*context_push_current)(Context context) = nullptr;
  Result (*context_pop_current)(Context* context) = nullptr;
  Result (*context_enable_peer_access)(Context peer, unsigned flags) = nullptr;
  Result (*device_can_access_peer)(int* can, Device device, Device peer) = nullptr;
  Result (*thread_exchange_stream_capture_mode)(int* mode) = nullptr;
  Result (*pointer_get_attributes)(unsigned count, int* attributes, void** data, DevicePointer pointer) = nullptr;
  Result (*stream_create)(Stream* stream, unsigned flags, int priority) = nullptr;
  Result (*stream_destroy)(Stream stream) = nullptr;
  Result (*stream_wait_event)(Stream stream, Event event, unsigned flags) = nullptr;
  Result (*event_create)(Event* event, unsigned flags) = nullptr;
  Result (*event_destroy)(Event event) = nullptr;
  Result (*event_record)(Event event, Stream stream) = nullptr;
  Result (*event_query)(Event event) = nullptr;
  Result (*memory_allocate)(DevicePointer* address, std::size_t size) = nullptr;
  Result (*memory_free)(DevicePointer address) = nullptr;
  Result (*host_allocate)(void** memory, std::size_t size, unsigned flags) = nullptr;
  Result (*host_free)(void* memory) = nullptr;
  Result (*host_register)(void* memory, std::size_t size, unsigned flags) = nullptr;
  Result (*host_unregister)(void* memory) = nullptr;
  Result (*copy_async)(DevicePointer to, DevicePointer from, std::size_t size, Stream stream) = nullptr;
  Result (*module_load_data)(Module* module, const void* image) = nullptr;
  Result (*module_unload)(Module module) = nullptr;
  Result (*module_get_function)(Function* function, Module module, const char* name) = nullptr;
  Result (*launch_kernel)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters, void** extra) = nullptr;
  Result (*ipc_get_handle)(IpcMemoryHandle* handle, DevicePointer base) = nullptr;
  Result (*ipc_open_handle)(DevicePointer* address, IpcMemoryHandle handle, unsigned flags) = nullptr;
  Result (*ipc_close_handle)(DevicePointer address) = nullptr;
  Result (*get_handle_for_address_range)(void* handle, DevicePointer address, std::size_t size, int type,
                                         unsigned long long flags) = nullptr;
};

}  // namespace moonpool::transfer::cuda::api
