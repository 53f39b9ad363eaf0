#include "transfer/rdma/wire_ends.h"

#include <algorithm>
#include <limits>

namespace moonpool::transfer::rdma {

namespace {

constexpr std::uint32_t kMaxNumber = 0xFFFFFF;  // 24 bits, as in every packet
constexpr std::uint32_t kMaxReads = 255;
constexpr std::size_t kMaxHost = 255;

Status nonsense(const std::string& what) { return {ErrorCode::kProtocol, "RDMA: the peer's queue pair has " + what}; }

bool is_mtu(std::uint32_t bytes) { return bytes == 0 || (bytes >= 256 && bytes <= 65536); }

Result<Gid> from_wire(const wire::RdmaGid& gid) {
  if (gid.bytes().size() != 16 || gid.kind() > static_cast<std::uint32_t>(Gid::Kind::kIwarp) || gid.prefix_length() > 128) {
    return nonsense("a GID that is none");
  }
  Gid parsed;
  std::ranges::transform(gid.bytes(), parsed.bytes.begin(), [](char byte) { return static_cast<std::uint8_t>(byte); });
  parsed.kind = static_cast<Gid::Kind>(gid.kind());
  parsed.prefix_length = gid.prefix_length();
  return parsed;
}

}  // namespace

QueuePairOptions queue_pair_options(const Options& options, Role role, const Gid& gid) {
  QueuePairOptions queue_pair;
  queue_pair.role = role;
  queue_pair.gid = gid;
  queue_pair.traffic_class = options.traffic_class;
  queue_pair.service_level = options.service_level;
  queue_pair.mtu = options.mtu;
  queue_pair.ack_timeout = options.ack_timeout;
  queue_pair.retries = options.retries;
  return queue_pair;
}

wire::RdmaEnd to_wire(const End& end) {
  wire::RdmaEnd message;
  message.set_nic(end.nic.substr(0, kMaxNicName));
  for (std::size_t i = 0; i < std::min(end.gids.size(), kMaxGidsPerEnd); ++i) {
    auto& gid = *message.add_gid();
    gid.set_bytes(std::string(end.gids[i].bytes.begin(), end.gids[i].bytes.end()));
    gid.set_kind(static_cast<std::uint32_t>(end.gids[i].kind));
    gid.set_prefix_length(end.gids[i].prefix_length);
  }
  message.set_lid(end.address.lid);
  message.set_mtu(end.address.mtu);
  message.set_number(end.address.number);
  message.set_first_packet(end.address.first_packet);
  message.set_reads_in(end.address.reads_in);
  message.set_infiniband(end.infiniband);
  message.set_iwarp(end.iwarp);
  message.set_connection_manager(end.connection_manager);
  message.set_cm_host(end.address.cm_host);
  message.set_cm_port(end.address.cm_port);
  message.set_cm_ticket(end.address.cm_ticket);
  return message;
}

Result<End> from_wire(const wire::RdmaEnd& message) {
  if (message.nic().size() > kMaxNicName) return nonsense("a NIC with a name of " + std::to_string(message.nic().size()) + " bytes");
  if (static_cast<std::size_t>(message.gid_size()) > kMaxGidsPerEnd) return nonsense("too many GIDs");
  if (message.number() > kMaxNumber || message.first_packet() > kMaxNumber) return nonsense("a number of more than 24 bits");
  if (message.lid() > std::numeric_limits<std::uint16_t>::max()) return nonsense("a LID of more than 16 bits");
  if (!is_mtu(message.mtu())) return nonsense("an MTU of " + std::to_string(message.mtu()) + " bytes");
  if (message.cm_host().size() > kMaxHost || message.cm_port() > std::numeric_limits<std::uint16_t>::max()) {
    return nonsense("an address for rdma_cm that is none");
  }
  End end;
  end.nic = message.nic();
  for (const auto& gid : message.gid()) {
    auto parsed = from_wire(gid);
    if (!parsed.ok()) return parsed.status();
    end.gids.push_back(*parsed);
  }
  end.address.number = message.number();
  end.address.first_packet = message.first_packet();
  end.address.lid = message.lid();
  end.address.mtu = message.mtu();
  end.address.reads_in = std::min(message.reads_in(), kMaxReads);
  end.address.cm_host = message.cm_host();
  end.address.cm_port = message.cm_port();
  end.address.cm_ticket = message.cm_ticket();
  end.infiniband = message.infiniband();
  end.iwarp = message.iwarp();
  end.connection_manager = message.connection_manager();
  return end;
}

}  // namespace moonpool::transfer::rdma
