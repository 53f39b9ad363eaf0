// TLS for the gateway: what certificates are used on either side, and what went wrong in words that say what to do.
//
// Versions from 1.2, HTTP/1.1 by ALPN, no compression and no renegotiation. Towards clients: a certificate of our own and, with a client
// CA, only clients that show one of its certificates. Towards instances: their certificate has to come from a known CA and be for the host
// that was connected to. TlsKeeper holds the two contexts and replaces one when its files change: connections that exist keep theirs, new
// ones get the new one. Files that cannot be used change nothing. Threads: server() and upstream() from any, the rest from one at a time.
#pragma once

#include <boost/system/error_code.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "gateway/tls_settings.h"

using SSL = struct ssl_st;
using SSL_CTX = struct ssl_ctx_st;

namespace moonpool::gateway {

// First bytes of TLS records (RFC 8446, 5.1): how a side that expects HTTP knows that the other one speaks TLS.
inline constexpr char kTlsAlert = 0x15;
inline constexpr char kTlsHandshake = 0x16;

// Certificates and rules, shared by the connections made with them; null: no TLS.
using TlsContext = std::shared_ptr<SSL_CTX>;

// kConfig, with the file and what is wrong with it.
[[nodiscard]] Result<TlsContext> make_server_context(const ServerTls& files);
[[nodiscard]] Result<TlsContext> make_upstream_context(const UpstreamTls& files);

// A session for one connection, owned by the caller. With a `host` (a name, or an address without brackets) the other side has to prove
// that it is that.
[[nodiscard]] Result<SSL*> make_tls_session(const TlsContext& context, const std::string& host);
// What an error of a TLS stream means, and what to do about it.
[[nodiscard]] std::string explain_tls(const boost::system::error_code& error, SSL* session);
// Bytes were received that nobody has read.
[[nodiscard]] bool tls_holds_input(SSL* session);

class TlsKeeper {
 public:
  // Loads what the settings name. An error leaves what was in use.
  [[nodiscard]] Status load(const ServerTls& server, const UpstreamTls& upstream);
  // Loads again what has changed on the disk; called about twice a second. Errors are logged.
  void look_at_files();

  [[nodiscard]] TlsContext server() const;  // null: clients speak plain HTTP
  struct Upstream {
    TlsContext context;       // never null after load()
    std::string server_name;  // what every instance has to prove to be; empty: its host
  };
  [[nodiscard]] Upstream upstream() const;

 private:
  // What tells one state of the files from the next, also where a link was moved.
  using Look = std::vector<std::int64_t>;
  [[nodiscard]] static Look look(const std::vector<std::string>& files);

  ServerTls server_files_;
  UpstreamTls upstream_files_;
  Look server_seen_;
  Look upstream_seen_;
  mutable std::mutex mutex_;  // guards the two below
  TlsContext server_;
  Upstream upstream_;
};

}  // namespace moonpool::gateway
