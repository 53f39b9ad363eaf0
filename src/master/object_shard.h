// One shard of the object table: what every operation means for one key. object_table.h groups keys by shard and takes the lock.
//
// Invariants: every extent of a segment belongs to exactly one of: a committed value's replica, a pending put's replica, a retirement.
// Nothing that an owner was ever told of goes back to the allocator except through a retirement. Only committed values are seen.
// Threads: every member is called with `mutex` held, but for head() and what says otherwise.
#pragma once

#include <atomic>
#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "master/entry_table.h"
#include "master/eviction_queue.h"
#include "master/object_entry.h"
#include "master/retirement.h"
#include "master/tombstones.h"

namespace moonpool::master {

// What all shards share.
struct TableContext {
  std::atomic<std::uint64_t> term{0};
  std::atomic<std::uint64_t> count{0};  // of the newest grant
  std::atomic<std::uint64_t> stamps{0};
  std::atomic<std::uint64_t> inserted{0};  // values that joined an eviction queue
  GroupTable groups;
  PurgeMarks purges;
};

struct PutItem {
  HashedKey key;
  std::uint64_t size = 0;
  std::string group{};  // empty: none
  ErrorCode status = ErrorCode::kOk;
  Version version{};
  Replicas replicas{};
};

struct PutOptions {
  NodeId writer;
  std::string tenant;
  bool upsert = false;
  bool hard_pin = false;
  TimeMs soft_pin_until = 0;
  TimeMs now = 0;
};

struct CommitItem {
  HashedKey key;
  Version version;
  std::uint64_t checksum = 0;
  std::uint32_t written = 0;
  ErrorCode status = ErrorCode::kOk;
};

struct LookupItem {
  HashedKey key;
  ErrorCode status = ErrorCode::kObjectNotFound;
  std::uint64_t size = 0;
  std::uint64_t checksum = 0;
  Version version{};
  Replicas replicas{};
};

// Keeps the segments of looked-up replicas alive after the shard's lock is let go.
class SegmentKeeper {
 public:
  void keep(Segment& segment) {
    if (!kept_.empty() && kept_.back().get() == &segment) return;
    for (const auto& known : kept_) {
      if (known.get() == &segment) return;
    }
    kept_.push_back(segment.shared_from_this());
  }

 private:
  std::vector<std::shared_ptr<Segment>> kept_;
};

struct RemoveItem {
  HashedKey key;
  ErrorCode status = ErrorCode::kOk;
  std::shared_ptr<RetirementTicket> ticket{};  // what has to be over before the answer; null: nothing
};

struct ReportedExtent {
  HashedKey key;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version{};
  std::uint64_t checksum = 0;
};
// kUnwanted: older, dropped or removed meanwhile; retired. kOverlap: its place belongs to another extent; retired, too.
enum class ReportOutcome { kAccepted, kKnown, kUnwanted, kOverlap };

enum class EvictionStep { kEvicted, kKept, kEmpty };
struct Victim {
  std::uint64_t bytes = 0;
  std::shared_ptr<Group> group;  // whose other members have to go, too
  TimeMs kept_until = 0;         // kKept because of a lease, or a pin that may not be touched
};

class ObjectShard {
 public:
  explicit ObjectShard(TableContext& context) : context_(context), queue_(context.stamps) {}
  ~ObjectShard() { clear(); }
  ObjectShard(const ObjectShard&) = delete;
  ObjectShard& operator=(const ObjectShard&) = delete;

  std::mutex mutex;

  void start_put(PutItem& item, const PutOptions& options, Placer& placer);
  [[nodiscard]] ErrorCode commit(const CommitItem& item, NodeId writer);
  [[nodiscard]] ErrorCode revoke(const HashedKey& key, Version version, NodeId writer);
  // Extends the lease; with a keeper the rest of the item is filled in.
  void look_up(LookupItem& item, TimeMs lease_until, SegmentKeeper* keeper);
  void prefetch(const HashedKey& key) const { entries_.prefetch(key); }
  [[nodiscard]] ErrorCode peek(const HashedKey& key) const;  // like look_up, without a lease
  void remove(RemoveItem& item, bool force, TimeMs now);
  ReportOutcome restore(const ReportedExtent& extent, Segment& segment);

  // Deals with the front of a queue.
  EvictionStep evict_front(QueueKind kind, TimeMs now, bool allow_soft_pinned, Victim& victim);
  // As a member of a group whose front was evicted. Returns the bytes retired.
  std::uint64_t evict_member(const HashedKey& key, TimeMs now);
  [[nodiscard]] std::uint64_t head(QueueKind kind) const { return queue_.head(kind); }  // any thread

  // Drops the replicas on segments that are no longer alive, and what is left without any. The keys whose puts ended that way go to
  // `settled`.
  void drop_dead_replicas(std::vector<std::uint64_t>& settled);
  void revoke_older_than(TimeMs started_before, std::vector<std::uint64_t>& settled);
  void revoke_of_writer(NodeId writer, std::vector<std::uint64_t>& settled);
  // A new reign: all is forgotten, nothing retired.
  void clear();

  [[nodiscard]] std::uint64_t oldest_pending() const { return pending_.empty() ? ~0ULL : pending_.front().version.count; }
  [[nodiscard]] std::size_t pending_count() const { return pending_.size(); }
  [[nodiscard]] std::size_t object_count() const { return objects_; }
  [[nodiscard]] std::uint64_t object_bytes() const { return bytes_; }
  template <typename Visit>
  void for_each_committed(const Visit& visit) const {
    entries_.for_each([&](const Entry& entry) {
      if (entry.committed()) visit(entry);
    });
  }
  template <typename Visit>
  void for_each_extent(const Visit& visit) const {
    entries_.for_each([&](const Entry& entry) {
      entry.for_each_replica([&](const Replica& replica) { visit(replica, entry.size); });
      if (!entry.pending) return;
      for (const auto& replica : entry.pending->replicas) {
        if (replica.segment != nullptr) visit(replica, entry.pending->size);
      }
    });
  }

 private:
  Entry& find_or_make(const HashedKey& key);
  void erase_if_empty(Entry& entry);
  // Somewhere it still is, though perhaps with an owner that cannot be reached now.
  [[nodiscard]] static bool alive(const Entry& entry);
  // It can be read.
  [[nodiscard]] static bool readable(const Entry& entry);
  std::shared_ptr<RetirementTicket> ticket_of(std::uint64_t hash);
  void retire(std::uint64_t hash, const Replica& replica, std::uint64_t size, Version version);
  void retire_unwanted(const ReportedExtent& extent, Segment& segment);
  void drop_value(Entry& entry, std::uint64_t hash);
  void drop_pending(Entry& entry, std::uint64_t hash);
  void install(Entry& entry, Version version, std::uint64_t size, std::uint64_t checksum, const Replicas& replicas);
  void enqueue(Entry& entry, TimeMs soft_pin_until);
  [[nodiscard]] Version newest_version() const;

  TableContext& context_;
  EntryTable entries_;                          // owned
  boost::intrusive::list<PendingPut> pending_;  // oldest grant first
  EvictionQueue queue_;
  std::unordered_map<std::uint64_t, std::shared_ptr<RetirementTicket>> retiring_;  // by key hash
  std::size_t retiring_swept_at_ = 0;
  DroppedKeys dropped_;
  std::size_t objects_ = 0;
  std::uint64_t bytes_ = 0;
};

}  // namespace moonpool::master
