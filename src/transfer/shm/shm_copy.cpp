#include "transfer/shm/shm_copy.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/copy_and_hash.h"
#include "transfer/open_extents.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

namespace {

Status out_of_time(const char* operation) {
  return {ErrorCode::kRpcTimeout, std::string("shared memory ") + operation + ": the deadline passed before all bytes were copied"};
}

Status gone() { return {ErrorCode::kUnavailable, "shared memory: the owner has ended"}; }

// Segments of a batch, looked up once each.
class Segments {
 public:
  Segments(PeerLink& link, Deadline deadline) : link_(link), deadline_(deadline) {}

  Result<std::shared_ptr<MappedSegment>> of(const ExtentRef& extent, ErrorCode outside) {
    if (known_.empty() || known_.back().first != extent.incarnation) {
      auto segment = link_.segment(extent.incarnation, deadline_);
      if (!segment.ok()) return segment.status();
      known_.emplace_back(extent.incarnation, std::move(*segment));
    }
    const auto& segment = known_.back().second;
    const std::uint64_t size = segment->bytes().size();
    if (extent.offset > size || extent.length > size - extent.offset) {
      return Status(outside, std::to_string(extent.length) + " bytes at offset " + std::to_string(extent.offset) +
                                 " are not inside the segment of " + std::to_string(size) + " bytes");
    }
    return segment;
  }

 private:
  PeerLink& link_;
  const Deadline deadline_;
  std::vector<std::pair<Incarnation, std::shared_ptr<MappedSegment>>> known_;
};

// ---------------------------------------------------------------- write

struct Outgoing {
  WriteOperation* operation = nullptr;
  std::size_t index = 0;  // of the operation
  std::shared_ptr<MappedSegment> segment;
  std::optional<std::uint64_t> slot{};  // while it is announced and not settled
};

// (Overlaps of different batches cannot come from one master; the owner refuses them when it takes them into its catalogue.)
template <typename Check>
std::vector<Outgoing> select(PeerLink& link, std::span<WriteOperation> operations, const Check& check, Deadline deadline) {
  std::vector<Outgoing> batch;
  batch.reserve(operations.size());
  Segments segments(link, deadline);
  for (auto& operation : operations) {
    operation.status = check(operation);
    if (!operation.status.ok()) continue;
    auto segment = segments.of(operation.extent, ErrorCode::kInvalidWrite);
    if (!segment.ok()) {
      operation.status = segment.status();
    } else if (!WriteRing::fits({(*segment)->place(), operation.extent, operation.key})) {
      operation.status = Status(ErrorCode::kNotSupported, "its key and checksums are too large to be announced");
    } else {
      batch.push_back({&operation, static_cast<std::size_t>(&operation - operations.data()), std::move(*segment)});
    }
  }
  refuse_overlaps(batch);
  return batch;
}

void leave(PeerLink& link, Outgoing& item) {
  if (link.ring().leave(*item.slot)) link.nudge();
  item.slot.reset();
}

void give_up(PeerLink& link, Outgoing& item, Status status) {
  item.operation->status = std::move(status);
  leave(link, item);
}

// The memory of an announced extent, to be written; nothing when the board forbids it, and the write is given up.
std::optional<MutableBytes> open(PeerLink& link, Outgoing& item) {
  const ExtentRef& extent = item.operation->extent;
  if (Status status = link.board().permits(item.segment->place(), extent.offset, extent.version); !status.ok()) {
    give_up(link, item, std::move(status));
    return std::nullopt;
  }
  MOONPOOL_SYNC_POINT("shm.write.permitted");
  item.segment->prepare(extent.offset, extent.length);
  return item.segment->bytes().subspan(extent.offset, extent.length);
}

void complete(PeerLink& link, Outgoing& item, std::span<const std::uint64_t> checksums) {
  item.operation->checksum = root_of(checksums);
  if (link.ring().complete(*item.slot, checksums)) {
    item.slot.reset();
  } else {
    give_up(link, item, {ErrorCode::kStaleTerm, "shared memory write: the grant was retired before the write was complete"});
  }
}

// Fills the announced extents of a group by copying, one after the other.
class Copying {
 public:
  static constexpr std::size_t kGroup = 64;

  Copying(std::span<const WriteOperation> operations, Deadline deadline) : stores_(stores_for(operations)), deadline_(deadline) {}

  void operator()(PeerLink& link, std::span<Outgoing> group) {
    for (auto& item : group) copy(link, item);
  }

 private:
  void copy(PeerLink& link, Outgoing& item) {
    const auto memory = open(link, item);
    if (!memory) return;
    PieceCursor<ConstBytes> source(item.operation->source);
    checksums_.clear();
    for (std::size_t at = 0; at < memory->size(); at += kChecksumChunk) {
      if (link.ring().cancelled(*item.slot)) {
        return give_up(link, item, {ErrorCode::kStaleTerm, "shared memory write: the grant was retired while its bytes were copied"});
      }
      if (deadline_.expired()) return give_up(link, item, out_of_time("write"));
      checksums_.push_back(gather_chunk(source, memory->subspan(at, std::min(kChecksumChunk, memory->size() - at)), stores_));
      MOONPOOL_SYNC_POINT("shm.write.chunk_copied");
    }
    complete(link, item, checksums_);
  }

