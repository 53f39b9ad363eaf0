#include "net/endpoint.h"

#include <gtest/gtest.h>

#include "net/socket.h"

namespace moonpool::net {
namespace {

TEST(EndpointTest, TakesNamesAndBothKindsOfAddress) {
  EXPECT_EQ(*Endpoint::parse("node-1.example:50051"), (Endpoint{"node-1.example", 50051}));
  EXPECT_EQ(*Endpoint::parse("10.0.0.2:1"), (Endpoint{"10.0.0.2", 1}));
  EXPECT_EQ(*Endpoint::parse("[::1]:65535"), (Endpoint{"::1", 65535}));
  EXPECT_EQ(*Endpoint::parse("[fe80::1%eth0]:80"), (Endpoint{"fe80::1%eth0", 80}));
  EXPECT_EQ(*Endpoint::parse("my_host:80"), (Endpoint{"my_host", 80}));
}

TEST(EndpointTest, TheDefaultPortIsUsedOnlyWhereNoneIsWritten) {
  EXPECT_EQ(*Endpoint::parse("host", 9), (Endpoint{"host", 9}));
  EXPECT_EQ(*Endpoint::parse("host:8", 9), (Endpoint{"host", 8}));
  EXPECT_EQ(*Endpoint::parse("[::1]", 9), (Endpoint{"::1", 9}));
  EXPECT_EQ(*Endpoint::parse("fe80::1", 9), (Endpoint{"fe80::1", 9}));
}

TEST(EndpointTest, RefusesEverythingElseAndSaysWhatItSaw) {
  for (const char* text : {"",
                           ":",
                           ":80",
                           "host",
                           "host:",
                           "host:0",
                           "host:65536",
                           "host:-1",
                           "host:+1",
                           "host:80x",
                           "host: 80",
                           " host:80",
                           "a b:1",
                           "[::1",
                           "[::1]80",
                           "[::1]:",
                           "[host]:80",
                           "[]:80",
                           "::1",
                           "1:2:3",
                           "http://host:80",
                           "host:80/",
                           "ho\nst:80",
                           "[::1%]:80",
                           "host:99999999999999999999"}) {
    const auto parsed = Endpoint::parse(text);
    EXPECT_EQ(parsed.code(), ErrorCode::kInvalidParams) << text;
  }
  EXPECT_NE(Endpoint::parse("host:eighty").status().message().find("\"host:eighty\""), std::string::npos);
  EXPECT_EQ(Endpoint::parse(std::string(300, 'a') + ":1").code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(Endpoint::parse(std::string_view("a\0b:1", 5)).code(), ErrorCode::kInvalidParams);
}

TEST(EndpointTest, TextAndEndpointRoundTrip) {
  for (const char* text : {"host:1", "1.2.3.4:5", "[2001:db8::1]:65535"}) EXPECT_EQ(Endpoint::parse(text)->to_string(), text);
}

TEST(ResolveTest, AddressesNeedNoResolverAndNoTime) {
  const auto addresses = resolve({"::1", 5}, Deadline::after(std::chrono::seconds(0)));
  ASSERT_TRUE(addresses.ok()) << addresses.status().to_string();
  EXPECT_EQ(address_text(addresses->front()), "[::1]:5");
  EXPECT_EQ(address_text(resolve({"127.0.0.1", 6}, Deadline::after(std::chrono::seconds(0)))->front()), "127.0.0.1:6");
}

TEST(ResolveTest, LocalhostResolves) {
  const auto addresses = resolve({"localhost", 5}, Deadline::after(std::chrono::seconds(20)));
  ASSERT_TRUE(addresses.ok()) << addresses.status().to_string();
  EXPECT_EQ(port_of(addresses->front()), 5);
}

TEST(ResolveTest, AnUnknownNameIsAnErrorThatNamesItWithinTheDeadline) {
  const auto start = Deadline::Clock::now();
  const auto addresses = resolve({"no-such-host.invalid", 5}, Deadline::after(std::chrono::milliseconds(300)));
  EXPECT_EQ(addresses.code(), ErrorCode::kUnavailable);
  EXPECT_NE(addresses.status().message().find("no-such-host.invalid"), std::string::npos);
  EXPECT_LT(Deadline::Clock::now() - start, std::chrono::seconds(3));
}

}  // namespace
}  // namespace moonpool::net
