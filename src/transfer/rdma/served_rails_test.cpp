// The owner's answers to OPEN and KEYS that make no sense, ask too much or come too late. Those that do are in session_test.cpp.
#include "transfer/rdma/served_rails.h"

#include <set>

#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/session_for_test.h"

namespace moonpool::transfer::rdma::test {
namespace {

using ::testing::HasSubstr;

class ServedRailsTest : public ::testing::Test {
 protected:
  wire::RdmaEnd end() {
    Nic& nic = (*user_.devices)[0];
    auto made = nic.make_queue_pair({});
    EXPECT_TRUE(made.ok());
    queue_pairs_.push_back(std::move(*made));
    return to_wire({nic.info().name, nic.gids(), queue_pairs_.back()->address(), false, false, false});
  }
  wire::RdmaOpenRequest opening(std::uint32_t first, int count = 1) {
    wire::RdmaOpenRequest request;
    for (int i = 0; i < count; ++i) {
      request.add_rail(first + static_cast<std::uint32_t>(i));
      *request.add_end() = end();
      request.add_avoid("");
    }
    return request;
  }
  std::size_t queue_pairs() const { return fabric_.counts("owner0").queue_pairs + fabric_.counts("owner1").queue_pairs; }

  SimulatedFabric fabric_;
  Host user_{fabric_, {{"user0", {}}}};
  Host owner_{fabric_, {{"owner0", {}}, {"owner1", {}}}};
  Options options_;
  std::vector<std::unique_ptr<QueuePair>> queue_pairs_;
  ServedRails rails_{owner_.memory, options_, nullptr};
};

TEST_F(ServedRailsTest, RailsAreSpreadOverTheOwnersNics) {
  const auto reply = rails_.open(opening(1, 4));
  ASSERT_TRUE(reply.ok()) << reply.status().to_string();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(reply->status(i), 0) << reply->reason(i);
  EXPECT_EQ(fabric_.counts("owner0").queue_pairs, 2U);
  EXPECT_EQ(fabric_.counts("owner1").queue_pairs, 2U);
  EXPECT_EQ(reply->end(0).gid_size(), 1);
  EXPECT_EQ((std::set<std::uint32_t>{reply->nic(0), reply->nic(1)}), (std::set<std::uint32_t>{0, 1}));
}

TEST_F(ServedRailsTest, TheNicToAvoidIsAvoided) {
  for (int i = 0; i < 3; ++i) {
    auto request = opening(static_cast<std::uint32_t>(i));
    request.set_avoid(0, "owner0");
    const auto reply = rails_.open(request);
    ASSERT_TRUE(reply.ok());
    EXPECT_EQ(reply->end(0).nic(), "owner1");
  }
  fabric_.set_port("owner1", false);
  auto request = opening(9);
  request.set_avoid(0, "owner0");
  const auto reply = rails_.open(request);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status(0), static_cast<int>(ErrorCode::kUnavailable));
  EXPECT_THAT(reply->reason(0), HasSubstr("owner0"));
}

TEST_F(ServedRailsTest, AnotherNetworkIsNoWayAroundTheNicToAvoid) {
  SimulatedFabric fabric;
  Host user{fabric, {{"user0", {.network = 1}}}};
  Host owner{fabric, {{"east0", {.network = 1}}, {"west0", {.network = 2}}}};
  ServedRails rails{owner.memory, options_, nullptr};
  Nic& nic = (*user.devices)[0];
  auto made = nic.make_queue_pair({});
  ASSERT_TRUE(made.ok());
  wire::RdmaOpenRequest request;
  request.add_rail(0);
  *request.add_end() = to_wire({nic.info().name, nic.gids(), (*made)->address(), false, false, false});
  request.add_avoid("east0");
  const auto reply = rails.open(request);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status(0), static_cast<int>(ErrorCode::kUnavailable));
  EXPECT_THAT(reply->reason(0), HasSubstr("east0"));
}

TEST_F(ServedRailsTest, ASessionHasABoundedNumberOfRailsAndClosedOnesMakeRoom) {
  ASSERT_TRUE(rails_.open(opening(1, kMaxRailsPerSession)).ok());
  EXPECT_EQ(queue_pairs(), kMaxRailsPerSession);
  auto request = opening(100);
  auto reply = rails_.open(request);
  ASSERT_TRUE(reply.ok());
  EXPECT_NE(reply->status(0), 0);
  EXPECT_EQ(queue_pairs(), kMaxRailsPerSession);
  request.add_closed(3);
  request.add_closed(333);
  reply = rails_.open(request);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status(0), 0) << reply->reason(0);
  EXPECT_EQ(rails_.open(opening(200, kMaxRailsPerSession + 1)).code(), ErrorCode::kInvalidParams);
}

