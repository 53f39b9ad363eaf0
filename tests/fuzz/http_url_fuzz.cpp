// URLs, request targets and percent coding: no input may crash, and what was decoded encodes to something that decodes to the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "net/http_url.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moonpool::net;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto bytes = percent_decode(text); bytes && *percent_decode(percent_encode(*bytes)) != *bytes) std::abort();
  if (*percent_decode(percent_encode(text), PlusSign::kSpace) != text) std::abort();
  static_cast<void>(parse_request_target(text));
  if (const auto url = parse_http_url(text); url && (url->target.front() != '/' || url->endpoint.port == 0)) std::abort();
  if (redact_url(text).size() > 400) std::abort();
  return 0;
}
