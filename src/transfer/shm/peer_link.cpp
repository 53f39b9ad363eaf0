#include "transfer/shm/peer_link.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "transfer/batch_parts.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace moonpool::transfer {

namespace {

constexpr std::size_t kPinsPerExchange = 256;
constexpr std::uint64_t kChecksumsPerExchange = 4096;
constexpr std::uint64_t kNudgeExtents = kRingSlots / 4;
constexpr std::uint64_t kNudgeBytes = std::uint64_t{64} << 20;  // well below SegmentMemory::kTouchAhead

std::string request_frame(wire::Method method, std::uint64_t id, const std::string& message) {
  net::FrameHeader header;
  header.kind = net::FrameKind::kRequest;
  header.method = static_cast<std::uint16_t>(method);
  header.request_id = id;
  return net::make_frame(header, message);
}

Status broken() { return {ErrorCode::kProtocol, "shared memory: the owner's answer makes no sense"}; }

}  // namespace

MappedSegment::MappedSegment(SharedMemory memory, BoardPlace place) : memory_(std::move(memory)), place_(place) {
  ::madvise(memory_.bytes().data(), memory_.bytes().size(), MADV_NOHUGEPAGE);  // as its owner maps it
  prepared_ = std::make_unique<std::atomic<bool>[]>(memory_.bytes().size() / kGranule + 1);
}

void MappedSegment::prepare(std::uint64_t offset, std::uint64_t length) {
  for (std::uint64_t granule = offset / kGranule; granule <= (offset + length - 1) / kGranule; ++granule) {
    if (prepared_[granule].load(std::memory_order_relaxed) || prepared_[granule].exchange(true)) continue;
    const auto part = memory_.bytes().subspan(granule * kGranule);
    ::madvise(part.data(), std::min<std::uint64_t>(part.size(), kGranule), MADV_POPULATE_WRITE);  // only an acceleration
  }
}

PinSet::~PinSet() { link_->unpin(pins_); }

// ---------------------------------------------------------------- connecting

Result<std::shared_ptr<PeerLink>> PeerLink::connect(const NodeId& peer, const net::Identity& self, Deadline deadline) {
  auto fd = connect_to_name(socket_name(peer));
  if (!fd.ok()) return fd.status();
  const auto process = peer_of(fd->get());
  if (!process.ok()) return process.status();
  if (process->uid != ::geteuid()) {
    return Status(ErrorCode::kNotSupported, "uid " + std::to_string(process->uid) + " is not " + std::to_string(::geteuid()));
  }
  std::shared_ptr<PeerLink> link(new PeerLink(std::move(*fd)));
  MOONPOOL_RETURN_IF_ERROR(link->shake_hands(peer, self, deadline));
  MOONPOOL_RETURN_IF_ERROR(link->open(deadline));
  return link;
}

Status PeerLink::shake_hands(const NodeId& peer, const net::Identity& self, Deadline deadline) {
  net::ClientHandshake handshake(self, "the node " + peer.to_string());
  std::string next = handshake.hello();
  while (!handshake.done()) {
    if (!next.empty()) MOONPOOL_RETURN_IF_ERROR(send_locked(next, deadline));
    auto datagram = receive_locked(deadline);
    if (!datagram.ok()) return datagram.status();
    const auto bytes = std::span<const std::byte>(buffer_).first(datagram->size);
    if (bytes.size() < net::kFrameHeaderSize) return broken();
    const auto header = net::decode(bytes.first<net::kFrameHeaderSize>());
    if (!header.ok()) return header.status();
    auto step = handshake.on_frame(*header, bytes.subspan(net::kFrameHeaderSize));
    if (!step.ok()) return step.status();
    next = std::move(*step);
  }
  return handshake.peer_node() == peer ? Status() : Status(ErrorCode::kUnavailable, "another node has taken its place");
}

Status PeerLink::open(Deadline deadline) {
  wire::ShmOpenReply reply;
  std::array<net::UniqueFd, 2> descriptors;
  MOONPOOL_RETURN_IF_ERROR(exchange(wire::METHOD_SHM_OPEN, nullptr, &reply, descriptors, deadline));
  if (reply.ring_size() != sizeof(RingMemory) || reply.board_size() != sizeof(BoardMemory)) {
    return {ErrorCode::kNotSupported, "its release lays shared memory out differently: run the same release on both sides"};
  }
  auto ring = SharedMemory::map(std::move(descriptors[0]), sizeof(RingMemory), SharedMemory::Access::kReadWrite);
  if (!ring.ok()) return ring.status();
  auto board = SharedMemory::map(std::move(descriptors[1]), sizeof(BoardMemory), SharedMemory::Access::kRead);
  if (!board.ok()) return board.status();
  ring_memory_ = std::move(*ring);
  board_memory_ = std::move(*board);
  ring_memory_.close_fd();
  board_memory_.close_fd();
  ring_ = std::make_unique<WriteRing>(reinterpret_cast<RingMemory*>(ring_memory_.bytes().data()));
  return {};
}

