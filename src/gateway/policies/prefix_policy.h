// prefix_aware and pool_aware: the instance that will have the prompt ready first, as far as can be told from what was sent where.
//
// For each instance the time to its first token is estimated in bytes of prompt to compute: what is queued there (the uncached bytes of its
// requests in flight) plus what this prompt needs there, which is its length without the longest prefix that the instance has been sent
// before (prefix_index.h). The lowest wins. So a warm instance is preferred exactly as long as its queue is shorter than what the warmth
// saves, and equal ones share by chance. pool_aware: where instances share a KV pool, each can load what any of them has computed, so a
// byte that the pool knows costs `pool_transfer_cost` of a computed one instead of the whole. The index is this gateway's own view: it does
// not see what instances evict or other gateways send, unless an instance's KV events are followed (kv_events/live_blocks.h): such a one is
// asked what it has, and the index only for what was sent and not yet answered. Wrong estimates cost time, never correctness. Cost:
// O(prompt) to hash, once a request (prompt_chain.h), then O(instances * log blocks); one short lock for each instance. Threads: any.
// Ownership: an instance's memory lives from joined() to left(), or to the end of the choices that use it.
#pragma once

#include <array>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "gateway/kv_events/live_blocks.h"
#include "gateway/policies/prefix_index.h"
#include "gateway/policy.h"

namespace moonpool::gateway {

class PrefixPolicy final : public Policy {
 public:
  // `pool_transfer_cost` makes it pool_aware.
  PrefixPolicy(std::size_t index_bytes, std::optional<double> pool_transfer_cost);

  std::size_t choose(std::span<Instance* const> candidates, const RequestFacts& request) override;
  std::optional<std::size_t> uncached_bytes(const RequestFacts& request) const override;
  std::string_view name() const override { return pool_transfer_cost_ ? "pool_aware" : "prefix_aware"; }
  void joined(const Instance& instance) override;
  void left(const Instance& instance) override;

 private:
  // What is known of one instance.
  class Memory {
   public:
    Memory(std::size_t index_bytes, std::shared_ptr<LiveBlocks> live) : live_(std::move(live)), sent_(index_bytes) {}
    // How many leading blocks of the prompt's text the instance has, as far as is known. `reach` is that of the group (learned_prompts.h).
    [[nodiscard]] std::size_t match(std::span<const std::uint64_t> chain, std::span<const std::uint64_t> reach) const;
    [[nodiscard]] const std::shared_ptr<LiveBlocks>& live() const { return live_; }
    // Bytes to compute of the last `requests` sent: those in flight, when requests end in about the order in which they came.
    [[nodiscard]] double queued(std::uint64_t requests) const;
    void add(std::span<const std::uint64_t> chain, double work);

   private:
    static constexpr std::size_t kRemembered = 256;
    const std::shared_ptr<LiveBlocks> live_;  // null: its events are not followed
    mutable std::mutex mutex_;                // guards all below
    PrefixIndex sent_;
    std::array<double, kRemembered> work_until_{};  // work of all requests up to the i-th, modulo kRemembered
    std::uint64_t requests_ = 0;
  };
  using Memories = std::unordered_map<const Instance*, std::shared_ptr<Memory>>;

  // Bytes to compute, and to load at their cost, of a prompt of `prompt_bytes` where so many of its blocks are.
  [[nodiscard]] double work(std::size_t prompt_bytes, std::size_t local, std::size_t in_pool) const;

  const std::size_t index_bytes_;
  const std::optional<double> pool_transfer_cost_;
  mutable std::shared_mutex memories_mutex_;  // guards the map, not what it points to
  Memories memories_;
  mutable std::mutex pool_mutex_;
  PrefixIndex pool_;  // sent to any instance
};

}  // namespace moonpool::gateway
