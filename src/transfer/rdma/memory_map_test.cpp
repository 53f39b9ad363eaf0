#include "transfer/rdma/memory_map.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <future>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "transfer/rdma/numa.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// What a NIC has registered now, by local key.
struct Registered {
  std::mutex mutex;
  std::set<std::uint32_t> keys;
  std::size_t count() {
    const std::scoped_lock lock(mutex);
    return keys.size();
  }
  bool has(std::uint32_t key) {
    const std::scoped_lock lock(mutex);
    return keys.contains(key);
  }
};

// Registers whatever it is given, unless it is told to refuse; has no queue pairs.
class MemoryNic : public Nic {
 public:
  explicit MemoryNic(std::string name) { info_.name = std::move(name); }
  [[nodiscard]] const NicInfo& info() const override { return info_; }
  [[nodiscard]] bool up() const override { return up_; }
  void watch(std::function<void()> changed) override { changed_ = std::move(changed); }
  Result<std::unique_ptr<Registration>> register_memory(MutableBytes memory, Access access) override {
    if (refuse) return Status(ErrorCode::kUnavailable, "memlock of 64 KiB is below " + std::to_string(memory.size()) + " bytes");
    static std::atomic<std::uint32_t> next{1};
    return std::unique_ptr<Registration>(new Held(registered, next++, access));
  }
  Result<std::unique_ptr<Registration>> register_dma_buf(MutableBytes memory, const DmaBuf&, Access access) override {
    if (!takes_dma_bufs) return Status(ErrorCode::kNotSupported, info_.name + " takes no dma-buf");
    return register_memory(memory, access);
  }
  Result<std::unique_ptr<QueuePair>> make_queue_pair(const QueuePairOptions&) override { return Status(ErrorCode::kNotSupported, "none"); }
  [[nodiscard]] std::vector<Gid> gids() const override { return {}; }
  void set_up(bool up) {
    up_ = up;
    changed_();
  }

  std::atomic<bool> refuse{false};
  std::atomic<bool> takes_dma_bufs{true};
  std::shared_ptr<Registered> registered = std::make_shared<Registered>();

 private:
  class Held : public Registration {
   public:
    Held(std::shared_ptr<Registered> where, std::uint32_t key, Access access) : where_(std::move(where)), key_(key), access_(access) {
      const std::scoped_lock lock(where_->mutex);
      where_->keys.insert(key_);
    }
    ~Held() override {
      const std::scoped_lock lock(where_->mutex);
      where_->keys.erase(key_);
    }
    [[nodiscard]] std::uint32_t local_key() const override { return key_; }
    [[nodiscard]] std::uint32_t remote_key() const override { return access_ == Access::kServed ? key_ : 0; }

   private:
    std::shared_ptr<Registered> where_;
    std::uint32_t key_;
    Access access_;
  };
  NicInfo info_;
  std::atomic<bool> up_{true};
  std::function<void()> changed_;
};

class MemoryMapTest : public testing::Test {
 protected:
  MemoryMapTest() {
    std::vector<std::unique_ptr<Nic>> nics;
    for (const char* name : {"left", "right"}) {
      auto nic = std::make_unique<MemoryNic>(name);
      nics_.push_back(nic.get());
      nics.push_back(std::move(nic));
    }
    devices_ = std::make_shared<Devices>(std::move(nics));
    map_ = std::make_unique<MemoryMap>(devices_);
  }
  ~MemoryMapTest() override { SyncPoints::instance().clear(); }

  [[nodiscard]] static Deadline soon() { return Deadline::after(seconds(10)); }
  [[nodiscard]] std::size_t registered() const { return nics_[0]->registered->count() + nics_[1]->registered->count(); }
  [[nodiscard]] MutableBytes part(std::size_t offset, std::size_t length) { return MutableBytes(memory_).subspan(offset, length); }

  std::vector<std::byte> memory_ = std::vector<std::byte>(1 << 20);
  std::vector<MemoryNic*> nics_;
  std::shared_ptr<Devices> devices_;
  std::unique_ptr<MemoryMap> map_;
};

