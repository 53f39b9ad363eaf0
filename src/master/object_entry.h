// What the master knows of one key: at most one committed value and at most one put in flight (which then replaces it).
#pragma once

#include <algorithm>
#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "master/group.h"
#include "master/placement.h"
#include "master/types.h"

namespace moonpool::master {

class Entry;

// A granted put. Its replicas keep their places: PutCommitRequest.written refers to them by number.
struct PendingPut : boost::intrusive::list_base_hook<> {
  Entry* entry = nullptr;
  Version version;
  std::uint64_t size = 0;
  Replicas replicas;
  NodeId writer;
  TimeMs started = 0;
  TimeMs soft_pin_until = 0;
  bool hard_pin = false;
  std::shared_ptr<Group> group;
};

enum class QueueKind : std::uint8_t { kNone, kNormal, kSoft };

// One allocation an object: this, and the key's bytes behind it. What few objects have stands apart (Rare).
// Cost: 112 bytes, the key, and what malloc adds.
class Entry : public boost::intrusive::list_base_hook<> {  // the hook is the eviction queue's
 public:
  [[nodiscard]] static Entry* make(const HashedKey& key) {
    void* const memory = ::operator new(sizeof(Entry) + key.key.size());
    return new (memory) Entry(key);
  }
  static void destroy(Entry* entry) {
    entry->~Entry();
    ::operator delete(static_cast<void*>(entry));
  }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  const std::uint64_t hash;
  Version version;  // of the committed value; count 0: there is none
  std::uint64_t size = 0;
  std::uint64_t checksum = 0;
  std::unique_ptr<PendingPut> pending;
  TimeMs lease_until = 0;
  std::uint64_t stamp = 0;  // when it joined its queue

 private:
  const std::uint32_t key_length_;

 public:
  QueueKind queue = QueueKind::kNone;
  std::uint8_t hits = 0;
  bool hard_pin = false;

  [[nodiscard]] std::string_view key() const { return {reinterpret_cast<const char*>(this + 1), key_length_}; }
  [[nodiscard]] bool committed() const { return version.count != 0; }
  [[nodiscard]] TimeMs leased_until() const { return group() ? std::max(lease_until, group()->lease_until()) : lease_until; }
  [[nodiscard]] TimeMs soft_pinned_until() const {
    if (rare_ == nullptr) return 0;
    return rare_->group ? std::max(rare_->soft_pin_until, rare_->group->soft_pin_until()) : rare_->soft_pin_until;
  }

  [[nodiscard]] const std::shared_ptr<Group>& group() const {
    static const std::shared_ptr<Group> kNone;
    return rare_ == nullptr ? kNone : rare_->group;
  }
  void set_group(std::shared_ptr<Group> group) {
    if (group) rare().group = std::move(group);
  }
  void set_soft_pin(TimeMs until) {
    if (until > 0 || rare_ != nullptr) rare().soft_pin_until = until;
  }

  // Of the committed value.
  [[nodiscard]] std::size_t replica_count() const {
    return (first_.segment != nullptr ? 1 : 0) + (rare_ == nullptr ? 0 : rare_->others.size());
  }
  template <typename Visit>
  void for_each_replica(const Visit& visit) const {
    if (first_.segment != nullptr) visit(first_);
    if (rare_ == nullptr) return;
    for (const auto& replica : rare_->others) visit(replica);
  }
  template <typename Test>
  [[nodiscard]] bool any_replica(const Test& test) const {
    if (first_.segment != nullptr && test(first_)) return true;
    return rare_ != nullptr && std::any_of(rare_->others.begin(), rare_->others.end(), test);
  }
  void add_replica(const Replica& replica) {
    if (first_.segment == nullptr) {
      first_ = replica;
    } else {
      rare().others.push_back(replica);
    }
  }
  template <typename Test>
  void drop_replicas(const Test& test) {
    if (rare_ != nullptr) std::erase_if(rare_->others, test);
    if (first_.segment == nullptr || !test(first_)) return;
    first_ = {};
    if (rare_ == nullptr || rare_->others.empty()) return;
    first_ = rare_->others.back();
    rare_->others.pop_back();
  }
  // Replicas, group, pins: nothing of the value is left.
  void forget_value() {
    first_ = {};
    rare_.reset();
    version = {};
    lease_until = 0;
    hits = 0;
    hard_pin = false;
  }

 private:
  struct Rare {
    std::shared_ptr<Group> group;
    TimeMs soft_pin_until = 0;
    std::vector<Replica> others;  // replicas beyond the first
  };
  explicit Entry(const HashedKey& key) : hash(key.hash), key_length_(static_cast<std::uint32_t>(key.key.size())) {
    std::memcpy(static_cast<void*>(this + 1), key.key.data(), key.key.size());
  }
  ~Entry() = default;
  Rare& rare() {
    if (rare_ == nullptr) rare_ = std::make_unique<Rare>();
    return *rare_;
  }

  Replica first_;
  std::unique_ptr<Rare> rare_;
};
static_assert(sizeof(Entry) <= 112);

}  // namespace moonpool::master
