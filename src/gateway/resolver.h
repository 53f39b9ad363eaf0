// Turns an instance's name into addresses, within a deadline that holds even while the system's resolver hangs.
//
// getaddrinfo() and res_nquery() cannot be interrupted, so they run on a few threads of their own; the caller stops waiting at its
// deadline. Every new connection resolves anew (an instance may have moved), IP addresses do not come here at all. Threads: resolve() from
// any executor. Ownership: one per gateway, destroyed before the executors that its callers run on.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "gateway/cancellation.h"
#include "gateway/instance_name.h"
#include "gateway/io.h"
#include "gateway/time_limit.h"

namespace moonpool::gateway {

class Resolver {
 public:
  // At least one endpoint, or the reason why there is none.
  [[nodiscard]] Task<Result<std::vector<Endpoint>>> resolve(const InstanceName& name, TimeLimit limit, Cancellation& cancellation);

  // The instances that SRV records name, asked of `server` or of the system's name servers (dns_client.h).
  [[nodiscard]] Task<Result<std::vector<InstanceName>>> services(const std::string& name, const std::string& server, TimeLimit limit,
                                                                 Cancellation& cancellation);

 private:
  static constexpr std::size_t kThreads = 4;
  asio::thread_pool pool_{kThreads};
};

// A pause that ends early when the request is cancelled.
[[nodiscard]] Task<void> pause(std::chrono::nanoseconds duration, Cancellation& cancellation);

}  // namespace moonpool::gateway
