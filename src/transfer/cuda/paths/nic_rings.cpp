#include "transfer/cuda/paths/nic_rings.h"

#include <chrono>
#include <string>
#include <utility>

#include "base/logging.h"
#include "transfer/cuda/exported_memory.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::chrono::seconds kPatience{5};  // with work requests that use a ring, at its end

}  // namespace

StagingMemory NicRings::memory_of(Runtime& runtime, int device) const {
  Driver& driver = runtime.driver();
  StagingMemory memory;
  memory.allocate = [this, &driver, device](std::uint64_t size) -> Result<MutableBytes> {
    const auto address = driver.allocate(device, size);
    if (!address.ok()) return address.status();
    const MutableBytes made = bytes_at({*address, size});
    auto exported = export_memory(driver, device, {*address, size});
    Status status = exported.status();
    if (status.ok()) status = nics_.add_local(made, &exported->buffer);
    if (status.ok()) return made;
    driver.free(device, *address);
    return status;
  };
  memory.free = [this, &driver, device](MutableBytes freed) {
    if (const Status removed = nics_.remove_local(freed.data(), Deadline::after(kPatience)); !removed.ok()) {
      log::error("cuda: {} bytes of GPU {}'s memory are not freed, because a NIC may touch them: {}", freed.size(), device,
                 removed.message());
      return;
    }
    driver.free(device, reinterpret_cast<std::uint64_t>(freed.data()));
  };
  memory.name = "memory of GPU " + std::to_string(device) + " for NICs";
  memory.setting = "MOONPOOL_CUDA_GPUDIRECT";
  return memory;
}

Staging* NicRings::ring(Runtime& runtime, int device) {
  const std::uint64_t bytes = runtime.settings().nic_ring_bytes;
  if (bytes == 0) return nullptr;
  Staging* staging = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    auto& ring = rings_[device];
    if (ring.staging == nullptr) ring.staging = std::make_unique<Staging>(memory_of(runtime, device), bytes);
    staging = ring.staging.get();
  }
  const auto made = staging->try_acquire(1);
  bool say = false;
  {
    const std::scoped_lock lock(mutex_);
    say = !std::exchange(rings_[device].said, true);
  }
  if (made.ok()) {
    if (say) log::info("cuda: NICs reach GPU {} directly, by {} bytes of its memory (GPUDirect RDMA)", device, staging->capacity());
    return staging;
  }
  if (say) {
    log::warning("cuda: data of GPU {} goes to and from NICs by way of pinned host memory, without GPUDirect RDMA: {}", device,
                 made.status().message());
  }
  return nullptr;
}

}  // namespace moonpool::transfer::cuda
