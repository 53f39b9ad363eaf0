// What a client is made of, built up by open() and taken down by close(): server, owner, lanes, membership, the put and the get path.
//
// Split from client.cpp so that the class which users see stays a thin translation of their calls, and so that tests can put a transport of
// their own in place of the real ones.
// Threads: open() once; close() from any, again and again; the accessors once open() has succeeded. Ownership: by Client.
#pragma once

#include <atomic>
#include <functional>
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
#include "transfer/owner.h"
#include "transfer/path_selector.h"
#include "transfer/shm/owner_server.h"

namespace moonpool::store {

class ClientRuntime {
 public:
  // Adds the paths of a client, best first. Tests put paths of their own before the real ones.
  using AddPaths = std::function<void(transfer::PathSelector& paths, ClientRuntime& runtime)>;
  static void add_real_paths(transfer::PathSelector& paths, ClientRuntime& runtime);

  explicit ClientRuntime(ClientOptions options, AddPaths add_paths = add_real_paths);
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
  [[nodiscard]] const net::Identity& identity() const { return identity_; }
  [[nodiscard]] const transfer::PathSelector& paths() const { return paths_; }

 private:
  [[nodiscard]] Status check_options();
  [[nodiscard]] Status open_metadata(Deadline deadline);
  [[nodiscard]] Status start_server(Deadline deadline);
  [[nodiscard]] Status join(Deadline deadline);
  [[nodiscard]] Status publish(Deadline deadline) const;  // any thread once the server has started
  void share();
  void take_down();

  const ClientOptions options_;
  const AddPaths add_paths_;
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
  std::unique_ptr<net::Server> server_;
  std::unique_ptr<net::LanePool> lanes_;
  transfer::PathSelector paths_;
  std::unique_ptr<MasterClient> master_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<PutPath> puts_;
  std::unique_ptr<GetPath> gets_;
  std::unique_ptr<ViewPath> views_;

  std::mutex close_mutex_;  // one close() at a time; guards closed_
  bool closed_ = false;
};

}  // namespace moonpool::store
