#include "transfer/registered_memory.h"

#include <gtest/gtest.h>

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
