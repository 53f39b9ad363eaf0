// The contract of a scheduling policy: out of the instances that may take a request, it names the one that should.
//
// The group has already left out those that are unhealthy or that this request has tried, so a policy decides and nothing else; it keeps
// no list of instances of its own. Cost: it runs once per hop on the path of every request: no lock, no allocation.
// Threads: choose() is called from all of them at once. Ownership: a policy belongs to its group and outlives every call.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "base/result.h"

namespace moonpool::gateway {

class Instance;

// What a policy may look at. Views into the client's request, valid for the call only.
struct RequestFacts {
  std::string_view path;
  std::string_view body;
};

class Policy {
 public:
  virtual ~Policy() = default;
  // The index of the chosen one among `candidates`, which is never empty.
  [[nodiscard]] virtual std::size_t choose(std::span<Instance* const> candidates, const RequestFacts& request) = 0;
  // As on the command line.
  [[nodiscard]] virtual std::string_view name() const = 0;
};

// kConfig, naming the known ones, for a name that is not.
[[nodiscard]] Result<std::unique_ptr<Policy>> make_policy(std::string_view name);

}  // namespace moonpool::gateway
