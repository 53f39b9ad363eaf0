#include "transfer/rdma/nic_rigs_for_test.h"
#include "transfer/rdma/simulated_nic.h"

namespace moonpool::transfer::rdma {

namespace {

class SimulatedRig final : public Rig {
 public:
  explicit SimulatedRig(bool iwarp)
      : user_(fabric_.make_nic("simulated_user", {.iwarp = iwarp})), owner_(fabric_.make_nic("simulated_owner", {.iwarp = iwarp})) {}
  Nic& user() override { return *user_; }
  Nic& owner() override { return *owner_; }
  bool takes_dma_bufs() const override { return true; }
  bool can_cut() const override { return true; }
  void cut() override { fabric_.set_port("simulated_owner", false); }
  void stall() override { static_cast<void>(fabric_.hold("simulated_user", 1)); }
  void mend() override { fabric_.set_port("simulated_owner", true); }

 private:
  SimulatedFabric fabric_;
  std::unique_ptr<Nic> user_;
  std::unique_ptr<Nic> owner_;
};

RigCase rig_case(const char* name, bool iwarp) {
  return {name, [iwarp]() -> Result<std::unique_ptr<Rig>> { return std::unique_ptr<Rig>(std::make_unique<SimulatedRig>(iwarp)); }, ""};
}

}  // namespace

std::vector<RigCase> simulated_rig_cases() { return {rig_case("Simulated", false), rig_case("SimulatedByTicket", true)}; }

}  // namespace moonpool::transfer::rdma
