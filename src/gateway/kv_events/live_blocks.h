// What one instance has in its KV cache right now, by its own events: which engine blocks, each as a hash of its tokens
// (learned_prompts.h).
//
// Events name blocks by vLLM's hashes, whose seed differs between processes, and say their tokens once, when they are stored. So a map from
// vLLM's hash to our chain is kept, and the chains that are there. A block that was removed keeps its place in the map until there are more
// of these than live ones: vLLM may hold a second copy, and store what continues it. What cannot be placed (its parent is not known,
// because events before were missed) is left out. All errors are towards "not there", which costs time only. Memory: about 70 bytes a
// block, twice that for a moment after many removals, so 1.8 to 3.6 MB for 400,000 tokens in blocks of 16; at most kBlocksAtMost blocks.
// Threads: apply and the states from the follower's, the rest from any; one short lock, held while a batch is applied. Ownership: shared by
// instance, policy and follower.
#pragma once

#include <atomic>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "gateway/kv_events/event_batch.h"
#include "gateway/kv_events/learned_prompts.h"

namespace moonpool::gateway {

class LiveBlocks {
 public:
  static constexpr std::size_t kBlocksAtMost = std::size_t{1} << 21;

  explicit LiveBlocks(std::shared_ptr<LearnedPrompts> prompts) : prompts_(std::move(prompts)) {}

  // What the follower tells.
  void apply(std::span<const KvEvent> events);
  void connected() { connected_.store(true, std::memory_order_relaxed); }
  // Forgets all; `why` is shown in /status.
  void disconnected(std::string why);
  // What is known begins with nothing; `whole`: because the instance has nothing either, so that what is not known is not there.
  void forget(bool whole);
  void missed_events() { gaps_.fetch_add(1, std::memory_order_relaxed); }

  // How many of the blocks in `reach` (as LearnedPrompts::reach gives them) are there, from the first on.
  [[nodiscard]] std::size_t match(std::span<const TokenChain> reach) const;
  [[nodiscard]] bool is_connected() const { return connected_.load(std::memory_order_relaxed); }
  // Every event since the cache was empty is known: what is not here is not there.
  [[nodiscard]] bool is_whole() const { return whole_.load(std::memory_order_relaxed); }
  [[nodiscard]] const std::shared_ptr<LearnedPrompts>& prompts() const { return prompts_; }

  [[nodiscard]] std::uint64_t blocks() const { return live_count_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t batches() const { return batches_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t gaps() const { return gaps_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::string why_not_connected() const;

 private:
  struct Block {
    TokenChain chain = kNoTokens;
    bool live = false;
  };

  void apply(const KvBlocksStored& stored);
  void apply(const KvBlocksRemoved& removed);
  void apply(const KvAllCleared&);
  void clear();
  void drop_removed();

  const std::shared_ptr<LearnedPrompts> prompts_;
  std::atomic<bool> connected_{false};
  std::atomic<bool> whole_{false};
  std::atomic<std::uint64_t> live_count_{0};
  std::atomic<std::uint64_t> batches_{0};
  std::atomic<std::uint64_t> gaps_{0};
  mutable std::mutex mutex_;            // guards all below
  std::optional<std::uint64_t> group_;  // the cache group that is followed: the first that was heard of
  boost::unordered_flat_map<std::uint64_t, Block> by_engine_hash_;
  boost::unordered_flat_map<TokenChain, std::uint32_t> live_;  // how many of the engine's hashes stand for it: one, but for collisions
  std::size_t live_hashes_ = 0;
  std::string why_not_connected_ = "not yet";
};

}  // namespace moonpool::gateway
