// What of the verbs NIC can be tested without a device. nic_conformance_test.cpp tests the rest on one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "transfer/rdma/verbs/event_thread.h"
#include "transfer/rdma/verbs/library.h"
#include "transfer/rdma/verbs/mtu.h"
#include "transfer/rdma/verbs/outcome.h"
#include "transfer/rdma/verbs/registration.h"
#include "transfer/rdma/verbs/sysfs.h"

namespace moonpool::transfer::rdma {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using Outcome = Completion::Outcome;

TEST(VerbsLibrary, AMissingLibraryIsOneLineWithTheRemedy) {
  const auto verbs = open_verbs("libibverbs-that-is-not-there.so.1");
  EXPECT_EQ(verbs.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(verbs.status().message(), HasSubstr("libibverbs-that-is-not-there.so.1 is not on this host: install rdma-core"));
  EXPECT_THAT(verbs.status().message(), HasSubstr("\"protocol\": \"tcp\""));
  EXPECT_THAT(verbs.status().message(), Not(HasSubstr("\n")));
  const auto manager = open_connection_manager_library("librdmacm-that-is-not-there.so.1");
  EXPECT_EQ(manager.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(manager.status().message(), HasSubstr("librdmacm1"));
}

TEST(VerbsLibrary, ALibraryThatLacksAFunctionIsTooOld) {
  const auto verbs = open_verbs("libc.so.6");
  EXPECT_EQ(verbs.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(verbs.status().message(), HasSubstr("too old, it has no ibv_get_device_list"));
}

TEST(VerbsOutcome, TellsThePathThePeerAndThisSideApart) {
  EXPECT_EQ(outcome_of(IBV_WC_SUCCESS), Outcome::kDone);
  EXPECT_EQ(outcome_of(IBV_WC_WR_FLUSH_ERR), Outcome::kFlushed);
  for (const auto status : {IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_RESP_TIMEOUT_ERR, IBV_WC_FATAL_ERR, IBV_WC_GENERAL_ERR,
                            IBV_WC_BAD_RESP_ERR, IBV_WC_REM_ABORT_ERR, IBV_WC_LOC_QP_OP_ERR}) {
    EXPECT_EQ(outcome_of(status), Outcome::kPath) << status;
  }
  for (const auto status : {IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_OP_ERR, IBV_WC_REM_INV_RD_REQ_ERR}) {
    EXPECT_EQ(outcome_of(status), Outcome::kRefused) << status;
  }
  for (const auto status : {IBV_WC_LOC_LEN_ERR, IBV_WC_LOC_PROT_ERR, IBV_WC_LOC_ACCESS_ERR}) {
    EXPECT_EQ(outcome_of(status), Outcome::kLocal) << status;
  }
}

TEST(VerbsMtu, IsRoundedDownToOneThatExists) {
  EXPECT_EQ(mtu_of_bytes(4096), IBV_MTU_4096);
  EXPECT_EQ(mtu_of_bytes(9000), IBV_MTU_4096);
  EXPECT_EQ(mtu_of_bytes(4095), IBV_MTU_2048);
  EXPECT_EQ(mtu_of_bytes(1024), IBV_MTU_1024);
  EXPECT_EQ(mtu_of_bytes(0), IBV_MTU_256);
  for (const std::uint32_t bytes : {256U, 512U, 1024U, 2048U, 4096U}) EXPECT_EQ(bytes_of_mtu(mtu_of_bytes(bytes)), bytes);
}

TEST(VerbsRegistration, TheLimitOfLockedMemoryIsExplained) {
  const std::string text = why_not_registered(ENOMEM, "mlx5_0", std::uint64_t{8} << 30, {std::uint64_t{64} << 10, false, 4096});
  EXPECT_THAT(text, HasSubstr("mlx5_0 cannot register 8192 MiB"));
  EXPECT_THAT(text, HasSubstr("RLIMIT_MEMLOCK) is 64 KiB, 4 KiB are pinned already"));
  EXPECT_THAT(text, HasSubstr("ulimit -l unlimited"));
  EXPECT_THAT(text, HasSubstr("LimitMEMLOCK=infinity"));
  EXPECT_THAT(text, HasSubstr("IPC_LOCK"));
}

TEST(VerbsRegistration, OtherReasonsAreNotTakenForTheLimit) {
  const PinningLimits unlimited{0, true, 0};
  for (const int error : {ENOMEM, EINVAL, EFAULT, ENOSPC, EPERM, EOPNOTSUPP, EIO}) {
    const std::string text = why_not_registered(error, "mlx5_0", 4096, unlimited);
    EXPECT_THAT(text, HasSubstr("mlx5_0 cannot register 4 KiB of memory: ")) << error;
    EXPECT_THAT(text, Not(HasSubstr("RLIMIT_MEMLOCK"))) << error;
  }
}

TEST(VerbsRegistration, ThisProcessHasALimit) {
  const PinningLimits limits = pinning_limits();
  EXPECT_TRUE(limits.unlimited || limits.limit > 0);
}

TEST(VerbsSysfs, AMacAddressMakesAnEui64) {
  EXPECT_EQ(eui64_of_mac("52:54:00:12:34:56"), 0x505400fffe123456U);
  EXPECT_EQ(eui64_of_mac("00:00:00:00:00:00"), 0U);
  EXPECT_EQ(eui64_of_mac("not a mac"), 0U);
}

// A /sys and a /dev with just what is asked for.
class FakeTree {
 public:
  FakeTree() : root_(fs::temp_directory_path() / ("moonpool-sysfs-test-" + std::to_string(::getpid()))) { fs::remove_all(root_); }
  ~FakeTree() { fs::remove_all(root_); }
  [[nodiscard]] std::string sys() const { return root_ / "sys"; }
  [[nodiscard]] std::string dev() const { return root_ / "dev"; }
  void file(const std::string& path, const std::string& content) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content;
  }
  void link(const std::string& path, const std::string& target) const {
    fs::create_directories((root_ / path).parent_path());
    fs::create_symlink(target, root_ / path);
  }

 private:
  const fs::path root_;
};

TEST(VerbsSysfs, ACardTellsItsDriverPlaceAndInterface) {
  const FakeTree tree;
  tree.file("sys/devices/0000:3b:00.0/numa_node", "1\n");
  tree.file("sys/devices/0000:3b:00.0/net/eth4/dev_port", "0\n");
  tree.link("sys/devices/0000:3b:00.0/driver", "../../drivers/mlx5_core");
  tree.link("sys/devices/0000:3b:00.0/subsystem", "../../bus/pci");
  tree.link("sys/class/infiniband/mlx5_0/device", "../../../devices/0000:3b:00.0");
  tree.file("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n");
  const DeviceFacts facts = device_facts("mlx5_0", 1, 0, false, tree.sys());
  EXPECT_EQ(facts.driver, "mlx5_core");
  EXPECT_EQ(facts.pci_address, "0000:3b:00.0");
  EXPECT_EQ(facts.numa_node, 1);
  EXPECT_EQ(facts.interface, "eth4");
  EXPECT_EQ(facts.rate, "100 Gb/sec (4X EDR)");
}

TEST(VerbsSysfs, ACardBesideItsInterfaceIsMatchedByMacAddress) {  // as eRDMA's is
  const FakeTree tree;
  tree.file("sys/devices/0000:00:07.0/numa_node", "-1\n");
  tree.link("sys/devices/0000:00:07.0/driver", "../../drivers/erdma");
  tree.link("sys/class/infiniband/erdma_0/device", "../../../devices/0000:00:07.0");
  tree.file("sys/class/net/lo/address", "00:00:00:00:00:00\n");
  tree.file("sys/class/net/eth1/address", "00:16:3e:aa:bb:cc\n");
  const DeviceFacts facts = device_facts("erdma_0", 1, eui64_of_mac("00:16:3e:aa:bb:cc"), true, tree.sys());
  EXPECT_EQ(facts.driver, "erdma");
  EXPECT_EQ(facts.interface, "eth1");
  EXPECT_EQ(facts.numa_node, -1);
}

TEST(VerbsSysfs, ASoftwareDeviceNamesItsParent) {
  const FakeTree tree;
  tree.file("sys/class/infiniband/rxe0/parent", "d0\n");
  const DeviceFacts facts = device_facts("rxe0", 1, 0, false, tree.sys());
  EXPECT_EQ(facts.interface, "d0");
  EXPECT_EQ(facts.driver, "rdma_rxe");
  EXPECT_EQ(facts.pci_address, "");
}

TEST(VerbsSysfs, WhyThereIsNoDevice) {
  const FakeTree tree;
  EXPECT_THAT(why_no_devices(tree.sys(), tree.dev()), HasSubstr("no RDMA device"));
  tree.file("sys/class/infiniband/mlx5_0/node_desc", "x");
  EXPECT_THAT(why_no_devices(tree.sys(), tree.dev()), HasSubstr("--device /dev/infiniband"));
  tree.file("dev/infiniband/uverbs0", "");
  EXPECT_THAT(why_no_devices(tree.sys(), tree.dev()), HasSubstr("ibverbs-providers"));
}

class Counted {
 public:
  void add() {
    const std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  bool reaches(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return count_ >= count; });
  }
  int count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

void signal(int descriptor) { ASSERT_EQ(::eventfd_write(descriptor, 1), 0); }
void drain(int descriptor) {
  eventfd_t value = 0;
  ::eventfd_read(descriptor, &value);
}

TEST(VerbsEventThread, CallsWhatCanBeReadUntilItIsRemoved) {
  const auto thread = EventThread::shared();
  EXPECT_EQ(thread, EventThread::shared()) << "one for all";
  const int first = ::eventfd(0, EFD_NONBLOCK);
  const int second = ::eventfd(0, EFD_NONBLOCK);
  Counted of_first;
  Counted of_second;
  thread->add(first, [&] {
    drain(first);
    of_first.add();
    return true;
  });
  thread->add(second, [&] {
    drain(second);
    of_second.add();
    return true;
  });
  signal(first);
  EXPECT_TRUE(of_first.reaches(1));
  EXPECT_EQ(of_second.count(), 0);
  thread->remove(first);
  signal(first);
  signal(second);
  EXPECT_TRUE(of_second.reaches(1));
  EXPECT_EQ(of_first.count(), 1);
  thread->remove(second);
  ::close(first);
  ::close(second);
}

TEST(VerbsEventThread, ADeadDescriptorIsAskedOnce) {
  const auto thread = EventThread::shared();
  const int dead = ::eventfd(1, EFD_NONBLOCK);  // can be read for ever
  const int other = ::eventfd(0, EFD_NONBLOCK);
  Counted of_dead;
  Counted of_other;
  thread->add(dead, [&] {
    of_dead.add();
    return false;
  });
  EXPECT_TRUE(of_dead.reaches(1));
  thread->add(other, [&] {
    drain(other);
    of_other.add();
    return true;
  });
  for (int round = 1; round <= 3; ++round) {
    signal(other);
    EXPECT_TRUE(of_other.reaches(round));
  }
  EXPECT_EQ(of_dead.count(), 1);
  thread->remove(other);
  ::close(dead);
  ::close(other);
}

}  // namespace
}  // namespace moonpool::transfer::rdma
