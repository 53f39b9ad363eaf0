// A MetadataStore kept by an HTTP metadata service (metadata_http_service.h, or Mooncake's own): GET/PUT/DELETE <url>?key=.
//
// Threads: any. Owns its connections.
#pragma once

#include "metadata/metadata_store.h"
#include "metadata/metadata_url.h"
#include "metadata/open_metadata_store.h"
#include "net/http_client.h"

namespace moonpool::metadata {

class HttpStore final : public MetadataStore {
 public:
  HttpStore(const MetadataUrl& url, const MetadataStoreOptions& options);

  [[nodiscard]] Result<std::string> get(std::string_view key, Deadline deadline) override;
  [[nodiscard]] Status put(std::string_view key, std::string_view value, Deadline deadline) override;
  [[nodiscard]] Status remove(std::string_view key, Deadline deadline) override;
  [[nodiscard]] std::string describe() const override { return "HTTP metadata server " + url_; }

 private:
  // The body of a 2xx answer.
  [[nodiscard]] Result<std::string> call(std::string_view operation, std::string_view method, std::string_view key, std::string_view value,
                                         Deadline deadline);

  const std::string url_;
  net::HttpClient client_;
};

}  // namespace moonpool::metadata
