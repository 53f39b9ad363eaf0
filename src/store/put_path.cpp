#include "store/put_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <boost/unordered/unordered_flat_map.hpp>
#include <map>
#include <numeric>
#include <utility>

#include "base/logging.h"
#include "base/run_together.h"
#include "base/sync_point.h"
#include "transfer/transport.h"

namespace moonpool::store {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{10};
constexpr milliseconds kLongestPause{250};
constexpr std::uint32_t kOtherWriterWaitMs = 500;  // of one Exist while another writer's put is under way; asked again after it
constexpr std::size_t kMaxReplicas = 32;           // bits of PutCommitRequest.written

std::uint64_t total(std::span<const ConstBytes> pieces) {
  return std::accumulate(pieces.begin(), pieces.end(), std::uint64_t{0},
                         [](std::uint64_t sum, ConstBytes piece) { return sum + piece.size(); });
}

// A new grant may do better.
bool worth_starting_over(ErrorCode code) {
  switch (code) {
    case ErrorCode::kStaleTerm:
    case ErrorCode::kStaleIncarnation:
    case ErrorCode::kUnavailable:
    case ErrorCode::kTransferFail:
    case ErrorCode::kRpcTimeout:
    case ErrorCode::kReplicaGone:
    case ErrorCode::kReplicaNotFound:
    case ErrorCode::kSegmentNotFound:
    case ErrorCode::kObjectNotFound:
    case ErrorCode::kInvalidVersion:
    case ErrorCode::kInvalidReplica:
    case ErrorCode::kNotRegistered:
      return true;
    default:
      return false;
  }
}

}  // namespace

// The state of one put(): which keys still have no result, and what this round holds for each.
class PutPath::Call {
 public:
  Call(const PutPath& path, const Batch& batch, Deadline deadline)
      : path_(path), batch_(batch), deadline_(deadline), results_(batch.keys.size()) {}

  std::vector<std::int32_t> run();

 private:
  struct Replica {
    std::size_t segment = 0;  // index into segments_
    std::uint64_t offset = 0;
    Status status;
    std::uint64_t checksum = 0;
  };
  struct Item {
    std::size_t index = 0;  // into the batch
    std::uint64_t size = 0;
    std::string_view catalogue_key;  // the key itself, or in `qualified`
    std::string qualified;
    // Of this round:
    Version version;
    boost::container::small_vector<Replica, 1> replicas;
    // Why the last round did not finish it; its result if there is no further one.
    Status failure;
  };

  void accept_keys();
  bool round();
  Status start(std::vector<Item*>& granted, std::vector<Item*>& others);
  Status read_grants(const lean::PutStartReply& reply, std::vector<Item*>& granted, std::vector<Item*>& others);
  void write(std::vector<Item*>& granted);
  void write_to(const transfer::Peer& peer, const std::vector<std::pair<Item*, Replica*>>& work, Deadline deadline) const;
  void commit(std::vector<Item*>& granted);
  void wait_for_others(std::vector<Item*>& others);
  void finish(Item& item, ErrorCode code);
  void fail_all(const Status& status);
  void log_once(const std::string& text);
  [[nodiscard]] Deadline write_deadline() const;

  const PutPath& path_;
  const Batch& batch_;
  const Deadline deadline_;
  std::vector<std::int32_t> results_;
  std::vector<Item> items_;                                      // one per distinct key that is worth asking for
  std::vector<Item*> pending_;                                   // without a result yet
  std::vector<std::pair<std::size_t, std::size_t>> duplicates_;  // (index, index of the first)
  Segments segments_;                                            // of this round
  bool logged_ = false;
};

