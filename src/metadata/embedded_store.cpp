#include "metadata/embedded_store.h"

namespace moonpool::metadata {

Result<std::string> EmbeddedStore::get(std::string_view key, Deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const std::lock_guard lock(mutex_);
  const auto found = values_.find(std::string(key));
  if (found == values_.end()) return key_not_found(*this, key);
  return found->second;
}

Status EmbeddedStore::put(std::string_view key, std::string_view value, Deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key_and_value(key, value));
  const std::lock_guard lock(mutex_);
  const auto found = values_.find(std::string(key));
  const std::size_t released = found != values_.end() ? key.size() + found->second.size() : 0;
  const std::size_t after = bytes_ - released + key.size() + value.size();
  if (after > max_bytes_) {
    return {ErrorCode::kMetadataFail, describe() + " is full (" + std::to_string(bytes_) + " of " + std::to_string(max_bytes_) +
                                          " bytes used): remove keys that are no longer needed"};
  }
  bytes_ = after;
  if (found != values_.end()) {
    found->second = value;
  } else {
    values_.emplace(key, value);
  }
  return {};
}

Status EmbeddedStore::remove(std::string_view key, Deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const std::lock_guard lock(mutex_);
  const auto found = values_.find(std::string(key));
  if (found == values_.end()) return key_not_found(*this, key);
  bytes_ -= found->first.size() + found->second.size();
  values_.erase(found);
  return {};
}

}  // namespace moonpool::metadata
