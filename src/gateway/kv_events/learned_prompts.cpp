#include "gateway/kv_events/learned_prompts.h"

#include <algorithm>

#include "gateway/hash_bytes.h"
#include "gateway/kv_events/event_batch.h"
#include "gateway/kv_events/token_ids.h"
#include "gateway/policies/prefix_index.h"

namespace moonpool::gateway {

namespace {

// A JSON string without its quotes. Escapes stay, which a name seldom has: then nothing matches.
std::string_view unquoted(std::string_view value) {
  return value.size() >= 2 && value.front() == '"' ? value.substr(1, value.size() - 2) : std::string_view();
}

// One text, or one chat: of a list of prompts, answers name the tokens apart.
bool is_one_prompt(std::string_view prompt) {
  return prompt.starts_with('"') || (prompt.starts_with('[') && prompt.find_first_not_of(" \t\r\n", 1) != std::string_view::npos &&
                                     prompt[prompt.find_first_not_of(" \t\r\n", 1)] == '{');
}

}  // namespace

TokenChain next_in_chain(TokenChain before, std::span<const std::uint32_t> block, std::uint64_t extra) {
  const std::string_view bytes(reinterpret_cast<const char*>(block.data()), block.size_bytes());
  const TokenChain chain = hash_bytes(bytes, before ^ (extra * 0x9E3779B97F4A7C15ULL));
  return chain == kNoTokens ? 1 : chain;
}

void LearnedPrompts::set_block_size(std::uint32_t tokens) {
  const std::lock_guard lock(mutex_);
  if (tokens <= block_size_) return;
  block_size_ = tokens;
  young_.clear();
  old_.clear();
}

void LearnedPrompts::add_adapter(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (adapters_.size() < kAdapters) adapters_.insert(name);
}

std::vector<TokenChain> LearnedPrompts::chain_of(const PromptParts& parts, std::span<const std::uint32_t> tokens) const {
  std::uint64_t adapter = 0;
  if (const auto model = unquoted(parts.model); adapters_.contains(model)) adapter = kv_extra_of(model);
  const auto salt = unquoted(parts.cache_salt);
  std::vector<TokenChain> chain{kNoTokens};
  chain.reserve(1 + tokens.size() / block_size_);
  for (std::size_t at = 0; at + block_size_ <= tokens.size(); at += block_size_) {
    const std::uint64_t extra = at == 0 && !salt.empty() ? kv_extra_of(salt, adapter) : adapter;
    chain.push_back(next_in_chain(chain.back(), tokens.subspan(at, block_size_), extra));
  }
  return chain;
}

void LearnedPrompts::note(std::uint64_t text_block, TokenChain reached) {
  if (young_.size() >= kBlocks) {
    old_ = std::move(young_);
    young_ = Generation();
  }
  young_.insert_or_assign(text_block, reached);
}

void LearnedPrompts::learn(PromptChain& prompt, std::span<const std::uint32_t> tokens) {
  const auto text = prompt.blocks();
  if (text.empty() || tokens.empty() || !is_one_prompt(prompt.parts().prompt)) return;
  const std::lock_guard lock(mutex_);
  if (block_size_ == 0) return;
  const auto chain = chain_of(prompt.parts(), tokens);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t reached = tokens.size() * (i + 1) * kPrefixBlockBytes / prompt.bytes();
    note(text[i], chain[std::min(reached / block_size_, chain.size() - 1)]);
  }
}

bool LearnedPrompts::wants(PromptChain& prompt) const {
  const auto text = prompt.blocks();
  if (text.empty() || !is_one_prompt(prompt.parts().prompt)) return false;
  const std::lock_guard lock(mutex_);
  return block_size_ != 0 && !young_.contains(text.back()) && !old_.contains(text.back());
}

std::vector<TokenChain> LearnedPrompts::reach(PromptChain& prompt) {
  const auto text = prompt.blocks();
  if (text.empty()) return {};
  const std::lock_guard lock(mutex_);
  if (block_size_ == 0) return {};
  if (!is_one_prompt(prompt.parts().prompt)) return reach_of_token_list(prompt);
  std::vector<TokenChain> reached;
  for (const std::uint64_t block : text) {
    if (const auto found = young_.find(block); found != young_.end()) {
      reached.push_back(found->second);
    } else if (const auto older = old_.find(block); older != old_.end()) {
      const TokenChain chain = older->second;
      note(block, chain);
      reached.push_back(chain);
    } else {
      break;
    }
  }
  return reached;
}

std::vector<TokenChain> LearnedPrompts::reach_of_token_list(PromptChain& prompt) const {
  std::vector<std::size_t> ends;
  const auto tokens = parse_token_ids(prompt.parts().prompt, &ends);
  if (tokens.empty()) return {};
  const auto chain = chain_of(prompt.parts(), tokens);
  std::vector<TokenChain> reached;
  std::size_t whole = 0;  // tokens that end within the text so far
  for (std::size_t i = 0; i < prompt.blocks().size(); ++i) {
    while (whole < ends.size() && ends[whole] <= (i + 1) * kPrefixBlockBytes) ++whole;
    reached.push_back(chain[whole / block_size_]);
  }
  return reached;
}

}  // namespace moonpool::gateway
