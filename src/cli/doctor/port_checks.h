// TCP ports: which are listened on, by whom, and whether those that the pool wants are free.
//
// Read from /proc/net/tcp and tcp6 rather than by binding: that tells who it is, and takes no port from anybody. The owner of a socket is
// found only where this user may look into the process. Threads: any.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/doctor/finding.h"
#include "cli/doctor/host_files.h"

namespace moonpool::cli::doctor {

struct Listener {
  std::string address;  // "127.0.0.1", "::", ...
  std::uint16_t port = 0;
  std::uint64_t inode = 0;
  std::string process;  // "mooncake_master (pid 12)"; empty: not to be seen
  [[nodiscard]] bool any_address() const { return address == "0.0.0.0" || address == "::"; }
};

// All listening sockets of this network namespace.
[[nodiscard]] std::vector<Listener> read_listeners(const HostFiles& host);

struct PortRange {
  std::uint16_t first = 0;
  std::uint16_t last = 0;
};
// From which the kernel takes ports of outgoing connections.
[[nodiscard]] PortRange read_outgoing_ports(const HostFiles& host);

// A port that a setting names, and whether it should be free or served.
struct WantedPort {
  std::string whose;  // "local_hostname", "--port"
  std::uint16_t port = 0;
  // One of this host's addresses; empty: all of them. A listener at another address is not in the way.
  std::string address;
  bool served = false;  // something should be listening: a master on this host
  // What answered there in the words of the wire, "moonpool 0.1.0": this host's node, up already. Empty: nothing like that.
  std::string product;
};
// `range`: nodes without a port of their own take the first free one of it.
[[nodiscard]] Findings check_ports(const std::vector<Listener>& listeners, const std::vector<WantedPort>& wanted, PortRange range,
                                   PortRange outgoing);

}  // namespace moonpool::cli::doctor
