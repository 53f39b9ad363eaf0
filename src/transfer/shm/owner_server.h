// The owner's end of shared memory: one thread that accepts processes of this uid on the node's abstract Unix socket and serves their
// sessions, and the rings that the owner looks into (RemoteWriters).
//
// A session ends when its connection does, or when its process is gone (a forked child may hold the connection open). A connection that
// ends under announced writes is that of a process that is ending: its own threads have stopped, but a GPU may write for it until the
// kernel has closed the device, too, which it does in any order, before the process counts as gone. So that is waited for. A peer that does
// not finish its handshake in kHandshakeTimeout is dropped; another uid's connection is closed without a byte. Threads: start() and stop()
// from one; the RemoteWriters part from any. The owner keeps a reference until stop().
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "net/handshake.h"
#include "transfer/owner.h"
#include "transfer/remote_writers.h"
#include "transfer/shm/owner_session.h"

namespace moonpool::transfer {

class OwnerServer {
 public:
  static constexpr std::chrono::seconds kHandshakeTimeout{5};
  static constexpr std::size_t kMaxSessions = 1024;

  // Both outlive it.
  OwnerServer(Owner& owner, const net::Identity& self);
  ~OwnerServer();

  // kNotSupported or kUnavailable when this machine has no memfd or abstract sockets: peers use tcp then.
  [[nodiscard]] Status start();
  // Ends all sessions, whatever their processes do: the memory must not be used for anything else afterwards.
  void stop();
  [[nodiscard]] std::size_t sessions() const;

 private:
  class Rings;
  struct Connection;

  void run();
  void accept_all();
  // False when its session is over: the peer has ended the connection, or never became known.
  bool serve(Connection& connection);
  bool is_awaited(Connection& connection) const;
  void drop(int fd);

  Owner& owner_;
  const net::Identity& self_;
  std::shared_ptr<Board> board_;
  std::shared_ptr<Rings> rings_;
  net::UniqueFd listener_;
  net::UniqueFd epoll_;
  net::UniqueFd wake_;
  std::atomic<bool> stopping_{false};
  std::map<int, std::unique_ptr<Connection>> connections_;  // by descriptor; the thread's own
  std::vector<std::byte> buffer_;                           // the thread's own
  std::thread thread_;
};

}  // namespace moonpool::transfer
