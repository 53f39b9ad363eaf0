// mooncake.store.ReplicateConfig: how many copies of an object, where, and how hard it is held against eviction.
//
// A plain value with the field names that engines set. Fields of tiers that this release does not have (NVMe-oF, distributed file
// systems) are kept and ignored. Threads: like any Python object; the calls copy what they need while they hold the interpreter lock.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "python/bindings/enums.h"
#include "store/client.h"

namespace moonpool::python {

struct ReplicateConfig {
  std::uint64_t replica_num = 1;
  std::uint64_t nof_replica_num = 0;
  std::uint64_t dfs_replica_num = 0;
  SoftPinAction soft_pin_action = SoftPinAction::kPreserve;
  std::optional<std::uint64_t> soft_pin_ttl_ms;
  bool with_hard_pin = false;
  std::string preferred_segment;
  std::vector<std::string> preferred_segments;
  std::vector<std::string> preferred_nof_segments;
  bool prefer_alloc_in_same_node = false;
  ObjectDataType data_type = ObjectDataType::kUnknown;
  std::optional<std::vector<std::string>> group_ids;  // one per key of the batch

  [[nodiscard]] store::ReplicaPolicy policy() const;
  [[nodiscard]] std::string text() const;
};

void bind_replicate_config(nanobind::module_& module);

}  // namespace moonpool::python
