#include "transfer/registered_memory.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "tests/support/test_support.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Ranges are never dereferenced here, so any addresses will do.
class RegisteredMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(memory_.add(10'000, 1'000, "cpu:1").ok());
    ASSERT_TRUE(memory_.add(5'000, 500, "*").ok());
  }
  bool can_hold(std::uint64_t address, std::uint64_t length) {
    const AddressRange range{address, length};
    return memory_.hold({&range, 1}).ok();
  }
  RegisteredMemory memory_;
};

TEST_F(RegisteredMemoryTest, APieceHasToBeInsideOneRegion) {
  EXPECT_TRUE(can_hold(10'000, 1'000));
  EXPECT_TRUE(can_hold(10'999, 1));
  EXPECT_FALSE(can_hold(10'999, 2));
  EXPECT_FALSE(can_hold(9'999, 2));
  EXPECT_FALSE(can_hold(11'000, 1));
  EXPECT_FALSE(can_hold(10'000, ~0ULL));
  EXPECT_FALSE(can_hold(~0ULL, 2));
  EXPECT_FALSE(can_hold(1, 1));
  EXPECT_TRUE(can_hold(1, 0)) << "nothing is moved there";
}

TEST_F(RegisteredMemoryTest, OneBadPieceHoldsNothing) {
  const std::vector<AddressRange> pieces{{10'000, 10}, {5'000, 10}, {1, 1}};
  EXPECT_EQ(memory_.hold(pieces).code(), ErrorCode::kInvalidParams);
  EXPECT_TRUE(memory_.remove(10'000, Deadline::after(milliseconds(0))).ok());
}

TEST_F(RegisteredMemoryTest, AHoldSaysWhichRegionEachPieceIsInOnceSomeAreDeviceMemory) {
  const std::vector<Piece> host{{10'000, 0, 10}, {5'000, 0, 10}};
  const auto without = memory_.hold(host, RegisteredMemory::End::kLocal);
  ASSERT_TRUE(without.ok());
  EXPECT_TRUE(without->with_devices().empty());
  ASSERT_TRUE(memory_.add(20'000, 1'000, "cuda:0", std::make_shared<DevicePlace>()).ok());
  ASSERT_TRUE(memory_.add(21'000, 1'000, "cuda:0", std::make_shared<DevicePlace>()).ok());
  // The regions come in an order that is foreseen, and then in others.
  std::vector<Piece> pieces;
  std::vector<std::uint64_t> begins;
  for (std::uint64_t i = 0; i < 40; ++i) {
    begins.push_back(std::array<std::uint64_t, 4>{20'000, 21'000, 10'000, 5'000}[i < 20 ? i % 4 : i * i % 7 % 4]);
    pieces.push_back({0, begins.back() + i, 10 + i});
    if (i % 10 != 9) continue;
    begins.push_back(0);
    pieces.push_back({0, 1, 0});
  }
  {
    const auto hold = memory_.hold(pieces, RegisteredMemory::End::kRemote);
    ASSERT_TRUE(hold.ok()) << hold.status().to_string();
    RegisteredMemory::Walk regions(hold->with_devices());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const auto* const region = regions.at(i);
      if (pieces[i].length == 0) continue;
      ASSERT_NE(region, nullptr);
      EXPECT_EQ(region->address, begins[i]) << i;
    }
    EXPECT_EQ(memory_.remove(21'000, Deadline::after(milliseconds(0))).code(), ErrorCode::kRpcTimeout);
    EXPECT_EQ(memory_.hold(pieces, RegisteredMemory::End::kRemote).code(), ErrorCode::kInvalidParams);
  }
  EXPECT_TRUE(memory_.remove(20'000, Deadline::after(milliseconds(0))).ok()) << "held once, however often its pieces came";
}

TEST_F(RegisteredMemoryTest, RegionsAreListedInTheOrderOfRegistration) {
  const auto regions = memory_.regions();
  ASSERT_EQ(regions.size(), 2U);
  EXPECT_EQ(regions[0].address, 10'000U);
  EXPECT_EQ(regions[0].location, "cpu:1");
  EXPECT_EQ(regions[1].address, 5'000U);
}

TEST_F(RegisteredMemoryTest, RemovalRefusesNewHoldsAtOnceAndWaitsForOldOnes) {
  const std::vector<AddressRange> pieces{{10'000, 10}, {5'000, 10}, {10'500, 10}};
  auto hold = memory_.hold(pieces);
  ASSERT_TRUE(hold.ok());
  EXPECT_EQ(memory_.remove(5'000, Deadline::after(milliseconds(0))).code(), ErrorCode::kRpcTimeout);
  EXPECT_FALSE(can_hold(5'000, 1));
  std::atomic<bool> removed{false};
  std::thread remover([&] {
    EXPECT_TRUE(memory_.remove(10'000, Deadline::after(seconds(20))).ok());
    removed = true;
  });
  EXPECT_TRUE(test::wait_until([&] { return !can_hold(10'000, 1); }, Deadline::after(seconds(20))));
  EXPECT_FALSE(removed);
  RegisteredMemory::Hold moved = std::move(*hold);
  EXPECT_FALSE(removed) << "a moved hold still holds";
  moved = {};
  remover.join();
  EXPECT_TRUE(memory_.regions().empty());
}

}  // namespace
}  // namespace moonpool::transfer
