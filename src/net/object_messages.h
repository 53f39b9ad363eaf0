// The hot messages of proto/wire.proto in the form of lean_codec.h: same names, same numbers, comments there.
//
// Views refer to the bytes that a message was parsed from, or to what its sender holds until it has been written.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "net/lean_codec.h"

namespace moonpool::net::lean {

using Keys = std::vector<std::string_view>;

struct SegmentInfo {
  std::string_view incarnation;
  std::string_view name;
  std::string_view host;
  std::uint32_t port = 0;
  std::uint64_t size = 0;
  std::uint64_t base = 0;
  std::string_view protocol;
  std::string_view node_id;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.incarnation);
    visit(2, m.name);
    visit(3, m.host);
    visit(4, m.port);
    visit(5, m.size);
    visit(6, m.base);
    visit(7, m.protocol);
    visit(8, m.node_id);
  }
};

struct PutStartRequest {
  std::string_view node_id;
  std::string_view tenant;
  Keys key;
  std::vector<std::uint64_t> size;
  std::uint32_t replica_num = 0;
  Keys preferred_segment;
  bool prefer_same_node = false;
  bool soft_pin = false;
  std::uint64_t soft_pin_ttl_ms = 0;
  bool hard_pin = false;
  bool upsert = false;
  Keys group;
  std::uint32_t data_type = 0;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.node_id);
    visit(2, m.tenant);
    visit(3, m.key);
    visit(4, m.size);
    visit(5, m.replica_num);
    visit(6, m.preferred_segment);
    visit(7, m.prefer_same_node);
    visit(8, m.soft_pin);
    visit(9, m.soft_pin_ttl_ms);
    visit(10, m.hard_pin);
    visit(11, m.upsert);
    visit(12, m.group);
    visit(13, m.data_type);
  }
};

struct PutStartReply {
  std::uint64_t term = 0;
  std::vector<std::int32_t> status;
  std::vector<std::uint64_t> version_count;
  Keys segment;  // each an encoded SegmentInfo
  std::vector<std::uint32_t> replica_count;
  std::vector<std::uint32_t> replica_segment;
  std::vector<std::uint64_t> replica_offset;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.term);
    visit(2, m.status);
    visit(3, m.version_count);
    visit(4, m.segment);
    visit(5, m.replica_count);
    visit(6, m.replica_segment);
    visit(7, m.replica_offset);
  }
};

struct PutCommitRequest {
  std::string_view node_id;
  std::string_view tenant;
  std::uint64_t term = 0;
  Keys key;
  std::vector<std::uint64_t> version_count;
  std::vector<Fixed64> checksum;
  std::vector<std::uint32_t> written;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.node_id);
    visit(2, m.tenant);
    visit(3, m.term);
    visit(4, m.key);
    visit(5, m.version_count);
    visit(6, m.checksum);
    visit(7, m.written);
  }
};

struct StatusReply {
  std::vector<std::int32_t> status;
  Keys fenced;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.status);
    visit(2, m.fenced);
  }
};

struct ExistRequest {
  std::string_view node_id;
  std::string_view tenant;
  Keys key;
  std::uint32_t wait_ms = 0;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.node_id);
    visit(2, m.tenant);
    visit(3, m.key);
    visit(4, m.wait_ms);
  }
};

struct ExistReply {
  std::vector<std::int32_t> status;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.status);
  }
};

struct GetReplicasRequest {
  std::string_view node_id;
  std::string_view tenant;
  Keys key;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.node_id);
    visit(2, m.tenant);
    visit(3, m.key);
  }
};

struct GetReplicasReply {
  std::vector<std::int32_t> status;
  std::vector<std::uint64_t> size;
  std::vector<Fixed64> checksum;
  std::vector<std::uint64_t> version_term;
  std::vector<std::uint64_t> version_count;
  Keys segment;  // each an encoded SegmentInfo
  std::vector<std::uint32_t> replica_count;
  std::vector<std::uint32_t> replica_segment;
  std::vector<std::uint64_t> replica_offset;
  std::uint32_t lease_ms = 0;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.status);
    visit(2, m.size);
    visit(3, m.checksum);
    visit(4, m.version_term);
    visit(5, m.version_count);
    visit(6, m.segment);
    visit(7, m.replica_count);
    visit(8, m.replica_segment);
    visit(9, m.replica_offset);
    visit(10, m.lease_ms);
  }
};

struct WriteRequest {
  Keys incarnation;
  std::vector<std::uint32_t> segment;
  std::vector<std::uint64_t> offset;
  std::vector<std::uint64_t> length;
  std::vector<std::uint64_t> version_term;
  std::vector<std::uint64_t> version_count;
  Keys key;
  std::uint32_t checksum_chunk = 0;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.incarnation);
    visit(2, m.segment);
    visit(3, m.offset);
    visit(4, m.length);
    visit(5, m.version_term);
    visit(6, m.version_count);
    visit(7, m.key);
    visit(8, m.checksum_chunk);
  }
};

struct WriteReply {
  std::vector<std::int32_t> status;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.status);
  }
};

struct ReadRequest {
  Keys incarnation;
  std::vector<std::uint32_t> segment;
  std::vector<std::uint64_t> offset;
  std::vector<std::uint64_t> version_term;
  std::vector<std::uint64_t> version_count;
  std::vector<std::uint64_t> range_start;
  std::vector<std::uint64_t> range_length;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.incarnation);
    visit(2, m.segment);
    visit(3, m.offset);
    visit(4, m.version_term);
    visit(5, m.version_count);
    visit(6, m.range_start);
    visit(7, m.range_length);
  }
};

struct ReadReply {
  std::vector<std::int32_t> status;
  std::uint32_t checksum_chunk = 0;
  std::vector<Fixed64> checksum;
  template <typename Self, typename Visit>
  static void fields(Self& m, Visit& visit) {
    visit(1, m.status);
    visit(2, m.checksum_chunk);
    visit(3, m.checksum);
  }
};

}  // namespace moonpool::net::lean
