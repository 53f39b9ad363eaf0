// What users write for the store, and keys: any text gives a value or an error that says what is right, and a catalogue key is always taken
// apart into the tenant and key that it was made of.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/size_text.h"
#include "master/object_key.h"
#include "store/node_address.h"
#include "store/node_flags.h"
#include "store/wire_parts.h"

namespace {
void require(bool holds) {
  if (!holds) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moonpool;
  const std::string_view text(reinterpret_cast<const char*>(data), size);

  if (const auto address = store::parse_node_address(text); address.ok()) require(!address->host.empty());
  static_cast<void>(parse_size(text));

  std::vector<std::string_view> words;
  for (std::size_t at = 0; at <= text.size() && words.size() < 64;) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  if (const auto settings = store::parse_node_flags(words); !settings.ok()) require(!settings.status().message().empty());

  const std::size_t cut = words[0].size();
  const std::string_view tenant = text.substr(0, cut);
  const std::string_view key = text.substr(std::min(cut + 1, text.size()));
  if (store::check_key(key) == ErrorCode::kOk && master::valid_tenant(tenant)) {
    const std::string wire_tenant = store::tenant_on_wire(tenant);
    const std::string catalogued = store::catalogue_key(wire_tenant, key);
    require(catalogued == master::qualify(wire_tenant, key));
    const auto [its_tenant, its_key] = master::split_qualified(catalogued);
    require(its_key == key && store::tenant_on_wire(its_tenant) == wire_tenant);
  }
  return 0;
}
