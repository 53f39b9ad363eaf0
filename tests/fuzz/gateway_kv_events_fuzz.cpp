// Any bytes as a batch of KV events, and as an answer with token ids: no crash, and a stored block has its tokens.
#include <cstdlib>

#include "gateway/kv_events/event_batch.h"
#include "gateway/kv_events/token_ids.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto events = parse_kv_event_batch(bytes);
  if (events.ok()) {
    for (const auto& event : *events) {
      const auto* stored = std::get_if<KvBlocksStored>(&event);
      if (stored == nullptr) continue;
      const bool whole = stored->tokens.size() == stored->hashes.size() * stored->block_size;
      if (stored->block_size == 0 || !whole || stored->extra.size() != stored->hashes.size()) std::abort();
    }
  }
  std::vector<std::size_t> ends;
  if (parse_token_ids(bytes, &ends).size() > ends.size()) std::abort();
  static_cast<void>(parse_token_ids(prompt_token_ids_of(bytes)));
  return 0;
}
