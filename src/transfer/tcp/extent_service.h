// Serves METHOD_WRITE and METHOD_READ of an Owner: the far end of TcpTransport.
//
// A write's payload is received straight into the segment, all valid entries of a run with one scatter call; the bytes of refused entries
// are drained. A read's reply is sent straight from the segment, its pins released once it has left. The owner computes no checksum:
// writers do and readers verify (DESIGN.md). Every field of a request is checked before a byte is moved, and a request that contradicts
// itself is refused as a whole (kProtocol). Threads: the server's. Functions rather than a class, so that tests and fuzzers call them with
// a Request of their own.
#pragma once

#include "net/server.h"
#include "transfer/extent_columns.h"
#include "transfer/owner.h"

namespace moonpool::transfer {

// Bound of one frame, with those of extent_columns.h. Clients stay below (tcp_transport.cpp); a server refuses more with kInvalidParams.
inline constexpr std::uint64_t kMaxReadPayload = std::uint64_t{64} << 30;

[[nodiscard]] net::Task<net::Reply> handle_write(Owner& owner, net::Request& request);
[[nodiscard]] net::Task<net::Reply> handle_read(Owner& owner, net::Request& request);

}  // namespace moonpool::transfer
