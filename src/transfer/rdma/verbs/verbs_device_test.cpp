// What is particular to NICs on libibverbs, on a real device (as verbs_rig_for_test.cpp takes it): choosing, listing, refusals, tickets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/verbs/devices_list.h"
#include "transfer/rdma/verbs/open_devices.h"

namespace moonpool::transfer::rdma {
namespace {

using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;

class VerbsDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* names = std::getenv("MOONPOOL_TEST_RDMA_DEVICES");
    if (names == nullptr || *names == '\0') GTEST_SKIP() << "MOONPOOL_TEST_RDMA_DEVICES names no device";
    options_.device_names = names;
    auto opened = open_nics(options_);
    ASSERT_TRUE(opened.ok()) << opened.status().to_string();
    nics_ = std::move(*opened);
  }
  Nic& user() { return *nics_.front(); }
  Nic& owner() { return *nics_.back(); }

  Options options_;
  std::vector<std::unique_ptr<Nic>> nics_;
};

TEST_F(VerbsDeviceTest, AllThatAreUpAreTakenWithoutNames) {
  for (const char* all : {"", "auto"}) {
    Options options;
    options.device_names = all;
    const auto opened = open_nics(options);
    ASSERT_TRUE(opened.ok()) << opened.status().to_string();
    EXPECT_GE(opened->size(), nics_.size());
    for (const auto& nic : *opened) EXPECT_TRUE(nic->up()) << nic->info().name;
  }
}

TEST_F(VerbsDeviceTest, AWrongNameListsThoseThatExist) {
  Options options;
  options.device_names = "no_such_device_0";
  const auto opened = open_nics(options);
  EXPECT_EQ(opened.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(opened.status().message(), HasSubstr("no RDMA device no_such_device_0"));
  EXPECT_THAT(opened.status().message(), HasSubstr(user().info().name + " (active)"));
}

TEST_F(VerbsDeviceTest, AWrongPortOrAddressIndexIsAMistake) {
  Options options = options_;
  options.port = 77;
  EXPECT_EQ(open_nics(options).code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(open_nics(options).status().message(), HasSubstr("no port 77"));
  if (user().info().iwarp) return;
  options = options_;
  options.gid_index = 250;
  EXPECT_EQ(open_nics(options).code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(open_nics(options).status().message(), HasSubstr("no GID of index 250"));
}

TEST_F(VerbsDeviceTest, AreListedWithStateAndReason) {
  Options options;
  options.device_names = user().info().name;
  const auto listed = list_devices(options);
  ASSERT_TRUE(listed.ok()) << listed.status().to_string();
  for (const ListedDevice& device : *listed) {
    if (device.info.name == user().info().name) {
      EXPECT_TRUE(device.usable) << device.reason;
      EXPECT_EQ(device.state, "active");
      EXPECT_EQ(device.info.driver, user().info().driver);
      EXPECT_FALSE(device.info.driver.empty());
      EXPECT_FALSE(device.info.interface.empty());
      EXPECT_FALSE(device.info.gids.empty());
    } else {
      EXPECT_FALSE(device.usable);
      EXPECT_EQ(device.reason, "not named in \"device_name\"");
    }
  }
  EXPECT_THAT(*listed, Contains(Field(&ListedDevice::usable, true)));
}

TEST_F(VerbsDeviceTest, AddressesKnowTheirNetwork) {
  for (const Gid& gid : user().gids()) {
    if (!is_ipv4(gid)) continue;
    EXPECT_GT(gid.prefix_length, 96U) << text_of(gid);
  }
}

// The right to pin without limit is this thread's; the limit is the process's.
void without_right_to_pin(rlim_t limit, const std::function<void()>& work) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &before), 0);
  const rlimit lowered{limit, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &lowered), 0);
  std::thread([&] {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> rights{};
    ASSERT_EQ(::syscall(SYS_capget, &header, rights.data()), 0);
    rights[CAP_IPC_LOCK / 32].effective &= ~(1U << (CAP_IPC_LOCK % 32));
    ASSERT_EQ(::syscall(SYS_capset, &header, rights.data()), 0);
    work();
  }).join();
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &before), 0);
}

TEST_F(VerbsDeviceTest, TheLimitOfLockedMemoryIsExplainedWhenItIsHit) {
  std::vector<std::byte> memory(std::size_t{4} << 20);
  without_right_to_pin(rlim_t{1} << 20, [&] {
    const auto refused = user().register_memory(memory, Access::kLocal);
    EXPECT_EQ(refused.code(), ErrorCode::kUnavailable);
    EXPECT_THAT(refused.status().message(), HasSubstr("cannot register 4 MiB"));
    EXPECT_THAT(refused.status().message(), HasSubstr("RLIMIT_MEMLOCK) is 1 MiB"));
    EXPECT_THAT(refused.status().message(), HasSubstr("ulimit -l unlimited"));
    const auto small = user().register_memory(MutableBytes(memory).first(64 << 10), Access::kLocal);
    EXPECT_TRUE(small.ok()) << small.status().to_string();
  });
  EXPECT_TRUE(user().register_memory(memory, Access::kLocal).ok());
}

