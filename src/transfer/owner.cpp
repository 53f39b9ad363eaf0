#include "transfer/owner.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "base/sync_point.h"
#include "transfer/catalogue.h"
#include "transfer/checksum.h"
#include "transfer/grant_ledger.h"
#include "transfer/remote_writers.h"
#include "transfer/segment_listener.h"
#include "transfer/segment_memory.h"

namespace moonpool::transfer {

namespace {

// Tells those who wait for somebody to leave that somebody has. Shared by all segments of an owner; survives it in late pins.
class Departures {
 public:
  void announce() {
    {
      const std::scoped_lock lock(mutex_);
      ++count_;
    }
    changed_.notify_all();
  }

  // `done` takes the segments' locks itself; it is called again after each departure.
  template <typename Done>
  bool wait(const Done& done, Deadline deadline) {
    for (;;) {
      std::uint64_t seen = 0;
      {
        const std::scoped_lock lock(mutex_);
        seen = count_;
      }
      if (done()) return true;
      std::unique_lock lock(mutex_);
      if (!changed_.wait_until(lock, deadline.time(), [&] { return count_ != seen; })) {
        lock.unlock();
        return done();
      }
    }
  }

 private:
  std::mutex mutex_;  // guards count_; never held together with a segment's
  std::condition_variable changed_;
  std::uint64_t count_ = 0;
};

void call_all(std::vector<AbortHook>& hooks) {
  for (const auto& hook : hooks) hook();
  hooks.clear();
}

bool anyone(const Extent&) { return true; }

}  // namespace

struct Owner::Segment {
  Segment(Incarnation id, std::shared_ptr<SegmentMemory> bytes, Term term, std::shared_ptr<Departures> leaving)
      : incarnation(id), memory(std::move(bytes)), departures(std::move(leaving)), ledger(term), catalogue(memory->bytes().size()) {}

  // Refuses all access from now on and aborts those who have it.
  void close() {
    std::vector<AbortHook> aborts;
    {
      const std::scoped_lock lock(mutex);
      closing = true;
      catalogue.cancel_writers(anyone, aborts);
      for (auto& [ticket, hook] : reader_aborts) aborts.push_back(std::move(hook));
      reader_aborts.clear();
    }
    call_all(aborts);
  }
  bool idle() {
    const std::scoped_lock lock(mutex);
    return catalogue.idle();
  }
  bool has_writers() {
    const std::scoped_lock lock(mutex);
    return catalogue.has_writers();
  }
  // Once it is closed and its writers have left: nobody new comes.
  void free_unread_memory() {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> read;
    {
      const std::scoped_lock lock(mutex);
      read = catalogue.read();
    }
    std::uint64_t at = 0;
    read.emplace_back(memory->bytes().size(), 0);
    for (const auto& [offset, length] : read) {
      memory->discard(at, offset - at);
      at = offset + length;
    }
  }

  const Incarnation incarnation;
  const std::shared_ptr<SegmentMemory> memory;
  const std::shared_ptr<Departures> departures;

  std::mutex mutex;  // guards what follows
  bool closing = false;
  GrantLedger ledger;
  Catalogue catalogue;
  std::map<std::uint64_t, AbortHook> reader_aborts;
  std::uint64_t last_ticket = 0;
};

// ---------------------------------------------------------------- pins

Owner::Pin::Pin(std::shared_ptr<Segment> segment, Extent* extent, Role role, std::uint64_t ticket)
    : segment_(std::move(segment)), extent_(extent), role_(role), ticket_(ticket) {}

Owner::Pin::Pin(Pin&& other) noexcept
    : segment_(std::move(other.segment_)), extent_(std::exchange(other.extent_, nullptr)), role_(other.role_), ticket_(other.ticket_) {}

Owner::Pin& Owner::Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    release();
    segment_ = std::move(other.segment_);
    extent_ = std::exchange(other.extent_, nullptr);
    role_ = other.role_;
    ticket_ = other.ticket_;
  }
  return *this;
}

Owner::Pin::~Pin() { release(); }

