#include "transfer/rdma/devices.h"

#include <algorithm>
#include <utility>

namespace moonpool::transfer::rdma {

Devices::Devices(std::vector<std::unique_ptr<Nic>> nics) : nics_(std::move(nics)) {
  // A NIC's thread may still report a change while this object goes: the counter is the callbacks' as well.
  for (const auto& nic : nics_) {
    nic->watch([generation = generation_] { generation->fetch_add(1, std::memory_order_acq_rel); });
  }
}

bool Devices::any_up() const {
  return std::ranges::any_of(nics_, [](const auto& nic) { return nic->up(); });
}

std::size_t Devices::index_of(std::string_view name) const {
  return static_cast<std::size_t>(std::ranges::find_if(nics_, [&](const auto& nic) { return nic->info().name == name; }) - nics_.begin());
}

}  // namespace moonpool::transfer::rdma
