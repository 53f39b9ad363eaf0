#include "transfer/cuda/driver/driver_library.h"

#include <dlfcn.h>
#include <spdlog/fmt/fmt.h>

namespace moonpool::transfer::cuda {

Result<api::Functions> load_functions(const char* file) {
  void* const library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {  // dlerror() would tell more, but is not for several threads; `ldd` tells it too
    return Status(ErrorCode::kNotSupported,
                  fmt::format("{} is not on this host: it comes with NVIDIA's driver; a container gets it when it is started with GPUs "
                              "(docker run --gpus all)",
                              file));
  }
  const char* missing = nullptr;
  const auto find = [library, &missing](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr && missing == nullptr) missing = name;
  };
  api::Functions functions;
  find(functions.init, "cuInit");
  find(functions.get_error_name, "cuGetErrorName");
  find(functions.get_error_string, "cuGetErrorString");
  find(functions.device_get_count, "cuDeviceGetCount");
  find(functions.device_get, "cuDeviceGet");
  find(functions.device_get_name, "cuDeviceGetName");
  find(functions.device_get_attribute, "cuDeviceGetAttribute");
  find(functions.device_get_pci_bus_id, "cuDeviceGetPCIBusId");
  find(functions.device_get_uuid, "cuDeviceGetUuid_v2");
  find(functions.primary_context_retain, "cuDevicePrimaryCtxRetain");
  find(functions.primary_context_release, "cuDevicePrimaryCtxRelease_v2");
  find(functions.primary_context_get_state, "cuDevicePrimaryCtxGetState");
  find(functions.context_push_current, "cuCtxPushCurrent_v2");
  find(functions.context_pop_current, "cuCtxPopCurrent_v2");
  find(functions.context_enable_peer_access, "cuCtxEnablePeerAccess");
  find(functions.device_can_access_peer, "cuDeviceCanAccessPeer");
  find(functions.thread_exchange_stream_capture_mode, "cuThreadExchangeStreamCaptureMode");
  find(functions.pointer_get_attributes, "cuPointerGetAttributes");
  find(functions.stream_create, "cuStreamCreateWithPriority");
  find(functions.stream_destroy, "cuStreamDestroy_v2");
  find(functions.stream_wait_event, "cuStreamWaitEvent");
  find(functions.event_create, "cuEventCreate");
  find(functions.event_destroy, "cuEventDestroy_v2");
  find(functions.event_record, "cuEventRecord");
  find(functions.event_query, "cuEventQuery");
  find(functions.memory_allocate, "cuMemAlloc_v2");
  find(functions.memory_free, "cuMemFree_v2");
  find(functions.host_allocate, "cuMemHostAlloc");
  find(functions.host_free, "cuMemFreeHost");
  find(functions.host_register, "cuMemHostRegister_v2");
  find(functions.host_unregister, "cuMemHostUnregister");
  find(functions.copy_async, "cuMemcpyAsync");
  find(functions.module_load_data, "cuModuleLoadData");
  find(functions.module_unload, "cuModuleUnload");
  find(functions.module_get_function, "cuModuleGetFunction");
  find(functions.launch_kernel, "cuLaunchKernel");
  find(functions.ipc_get_handle, "cuIpcGetMemHandle");
  find(functions.ipc_open_handle, "cuIpcOpenMemHandle_v2");
  find(functions.ipc_close_handle, "cuIpcCloseMemHandle");
  if (missing != nullptr) {
    return Status(ErrorCode::kNotSupported,
                  fmt::format("{} on this host is too old, it has no {}: a driver for CUDA 11.4 or newer is needed (R470)", file, missing));
  }
  find(functions.get_handle_for_address_range, "cuMemGetHandleForAddressRange");
  return functions;
}

}  // namespace moonpool::transfer::cuda
