#include "transfer/shm/shm_copy.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/copy_and_hash.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

namespace {

constexpr std::size_t kGroup = 64;  // extents announced at a time, so that many threads share the ring

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
  std::shared_ptr<MappedSegment> segment;
  std::uint64_t number = 0;  // of its slot
};

// Two extents of one batch must not overlap: their writers would not see each other. (Overlaps of different batches cannot come from one
// master; the owner refuses them when it takes them into its catalogue.)
void refuse_overlaps(std::vector<Outgoing>& batch) {
  std::ranges::stable_sort(batch, [](const Outgoing& a, const Outgoing& b) {
    return std::pair(a.operation->extent.incarnation, a.operation->extent.offset) <
           std::pair(b.operation->extent.incarnation, b.operation->extent.offset);
  });
  const ExtentRef* last = nullptr;
  std::erase_if(batch, [&](const Outgoing& item) {
    const ExtentRef& extent = item.operation->extent;
    if (last != nullptr && last->incarnation == extent.incarnation && extent.offset - last->offset < last->length) {
      item.operation->status =
          Status(ErrorCode::kInvalidWrite, "the extent at offset " + std::to_string(extent.offset) + " overlaps another one of its batch");
      return true;
    }
    last = &extent;
    return false;
  });
}

std::vector<Outgoing> select(PeerLink& link, std::span<WriteOperation> operations, Deadline deadline) {
  std::vector<Outgoing> batch;
  batch.reserve(operations.size());
  Segments segments(link, deadline);
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (!operation.status.ok()) continue;
    auto segment = segments.of(operation.extent, ErrorCode::kInvalidWrite);
    if (!segment.ok()) {
      operation.status = segment.status();
    } else if (!WriteRing::fits({(*segment)->place(), operation.extent, operation.key})) {
      operation.status = Status(ErrorCode::kNotSupported, "its key and checksums are too large to be announced");
    } else {
      batch.push_back({&operation, std::move(*segment)});
    }
  }
  refuse_overlaps(batch);
  return batch;
}

void give_up(PeerLink& link, Outgoing& item, Status status) {
  item.operation->status = std::move(status);
  if (link.ring().leave(item.number)) link.nudge();
}

void write_one(PeerLink& link, Outgoing& item, Stores stores, std::vector<std::uint64_t>& checksums, Deadline deadline) {
  WriteOperation& operation = *item.operation;
  const ExtentRef& extent = operation.extent;
  if (Status status = link.board().permits(item.segment->place(), extent.offset, extent.version); !status.ok()) {
    return give_up(link, item, std::move(status));
  }
  MOONPOOL_SYNC_POINT("shm.write.permitted");
  item.segment->prepare(extent.offset, extent.length);
  const MutableBytes memory = item.segment->bytes().subspan(extent.offset, extent.length);
  PieceCursor<ConstBytes> source(operation.source);
  checksums.clear();
  for (std::size_t at = 0; at < memory.size(); at += kChecksumChunk) {
    if (link.ring().cancelled(item.number)) {
      return give_up(link, item, {ErrorCode::kStaleTerm, "shared memory write: the grant was retired while its bytes were copied"});
    }
    if (deadline.expired()) return give_up(link, item, out_of_time("write"));
    checksums.push_back(gather_chunk(source, memory.subspan(at, std::min(kChecksumChunk, memory.size() - at)), stores));
    MOONPOOL_SYNC_POINT("shm.write.chunk_copied");
  }
  operation.checksum = root_of(checksums);
  if (!link.ring().complete(item.number, checksums)) {
    give_up(link, item, {ErrorCode::kStaleTerm, "shared memory write: the grant was retired before the write was complete"});
  }
}

// As many of the front of `rest` as fit into the ring; none only when it stays full.
std::size_t announce(PeerLink& link, std::span<Outgoing> rest, Deadline deadline) {
  std::vector<WriteRing::Announcement> group;
  for (const auto& item : rest.first(std::min(rest.size(), kGroup))) {
    group.push_back({item.segment->place(), item.operation->extent, item.operation->key});
  }
  auto numbers = link.ring().announce(group);
  if (numbers.empty() && link.harvest(deadline).ok()) numbers = link.ring().announce(group);
  for (std::size_t i = 0; i < numbers.size(); ++i) rest[i].number = numbers[i];
  return numbers.size();
}

}  // namespace

void shm_write(PeerLink& link, std::span<WriteOperation> operations, Deadline deadline) {
  auto batch = select(link, operations, deadline);
  auto rest = std::span(batch);
  const Stores stores = stores_for(std::span<const WriteOperation>(operations));
  std::vector<std::uint64_t> checksums;
  while (!rest.empty()) {
    const std::size_t count = announce(link, rest, deadline);
    if (count == 0) break;
    MOONPOOL_SYNC_POINT("shm.write.announced");
    std::uint64_t bytes = 0;
    for (auto& item : rest.first(count)) {
      write_one(link, item, stores, checksums, deadline);
      bytes += item.operation->extent.length;
    }
    link.note_written(count, bytes);
    rest = rest.subspan(count);
  }
  for (const auto& item : rest) item.operation->status = Status(ErrorCode::kUnavailable, "shared memory: too many writes are under way");
  if (link.alive()) return;
  for (const auto& item : batch) {
    if (item.operation->status.ok()) item.operation->status = gone();
  }
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

void shm_view(const std::shared_ptr<PeerLink>& link, std::span<ViewOperation> operations, bool verify, Deadline deadline) {
  Segments segments(*link, deadline);
  std::vector<ViewOperation*> asked;
  std::vector<PeerLink::PinWanted> wanted;
  std::vector<std::shared_ptr<MappedSegment>> mapped;
  for (auto& operation : operations) {
    auto segment = segments.of(operation.extent, ErrorCode::kInvalidRead);
    operation.status = segment.status();
    if (!segment.ok()) continue;
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
    operation.pin = std::make_shared<PinSet>(link, std::vector{outcomes[i].pin});
    mapped[i]->prepare(operation.extent.offset, operation.extent.length);
    operation.bytes = mapped[i]->bytes().subspan(operation.extent.offset, operation.extent.length);
    if (verify) verify_view(operation, deadline);
  }
}

}  // namespace moonpool::transfer
