// Any bytes as a name server's answer: no crash, and what comes out is what such records can hold.
#include <cstdlib>

#include "gateway/dns_records.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const std::span<const unsigned char> answer(data, size);
  if (const auto records = parse_srv_answer(answer); records.ok()) {
    for (const auto& record : *records) {
      if (record.target.empty() || record.target.size() > 255 || record.priority != records->front().priority) std::abort();
    }
  }
  for (const bool ipv6 : {false, true}) {
    if (const auto addresses = parse_address_answer(answer, ipv6); addresses.ok()) {
      for (const auto& address : *addresses) {
        if ((address.find(':') != std::string::npos) != ipv6) std::abort();
      }
    }
  }
  return 0;
}
