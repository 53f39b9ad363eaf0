#include "gateway/kv_events/live_blocks.h"

namespace moonpool::gateway {

void LiveBlocks::apply(std::span<const KvEvent> events) {
  const std::lock_guard lock(mutex_);
  for (const KvEvent& event : events) {
    std::visit([this](const auto& one) { apply(one); }, event);
  }
  live_count_.store(live_hashes_, std::memory_order_relaxed);
  batches_.fetch_add(1, std::memory_order_relaxed);
}

void LiveBlocks::disconnected(std::string why) {
  connected_.store(false, std::memory_order_relaxed);
  forget(false);
  const std::lock_guard lock(mutex_);
  why_not_connected_ = std::move(why);
}

void LiveBlocks::forget(bool whole) {
  const std::lock_guard lock(mutex_);
  clear();
  whole_.store(whole, std::memory_order_relaxed);
}

void LiveBlocks::clear() {
  by_engine_hash_.clear();
  live_.clear();
  live_hashes_ = 0;
  live_count_.store(0, std::memory_order_relaxed);
}

std::string LiveBlocks::why_not_connected() const {
  const std::lock_guard lock(mutex_);
  return why_not_connected_;
}

void LiveBlocks::apply(const KvBlocksStored& stored) {
  if (!group_) group_ = stored.group;
  if (stored.group != *group_) return;
  prompts_->set_block_size(stored.block_size);
  if (!stored.adapter.empty()) prompts_->add_adapter(stored.adapter);
  TokenChain chain = kNoTokens;
  if (stored.parent) {
    const auto parent = by_engine_hash_.find(*stored.parent);
    if (parent == by_engine_hash_.end()) return;
    chain = parent->second.chain;
  }
  const std::span<const std::uint32_t> tokens = stored.tokens;
  for (std::size_t i = 0; i < stored.hashes.size(); ++i) {
    chain = next_in_chain(chain, tokens.subspan(i * stored.block_size, stored.block_size), stored.extra[i]);
    if (by_engine_hash_.size() >= kBlocksAtMost) {
      drop_removed();
      if (by_engine_hash_.size() >= kBlocksAtMost) return;
    }
    Block& block = by_engine_hash_[stored.hashes[i]];
    if (block.live) continue;  // said again: a second copy, or a prefix that was used again
    block = {chain, true};
    ++live_[chain];
    ++live_hashes_;
  }
}

void LiveBlocks::apply(const KvBlocksRemoved& removed) {
  if (group_ && removed.group != *group_) return;
  for (const std::uint64_t hash : removed.hashes) {
    const auto found = by_engine_hash_.find(hash);
    if (found == by_engine_hash_.end() || !found->second.live) continue;
    found->second.live = false;
    --live_hashes_;
    const auto chain = live_.find(found->second.chain);
    if (--chain->second == 0) live_.erase(chain);
  }
  if (by_engine_hash_.size() > 2 * live_hashes_ + 1024) drop_removed();
}

void LiveBlocks::apply(const KvAllCleared&) {
  clear();
  whole_.store(true, std::memory_order_relaxed);
}

void LiveBlocks::drop_removed() {
  boost::unordered::erase_if(by_engine_hash_, [](const auto& entry) { return !entry.second.live; });
}

std::size_t LiveBlocks::match(std::span<const TokenChain> reach) const {
  const std::lock_guard lock(mutex_);
  // An engine evicts the end of a prompt before its beginning, so those that are there end at one place. No token at all is there always,
  // and worth nothing.
  const auto is_there = [this](TokenChain chain) { return chain == kNoTokens || live_.contains(chain); };
  std::size_t known = 0;
  std::size_t unknown = reach.size() + 1;
  while (unknown - known > 1) {
    const std::size_t middle = known + (unknown - known) / 2;
    (is_there(reach[middle - 1]) ? known : unknown) = middle;
  }
  return known > 0 && reach[known - 1] == kNoTokens ? 0 : known;
}

}  // namespace moonpool::gateway
