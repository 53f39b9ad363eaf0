#include "store/get_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "base/logging.h"
#include "base/run_together.h"
#include "base/sync_point.h"

namespace moonpool::store {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{5};
constexpr milliseconds kLongestPause{100};
constexpr milliseconds kTransientPatience{1000};

bool gone(ErrorCode code) {
  return code == ErrorCode::kReplicaGone || code == ErrorCode::kStaleIncarnation || code == ErrorCode::kReplicaNotFound ||
         code == ErrorCode::kSegmentNotFound || code == ErrorCode::kObjectNotFound;
}

std::minstd_rand& random_source() {
  thread_local std::minstd_rand source{std::random_device{}()};
  return source;
}

}  // namespace

class GetPath::Call {
 public:
  Call(const GetPath& path, std::span<const std::string_view> keys, const Plan& plan, Deadline deadline)
      : path_(path),
        keys_(keys),
        plan_(plan),
        deadline_(deadline),
        results_(keys.size(), Status{ErrorCode::kObjectNotFound, "no such object"}) {}

  std::vector<Result<std::uint64_t>> run();

 private:
  struct Item {
    std::size_t index = 0;  // into keys_
    Location location;
    Parts parts;
    std::size_t next_copy = 0;  // the first that has not been tried since the last look-up
    bool asked_again = false;   // the master, after all copies were gone
    bool only_gone = true;      // no copy failed for any other reason since the last look-up
    Status failure;             // of the last copy tried
  };

  void look_up();
  void order_copies(Location& location) const;
  void read_round();
  void read_from(const transfer::Peer& peer, const std::vector<Item*>& work, Deadline deadline) const;
  bool decide(Item& item);
  [[nodiscard]] Status read_failure(const Item& item) const;
  [[nodiscard]] Deadline attempt_deadline() const;
  void finish(const Item& item, Result<std::uint64_t> result) { results_[item.index] = std::move(result); }

  const GetPath& path_;
  const std::span<const std::string_view> keys_;
  const Plan& plan_;
  const Deadline deadline_;
  std::vector<Result<std::uint64_t>> results_;
  std::vector<Item> items_;
  std::vector<Item*> unlocated_;      // to be looked up (again)
  std::vector<Item*> readable_;       // with a copy to try
  std::optional<Deadline> patience_;  // set at the first transient failure of all copies of a key
};

std::vector<Result<std::uint64_t>> GetPath::Call::run() {
  items_.resize(keys_.size());
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    items_[i].index = i;
    if (const ErrorCode code = check_key(keys_[i]); code == ErrorCode::kOk) {
      unlocated_.push_back(&items_[i]);
    } else {
      finish(items_[i], Status{code, fmt::format("a key has 1 to {} bytes, this one {}", kMaxKeyLength, keys_[i].size())});
    }
  }
  auto pause = kFirstPause;
  while (!unlocated_.empty()) {
    look_up();
    while (!readable_.empty()) read_round();
    if (unlocated_.empty()) break;
    if (!path_.standing_.pause(std::min(deadline_.left(), jittered(pause)))) {
      for (const Item* item : std::exchange(unlocated_, {})) finish(*item, Status{ErrorCode::kCancelled, "the store client is closed"});
    }
    pause = std::min(kLongestPause, pause * 2);
  }
  return std::move(results_);
}

void GetPath::Call::look_up() {
  std::vector<std::string_view> keys;
  keys.reserve(unlocated_.size());
  for (const Item* item : unlocated_) keys.push_back(keys_[item->index]);
  auto locations = path_.locate(keys, deadline_);
  const std::vector<Item*> asked = std::exchange(unlocated_, {});
  for (std::size_t i = 0; i < asked.size(); ++i) {
    Item& item = *asked[i];
    if (!locations[i]) {
      // When the time ran out while asking again, what went wrong before is the reason.
      const bool ran_out = deadline_.expired() && !item.failure.ok() && locations[i].code() != ErrorCode::kObjectNotFound;
      finish(item, ran_out ? read_failure(item) : locations[i].status());
      continue;
    }
    item.location = std::move(*locations[i]);
    auto parts = plan_(item.index, item.location.size);
    if (!parts) {
      finish(item, parts.status());
      continue;
    }
    item.parts = std::move(*parts);
    order_copies(item.location);
    item.next_copy = 0;
    item.only_gone = true;
    item.failure = {};
    if (item.location.copies.empty()) {
      finish(item, Status{ErrorCode::kObjectNotFound, "no copy of it is left"});
    } else {
      readable_.push_back(&item);
    }
  }
}

