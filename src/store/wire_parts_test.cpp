#include "store/wire_parts.h"

#include <gtest/gtest.h>

#include "store/fenced_memory.h"

namespace moonpool::store {
namespace {

using namespace std::string_literals;

TEST(CatalogueKey, ATenantsKeyIsNeverReadAsAnothers) {
  EXPECT_EQ(catalogue_key("", "plain"), "plain");
  EXPECT_EQ(catalogue_key("blue", "plain"), "blue\0plain"s);
  // A default tenant's key that looks like a qualified one of tenant "blue".
  EXPECT_EQ(catalogue_key("", "blue\0plain"s), "default\0blue\0plain"s);
}

TEST(CatalogueKey, TheDefaultTenantIsEmptyOnTheWire) {
  EXPECT_EQ(tenant_on_wire("default"), "");
  EXPECT_EQ(tenant_on_wire("blue"), "blue");
}

TEST(PublicCode, NoCodeOfOursReachesACallerWrittenForMooncake) {
  for (std::int32_t code = -2008; code <= -2000; ++code) EXPECT_GT(public_code(static_cast<ErrorCode>(code)), -2000) << code;
  EXPECT_EQ(public_code(ErrorCode::kNoAvailableHandle), -200);
}

TEST(CheckKey, HoldsTheLimits) {
  EXPECT_EQ(check_key(""), ErrorCode::kInvalidParams);
  EXPECT_EQ(check_key(std::string(kMaxKeyLength, 'k')), ErrorCode::kOk);
  EXPECT_EQ(check_key(std::string(kMaxKeyLength + 1, 'k')), ErrorCode::kInvalidKey);
}

TEST(ParseSegments, RefusesMalformedDescriptions) {
  wire::SegmentInfo info;
  info.set_incarnation(Incarnation::generate().to_bytes());
  info.set_node_id(NodeId::generate().to_bytes());
  info.set_name("n:1234");
  info.set_host("127.0.0.1");
  info.set_port(1234);
  const auto parse = [](const std::string& encoded) {
    const std::string_view column[] = {encoded};
    return parse_segments(column);
  };
  const auto good = parse(info.SerializeAsString());
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(good->at(0)->peer.endpoint.to_string(), "127.0.0.1:1234");
  EXPECT_EQ(good->at(0)->peer.node.to_bytes(), info.node_id());
  EXPECT_EQ(good->at(0)->name, "n:1234");
  EXPECT_EQ(parse("\xFF").code(), ErrorCode::kProtocol);
  info.set_port(70000);
  EXPECT_EQ(parse(info.SerializeAsString()).code(), ErrorCode::kProtocol);
  info.set_port(1234);
  info.set_incarnation("short");
  EXPECT_EQ(parse(info.SerializeAsString()).code(), ErrorCode::kProtocol);
}

TEST(FencedMemory, ForgetsTheOldestBeyondItsLimit) {
  FencedMemory memory(2);
  const auto id = [](char c) { return std::string(16, c); };
  memory.remember(std::vector{id('a'), id('b'), id('a'), "not an id"s});
  EXPECT_EQ(memory.all(), (std::deque{id('a'), id('b')}));
  memory.remember(std::vector{id('c')});
  EXPECT_EQ(memory.all(), (std::deque{id('b'), id('c')}));
}

}  // namespace
}  // namespace moonpool::store
