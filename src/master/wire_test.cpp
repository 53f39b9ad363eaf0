// A whole master in this process, with nodes played over real lanes.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "master/coordinator.h"
#include "master/master.h"
#include "net/http_client.h"
#include "net/lane.h"
#include "tests/support/test_support.h"

namespace moonpool::master {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(seconds(20)); }

MasterConfig any_ports() {
  MasterConfig config;
  config.port = 0;
  config.metrics_port = 0;
  config.http_metadata_server_port = 0;
  config.recovery_window = milliseconds(0);
  return config;
}

// Raw lanes to the master, and if wanted a thread that keeps a NodeSync in flight and acknowledges what it is told.
class WireNode {
 public:
  explicit WireNode(std::uint16_t port, std::string token = {}) : port_(port) {
    identity_.node_id = NodeId::generate();
    identity_.token = std::move(token);
    lane_ = connect();
  }
  ~WireNode() { stop_syncing(); }

  std::unique_ptr<net::Lane> connect() {
    auto lane = net::Lane::connect({"127.0.0.1", port_}, identity_, soon());
    EXPECT_TRUE(lane.ok()) << lane.status().to_string();
    return lane.ok() ? std::move(*lane) : nullptr;
  }
  [[nodiscard]] std::string id() const { return identity_.node_id.to_bytes(); }

  template <typename Request, typename Reply>
  Status call(wire::Method method, const Request& request, Reply& reply, Deadline deadline = soon()) {
    return lane_->call(method, request, reply, deadline);
  }

  Status join() {
    wire::RegisterNodeRequest request;
    request.set_node_id(id());
    request.set_name("node:1");
    request.set_host("127.0.0.1");
    request.set_highest_term(term);
    wire::RegisterNodeReply reply;
    auto status = call(wire::METHOD_REGISTER_NODE, request, reply);
    if (status.ok()) term = reply.term();
    return status;
  }
  Status mount(std::uint64_t size) {
    wire::MountSegmentRequest request;
    request.set_node_id(id());
    request.set_term(term);
    request.mutable_segment()->set_incarnation(Incarnation::generate().to_bytes());
    request.mutable_segment()->set_name("node:1");
    request.mutable_segment()->set_host("127.0.0.1");
    request.mutable_segment()->set_size(size);
    request.set_last(true);
    wire::MountSegmentReply reply;
    return call(wire::METHOD_MOUNT_SEGMENT, request, reply);
  }
  void start_syncing() {
    stop_ = false;
    sync_lane_ = connect();
    syncer_ = std::thread([this] {
      wire::NodeSyncRequest request;
      while (!stop_) {
        request.set_node_id(id());
        request.set_term(term);
        wire::NodeSyncReply reply;
        if (!sync_lane_->call(wire::METHOD_NODE_SYNC, request, reply, soon()).ok()) return;
        request.clear_acknowledged();
        if (hold_acknowledgements) continue;
        for (const auto& order : reply.retirements()) request.add_acknowledged(order.sequence());
        obeyed += static_cast<std::size_t>(reply.retirements_size());
      }
    });
  }
  void stop_syncing() {
    stop_ = true;
    if (sync_lane_) sync_lane_->abort();
    if (syncer_.joinable()) syncer_.join();
  }

  wire::PutStartReply start(const std::vector<std::string>& keys, std::uint64_t size) {
    wire::PutStartRequest request;
    request.set_node_id(id());
    request.set_replica_num(1);
    for (const auto& key : keys) {
      request.add_key(key);
      request.add_size(size);
    }
    wire::PutStartReply reply;
    const auto status = call(wire::METHOD_PUT_START, request, reply);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return reply;
  }
  wire::StatusReply commit(const std::vector<std::string>& keys, const wire::PutStartReply& grants) {
    wire::PutCommitRequest request;
    request.set_node_id(id());
    request.set_term(grants.term());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      request.add_key(keys[i]);
      request.add_version_count(grants.version_count(static_cast<int>(i)));
      request.add_checksum(i);
      request.add_written(1);
    }
    wire::StatusReply reply;
    const auto status = call(wire::METHOD_PUT_COMMIT, request, reply);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return reply;
  }
  std::int32_t put(const std::string& key, std::uint64_t size) {
    const auto grants = start({key}, size);
    if (grants.status_size() != 1) return -1;
    return grants.status(0) != 0 ? grants.status(0) : commit({key}, grants).status(0);
  }
  std::int32_t exists(const std::string& key, std::uint32_t wait_ms = 0) {
    wire::ExistRequest request;
    request.set_node_id(id());
    request.add_key(key);
    request.set_wait_ms(wait_ms);
    wire::ExistReply reply;
    const auto status = call(wire::METHOD_EXIST, request, reply);
    return status.ok() ? reply.status(0) : status.number();
  }
  std::int32_t remove(const std::string& key, Deadline deadline) {
    wire::RemoveRequest request;
    request.add_key(key);
    request.set_force(true);
    wire::StatusReply reply;
    const auto status = call(wire::METHOD_REMOVE, request, reply, deadline);
    return status.ok() ? reply.status(0) : status.number();
  }

  std::uint64_t term = 0;
  std::atomic<bool> hold_acknowledgements{false};
  std::atomic<std::size_t> obeyed{0};

 private:
  const std::uint16_t port_;
  net::Identity identity_;
  std::unique_ptr<net::Lane> lane_;
  std::unique_ptr<net::Lane> sync_lane_;
  std::atomic<bool> stop_{false};
  std::thread syncer_;
};

