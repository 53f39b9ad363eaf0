#include "transfer/cuda/driver/loaded_driver.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "transfer/cuda/driver/driver_errors.h"
#include "transfer/cuda/driver/driver_library.h"
#include "transfer/cuda/kernels/kernel_image.h"

namespace moonpool::transfer::cuda {
namespace {

constexpr const char* kNoDmaBufCall = "this CUDA driver has no cuMemGetHandleForAddressRange: dma-buf takes CUDA 11.7 or newer (R515)";

constexpr const char* kFile = "libcuda.so.1";
constexpr std::array<const char*, kKernels> kKernelNames{"moonpool_gather", "moonpool_scatter", "moonpool_gather_hash",
                                                         "moonpool_scatter_hash"};
template <typename T>
using Outcome = moonpool::Result<T>;

api::Stream handle_of(Stream stream) { return reinterpret_cast<api::Stream>(static_cast<std::uintptr_t>(stream)); }
api::Event handle_of(Event event) { return reinterpret_cast<api::Event>(static_cast<std::uintptr_t>(event)); }
std::uint64_t number_of(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

// Calls, and what is said of those that fail.
class Calls {
 public:
  explicit Calls(const api::Functions& functions) : functions_(functions) {}
  [[nodiscard]] const api::Functions* operator->() const { return &functions_; }

  [[nodiscard]] Status check(std::string_view call, api::Result result, int device, std::string_view remedy = {}) const {
    if (result == api::Result::kSuccess) return {};
    const char* name = nullptr;
    const char* text = nullptr;
    if (functions_.get_error_name(result, &name) != api::Result::kSuccess) name = nullptr;
    if (functions_.get_error_string(result, &text) != api::Result::kSuccess) text = nullptr;
    return call_failed(call, result, name, text, device, remedy);
  }
  // For calls without an answer: errors of earlier work come out of any call, and when a process ends CUDA may have ended before.
  void report(std::string_view call, api::Result result, int device) const {
    if (result == api::Result::kSuccess || result == api::Result::kDeinitialized) return;
    log::warning("{}", check(call, result, device).message());
  }

 private:
  const api::Functions functions_;
};

// One device's primary context, and the kernels loaded into it.
class DeviceState {
 public:
  DeviceState(const Calls& calls, int number, api::Device handle) : calls_(calls), number_(number), handle_(handle) {}
  DeviceState(const DeviceState&) = delete;
  DeviceState& operator=(const DeviceState&) = delete;
  ~DeviceState();

  [[nodiscard]] api::Device handle() const { return handle_; }
  [[nodiscard]] Outcome<api::Context> context();
  [[nodiscard]] bool is_retained() const { return context_.load(std::memory_order_acquire) != nullptr; }
  // Somebody in this process uses the device.
  [[nodiscard]] bool is_active() const;
  // With the context current. Loads all kernels at the first time; that the device cannot run them is final.
  [[nodiscard]] Outcome<api::Function> kernel(Kernel kernel, std::span<const std::byte> image);

 private:
  [[nodiscard]] Status load(std::span<const std::byte> image);  // with mutex_

  const Calls& calls_;
  const int number_;
  const api::Device handle_;
  std::mutex mutex_;  // guards the rest; context_ is read without
  std::atomic<api::Context> context_{nullptr};
  std::atomic<bool> kernels_settled_{false};  // what follows does not change afterwards
  Status kernels_status_;
  api::Module module_ = nullptr;
  std::array<api::Function, kKernels> kernels_{};
};

// The context of a device, current for this object's life. Capture of graphs by other threads (vLLM captures its decode steps) is left in
// peace: in the default mode, a call such as cuMemAlloc on any thread would end it.
class Current {
 public:
  Current(const Calls& calls, DeviceState& device, int number) : calls_(calls) {
    auto context = device.context();
    if (!context.ok()) {
      status_ = context.status();
      return;
    }
    status_ = calls_.check("cuCtxPushCurrent", calls_->context_push_current(*context), number);
    if (status_.ok()) exchange_mode();
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    if (!status_.ok()) return;
    exchange_mode();
    api::Context popped = nullptr;
    (void)calls_->context_pop_current(&popped);
  }
  [[nodiscard]] const Status& status() const { return status_; }

 private:
  void exchange_mode() { (void)calls_->thread_exchange_stream_capture_mode(&mode_); }
  const Calls& calls_;
  int mode_ = api::kCaptureModeRelaxed;
  Status status_;
};

DeviceState::~DeviceState() {
  const api::Context context = context_.load();
  if (context == nullptr) return;
  if (module_ != nullptr && calls_->context_push_current(context) == api::Result::kSuccess) {
    calls_.report("cuModuleUnload", calls_->module_unload(module_), number_);
    api::Context popped = nullptr;
    (void)calls_->context_pop_current(&popped);
  }
  calls_.report("cuDevicePrimaryCtxRelease", calls_->primary_context_release(handle_), number_);
}

Outcome<api::Context> DeviceState::context() {
  if (const api::Context context = context_.load(std::memory_order_acquire)) return context;
  const std::lock_guard lock(mutex_);
  api::Context context = context_.load();
  if (context != nullptr) return context;
  const auto result = calls_->primary_context_retain(&context, handle_);
  MOONPOOL_RETURN_IF_ERROR(calls_.check("cuDevicePrimaryCtxRetain", result, number_,
                                        result == api::Result::kOutOfMemory ? "a context needs some 500 MB of the device's memory" : ""));
  context_.store(context, std::memory_order_release);
  return context;
}

bool DeviceState::is_active() const {
  unsigned flags = 0;
  int active = 0;
  return calls_->primary_context_get_state(handle_, &flags, &active) == api::Result::kSuccess && active != 0;
}

Outcome<api::Function> DeviceState::kernel(Kernel kernel, std::span<const std::byte> image) {
  if (!kernels_settled_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    if (!kernels_settled_.load()) {
      Status status = load(image);
      // Memory may be free the next time; a device that the kernels are not for stays one.
      if (!status.ok() && status.code() != ErrorCode::kNotSupported) return status;
      kernels_status_ = std::move(status);
      kernels_settled_.store(true, std::memory_order_release);
    }
  }
  if (!kernels_status_.ok()) return kernels_status_;
  return kernels_[static_cast<std::size_t>(kernel)];
}

Status DeviceState::load(std::span<const std::byte> image) {
  if (module_ == nullptr) {
    api::Module module = nullptr;
    const auto result = calls_->module_load_data(&module, image.data());
    const bool not_for_it = code_of(result) == ErrorCode::kNotSupported;
    MOONPOOL_RETURN_IF_ERROR(
        calls_.check("cuModuleLoadData", result, number_,
                     not_for_it ? "the kernels of this build of Moonpool are for compute capability 8.0 and newer" : ""));
    module_ = module;
  }
  for (std::size_t at = 0; at < kKernelNames.size(); ++at) {
    const auto result = calls_->module_get_function(&kernels_[at], module_, kKernelNames[at]);
    MOONPOOL_RETURN_IF_ERROR(calls_.check("cuModuleGetFunction", result, number_, kKernelNames[at]));
  }
  return {};
}

class LoadedDriver final : public Driver {
 public:
  LoadedDriver(const api::Functions& functions, std::span<const api::Device> devices, std::span<const std::byte> image)
      : calls_(functions), image_(image) {
    for (const api::Device device : devices) devices_.emplace_back(calls_, static_cast<int>(devices_.size()), device);
  }

  [[nodiscard]] int device_count() const override { return static_cast<int>(devices_.size()); }
  [[nodiscard]] Outcome<DeviceFacts> facts(int device) override;
  [[nodiscard]] std::optional<DeviceMemory> locate(std::uint64_t address) const override;

  [[nodiscard]] Outcome<Stream> create_stream(int device) override;
  void destroy_stream(int device, Stream stream) override;
  [[nodiscard]] Outcome<Event> create_event(int device) override;
  void destroy_event(int device, Event event) override;
  [[nodiscard]] Status record(int device, Event event, Stream stream) override;
  [[nodiscard]] Status wait(int device, Stream stream, Event event) override;
  [[nodiscard]] Outcome<bool> done(int device, Event event) override;

  [[nodiscard]] Outcome<std::uint64_t> allocate(int device, std::uint64_t size) override;
  void free(int device, std::uint64_t address) override;
  [[nodiscard]] Outcome<std::span<std::byte>> allocate_host(std::uint64_t size) override;
  void free_host(std::span<std::byte> memory) override;
  [[nodiscard]] Status register_host(std::span<std::byte> memory) override;
  void unregister_host(std::span<std::byte> memory) override;
  [[nodiscard]] Outcome<std::uint64_t> device_address(int device, const std::byte* pinned) override;

  [[nodiscard]] Status copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size, Stream stream) override;
  [[nodiscard]] Status launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments, Stream stream) override;

