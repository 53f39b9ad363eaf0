#include "transfer/cuda/engine/served_moves.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/checksum.h"

namespace moonpool::transfer::cuda {

namespace {

using net::Reply;
using net::Request;
using net::Task;

constexpr std::size_t kMaxPieces = 1U << 20;         // of one hold, as of one frame
constexpr int kQuickLooks = 32;                      // at an event, before a thread waits for it
constexpr std::chrono::microseconds kLookAgain{50};  // the driver has no wait that others may end
constexpr std::chrono::hours kUntilItEnds{24};       // a copy that has begun cannot be taken back
constexpr std::chrono::milliseconds kPrepareTime{2000};

Status naming(const Request& request, const char* what, const Status& status) {
  return {status.code(), std::string(what) + " for " + request.session()->peer_address() + ": " + status.message()};
}

bool on_device(const RegisteredMemory::Region* region) { return region != nullptr && region->place != nullptr; }

std::uint64_t bytes_on_devices(const ServedMoves::Admitted& admitted) {
  RegisteredMemory::Walk regions(admitted.hold.with_devices());
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < admitted.pieces.size(); ++i) {
    if (on_device(regions.at(i))) total += admitted.pieces[i].length;
  }
  return total;
}

// Goes through a request's pieces, window by window.
class Cursor {
 public:
  explicit Cursor(const ServedMoves::Admitted& admitted) : admitted_(admitted), regions_(admitted.hold.with_devices()) {}
  [[nodiscard]] bool more() const { return index_ < admitted_.pieces.size(); }

  // What of the payload goes through the window, with the host memory before, between and after it, in order.
  std::vector<MutableBytes> fill(StagedWindow& window) {
    std::vector<MutableBytes> wire;
    while (more()) {
      const auto& piece = admitted_.pieces[index_];
      const AddressRange rest{piece.address + used_, piece.length - used_};
      std::uint64_t part = rest.length;
      const auto* const region = regions_.at(index_);
      if (on_device(region)) {
        part = std::min(rest.length, window.left());
        if (part == 0 && rest.length > 0) return wire;
        if (part > 0) wire.push_back(window.put(region->place->device, {rest.address, part}));
      } else if (part > 0) {
        wire.push_back(bytes_at(rest));
      }
      used_ += part;
      if (used_ < piece.length) continue;
      ++index_;
      used_ = 0;
    }
    return wire;
  }

 private:
  const ServedMoves::Admitted& admitted_;
  RegisteredMemory::Walk regions_;
  std::size_t index_ = 0;
  std::uint64_t used_ = 0;  // of the piece at index_
};

}  // namespace

// Staging memory that tells its end.
struct ServedMoves::Lent {
  Staging::Lease lease;
  std::shared_ptr<net::AsyncEvent> given_back;
  ~Lent() {
    lease = {};
    if (given_back) given_back->notify_all();
  }
};

// A window on its way to or from a device.
struct ServedMoves::Move {
  StagedWindow window;
  std::shared_ptr<Lent> lent;  // both until the device is done
  std::shared_ptr<Admitted> admitted;
  std::unique_ptr<Copier::Ticket> ticket;
  Status status;  // valid once done
  std::atomic<bool> done{false};
  net::AsyncEvent changed;
};

ServedMoves::ServedMoves(RegisteredMemory& memory, Incarnation incarnation, FindRuntime find)
    : memory_(memory), incarnation_(incarnation), find_(std::move(find)), given_back_(std::make_shared<net::AsyncEvent>()) {}

ServedMoves::~ServedMoves() { stop(); }

void ServedMoves::stop() {
  std::map<int, std::unique_ptr<rdma::JobThread>> waiters;
  {
    const std::scoped_lock lock(mutex_);
    waiters.swap(waiters_);
  }
  for (auto& [device, waiter] : waiters) waiter->stop();
}

Staging& ServedMoves::staging(Runtime& runtime) {
  const std::scoped_lock lock(mutex_);
  if (staging_ == nullptr) {
    Settings settings = runtime.settings();
    settings.staging_bytes = std::max(settings.staging_bytes, kWindowBytes);
    staging_ = std::make_unique<Staging>(runtime.driver(), runtime.regions(), settings);
  }
  return *staging_;
}

void ServedMoves::prepare() {
  Runtime* const runtime = find_();
  if (runtime == nullptr) return;
  const auto lease = staging(*runtime).acquire(1, Deadline::after(kPrepareTime));
  if (lease.ok() || lease.code() == ErrorCode::kRpcTimeout) return;
  log::warning("transfer engine: peers cannot reach device memory by way of the host: {}", lease.status().message());
}

