#include "transfer/rdma/node.h"

#include <utility>

#include "transfer/rdma/rdma_transport.h"

namespace moonpool::transfer::rdma {

Node::Node(Owner& owner, net::Identity self, std::shared_ptr<Devices> devices, Options options)
    : memory_(std::make_shared<MemoryMap>(std::move(devices))),
      pool_(std::move(self), memory_, options),
      sessions_(memory_, options),
      extents_(owner, sessions_),
      segments_(std::make_shared<ServedSegments>(owner, memory_)) {
  segments_->start();
}

Node::~Node() { stop(); }

void Node::serve(net::Server& server) {
  sessions_.serve(server);
  extents_.serve(server);
}

std::unique_ptr<Transport> Node::transport(bool verify) { return std::make_unique<RdmaTransport>(pool_, verify); }

// Peers' queue pairs go before the registrations that they use, and what their end needs of threads goes last.
void Node::stop() {
  pool_.close();
  sessions_.stop();
  segments_->stop();
  extents_.stop();
}

}  // namespace moonpool::transfer::rdma
