#include "master/tombstones.h"

#include <algorithm>

#include "master/object_key.h"

namespace moonpool::master {

Result<std::shared_ptr<const KeyPattern>> KeyPattern::compile(const std::string& expression) {
  if (expression.size() > kMaxLength) {
    return Status(ErrorCode::kInvalidParams,
                  "regular expression of " + std::to_string(expression.size()) + " bytes: the limit is " + std::to_string(kMaxLength));
  }
  try {
    // __polynomial: libstdc++'s breadth-first matcher. Its default one recurses for every character and takes exponential time on (a+)+$.
    std::regex regex(expression, std::regex::ECMAScript | std::regex_constants::__polynomial);
    return std::shared_ptr<const KeyPattern>(new KeyPattern(std::move(regex)));
  } catch (const std::exception& error) {
    return Status(ErrorCode::kInvalidParams, "regular expression '" + expression + "' is not valid ECMAScript: " + error.what());
  }
}

bool KeyPattern::matches(std::string_view key) const {
  try {
    return std::regex_search(key.begin(), key.end(), regex_);
  } catch (const std::exception&) {
    return false;
  }
}

void PurgeMarks::add(std::string_view tenant, std::shared_ptr<const KeyPattern> pattern, Version up_to) {
  const std::scoped_lock lock(mutex_);
  const auto same = [&](const Mark& mark) { return mark.tenant == tenant && mark.pattern == pattern; };
  if (const auto found = std::find_if(marks_.begin(), marks_.end(), same); found != marks_.end()) {
    found->up_to = std::max(found->up_to, up_to);
    return;
  }
  marks_.push_back({std::string(tenant), std::move(pattern), up_to});
  if (marks_.size() <= kLimit) return;
  // The oldest pattern becomes "everything of that tenant": more is refused than need be, never less.
  const auto oldest = std::find_if(marks_.begin(), marks_.end(), [](const Mark& mark) { return mark.pattern != nullptr; });
  if (oldest == marks_.end()) return;
  const Mark widened{oldest->tenant, nullptr, oldest->up_to};
  marks_.erase(oldest);
  const auto whole =
      std::find_if(marks_.begin(), marks_.end(), [&](const Mark& mark) { return mark.tenant == widened.tenant && !mark.pattern; });
  if (whole == marks_.end()) {
    marks_.push_back(widened);
  } else {
    whole->up_to = std::max(whole->up_to, widened.up_to);
  }
}

bool PurgeMarks::covers(std::string_view qualified_key, Version version) const {
  const std::scoped_lock lock(mutex_);
  if (marks_.empty()) return false;
  const auto [tenant, key] = split_qualified(qualified_key);
  return std::any_of(marks_.begin(), marks_.end(), [&, tenant = tenant, key = key](const Mark& mark) {
    return version <= mark.up_to && tenant == mark.tenant && (!mark.pattern || mark.pattern->matches(key));
  });
}

}  // namespace moonpool::master
