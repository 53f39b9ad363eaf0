#include "base/sync_point.h"

#ifdef MOONPOOL_SYNC_POINTS
namespace moonpool {

SyncPoints& SyncPoints::instance() {
  static SyncPoints points;
  return points;
}

void SyncPoints::on(const std::string& name, std::function<void()> handler) {
  const std::scoped_lock lock(mutex_);
  handlers_[name] = std::move(handler);
}

void SyncPoints::clear() {
  const std::scoped_lock lock(mutex_);
  handlers_.clear();
}

void SyncPoints::reach(const char* name) {
  std::function<void()> handler;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = handlers_.find(name);
    if (found == handlers_.end()) return;
    handler = found->second;
  }
  handler();
}

}  // namespace moonpool
#endif
