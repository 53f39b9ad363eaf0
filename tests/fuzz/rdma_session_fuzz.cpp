// OPEN and KEYS of a peer that has shaken hands, against the owner's end of a session over simulated NICs; and the answers to them, against
// the user's checks of what an owner says. The first byte chooses the message, the next two its length; what follows is the next message.
//
// Half of the openings get what a peer could know (a real queue pair, the owner's kind of fabric), or nothing would be connected.
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "transfer/rdma/served_rails.h"
#include "transfer/rdma/simulated_nic.h"

namespace {

using namespace moonpool;                  // NOLINT(google-build-using-namespace): a fuzz target is one file
using namespace moonpool::transfer::rdma;  // NOLINT(google-build-using-namespace)

struct World {
  World() {
    std::vector<std::unique_ptr<Nic>> nics;
    for (const char* name : {"owner0", "owner1"}) nics.push_back(fabric.make_nic(name));
    memory = std::make_shared<MemoryMap>(std::make_shared<Devices>(std::move(nics)));
    if (!memory->serve(incarnation, served).ok()) std::abort();
    auto made = user->make_queue_pair({});
    if (!made.ok()) std::abort();
    queue_pair = std::move(*made);
  }
  SimulatedFabric fabric;
  std::unique_ptr<Nic> user = fabric.make_nic("user");
  std::unique_ptr<QueuePair> queue_pair;
  std::shared_ptr<MemoryMap> memory;
  std::vector<std::byte> served = std::vector<std::byte>(4096);
  const Incarnation incarnation{1, 2};
};

std::uint64_t queue_pairs(const World& world) {
  return world.fabric.counts("owner0").queue_pairs + world.fabric.counts("owner1").queue_pairs;
}

void open(World& world, ServedRails& session, const std::string& message, bool informed) {
  wire::RdmaOpenRequest request;
  if (!request.ParseFromString(message)) return;
  if (informed) {
    while (request.end_size() < request.rail_size() && request.rail_size() <= 32) {
      *request.add_end() = to_wire({"user", world.user->gids(), world.queue_pair->address(), false, false, false});
    }
  }
  const auto reply = session.open(request);
  if (session.rails() > kMaxRailsPerSession || queue_pairs(world) != session.rails()) std::abort();
  if (!reply.ok()) return;
  if (reply->status_size() != request.rail_size() || reply->end_size() != request.rail_size()) std::abort();
  for (int i = 0; i < reply->end_size(); ++i) {
    if (reply->status(i) == 0 &&
        (!from_wire(reply->end(i)).ok() || reply->gid(i) >= static_cast<std::uint32_t>(request.end(i).gid_size()))) {
      std::abort();  // what was opened is what a user accepts
    }
  }
}

void keys(World& world, std::string message) {
  // A peer knows the incarnation: it stands for any sixteen 'I'.
  if (const auto at = message.find(std::string(16, 'I')); at != std::string::npos) message.replace(at, 16, world.incarnation.to_bytes());
  wire::RdmaKeysRequest request;
  if (!request.ParseFromString(message)) return;
  const auto reply = keys_of(*world.memory, request);
  if (reply.ok() && request.incarnation() != world.incarnation.to_bytes()) std::abort();
}

void end_of_a_stranger(const std::string& message) {
  wire::RdmaEnd end;
  if (!end.ParseFromString(message)) return;
  const auto parsed = from_wire(end);
  if (!parsed.ok()) return;
  const auto again = from_wire(to_wire(*parsed));
  if (!again.ok() || again->gids.size() != parsed->gids.size() || again->address.number != parsed->address.number) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World world;
  ServedRails session(world.memory, {}, nullptr);
  std::span<const std::uint8_t> rest(data, size);
  while (rest.size() >= 3) {
    const unsigned choice = rest[0];
    const auto length = std::min<std::size_t>((static_cast<unsigned>(rest[1]) << 8U) | rest[2], rest.size() - 3);
    const std::string message(reinterpret_cast<const char*>(rest.data()) + 3, length);
    rest = rest.subspan(3 + length);
    switch (choice % 4) {
      case 0:
        keys(world, message);
        break;
      case 1:
        end_of_a_stranger(message);
        break;
      default:
        open(world, session, message, choice % 4 == 3);
    }
    if (choice == 0xFF) session.end();
  }
  session.end();
  if (queue_pairs(world) != 0) std::abort();
  return 0;
}
