#include "transfer/tcp/tcp_transport.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/sync_point.h"
#include "transfer/pieces.h"
#include "transfer/tcp/exchange.h"

namespace moonpool::transfer {

namespace {

struct FrameSize {
  std::uint64_t bytes = 0;
  std::uint64_t key_bytes = 0;
};

FrameSize size_of(const WriteOperation& operation) { return {operation.extent.length, operation.key.size()}; }
FrameSize size_of(const ReadOperation& operation) { return {covering_range(operation).length, 0}; }

// Operations that need the network; the others have their outcome already.
std::vector<Outgoing<WriteOperation>> select(std::span<WriteOperation> operations) {
  std::vector<Outgoing<WriteOperation>> selected;
  selected.reserve(operations.size());
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (operation.status.ok()) selected.push_back({&operation});
  }
  return selected;
}

std::vector<Outgoing<ReadOperation>> select(std::span<ReadOperation> operations) {
  std::vector<Outgoing<ReadOperation>> selected;
  selected.reserve(operations.size());
  for (auto& operation : operations) {
    operation.status = check_operation(operation);
    if (operation.status.ok() && operation.length > 0) selected.push_back({&operation});
  }
  return selected;
}

// The longest front of `rest` that fits one frame; an operation that is larger by itself goes alone.
template <typename Operation>
std::span<Outgoing<Operation>> next_frame(std::span<Outgoing<Operation>> rest) {
  FrameSize total;
  std::size_t count = 0;
  while (count < std::min(rest.size(), TcpTransport::kFrameEntries)) {
    const auto size = size_of(*rest[count].operation);
    total.bytes += size.bytes;
    total.key_bytes += size.key_bytes;
    if (count > 0 && (total.bytes > TcpTransport::kFrameBytes || total.key_bytes > TcpTransport::kFrameKeyBytes)) break;
    ++count;
  }
  return rest.first(count);
}

// `exchange(lane)` over a lane of the pool, once more over another if the peer had closed the first before it said a word.
template <typename Exchange>
Status exchange_with_retry(net::LanePool& lanes, const Peer& peer, const Exchange& exchange, Deadline deadline) {
  for (bool again : {true, false}) {
    auto lane = lanes.acquire(peer.endpoint, deadline);
    if (!lane.ok()) return lane.status();
    auto result = exchange(**lane);
    const bool lost = result.path.code() == ErrorCode::kUnavailable && !result.answered;
    if (!lost || !again) return result.path;
  }
  return {};  // not reached
}

// Frame after frame. Once the path has failed, the rest fails with it rather than waiting for it again.
template <typename Operation, typename Exchange>
void run(net::LanePool& lanes, const Peer& peer, std::span<Operation> operations, const Exchange& exchange, Deadline deadline) {
  auto selected = select(operations);
  auto rest = std::span(selected);
  Status path;
  while (!rest.empty() && path.ok()) {
    const auto frame = next_frame(rest);
    path = exchange_with_retry(
        lanes, peer, [&](net::Lane& lane) { return exchange(lane, frame); }, deadline);
    rest = rest.subspan(frame.size());
  }
  if (path.ok()) return;
  for (auto& item : selected) {
    if (!item.settled) item.operation->status = path;
  }
}

}  // namespace

void TcpTransport::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  run(
      lanes_, peer, operations, [&](net::Lane& lane, auto frame) { return exchange_write(lane, frame, deadline); }, deadline);
}

void TcpTransport::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  run(
      lanes_, peer, operations, [&](net::Lane& lane, auto frame) { return exchange_read(lane, frame, verify_, deadline); }, deadline);
}

std::uint32_t IncarnationColumn::index_of(const Incarnation& incarnation) {
  const auto index = static_cast<std::size_t>(std::ranges::find(known_, incarnation) - known_.begin());
  if (index == known_.size()) known_.push_back(incarnation);
  return static_cast<std::uint32_t>(index);
}

Status refused(const net::Lane& lane, const char* operation, const ExtentRef& extent, std::int32_t number) {
  const auto code = static_cast<ErrorCode>(number);
  return {code, std::string(operation) + " of " + std::to_string(extent.length) + " bytes at offset " + std::to_string(extent.offset) +
                    " was refused by " + lane.peer().to_string() + ": " + std::string(name_of(code))};
}

}  // namespace moonpool::transfer
