// What session_service.h does, without a server: the owner's ends of one session's rails, and the answers to OPEN and KEYS. Tests and
// fuzzers call it directly.
//
// Nothing in a message is trusted: a peer gets queue pairs of its own, which see registered memory by its keys alone, and a bounded number
// of them. Threads: any. Ownership: shared by the service and by whoever holds the session.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "net/server.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/options.h"
#include "transfer/rdma/session_service.h"
#include "transfer/rdma/wire_ends.h"

namespace moonpool::transfer::rdma {

class ServedRails final : public ServedSession {
 public:
  ServedRails(std::shared_ptr<MemoryMap> memory, Options options, std::shared_ptr<net::Session> connection);
  ~ServedRails() override;  // as end()

  void destroy(std::span<const std::uint32_t> rails) override;
  void fence() override;
  void at_end(std::function<void()> release) override;

  // Makes and connects the owner's ends. Blocks for as long as that takes. kProtocol, kCancelled when the session has ended.
  [[nodiscard]] Result<wire::RdmaOpenReply> open(const wire::RdmaOpenRequest& request);
  // The connection is gone: all queue pairs are destroyed, then what at_end() was given runs.
  void end();
  [[nodiscard]] std::size_t rails() const;
  [[nodiscard]] const std::shared_ptr<net::Session>& connection() const { return connection_; }

 private:
  struct Rail {
    std::size_t nic = 0;
    std::unique_ptr<QueuePair> queue_pair;
  };
  struct Choice {
    std::size_t nic = 0;
    Gid ours;
    std::uint32_t their_position = 0;
    Gid theirs;
  };
  struct Opened {
    Choice choice;
    QueuePairAddress address;
    bool connection_manager = false;
  };

  [[nodiscard]] Result<Choice> choose(const End& end, const std::string& avoid) const;
  [[nodiscard]] Result<Opened> open_one(std::uint32_t number, const End& end, const std::string& avoid);

  const std::shared_ptr<MemoryMap> memory_;
  const Options options_;
  const std::shared_ptr<net::Session> connection_;

  // Guards what follows. Held while queue pairs are destroyed, so that whoever comes second returns no sooner than they are gone.
  mutable std::mutex mutex_;
  std::map<std::uint32_t, Rail> rails_;
  std::vector<std::function<void()>> releases_;
  bool ended_ = false;
};

// kStaleIncarnation when nothing is served under it.
[[nodiscard]] Result<wire::RdmaKeysReply> keys_of(const MemoryMap& memory, const wire::RdmaKeysRequest& request);

}  // namespace moonpool::transfer::rdma
