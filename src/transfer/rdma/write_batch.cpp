#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/rdma/extent_batch.h"
#include "transfer/rdma/hash_together.h"

namespace moonpool::transfer::rdma {

namespace {

using Item = Outgoing<WriteOperation>;

Status nonsense(const net::Lane& lane) {
  return {ErrorCode::kProtocol, "rdma write to " + lane.peer().to_string() + ": the answer does not fit the request"};
}

// Moves only read a write's pieces.
MutableBytes as_piece(ConstBytes bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}  // NOLINT(cppcoreguidelines-pro-type-const-cast)

class WriteBatch {
 public:
  WriteBatch(PeerSession& session, std::span<Item> frame, Deadline deadline) : session_(session), frame_(frame), deadline_(deadline) {}

  Status run() {
    MOONPOOL_RETURN_IF_ERROR(begin());
    if (announced_.empty()) return {};
    MOONPOOL_SYNC_POINT("rdma.write.announced");
    MOONPOOL_RETURN_IF_ERROR(move());
    MOONPOOL_SYNC_POINT("rdma.write.moved");
    return complete();
  }

 private:
  struct Announced {
    Item* item = nullptr;
    std::uint64_t ticket = 0;
    std::span<const std::uint64_t> checksums;  // in checksums_
    bool complete_already = false;             // nothing may be written; the owner compares the checksums
    Status status;                             // of its bytes' way
  };

  Status begin() {
    wire::RdmaBeginRequest request;
    IncarnationColumn incarnations;
    for (const auto& item : frame_) {
      const auto& extent = item.operation->extent;
      incarnations.add(request, extent);
      request.add_length(extent.length);
    }
    incarnations.write_to(request);
    net::Lane& lane = session_.control();
    MOONPOOL_RETURN_IF_ERROR(lane.send_request(wire::METHOD_RDMA_BEGIN, request, 0, deadline_));
    hash();
    wire::RdmaBeginReply reply;
    const auto payload = lane.receive_reply(reply, deadline_);
    if (!payload.ok()) return payload.status();
    const auto entries = static_cast<int>(frame_.size());
    if (*payload != 0 || reply.status_size() != entries || reply.ticket_size() != entries) return nonsense(lane);
    std::size_t used = 0;
    for (int i = 0; i < entries; ++i) {
      Item& item = frame_[static_cast<std::size_t>(i)];
      const auto its = std::span<const std::uint64_t>(checksums_).subspan(used, chunks_of(item.operation->extent.length));
      used += its.size();
      const bool exists = reply.status(i) == Status(ErrorCode::kObjectAlreadyExists, "").number() && reply.ticket(i) != 0;
      if (reply.status(i) == 0 || exists) {
        announced_.push_back({&item, reply.ticket(i), its, exists, {}});
      } else {
        settle(item, refused(lane, "rdma write", item.operation->extent, reply.status(i)));
      }
    }
    return {};
  }

  // Of all operations that do not bring them: the owner's answer is not known yet, and is yes nearly always.
  void hash() {
    std::size_t chunks = 0;
    for (const auto& item : frame_) chunks += chunks_of(item.operation->extent.length);
    checksums_.resize(chunks);
    std::vector<Hashing<ConstBytes>> all;
    all.reserve(frame_.size());
    std::size_t used = 0;
    for (const auto& item : frame_) {
      const WriteOperation& operation = *item.operation;
      const auto its = std::span(checksums_).subspan(used, chunks_of(operation.extent.length));
      used += its.size();
      if (operation.checksums.empty()) {
        all.push_back({operation.source, operation.extent.length, its});
      } else {
        std::ranges::copy(operation.checksums, its.begin());
      }
    }
    hash_together(all);
  }

