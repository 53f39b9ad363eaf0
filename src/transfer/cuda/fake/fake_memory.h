// The memory of fake devices: what all processes share (FakeDevices), and what one process sees of it (FakeAddresses).
//
// Each device is one memfd, mapped twice: once for the fake itself, once per process without access, which gives the device's addresses.
// Address spaces of processes differ, so that an address that one process takes over from another is found out.
//
// Threads: any for FakeDevices; FakeAddresses is guarded by its user, who lets work run under a shared lock and changes it under an
// exclusive one. Lifetime: allocations that a process leaves behind end with it, unless others have them open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "net/unique_fd.h"
#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

inline constexpr std::uint64_t kAllocationAlignment = 512;  // as cuMemAlloc has it

// An mmap of its own.
class FakeMapping {
 public:
  FakeMapping() = default;
  FakeMapping(int fd, std::uint64_t size, int protection);
  FakeMapping(FakeMapping&& other) noexcept : memory_(std::exchange(other.memory_, {})) {}
  FakeMapping& operator=(FakeMapping&& other) noexcept;
  ~FakeMapping();
  [[nodiscard]] std::span<std::byte> memory() const { return memory_; }

 private:
  std::span<std::byte> memory_;
};

class FakeDevices {
 public:
  struct Allocation {
    std::uint64_t id = 0;
    std::uint64_t process = 0;  // who made it
    int device = 0;
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    int users = 0;  // the maker, until it frees it, and processes that have it open
    bool freed = false;
  };

  FakeDevices(int devices, std::uint64_t bytes);

  [[nodiscard]] int count() const { return static_cast<int>(devices_.size()); }
  [[nodiscard]] std::uint64_t number() const { return number_; }  // unlike that of other fakes of this host
  [[nodiscard]] std::uint64_t new_process();
  [[nodiscard]] FakeMapping map_without_access(int device) const;
  // A descriptor of its own, whose position is `offset`.
  [[nodiscard]] net::UniqueFd open_file(int device, std::uint64_t offset) const;
  [[nodiscard]] std::byte* bytes(int device, std::uint64_t offset) const;

  // Nullopt: no room.
  [[nodiscard]] std::optional<Allocation> allocate(std::uint64_t process, int device, std::uint64_t size);
  // Nullopt: there is none, or its maker has freed it.
  [[nodiscard]] std::optional<Allocation> find(std::uint64_t id) const;
  [[nodiscard]] std::optional<Allocation> open(std::uint64_t id);
  // One user less; the memory is used again after the last.
  void release(std::uint64_t id, bool by_maker);

 private:
  struct Memory {
    net::UniqueFd file;
    FakeMapping mapping;
    std::map<std::uint64_t, std::uint64_t> taken;  // offset, size
  };
  [[nodiscard]] std::optional<std::uint64_t> find_room(const Memory& memory, std::uint64_t size) const;  // with mutex_

  const std::uint64_t number_;
  const std::uint64_t bytes_;
  mutable std::mutex mutex_;  // guards the rest but for files and mappings, which do not change
  std::vector<Memory> devices_;
  std::map<std::uint64_t, Allocation> allocations_;  // by id
  std::uint64_t next_id_ = 1;
};

class FakeAddresses {
 public:
  explicit FakeAddresses(std::shared_ptr<FakeDevices> devices);
  FakeAddresses(const FakeAddresses&) = delete;
  FakeAddresses& operator=(const FakeAddresses&) = delete;
  ~FakeAddresses();

  struct Range {
    FakeDevices::Allocation allocation;
    int opened_by = -1;  // the device for which it was opened; -1: our own allocation
  };
  std::uint64_t add(const FakeDevices::Allocation& allocation, int opened_by = -1);
  void remove(std::uint64_t base);
  // The allocation that an address lies in; null: none.
  [[nodiscard]] const Range* find(std::uint64_t address) const;
  [[nodiscard]] std::uint64_t base_of(const Range& range) const;
  [[nodiscard]] bool has(std::uint64_t allocation_id) const;
  // Whether the address is one of a device, allocated or not.
  [[nodiscard]] bool of_a_device(std::uint64_t address) const;

  // False: some of it is pinned already.
  [[nodiscard]] bool pin(std::span<std::byte> memory);
  [[nodiscard]] bool unpin(std::span<std::byte> memory);  // by its first byte; false: it is not pinned
  [[nodiscard]] bool is_pinned(std::uint64_t address, std::uint64_t length) const;
  [[nodiscard]] std::uint64_t pinned_bytes() const { return pinned_bytes_; }
  // Pinned memory that this object owns.
  std::span<std::byte> add_host(std::uint64_t size);
  [[nodiscard]] bool remove_host(std::span<std::byte> memory);

  void allow_peer(int device, int peer) { peers_.emplace(device, peer); }
  // The bytes behind an address for work on `device`; any_device: copies, which reach all. Null: an illegal address.
  [[nodiscard]] std::byte* bytes_for(int device, std::uint64_t address, std::uint64_t length, bool any_device) const;

 private:
  const std::shared_ptr<FakeDevices> devices_;
  std::vector<FakeMapping> reserved_;              // by device
  std::map<std::uint64_t, Range> ranges_;          // by first address
  std::map<std::uint64_t, std::uint64_t> pinned_;  // first address, size
  std::map<std::uint64_t, FakeMapping> host_;      // by first address
  std::set<std::pair<int, int>> peers_;
  std::uint64_t pinned_bytes_ = 0;
};

}  // namespace moonpool::transfer::cuda
