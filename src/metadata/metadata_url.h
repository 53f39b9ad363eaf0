// The text that names a metadata server in a configuration ("metadata_server" of mooncake.json), parsed.
//
//   P2PHANDSHAKE                                      no server: peers ask each other
//   http://host:port/metadata                         an HTTP metadata service
//   host:port  etcd://host:port  etcd://h1:p,h2:p     etcd v3; the port may be left out after etcd:// (2379)
//   redis://[[user]:password@]host[:port][/db]        Redis (6379, database 0); the password percent-encoded where it has / or @ or %
// Hosts are names, IPv4 or bracketed IPv6 addresses. Blanks around the text are ignored.
// Bytes from outside: any input gives a value or an error that names the right forms (tests/fuzz/metadata_url_fuzz.cpp). No password is
// ever in an error or in to_string(). Threads: values, pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/endpoint.h"

namespace moonpool::metadata {

enum class MetadataKind { kPeerToPeer, kHttp, kEtcd, kRedis };

struct MetadataUrl {
  MetadataKind kind = MetadataKind::kPeerToPeer;
  std::vector<net::Endpoint> endpoints;  // one; several for etcd; none for kPeerToPeer
  std::string path;                      // kHttp: "/metadata"
  std::string user;                      // kRedis; empty: the default user
  std::string password;                  // kRedis; never shown
  int database = 0;                      // kRedis

  // Parses back to the same but for user and password, which are left out.
  [[nodiscard]] std::string to_string() const;
};

// kConfig for anything else.
[[nodiscard]] Result<MetadataUrl> parse_metadata_url(std::string_view text);

}  // namespace moonpool::metadata