void Owner::Pin::release() {
  if (segment_ == nullptr || extent_ == nullptr) return;
  const auto segment = std::move(segment_);
  segment_.reset();
  Extent& extent = *std::exchange(extent_, nullptr);
  bool awaited = false;
  {
    const std::scoped_lock lock(segment->mutex);
    awaited = segment->closing || extent.cancelled.load(std::memory_order_relaxed);
    if (role_ == Role::kWriter) {
      segment->catalogue.abandon_write(extent);
    } else {
      segment->catalogue.end_read(extent);
      if (ticket_ != 0) segment->reader_aborts.erase(ticket_);
    }
  }
  if (awaited) segment->departures->announce();
}

MutableBytes Owner::Pin::memory() const { return segment_->memory->bytes().subspan(extent_->offset, extent_->length); }

Region Owner::Pin::region() const {
  if (segment_->memory->lent()) return {};
  return {segment_->memory->bytes(), segment_->memory};
}

std::span<const std::uint64_t> Owner::Pin::checksums() const { return extent_->checksums(); }

bool Owner::Pin::cancelled() const { return extent_->cancelled.load(std::memory_order_acquire); }

// ---------------------------------------------------------------- the registry of segments

class Owner::Impl {
 public:
  struct PendingRetirement {
    std::shared_ptr<Segment> segment;
    std::uint64_t offset = 0;
    Version version;
  };

  Incarnation add(std::shared_ptr<SegmentMemory> memory) {
    const auto incarnation = Incarnation::generate();
    {
      const std::unique_lock lock(registry_);
      segments_.emplace(incarnation, std::make_shared<Segment>(incarnation, std::move(memory), term_, departures_));
    }
    if (const auto writers = remote(); writers != nullptr) writers->announce_open(incarnation);
    for (const auto& listener : listeners()) listener->announce_open(incarnation);
    return incarnation;
  }

  std::shared_ptr<RemoteWriters> remote() const {
    const std::shared_lock lock(registry_);
    return remote_;
  }
  std::vector<std::shared_ptr<SegmentListener>> listeners() const {
    const std::shared_lock lock(registry_);
    return listeners_;
  }
  // What writers of other processes have done so far is in the catalogues afterwards.
  void harvest() const {
    if (const auto writers = remote(); writers != nullptr) writers->harvest();
  }

  std::shared_ptr<Segment> find(const Incarnation& incarnation) const {
    const std::shared_lock lock(registry_);
    const auto found = segments_.find(incarnation);
    return found == segments_.end() ? nullptr : found->second;
  }

  Result<Pin> pin_for_reading(const ExtentRef& ref, const std::function<void()>& abort) const;

  std::vector<std::shared_ptr<Segment>> all() const {
    std::vector<std::shared_ptr<Segment>> list;
    const std::shared_lock lock(registry_);
    for (const auto& [incarnation, segment] : segments_) list.push_back(segment);
    return list;
  }

  // Ends all access and takes the segment out of the registry. Returns its memory. Memory that is not used again and that nobody else frees
  // may keep its readers.
  Result<std::shared_ptr<SegmentMemory>> withdraw(const Incarnation& incarnation, bool used_again, Deadline deadline) {
    const auto segment = find(incarnation);
    if (segment == nullptr) return stale(incarnation);
    if (const auto writers = remote(); writers != nullptr) {
      writers->announce_closing(incarnation);
      writers->harvest();
    }
    segment->close();
    for (const auto& listener : listeners()) listener->announce_closed(incarnation);
    MOONPOOL_SYNC_POINT("owner.withdraw.closed");
    const auto left = [&] {
      harvest();
      return used_again || segment->memory->lent() ? segment->idle() : !segment->has_writers();
    };
    if (!departures_->wait(left, deadline)) {
      return Status(ErrorCode::kRpcTimeout,
                    "segment " + incarnation.to_string() + " is closed, but a reader or writer has not left it in time: try again");
    }
    const std::unique_lock lock(registry_);
    if (segments_.erase(incarnation) == 0) return stale(incarnation);  // another caller was faster
    return segment->memory;
  }

  static Status stale(const Incarnation& incarnation) {
    return {ErrorCode::kStaleIncarnation, "segment " + incarnation.to_string() + " is not mounted here (any more): ask the master again"};
  }

  std::shared_ptr<Departures> departures_ = std::make_shared<Departures>();
  mutable std::shared_mutex registry_;  // guards segments_, term_, remote_ and listeners_; taken before a segment's mutex
  std::unordered_map<Incarnation, std::shared_ptr<Segment>> segments_;
  Term term_;
  std::shared_ptr<RemoteWriters> remote_;
  std::vector<std::shared_ptr<SegmentListener>> listeners_;
  std::mutex retirements_mutex_;                            // guards retirements_; taken before registry_ and segments' mutexes
  std::map<std::uint64_t, PendingRetirement> retirements_;  // by sequence
};

