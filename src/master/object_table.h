// All keys of the cluster: 64 shards with a lock each, no lock over all of them.
//
// Batches are grouped by shard, so that each shard's lock is taken twice a batch (to prefetch, and to work), not once a key. Eviction takes
// the oldest object of all shards (eviction_queue.h). Cost: under 200 bytes an object with one replica beyond its key, the allocator's
// share included (memory_test.cpp); a hash and one look-up a key operation.
// Threads: any. The caller keeps the segments that it passes in, or gets back, alive (Membership::segments).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "master/object_shard.h"

namespace moonpool::master {

class ObjectTable {
 public:
  static constexpr std::size_t kShards = 64;

  ObjectTable();

  // All is forgotten and a new reign begins.
  void start_reign(Term term);
  [[nodiscard]] Term term() const { return Term{context_.term.load()}; }

  // Grants what can be placed; items with kOk are left alone, so that the call can be repeated for those that found no room.
  void start_puts(std::span<PutItem> items, const PutOptions& options, Placer& placer);
  void commit(std::span<CommitItem> items, NodeId writer);
  void revoke(std::span<CommitItem> items, NodeId writer);
  // Replicas and what belongs to them are filled in if there is a keeper to keep their segments.
  void look_up(std::span<LookupItem> items, TimeMs lease_until, SegmentKeeper* keeper);
  void remove(std::span<RemoveItem> items, bool force, TimeMs now);
  // Removes the tenant's keys of one shard that match (pattern null: all). Tickets of what must be over go to `tickets`.
  std::size_t remove_matching(std::size_t shard, std::string_view tenant, const KeyPattern* pattern, bool force, TimeMs now);
  // Before a remove-matching: nothing as old as this comes back by a late report.
  void mark_purged(std::string_view tenant, std::shared_ptr<const KeyPattern> pattern);
  ReportOutcome restore(const ReportedExtent& extent, Segment& segment);

  struct EvictionResult {
    std::uint64_t objects = 0;
    std::uint64_t bytes = 0;
  };
  // Evicts, oldest first, until `bytes` are on their way back or nothing evictable is left.
  EvictionResult evict(std::uint64_t bytes, TimeMs now, bool allow_soft_pinned);

  using Settled = std::vector<std::uint64_t>;  // key hashes of puts that ended
  [[nodiscard]] Settled drop_dead_replicas();
  [[nodiscard]] Settled revoke_older_than(TimeMs started_before);
  [[nodiscard]] Settled revoke_of_writer(NodeId writer);

  // The oldest version under which a write may still be legitimate.
  [[nodiscard]] Version oldest_grant();

  struct Totals {
    std::uint64_t objects = 0;
    std::uint64_t bytes = 0;
    std::uint64_t pending = 0;
  };
  [[nodiscard]] Totals totals();
  // Qualified keys, at most `limit`.
  [[nodiscard]] std::vector<std::string> keys(std::size_t limit);
  [[nodiscard]] ErrorCode peek(const HashedKey& key);
  // For tests and checks: every extent that an object or a put in flight holds.
  void for_each_extent(const std::function<void(const Segment&, std::uint64_t offset, std::uint64_t size)>& visit);

 private:
  [[nodiscard]] ObjectShard& shard_of(std::uint64_t hash) { return *shards_[hash >> 58]; }
  template <typename Item, typename Apply>
  void by_shard(std::span<Item> items, Apply apply);
  EvictionResult evict_queue(QueueKind kind, std::uint64_t bytes, TimeMs now, bool allow_soft_pinned, TimeMs& earliest_lease);
  ObjectShard* oldest_shard(QueueKind kind);

  TableContext context_;
  std::array<std::unique_ptr<ObjectShard>, kShards> shards_;

  // A pass that found everything leased or pinned need not be repeated before something changes.
  struct FruitlessPass {
    std::uint64_t inserted = 0;
    TimeMs until = 0;
    bool with_soft = false;
  };
  std::mutex eviction_mutex_;  // guards fruitless_; one eviction at a time
  FruitlessPass fruitless_;
};

}  // namespace moonpool::master