rdma::JobThread& ServedMoves::thread_of(int device) {
  const std::scoped_lock lock(mutex_);
  auto& waiter = waiters_[device];
  if (waiter == nullptr) waiter = std::make_unique<rdma::JobThread>();
  return *waiter;
}

// ---------------------------------------------------------------- staging

Task<Status> ServedMoves::lend(Runtime& runtime, std::uint64_t size, std::shared_ptr<Lent> into, Deadline deadline) {
  Staging& ring = staging(runtime);
  const auto given_back = given_back_;
  for (;;) {
    const auto seen = given_back->epoch();
    auto lease = ring.try_acquire(size);
    if (!lease.ok()) co_return lease.status();
    if (!lease->memory().empty()) {
      into->lease = std::move(*lease);
      into->given_back = given_back;
      co_return Status();
    }
    auto wait = given_back->wait(seen, deadline);
    const bool changed = co_await std::move(wait);
    if (!changed && deadline.expired()) {
      co_return Status(ErrorCode::kRpcTimeout, "no " + std::to_string(size) + " bytes of staging memory became free in time");
    }
  }
}

Status ServedMoves::start(Runtime& runtime, Direction direction, const std::shared_ptr<Move>& move) {
  if (move->window.empty()) {
    move->done = true;
    return {};
  }
  auto ticket = move->window.submit(runtime.copier(), direction, Stream::kLegacyDefault);
  if (!ticket.ok()) return ticket.status();
  move->ticket = std::move(*ticket);
  thread_of(move->window.device()).post([move, &runtime] {
    move->status = runtime.copier().wait(*move->ticket, Deadline::after(kUntilItEnds));
    move->ticket.reset();
    move->lent.reset();
    move->admitted.reset();
    move->done = true;
    move->changed.notify_all();
  });
  return {};
}

Task<Status> ServedMoves::finished(std::shared_ptr<Move> move, Deadline deadline) {
  for (;;) {
    const auto seen = move->changed.epoch();
    if (move->done) co_return move->status;
    auto wait = move->changed.wait(seen, deadline);
    const bool changed = co_await std::move(wait);
    if (!changed && deadline.expired() && !move->done) {
      co_return Status(ErrorCode::kRpcTimeout, "device " + std::to_string(move->window.device()) + " did not get to it in time");
    }
  }
}

// ---------------------------------------------------------------- writes and reads

Task<Status> ServedMoves::receive(Runtime& runtime, Request& request, std::shared_ptr<Admitted> admitted) {
  const auto deadline = request.deadline();
  const std::uint64_t window = std::min(kWindowBytes, std::max<std::uint64_t>(1, staging(runtime).capacity() / 2));
  const std::uint64_t total = bytes_on_devices(*admitted);
  const auto lent = std::make_shared<Lent>();
  auto lending = lend(runtime, total <= window ? total : 2 * window, lent, deadline);
  Status status = co_await std::move(lending);
  if (!status.ok()) co_return status;

  std::array<std::shared_ptr<Move>, 2> moves;
  const auto hash = admitted->checksum ? std::make_unique<ChunkState>() : nullptr;  // too well aligned for a coroutine's frame
  if (hash != nullptr) hash->reset();
  Cursor cursor(*admitted);
  for (std::size_t count = 0; cursor.more(); ++count) {
    auto& move = moves[count % 2];
    if (move != nullptr) {
      auto ending = finished(move, deadline);
      status = co_await std::move(ending);
      if (!status.ok()) co_return status;
    }
    move = std::make_shared<Move>();
    const auto memory = lent->lease.memory();
    const std::uint64_t offset = count % 2 * window;
    move->window = StagedWindow(memory.subspan(offset, std::min<std::uint64_t>(window, memory.size() - offset)));
    move->lent = lent;
    move->admitted = admitted;
    const auto wire = cursor.fill(move->window);
    auto receiving = request.receive(wire);
    status = co_await std::move(receiving);
    if (!status.ok()) co_return status;
    if (hash != nullptr) {
      for (const auto& part : wire) hash->update(part);
    }
    status = start(runtime, Direction::kScatter, move);
    if (!status.ok()) co_return status;
  }
  if (hash != nullptr) {
    std::uint64_t expected = 0;
    const MutableBytes trailer = std::as_writable_bytes(std::span(&expected, 1));
    auto receiving = request.receive({&trailer, 1});
    status = co_await std::move(receiving);
    if (!status.ok()) co_return status;
    if (expected != hash->digest()) co_return Status(ErrorCode::kChecksumMismatch, "the bytes that arrived are not those that were sent");
  }
  for (const auto& move : moves) {
    if (move == nullptr) continue;
    auto ending = finished(move, deadline);
    status = co_await std::move(ending);
    if (!status.ok()) co_return status;
  }
  co_return Status();
}

