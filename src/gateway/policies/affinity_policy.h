// session_affinity: requests with one key go to one instance, as long as it is not loaded well beyond the others.
//
// Key: the configured header, else the request's "user"; without either the least loaded instance is taken. Consistent hashing by
// rendezvous (the instance with the highest hash of key and name), so nothing is kept: when an instance comes or goes, only the keys that
// it wins or had won move, in every gateway alike. Bounded load: an instance with more than 1.25 times the mean of requests in flight (and
// more than 4) is passed over for the key's next best. A slow-starting instance gets the share of its keys that its weight is, always the
// same keys first, so a key moves once. Cost: O(instances), no locks. Threads: any.
#pragma once

#include "gateway/policy.h"

namespace moonpool::gateway {

class AffinityPolicy final : public Policy {
 public:
  explicit AffinityPolicy(std::string header) : header_(std::move(header)) {}
  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts& request) override;
  std::string_view name() const override { return "session_affinity"; }

 private:
  [[nodiscard]] std::string_view key_of(const RequestFacts& request) const;

  const std::string header_;
};

}  // namespace moonpool::gateway
