#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "net/unique_fd.h"
#include "transfer/rdma/simulated_fabric.h"

namespace moonpool::transfer::rdma {

namespace {

using simulated::Gate;
using simulated::kNever;
using simulated::NicState;
using simulated::random_number;
using State = SimulatedFabric::State;

constexpr std::uint64_t kStep = 4096;

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOONPOOL_UNSEEN_COPY
#endif
#endif

#ifdef MOONPOOL_UNSEEN_COPY
// As a NIC does it: without the program's synchronisation, and without ThreadSanitizer's eyes. Volatile, or the compiler would make it a
// call of memcpy, which is watched.
__attribute__((noinline, disable_sanitizer_instrumentation)) void copy_as_a_nic(std::byte* to, const std::byte* from, std::size_t size) {
  volatile std::byte* const destination = to;
  const volatile std::byte* const source = from;
  for (std::size_t i = 0; i < size; ++i) destination[i] = source[i];
}
#else
void copy_as_a_nic(std::byte* to, const std::byte* from, std::size_t size) { std::memcpy(to, from, size); }
#endif

struct Failure {
  Completion::Outcome outcome = Completion::Outcome::kDone;
  const char* reason = "";
};
constexpr Failure kFlushed{Completion::Outcome::kFlushed, "work request flushed"};
constexpr Failure kNoAnswer{Completion::Outcome::kPath, "transport retry counter exceeded"};
constexpr Failure kPortDown{Completion::Outcome::kPath, "port down"};
constexpr Failure kRefusedByPeer{Completion::Outcome::kRefused, "remote access error"};
constexpr Failure kEndedByPeer{Completion::Outcome::kPath, "connection ended by the peer"};  // iWARP's way to say it
constexpr Failure kBadLocalMemory{Completion::Outcome::kLocal, "local protection error"};
constexpr Failure kBadLength{Completion::Outcome::kLocal, "local length error"};

}  // namespace

class SimulatedQueuePair final : public QueuePair {
 public:
  SimulatedQueuePair(std::shared_ptr<State> state, NicState& nic, const QueuePairOptions& options)
      : state_(std::move(state)),
        nic_(nic),
        options_(options),
        capacity_(std::min(options.work_requests, nic.info.max_work_requests)),
        event_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    const std::lock_guard lock(state_->mutex);
    do {
      number_ = ++state_->next_number & 0xFFFFFFU;
    } while (number_ == 0 || state_->queue_pairs.contains(number_));
    first_packet_ = random_number() & 0xFFFFFFU;
    if (by_ticket() && options.role == Role::kPassive) {
      ticket_ = std::uint64_t{random_number()} << 24U | number_;
    }
    from_ = options.gid;
    state_->queue_pairs.emplace(number_, this);
    ++nic.counts.queue_pairs;
  }

  ~SimulatedQueuePair() override {
    break_off();
    if (thread_.joinable()) thread_.join();
    const State::Alone alone(*state_);
    const std::lock_guard lock(state_->mutex);
    state_->queue_pairs.erase(number_);
    --nic_.counts.queue_pairs;
  }

  [[nodiscard]] QueuePairAddress address() const override {
    QueuePairAddress address;
    address.mtu = nic_.info.mtu;
    address.reads_in = nic_.info.max_reads_in;
    address.gid = options_.gid;
    if (by_ticket()) {
      address.cm_host = options_.role == Role::kPassive ? "simulated" : "";
      address.cm_port = options_.role == Role::kPassive ? 1 : 0;
      address.cm_ticket = ticket_;
      return address;
    }
    address.number = number_;
    address.first_packet = first_packet_;
    return address;
  }

  [[nodiscard]] Status connect(const QueuePairAddress& peer, const Gid& from) override {
    const std::lock_guard lock(state_->mutex);
    from_ = from;
    if (!by_ticket()) {
      peer_ = Peer{peer.number, peer.first_packet, peer.gid.bytes};
      return {};
    }
    if (options_.role == Role::kPassive) return {};  // until the active side comes
    const auto found = state_->queue_pairs.find(static_cast<std::uint32_t>(peer.cm_ticket & 0xFFFFFFU));
    if (found == state_->queue_pairs.end() || found->second->ticket_ != peer.cm_ticket || peer.cm_host != "simulated") {
      return {ErrorCode::kUnavailable, "nobody listens for this ticket"};
    }
    SimulatedQueuePair& passive = *found->second;
    if (passive.peer_) return {ErrorCode::kUnavailable, "the ticket was used before"};
    peer_ = Peer{passive.number_, passive.first_packet_, passive.from_.bytes};
    passive.peer_ = Peer{number_, first_packet_, from_.bytes};
    return {};
  }