  [[nodiscard]] Outcome<IpcHandle> export_ipc(int device, std::uint64_t base) override;
  [[nodiscard]] Outcome<std::uint64_t> open_ipc(int device, const IpcHandle& handle) override;
  void close_ipc(int device, std::uint64_t address) override;
  [[nodiscard]] Status enable_peer_access(int device, int peer) override;
  [[nodiscard]] Outcome<net::UniqueFd> export_dma_buf(int device, std::uint64_t address, std::uint64_t size) override;

 private:
  [[nodiscard]] Status check_device(int device) const;
  // Runs `call`, which returns an api::Result, with the device's context current.
  template <typename Call>
  [[nodiscard]] Status on(int device, std::string_view name, const Call& call, std::string_view remedy = {}) {
    MOONPOOL_RETURN_IF_ERROR(check_device(device));
    const Current current(calls_, devices_[static_cast<std::size_t>(device)], device);
    MOONPOOL_RETURN_IF_ERROR(current.status());
    return calls_.check(name, call(), device, remedy);
  }
  // The same for calls without an answer.
  template <typename Call>
  void quietly_on(int device, std::string_view name, const Call& call) {
    if (!check_device(device).ok()) return;
    const Current current(calls_, devices_[static_cast<std::size_t>(device)], device);
    if (current.status().ok()) calls_.report(name, call(), device);
  }
  // Whose context pins host memory, which counts for all devices: one that is in use anyway, since a context costs device memory.
  [[nodiscard]] int host_device();
  [[nodiscard]] Status check_host(std::string_view call, api::Result result, std::uint64_t size) const;

