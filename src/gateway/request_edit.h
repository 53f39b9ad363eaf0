// Makes the request bodies of the two hops out of the client's, on the bytes: fields that we do not know pass through untouched.
//
// The prefill instance has to compute the prompt's KV and nothing else, so: max_tokens becomes 1 (added when absent),
// max_completion_tokens becomes 1 where present, stream becomes false where present and stream_options goes (vLLM refuses it
// without stream). min_tokens above 1 becomes 1 as well, because vLLM answers 400 to min_tokens > max_tokens and the client's
// request was fine. Everything else, number formatting, escapes, white space and duplicates included, is byte for byte the client's.
//
// Decode gets the client's own body, or that body with other kv_transfer_params (kv_transfer.h says when).
//
// Cost: one pass over the body without building a document, one copy. Only the structure is checked (strings, brackets, the
// top-level members); the values are the instance's to judge. Threads: a pure function.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::gateway {

struct PrefillBody {
  std::string text;
  // The prompt is "" or [], or messages is []: there is nothing to prefill.
  bool prompt_is_empty = false;
  bool is_streamed = false;  // "stream": true
  bool is_greedy = false;    // "temperature" is the number 0
  // Several prompts, n or best_of other than 1, or a beam search: an instance makes several sequences of it.
  bool has_several_sequences = false;
  bool has_kv_transfer_params = false;
};

// kInvalidParams, with the byte offset, when `body` is not one JSON object.
[[nodiscard]] Result<PrefillBody> make_prefill_body(std::string_view body);

// Adds "return_token_ids": true to a prefill's body, unless the client's has that field.
void ask_for_token_ids(std::string& body);

// `body` with this value, JSON text, as its one "kv_transfer_params", in front of the other fields; all that it had of them go. Empty: it
// has none then. A body that is not one JSON object comes back as it is.
[[nodiscard]] std::string with_kv_transfer_params(std::string_view body, std::string_view value);

// Whether `text` is one whole JSON value in structure: a truncated one is not. For answers that end only with the connection.
[[nodiscard]] bool is_whole_json(std::string_view text);

}  // namespace moonpool::gateway
