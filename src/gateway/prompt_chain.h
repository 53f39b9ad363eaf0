// A request's prompt as the prefix policies see it: the chain of its blocks' hashes, made once for all hops and tries.
//
// The chain covers what an engine's own prefix cache tells apart: the prompt's text, the model (a LoRA adapter is asked for as a model, and
// has KV of its own) and the cache_salt. The same prompt under another of these has no block in common. Made at the first look, because
// most policies never do: one pass over the body, the hashes of the first kPrefixBlocksAtMost blocks.
// Threads: its request's. Ownership: the request's; a view of the body.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "gateway/json_member.h"

namespace moonpool::gateway {

class PromptChain {
 public:
  explicit PromptChain(std::string_view body) : body_(body) {}

  // Of the prompt as it is written in the body.
  [[nodiscard]] std::size_t bytes() {
    make();
    return parts_.prompt.size();
  }
  [[nodiscard]] const PromptParts& parts() {
    make();
    return parts_;
  }
  // See prefix_index.h.
  [[nodiscard]] std::span<const std::uint64_t> blocks() {
    make();
    return blocks_;
  }

 private:
  void make();

  const std::string_view body_;
  bool made_ = false;
  PromptParts parts_;
  std::vector<std::uint64_t> blocks_;
};

}  // namespace moonpool::gateway
