#include "transfer/cuda/fake/fake_driver.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "transfer/cuda/driver/driver_errors.h"
#include "transfer/cuda/fake/fake_faults.h"
#include "transfer/cuda/fake/fake_memory.h"
#include "transfer/cuda/fake/fake_streams.h"
#include "transfer/cuda/kernels/emulation.h"

namespace moonpool::transfer::cuda {
namespace {

using api::Result;
template <typename T>
using Outcome = moonpool::Result<T>;

Status invalid_value(std::string_view call, int device, std::string_view remedy = {}) {
  return call_failed(call, Result::kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument", device, remedy);
}
Status invalid_handle(std::string_view call, int device) {
  return call_failed(call, Result::kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle", device);
}
Status out_of_memory(std::string_view call, int device, std::string_view remedy = {}) {
  return call_failed(call, Result::kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory", device, remedy);
}
Status illegal_address(std::string_view call, int device, std::uint64_t address) {
  return call_failed(call, Result::kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered", device,
                     fmt::format("at {:#x}", address));
}

[[noreturn]] void die(std::string_view what, std::uint64_t address) {
  std::fputs(fmt::format("FakeDriver::{}({:#x}): no memory of a device\n", what, address).c_str(), stderr);
  std::abort();
}

// What a handle's 64 bytes are.
struct HandleContent {
  char magic[8];
  std::uint64_t devices;
  std::uint64_t allocation;
};
constexpr char kMagic[8] = {'f', 'a', 'k', 'e', ' ', 'i', 'p', 'c'};
static_assert(sizeof(HandleContent) <= sizeof(IpcHandle));

class Fake final : public FakeDriver {
 public:
  Fake(const FakeOptions& options, std::shared_ptr<FakeDevices> devices)
      : options_(options), devices_(std::move(devices)), process_(devices_->new_process()), addresses_(devices_) {}

  [[nodiscard]] std::unique_ptr<FakeDriver> another_process() override { return std::make_unique<Fake>(options_, devices_); }

  [[nodiscard]] int device_count() const override { return options_.devices; }
  [[nodiscard]] Outcome<DeviceFacts> facts(int device) override;
  [[nodiscard]] std::optional<DeviceMemory> locate(std::uint64_t address) const override;

  [[nodiscard]] Outcome<Stream> create_stream(int device) override;
  void destroy_stream(int device, Stream stream) override { streams_.destroy(device, stream); }
  [[nodiscard]] Outcome<Event> create_event(int device) override;
  void destroy_event(int device, Event event) override { streams_.destroy(device, event); }
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

  void peek(std::uint64_t device_address, std::span<std::byte> to) override;
  void poke(std::uint64_t device_address, std::span<const std::byte> from) override;
  void fail(std::string_view function, Status status, int skip, bool late) override {
    faults_.add(function, std::move(status), skip, late);
  }
  void hold_streams() override { streams_.hold(); }
  void release_streams() override { streams_.release(); }
  [[nodiscard]] Counts counts() const override;

 private:
  // The device is there, and no fault is due.
  [[nodiscard]] Status admit(std::string_view function, int device);
  [[nodiscard]] Status check_device(int device) const;
  // Work on a stream looks at addresses when it runs, under memory_mutex_ (shared).
  [[nodiscard]] Status run_copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size);
  [[nodiscard]] Status run_launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments);
  void count_unpinned(std::uint64_t address, std::atomic<bool>& counted);

  const FakeOptions options_;
  const std::shared_ptr<FakeDevices> devices_;
  const std::uint64_t process_;
  FakeFaults faults_;
  mutable std::shared_mutex memory_mutex_;
  FakeAddresses addresses_;  // guarded by memory_mutex_
  std::atomic<std::uint64_t> launches_{0}, copies_{0}, registered_{0}, unregistered_{0}, allocations_{0}, frees_{0}, touched_unpinned_{0};
  mutable std::atomic<std::uint64_t> locates_{0};
  std::atomic<std::uint32_t> last_blocks_{0};
  FakeStreams streams_;  // last: its threads use what is above
};

Status Fake::check_device(int device) const {
  if (device >= 0 && device < options_.devices) return {};
  return call_failed("cuDeviceGet", Result::kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal", device);
}

Status Fake::admit(std::string_view function, int device) {
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  return faults_.next(function).call;
}

Outcome<DeviceFacts> Fake::facts(int device) {
  MOONPOOL_RETURN_IF_ERROR(admit("facts", device));
  std::string uuid(16, '\0');
  const std::uint64_t parts[2] = {devices_->number(), static_cast<std::uint64_t>(device)};
  std::memcpy(uuid.data(), parts, sizeof parts);
  return DeviceFacts{.name = fmt::format("Moonpool fake GPU {}", device),
                     .pci_bus_id = fmt::format("0000:{:02x}:00.0", 0xf0 + device),
                     .uuid = std::move(uuid),
                     .multiprocessors = options_.multiprocessors,
                     .compute_major = 9,
                     .compute_minor = 0,
                     .no_dma_buf = options_.dma_buf ? "" : "it is told to export no dma-buf"};
}

std::optional<DeviceMemory> Fake::locate(std::uint64_t address) const {
  ++locates_;
  const std::shared_lock lock(memory_mutex_);
  const auto* const range = addresses_.find(address);
  if (range == nullptr) return std::nullopt;
  return DeviceMemory{.device = range->allocation.device, .base = addresses_.base_of(*range), .size = range->allocation.size};
}

Outcome<Stream> Fake::create_stream(int device) {
  MOONPOOL_RETURN_IF_ERROR(admit("create_stream", device));
  return streams_.create_stream(device);
}

Outcome<Event> Fake::create_event(int device) {
  MOONPOOL_RETURN_IF_ERROR(admit("create_event", device));
  return streams_.create_event(device);
}

Status Fake::record(int device, Event event, Stream stream) {
  MOONPOOL_RETURN_IF_ERROR(admit("record", device));
  return streams_.record(device, event, stream) ? Status{} : invalid_handle("cuEventRecord", device);
}

Status Fake::wait(int device, Stream stream, Event event) {
  MOONPOOL_RETURN_IF_ERROR(admit("wait", device));
  return streams_.wait(device, stream, event) ? Status{} : invalid_handle("cuStreamWaitEvent", device);
}

Outcome<bool> Fake::done(int device, Event event) {
  MOONPOOL_RETURN_IF_ERROR(admit("done", device));
  auto answer = streams_.done(event);
  return answer ? *answer : invalid_handle("cuEventQuery", device);
}

Outcome<std::uint64_t> Fake::allocate(int device, std::uint64_t size) {
  MOONPOOL_RETURN_IF_ERROR(admit("allocate", device));
  if (size == 0) return invalid_value("cuMemAlloc", device);
  const std::unique_lock lock(memory_mutex_);
  const auto allocation = devices_->allocate(process_, device, size);
  if (!allocation) return out_of_memory("cuMemAlloc", device);
  ++allocations_;
  return addresses_.add(*allocation);
}

void Fake::free(int device, std::uint64_t address) {
  const std::unique_lock lock(memory_mutex_);  // as cuMemFree does, this waits for work that runs
  const auto* const range = addresses_.find(address);
  if (range == nullptr || range->opened_by >= 0 || range->allocation.device != device || addresses_.base_of(*range) != address) {
    die("free", address);
  }
  addresses_.remove(address);
  ++frees_;
}

Outcome<std::span<std::byte>> Fake::allocate_host(std::uint64_t size) {
  MOONPOOL_RETURN_IF_ERROR(faults_.next("allocate_host").call);
  if (size == 0) return invalid_value("cuMemHostAlloc", kNoDevice);
  const std::unique_lock lock(memory_mutex_);
  if (size > options_.pinned_bytes - addresses_.pinned_bytes()) return out_of_memory("cuMemHostAlloc", kNoDevice);
  return addresses_.add_host(size);
}

void Fake::free_host(std::span<std::byte> memory) {
  const std::unique_lock lock(memory_mutex_);
  if (!addresses_.remove_host(memory)) die("free_host", reinterpret_cast<std::uintptr_t>(memory.data()));
}

Status Fake::register_host(std::span<std::byte> memory) {
  MOONPOOL_RETURN_IF_ERROR(faults_.next("register_host").call);
  if (memory.empty()) return invalid_value("cuMemHostRegister", kNoDevice);
  const std::unique_lock lock(memory_mutex_);
  if (memory.size() > options_.pinned_bytes - addresses_.pinned_bytes()) {
    return out_of_memory("cuMemHostRegister", kNoDevice, "raise the memlock limit");
  }
  if (!addresses_.pin(memory)) {
    return call_failed("cuMemHostRegister", Result::kHostMemoryAlreadyRegistered, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
                       "part or all of the requested memory range is already mapped", kNoDevice);
  }
  ++registered_;
  return {};
}

void Fake::unregister_host(std::span<std::byte> memory) {
  const std::unique_lock lock(memory_mutex_);
  if (addresses_.unpin(memory)) ++unregistered_;
}

Outcome<std::uint64_t> Fake::device_address(int device, const std::byte* pinned) {
  MOONPOOL_RETURN_IF_ERROR(admit("device_address", device));
  const std::shared_lock lock(memory_mutex_);
  const auto address = reinterpret_cast<std::uintptr_t>(pinned);
  if (!addresses_.is_pinned(address, 1)) return invalid_value("cuPointerGetAttributes", device, "the memory is not pinned");
  return std::uint64_t{address};
}

Status Fake::copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size, Stream stream) {
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  auto verdict = faults_.next("copy");
  if (!verdict.call.ok()) return verdict.call;
  const bool queued = streams_.enqueue(device, stream, [this, device, to, from, size, late = std::move(verdict.work)] {
    return late.ok() ? run_copy(device, to, from, size) : late;
  });
  if (!queued) return invalid_handle("cuMemcpyAsync", device);
  ++copies_;
  return {};
}

Status Fake::launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments, Stream stream) {
  MOONPOOL_RETURN_IF_ERROR(check_device(device));
  auto verdict = faults_.next("launch");
  if (!verdict.call.ok()) return verdict.call;
  if (!options_.kernels) return {ErrorCode::kNotSupported, "this build of Moonpool has no kernels for GPUs: there was no nvcc"};
  constexpr std::uint32_t kMostThreads = 1024;
  if (shape.blocks == 0 || shape.threads == 0 || shape.threads > kMostThreads || shape.threads % 32 != 0)
    return invalid_value("cuLaunchKernel", device);
  const bool queued = streams_.enqueue(device, stream, [this, device, kernel, shape, arguments, late = std::move(verdict.work)] {
    return late.ok() ? run_launch(device, kernel, shape, arguments) : late;
  });
  if (!queued) return invalid_handle("cuLaunchKernel", device);
  last_blocks_ = shape.blocks;
  ++launches_;
  return {};
}

Status Fake::run_copy(int device, std::uint64_t to, std::uint64_t from, std::uint64_t size) {
  if (size == 0) return {};
  const std::shared_lock lock(memory_mutex_);
  std::atomic<bool> counted{false};
  std::byte* ends[2];
  std::byte** end = ends;
  for (const std::uint64_t address : {to, from}) {
    *end = addresses_.bytes_for(device, address, size, /*any_device=*/true);
    if (*end == nullptr) {
      count_unpinned(address, counted);
      return illegal_address("cuMemcpyAsync", device, address);
    }
    ++end;
  }
  std::memmove(ends[0], ends[1], size);
  return {};
}

Status Fake::run_launch(int device, Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments) {
  const std::shared_lock lock(memory_mutex_);  // for the kernel's threads too, which end before it
  std::atomic<bool> counted{false};
  std::atomic<std::uint64_t> bad_address{0};
  // Fewer threads than asked for, which the kernels allow: each is one of the host's.
  const LaunchShape emulated{.blocks = shape.blocks, .threads = kEmulatedThreads};
  Status status = emulate(kernel, emulated, arguments, [&](std::uint64_t address, std::uint64_t length) {
    std::byte* const bytes = addresses_.bytes_for(device, address, length, /*any_device=*/false);
    if (bytes == nullptr) {
      bad_address = address;
      count_unpinned(address, counted);
    }
    return bytes;
  });
  if (status.ok() || bad_address == 0) return status;
  return illegal_address("cuLaunchKernel", device, bad_address);
}

void Fake::count_unpinned(std::uint64_t address, std::atomic<bool>& counted) {
  if (!addresses_.of_a_device(address) && !counted.exchange(true)) ++touched_unpinned_;
}

Outcome<IpcHandle> Fake::export_ipc(int device, std::uint64_t base) {
  MOONPOOL_RETURN_IF_ERROR(admit("export_ipc", device));
  const std::shared_lock lock(memory_mutex_);
  const auto* const range = addresses_.find(base);
  if (range == nullptr || range->opened_by >= 0 || range->allocation.device != device || addresses_.base_of(*range) != base) {
    return invalid_value("cuIpcGetMemHandle", device);
  }
  HandleContent content{.magic = {}, .devices = devices_->number(), .allocation = range->allocation.id};
  std::memcpy(content.magic, kMagic, sizeof kMagic);
  IpcHandle handle{};
  std::memcpy(handle.data(), &content, sizeof content);
  return handle;
}

Outcome<std::uint64_t> Fake::open_ipc(int device, const IpcHandle& handle) {
  MOONPOOL_RETURN_IF_ERROR(admit("open_ipc", device));
  HandleContent content;
  std::memcpy(&content, handle.data(), sizeof content);
  constexpr std::string_view kCall = "cuIpcOpenMemHandle";
  if (std::memcmp(content.magic, kMagic, sizeof kMagic) != 0 || content.devices != devices_->number()) return invalid_handle(kCall, device);
  const std::unique_lock lock(memory_mutex_);
  const auto exported = devices_->find(content.allocation);
  if (!exported) return invalid_value(kCall, device);
  if (exported->process == process_) {
    return call_failed(kCall, Result::kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context", device,
                       "the handle is of this process's own memory");
  }
  if (addresses_.has(content.allocation)) {
    return call_failed(kCall, Result::kAlreadyMapped, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped", device);
  }
  if (exported->device != device && !options_.peer_access) {
    return call_failed(kCall, Result::kPeerAccessUnsupported, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
                       "peer access is not supported between these two devices", device);
  }
  const auto allocation = devices_->open(content.allocation);
  if (!allocation) return invalid_value(kCall, device);
  return addresses_.add(*allocation, device);
}

void Fake::close_ipc(int device, std::uint64_t address) {
  const std::unique_lock lock(memory_mutex_);
  const auto* const range = addresses_.find(address);
  if (range == nullptr || range->opened_by != device || addresses_.base_of(*range) != address) die("close_ipc", address);
  addresses_.remove(address);
}

Status Fake::enable_peer_access(int device, int peer) {
  MOONPOOL_RETURN_IF_ERROR(admit("enable_peer_access", device));
  MOONPOOL_RETURN_IF_ERROR(check_device(peer));
  if (device == peer) return {};
  if (!options_.peer_access) {
    return call_failed("cuCtxEnablePeerAccess", Result::kPeerAccessUnsupported, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
                       "peer access is not supported between these two devices", device, fmt::format("the other is device {}", peer));
  }
  const std::unique_lock lock(memory_mutex_);
  addresses_.allow_peer(device, peer);
  return {};
}

Outcome<net::UniqueFd> Fake::export_dma_buf(int device, std::uint64_t address, std::uint64_t size) {
  MOONPOOL_RETURN_IF_ERROR(admit("export_dma_buf", device));
  const auto refused = [&](Result result, const char* name, const char* text) {
    return call_failed("cuMemGetHandleForAddressRange", result, name, text, device);
  };
  if (!options_.dma_buf) return refused(Result::kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported");
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::shared_lock lock(memory_mutex_);
  const auto* range = addresses_.find(address);
  // It may begin within its first page.
  for (std::uint64_t at = address; range == nullptr && at < address + page; at += kAllocationAlignment) range = addresses_.find(at);
  if (range == nullptr || range->opened_by >= 0 || range->allocation.device != device || size == 0 || (address | size) % page != 0)
    return refused(Result::kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument");
  auto file = devices_->open_file(device, range->allocation.offset + address - addresses_.base_of(*range));
  if (!file) return refused(Result::kUnknown, "CUDA_ERROR_UNKNOWN", "unknown error");
  return file;
}

void Fake::peek(std::uint64_t device_address, std::span<std::byte> to) {
  const std::shared_lock lock(memory_mutex_);
  if (!addresses_.of_a_device(device_address)) die("peek", device_address);
  const std::byte* const bytes = addresses_.bytes_for(0, device_address, to.size(), /*any_device=*/true);
  if (bytes == nullptr) die("peek", device_address);
  if (!to.empty()) std::memcpy(to.data(), bytes, to.size());
}

void Fake::poke(std::uint64_t device_address, std::span<const std::byte> from) {
  const std::shared_lock lock(memory_mutex_);
  if (!addresses_.of_a_device(device_address)) die("poke", device_address);
  std::byte* const bytes = addresses_.bytes_for(0, device_address, from.size(), /*any_device=*/true);
  if (bytes == nullptr) die("poke", device_address);
  if (!from.empty()) std::memcpy(bytes, from.data(), from.size());
}

FakeDriver::Counts Fake::counts() const {
  const std::shared_lock lock(memory_mutex_);
  return {.launches = launches_,
          .copies = copies_,
          .registered = registered_,
          .unregistered = unregistered_,
          .allocations = allocations_,
          .frees = frees_,
          .locates = locates_,
          .pinned_bytes = addresses_.pinned_bytes(),
          .live_handles = streams_.live_handles(),
          .touched_unpinned = touched_unpinned_,
          .last_blocks = last_blocks_};
}

}  // namespace

std::unique_ptr<FakeDriver> FakeDriver::create(const FakeOptions& options) {
  return std::make_unique<Fake>(options, std::make_shared<FakeDevices>(options.devices, options.device_bytes));
}

}  // namespace moonpool::transfer::cuda
