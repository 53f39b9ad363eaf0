// The gateway as an object: listens, serves, stops. The process (gateway_main) and the tests both run this.
//
// start() returns when the port is bound. One thread per core, each with its own executor, clients and upstream connections (see io.h for
// why); one accepting socket hands new clients to them in turn, so that a second gateway on the same port is an error and not a half of
// the traffic. stop(): no new clients, idle ones closed, running requests get up to the drain time.
// Threads: start, stop and the destructor from one thread; the rest from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "gateway/settings.h"

namespace moonpool::gateway {

class Gateway {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Gateway>> start(Settings settings);
  ~Gateway();  // stops
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] std::string address() const;  // "127.0.0.1:8000"
  // Goes over to new settings while requests run; membership.h says what waits for a restart. Returns at once.
  void reload(Settings settings);
  // True when all running requests ended by themselves within the drain time; the clients of the others are told that they were cut.
  bool stop();

 private:
  class Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::gateway
