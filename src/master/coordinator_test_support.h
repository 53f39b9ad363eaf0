// A node for tests of the Coordinator: registers, mounts, puts and acknowledges by plain calls, in a time that the test owns.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "master/coordinator.h"

namespace moonpool::master::test {

inline constexpr TimeMs kStart = 1'000'000;
inline constexpr std::uint64_t kWall = 1'700'000'000'000;

inline MasterConfig quick_config() {
  MasterConfig config;
  config.recovery_window = std::chrono::milliseconds(0);
  return config;
}

struct Grant {
  std::int32_t status = 0;
  std::uint64_t term = 0;
  std::uint64_t count = 0;
  std::vector<std::pair<std::string, std::uint64_t>> places{};  // incarnation bytes, offset
};

struct Stored {
  std::string key;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version;
  std::uint64_t checksum = 0;
};

// A generated request in the form that the coordinator takes, by way of the wire. Must outlive what the coordinator returns for it.
template <typename Request>
class Sent {
 public:
  explicit Sent(const google::protobuf::MessageLite& message) : bytes_(message.SerializeAsString()) {
    EXPECT_TRUE(lean::parse(std::as_bytes(std::span(bytes_)), request_));
  }
  Sent(const Sent&) = delete;
  Sent& operator=(const Sent&) = delete;
  const Request& operator*() const { return request_; }

 private:
  const std::string bytes_;
  Request request_;
};
// And a reply as a generated class.
template <typename Message, typename Reply>
Message received(const Reply& reply) {
  std::string bytes;
  lean::write(reply, bytes);
  Message message;
  EXPECT_TRUE(message.ParseFromString(bytes));
  return message;
}

class TestNode {
 public:
  TestNode(Coordinator& master, std::string name, std::uint32_t port = 0)
      : master_(&master), id_(NodeId::generate()), name_(std::move(name)), port_(port) {}

  [[nodiscard]] NodeId id() const { return id_; }
  [[nodiscard]] Incarnation incarnation() const { return incarnation_; }
  [[nodiscard]] std::uint64_t term() const { return term_; }
  void use(Coordinator& master) { master_ = &master; }

  Status join(TimeMs now, std::vector<std::string> fenced = {}) {
    wire::RegisterNodeRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_name(name_);
    request.set_host("host-" + name_);
    request.set_port(port_);
    request.set_highest_term(term_);
    for (auto& bytes : fenced) *request.add_fenced() = bytes;
    const auto reply = master_->register_node(request, now);
    if (reply.ok()) {
      term_ = reply->term();
      learn(reply->fenced());
    }
    return reply.status();
  }

  // A new segment, or (again = true) the one it has, with the catalogue given.
  Status mount(std::uint64_t size, TimeMs now, const std::vector<Stored>& catalogue = {}, bool again = false, bool last = true) {
    if (!again) {
      incarnation_ = Incarnation::generate();
      size_ = size;
    }
    wire::MountSegmentRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_term(term_);
    request.mutable_segment()->set_incarnation(incarnation_.to_bytes());
    request.mutable_segment()->set_name(name_);
    request.mutable_segment()->set_host("host-" + name_);
    request.mutable_segment()->set_size(size_);
    for (const auto& extent : catalogue) {
      request.add_key(extent.key);
      request.add_offset(extent.offset);
      request.add_length(extent.length);
      request.add_version_term(extent.version.term.value);
      request.add_version_count(extent.version.count);
      request.add_checksum(extent.checksum);
    }
    request.set_last(last);
    const auto reply = master_->mount(request, now);
    rejected = reply.ok() ? reply->rejected() : 0;
    return reply.status();
  }

  // `session` stands for the connection by which it attends.
  Status attend(const void* session, TimeMs now) {
    wire::AttendRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_term(term_);
    return master_->attend(request, session, now);
  }

  // A NodeSync that acknowledges `acknowledged`; the answer's orders are returned, not carried out.
  Result<wire::NodeSyncReply> sync(TimeMs now, const std::vector<std::uint64_t>& acknowledged = {}) {
    wire::NodeSyncRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_term(term_);
    for (const auto sequence : acknowledged) request.add_acknowledged(sequence);
    const auto node = master_->sync(request, nullptr, now);
    if (!node.ok()) return node.status();
    auto reply = master_->sync_reply(**node, nullptr, now);
    if (reply.ok()) learn(reply->fenced());
    return reply;
  }
  // Takes all orders and acknowledges them. Returns how many there were.
  std::size_t obey(TimeMs now) {
    const auto orders = sync(now);
    if (!orders.ok()) return 0;
    std::vector<std::uint64_t> done;
    for (const auto& order : orders->retirements()) done.push_back(order.sequence());
    if (!done.empty()) {
      EXPECT_TRUE(sync(now, done).ok());
    }
    return done.size();
  }

  struct PutWish {
    bool upsert = false;
    bool soft_pin = false;
    bool hard_pin = false;
    std::uint32_t replicas = 1;
    std::string group{};
    std::string tenant{};
    std::vector<std::string> preferred{};
    bool same_node = false;
  };
  std::vector<Grant> start(const std::vector<std::pair<std::string, std::uint64_t>>& keys, TimeMs now, const PutWish& wish) {
    wire::PutStartRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_tenant(wish.tenant);
    for (const auto& [key, size] : keys) {
      request.add_key(key);
      request.add_size(size);
      if (!wish.group.empty()) request.add_group(wish.group);
    }
    request.set_replica_num(wish.replicas);
    request.set_upsert(wish.upsert);
    request.set_soft_pin(wish.soft_pin);
    request.set_hard_pin(wish.hard_pin);
    request.set_prefer_same_node(wish.same_node);
    for (const auto& name : wish.preferred) request.add_preferred_segment(name);
    const Sent<lean::PutStartRequest> sent(request);
    auto batch = master_->begin_put(*sent, now);
    if (!batch.ok()) return {keys.size(), Grant{batch.status().number()}};
    if (const auto status = master_->try_put(*batch, now); !status.ok()) return {keys.size(), Grant{status.number()}};
    return grants(received<wire::PutStartReply>(master_->put_reply(*batch)));
  }
  Grant start(const std::string& key, std::uint64_t size, TimeMs now, const PutWish& wish) { return start({{key, size}}, now, wish)[0]; }
  Grant start(const std::string& key, std::uint64_t size, TimeMs now) { return start(key, size, now, PutWish()); }

