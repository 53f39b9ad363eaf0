#include "transfer/cuda/paths/in_place.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/sync_point.h"
#include "transfer/checksum.h"

namespace moonpool::transfer::cuda {

namespace {

// The pieces of a batch's operations, as the copier wants them.
template <typename Operation>
class Ranges {
 public:
  Ranges(std::span<const Operation> operations, std::span<const DeviceOperation> chosen) {
    std::size_t pieces = 0;
    for (const auto& one : chosen) pieces += pieces_of(operations[one.index]).size();
    ranges_.reserve(pieces);
    ends_.reserve(chosen.size());
    for (const auto& one : chosen) {
      add_ranges(pieces_of(operations[one.index]), ranges_);
      ends_.push_back(ranges_.size());
    }
  }
  [[nodiscard]] std::span<const AddressRange> of(std::size_t place) const {
    const std::size_t first = place == 0 ? 0 : ends_[place - 1];
    return std::span(ranges_).subspan(first, ends_[place] - first);
  }

 private:
  std::vector<AddressRange> ranges_;
  std::vector<std::size_t> ends_;
};

// Jobs between extents and one launch, with what keeps the extents pinned meanwhile.
class Launch {
 public:
  explicit Launch(const DeviceWay& way) : way_(way) {}

  // False: this memory is not pinned (yet).
  [[nodiscard]] bool add(int device, std::span<const AddressRange> pieces, MutableBytes memory, const Region& region,
                         std::span<std::uint64_t> checksums) {
    auto& regions = way_.runtime.regions();
    auto found = regions.device_address(device, memory);
    if (!found) {
      if (region.keeper != nullptr) regions.want(region.memory, region.keeper, "the segment of " + way_.peer.endpoint.to_string());
      return false;
    }
    uses_.push_back(std::move(found->use));
    jobs_.push_back({.device = device, .pieces = pieces, .contiguous = memory, .length = memory.size(), .checksums = checksums});
    return true;
  }
  // Returns when the device touches nothing of it any more. One status for all: a launch has one.
  [[nodiscard]] Status run(Direction direction) {
    if (jobs_.empty()) return {};
    Copier& copier = way_.runtime.copier();
    auto ticket = copier.submit(direction, jobs_, Stream::kLegacyDefault);
    if (!ticket.ok()) return ticket.status();
    MOONPOOL_SYNC_POINT("cuda.in_place.queued");
    return copier.wait(**ticket, way_.deadline);
  }

 private:
  const DeviceWay& way_;
  std::vector<CopyJob> jobs_;
  std::vector<HostRegions::Use> uses_;
};

// A code that paths do not count as a failure.
Status not_pinned() { return {ErrorCode::kNotSupported, "the segment's memory is not pinned for devices"}; }

// What lies in an extent now.
Status hash(ConstBytes memory, std::vector<std::uint64_t>& checksums, Deadline deadline) {
  checksums.reserve(chunks_of(memory.size()));
  for (std::size_t at = 0; at < memory.size(); at += kChecksumChunk) {
    if (deadline.expired()) return {ErrorCode::kRpcTimeout, "the deadline passed before all bytes were hashed"};
    checksums.push_back(checksum(memory.subspan(at, std::min(kChecksumChunk, memory.size() - at))));
  }
  return {};
}

void fill(const DeviceWay& way, std::span<OpenExtent> extents, std::span<const DeviceOperation> chosen,
          const Ranges<WriteOperation>& ranges) {
  const bool hashed = way.runtime.settings().checksums;
  Launch launch(way);
  std::vector<OpenExtent*> moved;
  moved.reserve(extents.size());
  for (auto& extent : extents) {
    if (hashed) extent.checksums.resize(chunks_of(extent.memory.size()));
    if (launch.add(chosen[extent.operation].device, ranges.of(extent.operation), extent.memory, extent.region, extent.checksums)) {
      moved.push_back(&extent);
    } else {
      extent.status = not_pinned();
    }
  }
  const Status status = prefixed("device write", launch.run(Direction::kGather));
  for (OpenExtent* extent : moved) {
    extent->status = status;
    if (status.ok() && !hashed) extent->status = prefixed("device write", hash(extent->memory, extent->checksums, way.deadline));
  }
}

}  // namespace

std::vector<DeviceOperation> write_in_place(const DeviceWay& way, std::span<WriteOperation> operations,
                                            std::span<const DeviceOperation> chosen) {
  if (chosen.empty()) return {};
  const Ranges<WriteOperation> ranges(operations, chosen);
  std::vector<WriteOperation> batch;
  batch.reserve(chosen.size());
  for (const auto& one : chosen) batch.push_back(operations[one.index]);
  way.paths.write_in_place(
      way.peer, batch, [&](std::span<OpenExtent> extents) { fill(way, extents, chosen, ranges); }, way.deadline);
  std::vector<DeviceOperation> rest;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (of_the_path(batch[i].status)) {
      rest.push_back(chosen[i]);
      continue;
    }
    if (batch[i].status.ok()) way.bytes += batch[i].extent.length;
    operations[chosen[i].index].status = std::move(batch[i].status);
    operations[chosen[i].index].checksum = batch[i].checksum;
  }
  return rest;
}

