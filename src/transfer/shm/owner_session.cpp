#include "transfer/shm/owner_session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/segment_memory.h"
#include "wire.pb.h"

namespace moonpool::transfer {

namespace {

constexpr std::size_t kMaxAnswerChecksums = 8192;  // they have to fit a datagram

std::string frame_of(const net::FrameHeader& request, net::FrameKind kind, const std::string& message) {
  net::FrameHeader header;
  header.kind = kind;
  header.method = request.method;
  header.request_id = request.request_id;
  return net::make_frame(header, message);
}

OwnerSession::Answer refusal(const net::FrameHeader& request, const Status& status) {
  OwnerSession::Answer answer;
  answer.frame = frame_of(request, net::FrameKind::kError, net::make_error_message(status));
  return answer;
}

OwnerSession::Answer contradiction(const net::FrameHeader& request, const char* what) {
  return refusal(request, Status(ErrorCode::kProtocol, std::string("shared memory: ") + what));
}

}  // namespace

OwnerSession::OwnerSession(Owner& owner, std::shared_ptr<Board> board, const net::Identity& self)
    : owner_(owner), board_(std::move(board)), handshake_(self), pins_(kMaxAnswerChecksums) {}

OwnerSession::~OwnerSession() { end(); }

OwnerSession::Answer OwnerSession::on_frame(std::span<const std::byte> datagram) {
  Answer bad;
  bad.close = true;
  if (datagram.size() < net::kFrameHeaderSize) return bad;
  const auto header = net::decode(datagram.first<net::kFrameHeaderSize>());
  const auto message = datagram.subspan(net::kFrameHeaderSize);
  if (!header.ok() || header->message_length != message.size() || header->payload_length != 0) return bad;
  if (handshake_.done()) return serve(*header, message);
  if (message.size() > net::kMaxHandshakeLength) return bad;
  auto step = handshake_.on_frame(*header, message);
  Answer answer;
  answer.frame = std::move(step.frame);
  answer.close = !step.status.ok();
  return answer;
}

OwnerSession::Answer OwnerSession::serve(const net::FrameHeader& header, std::span<const std::byte> message) {
  if (header.kind != net::FrameKind::kRequest) return contradiction(header, "a frame out of turn");
  switch (header.method) {
    case wire::METHOD_SHM_OPEN:
      return open(header);
    case wire::METHOD_SHM_SEGMENT:
      return segment(header, message);
    case wire::METHOD_SHM_PIN:
      return pin(header, message);
    case wire::METHOD_SHM_UNPIN:
      unpin(message);
      return {};
    case wire::METHOD_SHM_HARVEST: {
      harvest();
      Answer answer;
      if (header.request_id != 0) answer.frame = frame_of(header, net::FrameKind::kResponse, {});
      return answer;
    }
    default:
      return contradiction(header, "an unknown method");
  }
}

OwnerSession::Answer OwnerSession::open(const net::FrameHeader& header) {
  auto shared = SharedMemory::create("moonpool ring", sizeof(RingMemory));
  if (!shared.ok()) return refusal(header, shared.status());
  auto ring = std::make_shared<Ring>();
  ring->shared = std::move(*shared);
  {
    const std::scoped_lock lock(mutex_);
    if (ring_ != nullptr) return contradiction(header, "the session is open already");
    ring_ = ring;
  }
  wire::ShmOpenReply reply;
  reply.set_ring_size(sizeof(RingMemory));
  reply.set_board_size(sizeof(BoardMemory));
  Answer answer;
  answer.frame = frame_of(header, net::FrameKind::kResponse, reply.SerializeAsString());
  answer.descriptors = {ring->shared.fd(), board_->fd()};
  answer.keep = ring;
  return answer;
}

OwnerSession::Answer OwnerSession::segment(const net::FrameHeader& header, std::span<const std::byte> message) {
  wire::ShmSegmentRequest request;
  if (!request.ParseFromArray(message.data(), static_cast<int>(message.size()))) return contradiction(header, "a request does not parse");
  const auto incarnation = Incarnation::from_bytes(request.incarnation());
  const auto memory = incarnation ? owner_.memory_of(*incarnation) : nullptr;
  if (memory == nullptr) {
    return refusal(header, Status(ErrorCode::kStaleIncarnation, "the segment is not mounted here (any more): ask the master again"));
  }
  const auto place = board_->place_of(*incarnation);
  if (memory->fd() < 0 || !place) return refusal(header, Status(ErrorCode::kNotSupported, "its memory cannot be shared"));
  wire::ShmSegmentReply reply;
  reply.set_size(memory->bytes().size());
  reply.set_board_index(place->index);
  Answer answer;
  answer.frame = frame_of(header, net::FrameKind::kResponse, reply.SerializeAsString());
  answer.descriptors = {memory->fd()};
  answer.keep = memory;
  return answer;
}

// ---------------------------------------------------------------- pins

OwnerSession::Answer OwnerSession::pin(const net::FrameHeader& header, std::span<const std::byte> message) {
  wire::ShmPinRequest request;
  if (!request.ParseFromArray(message.data(), static_cast<int>(message.size()))) return contradiction(header, "a request does not parse");
  wire::ShmPinReply reply;
  if (const Status status = pins_.pin(owner_, request, reply); !status.ok()) return refusal(header, status);
  MOONPOOL_SYNC_POINT("owner_session.pinned");
  Answer answer;
  answer.frame = frame_of(header, net::FrameKind::kResponse, reply.SerializeAsString());
  return answer;
}

void OwnerSession::unpin(std::span<const std::byte> message) {
  wire::ShmUnpinRequest request;
  if (!request.ParseFromArray(message.data(), static_cast<int>(message.size()))) return;
  pins_.unpin(request);
}

// ---------------------------------------------------------------- the ring

void OwnerSession::harvest() {
  const std::scoped_lock lock(mutex_);
  if (ring_ == nullptr || ended_) return;
  const std::uint64_t head = ring_->memory().head.load();
  if (head - tail_ > kRingSlots) return;  // no writer of ours: it cannot have announced that many
  for (std::uint64_t number = tail_; number < head; ++number) {
    if (!freed_[number % kRingSlots]) look_at(number);
  }
  for (; tail_ < head && freed_[tail_ % kRingSlots]; ++tail_) freed_.reset(tail_ % kRingSlots);
}

void OwnerSession::free_slot(std::uint64_t number) {
  freed_.set(number % kRingSlots);
  ring_->memory().slots[number % kRingSlots].state.store(SlotState::kFree);
}

void OwnerSession::look_at(std::uint64_t number) {
  RingSlot& slot = ring_->memory().slots[number % kRingSlots];
  auto& writer = writers_[number % kRingSlots];
  switch (slot.state.load()) {
    case SlotState::kWriting:
      if (!writer && !admit(number)) {
        // It has not touched anything: the board said so before the owner's rules did.
        auto expected = SlotState::kWriting;
        slot.state.compare_exchange_strong(expected, SlotState::kCancelled);
      }
      break;
    case SlotState::kComplete:
      if (writer || admit(number)) publish(number);
      free_slot(number);
      break;
    case SlotState::kLeft:
      writer.reset();
      free_slot(number);
      break;
    default:
      break;
  }
}

bool OwnerSession::admit(std::uint64_t number) {
  const RingSlot& slot = ring_->memory().slots[number % kRingSlots];
  const auto incarnation = board_->segment_at({slot.board_index, slot.board_tag});
  if (!incarnation) return false;
  const ExtentRef ref{*incarnation, slot.offset, slot.length, Version{Term{slot.term}, slot.count}};
  auto cancel = [ring = ring_, number, ref] {
    RingSlot& its_slot = ring->memory().slots[number % kRingSlots];
    if (its_slot.count != ref.version.count || its_slot.offset != ref.offset) return;  // the slot is another's by now
    auto expected = SlotState::kWriting;
    its_slot.state.compare_exchange_strong(expected, SlotState::kCancelled);
  };
  auto pin = owner_.begin_write(ref, std::move(cancel));
  if (!pin.ok()) {
    log::debug("shared memory: an announced write was refused: {}", pin.status().to_string());
    return false;
  }
  writers_[number % kRingSlots] = std::move(*pin);
  return true;
}

void OwnerSession::publish(std::uint64_t number) {
  const RingSlot& slot = ring_->memory().slots[number % kRingSlots];
  auto& writer = writers_[number % kRingSlots];
  const std::uint64_t key_length = slot.key_length;
  const std::uint64_t place = slot.heap_offset;
  const std::uint64_t chunks = chunks_of(writer->memory().size());
  const std::uint64_t size = checksums_offset(key_length) + chunks * sizeof(std::uint64_t);
  Owner::Pin pin = std::move(*writer);
  writer.reset();
  if (place > kRingHeap || size > kRingHeap - place) return;  // nonsense; the pin's end gives the extent up
  const std::byte* const record = ring_->memory().heap.data() + place;
  const std::string key(reinterpret_cast<const char*>(record), key_length);
  std::vector<std::uint64_t> checksums(chunks);
  std::memcpy(checksums.data(), record + checksums_offset(key_length), chunks * sizeof(std::uint64_t));
  const Status status = owner_.complete_write(std::move(pin), key, checksums);
  if (!status.ok()) log::debug("shared memory: a complete write was refused: {}", status.to_string());
}

bool OwnerSession::writing() {
  harvest();
  const std::scoped_lock lock(mutex_);
  return std::ranges::any_of(writers_, [](const auto& writer) { return writer.has_value(); });
}

void OwnerSession::end() {
  harvest();
  pins_.clear();
  const std::scoped_lock lock(mutex_);
  ended_ = true;
  for (auto& writer : writers_) writer.reset();
}

}  // namespace moonpool::transfer
