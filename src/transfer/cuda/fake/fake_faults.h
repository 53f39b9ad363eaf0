// Faults on command: which call of which function fails next, and how. Threads: any.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::transfer::cuda {

class FakeFaults {
 public:
  // The call after `skip` others. Aborts at a name that no call ever asks for: the test would prove nothing.
  void add(std::string_view function, Status status, int skip, bool late);
  // Counts a call. `late` is of the work, `status` of the call.
  struct Verdict {
    Status call;
    Status work;
  };
  [[nodiscard]] Verdict next(std::string_view function);

 private:
  struct Fault {
    int skip;
    Status status;
    bool late;
  };
  std::mutex mutex_;
  std::map<std::string, std::list<Fault>, std::less<>> faults_;  // guarded by mutex_
};

}  // namespace moonpool::transfer::cuda
