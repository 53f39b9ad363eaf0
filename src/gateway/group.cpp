#include "gateway/group.h"

#include <algorithm>
#include <boost/container/small_vector.hpp>

namespace moonpool::gateway {

std::shared_ptr<const InstanceList> Group::snapshot() const {
  const std::lock_guard lock(mutex_);
  return instances_;
}

bool Group::contains(const InstanceName& name) const {
  const auto list = snapshot();
  return std::any_of(list->begin(), list->end(), [&](const auto& instance) { return instance->name() == name; });
}

bool Group::add(std::shared_ptr<Instance> instance) {
  const std::lock_guard lock(mutex_);
  auto next = std::make_shared<InstanceList>(*instances_);
  const auto same = [&](const auto& other) { return other->name() == instance->name(); };
  if (std::any_of(next->begin(), next->end(), same)) return false;
  next->push_back(std::move(instance));
  instances_ = std::move(next);
  return true;
}

std::shared_ptr<Instance> Group::pick(const RequestFacts& request, std::span<const std::shared_ptr<Instance>> tried) const {
  const auto list = snapshot();
  for (const bool healthy : {true, false}) {
    boost::container::small_vector<Instance*, 32> candidates;
    boost::container::small_vector<std::size_t, 32> positions;
    for (std::size_t i = 0; i < list->size(); ++i) {
      const auto& instance = (*list)[i];
      if (instance->healthy() != healthy || std::find(tried.begin(), tried.end(), instance) != tried.end()) continue;
      candidates.push_back(instance.get());
      positions.push_back(i);
    }
    if (candidates.empty()) continue;
    return (*list)[positions[policy_->choose(std::span<Instance* const>(candidates.data(), candidates.size()), request)]];
  }
  return nullptr;
}

}  // namespace moonpool::gateway
