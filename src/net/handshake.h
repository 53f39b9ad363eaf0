// Who is speaking, in which version, and whether it may: the first frames of every connection (proto/wire.proto, "handshake").
//
// The client offers versions, features and a nonce; the server chooses, and when it has a cluster token both sides prove that they
// know it (HMAC-SHA256 over both nonces, compared in constant time). Until that has succeeded the server reads no other frame, and
// nothing larger than 4 KiB; it gives up after its handshake deadline. Without a token on the server, a client's token is an error on
// the client's side ("the server does not ask for the token that you configured"), and the other way round on the server's.
#pragma once

#include <cstdint>
#include <string>

#include "base/ids.h"
#include "base/version.h"

namespace moonpool::net {

// Feature bits of this build. None is needed to interoperate; both sides use the intersection.
enum Feature : std::uint64_t { kFeatureNone = 0 };

// What a process tells others about itself. Made once per process (or per store client) and shared by its lanes and its server.
struct Identity {
  NodeId node_id;
  std::string token;  // the cluster token; empty: no authentication. Never logged.
  std::string product = product_name();  // shown in errors and by `moonpool doctor`; never compared
};

}  // namespace moonpool::net