  [[nodiscard]] Status post(std::span<const WorkRequest> requests) override {
    if (broken()) return {ErrorCode::kUnavailable, "the queue pair is broken"};
    {
      const std::lock_guard fabric_lock(state_->mutex);
      if (!peer_) return {ErrorCode::kInternal, "the queue pair is not connected"};
      ++nic_.counts.doorbells;
    }
    const std::lock_guard lock(mutex_);
    if (broken_) return {ErrorCode::kUnavailable, "the queue pair is broken"};
    if (requests.size() > capacity_ - outstanding_) return {ErrorCode::kInternal, "the send queue is full"};
    for (const WorkRequest& request : requests) {
      const bool read = request.operation == WorkRequest::Operation::kRead;
      if (request.pieces.empty() || request.pieces.size() > (read ? nic_.info.max_read_pieces : nic_.info.max_pieces)) {
        return {ErrorCode::kInternal, "too many pieces in a work request"};
      }
    }
    for (const WorkRequest& request : requests) {
      queue_.push_back({request, {request.pieces.begin(), request.pieces.end()}, 0});
      queue_.back().places = ++places_;
    }
    outstanding_ += static_cast<std::uint32_t>(requests.size());
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    wake_.notify_all();
    return {};
  }

  [[nodiscard]] std::size_t poll(std::span<Completion> into) override {
    const std::lock_guard lock(mutex_);
    std::size_t count = 0;
    for (; count < into.size() && !done_.empty(); ++count, done_.pop_front()) {
      into[count] = done_.front().completion;
      outstanding_ = static_cast<std::uint32_t>(places_ - done_.front().places);
    }
    return count;
  }

  [[nodiscard]] Status arm() override {
    const std::lock_guard lock(mutex_);
    armed_ = true;
    return {};
  }
  [[nodiscard]] int event_fd() const override { return event_.get(); }
  void clear_event() override {
    std::uint64_t count = 0;
    static_cast<void>(::read(event_.get(), &count, sizeof count));
  }

  void break_off() override {
    std::shared_ptr<Gate> gate;
    {
      const std::lock_guard lock(mutex_);
      broken_ = true;
      gate = held_by_;
      wake_.notify_all();
    }
    if (gate) gate->wake();
  }

 private:
  struct Peer {
    std::uint32_t number = 0;
    std::uint32_t first_packet = 0;
    std::array<std::uint8_t, 16> gid{};
  };
  struct Queued {
    WorkRequest request;
    std::vector<WorkRequest::Piece> pieces;
    std::uint64_t places = 0;  // how many work requests were posted up to this one
  };
  struct Done {
    Completion completion;
    std::uint64_t places = 0;
  };

  [[nodiscard]] bool by_ticket() const { return nic_.info.iwarp || options_.connection_manager; }
  [[nodiscard]] bool broken() const {
    const std::lock_guard lock(mutex_);
    return broken_;
  }

