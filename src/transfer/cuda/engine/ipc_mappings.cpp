#include "transfer/cuda/engine/ipc_mappings.h"

#include <algorithm>
#include <cstring>

namespace moonpool::transfer::cuda {

namespace {

bool offers(const RemoteSegment& owner, const std::string& handle) {
  return std::ranges::any_of(owner.by_address,
                             [&](const auto& entry) { return entry.second.place && entry.second.place->ipc_handle == handle; });
}

}  // namespace

Result<IpcMappings::Use> IpcMappings::open(Driver& driver, const RemoteSegment& owner, const std::string& handle, int device) {
  const std::scoped_lock lock(mutex_);
  if (!owners_.contains(owner.incarnation)) {
    std::erase_if(owners_, [&](const auto& entry) { return entry.second.endpoint == owner.endpoint; });  // its predecessors
    make_room();
    owners_[owner.incarnation].endpoint = owner.endpoint;
  }
  auto& known = owners_[owner.incarnation];
  known.last_used = ++uses_;
  const Key key{device, handle};
  if (const auto found = known.mappings.find(key); found != known.mappings.end()) {
    if (found->second.use.ok() || !found->second.try_again.expired()) return found->second.use;
    known.mappings.erase(found);
  }
  std::erase_if(known.mappings, [&](const auto& entry) { return !offers(owner, entry.first.second); });

  IpcHandle bytes;
  if (handle.size() != bytes.size()) return Status(ErrorCode::kProtocol, "its handle is no CUDA IPC handle");
  std::memcpy(bytes.data(), handle.data(), bytes.size());
  const auto address = driver.open_ipc(device, bytes);
  Result<Use> mapping = address.ok() ? Result<Use>(std::make_shared<const Mapping>(driver, device, *address)) : address.status();
  return known.mappings.emplace(key, Attempt{std::move(mapping), Deadline::after(kTryAgain)}).first->second.use;
}

void IpcMappings::make_room() {
  if (owners_.size() < kMostOwners) return;
  owners_.erase(std::ranges::min_element(owners_, {}, [](const auto& entry) { return entry.second.last_used; }));
}

void IpcMappings::forget(const Incarnation& owner) {
  const std::scoped_lock lock(mutex_);
  owners_.erase(owner);
}

void IpcMappings::clear() {
  const std::scoped_lock lock(mutex_);
  owners_.clear();
}

std::size_t IpcMappings::size() const {
  const std::scoped_lock lock(mutex_);
  std::size_t count = 0;
  for (const auto& [incarnation, owner] : owners_) {
    count += static_cast<std::size_t>(std::ranges::count_if(owner.mappings, [](const auto& entry) { return entry.second.use.ok(); }));
  }
  return count;
}

}  // namespace moonpool::transfer::cuda
