// Token ids in JSON: of a prompt that a client tokenized itself, and of an answer that says how its prompt was.
// Bytes from outside; anything else than a list of numbers gives nothing. Threads: pure functions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace moonpool::gateway {

inline constexpr std::size_t kTokensAtMost = std::size_t{1} << 20;  // of one prompt: the rest of a longer one does not count

// `list` is a JSON array of token ids, as written. With `ends`, also the offset behind the last digit of each. Empty when it is anything
// else.
[[nodiscard]] std::vector<std::uint32_t> parse_token_ids(std::string_view list, std::vector<std::size_t>* ends = nullptr);

// The value of prompt_token_ids as vLLM answers it when asked with return_token_ids: at the top (chat), or of the first choice
// (completions), as written. Empty when there is none.
[[nodiscard]] std::string_view prompt_token_ids_of(std::string_view answer);

}  // namespace moonpool::gateway
