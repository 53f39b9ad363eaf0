// What a DNS answer says of a name: its SRV records (RFC 2782) or its addresses.
//
// The query is the C library's (resolver.h); these read the bytes that came back, which may be anything
// (tests/fuzz/gateway_dns_fuzz.cpp). Threads: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

struct SrvRecord {
  std::uint16_t priority = 0;
  std::uint16_t weight = 0;
  std::uint16_t port = 0;
  std::string target;  // a host name without its last dot

  friend bool operator==(const SrvRecord&, const SrvRecord&) = default;
};

// Those of the lowest priority, in the order of the answer, none twice. A record for "no such service" (target ".") is none.
// kProtocol when the bytes are no DNS answer.
[[nodiscard]] Result<std::vector<SrvRecord>> parse_srv_answer(std::span<const unsigned char> answer);
// The A or AAAA records (`ipv6`) as text, aliases (CNAME) aside: whoever was asked follows them.
[[nodiscard]] Result<std::vector<std::string>> parse_address_answer(std::span<const unsigned char> answer, bool ipv6);

}  // namespace moonpool::gateway