Owner::Owner() : impl_(std::make_unique<Impl>()) {}

Owner::~Owner() {
  for (const auto& segment : impl_->all()) segment->close();
}

Result<Incarnation> Owner::mount(std::uint64_t size, HugePages huge_pages) {
  auto memory = SegmentMemory::map(size, huge_pages);
  if (!memory.ok()) return memory.status();
  return impl_->add(std::move(*memory));
}

Result<Incarnation> Owner::mount(MutableBytes memory) {
  if (memory.empty()) return Status(ErrorCode::kInvalidParams, "cannot mount a segment of 0 bytes: give it a size");
  return impl_->add(SegmentMemory::lend(memory));
}

Status Owner::unmount(const Incarnation& incarnation, Deadline deadline) {
  const auto memory = impl_->withdraw(incarnation, false, deadline);
  return memory.status();
}

Result<Incarnation> Owner::remount(const Incarnation& incarnation, Deadline deadline) {
  const auto segment = impl_->find(incarnation);
  if (segment == nullptr) return Impl::stale(incarnation);
  const bool may_be_replaced = !segment->memory->lent();
  auto memory = impl_->withdraw(incarnation, true, may_be_replaced ? deadline.sooner(kReaderPatience) : deadline);
  if (memory.ok()) return impl_->add(std::move(*memory));
  if (memory.code() != ErrorCode::kRpcTimeout || !may_be_replaced) return memory.status();
  memory = impl_->withdraw(incarnation, false, deadline);
  if (!memory.ok()) return memory.status();
  segment->free_unread_memory();
  return mount((*memory)->bytes().size(), (*memory)->huge() ? HugePages::kIfReserved : HugePages::kNever);
}

void Owner::attach(std::shared_ptr<RemoteWriters> writers) {
  Term term;
  {
    const std::unique_lock lock(impl_->registry_);
    impl_->remote_ = writers;
    term = impl_->term_;
  }
  if (writers == nullptr) return;
  writers->announce_term(term);
  for (const auto& segment : impl_->all()) {
    Version oldest;
    {
      const std::scoped_lock lock(segment->mutex);
      if (segment->closing) continue;
      oldest = segment->ledger.oldest();
    }
    writers->announce_oldest(oldest);
    writers->announce_open(segment->incarnation);
  }
}

void Owner::listen(std::shared_ptr<SegmentListener> listener) {
  {
    const std::unique_lock lock(impl_->registry_);
    impl_->listeners_.push_back(listener);
  }
  for (const auto& segment : impl_->all()) {
    if (memory_of(segment->incarnation) != nullptr) listener->announce_open(segment->incarnation);
  }
}

void Owner::forget(const SegmentListener& listener) {
  const std::unique_lock lock(impl_->registry_);
  std::erase_if(impl_->listeners_, [&](const auto& one) { return one.get() == &listener; });
}

std::shared_ptr<SegmentMemory> Owner::memory_of(const Incarnation& incarnation) const {
  const auto segment = impl_->find(incarnation);
  if (segment == nullptr) return nullptr;
  const std::scoped_lock lock(segment->mutex);
  return segment->closing ? nullptr : segment->memory;
}

std::vector<SegmentStatus> Owner::segments() const {
  impl_->harvest();
  std::vector<SegmentStatus> list;
  for (const auto& segment : impl_->all()) {
    const std::scoped_lock lock(segment->mutex);
    if (segment->closing) continue;
    const auto bytes = segment->memory->bytes();
    list.push_back({segment->incarnation, bytes.size(), reinterpret_cast<std::uint64_t>(bytes.data()), segment->catalogue.extents(),
                    segment->catalogue.bytes(), segment->memory->touched()});
  }
  return list;
}

// ---------------------------------------------------------------- what the master orders