TEST_F(VerbsDeviceTest, MemoryThatIsNotThereIsRefused) {
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* hole = ::mmap(nullptr, 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  const auto refused = user().register_memory({static_cast<std::byte*>(hole), 4 * page}, Access::kServed);
  EXPECT_EQ(refused.code(), ErrorCode::kUnavailable) << refused.status().to_string();
  EXPECT_THAT(refused.status().message(), HasSubstr("not mapped"));
  ::munmap(hole, 4 * page);
  EXPECT_EQ(user().register_memory({}, Access::kLocal).code(), ErrorCode::kInvalidParams);
}

class VerbsTicketTest : public VerbsDeviceTest {
 protected:
  void SetUp() override {
    VerbsDeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const auto gids = choose_gids(user().gids(), owner().gids());
    ASSERT_TRUE(gids.has_value());
    gids_ = *gids;
    passive_options_.role = Role::kPassive;
    passive_options_.gid = gids_.theirs;
    passive_options_.connection_manager = true;
    active_options_.connection_manager = true;
    active_options_.connect_timeout = std::chrono::seconds(20);
  }
  std::unique_ptr<QueuePair> made(Nic& nic, const QueuePairOptions& options) {
    auto queue_pair = nic.make_queue_pair(options);
    EXPECT_TRUE(queue_pair.ok()) << queue_pair.status().to_string();
    return queue_pair.ok() ? std::move(*queue_pair) : nullptr;
  }

  GidPair gids_;
  QueuePairOptions passive_options_;
  QueuePairOptions active_options_;
};

TEST_F(VerbsTicketTest, OneListenerServesAllQueuePairsOfAnAddress) {
  const auto first = made(owner(), passive_options_);
  const auto second = made(owner(), passive_options_);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->address().cm_host, text_of(gids_.theirs));
  EXPECT_EQ(first->address().cm_port, second->address().cm_port);
  EXPECT_NE(first->address().cm_port, 0U);
  EXPECT_NE(first->address().cm_ticket, second->address().cm_ticket);
}

TEST_F(VerbsTicketTest, AnUnknownTicketIsRejected) {
  const auto passive = made(owner(), passive_options_);
  const auto active = made(user(), active_options_);
  ASSERT_TRUE(passive && active);
  QueuePairAddress address = passive->address();
  address.cm_ticket ^= 1;
  const Status status = active->connect(address, gids_.ours);
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("rejected"));
  // The one that it was meant for is as good as before.
  const auto again = made(user(), active_options_);
  ASSERT_TRUE(again);
  const Status connected = again->connect(passive->address(), gids_.ours);
  EXPECT_TRUE(connected.ok()) << connected.to_string();
}

TEST_F(VerbsTicketTest, ATicketIsGoodForOneConnection) {
  const auto passive = made(owner(), passive_options_);
  const auto first = made(user(), active_options_);
  const auto second = made(user(), active_options_);
  ASSERT_TRUE(passive && first && second);
  const QueuePairAddress address = passive->address();
  const Status connected = first->connect(address, gids_.ours);
  EXPECT_TRUE(connected.ok()) << connected.to_string();
  EXPECT_THAT(second->connect(address, gids_.ours).message(), HasSubstr("rejected"));
}

// Retries would take minutes: it is rdma_cm that tells, and wakes who sleeps.
TEST_F(VerbsTicketTest, ThePeersEndIsHeardBeforeRetriesAreOver) {
  active_options_.ack_timeout = 22;  // 17 s
  active_options_.retries = 7;
  auto passive = made(owner(), passive_options_);
  const auto active = made(user(), active_options_);
  ASSERT_TRUE(passive && active);
  const Status connected = active->connect(passive->address(), gids_.ours);
  ASSERT_TRUE(connected.ok()) << connected.to_string();
  std::vector<std::byte> memory(4096);
  const auto local = user().register_memory(memory, Access::kLocal);
  const auto remote = owner().register_memory(memory, Access::kServed);
  ASSERT_TRUE(local.ok() && remote.ok());
  const auto address = reinterpret_cast<std::uint64_t>(memory.data());
  const WorkRequest::Piece piece{address, 64, (*local)->local_key()};
  const WorkRequest request{1, WorkRequest::Operation::kWrite, true, address + 2048, (*remote)->remote_key(), {&piece, 1}};
  passive.reset();
  if (!active->post({&request, 1}).ok()) return;  // heard already
  const Deadline deadline = Deadline::after(std::chrono::seconds(15));
  Completion completion;
  ASSERT_TRUE(active->arm().ok());
  while (active->poll({&completion, 1}) == 0) {
    pollfd waiter{active->event_fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiter, 1, deadline.left_ms()), 1) << "not heard";
    active->clear_event();
    ASSERT_TRUE(active->arm().ok());
  }
  EXPECT_EQ(completion.outcome, Completion::Outcome::kPath) << completion.reason;
  EXPECT_EQ(active->post({&request, 1}).code(), ErrorCode::kUnavailable);
}

TEST_F(VerbsTicketTest, NobodyThereIsToldWithinTheTime) {
  QueuePairAddress address;
  address.cm_host = text_of(gids_.theirs);
  address.cm_port = 1;
  address.cm_ticket = 7;
  const auto active = made(user(), active_options_);
  ASSERT_TRUE(active);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(active->connect(address, gids_.ours).code(), ErrorCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, active_options_.connect_timeout + std::chrono::seconds(2));
}

}  // namespace
}  // namespace moonpool::transfer::rdma
