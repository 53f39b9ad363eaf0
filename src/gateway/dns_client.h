// SRV look-ups by the C library's resolver: /etc/resolv.conf or a name server of one's own, retries, and TCP where an answer is too long.
//
// Blocks, so it runs on the Resolver's threads. Threads: any.
#pragma once

#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "gateway/instance_name.h"

namespace moonpool::gateway {

// The targets of the lowest priority with their ports, each with its IPv4 addresses or, if it has none, its IPv6 ones: a host with both is
// not two instances. Addresses come from the same server. `server` is an IPv4 address with port, or empty. A target that does not exist is
// left out; a question that nobody answers fails the look-up, as does a name without SRV records. Overruns its deadline by one question at
// most.
[[nodiscard]] Result<std::vector<InstanceName>> look_up_services(const std::string& name, const std::string& server, Deadline deadline);

}  // namespace moonpool::gateway
