// What TLS needs in a test: certificates made on the spot, and a tunnel that adds or removes TLS, so that the client and the simulator of
// the plain tests serve here too.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

struct evp_pkey_st;
struct x509_st;
struct ssl_ctx_st;

namespace moonpool::gateway::testing {

// A CA of its own. Files lie in `folder`, named after `name`.
class TestCa {
 public:
  TestCa(std::string folder, std::string name);

  struct Pair {
    std::string certificate;
    std::string key;
  };
  [[nodiscard]] const std::string& file() const { return file_; }
  // For a host, or an IPv4 address; valid from an hour ago until `hours_left` from now. The same `name` again replaces the files.
  [[nodiscard]] Pair issue(const std::string& name, const std::string& host, int hours_left = 24) const;

 private:
  const std::string folder_;
  std::string file_;
  std::shared_ptr<evp_pkey_st> key_;
  std::shared_ptr<x509_st> certificate_;
};

// Passes bytes between whoever connects to port() and a port of this machine, with TLS on one of the two sides.
// Threads: all public functions from any; one thread a connection. Destruction ends them.
class TlsTunnel {
 public:
  enum class Side { kAccepting, kConnecting };  // which speaks TLS
  // How the TLS side is left when the plain one closes.
  enum class Ending { kCloseNotify, kFin, kReset };
  struct Options {
    Side side = Side::kConnecting;
    std::uint16_t target = 0;
    TestCa::Pair own;  // shown to the other side; empty: nothing
    std::string ca;    // what the other side has to come from; empty: anything goes
    Ending ending = Ending::kCloseNotify;
  };

  explicit TlsTunnel(Options options);
  ~TlsTunnel();
  TlsTunnel(const TlsTunnel&) = delete;
  TlsTunnel& operator=(const TlsTunnel&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] int secured() const { return secured_; }                 // handshakes that succeeded so far
  [[nodiscard]] int ended_by_close_notify() const { return notified_; }  // connections that the other side ended well
  [[nodiscard]] std::string last_serial() const;                         // of the certificate that the other side showed last
  [[nodiscard]] std::string last_protocol() const;                       // by ALPN

 private:
  void accept_loop();
  void serve(int accepted);
  void pass(int plain, int secure, void* session);

  const Options options_;
  std::shared_ptr<ssl_ctx_st> context_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<int> secured_{0};
  std::atomic<int> notified_{0};
  std::atomic<bool> stopping_{false};
  std::thread acceptor_;
  mutable std::mutex mutex_;  // guards all below
  std::string serial_;
  std::string protocol_;
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::gateway::testing
