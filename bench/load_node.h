// A node of the pool that lends memory it does not have: it registers, mounts one segment, and acknowledges every retirement at once. For
// the master's load generator, which moves no data, so that what is measured is the master.
//
// Threads: the constructor's caller; one of its own keeps a NodeSync in flight until the destructor, which aborts it. Exits the process
// with a message when the master refuses it: nothing could be measured then.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "base/ids.h"
#include "net/endpoint.h"
#include "net/handshake.h"
#include "net/lane.h"

namespace moonpool::bench {

// Prints the error and exits unless it is fine.
void must(const Status& status, const char* what);

class LoadNode {
 public:
  LoadNode(const net::Endpoint& master, std::uint64_t segment_bytes);
  ~LoadNode();
  LoadNode(const LoadNode&) = delete;
  LoadNode& operator=(const LoadNode&) = delete;

  [[nodiscard]] const net::Identity& identity() const { return identity_; }
  [[nodiscard]] const std::string& id_bytes() const { return id_bytes_; }
  [[nodiscard]] std::uint64_t acknowledged() const { return acknowledged_; }

 private:
  void register_and_mount(std::uint64_t segment_bytes);
  void keep_acknowledging();

  net::Identity identity_;
  std::string id_bytes_;
  std::uint64_t term_ = 0;
  std::unique_ptr<net::Lane> lane_;
  std::atomic<std::uint64_t> acknowledged_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace moonpool::bench