// ---------------------------------------------------------------- exchanges

Status PeerLink::ended() const { return {ErrorCode::kUnavailable, "shared memory: the owner has ended the session"}; }

bool PeerLink::alive() {
  if (ended_.load(std::memory_order_acquire)) return false;
  pollfd wait{fd_.get(), POLLRDHUP, 0};
  if (::poll(&wait, 1, 0) > 0 && (wait.revents & (POLLHUP | POLLRDHUP | POLLERR)) != 0) ended_ = true;
  return !ended_;
}

Status PeerLink::send_locked(const std::string& frame, Deadline deadline) {
  for (;;) {
    const auto outcome = send_datagram(fd_.get(), frame);
    if (outcome == SendOutcome::kSent) return {};
    if (outcome == SendOutcome::kEnd) {
      ended_ = true;
      return ended();
    }
    pollfd wait{fd_.get(), POLLOUT, 0};
    if (deadline.expired() || ::poll(&wait, 1, deadline.left_ms()) == 0) {
      return {ErrorCode::kRpcTimeout, "shared memory: the owner does not read what it is sent"};
    }
  }
}

Result<Datagram> PeerLink::receive_locked(Deadline deadline) {
  const auto begun = Deadline::Clock::now();
  const auto budget = spin_.budget();
  std::optional<net::SpinPolicy::Turn> turn;
  if (budget.count() > 0) turn.emplace();
  const bool may_spin = turn && turn->granted();
  for (;;) {
    auto datagram = receive_datagram(fd_.get(), buffer_);
    const auto waited = Deadline::Clock::now() - begun;
    if (datagram.kind == Datagram::Kind::kData) {
      spin_.record(waited);
      return datagram;
    }
    if (datagram.kind != Datagram::Kind::kNothingYet) {
      ended_ = true;
      return ended();
    }
    if (may_spin && waited < budget) {
      net::SpinPolicy::relax();
      continue;
    }
    turn.reset();
    pollfd wait{fd_.get(), POLLIN, 0};
    if (deadline.expired() || ::poll(&wait, 1, deadline.left_ms()) == 0) {
      return Status(ErrorCode::kRpcTimeout, "shared memory: the owner did not answer in time");
    }
  }
}

Status PeerLink::exchange(wire::Method method, const google::protobuf::MessageLite* request, google::protobuf::MessageLite* reply,
                          std::span<net::UniqueFd> descriptors, Deadline deadline) {
  // On the system clock: ThreadSanitizer does not know the call that waits on the steady one.
  const std::unique_lock lock(exchange_mutex_, std::chrono::system_clock::now() + deadline.left());
  if (!lock.owns_lock()) return {ErrorCode::kRpcTimeout, "shared memory: another exchange with the owner has not ended in time"};
  if (ended_) return ended();
  const std::uint64_t id = ++last_request_;
  const std::string message = request == nullptr ? std::string() : request->SerializeAsString();
  MOONPOOL_RETURN_IF_ERROR(send_locked(request_frame(method, id, message), deadline));
  for (;;) {
    auto datagram = receive_locked(deadline);
    if (!datagram.ok()) return datagram.status();
    const auto bytes = std::span<const std::byte>(buffer_).first(datagram->size);
    if (bytes.size() < net::kFrameHeaderSize) return broken();
    const auto header = net::decode(bytes.first<net::kFrameHeaderSize>());
    if (!header.ok()) return header.status();
    if (header->request_id != id) continue;  // the answer to one that gave up
    const auto answer = bytes.subspan(net::kFrameHeaderSize);
    if (header->kind == net::FrameKind::kError) return net::status_of_error_frame(answer);
    if (reply != nullptr && !reply->ParseFromArray(answer.data(), static_cast<int>(answer.size()))) return broken();
    for (std::size_t i = 0; i < descriptors.size(); ++i) {
      descriptors[i] = std::move(datagram->descriptors[i]);
      if (!descriptors[i]) return broken();
    }
    return {};
  }
}

Result<std::shared_ptr<MappedSegment>> PeerLink::segment(const Incarnation& incarnation, Deadline deadline) {
  {
    const std::shared_lock lock(segments_mutex_);
    const auto found = segments_.find(incarnation);
    if (found != segments_.end() && board().open(found->second->place())) return found->second;
  }
  wire::ShmSegmentRequest request;
  request.set_incarnation(incarnation.to_bytes());
  wire::ShmSegmentReply reply;
  std::array<net::UniqueFd, 1> descriptor;
  const Status status = exchange(wire::METHOD_SHM_SEGMENT, &request, &reply, descriptor, deadline);
  const std::unique_lock lock(segments_mutex_);
  std::erase_if(segments_, [this](const auto& known) { return !board().open(known.second->place()); });
  MOONPOOL_RETURN_IF_ERROR(status);
  if (const auto found = segments_.find(incarnation); found != segments_.end()) return found->second;
  if (reply.board_index() >= kBoardSegments) return broken();
  auto memory = SharedMemory::map(std::move(descriptor[0]), reply.size(), SharedMemory::Access::kReadWrite);
  if (!memory.ok()) return memory.status();
  memory->close_fd();
  auto segment = std::make_shared<MappedSegment>(std::move(*memory), BoardPlace{reply.board_index(), tag_of(incarnation)});
  segments_.emplace(incarnation, segment);
  return segment;
}

