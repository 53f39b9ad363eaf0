// The pool's own servers, asked over the wire: the master, and nodes given with --peer. Who is there, in which version, whether it takes
// the cluster token, how far away it is, and which path data would take to a node.
//
// The first frames of the handshake tell the server's version also when the token is wrong. Nothing is changed at the server.
// Threads: any; each call opens and closes connections of its own.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "cli/doctor/finding.h"
#include "net/endpoint.h"

namespace moonpool::cli::doctor {

// What a server of the wire says of itself before anything is asked of it.
struct Greeting {
  std::string product;  // "moonpool 0.1.0"; empty when it did not get so far
  NodeId node;
  std::chrono::nanoseconds connect_time{0};
  std::chrono::nanoseconds round_trip{0};  // of the handshake's first exchange
  Status status;                           // of the whole handshake: kUnauthenticated when the token is not the server's
};
[[nodiscard]] Greeting greet(const net::Endpoint& server, const std::string& token, Deadline deadline);

// `own`: this program's product name. Differing versions work together as long as the handshake succeeds; it is still worth knowing.
[[nodiscard]] Findings judge_greeting(const std::string& whose, const Greeting& greeting, const std::string& own, bool has_token);

// One address of master_server_address or --master. `only`: there is no other master that could answer instead.
[[nodiscard]] Findings check_master(const std::string& address, const std::string& token, bool only, Deadline deadline);
// `wants_rdma`: whether the configuration asks for it.
[[nodiscard]] Findings check_peer(const std::string& address, const std::string& token, bool wants_rdma, Deadline deadline);

}  // namespace moonpool::cli::doctor
