// How prompts as text and prompts as tokens belong together, learned from answers: the gateway does not tokenize.
//
// A prefill's answer says which tokens its prompt became (return_token_ids). Of the prompt's text blocks (prefix_index.h) each is then
// noted with the engine's block up to which the tokens of that much text reach, in proportion and rounded down; the engine's block stands
// as a hash of all tokens up to its end (TokenChain), which live_blocks.h knows whether an instance has. Proportion is a guess within some
// hundred tokens where text is unevenly dense: it makes an estimate of one prompt's end wrong, never its beginning, since both prompts that
// share a text block share the tokens before it. A prompt that is a list of token ids needs no learning.
// Bounded: two generations of kBlocks text blocks each (24 bytes apiece, about 3 MiB together, for 16 to 32 MiB of different text); the old
// one is dropped when the young one is full, what is used moves into the young one. Shared by all instances of a group.
// Threads: any; one short lock. Ownership: shared by the group's instances.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "gateway/prompt_chain.h"

namespace moonpool::gateway {

// An engine's block as a hash of the tokens up to its end, and of all else that its KV depends on (KvBlocksStored::extra).
using TokenChain = std::uint64_t;
inline constexpr TokenChain kNoTokens = 0;
[[nodiscard]] TokenChain next_in_chain(TokenChain before, std::span<const std::uint32_t> block, std::uint64_t extra);

class LearnedPrompts {
 public:
  static constexpr std::size_t kBlocks = std::size_t{64} << 10;

  // What events tell: the tokens of a block (another size makes all that was learned useless; the largest counts, since parts of blocks are
  // stored too), and that this model is an adapter.
  void set_block_size(std::uint32_t tokens);
  void add_adapter(const std::string& name);

  // `tokens` is what the prompt became. Without effect before an event has told the block size.
  void learn(PromptChain& prompt, std::span<const std::uint32_t> tokens);
  // Whether there is more to learn about this prompt.
  [[nodiscard]] bool wants(PromptChain& prompt) const;
  // For each text block from the first on, as far as known: the engine's block up to which its tokens reach.
  [[nodiscard]] std::vector<TokenChain> reach(PromptChain& prompt);

 private:
  static constexpr std::size_t kAdapters = 10'000;
  using Generation = boost::unordered_flat_map<std::uint64_t, TokenChain>;

  // The chain of all whole blocks, from kNoTokens on. With the lock held.
  [[nodiscard]] std::vector<TokenChain> chain_of(const PromptParts& parts, std::span<const std::uint32_t> tokens) const;
  [[nodiscard]] std::vector<TokenChain> reach_of_token_list(PromptChain& prompt) const;
  void note(std::uint64_t text_block, TokenChain reached);

  mutable std::mutex mutex_;  // guards all below
  std::uint32_t block_size_ = 0;
  Generation young_;
  Generation old_;
  std::set<std::string, std::less<>> adapters_;
};

}  // namespace moonpool::gateway
