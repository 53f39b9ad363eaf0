// WRITE, READ and the raw requests of strangers: parsed, checked and carried out against a real owner and real registered memory, with
// whatever payload follows. The first byte chooses the method, the next two the message's length; the rest is the payload.
//
// Half of the inputs get what a peer could know (the incarnation in place of any 16 bytes), or nothing would pass the first check.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>

#include "transfer/checksum.h"
#include "transfer/tcp/extent_service.h"
#include "transfer/tcp/raw_service.h"

namespace {

using namespace moonpool;            // NOLINT(google-build-using-namespace): a fuzz target is one file
using namespace moonpool::transfer;  // NOLINT(google-build-using-namespace)

constexpr std::size_t kSegment = 1U << 20;

class FakeSession final : public net::Session {
 public:
  const NodeId& peer_node() const override { return node_; }
  const std::string& peer_address() const override { return address_; }
  void abort() override {}

 private:
  NodeId node_;
  std::string address_ = "fuzzer";
};

class FakeRequest final : public net::Request {
 public:
  FakeRequest(wire::Method method, std::string message, std::span<const std::byte> payload, std::uint64_t claimed)
      : method_(method), message_(std::move(message)), payload_(payload), claimed_(claimed) {}
  wire::Method method() const override { return method_; }
  ConstBytes message() const override { return std::as_bytes(std::span(message_)); }
  std::uint64_t payload_length() const override { return claimed_; }
  Deadline deadline() const override { return Deadline::after(std::chrono::seconds(1)); }
  const std::shared_ptr<net::Session>& session() const override { return session_; }
  net::Task<Status> receive(std::span<const MutableBytes> pieces) override {
    for (const auto& piece : pieces) {
      if (piece.size() > payload_.size()) co_return Status(ErrorCode::kUnavailable, "the peer is gone");
      std::memcpy(piece.data(), payload_.data(), piece.size());
      payload_ = payload_.subspan(piece.size());
    }
    co_return Status();
  }
  net::Task<Status> discard(std::uint64_t length) override {
    if (length > payload_.size()) co_return Status(ErrorCode::kUnavailable, "the peer is gone");
    payload_ = payload_.subspan(length);
    co_return Status();
  }

 private:
  wire::Method method_;
  std::string message_;
  std::span<const std::byte> payload_;
  std::uint64_t claimed_;
  std::shared_ptr<net::Session> session_ = std::make_shared<FakeSession>();
};

struct Target {
  Owner owner;
  Incarnation incarnation;
  std::vector<std::byte> segment = std::vector<std::byte>(kSegment);
  RegisteredMemory memory;
  NotificationQueue notifications;
  RawService raw{memory, notifications, {}, [] { return wire::EngineDescriptor(); }};
  std::uint64_t base = reinterpret_cast<std::uint64_t>(segment.data());

  Target() {
    (void)owner.adopt_term(Term{1}, Deadline::after(std::chrono::seconds(1)));
    incarnation = *owner.mount(MutableBytes(segment));
    raw.incarnation = incarnation;
    (void)memory.add(base, kSegment, "*");
  }
};

template <typename Message>
void tell_incarnation(Message& message, const Target& target) {
  for (auto& bytes : *message.mutable_incarnation()) bytes = target.incarnation.to_bytes();
}

// What the message says, with what only this process knows filled in. Addresses are meant relative to the registered memory.
std::string informed(wire::Method method, const std::string& message, const Target& target) {
  if (method == wire::METHOD_WRITE) {
    wire::WriteRequest request;
    if (!request.ParseFromString(message)) return message;
    tell_incarnation(request, target);
    request.set_checksum_chunk(kChecksumChunk);
    return request.SerializeAsString();
  }
  if (method == wire::METHOD_READ) {
    wire::ReadRequest request;
    if (!request.ParseFromString(message)) return message;
    tell_incarnation(request, target);
    return request.SerializeAsString();
  }
  wire::RawRequest request;
  if (!request.ParseFromString(message)) return message;
  request.set_incarnation(target.incarnation.to_bytes());
  for (auto& address : *request.mutable_address()) address += target.base;
  return request.SerializeAsString();
}

net::Reply run(net::Task<net::Reply> handler) {
  boost::asio::io_context context;
  net::Reply reply;
  boost::asio::co_spawn(context, std::move(handler), [&](const std::exception_ptr& thrown, net::Reply answer) {
    if (thrown) std::rethrow_exception(thrown);
    reply = std::move(answer);
  });
  context.run();
  return reply;
}

net::Reply handle(Target& target, net::Request& request) {
  switch (request.method()) {
    case wire::METHOD_WRITE:
      return run(handle_write(target.owner, request));
    case wire::METHOD_READ:
      return run(handle_read(target.owner, request));
    case wire::METHOD_RAW_WRITE:
      return run(handle_raw_write(target.raw, request));
    case wire::METHOD_RAW_READ:
      return run(handle_raw_read(target.raw, request));
    default:
      return run(handle_notify(target.raw, request));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Target target;
  auto rest = std::as_bytes(std::span(data, size));
  while (rest.size() >= 4) {  // a few requests after each other, so that a read can meet what a write left
    constexpr wire::Method kMethods[] = {wire::METHOD_WRITE, wire::METHOD_READ, wire::METHOD_RAW_WRITE, wire::METHOD_RAW_READ,
                                         wire::METHOD_NOTIFY};
    const auto choice = static_cast<unsigned>(rest[0]);
    const wire::Method method = kMethods[choice % 5];
    const auto message_length =
        std::min<std::size_t>((static_cast<unsigned>(rest[1]) << 8U) | static_cast<unsigned>(rest[2]), rest.size() - 4);
    const auto extra = static_cast<unsigned>(rest[3]);
    std::string message(reinterpret_cast<const char*>(rest.data()) + 4, message_length);
    rest = rest.subspan(4 + message_length);
    const auto payload = rest.first(std::min<std::size_t>(rest.size(), extra * 8));
    rest = rest.subspan(payload.size());
    if ((choice & 0x80U) != 0 && method != wire::METHOD_NOTIFY) message = informed(method, message, target);
    FakeRequest request(method, std::move(message), payload, std::uint64_t{extra} * 8);  // more than there is: the peer is gone half-way
    net::Reply reply = handle(target, request);
    std::uint64_t sum = 0;
    for (const auto& piece : reply.payload) {
      for (const auto byte : piece) sum += static_cast<unsigned>(byte);  // what is sent can be read
      if (sum == ~0ULL) std::abort();
    }
    if (reply.sent) reply.sent();
  }
  if (!target.owner.unmount(target.incarnation, Deadline::after(std::chrono::seconds(1))).ok()) std::abort();  // no pin is left behind
  if (!target.memory.remove(target.base, Deadline::after(std::chrono::seconds(1))).ok()) std::abort();         // no hold either
  return 0;
}
