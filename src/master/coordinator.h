// The master's decisions: every request as a function of the tables and the time, without network and without waiting.
//
// service.h speaks the wire and waits (a put for room, a remove for its owners, a look-up for a hand-over) on the events here; the
// background sweep of master.h calls sweep(). A reign: from a start with a new term on, rebuilt from the owners' reports. If a node
// reports a higher term than ours, the reign starts anew above it: all is forgotten and reported again, as after a restart.
// Threads: any. Lock order: reign_mutex_ (shared; exclusively only to change reigns), then shard, outbox, segment.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "master/config.h"
#include "master/counters.h"
#include "master/handover.h"
#include "master/membership.h"
#include "master/object_key.h"
#include "master/object_table.h"
#include "master/placement.h"
#include "net/object_messages.h"
#include "net/server.h"
#include "wire.pb.h"

namespace moonpool::master {

namespace lean = net::lean;

// A PutStart that is being served: tried again while room is made.
struct PutBatch {
  QualifiedKeys keys;  // items refer to them
  std::vector<PutItem> items;
  PutOptions options;
  PlacementWish wish;
  Term term;
  std::shared_ptr<const Segments> segments;           // of the last try
  std::vector<std::shared_ptr<const Segments>> kept;  // those of earlier tries, which granted replicas may lie in
  std::vector<ErrorCode> rejected;                    // per key of the request: kOk, or why it is not in `items`
  [[nodiscard]] std::uint64_t bytes_without_room() const;
};
enum class RoomVerdict { kWait, kHopeless };

class Coordinator {
 public:
  // `wall_ms`: the wall clock, from which the term is made.
  Coordinator(const MasterConfig& config, TimeMs now, std::uint64_t wall_ms);

  // --- membership
  Result<wire::RegisterNodeReply> register_node(const wire::RegisterNodeRequest& request, TimeMs now);
  Result<wire::MountSegmentReply> mount(const wire::MountSegmentRequest& request, TimeMs now);
  // Carries out the acknowledgements; the answer is made by sync_reply() when there is something to tell, or time is up.
  Result<std::shared_ptr<Node>> sync(const wire::NodeSyncRequest& request, const std::shared_ptr<void>& session, TimeMs now);
  Result<wire::NodeSyncReply> sync_reply(Node& node, const std::shared_ptr<void>& session, TimeMs now);
  // The node lives as long as this connection does; a connection's end hides what it lends and revokes what it was putting.
  Status attend(const wire::AttendRequest& request, const void* session, TimeMs now);
  void session_ended(const void* session);
  Status unmount(const wire::UnmountSegmentRequest& request);
  Status deregister(const wire::DeregisterNodeRequest& request);

  // --- objects
  // Requests and replies in the form of net/lean_codec.h. What a call returns may refer to the request's bytes, and a reply to the segments
  // that it keeps.
  Result<PutBatch> begin_put(const lean::PutStartRequest& request, TimeMs now);
  // Grants what fits. Errors: the reign has changed.
  Status try_put(PutBatch& batch, TimeMs now);
  // Evicts for what did not fit. `stalled`: earlier evictions were not acknowledged in time, so do not count on them.
  RoomVerdict make_room(const PutBatch& batch, TimeMs now, bool stalled);
  [[nodiscard]] lean::PutStartReply put_reply(const PutBatch& batch);
  Result<lean::StatusReply> commit(const lean::PutCommitRequest& request, TimeMs now);
  Result<wire::StatusReply> revoke(const wire::PutRevokeRequest& request, TimeMs now);
  struct Whereabouts {
    lean::GetReplicasReply reply;
    SegmentKeeper keeper;
  };
  Result<Whereabouts> get_replicas(const lean::GetReplicasRequest& request, TimeMs now);

  // Whether keys are there; those that are not, but may be waited for, are listed in `on_their_way`.
  struct Existence {
    QualifiedKeys keys;
    std::vector<ErrorCode> status;
    std::vector<std::uint32_t> on_their_way;
  };
  Result<Existence> exist(const lean::ExistRequest& request, TimeMs now);
  [[nodiscard]] bool still_on_its_way(std::string_view key, NodeId asker, TimeMs now);
  // After the wait: asks again for the keys waited for, and takes back the expectations that came to nothing.
  void finish_wait(Existence& existence, NodeId asker, bool timed_out, TimeMs now);

