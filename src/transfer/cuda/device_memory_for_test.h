// Device memory for tests of paths: a runtime over a fake driver, and a transport that gives whatever passes through it pieces on devices.
//
// Threads: any. Each test has its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "transfer/cuda/fake/fake_driver.h"
#include "transfer/cuda/paths/device_paths.h"
#include "transfer/cuda/runtime.h"
#include "transfer/transport.h"

namespace moonpool::transfer::cuda {

inline Settings test_settings(std::uint64_t staging_bytes) {
  Settings settings;
  settings.multiprocessors = 2;
  settings.staging_bytes = staging_bytes;
  settings.nic_ring_bytes = staging_bytes;
  return settings;
}

// Bytes on a fake device, freed at the end.
class DeviceBytes {
 public:
  DeviceBytes(FakeDriver& driver, int device, std::uint64_t size) : driver_(&driver), device_(device), size_(size) {
    auto address = driver.allocate(device, std::max<std::uint64_t>(size, 1));
    if (!address.ok()) std::abort();  // a test with more than the fake has
    address_ = *address;
  }
  DeviceBytes(FakeDriver& driver, int device, ConstBytes content) : DeviceBytes(driver, device, content.size()) {
    driver.poke(address_, content);
  }
  DeviceBytes(DeviceBytes&& other) noexcept
      : driver_(std::exchange(other.driver_, nullptr)), device_(other.device_), address_(other.address_), size_(other.size_) {}
  DeviceBytes& operator=(DeviceBytes&&) = delete;
  ~DeviceBytes() {
    if (driver_ != nullptr) driver_->free(device_, address_);
  }

  [[nodiscard]] MutableBytes bytes() const { return {reinterpret_cast<std::byte*>(address_), static_cast<std::size_t>(size_)}; }
  [[nodiscard]] std::vector<std::byte> content() const {
    std::vector<std::byte> copy(size_);
    driver_->peek(address_, copy);
    return copy;
  }

 private:
  FakeDriver* driver_;
  int device_;
  std::uint64_t address_ = 0;
  std::uint64_t size_;
};

// A runtime with a fake driver that the test can reach.
class FakeRuntime {
 public:
  explicit FakeRuntime(const Settings& settings, const FakeOptions& options = {}) : FakeRuntime(settings, FakeDriver::create(options)) {}

  [[nodiscard]] FakeDriver& driver() { return *driver_; }
  [[nodiscard]] Runtime& runtime() { return runtime_; }
  [[nodiscard]] DevicePaths::FindRuntime find() {
    return [this] { return &runtime_; };
  }

 private:
  FakeRuntime(const Settings& settings, std::unique_ptr<FakeDriver> driver)
      : driver_(driver.get()), runtime_(std::move(driver), settings) {}

  FakeDriver* const driver_;
  Runtime runtime_;
};

// Where a piece of a batch goes: a device, or -1 to leave it in host memory.
using Place = std::function<int(std::size_t operation, std::size_t piece)>;

// Carries host pieces to devices and back around a transport that is to be tested with device pieces. What comes back is what the device
// has; the host's destination is written only when the operation says that it went well.
class OnDevices final : public Transport {
 public:
  OnDevices(FakeDriver& driver, Transport& paths, Place place) : driver_(driver), paths_(paths), place_(std::move(place)) {}

  [[nodiscard]] std::string_view name() const override { return paths_.name(); }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return paths_.reaches(peer); }
  void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) override { paths_.view(peer, operations, deadline); }
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override {
    paths_.write_in_place(peer, operations, fill, deadline);
  }

  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override {
    std::vector<DeviceBytes> memory;
    std::vector<std::vector<ConstBytes>> pieces(operations.size());
    std::vector<WriteOperation> moved(operations.begin(), operations.end());
    for (std::size_t i = 0; i < operations.size(); ++i) {
      for (std::size_t k = 0; k < operations[i].source.size(); ++k) {
        const ConstBytes piece = operations[i].source[k];
        const int device = place_(i, k);
        if (device < 0 || piece.empty()) {
          pieces[i].push_back(piece);
        } else {
          pieces[i].push_back(memory.emplace_back(driver_, device, piece).bytes());
        }
      }
      moved[i].source = pieces[i];
    }
    paths_.write(peer, moved, deadline);
    for (std::size_t i = 0; i < operations.size(); ++i) {
      operations[i].status = moved[i].status;
      operations[i].checksum = moved[i].checksum;
    }
  }

  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override {
    struct Landed {
      std::size_t operation;
      MutableBytes to;
      DeviceBytes from;
    };
    std::vector<Landed> memory;
    std::vector<std::vector<MutableBytes>> pieces(operations.size());
    std::vector<ReadOperation> moved(operations.begin(), operations.end());
    for (std::size_t i = 0; i < operations.size(); ++i) {
      for (std::size_t k = 0; k < operations[i].destination.size(); ++k) {
        const MutableBytes piece = operations[i].destination[k];
        const int device = place_(i, k);
        if (device < 0 || piece.empty()) {
          pieces[i].push_back(piece);
        } else {
          memory.push_back({i, piece, DeviceBytes(driver_, device, piece.size())});
          pieces[i].push_back(memory.back().from.bytes());
        }
      }
      moved[i].destination = pieces[i];
    }
    paths_.read(peer, moved, deadline);
    for (std::size_t i = 0; i < operations.size(); ++i) operations[i].status = moved[i].status;
    for (const auto& landed : memory) {
      if (!operations[landed.operation].status.ok()) continue;
      driver_.peek(reinterpret_cast<std::uint64_t>(landed.from.bytes().data()), landed.to);
    }
  }

 private:
  FakeDriver& driver_;
  Transport& paths_;
  const Place place_;
};

}  // namespace moonpool::transfer::cuda
