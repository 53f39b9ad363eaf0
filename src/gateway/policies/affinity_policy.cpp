#include "gateway/policies/affinity_policy.h"

#include <algorithm>
#include <cmath>

#include "gateway/hash_bytes.h"
#include "gateway/http_message.h"
#include "gateway/json_member.h"
#include "gateway/policies/choosing.h"

namespace moonpool::gateway {

namespace {

constexpr double kLoadFactor = 1.25;
constexpr double kFreeLoad = 4;  // with so little to do, staying together is worth more than spreading

// A second number of the same pair, for the order in which a slow-starting instance takes its keys.
double place_in_order(std::uint64_t hash) { return static_cast<double>(mix_bits(hash + 1) >> 11) * 0x1p-53; }

}  // namespace

std::string_view AffinityPolicy::key_of(const RequestFacts& request) const {
  if (request.headers != nullptr) {
    if (const auto value = request.headers->get(header_); !value.empty()) return value;
  }
  std::string_view user = json_member(request.body, "user");
  if (user.size() <= 2 || user.front() != '"') return {};
  return user.substr(1, user.size() - 2);
}

std::size_t AffinityPolicy::choose(std::span<Instance* const> candidates, const RequestFacts& request) {
  const auto least_loaded = [&] { return cheapest(candidates.size(), [&](std::size_t i) { return load_of(*candidates[i]); }); };
  const std::string_view key = key_of(request);
  if (key.empty()) return least_loaded();
  double total = 1;
  for (const Instance* instance : candidates) total += static_cast<double>(instance->in_flight());
  const double bound = std::max(kFreeLoad, std::ceil(kLoadFactor * total / static_cast<double>(candidates.size())));
  const std::uint64_t key_hash = hash_bytes(key, 0);
  std::size_t best = candidates.size();
  std::uint64_t highest = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Instance& instance = *candidates[i];
    const std::uint64_t hash = mix_bits(key_hash ^ instance.name_hash());
    if (best != candidates.size() && hash <= highest) continue;
    if (static_cast<double>(instance.in_flight()) >= bound) continue;
    const double weight = instance.weight();
    if (weight < 1 && place_in_order(hash) >= weight) continue;
    best = i;
    highest = hash;
  }
  return best == candidates.size() ? least_loaded() : best;
}

}  // namespace moonpool::gateway