void PutPath::Call::accept_keys() {
  boost::unordered_flat_map<std::string_view, std::size_t, std::hash<std::string_view>> first;
  first.reserve(batch_.keys.size());
  items_.reserve(batch_.keys.size());
  for (std::size_t i = 0; i < batch_.keys.size(); ++i) {
    if (const auto [seen, fresh] = first.emplace(batch_.keys[i], i); !fresh) {
      duplicates_.emplace_back(i, seen->second);
      continue;
    }
    ErrorCode code = check_key(batch_.keys[i]);
    const std::uint64_t size = total(batch_.sources[i]);
    if (code == ErrorCode::kOk && size == 0) code = ErrorCode::kInvalidParams;
    results_[i] = static_cast<std::int32_t>(code);
    if (code != ErrorCode::kOk) continue;
    Item& item = items_.emplace_back();
    item.index = i;
    item.size = size;
    item.catalogue_key = batch_.keys[i];
    if (!stands_bare(path_.tenant_, batch_.keys[i])) item.catalogue_key = item.qualified = catalogue_key(path_.tenant_, batch_.keys[i]);
  }
  pending_.reserve(items_.size());
  for (auto& item : items_) pending_.push_back(&item);
}

std::vector<std::int32_t> PutPath::Call::run() {
  accept_keys();
  auto pause = kFirstPause;
  while (!pending_.empty()) {
    const bool go_on = round();
    if (pending_.empty()) break;
    if (!go_on || deadline_.left() <= pause || !path_.standing_.pause(std::min(deadline_.left(), jittered(pause)))) {
      for (Item* item : pending_) {
        results_[item->index] = public_code(item->failure.code());
        log_once(fmt::format("put of {} key(s) failed, the first with: {}", pending_.size(), item->failure.to_string()));
      }
      break;
    }
    pause = std::min(kLongestPause, pause * 2);
  }
  for (const auto& [index, first] : duplicates_) results_[index] = results_[first];
  return std::move(results_);
}

// False when another round is of no use.
bool PutPath::Call::round() {
  std::vector<Item*> granted;
  std::vector<Item*> others;
  if (const Status status = start(granted, others); !status.ok()) {
    fail_all(status);
    return false;
  }
  if (!granted.empty()) {
    write(granted);
    MOONPOOL_SYNC_POINT("put.before_commit");
    commit(granted);
  }
  if (!others.empty()) wait_for_others(others);
  return true;
}

Status PutPath::Call::start(std::vector<Item*>& granted, std::vector<Item*>& others) {
  const ReplicaPolicy& policy = batch_.policy;
  lean::PutStartRequest request;
  request.node_id = path_.self_bytes_;
  request.tenant = path_.tenant_;
  request.replica_num = std::min<std::uint32_t>(policy.replica_num, kMaxReplicas);
  request.prefer_same_node = policy.prefer_same_node;
  request.soft_pin = policy.soft_pin;
  request.soft_pin_ttl_ms = static_cast<std::uint64_t>(std::max<std::int64_t>(0, policy.soft_pin_ttl.count()));
  request.hard_pin = policy.hard_pin;
  request.upsert = batch_.upsert;
  request.data_type = policy.data_type;
  request.preferred_segment.assign(policy.preferred_segments.begin(), policy.preferred_segments.end());
  request.key.reserve(pending_.size());
  request.size.reserve(pending_.size());
  for (const Item* item : pending_) {
    request.key.push_back(batch_.keys[item->index]);
    request.size.push_back(item->size);
    if (!policy.groups.empty()) request.group.push_back(policy.groups[item->index]);
  }
  const auto reply = path_.master_.put_start(request, deadline_);
  if (!reply) return reply.status();
  return read_grants(**reply, granted, others);
}