  std::int32_t commit(const std::string& key, const Grant& grant, TimeMs now, std::uint32_t written = ~0U, const std::string& tenant = {}) {
    wire::PutCommitRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_tenant(tenant);
    request.set_term(grant.term);
    request.add_key(key);
    request.add_version_count(grant.count);
    request.add_checksum(checksum_of(key));
    request.add_written(written);
    const auto reply = master_->commit(*Sent<lean::PutCommitRequest>(request), now);
    return reply.ok() ? reply->status[0] : reply.status().number();
  }
  std::int32_t revoke(const std::string& key, const Grant& grant, TimeMs now) {
    wire::PutRevokeRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_term(grant.term);
    request.add_key(key);
    request.add_version_count(grant.count);
    const auto reply = master_->revoke(request, now);
    return reply.ok() ? reply->status(0) : reply.status().number();
  }
  std::int32_t put(const std::string& key, std::uint64_t size, TimeMs now, const PutWish& wish) {
    const auto grant = start(key, size, now, wish);
    return grant.status != 0 ? grant.status : commit(key, grant, now, ~0U, wish.tenant);
  }
  std::int32_t put(const std::string& key, std::uint64_t size, TimeMs now) { return put(key, size, now, PutWish()); }

  // 1 there, 0 not, negative: the whole request failed.
  std::int32_t exists(const std::string& key, TimeMs now, const std::string& tenant = {}) {
    wire::ExistRequest request;
    request.set_node_id(id_.to_bytes());
    request.set_tenant(tenant);
    request.add_key(key);
    const auto found = master_->exist(*Sent<lean::ExistRequest>(request), now);
    if (!found.ok()) return found.status().number();
    return found->status[0] == ErrorCode::kOk ? 1 : 0;
  }
  std::optional<wire::GetReplicasReply> get(const std::string& key, TimeMs now) {
    wire::GetReplicasRequest request;
    request.set_node_id(id_.to_bytes());
    request.add_key(key);
    const auto found = master_->get_replicas(*Sent<lean::GetReplicasRequest>(request), now);
    if (!found.ok()) return std::nullopt;
    return received<wire::GetReplicasReply>(found->reply);
  }
  RemoveItem remove(const std::string& key, TimeMs now, bool force = false) {
    wire::RemoveRequest request;
    request.add_key(key);
    request.set_force(force);
    static std::vector<std::string> keys;  // the items refer to them
    auto items = master_->remove(request, keys, now);
    if (!items.ok()) {
      RemoveItem failed{HashedKey("")};
      failed.status = items.code();
      return failed;
    }
    return (*items)[0];
  }
  [[nodiscard]] std::vector<std::string> fenced() const { return fenced_; }
  [[nodiscard]] static std::uint64_t checksum_of(const std::string& key) { return hash_of(key) ^ 7; }

  std::uint64_t rejected = 0;  // by the last mount

 private:
  static std::vector<Grant> grants(const wire::PutStartReply& reply) {
    std::vector<Grant> all;
    int place = 0;
    for (int i = 0; i < reply.status_size(); ++i) {
      Grant grant{reply.status(i), reply.term(), reply.version_count(i), {}};
      for (std::uint32_t r = 0; r < reply.replica_count(i); ++r, ++place) {
        grant.places.emplace_back(reply.segment(static_cast<int>(reply.replica_segment(place))).incarnation(), reply.replica_offset(place));
      }
      all.push_back(std::move(grant));
    }
    return all;
  }
  template <typename List>
  void learn(const List& fenced) {
    for (const auto& bytes : fenced) fenced_.push_back(bytes);
  }

  Coordinator* master_;
  NodeId id_;
  std::string name_;
  std::uint32_t port_;
  std::uint64_t term_ = 0;
  Incarnation incarnation_;
  std::uint64_t size_ = 0;
  std::vector<std::string> fenced_;
};

// Every extent is held once: no overlaps, and objects, puts in flight and quarantine add up to what the allocators count as used.
inline void check_invariants(Coordinator& master) {
  std::map<const Segment*, std::map<std::uint64_t, std::uint64_t>> held;
  master.table().for_each_extent([&](const Segment& segment, std::uint64_t offset, std::uint64_t size) {
    if (!segment.alive()) return;
    ASSERT_TRUE(held[&segment].emplace(offset, segment.rounded(size)).second) << "two extents at " << offset;
  });
  const auto segments = master.membership().segments();
  for (const auto& segment : *segments) {
    std::uint64_t sum = 0;
    std::uint64_t end = 0;
    for (const auto& [offset, size] : held[segment.get()]) {
      ASSERT_GE(offset, end) << "extents overlap";
      end = offset + size;
      sum += size;
    }
    ASSERT_LE(end, segment->capacity());
    ASSERT_EQ(sum + segment->quarantine(), segment->used());
    ASSERT_TRUE(segment->consistent());
  }
}

}  // namespace moonpool::master::test
