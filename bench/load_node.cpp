#include "load_node.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace moonpool::bench {

namespace {

constexpr std::chrono::seconds kLimit{30};

}  // namespace

void must(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "master_load: %s: %s\n", what, status.to_string().c_str());
  std::exit(1);
}

LoadNode::LoadNode(const net::Endpoint& master, std::uint64_t segment_bytes)
    : identity_{.node_id = NodeId::generate(), .token = {}}, id_bytes_(identity_.node_id.to_bytes()) {
  auto lane = net::Lane::connect(master, identity_, Deadline::after(kLimit));
  must(lane.status(), "connect");
  lane_ = std::move(*lane);
  register_and_mount(segment_bytes);
  thread_ = std::thread([this] { keep_acknowledging(); });
}

LoadNode::~LoadNode() {
  stop_ = true;
  lane_->abort();
  thread_.join();
}

void LoadNode::register_and_mount(std::uint64_t segment_bytes) {
  wire::RegisterNodeRequest registration;
  registration.set_node_id(id_bytes_);
  registration.set_name("127.0.0.1:1");
  registration.set_host("127.0.0.1");
  registration.set_port(1);  // nobody is ever sent there: no data moves
  wire::RegisterNodeReply registered;
  must(lane_->call(wire::METHOD_REGISTER_NODE, registration, registered, Deadline::after(kLimit)), "register");
  term_ = registered.term();

  wire::MountSegmentRequest mounting;
  mounting.set_node_id(id_bytes_);
  mounting.set_term(term_);
  auto& segment = *mounting.mutable_segment();
  segment.set_incarnation(Incarnation::generate().to_bytes());
  segment.set_name(registration.name());
  segment.set_host(registration.host());
  segment.set_port(registration.port());
  segment.set_size(segment_bytes);
  segment.set_protocol("tcp");
  segment.set_node_id(id_bytes_);
  mounting.set_last(true);
  wire::MountSegmentReply mounted;
  must(lane_->call(wire::METHOD_MOUNT_SEGMENT, mounting, mounted, Deadline::after(kLimit)), "mount");
}

void LoadNode::keep_acknowledging() {
  wire::NodeSyncRequest request;
  request.set_node_id(id_bytes_);
  request.set_term(term_);
  wire::NodeSyncReply reply;
  while (!stop_) {
    const Status status = lane_->call(wire::METHOD_NODE_SYNC, request, reply, Deadline::after(kLimit));
    if (stop_) return;
    must(status, "sync");
    request.clear_acknowledged();
    for (const auto& retirement : reply.retirements()) request.add_acknowledged(retirement.sequence());
    acknowledged_ += static_cast<std::uint64_t>(reply.retirements_size());
  }
}

}  // namespace moonpool::bench