Status PutPath::Call::read_grants(const lean::PutStartReply& reply, std::vector<Item*>& granted, std::vector<Item*>& others) {
  const auto malformed = [] {
    return Status{ErrorCode::kProtocol,
                  "the master's answer to PutStart does not match the question; do master and client have the same release?"};
  };
  auto segments = parse_segments(reply.segment);
  if (!segments) return segments.status();
  segments_ = std::move(*segments);
  const std::size_t count = pending_.size();
  if (reply.status.size() != count || reply.version_count.size() != count || reply.replica_count.size() != count ||
      reply.replica_segment.size() != reply.replica_offset.size()) {
    return malformed();
  }
  const std::vector<Item*> asked = std::exchange(pending_, {});
  granted.reserve(count);
  std::size_t next = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Item& item = *asked[i];
    const auto code = static_cast<ErrorCode>(reply.status[i]);
    item.version = {Term{reply.term}, reply.version_count[i]};
    item.replicas.clear();
    for (std::uint32_t r = 0; r < reply.replica_count[i]; ++r, ++next) {
      if (next >= reply.replica_segment.size() || reply.replica_segment[next] >= segments_.size() || r >= kMaxReplicas) {
        pending_ = asked;
        return malformed();
      }
      Replica& replica = item.replicas.emplace_back();
      replica.segment = reply.replica_segment[next];
      replica.offset = reply.replica_offset[next];
    }
    if (code == ErrorCode::kOk) {
      granted.push_back(&item);
    } else if (code == ErrorCode::kReplicaNotReady) {
      item.failure = {code, "another writer's put of this key did not end in time"};
      others.push_back(&item);
    } else {
      finish(item, code == ErrorCode::kObjectAlreadyExists ? ErrorCode::kOk : code);
    }
  }
  return {};
}

// An owner that does not answer must leave time to commit what the others have taken.
Deadline PutPath::Call::write_deadline() const {
  const auto left = deadline_.left();
  const auto kept = std::clamp<std::chrono::nanoseconds>(left / 8, milliseconds(20), milliseconds(1000));
  return Deadline::at(deadline_.time() - std::min(kept, left / 2));
}

void PutPath::Call::write(std::vector<Item*>& granted) {
  const Deadline deadline = write_deadline();
  if (segments_.size() == 1) {
    std::vector<std::pair<Item*, Replica*>> work;
    work.reserve(granted.size());
    for (Item* item : granted) {
      for (auto& replica : item->replicas) work.emplace_back(item, &replica);
    }
    if (!work.empty()) write_to(segments_.front()->peer, work, deadline);
    return;
  }
  std::map<std::pair<NodeId, net::Endpoint>, std::vector<std::pair<Item*, Replica*>>> owners;
  for (Item* item : granted) {
    for (auto& replica : item->replicas) {
      const auto& peer = segments_[replica.segment]->peer;
      owners[{peer.node, peer.endpoint}].emplace_back(item, &replica);
    }
  }
  std::vector<std::function<void()>> jobs;
  for (const auto& [id, work] : owners) {
    jobs.emplace_back([this, peer = transfer::Peer{id.first, id.second}, &work = work, deadline] { write_to(peer, work, deadline); });
  }
  run_together(jobs);
}

void PutPath::Call::write_to(const transfer::Peer& peer, const std::vector<std::pair<Item*, Replica*>>& work, Deadline deadline) const {
  std::vector<transfer::WriteOperation> operations(work.size());
  for (std::size_t i = 0; i < work.size(); ++i) {
    const auto& [item, replica] = work[i];
    operations[i].extent = {segments_[replica->segment]->incarnation, replica->offset, item->size, item->version};
    operations[i].key = item->catalogue_key;
    operations[i].source = batch_.sources[item->index];
    operations[i].status = {ErrorCode::kInternal, {}};
  }
  path_.paths_.write(peer, operations, deadline);
  for (std::size_t i = 0; i < work.size(); ++i) {
    work[i].second->status = explained(std::move(operations[i].status));
    work[i].second->checksum = operations[i].checksum;
  }
}