TEST_F(ServedRailsTest, ANumberIsUsedOnce) {
  ASSERT_EQ(rails_.open(opening(7))->status(0), 0);
  EXPECT_NE(rails_.open(opening(7))->status(0), 0);
  EXPECT_EQ(queue_pairs(), 1U);
}

TEST_F(ServedRailsTest, AnotherFabricIsNotMet) {
  auto request = opening(1);
  request.mutable_end(0)->set_infiniband(true);
  EXPECT_NE(rails_.open(request)->status(0), 0);
  request.mutable_end(0)->set_infiniband(false);
  request.mutable_end(0)->clear_gid();
  EXPECT_NE(rails_.open(request)->status(0), 0);
  EXPECT_EQ(queue_pairs(), 0U);
}

TEST_F(ServedRailsTest, NumbersThatMakeNoSenseAreRefused) {
  const std::vector<std::function<void(wire::RdmaOpenRequest&)>> spoilt{
      [](auto& request) { request.add_rail(5); },
      [](auto& request) { request.add_avoid(""); },
      [](auto& request) { request.set_avoid(0, std::string(65, 'x')); },
      [](auto& request) { request.mutable_end(0)->set_number(1U << 24U); },
      [](auto& request) { request.mutable_end(0)->set_first_packet(1U << 24U); },
      [](auto& request) { request.mutable_end(0)->set_lid(1U << 16U); },
      [](auto& request) { request.mutable_end(0)->set_mtu(1); },
      [](auto& request) { request.mutable_end(0)->set_cm_port(70'000); },
      [](auto& request) { request.mutable_end(0)->set_cm_host(std::string(256, 'x')); },
      [](auto& request) { request.mutable_end(0)->set_nic(std::string(65, 'x')); },
      [](auto& request) { request.mutable_end(0)->mutable_gid(0)->set_bytes("short"); },
      [](auto& request) { request.mutable_end(0)->mutable_gid(0)->set_kind(4); },
      [](auto& request) { request.mutable_end(0)->mutable_gid(0)->set_prefix_length(129); },
      [](auto& request) {
        for (std::size_t i = 0; i <= kMaxGidsPerEnd; ++i) *request.mutable_end(0)->add_gid() = request.end(0).gid(0);
      },
  };
  for (std::size_t i = 0; i < spoilt.size(); ++i) {
    auto request = opening(1);
    spoilt[i](request);
    EXPECT_EQ(rails_.open(request).code(), ErrorCode::kProtocol) << i;
  }
  EXPECT_EQ(queue_pairs(), 0U);
  EXPECT_EQ(rails_.open(opening(1))->status(0), 0);
}

TEST_F(ServedRailsTest, AfterItsEndNothingIsOpened) {
  ASSERT_EQ(rails_.open(opening(1))->status(0), 0);
  int ended = 0;
  rails_.at_end([&] { ++ended; });
  rails_.end();
  EXPECT_EQ(ended, 1);
  EXPECT_EQ(queue_pairs(), 0U);
  const auto reply = rails_.open(opening(2));
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status(0), static_cast<int>(ErrorCode::kCancelled));
  EXPECT_EQ(queue_pairs(), 0U);
}

TEST_F(ServedRailsTest, KeysAreToldOfLivingIncarnationsOnly) {
  Bytes memory(1000);
  const Incarnation incarnation = Incarnation::generate();
  wire::RdmaKeysRequest request;
  request.set_incarnation("short");
  EXPECT_EQ(keys_of(*owner_.memory, request).code(), ErrorCode::kProtocol);
  request.set_incarnation(incarnation.to_bytes());
  EXPECT_EQ(keys_of(*owner_.memory, request).code(), ErrorCode::kStaleIncarnation);
  ASSERT_TRUE(owner_.memory->serve(incarnation, memory).ok());
  const auto reply = keys_of(*owner_.memory, request);
  ASSERT_TRUE(reply.ok());
  ASSERT_EQ(reply->range_size(), 1);
  EXPECT_EQ(reply->range(0).remote_key_size(), 2);
  owner_.memory->revoke(incarnation);
  EXPECT_EQ(keys_of(*owner_.memory, request).code(), ErrorCode::kStaleIncarnation);
}

}  // namespace
}  // namespace moonpool::transfer::rdma::test
