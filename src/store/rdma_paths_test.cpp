// A pool whose nodes have RDMA: puts and gets over two simulated NICs on each side, which fail in the midst of them and come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "store/client_runtime.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"
#include "transfer/rdma/pair_for_test.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Bytes;
using ::testing::HasSubstr;
using testing::pattern;
using testing::Pool;
using transfer::rdma::simulated_devices;
using transfer::rdma::SimulatedFabric;

constexpr std::size_t kObjects = 8;
constexpr std::size_t kObject = std::size_t{1} << 20;

class RdmaPathsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    owner_ = start("owner", std::uint64_t{64} << 20);
    user_ = start("user", 0);
  }

  std::unique_ptr<ClientRuntime> start(const std::string& side, std::uint64_t segment) {
    auto runtime = runtime_for(side, segment, simulated_devices(fabric_, side, 2));
    const Status status = runtime->open();
    EXPECT_TRUE(status.ok()) << status.to_string();
    return runtime;
  }
  std::unique_ptr<ClientRuntime> runtime_for(const std::string& side, std::uint64_t segment,
                                             std::shared_ptr<transfer::rdma::Devices> devices) {
    auto options = pool_.options(segment);
    options.protocol = "rdma";
    options.rdma.device_names = side + "0," + side + "1";
    options.paths = "local,rdma,tcp";  // the nodes are on one host
    return std::make_unique<ClientRuntime>(options, ClientRuntime::add_real_paths,
                                           [devices = std::move(devices), names = options.rdma.device_names](
                                               const transfer::rdma::Options& rdma) -> Result<std::shared_ptr<transfer::rdma::Devices>> {
                                             EXPECT_EQ(rdma.device_names, names);
                                             return devices;
                                           });
  }

  // A batch of its own keys. The number of them that failed.
  int put(int batch) {
    std::vector<std::string> keys;
    std::vector<Bytes> values;
    for (std::size_t i = 0; i < kObjects; ++i) {
      keys.push_back(std::to_string(batch) + "/" + std::to_string(i));
      values.push_back(pattern(keys.back(), 1, kObject));
    }
    const std::vector<std::string_view> names(keys.begin(), keys.end());
    std::vector<ConstBytes> pieces(values.begin(), values.end());
    std::vector<std::span<const ConstBytes>> sources;
    for (const auto& piece : pieces) sources.emplace_back(&piece, 1);
    int failed = 0;
    for (const auto code : user_->puts().put({names, sources, {}, false}, Deadline::after(seconds(20)))) failed += code == 0 ? 0 : 1;
    return failed;
  }
  // The number of that batch's objects that were not read; a wrong byte fails the test.
  int get(int batch) {
    std::vector<std::string> keys;
    for (std::size_t i = 0; i < kObjects; ++i) keys.push_back(std::to_string(batch) + "/" + std::to_string(i));
    const std::vector<std::string_view> names(keys.begin(), keys.end());
    std::vector<Bytes> rooms(kObjects, Bytes(kObject));
    const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
      EXPECT_EQ(size, kObject);
      return GetPath::Parts{{0, size, {rooms[index]}}};
    };
    const auto results = user_->gets().get(names, plan, Deadline::after(seconds(20)));
    int missing = 0;
    for (std::size_t i = 0; i < kObjects; ++i) {
      if (!results[i].ok()) {
        ++missing;
      } else {
        EXPECT_EQ(rooms[i], pattern(keys[i], 1, kObject)) << keys[i];
      }
    }
    return missing;
  }
  transfer::PathUse use(std::string_view path) {
    for (const auto& one : user_->paths().use()) {
      if (one.path == path) return one;
    }
    return {};
  }

  SimulatedFabric fabric_;
  Pool pool_;
  std::unique_ptr<ClientRuntime> owner_;
  std::unique_ptr<ClientRuntime> user_;
};

