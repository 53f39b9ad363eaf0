// A request trace replayed through the gateway's own policies against instances that exist in virtual time only: what a policy does to the
// time to first token, in seconds instead of hours.
//
// Real: Group, Instance (requests in flight) and Policy, asked as the gateway asks them, one choice a hop. Simulated, by events in the
// order of their virtual times: a prefill instance works on one prompt after the other, first come first served. A prompt's prefix is free
// as far as the instance's cache has it, costs its transfer as far as only the pool has it, and the rest is computed: n tokens behind c
// known ones take ((n - c) + (n^2 - c^2) / (2 * attention_tokens)) / prefill_tokens_s, the second term being attention, which no policy
// knows of. Both caches keep whole blocks of the trace and lose the least recently used; a prompt is in them once it is computed. Then a
// decode instance is chosen; it waits until the request fits into its KV memory, loads all of the prompt's KV, one prompt after the other,
// and makes the first token one step later. Left out: failures, HTTP, chunked prefill, decode's own prefix cache, and the cost of writing
// to the pool.
//
// With decode_first_below_tokens, prompts go as the gateway's --decode-first-below sends them, and decode has a prefix cache of its own:
// the prompts that it had, the least recently used go first, so many tokens as its KV memory has; what is in it is not loaded. A prompt
// that decode computes is cut into chunks, one in each of its steps, which take so much longer: for it, and for all that run there.
//
// The prompt that a policy sees is text of 4 bytes a token, made from the trace's block hashes: equal blocks have equal text, others do
// not. Threads: values; one replay uses one thread. Cost: some 25 us a request, most of it text and its hashing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "gateway/policy.h"

namespace moonpool::bench {

inline constexpr std::size_t kTraceBlockTokens = 512;

struct TraceRequest {
  double arrival_s = 0;
  std::uint32_t input_tokens = 0;
  std::uint32_t output_tokens = 0;
  std::vector<std::uint32_t> blocks;  // dense numbers of prefix blocks: an equal number means an equal prefix up to and with this block
};

// JSON lines with timestamp (ms), input_length, output_length (tokens) and hash_ids. `spread`: requests of one timestamp are spread evenly
// until the next timestamp, for traces whose clock is coarse.
[[nodiscard]] Result<std::vector<TraceRequest>> read_trace(const std::string& path, bool spread);

struct ReplayOptions {
  std::string policy;
  std::string decode_policy;
  gateway::PolicyOptions policy_options;
  double load = 1;  // the trace's time runs so many times faster
  bool pool = true;
  std::size_t prefill = 10;
  std::size_t decode = 6;  // 0: the first token comes with the end of prefill
  double prefill_tokens_s = 20'000;
  double attention_tokens = 30'000;  // 0: attention is free
  double request_s = 0.010;          // what any prompt costs an instance
  std::uint64_t cache_tokens = 400'000;
  std::uint64_t pool_tokens = 8'000'000;
  double kv_bytes = 131'072;  // a token's
  double transfer_bytes_s = 20e9;
  double decode_step_s = 0.010;
  double decode_sequence_s = 0.0001;  // a step takes so much longer for each running sequence
  // Prompts of which decode has fewer tokens to compute, as its policy sees it, have no prefill; 0: none. Unset: the model without it.
  std::optional<std::uint64_t> decode_first_below_tokens;
  std::uint64_t chunk_tokens = 2048;  // of a prompt that decode computes, in one step
};

struct ReplayResult {
  double mean_s = 0, p50_s = 0, p90_s = 0, p99_s = 0;  // time to first token
  double cached_share = 0;                             // of all prompt tokens: found in the instance's own cache
  double pool_share = 0;                               // loaded from the pool
  double busy_share = 0;                               // of prefill's time until its last prompt was done
  double imbalance = 0;                                // the busiest prefill instance's work, over the mean
  double choice_ns = 0;                                // of prefill's policy, mean
  // prefix_aware, pool_aware: tokens that the index expected in the chosen instance's cache, against those that were there.
  double expected_share = 0;  // of all prompt tokens
  double right_share = 0;     // of requests: right within one block of the trace
  // Time per output token behind the first one, of each request that has some.
  double tpot_p50_s = 0, tpot_p90_s = 0, tpot_p99_s = 0;
  double decode_first_share = 0;  // of requests
};

// An error when a policy is not known.
[[nodiscard]] Result<ReplayResult> replay(const std::vector<TraceRequest>& trace, const ReplayOptions& options);

}  // namespace moonpool::bench
