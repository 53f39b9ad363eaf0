#include "gateway/policies/prefix_policy.h"

#include <algorithm>
#include <boost/container/small_vector.hpp>

#include "gateway/json_member.h"
#include "gateway/policies/choosing.h"

namespace moonpool::gateway {

namespace {

constexpr double kRequestBytes = 256;         // what any request costs, however short or warm
constexpr std::size_t kPoolOfInstances = 16;  // the pool's index is as large as that of so many instances

double bytes(std::size_t blocks) { return static_cast<double>(blocks * kPrefixBlockBytes); }

}  // namespace

std::size_t PrefixPolicy::Memory::match(std::span<const std::uint64_t> chain) const {
  const std::lock_guard lock(mutex_);
  return sent_.match(chain);
}

double PrefixPolicy::Memory::queued(std::uint64_t requests) const {
  const std::lock_guard lock(mutex_);
  if (requests == 0) return 0;
  const std::uint64_t known = std::min({requests, requests_, std::uint64_t{kRemembered - 1}});
  if (known == 0) return static_cast<double>(requests) * kRequestBytes;
  const double work = work_until_[requests_ % kRemembered] - work_until_[(requests_ - known) % kRemembered];
  return work * static_cast<double>(requests) / static_cast<double>(known);
}

void PrefixPolicy::Memory::add(std::span<const std::uint64_t> chain, double work) {
  const std::lock_guard lock(mutex_);
  const double before = work_until_[requests_ % kRemembered];
  work_until_[++requests_ % kRemembered] = before + work;
  sent_.insert(chain);
}

PrefixPolicy::PrefixPolicy(std::size_t index_bytes, std::optional<double> pool_transfer_cost)
    : index_bytes_(index_bytes), pool_transfer_cost_(pool_transfer_cost), pool_(index_bytes * kPoolOfInstances) {}

void PrefixPolicy::joined(const Instance& instance) {
  auto memory = std::make_shared<Memory>(index_bytes_);
  const std::unique_lock lock(memories_mutex_);
  memories_.insert_or_assign(&instance, std::move(memory));
}

void PrefixPolicy::left(const Instance& instance) {
  const std::unique_lock lock(memories_mutex_);
  memories_.erase(&instance);
}

std::size_t PrefixPolicy::choose(std::span<Instance* const> candidates, const RequestFacts& request) {
  static thread_local std::vector<std::uint64_t> chain;
  const std::string_view prompt = prompt_text(request.body);
  make_prefix_chain(prompt, chain);
  std::size_t in_pool = 0;
  if (pool_transfer_cost_) {
    const std::lock_guard lock(pool_mutex_);
    in_pool = pool_.match(chain);
    pool_.insert(chain);
  }

  boost::container::small_vector<std::shared_ptr<Memory>, 32> memories;
  {
    const std::shared_lock lock(memories_mutex_);
    for (const Instance* candidate : candidates) {
      const auto found = memories_.find(candidate);
      memories.push_back(found == memories_.end() ? nullptr : found->second);  // null: it is just leaving
    }
  }
  boost::container::small_vector<double, 32> work;
  for (const auto& memory : memories) {
    const std::size_t local = memory == nullptr ? 0 : memory->match(chain);
    const std::size_t loaded = std::max(in_pool, local) - local;
    work.push_back(kRequestBytes + static_cast<double>(prompt.size()) - bytes(local) -
                   bytes(loaded) * (1 - pool_transfer_cost_.value_or(1)));
  }
  const std::size_t chosen = cheapest(candidates.size(), [&](std::size_t i) {
    const double queued = memories[i] == nullptr ? 0 : memories[i]->queued(candidates[i]->in_flight());
    return queued / candidates[i]->weight() + work[i];
  });
  if (memories[chosen] != nullptr) memories[chosen]->add(chain, work[chosen]);
  return chosen;
}

}  // namespace moonpool::gateway
