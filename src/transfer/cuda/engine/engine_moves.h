// A transfer engine's transfers that touch device memory, from the initiator's side; served_moves.h is the other end.
//
// Pieces go, in this order of preference:
//  1. as before, where both ends are host memory.
//  2. direct, device to device: within this process, or into the memory of another process of this host (CUDA IPC). This process's GPU does
//     the copy; the peer's part is a hold for the time of it (wire::DeviceHoldRequest).
//  3. by NIC, one-sided, where the NICs at both ends reach the memory there (GPUDirect RDMA): registered device memory that could be given
//     to them, and the host's. No byte passes through host memory on its way to or from a device.
//  4. staged: pinned memory of Runtime::staging() in windows of at most kWindowBytes, so that one is copied while the one before it is on
//     the wire. The peer's device memory is then reached over TCP, its host memory also by RDMA.
// What keeps a peer's device memory from being reached directly is said once for each incarnation of it, what keeps NICs from ours once a
// device.
//
// Order: copies come after what is queued on the stream of the transfer (the legacy default stream unless named otherwise); a NIC is in no
// stream's order, so this thread waits for that before it has one work. With the peer's streams one-sided work has no order at all: the
// peer uses what was written once it is told of it, and kernels that it launches then see it. Threads: any.
// Lifetime: the engine's; the runtime outlives it. An engine that never had device memory costs one look at an empty list per transfer.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "net/lane_pool.h"
#include "transfer/cuda/engine/direct_copy.h"
#include "transfer/cuda/engine/ipc_mappings.h"
#include "transfer/cuda/engine/peer_hold.h"
#include "transfer/cuda/engine/piece_groups.h"
#include "transfer/cuda/engine/staged_window.h"
#include "transfer/cuda/runtime.h"
#include "transfer/dma_buf.h"
#include "transfer/opcode.h"
#include "transfer/registered_memory.h"
#include "transfer/segment_directory.h"

namespace moonpool::transfer::cuda {

struct MoveCounters {
  std::atomic<std::uint64_t> direct_bytes{0};
  std::atomic<std::uint64_t> gpudirect_bytes{0};
  std::atomic<std::uint64_t> staged_bytes{0};  // by this side's staging memory
};

class EngineMoves {
 public:
  static constexpr std::uint64_t kWindowBytes = std::uint64_t{4} << 20;
  using FindRuntime = std::function<Runtime*()>;
  using Regions = std::span<const RegisteredMemory::Run>;  // RegisteredMemory::Hold::with_devices()

  // `lanes` are those of all transfers to peers.
  EngineMoves(FindRuntime find, const net::Identity& identity, net::LanePool& lanes);
  ~EngineMoves();

  // ---- registered memory
  // Null for host memory. kInvalidParams for a range that begins and ends in different memories.
  [[nodiscard]] Result<std::shared_ptr<DevicePlace>> place(const AddressRange& range);
  // Whether NICs reach device memory now: `add` registers it with them. The log says that they do, or why not, once a device.
  [[nodiscard]] bool give_to_nics(const AddressRange& range, int device, const std::function<Status(const DmaBuf&)>& add);
  void forget(std::uint64_t address);
  // Adds what peers need to know of device memory; `regions` are the descriptor's buffers in order.
  void describe(std::span<const RegisteredMemory::Region> regions, wire::EngineDescriptor& descriptor) const;

  // ---- transfers
  struct Transfer {
    Opcode opcode = Opcode::kRead;
    std::span<const Piece> pieces;
    Regions local;  // of the pieces' local ends, held; empty: all host memory
    std::optional<Stream> after;
    Deadline deadline;
  };
  // How the engine reaches a peer's host memory.
  struct Network {
    std::function<Status(std::span<const Piece>)> host_to_host;
    std::function<Status(std::span<const Piece>)> one_sided;  // by NIC alone, kUnavailable where that fails; empty: there are none
    bool tcp = true;                                          // may be used
  };
  // Whether a transfer needs move().
  [[nodiscard]] static bool concerns(const RemoteSegment& peer, std::span<const Piece> pieces, Regions local);
  // kStaleIncarnation: the peer's memory is not what `peer` says (any more).
  [[nodiscard]] Status move(const RemoteSegment& peer, const Transfer& transfer, const Network& network);
  // Within this engine's own memory; `remote`: of the pieces' other ends, held as well.
  [[nodiscard]] Status move_within(const Transfer& transfer, Regions remote);
  // Host memory that work on the stream writes or reads may be touched afterwards.
  [[nodiscard]] Status wait_for_stream(Stream stream, Deadline deadline);

  // Transfers under way end with kCancelled soon.
  void cancel() { lanes_.close(); }
  [[nodiscard]] const MoveCounters& counters() const { return counters_; }
  [[nodiscard]] std::size_t open_mappings() const { return mappings_.size(); }

 private:
  static constexpr int kHost = -1;  // in place of a device's number
  // A piece, and the device of its local end (kHost: none).
  struct Located {
    Piece piece;
    int device = 0;
    const void* local = nullptr;  // what it is in: neighbours in the same are one piece
    const void* remote = nullptr;
  };
  using LocatedPieces = std::vector<Located>;
  class Carrier;
  class LaneCarrier;
  class HostCarrier;
  class MemoryCarrier;
  class Frames;
  class Windows;

  using Batches = std::map<int, std::vector<DirectCopy::Batch>>;  // by the device that copies
  static Status no_cuda();
  static Status wrapped(const char* what, const Status& status);
  static int device_of(const RegisteredMemory::Region* region);
  static void append(LocatedPieces& pieces, const Located& next);
  Status direct(Runtime& runtime, const RemoteSegment& peer, const Transfer& transfer, const PieceGroups<RemoteRange>& groups,
                Stream after);
  Result<PeerHold> take_hold(const RemoteSegment& peer, const PieceGroups<RemoteRange>& groups, Deadline deadline);
  Result<std::uint64_t> reach(Runtime& runtime, const RemoteSegment& peer, const RemoteRange& range, int device,
                              std::vector<IpcMappings::Use>& uses);
  Status by_nic(Runtime* runtime, const Transfer& transfer, const Network& network, const LocatedPieces& pieces, Stream after);
  Status copy(Runtime& runtime, Opcode opcode, const Batches& by_device, Stream after, bool reachable, Deadline deadline);
  Status staged(Opcode opcode, const LocatedPieces& pieces, Stream after, Carrier& carrier, Deadline deadline);
  Status write_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline);
  Status read_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline);
  // The stream for the copier; waits for the one that was named where the copier cannot.
  Result<Stream> order(Runtime* runtime, const Transfer& transfer);
  Status wait_for_stream(Runtime& runtime, Stream stream, const std::set<int>& devices, Deadline deadline);
  [[nodiscard]] Status allow(Runtime& runtime, int device, int peer);
  [[nodiscard]] std::optional<int> device_with(Runtime& runtime, const std::string& uuid);
  void say_once(const RemoteSegment& peer, const std::string& why);

  const FindRuntime find_;
  net::LanePool& lanes_of_all_;
  net::LanePool lanes_;  // second lanes of staged transfers, and those of holds
  IpcMappings mappings_;
  CopyStreams streams_;
  MoveCounters counters_;
  std::mutex mutex_;       // guards what follows
  std::set<int> devices_;  // that memory was registered on
  std::map<std::string, int> by_uuid_;
  std::map<std::pair<int, int>, Status> access_;  // of a device to another
  std::set<Incarnation> said_;
  std::set<int> said_nics_, said_no_nics_;  // by device
};

}  // namespace moonpool::transfer::cuda
