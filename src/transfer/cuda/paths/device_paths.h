// The paths of a process for callers whose pieces may lie in device memory: a Transport in front of the PathSelector.
//
// A batch whose pieces are all host memory passes through untouched. Operations on device memory take, in this order:
//  1. in place, where the peer's segment is memory of this process (local, shm): the copier's kernel writes straight into the extent that
//     write_in_place() opens, or reads the extent that view() pins, with the checksums in the same pass. No byte is copied twice.
//  2. by NIC, where the peer is reached over RDMA and the NICs reach the device (GPUDirect): gathered in memory of the device, with the
//     checksums in the same pass, from which the NICs send; the same backwards. No byte passes through the host's memory.
//  3. staged, for all other peers: pinned memory, in windows, so that one window is copied while the one before it is on the wire.
//     The path below (tcp, rdma) sees host pieces and knows nothing of devices.
// What cannot go by the first two (a segment not pinned yet, a part of an extent, pieces on several devices or partly in host memory) is
// staged. The checksum rules of transport.h hold on all ways. The host never touches device memory, and host pieces of an operation are
// never staged: only the runs of pieces between them that are on a device.
//
// Cost: without CUDA in this process one load per call; with it, each piece is looked up (runtime.h). A batch with both kinds of operations
// is two batches for the path below. Segments are pinned in the background from their first use on, so the first batches are staged.
// After the deadline a call returns when what was queued on the device has ended, with kRpcTimeout: nothing can take it back.
//
// Threads: any; use_nics() before use, release_nics() after it. Lifetime: the paths outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "transfer/cuda/paths/device_operations.h"
#include "transfer/cuda/paths/nic_rings.h"
#include "transfer/cuda/runtime.h"
#include "transfer/transport.h"

namespace moonpool::transfer::cuda {

class DevicePaths final : public Transport {
 public:
  using FindRuntime = std::function<Runtime*()>;
  // `verify` off, as the paths' own: reads are not checked against checksums.
  explicit DevicePaths(Transport& paths, bool verify = true, FindRuntime find = Runtime::of_process)
      : paths_(paths), verify_(verify), find_(std::move(find)) {}
  // The NICs of `paths`; they outlive their use.
  void use_nics(rdma::MemoryMap& nics) { nics_ = std::make_unique<NicRings>(nics); }
  void release_nics() { nics_.reset(); }
  // Makes ready what data of the device needs to go by NIC. False: it does not; the log has the reason.
  [[nodiscard]] bool prepare_nics(int device) { return nics_ring(find_(), device) != nullptr; }

  [[nodiscard]] std::string_view name() const override { return "cuda"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return paths_.reaches(peer); }
  [[nodiscard]] std::string why_not(const Peer& peer) const override { return paths_.why_not(peer); }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;
  void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) override { paths_.view(peer, operations, deadline); }
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override {
    paths_.write_in_place(peer, operations, fill, deadline);
  }

  // Of device memory, in operations that succeeded.
  struct Counters {
    std::atomic<std::uint64_t> in_place_bytes{0};
    std::atomic<std::uint64_t> by_nic_bytes{0};
    std::atomic<std::uint64_t> staged_bytes{0};
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  [[nodiscard]] Staging* nics_ring(Runtime* runtime, int device);
  template <typename Operation, typename Move>
  void by_nic(Runtime& runtime, const Peer& peer, std::span<Operation> operations, std::vector<DeviceOperation>& chosen, Deadline deadline,
              const Move& move);

  Transport& paths_;
  const bool verify_;
  const FindRuntime find_;
  Counters counters_;
  std::unique_ptr<NicRings> nics_;  // null: no NICs
};

}  // namespace moonpool::transfer::cuda
