// The owner side of a node: the segments that it lends, the catalogue of complete extents in each, and the rules under which peers touch
// them (DESIGN.md, "Truth about memory"). The catalogue is the durable truth from which a master rebuilds its tables.
//
// Rules kept here, whatever the path:
//  - a data request names the segment's incarnation; another one's is refused;
//  - a write is accepted under a grant (a Version) that is of the current term, not retired, and not older than the oldest live grant;
//    it enters the catalogue only when all its bytes and checksums have arrived and the grant still holds;
//  - a read names the extent's version, and pins it while bytes leave;
//  - retiring an extent takes it out of the catalogue at once, refuses and aborts its writer, and is acknowledged only when no writer and
//    no reader touches its memory any more;
//  - writers of other processes that copy into shared memory (shm/) are taken into the catalogue before anything is decided about it
//    (remote_writers.h), so all of this holds for them too;
//  - adopting a higher term aborts the writes in flight and waits until they have left, so that a catalogue snapshot taken
//    afterwards is complete and no older grant can change memory any more.
//
// Costs: one tree node per extent (about 150 bytes and its key; catalogue.h); no allocation per read. Memory is mapped at mount and
// touched ahead in the background (MADV_POPULATE_WRITE), so that a put never pays for the first touch.
// Threads: all methods from any thread; a mutex per segment, never held while bytes move or a hook runs. Lifetime: outlives the server that
// serves it. Pins keep their segment's memory mapped, so one that is late is late, never a crash (lent memory excepted). So does whoever
// holds a Region's keeper, which holds up nothing else: unmount() and remount() do not wait for keepers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "transfer/transport.h"

namespace moonpool::net {
class Server;
}

namespace moonpool::transfer {

// A complete extent, as reported to the master; or one that was retired and is still read, so that its space is not free.
struct CatalogueEntry {
  std::string key;  // empty: retired
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version;
  std::uint64_t checksum = 0;  // root
};

struct SegmentStatus {
  Incarnation incarnation;
  std::uint64_t size = 0;
  std::uint64_t base = 0;  // address of offset 0
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;  // in complete extents
  bool touched = false;     // the background touch has finished
};

struct RetirementOrder {
  std::uint64_t sequence = 0;
  ExtentRef extent;
};

struct Extent;
class RemoteWriters;
class SegmentListener;
class SegmentMemory;
enum class HugePages : std::uint8_t;

class Owner {
 public:
  static constexpr std::chrono::seconds kReaderPatience{1};

  Owner();
  ~Owner();
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

  // Maps `size` bytes (rounded up to pages, ordinary ones unless asked otherwise) under a new incarnation. kInternal naming the size and
  // the limit when memory cannot be had.
  [[nodiscard]] Result<Incarnation> mount(std::uint64_t size, HugePages huge_pages = {});
  // Lends memory of the caller's, which must stay valid until unmount() has returned.
  [[nodiscard]] Result<Incarnation> mount(MutableBytes memory);
  // Stops all access (aborting writers and readers, waiting until they have left) and frees the memory. Readers of memory that we mapped
  // are not waited for: it is freed when the last has left, and the last keeper (Region) is gone. kStaleIncarnation when it is not mounted;
  // kRpcTimeout when somebody has not left in time: all further access is refused already, and the call may be repeated.
  Status unmount(const Incarnation& incarnation, Deadline deadline);
  // The same memory, emptied, under a new incarnation: the old one was fenced by the master. Readers are waited for, but not longer than
  // kReaderPatience when the memory was mapped by us: views last as long as their users like, so they keep their pages, and the segment
  // goes on with other memory in place of the old. Errors as unmount(), and mount().
  [[nodiscard]] Result<Incarnation> remount(const Incarnation& incarnation, Deadline deadline);
  [[nodiscard]] std::vector<SegmentStatus> segments() const;

  // Takes part in a (new) reign: see above. kStaleTerm when `term` is older than the current one; kRpcTimeout when a writer has not left in
  // time: the term is adopted, but no catalogue may be reported before a repeated call has succeeded.
  Status adopt_term(Term term, Deadline deadline);
  [[nodiscard]] Term term() const;
  [[nodiscard]] std::vector<CatalogueEntry> catalogue(const Incarnation& incarnation) const;

