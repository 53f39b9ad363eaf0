// Any bytes as etcd's answer: no crash, and every name that comes out is one.
#include <cstdlib>

#include "gateway/etcd_instances.h"
#include "gateway/json_member.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto found = parse_etcd_instances(body, "/a/");
  if (found.ok()) {
    for (const auto& name : found->names) {
      if (!InstanceName::parse(name.to_string()).ok()) std::abort();
    }
  }
  static_cast<void>(prompt_parts(body));
  return 0;
}