std::vector<PeerLink::PinOutcome> PeerLink::pin(std::span<const PinWanted> wanted, Deadline deadline) {
  std::vector<PinOutcome> outcomes(wanted.size());
  for (std::size_t done = 0; done < wanted.size();) {
    std::size_t count = 0;
    std::uint64_t checksums = 0;
    while (done + count < wanted.size() && count < kPinsPerExchange) {
      checksums += wanted[done + count].chunk_count;
      if (count > 0 && checksums > kChecksumsPerExchange) break;
      ++count;
    }
    pin_some(wanted.subspan(done, count), std::span(outcomes).subspan(done, count), deadline);
    done += count;
  }
  return outcomes;
}

void PeerLink::pin_some(std::span<const PinWanted> wanted, std::span<PinOutcome> outcomes, Deadline deadline) {
  wire::ShmPinRequest request;
  const std::uint64_t first = next_pin_.fetch_add(wanted.size());
  request.set_first_pin(first);
  IncarnationColumn incarnations;
  for (const auto& one : wanted) {
    incarnations.add(request, one.extent);
    request.add_length(one.extent.length);
    request.add_first_chunk(one.first_chunk);
    request.add_chunk_count(one.chunk_count);
  }
  incarnations.write_to(request);
  wire::ShmPinReply reply;
  Status status = exchange(wire::METHOD_SHM_PIN, &request, &reply, {}, deadline);
  if (status.ok() && reply.status_size() != static_cast<int>(wanted.size())) status = broken();
  int next = 0;
  std::vector<std::uint64_t> unused;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    auto& outcome = outcomes[i];
    outcome.pin = first + i;
    outcome.status = status;
    if (!status.ok()) {
      unused.push_back(outcome.pin);  // a request that gave up may still be carried out
      continue;
    }
    const auto number = reply.status(static_cast<int>(i));
    if (number != 0) {
      const auto code = static_cast<ErrorCode>(number);
      outcome.status = Status(code, "the owner refused to pin the extent at offset " + std::to_string(wanted[i].extent.offset) + ": " +
                                        std::string(name_of(code)));
      continue;
    }
    const auto count = static_cast<int>(wanted[i].chunk_count);
    if (reply.checksum_size() - next < count) {
      outcome.status = broken();
      unused.push_back(outcome.pin);
      continue;
    }
    outcome.checksums.assign(reply.checksum().begin() + next, reply.checksum().begin() + next + count);
    next += count;
  }
  if (!unused.empty()) unpin(unused);
}

// Never blocks: what the socket does not take now goes with the next release. Order does not matter, pins have unique numbers.
void PeerLink::unpin(std::span<const std::uint64_t> pins) {
  if (::getpid() != process_) return;
  const std::scoped_lock lock(unsent_mutex_);
  unsent_pins_.insert(unsent_pins_.end(), pins.begin(), pins.end());
  while (!unsent_pins_.empty() && !ended_) {
    const std::size_t count = std::min<std::size_t>(unsent_pins_.size(), 4096);
    wire::ShmUnpinRequest request;
    for (std::size_t i = 0; i < count; ++i) request.add_pin(unsent_pins_[unsent_pins_.size() - 1 - i]);
    if (send_datagram(fd_.get(), request_frame(wire::METHOD_SHM_UNPIN, 0, request.SerializeAsString())) != SendOutcome::kSent) return;
    unsent_pins_.resize(unsent_pins_.size() - count);
  }
}

Status PeerLink::harvest(Deadline deadline) {
  wire::Empty reply;
  return exchange(wire::METHOD_SHM_HARVEST, nullptr, &reply, {}, deadline);
}

// Lost when the socket is full: then the owner has enough to look at anyway.
void PeerLink::nudge() { static_cast<void>(send_datagram(fd_.get(), request_frame(wire::METHOD_SHM_HARVEST, 0, {}))); }

void PeerLink::note_written(std::uint64_t extents, std::uint64_t bytes) {
  const bool many = unseen_extents_.fetch_add(extents) + extents >= kNudgeExtents;
  const bool much = unseen_bytes_.fetch_add(bytes) + bytes >= kNudgeBytes;
  if (!many && !much) return;
  unseen_extents_ = 0;
  unseen_bytes_ = 0;
  nudge();
}

}  // namespace moonpool::transfer
