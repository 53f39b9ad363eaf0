#include "metadata/metadata_store.h"

#include <algorithm>
#include <chrono>

namespace moonpool::metadata {

namespace {
constexpr std::size_t kShownKeyBytes = 80;
constexpr std::string_view kProbeKey = "moonpool/reachable";
}  // namespace

Status check_reachable(MetadataStore& store, Deadline deadline) {
  const auto probe = store.get(kProbeKey, deadline);
  return probe.code() == ErrorCode::kObjectNotFound ? Status() : probe.status();
}

Status check_key(std::string_view key) {
  if (key.empty()) return {ErrorCode::kInvalidKey, "a metadata key is empty: it needs at least one byte"};
  if (key.size() > kMaxKeyBytes) {
    return {ErrorCode::kInvalidKey, "the metadata key '" + shown_key(key) + "' has " + std::to_string(key.size()) + " bytes: at most " +
                                        std::to_string(kMaxKeyBytes) + " are allowed"};
  }
  return {};
}

Status check_key_and_value(std::string_view key, std::string_view value) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  if (value.size() > kMaxValueBytes) {
    return {ErrorCode::kInvalidParams, "the value of metadata key '" + shown_key(key) + "' has " + std::to_string(value.size()) +
                                           " bytes: at most " + std::to_string(kMaxValueBytes) + " are allowed"};
  }
  return {};
}

std::string shown_key(std::string_view key) {
  std::string shown(key.substr(0, kShownKeyBytes));
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  if (key.size() > kShownKeyBytes) shown += "...";
  return shown;
}

Status metadata_error(const MetadataStore& store, std::string_view operation, std::string_view key, Deadline::Clock::time_point start,
                      std::string_view why) {
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - start).count();
  std::string text = store.describe();
  text.append(": ").append(operation).append(" of '").append(shown_key(key)).append("' failed after ");
  text.append(std::to_string(waited)).append(" ms: ").append(why);
  return {ErrorCode::kMetadataFail, std::move(text)};
}

Status key_not_found(const MetadataStore& store, std::string_view key) {
  return {ErrorCode::kObjectNotFound, store.describe() + " has no key '" + shown_key(key) + "'"};
}

}  // namespace moonpool::metadata
