#include "transfer/rdma/nic_rigs_for_test.h"

namespace moonpool::transfer::rdma {

std::vector<RigCase> rig_cases() {
  std::vector<RigCase> cases = simulated_rig_cases();
  for (auto& one : verbs_rig_cases()) cases.push_back(std::move(one));
  return cases;
}

}  // namespace moonpool::transfer::rdma
