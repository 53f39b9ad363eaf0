// What a request will cost in tokens, guessed from its bytes when it comes and read from its answer when that tells.
//
// The guess: four bytes of the prompt as it stands in the request for a token (text in JSON; an image in base64 counts as its letters),
// one token for each number of a prompt of token ids; of the answer its max_tokens, or 256 where the request names none, 4096 at most.
// Cost: one pass over the body, no allocation. Bytes from outside: any input gives a number. Threads: pure functions.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

namespace moonpool::gateway {

struct RequestCost {
  std::uint64_t prompt_tokens = 1;
  std::uint64_t answer_tokens = 256;
  std::optional<int> priority;  // the request's own, as vLLM has it: lower ones go first
};
[[nodiscard]] RequestCost request_cost(std::string_view body);

// "total_tokens" of the last "usage" that is an object in an answer, or in some whole lines of one.
[[nodiscard]] std::optional<std::uint64_t> usage_tokens(std::string_view answer);

// The value of X-Request-Timeout-Ms: a whole number from 1 to 86400000.
[[nodiscard]] std::optional<std::chrono::milliseconds> parse_timeout_ms(std::string_view value);

}  // namespace moonpool::gateway
