// The drivers that driver_test.cpp's contract is tested with: the fake one everywhere, the machine's own where there is one. What a test
// does here goes through driver.h alone, so that it means the same on both.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transfer/cuda/driver/driver.h"
#include "transfer/cuda/fake/fake_driver.h"

namespace moonpool::transfer::cuda {

using Bytes = std::vector<std::byte>;

[[nodiscard]] inline std::uint64_t number_of(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

// Bytes that differ from place to place, and from seed to seed.
[[nodiscard]] Bytes pattern(std::size_t size, unsigned seed);

class DriverRig {
 public:
  virtual ~DriverRig() = default;
  [[nodiscard]] virtual Driver& driver() = 0;
  [[nodiscard]] virtual FakeDriver* fake() { return nullptr; }  // null: the real one
  // In another process: opens the handle, expects pattern(size, seed) there and writes pattern(size, seed + 1). Empty: it was so.
  [[nodiscard]] virtual std::string exchange_in_another_process(const IpcHandle& handle, std::size_t size, unsigned seed) = 0;
  // In another process, because a GPU's context does not outlive it: what done() says of a launch whose tables are at an address without
  // memory.
  [[nodiscard]] virtual Status illegal_launch_in_another_process() = 0;
};

// "fake", "real". Null with the reason in `why_not`.
[[nodiscard]] std::unique_ptr<DriverRig> make_rig(const std::string& name, std::string& why_not);
// What the other process of the real rig runs: an exit status when the arguments are meant for it.
[[nodiscard]] std::optional<int> run_as_other_process(int argc, char** argv);

// Queues an event behind the stream's work and asks for it until it is there. An error of the work, or kRpcTimeout.
[[nodiscard]] Status finish(Driver& driver, int device, Stream stream);
// To and from device memory, by pinned memory and a stream of its own.
[[nodiscard]] Status upload(Driver& driver, int device, std::uint64_t to, const Bytes& bytes);
[[nodiscard]] Result<Bytes> download(Driver& driver, int device, std::uint64_t from, std::size_t size);
[[nodiscard]] Status launch_without_tables(Driver& driver);
[[nodiscard]] std::string exchange(Driver& driver, const IpcHandle& handle, std::size_t size, unsigned seed);

// A memfd, mapped: as a segment of the pool is.
class SharedHostMemory {
 public:
  explicit SharedHostMemory(std::size_t size) : file_(::memfd_create("driver_test", MFD_CLOEXEC)) {
    EXPECT_EQ(::ftruncate(file_.get(), off_t(size)), 0);
    void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    EXPECT_NE(memory, MAP_FAILED);
    memory_ = {static_cast<std::byte*>(memory), size};
  }
  SharedHostMemory(const SharedHostMemory&) = delete;
  SharedHostMemory& operator=(const SharedHostMemory&) = delete;
  ~SharedHostMemory() { ::munmap(memory_.data(), memory_.size()); }
  [[nodiscard]] std::span<std::byte> get() const { return memory_; }

 private:
  net::UniqueFd file_;
  std::span<std::byte> memory_;
};

// A launch's tables in pinned memory: one job of three pieces, in chunks of 256 KiB.
class PiecesAndTables {
 public:
  static constexpr std::size_t kLength = 600'001;
  static constexpr std::array<std::size_t, 3> kEnds{100, 300'000, kLength};

  PiecesAndTables(std::span<std::byte> room, const std::array<std::uint64_t, 3>& pieces, std::uint64_t contiguous)
      : pieces_(reinterpret_cast<PieceEntry*>(room.data())),
        chunks_(reinterpret_cast<ChunkEntry*>(room.data() + 1024)),
        checksums_(reinterpret_cast<std::uint64_t*>(room.data() + 2048)) {
    std::size_t begin = 0;
    for (std::size_t at = 0; at < pieces.size(); ++at) {
      pieces_[at] = {.origin = pieces[at] - begin, .end = kEnds[at]};
      begin = kEnds[at];
    }
    for (std::size_t offset = 0; offset < kLength; offset += kLargestChunk) {
      const std::size_t first = offset < kEnds[0] ? 0 : offset < kEnds[1] ? 1 : 2;
      chunks_[chunk_count_++] = {.contiguous = contiguous + offset,
                                 .offset = offset,
                                 .first_piece = std::uint32_t(first),
                                 .length = std::uint32_t(std::min<std::size_t>(kLargestChunk, kLength - offset))};
    }
  }
  [[nodiscard]] MoveArguments arguments() const {
    return {.pieces = pieces_, .chunks = chunks_, .checksums = checksums_, .chunk_count = chunk_count_};
  }
  [[nodiscard]] std::span<const std::uint64_t> checksums() const { return {checksums_, chunk_count_}; }

 private:
  PieceEntry* const pieces_;
  ChunkEntry* const chunks_;
  std::uint64_t* const checksums_;
  std::uint32_t chunk_count_ = 0;
};

}  // namespace moonpool::transfer::cuda