Task<Reply> ServedMoves::write(Request& request, std::shared_ptr<Admitted> admitted) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) co_return Status(ErrorCode::kNotSupported, "CUDA is gone from this process");
  auto receiving = receive(*runtime, request, std::move(admitted));
  const Status status = co_await std::move(receiving);
  if (!status.ok()) co_return naming(request, "write to device memory", status);
  co_return Reply(wire::Empty());
}

Task<Reply> ServedMoves::read(Request& request, std::shared_ptr<Admitted> admitted) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) co_return Status(ErrorCode::kNotSupported, "CUDA is gone from this process");
  const std::uint64_t total = bytes_on_devices(*admitted);
  if (const auto most = staging(*runtime).capacity(); total > most) {
    co_return Status(ErrorCode::kInvalidParams, "a read of " + std::to_string(total) + " bytes of device memory, and at most " +
                                                    std::to_string(most) + " fit this engine's staging memory: split it");
  }
  const auto lent = std::make_shared<Lent>();
  auto lending = lend(*runtime, total, lent, request.deadline());
  Status status = co_await std::move(lending);
  if (!status.ok()) co_return naming(request, "read of device memory", status);

  const auto move = std::make_shared<Move>();
  move->window = StagedWindow(lent->lease.memory());
  move->lent = lent;
  move->admitted = admitted;
  const auto wire = Cursor(*admitted).fill(move->window);
  status = start(*runtime, Direction::kGather, move);
  if (status.ok()) {
    auto ending = finished(move, request.deadline());
    status = co_await std::move(ending);
  }
  if (!status.ok()) co_return naming(request, "read of device memory", status);

  struct Kept {
    std::shared_ptr<Lent> lent;
    std::shared_ptr<Admitted> admitted;
    std::uint64_t checksum = 0;
  };
  const auto kept = std::make_shared<Kept>();
  kept->lent = lent;
  kept->admitted = admitted;
  Reply reply{wire::Empty()};
  reply.payload.assign(wire.begin(), wire.end());
  if (admitted->checksum) {
    kept->checksum = checksum_of_pieces(reply.payload);
    reply.payload.push_back(std::as_bytes(std::span(&kept->checksum, 1)));
  }
  reply.sent = [kept] { *kept = {}; };
  co_return reply;
}

// ---------------------------------------------------------------- holds

Task<Status> ServedMoves::after_queued_work(Runtime& runtime, std::vector<int> devices, Deadline deadline) {
  if (!runtime.settings().after_default_stream) co_return Status();
  struct Mark {
    Driver& driver;
    int device;
    Event event;
    Status status;
    std::atomic<bool> done{false};
    net::AsyncEvent changed;
    Mark(Driver& of, int on, Event made) : driver(of), device(on), event(made) {}
    ~Mark() { driver.destroy_event(device, event); }
    bool look() {
      auto reached = driver.done(device, event);
      status = reached.status();
      return !reached.ok() || *reached;
    }
  };
  std::vector<std::shared_ptr<Mark>> marks;
  for (const int device : devices) {
    const auto event = runtime.driver().create_event(device);
    if (!event.ok()) co_return event.status();
    marks.push_back(std::make_shared<Mark>(runtime.driver(), device, *event));
    if (Status recorded = runtime.driver().record(device, *event, Stream::kLegacyDefault); !recorded.ok()) co_return recorded;
  }
  for (const auto& mark : marks) {
    for (int i = 0; i < kQuickLooks && !mark->done; ++i) mark->done = mark->look();
    if (!mark->done) {
      thread_of(mark->device).post([mark, deadline] {
        while (!mark->look()) {
          if (deadline.expired()) {
            mark->status =
                Status(ErrorCode::kRpcTimeout, "what is queued on device " + std::to_string(mark->device) + " did not end in time");
            break;
          }
          std::this_thread::sleep_for(kLookAgain);
        }
        mark->done = true;
        mark->changed.notify_all();
      });
    }
    while (!mark->done) {
      const auto seen = mark->changed.epoch();
      if (mark->done) break;
      auto wait = mark->changed.wait(seen, deadline);
      const bool changed = co_await std::move(wait);
      if (!changed && deadline.expired()) {
        co_return Status(ErrorCode::kRpcTimeout, "what is queued on device " + std::to_string(mark->device) + " did not end in time");
      }
    }
    if (!mark->status.ok()) co_return mark->status;
  }
  co_return Status();
}