TEST_F(RdmaPathsTest, ObjectsGoOverBothNicsAndComeBackWhole) {
  EXPECT_EQ(put(1), 0);
  EXPECT_EQ(get(1), 0);
  EXPECT_EQ(use("rdma").bytes_written, kObjects * kObject);
  EXPECT_EQ(use("rdma").bytes_read, kObjects * kObject);
  EXPECT_EQ(use("tcp").writes + use("tcp").reads, 0U);
  EXPECT_GT(fabric_.counts("user0").bytes, kObject);
  EXPECT_GT(fabric_.counts("user1").bytes, kObject);
}

TEST_F(RdmaPathsTest, ANicThatFailsInTheMidstOfAPutCostsNothing) {
  ASSERT_EQ(put(1), 0);
  fabric_.fail_after_bytes("owner0", kObject + 100'000);
  EXPECT_EQ(put(2), 0);
  EXPECT_EQ(get(2), 0);
  EXPECT_GT(user_->rdma()->sessions().counters().redone, 0U);
  EXPECT_EQ(use("tcp").writes + use("tcp").reads, 0U);
}

TEST_F(RdmaPathsTest, ANicThatFailsInTheMidstOfAGetCostsNothing) {
  ASSERT_EQ(put(1), 0);
  fabric_.fail_after_bytes("owner1", kObject + 100'000);
  EXPECT_EQ(get(1), 0);
  EXPECT_EQ(use("tcp").writes + use("tcp").reads, 0U);
  EXPECT_EQ(put(2), 0);
  EXPECT_EQ(get(2), 0);
}

TEST_F(RdmaPathsTest, WithBothNicsDownTcpTakesOverAndStatusSaysWhyAndRdmaComesBack) {
  ASSERT_EQ(put(1), 0);
  fabric_.fail_after_bytes("owner0", kObject / 2);
  fabric_.fail_after_bytes("owner1", kObject / 3);
  EXPECT_EQ(put(2), 0);
  EXPECT_EQ(get(2), 0);
  EXPECT_EQ(get(1), 0);
  EXPECT_GT(use("tcp").bytes_written, 0U);
  EXPECT_GT(use("tcp").bytes_read, 0U);
  EXPECT_TRUE(
      test::wait_until([&] { return get(1) == 0 && use("tcp").reason.find("RDMA") != std::string::npos; }, Deadline::after(seconds(20))));
  fabric_.revive("owner0");
  const auto before = use("rdma").bytes_read;
  EXPECT_TRUE(test::wait_until([&] { return get(1) == 0 && use("rdma").bytes_read > before; }, Deadline::after(seconds(20))));
}

TEST_F(RdmaPathsTest, PortsThatAreDownFromTheBeginningAreNoReasonToFail) {
  user_->close();
  auto devices = simulated_devices(fabric_, "late", 2);
  for (const auto* const nic : {"late0", "late1"}) fabric_.set_port(nic, false);
  user_ = runtime_for("late", 0, devices);
  ASSERT_TRUE(user_->open().ok());
  EXPECT_EQ(put(1), 0);
  EXPECT_EQ(get(1), 0);
  EXPECT_THAT(use("tcp").reason, HasSubstr("port"));
  fabric_.set_port("late1", true);
  EXPECT_TRUE(test::wait_until([&] { return get(1) == 0 && use("rdma").bytes_read > 0; }, Deadline::after(seconds(20))));
}

TEST_F(RdmaPathsTest, NicsThatFailAndComeBackAllTheTimeNeverCostAnObjectOrAByte) {
  std::atomic<bool> over{false};
  std::thread trouble([&] {
    for (std::uint64_t round = 0; !over; ++round) {
      const std::string nic = "owner" + std::to_string(round % 2);
      fabric_.fail_after_bytes(nic, 300'000 * (1 + round % 5));
      static_cast<void>(test::wait_until([&] { return over.load(); }, Deadline::after(milliseconds(40))));
      fabric_.revive(nic);
    }
  });
  for (int batch = 0; batch < 6; ++batch) {
    EXPECT_EQ(put(batch), 0) << batch;
    EXPECT_EQ(get(batch), 0) << batch;
  }
  over = true;
  trouble.join();
}

TEST_F(RdmaPathsTest, APeerWithoutRdmaIsReachedOverTcp) {
  auto options = pool_.options(std::uint64_t{64} << 20);
  options.paths = "local,tcp";
  ClientRuntime plain(options);
  ASSERT_TRUE(plain.open().ok());
  owner_->close();
  EXPECT_EQ(put(1), 0);
  EXPECT_EQ(get(1), 0);
  const auto tcp = use("tcp");
  EXPECT_EQ(tcp.failures, 0U);
  EXPECT_GE(tcp.bytes_read, kObjects * kObject);
  EXPECT_FALSE(tcp.reason.empty()) << "a peer that said so is not asked again for a while";
}

TEST_F(RdmaPathsTest, MemoryThatTheNicsMayNotHaveIsAnErrorOfTheSetUp) {
  auto devices = simulated_devices(fabric_, "poor", 2);
  for (const auto* const nic : {"poor0", "poor1"}) fabric_.refuse_registrations(nic, true);
  const auto runtime = runtime_for("poor", std::uint64_t{8} << 20, devices);
  const Status status = runtime->open();
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("memlock"));
}

TEST_F(RdmaPathsTest, AClosedNodeLeavesNothingRegistered) {
  ASSERT_EQ(put(1), 0);
  user_->close();
  owner_->close();
  for (const auto* const nic : {"owner0", "owner1", "user0", "user1"}) {
    EXPECT_EQ(fabric_.counts(nic).queue_pairs, 0U) << nic;
  }
  EXPECT_EQ(fabric_.counts("owner0").registered, 0U);
  EXPECT_EQ(fabric_.counts("owner1").registered, 0U);
}

TEST_F(RdmaPathsTest, ARegisteredBufferIsOnTheNicsUntilItIsUnregistered) {
  Bytes buffer(1 << 20);
  const transfer::MutableBytes memory(buffer);
  const auto before = fabric_.counts("user0").registered;
  ASSERT_TRUE(user_->register_buffer(memory).ok());
  EXPECT_EQ(fabric_.counts("user0").registered, before + 1);
  EXPECT_TRUE(user_->register_buffer(memory).ok()) << "once more is no mistake";
  EXPECT_EQ(fabric_.counts("user0").registered, before + 1);
  EXPECT_EQ(user_->register_buffer(memory.subspan(4096)).code(), ErrorCode::kSegmentAlreadyExists);
  ASSERT_TRUE(user_->unregister_buffer(memory.data(), Deadline::after(seconds(10))).ok());
  EXPECT_EQ(fabric_.counts("user0").registered, before);
}

TEST_F(RdmaPathsTest, ABufferThatNoNicTakesIsAnErrorWithTheReason) {
  for (const char* nic : {"user0", "user1"}) fabric_.refuse_registrations(nic, true);
  Bytes buffer(1 << 20);
  const Status status = user_->register_buffer(transfer::MutableBytes(buffer));
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("user1"));
}

TEST_F(RdmaPathsTest, PathsThatLeaveRdmaOutOpenNoDeviceAndRdmaAloneNeedsTheProtocol) {
  auto options = pool_.options(0);
  options.protocol = "rdma";
  options.paths = "local,tcp";
  const auto none = [](const transfer::rdma::Options&) -> Result<std::shared_ptr<transfer::rdma::Devices>> {
    ADD_FAILURE() << "nobody needs a device";
    return Status(ErrorCode::kNotSupported, "none");
  };
  ClientRuntime left_out(options, ClientRuntime::add_real_paths, none);
  EXPECT_TRUE(left_out.open().ok());
  EXPECT_EQ(left_out.rdma(), nullptr);
  Bytes buffer(4096);
  EXPECT_TRUE(left_out.register_buffer(transfer::MutableBytes(buffer)).ok());
  options.protocol = "tcp";
  options.paths = "rdma";
  ClientRuntime alone(options, ClientRuntime::add_real_paths, none);
  const Status status = alone.open();
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(status.message(), HasSubstr("\"protocol\": \"rdma\""));
}

}  // namespace
}  // namespace moonpool::store
