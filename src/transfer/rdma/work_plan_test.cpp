// How batches are cut: nothing lost, nothing twice, no cut that is not needed, whatever the sizes.
#include "transfer/rdma/work_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "transfer/rdma/session_for_test.h"

namespace moonpool::transfer::rdma::test {
namespace {

class WorkPlanTest : public ::testing::Test {
 protected:
  // Blocks at these offsets and lengths of local memory, each one piece.
  void blocks_of(const std::vector<std::pair<std::size_t, std::size_t>>& parts) {
    pieces_.reserve(parts.size());
    for (const auto& [offset, length] : parts) pieces_.push_back(std::span(memory_).subspan(offset, length));
    for (std::size_t i = 0; i < parts.size(); ++i) {
      Block block;
      block.remote_address = 1'000'000 * (i + 1);
      block.pieces = {&pieces_[i], 1};
      blocks_.push_back(block);
    }
  }
  std::vector<std::uint64_t> stripe_bytes(const WorkPlan& plan, std::uint32_t stripes) {
    std::vector<std::uint64_t> bytes(stripes);
    for (const Unit& unit : plan.units()) bytes[unit.stripe] += unit.length;
    return bytes;
  }

  SimulatedFabric fabric_;
  Host host_{fabric_, {{"nic", {}}}};
  Bytes memory_ = Bytes(8 * kMiB);
  std::vector<MutableBytes> pieces_;
  std::vector<Block> blocks_;
  PlanLimits limits_{30, 30, 1U << 30, kMiB};
};

TEST_F(WorkPlanTest, StripesOfEqualBlocksAreCutBetweenBlocks) {
  ASSERT_TRUE(host_.memory->add_local(memory_).ok());
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  for (std::size_t i = 0; i < 24; ++i) parts.emplace_back(i * 300'000, 300'000);
  blocks_of(parts);
  WorkPlan plan(*host_.memory, blocks_);
  for (const std::uint32_t stripes : {1U, 2U, 3U, 4U, 8U}) {
    plan.cut(stripes, limits_);
    EXPECT_EQ(plan.units().size(), 24U);
    for (const auto bytes : stripe_bytes(plan, stripes)) EXPECT_EQ(bytes, 24 * 300'000 / stripes);
  }
}

TEST_F(WorkPlanTest, OneLargeBlockIsCutEvenly) {
  ASSERT_TRUE(host_.memory->add_local(memory_).ok());
  blocks_of({{0, 8 * kMiB}});
  WorkPlan plan(*host_.memory, blocks_);
  plan.cut(4, limits_);
  ASSERT_EQ(plan.units().size(), 4U);
  for (std::uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(plan.units()[i].stripe, i);
    EXPECT_EQ(plan.units()[i].length, 2 * kMiB);
  }
}

TEST_F(WorkPlanTest, AnUnregisteredRunMakesUnitsOfItsOwn) {
  const MutableBytes known = std::span(memory_).first(kMiB);
  ASSERT_TRUE(host_.memory->add_local(known).ok());
  blocks_of({{0, kMiB}, {2 * kMiB, 2 * kMiB + 5}});
  WorkPlan plan(*host_.memory, blocks_);
  EXPECT_TRUE(plan.has_unregistered());
  plan.cut(1, limits_);
  ASSERT_EQ(plan.units().size(), 4U);
  EXPECT_FALSE(plan.units()[0].staged);
  EXPECT_EQ(plan.units()[1].length, kMiB);
  EXPECT_TRUE(plan.units()[3].staged);
  EXPECT_EQ(plan.units()[3].length, 5U);
}

TEST_F(WorkPlanTest, FailedBlocksAndEmptyPiecesAreLeftOut) {
  ASSERT_TRUE(host_.memory->add_local(memory_).ok());
  blocks_of({{0, 1000}, {5000, 0}, {9000, 1000}});
  blocks_[0].status = Status(ErrorCode::kInternal, "");
  WorkPlan plan(*host_.memory, blocks_);
  plan.cut(2, limits_);
  ASSERT_EQ(plan.units().size(), 1U);
  EXPECT_EQ(plan.units()[0].block, 2U);
  EXPECT_EQ(plan.bytes(), 1000U);
}

// Random batches and limits: the units of a block are its bytes in order, each within the limits.
TEST_F(WorkPlanTest, NothingIsLostOrTwice) {
  std::mt19937 random(1);
  ASSERT_TRUE(host_.memory->add_local(std::span(memory_).first(4 * kMiB)).ok());
  for (int round = 0; round < 200; ++round) {
    blocks_.clear();
    std::vector<std::vector<MutableBytes>> pieces(1 + random() % 8);
    for (auto& list : pieces) {
      for (auto count = random() % 60; count > 0; --count) {
        const std::size_t offset = random() % (7 * kMiB);
        list.push_back(std::span(memory_).subspan(offset, random() % 3 == 0 ? random() % 5 : random() % 200'000));
      }
      Block block;
      block.operation = random() % 2 == 0 ? Operation::kRead : Operation::kWrite;
      block.remote_address = std::uint64_t{1} << 40;
      block.pieces = list;
      blocks_.push_back(block);
    }
    WorkPlan plan(*host_.memory, blocks_);
    const std::uint32_t stripes = 1 + random() % 5;
    const PlanLimits limits{1 + static_cast<std::uint32_t>(random() % 30), 1 + static_cast<std::uint32_t>(random() % 4),
                            1 + random() % 300'000, 1 + random() % 100'000};
    plan.cut(stripes, limits);
    std::map<std::uint32_t, std::vector<std::pair<std::byte*, std::uint64_t>>> bytes;  // by block
    std::map<std::uint32_t, std::uint64_t> remote;
    std::uint32_t stripe = 0;
    for (const Unit& unit : plan.units()) {
      EXPECT_GE(unit.stripe, stripe);
      stripe = unit.stripe;
      EXPECT_LT(unit.stripe, stripes);
      EXPECT_EQ(unit.remote_address, (std::uint64_t{1} << 40) + remote[unit.block]);
      remote[unit.block] += unit.length;
      std::uint64_t length = 0;
      for (const PlannedPiece& piece : plan.pieces(unit)) {
        EXPECT_EQ(piece.range == nullptr, unit.staged);
        auto& known = bytes[unit.block];
        if (!known.empty() && known.back().first + known.back().second == piece.address) {
          known.back().second += piece.length;
        } else {
          known.emplace_back(piece.address, piece.length);
        }
        length += piece.length;
      }
      EXPECT_EQ(length, unit.length);
      EXPECT_GT(length, 0U);
      EXPECT_LE(length, unit.staged ? limits.staged : limits.message);
      if (!unit.staged) {
        EXPECT_LE(unit.piece_count, blocks_[unit.block].operation == Operation::kRead ? limits.read_pieces : limits.write_pieces);
      }
    }
    for (std::uint32_t i = 0; i < blocks_.size(); ++i) {
      std::vector<std::pair<std::byte*, std::uint64_t>> expected;
      for (const auto& piece : blocks_[i].pieces) {
        if (piece.empty()) continue;
        if (!expected.empty() && expected.back().first + expected.back().second == piece.data()) {
          expected.back().second += piece.size();
        } else {
          expected.emplace_back(piece.data(), piece.size());
        }
      }
      ASSERT_EQ(bytes[i], expected) << "round " << round << ", block " << i;
    }
  }
}

}  // namespace
}  // namespace moonpool::transfer::rdma::test
