// The contract of a path over which extents travel between this process's memory and a segment, its own or a peer's.
//
// To add a transport: say which peers it reaches, then move whole batches. A batch goes to one peer; each operation gets its own outcome
// in `status`, and one operation's failure leaves the others alone where the path allows it. A read succeeds only if incarnation, version
// and checksums held to its end; otherwise its destination's content is undefined and `status` says why:
//   kStaleIncarnation, kReplicaGone (evicted, replaced), kChecksumMismatch, kStaleTerm (grant refused), kInvalidWrite / kInvalidRead
//   (outside the segment), kTransferFail / kUnavailable / kRpcTimeout (the path or the peer), kCancelled.
// After a write returned an error the peer's memory may hold any part of it; it becomes visible to nobody, because only the owner's
// catalogue and the master's commit make an extent an object.
//
// Threads: any number of callers at once; calls block until all operations have an outcome or the deadline has passed (then no byte
// of the caller's memory is touched any more). fake_transport.h implements this with faults on command; transport_conformance_test.cpp
// tells when an implementation is right. A one-sided path (rdma) may deliver a whole extent just retired, while its bytes are still right.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "net/endpoint.h"

namespace moonpool::transfer {

using ConstBytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

struct Peer {
  NodeId node;
  net::Endpoint endpoint;
};

// One object's bytes within a mounted segment. The version is both identity (reads) and grant (writes).
struct ExtentRef {
  Incarnation incarnation;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version;
};

struct WriteOperation {
  ExtentRef extent;
  std::string_view key;                // qualified by tenant; goes into the owner's catalogue
  std::span<const ConstBytes> source;  // sizes add up to extent.length
  // Outcome:
  Status status;
  std::uint64_t checksum = 0;  // root checksum of what was written (checksum.h), valid when status is ok
  // For write_device(): of the source's chunks.
  std::span<const std::uint64_t> checksums{};
};

struct ReadOperation {
  ExtentRef extent;
  std::uint64_t start = 0;  // the range wanted, within the extent; any alignment
  std::uint64_t length = 0;
  std::span<const MutableBytes> destination;  // sizes add up to length
  std::uint64_t checksum = 0;                 // the object's root checksum, from the master; checked when the whole extent is read
  // Outcome:
  Status status;
};

// A segment's whole memory in this process, for those who want to register it somewhere (CUDA).
// Empty where nothing could keep it mapped (memory lent by an application): not to be registered then.
struct Region {
  MutableBytes memory;
  std::shared_ptr<const void> keeper;  // keeps it mapped, and holds up nobody; one object a mapping
};

// A whole extent, looked at where it lies.
struct ViewOperation {
  ExtentRef extent;
  std::uint64_t checksum = 0;  // as in ReadOperation
  bool verified = true;        // false: the caller compares `checksum` with the bytes itself
  // False: the extent may be given away and written while the caller looks, who finds out by `checksum`, and then tries again with a pin.
  // Saves the owner's answer where memory is shared with another process.
  bool pinned = true;
  // Outcome:
  Status status;
  Region region{};                            // that the bytes are in
  ConstBytes bytes{};                         // mapped while `pin` lives, whatever becomes of transport, owner and peer
  std::shared_ptr<const void> pin = nullptr;  // its end releases the extent, if it is pinned; any thread, never blocks
};

// An extent that its writer fills where it lies.
struct OpenExtent {
  std::size_t operation = 0;  // its index in the batch
  MutableBytes memory;        // the extent's, to be written whole
  Region region;              // that it is in
  // Outcome: one checksum a chunk (checksum.h) of what was written, or an error, with which the write is given up.
  std::vector<std::uint64_t> checksums;
  Status status;
};
// Fills as many extents as it is given, all at once if it likes, on the caller's thread; returns when no byte of them is touched any more,
// whoever writes them (a GPU, say). Nothing interrupts it: a retirement, a new term or an unmount that comes meanwhile is acknowledged only
// after it has returned and the write was given up, so it should take no longer than the bytes do. What it throws passes through, once
// its extents were given up; that, too, only when nothing touches them any more. The statuses then say nothing.
using Fill = std::function<void(std::span<OpenExtent> extents)>;

class Transport {
 public:
  virtual ~Transport() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;  // "local", "tcp"
  // May connect at first (bounded by half a second). A batch that then fails with kUnavailable or kNotSupported may take another path.
  [[nodiscard]] virtual bool reaches(const Peer& peer) const = 0;
  virtual void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) = 0;
  virtual void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) = 0;

  // What a path may do.
  // Why reaches() was false, for people ("other host"); empty when there is nothing to say.
  [[nodiscard]] virtual std::string why_not(const Peer&) const { return {}; }
  // Pins extents and verifies them in place, without a copy. Paths without common memory answer kNotSupported.
  virtual void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline);
  // As write(), but `fill` writes the bytes: the operations' sources are not looked at. Called once or more, for some extents each time,
  // under the rules of a write in flight: what is retired meanwhile ends with kStaleTerm. Extents that overlap within the batch, and a
  // wrong number of checksums, are kInvalidWrite. Nothing is opened after the deadline; what was filled by then is completed, however long
  // it took. Paths without common memory answer kNotSupported.
  virtual void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline);
  // Whether the next two are worth an attempt: this process's NICs reach the peer's memory, and devices' (GPUDirect RDMA).
  [[nodiscard]] virtual bool moves_device_memory(const Peer&) const { return false; }
  // As write(), from device memory that was registered with this process's NICs. The host does not touch it, so each operation brings the
  // checksums of its source's chunks, which is what the owner keeps. Paths without NICs answer kNotSupported.
  virtual void write_device(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline);
  // As read(), of whole extents into such memory, and nothing is verified: ok says that bytes have arrived, which are another object's
  // where the extent was given away meanwhile. The caller compares them with `checksum`, and reads as usual what differs, or failed for
  // whatever reason but kRpcTimeout and kCancelled.
  virtual void read_device(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline);
};

}  // namespace moonpool::transfer
