#include "gateway/prompt_chain.h"

#include "gateway/hash_bytes.h"
#include "gateway/policies/prefix_index.h"

namespace moonpool::gateway {

void PromptChain::make() {
  if (made_) return;
  made_ = true;
  parts_ = prompt_parts(body_);
  make_prefix_chain(parts_.prompt, hash_bytes(parts_.model, hash_bytes(parts_.cache_salt, 0)), blocks_);
}

}  // namespace moonpool::gateway
