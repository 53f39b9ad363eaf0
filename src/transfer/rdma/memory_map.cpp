#include "transfer/rdma/memory_map.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "base/logging.h"
#include "base/run_together.h"
#include "base/sync_point.h"
#include "transfer/rdma/numa.h"

namespace moonpool::transfer::rdma {

namespace {

// From this size on a range is registered on its NICs at the same time: pinning is what takes long, and each NIC pins for itself.
constexpr std::size_t kRegisterTogether = std::size_t{64} << 20;

std::string text_of(ConstBytes memory) {
  char text[64];
  std::snprintf(text, sizeof text, "%zu bytes at 0x%llx", memory.size(),
                static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(memory.data())));
  return text;
}

std::uint64_t address_of(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

Status check_range(ConstBytes memory) {
  const std::uint64_t address = address_of(memory.data());
  if (address != 0 && !memory.empty() && address + memory.size() > address) return {};
  return {ErrorCode::kInvalidParams, "cannot register " + text_of(memory) + " for RDMA: give an address and a length that are not 0"};
}

// The last holder of a range's lease, wherever it is, tells through this that its registrations are gone.
class Gone {
 public:
  void tell() {
    const std::scoped_lock lock(mutex_);
    gone_ = true;
    changed_.notify_all();
  }
  bool wait(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline.time(), [&] { return gone_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool gone_ = false;
};

// One range of a table: it is there, as a reservation, while its registration is under way without any lock.
template <typename Range>
struct Entry {
  std::uint64_t length = 0;
  Range range;  // null until it is registered
};

// Whether [address, address + length) touches a range of the table; then that range.
template <typename Table>
typename Table::const_iterator overlap(const Table& table, std::uint64_t address, std::uint64_t length) {
  const auto after = table.lower_bound(address + length);
  if (after == table.begin()) return table.end();
  const auto last = std::prev(after);
  return last->first + last->second.length > address ? last : table.end();
}

Status overlaps(ConstBytes memory, std::uint64_t address, std::uint64_t length) {
  return {ErrorCode::kSegmentAlreadyExists,
          "cannot register " + text_of(memory) + " for RDMA: it overlaps " +
              text_of({reinterpret_cast<const std::byte*>(address), length}) +  // NOLINT(performance-no-int-to-ptr): only printed
              ", which is registered"};
}

}  // namespace

class MemoryMap::Impl {
 public:
  explicit Impl(std::shared_ptr<Devices> devices) : devices_(std::move(devices)), warned_(devices_->size()) {}

  Status add_local(MutableBytes memory, const DmaBuf* device);
  Status remove_local(const void* address, Deadline deadline);
  std::shared_ptr<const RegisteredRange> local(ConstBytes piece) const;

  Status serve(const Incarnation& incarnation, MutableBytes memory, const DmaBuf* device);
  void revoke(const Incarnation& incarnation);
  void revoke(const Incarnation& incarnation, const void* address);
  std::vector<ServedRange> served(const Incarnation& incarnation) const;

 private:
  struct LocalRange {
    std::shared_ptr<const RegisteredRange> range;
    std::shared_ptr<Gone> gone;
    explicit operator bool() const { return range != nullptr; }
  };
  struct Served {
    std::unique_ptr<RegisteredRange> range;
    std::uint64_t reservation = 0;  // tells this one from a later one at the same address
  };
  using LocalTable = std::map<std::uint64_t, Entry<LocalRange>>;
  using ServedTable = std::map<std::uint64_t, Entry<Served>>;

  Result<std::unique_ptr<RegisteredRange>> register_everywhere(MutableBytes memory, const DmaBuf* device, Access access);
  void warn_once(std::size_t nic, const MutableBytes& memory, const Status& why);

  const std::shared_ptr<Devices> devices_;
  mutable std::shared_mutex mutex_;  // guards the tables; never held while memory is registered or deregistered
  LocalTable local_;
  std::unordered_map<Incarnation, ServedTable> served_;
  std::uint64_t reservations_ = 0;
  std::mutex revoking_;  // one at a time: whoever finds nothing to revoke returns only when the keys are dead
  std::mutex warning_;   // guards warned_
  std::vector<bool> warned_;
};

// ---------------------------------------------------------------- registering

void MemoryMap::Impl::warn_once(std::size_t nic, const MutableBytes& memory, const Status& why) {
  bool first = false;
  {
    const std::scoped_lock lock(warning_);
    first = !warned_[nic];
    warned_[nic] = true;
  }
  const auto& name = (*devices_)[nic].info().name;
  if (first) {
    log::warning("rdma: {} does without {}, other NICs serve it ({}); further ranges are not reported", name, text_of(memory),
                 why.message());
  } else {
    log::debug("rdma: {} does without {} ({})", name, text_of(memory), why.message());
  }
}

Result<std::unique_ptr<RegisteredRange>> MemoryMap::Impl::register_everywhere(MutableBytes memory, const DmaBuf* device, Access access) {
  const std::size_t count = devices_->size();
  if (count == 0) return Status(ErrorCode::kUnavailable, "cannot register " + text_of(memory) + ": this process has no RDMA device");
  std::vector<Result<std::unique_ptr<Registration>>> results;
  results.reserve(count);
  std::vector<std::function<void()>> jobs;
  for (std::size_t i = 0; i < count; ++i) {
    results.emplace_back(std::unique_ptr<Registration>());
    jobs.emplace_back([&, i] {
      Nic& nic = (*devices_)[i];
      results[i] = device == nullptr ? nic.register_memory(memory, access) : nic.register_dma_buf(memory, *device, access);
    });
  }
  if (memory.size() >= kRegisterTogether) {
    run_together(jobs);
  } else {
    for (const auto& job : jobs) job();
  }
  const auto failed = std::ranges::count_if(results, [](const auto& result) { return !result.ok(); });
  if (static_cast<std::size_t>(failed) == count) {
    if (count == 1) return results.front().status();
    std::string reasons;
    for (std::size_t i = 0; i < count; ++i) {
      reasons += (i == 0 ? "" : "; ") + (*devices_)[i].info().name + ": " + results[i].status().message();
    }
    return Status(results.front().code(), "no NIC can register " + text_of(memory) + ": " + reasons);
  }
  auto range = std::make_unique<RegisteredRange>();
  range->memory = memory;
  for (std::size_t i = 0; i < count; ++i) {
    if (!results[i].ok()) warn_once(i, memory, results[i].status());
    range->by_nic.push_back(results[i].ok() ? std::move(results[i]).value() : nullptr);
  }
  range->numa_node = device == nullptr ? numa_node_of(memory) : device->numa_node;  // now that all pages are there
  return range;
}

// ---------------------------------------------------------------- local memory

Status MemoryMap::Impl::add_local(MutableBytes memory, const DmaBuf* device) {
  MOONPOOL_RETURN_IF_ERROR(check_range(memory));
  const std::uint64_t address = address_of(memory.data());
  {
    const std::scoped_lock lock(mutex_);
    if (const auto other = overlap(local_, address, memory.size()); other != local_.end()) {
      return overlaps(memory, other->first, other->second.length);
    }
    local_.emplace(address, Entry<LocalRange>{memory.size(), {}});
  }
  auto registered = register_everywhere(memory, device, Access::kLocal);
  const std::scoped_lock lock(mutex_);
  if (!registered.ok()) {
    local_.erase(address);
    return registered.status();
  }
  auto gone = std::make_shared<Gone>();
  // A lease may outlive this map; its NICs have to be there until its registrations have gone.
  std::shared_ptr<const RegisteredRange> shared(std::move(*registered).release(), [gone, devices = devices_](const RegisteredRange* range) {
    delete range;
    gone->tell();
  });
  local_.find(address)->second.range = {std::move(shared), std::move(gone)};
  return {};
}

Status MemoryMap::Impl::remove_local(const void* address, Deadline deadline) {
  LocalRange removed;
  MutableBytes memory;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = local_.find(address_of(address));
    if (found == local_.end() || !found->second.range) {
      return {ErrorCode::kInvalidParams, "no range that is registered for RDMA begins at address " + std::to_string(address_of(address)) +
                                             ": unregister what was registered"};
    }
    removed = std::move(found->second.range);
    local_.erase(found);
  }
  memory = removed.range->memory;
  removed.range.reset();
  if (removed.gone->wait(deadline)) return {};
  return {ErrorCode::kRpcTimeout, text_of(memory) +
                                      " are not registered for RDMA any more, but a transfer that began before still touches "
                                      "them: keep the memory until it has ended"};
}

std::shared_ptr<const RegisteredRange> MemoryMap::Impl::local(ConstBytes piece) const {
  const std::uint64_t address = address_of(piece.data());
  const std::shared_lock lock(mutex_);
  const auto after = local_.upper_bound(address);
  if (after == local_.begin()) return nullptr;
  const auto& [begin, entry] = *std::prev(after);
  const std::uint64_t offset = address - begin;
  const bool inside = offset <= entry.length && piece.size() <= entry.length - offset;
  return inside ? entry.range.range : nullptr;
}

// ---------------------------------------------------------------- served memory

Status MemoryMap::Impl::serve(const Incarnation& incarnation, MutableBytes memory, const DmaBuf* device) {
  MOONPOOL_RETURN_IF_ERROR(check_range(memory));
  const std::uint64_t address = address_of(memory.data());
  std::uint64_t reservation = 0;
  {
    const std::scoped_lock lock(mutex_);
    auto& table = served_[incarnation];
    if (const auto other = overlap(table, address, memory.size()); other != table.end()) {
      return overlaps(memory, other->first, other->second.length);
    }
    reservation = ++reservations_;
    table.emplace(address, Entry<Served>{memory.size(), {nullptr, reservation}});
  }
  MOONPOOL_SYNC_POINT("memory_map.serve.reserved");
  auto registered = register_everywhere(memory, device, Access::kServed);
  const std::scoped_lock lock(mutex_);
  const auto table = served_.find(incarnation);
  const auto found = table == served_.end() ? ServedTable::iterator() : table->second.find(address);
  const bool ours = table != served_.end() && found != table->second.end() && found->second.range.reservation == reservation;
  if (registered.ok() && ours) {
    found->second.range.range = std::move(*registered);
    return {};
  }
  if (ours) {
    table->second.erase(found);
    if (table->second.empty()) served_.erase(table);
  }
  if (!registered.ok()) return registered.status();
  // Its keys were told to nobody, and die here.
  return {ErrorCode::kStaleIncarnation, text_of(memory) + " were revoked while they were being registered for RDMA"};
}

void MemoryMap::Impl::revoke(const Incarnation& incarnation) {
  const std::scoped_lock one_at_a_time(revoking_);
  ServedTable revoked;
  const std::scoped_lock lock(mutex_);
  if (const auto found = served_.find(incarnation); found != served_.end()) {
    revoked = std::move(found->second);
    served_.erase(found);
  }
}

void MemoryMap::Impl::revoke(const Incarnation& incarnation, const void* address) {
  const std::scoped_lock one_at_a_time(revoking_);
  Served revoked;
  const std::scoped_lock lock(mutex_);
  const auto table = served_.find(incarnation);
  if (table == served_.end()) return;
  const auto found = table->second.find(address_of(address));
  if (found == table->second.end()) return;
  revoked = std::move(found->second.range);
  table->second.erase(found);
  if (table->second.empty()) served_.erase(table);
}

std::vector<ServedRange> MemoryMap::Impl::served(const Incarnation& incarnation) const {
  std::vector<ServedRange> ranges;
  const std::shared_lock lock(mutex_);
  const auto table = served_.find(incarnation);
  if (table == served_.end()) return ranges;
  for (const auto& [address, entry] : table->second) {
    const auto& range = entry.range.range;
    if (range == nullptr) continue;
    auto& served = ranges.emplace_back(ServedRange{address, entry.length, {}});
    for (const auto& registration : range->by_nic) {
      served.remote_keys.push_back(registration == nullptr ? 0 : registration->remote_key());
    }
  }
  return ranges;
}

// ---------------------------------------------------------------- the public face

MemoryMap::MemoryMap(std::shared_ptr<Devices> devices) : devices_(std::move(devices)), impl_(std::make_unique<Impl>(devices_)) {}
MemoryMap::~MemoryMap() = default;

Status MemoryMap::add_local(MutableBytes memory, const DmaBuf* device) { return impl_->add_local(memory, device); }
Status MemoryMap::remove_local(const void* address, Deadline deadline) { return impl_->remove_local(address, deadline); }
std::shared_ptr<const RegisteredRange> MemoryMap::local(ConstBytes piece) const { return impl_->local(piece); }

Status MemoryMap::serve(const Incarnation& incarnation, MutableBytes memory, const DmaBuf* device) {
  return impl_->serve(incarnation, memory, device);
}
void MemoryMap::revoke(const Incarnation& incarnation) { impl_->revoke(incarnation); }
void MemoryMap::revoke(const Incarnation& incarnation, const void* address) { impl_->revoke(incarnation, address); }
std::vector<ServedRange> MemoryMap::served(const Incarnation& incarnation) const { return impl_->served(incarnation); }

}  // namespace moonpool::transfer::rdma
