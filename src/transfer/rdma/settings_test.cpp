#include "transfer/rdma/settings.h"

#include <gtest/gtest.h>

#include <vector>

namespace moonpool::transfer::rdma {
namespace {

TEST(RdmaSettingsTest, NothingSaysTheDefaultsAndOthersVariablesAreNotOurs) {
  const auto options = with_variables({}, {{"PATH", "/bin"}, {"MC_LOG_LEVEL", "x"}, {"MC_MTU", ""}, {"MOONPOOL_RDMA_MTU", "  "}});
  ASSERT_TRUE(options.ok()) << options.status().to_string();
  EXPECT_EQ(options->mtu, 0U);
  EXPECT_EQ(options->gid_index, -1);
  EXPECT_TRUE(is_rdma_variable("MC_GID_INDEX"));
  EXPECT_TRUE(is_rdma_variable("MOONPOOL_RDMA_TYPO"));
  EXPECT_FALSE(is_rdma_variable("MOONPOOL_PATHS"));
  EXPECT_FALSE(is_rdma_variable("MC_LOG_LEVEL"));
}

TEST(RdmaSettingsTest, EverySettingArrivesAtItsField) {
  Options given;
  given.device_names = "mlx5_0";
  const auto options = with_variables(given, {{"MOONPOOL_RDMA_PORT", "2"},
                                              {"MOONPOOL_RDMA_GID_INDEX", "3"},
                                              {"MOONPOOL_RDMA_MTU", "1024"},
                                              {"MOONPOOL_RDMA_TRAFFIC_CLASS", "104"},
                                              {"MOONPOOL_RDMA_SERVICE_LEVEL", "4"},
                                              {"MOONPOOL_RDMA_ACK_TIMEOUT", "16"},
                                              {"MOONPOOL_RDMA_RETRIES", "7"},
                                              {"MOONPOOL_RDMA_CONNECTION_MANAGER", "Yes"},
                                              {"MOONPOOL_RDMA_WAITING", "event"},
                                              {"MOONPOOL_RDMA_SPIN_US", "20"},
                                              {"MOONPOOL_RDMA_SESSIONS", "8"},
                                              {"MOONPOOL_RDMA_WORK_REQUESTS", "512"},
                                              {"MOONPOOL_RDMA_STRIPE", "256 KiB"},
                                              {"MOONPOOL_RDMA_STAGING", "1gb"},
                                              {"MOONPOOL_RDMA_COME_BACK_MS", "250"},
                                              {"MOONPOOL_RDMA_HUGE_PAGES", "never"}});
  ASSERT_TRUE(options.ok()) << options.status().to_string();
  EXPECT_EQ(options->device_names, "mlx5_0");
  EXPECT_EQ(options->port, 2U);
  EXPECT_EQ(options->gid_index, 3);
  EXPECT_EQ(options->mtu, 1024U);
  EXPECT_EQ(options->traffic_class, 104U);
  EXPECT_EQ(options->service_level, 4U);
  EXPECT_EQ(options->ack_timeout, 16U);
  EXPECT_EQ(options->retries, 7U);
  EXPECT_TRUE(options->connection_manager);
  EXPECT_EQ(options->waiting, Waiting::kEvent);
  EXPECT_EQ(options->spin_time, std::chrono::microseconds(20));
  EXPECT_EQ(options->sessions_per_peer, 8U);
  EXPECT_EQ(options->work_requests, 512U);
  EXPECT_EQ(options->stripe_bytes, 256U << 10);
  EXPECT_EQ(options->staging_bytes, 1U << 30);
  EXPECT_EQ(options->come_back_after, std::chrono::milliseconds(250));
  EXPECT_FALSE(options->huge_pages);
}

TEST(RdmaSettingsTest, MooncakesNamesAreUnderstoodAndOursBeatThem) {
  auto options =
      with_variables({}, {{"MC_GID_INDEX", "2"}, {"MC_MTU", "2048"}, {"MC_IB_PORT", "2"}, {"MC_IB_TC", "96"}, {"MC_RETRY_CNT", "9"}});
  ASSERT_TRUE(options.ok()) << options.status().to_string();
  EXPECT_EQ(options->gid_index, 2);
  EXPECT_EQ(options->mtu, 2048U);
  EXPECT_EQ(options->port, 2U);
  EXPECT_EQ(options->traffic_class, 96U);
  EXPECT_EQ(options->retries, 7U) << "no NIC counts further";
  options = with_variables({}, {{"MC_MTU", "2048"}, {"MOONPOOL_RDMA_MTU", "512"}, {"MC_IB_TC", "-1"}, {"MC_GID_INDEX", "-1"}});
  ASSERT_TRUE(options.ok()) << options.status().to_string();
  EXPECT_EQ(options->mtu, 512U);
  EXPECT_EQ(options->traffic_class, 0U);
  EXPECT_EQ(with_variables({}, {{"MC_GID_INDEX", "3"}, {"MOONPOOL_RDMA_GID_INDEX", "auto"}})->gid_index, -1);
}

TEST(RdmaSettingsTest, AWrongValueIsOneLineThatNamesItAndWhatWouldBeRight) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"MOONPOOL_RDMA_MTU", "1500"},
      {"MC_MTU", "9000"},
      {"MOONPOOL_RDMA_MTU", "128"},
      {"MOONPOOL_RDMA_GID_INDEX", "256"},
      {"MC_GID_INDEX", "one"},
      {"MOONPOOL_RDMA_PORT", "0"},
      {"MOONPOOL_RDMA_RETRIES", "8"},
      {"MC_RETRY_CNT", "-1"},
      {"MOONPOOL_RDMA_WAITING", "sometimes"},
      {"MOONPOOL_RDMA_STRIPE", "1"},
      {"MOONPOOL_RDMA_STAGING", "64XB"},
      {"MOONPOOL_RDMA_STAGING", "99999999999 gb"},
      {"MOONPOOL_RDMA_HUGE_PAGES", "yes"},
      {"MOONPOOL_RDMA_TRAFFIC_CLASS", "1 2"},
      {"MC_IB_TC", "256"},
      {"MOONPOOL_RDMA_CONNECTION_MANAGER", "2"},
  };
  for (const auto& [name, text] : wrong) {
    const auto options = with_variables({}, {{name, text}});
    EXPECT_EQ(options.code(), ErrorCode::kConfig) << name << "=" << text;
    EXPECT_TRUE(options.status().message().starts_with(name + ": give ")) << options.status().message();
    EXPECT_NE(options.status().message().find("'" + text + "'"), std::string::npos) << options.status().message();
  }
}

TEST(RdmaSettingsTest, AnEnvironmentIsSearchedForWhatIsAboutRdma) {
  const char* const environment[] = {"PATH=/bin", "MC_MTU=1024", "MOONPOOL_RDMA_X=a=b", "MOONPOOL_PATHS=tcp", "odd", nullptr};
  EXPECT_EQ(variables_of(environment), (Variables{{"MC_MTU", "1024"}, {"MOONPOOL_RDMA_X", "a=b"}}));
  EXPECT_TRUE(variables_of(nullptr).empty());
}

TEST(RdmaSettingsTest, ANameOfOursThatDoesNotExistIsAnErrorWithTheNearestOne) {
  const auto options = with_variables({}, {{"MOONPOOL_RDMA_GIDINDEX", "3"}});
  EXPECT_EQ(options.code(), ErrorCode::kConfig);
  EXPECT_NE(options.status().message().find("MOONPOOL_RDMA_GIDINDEX"), std::string::npos);
  EXPECT_NE(options.status().message().find("MOONPOOL_RDMA_GID_INDEX"), std::string::npos);
}

}  // namespace
}  // namespace moonpool::transfer::rdma
