#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/rdma/extent_batch.h"
#include "transfer/rdma/hash_together.h"

namespace moonpool::transfer::rdma {

namespace {

using Item = Outgoing<ReadOperation>;
using Pieces = std::vector<MutableBytes>;

Status nonsense(const net::Lane& lane) {
  return {ErrorCode::kProtocol, "rdma read from " + lane.peer().to_string() + ": the answer does not fit the request"};
}

class ReadBatch {
 public:
  ReadBatch(PeerSession& session, std::span<Item> frame, const ReadRules& rules, Deadline deadline)
      : session_(session), frame_(frame), rules_(rules), deadline_(deadline) {}

  Status run() {
    for (auto& item : frame_) {
      if (item.settled) continue;
      const ReadOperation& operation = *item.operation;
      const bool whole = operation.length == operation.extent.length;
      (by_caller() || (verify() && whole) ? unasked_ : pinned_).push_back({&item, {operation.start, operation.length}, {}, {}, {}, {}, {}});
    }
    MOONPOOL_RETURN_IF_ERROR(read_unasked());
    return read_pinned();
  }

 private:
  struct Incoming {
    Item* item = nullptr;
    CoveringRange range;                  // what is read of the extent
    std::vector<std::uint64_t> found;     // of the chunks of what arrived
    Pieces pieces;                        // where to, scratch included; empty: the operation's own destination
    std::vector<std::uint64_t> expected;  // of the chunks of `range`, once it is pinned
    std::shared_ptr<const ServedRanges> ranges;
    Status status;  // of its bytes' way

    [[nodiscard]] std::span<const MutableBytes> target() const {
      return pieces.empty() ? item->operation->destination : std::span<const MutableBytes>(pieces);
    }
  };

  [[nodiscard]] bool verify() const { return rules_.check == ReadCheck::kChecksums; }
  [[nodiscard]] bool by_caller() const { return rules_.check == ReadCheck::kByCaller; }

  static void settle(Incoming& one, Status status) {
    one.item->operation->status = std::move(status);
    one.item->settled = true;
  }

  // Looks up where the bytes are. False: not served, by what this session knows.
  Result<const ServedRange*> locate(Incoming& one) {
    const ExtentRef& extent = one.item->operation->extent;
    auto ranges = session_.served(extent.incarnation, deadline_);
    if (!ranges.ok()) {
      if (ranges.code() == ErrorCode::kStaleIncarnation) return nullptr;
      return ranges.status();
    }
    one.ranges = std::move(*ranges);
    return range_of(*one.ranges, extent);
  }