  const Calls calls_;
  const std::span<const std::byte> image_;
  std::deque<DeviceState> devices_;
  std::atomic<int> host_device_{kNoDevice};
};

Status LoadedDriver::check_device(int device) const {
  if (device >= 0 && device < device_count()) return {};
  return calls_.check("cuDeviceGet", api::Result::kInvalidDevice, device, fmt::format("this process sees {}", device_count()));
}

Outcome<DeviceFacts> LoadedDriver::facts(int device) {
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  const api::Device handle = devices_[static_cast<std::size_t>(device)].handle();
  std::array<char, 256> name{};
  MOONPOOL_RETURN_IF_ERROR(calls_.check("cuDeviceGetName", calls_->device_get_name(name.data(), int(name.size()) - 1, handle), device));
  std::array<char, 32> bus{};
  MOONPOOL_RETURN_IF_ERROR(
      calls_.check("cuDeviceGetPCIBusId", calls_->device_get_pci_bus_id(bus.data(), int(bus.size()) - 1, handle), device));
  api::Uuid uuid{};
  MOONPOOL_RETURN_IF_ERROR(calls_.check("cuDeviceGetUuid", calls_->device_get_uuid(&uuid, handle), device));
  DeviceFacts facts{.name = name.data(), .pci_bus_id = bus.data(), .uuid = std::string(uuid.bytes, sizeof uuid.bytes)};
  for (char& letter : facts.pci_bus_id) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));  // as sysfs has it
  const auto attribute = [this, device, handle](int which, int& value) {
    return calls_.check("cuDeviceGetAttribute", calls_->device_get_attribute(&value, which, handle), device);
  };
  MOONPOOL_RETURN_IF_ERROR(attribute(api::kMultiprocessorCount, facts.multiprocessors));
  MOONPOOL_RETURN_IF_ERROR(attribute(api::kComputeCapabilityMajor, facts.compute_major));
  MOONPOOL_RETURN_IF_ERROR(attribute(api::kComputeCapabilityMinor, facts.compute_minor));
  int dma_buf = 0;  // drivers before CUDA 11.7 do not know the attribute
  int ordering = 0;
  if (calls_->get_handle_for_address_range == nullptr) {
    facts.no_dma_buf = kNoDmaBufCall;
  } else if (!attribute(api::kDmaBufSupported, dma_buf).ok() || dma_buf == 0) {
    facts.no_dma_buf = "the driver exports no dma-buf of it: it takes NVIDIA's open kernel modules and Linux 5.12 or newer";
  } else if (!attribute(api::kRdmaWritesOrdering, ordering).ok() || ordering < api::kRdmaWritesOrderedForOwner) {
    facts.no_dma_buf = "it does not order what NICs write before the kernels that come after";
  }
  return facts;
}

