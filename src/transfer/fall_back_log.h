// Says, once for a while and for each peer, that TCP has taken over from RDMA. Threads: any.
#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <string_view>

#include "base/deadline.h"
#include "base/logging.h"
#include "net/endpoint.h"

namespace moonpool::transfer {

class FallBackLog {
 public:
  static constexpr std::chrono::seconds kQuiet{60};

  void report(const net::Endpoint& peer, std::string_view why) {
    const auto now = Deadline::Clock::now();
    {
      const std::scoped_lock lock(mutex_);
      const auto [last, first] = last_.try_emplace(peer, now);
      if (!first && now - last->second < kQuiet) return;
      last->second = now;
    }
    log::warning("transfers with {} go over tcp: {}", peer.to_string(), why);
  }

 private:
  std::mutex mutex_;  // guards last_
  std::map<net::Endpoint, Deadline::Clock::time_point> last_;
};

}  // namespace moonpool::transfer
