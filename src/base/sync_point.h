// Named points in the code at which a test may stop a thread or run something, to make a race happen on purpose
// (the idea of RocksDB's SyncPoint). Compiled out where MOONPOOL_SYNC_POINTS is not defined: the release build has none.
//
//   MOONPOOL_SYNC_POINT("owner.write.before_complete");       in the code
//   SyncPoints::instance().on("owner.write.before_complete", [&] { gate.wait(); });   in the test
//
// Threads: any. A handler runs on the thread that reaches the point, without a lock held here.
#pragma once

#ifdef MOONPOOL_SYNC_POINTS
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace moonpool {
class SyncPoints {
 public:
  static SyncPoints& instance();
  void on(const std::string& name, std::function<void()> handler);
  void clear();  // forgets all handlers; tests call it when they end
  void reach(const char* name);

 private:
  std::mutex mutex_;  // guards handlers_
  std::map<std::string, std::function<void()>> handlers_;
};
}  // namespace moonpool
#define MOONPOOL_SYNC_POINT(name) ::moonpool::SyncPoints::instance().reach(name)
#else
#define MOONPOOL_SYNC_POINT(name) static_cast<void>(0)
#endif
