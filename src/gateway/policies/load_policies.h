// The policies that look at load alone, or at nothing.
//
// round_robin: in turn, whatever the load; right when requests are alike. random: the same without a shared counter.
// least_load: the fewest requests in flight; exact within one gateway, herds when several gateways see the same idle instance.
// power_of_two: the less loaded of two drawn at random; nearly as even, and gateways do not herd.
// Cost: O(1), but least_load O(instances). No locks. Threads: any.
#pragma once

#include <atomic>

#include "gateway/policy.h"

namespace moonpool::gateway {

class RoundRobinPolicy final : public Policy {
 public:
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts&) override;
  std::string_view name() const override { return "round_robin"; }

 private:
  std::atomic<std::size_t> next_{0};
};

class RandomPolicy final : public Policy {
 public:
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts&) override;
  std::string_view name() const override { return "random"; }
};

class LeastLoadPolicy final : public Policy {
 public:
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts&) override;
  std::string_view name() const override { return "least_load"; }
};

class PowerOfTwoPolicy final : public Policy {
 public:
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts&) override;
  std::string_view name() const override { return "power_of_two"; }
};

}  // namespace moonpool::gateway
