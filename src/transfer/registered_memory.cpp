#include "transfer/registered_memory.h"

#include <algorithm>
#include <utility>

#include "transfer/range_memo.h"

namespace moonpool::transfer {

namespace {

std::string text_of(const AddressRange& range) {
  char text[64];
  std::snprintf(text, sizeof text, "%llu bytes at 0x%llx", static_cast<unsigned long long>(range.length),
                static_cast<unsigned long long>(range.address));
  return text;
}

}  // namespace

RegisteredMemory::Hold& RegisteredMemory::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    release();
    memory_ = other.memory_;
    regions_ = std::exchange(other.regions_, {});
    runs_ = std::exchange(other.runs_, {});
  }
  return *this;
}

void RegisteredMemory::Hold::release() {
  if (regions_.empty()) return;
  {
    const std::scoped_lock lock(memory_->mutex_);
    for (const auto& region : regions_) --region->holds;
  }
  regions_.clear();
  runs_.clear();
  memory_->released_.notify_all();
}

Status RegisteredMemory::add(std::uint64_t address, std::uint64_t length, std::string_view location,
                             std::shared_ptr<const DevicePlace> place) {
  if (address == 0 || length == 0 || address + length < address) {
    return {ErrorCode::kInvalidParams, "cannot register " + text_of({address, length}) + ": give an address and a length that are not 0"};
  }
  const std::scoped_lock lock(mutex_);
  const auto after = regions_.lower_bound(address + length);
  if (after != regions_.begin()) {
    const auto& last = *std::prev(after)->second;
    if (last.address + last.length > address) {
      return {ErrorCode::kSegmentAlreadyExists, "cannot register " + text_of({address, length}) + ": it overlaps " +
                                                    text_of({last.address, last.length}) + ", which is registered"};
    }
  }
  if (place != nullptr) ++on_devices_;
  regions_.emplace(address,
                   std::make_shared<Region>(Region{address, length, std::string(location), registered_++, 0, 0, std::move(place)}));
  return {};
}

Status RegisteredMemory::remove(std::uint64_t address, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto found = regions_.find(address);
  if (found == regions_.end()) {
    return {ErrorCode::kInvalidParams,
            "no registered range begins at address " + std::to_string(address) + ": unregister what was registered"};
  }
  const auto region = found->second;
  regions_.erase(found);
  if (region->place != nullptr) --on_devices_;
  if (released_.wait_until(lock, deadline.time(), [&] { return region->holds == 0; })) return {};
  return {ErrorCode::kRpcTimeout, text_of({region->address, region->length}) +
                                      " are not registered any more, but a transfer that began before still "
                                      "touches them: keep the memory until it has ended"};
}

RegisteredMemory::Region* RegisteredMemory::region_of(const AddressRange& piece) const {
  const auto after = regions_.upper_bound(piece.address);
  if (after == regions_.begin()) return nullptr;
  Region* const region = std::prev(after)->second.get();
  const std::uint64_t offset = piece.address - region->address;
  const bool inside = offset <= region->length && piece.length <= region->length - offset;
  return inside ? region : nullptr;
}

template <typename RangeOf>
Result<RegisteredMemory::Hold> RegisteredMemory::hold_each(std::size_t count, RangeOf range_of) {
  std::vector<std::shared_ptr<Region>> regions;
  std::vector<Run> runs;
  RangeMemo<Region> memo;
  const Region* last = nullptr;
  bool with_devices = false;
  const std::scoped_lock lock(mutex_);
  const std::uint64_t number = ++held_;
  for (std::size_t i = 0; i < count; ++i) {
    const AddressRange piece = range_of(i);
    if (piece.length == 0) continue;
    Region* const region = memo.find(piece.address, piece.length, [&] { return region_of(piece); });
    if (region == nullptr)
      return Status(ErrorCode::kInvalidParams, text_of(piece) + " are not inside registered memory: register them first");
    if (region == last) continue;
    last = region;
    if (on_devices_ > 0) {
      if (!runs.empty()) runs.back().end = i;
      runs.push_back({region, count});
    }
    if (region->last_hold == number) continue;
    region->last_hold = number;
    with_devices = with_devices || region->place != nullptr;
    regions.push_back(regions_.find(region->address)->second);
  }
  for (const auto& region : regions) ++region->holds;
  Hold hold;
  hold.memory_ = this;
  hold.regions_ = std::move(regions);
  if (with_devices) hold.runs_ = std::move(runs);
  return hold;
}

Result<RegisteredMemory::Hold> RegisteredMemory::hold(std::span<const AddressRange> pieces) {
  return hold_each(pieces.size(), [&](std::size_t i) { return pieces[i]; });
}

Result<RegisteredMemory::Hold> RegisteredMemory::hold(std::span<const Piece> pieces, End end) {
  if (end == End::kLocal) return hold_each(pieces.size(), [&](std::size_t i) { return AddressRange{pieces[i].local, pieces[i].length}; });
  return hold_each(pieces.size(), [&](std::size_t i) { return AddressRange{pieces[i].remote, pieces[i].length}; });
}

std::shared_ptr<const DevicePlace> RegisteredMemory::place_of(std::uint64_t address) const {
  const std::scoped_lock lock(mutex_);
  const auto found = regions_.find(address);
  return found == regions_.end() ? nullptr : found->second->place;
}

std::vector<RegisteredMemory::Region> RegisteredMemory::regions() const {
  std::vector<Region> list;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [address, region] : regions_) list.push_back(*region);
  }
  std::ranges::sort(list, {}, &Region::order);
  return list;
}

}  // namespace moonpool::transfer
