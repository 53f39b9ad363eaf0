// Request messages into the master's service, without a network: a sequence of (method, length, message).
//
// A node is registered and mounted first under a known id, so that mutated requests get past the door. Requests that would wait are
// given a deadline that is over.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "master/service.h"

namespace {

using namespace moonpool;  // NOLINT(google-build-using-namespace)

const NodeId kNode(1, 2);
const Incarnation kIncarnation(3, 4);

class FuzzSession final : public net::Session {
 public:
  [[nodiscard]] const NodeId& peer_node() const override { return kNode; }
  [[nodiscard]] const std::string& peer_address() const override { return address_; }
  void abort() override {}

 private:
  std::string address_ = "fuzz";
};

class FuzzRequest final : public net::Request {
 public:
  FuzzRequest(wire::Method method, std::string message) : method_(method), message_(std::move(message)) {}
  [[nodiscard]] wire::Method method() const override { return method_; }
  [[nodiscard]] net::ConstBytes message() const override { return std::as_bytes(std::span(message_)); }
  [[nodiscard]] std::uint64_t payload_length() const override { return 0; }
  [[nodiscard]] Deadline deadline() const override { return Deadline::after(std::chrono::nanoseconds(0)); }
  [[nodiscard]] const std::shared_ptr<net::Session>& session() const override { return session_; }
  [[nodiscard]] net::Task<Status> receive(std::span<const net::MutableBytes>) override { co_return Status(); }
  [[nodiscard]] net::Task<Status> discard(std::uint64_t) override { co_return Status(); }

 private:
  wire::Method method_;
  std::string message_;
  std::shared_ptr<net::Session> session_ = std::make_shared<FuzzSession>();
};

net::Task<void> serve_one(master::Service& service, FuzzRequest& request) { static_cast<void>(co_await service.serve(request)); }

void serve(master::Service& service, wire::Method method, std::string message) {
  boost::asio::io_context loop;
  FuzzRequest request(method, std::move(message));
  boost::asio::co_spawn(loop, serve_one(service, request), [](const std::exception_ptr& error) {
    if (error) __builtin_trap();
  });
  loop.run();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  master::MasterConfig config;
  config.recovery_window = std::chrono::milliseconds(0);
  config.room_wait = std::chrono::milliseconds(0);
  master::Coordinator coordinator(config, master::now_ms(), 1000);
  master::Service service(coordinator, {});
  wire::RegisterNodeRequest join;
  join.set_node_id(kNode.to_bytes());
  serve(service, wire::METHOD_REGISTER_NODE, join.SerializeAsString());
  wire::MountSegmentRequest mount;
  mount.set_node_id(kNode.to_bytes());
  mount.set_term(1000);
  mount.mutable_segment()->set_incarnation(kIncarnation.to_bytes());
  mount.mutable_segment()->set_size(1 << 16);
  mount.set_last(true);
  serve(service, wire::METHOD_MOUNT_SEGMENT, mount.SerializeAsString());
  while (size >= 3) {
    const auto method = static_cast<wire::Method>(data[0] % 16);
    const std::size_t length = std::min<std::size_t>(data[1] | (data[2] << 8), size - 3);
    serve(service, method, std::string(reinterpret_cast<const char*>(data) + 3, length));
    data += 3 + length;
    size -= 3 + length;
  }
  coordinator.sweep(master::now_ms());
  return 0;
}
