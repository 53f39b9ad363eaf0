// A pool whose clients have device memory: puts, gets and registered buffers, over shared memory, TCP and RDMA.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/client_runtime.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"
#include "transfer/cuda/device_memory_for_test.h"
#include "transfer/rdma/pair_for_test.h"

namespace moonpool::store {
namespace {

using std::chrono::seconds;
using testing::Bytes;
using ::testing::HasSubstr;
using testing::pattern;
using testing::Pool;
using transfer::cuda::DeviceBytes;
using transfer::cuda::FakeRuntime;
using transfer::cuda::Runtime;

Deadline soon() { return Deadline::after(seconds(30)); }

// Is the process's CUDA while it lives.
class CudaOfTheProcess {
 public:
  CudaOfTheProcess() { Runtime::replace_for_test(&fake_.runtime()); }
  ~CudaOfTheProcess() { Runtime::replace_for_test(nullptr); }
  CudaOfTheProcess(const CudaOfTheProcess&) = delete;
  CudaOfTheProcess& operator=(const CudaOfTheProcess&) = delete;

  [[nodiscard]] transfer::cuda::FakeDriver& driver() { return fake_.driver(); }
  [[nodiscard]] Runtime& runtime() { return fake_.runtime(); }

 private:
  FakeRuntime fake_{transfer::cuda::test_settings(std::uint64_t{4} << 20)};
};

// A value in pieces on a device, as a paged cache has it.
class DeviceValue {
 public:
  DeviceValue(transfer::cuda::FakeDriver& driver, int device, std::size_t size, std::size_t piece)
      : driver_(driver), memory_(driver, device, 2 * size) {
    for (std::size_t at = 0; at < size; at += piece) {
      pieces_.push_back(memory_.bytes().subspan(2 * at, std::min(piece, size - at)));
      sources_.emplace_back(pieces_.back());
    }
  }
  [[nodiscard]] std::span<const ConstBytes> source() const { return sources_; }
  [[nodiscard]] std::span<const MutableBytes> destination() const { return pieces_; }
  [[nodiscard]] MutableBytes memory() const { return memory_.bytes(); }
  void set(ConstBytes value) {
    for (const auto piece : pieces_) {
      driver_.poke(reinterpret_cast<std::uint64_t>(piece.data()), value.first(piece.size()));
      value = value.subspan(piece.size());
    }
  }
  [[nodiscard]] Bytes get() const {
    Bytes value;
    for (const auto piece : pieces_) {
      Bytes part(piece.size());
      driver_.peek(reinterpret_cast<std::uint64_t>(piece.data()), part);
      value.insert(value.end(), part.begin(), part.end());
    }
    return value;
  }

