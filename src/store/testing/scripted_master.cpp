#include "store/testing/scripted_master.h"

#include <utility>

namespace moonpool::store::testing {

namespace {

net::Identity identity_with(std::string token) {
  net::Identity identity;
  identity.node_id = NodeId::generate();
  identity.token = std::move(token);
  return identity;
}

net::ServerOptions options_with(std::uint16_t port) {
  net::ServerOptions options;
  options.port = port;
  options.threads = 2;
  return options;
}

}  // namespace

ScriptedMaster::ScriptedMaster(std::uint16_t port, std::string token) : server_(identity_with(std::move(token)), options_with(port)) {}

void ScriptedMaster::on(wire::Method method, Answer answer) {
  server_.handle(method, [answer = std::move(answer)](net::Request& request) -> net::Task<net::Reply> { co_return answer(request); });
}

void ScriptedMaster::accept_nodes(std::uint64_t term) {
  on(wire::METHOD_REGISTER_NODE, [this, term](net::Request&) {
    ++registrations_;
    wire::RegisterNodeReply reply;
    reply.set_term(term);
    reply.set_sync_interval_ms(1000);
    return net::Reply(reply);
  });
  on(wire::METHOD_MOUNT_SEGMENT, [](net::Request&) { return net::Reply(wire::MountSegmentReply()); });
  on(wire::METHOD_DEREGISTER_NODE, [](net::Request&) { return net::Reply(wire::Empty()); });
  server_.handle(wire::METHOD_NODE_SYNC, [term](net::Request&) -> net::Task<net::Reply> {
    net::AsyncEvent never;
    static_cast<void>(co_await never.wait(never.epoch(), Deadline::after(std::chrono::milliseconds(50))));
    wire::NodeSyncReply reply;
    reply.set_term(term);
    co_return net::Reply(reply);
  });
}

}  // namespace moonpool::store::testing
