#include "gateway/time_limit.h"

namespace moonpool::gateway {

std::string TimeLimit::text() const {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(patience.allowed).count();
  std::string fraction = std::to_string(ms % 1000);
  fraction.insert(0, 3 - fraction.size(), '0');
  std::string text = std::to_string(ms / 1000) + "." + fraction + " s";
  if (patience.flag != nullptr) text.append(" (").append(patience.flag).append(")");
  return text;
}

}  // namespace moonpool::gateway