TEST_F(MemoryMapTest, ARangeIsRegisteredOnEveryNicAndFoundByAnyPieceOfIt) {
  ASSERT_TRUE(map_->add_local(part(4096, 8192)).ok());
  EXPECT_EQ(nics_[0]->registered->count(), 1U);
  EXPECT_EQ(nics_[1]->registered->count(), 1U);
  const auto range = map_->local(part(4096, 8192));
  ASSERT_NE(range, nullptr);
  EXPECT_EQ(range->memory.data(), part(4096, 1).data());
  EXPECT_NE(range->by_nic[0]->local_key(), range->by_nic[1]->local_key());
  EXPECT_EQ(map_->local(part(5000, 3)), range);
  EXPECT_EQ(map_->local(part(4096 + 8191, 1)), range);
  EXPECT_EQ(map_->local(part(4096 + 8191, 2)), nullptr);
  EXPECT_EQ(map_->local(part(4095, 1)), nullptr);
  EXPECT_EQ(map_->local(part(4095, 2)), nullptr);
  EXPECT_EQ(map_->local(part(100'000, 1)), nullptr);
}

TEST_F(MemoryMapTest, OverlapsAndEmptyRangesAreRefusedAndNeighboursAreNot) {
  ASSERT_TRUE(map_->add_local(part(4096, 4096)).ok());
  for (const auto& [offset, length] : {std::pair(4096, 4096), std::pair(8191, 10), std::pair(0, 4097), std::pair(0, 65536)}) {
    const Status status = map_->add_local(part(offset, length));
    EXPECT_EQ(status.code(), ErrorCode::kSegmentAlreadyExists) << offset << ", " << length;
    EXPECT_NE(status.message().find("4096 bytes at 0x"), std::string::npos) << status.message();
  }
  EXPECT_TRUE(map_->add_local(part(8192, 10)).ok());
  EXPECT_TRUE(map_->add_local(part(0, 4096)).ok());
  EXPECT_EQ(map_->add_local({}).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(map_->add_local(part(0, 0)).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(registered(), 6U);
}

TEST_F(MemoryMapTest, RemovalWaitsForTheLeaseAndNobodyGetsANewOne) {
  ASSERT_TRUE(map_->add_local(part(0, 4096)).ok());
  auto lease = map_->local(part(0, 10));
  EXPECT_EQ(map_->remove_local(part(0, 1).data(), Deadline::after(milliseconds(20))).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(map_->local(part(0, 10)), nullptr);
  EXPECT_EQ(registered(), 2U) << "the lease keeps both registrations";
  EXPECT_EQ(map_->remove_local(part(0, 1).data(), soon()).code(), ErrorCode::kInvalidParams);
  // The same memory may be registered again meanwhile.
  ASSERT_TRUE(map_->add_local(part(0, 4096)).ok());
  EXPECT_NE(map_->local(part(0, 10)), lease);
  lease.reset();
  EXPECT_EQ(registered(), 2U);
  EXPECT_TRUE(map_->remove_local(part(0, 1).data(), soon()).ok());
  EXPECT_EQ(registered(), 0U);
}

TEST_F(MemoryMapTest, RemovalReturnsWhenTheLastLeaseHasGoneOnAnotherThread) {
  ASSERT_TRUE(map_->add_local(part(0, 4096)).ok());
  auto lease = map_->local(part(0, 10));
  std::atomic<bool> dropped{false};
  std::thread user([&] {
    while (map_->local(part(0, 10)) != nullptr) std::this_thread::yield();  // until the removal has begun
    dropped = true;
    lease.reset();
  });
  EXPECT_TRUE(map_->remove_local(part(0, 1).data(), soon()).ok());
  EXPECT_TRUE(dropped);
  EXPECT_EQ(registered(), 0U);
  user.join();
}

TEST_F(MemoryMapTest, ALeaseMayOutliveTheMapAndKeepsTheNics) {
  ASSERT_TRUE(map_->add_local(part(0, 4096)).ok());
  auto lease = map_->local(part(0, 10));
  const auto left = nics_[0]->registered;
  map_.reset();
  devices_.reset();
  EXPECT_TRUE(left->has(lease->by_nic[0]->local_key()));
  lease.reset();
  EXPECT_EQ(left->count(), 0U);
}

TEST_F(MemoryMapTest, ANicThatRefusesLeavesTheOthersUsable) {
  nics_[1]->refuse = true;
  ASSERT_TRUE(map_->add_local(part(0, 4096)).ok());
  const auto range = map_->local(part(0, 1));
  EXPECT_NE(range->by_nic[0], nullptr);
  EXPECT_EQ(range->by_nic[1], nullptr);
  const auto incarnation = Incarnation::generate();
  ASSERT_TRUE(map_->serve(incarnation, part(0, 4096)).ok());
  const auto served = map_->served(incarnation);
  ASSERT_EQ(served.size(), 1U);
  EXPECT_NE(served[0].remote_keys[0], 0U);
  EXPECT_EQ(served[0].remote_keys[1], 0U);
}

TEST_F(MemoryMapTest, WhenAllNicsRefuseTheErrorHasEachReasonAndNothingIsLeftBehind) {
  for (auto* nic : nics_) nic->refuse = true;
  const Status status = map_->add_local(part(0, 4096));
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  for (const char* word : {"4096 bytes", "left: memlock of 64 KiB", "right: memlock"}) {
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  }
  EXPECT_EQ(map_->local(part(0, 1)), nullptr);
  const auto incarnation = Incarnation::generate();
  EXPECT_EQ(map_->serve(incarnation, part(0, 4096)).code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(map_->served(incarnation).empty());
  for (auto* nic : nics_) nic->refuse = false;
  EXPECT_TRUE(map_->add_local(part(0, 4096)).ok());
  EXPECT_TRUE(map_->serve(incarnation, part(0, 4096)).ok());
}

TEST_F(MemoryMapTest, MemoryOfADeviceIsThatOfTheNicsThatReachIt) {
  nics_[1]->takes_dma_bufs = false;
  const DmaBuf buffer{.file = 0, .offset = 0, .numa_node = 3};
  ASSERT_TRUE(map_->add_local(part(0, 4096), &buffer).ok());
  const auto range = map_->local(part(0, 1));
  ASSERT_NE(range, nullptr);
  EXPECT_NE(range->by_nic[0], nullptr);
  EXPECT_EQ(range->by_nic[1], nullptr);
  EXPECT_EQ(range->numa_node, 3);
  for (auto* const nic : nics_) nic->takes_dma_bufs = false;
  EXPECT_EQ(map_->serve(Incarnation::generate(), part(0, 4096), &buffer).code(), ErrorCode::kNotSupported);
}

TEST_F(MemoryMapTest, WithoutADeviceNothingCanBeRegistered) {
  MemoryMap map(std::make_shared<Devices>(std::vector<std::unique_ptr<Nic>>()));
  EXPECT_EQ(map.add_local(part(0, 4096)).code(), ErrorCode::kUnavailable);
}

TEST_F(MemoryMapTest, AMountingHasKeysOfItsOwnThatDieWithIt) {
  const auto first = Incarnation::generate();
  const auto second = Incarnation::generate();
  ASSERT_TRUE(map_->serve(first, part(0, 4096)).ok());
  ASSERT_TRUE(map_->serve(second, part(0, 4096)).ok()) << "the same memory, mounted again";
  const auto old = map_->served(first);
  const auto now = map_->served(second);
  ASSERT_EQ(old.size(), 1U);
  ASSERT_EQ(now.size(), 1U);
  EXPECT_EQ(now[0].address, reinterpret_cast<std::uint64_t>(memory_.data()));
  EXPECT_EQ(now[0].length, 4096U);
  EXPECT_NE(old[0].remote_keys, now[0].remote_keys);
  map_->revoke(first);
  EXPECT_FALSE(nics_[0]->registered->has(old[0].remote_keys[0]));
  EXPECT_TRUE(nics_[0]->registered->has(now[0].remote_keys[0]));
  EXPECT_TRUE(map_->served(first).empty());
  map_->revoke(first);
  map_->revoke(Incarnation::generate());
  EXPECT_EQ(map_->served(second).size(), 1U);
}

TEST_F(MemoryMapTest, RangesOfOneIncarnationAreOrderedAndRevokedOneByOne) {
  const auto engine = Incarnation::generate();
  for (const std::size_t offset : {8192, 0, 4096}) ASSERT_TRUE(map_->serve(engine, part(offset, 4096)).ok());
  EXPECT_EQ(map_->serve(engine, part(4000, 200)).code(), ErrorCode::kSegmentAlreadyExists);
  auto served = map_->served(engine);
  ASSERT_EQ(served.size(), 3U);
  EXPECT_LT(served[0].address, served[1].address);
  EXPECT_LT(served[1].address, served[2].address);
  map_->revoke(engine, part(4096, 1).data());
  EXPECT_FALSE(nics_[1]->registered->has(served[1].remote_keys[1]));
  EXPECT_EQ(map_->served(engine).size(), 2U);
  map_->revoke(engine, part(4097, 1).data());
  EXPECT_EQ(map_->served(engine).size(), 2U) << "no range begins there";
  map_->revoke(engine);
  EXPECT_EQ(registered(), 0U);
}

TEST_F(MemoryMapTest, MemoryRevokedWhileItIsBeingRegisteredIsNeverServed) {
  const auto incarnation = Incarnation::generate();
  SyncPoints::instance().on("memory_map.serve.reserved", [&] { map_->revoke(incarnation); });
  EXPECT_EQ(map_->serve(incarnation, part(0, 4096)).code(), ErrorCode::kStaleIncarnation);
  EXPECT_TRUE(map_->served(incarnation).empty());
  EXPECT_EQ(registered(), 0U);
  // Nor is the registration of a later range at the same address taken for that one.
  SyncPoints::instance().on("memory_map.serve.reserved", [&] {
    SyncPoints::instance().clear();
    map_->revoke(incarnation, part(0, 1).data());
    EXPECT_TRUE(map_->serve(incarnation, part(0, 100)).ok());
  });
  EXPECT_EQ(map_->serve(incarnation, part(0, 4096)).code(), ErrorCode::kStaleIncarnation);
  const auto served = map_->served(incarnation);
  ASSERT_EQ(served.size(), 1U);
  EXPECT_EQ(served[0].length, 100U);
  EXPECT_TRUE(nics_[0]->registered->has(served[0].remote_keys[0]));
}

TEST_F(MemoryMapTest, LookupsAndChangesFromManyThreadsNeverSeeADeadRegistration) {
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> found{0};
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i) {
    users.emplace_back([&] {
      while (!stop) {
        const auto range = map_->local(part(100, 8));
        if (range == nullptr) continue;
        ++found;
        EXPECT_TRUE(nics_[0]->registered->has(range->by_nic[0]->local_key()));
      }
    });
  }
  for (int i = 0; i < 300 || found == 0; ++i) {
    EXPECT_TRUE(map_->add_local(part(0, 4096)).ok());
    EXPECT_TRUE(map_->remove_local(part(0, 1).data(), soon()).ok());
    EXPECT_EQ(registered(), 0U);
  }
  stop = true;
  for (auto& user : users) user.join();
}

TEST_F(MemoryMapTest, ManyMegabytesAreRegisteredOnAllNicsAtOnce) {
  // Address space alone: these NICs touch nothing.
  constexpr std::size_t kSize = std::size_t{1} << 30;
  void* const address = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(address, MAP_FAILED);
  const MutableBytes large(static_cast<std::byte*>(address), kSize);
  ASSERT_TRUE(map_->add_local(large).ok());
  EXPECT_EQ(registered(), 2U);
  EXPECT_EQ(map_->local(large)->numa_node, -1) << "none of its pages is there";
  EXPECT_TRUE(map_->remove_local(address, soon()).ok());
  ::munmap(address, kSize);
}

TEST(NumaNodeTest, TellsWhereTouchedMemoryLiesAndNothingOfUntouched) {
  constexpr std::size_t kSize = std::size_t{1} << 20;
  void* const address = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(address, MAP_FAILED);
  const MutableBytes memory(static_cast<std::byte*>(address), kSize);
  EXPECT_EQ(numa_node_of(memory), -1);
  EXPECT_EQ(numa_node_of({}), -1);
  for (std::size_t at = 0; at < kSize; at += 4096) memory[at] = std::byte{1};
  const auto node = numa_node_of(memory);
  ::munmap(address, kSize);
  if (node < 0) GTEST_SKIP() << "this kernel, or this sandbox, does not tell where pages are";
  EXPECT_LT(node, 1024);
}

TEST(DevicesTest, NamesPortsAndTheirChanges) {
  std::vector<std::unique_ptr<Nic>> nics;
  auto first = std::make_unique<MemoryNic>("mlx5_0");
  auto second = std::make_unique<MemoryNic>("mlx5_1");
  MemoryNic& left = *first;
  MemoryNic& right = *second;
  nics.push_back(std::move(first));
  nics.push_back(std::move(second));
  const Devices devices(std::move(nics));
  EXPECT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices.index_of("mlx5_1"), 1U);
  EXPECT_EQ(devices.index_of("mlx5_2"), 2U);
  EXPECT_EQ(devices[1].info().name, "mlx5_1");
  EXPECT_TRUE(devices.any_up());
  const auto before = devices.generation();
  left.set_up(false);
  EXPECT_GT(devices.generation(), before);
  EXPECT_TRUE(devices.any_up());
  right.set_up(false);
  EXPECT_FALSE(devices.any_up());
  left.set_up(true);
  EXPECT_TRUE(devices.any_up());
  EXPECT_EQ(devices.generation(), before + 3);
}

}  // namespace
}  // namespace moonpool::transfer::rdma
