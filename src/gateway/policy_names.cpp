// The names alone, apart from what they stand for: the configuration file is parsed (and fuzzed) without any policy at hand.
#include <array>

#include "gateway/policy.h"

namespace moonpool::gateway {

namespace {

constexpr std::array<std::string_view, 7> kNames{"round_robin",      "random",       "least_load", "power_of_two",
                                                 "session_affinity", "prefix_aware", "pool_aware"};

}  // namespace

std::span<const std::string_view> policy_names() { return kNames; }

// bench/gateway_trace.cpp compares them; docs/benchmarks.md has the result.
std::string_view default_policy() { return "prefix_aware"; }

std::string policy_names_text() {
  std::string all;
  for (std::size_t i = 0; i < kNames.size(); ++i) all.append(i == 0 ? "" : i + 1 == kNames.size() ? " or " : ", ").append(kNames[i]);
  return all;
}

}  // namespace moonpool::gateway
