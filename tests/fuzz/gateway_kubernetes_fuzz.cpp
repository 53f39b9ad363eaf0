// Any lines as an API server's list and events: no crash, and every name that comes out is one.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "gateway/kubernetes_instances.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (const char* port : {"", "http", "8000"}) {
    EndpointSlices slices(port);
    std::string_view lines = rest;
    bool first = true;
    while (!lines.empty()) {
      const std::size_t end = std::min(lines.find('\n'), lines.size());
      const std::string_view line = lines.substr(0, end);
      if (std::exchange(first, false)) {
        static_cast<void>(slices.replace(line));
      } else {
        static_cast<void>(slices.apply(line));
      }
      lines.remove_prefix(std::min(end + 1, lines.size()));
    }
    for (const auto& name : slices.names()) {
      if (!InstanceName::parse(name.to_string()).ok()) std::abort();
    }
  }
  return 0;
}
