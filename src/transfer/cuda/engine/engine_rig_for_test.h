// What the tests of transfer engines with device memory share: processes that see the same fake devices, their registered memory, and two
// of them that transfer.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/cuda/engine/engine_moves.h"
#include "transfer/cuda/fake/fake_driver.h"
#include "transfer/rdma/devices.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer::cuda {

using Memory = std::vector<std::byte>;

inline constexpr std::uint64_t kSize = 3'000'001;  // several windows of the smallest staging memory

inline Memory random_bytes(std::size_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  Memory bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// A process: its view of the devices, its runtime and its engine. With NICs, its protocol is "rdma".
struct Process {
  explicit Process(std::unique_ptr<FakeDriver> driver, std::chrono::milliseconds timeout = std::chrono::seconds(30),
                   const std::shared_ptr<rdma::Devices>& nics = nullptr)
      : fake(driver.get()) {
    Settings settings;
    settings.staging_bytes = std::uint64_t{1} << 20;
    runtime = std::make_unique<Runtime>(std::move(driver), settings);
    EngineOptions options;
    options.name = "127.0.0.1";
    options.metadata_url = "P2PHANDSHAKE";
    options.timeout = timeout;
    if (nics != nullptr) options.protocol = "rdma";
    auto made = TransferEngine::create(
        std::move(options), [nics](const rdma::Options&) -> Result<std::shared_ptr<rdma::Devices>> { return nics; },
        [this] { return runtime.get(); });
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    if (made.ok()) engine = std::move(*made);
  }

  FakeDriver* const fake;
  std::unique_ptr<Runtime> runtime;
  std::unique_ptr<TransferEngine> engine;
};

// Registered memory, on a device or (-1) of the host.
class Buffer {
 public:
  Buffer(Process& process, int device, std::uint64_t size = kSize) : process_(process), device_(device), size_(size) {
    if (device < 0) {
      host_.resize(size);
      address_ = reinterpret_cast<std::uint64_t>(host_.data());
    } else {
      const auto allocated = process.fake->allocate(device, size);
      EXPECT_TRUE(allocated.ok()) << allocated.status().to_string();
      address_ = allocated.ok() ? *allocated : 0;
    }
    const Status status = process.engine->register_memory(address_, size);
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
  ~Buffer() {
    if (process_.engine != nullptr) (void)process_.engine->unregister_memory(address_);
    if (device_ >= 0) process_.fake->free(device_, address_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] std::uint64_t at(std::uint64_t offset = 0) const { return address_ + offset; }
  void set(const Memory& bytes) {
    if (device_ < 0) {
      host_ = bytes;
      EXPECT_EQ(reinterpret_cast<std::uint64_t>(host_.data()), address_);
    } else {
      process_.fake->poke(address_, bytes);
    }
  }
  [[nodiscard]] Memory get() {
    if (device_ < 0) return host_;
    Memory bytes(size_);
    process_.fake->peek(address_, bytes);
    return bytes;
  }

 private:
  Process& process_;
  const int device_;
  const std::uint64_t size_;
  Memory host_;
  std::uint64_t address_ = 0;
};

class CudaEngineTest : public ::testing::Test {
 protected:
  void SetUp() override { start({}); }
  void TearDown() override {
#ifdef MOONPOOL_SYNC_POINTS
    SyncPoints::instance().clear();
#endif
  }
  void start(const FakeOptions& options, std::chrono::milliseconds timeout = std::chrono::seconds(30)) {
    there_.reset();
    here_.reset();
    auto driver = FakeDriver::create(options);
    auto other = driver->another_process();
    here_ = std::make_unique<Process>(std::move(driver), timeout);
    there_ = std::make_unique<Process>(std::move(other), std::chrono::seconds(30));
  }
  Status transfer(Opcode opcode, const std::vector<Piece>& pieces) {
    return here_->engine->transfer(there_->engine->session(), opcode, pieces);
  }
  [[nodiscard]] std::uint64_t direct_bytes() const { return here_->engine->device_counters().direct_bytes; }
  [[nodiscard]] std::uint64_t staged_bytes() const { return here_->engine->device_counters().staged_bytes; }

  // Whole buffers both ways, from and to these devices.
  void expect_both_ways(int here, int there) {
    SCOPED_TRACE("device " + std::to_string(here) + " here, " + std::to_string(there) + " there");
    Buffer mine(*here_, here);
    Buffer theirs(*there_, there);
    const auto written = random_bytes(kSize, 1);
    const auto read = random_bytes(kSize, 2);
    mine.set(written);
    Status status = transfer(Opcode::kWrite, {{mine.at(), theirs.at(), kSize}});
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_TRUE(theirs.get() == written);
    theirs.set(read);
    status = transfer(Opcode::kRead, {{mine.at(), theirs.at(), kSize}});
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_TRUE(mine.get() == read);
  }

  std::unique_ptr<Process> here_, there_;
};

}  // namespace moonpool::transfer::cuda