void PutPath::Call::commit(std::vector<Item*>& granted) {
  lean::PutCommitRequest request;
  request.node_id = path_.self_bytes_;
  request.tenant = path_.tenant_;
  request.key.reserve(granted.size());
  request.version_count.reserve(granted.size());
  request.checksum.reserve(granted.size());
  request.written.reserve(granted.size());
  for (Item* item : granted) {
    std::uint32_t mask = 0;
    std::uint64_t checksum = 0;
    item->failure = {};
    for (std::size_t r = 0; r < item->replicas.size(); ++r) {
      const Replica& replica = item->replicas[r];
      if (!replica.status.ok()) {
        item->failure = replica.status;
      } else if (mask == 0 || replica.checksum == checksum) {  // a source that changed under us: only equal copies are one object
        checksum = replica.checksum;
        mask |= 1U << r;
      }
    }
    if (item->replicas.empty()) item->failure = {ErrorCode::kNoAvailableHandle, "the master granted no replica"};
    request.term = item->version.term.value;
    request.key.push_back(batch_.keys[item->index]);
    request.version_count.push_back(item->version.count);
    request.checksum.push_back({checksum});
    request.written.push_back(mask);
  }
  // The deadline of an owner that hung may have taken all but the kept part; a commit gets at least a moment.
  const auto reply = path_.master_.put_commit(request, Deadline::at(std::max(deadline_.time(), Deadline::after(milliseconds(20)).time())));
  const bool answered = reply.ok() && (*reply)->status.size() == granted.size();
  if (!answered)
    log_once(fmt::format("put: {}", reply.ok() ? "the master's answer to PutCommit is malformed" : reply.status().to_string()));
  for (std::size_t i = 0; i < granted.size(); ++i) {
    Item& item = *granted[i];
    const bool written = request.written[i] != 0;
    if (written && !answered) {
      finish(item, reply.ok() ? ErrorCode::kProtocol : reply.code());
      continue;
    }
    if (written) {
      const auto code = static_cast<ErrorCode>((*reply)->status[i]);
      if (code == ErrorCode::kOk || code == ErrorCode::kObjectAlreadyExists) {
        finish(item, ErrorCode::kOk);
        continue;
      }
      item.failure = {code, "the commit was refused by the master"};
    }
    if (answered && worth_starting_over(item.failure.code())) {
      pending_.push_back(&item);
    } else {
      log_once(fmt::format("put: {}", item.failure.to_string()));
      finish(item, item.failure.code());
    }
  }
}

void PutPath::Call::wait_for_others(std::vector<Item*>& others) {
  lean::ExistRequest request;
  request.node_id = path_.self_bytes_;
  request.tenant = path_.tenant_;
  const auto half = std::chrono::duration_cast<milliseconds>(deadline_.left() / 2).count();
  request.wait_ms = std::min<std::uint32_t>(kOtherWriterWaitMs, static_cast<std::uint32_t>(half));
  for (const Item* item : others) request.key.push_back(batch_.keys[item->index]);
  const auto reply = path_.master_.exist(request, deadline_);
  const bool answered = reply.ok() && (*reply)->status.size() == others.size();
  for (std::size_t i = 0; i < others.size(); ++i) {
    // An upsert has to put its own value in any case; a put is content with whichever value was first.
    if (answered && !batch_.upsert && (*reply)->status[i] == 1) {
      finish(*others[i], ErrorCode::kOk);
    } else {
      if (!reply.ok()) others[i]->failure = reply.status();
      pending_.push_back(others[i]);
    }
  }
}

void PutPath::Call::finish(Item& item, ErrorCode code) { results_[item.index] = public_code(code); }

// When the time ran out while starting over, what went wrong before is the reason, not the master that was asked last.
void PutPath::Call::fail_all(const Status& status) {
  for (Item* item : std::exchange(pending_, {})) {
    const Status& reason = deadline_.expired() && !item->failure.ok() ? item->failure : status;
    log_once(fmt::format("put of {} key(s) failed, the first with: {}", items_.size(), reason.to_string()));
    finish(*item, reason.code());
  }
}

void PutPath::Call::log_once(const std::string& text) {
  if (std::exchange(logged_, true)) return;
  log::error("{}", text);
}

PutPath::PutPath(NodeId self, std::string_view tenant, MasterClient& master, transfer::Transport& paths, const Standing& standing)
    : self_bytes_(self.to_bytes()), tenant_(tenant_on_wire(tenant)), master_(master), paths_(paths), standing_(standing) {}

std::vector<std::int32_t> PutPath::put(const Batch& batch, Deadline deadline) const { return Call(*this, batch, deadline).run(); }

}  // namespace moonpool::store
