// What the RDMA transport asks of a network card (NIC), as thin as it can be: register memory, make a reliable connected queue pair, post
// one-sided reads and writes, see them completed. verbs/ implements it on libibverbs; simulated_nic.h does in this process, with faults on
// command; nic_conformance_test.cpp tells when an implementation is right.
//
// What holds for every implementation (InfiniBand Architecture Specification, volume 1, chapters 9 to 11; RFC 5040 for iWARP):
//  - a queue pair carries out its work requests in order and reports them in order; an unsignalled one is reported only when it fails;
//  - once one has failed, the queue pair is broken and all later ones are reported as flushed; all before it have been carried out, also
//    those that were not signalled;
//  - a key that is refused comes as kRefused, a wrong local one as kLocal. With iWARP both may come as kPath instead, because there the
//    connection ends; and the one that is reported first is then one at or before the refused one;
//  - after ~QueuePair() and ~Registration() have returned no byte of the memory behind them moves any more, in either direction, whatever
//    the peer does: this is what fencing is built on;
//  - a peer whose own queue pair is gone learns it as a failed work request, within the retry time; connected by rdma_cm it may learn it
//    without one, and then its post() is refused.
//
// Costs: post() is one doorbell for the whole list. Nothing here copies a byte.
// Threads: a Nic from any; a QueuePair from one at a time, but break_off() from any. A NIC outlives what was made of it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/dma_buf.h"
#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

// A port's address on its fabric: for RoCE v2 the IP address of the interface ("::ffff:a.b.c.d" for IPv4), for InfiniBand prefix and GUID.
struct Gid {
  enum class Kind : std::uint8_t { kInfiniBand, kRoceV1, kRoceV2, kIwarp };
  std::array<std::uint8_t, 16> bytes{};
  Kind kind = Kind::kRoceV2;
  std::uint32_t index = 0;          // in the port's table
  std::uint32_t prefix_length = 0;  // of the interface's network, in bits of the 128; 0: unknown
};

struct NicInfo {
  std::string name;  // as in "device_name": "mlx5_0", "erdma_0"
  std::uint32_t port = 1;
  bool infiniband = false;  // the link layer; else Ethernet
  bool iwarp = false;       // queue pairs can be connected by rdma_cm alone
  std::string interface;    // "eth0"; empty for InfiniBand without IPoIB
  std::string driver;       // "mlx5_core", "erdma", "rdma_rxe"
  std::int32_t numa_node = -1;
  std::string pci_address;  // "0000:3b:00.0"; empty for a virtual device
  std::uint64_t guid = 0;
  std::uint32_t lid = 0;                // InfiniBand
  std::uint32_t mtu = 0;                // bytes, active
  std::vector<Gid> gids;                // all valid ones, as the port's table has them now
  std::uint32_t max_work_requests = 0;  // of one queue pair
  std::uint32_t max_pieces = 1;         // local pieces of one write
  std::uint32_t max_read_pieces = 1;    // local pieces of one read (1 for most iWARP NICs)
  std::uint32_t max_reads_out = 1;      // reads and atomics under way that this NIC starts, per queue pair
  std::uint32_t max_reads_in = 1;       // and that it serves
  std::uint64_t max_message = std::uint64_t{1} << 30;
  bool read_needs_remote_write = false;  // iWARP: the destination of a read is registered as if peers were to write it
};

enum class Access : std::uint8_t {
  kLocal,   // this process's own work requests use it
  kServed,  // peers read and write it
};

// Memory that a NIC may touch, until it is destroyed.
class Registration {
 public:
  virtual ~Registration() = default;
  [[nodiscard]] virtual std::uint32_t local_key() const = 0;
  [[nodiscard]] virtual std::uint32_t remote_key() const = 0;
};

// What the other side has to know of a queue pair to be connected with it.
struct QueuePairAddress {
  std::uint32_t number = 0;
  std::uint32_t first_packet = 0;  // sequence number of 24 bits
  std::uint32_t lid = 0;
  std::uint32_t mtu = 0;  // bytes; the smaller of both is used
  std::uint32_t reads_in = 1;
  Gid gid;  // the one that was chosen for this path (gid_choice.h)
  // With rdma_cm: where the passive side listens, and the ticket by which it knows for whom the connection is.
  std::string cm_host;
  std::uint32_t cm_port = 0;
  std::uint64_t cm_ticket = 0;
};

enum class Role : std::uint8_t { kActive, kPassive };  // who opens: the user of memory is active, its owner passive

