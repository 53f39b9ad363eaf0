// Any rig of the conformance tests with device paths in front of its transport, and pieces on (fake) devices.
#pragma once

#include <utility>

#include "transfer/cuda/device_memory_for_test.h"
#include "transfer/transport_rigs_for_test.h"

namespace moonpool::transfer::cuda {

template <typename Base>
class DeviceRig : public Base {
 public:
  // `arguments`: those of the rig below.
  template <typename... Arguments>
  DeviceRig(Place place, const FakeOptions& options, Arguments&&... arguments)
      : Base(std::forward<Arguments>(arguments)...),
        fake_(test_settings(kStaging), options),
        paths_(Base::transport(), true, fake_.find()),
        on_devices_(fake_.driver(), paths_, std::move(place)) {
    if constexpr (requires { Base::nics(); }) paths_.use_nics(Base::nics());
  }

  // Segments that were met are pinned before the next batch.
  Transport& transport() override {
    EXPECT_TRUE(fake_.runtime().regions().wait_settled(soon()));
    return on_devices_;
  }

 private:
  static constexpr std::uint64_t kStaging = std::uint64_t{4} << 20;  // less than the largest objects

  FakeRuntime fake_;
  DevicePaths paths_;
  OnDevices on_devices_;
};

}  // namespace moonpool::transfer::cuda