Status Owner::adopt_term(Term term, Deadline deadline) {
  bool higher = false;
  {
    const std::unique_lock lock(impl_->registry_);
    if (term < impl_->term_) {
      return {ErrorCode::kStaleTerm, "the master's term " + std::to_string(term.value) + " is older than " +
                                         std::to_string(impl_->term_.value) + ", which this node follows"};
    }
    higher = term > impl_->term_;
    impl_->term_ = term;  // segments mounted from here on start with it
  }
  if (higher) {
    const std::scoped_lock retirements(impl_->retirements_mutex_);
    impl_->retirements_.clear();
  }
  if (const auto writers = impl_->remote(); writers != nullptr) {
    writers->announce_term(term);
    writers->harvest();
  }
  const auto segments = impl_->all();
  const auto older = [term](const Extent& extent) { return extent.version.term < term; };
  std::vector<AbortHook> aborts;
  for (const auto& segment : segments) {
    const std::scoped_lock lock(segment->mutex);
    segment->ledger.adopt(term);
    segment->catalogue.cancel_writers(older, aborts);
  }
  call_all(aborts);
  MOONPOOL_SYNC_POINT("owner.adopt_term.cancelled");
  const bool left = impl_->departures_->wait(
      [&] {
        impl_->harvest();
        return std::ranges::none_of(segments, [&](const auto& segment) {
          const std::scoped_lock lock(segment->mutex);
          return segment->catalogue.has_writer(older);
        });
      },
      deadline);
  if (left) return {};
  return {ErrorCode::kRpcTimeout,
          "term " + std::to_string(term.value) + " is adopted, but a writer of an older one has not left in time: try again"};
}

Term Owner::term() const {
  const std::shared_lock lock(impl_->registry_);
  return impl_->term_;
}

std::vector<CatalogueEntry> Owner::catalogue(const Incarnation& incarnation) const {
  impl_->harvest();
  const auto segment = impl_->find(incarnation);
  if (segment == nullptr) return {};
  const std::scoped_lock lock(segment->mutex);
  return segment->closing ? std::vector<CatalogueEntry>{} : segment->catalogue.entries();
}

std::vector<std::uint64_t> Owner::retire(std::span<const RetirementOrder> orders, Deadline deadline) {
  if (const auto writers = impl_->remote(); writers != nullptr && !orders.empty()) {
    for (const auto& order : orders) writers->announce_retired(order.extent.offset, order.extent.version);
    writers->harvest();
  }
  std::vector<AbortHook> aborts;
  std::set<std::uint64_t> awaited;
  {
    const std::scoped_lock retirements(impl_->retirements_mutex_);
    for (const auto& order : orders) {
      awaited.insert(order.sequence);
      const auto segment = impl_->find(order.extent.incarnation);
      impl_->retirements_.insert_or_assign(order.sequence, Impl::PendingRetirement{segment, order.extent.offset, order.extent.version});
      if (segment == nullptr) continue;
      const std::scoped_lock lock(segment->mutex);
      segment->ledger.retire(order.extent.offset, order.extent.version);
      segment->catalogue.retire(order.extent.offset, order.extent.version, aborts);
    }
  }
  call_all(aborts);
  MOONPOOL_SYNC_POINT("owner.retire.marked");

  std::vector<std::uint64_t> complete;
  const auto collect = [&] {
    impl_->harvest();
    const std::scoped_lock retirements(impl_->retirements_mutex_);
    std::erase_if(impl_->retirements_, [&](const auto& item) {
      const auto& [sequence, order] = item;
      if (order.segment != nullptr) {
        const std::scoped_lock lock(order.segment->mutex);
        if (order.segment->catalogue.present(order.offset, order.version)) return false;
      }
      complete.push_back(sequence);
      awaited.erase(sequence);
      return true;
    });
    return orders.empty() ? impl_->retirements_.empty() : awaited.empty();
  };
  (void)impl_->departures_->wait(collect, deadline);  // what is not complete by then is returned by a later call
  return complete;
}

std::vector<std::uint64_t> Owner::withdrawn() const {
  std::vector<std::uint64_t> list;
  const std::scoped_lock retirements(impl_->retirements_mutex_);
  for (const auto& [sequence, order] : impl_->retirements_) {
    if (order.segment == nullptr) continue;
    const std::scoped_lock lock(order.segment->mutex);
    if (order.segment->catalogue.withdrawn(order.offset, order.version)) list.push_back(sequence);
  }
  return list;
}

