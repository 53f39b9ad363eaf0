// BEGIN, COMPLETE, PIN and UNPIN of an RDMA session, by any peer, against a real owner; then the session's end, after which nothing of it
// may be left.
//
// The input is cut into messages: a byte for the method (its highest bit: fill in what a peer knows), a byte for the length. What a peer
// knows is the incarnation, and the tickets that it was given.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/rdma/extent_session.h"

namespace {

using namespace moonpool;            // NOLINT(google-build-using-namespace): a fuzz target is one file
using namespace moonpool::transfer;  // NOLINT(google-build-using-namespace)

struct World {
  World() {
    static_cast<void>(owner.adopt_term(Term{1}, Deadline::after(std::chrono::seconds(1))));
    incarnation = *owner.mount(MutableBytes(segment));
  }
  std::vector<std::byte> segment = std::vector<std::byte>(1U << 20);
  Owner owner;
  Incarnation incarnation;
  bool fenced = false;
  rdma::ExtentSession session{owner, [this] { fenced = true; }};
  std::vector<std::uint64_t> tickets;
  std::vector<std::uint64_t> lengths;  // of the tickets' extents
};

net::Task<void> answer(World& world, const wire::RdmaBeginRequest& request) {
  const auto reply = co_await world.session.begin(request, Deadline::after(std::chrono::nanoseconds(0)));
  if (!reply.ok()) co_return;
  if (reply->status_size() != request.segment_size() || reply->ticket_size() != request.segment_size()) std::abort();
  for (int i = 0; i < reply->ticket_size(); ++i) {
    if (reply->ticket(i) == 0) continue;
    world.tickets.push_back(reply->ticket(i));
    world.lengths.push_back(request.length(i));
  }
}

void begin(World& world, const std::string& bytes, bool informed) {
  wire::RdmaBeginRequest request;
  if (!request.ParseFromString(bytes)) return;
  if (informed) {
    for (auto& one : *request.mutable_incarnation()) one = world.incarnation.to_bytes();
    for (auto& term : *request.mutable_version_term()) term = 1;
  }
  boost::asio::io_context context;
  boost::asio::co_spawn(context, answer(world, request), [](const std::exception_ptr& thrown) {
    if (thrown) std::rethrow_exception(thrown);
  });
  context.run();
}

void complete(World& world, const std::string& bytes, bool informed) {
  wire::RdmaCompleteRequest request;
  if (!request.ParseFromString(bytes)) return;
  if (informed) {  // every entry names a ticket that it may name, and has as many checksums as it should
    request.set_checksum_chunk(kChecksumChunk);
    request.clear_ticket();
    request.clear_checksum();
    const auto count = std::min<std::size_t>(world.tickets.size(), static_cast<std::size_t>(request.key_size()));
    for (std::size_t i = 0; i < count; ++i) {
      request.add_ticket(world.tickets[i]);
      if (request.failed_size() <= static_cast<int>(i)) request.add_failed(false);
      if (request.failed(static_cast<int>(i))) continue;
      for (std::size_t chunk = 0; chunk < chunks_of(world.lengths[i]); ++chunk) request.add_checksum(chunk);
    }
  }
  const bool good = world.session.check(request).ok();
  if (good != world.session.complete(request).ok()) std::abort();
}

void pin(World& world, const std::string& bytes, bool informed) {
  wire::ShmPinRequest request;
  if (!request.ParseFromString(bytes)) return;
  if (informed) {
    for (auto& one : *request.mutable_incarnation()) one = world.incarnation.to_bytes();
    for (auto& term : *request.mutable_version_term()) term = 1;
  }
  const auto reply = world.session.pin(request);
  if (reply.ok() && reply->status_size() != request.segment_size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World world;
  std::span<const std::uint8_t> rest(data, size);
  while (rest.size() > 2) {
    const unsigned choice = rest[0];
    const std::size_t length = std::min<std::size_t>(rest[1], rest.size() - 2);
    const std::string bytes(reinterpret_cast<const char*>(rest.data()) + 2, length);
    rest = rest.subspan(2 + length);
    const bool informed = (choice & 0x80U) != 0;
    switch (choice % 8) {
      case 0:
      case 1:
        begin(world, bytes, informed);
        break;
      case 2:
      case 3:
        complete(world, bytes, informed);
        break;
      case 4:
      case 5:
        pin(world, bytes, informed);
        break;
      case 6: {
        wire::ShmUnpinRequest request;
        if (request.ParseFromString(bytes)) world.session.unpin(request);
        break;
      }
      default:
        if (bytes.size() == 7) world.session.end();
    }
  }
  world.session.end();
  if (!world.owner.unmount(world.incarnation, Deadline::after(std::chrono::seconds(1))).ok()) std::abort();  // no pin is left behind
  return 0;
}
