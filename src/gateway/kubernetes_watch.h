// Follows one Kubernetes service: lists its EndpointSlices, then keeps a watch open and reports what changes as it changes.
//
// One connection to the API server. A watch ends by itself about each minute and goes on from the version last seen; where the server no
// longer has that version (410 Gone), the list is read again. The token is read anew for each request, because it is replaced while a pod
// runs; it is sent over TLS, or to a server that was given credentials by name. After a failure: a pause, then the list.
// Threads: its executor's. Ownership: on its follower's coroutine (membership.cpp).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/cancellation.h"
#include "gateway/http_endpoint.h"
#include "gateway/kubernetes_instances.h"
#include "gateway/resolver.h"
#include "gateway/settings.h"
#include "gateway/tls.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class KubernetesWatch {
 public:
  using Names = std::vector<InstanceName>;
  // Called with the whole list each time that it may have changed, and with each failure.
  using Found = std::function<void(Result<Names>)>;

  KubernetesWatch(const Executor& executor, Resolver& resolver, KubernetesSource source, Found found);

  // Until cancelled.
  [[nodiscard]] Task<void> run(std::chrono::milliseconds patience, Cancellation& cancellation);

 private:
  [[nodiscard]] Status set_up();
  [[nodiscard]] std::string target(bool watch) const;
  [[nodiscard]] Result<std::string> fields() const;
  [[nodiscard]] Task<Result<std::unique_ptr<Exchange>>> ask(bool watch, std::chrono::milliseconds patience, Cancellation& cancellation);
  [[nodiscard]] Task<Status> list(std::chrono::milliseconds patience, Cancellation& cancellation);
  // Ok: it ended as it should, another one goes on from there.
  [[nodiscard]] Task<Status> watch(std::chrono::milliseconds patience, Cancellation& cancellation);
  [[nodiscard]] Status take_events(std::string& lines);

  TlsKeeper tls_;      // with the cluster's CA
  UpstreamPool pool_;  // keeps nothing
  const KubernetesSource source_;
  const Found found_;
  std::optional<HttpEndpoint> server_;
  std::string folder_;  // of the credentials
  std::string name_space_;
  EndpointSlices slices_;
};

}  // namespace moonpool::gateway