namespace {

// Extents that are looked at where they lie, on their way to the device.
class ViewedBatch {
 public:
  ViewedBatch(const DeviceWay& way, std::span<ReadOperation> operations, std::span<const DeviceOperation> chosen, bool verify)
      : way_(way),
        operations_(operations),
        chosen_(chosen),
        hashed_(verify && way.runtime.settings().checksums),
        views_(chosen.size()),
        checksums_(chosen.size()) {
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      views_[i].extent = operations[chosen[i].index].extent;
      views_[i].checksum = operations[chosen[i].index].checksum;
      views_[i].verified = verify && !hashed_;
      // The kernel's checksums tell whether the bytes that it moved were the object's.
      views_[i].pinned = !hashed_ || !way.runtime.copier().hashes_what_it_moves(chosen[i].device, views_[i].extent.length);
    }
  }

  std::vector<DeviceOperation> run() {
    way_.paths.view(way_.peer, views_, way_.deadline);
    const Ranges<ReadOperation> ranges(operations_, chosen_);
    Launch launch(way_);
    for (std::size_t i = 0; i < chosen_.size(); ++i) add(i, ranges.of(i), launch);
    const Status status = launch.run(Direction::kScatter);
    for (const std::size_t i : moved_) settle(i, status);
    return std::move(rest_);
  }

 private:
  void add(std::size_t i, std::span<const AddressRange> pieces, Launch& launch) {
    const ViewOperation& view = views_[i];
    if (!view.status.ok()) {
      if (of_the_path(view.status)) {
        rest_.push_back(chosen_[i]);
      } else {
        operation(i).status = view.status;
      }
      return;
    }
    if (hashed_) checksums_[i].resize(chunks_of(view.bytes.size()));
    // Devices read it; CopyJob has one kind of memory for both directions.
    const MutableBytes memory(const_cast<std::byte*>(view.bytes.data()), view.bytes.size());
    if (launch.add(chosen_[i].device, pieces, memory, view.region, checksums_[i])) {
      moved_.push_back(i);
    } else {
      rest_.push_back(chosen_[i]);
    }
  }

  void settle(std::size_t i, const Status& status) {
    if (of_the_path(status)) {
      rest_.push_back(chosen_[i]);
    } else if (status.ok() && hashed_ && root_of(checksums_[i]) != operation(i).checksum) {
      rest_.push_back(chosen_[i]);  // the extent may be another object's by now: a read that asks its owner knows, or finds it damaged
    } else {
      operation(i).status = prefixed("device read", status);
      if (status.ok()) way_.bytes += operation(i).length;
    }
  }

  [[nodiscard]] ReadOperation& operation(std::size_t i) const { return operations_[chosen_[i].index]; }

  const DeviceWay& way_;
  const std::span<ReadOperation> operations_;
  const std::span<const DeviceOperation> chosen_;
  const bool hashed_;                 // by the kernel
  std::vector<ViewOperation> views_;  // with what keeps them mapped, until the device has ended
  std::vector<std::vector<std::uint64_t>> checksums_;
  std::vector<std::size_t> moved_;
  std::vector<DeviceOperation> rest_;
};

}  // namespace

std::vector<DeviceOperation> read_in_place(const DeviceWay& way, std::span<ReadOperation> operations,
                                           std::span<const DeviceOperation> chosen, bool verify) {
  if (chosen.empty()) return {};
  return ViewedBatch(way, operations, chosen, verify).run();
}

}  // namespace moonpool::transfer::cuda
