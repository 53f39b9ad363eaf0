// Any bytes as request and as events of a stream: no crash, and a continuation's request is a JSON object again.
#include <cstdlib>

#include "gateway/continuation.h"
#include "gateway/request_edit.h"
#include "gateway/sse.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  // Two zero bytes divide: the request, the first stream, the second one.
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t first = std::min(all.find('\0'), all.size());
  const std::size_t second = std::min(all.find('\0', std::min(first + 1, all.size())), all.size());
  const std::string_view body = all.substr(0, first);
  const std::string_view sent = all.substr(std::min(first + 1, all.size()), second - std::min(first + 1, second));
  const std::string_view more = all.substr(std::min(second + 1, all.size()));
  for (const char* path : {"/v1/completions", "/v1/chat/completions"}) {
    moonpool::gateway::Continuation continuation(path, body, size % 2 == 0, size % 3 == 0);
    moonpool::gateway::SseStream events;
    const std::string passed = events.feed(std::string(sent));
    if (events.has_error()) static_cast<void>(moonpool::gateway::status_in_error(events.error()));
    continuation.sent(passed);
    static_cast<void>(continuation.finished());
    const auto next = continuation.next_body();
    if (!next.ok()) continue;
    if (!moonpool::gateway::make_prefill_body(*next).ok()) std::abort();
    const auto fitted = continuation.rewrite(more);
    if (fitted.ok()) continuation.sent(*fitted);
    static_cast<void>(continuation.next_body());
  }
  return 0;
}
