// What the tests of device paths share: objects on fake devices, and a world of a rig's transport, device paths in front of it and an
// owner.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/cuda/device_memory_for_test.h"
#include "transfer/transport_rigs_for_test.h"

namespace moonpool::transfer::cuda {

inline constexpr std::uint64_t kRing = std::uint64_t{4} << 20;
inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

inline std::uint64_t root_checksum(ConstBytes data) {
  ChunkHasher hasher;
  hasher.update(data);
  return root_of(hasher.finish());
}

// Objects on a device, each in pieces between which other bytes lie.
class DeviceObjects {
 public:
  static constexpr std::size_t kGap = 512;

  DeviceObjects(FakeDriver& driver, int device, std::size_t count, std::size_t size, std::size_t piece)
      : memory_(driver, device, count * ((size + piece - 1) / piece) * (piece + kGap)) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      auto& pieces = pieces_.emplace_back();
      auto& sources = sources_.emplace_back();
      for (std::size_t done = 0; done < size; done += piece, at += piece + kGap) {
        pieces.push_back(memory_.bytes().subspan(at, std::min(piece, size - done)));
        sources.emplace_back(pieces.back());
      }
    }
    driver_ = &driver;
  }
  [[nodiscard]] std::span<const ConstBytes> sources(std::size_t i) const { return sources_[i]; }
  [[nodiscard]] std::span<const MutableBytes> pieces(std::size_t i) const { return pieces_[i]; }
  void set(std::size_t i, ConstBytes content) {
    for (const auto piece : pieces_[i]) {
      driver_->poke(reinterpret_cast<std::uint64_t>(piece.data()), content.first(piece.size()));
      content = content.subspan(piece.size());
    }
  }
  [[nodiscard]] std::vector<std::byte> get(std::size_t i) const {
    std::vector<std::byte> content;
    for (const auto piece : pieces_[i]) {
      std::vector<std::byte> part(piece.size());
      driver_->peek(reinterpret_cast<std::uint64_t>(piece.data()), part);
      content.insert(content.end(), part.begin(), part.end());
    }
    return content;
  }

 private:
  FakeDriver* driver_ = nullptr;
  DeviceBytes memory_;
  std::vector<std::vector<MutableBytes>> pieces_;
  std::vector<std::vector<ConstBytes>> sources_;
};

// A rig's transport behind device paths, and an owner with a segment.
template <typename SomeRig>
class World {
 public:
  explicit World(const FakeOptions& options = {}, const Settings& settings = test_settings(kRing), bool verify = true)
      : fake_(settings, options), paths_(rig_.transport(), verify, fake_.find()) {
    EXPECT_TRUE(rig_.owner.adopt_term(kTerm, soon()).ok());
    const auto mounted = rig_.owner.mount(kSegmentSize);
    EXPECT_TRUE(mounted.ok());
    if (mounted.ok()) incarnation_ = *mounted;
    rig_.mounted(incarnation_);
    if constexpr (requires { rig_.nics(); }) paths_.use_nics(rig_.nics());
  }

  [[nodiscard]] SomeRig& rig() { return rig_; }
  [[nodiscard]] Owner& owner() { return rig_.owner; }
  [[nodiscard]] FakeDriver& driver() { return fake_.driver(); }
  [[nodiscard]] Runtime& runtime() { return fake_.runtime(); }
  [[nodiscard]] DevicePaths& paths() { return paths_; }
  [[nodiscard]] std::uint64_t in_place() const { return paths_.counters().in_place_bytes; }
  [[nodiscard]] std::uint64_t by_nic() const { return paths_.counters().by_nic_bytes; }
  [[nodiscard]] std::uint64_t staged() const { return paths_.counters().staged_bytes; }
  [[nodiscard]] const Incarnation& incarnation() const { return incarnation_; }
  [[nodiscard]] ExtentRef extent(std::uint64_t offset, std::uint64_t length) {
    return {incarnation_, offset, length, Version{kTerm, ++count_}};
  }
  [[nodiscard]] std::byte& owners_byte(std::uint64_t offset) {
    return *reinterpret_cast<std::byte*>(rig_.owner.segments()[0].base + offset);
  }

  // From an object on, one after the other in the segment.
  std::vector<WriteOperation> writes(const DeviceObjects& objects, std::size_t count, std::size_t size, std::uint64_t from = 0) {
    std::vector<WriteOperation> operations;
    for (std::size_t i = 0; i < count; ++i) operations.push_back({extent(from + i * size, size), "key", objects.sources(i), {}, 0});
    return operations;
  }
  static std::vector<ReadOperation> reads(std::span<const WriteOperation> written, const DeviceObjects& objects) {
    std::vector<ReadOperation> operations;
    for (std::size_t i = 0; i < written.size(); ++i) {
      operations.push_back({written[i].extent, 0, written[i].extent.length, objects.pieces(i), written[i].checksum, {}});
    }
    return operations;
  }
  void write(std::span<WriteOperation> operations, Deadline deadline = soon()) { paths_.write(rig_.peer, operations, deadline); }
  void read(std::span<ReadOperation> operations, Deadline deadline = soon()) { paths_.read(rig_.peer, operations, deadline); }
  // The segment is pinned from here on.
  void pin() {
    DeviceObjects small(driver(), 0, 1, 64, 64);
    auto operations = writes(small, 1, 64, kSegmentSize - 4096);
    write(operations);
    EXPECT_TRUE(operations[0].status.ok()) << operations[0].status.to_string();
    EXPECT_TRUE(runtime().regions().wait_settled(soon()));
  }

 private:
  SomeRig rig_;
  FakeRuntime fake_;
  DevicePaths paths_;
  Incarnation incarnation_;
  std::atomic<std::uint64_t> count_{0};
};

template <typename Operation>
void expect_ok(const std::vector<Operation>& operations) {
  for (std::size_t i = 0; i < operations.size(); ++i)
    EXPECT_TRUE(operations[i].status.ok()) << i << ": " << operations[i].status.to_string();
}

template <typename Operation>
void expect_all(const std::vector<Operation>& operations, ErrorCode code) {
  for (std::size_t i = 0; i < operations.size(); ++i)
    EXPECT_EQ(operations[i].status.code(), code) << i << ": " << operations[i].status.to_string();
}

// Writes objects from the device, reads them into others, and compares. Their checksums are the host's.
template <typename SomeRig>
void round_trip(World<SomeRig>& world, std::size_t count, std::size_t size, std::size_t piece, std::uint64_t seed) {
  DeviceObjects from(world.driver(), 0, count, size, piece);
  DeviceObjects to(world.driver(), 1, count, size, piece / 3 + 1);
  std::vector<std::vector<std::byte>> values;
  for (std::size_t i = 0; i < count; ++i) from.set(i, values.emplace_back(random_bytes(size, seed + i)));
  auto writes = world.writes(from, count, size);
  world.write(writes);
  expect_ok(writes);
  for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(writes[i].checksum, root_checksum(values[i])) << i;
  auto reads = world.reads(writes, to);
  world.read(reads);
  expect_ok(reads);
  for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(to.get(i), values[i]) << i;
  std::vector<RetirementOrder> orders;
  for (std::size_t i = 0; i < count; ++i) orders.push_back({i + 1, writes[i].extent});
  EXPECT_EQ(world.owner().retire(orders, soon()).size(), count);
}

}  // namespace moonpool::transfer::cuda