 private:
  transfer::cuda::FakeDriver& driver_;
  DeviceBytes memory_;
  std::vector<MutableBytes> pieces_;
  std::vector<ConstBytes> sources_;
};

constexpr std::size_t kValue = 900'000;

class CudaPathsTest : public ::testing::Test {
 protected:
  static std::int32_t put(Client& client, std::string_view key, const DeviceValue& value) {
    const auto source = value.source();
    return client.put({&key, 1}, {&source, 1}).at(0);
  }
  static std::int64_t get(Client& client, std::string_view key, const DeviceValue& value) {
    const auto destination = value.destination();
    return client.get_into({&key, 1}, {&destination, 1}, true).at(0);
  }
  // Device to pool to device, and what the host sees of it.
  void round_trip(Client& writer, Client& reader, const std::string& key) {
    const auto value = pattern(key, 1, kValue);
    DeviceValue from(cuda_.driver(), 0, kValue, 30'000);
    from.set(value);
    ASSERT_EQ(put(writer, key, from), 0);
    DeviceValue to(cuda_.driver(), 1, kValue, 44'444);
    ASSERT_EQ(get(reader, key, to), static_cast<std::int64_t>(kValue));
    EXPECT_EQ(to.get(), value);
    const auto on_host = testing::get_fresh(reader, key);
    ASSERT_TRUE(on_host.ok()) << on_host.status().to_string();
    EXPECT_EQ(*on_host, value);
  }
  std::unique_ptr<Client> client_over(const std::string& paths, std::uint64_t segment = 0) {
    auto options = pool_.options(segment);
    options.paths = paths;
    return pool_.client(options);
  }

  CudaOfTheProcess cuda_;
  Pool pool_;
};

TEST_F(CudaPathsTest, DeviceMemoryGoesBetweenClientsThatShareMemory) {
  const auto owner = pool_.client();
  const auto user = client_over("local,shm");
  round_trip(*user, *user, "first: staged, or in place when the segment is pinned by then");
  ASSERT_TRUE(cuda_.runtime().regions().wait_settled(soon()));
  const auto launches = cuda_.driver().counts().launches;
  round_trip(*user, *user, "pinned");
  EXPECT_EQ(cuda_.driver().counts().launches, launches + 2) << "one each way";
  round_trip(*owner, *user, "the owner's own");
  round_trip(*user, *owner, "into the owner's device");
  EXPECT_EQ(cuda_.driver().counts().touched_unpinned, 0U);
}

TEST_F(CudaPathsTest, DeviceMemoryGoesOverTcp) {
  const auto owner = client_over("local,tcp", std::uint64_t{64} << 20);
  const auto user = client_over("tcp");
  round_trip(*user, *user, "tcp");
  round_trip(*owner, *user, "from the owner");
}

TEST_F(CudaPathsTest, RangesAndHostValuesGoToDevices) {
  const auto owner = pool_.client();
  const auto user = client_over("local,shm");
  const auto value = pattern("host", 1, kValue);
  ASSERT_EQ(testing::put_one(*user, "host", value), 0);
  DeviceValue to(cuda_.driver(), 0, kValue, 30'000);
  ASSERT_EQ(get(*user, "host", to), static_cast<std::int64_t>(kValue));
  EXPECT_EQ(to.get(), value);
  DeviceBytes part(cuda_.driver(), 1, 300'000);
  const RangeRead range{"host", {part.bytes()}, {12'345}};
  ASSERT_EQ(user->get_ranges({&range, 1}).at(0), 300'000);
  EXPECT_TRUE(std::ranges::equal(part.content(), ConstBytes(value).subspan(12'345, 300'000)));
}

TEST_F(CudaPathsTest, ARegisteredDeviceBufferIsRememberedAndHasItsNodesSegmentPinned) {
  const auto owner = pool_.client();
  DeviceValue value(cuda_.driver(), 1, kValue, 30'000);
  ASSERT_TRUE(owner->register_buffer(value.memory().data(), value.memory().size()).ok());
  EXPECT_TRUE(owner->register_buffer(value.memory().data(), value.memory().size()).ok()) << "once more is no mistake";
  ASSERT_TRUE(cuda_.runtime().regions().wait_settled(soon()));
  EXPECT_GE(cuda_.driver().counts().pinned_bytes, std::uint64_t{64} << 20);
  const auto locates = cuda_.driver().counts().locates;
  value.set(pattern("key", 1, kValue));
  const auto launches = cuda_.driver().counts().launches;
  ASSERT_EQ(put(*owner, "key", value), 0);
  ASSERT_EQ(get(*owner, "key", value), static_cast<std::int64_t>(kValue));
  EXPECT_EQ(cuda_.driver().counts().locates, locates) << "nothing is looked up again";
  EXPECT_EQ(cuda_.driver().counts().launches, launches + 2) << "in place from the first one on";
  EXPECT_EQ(value.get(), pattern("key", 1, kValue));
  EXPECT_TRUE(owner->unregister_buffer(value.memory().data()).ok());
  EXPECT_EQ(owner->unregister_buffer(value.memory().data()).code(), ErrorCode::kInvalidParams);
  ASSERT_EQ(put(*owner, "another", value), 0);
  EXPECT_GT(cuda_.driver().counts().locates, locates);
}

// An address at which nothing can be read, as a device's is for the host.
class Unreadable {
 public:
  Unreadable() : address_(::mmap(nullptr, kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Unreadable() { ::munmap(address_, kSize); }
  Unreadable(const Unreadable&) = delete;
  Unreadable& operator=(const Unreadable&) = delete;
  [[nodiscard]] void* address() const { return address_; }
  static constexpr std::size_t kSize = 8192;

 private:
  void* address_;
};

TEST_F(CudaPathsTest, WhatIsNobodysMemoryIsAnErrorAndNotACrash) {
  const auto client = pool_.client();
  const Unreadable nobodys;
  const Status status = client->register_buffer(nobodys.address(), Unreadable::kSize);
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(status.message(), HasSubstr("CUDA knows"));
  ASSERT_EQ(::mprotect(nobodys.address(), 4096, PROT_READ | PROT_WRITE), 0);
  EXPECT_TRUE(client->register_buffer(nobodys.address(), 4096).ok());
  EXPECT_FALSE(client->register_buffer(nobodys.address(), Unreadable::kSize).ok()) << "its end is out of reach";
  DeviceBytes first(cuda_.driver(), 0, 4096);
  const DeviceBytes second(cuda_.driver(), 1, 4096);
  if (second.bytes().data() > first.bytes().data()) {
    const auto length = static_cast<std::uint64_t>(second.bytes().data() - first.bytes().data()) + 4096;
    EXPECT_EQ(client->register_buffer(first.bytes().data(), length).code(), ErrorCode::kInvalidParams) << "two devices'";
  }
}

TEST(WithoutCuda, ADevicePointerIsAnErrorThatSaysWhatIsMissing) {
  const Pool pool;
  const auto client = pool.client();
  const Unreadable devices;
  const Status status = client->register_buffer(devices.address(), Unreadable::kSize);
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(status.message(), HasSubstr("CUDA is missing"));
  EXPECT_THAT(status.message(), HasSubstr(Runtime::why()));
}

// An owner and a user of protocol "rdma", two simulated NICs each.
class CudaRdmaTest : public CudaPathsTest {
 protected:
  [[nodiscard]] std::unique_ptr<ClientRuntime> start(const std::string& side, std::uint64_t segment) {
    auto options = pool_.options(segment);
    options.protocol = "rdma";
    options.rdma.device_names = side + "0," + side + "1";
    options.paths = "local,rdma";
    auto runtime = std::make_unique<ClientRuntime>(
        options, ClientRuntime::add_real_paths,
        [devices = transfer::rdma::simulated_devices(fabric_, side, 2)](
            const transfer::rdma::Options&) -> Result<std::shared_ptr<transfer::rdma::Devices>> { return devices; });
    const Status status = runtime->open();
    EXPECT_TRUE(status.ok()) << status.to_string();
    return runtime;
  }
  // From a device into the pool and out of it onto another, both registered.
  void round_trip(ClientRuntime& user, std::string_view key) {
    const auto value = pattern(std::string(key), 1, kValue);
    DeviceValue from(cuda_.driver(), 0, kValue, 30'000);
    from.set(value);
    ASSERT_TRUE(user.register_buffer(from.memory()).ok());
    DeviceValue to(cuda_.driver(), 1, kValue, 44'444);
    ASSERT_TRUE(user.register_buffer(to.memory()).ok());
    const auto source = from.source();
    ASSERT_EQ(user.puts().put({{&key, 1}, {&source, 1}, {}, false}, soon()).at(0), 0);
    const auto plan = [&](std::size_t, std::uint64_t size) -> Result<GetPath::Parts> {
      return GetPath::Parts{{0, size, GetPath::Destination(to.destination().begin(), to.destination().end())}};
    };
    const auto got = user.gets().get({&key, 1}, plan, soon()).at(0);
    ASSERT_TRUE(got.ok()) << got.status().to_string();
    EXPECT_EQ(to.get(), value);
    EXPECT_TRUE(user.unregister_buffer(from.memory().data(), soon()).ok());
    EXPECT_TRUE(user.unregister_buffer(to.memory().data(), soon()).ok());
  }

  transfer::rdma::SimulatedFabric fabric_;
};

TEST_F(CudaRdmaTest, NicsMoveDeviceMemoryThemselves) {
  const auto owner = start("owner", std::uint64_t{64} << 20);
  auto user = start("user", 0);
  const auto before = fabric_.counts("user0").registered;
  round_trip(*user, "first: staged, as nobody knows yet that there are kernels");
  const auto staged = user->device_paths().counters().staged_bytes.load();
  round_trip(*user, "second");
  round_trip(*user, "third");
  EXPECT_EQ(user->device_paths().counters().staged_bytes, staged);
  EXPECT_GE(user->device_paths().counters().by_nic_bytes, 4 * kValue);
  EXPECT_EQ(fabric_.counts("user0").dma_bufs, 2U) << "a ring a device, whatever was registered";
  EXPECT_EQ(fabric_.counts("user0").registered - before, 2U + 1U) << "the rings, and the transport's own staging for the first";
  const auto allocated = cuda_.driver().counts().allocations - cuda_.driver().counts().frees;
  user->close();
  EXPECT_EQ(fabric_.counts("user0").dma_bufs, 0U);
  EXPECT_EQ(allocated - (cuda_.driver().counts().allocations - cuda_.driver().counts().frees), 2U) << "the rings are freed";
}

class CudaRdmaStagedTest : public CudaRdmaTest {
 protected:
  CudaRdmaStagedTest() : CudaRdmaTest() {
    for (int i = 0; i < 20; ++i) cuda_.driver().fail("export_dma_buf", {ErrorCode::kNotSupported, "not of this kind"}, i);
  }
};

TEST_F(CudaRdmaStagedTest, DeviceMemoryThatNicsDoNotReachPassesThroughStagingThatTheyHave) {
  const auto owner = start("owner", std::uint64_t{64} << 20);
  const auto user = start("user", 0);
  const auto before = fabric_.counts("user0").registered;
  round_trip(*user, "first");
  EXPECT_EQ(fabric_.counts("user0").registered, before + 1) << "the ring, once";
  round_trip(*user, "second");
  EXPECT_EQ(fabric_.counts("user0").registered, before + 1);
  EXPECT_EQ(user->device_paths().counters().staged_bytes, 4 * kValue);
  EXPECT_EQ(user->device_paths().counters().by_nic_bytes, 0U);
}

}  // namespace
}  // namespace moonpool::store