  // For people: no lease is granted. Nothing when the key is not there.
  struct Description {
    struct Place {
      std::string segment;
      std::string host;
      std::uint32_t port = 0;
      std::uint64_t offset = 0;
    };
    std::uint64_t size = 0;
    std::uint64_t checksum = 0;
    Version version;
    std::vector<Place> replicas;
  };
  [[nodiscard]] std::optional<Description> describe(const std::string& tenant, const std::string& key);

  Result<std::vector<RemoveItem>> remove(const wire::RemoveRequest& request, std::vector<std::string>& keys, TimeMs now);
  // Shard by shard, so that the caller can let others run between.
  struct Purge {
    std::string tenant;
    std::shared_ptr<const KeyPattern> pattern;
    bool force = false;
    std::uint64_t removed = 0;
  };
  Result<Purge> begin_remove_matching(const wire::RemoveMatchingRequest& request, TimeMs now);
  Status remove_matching(Purge& purge, std::size_t shard, TimeMs now);
  // All orders given so far. Over when every node has acknowledged its part or is fenced; lost when the reign has changed.
  struct Barrier {
    Term term;
    std::vector<std::pair<std::shared_ptr<Node>, std::uint64_t>> orders;
  };
  [[nodiscard]] Barrier barrier() const;
  [[nodiscard]] bool over(const Barrier& barrier) const;

  // --- in the background
  void sweep(TimeMs now);
  // Whether free space is short enough for sweep() to be called at once.
  [[nodiscard]] bool above_watermark() const;

  [[nodiscard]] bool recovering(TimeMs now) const;
  [[nodiscard]] Term term() const { return table_.term(); }
  [[nodiscard]] const MasterConfig& config() const { return config_; }
  [[nodiscard]] ObjectTable& table() { return table_; }
  [[nodiscard]] Membership& membership() { return membership_; }
  [[nodiscard]] const Membership& membership() const { return membership_; }
  [[nodiscard]] Handover& handover() { return handover_; }
  [[nodiscard]] Counters& counters() { return counters_; }
  // For lines about a full pool.
  [[nodiscard]] RateLimit& full_log() { return full_log_; }
  [[nodiscard]] std::chrono::milliseconds sync_interval() const { return sync_interval_; }
  // Told when space came back, an order is over, or a node left.
  [[nodiscard]] net::AsyncEvent& progress() { return progress_; }
  // Told when a key's put has ended (one event per Handover shard).
  [[nodiscard]] net::AsyncEvent& settled(std::uint64_t hash) { return settled_[Handover::shard_of(hash)]; }

 private:
  using SharedReign = std::shared_lock<std::shared_mutex>;
  void start_reign(Term term, TimeMs now);
  [[nodiscard]] Status recovering_error() const;
  [[nodiscard]] Status unregistered(std::string_view id_bytes) const;
  [[nodiscard]] std::shared_ptr<Node> find_node(std::string_view id_bytes, TimeMs now) const;
  void remove_nodes(const std::vector<std::shared_ptr<Node>>& nodes, const std::string& why);
  void settle(std::span<const std::uint64_t> hashes);
  void evict_above_watermark(TimeMs now);
  void log_rejected(const Segment& segment, const ReportedExtent& extent, ReportOutcome outcome, TimeMs now);

  const MasterConfig config_;
  const std::chrono::milliseconds sync_interval_;
  mutable std::shared_mutex reign_mutex_;
  Membership membership_;
  ObjectTable table_;
  Handover handover_;
  Counters counters_;
  net::AsyncEvent progress_;
  std::array<net::AsyncEvent, Handover::kShards> settled_;
  std::atomic<TimeMs> reign_started_;
  mutable std::atomic<bool> recovered_{false};
  std::atomic<TimeMs> last_sweep_{0};
  std::atomic<std::uint64_t> seed_{1};
  RateLimit full_log_{5000};
  RateLimit reject_log_{1000};
};

}  // namespace moonpool::master