void GetPath::Call::order_copies(Location& location) const {
  auto& copies = location.copies;
  if (copies.size() < 2) return;
  std::shuffle(copies.begin(), copies.end(), random_source());
  std::stable_partition(copies.begin(), copies.end(),
                        [this](const Location::Copy& copy) { return copy.segment->peer.node == path_.self_; });
}

// Where another copy is left to try, an owner that hangs gets only its share of the time.
Deadline GetPath::Call::attempt_deadline() const {
  std::size_t most_left = 0;
  for (const Item* item : readable_) most_left = std::max(most_left, item->location.copies.size() - item->next_copy);
  return most_left < 2 ? deadline_ : deadline_.sooner(deadline_.left() / static_cast<std::int64_t>(most_left));
}

// One copy of every readable key.
void GetPath::Call::read_round() {
  const Deadline deadline = attempt_deadline();
  const auto segment_of = [](const Item* item) { return item->location.copies[item->next_copy].segment.get(); };
  const Segment* const first = segment_of(readable_.front());
  if (std::all_of(readable_.begin(), readable_.end(), [&](const Item* item) { return segment_of(item) == first; })) {
    read_from(first->peer, readable_, deadline);
    std::erase_if(readable_, [this](Item* item) { return !decide(*item); });
    return;
  }
  std::map<std::pair<NodeId, net::Endpoint>, std::vector<Item*>> owners;
  for (Item* item : readable_) {
    const auto& peer = segment_of(item)->peer;
    owners[{peer.node, peer.endpoint}].push_back(item);
  }
  std::vector<std::function<void()>> jobs;
  for (const auto& [id, work] : owners) {
    jobs.emplace_back([this, peer = transfer::Peer{id.first, id.second}, &work = work, deadline] { read_from(peer, work, deadline); });
  }
  run_together(jobs);
  std::erase_if(readable_, [this](Item* item) { return !decide(*item); });
}

void GetPath::Call::read_from(const transfer::Peer& peer, const std::vector<Item*>& work, Deadline deadline) const {
  std::vector<transfer::ReadOperation> operations;
  std::vector<Item*> owner_of;
  operations.reserve(work.size());
  owner_of.reserve(work.size());
  for (Item* item : work) {
    const auto& copy = item->location.copies[item->next_copy];
    for (const auto& part : item->parts) {
      transfer::ReadOperation operation;
      operation.extent = {copy.segment->incarnation, copy.offset, item->location.size, item->location.version};
      operation.start = part.start;
      operation.length = part.length;
      operation.destination = part.destination;
      operation.checksum = item->location.checksum;
      operation.status = {ErrorCode::kInternal, {}};
      operations.push_back(std::move(operation));
      owner_of.push_back(item);
    }
    item->failure = {};
  }
  path_.paths_.read(peer, operations, deadline);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if (operations[i].status.ok() || !owner_of[i]->failure.ok()) continue;
    owner_of[i]->failure = explained(std::move(operations[i].status));
  }
}

