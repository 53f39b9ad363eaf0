#include "gateway/policies/load_policies.h"

#include "gateway/policies/choosing.h"

namespace moonpool::gateway {

std::size_t RoundRobinPolicy::choose(std::span<Instance* const> candidates, const RequestFacts&) {
  std::size_t chosen = 0;
  // When all that come up sit out their turn (all are new), the last one takes it.
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    chosen = next_.fetch_add(1, std::memory_order_relaxed) % candidates.size();
    if (takes_its_turn(*candidates[chosen])) break;
  }
  return chosen;
}

std::size_t RandomPolicy::choose(std::span<Instance* const> candidates, const RequestFacts&) {
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    chosen = random_below(candidates.size());
    if (takes_its_turn(*candidates[chosen])) break;
  }
  return chosen;
}

std::size_t LeastLoadPolicy::choose(std::span<Instance* const> candidates, const RequestFacts&) {
  return cheapest(candidates.size(), [&](std::size_t i) { return load_of(*candidates[i]); });
}

std::size_t PowerOfTwoPolicy::choose(std::span<Instance* const> candidates, const RequestFacts&) {
  if (candidates.size() == 1) return 0;
  const std::size_t first = random_below(candidates.size());
  std::size_t second = random_below(candidates.size() - 1);
  if (second >= first) ++second;
  const std::size_t drawn[] = {first, second};
  return drawn[cheapest(2, [&](std::size_t i) { return load_of(*candidates[drawn[i]]); })];
}

}  // namespace moonpool::gateway
