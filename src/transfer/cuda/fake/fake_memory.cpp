#include "transfer/cuda/fake/fake_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace moonpool::transfer::cuda {
namespace {

std::uint64_t rounded(std::uint64_t size, std::uint64_t alignment) { return (size + alignment - 1) / alignment * alignment; }
std::uint64_t number_of(const std::byte* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::abort();
}

}  // namespace

FakeMapping::FakeMapping(int fd, std::uint64_t size, int protection) {
  const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* const memory = ::mmap(nullptr, size, protection, flags | MAP_NORESERVE, fd, 0);
  if (memory == MAP_FAILED) die("fake CUDA device: mmap");
  memory_ = {static_cast<std::byte*>(memory), size};
}

FakeMapping& FakeMapping::operator=(FakeMapping&& other) noexcept {
  std::swap(memory_, other.memory_);
  return *this;
}

FakeMapping::~FakeMapping() {
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
}

FakeDevices::FakeDevices(int devices, std::uint64_t bytes)
    : number_([] {
        static std::atomic<std::uint32_t> made{0};
        return std::uint64_t(::getpid()) << 32 | ++made;
      }()),
      bytes_(rounded(bytes, std::uint64_t(::sysconf(_SC_PAGESIZE)))) {
  for (int device = 0; device < devices; ++device) {
    Memory memory;
    memory.file.reset(::memfd_create("moonpool_fake_gpu", MFD_CLOEXEC));
    if (!memory.file || ::ftruncate(memory.file.get(), static_cast<off_t>(bytes_)) != 0) die("fake CUDA device: memfd");
    memory.mapping = FakeMapping(memory.file.get(), bytes_, PROT_READ | PROT_WRITE);
    devices_.push_back(std::move(memory));
  }
}

std::uint64_t FakeDevices::new_process() {
  const std::lock_guard lock(mutex_);
  return next_id_++;
}

FakeMapping FakeDevices::map_without_access(int device) const { return {devices_[std::size_t(device)].file.get(), bytes_, PROT_NONE}; }

net::UniqueFd FakeDevices::open_file(int device, std::uint64_t offset) const {
  const std::string name = "/proc/self/fd/" + std::to_string(devices_[std::size_t(device)].file.get());
  net::UniqueFd file(::open(name.c_str(), O_RDWR | O_CLOEXEC));
  if (file && ::lseek(file.get(), static_cast<off_t>(offset), SEEK_SET) < 0) file.reset();
  return file;
}

std::byte* FakeDevices::bytes(int device, std::uint64_t offset) const {
  return devices_[std::size_t(device)].mapping.memory().data() + offset;
}

std::optional<FakeDevices::Allocation> FakeDevices::allocate(std::uint64_t process, int device, std::uint64_t size) {
  const std::lock_guard lock(mutex_);
  Memory& memory = devices_[std::size_t(device)];
  const auto offset = find_room(memory, rounded(size, kAllocationAlignment));
  if (!offset) return std::nullopt;
  memory.taken[*offset] = rounded(size, kAllocationAlignment);
  const std::uint64_t id = next_id_++;
  return allocations_[id] = {.id = id, .process = process, .device = device, .offset = *offset, .size = size, .users = 1, .freed = false};
}

std::optional<FakeDevices::Allocation> FakeDevices::find(std::uint64_t id) const {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(id);
  if (found == allocations_.end() || found->second.freed) return std::nullopt;
  return found->second;
}

std::optional<FakeDevices::Allocation> FakeDevices::open(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(id);
  if (found == allocations_.end() || found->second.freed) return std::nullopt;
  ++found->second.users;
  return found->second;
}

void FakeDevices::release(std::uint64_t id, bool by_maker) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(id);
  if (by_maker) found->second.freed = true;
  if (--found->second.users > 0) return;
  devices_[std::size_t(found->second.device)].taken.erase(found->second.offset);
  allocations_.erase(found);
}

std::optional<std::uint64_t> FakeDevices::find_room(const Memory& memory, std::uint64_t size) const {
  if (size > bytes_) return std::nullopt;
  std::uint64_t offset = 0;
  for (const auto& [taken, length] : memory.taken) {
    if (taken - offset >= size) return offset;
    offset = taken + length;
  }
  return bytes_ - offset >= size ? std::optional(offset) : std::nullopt;
}

FakeAddresses::FakeAddresses(std::shared_ptr<FakeDevices> devices) : devices_(std::move(devices)) {
  for (int device = 0; device < devices_->count(); ++device) reserved_.push_back(devices_->map_without_access(device));
}