  // Starts the retirements (repeating one is harmless) and returns the sequences of all orders, old and new, that are complete by now
  // or become so while these are waited for, within the deadline (while all are, when none is given). Orders for unknown incarnations are
  // complete at once. Returned sequences are forgotten; those of an older term are forgotten by adopt_term, because sequences belong to one
  // master.
  [[nodiscard]] std::vector<std::uint64_t> retire(std::span<const RetirementOrder> orders, Deadline deadline);
  // Those orders that are complete but for readers, who may take their time (a view lasts as long as its user likes): nobody finds the
  // extent any more, and nobody will, but its space is not free.
  [[nodiscard]] std::vector<std::uint64_t> withdrawn() const;
  // Grants older than this are refused from now on (their writers are stopped), and what was remembered of them is forgotten.
  void set_oldest_grant(Version version);

  // --- used by transports of this process -------------------------------------------------------------------------------------

  struct Segment;  // defined in owner.cpp

  // A writer's or reader's hold on an extent; released on destruction. Move-only.
  class Pin {
   public:
    Pin(Pin&&) noexcept;
    Pin& operator=(Pin&&) noexcept;
    ~Pin();
    [[nodiscard]] MutableBytes memory() const;                       // the extent's
    [[nodiscard]] Region region() const;                             // that it is in; empty when it is lent: nothing keeps that
    [[nodiscard]] std::span<const std::uint64_t> checksums() const;  // readers: of its chunks; valid while pinned
    // Writers: true when the grant was retired meanwhile; stop and drop the pin.
    [[nodiscard]] bool cancelled() const;

   private:
    friend class Owner;
    enum class Role : std::uint8_t { kWriter, kReader };
    Pin(std::shared_ptr<Segment> segment, Extent* extent, Role role, std::uint64_t ticket);
    void release();

    std::shared_ptr<Segment> segment_;  // empty once moved from or released
    Extent* extent_ = nullptr;          // a node of its catalogue; stays at its address while pinned
    Role role_ = Role::kReader;
    std::uint64_t ticket_ = 0;  // of the reader's abort hook; 0: it has none
  };
  // `abort` is called (from any thread, at most once, never with a lock held) when the write has to stop, e.g. Session::abort; it may come
  // when the write has just ended. Errors: kStaleIncarnation, kStaleTerm, kInvalidWrite (outside the segment, or overlapping another
  // extent), kObjectAlreadyExists (this very put is complete here), kUnavailable (an earlier attempt at this write is being stopped: try
  // again).
  [[nodiscard]] Result<Pin> begin_write(const ExtentRef& extent, std::function<void()> abort);
  // Publishes the extent. Consumes the pin. kStaleTerm when the grant was retired meanwhile; kInvalidWrite for a wrong number of checksums.
  [[nodiscard]] Status complete_write(Pin pin, std::string_view key, std::span<const std::uint64_t> chunk_checksums);
  // For a write that begin_write() found complete already: its writer did not see the answer to its first attempt. Ok only if these are the
  // checksums of what is complete; kInvalidWrite for other bytes, kStaleTerm when the extent was retired meanwhile.
  [[nodiscard]] Status confirm_write(const ExtentRef& extent, std::span<const std::uint64_t> chunk_checksums);
  // extent.length 0: whatever it is. `abort`, if given, is called as above when the segment is unmounted. kReplicaGone, kStaleIncarnation,
  // kInvalidRead.
  [[nodiscard]] Result<Pin> begin_read(const ExtentRef& extent, std::function<void()> abort = {});

  // From now on `writers` (remote_writers.h) hears of every change; null: nobody does. It is told what holds already.
  void attach(std::shared_ptr<RemoteWriters> writers);
  // From now on `listener` (segment_listener.h) hears of every opening and closing, of those that are open at once. Until forget().
  void listen(std::shared_ptr<SegmentListener> listener);
  // It may hear of one more change that is being told already.
  void forget(const SegmentListener& listener);
  // The memory behind a mounted segment, for those who share it; null when it is not mounted (any more).
  [[nodiscard]] std::shared_ptr<SegmentMemory> memory_of(const Incarnation& incarnation) const;

  // Registers METHOD_WRITE and METHOD_READ at the process's server (tcp/extent_service.cpp).
  void serve(net::Server& server);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer
