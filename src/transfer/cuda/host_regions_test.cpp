#include "transfer/cuda/host_regions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "tests/support/test_support.h"
#include "transfer/cuda/fake/fake_driver.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(seconds(60)); }

// What is logged while it lives.
class LogLines {
 public:
  LogLines() {
    sink_ = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    log::logger().sinks().push_back(sink_);
  }
  ~LogLines() { std::erase(log::logger().sinks(), sink_); }
  std::string text() const { return text_.str(); }
  std::size_t count(std::string_view what) const {
    const std::string all = text();
    std::size_t found = 0;
    for (auto at = all.find(what); at != std::string::npos; at = all.find(what, at + 1)) ++found;
    return found;
  }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::sinks::sink> sink_;
};

// A mapping as a segment is one.
struct Mapping {
  explicit Mapping(std::size_t size) {
    void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(address, MAP_FAILED);
    memory = {static_cast<std::byte*>(address), size};
  }
  ~Mapping() { ::munmap(memory.data(), memory.size()); }
  MutableBytes memory;
};

constexpr std::size_t kSize = 1 << 20;

class HostRegionsTest : public ::testing::Test {
 protected:
  void start(const FakeOptions& options = {}, milliseconds try_again = HostRegions::kTryAgain) {
    driver_ = FakeDriver::create(options);
    regions_ = std::make_unique<HostRegions>(*driver_, try_again);
  }
  std::uint64_t number(const std::byte* address) { return reinterpret_cast<std::uint64_t>(address); }

  std::unique_ptr<FakeDriver> driver_;
  std::unique_ptr<HostRegions> regions_;
};

TEST_F(HostRegionsTest, PagesAreMadeBeforeTheDriverIsAskedToPinThem) {
  start();
  const auto mapping = std::make_shared<Mapping>(kSize);
  const auto resident = [&] {
    std::vector<unsigned char> pages(kSize / 4096);
    EXPECT_EQ(::mincore(mapping->memory.data(), kSize, pages.data()), 0);
    return std::ranges::count_if(pages, [](unsigned char page) { return (page & 1U) != 0; });
  };
  EXPECT_EQ(resident(), 0);
  regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_EQ(resident(), kSize / 4096) << "the fake touches none";
}

TEST_F(HostRegionsTest, ARegionIsPinnedOnceForAllDevices) {
  start();
  const auto mapping = std::make_shared<Mapping>(kSize);
  EXPECT_FALSE(regions_->device_address(0, mapping->memory).has_value());
  for (int i = 0; i < 3; ++i) regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  regions_->want(mapping->memory, mapping, "a segment");
  regions_->want(mapping->memory.subspan(4096, 100), mapping, "a part of it");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_EQ(driver_->counts().registered, 1U);
  for (const int device : {0, 1}) {
    const auto found = regions_->device_address(device, mapping->memory.subspan(77, 1000));
    ASSERT_TRUE(found.has_value());
    const auto expected = driver_->device_address(device, mapping->memory.data() + 77);
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(found->address, *expected);
  }
  EXPECT_TRUE(regions_->device_address(0, mapping->memory).has_value());
  EXPECT_FALSE(regions_->device_address(2, mapping->memory).has_value()) << "no such device";
}

TEST_F(HostRegionsTest, ARangeThatLeavesItsRegionHasNoAddress) {
  start();
  const auto mapping = std::make_shared<Mapping>(kSize);
  const auto inner = mapping->memory.subspan(4096, kSize / 2);
  regions_->want(inner, mapping, "a part");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_TRUE(regions_->device_address(0, inner).has_value());
  EXPECT_FALSE(regions_->device_address(0, mapping->memory.subspan(4095, 10)).has_value());
  EXPECT_FALSE(regions_->device_address(0, mapping->memory.subspan(4096 + kSize / 2 - 9, 10)).has_value());
  EXPECT_FALSE(regions_->device_address(0, mapping->memory.last(10)).has_value());
  EXPECT_FALSE(regions_->device_address(0, mapping->memory.first(10)).has_value());
}

TEST_F(HostRegionsTest, ARegionThatNobodyElseHoldsIsUnpinnedAndLetGo) {
  start();
  auto mapping = std::make_shared<Mapping>(kSize);
  const std::weak_ptr<Mapping> alive = mapping;
  const auto memory = mapping->memory;
  regions_->want(memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  auto found = regions_->device_address(0, memory);
  ASSERT_TRUE(found.has_value());
  mapping.reset();
  EXPECT_FALSE(test::wait_until([&] { return driver_->counts().unregistered > 0 || alive.expired(); }, Deadline::after(milliseconds(400))))
      << "it is in use";
  found.reset();
  EXPECT_TRUE(test::wait_until([&] { return alive.expired(); }, soon()));
  EXPECT_EQ(driver_->counts().unregistered, 1U);
  EXPECT_EQ(driver_->counts().pinned_bytes, 0U);
  EXPECT_FALSE(regions_->device_address(0, memory).has_value());
}

TEST_F(HostRegionsTest, ARefusalIsSaidOnceWithTheRemedyAndTriedAgainLater) {
  start({}, milliseconds(50));
  const LogLines lines;
  const Status refused(ErrorCode::kNoAvailableHandle, "cuMemHostRegister: CUDA_ERROR_OUT_OF_MEMORY");
  for (int i = 0; i < 3; ++i) driver_->fail("register_host", refused, i);
  const auto mapping = std::make_shared<Mapping>(kSize);
  regions_->want(mapping->memory, mapping, "the segment of 10.0.0.2:12345");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_TRUE(test::wait_until([&] { return regions_->device_address(0, mapping->memory).has_value(); }, soon()));
  EXPECT_EQ(driver_->counts().registered, 1U);
  regions_.reset();
  EXPECT_EQ(lines.count("cannot be pinned"), 1U) << lines.text();
  for (const auto* part : {"the segment of 10.0.0.2:12345", "1.0 MiB", "CUDA_ERROR_OUT_OF_MEMORY", "RLIMIT_MEMLOCK is", "ulimit -l"}) {
    EXPECT_THAT(lines.text(), HasSubstr(part));
  }
}

TEST_F(HostRegionsTest, ARefusedRegionIsNotTriedAgainAtOnce) {
  start();
  driver_->fail("register_host", {ErrorCode::kInternal, "cuMemHostRegister: CUDA_ERROR_UNKNOWN"});
  auto mapping = std::make_shared<Mapping>(kSize);
  regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_FALSE(regions_->device_address(0, mapping->memory).has_value());
  EXPECT_EQ(driver_->counts().registered, 0U);
  // Another one is tried none the less, and the refused one is let go like any other.
  const auto other = std::make_shared<Mapping>(kSize);
  regions_->want(other->memory, other, "another segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_TRUE(regions_->device_address(0, other->memory).has_value());
  const std::weak_ptr<Mapping> alive = mapping;
  mapping.reset();
  EXPECT_TRUE(test::wait_until([&] { return alive.expired(); }, soon()));
  EXPECT_EQ(driver_->counts().unregistered, 0U);
}

TEST_F(HostRegionsTest, TheDriversLimitLeavesWhatIsPinnedAlone) {
  FakeOptions options;
  options.pinned_bytes = kSize + kSize / 2;
  start(options);
  const auto first = std::make_shared<Mapping>(kSize);
  const auto second = std::make_shared<Mapping>(kSize);
  regions_->want(first->memory, first, "the first");
  regions_->want(second->memory, second, "the second");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_TRUE(regions_->device_address(0, first->memory).has_value());
  EXPECT_FALSE(regions_->device_address(0, second->memory).has_value());
}

TEST_F(HostRegionsTest, WhatOthersHavePinnedIsUsedAndNeverUnpinned) {
  start();
  auto mapping = std::make_shared<Mapping>(kSize);
  ASSERT_TRUE(driver_->register_host(mapping->memory).ok());
  regions_->want(mapping->memory.subspan(4096, kSize / 2), mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  const auto found = regions_->device_address(1, mapping->memory.subspan(5000, 1000));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->address, *driver_->device_address(1, mapping->memory.data() + 5000));
  regions_.reset();
  EXPECT_EQ(driver_->counts().unregistered, 0U);
  EXPECT_TRUE(driver_->device_address(1, mapping->memory.data()).ok());
  driver_->unregister_host(mapping->memory);
}

TEST_F(HostRegionsTest, WhatOthersHavePinnedInPartIsRefused) {
  start();
  const LogLines lines;
  const auto mapping = std::make_shared<Mapping>(kSize);
  ASSERT_TRUE(driver_->register_host(mapping->memory.first(kSize / 2)).ok());
  regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_FALSE(regions_->device_address(0, mapping->memory.first(100)).has_value());
  regions_.reset();
  EXPECT_THAT(lines.text(), HasSubstr("Somebody else in this process has pinned a part of it"));
  EXPECT_EQ(driver_->counts().unregistered, 0U);
  driver_->unregister_host(mapping->memory.first(kSize / 2));
}

TEST_F(HostRegionsTest, WhatOthersLetGoHasNoAddressUntilItIsPinnedByUs) {
  start({}, milliseconds(50));
  const auto mapping = std::make_shared<Mapping>(kSize);
  ASSERT_TRUE(driver_->register_host(mapping->memory).ok());
  regions_->want(mapping->memory, mapping, "a segment");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  ASSERT_TRUE(regions_->device_address(0, mapping->memory).has_value());
  driver_->unregister_host(mapping->memory);
  EXPECT_FALSE(regions_->device_address(0, mapping->memory).has_value());
  EXPECT_TRUE(test::wait_until([&] { return regions_->device_address(0, mapping->memory).has_value(); }, soon()));
  EXPECT_EQ(driver_->counts().registered, 2U);
  regions_.reset();
  EXPECT_EQ(driver_->counts().pinned_bytes, 0U);
}

TEST_F(HostRegionsTest, TheDriversOwnMemoryIsMadeKnownAndForgotten) {
  start();
  const auto memory = driver_->allocate_host(kSize);
  ASSERT_TRUE(memory.ok());
  EXPECT_FALSE(regions_->device_address(0, *memory).has_value());
  regions_->add_pinned(*memory);
  EXPECT_TRUE(regions_->device_address(0, memory->last(1)).has_value());
  EXPECT_TRUE(regions_->wait_settled(soon()));
  EXPECT_EQ(driver_->counts().registered, 0U);
  regions_->forget(memory->data());
  EXPECT_FALSE(regions_->device_address(0, *memory).has_value());
  driver_->free_host(*memory);
}

TEST_F(HostRegionsTest, ItsEndUnpinsAll) {
  start();
  std::vector<std::shared_ptr<Mapping>> mappings;
  for (int i = 0; i < 5; ++i) {
    mappings.push_back(std::make_shared<Mapping>(kSize));
    regions_->want(mappings.back()->memory, mappings.back(), "a segment");
  }
  ASSERT_TRUE(regions_->wait_settled(soon()));
  EXPECT_EQ(driver_->counts().pinned_bytes, 5 * kSize);
  regions_.reset();
  EXPECT_EQ(driver_->counts().pinned_bytes, 0U);
  EXPECT_EQ(driver_->counts().unregistered, 5U);
}

TEST_F(HostRegionsTest, SegmentsComeAndGoWhileOthersLook) {
  start();
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stop) {
        const auto mapping = std::make_shared<Mapping>(kSize);
        regions_->want(mapping->memory, mapping, "a segment");
        ASSERT_TRUE(test::wait_until([&] { return regions_->device_address(0, mapping->memory).has_value(); }, soon()));
        const auto found = regions_->device_address(0, mapping->memory.subspan(10));
        ASSERT_TRUE(found.has_value());
        ASSERT_EQ(found->address, *driver_->device_address(0, mapping->memory.data() + 10));
      }
    });
  }
  EXPECT_TRUE(test::wait_until([&] { return driver_->counts().registered >= 60; }, soon()));
  stop = true;
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(test::wait_until([&] { return driver_->counts().pinned_bytes == 0; }, soon())) << "all are let go";
}

}  // namespace
}  // namespace moonpool::transfer::cuda
