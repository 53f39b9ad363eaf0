// What vLLM says of its KV cache (vllm/distributed/kv_events.py): a batch of events, in MessagePack.
//
// A batch is an array [timestamp, events, data-parallel rank]. An event is a map with "type" (vLLM 0.32), or an array that begins with the
// type (older versions, msgspec's array_like); fields are added at the end over time, so unknown ones are passed over and absent ones have
// their defaults. Block hashes are integers or bytes, which is a setting of vLLM's; here both become 64 bits. Only blocks that a prompt can
// be served from count: on the device, of a cache group with full attention. Bytes from outside: any give a batch or an error
// (tests/fuzz/gateway_kv_events_fuzz.cpp). Threads: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

// Blocks, each behind the one before it, the first behind `parent`.
struct KvBlocksStored {
  std::vector<std::uint64_t> hashes;
  std::optional<std::uint64_t> parent;  // none: the start of a prompt
  std::vector<std::uint32_t> tokens;    // block_size for each hash
  std::uint32_t block_size = 0;
  std::uint64_t group = 0;
  std::string adapter;               // LoRA's name; empty: none
  std::vector<std::uint64_t> extra;  // for each block: a hash of what its KV depends on besides tokens (adapter, salt, images); 0: nothing
};
struct KvBlocksRemoved {
  std::vector<std::uint64_t> hashes;
  std::uint64_t group = 0;
};
struct KvAllCleared {};
using KvEvent = std::variant<KvBlocksStored, KvBlocksRemoved, KvAllCleared>;

// Events of other kinds, media and cache groups are left out. kProtocol when it is not such a batch.
[[nodiscard]] Result<std::vector<KvEvent>> parse_kv_event_batch(std::string_view payload);

// The `extra` of a block that depends on these names, in vLLM's order: the adapter's, then the cache_salt.
[[nodiscard]] std::uint64_t kv_extra_of(std::string_view name, std::uint64_t before = 0);

}  // namespace moonpool::gateway
