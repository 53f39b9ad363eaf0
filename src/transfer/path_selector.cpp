#include "transfer/path_selector.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "transfer/of_the_path.h"

namespace moonpool::transfer {

Status PathSelector::unreachable(const Peer& peer) const {
  const std::string reason = reason_for(peer, paths_.size());
  return {ErrorCode::kUnavailable,
          "no path reaches the node " + peer.node.to_string() + " at " + peer.endpoint.to_string() + (reason.empty() ? "" : ": " + reason)};
}

Transport* PathSelector::path_to(const Peer& peer) const {
  for (const auto& path : paths_) {
    if (path->reaches(peer)) return path.get();
  }
  return nullptr;
}

std::shared_ptr<PathSelector::PathCounters> PathSelector::counters_of(const Peer& peer) {
  {
    const std::shared_lock lock(mutex_);
    if (const auto found = counters_.find(peer.node); found != counters_.end()) return found->second;
    if (counters_.size() >= kMaxCountedPeers) return nullptr;
  }
  auto fresh = std::make_shared<PathCounters>(paths_.size());
  for (auto& counters : *fresh) counters.peer = peer;
  const std::unique_lock lock(mutex_);
  return counters_.try_emplace(peer.node, std::move(fresh)).first->second;
}

// Over path after path, until no operation is left that another path could do. `move` has a batch carried out by a path and `count` books
// what came of an operation.
template <typename Operation, typename Move, typename Count>
void PathSelector::run(const Peer& peer, std::span<Operation> operations, const Move& move, const Count& count) {
  std::vector<Operation> again;  // a copy of what is left, once some of a batch has failed
  std::vector<std::size_t> places;
  std::span<Operation> batch = operations;
  std::shared_ptr<PathCounters> counters;
  bool reached = false;
  for (std::size_t i = 0; i < paths_.size() && !batch.empty(); ++i) {
    if (!paths_[i]->reaches(peer)) continue;
    reached = true;
    move(*paths_[i], batch);
    if (counters == nullptr) counters = counters_of(peer);
    if (counters != nullptr) {
      for (const auto& operation : batch) count((*counters)[i], operation);
    }
    if (batch.data() == again.data() && !again.empty()) {
      for (std::size_t k = 0; k < batch.size(); ++k) operations[places[k]] = batch[k];
    }
    if (i + 1 == paths_.size()) break;
    again.clear();
    places.clear();
    for (std::size_t k = 0; k < operations.size(); ++k) {
      if (!of_the_path(operations[k].status)) continue;
      again.push_back(operations[k]);
      places.push_back(k);
    }
    batch = again;
  }
  if (reached) return;
  const Status status = unreachable(peer);
  for (auto& operation : operations) operation.status = status;
}

// Over the first path that reaches the peer, whatever comes of it.
template <typename Operation, typename Move, typename Count>
void PathSelector::run_on_best(const Peer& peer, std::span<Operation> operations, const Move& move, const Count& count) {
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    if (!paths_[i]->reaches(peer)) continue;
    move(*paths_[i]);
    const auto counters = counters_of(peer);
    if (counters == nullptr) return;
    for (const auto& operation : operations) count((*counters)[i], operation);
    return;
  }
  const Status status = unreachable(peer);
  for (auto& operation : operations) operation.status = status;
}

void PathSelector::count_write(Counters& counters, const WriteOperation& operation) {
  ++counters.writes;
  if (operation.status.ok()) counters.bytes_written += operation.extent.length;
  if (!operation.status.ok()) ++counters.failures;
}

void PathSelector::count_attempt(Counters& counters, const WriteOperation& operation) {
  if (operation.status.code() != ErrorCode::kNotSupported) count_write(counters, operation);
}

void PathSelector::count_read(Counters& counters, const ReadOperation& operation) {
  ++counters.reads;
  if (operation.status.ok()) counters.bytes_read += operation.length;
  if (!operation.status.ok()) ++counters.failures;
}

void PathSelector::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  run(
      peer, operations, [&](Transport& path, std::span<WriteOperation> batch) { path.write(peer, batch, deadline); }, count_write);
}

void PathSelector::write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) {
  run_on_best(
      peer, operations, [&](Transport& path) { path.write_in_place(peer, operations, fill, deadline); }, count_attempt);
}

void PathSelector::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  run(
      peer, operations, [&](Transport& path, std::span<ReadOperation> batch) { path.read(peer, batch, deadline); }, count_read);
}

bool PathSelector::moves_device_memory(const Peer& peer) const {
  const Transport* const path = path_to(peer);
  return path != nullptr && path->moves_device_memory(peer);
}

void PathSelector::write_device(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  run_on_best(
      peer, operations, [&](Transport& path) { path.write_device(peer, operations, deadline); }, count_attempt);
}

void PathSelector::read_device(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  run_on_best(
      peer, operations, [&](Transport& path) { path.read_device(peer, operations, deadline); }, count_read);
}

void PathSelector::view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) {
  run_on_best(
      peer, operations, [&](Transport& path) { path.view(peer, operations, deadline); },
      [](Counters& counters, const ViewOperation& operation) {
        if (!operation.status.ok()) return;
        ++counters.reads;
        counters.bytes_read += operation.extent.length;
      });
}

std::string PathSelector::reason_for(const Peer& peer, std::size_t path) const {
  std::string text = ruled_out_;
  for (std::size_t i = 0; i < path; ++i) {
    const std::string reason = paths_[i]->why_not(peer);
    if (!reason.empty()) text += (text.empty() ? "" : "; ") + reason;
  }
  return text;
}

std::vector<PathUse> PathSelector::use() const {
  std::vector<std::shared_ptr<PathCounters>> all;
  {
    const std::shared_lock lock(mutex_);
    for (const auto& [node, counters] : counters_) all.push_back(counters);
  }
  std::ranges::sort(all, [](const auto& a, const auto& b) { return a->front().peer.node < b->front().peer.node; });
  std::vector<PathUse> list;
  for (const auto& counters : all) {
    for (std::size_t i = 0; i < counters->size(); ++i) {
      const Counters& c = (*counters)[i];
      if (c.writes + c.reads == 0) continue;
      list.push_back(
          {c.peer, std::string(paths_[i]->name()), reason_for(c.peer, i), c.writes, c.bytes_written, c.reads, c.bytes_read, c.failures});
    }
  }
  return list;
}

}  // namespace moonpool::transfer