class WireTest : public ::testing::Test {
 protected:
  void open(MasterConfig config = any_ports()) {
    auto started = Master::start(config);
    ASSERT_TRUE(started.ok()) << started.status().to_string();
    master = std::move(*started);
  }
  std::unique_ptr<WireNode> owner(std::uint64_t size) {
    auto node = std::make_unique<WireNode>(master->port());
    EXPECT_TRUE(node->join().ok());
    EXPECT_TRUE(node->mount(size).ok());
    node->start_syncing();
    return node;
  }
  net::HttpResponse page(const std::string& path, const std::string& method = "GET") {
    net::HttpClient client;
    auto response = client.request(method, "http://127.0.0.1:" + std::to_string(master->metrics_port()) + path, "", {}, soon());
    EXPECT_TRUE(response.ok()) << response.status().to_string();
    return response.ok() ? *response : net::HttpResponse{};
  }
  std::unique_ptr<Master> master;
};

TEST_F(WireTest, PutGetExistAndRemoveOverTheWire) {
  open();
  const auto node = owner(1 << 20);
  EXPECT_EQ(node->exists("k"), 0);
  EXPECT_EQ(node->put("k", 4096), 0);
  EXPECT_EQ(node->exists("k"), 1);
  wire::GetReplicasRequest get;
  get.set_node_id(node->id());
  get.add_key("k");
  get.add_key("none");
  wire::GetReplicasReply found;
  ASSERT_TRUE(node->call(wire::METHOD_GET_REPLICAS, get, found).ok());
  EXPECT_EQ(found.status(0), 0);
  EXPECT_EQ(found.size(0), 4096U);
  EXPECT_EQ(found.segment(static_cast<int>(found.replica_segment(0))).name(), "node:1");
  EXPECT_EQ(found.status(1), -704);
  EXPECT_EQ(found.lease_ms(), 10'000U);
  EXPECT_EQ(node->remove("k", soon()), 0);
  EXPECT_EQ(node->exists("k"), 0);
  EXPECT_EQ(node->remove("k", soon()), -704);
  wire::PingReply ping;
  ASSERT_TRUE(node->call(wire::METHOD_PING, wire::Empty(), ping).ok());
  EXPECT_EQ(ping.term(), node->term);
}

TEST_F(WireTest, UnregisteredNodesAndUnknownThingsAreRefusedByName) {
  open();
  WireNode node(master->port());
  wire::PutStartRequest put;
  put.set_node_id(node.id());
  wire::PutStartReply reply;
  EXPECT_EQ(node.call(wire::METHOD_PUT_START, put, reply).code(), ErrorCode::kNotRegistered);
  wire::NodeSyncRequest sync;
  sync.set_node_id("short");
  wire::NodeSyncReply orders;
  EXPECT_EQ(node.call(wire::METHOD_NODE_SYNC, sync, orders).code(), ErrorCode::kNotRegistered);
  wire::RemoveMatchingRequest matching;
  matching.set_regex("(");
  wire::RemoveMatchingReply removed;
  const auto status = node.call(wire::METHOD_REMOVE_MATCHING, matching, removed);
  EXPECT_EQ(status.code(), ErrorCode::kInvalidParams);
  EXPECT_THAT(status.message(), HasSubstr("'('"));
}

TEST_F(WireTest, APutWaitsForTheSpaceThatAnEvictionLeaves) {
  open();
  const auto node = owner(64 << 10);
  for (int i = 0; i < 200; ++i) ASSERT_EQ(node->put("k" + std::to_string(i), 4096 + 1000 * (i % 7)), 0) << i;
  EXPECT_GT(node->obeyed, 0U);
  EXPECT_EQ(node->put("too large", 65 << 10), -200);
}

TEST_F(WireTest, AnEvictionThatIsNotAcknowledgedFreesNothing) {
  auto config = any_ports();
  config.room_wait = milliseconds(300);
  open(config);
  const auto node = owner(8192);
  ASSERT_EQ(node->put("a", 8192), 0);
  node->hold_acknowledgements = true;
  EXPECT_EQ(node->put("b", 4096), -200);
  node->hold_acknowledgements = false;
  EXPECT_TRUE(test::wait_until([&] { return node->put("b", 4096) == 0; }, soon()));
}

TEST_F(WireTest, ARemoveIsAnsweredOnceTheOwnerHasAcknowledged) {
  open();
  const auto node = owner(1 << 20);
  WireNode client(master->port());
  ASSERT_EQ(node->put("k", 4096), 0);
  node->hold_acknowledgements = true;
  EXPECT_EQ(client.remove("k", Deadline::after(milliseconds(300))), -901) << "within the caller's deadline";
  EXPECT_EQ(client.exists("k"), 0) << "and the key stays invisible";
  node->hold_acknowledgements = false;
  EXPECT_EQ(client.remove("k", soon()), -704) << "answered when the owner has let go of it";
  EXPECT_TRUE(test::wait_until([&] { return node->obeyed == 1; }, soon()));
  wire::RemoveMatchingRequest all;
  all.set_all(true);
  wire::RemoveMatchingReply removed;
  for (const auto* key : {"x", "y", "z"}) ASSERT_EQ(node->put(key, 100), 0);
  ASSERT_TRUE(client.call(wire::METHOD_REMOVE_MATCHING, all, removed, soon()).ok());
  EXPECT_EQ(removed.removed(), 3U);
  EXPECT_EQ(node->obeyed, 4U);
}

TEST_F(WireTest, StatusShowsThePathsThatANodeHasToldLastAndWhy) {
  auto config = any_ports();
  config.client_ttl = milliseconds(1500);  // an interval of 300 ms; nobody syncs while the pages are read
  open(config);
  WireNode node(master->port());
  ASSERT_TRUE(node.join().ok());
  const auto sync = [&](const std::vector<std::pair<std::string, std::string>>& paths) {
    wire::NodeSyncRequest request;
    request.set_node_id(node.id());
    request.set_term(node.term);
    for (const auto& [path, reason] : paths) {
      auto& report = *request.add_path();
      report.set_node_id(NodeId::generate().to_bytes());
      report.set_peer("peer:" + path);
      report.set_path(path);
      report.set_reason(reason);
      report.set_bytes_written(11);
      report.set_bytes_read(std::uint64_t{1} << 40);
      report.set_failures(3);
    }
    request.set_device_bytes_in_place(5);
    request.set_device_bytes_staged(6);
    request.set_device_bytes_by_nic(7);
    wire::NodeSyncReply reply;
    EXPECT_TRUE(node.call(wire::METHOD_NODE_SYNC, request, reply).ok());
  };
  const auto device_bytes = [&] { return boost::json::parse(page("/status").body).at("nodes").at(0).at("device_bytes").as_object(); };
  EXPECT_EQ(device_bytes().at("staged").to_number<std::uint64_t>(), 0U);
  const auto shown = [&] { return boost::json::parse(page("/status").body).at("nodes").at(0).at("paths").as_array(); };
  EXPECT_TRUE(shown().empty());
  sync({{"shm", ""}, {"tcp", "uid 0 is not 1000; \"quoted\"\n"}});
  ASSERT_EQ(shown().size(), 2U);
  const auto tcp = shown().at(1).as_object();
  EXPECT_EQ(tcp.at("peer"), "peer:tcp");
  EXPECT_EQ(tcp.at("path"), "tcp");
  EXPECT_EQ(tcp.at("reason"), "uid 0 is not 1000; \"quoted\"\n");
  EXPECT_EQ(tcp.at("written_bytes").to_number<std::uint64_t>(), 11U);
  EXPECT_EQ(tcp.at("read_bytes").to_number<std::uint64_t>(), std::uint64_t{1} << 40);
  EXPECT_EQ(tcp.at("failures").to_number<std::uint64_t>(), 3U);
  EXPECT_EQ(shown().at(0).at("reason"), "");
  EXPECT_EQ(device_bytes().at("in_place").to_number<std::uint64_t>(), 5U);
  EXPECT_EQ(device_bytes().at("staged").to_number<std::uint64_t>(), 6U);
  EXPECT_EQ(device_bytes().at("by_nic").to_number<std::uint64_t>(), 7U);
  sync({});
  EXPECT_EQ(shown().size(), 2U) << "nothing told: as before";
  sync({{"local", ""}});
  ASSERT_EQ(shown().size(), 1U);
  EXPECT_EQ(shown().at(0).at("path"), "local");
}

TEST_F(WireTest, AnIdleNodeSyncIsAnsweredAtItsIntervalAndAnOrderAtOnce) {
  auto config = any_ports();
  config.client_ttl = milliseconds(2500);  // an interval of 500 ms
  open(config);
  WireNode node(master->port());
  ASSERT_TRUE(node.join().ok());
  ASSERT_TRUE(node.mount(1 << 20).ok());
  wire::NodeSyncRequest sync;
  sync.set_node_id(node.id());
  sync.set_term(node.term);
  wire::NodeSyncReply reply;
  const auto started = Deadline::Clock::now();
  ASSERT_TRUE(node.call(wire::METHOD_NODE_SYNC, sync, reply).ok());
  EXPECT_GE(Deadline::Clock::now() - started, milliseconds(450));
  EXPECT_EQ(reply.retirements_size(), 0);
  const auto grants = node.start({"k"}, 100);
  wire::PutRevokeRequest revoke;
  revoke.set_node_id(node.id());
  revoke.set_term(grants.term());
  revoke.add_key("k");
  revoke.add_version_count(grants.version_count(0));
  wire::StatusReply revoked;
  ASSERT_TRUE(node.call(wire::METHOD_PUT_REVOKE, revoke, revoked).ok());
  ASSERT_TRUE(node.call(wire::METHOD_NODE_SYNC, sync, reply).ok());
  EXPECT_EQ(reply.retirements_size(), 1);
}

TEST_F(WireTest, ALookUpWaitsForAKeyThatIsOnItsWay) {
  open();
  const auto prefill = owner(1 << 20);
  WireNode decode(master->port());
  ASSERT_EQ(prefill->put("something", 100), 0);
  EXPECT_EQ(prefill->exists("block"), 0) << "it looks up what it is about to compute";
  auto asked = std::async(std::launch::async, [&] { return decode.exists("block", 20'000); });
  auto& counters = master->coordinator().handover().counters;
  EXPECT_TRUE(test::wait_until([&] { return counters.keys_waited.load() == 1; }, soon()));
  ASSERT_EQ(prefill->put("block", 100), 0);
  EXPECT_EQ(asked.get(), 1);
  EXPECT_EQ(counters.satisfied.load(), 1U);

  EXPECT_EQ(prefill->exists("never"), 0);
  const auto started = Deadline::Clock::now();
  EXPECT_EQ(decode.exists("never", 20'000), 0);
  const auto waited = Deadline::Clock::now() - started;
  EXPECT_GE(waited, milliseconds(450)) << "up to --handover_wait_ms";
  EXPECT_EQ(counters.timed_out.load(), 1U);
  EXPECT_EQ(decode.exists("never", 20'000), 0);
  EXPECT_EQ(counters.waits.load(), 2U) << "a wait in vain is paid once";
}

TEST_F(WireTest, ANodeThatFallsSilentIsExpired) {
  auto config = any_ports();
  config.client_ttl = milliseconds(1000);
  open(config);
  const auto node = owner(1 << 20);
  WireNode other(master->port());
  ASSERT_EQ(node->put("k", 100), 0);
  EXPECT_EQ(other.exists("k"), 1);
  node->stop_syncing();
  EXPECT_TRUE(test::wait_until([&] { return other.exists("k") == 0; }, soon()));
  wire::PutStartRequest put;
  put.set_node_id(node->id());
  wire::PutStartReply reply;
  EXPECT_EQ(node->call(wire::METHOD_PUT_START, put, reply).code(), ErrorCode::kNotRegistered);
}

TEST_F(WireTest, ThePagesThatEnginesAskFor) {
  open();
  EXPECT_TRUE(page("/get_all_segments").body.empty());
  const auto node = owner(1 << 20);
  ASSERT_EQ(node->put("k", 4096), 0);
  EXPECT_EQ(page("/get_all_segments").body, "node:1\n");
  EXPECT_THAT(page("/query_segment?segment=node:1").body, HasSubstr("Used(bytes): 4096"));
  EXPECT_EQ(page("/query_segment?segment=none").status, 404);
  EXPECT_EQ(page("/health").body, "OK");
  EXPECT_EQ(page("/role").body, "leader");
  EXPECT_EQ(page("/get_all_keys").body, "k\n");
  EXPECT_THAT(page("/query_key?key=k").body, HasSubstr("\"size\":4096"));
  EXPECT_EQ(page("/query_key?key=none").status, 404);
  EXPECT_EQ(page("/query_key").status, 400);
  EXPECT_THAT(page("/batch_query_keys?keys=k,none").body, HasSubstr("key not found"));
  EXPECT_THAT(page("/metrics").body, HasSubstr("moonpool_master_put_committed_total 1\n"));
  EXPECT_THAT(page("/metrics").body, HasSubstr("moonpool_master_handover_wait_ms_bucket{le=\"+Inf\"} 0"));
  EXPECT_THAT(page("/metrics/summary").body, HasSubstr("objects 1"));
  const auto status = page("/status").body;
  for (const auto* text :
       {"\"term\":", "\"recovering\":false", "\"last_seen_ms_ago\":", "\"quarantine\":0", "\"pending_puts\":0", "\"handover\":"}) {
    EXPECT_THAT(status, HasSubstr(text));
  }
  EXPECT_EQ(page("/nothing").status, 404);
  EXPECT_EQ(page("/api/v1/remove_all").status, 405);
  EXPECT_THAT(page("/api/v1/remove_all?force=true", "POST").body, HasSubstr("\"removed_count\":1"));
  EXPECT_EQ(node->exists("k"), 0);
}

TEST_F(WireTest, TheEmbeddedMetadataServerIsServedOnItsPort) {
  auto config = any_ports();
  config.enable_http_metadata_server = true;
  open(config);
  ASSERT_NE(master->metadata_port(), 0);
  const auto base = "http://127.0.0.1:" + std::to_string(master->metadata_port()) + "/metadata?key=a";
  net::HttpClient client;
  const auto missing = client.get(base, soon());
  ASSERT_TRUE(missing.ok());
  EXPECT_EQ(missing->status, 404);
  ASSERT_TRUE(client.request("PUT", base, "value", {}, soon()).ok());
  EXPECT_EQ(client.get(base, soon())->body, "value");
}

TEST_F(WireTest, AClusterTokenKeepsStrangersOut) {
  auto config = any_ports();
  config.cluster_token = "secret";
  open(config);
  WireNode friendly(master->port(), "secret");
  EXPECT_TRUE(friendly.join().ok());
  net::Identity stranger;
  stranger.node_id = NodeId::generate();
  stranger.token = "guess";
  EXPECT_EQ(net::Lane::connect({"127.0.0.1", master->port()}, stranger, soon()).code(), ErrorCode::kUnauthenticated);
}

TEST_F(WireTest, GarbageOnEveryPortDoesNotStopIt) {
  auto config = any_ports();
  config.enable_http_metadata_server = true;
  open(config);
  const std::string garbage = "\x16\x03\x01 this is nothing that anybody asked for \xff\xfe\r\n\r\n" + std::string(10'000, '\x7f');
  for (const auto port : {master->port(), master->metrics_port(), master->metadata_port()}) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_GT(::send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL), 0);
    ::close(fd);
  }
  EXPECT_EQ(page("/health").status, 200);
  const auto node = owner(1 << 20);
  EXPECT_EQ(node->put("k", 100), 0);
}

TEST_F(WireTest, APortInUseIsAClearError) {
  open();
  for (auto field : {&MasterConfig::port, &MasterConfig::metrics_port}) {
    auto config = any_ports();
    config.*field = master->port();
    const auto second = Master::start(config);
    ASSERT_FALSE(second.ok());
    EXPECT_EQ(second.code(), ErrorCode::kUnavailable);
    EXPECT_THAT(second.status().message(), HasSubstr(std::to_string(master->port())));
    EXPECT_THAT(second.status().message(), HasSubstr("--"));
  }
}

}  // namespace
}  // namespace moonpool::master
