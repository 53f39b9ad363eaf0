// A process that uses another one's segment over shared memory, for tests that stop and kill it:
//   shm_user write NODE INCARNATION TERM COUNT LENGTH             stops itself (SIGSTOP) in the middle of its copy
//   shm_user fill NODE INCARNATION TERM COUNT LENGTH              closes all it has open in the middle of a write in place, says "filling"
//                                                                 and waits to be killed
//   shm_user view NODE INCARNATION TERM COUNT LENGTH CHECKSUM     says "viewing" and waits to be killed
//   shm_user reason NODE [UID]                                    says why it cannot, or "reached"; as that user
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "base/sync_point.h"
#include "transfer/shm/shm_transport.h"

namespace {

using namespace moonpool;
using namespace moonpool::transfer;

template <typename Id>
Id id_of(const std::string& hex) {
  return Id(std::stoull(hex.substr(0, 16), nullptr, 16), std::stoull(hex.substr(16, 16), nullptr, 16));
}

ExtentRef extent_of(char** argv) {
  return {id_of<Incarnation>(argv[3]), 0, std::stoull(argv[6]), Version{Term{std::stoull(argv[4])}, std::stoull(argv[5])}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string command = argv[1];
  const Peer peer{id_of<NodeId>(argv[2]), {"127.0.0.1", 1}};
  if (command == "reason" && argc > 3 && ::setuid(static_cast<uid_t>(std::atoi(argv[3]))) != 0) return 3;
  ShmTransport transport(net::Identity{NodeId::generate(), "token", "test"});
  const Deadline deadline = Deadline::after(std::chrono::seconds(60));
  if (command == "reason") {
    std::puts(transport.reaches(peer) ? "reached" : transport.why_not(peer).c_str());
    return 0;
  }
  if (argc < 7) return 2;
  const ExtentRef extent = extent_of(argv);
  if (command == "write") {
#ifdef MOONPOOL_SYNC_POINTS
    SyncPoints::instance().on("shm.write.chunk_copied", [] { ::raise(SIGSTOP); });
#endif
    const std::vector<std::byte> data(extent.length, std::byte{5});
    const ConstBytes piece(data);
    WriteOperation operation{extent, "key", {&piece, 1}, {}, 0};
    transport.write(peer, {&operation, 1}, deadline);
    std::puts(operation.status.to_string().c_str());
    return operation.status.ok() ? 0 : 1;
  }
  if (command == "fill") {
    WriteOperation operation{extent, "key", {}, {}, 0};
    transport.write_in_place(
        peer, {&operation, 1},
        [](std::span<OpenExtent>) {
          ::close_range(3, ~0U, 0);
          std::puts("filling");
          std::fflush(stdout);
          ::pause();
        },
        deadline);
    return 1;
  }
  ViewOperation operation;
  operation.extent = extent;
  operation.checksum = std::stoull(argv[7]);
  transport.view(peer, {&operation, 1}, deadline);
  std::puts(operation.status.ok() ? "viewing" : operation.status.to_string().c_str());
  std::fflush(stdout);
  ::pause();
  return 0;
}
