#include "transfer/rdma/gid_choice.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace moonpool::transfer::rdma {
namespace {

using Kind = Gid::Kind;

// "10.0.0.1/24" or "2001:db8::1/64"; without a length it is unknown.
Gid gid(const std::string& text, Kind kind = Kind::kRoceV2, std::uint32_t index = 0) {
  Gid gid;
  gid.kind = kind;
  gid.index = index;
  const std::size_t slash = text.find('/');
  const std::string address = text.substr(0, slash);
  const std::uint32_t length = slash == std::string::npos ? 0 : static_cast<std::uint32_t>(std::stoul(text.substr(slash + 1)));
  if (address.find(':') == std::string::npos) {
    gid.bytes[10] = gid.bytes[11] = 0xff;
    EXPECT_EQ(::inet_pton(AF_INET, address.c_str(), gid.bytes.data() + 12), 1);
    gid.prefix_length = length == 0 ? 0 : 96 + length;
  } else {
    EXPECT_EQ(::inet_pton(AF_INET6, address.c_str(), gid.bytes.data()), 1);
    gid.prefix_length = length;
  }
  return gid;
}

// "ours -> theirs", or "none".
std::string chosen(const std::vector<Gid>& ours, const std::vector<Gid>& theirs) {
  const auto pair = choose_gids(ours, theirs);
  if (!pair) return "none";
  EXPECT_EQ(theirs[pair->their_position].bytes, pair->theirs.bytes);
  return text_of(pair->ours) + " -> " + text_of(pair->theirs);
}

TEST(GidChoice, NothingMeetsNothing) {
  EXPECT_EQ(chosen({}, {gid("10.0.0.2/24")}), "none");
  EXPECT_EQ(chosen({gid("10.0.0.1/24")}, {}), "none");
  EXPECT_EQ(chosen({gid("::")}, {gid("::")}), "none") << "an empty entry of the table is no address";
}

TEST(GidChoice, OnlyOneKindMeets) {
  EXPECT_EQ(chosen({gid("10.0.0.1/24", Kind::kRoceV1)}, {gid("10.0.0.2/24", Kind::kRoceV2)}), "none");
  EXPECT_EQ(chosen({gid("10.0.0.1/24", Kind::kIwarp)}, {gid("10.0.0.2/24", Kind::kRoceV2)}), "none");
  EXPECT_EQ(chosen({gid("fe80::1", Kind::kInfiniBand)}, {gid("fe80::2", Kind::kRoceV2)}), "none");
  EXPECT_EQ(chosen({gid("10.0.0.1/24", Kind::kIwarp)}, {gid("10.0.0.2/24", Kind::kIwarp)}), "10.0.0.1 -> 10.0.0.2");
}

TEST(GidChoice, OnlyOneFamilyAndScopeMeets) {
  EXPECT_EQ(chosen({gid("10.0.0.1/24")}, {gid("2001:db8::2/64")}), "none");
  EXPECT_EQ(chosen({gid("fe80::1/64")}, {gid("2001:db8::2/64")}), "none");
  EXPECT_EQ(chosen({gid("10.0.0.1/24")}, {gid("169.254.0.2/16")}), "none");
  EXPECT_EQ(chosen({gid("169.254.0.1/16")}, {gid("fe80::2/64")}), "none");
  EXPECT_EQ(chosen({gid("169.254.0.1/16")}, {gid("169.254.0.2/16")}), "169.254.0.1 -> 169.254.0.2");
}

TEST(GidChoice, TheSameNetworkWins) {
  EXPECT_EQ(chosen({gid("10.0.0.1/24"), gid("10.0.1.1/24")}, {gid("10.0.1.2/24")}), "10.0.1.1 -> 10.0.1.2");
  EXPECT_EQ(chosen({gid("192.168.7.1/24")}, {gid("10.0.0.2/24"), gid("192.168.7.2/24")}), "192.168.7.1 -> 192.168.7.2");
}

TEST(GidChoice, TheNetworkIsToldByItsPrefixLengthNotByLikeness) {
  // .126 has more bits in common with .121, but its network holds four addresses only.
  const std::vector<Gid> ours{gid("10.0.0.126/30"), gid("10.9.0.1/8")};
  EXPECT_EQ(chosen(ours, {gid("10.0.0.121/8")}), "10.9.0.1 -> 10.0.0.121");
}

TEST(GidChoice, OfTwoPrefixLengthsTheLongerHasToAgree) {
  const auto pair = choose_gids(std::vector{gid("10.0.0.1/16")}, std::vector{gid("10.0.9.1/24")});
  ASSERT_TRUE(pair);
  EXPECT_FALSE(pair->rank.same_network);
  const auto inside = choose_gids(std::vector{gid("10.0.9.7/16")}, std::vector{gid("10.0.9.1/24")});
  ASSERT_TRUE(inside);
  EXPECT_TRUE(inside->rank.same_network);
}

TEST(GidChoice, AnUnknownPrefixLengthTakesThePeersWord) {
  const auto one = choose_gids(std::vector{gid("10.0.0.1")}, std::vector{gid("10.0.0.2/24")});
  ASSERT_TRUE(one);
  EXPECT_TRUE(one->rank.same_network);
  const auto none = choose_gids(std::vector{gid("10.0.0.1")}, std::vector{gid("10.0.0.2")});
  ASSERT_TRUE(none);
  EXPECT_FALSE(none->rank.same_network);
  EXPECT_EQ(none->rank.common_prefix, 126U);
}

TEST(GidChoice, OtherNetworksMeetThroughRouters) {
  EXPECT_EQ(chosen({gid("10.0.0.1/24"), gid("fe80::1/64")}, {gid("10.0.1.2/24"), gid("fe80::2/64")}), "10.0.0.1 -> 10.0.1.2")
      << "link-local addresses look alike everywhere";
}

TEST(GidChoice, LinkLocalIsTheLastResort) {
  EXPECT_EQ(chosen({gid("fe80::1/64"), gid("2001:db8:1::1/64")}, {gid("fe80::2/64"), gid("2001:db8:1::2/64")}),
            "2001:db8:1::1 -> 2001:db8:1::2");
  EXPECT_EQ(chosen({gid("fe80::1/64")}, {gid("fe80::2/64")}), "fe80::1 -> fe80::2");
}

TEST(GidChoice, RoutedBeforeVersionOne) {
  const std::vector<Gid> ours{gid("10.0.0.1/24", Kind::kRoceV1, 2), gid("10.0.0.1/24", Kind::kRoceV2, 3)};
  const std::vector<Gid> theirs{gid("10.0.0.2/24", Kind::kRoceV1, 4), gid("10.0.0.2/24", Kind::kRoceV2, 5)};
  const auto pair = choose_gids(ours, theirs);
  ASSERT_TRUE(pair);
  EXPECT_EQ(pair->ours.kind, Kind::kRoceV2);
  EXPECT_EQ(pair->ours.index, 3U);
  EXPECT_EQ(pair->theirs.index, 5U);
  EXPECT_EQ(pair->their_position, 1U);
}

TEST(GidChoice, VersionOneInOneNetworkBeforeVersionTwoInAnother) {
  const std::vector<Gid> ours{gid("10.0.0.1/24", Kind::kRoceV1), gid("10.7.0.1/24", Kind::kRoceV2)};
  const std::vector<Gid> theirs{gid("10.0.0.2/24", Kind::kRoceV1), gid("10.8.0.1/24", Kind::kRoceV2)};
  EXPECT_EQ(choose_gids(ours, theirs)->ours.kind, Kind::kRoceV1);
}

TEST(GidChoice, Ipv4BeforeIpv6) {
  EXPECT_EQ(chosen({gid("2001:db8::1/64"), gid("10.0.0.1/24")}, {gid("2001:db8::2/64"), gid("10.0.0.2/24")}), "10.0.0.1 -> 10.0.0.2");
  EXPECT_EQ(chosen({gid("2001:db8::1/64"), gid("10.0.0.1/24")}, {gid("2001:db8::2/64"), gid("10.0.1.2/24")}), "2001:db8::1 -> 2001:db8::2")
      << "but the same network comes first";
}

TEST(GidChoice, TheTableOfAUsualRoceNic) {
  // As an mlx5 port has it: link-local v1 and v2, then IPv4 v1 and v2.
  const std::vector<Gid> ours{gid("fe80::1", Kind::kRoceV1, 0), gid("fe80::1", Kind::kRoceV2, 1), gid("10.0.0.1/24", Kind::kRoceV1, 2),
                              gid("10.0.0.1/24", Kind::kRoceV2, 3)};
  const std::vector<Gid> theirs{gid("fe80::2", Kind::kRoceV1, 0), gid("fe80::2", Kind::kRoceV2, 1), gid("10.0.0.2/24", Kind::kRoceV1, 2),
                                gid("10.0.0.2/24", Kind::kRoceV2, 3)};
  const auto pair = choose_gids(ours, theirs);
  ASSERT_TRUE(pair);
  EXPECT_EQ(pair->ours.index, 3U);
  EXPECT_EQ(pair->their_position, 3U);
}

TEST(GidChoice, EqualOnesAreTakenByIndex) {
  const std::vector<Gid> ours{gid("10.0.0.1/24", Kind::kRoceV2, 9), gid("10.0.0.1/24", Kind::kRoceV2, 3)};
  const std::vector<Gid> theirs{gid("10.0.0.2/24", Kind::kRoceV2, 8), gid("10.0.0.2/24", Kind::kRoceV2, 5)};
  const auto pair = choose_gids(ours, theirs);
  ASSERT_TRUE(pair);
  EXPECT_EQ(pair->ours.index, 3U);
  EXPECT_EQ(pair->theirs.index, 5U);
}

TEST(GidChoice, InfiniBandIsOneNetworkWithOneSubnetPrefix) {
  const std::vector<Gid> ours{gid("fe80::2:c903:1:1", Kind::kInfiniBand)};
  const auto same = choose_gids(ours, std::vector{gid("fe80::2:c903:2:2", Kind::kInfiniBand)});
  ASSERT_TRUE(same);
  EXPECT_TRUE(same->rank.same_network);
  const auto other = choose_gids(ours, std::vector{gid("fec0:0:0:7::2:c903", Kind::kInfiniBand)});
  ASSERT_TRUE(other);
  EXPECT_FALSE(other->rank.same_network);
  EXPECT_LT(other->rank, same->rank);
}

TEST(GidChoice, RanksOrderPathsOfSeveralNics) {
  const std::vector<Gid> theirs{gid("10.0.1.2/24")};
  const auto near = choose_gids(std::vector{gid("10.0.1.1/24")}, theirs);
  const auto far = choose_gids(std::vector{gid("10.0.0.1/24")}, theirs);
  ASSERT_TRUE(near && far);
  EXPECT_LT(far->rank, near->rank);
}

TEST(GidChoice, ASettingLeavesOneIndex) {
  const std::vector<Gid> gids{gid("fe80::1", Kind::kRoceV1, 0), gid("10.0.0.1/24", Kind::kRoceV2, 3)};
  EXPECT_EQ(with_index(gids, -1).size(), 2U);
  ASSERT_EQ(with_index(gids, 3).size(), 1U);
  EXPECT_EQ(with_index(gids, 3)[0].index, 3U);
  EXPECT_EQ(with_index(gids, 0)[0].kind, Kind::kRoceV1);
  EXPECT_TRUE(with_index(gids, 7).empty());
}

TEST(GidChoice, PrefixLengthsComeFromTheInterface) {
  const std::vector<InterfaceAddress> addresses{
      {"eth0", gid("10.0.0.1").bytes, 120}, {"eth1", gid("10.0.0.1").bytes, 112}, {"eth0", gid("2001:db8::1").bytes, 64}};
  std::vector<Gid> gids{gid("10.0.0.1"), gid("2001:db8::1"), gid("10.0.0.9"), gid("fe80::1", Kind::kInfiniBand)};
  fill_prefix_lengths(gids, "eth0", addresses);
  EXPECT_EQ(gids[0].prefix_length, 120U);
  EXPECT_EQ(gids[1].prefix_length, 64U);
  EXPECT_EQ(gids[2].prefix_length, 0U) << "not the interface's";
  EXPECT_EQ(gids[3].prefix_length, 64U);
  fill_prefix_lengths(gids, "eth1", addresses);
  EXPECT_EQ(gids[0].prefix_length, 112U);
  std::vector<Gid> of_any{gid("2001:db8::1")};
  fill_prefix_lengths(of_any, "", addresses);
  EXPECT_EQ(of_any[0].prefix_length, 64U);
}

TEST(GidChoice, TheLoopbackIsAmongThisHostsAddresses) {
  const auto addresses = interface_addresses();
  const auto loopback = std::ranges::find_if(addresses, [](const auto& address) { return address.bytes == gid("127.0.0.1").bytes; });
  ASSERT_NE(loopback, addresses.end());
  EXPECT_EQ(loopback->prefix_length, 104U);
  EXPECT_EQ(loopback->interface, "lo");
}

TEST(GidChoice, TextsAreAddresses) {
  EXPECT_EQ(text_of(gid("10.1.2.3")), "10.1.2.3");
  EXPECT_EQ(text_of(gid("2001:db8::1")), "2001:db8::1");
  EXPECT_EQ(text_of(gid("fe80::2:c903:1:1", Kind::kInfiniBand)), "fe80::2:c903:1:1");
}

}  // namespace
}  // namespace moonpool::transfer::rdma