  const Stores stores_;
  const Deadline deadline_;
  std::vector<std::uint64_t> checksums_;
};

// Has them filled by the caller, all at once.
class InPlace {
 public:
  static constexpr std::size_t kGroup = kRingSlots / 4;  // the more at once the better, but others write, too

  InPlace(const Fill& fill, Deadline deadline) : fill_(fill), deadline_(deadline) {}

  void operator()(PeerLink& link, std::span<Outgoing> group) {
    std::vector<OpenExtent> extents;
    std::vector<Outgoing*> opened;
    extents.reserve(group.size());
    opened.reserve(group.size());
    for (auto& item : group) {
      if (deadline_.expired()) {
        give_up(link, item, out_of_time("write in place"));
      } else if (const auto memory = open(link, item)) {
        extents.push_back({item.index, *memory, {item.segment->bytes(), item.segment}, {}, {}});
        opened.push_back(&item);
      }
    }
    if (extents.empty()) return;
    fill_(extents);
    for (std::size_t i = 0; i < extents.size(); ++i) {
      if (Status status = check_filled(extents[i]); !status.ok()) {
        give_up(link, *opened[i], std::move(status));
      } else {
        complete(link, *opened[i], extents[i].checksums);
      }
    }
  }

 private:
  const Fill& fill_;
  const Deadline deadline_;
};

// As many of the front of `rest` as fit into the ring, and not more than `most`; none only when it stays full.
std::span<Outgoing> announce(PeerLink& link, std::span<Outgoing> rest, std::size_t most, Deadline deadline) {
  std::vector<WriteRing::Announcement> group;
  for (const auto& item : rest.first(std::min(rest.size(), most))) {
    group.push_back({item.segment->place(), item.operation->extent, item.operation->key});
  }
  auto numbers = link.ring().announce(group);
  if (numbers.empty() && link.harvest(deadline).ok()) numbers = link.ring().announce(group);
  for (std::size_t i = 0; i < numbers.size(); ++i) rest[i].slot = numbers[i];
  return rest.first(numbers.size());
}

// Announced extents that filling has not settled, because it threw, are left when this ends: nobody touches them any more.
class LeftAtTheEnd {
 public:
  LeftAtTheEnd(PeerLink& link, std::span<Outgoing> group) : link_(link), group_(group) {}
  LeftAtTheEnd(const LeftAtTheEnd&) = delete;
  LeftAtTheEnd& operator=(const LeftAtTheEnd&) = delete;
  ~LeftAtTheEnd() {
    for (auto& item : group_) {
      if (item.slot) leave(link_, item);
    }
  }

 private:
  PeerLink& link_;
  const std::span<Outgoing> group_;
};

// Group by group, as the ring allows: announced, filled, complete or given up. Groups are small against the ring, so that many threads
// share it.
template <typename Filling>
void write_groups(PeerLink& link, std::span<Outgoing> batch, Filling& filling, Deadline deadline) {
  auto rest = batch;
  while (!rest.empty()) {
    const auto group = announce(link, rest, Filling::kGroup, deadline);
    if (group.empty()) break;
    const LeftAtTheEnd guard(link, group);
    MOONPOOL_SYNC_POINT("shm.write.announced");
    filling(link, group);
    std::uint64_t bytes = 0;
    for (const auto& item : group) bytes += item.operation->extent.length;
    link.note_written(group.size(), bytes);
    rest = rest.subspan(group.size());
  }
  for (const auto& item : rest) item.operation->status = Status(ErrorCode::kUnavailable, "shared memory: too many writes are under way");
  if (link.alive()) return;
  for (const auto& item : batch) {
    if (item.operation->status.ok()) item.operation->status = gone();
  }
}

}  // namespace

void shm_write(PeerLink& link, std::span<WriteOperation> operations, Deadline deadline) {
  const auto check = [](const WriteOperation& operation) { return check_operation(operation); };
  auto batch = select(link, operations, check, deadline);
  Copying copying(operations, deadline);
  write_groups(link, batch, copying, deadline);
}

void shm_write_in_place(PeerLink& link, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) {
  const auto check = [](const WriteOperation& operation) { return check_extent(operation.extent); };
  auto batch = select(link, operations, check, deadline);
  InPlace in_place(fill, deadline);
  write_groups(link, batch, in_place, deadline);
}

// ---------------------------------------------------------------- read

