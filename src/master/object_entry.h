// What the master knows of one key: at most one committed value and at most one put in flight (which then replaces it).
#pragma once

#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "base/ids.h"
#include "master/group.h"
#include "master/placement.h"
#include "master/types.h"

namespace moonpool::master {

struct Entry;

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

struct Entry : boost::intrusive::list_base_hook<> {  // the hook is the eviction queue's
  const std::string* key = nullptr;                  // in the shard's map
  Version version;                                   // of the committed value; count 0: there is none
  std::uint64_t size = 0;
  std::uint64_t checksum = 0;
  Replicas replicas;
  std::unique_ptr<PendingPut> pending;
  std::shared_ptr<Group> group;
  TimeMs lease_until = 0;
  TimeMs soft_pin_until = 0;
  std::uint64_t stamp = 0;  // when it joined its queue
  QueueKind queue = QueueKind::kNone;
  std::uint8_t hits = 0;
  bool hard_pin = false;

  [[nodiscard]] bool committed() const { return version.count != 0; }
  [[nodiscard]] TimeMs leased_until() const { return group ? std::max(lease_until, group->lease_until()) : lease_until; }
  [[nodiscard]] TimeMs soft_pinned_until() const { return group ? std::max(soft_pin_until, group->soft_pin_until()) : soft_pin_until; }
};

}  // namespace moonpool::master
