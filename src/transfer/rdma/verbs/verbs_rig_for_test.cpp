#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "base/deadline.h"
#include "transfer/rdma/nic_rigs_for_test.h"
#include "transfer/rdma/verbs/open_devices.h"

namespace moonpool::transfer::rdma {
namespace {

std::string setting(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

class VerbsRig final : public Rig {
 public:
  VerbsRig(std::vector<std::unique_ptr<Nic>> nics, bool connection_manager)
      : nics_(std::move(nics)), connection_manager_(connection_manager) {}
  Nic& user() override { return *nics_.front(); }
  Nic& owner() override { return *nics_.back(); }
  bool connection_manager() const override { return connection_manager_; }
  bool can_cut() const override { return setting("MOONPOOL_TEST_RDMA_CUT") == "1" && !nics_.back()->info().interface.empty(); }
  void cut() override { set_link("down"); }
  void mend() override {
    set_link("up");
    const Deadline deadline = Deadline::after(std::chrono::seconds(10));
    while (!(user().up() && owner().up()) && !deadline.expired()) std::this_thread::yield();
  }
  // soft-RoCE hands packets to itself over no interface; iWARP's TCP waits for a link for many minutes.
  bool traffic_needs_the_link() const override { return nics_.size() > 1 && !nics_.front()->info().iwarp; }

 private:
  void set_link(const std::string& state) {
    const std::string command = "ip link set " + owner().info().interface + " " + state;
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }

  std::vector<std::unique_ptr<Nic>> nics_;
  const bool connection_manager_;
};

Result<std::unique_ptr<Rig>> make(bool connection_manager) {
  Options options;
  options.device_names = setting("MOONPOOL_TEST_RDMA_DEVICES");
  if (options.device_names.empty()) return std::unique_ptr<Rig>();
  auto nics = open_nics(options);
  if (!nics.ok()) return nics.status();
  return std::unique_ptr<Rig>(new VerbsRig(std::move(*nics), connection_manager));
}

}  // namespace

std::vector<RigCase> verbs_rig_cases() {
  const std::string missing = "MOONPOOL_TEST_RDMA_DEVICES names no device";
  return {{"Verbs", [] { return make(false); }, missing}, {"VerbsThroughConnectionManager", [] { return make(true); }, missing}};
}

}  // namespace moonpool::transfer::rdma
