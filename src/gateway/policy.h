// The contract of a scheduling policy: out of the instances that may take a request, it names the one that should.
//
// The group has already left out those that are unhealthy, draining, or that this request has tried. A choice is a commitment: the request
// is sent there next, so a policy that learns where prompts went learns it in choose(). It runs once per hop on the path of every request:
// no waiting, no I/O; a policy with a memory takes short locks of its own. Ties between equal instances are broken at random, never by
// position. An instance that is slow-starting (Instance::weight() below 1) gets a share of the load that small: an idle one has its
// turn as any other, one that is at work is passed over the more.
// Threads: choose() is called from all of them at once, also while instances join and leave; joined() and left() come one at a time.
// Ownership: a policy belongs to its group and outlives every call. Each has one line in policy.cpp and one in policy_names.cpp, and all
// pass policies/policy_conformance_test.cpp.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::gateway {

class HeaderFields;
class Instance;
class PromptChain;

// What a policy may look at. Views into the client's request, valid for the call only.
struct RequestFacts {
  std::string_view path;
  std::string_view body;
  const HeaderFields* headers = nullptr;  // null where there is no client's request
  PromptChain* prompt = nullptr;          // of this body, kept by the request for all its hops and tries; null: who needs one makes it
};

class Policy {
 public:
  virtual ~Policy() = default;
  // The index of the chosen one among `candidates`, which is never empty.
  [[nodiscard]] virtual std::size_t choose(std::span<Instance* const> candidates, const RequestFacts& request) = 0;
  // As on the command line.
  [[nodiscard]] virtual std::string_view name() const = 0;

  // The prompt bytes that the instance which knows most of this prompt would have to compute, those that a pool has counted at their share;
  // nullopt where the policy does not know. No choice: nothing is learned from it.
  [[nodiscard]] virtual std::optional<std::size_t> uncached_bytes(const RequestFacts&) const { return std::nullopt; }

  // An instance may become a candidate from now on; or will not come (back) after the choices now in progress. For policies with a memory.
  virtual void joined(const Instance&) {}
  virtual void left(const Instance&) {}
};

struct PolicyOptions {
  std::string affinity_header = "X-Session-Id";  // session_affinity: whose value keeps requests together; else the request's "user"
  std::size_t prefix_index_bytes = 256u << 10;   // prefix_aware, pool_aware: memory of the index per instance
  double pool_transfer_cost = 0.1;               // pool_aware: loading a prompt byte's KV from the pool, as a share of computing it

  friend bool operator==(const PolicyOptions&, const PolicyOptions&) = default;
};

// kConfig, naming the known ones, for a name that is not.
[[nodiscard]] Result<std::unique_ptr<Policy>> make_policy(std::string_view name, const PolicyOptions& options = {});
[[nodiscard]] std::span<const std::string_view> policy_names();
// That of a group for which the user names none.
[[nodiscard]] std::string_view default_policy();
// "a, b or c", for messages and help texts.
[[nodiscard]] std::string policy_names_text();

}  // namespace moonpool::gateway
