#include "gateway/policies/prefix_policy.h"

#include <algorithm>
#include <boost/container/small_vector.hpp>

#include "gateway/policies/choosing.h"
#include "gateway/prompt_chain.h"

namespace moonpool::gateway {

namespace {

constexpr double kRequestBytes = 256;         // what any request costs, however short or warm
constexpr std::size_t kPoolOfInstances = 16;  // the pool's index is as large as that of so many instances

// One table for all instances of a group, so the first that is followed answers for all; empty when none is.
template <typename Memories, typename MemoryOf>
std::vector<TokenChain> reach_of(PromptChain& prompt, const Memories& memories, const MemoryOf& memory_of) {
  for (const auto& one : memories) {
    const auto& memory = memory_of(one);
    if (memory != nullptr && memory->live() != nullptr) return memory->live()->prompts()->reach(prompt);
  }
  return {};
}

double bytes(std::size_t blocks) { return static_cast<double>(blocks * kPrefixBlockBytes); }

}  // namespace

std::size_t PrefixPolicy::Memory::match(std::span<const std::uint64_t> chain, std::span<const std::uint64_t> reach) const {
  std::size_t there = 0;
  if (live_ != nullptr && live_->is_connected()) {
    there = live_->match(reach);
    // What is known of this prompt is not all there: no need to ask what was sent.
    if (there < reach.size() && live_->is_whole()) return there;
  }
  const std::lock_guard lock(mutex_);
  return std::max(there, sent_.match(chain));
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
  auto memory = std::make_shared<Memory>(index_bytes_, instance.live_blocks());
  const std::unique_lock lock(memories_mutex_);
  memories_.insert_or_assign(&instance, std::move(memory));
}

void PrefixPolicy::left(const Instance& instance) {
  const std::unique_lock lock(memories_mutex_);
  memories_.erase(&instance);
}

double PrefixPolicy::work(std::size_t prompt_bytes, std::size_t local, std::size_t in_pool) const {
  const std::size_t loaded = std::max(in_pool, local) - local;
  return static_cast<double>(prompt_bytes) - bytes(local) - bytes(loaded) * (1 - pool_transfer_cost_.value_or(1));
}

std::size_t PrefixPolicy::choose(std::span<Instance* const> candidates, const RequestFacts& request) {
  PromptChain own(request.body);
  PromptChain& prompt = request.prompt == nullptr ? own : *request.prompt;
  const auto chain = prompt.blocks();
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
  const auto reach = reach_of(
      prompt, memories, [](const auto& one) -> const auto& { return one; });
  boost::container::small_vector<double, 32> works;
  for (const auto& memory : memories) {
    const std::size_t local = memory == nullptr ? 0 : memory->match(chain, reach);
    works.push_back(kRequestBytes + work(prompt.bytes(), local, in_pool));
  }
  const std::size_t chosen = cheapest(candidates.size(), [&](std::size_t i) {
    const double queued = memories[i] == nullptr ? 0 : memories[i]->queued(candidates[i]->in_flight());
    return queued / candidates[i]->weight() + works[i];
  });
  if (memories[chosen] != nullptr) memories[chosen]->add(chain, works[chosen]);
  return chosen;
}

std::optional<std::size_t> PrefixPolicy::uncached_bytes(const RequestFacts& request) const {
  PromptChain own(request.body);
  PromptChain& prompt = request.prompt == nullptr ? own : *request.prompt;
  const auto chain = prompt.blocks();
  std::size_t in_pool = 0;
  if (pool_transfer_cost_) {
    const std::lock_guard lock(pool_mutex_);
    in_pool = pool_.match(chain);
  }
  std::size_t most = 0;
  const std::shared_lock lock(memories_mutex_);
  const auto reach = reach_of(
      prompt, memories_, [](const auto& one) -> const auto& { return one.second; });
  for (const auto& [instance, memory] : memories_) most = std::max(most, memory->match(chain, reach));
  return static_cast<std::size_t>(work(prompt.bytes(), most, in_pool));
}

}  // namespace moonpool::gateway