Result<std::uint64_t> ServedMoves::keep(const net::Session& session, RegisteredMemory::Hold hold) {
  const std::scoped_lock lock(mutex_);
  if (ending_) return Status(ErrorCode::kUnavailable, "this engine is shutting down");
  auto& holds = holds_[&session];
  if (holds.size() >= kMostHolds) {
    return Status(ErrorCode::kUnavailable, std::to_string(kMostHolds) + " holds on this connection are not released: release some");
  }
  holds.emplace(++last_hold_, std::move(hold));
  return last_hold_;
}

Task<Reply> ServedMoves::hold(Request& request) {
  wire::DeviceHoldRequest message;
  if (Status status = request.parse(message); !status.ok()) co_return status;
  if (Incarnation::from_bytes(message.incarnation()) != incarnation_) {
    co_return Status(ErrorCode::kStaleIncarnation,
                     "this engine is not the one whose memory is used (it was restarted): ask for its memory again");
  }
  const auto count = static_cast<std::size_t>(message.address_size());
  if (message.length_size() != message.address_size() || message.registration_size() != message.address_size() || count > kMaxPieces) {
    co_return Status(ErrorCode::kProtocol,
                     "hold of " + request.session()->peer_address() + ": its columns differ in length or are too long");
  }
  std::vector<AddressRange> ranges;
  ranges.reserve(count);
  for (int i = 0; i < message.address_size(); ++i) ranges.push_back({message.address(i), message.length(i)});
  auto held = memory_.hold(ranges);
  if (!held.ok()) co_return held.status();
  RegisteredMemory::Walk regions(held->with_devices());
  std::vector<int> devices;
  for (std::size_t i = 0; i < count; ++i) {
    if (ranges[i].length == 0) continue;
    const auto* const region = regions.at(i);
    if (!on_device(region)) {
      co_return Status(ErrorCode::kStaleIncarnation, "the memory at " + std::to_string(ranges[i].address) +
                                                         " is not device memory (any more): ask for this engine's memory again");
    }
    if (region->order != message.registration(static_cast<int>(i))) {
      co_return Status(ErrorCode::kStaleIncarnation,
                       "the memory at " + std::to_string(ranges[i].address) + " was registered anew: ask for this engine's memory again");
    }
    if (std::ranges::find(devices, region->place->device) == devices.end()) devices.push_back(region->place->device);
  }
  Runtime* const runtime = find_();
  if (runtime == nullptr) co_return Status(ErrorCode::kNotSupported, "CUDA is gone from this process");
  auto waiting = after_queued_work(*runtime, std::move(devices), request.deadline());
  const Status queued = co_await std::move(waiting);
  if (!queued.ok()) co_return naming(request, "hold of device memory", queued);
  const auto kept = keep(*request.session(), std::move(*held));
  if (!kept.ok()) co_return kept.status();
  MOONPOOL_SYNC_POINT("served_moves.held");
  wire::DeviceHoldReply reply;
  reply.set_hold(*kept);
  co_return Reply(reply);
}

Reply ServedMoves::release(Request& request) {
  wire::DeviceReleaseRequest message;
  if (Status status = request.parse(message); !status.ok()) return status;
  RegisteredMemory::Hold released;
  {
    const std::scoped_lock lock(mutex_);
    const auto session = holds_.find(request.session().get());
    auto node = session == holds_.end() ? decltype(session->second.extract(0))() : session->second.extract(message.hold());
    if (node.empty()) {
      return Status(ErrorCode::kObjectNotFound, "this connection has no hold " + std::to_string(message.hold()));
    }
    released = std::move(node.mapped());
    if (session->second.empty()) holds_.erase(session);
  }
  released_.notify_all();
  return Reply(wire::Empty());
}

void ServedMoves::closed(const net::Session& session) {
  std::map<std::uint64_t, RegisteredMemory::Hold> ended;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = holds_.find(&session);
    if (found == holds_.end()) return;
    ended = std::move(found->second);
    holds_.erase(found);
  }
  released_.notify_all();
}

void ServedMoves::end_holds(Deadline deadline) {
  std::unique_lock lock(mutex_);
  ending_ = true;
  if (released_.wait_until(lock, deadline.time(), [&] { return holds_.empty(); })) return;
  log::warning("transfer engine: shutting down while GPUs of {} peers may still touch its device memory: keep it for a while",
               holds_.size());
}

void ServedMoves::serve(net::Server& server) {
  server.handle(wire::METHOD_DEVICE_HOLD, [this](Request& request) { return hold(request); });
  server.handle_quickly(wire::METHOD_DEVICE_RELEASE, [this](Request& request, Reply& reply) -> std::optional<Task<Reply>> {
    reply = release(request);
    return std::nullopt;
  });
  server.on_closed([this](const net::Session& session) { closed(session); });
}

}  // namespace moonpool::transfer::cuda
