// The Unix socket of a node: frames of a stranger, and of a peer that has shaken hands, against a real owner; then a ring of any content.
//
// The input is cut into datagrams by length bytes. When its first bit is set the handshake is done first, and the rest of each datagram is
// the message of a well-formed frame whose method is its first byte; what follows the last datagram overwrites slots of the ring.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "net/handshake_steps.h"
#include "transfer/shm/owner_session.h"

namespace {

using namespace moonpool;            // NOLINT(google-build-using-namespace): a fuzz target is one file
using namespace moonpool::transfer;  // NOLINT(google-build-using-namespace)

struct World {
  World() {
    static_cast<void>(owner.adopt_term(Term{1}, Deadline::after(std::chrono::seconds(1))));
    incarnation = *owner.mount(1 << 20);
    board->adopt(Term{1});
    board->open(incarnation);
  }
  Owner owner;
  std::shared_ptr<Board> board = std::move(Board::create()).value();
  Incarnation incarnation;
};

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

void shake_hands(OwnerSession& session, const net::Identity& self) {
  net::ClientHandshake client(self, "fuzzer");
  static_cast<void>(session.on_frame(as_bytes(client.hello())));
}

// The ring as its peer maps it.
void overwrite_ring(int fd, std::span<const std::uint8_t> input, const World& world) {
  void* const address = ::mmap(nullptr, sizeof(RingMemory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return;
  auto& ring = *static_cast<RingMemory*>(address);
  const auto place = world.board->place_of(world.incarnation);
  std::memcpy(static_cast<void*>(ring.slots.data()), input.data(), std::min(input.size(), sizeof(ring.slots)));
  for (auto& slot : ring.slots) {  // or nothing would pass the first check
    slot.board_index = place->index;
    if ((slot.board_tag & 1) != 0) slot.board_tag = place->tag;
    if ((slot.count & 1) != 0) slot.term = 1;
  }
  ring.head = input.empty() ? 0 : input[0] * std::uint64_t{8};
  ::munmap(address, sizeof(RingMemory));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  World world;
  const net::Identity self{NodeId::generate(), "", "fuzz"};
  OwnerSession session(world.owner, world.board, self);
  const bool known = (data[0] & 1) != 0;
  if (known) shake_hands(session, self);
  std::span<const std::uint8_t> rest(data + 1, size - 1);
  int ring = -1;
  std::shared_ptr<void> keep;
  for (int i = 0; i < 8 && rest.size() > 1; ++i) {
    const std::size_t length = std::min<std::size_t>(rest[0], rest.size() - 1);
    const auto part = rest.subspan(1, length);
    rest = rest.subspan(1 + length);
    std::string frame(reinterpret_cast<const char*>(part.data()), part.size());
    if (known && !part.empty()) {
      net::FrameHeader header;
      header.kind = net::FrameKind::kRequest;
      header.method = static_cast<std::uint16_t>(48 + part[0] % 6);
      header.request_id = 1;
      std::string message = frame.substr(1);
      // A peer knows the incarnation: it stands for any sixteen 'I'.
      if (const auto at = message.find(std::string(16, 'I')); at != std::string::npos) {
        message.replace(at, 16, world.incarnation.to_bytes());
      }
      frame = net::make_frame(header, message);
    }
    auto answer = session.on_frame(as_bytes(frame));
    if (answer.descriptors.size() == 2) {
      ring = answer.descriptors[0];
      keep = answer.keep;
    }
  }
  if (ring >= 0) {
    overwrite_ring(ring, rest, world);
    session.harvest();
    overwrite_ring(ring, rest.subspan(rest.size() / 2), world);
  }
  session.end();
  return 0;
}
