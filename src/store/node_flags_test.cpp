#include "store/node_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moonpool::store {
namespace {

using ::testing::HasSubstr;

Result<NodeSettings> parse(const std::vector<std::string_view>& arguments) { return parse_node_flags(arguments); }

TEST(NodeFlags, DefaultsListenOnThisMachineOnly) {
  const auto settings = parse({});
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->client.local_hostname, "127.0.0.1:50052");
  EXPECT_EQ(settings->client.master_address, "127.0.0.1:50051");
  EXPECT_EQ(settings->client.segment_size, std::uint64_t{4} << 30);
  EXPECT_EQ(settings->client.protocol, "tcp");
}

TEST(NodeFlags, AreWrittenInEveryWayThatGflagsTakes) {
  const auto settings =
      parse({"--host", "10.0.0.7", "-port=1234", "--global-segment-size=16 MB", "-master_server_address", "m:1", "--noenable_offload"});
  ASSERT_TRUE(settings.ok()) << settings.status().to_string();
  EXPECT_EQ(settings->client.local_hostname, "10.0.0.7:1234");
  EXPECT_EQ(settings->client.segment_size, std::uint64_t{16} << 20);
  EXPECT_EQ(settings->client.master_address, "m:1");
  EXPECT_TRUE(settings->warnings.empty());
}

TEST(NodeFlags, AnIpv6HostGetsItsBrackets) { EXPECT_EQ(parse({"--host=::1"})->client.local_hostname, "[::1]:50052"); }

TEST(NodeFlags, AnUnknownFlagNamesTheNearest) {
  const auto settings = parse({"--global_segment_sise=1"});
  ASSERT_EQ(settings.code(), ErrorCode::kConfig);
  EXPECT_THAT(settings.status().message(), HasSubstr("--global_segment_size"));
}

TEST(NodeFlags, WrongValuesNameTheFlag) {
  for (const auto& [argument, flag] : {std::pair{"--port=http", "--port"}, std::pair{"--port=70000", "--port"},
                                       std::pair{"--port", "--port"}, std::pair{"--global_segment_size=50%", "--global_segment_size"},
                                       std::pair{"--enable_offload=perhaps", "--enable_offload"}, std::pair{"stray", "stray"}}) {
    const auto settings = parse({argument});
    ASSERT_EQ(settings.code(), ErrorCode::kConfig) << argument;
    EXPECT_THAT(settings.status().message(), HasSubstr(flag));
  }
}

TEST(NodeFlags, AFeatureThatIsNotThereYetIsAWarningOnlyWhenAskedFor) {
  EXPECT_TRUE(parse({"--enable_offload=false", "--http_port=9300"})->warnings.empty());
  const auto settings = parse({"--enable_offload", "--threads=8"});
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->warnings.size(), 2U);
}

}  // namespace
}  // namespace moonpool::store
