// What every policy has to hold, one suite over all of their names: a new policy is tested by being listed in policy.cpp.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <deque>
#include <map>
#include <thread>

#include "gateway/group.h"
#include "gateway/policies/choosing.h"

namespace moonpool::gateway {
namespace {

const Status kBroken(ErrorCode::kUnavailable, "broken");

std::shared_ptr<Instance> make_instance(int number, std::chrono::nanoseconds slow_start = {}) {
  return std::make_shared<Instance>(InstanceName::parse("node" + std::to_string(number) + ":1").value(), "decode",
                                    CircuitSettings{.failures_to_open = 1}, slow_start);
}

// A body of its own for each number: what differs by user or prompt differs here.
std::string body_of(std::size_t number) {
  const std::string text = std::to_string(number);
  return R"({"user":"u)" + text + R"(","prompt":")" + text + std::string(600, 'a') + "\"}";
}

class PolicyConformanceTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  [[nodiscard]] static std::unique_ptr<Group> group_of(int instances) {
    auto group = std::make_unique<Group>("decode", make_policy(GetParam()).value());
    for (int i = 0; i < instances; ++i) EXPECT_TRUE(group->add(make_instance(i)));
    return group;
  }

  // How often each was picked for `picks` requests that differ in all a policy may look at. Each request is over before the next.
  static std::map<std::string, int> count_picks(const Group& group, int picks) {
    std::map<std::string, int> counts;
    for (const auto& instance : *group.snapshot()) counts[instance->name().to_string()] = 0;
    for (int i = 0; i < picks; ++i) {
      const std::string body = body_of(static_cast<std::size_t>(i));
      ++counts[group.pick({"/v1/completions", body}, {})->name().to_string()];
    }
    return counts;
  }
};

TEST_P(PolicyConformanceTest, IsKnownByItsName) { EXPECT_EQ(make_policy(GetParam()).value()->name(), GetParam()); }

TEST_P(PolicyConformanceTest, NeverPicksWhatMayNotBePicked) {
  const auto group_owner = group_of(6);
  const Group& group = *group_owner;
  const InstanceList all = *group.snapshot();
  all[0]->failed(kBroken);
  all[1]->set_draining(true);
  const InstanceList tried{all[2]};
  for (std::size_t i = 0; i < 300; ++i) {
    const std::string body = body_of(i);
    const auto picked = group.pick({"/v1/completions", body}, tried);
    ASSERT_NE(picked, nullptr);
    EXPECT_TRUE(picked == all[3] || picked == all[4] || picked == all[5]) << picked->name().to_string();
  }
}

TEST_P(PolicyConformanceTest, DrainingOnesAreNotEvenALastResort) {
  const auto group_owner = group_of(2);
  const Group& group = *group_owner;
  const InstanceList all = *group.snapshot();
  all[0]->set_draining(true);
  all[1]->failed(kBroken);
  EXPECT_EQ(group.pick({}, {}), all[1]);
  all[1]->set_draining(true);
  EXPECT_EQ(group.pick({}, {}), nullptr);
}

// Equal instances: counts differ by no more than chance allows. Five standard deviations of a binomial count: once in a million.
TEST_P(PolicyConformanceTest, SpreadsOverEqualInstancesFairly) {
  constexpr int kInstances = 8;
  constexpr int kPicks = 8000;
  const auto counts = count_picks(*group_of(kInstances), kPicks);
  const double mean = static_cast<double>(kPicks) / kInstances;
  const double allowed = 5 * std::sqrt(mean * (1 - 1.0 / kInstances));
  for (const auto& [name, count] : counts) EXPECT_NEAR(count, mean, allowed) << name;
}

TEST_P(PolicyConformanceTest, SpreadsRequestsWithoutAnyFactsFairly) {
  const auto group_owner = group_of(4);
  const Group& group = *group_owner;
  std::map<Instance*, int> counts;
  for (int i = 0; i < 4000; ++i) ++counts[group.pick({}, {}).get()];
  ASSERT_EQ(counts.size(), 4U);
  for (const auto& [instance, count] : counts) EXPECT_NEAR(count, 1000, 5 * std::sqrt(750.0)) << instance->name().to_string();
}

TEST_P(PolicyConformanceTest, CopesWithOneAndWithAHundred) {
  const auto one_owner = group_of(1);
  const Group& one = *one_owner;
  for (std::size_t i = 0; i < 10; ++i) EXPECT_NE(one.pick({"/", body_of(i)}, {}), nullptr);
  const auto counts = count_picks(*group_of(100), 3000);
  ASSERT_EQ(counts.size(), 100U);
  for (const auto& [name, count] : counts) EXPECT_GT(count, 0) << name;
}

