#include "gateway/policy.h"

#include "gateway/policies/affinity_policy.h"
#include "gateway/policies/load_policies.h"
#include "gateway/policies/prefix_policy.h"

namespace moonpool::gateway {

Result<std::unique_ptr<Policy>> make_policy(std::string_view name, const PolicyOptions& options) {
  using Made = std::unique_ptr<Policy>;
  if (name == "round_robin") return Made(std::make_unique<RoundRobinPolicy>());
  if (name == "random") return Made(std::make_unique<RandomPolicy>());
  if (name == "least_load") return Made(std::make_unique<LeastLoadPolicy>());
  if (name == "power_of_two") return Made(std::make_unique<PowerOfTwoPolicy>());
  if (name == "session_affinity") return Made(std::make_unique<AffinityPolicy>(options.affinity_header));
  if (name == "prefix_aware") return Made(std::make_unique<PrefixPolicy>(options.prefix_index_bytes, std::nullopt));
  if (name == "pool_aware") return Made(std::make_unique<PrefixPolicy>(options.prefix_index_bytes, options.pool_transfer_cost));
  return Status(ErrorCode::kConfig, "the policy " + std::string(name) + " is not known: use " + policy_names_text());
}

}  // namespace moonpool::gateway
