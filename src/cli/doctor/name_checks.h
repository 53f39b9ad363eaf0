// Names: what local_hostname and the servers' hosts resolve to, as seen from here, and the classic trap, a host whose own name means
// 127.0.1.1 so that its peers are told to connect to themselves.
//
// Threads: any. Look-ups block up to the deadline.
#pragma once

#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "cli/doctor/finding.h"

namespace moonpool::cli::doctor {

// The addresses of a name, as texts without a port, each once; the loopback ones among them are told apart.
struct Resolved {
  std::vector<std::string> addresses;
  [[nodiscard]] bool only_loopback() const;
};
[[nodiscard]] Result<Resolved> resolve_name(const std::string& host, Deadline deadline);

[[nodiscard]] bool is_loopback(const std::string& address);
// This host's own name (gethostname).
[[nodiscard]] std::string own_name();

// local_hostname of a node whose servers are at these hosts. `resolved` is what it resolves to; `ours` whether that is this host.
[[nodiscard]] Findings judge_local_hostname(const std::string& name, const Result<Resolved>& resolved, const Status& ours,
                                            bool servers_elsewhere);
[[nodiscard]] Findings judge_own_name(const std::string& name, const Result<Resolved>& resolved);
[[nodiscard]] Findings judge_server_name(const std::string& whose, const std::string& name, const Result<Resolved>& resolved);

}  // namespace moonpool::cli::doctor
