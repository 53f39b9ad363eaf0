// What a client is made of, built up by open() and taken down by close(): server, owner, lanes, membership, the put and the get path.
//
// Split from client.cpp so that the class which users see stays a thin translation of their calls, and so that tests can put a transport of
// their own in place of the real ones.
// Threads: open() once; close() from any, again and again; the accessors once open() has succeeded. Ownership: by Client.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "metadata/metadata_store.h"
#include "net/lane_pool.h"
#include "net/server.h"
#include "store/call_gate.h"
#include "store/client.h"
#include "store/get_path.h"
#include "store/master_client.h"
#include "store/membership.h"
#include "store/node_address.h"
#include "store/put_path.h"
#include "store/standing.h"
#include "store/view_path.h"
#include "transfer/cuda/paths/device_paths.h"
#include "transfer/owner.h"
#include "transfer/path_selector.h"
#include "transfer/rdma/node.h"
#include "transfer/shm/owner_server.h"

namespace moonpool::store {

class ClientRuntime {
 public:
  // Adds the paths of a client, best first. Tests put paths of their own before the real ones.
  using AddPaths = std::function<void(transfer::PathSelector& paths, ClientRuntime& runtime)>;
  static void add_real_paths(transfer::PathSelector& paths, ClientRuntime& runtime);
  // The NICs of protocol "rdma". Tests have simulated ones.
  using OpenDevices = std::function<Result<std::shared_ptr<transfer::rdma::Devices>>(const transfer::rdma::Options& options)>;

  explicit ClientRuntime(ClientOptions options, AddPaths add_paths = add_real_paths,
                         OpenDevices open_devices = transfer::rdma::Devices::open);
  ~ClientRuntime();

  // Everything or nothing: after an error no thread runs and no port is held.
  [[nodiscard]] Status open();
  void close();

  [[nodiscard]] CallGate::Pass enter() { return gate_.enter(); }
  [[nodiscard]] const ClientOptions& options() const { return options_; }
  [[nodiscard]] const NodeId& node() const { return identity_.node_id; }
  [[nodiscard]] const std::string& hostname() const { return name_; }
  [[nodiscard]] MasterClient& master() { return *master_; }
  [[nodiscard]] const PutPath& puts() const { return *puts_; }
  [[nodiscard]] const GetPath& gets() const { return *gets_; }
  [[nodiscard]] const ViewPath& views() const { return *views_; }
  [[nodiscard]] Membership& membership() { return *membership_; }
  [[nodiscard]] transfer::Owner& owner() { return owner_; }
  [[nodiscard]] net::LanePool& lanes() { return *lanes_; }
  [[nodiscard]] transfer::rdma::Node* rdma() { return rdma_.get(); }  // null: protocol "tcp"
  // Registers a user's memory on the NICs of protocol "rdma", and nothing with "tcp". The whole range once more is no mistake: engines
  // register again what they use again. In a process with CUDA it is remembered what kind of memory it is; after the first of a device this
  // node's segments are pinned for devices, and the NICs have the staging memory in its place. kInvalidParams for what is neither this
  // process's memory nor a device's. The reason of a failure is in the log as well, because Python's callers get a code alone.
  Status register_buffer(transfer::MutableBytes memory);
  // Waits for transfers that use it. Harmless where register_buffer() did nothing.
  Status unregister_buffer(const void* address, Deadline deadline);
  [[nodiscard]] const net::Identity& identity() const { return identity_; }
  [[nodiscard]] const transfer::PathSelector& paths() const { return paths_; }
  [[nodiscard]] const transfer::cuda::DevicePaths& device_paths() const { return device_paths_; }

 private:
  [[nodiscard]] Status check_options();
  [[nodiscard]] Status open_metadata(Deadline deadline);
  [[nodiscard]] Status open_rdma();
  [[nodiscard]] Status start_server(Deadline deadline);
  [[nodiscard]] Status wait_served(Deadline deadline);
  [[nodiscard]] Status join(Deadline deadline);
  [[nodiscard]] Status publish(Deadline deadline) const;  // any thread once the server has started
  void share();
  [[nodiscard]] Status register_host_buffer(transfer::MutableBytes memory);
  void expect_device_memory(transfer::cuda::Runtime& cuda, int device);
  void stage_for_nics(transfer::cuda::Runtime& cuda);
  void forget_buffers();
  void take_down();

  const ClientOptions options_;
  const AddPaths add_paths_;
  const OpenDevices open_devices_;
  net::Identity identity_;
  NodeAddress address_;
  std::string name_;  // "host:port"
  std::vector<net::Endpoint> masters_;

  CallGate gate_;
  Standing standing_;
  std::unique_ptr<metadata::MetadataStore> metadata_;  // null: nothing is published
  bool published_ = false;
  transfer::Owner owner_;
  std::unique_ptr<transfer::OwnerServer> sharing_;  // null: nobody shares this node's memory
  std::unique_ptr<transfer::rdma::Node> rdma_;      // null: protocol "tcp"
  std::unique_ptr<net::Server> server_;
  std::unique_ptr<net::LanePool> lanes_;
  transfer::PathSelector paths_;
  transfer::cuda::DevicePaths device_paths_{paths_, options_.checksums};  // in front of them
  std::unique_ptr<MasterClient> master_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<PutPath> puts_;
  std::unique_ptr<GetPath> gets_;
  std::unique_ptr<ViewPath> views_;

  std::mutex buffers_mutex_;                   // guards remembered_
  std::map<const void*, bool> remembered_;     // registered while there was CUDA; whether a device's
  std::atomic<bool> staging_for_nics_{false};  // has been seen to

  std::mutex close_mutex_;  // one close() at a time; guards closed_
  bool closed_ = false;
};

}  // namespace moonpool::store
