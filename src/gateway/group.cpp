#include "gateway/group.h"

#include <algorithm>
#include <boost/container/small_vector.hpp>

namespace moonpool::gateway {

std::shared_ptr<const InstanceList> Group::snapshot() const {
  const std::lock_guard lock(mutex_);
  return instances_;
}

std::shared_ptr<Policy> Group::policy() const {
  const std::lock_guard lock(mutex_);
  return policy_;
}

std::string Group::policy_name() const { return std::string(policy()->name()); }

std::optional<std::size_t> Group::uncached_bytes(const RequestFacts& request) const { return policy()->uncached_bytes(request); }

void Group::set_policy(std::shared_ptr<Policy> policy) {
  const std::lock_guard lock(mutex_);
  for (const auto& instance : *instances_) policy->joined(*instance);
  policy_.swap(policy);
}

std::shared_ptr<Instance> Group::find(const InstanceName& name) const {
  const auto list = snapshot();
  const auto found = std::find_if(list->begin(), list->end(), [&](const auto& instance) { return instance->name() == name; });
  return found == list->end() ? nullptr : *found;
}

bool Group::contains(const InstanceName& name) const { return find(name) != nullptr; }

bool Group::add(std::shared_ptr<Instance> instance) {
  const std::lock_guard lock(mutex_);
  auto next = std::make_shared<InstanceList>(*instances_);
  const auto same = [&](const auto& other) { return other->name() == instance->name(); };
  if (std::any_of(next->begin(), next->end(), same)) return false;
  policy_->joined(*instance);
  next->push_back(std::move(instance));
  instances_ = std::move(next);
  return true;
}

bool Group::remove(const std::shared_ptr<Instance>& instance) {
  const std::lock_guard lock(mutex_);
  auto next = std::make_shared<InstanceList>(*instances_);
  if (std::erase(*next, instance) == 0) return false;
  instances_ = std::move(next);
  policy_->left(*instance);
  return true;
}

std::shared_ptr<Instance> Group::pick(const RequestFacts& request, std::span<const std::shared_ptr<Instance>> tried) const {
  std::shared_ptr<const InstanceList> list;
  std::shared_ptr<Policy> policy;
  {
    const std::lock_guard lock(mutex_);
    list = instances_;
    policy = policy_;
  }
  for (const bool healthy : {true, false}) {
    boost::container::small_vector<Instance*, 32> candidates;
    boost::container::small_vector<std::size_t, 32> positions;
    for (std::size_t i = 0; i < list->size(); ++i) {
      const auto& instance = (*list)[i];
      if (instance->draining() || instance->healthy() != healthy || std::find(tried.begin(), tried.end(), instance) != tried.end())
        continue;
      candidates.push_back(instance.get());
      positions.push_back(i);
    }
    if (candidates.empty()) continue;
    return (*list)[positions[policy->choose(std::span<Instance* const>(candidates.data(), candidates.size()), request)]];
  }
  return nullptr;
}

}  // namespace moonpool::gateway