std::optional<DeviceMemory> LoadedDriver::locate(std::uint64_t address) const {
  // Zeroes for what CUDA does not know, and no error: cuPointerGetAttribute (without s) has one. No context is needed. The range of memory
  // that is mapped piece by piece (PyTorch's expandable segments) is all that was reserved for it.
  std::array<int, 5> attributes{api::kMemoryType, api::kIsManaged, api::kDeviceOrdinal, api::kRangeStart, api::kRangeSize};
  std::uint64_t type = 0, managed = 0, start = 0, size = 0;  // room for the largest, of which CUDA writes 1 to 8 bytes
  std::int64_t ordinal = 0;
  std::array<void*, 5> data{&type, &managed, &ordinal, &start, &size};
  if (calls_->pointer_get_attributes(unsigned(attributes.size()), attributes.data(), data.data(), address) != api::Result::kSuccess) {
    return std::nullopt;
  }
  const int device = static_cast<std::int32_t>(ordinal);  // negative: no device of this process
  if (static_cast<unsigned>(type) != api::kMemoryTypeDevice || managed != 0 || device < 0 || device >= device_count()) return std::nullopt;
  return DeviceMemory{.device = device, .base = start, .size = size};
}

Outcome<Stream> LoadedDriver::create_stream(int device) {
  api::Stream stream = nullptr;
  // Our kernels are short, and what they move is waited for: their blocks go before those that an engine has queued.
  MOONPOOL_RETURN_IF_ERROR(
      on(device, "cuStreamCreateWithPriority", [&] { return calls_->stream_create(&stream, api::kStreamNonBlocking, api::kMostUrgent); }));
  return Stream{number_of(stream)};
}

void LoadedDriver::destroy_stream(int device, Stream stream) {
  quietly_on(device, "cuStreamDestroy", [&] { return calls_->stream_destroy(handle_of(stream)); });
}

Outcome<Event> LoadedDriver::create_event(int device) {
  api::Event event = nullptr;
  MOONPOOL_RETURN_IF_ERROR(on(device, "cuEventCreate", [&] { return calls_->event_create(&event, api::kEventDisableTiming); }));
  return Event{number_of(event)};
}

void LoadedDriver::destroy_event(int device, Event event) {
  quietly_on(device, "cuEventDestroy", [&] { return calls_->event_destroy(handle_of(event)); });
}

Status LoadedDriver::record(int device, Event event, Stream stream) {
  return on(device, "cuEventRecord", [&] { return calls_->event_record(handle_of(event), handle_of(stream)); });
}

Status LoadedDriver::wait(int device, Stream stream, Event event) {
  return on(device, "cuStreamWaitEvent", [&] { return calls_->stream_wait_event(handle_of(stream), handle_of(event), 0); });
}