TEST_P(PolicyConformanceTest, SlowStartingOnesGetLess) {
  const auto group_owner = group_of(3);
  Group& group = *group_owner;
  const auto fresh = make_instance(3, std::chrono::hours(1000));
  ASSERT_TRUE(group.add(fresh));
  EXPECT_NEAR(fresh->weight(), 0.1, 1e-6);
  constexpr std::size_t kPicks = 2000;
  constexpr std::size_t kAtWork = 40;
  std::deque<Instance::InFlight> at_work;
  std::size_t of_fresh = 0;
  for (std::size_t i = 0; i < kPicks; ++i) {
    const std::string body = body_of(i);
    const auto picked = group.pick({"/v1/completions", body}, {});
    ASSERT_NE(picked, nullptr);
    of_fresh += picked == fresh ? 1 : 0;
    at_work.emplace_back(picked);
    if (at_work.size() > kAtWork) at_work.pop_front();
  }
  EXPECT_GT(of_fresh, 0U);
  EXPECT_LT(of_fresh, kPicks / 4 / 2) << "less than half of a full share";
  Group alone("decode", make_policy(GetParam()).value());
  ASSERT_TRUE(alone.add(fresh));
  EXPECT_EQ(alone.pick({}, {}), fresh);
}

// An adapter's KV is its own: whoever remembers prompts remembers for whom.
TEST_P(PolicyConformanceTest, WhatIsRememberedOfAPromptIsItsModelsAlone) {
  const auto group = group_of(3);
  const auto body_for = [](const std::string& model) {
    return R"({"prompt":")" + std::string(4000, 'p') + R"(","model":")" + model + "\"}";
  };
  const auto uncached = [&](const std::string& model) { return group->uncached_bytes({"/v1/completions", body_for(model)}); };
  const auto cold = uncached("base");
  if (!cold) GTEST_SKIP() << "it remembers no prompts";
  EXPECT_EQ(*cold, 4002U);
  EXPECT_NE(group->pick({"/v1/completions", body_for("base")}, {}), nullptr);
  EXPECT_LT(*uncached("base"), 300U);
  EXPECT_EQ(uncached("an-adapter"), cold);
  EXPECT_NE(group->pick({"/v1/completions", body_for("an-adapter")}, {}), nullptr);
  EXPECT_LT(*uncached("an-adapter"), 300U);
  EXPECT_EQ(uncached("another"), cold);
}

TEST_P(PolicyConformanceTest, AskingWhatIsUncachedIsNoChoice) {
  const auto group = group_of(1);
  const std::string body = body_of(1);
  const auto before = group->uncached_bytes({"/v1/completions", body});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(group->uncached_bytes({"/v1/completions", body}), before);
  EXPECT_EQ(group->uncached_bytes({}).value_or(0), 0U);
}

TEST_P(PolicyConformanceTest, WorksWhileInstancesComeAndGo) {
  const auto group_owner = group_of(4);
  Group& group = *group_owner;
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> picks{0};
  std::vector<std::thread> pickers;
  for (std::size_t thread = 0; thread < 3; ++thread) {
    pickers.emplace_back([&, thread] {
      for (std::size_t i = thread; !stop; i += 3) {
        const std::string body = body_of(i % 200);
        const auto picked = group.pick({"/v1/completions", body}, {});
        ASSERT_NE(picked, nullptr);
        EXPECT_LE(group.uncached_bytes({"/v1/completions", body}).value_or(0), body.size());
        const Instance::InFlight work(picked);
        picks.fetch_add(1);
      }
    });
  }
  for (int round = 0; round < 50 || picks < 300; ++round) {
    const auto extra = make_instance(100 + round % 7);
    EXPECT_TRUE(group.add(extra));
    if (round % 10 == 0) group.set_policy(make_policy(GetParam()).value());
    std::this_thread::yield();
    EXPECT_TRUE(group.remove(extra));
    EXPECT_FALSE(group.remove(extra));
  }
  stop = true;
  for (auto& picker : pickers) picker.join();
  EXPECT_EQ(group.snapshot()->size(), 4U);
}

INSTANTIATE_TEST_SUITE_P(All, PolicyConformanceTest, ::testing::ValuesIn(policy_names().begin(), policy_names().end()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace moonpool::gateway
