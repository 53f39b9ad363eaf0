// The master: where every object is, who may write where, and what has to go.
//
// One process of the cluster runs one (`moonpool master`, or `mooncake_master`); tests run it in their own process. It keeps everything
// in memory and nothing on disk: after a restart it rebuilds its tables from the owners' reports (DESIGN.md, "Truth about memory").
// Serves: the wire (wire.proto, methods 1 to 13) on port(), the admin pages over HTTP on metrics_port(), and if enabled the embedded
// metadata store over HTTP on metadata_port(). Threads: the servers' and one for the background sweep. stop() and the destructor close
// everything and join them.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "master/config.h"

namespace moonpool::master {

class Coordinator;

class Master {
 public:
  // kUnavailable naming host:port when a port cannot be bound.
  [[nodiscard]] static Result<std::unique_ptr<Master>> start(MasterConfig config);
  ~Master();

  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] std::uint16_t metrics_port() const;
  [[nodiscard]] std::uint16_t metadata_port() const;  // 0 when it is not served
  // Safe to call again.
  void stop();

  // For tests that look inside.
  [[nodiscard]] Coordinator& coordinator();

 private:
  class Impl;
  explicit Master(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The program: parses the flags, serves until SIGINT or SIGTERM. Exit status 0 after a signal, 1 when it cannot start (a flag is wrong,
// a port in use). Called from main(), before any other thread exists: it blocks the two signals and waits for them.
int run_master(int argc, char** argv);

}  // namespace moonpool::master
