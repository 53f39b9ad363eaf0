#include "transfer/rdma/verbs/device_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moonpool::transfer::rdma {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<KnownDevice> kKnown{{"mlx5_0", "active", true}, {"mlx5_1", "down", false}, {"mlx5_2", "active", true}};

std::vector<std::string> parsed(std::string_view setting) {
  auto names = parse_device_names(setting);
  EXPECT_TRUE(names.ok()) << names.status().to_string();
  return names.ok() ? *names : std::vector<std::string>{"error"};
}

TEST(DeviceNames, EmptyAndAutoMeanAllThatAreUp) {
  EXPECT_THAT(parsed(""), IsEmpty());
  EXPECT_THAT(parsed("  "), IsEmpty());
  EXPECT_THAT(parsed("auto"), IsEmpty());
  EXPECT_THAT(parsed(" auto "), IsEmpty());
  EXPECT_THAT(*choose_devices({}, kKnown), ElementsAre(0, 2));
}

TEST(DeviceNames, NamesAreSeparatedByCommasAndSpacesAreIgnored) {
  EXPECT_THAT(parsed("erdma_0,erdma_1"), ElementsAre("erdma_0", "erdma_1"));
  EXPECT_THAT(parsed(" erdma_1 ,\terdma_0 "), ElementsAre("erdma_1", "erdma_0"));
  EXPECT_THAT(parsed("mlx5_0"), ElementsAre("mlx5_0"));
}

TEST(DeviceNames, DuplicatesAndEmptyNamesAreMistakes) {
  EXPECT_EQ(parse_device_names("a,b,a").code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(parse_device_names("a, b,a").status().message(), HasSubstr("names a twice"));
  EXPECT_EQ(parse_device_names("a,,b").code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(parse_device_names("a,").code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(parse_device_names(",").code(), ErrorCode::kInvalidParams);
}

TEST(DeviceNames, NamedOnesComeInTheirOrderEvenWhenTheyAreDown) {
  EXPECT_THAT(*choose_devices({"mlx5_2", "mlx5_1"}, kKnown), ElementsAre(2, 1));
}

TEST(DeviceNames, AWrongNameListsThoseThatExistWithTheirState) {
  const auto chosen = choose_devices({"mlx5_0", "mlx5_7"}, kKnown);
  EXPECT_EQ(chosen.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(chosen.status().message(), HasSubstr("no RDMA device mlx5_7"));
  EXPECT_THAT(chosen.status().message(), HasSubstr("mlx5_0 (active), mlx5_1 (down), mlx5_2 (active)"));
}

TEST(DeviceNames, NoneThatIsUpSaysWhatThereIs) {
  const auto chosen = choose_devices({}, {{"mlx5_1", "down", false}});
  EXPECT_EQ(chosen.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(chosen.status().message(), HasSubstr("mlx5_1 (down)"));
}

}  // namespace
}  // namespace moonpool::transfer::rdma
