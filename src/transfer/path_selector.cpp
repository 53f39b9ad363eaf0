#include "transfer/path_selector.h"

#include <mutex>
#include <utility>

namespace moonpool::transfer {

namespace {

Status unreachable(const Peer& peer) {
  return {ErrorCode::kUnavailable, "no path reaches the node " + peer.node.to_string() + " at " + peer.endpoint.to_string()};
}

}  // namespace

Transport* PathSelector::path_to(const Peer& peer) const {
  for (const auto& path : paths_) {
    if (path->reaches(peer)) return path.get();
  }
  return nullptr;
}

PathSelector::Counters* PathSelector::counters_of(const Peer& peer, const Transport* path) {
  {
    const std::shared_lock lock(mutex_);
    if (const auto found = counters_.find(peer.node); found != counters_.end()) return found->second.get();
    if (counters_.size() >= kMaxCountedPeers) return nullptr;
  }
  auto fresh = std::make_unique<Counters>();
  fresh->peer = peer;
  fresh->path = path;
  const std::unique_lock lock(mutex_);
  return counters_.try_emplace(peer.node, std::move(fresh)).first->second.get();
}

void PathSelector::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  Transport* const path = path_to(peer);
  if (path == nullptr) {
    for (auto& operation : operations) operation.status = unreachable(peer);
    return;
  }
  path->write(peer, operations, deadline);
  Counters* const counters = counters_of(peer, path);
  if (counters == nullptr) return;
  std::uint64_t bytes = 0;
  std::uint64_t failures = 0;
  for (const auto& operation : operations) {
    if (operation.status.ok()) {
      bytes += operation.extent.length;
    } else {
      ++failures;
    }
  }
  counters->writes += operations.size();
  counters->bytes_written += bytes;
  counters->failures += failures;
}

void PathSelector::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  Transport* const path = path_to(peer);
  if (path == nullptr) {
    for (auto& operation : operations) operation.status = unreachable(peer);
    return;
  }
  path->read(peer, operations, deadline);
  Counters* const counters = counters_of(peer, path);
  if (counters == nullptr) return;
  std::uint64_t bytes = 0;
  std::uint64_t failures = 0;
  for (const auto& operation : operations) {
    if (operation.status.ok()) {
      bytes += operation.length;
    } else {
      ++failures;
    }
  }
  counters->reads += operations.size();
  counters->bytes_read += bytes;
  counters->failures += failures;
}

std::vector<PathUse> PathSelector::use() const {
  std::vector<PathUse> list;
  const std::shared_lock lock(mutex_);
  for (const auto& [node, c] : counters_) {
    list.push_back({c->peer, std::string(c->path->name()), c->writes, c->bytes_written, c->reads, c->bytes_read, c->failures});
  }
  return list;
}

}  // namespace moonpool::transfer