void Owner::set_oldest_grant(Version version) {
  if (const auto writers = impl_->remote(); writers != nullptr) {
    writers->announce_oldest(version);
    writers->harvest();
  }
  std::vector<AbortHook> aborts;
  for (const auto& segment : impl_->all()) {
    const std::scoped_lock lock(segment->mutex);
    segment->ledger.set_oldest(version);
    const auto oldest = segment->ledger.oldest();
    segment->catalogue.cancel_writers([&](const Extent& extent) { return extent.version < oldest; }, aborts);
  }
  call_all(aborts);
}

// ---------------------------------------------------------------- what transports do

Result<Owner::Pin> Owner::begin_write(const ExtentRef& ref, std::function<void()> abort) {
  auto segment = impl_->find(ref.incarnation);
  if (segment == nullptr) return Impl::stale(ref.incarnation);
  std::vector<AbortHook> displaced;
  Result<Extent*> extent(ErrorCode::kInternal, "not tried");
  {
    const std::scoped_lock lock(segment->mutex);
    if (segment->closing) return Impl::stale(ref.incarnation);
    MOONPOOL_RETURN_IF_ERROR(segment->ledger.check(ref.offset, ref.version));
    extent = segment->catalogue.begin_write(ref.offset, ref.length, ref.version, std::move(abort), displaced);
  }
  call_all(displaced);
  if (!extent.ok()) return extent.status();
  segment->memory->want(ref.offset + ref.length);
  MOONPOOL_SYNC_POINT("owner.begin_write.admitted");
  return Pin(std::move(segment), *extent, Pin::Role::kWriter, 0);
}

Status Owner::complete_write(Pin pin, std::string_view key, std::span<const std::uint64_t> chunk_checksums) {
  if (pin.segment_ == nullptr || pin.extent_ == nullptr || pin.role_ != Pin::Role::kWriter) {
    return {ErrorCode::kInternal, "complete_write needs a writer's pin"};
  }
  if (chunk_checksums.size() != chunks_of(pin.extent_->length)) {
    return {ErrorCode::kInvalidWrite, std::to_string(chunk_checksums.size()) + " checksums came with an extent of " +
                                          std::to_string(chunks_of(pin.extent_->length)) + " chunks"};
  }
  MOONPOOL_SYNC_POINT("owner.complete_write.before_publish");
  const std::scoped_lock lock(pin.segment_->mutex);
  // The pin is released after the lock, by its destructor: it is a parameter. (A locked release would deadlock.)
  if (pin.segment_->closing) return Impl::stale(pin.segment_->incarnation);
  MOONPOOL_RETURN_IF_ERROR(pin.segment_->ledger.check(pin.extent_->offset, pin.extent_->version));
  if (pin.cancelled()) return {ErrorCode::kStaleTerm, "the write was superseded by another attempt"};
  pin.segment_->catalogue.publish(*pin.extent_, key, chunk_checksums);
  pin.extent_ = nullptr;
  return {};
}

Status Owner::confirm_write(const ExtentRef& extent, std::span<const std::uint64_t> chunk_checksums) {
  const auto pin = begin_read(extent);
  if (!pin.ok()) return {ErrorCode::kStaleTerm, "the extent was retired meanwhile"};
  if (std::ranges::equal(pin->checksums(), chunk_checksums)) return {};
  return {ErrorCode::kInvalidWrite, "other bytes were already written under this grant"};
}

Result<Owner::Pin> Owner::begin_read(const ExtentRef& ref, std::function<void()> abort) {
  auto pin = impl_->pin_for_reading(ref, abort);
  if (pin.code() != ErrorCode::kReplicaGone) return pin;
  // A writer of another process may have completed it a moment ago.
  impl_->harvest();
  return impl_->pin_for_reading(ref, abort);
}

Result<Owner::Pin> Owner::Impl::pin_for_reading(const ExtentRef& ref, const std::function<void()>& abort) const {
  auto segment = find(ref.incarnation);
  if (segment == nullptr) return stale(ref.incarnation);
  std::uint64_t ticket = 0;
  Result<Extent*> extent(ErrorCode::kInternal, "not tried");
  {
    const std::scoped_lock lock(segment->mutex);
    if (segment->closing) return stale(ref.incarnation);
    extent = segment->catalogue.begin_read(ref.offset, ref.length, ref.version);
    if (!extent.ok()) return extent.status();
    if (abort) {
      ticket = ++segment->last_ticket;
      segment->reader_aborts.emplace(ticket, abort);
    }
  }
  return Pin(std::move(segment), *extent, Pin::Role::kReader, ticket);
}

}  // namespace moonpool::transfer