  // Each gets the status of its bytes' way. kRpcTimeout when the deadline ended them all.
  Status move(std::span<Incoming* const> wanted, std::span<const ServedRange* const> ranges) {
    std::vector<Pieces> full(wanted.size());
    std::vector<Block> blocks;
    blocks.reserve(wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      for (const auto& piece : wanted[i]->target()) {
        if (!piece.empty()) full[i].push_back(piece);
      }
      blocks.push_back({.operation = WorkRequest::Operation::kRead,
                        .range = ranges[i],
                        .remote_address = ranges[i]->address + wanted[i]->item->operation->extent.offset + wanted[i]->range.start,
                        .pieces = full[i],
                        .status = {}});
    }
    if (!blocks.empty()) session_.move(blocks, deadline_);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].status.code() == ErrorCode::kRpcTimeout) return blocks[i].status;
      if (blocks[i].status.code() == ErrorCode::kStaleIncarnation) session_.forget(wanted[i]->item->operation->extent.incarnation);
      wanted[i]->status = std::move(blocks[i].status);
    }
    return {};
  }

  // What arrived, from where it lies.
  static void hash(std::span<Incoming* const> arrived) {
    std::vector<Hashing<MutableBytes>> all;
    all.reserve(arrived.size());
    for (auto* const one : arrived) {
      if (!one->status.ok()) continue;
      one->found.resize(chunks_of(one->range.length));
      all.push_back({one->target(), one->range.length, one->found});
    }
    hash_together(all);
  }

  // Whole objects, without a word to the owner: bytes with the checksum that the look-up gave are right, whoever has the memory by now. The
  // others are read again under a pin, unless it is the caller who compares.
  Status read_unasked() {
    std::vector<Incoming*> wanted;
    std::vector<const ServedRange*> ranges;
    for (auto& one : unasked_) {
      const auto range = locate(one);
      if (!range.ok()) return range.status();
      if (*range == nullptr) continue;
      wanted.push_back(&one);
      ranges.push_back(*range);
    }
    MOONPOOL_RETURN_IF_ERROR(move(wanted, ranges));
    MOONPOOL_SYNC_POINT("rdma.read.arrived");
    if (!by_caller()) hash(wanted);
    for (auto* const one : wanted) {
      if (one->status.ok()) {
        if (by_caller() || root_of(one->found) == one->item->operation->checksum) settle(*one, Status());
      } else if (one->status.code() != ErrorCode::kStaleIncarnation) {
        settle(*one, std::move(one->status));
      }
    }
    for (auto& one : unasked_) {
      if (one.item->settled) continue;
      if (by_caller()) {
        settle(one, Status(ErrorCode::kUnavailable, "rdma: " + session_.control().peer().to_string() +
                                                        " does not serve this memory (any more), by what it told this process"));
        continue;
      }
      one.status = Status();
      pinned_.push_back(std::move(one));
    }
    return {};
  }

  Status read_pinned() {
    if (pinned_.empty()) return {};
    if (verify()) cover();
    std::vector<std::uint64_t> held;
    MOONPOOL_RETURN_IF_ERROR(pin(held));
    MOONPOOL_SYNC_POINT("rdma.read.pinned");
    std::vector<Incoming*> wanted;
    std::vector<const ServedRange*> ranges;
    for (auto& one : pinned_) {
      if (one.item->settled) continue;
      const auto range = locate(one);
      if (!range.ok()) return range.status();
      if (*range == nullptr) {
        session_.forget(one.item->operation->extent.incarnation);
        settle(one, Status(ErrorCode::kUnavailable, "rdma: " + session_.control().peer().to_string() +
                                                        " has this segment, but not registered it with its NICs (yet)"));
        continue;
      }
      wanted.push_back(&one);
      ranges.push_back(*range);
    }
    MOONPOOL_RETURN_IF_ERROR(move(wanted, ranges));
    if (verify()) hash(wanted);
    for (auto* const one : wanted) {
      if (one->status.ok()) settle(*one, verdict(*one));
    }
    MOONPOOL_RETURN_IF_ERROR(unpin(held));
    // Only now: had the session been fenced, it would have been the reason of these.
    for (auto* const one : wanted) {
      if (!one->item->settled) settle(*one, std::move(one->status));
    }
    return {};
  }

  // Chunks are verified whole: their surplus beside a range goes to scratch.
  void cover() {
    std::uint64_t surplus = 0;
    for (auto& one : pinned_) {
      one.range = covering_range(*one.item->operation);
      surplus += one.range.length - one.item->operation->length;
    }
    if (surplus == 0) return;
    scratch_ = std::make_unique_for_overwrite<std::byte[]>(surplus);
    std::byte* free = scratch_.get();
    const auto take = [&free](std::uint64_t length) { return MutableBytes(std::exchange(free, free + length), length); };
    for (auto& one : pinned_) {
      const ReadOperation& operation = *one.item->operation;
      if (one.range.length == operation.length) continue;
      const std::uint64_t before = operation.start - one.range.start;
      one.pieces.push_back(take(before));
      one.pieces.insert(one.pieces.end(), operation.destination.begin(), operation.destination.end());
      one.pieces.push_back(take(one.range.length - operation.length - before));
    }
  }

  // Settles those that the owner refuses, and those that are not what the master describes.
  Status pin(std::vector<std::uint64_t>& held) {
    wire::ShmPinRequest request;
    request.set_first_pin(rules_.first_pin);
    IncarnationColumn incarnations;
    for (const auto& one : pinned_) {
      const ExtentRef& extent = one.item->operation->extent;
      incarnations.add(request, extent);
      request.add_length(extent.length);
      request.add_first_chunk(one.range.start / kChecksumChunk);
      request.add_chunk_count(verify() ? chunks_of(one.range.length) : 0);
    }
    incarnations.write_to(request);
    net::Lane& lane = session_.control();
    wire::ShmPinReply reply;
    MOONPOOL_RETURN_IF_ERROR(call(session_, wire::METHOD_RDMA_PIN, request, reply, deadline_));
    if (reply.status_size() != static_cast<int>(pinned_.size())) return nonsense(lane);
    int used = 0;
    for (std::size_t i = 0; i < pinned_.size(); ++i) {
      auto& one = pinned_[i];
      const auto number = reply.status(static_cast<int>(i));
      if (number != 0) {
        settle(one, refused(lane, "rdma read", one.item->operation->extent, number));
        continue;
      }
      held.push_back(rules_.first_pin + i);
      if (!verify()) continue;
      const auto count = static_cast<int>(chunks_of(one.range.length));
      if (reply.checksum_size() - used < count) return nonsense(lane);
      one.expected.assign(reply.checksum().begin() + used, reply.checksum().begin() + used + count);
      used += count;
      const ReadOperation& operation = *one.item->operation;
      if (operation.length == operation.extent.length && root_of(one.expected) != operation.checksum) {
        settle(one, Status(ErrorCode::kChecksumMismatch, "rdma read from " + lane.peer().to_string() +
                                                             ": the extent is not the one that the master describes (root checksum)"));
      }
    }
    return {};
  }

  Status unpin(std::span<const std::uint64_t> held) {
    if (held.empty()) return {};
    wire::ShmUnpinRequest request;
    request.mutable_pin()->Add(held.begin(), held.end());
    wire::Empty reply;
    return call(session_, wire::METHOD_RDMA_UNPIN, request, reply, deadline_);
  }

  // Of one that has arrived under a pin.
  Status verdict(const Incoming& one) const {
    if (!verify() || one.found == one.expected) return {};
    return {ErrorCode::kChecksumMismatch, "rdma read from " + session_.control().peer().to_string() +
                                              ": the bytes of the extent at offset " + std::to_string(one.item->operation->extent.offset) +
                                              " are not those that were written"};
  }

  PeerSession& session_;
  const std::span<Item> frame_;
  const ReadRules rules_;
  const Deadline deadline_;
  std::vector<Incoming> unasked_;
  std::vector<Incoming> pinned_;
  std::unique_ptr<std::byte[]> scratch_;
};

}  // namespace

Status read_batch(PeerSession& session, std::span<Item> frame, const ReadRules& rules, Deadline deadline) {
  Status path = ReadBatch(session, frame, rules, deadline).run();
  if (!path.ok()) session.end();
  return path;
}

}  // namespace moonpool::transfer::rdma
