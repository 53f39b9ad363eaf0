// Any bytes as a request body: no crash, and what is accepted stays acceptable and is edited once and for all.
#include <cstdlib>

#include "gateway/request_edit.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto first = moonpool::gateway::make_prefill_body(body);
  if (first.ok()) {
    const auto second = moonpool::gateway::make_prefill_body(first->text);
    if (!second.ok() || second->text != first->text) std::abort();
  }
  static_cast<void>(moonpool::gateway::is_whole_json(body));
  return 0;
}
