#include "python/bindings/replicate_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>

namespace moonpool::python {

namespace nb = nanobind;

store::ReplicaPolicy ReplicateConfig::policy() const {
  store::ReplicaPolicy policy;
  policy.replica_num = static_cast<std::uint32_t>(std::min<std::uint64_t>(replica_num, std::numeric_limits<std::uint32_t>::max()));
  if (!preferred_segment.empty()) policy.preferred_segments.push_back(preferred_segment);
  policy.preferred_segments.insert(policy.preferred_segments.end(), preferred_segments.begin(), preferred_segments.end());
  policy.prefer_same_node = prefer_alloc_in_same_node;
  policy.soft_pin = soft_pin_action == SoftPinAction::kEnable;
  if (soft_pin_ttl_ms) {
    constexpr std::uint64_t kLongest = 1ULL << 40;  // some 35 years: what follows must not overflow
    policy.soft_pin_ttl = std::chrono::milliseconds(std::min(*soft_pin_ttl_ms, kLongest));
  }
  policy.hard_pin = with_hard_pin;
  if (group_ids) policy.groups = *group_ids;
  policy.data_type = static_cast<std::uint32_t>(data_type);
  return policy;
}

std::string ReplicateConfig::text() const {
  constexpr const char* kActions[] = {"PRESERVE", "ENABLE", "DISABLE"};
  return fmt::format(
      "ReplicateConfig(replica_num={}, soft_pin_action={}, soft_pin_ttl_ms={}, with_hard_pin={}, preferred_segment='{}', "
      "preferred_segments=[{}], prefer_alloc_in_same_node={}, data_type={}, group_ids={})",
      replica_num, kActions[static_cast<int>(soft_pin_action)], soft_pin_ttl_ms ? std::to_string(*soft_pin_ttl_ms) : "None",
      with_hard_pin ? "True" : "False", preferred_segment, fmt::join(preferred_segments, ", "),
      prefer_alloc_in_same_node ? "True" : "False", static_cast<int>(data_type),
      group_ids ? fmt::format("[{}]", fmt::join(*group_ids, ", ")) : "None");
}

void bind_replicate_config(nb::module_& module) {
  using Config = ReplicateConfig;
  nb::class_<Config>(module, "ReplicateConfig", "How an object is kept: copies, places, pins.")
      .def(nb::init<>())
      .def_rw("replica_num", &Config::replica_num,
              "Copies wanted, on different nodes where possible; one placed is success. 0 is refused (-600).")
      .def_rw("nof_replica_num", &Config::nof_replica_num, "Copies on NVMe-oF; kept, not used in this release.")
      .def_rw("dfs_replica_num", &Config::dfs_replica_num, "Copies on a distributed file system; kept, not used in this release.")
      .def_rw("soft_pin_action", &Config::soft_pin_action, "ENABLE: evicted only when nothing unpinned is left.")
      .def_rw("soft_pin_ttl_ms", &Config::soft_pin_ttl_ms, nb::arg().none(),
              "Milliseconds that a soft pin holds; None: the master's default.")
      .def_prop_rw(
          "with_soft_pin", [](const Config& c) { return c.soft_pin_action == SoftPinAction::kEnable; },
          [](Config& c, bool on) { c.soft_pin_action = on ? SoftPinAction::kEnable : SoftPinAction::kPreserve; },
          "The older name of soft_pin_action == ENABLE.")
      .def_rw("with_hard_pin", &Config::with_hard_pin, "Never evicted; removed by remove(force=True) alone.")
      .def_rw("preferred_segment", &Config::preferred_segment, "'host:port' of the node to place the object on, if it has room.")
      .def_rw("preferred_segments", &Config::preferred_segments, "The same for several copies, in this order.")
      .def_rw("preferred_nof_segments", &Config::preferred_nof_segments, "Kept, not used in this release.")
      .def_rw("prefer_alloc_in_same_node", &Config::prefer_alloc_in_same_node, "Place the object on the writer's own node if it has room.")
      .def_rw("data_type", &Config::data_type, "What the object holds, an ObjectDataType.")
      .def_rw("group_ids", &Config::group_ids, nb::arg().none(), "One group name per key of a batch: objects that belong together.")
      .def("__repr__", &Config::text)
      .def("__str__", &Config::text);
}

}  // namespace moonpool::python