struct QueuePairOptions {
  Role role = Role::kActive;
  Gid gid;                            // of ours, from which the path starts; the active side learns it by the peer's answer: see connect()
  std::uint32_t work_requests = 256;  // outstanding at most; lowered to what the NIC can
  std::uint32_t traffic_class = 0;    // RoCE: DSCP << 2
  std::uint32_t service_level = 0;    // InfiniBand: the virtual lane; RoCE: priority
  std::uint32_t mtu = 0;              // bytes; 0: the port's
  std::uint32_t ack_timeout = 14;     // 4.096 us << ack_timeout: 67 ms
  std::uint32_t retries = 3;          // after so many of those without an answer the peer or the path counts as failed
  bool connection_manager = false;    // through rdma_cm although the NIC can do without
  std::chrono::milliseconds connect_timeout{1000};
};

struct WorkRequest {
  enum class Operation : std::uint8_t { kWrite, kRead };
  struct Piece {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    std::uint32_t local_key = 0;
  };
  std::uint64_t id = 0;  // comes back in the completion
  Operation operation = Operation::kWrite;
  bool signalled = false;
  std::uint64_t remote_address = 0;
  std::uint32_t remote_key = 0;
  std::span<const Piece> pieces;  // at most max_pieces (max_read_pieces); valid during post()
};

struct Completion {
  enum class Outcome : std::uint8_t {
    kDone,
    kFlushed,  // the queue pair was broken before it was this one's turn
    kPath,     // no answer within the retries, or the NIC or port is down: another path may do better
    kRefused,  // the peer's NIC has no such memory or right (any more): its registration or queue pair is gone (iWARP: perhaps kPath)
    kLocal,    // this side's memory, length or request is wrong
  };
  std::uint64_t id = 0;
  Outcome outcome = Outcome::kDone;
  const char* reason = "";  // the library's words for it; lives for ever
};

class QueuePair {
 public:
  virtual ~QueuePair() = default;
  [[nodiscard]] virtual QueuePairAddress address() const = 0;
  // Both sides call it with the other's address; the active side's is ready to send afterwards. With rdma_cm the passive side returns at
  // once and is connected when the active one has come. `from`: the GID of ours from which the path starts. The passive side gave it in its
  // options already; the active one has offered all of its NIC's, and the peer has chosen.
  [[nodiscard]] virtual Status connect(const QueuePairAddress& peer, const Gid& from) = 0;
  // All or nothing is posted. kUnavailable when the queue pair is broken, kInternal with the reason otherwise (the queue is full, say: the
  // caller counts).
  [[nodiscard]] virtual Status post(std::span<const WorkRequest> requests) = 0;
  // Never blocks. The number of completions put into `into`.
  [[nodiscard]] virtual std::size_t poll(std::span<Completion> into) = 0;
  // To sleep for the next completion: arm(), poll() once more, then poll(2) on event_fd() for POLLIN, then clear_event() and poll().
  [[nodiscard]] virtual Status arm() = 0;
  [[nodiscard]] virtual int event_fd() const = 0;
  virtual void clear_event() = 0;
  // Everything outstanding is flushed, nothing new is taken. Any thread, also while another is in post() or poll().
  virtual void break_off() = 0;
};

class Nic {
 public:
  virtual ~Nic() = default;
  [[nodiscard]] virtual const NicInfo& info() const = 0;
  // The port is active. Kept by the NIC's events: one atomic load.
  [[nodiscard]] virtual bool up() const = 0;
  // `changed` is called whenever up() has changed, from a thread of the NIC's; set once, before use.
  virtual void watch(std::function<void()> changed) = 0;
  // Pins the pages. kUnavailable naming the limit (memlock), the size and the remedy when it is refused.
  [[nodiscard]] virtual Result<std::unique_ptr<Registration>> register_memory(MutableBytes memory, Access access) = 0;
  // A device's memory. kNotSupported with the reason when the NIC, its driver or the kernel cannot reach that device; else as above.
  [[nodiscard]] virtual Result<std::unique_ptr<Registration>> register_dma_buf(MutableBytes memory, const DmaBuf& buffer,
                                                                               Access access) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<QueuePair>> make_queue_pair(const QueuePairOptions& options) = 0;
  // As the port's table is now (an interface may have got another address since).
  [[nodiscard]] virtual std::vector<Gid> gids() const = 0;
};

}  // namespace moonpool::transfer::rdma
