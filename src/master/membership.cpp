#include "master/membership.h"

#include <algorithm>
#include <utility>

namespace moonpool::master {

namespace {
// A node that has registered reports its segments at once; a recovering master waits this long for the first of them.
constexpr TimeMs kFirstMountMs = 500;
}  // namespace

Membership::Registration Membership::register_node(NodeId id, const std::string& name, const std::string& host, std::uint32_t port,
                                                   TimeMs now) {
  const std::unique_lock lock(mutex_);
  Registration registration;
  for (const auto& [other_id, other] : nodes_) {
    if (other_id != id && port != 0 && other->port == port && other->host == host) registration.predecessors.push_back(other);
  }
  auto& slot = nodes_[id];
  if (!slot) slot = std::make_shared<Node>(id, name, host, port);
  slot->last_seen = now;
  slot->registered_at = now;
  slot->synced = false;
  {
    const std::scoped_lock sync_lock(slot->sync_mutex);
    slot->fenced_told = slot->fenced_sent = 0;
    slot->sync_session.reset();
  }
  registration.node = slot;
  return registration;
}

std::shared_ptr<Node> Membership::find(NodeId id) const {
  const std::shared_lock lock(mutex_);
  const auto found = nodes_.find(id);
  return found == nodes_.end() ? nullptr : found->second;
}

Status Membership::attend(const std::shared_ptr<Node>& node, const void* session) {
  const std::unique_lock lock(mutex_);
  if (node->gone) return {ErrorCode::kNotRegistered, "node " + node->name + " was expired meanwhile: register again"};
  attending_.erase(node->attends_by);
  attending_[session] = node;
  node->attends_by = session;
  node->present = true;
  for (const auto& segment : node->segments) segment->set_present(true);
  return {};
}

std::shared_ptr<Node> Membership::leave(const void* session) {
  const std::unique_lock lock(mutex_);
  const auto found = attending_.find(session);
  if (found == attending_.end()) return nullptr;
  auto node = found->second.lock();
  attending_.erase(found);
  if (!node || node->gone || node->attends_by != session) return nullptr;
  node->attends_by = nullptr;
  node->present = false;
  for (const auto& segment : node->segments) segment->set_present(false);
  return node;
}

bool Membership::may_put(NodeId id) const {
  const auto node = find(id);
  return node && node->present && (node->producer || !node->in_vain);
}

void Membership::waited_in_vain(NodeId id) {
  if (const auto node = find(id)) node->in_vain = true;
}

std::vector<std::shared_ptr<Node>> Membership::nodes() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<Node>> all;
  all.reserve(nodes_.size());
  for (const auto& [id, node] : nodes_) all.push_back(node);
  return all;
}

std::vector<std::shared_ptr<Node>> Membership::silent_since(TimeMs since) const {
  auto all = nodes();
  std::erase_if(all, [&](const auto& node) { return node->last_seen >= since; });
  return all;
}

void Membership::forgive(TimeMs gap) {
  for (const auto& node : nodes()) node->last_seen += gap;
}

Result<std::shared_ptr<Segment>> Membership::mount(const std::shared_ptr<Node>& node, SegmentDescription description) {
  const std::unique_lock lock(mutex_);
  if (fenced_.contains(description.incarnation)) {
    return Status(ErrorCode::kStaleIncarnation, "segment " + description.name + " incarnation " + description.incarnation.to_string() +
                                                    " is fenced: empty it and mount it under a new incarnation");
  }
  if (node->gone) return Status(ErrorCode::kNotRegistered, "node " + node->name + " was expired meanwhile: register again");
  if (const auto found = by_incarnation_.find(description.incarnation); found != by_incarnation_.end()) {
    if (found->second->description().node != node->id || found->second->description().size != description.size) {
      return Status(ErrorCode::kInvalidParams, "incarnation " + description.incarnation.to_string() + " is mounted already by node " +
                                                   found->second->description().name + " with another size or owner");
    }
    return found->second;
  }
  auto segment = std::make_shared<Segment>(std::move(description), node->outbox);
  segment->set_present(node->present);
  by_incarnation_.emplace(segment->description().incarnation, segment);
  node->segments.push_back(segment);
  publish_locked();
  return segment;
}

std::shared_ptr<Segment> Membership::find_segment(Incarnation incarnation) const {
  const std::shared_lock lock(mutex_);
  const auto found = by_incarnation_.find(incarnation);
  return found == by_incarnation_.end() ? nullptr : found->second;
}

std::shared_ptr<const Segments> Membership::segments() const {
  const std::shared_lock lock(mutex_);
  return published_;
}

bool Membership::mounts_in_progress(TimeMs now) const {
  const std::shared_lock lock(mutex_);
  if (std::any_of(published_->begin(), published_->end(), [](const auto& segment) { return !segment->ready(); })) return true;
  return std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& entry) {
    return !entry.second->synced && entry.second->segments.empty() && entry.second->registered_at + kFirstMountMs > now;
  });
}

Membership::~Membership() {
  for (const auto& [id, node] : nodes_) node->outbox->lose_all();
}

Segments Membership::take_node_locked(NodeId id) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return {};
  const auto node = found->second;
  node->gone = true;
  attending_.erase(node->attends_by);
  nodes_.erase(found);
  for (const auto& segment : node->segments) by_incarnation_.erase(segment->description().incarnation);
  return std::exchange(node->segments, {});
}

Segments Membership::remove_node(NodeId id) {
  Segments removed;
  {
    const std::unique_lock lock(mutex_);
    removed = take_node_locked(id);
    for (const auto& segment : removed) fenced_.add(segment->description().incarnation);
    publish_locked();
  }
  for (const auto& segment : removed) segment->fence();
  return removed;
}

Segments Membership::remove_segment(Incarnation incarnation) {
  std::shared_ptr<Segment> segment;
  {
    const std::unique_lock lock(mutex_);
    fenced_.add(incarnation);
    const auto found = by_incarnation_.find(incarnation);
    if (found == by_incarnation_.end()) return {};
    segment = found->second;
    by_incarnation_.erase(found);
    if (const auto node = nodes_.find(segment->description().node); node != nodes_.end()) std::erase(node->second->segments, segment);
    publish_locked();
  }
  segment->fence();
  return {segment};
}

Segments Membership::forget_all() {
  Segments removed;
  std::vector<std::shared_ptr<Node>> forgotten;
  {
    const std::unique_lock lock(mutex_);
    for (const auto& [id, node] : nodes_) forgotten.push_back(node);
    for (const auto& node : forgotten) {
      auto segments = take_node_locked(node->id);
      removed.insert(removed.end(), segments.begin(), segments.end());
    }
    publish_locked();
  }
  for (const auto& node : forgotten) {
    node->outbox->lose_all();
    node->wake->notify_all();
  }
  for (const auto& segment : removed) segment->fence();
  return removed;
}

void Membership::publish_locked() {
  auto all = std::make_shared<Segments>();
  all->reserve(by_incarnation_.size());
  for (const auto& [incarnation, segment] : by_incarnation_) all->push_back(segment);
  // The same order in every listing.
  std::sort(all->begin(), all->end(), [](const auto& a, const auto& b) {
    return std::tie(a->description().name, a->description().incarnation) < std::tie(b->description().name, b->description().incarnation);
  });
  published_ = std::move(all);
}

}  // namespace moonpool::master
