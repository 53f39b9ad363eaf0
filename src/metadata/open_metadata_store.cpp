#include "metadata/open_metadata_store.h"

#include "metadata/etcd_store.h"
#include "metadata/http_store.h"
#ifdef MOONPOOL_WITH_REDIS
#include "metadata/redis_store.h"
#endif

namespace moonpool::metadata {

Result<std::unique_ptr<MetadataStore>> open_metadata_store(std::string_view url, const MetadataStoreOptions& options) {
  auto parsed = parse_metadata_url(url);
  if (!parsed) return parsed.status();
  return open_metadata_store(*parsed, options);
}

Result<std::unique_ptr<MetadataStore>> open_metadata_store(const MetadataUrl& url, const MetadataStoreOptions& options) {
  switch (url.kind) {
    case MetadataKind::kHttp:
      return std::unique_ptr<MetadataStore>(std::make_unique<HttpStore>(url, options));
    case MetadataKind::kEtcd:
      return std::unique_ptr<MetadataStore>(std::make_unique<EtcdStore>(url, options));
    case MetadataKind::kRedis:
#ifdef MOONPOOL_WITH_REDIS
      return std::unique_ptr<MetadataStore>(std::make_unique<RedisStore>(url, options));
#else
      return Status(ErrorCode::kNotSupported, url.to_string() +
                                                  ": this build has no Redis support: build with -DMOONPOOL_WITH_REDIS=ON (needs "
                                                  "libhiredis-dev), or use etcd:// or http://");
#endif
    case MetadataKind::kPeerToPeer:
      break;
  }
  return Status(ErrorCode::kInvalidParams, "P2PHANDSHAKE means that there is no metadata server: nothing to open");
}

}  // namespace moonpool::metadata
