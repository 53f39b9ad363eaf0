// Where a node listens, and what it is called: both come from the user's local_hostname.
//
// Threads: pure functions but for the look-up, which blocks for at most the deadline.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"

namespace moonpool::store {

inline constexpr std::uint16_t kFirstNodePort = 12300;  // of those tried when the user names none
inline constexpr std::uint16_t kLastNodePort = 14300;

struct NodeAddress {
  std::string host;        // without brackets
  std::uint16_t port = 0;  // 0: the first free one from kFirstNodePort to kLastNodePort
};

// "host", "host:port", "[v6]:port" or a bare IPv6 address. kInvalidParams for anything else, and for addresses that mean "any" (peers
// could not connect to them).
[[nodiscard]] Result<NodeAddress> parse_node_address(std::string_view local_hostname);
// kInvalidParams, naming the host, when it does not resolve or is no address of this machine.
[[nodiscard]] Status check_is_ours(const NodeAddress& address, Deadline deadline);

}  // namespace moonpool::store
