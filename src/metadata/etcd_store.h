// A MetadataStore kept by etcd v3, spoken to over its JSON gateway (POST /v3/kv/range, put, deleterange; keys and values in base64).
//
// Failover: the endpoint that answered last is asked first; when it fails the others follow, each with its share of the time left and no
// more than kEndpointShare while others are still to be asked, so that one that swallows packets does not use up the call. If all have
// failed and time is left, those that were only slow are asked once more. All requests here may be repeated. No authentication, no TLS.
// Threads: any. Owns its connections.
#pragma once

#include <atomic>
#include <chrono>

#include "metadata/metadata_store.h"
#include "metadata/metadata_url.h"
#include "metadata/open_metadata_store.h"
#include "net/http_client.h"

namespace moonpool::metadata {

class EtcdStore final : public MetadataStore {
 public:
  EtcdStore(const MetadataUrl& url, const MetadataStoreOptions& options);

  [[nodiscard]] Result<std::string> get(std::string_view key, Deadline deadline) override;
  [[nodiscard]] Status put(std::string_view key, std::string_view value, Deadline deadline) override;
  [[nodiscard]] Status remove(std::string_view key, Deadline deadline) override;
  [[nodiscard]] std::string describe() const override;

 private:
  static constexpr std::chrono::seconds kEndpointShare{2};

  // The body of the first endpoint's answer that is a success.
  [[nodiscard]] Result<std::string> call(std::string_view path, const std::string& body, Deadline deadline);
  [[nodiscard]] Result<std::string> call_one(std::size_t index, std::string_view path, const std::string& body, Deadline deadline);

  const std::vector<net::Endpoint> endpoints_;
  net::HttpClient client_;
  std::atomic<std::size_t> preferred_{0};  // index of the endpoint that answered last
};

}  // namespace moonpool::metadata
