// From the text in a configuration to a MetadataStore. Nothing is connected here: the first call does that, check_reachable() for one.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "metadata/metadata_store.h"
#include "metadata/metadata_url.h"

namespace moonpool::metadata {

struct MetadataStoreOptions {
  std::size_t max_idle_connections = 4;  // kept open to the server between calls
};

// kConfig for a bad URL; kNotSupported for redis:// in a build without it; kInvalidParams for P2PHANDSHAKE, which means that there is no
// store (ask parse_metadata_url() first where that is allowed).
[[nodiscard]] Result<std::unique_ptr<MetadataStore>> open_metadata_store(std::string_view url, const MetadataStoreOptions& options = {});
[[nodiscard]] Result<std::unique_ptr<MetadataStore>> open_metadata_store(const MetadataUrl& url, const MetadataStoreOptions& options = {});

}  // namespace moonpool::metadata
