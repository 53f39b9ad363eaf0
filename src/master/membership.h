// Who is in the cluster, which segments they have mounted, and who has been silent for too long.
//
// Invariants: a node id occurs once; a host:port belongs to one node (a process that restarts on its predecessor's port is proof that the
// predecessor is dead); an incarnation is mounted at most once, and never again after it was fenced. Whoever takes a node or segment out
// (remove_*) must sweep the object table of the returned segments before forgetting them.
// Threads: any. Lock: one mutex for writers; readers of the segments take a snapshot, which costs a reference count.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "master/fenced_list.h"
#include "master/retirement.h"
#include "master/segment.h"
#include "master/types.h"
#include "net/server.h"
#include "wire.pb.h"

namespace moonpool::master {

struct Node {
  Node(NodeId node_id, std::string node_name, std::string node_host, std::uint32_t node_port)
      : id(node_id), name(std::move(node_name)), host(std::move(node_host)), port(node_port) {}
  const NodeId id;
  const std::string name;
  const std::string host;
  const std::uint32_t port;
  // Woken when there is an order to deliver, and when the node is removed.
  const std::shared_ptr<net::AsyncEvent> wake = std::make_shared<net::AsyncEvent>();
  const std::shared_ptr<Outbox> outbox = std::make_shared<Outbox>([event = wake] { event->notify_all(); });
  std::atomic<TimeMs> last_seen{0};
  std::atomic<TimeMs> registered_at{0};
  std::atomic<bool> synced{false};    // has sent a NodeSync since it registered
  std::atomic<bool> producer{false};  // has started a put in its life
  // A look-up waited for a key that this node was expected to put, and it did not come. Before a first put, that settles that it is a
  // reader.
  std::atomic<bool> in_vain{false};
  std::atomic<bool> present{true};  // not so while its attending connection is lost (METHOD_ATTEND)
  std::atomic<bool> gone{false};    // removed: an answer that waits for it ends
  // FencedList::changes() as it surely knows it, as the last answer carried it, and that answer's connection: the next request on the same
  // connection proves that the answer arrived.
  std::mutex sync_mutex;  // guards these three
  std::uint64_t fenced_told = 0;
  std::uint64_t fenced_sent = 0;
  std::weak_ptr<void> sync_session;
  // As the node last told, for the status page.
  std::mutex paths_mutex;  // guards these four
  std::vector<wire::PathReport> paths;
  std::uint64_t device_bytes_in_place = 0;
  std::uint64_t device_bytes_by_nic = 0;
  std::uint64_t device_bytes_staged = 0;
  std::vector<std::shared_ptr<Segment>> segments;  // guarded by Membership's mutex, like the next
  const void* attends_by = nullptr;                // the session
};

using Segments = std::vector<std::shared_ptr<Segment>>;

class Membership {
 public:
  Membership() = default;
  // Orders that nobody will acknowledge any more refer to segments, which refer to the outbox that holds the orders.
  ~Membership();
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  struct Registration {
    std::shared_ptr<Node> node;
    std::vector<std::shared_ptr<Node>> predecessors;  // other nodes of that host:port: dead, and still to be removed
  };
  Registration register_node(NodeId id, const std::string& name, const std::string& host, std::uint32_t port, TimeMs now);
  [[nodiscard]] std::shared_ptr<Node> find(NodeId id) const;
  // The node attends by this connection; whatever hid its segments is over. kNotRegistered when it was removed meanwhile.
  Status attend(const std::shared_ptr<Node>& node, const void* session);
  // A connection has ended. The node that attended by it, hidden now; null when there is none, or it attends by another one already.
  std::shared_ptr<Node> leave(const void* session);

  // Whether a key that this node has looked up in vain may be put by it: it has put before, or nobody has waited for it in vain yet.
  [[nodiscard]] bool may_put(NodeId id) const;
  void waited_in_vain(NodeId id);
  [[nodiscard]] std::vector<std::shared_ptr<Node>> nodes() const;
  // Nodes that were last seen before `since`.
  [[nodiscard]] std::vector<std::shared_ptr<Node>> silent_since(TimeMs since) const;
  // The master itself stood still for this long: nobody is to blame for it.
  void forgive(TimeMs gap);

  // The mounted segment of this incarnation, made if it is new. kStaleIncarnation when fenced; kInvalidParams when it belongs to another
  // node.
  Result<std::shared_ptr<Segment>> mount(const std::shared_ptr<Node>& node, SegmentDescription description);
  [[nodiscard]] std::shared_ptr<Segment> find_segment(Incarnation incarnation) const;
  [[nodiscard]] std::shared_ptr<const Segments> segments() const;
  [[nodiscard]] bool mounts_in_progress(TimeMs now) const;

  // Each marks what it takes out as fenced, and returns the segments whose replicas have to be swept.
  Segments remove_node(NodeId id);
  Segments remove_segment(Incarnation incarnation);
  // All nodes and segments, without fencing anything: a new reign begins, and everyone registers again.
  Segments forget_all();

  [[nodiscard]] FencedList& fenced() { return fenced_; }
  [[nodiscard]] const FencedList& fenced() const { return fenced_; }

 private:
  void publish_locked();
  Segments take_node_locked(NodeId id);

  FencedList fenced_;
  mutable std::shared_mutex mutex_;  // guards what follows
  std::unordered_map<NodeId, std::shared_ptr<Node>> nodes_;
  std::unordered_map<Incarnation, std::shared_ptr<Segment>> by_incarnation_;
  std::unordered_map<const void*, std::weak_ptr<Node>> attending_;  // by session
  std::shared_ptr<const Segments> published_ = std::make_shared<const Segments>();
};

}  // namespace moonpool::master