FakeAddresses::~FakeAddresses() {
  while (!ranges_.empty()) remove(ranges_.begin()->first);
}

std::uint64_t FakeAddresses::add(const FakeDevices::Allocation& allocation, int opened_by) {
  const Range range{allocation, opened_by};
  const std::uint64_t base = base_of(range);
  ranges_[base] = range;
  return base;
}

void FakeAddresses::remove(std::uint64_t base) {
  const auto found = ranges_.find(base);
  devices_->release(found->second.allocation.id, found->second.opened_by < 0);
  ranges_.erase(found);
}

const FakeAddresses::Range* FakeAddresses::find(std::uint64_t address) const {
  auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin()) return nullptr;
  const auto& [base, range] = *std::prev(after);
  return address - base < range.allocation.size ? &range : nullptr;
}

std::uint64_t FakeAddresses::base_of(const Range& range) const {
  return number_of(reserved_[std::size_t(range.allocation.device)].memory().data()) + range.allocation.offset;
}

bool FakeAddresses::has(std::uint64_t allocation_id) const {
  for (const auto& [base, range] : ranges_) {
    if (range.allocation.id == allocation_id) return true;
  }
  return false;
}

bool FakeAddresses::of_a_device(std::uint64_t address) const {
  for (const FakeMapping& mapping : reserved_) {
    const std::uint64_t first = number_of(mapping.memory().data());
    if (address >= first && address - first < mapping.memory().size()) return true;
  }
  return false;
}

bool FakeAddresses::pin(std::span<std::byte> memory) {
  const std::uint64_t first = number_of(memory.data());
  const auto next = pinned_.lower_bound(first);
  if (next != pinned_.end() && next->first - first < memory.size()) return false;
  if (next != pinned_.begin()) {
    const auto& [before, size] = *std::prev(next);
    if (first - before < size) return false;
  }
  pinned_[first] = memory.size();
  pinned_bytes_ += memory.size();
  return true;
}

bool FakeAddresses::unpin(std::span<std::byte> memory) {
  const auto found = pinned_.find(number_of(memory.data()));
  if (found == pinned_.end()) return false;
  pinned_bytes_ -= found->second;
  pinned_.erase(found);
  return true;
}

bool FakeAddresses::is_pinned(std::uint64_t address, std::uint64_t length) const {
  // Neighbours that are pinned each are one memory to a device.
  while (true) {
    auto after = pinned_.upper_bound(address);
    if (after == pinned_.begin()) return false;
    const auto& [first, size] = *std::prev(after);
    if (address - first >= size) return false;
    const std::uint64_t here = size - (address - first);
    if (length <= here) return true;
    address += here;
    length -= here;
  }
}

std::span<std::byte> FakeAddresses::add_host(std::uint64_t size) {
  FakeMapping mapping(-1, size, PROT_READ | PROT_WRITE);
  const auto memory = mapping.memory();
  if (!pin(memory)) die("fake CUDA device: fresh memory is pinned already");
  host_[number_of(memory.data())] = std::move(mapping);
  return memory;
}

bool FakeAddresses::remove_host(std::span<std::byte> memory) {
  const auto found = host_.find(number_of(memory.data()));
  if (found == host_.end() || !unpin(found->second.memory())) return false;
  host_.erase(found);
  return true;
}

std::byte* FakeAddresses::bytes_for(int device, std::uint64_t address, std::uint64_t length, bool any_device) const {
  const Range* const first = find(address);
  if (first == nullptr) return is_pinned(address, length) ? reinterpret_cast<std::byte*>(address) : nullptr;
  const std::uint64_t offset = first->allocation.offset + (address - base_of(*first));
  // Allocations whose addresses touch are one memory to a kernel; a copy stays within one.
  std::uint64_t at = address;
  for (const Range* range = first; range != nullptr; range = find(at)) {
    const auto& allocation = range->allocation;
    const bool reached =
        any_device || allocation.device == device || range->opened_by == device || peers_.contains({device, allocation.device});
    const bool in_a_row =
        allocation.device == first->allocation.device && allocation.offset + (at - base_of(*range)) == offset + (at - address);
    if (!reached || !in_a_row) return nullptr;
    at = base_of(*range) + allocation.size;
    if (at - address >= length) return devices_->bytes(first->allocation.device, offset);
    if (any_device) return nullptr;
  }
  return nullptr;
}

}  // namespace moonpool::transfer::cuda
