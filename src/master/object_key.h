// One flat key space for all tenants: "tenant NUL key"; the default tenant's keys stand bare unless they hold a NUL themselves.
//
// So the text before the first NUL is always the tenant, and no key of one tenant can be spelled as another's. Writers put the same
// bytes into WriteRequest.key, which is how a restarted master learns the keys again.
#pragma once

#include <cstddef>
#include <list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moonpool::master {

inline constexpr std::size_t kMaxKeyLength = 64U << 10;
inline constexpr std::size_t kMaxTenantLength = 256;
inline constexpr std::string_view kDefaultTenant = "default";

[[nodiscard]] inline bool valid_tenant(std::string_view tenant) {
  return tenant.size() <= kMaxTenantLength && tenant.find('\0') == std::string_view::npos;
}
[[nodiscard]] inline bool valid_key(std::string_view key) { return !key.empty() && key.size() <= kMaxKeyLength; }

[[nodiscard]] inline std::string qualify(std::string_view tenant, std::string_view key) {
  if (tenant.empty()) tenant = kDefaultTenant;
  if (tenant == kDefaultTenant && key.find('\0') == std::string_view::npos) return std::string(key);
  std::string qualified;
  qualified.reserve(tenant.size() + 1 + key.size());
  qualified.append(tenant).push_back('\0');
  qualified.append(key);
  return qualified;
}

// The keys of a request, qualified: views of the request's bytes wherever a key stands bare, so that the default tenant costs no copy. Good
// while the request's bytes are.
class QualifiedKeys {
 public:
  QualifiedKeys() = default;
  QualifiedKeys(std::string_view tenant, std::span<const std::string_view> keys) {
    views_.reserve(keys.size());
    const bool bare = tenant.empty() || tenant == kDefaultTenant;
    for (const auto key : keys) {
      views_.push_back(bare && key.find('\0') == std::string_view::npos ? key : std::string_view(made_.emplace_back(qualify(tenant, key))));
    }
  }
  // Moving keeps the addresses of what was made.
  QualifiedKeys(QualifiedKeys&&) noexcept = default;
  QualifiedKeys& operator=(QualifiedKeys&&) noexcept = default;
  QualifiedKeys(const QualifiedKeys&) = delete;
  QualifiedKeys& operator=(const QualifiedKeys&) = delete;
  ~QualifiedKeys() = default;

  [[nodiscard]] std::size_t size() const { return views_.size(); }
  [[nodiscard]] std::string_view operator[](std::size_t i) const { return views_[i]; }
  [[nodiscard]] auto begin() const { return views_.begin(); }
  [[nodiscard]] auto end() const { return views_.end(); }

 private:
  std::vector<std::string_view> views_;
  std::list<std::string> made_;
};

// The tenant and the key as the user wrote it; views into `qualified`.
[[nodiscard]] inline std::pair<std::string_view, std::string_view> split_qualified(std::string_view qualified) {
  const auto mark = qualified.find('\0');
  if (mark == std::string_view::npos) return {kDefaultTenant, qualified};
  return {qualified.substr(0, mark), qualified.substr(mark + 1)};
}

}  // namespace moonpool::master
