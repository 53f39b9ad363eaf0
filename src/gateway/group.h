// The instances of one role, and the choice among them.
//
// The list is replaced as a whole when an instance comes or goes, so a request reads it without waiting for an admin. Every instance that
// is added joins the policy first and leaves it last. Threads: any. Ownership: the gateway's shared state owns two of these for its whole
// life.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gateway/instance.h"
#include "gateway/latency.h"
#include "gateway/policy.h"

namespace moonpool::gateway {

using InstanceList = std::vector<std::shared_ptr<Instance>>;

class Group {
 public:
  Group(std::string role, std::shared_ptr<Policy> policy) : role_(std::move(role)), policy_(std::move(policy)) {}

  [[nodiscard]] const std::string& role() const { return role_; }
  [[nodiscard]] std::string policy_name() const;
  // The new one starts without memory of what was sent where. Choices in progress end with the old one.
  void set_policy(std::shared_ptr<Policy> policy);
  [[nodiscard]] std::shared_ptr<const InstanceList> snapshot() const;
  [[nodiscard]] std::shared_ptr<Instance> find(const InstanceName& name) const;  // null when there is none
  [[nodiscard]] bool empty() const { return snapshot()->empty(); }
  [[nodiscard]] bool contains(const InstanceName& name) const;
  // False when an instance of that name is there already.
  bool add(std::shared_ptr<Instance> instance);
  // Takes it out of the list; requests that it works on go on. False when it is not in it.
  bool remove(const std::shared_ptr<Instance>& instance);

  // The policy's choice among the healthy ones that are not in `tried`; when no such one is left, among the unhealthy ones (a request that
  // would fail otherwise loses nothing by trying). Never one that is draining. Null when all were tried.
  [[nodiscard]] std::shared_ptr<Instance> pick(const RequestFacts& request, std::span<const std::shared_ptr<Instance>> tried) const;
  // As the policy says (policy.h), over the instances that are in the group, whatever their health.
  [[nodiscard]] std::optional<std::size_t> uncached_bytes(const RequestFacts& request) const;

  LatencyHistogram hops;  // how long requests were in this hop, with all its tries, however it ended

 private:
  [[nodiscard]] std::shared_ptr<Policy> policy() const;

  const std::string role_;
  mutable std::mutex mutex_;  // guards the two pointers, not the list, and orders what the policy is told
  std::shared_ptr<Policy> policy_;
  std::shared_ptr<const InstanceList> instances_ = std::make_shared<InstanceList>();
};

}  // namespace moonpool::gateway
