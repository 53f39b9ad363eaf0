// The metadata URL: what is accepted has endpoints, and its text parses to the same server again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "metadata/metadata_url.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moonpool::metadata;
  const auto url = parse_metadata_url({reinterpret_cast<const char*>(data), size});
  if (!url) return 0;
  if (url->endpoints.empty() != (url->kind == MetadataKind::kPeerToPeer)) std::abort();
  const auto again = parse_metadata_url(url->to_string());
  if (!again || again->kind != url->kind || again->endpoints != url->endpoints || again->path != url->path) std::abort();
  if (again->database != url->database || again->to_string() != url->to_string()) std::abort();
  return 0;
}
