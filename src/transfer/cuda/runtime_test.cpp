#include "transfer/cuda/runtime.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "transfer/cuda/driver/loaded_driver.h"
#include "transfer/cuda/fake/fake_driver.h"

namespace moonpool::transfer::cuda {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

class RuntimeTest : public ::testing::Test {
 protected:
  RuntimeTest() {
    auto driver = FakeDriver::create();
    driver_ = driver.get();
    runtime_ = std::make_unique<Runtime>(std::move(driver), Settings{});
  }
  ~RuntimeTest() override { Runtime::replace_for_test(nullptr); }

  static const void* pointer(std::uint64_t address) {
    return reinterpret_cast<const void*>(address);  // NOLINT(performance-no-int-to-ptr): addresses come as integers
  }
  static ConstBytes bytes(std::uint64_t address, std::size_t size) { return {static_cast<const std::byte*>(pointer(address)), size}; }

  FakeDriver* driver_ = nullptr;
  std::unique_ptr<Runtime> runtime_;
};

TEST_F(RuntimeTest, AddressesAreTheirDevicesOrTheHosts) {
  const auto first = driver_->allocate(0, 1 << 20);
  const auto second = driver_->allocate(1, 1 << 20);
  ASSERT_TRUE(first.ok() && second.ok());
  std::vector<std::byte> host(4096);
  EXPECT_EQ(runtime_->device_of(pointer(*first + 1000)), 0);
  EXPECT_EQ(runtime_->device_of(pointer(*second)), 1);
  EXPECT_EQ(runtime_->device_of(host.data()), std::nullopt);
  EXPECT_EQ(runtime_->device_of(nullptr), std::nullopt);
}

TEST_F(RuntimeTest, WhatIsRememberedCostsNoCallOfTheDriver) {
  const auto device = driver_->allocate(1, 1 << 20);
  ASSERT_TRUE(device.ok());
  std::vector<std::byte> host(1 << 16);
  runtime_->remember(bytes(*device, 1 << 20));
  runtime_->remember(host);
  runtime_->remember({});
  const auto before = driver_->counts().locates;
  EXPECT_EQ(runtime_->device_of(pointer(*device)), 1);
  EXPECT_EQ(runtime_->device_of(pointer(*device + (1 << 20) - 1)), 1);
  EXPECT_EQ(runtime_->device_of(host.data() + 100), std::nullopt);
  EXPECT_EQ(driver_->counts().locates, before);
  EXPECT_EQ(runtime_->device_of(host.data() + host.size()), std::nullopt);
  EXPECT_EQ(driver_->counts().locates, before + 1) << "the byte behind it is not in it";
  runtime_->forget(host.data() + 1);
  EXPECT_EQ(runtime_->device_of(host.data()), std::nullopt);
  EXPECT_EQ(driver_->counts().locates, before + 1) << "what begins elsewhere is not forgotten";
  runtime_->forget(host.data());
  EXPECT_EQ(runtime_->device_of(host.data()), std::nullopt);
  EXPECT_EQ(driver_->counts().locates, before + 2);
}

TEST_F(RuntimeTest, RangesThatOverlapOrComeAgainAreStillRight) {
  const auto device = driver_->allocate(1, 1 << 20);
  ASSERT_TRUE(device.ok());
  runtime_->remember(bytes(*device, 1 << 20));
  runtime_->remember(bytes(*device + 4096, 100));
  runtime_->remember(bytes(*device, 4096));
  for (const std::uint64_t offset : {0, 5000, 4100, 1 << 19}) EXPECT_EQ(runtime_->device_of(pointer(*device + offset)), 1);
  runtime_->forget(pointer(*device));
  for (const std::uint64_t offset : {0, 5000, 4100, 1 << 19}) EXPECT_EQ(runtime_->device_of(pointer(*device + offset)), 1);
}

TEST_F(RuntimeTest, RowsThatLieInManyRangesAreLookedUpWithoutTheDriver) {
  constexpr std::size_t kBuffers = 40;
  constexpr std::size_t kSize = 1 << 16;
  constexpr std::size_t kPiece = 1000;
  std::vector<std::pair<std::uint64_t, int>> buffers;
  for (std::size_t i = 0; i < kBuffers; ++i) {
    const int device = static_cast<int>(i % 2);
    const auto memory = driver_->allocate(device, kSize);
    ASSERT_TRUE(memory.ok());
    buffers.emplace_back(*memory, device);
  }
  const std::vector<std::byte> host(kSize);
  for (std::size_t i = 0; i < kBuffers; ++i) runtime_->remember(bytes(buffers[i * 7 % kBuffers].first, kSize));
  runtime_->remember(host);
  const auto before = driver_->counts().locates;
  Runtime::LookUp look_up(*runtime_);
  // Rows of different lengths, whose pieces lie in other buffers from time to time.
  for (std::size_t row = 0; row < 50; ++row) {
    look_up.begin_row();
    EXPECT_EQ(look_up.device_of(host.data() + row), std::nullopt);
    for (std::size_t i = 0; i < kBuffers - row % 3; ++i) {
      const auto& [address, device] = buffers[(i + row / 20) % kBuffers];
      ASSERT_EQ(look_up.device_of(pointer(address + row * kPiece)), device) << row << ", " << i;
      ASSERT_EQ(look_up.device_of(pointer(address + kSize - 1)), device) << row << ", " << i;
    }
  }
  EXPECT_EQ(driver_->counts().locates, before);
}

TEST_F(RuntimeTest, WhatIsInNoRangeIsLookedUpByTheDriverAndDoesNotSpoilARow) {
  const auto known = driver_->allocate(0, 4096);
  const auto unknown = driver_->allocate(1, 4096);
  ASSERT_TRUE(known.ok() && unknown.ok());
  const std::vector<std::byte> host(100);
  runtime_->remember(bytes(*known, 4096));
  const auto before = driver_->counts().locates;
  Runtime::LookUp look_up(*runtime_);
  for (std::uint64_t row = 1; row <= 3; ++row) {
    look_up.begin_row();
    EXPECT_EQ(look_up.device_of(pointer(*unknown + row)), 1);
    EXPECT_EQ(look_up.device_of(pointer(*known + row)), 0);
    EXPECT_EQ(look_up.device_of(host.data()), std::nullopt);
    EXPECT_EQ(look_up.device_of(nullptr), std::nullopt);
    EXPECT_EQ(driver_->counts().locates, before + 3 * row);
  }
}

TEST_F(RuntimeTest, ARangeThatIsForgottenIsNotFoundByALaterLook) {
  const auto first = driver_->allocate(0, 4096);
  const auto second = driver_->allocate(1, 4096);
  ASSERT_TRUE(first.ok() && second.ok());
  runtime_->remember(bytes(*first, 4096));
  runtime_->remember(bytes(*second, 4096));
  const auto look = [&] {
    Runtime::LookUp look_up(*runtime_);
    for (int row = 0; row < 2; ++row) {
      look_up.begin_row();
      EXPECT_EQ(look_up.device_of(pointer(*first)), 0);
      EXPECT_EQ(look_up.device_of(pointer(*second)), 1);
    }
  };
  const auto before = driver_->counts().locates;
  look();
  EXPECT_EQ(driver_->counts().locates, before);
  runtime_->forget(pointer(*first));
  look();
  EXPECT_EQ(driver_->counts().locates, before + 2);
  runtime_->forget(pointer(*second));
  look();
  EXPECT_EQ(driver_->counts().locates, before + 6);
}

TEST_F(RuntimeTest, ManyThreadsLookWhileOthersRegister) {
  const auto device = driver_->allocate(0, 1 << 20);
  ASSERT_TRUE(device.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 500; ++i) {
        const std::uint64_t begin = *device + (i % 50 * 2 + static_cast<std::uint64_t>(t)) * 4096;
        runtime_->remember(bytes(begin, 4096));
        ASSERT_EQ(runtime_->device_of(pointer(begin + 5)), 0);
        runtime_->forget(pointer(begin));
      }
    });
    threads.emplace_back([&] {
      for (std::uint64_t i = 0; i < 2000; ++i) ASSERT_EQ(runtime_->device_of(pointer(*device + i * 300)), 0);
    });
    threads.emplace_back([&] {
      for (std::uint64_t row = 0; row < 100; ++row) {
        Runtime::LookUp look_up(*runtime_);
        look_up.begin_row();
        for (std::uint64_t i = 0; i < 20; ++i) ASSERT_EQ(look_up.device_of(pointer(*device + row * 4096 + i * 8192)), 0);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(RuntimeTest, ItsPartsWorkTogether) {
  const auto lease = runtime_->staging().acquire(10'000, Deadline::after(std::chrono::seconds(60)));
  ASSERT_TRUE(lease.ok());
  const auto device = driver_->allocate(0, 10'000);
  ASSERT_TRUE(device.ok());
  const std::vector<std::byte> content(10'000, std::byte{42});
  driver_->poke(*device, content);
  const AddressRange piece{*device, 10'000};
  CopyJob job;
  job.pieces = {&piece, 1};
  job.contiguous = lease->memory();
  job.length = 10'000;
  auto ticket = runtime_->copier().submit(Direction::kGather, {&job, 1}, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
  ASSERT_TRUE(runtime_->copier().wait(**ticket, Deadline::after(std::chrono::seconds(60))).ok());
  EXPECT_TRUE(std::ranges::equal(lease->memory(), content));
}

TEST_F(RuntimeTest, TestsPutTheirOwnInThePlaceOfTheProcesses) {
  Runtime::replace_for_test(runtime_.get());
  EXPECT_EQ(Runtime::of_process(), runtime_.get());
  EXPECT_EQ(Runtime::why(), "");
  Runtime::replace_for_test(nullptr);
  EXPECT_NE(Runtime::of_process(), runtime_.get());
}

TEST_F(RuntimeTest, WithoutADriverInTheProcessItSaysWhatIsMissing) {
  if (driver_is_loaded()) GTEST_SKIP() << "somebody has loaded libcuda.so.1 into this process";
  EXPECT_EQ(Runtime::of_process(), nullptr);
  const bool device = ::access("/dev/nvidiactl", F_OK) == 0 || ::access("/dev/dxg", F_OK) == 0;
  EXPECT_THAT(Runtime::why(), HasSubstr(device ? "libcuda.so.1 is not loaded" : "no NVIDIA device"));
}

class SettingsTest : public ::testing::Test {
 protected:
  static constexpr std::array kNames = {"MOONPOOL_CUDA_SMS",       "MOONPOOL_CUDA_STAGING",        "MOONPOOL_CUDA_DEVICE_STAGING",
                                        "MOONPOOL_CUDA_CHECKSUMS", "MOONPOOL_CUDA_DEFAULT_STREAM", "MOONPOOL_CUDA_STAGE",
                                        "MOONPOOL_CUDA_GPUDIRECT"};
  SettingsTest() { clear(); }
  ~SettingsTest() override { clear(); }
  static void clear() {
    for (const auto* name : kNames) ::unsetenv(name);
  }
  static Settings with(const char* name, const char* value) {
    ::setenv(name, value, 1);
    return Settings::from_environment();
  }
};

TEST_F(SettingsTest, NothingSaysTheDefaults) {
  const auto settings = Settings::from_environment();
  EXPECT_EQ(settings.multiprocessors, 16U);
  EXPECT_EQ(settings.staging_bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(settings.device_staging_bytes, std::uint64_t{256} << 20);
  EXPECT_EQ(settings.nic_ring_bytes, std::uint64_t{64} << 20);
  EXPECT_TRUE(settings.checksums);
  EXPECT_TRUE(settings.after_default_stream);
}

TEST_F(SettingsTest, VariablesArriveAtTheirFields) {
  EXPECT_EQ(with("MOONPOOL_CUDA_SMS", "132").multiprocessors, 132U);
  EXPECT_EQ(with("MOONPOOL_CUDA_STAGING", " 128 MB ").staging_bytes, std::uint64_t{128} << 20);
  EXPECT_EQ(with("MOONPOOL_CUDA_DEVICE_STAGING", "512MB").device_staging_bytes, std::uint64_t{512} << 20);
  EXPECT_EQ(with("MOONPOOL_CUDA_DEVICE_STAGING", "96MB").device_staging_bytes, std::uint64_t{96} << 20);
  EXPECT_EQ(with("MOONPOOL_CUDA_DEVICE_STAGING", "0").device_staging_bytes, 0U) << "none";
  EXPECT_EQ(with("MOONPOOL_CUDA_GPUDIRECT", "128MB").nic_ring_bytes, std::uint64_t{128} << 20);
  EXPECT_EQ(with("MOONPOOL_CUDA_GPUDIRECT", "0").nic_ring_bytes, 0U) << "off";
  EXPECT_FALSE(with("MOONPOOL_CUDA_CHECKSUMS", "0").checksums);
  EXPECT_FALSE(with("MOONPOOL_CUDA_DEFAULT_STREAM", "off").after_default_stream);
  EXPECT_EQ(with("MOONPOOL_CUDA_CHECKSUMS", "1").multiprocessors, 132U) << "all at once";
}

TEST_F(SettingsTest, BadOnesAreSaidAndTheDefaultIsTaken) {
  ::testing::internal::CaptureStderr();
  for (const auto* text : {"0", "-1", "many", "2000", "16x"}) {
    EXPECT_EQ(with("MOONPOOL_CUDA_SMS", text).multiprocessors, 16U) << text;
  }
  for (const auto* text : {"4KB", "much", "9999999 TB"}) {
    EXPECT_EQ(with("MOONPOOL_CUDA_STAGING", text).staging_bytes, std::uint64_t{64} << 20) << text;
  }
  for (const auto* text : {"none", "-1", "9999999 TB"}) {
    EXPECT_EQ(with("MOONPOOL_CUDA_DEVICE_STAGING", text).device_staging_bytes, std::uint64_t{256} << 20) << text;
    EXPECT_EQ(with("MOONPOOL_CUDA_GPUDIRECT", text).nic_ring_bytes, std::uint64_t{64} << 20) << text;
  }
  EXPECT_TRUE(with("MOONPOOL_CUDA_CHECKSUMS", "maybe").checksums);
  EXPECT_TRUE(with("MOONPOOL_CUDA_STAGE", "1").after_default_stream);
  const std::string said = ::testing::internal::GetCapturedStderr();
  for (const auto* part :
       {"MOONPOOL_CUDA_SMS='many'", "from 1 to 1024", "MOONPOOL_CUDA_STAGING='4KB'", "such as 64MB", "MOONPOOL_CUDA_DEVICE_STAGING='none'",
        "0, or a size such as 160MB", "MOONPOOL_CUDA_CHECKSUMS='maybe'", "MOONPOOL_CUDA_STAGE: there is no such setting"}) {
    EXPECT_THAT(said, HasSubstr(part));
  }
}

}  // namespace
}  // namespace moonpool::transfer::cuda