  void run() {
    for (;;) {
      Queued next;
      bool flush = false;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return broken_ || !queue_.empty(); });
        if (queue_.empty()) return;
        next = std::move(queue_.front());
        queue_.pop_front();
        flush = broken_;
      }
      const Failure outcome = flush ? kFlushed : carry_out(next);
      const std::lock_guard lock(mutex_);
      if (outcome.outcome != Completion::Outcome::kDone) broken_ = true;
      if (outcome.outcome == Completion::Outcome::kDone && !next.request.signalled) continue;
      done_.push_back({{next.request.id, outcome.outcome, outcome.reason}, next.places});
      if (std::exchange(armed_, false)) {
        const std::uint64_t one = 1;
        static_cast<void>(::write(event_.get(), &one, sizeof one));
      }
    }
  }

  Failure carry_out(const Queued& queued) {
    std::uint64_t length = 0;
    for (const auto& piece : queued.pieces) length += piece.length;
    if (length > nic_.info.max_message) return kBadLength;
    auto [gate, hold_after] = begin_request();
    std::uint64_t moved = 0;
    for (const auto& piece : queued.pieces) {
      for (std::uint64_t at = 0; at < piece.length || (length == 0 && at == 0);) {
        if (gate && moved >= hold_after) pass(std::exchange(gate, nullptr));
        if (broken()) return kFlushed;
        std::uint64_t step = std::min(kStep, piece.length - at);
        if (gate) step = std::min(step, hold_after - moved);
        const Failure failure = move(queued.request, length, moved, piece, at, step);
        if (failure.outcome != Completion::Outcome::kDone) return failure;
        at += std::max<std::uint64_t>(step, 1);
        moved += step;
      }
    }
    if (gate) pass(gate);
    if (broken()) return kFlushed;
    const std::lock_guard lock(state_->mutex);
    ++nic_.counts.work_requests;
    return {};
  }

  // One more of this NIC's work requests begins: is it to be held, and where?
  std::pair<std::shared_ptr<Gate>, std::uint64_t> begin_request() {
    const std::lock_guard lock(state_->mutex);
    std::pair<std::shared_ptr<Gate>, std::uint64_t> found{nullptr, 0};
    for (auto hold = nic_.holds.begin(); hold != nic_.holds.end();) {
      if (hold->requests_left-- > 0 || found.first) {
        ++hold;
        continue;
      }
      found = {hold->gate, hold->bytes};
      hold = nic_.holds.erase(hold);
    }
    return found;
  }

  void pass(const std::shared_ptr<Gate>& gate) {
    {
      const std::lock_guard lock(mutex_);
      held_by_ = gate;
    }
    gate->pass([this] { return broken(); });
    const std::lock_guard lock(mutex_);
    held_by_.reset();
  }

  // One step; `step` becomes shorter when the peer's NIC dies within it.
  Failure move(const WorkRequest& request, std::uint64_t length, std::uint64_t moved, const WorkRequest::Piece& piece, std::uint64_t at,
               std::uint64_t step) {
    const State::Step nothing_goes_away(*state_);
    Failure failure;
    SimulatedQueuePair* refusing = nullptr;
    std::byte* here = nullptr;
    std::byte* there = nullptr;
    {
      const std::lock_guard lock(state_->mutex);
      failure = path_failure();
      if (failure.outcome != Completion::Outcome::kDone) return failure;
      SimulatedQueuePair& other = *state_->queue_pairs.at(peer_->number);
      if (moved == 0 && at == 0 && other.nic_.requests_until_death != kNever && --other.nic_.requests_until_death == 0) {
        other.nic_.dead = true;
        return kNoAnswer;
      }
      if (step > 0) {
        const auto remote = state_->by_remote_key.find(request.remote_key);
        if (remote == state_->by_remote_key.end() || remote->second.nic != &other.nic_ || remote->second.access != Access::kServed ||
            !remote->second.holds(request.remote_address, length)) {
          refusing = &other;
        } else {
          there = remote->second.at(request.remote_address + moved);
        }
        const auto local = state_->by_local_key.find(piece.local_key);
        const bool usable =
            local != state_->by_local_key.end() && local->second.nic == &nic_ && local->second.holds(piece.address, piece.length);
        if (!usable) return kBadLocalMemory;
        here = local->second.at(piece.address + at);
      }
      if (refusing == nullptr) {
        if (other.nic_.bytes_until_death != kNever) {
          if (step >= other.nic_.bytes_until_death) {
            step = other.nic_.bytes_until_death;
            other.nic_.dead = true;
            failure = kNoAnswer;
          }
          other.nic_.bytes_until_death -= step;
        }
        nic_.counts.bytes += step;
      } else {
        failure = nic_.info.iwarp ? kEndedByPeer : kRefusedByPeer;
      }
    }
    if (refusing != nullptr) {
      refusing->break_off();  // as the responder's queue pair goes into its error state
      return failure;
    }
    if (step == 0) return failure;
    if (request.operation == WorkRequest::Operation::kRead) {
      copy_as_a_nic(here, there, step);
    } else {
      copy_as_a_nic(there, here, step);
    }
    return failure;
  }

  // With the fabric's mutex: why nothing gets through, if so.
  Failure path_failure() {
    if (!nic_.up.load() || nic_.dead) return kPortDown;
    const auto found = state_->queue_pairs.find(peer_->number);
    if (found == state_->queue_pairs.end()) return kNoAnswer;
    SimulatedQueuePair& other = *found->second;
    if (!other.nic_.up.load() || other.nic_.dead || !state_->joined(nic_, other.nic_)) return kNoAnswer;
    if (!other.peer_ || other.peer_->number != number_ || other.peer_->first_packet != first_packet_ ||
        peer_->first_packet != other.first_packet_ || peer_->gid != other.from_.bytes || other.peer_->gid != from_.bytes ||
        other.broken()) {
      return kNoAnswer;
    }
    return {};
  }

  const std::shared_ptr<State> state_;
  NicState& nic_;
  const QueuePairOptions options_;
  const std::uint32_t capacity_;
  const net::UniqueFd event_;
  std::uint32_t number_ = 0;
  std::uint32_t first_packet_ = 0;
  std::uint64_t ticket_ = 0;
  // Guarded by the fabric's mutex.
  Gid from_;
  std::optional<Peer> peer_;

  mutable std::mutex mutex_;  // guards what follows; taken after the fabric's
  std::condition_variable wake_;
  std::deque<Queued> queue_;
  std::deque<Done> done_;
  std::uint64_t places_ = 0;  // work requests posted so far
  std::uint32_t outstanding_ = 0;
  bool armed_ = false;
  bool broken_ = false;
  std::shared_ptr<Gate> held_by_;
  std::thread thread_;
};

std::unique_ptr<QueuePair> simulated::make_queue_pair(std::shared_ptr<State> state, NicState& nic, const QueuePairOptions& options) {
  return std::make_unique<SimulatedQueuePair>(std::move(state), nic, options);
}

}  // namespace moonpool::transfer::rdma