// Records the outcome of one copy. True when the next copy is to be tried.
bool GetPath::Call::decide(Item& item) {
  if (item.failure.ok()) {
    std::uint64_t bytes = 0;
    for (const auto& part : item.parts) bytes += part.length;
    finish(item, bytes);
    return false;
  }
  const bool is_gone = gone(item.failure.code());
  item.only_gone = item.only_gone && is_gone;
  if (++item.next_copy < item.location.copies.size() && !deadline_.expired()) return true;
  if (item.only_gone) {
    if (std::exchange(item.asked_again, true) || deadline_.expired()) {
      finish(item, read_failure(item));
    } else {
      unlocated_.push_back(&item);
    }
    return false;
  }
  if (!patience_) patience_ = deadline_.sooner(kTransientPatience);
  const bool may_pass = item.failure.code() != ErrorCode::kNotSupported && item.failure.code() != ErrorCode::kInvalidRead;
  if (may_pass && !patience_->expired()) {
    unlocated_.push_back(&item);
    return false;
  }
  finish(item, read_failure(item));
  return false;
}

// What a caller hears when the last copy that was tried has failed for good.
Status GetPath::Call::read_failure(const Item& item) const {
  if (gone(item.failure.code())) return {ErrorCode::kObjectNotFound, fmt::format("its last copy is gone: {}", item.failure.message())};
  const bool cancelled = item.failure.code() == ErrorCode::kCancelled;
  const auto& copy = item.location.copies[std::min(item.next_copy, item.location.copies.size()) - 1];
  return {cancelled ? ErrorCode::kCancelled : ErrorCode::kTransferFail,
          fmt::format("read from {} ({}): {}", copy.segment->name, copy.segment->peer.endpoint.to_string(), item.failure.to_string())};
}

GetPath::GetPath(NodeId self, std::string_view tenant, MasterClient& master, transfer::Transport& paths, const Standing& standing)
    : self_(self), self_bytes_(self.to_bytes()), tenant_(tenant_on_wire(tenant)), master_(master), paths_(paths), standing_(standing) {}

std::vector<Result<std::uint64_t>> GetPath::get(std::span<const std::string_view> keys, const Plan& plan, Deadline deadline) const {
  return Call(*this, keys, plan, deadline).run();
}

std::vector<Result<GetPath::Location>> GetPath::locate(std::span<const std::string_view> keys, Deadline deadline) const {
  const auto all = [&](const Status& status) { return std::vector<Result<Location>>(keys.size(), status); };
  lean::GetReplicasRequest request;
  request.node_id = self_bytes_;
  request.tenant = tenant_;
  request.key.assign(keys.begin(), keys.end());
  const auto received = master_.get_replicas(request, deadline);
  if (!received) return all(received.status());
  const lean::GetReplicasReply& reply = **received;
  const auto segments = parse_segments(reply.segment);
  if (!segments) return all(segments.status());
  const auto malformed = [] {
    return Status{ErrorCode::kProtocol,
                  "the master's answer to GetReplicas does not match the question; do master and client have the same release?"};
  };
  const std::size_t count = keys.size();
  if (reply.status.size() != count || reply.size.size() != count || reply.checksum.size() != count || reply.version_term.size() != count ||
      reply.version_count.size() != count || reply.replica_count.size() != count ||
      reply.replica_segment.size() != reply.replica_offset.size()) {
    return all(malformed());
  }
  std::vector<Result<Location>> locations;
  locations.reserve(count);
  std::size_t next = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Location location{reply.size[i], reply.checksum[i].value, {Term{reply.version_term[i]}, reply.version_count[i]}, {}};
    for (std::uint32_t r = 0; r < reply.replica_count[i]; ++r, ++next) {
      if (next >= reply.replica_segment.size() || reply.replica_segment[next] >= segments->size()) return all(malformed());
      location.copies.push_back({(*segments)[reply.replica_segment[next]], reply.replica_offset[next]});
    }
    const auto code = static_cast<ErrorCode>(reply.status[i]);
    if (code == ErrorCode::kOk) {
      locations.emplace_back(std::move(location));
    } else if (code == ErrorCode::kObjectNotFound || code == ErrorCode::kReplicaNotReady) {
      locations.emplace_back(Status{ErrorCode::kObjectNotFound, "no such object in the pool"});
    } else {
      locations.emplace_back(Status{code, "the master refused to say where it is"});
    }
  }
  return locations;
}

}  // namespace moonpool::store