Outcome<bool> LoadedDriver::done(int device, Event event) {
  bool ready = true;
  MOONPOOL_RETURN_IF_ERROR(on(device, "cuEventQuery", [&] {
    const auto result = calls_->event_query(handle_of(event));
    if (result != api::Result::kNotReady) return result;
    ready = false;
    return api::Result::kSuccess;
  }));
  return ready;
}

Outcome<std::uint64_t> LoadedDriver::allocate(int device, std::uint64_t size) {
  api::DevicePointer address = 0;
  MOONPOOL_RETURN_IF_ERROR(on(device, "cuMemAlloc", [&] { return calls_->memory_allocate(&address, size); }));
  return std::uint64_t{address};
}

void LoadedDriver::free(int device, std::uint64_t address) {
  quietly_on(device, "cuMemFree", [&] { return calls_->memory_free(address); });
}

int LoadedDriver::host_device() {
  if (const int chosen = host_device_.load(); chosen != kNoDevice) return chosen;
  const auto retained = std::find_if(devices_.begin(), devices_.end(), [](const DeviceState& device) { return device.is_retained(); });
  const auto active = std::find_if(devices_.begin(), devices_.end(), [](const DeviceState& device) { return device.is_active(); });
  const auto best = retained != devices_.end() ? retained : active;
  int expected = kNoDevice;
  const int chosen = best != devices_.end() ? static_cast<int>(best - devices_.begin()) : 0;
  return host_device_.compare_exchange_strong(expected, chosen) ? chosen : expected;
}

Status LoadedDriver::check_host(std::string_view call, api::Result result, std::uint64_t size) const {
  // Which of the two a limit gives is the driver's affair.
  const bool refused = result == api::Result::kOutOfMemory || result == api::Result::kOperatingSystem;
  const std::string remedy =
      refused ? fmt::format(
                    "{} bytes of host memory cannot be pinned: see the limit with `ulimit -l` and raise it (docker run --ulimit "
                    "memlock=-1; LimitMEMLOCK=infinity in a systemd unit), or pin less",
                    size)
              : "";
  const Status status = calls_.check(call, result, kNoDevice, remedy);
  return refused ? Status(ErrorCode::kNoAvailableHandle, status.message()) : status;
}

Outcome<std::span<std::byte>> LoadedDriver::allocate_host(std::uint64_t size) {
  void* memory = nullptr;
  auto result = api::Result::kSuccess;
  MOONPOOL_RETURN_IF_ERROR(on(host_device(), "cuMemHostAlloc", [&] {
    result = calls_->host_allocate(&memory, size, api::kHostPortable | api::kHostDeviceMap);
    return api::Result::kSuccess;
  }));
  MOONPOOL_RETURN_IF_ERROR(check_host("cuMemHostAlloc", result, size));
  return std::span(static_cast<std::byte*>(memory), size);
}

void LoadedDriver::free_host(std::span<std::byte> memory) {
  quietly_on(host_device(), "cuMemFreeHost", [&] { return calls_->host_free(memory.data()); });
}

Status LoadedDriver::register_host(std::span<std::byte> memory) {
  auto result = api::Result::kSuccess;
  MOONPOOL_RETURN_IF_ERROR(on(host_device(), "cuMemHostRegister", [&] {
    result = calls_->host_register(memory.data(), memory.size(), api::kHostPortable | api::kHostDeviceMap);
    return api::Result::kSuccess;
  }));
  return check_host("cuMemHostRegister", result, memory.size());
}

void LoadedDriver::unregister_host(std::span<std::byte> memory) {
  quietly_on(host_device(), "cuMemHostUnregister", [&] {
    const auto result = calls_->host_unregister(memory.data());
    const bool unknown = result == api::Result::kHostMemoryNotRegistered || result == api::Result::kInvalidValue;
    return unknown ? api::Result::kSuccess : result;
  });
}