namespace {

struct Incoming {
  ReadOperation* operation = nullptr;
  std::shared_ptr<MappedSegment> segment;
};

// Nullopt: the bytes are not those that the master describes, or not whole any more.
std::optional<Status> read_unpinned(PeerLink& link, const Incoming& item, Stores stores, std::vector<std::uint64_t>& checksums,
                                    Deadline deadline) {
  const ReadOperation& operation = *item.operation;
  if (operation.length != operation.extent.length || link.board().maybe_retired(operation.extent.offset, operation.extent.version))
    return {};
  item.segment->prepare(operation.extent.offset, operation.length);
  const ConstBytes memory = item.segment->bytes().subspan(operation.extent.offset, operation.length);
  PieceCursor<MutableBytes> destination(operation.destination);
  checksums.clear();
  for (std::size_t at = 0; at < memory.size(); at += kChecksumChunk) {
    if (deadline.expired()) return out_of_time("read");
    checksums.push_back(scatter_chunk(memory.subspan(at, std::min(kChecksumChunk, memory.size() - at)), destination, stores));
    MOONPOOL_SYNC_POINT("shm.read.chunk_copied");
  }
  if (root_of(checksums) != operation.checksum) return {};
  return Status();
}

PeerLink::PinWanted pin_for(const ReadOperation& operation) {
  const std::uint64_t first = operation.start / kChecksumChunk;
  const std::uint64_t end = chunks_of(operation.start + operation.length);
  return {operation.extent, first, end - first};
}

}  // namespace

void shm_read(const std::shared_ptr<PeerLink>& link, std::span<ReadOperation> operations, bool verify, Deadline deadline) {
  Segments segments(*link, deadline);
  std::vector<Incoming> pinned;
  std::vector<std::uint64_t> checksums;
  const Stores stores = stores_for(std::span<const ReadOperation>(operations));
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (!operation.status.ok() || operation.length == 0) continue;
    auto segment = segments.of(operation.extent, ErrorCode::kInvalidRead);
    if (!segment.ok()) {
      operation.status = segment.status();
      continue;
    }
    Incoming item{&operation, std::move(*segment)};
    if (verify) {
      if (auto outcome = read_unpinned(*link, item, stores, checksums, deadline)) {
        operation.status = std::move(*outcome);
        continue;
      }
    }
    pinned.push_back(std::move(item));
  }
  if (pinned.empty()) return;
  std::vector<PeerLink::PinWanted> wanted;
  wanted.reserve(pinned.size());
  for (const auto& item : pinned) wanted.push_back(pin_for(*item.operation));
  const auto outcomes = link->pin(wanted, deadline);
  std::vector<std::uint64_t> held;
  for (std::size_t i = 0; i < pinned.size(); ++i) {
    pinned[i].operation->status = outcomes[i].status;
    if (!outcomes[i].status.ok()) continue;
    held.push_back(outcomes[i].pin);
    const ExtentRef& extent = pinned[i].operation->extent;
    pinned[i].segment->prepare(extent.offset, extent.length);
    pinned[i].operation->status = read_pinned({.path = "shared memory",
                                               .memory = pinned[i].segment->bytes().subspan(extent.offset, extent.length),
                                               .checksums = outcomes[i].checksums,
                                               .verify = verify},
                                              *pinned[i].operation, stores, deadline);
  }
  if (!held.empty()) link->unpin(held);
}

// ---------------------------------------------------------------- view

namespace {

void look_at(ViewOperation& operation, const std::shared_ptr<MappedSegment>& segment) {
  segment->prepare(operation.extent.offset, operation.extent.length);
  operation.region = {segment->bytes(), segment};
  operation.bytes = segment->bytes().subspan(operation.extent.offset, operation.extent.length);
}

}  // namespace

void shm_view(const std::shared_ptr<PeerLink>& link, std::span<ViewOperation> operations, bool verify, Deadline deadline) {
  Segments segments(*link, deadline);
  std::vector<ViewOperation*> asked;
  std::vector<PeerLink::PinWanted> wanted;
  std::vector<std::shared_ptr<MappedSegment>> mapped;
  for (auto& operation : operations) {
    auto segment = segments.of(operation.extent, ErrorCode::kInvalidRead);
    operation.status = segment.status();
    if (!segment.ok()) continue;
    if (!operation.pinned && !link->board().maybe_retired(operation.extent.offset, operation.extent.version)) {
      look_at(operation, *segment);
      operation.pin = std::move(*segment);
      continue;
    }
    asked.push_back(&operation);
    wanted.push_back({operation.extent, 0, 0});
    mapped.push_back(std::move(*segment));
  }
  if (asked.empty()) return;
  const auto outcomes = link->pin(wanted, deadline);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    ViewOperation& operation = *asked[i];
    operation.status = outcomes[i].status;
    if (!operation.status.ok()) continue;
    operation.pin = std::make_shared<PinSet>(link, mapped[i], std::vector{outcomes[i].pin});
    look_at(operation, mapped[i]);
    if (verify && operation.verified) verify_view(operation, deadline);
  }
}

}  // namespace moonpool::transfer
