// Any bytes as a file of keys, as a request whose cost is guessed, as an answer that tells its own, and as a time-out: a value or an error.
#include <cstdlib>

#include "gateway/api_keys.h"
#include "gateway/config_file.h"
#include "gateway/request_cost.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto keys = apply_keys(text, "file", KeyRing());
  if (!keys.ok() && !keys.status().message().starts_with("file, line ")) std::abort();
  if (keys.ok()) {
    for (const ApiKey& key : keys->all()) {
      const bool good = is_key_name(key.name) && key.weight >= kLeastWeight && key.weight <= kGreatestWeight &&
                        key.priority >= -kPriorityAtMost && key.priority <= kPriorityAtMost;
      if (!good) std::abort();
    }
  }
  const RequestCost cost = request_cost(text);
  if (cost.prompt_tokens == 0 || cost.prompt_tokens > size + 1) std::abort();
  static_cast<void>(usage_tokens(text));
  static_cast<void>(parse_timeout_ms(text));
  return 0;
}