Outcome<std::uint64_t> LoadedDriver::device_address(int device, const std::byte* pinned) {
  // cuMemHostGetDevicePointer would say the same, but is not documented for the inside of a region. Zeroes for what is not pinned.
  std::array<int, 2> attributes{api::kMemoryType, api::kDevicePointer};
  std::uint64_t type = 0, address = 0;
  std::array<void*, 2> data{&type, &address};
  constexpr const char* kRemedy = "the memory is not pinned";
  MOONPOOL_RETURN_IF_ERROR(on(
      device, "cuPointerGetAttributes",
      [&] {
        const auto result = calls_->pointer_get_attributes(unsigned(attributes.size()), attributes.data(), data.data(), number_of(pinned));
        const bool reached = static_cast<unsigned>(type) == api::kMemoryTypeHost && address != 0;
        return result == api::Result::kSuccess && !reached ? api::Result::kInvalidValue : result;
      },
      kRemedy));
  return address;
}

Status LoadedDriver::copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size, Stream stream) {
  return on(device, "cuMemcpyAsync", [&] { return calls_->copy_async(to, from, size, handle_of(stream)); });
}

Status LoadedDriver::launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments, Stream stream) {
  if (image_.empty()) return {ErrorCode::kNotSupported, "this build of Moonpool has no kernels for GPUs: there was no nvcc"};
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  DeviceState& state = devices_[static_cast<std::size_t>(device)];
  const Current current(calls_, state, device);
  MOONPOOL_RETURN_IF_ERROR(current.status());
  const auto function = state.kernel(kernel, image_);
  if (!function.ok()) return function.status();
  MoveArguments copied = arguments;
  std::array<void*, 1> parameters{&copied};
  return calls_.check(
      "cuLaunchKernel",
      calls_->launch_kernel(*function, shape.blocks, 1, 1, shape.threads, 1, 1, 0, handle_of(stream), parameters.data(), nullptr), device);
}

Outcome<IpcHandle> LoadedDriver::export_ipc(int device, std::uint64_t base) {
  api::IpcMemoryHandle handle{};
  auto result = api::Result::kSuccess;
  MOONPOOL_RETURN_IF_ERROR(on(device, "cuIpcGetMemHandle", [&] {
    result = calls_->ipc_get_handle(&handle, base);
    return api::Result::kSuccess;
  }));
  if (result == api::Result::kInvalidValue) {
    const Status status = calls_.check("cuIpcGetMemHandle", result, device,
                                       "only memory of cudaMalloc can be shared so, which PyTorch's expandable segments "
                                       "(PYTORCH_CUDA_ALLOC_CONF) and cudaMallocAsync are not");
    return Status(ErrorCode::kNotSupported, status.message());
  }
  MOONPOOL_RETURN_IF_ERROR(calls_.check("cuIpcGetMemHandle", result, device));
  IpcHandle bytes{};
  static_assert(sizeof bytes == sizeof handle);
  std::memcpy(bytes.data(), &handle, sizeof handle);
  return bytes;
}

Outcome<std::uint64_t> LoadedDriver::open_ipc(int device, const IpcHandle& handle) {
  api::IpcMemoryHandle copied{};
  std::memcpy(&copied, handle.data(), sizeof copied);
  api::DevicePointer address = 0;
  MOONPOOL_RETURN_IF_ERROR(
      on(device, "cuIpcOpenMemHandle", [&] { return calls_->ipc_open_handle(&address, copied, api::kIpcLazyEnablePeerAccess); }));
  return std::uint64_t{address};
}

void LoadedDriver::close_ipc(int device, std::uint64_t address) {
  quietly_on(device, "cuIpcCloseMemHandle", [&] { return calls_->ipc_close_handle(address); });
}

