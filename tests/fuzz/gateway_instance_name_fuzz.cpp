// Any bytes as the name of an instance: no crash, and the canonical form parses to itself.
#include <cstdlib>

#include "gateway/instance_name.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using moonpool::gateway::InstanceName;
  const auto name = InstanceName::parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (name.ok()) {
    const auto again = InstanceName::parse(name->to_string());
    if (!again.ok() || !(*again == *name)) std::abort();
  }
  return 0;
}
