// What an etcd (or anything else on its port) may answer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "metadata/base64.h"
#include "metadata/etcd_reply.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moonpool::metadata;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static_cast<void>(parse_etcd_range(text));
  static_cast<void>(parse_etcd_delete(text));
  if (etcd_error_text(text).size() > 100) std::abort();
  if (base64_decode(base64_encode(text)) != text) std::abort();
  if (const auto bytes = base64_decode(text); bytes && bytes->size() > text.size()) std::abort();
  return 0;
}