Status LoadedDriver::enable_peer_access(int device, int peer) {
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  MOONPOOL_RETURN_IF_ERROR(check_device(peer));
  if (device == peer) return {};
  int can = 0;
  const auto handle = [this](int number) { return devices_[static_cast<std::size_t>(number)].handle(); };
  MOONPOOL_RETURN_IF_ERROR(
      calls_.check("cuDeviceCanAccessPeer", calls_->device_can_access_peer(&can, handle(device), handle(peer)), device));
  if (can == 0) {
    return {ErrorCode::kNotSupported, fmt::format("cuDeviceCanAccessPeer: device {} cannot reach the memory of device {}", device, peer)};
  }
  const auto context = devices_[static_cast<std::size_t>(peer)].context();
  if (!context.ok()) return context.status();
  return on(device, "cuCtxEnablePeerAccess", [&] {
    const auto result = calls_->context_enable_peer_access(*context, 0);
    return result == api::Result::kPeerAccessAlreadyEnabled ? api::Result::kSuccess : result;
  });
}

Outcome<net::UniqueFd> LoadedDriver::export_dma_buf(int device, std::uint64_t address, std::uint64_t size) {
  if (calls_->get_handle_for_address_range == nullptr) {
    return Status(ErrorCode::kNotSupported, kNoDmaBufCall);
  }
  int fd = -1;
  MOONPOOL_RETURN_IF_ERROR(on(device, "cuMemGetHandleForAddressRange",
                              [&] { return calls_->get_handle_for_address_range(&fd, address, size, api::kDmaBufHandle, 0); }));
  net::UniqueFd exported(fd);
  (void)::fcntl(fd, F_SETFD, FD_CLOEXEC);
  return exported;
}

std::string_view remedy_of_start(api::Result result) {
  switch (result) {
    case api::Result::kNotInitialized:
      return "CUDA does not work in a child of fork() whose parent has used it: start workers with spawn (VLLM_WORKER_MULTIPROC_METHOD, "
             "multiprocessing.set_start_method)";
    case api::Result::kStubLibrary:
      return "the library found is the stub of CUDA's development files: take it off LD_LIBRARY_PATH";
    case api::Result::kNoDevice:
      return "see nvidia-smi, CUDA_VISIBLE_DEVICES and, in a container, --gpus";
    case api::Result::kSystemNotReady:
      return "NVSwitch systems need nvidia-fabricmanager to run";
    case api::Result::kSystemDriverMismatch:
      return "the kernel module and libcuda.so.1 are of different versions: load the new module (a reboot does it)";
    case api::Result::kOperatingSystem:
    case api::Result::kUnknown:
      return "see whether this user may open /dev/nvidia0, /dev/nvidiactl and /dev/nvidia-uvm";
    default:
      return {};
  }
}

// Whatever keeps CUDA from starting is no fault of the caller's.
Status not_started(const Status& status) { return status.ok() ? status : Status(ErrorCode::kNotSupported, status.message()); }

}  // namespace

Outcome<std::unique_ptr<Driver>> start_driver(const api::Functions& functions, std::span<const std::byte> image) {
  const Calls calls(functions);
  const auto started = calls->init(0);
  MOONPOOL_RETURN_IF_ERROR(not_started(calls.check("cuInit", started, kNoDevice, remedy_of_start(started))));
  int devices = 0;
  MOONPOOL_RETURN_IF_ERROR(not_started(calls.check("cuDeviceGetCount", calls->device_get_count(&devices), kNoDevice)));
  if (devices == 0) {
    return Status(ErrorCode::kNotSupported, fmt::format("cuDeviceGetCount: no device; {}", remedy_of_start(api::Result::kNoDevice)));
  }
  std::vector<api::Device> handles(static_cast<std::size_t>(devices));
  for (int device = 0; device < devices; ++device) {
    MOONPOOL_RETURN_IF_ERROR(
        not_started(calls.check("cuDeviceGet", calls->device_get(&handles[static_cast<std::size_t>(device)], device), device)));
  }
  return std::unique_ptr<Driver>(std::make_unique<LoadedDriver>(functions, handles, image));
}

bool driver_is_loaded() {
  void* const library = ::dlopen(kFile, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return false;
  ::dlclose(library);
  return true;
}

Outcome<std::unique_ptr<Driver>> open_driver() {
  auto functions = load_functions(kFile);
  if (!functions.ok()) return functions.status();
  return start_driver(*functions, kernel_image());
}

}  // namespace moonpool::transfer::cuda
