// Objects that are useful only together (the layers or ranks of one prompt block): a lease on one keeps all, and all are evicted at once.
//
// A group lives as long as an object refers to it. Membership is not in the owners' catalogues, so a restarted master has forgotten it.
// Threads: any; leaf locks.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "master/types.h"

namespace moonpool::master {

class Group {
 public:
  void join(const std::string& key, bool hard_pinned) {
    const std::scoped_lock lock(mutex_);
    if (members_.insert(key).second && hard_pinned) ++hard_pins_;
  }
  void leave(const std::string& key, bool hard_pinned) {
    const std::scoped_lock lock(mutex_);
    if (members_.erase(key) > 0 && hard_pinned) --hard_pins_;
  }
  [[nodiscard]] std::vector<std::string> members() const {
    const std::scoped_lock lock(mutex_);
    return {members_.begin(), members_.end()};
  }
  void extend_lease(TimeMs until) { raise(lease_until_, until); }
  void extend_soft_pin(TimeMs until) { raise(soft_pin_until_, until); }
  [[nodiscard]] TimeMs lease_until() const { return hard_pins_ > 0 ? ~TimeMs{0} : lease_until_.load(); }
  [[nodiscard]] TimeMs soft_pin_until() const { return soft_pin_until_; }

 private:
  static void raise(std::atomic<TimeMs>& value, TimeMs to) {
    auto now = value.load();
    while (now < to && !value.compare_exchange_weak(now, to)) {
    }
  }
  mutable std::mutex mutex_;  // guards members_
  std::unordered_set<std::string> members_;
  std::atomic<int> hard_pins_{0};
  std::atomic<TimeMs> lease_until_{0};
  std::atomic<TimeMs> soft_pin_until_{0};
};

class GroupTable {
 public:
  // The group of this tenant-qualified name, made if there is none.
  [[nodiscard]] std::shared_ptr<Group> find_or_make(const std::string& name) {
    const std::scoped_lock lock(mutex_);
    if (groups_.size() > 2 * swept_at_ + 64) {
      std::erase_if(groups_, [](const auto& entry) { return entry.second.expired(); });
      swept_at_ = groups_.size();
    }
    auto& slot = groups_[name];
    auto group = slot.lock();
    if (!group) slot = group = std::make_shared<Group>();
    return group;
  }

 private:
  std::mutex mutex_;  // guards what follows
  std::unordered_map<std::string, std::weak_ptr<Group>> groups_;
  std::size_t swept_at_ = 0;
};

}  // namespace moonpool::master