  Status move() {
    std::size_t count = 0;
    for (const auto& one : announced_) count += one.item->operation->source.size();
    std::vector<MutableBytes> pieces;
    pieces.reserve(count);  // blocks refer to it
    std::vector<std::shared_ptr<const ServedRanges>> keep;
    std::vector<Block> blocks;
    std::vector<Announced*> owners;
    for (auto& one : announced_) {
      if (one.complete_already) continue;
      const ExtentRef& extent = one.item->operation->extent;
      auto ranges = session_.served(extent.incarnation, deadline_);
      if (!ranges.ok() && ranges.code() != ErrorCode::kStaleIncarnation) return ranges.status();
      const ServedRange* const range = ranges.ok() ? range_of(**ranges, extent) : nullptr;
      if (range == nullptr) {
        session_.forget(extent.incarnation);
        one.status = Status(ErrorCode::kUnavailable, "rdma: " + session_.control().peer().to_string() +
                                                         " has this segment, but not registered it with its NICs (yet)");
        continue;
      }
      const std::size_t first = pieces.size();
      for (const auto& source : one.item->operation->source) {
        if (!source.empty()) pieces.push_back(as_piece(source));
      }
      blocks.push_back({.operation = WorkRequest::Operation::kWrite,
                        .range = range,
                        .remote_address = range->address + extent.offset,
                        .pieces = std::span<const MutableBytes>(pieces).subspan(first),
                        .status = {}});
      owners.push_back(&one);
      if (keep.empty() || keep.back() != *ranges) keep.push_back(std::move(*ranges));
    }
    if (!blocks.empty()) session_.move(blocks, deadline_);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].status.code() == ErrorCode::kRpcTimeout) return blocks[i].status;
      owners[i]->status = std::move(blocks[i].status);
    }
    return {};
  }

  Status complete() {
    wire::RdmaCompleteRequest request;
    request.set_checksum_chunk(kChecksumChunk);
    for (const auto& one : announced_) {
      request.add_ticket(one.ticket);
      request.add_key(one.item->operation->key.data(), one.item->operation->key.size());
      request.add_failed(!one.status.ok());
      if (one.status.ok()) request.mutable_checksum()->Add(one.checksums.begin(), one.checksums.end());
    }
    for (const auto rail : session_.take_broken()) request.add_broken(rail);
    net::Lane& lane = session_.control();
    wire::RdmaCompleteReply reply;
    MOONPOOL_RETURN_IF_ERROR(call(session_, wire::METHOD_RDMA_COMPLETE, request, reply, deadline_));
    if (reply.status_size() != static_cast<int>(announced_.size())) return nonsense(lane);
    for (std::size_t i = 0; i < announced_.size(); ++i) {
      auto& one = announced_[i];
      const auto number = reply.status(static_cast<int>(i));
      WriteOperation& operation = *one.item->operation;
      if (!one.status.ok()) {
        settle(*one.item, std::move(one.status));
      } else if (number != 0) {
        settle(*one.item, refused(lane, "rdma write", operation.extent, number));
      } else {
        operation.checksum = root_of(one.checksums);
        settle(*one.item, Status());
      }
    }
    return {};
  }

  static void settle(Item& item, Status status) {
    item.operation->status = std::move(status);
    item.settled = true;
  }

  PeerSession& session_;
  const std::span<Item> frame_;
  const Deadline deadline_;
  std::vector<std::uint64_t> checksums_;  // of all operations' chunks, in order
  std::vector<Announced> announced_;
};

}  // namespace

Status call(PeerSession& session, wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply,
            Deadline deadline) {
  net::Lane& lane = session.control();
  if (!lane.healthy()) return {ErrorCode::kUnavailable, "rdma: the control connection with " + lane.peer().to_string() + " was lost"};
  return lane.call(method, request, reply, deadline);
}

const ServedRange* range_of(const ServedRanges& ranges, const ExtentRef& extent) {
  if (ranges.empty()) return nullptr;
  const ServedRange& range = ranges.front();
  return extent.offset <= range.length && extent.length <= range.length - extent.offset ? &range : nullptr;
}

Status write_batch(PeerSession& session, std::span<Item> frame, Deadline deadline) {
  Status path = WriteBatch(session, frame, deadline).run();
  if (!path.ok()) session.end();
  return path;
}

}  // namespace moonpool::transfer::rdma
