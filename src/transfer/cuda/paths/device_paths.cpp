#include "transfer/cuda/paths/device_paths.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "transfer/cuda/paths/in_place.h"
#include "transfer/cuda/paths/staged.h"
#include "transfer/open_extents.h"
#include "transfer/pieces.h"

namespace moonpool::transfer::cuda {

namespace {

// Those with pieces on devices; none costs no allocation.
template <typename Operation>
std::vector<DeviceOperation> on_devices(const Runtime& runtime, std::span<const Operation> operations) {
  std::vector<DeviceOperation> found;
  Runtime::LookUp look_up(runtime);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const int memory = memory_of(look_up, pieces_of(operations[i]));
    if (memory != kHostMemory) found.push_back({i, memory});
  }
  return found;
}

// All others but the refused, by the path below, as one batch.
template <typename Operation, typename Move>
void move_the_rest(std::span<Operation> operations, std::span<const DeviceOperation> on_device, std::span<const std::size_t> refused,
                   const Move& move) {
  std::vector<Operation> batch;
  std::vector<std::size_t> places;
  for (std::size_t i = 0, next = 0; i < operations.size(); ++i) {
    if (next < on_device.size() && on_device[next].index == i) {
      ++next;
    } else if (!std::ranges::binary_search(refused, i)) {
      batch.push_back(operations[i]);
      places.push_back(i);
    }
  }
  if (batch.empty()) return;
  move(std::span(batch));
  for (std::size_t k = 0; k < places.size(); ++k) operations[places[k]] = std::move(batch[k]);
}

// What is asked for cannot be done, or there is no time for it: such operations have their outcome.
template <typename Operation>
void refuse_bad_ones(std::span<Operation> operations, std::vector<DeviceOperation>& chosen, Deadline deadline) {
  const bool late = deadline.expired();
  std::erase_if(chosen, [&](const DeviceOperation& one) {
    Status& status = operations[one.index].status;
    status = check_operation(operations[one.index]);
    if (status.ok() && late) status = {ErrorCode::kRpcTimeout, "the deadline had passed before device memory was touched"};
    return !status.ok();
  });
}

// Indices, in order, of those that overlap an earlier one of the batch, which have their outcome. A batch that is split would hide them
// from the path below.
std::vector<std::size_t> refuse_overlapping(std::span<WriteOperation> operations) {
  struct Item {
    WriteOperation* operation;
  };
  std::vector<Item> batch;
  for (auto& operation : operations) {
    operation.status = {};
    batch.push_back({&operation});
  }
  refuse_overlaps(batch);
  std::vector<std::size_t> refused;
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if (!operations[i].status.ok()) refused.push_back(i);
  }
  return refused;
}

struct Ways {
  std::vector<DeviceOperation> in_place;
  std::vector<DeviceOperation> staged;
  void stage(const std::vector<DeviceOperation>& more) { staged.insert(staged.end(), more.begin(), more.end()); }
};

bool may_go_in_place(const WriteOperation&) { return true; }
// Of a part the owner's checksums would be needed.
bool may_go_in_place(const ReadOperation& operation) { return operation.length == operation.extent.length; }

template <typename Operation>
Ways ways_of(std::span<const Operation> operations, std::span<const DeviceOperation> chosen) {
  Ways ways;
  for (const auto& one : chosen) {
    const bool in_place = one.device != kSeveralMemories && may_go_in_place(operations[one.index]);
    (in_place ? ways.in_place : ways.staged).push_back(one);
  }
  return ways;
}

}  // namespace

Staging* DevicePaths::nics_ring(Runtime* runtime, int device) {
  return nics_ == nullptr || runtime == nullptr ? nullptr : nics_->ring(*runtime, device);
}

// Device after device; `chosen` keeps what has no outcome yet.
template <typename Operation, typename Move>
void DevicePaths::by_nic(Runtime& runtime, const Peer& peer, std::span<Operation> operations, std::vector<DeviceOperation>& chosen,
                         Deadline deadline, const Move& move) {
  if (nics_ == nullptr || chosen.empty() || !paths_.moves_device_memory(peer)) return;
  const DeviceWay way{runtime, paths_, peer, deadline, counters_.by_nic_bytes};
  struct OfDevice {
    Staging* ring = nullptr;  // null: none
    std::vector<DeviceOperation> operations;
  };
  std::map<int, OfDevice> by_device;
  std::vector<DeviceOperation> rest;
  for (const auto& one : chosen) {
    const auto& operation = operations[one.index];
    const std::uint64_t length = operation.extent.length;
    const bool hashed =
        one.device != kSeveralMemories && may_go_in_place(operation) && runtime.copier().hashes_what_it_moves(one.device, length);
    if (!hashed) {
      rest.push_back(one);
      continue;
    }
    const auto [found, first] = by_device.try_emplace(one.device);
    auto& [ring, its] = found->second;
    if (first) ring = nics_ring(&runtime, one.device);
    (ring != nullptr && length <= ring->capacity() ? its : rest).push_back(one);
  }
  for (const auto& [device, of_device] : by_device) {
    if (of_device.operations.empty()) continue;
    const auto left = move(way, *of_device.ring, operations, std::span(of_device.operations));
    rest.insert(rest.end(), left.begin(), left.end());
  }
  chosen = std::move(rest);
}

void DevicePaths::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) return paths_.write(peer, operations, deadline);
  auto chosen = on_devices(*runtime, std::span<const WriteOperation>(operations));
  if (chosen.empty()) return paths_.write(peer, operations, deadline);
  const auto refused = refuse_overlapping(operations);
  move_the_rest(operations, chosen, refused, [&](std::span<WriteOperation> batch) { paths_.write(peer, batch, deadline); });
  std::erase_if(chosen, [&](const DeviceOperation& one) { return std::ranges::binary_search(refused, one.index); });
  refuse_bad_ones(operations, chosen, deadline);
  auto ways = ways_of(std::span<const WriteOperation>(operations), chosen);
  ways.stage(cuda::write_in_place({*runtime, paths_, peer, deadline, counters_.in_place_bytes}, operations, ways.in_place));
  by_nic(*runtime, peer, operations, ways.staged, deadline, write_by_nic);
  write_staged({*runtime, paths_, peer, deadline, counters_.staged_bytes}, operations, ways.staged);
}

void DevicePaths::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) return paths_.read(peer, operations, deadline);
  auto chosen = on_devices(*runtime, std::span<const ReadOperation>(operations));
  if (chosen.empty()) return paths_.read(peer, operations, deadline);
  move_the_rest(operations, chosen, {}, [&](std::span<ReadOperation> batch) { paths_.read(peer, batch, deadline); });
  refuse_bad_ones(operations, chosen, deadline);
  auto ways = ways_of(std::span<const ReadOperation>(operations), chosen);
  ways.stage(read_in_place({*runtime, paths_, peer, deadline, counters_.in_place_bytes}, operations, ways.in_place, verify_));
  if (verify_) by_nic(*runtime, peer, operations, ways.staged, deadline, read_by_nic);
  read_staged({*runtime, paths_, peer, deadline, counters_.staged_bytes}, operations, ways.staged);
}

}  // namespace moonpool::transfer::cuda
