#include "store/node_address.h"

#include <gtest/gtest.h>

namespace moonpool::store {
namespace {

TEST(NodeAddress, TakesEveryFormOfALocalHostname) {
  struct Case {
    const char* text;
    const char* host;
    std::uint16_t port;
  };
  for (const auto& [text, host, port] :
       {Case{"localhost", "localhost", 0}, Case{"10.0.0.1:12345", "10.0.0.1", 12345}, Case{"[::1]:80", "::1", 80}, Case{"[::1]", "::1", 0},
        Case{"fe80::1", "fe80::1", 0}, Case{"node-7.cluster", "node-7.cluster", 0}}) {
    const auto address = parse_node_address(text);
    ASSERT_TRUE(address.ok()) << text << ": " << address.status().to_string();
    EXPECT_EQ(address->host, host);
    EXPECT_EQ(address->port, port);
  }
}

TEST(NodeAddress, RefusesWhatPeersCouldNotReach) {
  for (const char* text : {"", "0.0.0.0", "0.0.0.0:1", "::", "[::]:5", ":80", "host:0", "host:99999", "host:x", "[]"}) {
    const auto address = parse_node_address(text);
    ASSERT_FALSE(address.ok()) << text;
    EXPECT_EQ(address.code(), ErrorCode::kInvalidParams) << text;
    EXPECT_NE(address.status().message().find("local_hostname"), std::string::npos) << address.status().message();
  }
}

TEST(NodeAddress, KnowsThisMachinesAddresses) {
  EXPECT_TRUE(check_is_ours({"127.0.0.1", 0}, Deadline::after(std::chrono::seconds(5))).ok());
  EXPECT_TRUE(check_is_ours({"localhost", 0}, Deadline::after(std::chrono::seconds(5))).ok());
}

TEST(NodeAddress, NamesAHostThatIsNotThisMachine) {
  // TEST-NET-1: nobody's address.
  const Status status = check_is_ours({"192.0.2.1", 0}, Deadline::after(std::chrono::seconds(5)));
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_NE(status.message().find("192.0.2.1"), std::string::npos);
}

}  // namespace
}  // namespace moonpool::store
